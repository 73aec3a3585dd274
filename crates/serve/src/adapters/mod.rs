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
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use serde::Serialize;
use tunebook_models::{Model, Overlay};
use tunebook_tune::{FrozenAdapter, answering_fingerprint};

use crate::adapters::mix::Mixes;
use crate::adapters::state::{Folders, State};
use crate::api_error::ApiError;
use crate::config::{Limits, ServerConfig};
use crate::error::{Error, Result};

/// The label of mixes ([`Served::label`]).
pub(crate) const MIXES: &str = "adapter mix";

/// One generation: what a request is answered with, from its first token to its last.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) name: String,
    /// The fingerprint of all that its answers depend on.
    pub(crate) generation: String,
    pub(crate) overlay: Arc<Overlay>,
    pub(crate) kind: Kind,
    pub(crate) origin: Origin,
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
            Kind::Mix => MIXES,
            Kind::Base | Kind::Adapter(_) => &self.name,
        }
    }

    /// Where it was read from.
    pub(crate) fn folder(&self) -> Option<&Path> {
        match &self.origin {
            Origin::Memory => None,
            Origin::Start(folder) | Origin::Folder(folder) | Origin::Watched(folder) => {
                Some(folder)
            }
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
    /// It must be free, or have this very adapter from there.
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
    state: Mutex<State>,
    /// How often the names have changed.
    changes: AtomicU64,
    mixes: Mixes,
    limits: Limits,
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
        state: State,
    ) -> Result<Self> {
        let base = Served {
            name: base_name,
            generation: answering_fingerprint(model)?,
            overlay: model.overlay(),
            kind: Kind::Base,
            origin: Origin::Memory,
            created: now(),
        };
        Ok(Self {
            base: Arc::new(base),
            names: RwLock::default(),
            state: Mutex::new(state),
            changes: AtomicU64::new(0),
            mixes: Mixes::default(),
            limits: limits.clone(),
        })
    }

    pub(crate) fn base(&self) -> &Arc<Served> {
        &self.base
    }

    fn names(&self) -> Arc<Names> {
        Arc::clone(&self.names.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn changing(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often the names have changed: what was refused for them may be tried again.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// The entries of the state file that no name stands for.
    pub(crate) fn unserved(&self) -> Folders {
        self.changing().unserved.clone()
    }

    /// Whether a name points to this generation.
    pub(crate) fn is_served(&self, generation: &str) -> bool {
        self.names().values().any(|served| served.generation == generation)
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
            folder: served.folder().map(Path::to_path_buf),
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
        let mut state = self.changing();
        let mut names = Names::clone(&self.names());
        let old = names.get(&name).cloned();
        let found = old.as_ref().map(|old| old.generation.clone());
        check(&name, found.as_deref(), swap)?;
        let watched = origin.is_watched();
        let same = old.as_ref().filter(|old| old.generation == adapter.fingerprint());
        if let Some(old) = same
            && old.origin == origin
        {
            return Ok(Change { served: Arc::clone(old), replaced: None });
        }
        // What the prompts of this generation have computed stays in use.
        let adapter = same.and_then(|old| old.adapter().cloned()).unwrap_or(adapter);
        let served = Arc::new(Served {
            name: name.clone(),
            generation: adapter.fingerprint().to_owned(),
            overlay: adapter.overlay(),
            kind: Kind::Adapter(adapter),
            origin,
            created: now(),
        });
        match &old {
            // The watch takes nobody's name.
            Some(old) if watched && !old.origin.is_watched() || matches!(swap, Swap::New) => {
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
        names.insert(name.clone(), Arc::clone(&served));
        self.publish(&mut state, names, (!watched).then_some(&name))?;
        Ok(Change { served, replaced: found })
    }

    /// Takes a name out. Requests that were accepted before are answered by it all the same.
    ///
    /// # Errors
    /// No adapter of that name, another generation than expected, or the state file cannot be
    /// written.
    pub(crate) fn remove(&self, name: &str, expected: Option<&str>) -> Result<Arc<Served>> {
        let mut state = self.changing();
        let mut names = Names::clone(&self.names());
        let Some(old) = names.remove(name) else {
            let served = names.keys().cloned().collect();
            return Err(Error::UnknownAdapter { name: name.to_owned(), served });
        };
        if let Some(expected) = expected {
            check(name, Some(&old.generation), Swap::From(expected))?;
        }
        self.publish(&mut state, names, Some(name))?;
        Ok(old)
    }

    /// Takes a name out that the watch has given to this generation. `false`: it is another's now.
    ///
    /// # Errors
    /// The state file cannot be written.
    pub(crate) fn remove_watched(&self, name: &str, generation: &str) -> Result<bool> {
        let mut state = self.changing();
        let mut names = Names::clone(&self.names());
        match names.remove(name) {
            Some(old) if old.origin.is_watched() && old.generation == generation => {
                self.publish(&mut state, names, None).map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// The file first: what it cannot keep is not said to be done. `changed` is the name whose entry
    /// in the file is replaced.
    fn publish(&self, state: &mut State, names: Names, changed: Option<&str>) -> Result<()> {
        let folder = |(name, served): (&String, &Arc<Served>)| match &served.origin {
            Origin::Folder(folder) => Some((name.clone(), folder.clone())),
            // Who starts the server gives its own again, and the watch finds its own again.
            Origin::Memory | Origin::Start(_) | Origin::Watched(_) => None,
        };
        state.write(names.iter().filter_map(folder).collect(), changed)?;
        *self.names.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(names);
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.mixes.retain(|generation| self.is_served(generation));
        Ok(())
    }
}

/// Where an adapter comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Memory,
    /// A folder that was given when the server was started.
    Start(PathBuf),
    /// A folder that was named while it runs, as the state file keeps it.
    Folder(PathBuf),
    /// A folder in the one that is watched: the adapter goes when it goes there.
    Watched(PathBuf),
}

impl Origin {
    pub(crate) fn is_watched(&self) -> bool {
        matches!(self, Self::Watched(_))
    }
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
