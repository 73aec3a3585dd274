//! What a server answers with: the base and named generations of adapters.
//!
//! A generation is immutable. A name points to one, and a change lets it point to another; requests
//! that were accepted before keep theirs. A change may be bound to the generation that it is meant to
//! replace (compare-and-swap), so that of two people who change a name one is told.

pub(crate) mod root;
pub(crate) mod routes;
pub(crate) mod source;
pub(crate) mod state;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tunebook_models::{Model, Overlay};
use tunebook_tune::{FrozenAdapter, answering_fingerprint};

use crate::adapters::state::StateFile;
use crate::error::{Error, Result};

/// One generation: what a request is answered with, from its first token to its last.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) name: String,
    /// The fingerprint of all that its answers depend on.
    pub(crate) generation: String,
    pub(crate) overlay: Arc<Overlay>,
    /// `None`: the base.
    pub(crate) adapter: Option<FrozenAdapter>,
    /// Where it was read from.
    pub(crate) folder: Option<PathBuf>,
    /// When it came, in seconds of Unix time.
    pub(crate) created: u64,
}

/// An adapter that a server answers with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AdapterStatus {
    /// Its name: the `model` of requests.
    pub name: String,
    /// Its generation: `system_fingerprint` of answers.
    pub generation: String,
    /// What it is, in a few words.
    pub adapter: String,
    /// Where it was read from; `None` where it came from memory.
    pub folder: Option<PathBuf>,
}

impl fmt::Display for AdapterStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (generation {}): {}", self.name, self.generation, self.adapter)
    }
}

/// What a change of the table has done.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) served: Arc<Served>,
    /// The generation that it has replaced.
    pub(crate) replaced: Option<String>,
}

/// When a name may be given to another generation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Swap<'a> {
    /// It must be free.
    New,
    /// Whoever has it.
    Always,
    /// It must have this generation.
    From(&'a str),
}

type Names = BTreeMap<String, Arc<Served>>;

/// The generations of a server by name.
#[derive(Debug)]
pub(crate) struct AdapterTable {
    base: Arc<Served>,
    /// Held for the time of one look, or of one assignment.
    names: RwLock<Arc<Names>>,
    /// Held for a whole change, so that the state file has the changes in their order.
    changing: Mutex<()>,
    limit: usize,
    state: Option<StateFile>,
}

impl AdapterTable {
    /// The base alone.
    ///
    /// # Errors
    /// A device that does not hand its tensors over, for the fingerprint.
    pub(crate) fn new(
        model: &Model,
        base_name: String,
        limit: usize,
        state: Option<StateFile>,
    ) -> Result<Self> {
        let base = Served {
            name: base_name,
            generation: answering_fingerprint(model)?,
            overlay: model.overlay(),
            adapter: None,
            folder: None,
            created: now(),
        };
        let (names, changing) = (RwLock::default(), Mutex::default());
        Ok(Self { base: Arc::new(base), names, changing, limit, state })
    }

    pub(crate) fn base(&self) -> &Arc<Served> {
        &self.base
    }

