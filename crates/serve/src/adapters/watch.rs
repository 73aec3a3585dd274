//! A folder whose adapters are served as they come, change and go.
//!
//! The folder is read again and again: no system tells of changes on all file systems. An adapter is
//! taken when its files have been the same for two looks, or for a while; when it can be read as a
//! whole; and when the files were still the same after that. So a writer that is slow, or that stops
//! in the middle, is waited for.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch::Receiver;
use tunebook_tune::peft;

use crate::adapters::root::AdapterRoot;
use crate::adapters::{self, Origin, Swap};
use crate::api_error::ApiError;
use crate::app::App;
use crate::config::Watch;
use crate::error::{Error, Result};

/// Files that nobody has touched for so many looks are not being written.
const QUIET_LOOKS: u32 = 2;

/// All that can change of a folder's files, by name: length, time of the last change, and the file
/// itself, which another one may replace.
type Signature = BTreeMap<String, (u64, Option<SystemTime>, u64)>;

/// One folder as it was at the last look.
#[derive(Debug, Default)]
struct Seen {
    signature: Signature,
    tried: Tried,
    /// Looks since its folder was there last.
    missing: u32,
    /// The generation that it was loaded as.
    loaded: Option<String>,
    /// The code of the refusal that was reported.
    reported: Option<&'static str>,
}

/// Whether the files of a look were tried.
#[derive(Debug, Default, PartialEq, Eq)]
enum Tried {
    #[default]
    No,
    /// Whatever came of it, it is the files' doing.
    Yes,
    /// They were refused for what was served when the names had changed so many times.
    At(u64),
}

/// What the watch knows of its folder.
#[derive(Debug)]
pub(crate) struct Watcher {
    root: AdapterRoot,
    interval: Duration,
    seen: BTreeMap<String, Seen>,
    /// It was said that the folder cannot be read.
    reported: bool,
}

impl Watcher {
    /// # Errors
    /// It is no folder.
    pub(crate) fn new(watch: &Watch) -> Result<Self> {
        let root = AdapterRoot::new(&watch.folder)?;
        Ok(Self { root, interval: watch.interval, seen: BTreeMap::new(), reported: false })
    }

    /// Looks until the server closes.
    pub(crate) async fn run(mut self, app: Arc<App>, mut closing: Receiver<bool>) {
        let interval = self.interval;
        loop {
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                _ = closing.wait_for(|closing| *closing) => return,
            }
            let looking = Arc::clone(&app);
            let looked = app.loader.run_async(move || {
                self.look(&looking);
                Ok(self)
            });
            match looked.await {
                Ok(watcher) => self = watcher,
                Err(error) => return app.tell(&format!("watch: ended: {error}")),
            }
        }
    }

    /// One look: loads, replaces and unloads.
    pub(crate) fn look(&mut self, app: &App) {
        let names = match self.names() {
            Ok(names) => names,
            Err(error) => {
                // What is served stays: the file system may come back.
                if !std::mem::replace(&mut self.reported, true) {
                    let folder = self.root.path().display();
                    app.tell(&format!("watch: cannot read `{folder}`: {error}"));
                }
                return;
            }
        };
        self.reported = false;
        self.seen.retain(|name, seen| {
            seen.missing = if names.contains(name) { 0 } else { seen.missing + 1 };
            // A folder that is replaced is gone for a moment.
            let gone = seen.missing >= QUIET_LOOKS;
            if gone && let Some(generation) = &seen.loaded {
                match app.adapters.remove_watched(name, generation) {
                    Ok(true) => app.tell(&format!("watch: unloaded `{name}`: its folder is gone")),
                    Ok(false) => {} // somebody else has changed it, so it is theirs
                    Err(error) => app.tell(&format!("watch: cannot unload `{name}`: {error}")),
                }
            }
            !gone
        });
        names.iter().for_each(|name| self.visit(name, app));
    }

    /// The folders that hold an adapter's configuration, but hidden ones.
    fn names(&self) -> std::io::Result<Vec<String>> {
        let entries = self.root.path().read_dir()?.flatten();
        let named = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let is_adapter = |name: &String| {
            !name.starts_with('.') && self.root.path().join(name).join(peft::CONFIG_FILE).is_file()
        };
        let mut names: Vec<String> = named.filter(is_adapter).collect();
        names.sort();
        Ok(names)
    }

    fn visit(&mut self, name: &str, app: &App) {
        let folder = self.root.resolve(name);
        let signature = match &folder {
            Ok(folder) => signature(folder),
            Err(_) => Signature::new(),
        };
        let quiet = self.interval * QUIET_LOOKS;
        let seen = self.seen.entry(name.to_owned()).or_default();
        let same = seen.signature == signature && !signature.is_empty();
        if seen.signature != signature {
            (seen.signature, seen.tried) = (signature, Tried::No);
        }
        let folder = match folder {
            Ok(folder) => folder,
            Err(error) => return seen.report(name, error, app),
        };
        let changes = app.adapters.changes(); // before the table is asked
        let tried = match seen.tried {
            Tried::No => false,
            Tried::Yes => true,
            Tried::At(then) => then == changes,
        };
        if tried || !(same || is_quiet(&seen.signature, quiet)) {
            return;
        }
        match load(name, &folder, seen, app) {
            Ok(Read::Served(told)) => {
                (seen.tried, seen.reported) = (Tried::Yes, None);
                told.iter().for_each(|told| app.tell(told));
            }
            Ok(Read::Again) => {}
            Err(error) => {
                seen.tried = match &error {
                    Error::TooManyAdapters { .. }
                    | Error::AdapterMemory { .. }
                    | Error::AdapterExists { .. }
                    | Error::Generation { .. } => Tried::At(changes),
                    // The file system, or the state file's, may come back.
                    Error::Tune(tunebook_tune::Error::Io { .. }) | Error::State { .. } => Tried::No,
                    _ => Tried::Yes,
                };
                seen.report(name, error, app);
            }
        }
    }
}

