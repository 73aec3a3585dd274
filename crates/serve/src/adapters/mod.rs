//! What a server answers with: the base and named generations of adapters.
//!
//! A generation is immutable. A name points to one, and a change lets it point to another; requests
//! that were accepted before keep theirs. A change may be bound to the generation that it is meant to
//! replace (compare-and-swap), so that of two people who change a name one is told.

pub(crate) mod loader;
pub(crate) mod mix;
pub(crate) mod root;
pub(crate) mod routes;
pub(crate) mod source;
pub(crate) mod state;
pub(crate) mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use serde::Serialize;
use tunebook_models::{Model, Overlay};
use tunebook_tune::{FrozenAdapter, answering_fingerprint};

use crate::adapters::mix::Mixes;
use crate::adapters::state::StateFile;
use crate::api_error::ApiError;
use crate::config::{Limits, ServerConfig};
use crate::error::{Error, Result};

/// One generation: what a request is answered with, from its first token to its last.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) name: String,
    /// The fingerprint of all that its answers depend on.
    pub(crate) generation: String,
    pub(crate) overlay: Arc<Overlay>,
    pub(crate) kind: Kind,
    /// Where it was read from.
    pub(crate) folder: Option<PathBuf>,
    /// It was found in the watched folder, and goes when it goes there.
    pub(crate) watched: bool,
    /// When it came, in seconds of Unix time.
    pub(crate) created: u64,
}

/// What a generation is.
#[derive(Debug)]
pub(crate) enum Kind {
    Base,
    Adapter(FrozenAdapter),
    /// Adapters that have names of their own, by weight.
    Mix,
}

impl Served {
    pub(crate) fn adapter(&self) -> Option<&FrozenAdapter> {
        match &self.kind {
            Kind::Adapter(adapter) => Some(adapter),
            Kind::Base | Kind::Mix => None,
        }
    }

    /// The name that its requests are counted under: mixes, which clients make up, have one.
    pub(crate) fn label(&self) -> &str {
        match self.kind {
            Kind::Mix => "adapter mix",
            Kind::Base | Kind::Adapter(_) => &self.name,
        }
    }

    /// The memory that it alone takes.
    pub(crate) fn size_bytes(&self) -> usize {
        self.adapter().map_or(0, FrozenAdapter::size_bytes)
    }
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
    /// The memory that it takes.
    pub size_bytes: usize,
}