    fn names(&self) -> Arc<Names> {
        Arc::clone(&self.names.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The adapters, by name.
    pub(crate) fn all(&self) -> Vec<Arc<Served>> {
        self.names().values().cloned().collect()
    }

    pub(crate) fn status(&self) -> Vec<AdapterStatus> {
        let status = |served: &Arc<Served>| AdapterStatus {
            name: served.name.clone(),
            generation: served.generation.clone(),
            adapter: served.adapter.as_ref().map(|a| a.config().to_string()).unwrap_or_default(),
            folder: served.folder.clone(),
        };
        self.names().values().map(status).collect()
    }

    /// The generation that a request's `model` names: `support`, or `support@4f3a` for that
    /// generation alone, of which the beginning will do.
    pub(crate) fn find(&self, model: &str) -> Option<Arc<Served>> {
        let (name, generation) = match model.split_once('@') {
            Some((name, generation)) => (name, generation),
            None => (model, ""),
        };
        let served = match name == self.base.name {
            true => Arc::clone(&self.base),
            false => Arc::clone(self.names().get(name)?),
        };
        served.generation.starts_with(generation).then_some(served)
    }

    /// The names that a request may give.
    pub(crate) fn known(&self) -> Vec<String> {
        let names = self.names();
        std::iter::once(&self.base.name).chain(names.keys()).cloned().collect()
    }

    /// Lets an adapter's name point to it. The same generation again changes nothing.
    ///
    /// # Errors
    /// The swap is not allowed, there is no room, or the state file cannot be written. Nothing has
    /// changed then.
    pub(crate) fn put(
        &self,
        adapter: FrozenAdapter,
        folder: Option<PathBuf>,
        swap: Swap<'_>,
    ) -> Result<Change> {
        let name = adapter.name().to_owned();
        if name == self.base.name {
            return Err(Error::BaseName { name });
        }
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names = Names::clone(&self.names());
        let old = names.get(&name).cloned();
        let found = old.as_ref().map(|old| old.generation.clone());
        check(&name, found.as_deref(), swap)?;
        let served = Arc::new(Served {
            name: name.clone(),
            generation: adapter.fingerprint().to_owned(),
            overlay: adapter.overlay(),
            adapter: Some(adapter),
            folder,
            created: now(),
        });
        match &old {
            // What its prompts have computed stays in use.
            Some(old) if old.generation == served.generation && old.folder == served.folder => {
                return Ok(Change { served: Arc::clone(old), replaced: None });
            }
            Some(old) if matches!(swap, Swap::New) && old.generation != served.generation => {
                let generation = old.generation.clone();
                return Err(Error::AdapterExists { name, generation });
            }
            None if names.len() >= self.limit => {
                return Err(Error::TooManyAdapters { limit: self.limit });
            }
            _ => {}
        }
        names.insert(name, Arc::clone(&served));
        self.publish(names)?;
        Ok(Change { served, replaced: found })
    }

    /// Takes a name out. Requests that were accepted before are answered by it all the same.
    ///
    /// # Errors
    /// No adapter of that name, another generation than expected, or the state file cannot be
    /// written.
    pub(crate) fn remove(&self, name: &str, expected: Option<&str>) -> Result<Arc<Served>> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names = Names::clone(&self.names());
        let Some(old) = names.remove(name) else {
            let served = names.keys().cloned().collect();
            return Err(Error::UnknownAdapter { name: name.to_owned(), served });
        };
        if let Some(expected) = expected {
            check(name, Some(&old.generation), Swap::From(expected))?;
        }
        self.publish(names)?;
        Ok(old)
    }

    /// The file first: what it cannot keep is not said to be done.
    fn publish(&self, names: Names) -> Result<()> {
        if let Some(state) = &self.state {
            let folder = |(name, served): (&String, &Arc<Served>)| {
                Some((name.clone(), served.folder.clone()?))
            };
            state.write(&names.iter().filter_map(folder).collect())?;
        }
        *self.names.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(names);
        Ok(())
    }
}

/// # Errors
/// The name has another generation than the change is meant for.
fn check(name: &str, found: Option<&str>, swap: Swap<'_>) -> Result<()> {
    match swap {
        Swap::From(expected) if found != Some(expected) => Err(Error::Generation {
            name: name.to_owned(),
            expected: expected.to_owned(),
            found: found.map(str::to_owned),
        }),
        _ => Ok(()),
    }
}

/// Reads an adapter's folder, as the server's settings say.
///
/// # Errors
/// As [`FrozenAdapter::read`].
pub(crate) fn read(
    model: &Model,
    name: &str,
    folder: &Path,
    any_base: bool,
) -> Result<FrozenAdapter> {
    Ok(match any_base {
        true => FrozenAdapter::read_for_any_base(model, name, folder)?,
        false => FrozenAdapter::read(model, name, folder)?,
    })
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