impl Seen {
    /// Says once what is wrong.
    fn report(&mut self, name: &str, error: Error, app: &App) {
        let problem = format!("watch: `{name}` is not served: {error}");
        let code = ApiError::from(error).code;
        if self.reported != Some(code) {
            self.reported = Some(code);
            app.tell(&problem);
        }
    }
}

/// What has come of a folder.
enum Read {
    /// It is served; what there is to tell.
    Served(Option<String>),
    /// It has changed while it was read, or what was served from it was unloaded by hand.
    Again,
}

/// Serves the adapter in a folder.
fn load(name: &str, folder: &Path, seen: &mut Seen, app: &App) -> Result<Read> {
    let begun = Instant::now();
    let adapter = adapters::read(&app.model, name, folder, &app.config)?;
    if signature(folder) != seen.signature {
        return Ok(Read::Again);
    }
    // A name that the watch has not given is somebody else's.
    let swap = seen.loaded.as_deref().map_or(Swap::New, Swap::From);
    let change = match app.adapters.put(adapter, Origin::Watched(folder.to_path_buf()), swap) {
        // Somebody has unloaded or replaced what was loaded from here.
        Err(Error::Generation { found: None, .. }) => {
            seen.loaded = None;
            return Ok(Read::Again);
        }
        changed => changed?,
    };
    let took = begun.elapsed();
    app.metrics.swapped(took);
    let generation = change.served.generation.clone();
    let told = match &change.replaced {
        Some(old) => format!("watch: replaced `{name}` in {took:.1?}: {generation} for {old}"),
        None => format!("watch: loaded `{name}` in {took:.1?}: {generation}"),
    };
    let is_new = seen.loaded.replace(generation.clone()) != Some(generation);
    Ok(Read::Served(is_new.then_some(told)))
}

fn signature(folder: &Path) -> Signature {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    let file = |entry: std::fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let found = entry.path().metadata().ok()?; // of what a link points to
        found.is_file().then(|| (name, (found.len(), found.modified().ok(), file_id(&found))))
    };
    entries.filter_map(file).collect()
}

#[cfg(unix)]
fn file_id(found: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(found)
}

#[cfg(not(unix))]
fn file_id(_: &std::fs::Metadata) -> u64 {
    0
}

/// Whether nothing was written for a while.
fn is_quiet(signature: &Signature, time: Duration) -> bool {
    let now = SystemTime::now();
    let old = |changed: &Option<SystemTime>| {
        changed.and_then(|at| now.duration_since(at).ok()).is_some_and(|age| age >= time)
    };
    !signature.is_empty() && signature.values().all(|(_, changed, _)| old(changed))
}