impl fmt::Display for AdapterStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = self.size_bytes as f64 / 1e6;
        let Self { name, generation, adapter, .. } = self;
        write!(f, "{name} (generation {generation}): {adapter}, {megabytes:.1} MB")
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
    mixes: Mixes,
    limits: Limits,
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
        limits: &Limits,
        state: Option<StateFile>,
    ) -> Result<Self> {
        let base = Served {
            name: base_name,
            generation: answering_fingerprint(model)?,
            overlay: model.overlay(),
            kind: Kind::Base,
            folder: None,
            watched: false,
            created: now(),
        };
        let (names, changing, mixes) = (RwLock::default(), Mutex::default(), Mixes::default());
        let limits = limits.clone();
        Ok(Self { base: Arc::new(base), names, changing, mixes, limits, state })
    }

    pub(crate) fn base(&self) -> &Arc<Served> {
        &self.base
    }

    fn names(&self) -> Arc<Names> {
        Arc::clone(&self.names.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn len(&self) -> usize {
        self.names().len()
    }

    /// The adapters, by name.
    pub(crate) fn all(&self) -> Vec<Arc<Served>> {
        self.names().values().cloned().collect()
    }

    pub(crate) fn status(&self) -> Vec<AdapterStatus> {
        let status = |served: &Arc<Served>| AdapterStatus {
            name: served.name.clone(),
            generation: served.generation.clone(),
            adapter: served.adapter().map(|a| a.config().to_string()).unwrap_or_default(),
            folder: served.folder.clone(),
            size_bytes: served.size_bytes(),
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

    /// No model has this name.
    pub(crate) fn unknown(&self, param: &str, model: &str) -> ApiError {
        let shown: String = model.chars().take(100).collect();
        let known = self.known().join("`, `");
        let message = format!("the model `{shown}` does not exist; there are `{known}`");
        let param = Some(param.to_owned());
        let error = ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message);
        ApiError { param, ..error }
    }

    /// Lets an adapter's name point to it. The same generation again changes nothing.
    ///
    /// # Errors
    /// The swap is not allowed, there is no room, or the state file cannot be written. Nothing has
    /// changed then.
    pub(crate) fn put(
        &self,
        adapter: FrozenAdapter,
        origin: Origin,
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
        let (folder, watched) = match origin {
            Origin::Memory => (None, false),
            Origin::Folder(folder) => (Some(folder), false),
            Origin::Watched(folder) => (Some(folder), true),
        };
        let served = Arc::new(Served {
            name: name.clone(),
            generation: adapter.fingerprint().to_owned(),
            overlay: adapter.overlay(),
            kind: Kind::Adapter(adapter),
            folder,
            watched,
            created: now(),
        });
        match &old {
            // What its prompts have computed stays in use.
            Some(old)
                if old.generation == served.generation
                    && old.folder == served.folder
                    && old.watched == served.watched =>
            {
                return Ok(Change { served: Arc::clone(old), replaced: None });
            }
            // The watch takes nobody's name.
            Some(old)
                if watched && !old.watched
                    || matches!(swap, Swap::New) && old.generation != served.generation =>
            {
                let generation = old.generation.clone();
                return Err(Error::AdapterExists { name, generation });
            }
            None if names.len() >= self.limits.max_adapters => {
                return Err(Error::TooManyAdapters { limit: self.limits.max_adapters });
            }
            _ => {}
        }
        let others = names.iter().filter(|(other, _)| **other != name);
        let resident: usize = others.map(|(_, served)| served.size_bytes()).sum();
        let size = served.size_bytes();
        check_memory(&name, size, resident, self.limits.max_adapter_bytes)?;
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

    /// Takes a name out that the watch has given to this generation. `false`: it is another's now.
    ///
    /// # Errors
    /// The state file cannot be written.
    pub(crate) fn remove_watched(&self, name: &str, generation: &str) -> Result<bool> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names = Names::clone(&self.names());
        match names.remove(name) {
            Some(old) if old.watched && old.generation == generation => {
                self.publish(names).map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// The file first: what it cannot keep is not said to be done.
    fn publish(&self, names: Names) -> Result<()> {
        if let Some(state) = &self.state {
            let folder = |(name, served): (&String, &Arc<Served>)| {
                // The watch finds its own again.
                Some((name.clone(), served.folder.clone().filter(|_| !served.watched)?))
            };
            state.write(&names.iter().filter_map(folder).collect())?;
        }
        let names = Arc::new(names);
        *self.names.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&names);
        self.mixes.retain(|generation| names.values().any(|s| s.generation == generation));
        Ok(())
    }
}

/// Where an adapter comes from.
#[derive(Debug)]
pub(crate) enum Origin {
    Memory,
    Folder(PathBuf),
    /// A folder in the one that is watched.
    Watched(PathBuf),
}

/// # Errors
/// There is no memory for an adapter of `size` beside those that are `resident`.
fn check_memory(name: &str, size: usize, resident: usize, limit: Option<usize>) -> Result<()> {
    match limit {
        Some(limit) if resident.saturating_add(size) > limit => {
            Err(Error::AdapterMemory { name: name.to_owned(), size, resident, limit })
        }
        _ => Ok(()),
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
/// As [`FrozenAdapter::read`]; files that are larger than all adapters may be.
pub(crate) fn read(
    model: &Model,
    name: &str,
    folder: &Path,
    config: &ServerConfig,
) -> Result<FrozenAdapter> {
    if let Some(limit) = config.limits.max_adapter_bytes {
        // Before it is in memory. A file may hold more than that, such as a table that is tied.
        let size = largest_tensor_file(folder);
        check_memory(name, size, 0, (size > limit.saturating_mul(2)).then_some(limit))?;
    }
    Ok(match config.any_base {
        true => FrozenAdapter::read_for_any_base(model, name, folder)?,
        false => FrozenAdapter::read(model, name, folder)?,
    })
}

/// The size of the largest file with tensors in a folder.
fn largest_tensor_file(folder: &Path) -> usize {
    let files = folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    let tensors = files.filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
    let sizes = tensors.filter_map(|path| path.metadata().ok()).map(|found| found.len() as usize);
    sizes.max().unwrap_or(0)
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
