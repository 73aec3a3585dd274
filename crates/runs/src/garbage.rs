//! Adapters that nothing refers to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use rusqlite::Connection;

use crate::adapters;
use crate::aliases;
use crate::data::short;
use crate::disk;
use crate::error::{Error, Result};
use crate::printable;
use crate::registry::{RUNS, Registry};
use crate::summary::Summary;

/// The tag of runs whose adapters stay.
const KEEP: &str = "keep";

/// A folder that was half written so long ago is a killed process's.
const LEFT_OVER: Duration = Duration::from_secs(24 * 3600);

/// The settings of [`Registry::gc`].
#[derive(Debug, Clone, PartialEq)]
pub struct GarbageArgs {
    /// Only says what would be removed. The default is true.
    pub dry_run: bool,
    /// Adapters that were saved or brought here less than these seconds ago stay: somebody may be about
    /// to evaluate them. 0 or more; the default is a week.
    pub min_age_secs: f64,
}

impl Default for GarbageArgs {
    fn default() -> Self {
        Self { dry_run: true, min_age_secs: 7.0 * 24.0 * 3600.0 }
    }
}

/// An adapter that nothing refers to.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GarbageItem {
    /// Its id.
    pub adapter: String,
    /// The run that has trained it.
    pub run: Option<String>,
    /// The size of its files.
    pub bytes: u64,
    /// Why its files are left where they are, although nothing refers to them.
    pub left: Option<String>,
}

/// What [`Registry::gc`] has found.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct Garbage {
    /// The adapters that nothing refers to.
    pub items: Vec<GarbageItem>,
    /// Adapters that stay.
    pub kept: usize,
    /// Whether the items were removed; else it was a dry run.
    pub removed: bool,
}

impl Garbage {
    /// The bytes of all that is removed, or would be.
    pub fn bytes(&self) -> u64 {
        self.items.iter().filter(|item| item.left.is_none()).map(|item| item.bytes).sum()
    }
}

impl fmt::Display for Garbage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for GarbageItem { adapter, run, bytes, left } in &self.items {
            let run = run.as_ref().map(|run| format!(" of run {}", printable(run)));
            let run = run.unwrap_or_default();
            write!(f, "{}{run}, {:.1} MB", short(adapter), *bytes as f64 / 1e6)?;
            match left {
                Some(why) => writeln!(f, ": left, {}", printable(why))?,
                None => writeln!(f)?,
            }
        }
        let verb = if self.removed { "were removed" } else { "would be removed (dry run)" };
        let count = self.items.iter().filter(|item| item.left.is_none()).count();
        let megabytes = self.bytes() as f64 / 1e6;
        write!(f, "{count} adapters, {megabytes:.1} MB, {verb}; {} stay", self.kept)
    }
}

impl fmt::Debug for Garbage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the index says of all adapters.
struct Known {
    /// With the time of their saving and their size.
    adapters: BTreeMap<String, (f64, u64)>,
    /// Each adapter's runs and parents.
    origins: Vec<(String, Option<String>, Option<String>)>,
    /// Of all generations of all aliases, and of runs with the tag `keep`.
    referred: BTreeSet<String>,
    /// Runs without an end, and their parents.
    open: Vec<(String, Option<String>)>,
}

/// See [`Registry::gc`]: an adapter stays if it is or was a generation of an alias, if one of its runs
/// has the tag `keep`, if it is young, if a run that goes on has it as its parent, or if it is the
/// parent, at any distance, of one that stays.
///
/// Before anything is removed all is read again from the files: the index is a copy, and whoever writes
/// to it would decide.
pub(crate) fn collect(registry: &Registry, args: &GarbageArgs) -> Result<Garbage> {
    if args.min_age_secs.is_nan() || args.min_age_secs < 0.0 {
        let expected = "seconds, 0 or more";
        return Err(Error::Setting { field: "min_age_secs", value: args.min_age_secs, expected });
    }
    let root = registry.root();
    if !args.dry_run {
        registry.put_right();
    }
    // Nothing is saved or promoted meanwhile. A dry run needs no lock, nor a disk to write it on.
    let _store = if args.dry_run { None } else { Some(adapters::lock(root)?) };
    let not_collected = |problem: String| Error::NotCollected { problem };
    let referred = aliases::referred(root).map_err(|error| not_collected(error.to_string()))?;
    if !args.dry_run {
        let unread = registry.index().rebuild()?;
        if let Some(problem) = unread.into_iter().next() {
            return Err(not_collected(problem));
        }
    }
    let known = registry.index().ask(known)?;
    for file in disk::names(&root.join(adapters::FOLDER))? {
        let Some(adapter) = file.strip_suffix(".jsonl") else { continue };
        if adapters::Kept::read(root, adapter)?.damaged > 0 {
            return Err(not_collected(format!(
                "a line of `{}/{file}` cannot be read, and may name a parent. Bring the file back \
                 from a copy; delete the line only if a process was killed while it wrote it",
                adapters::FOLDER
            )));
        }
    }
    let young = disk::now() - args.min_age_secs;
    let mut stays: BTreeSet<String> = known.referred;
    stays.extend(referred);
    for (id, (saved, _)) in &known.adapters {
        let came = changed(&adapters::folder(root, id));
        if saved.max(came) > young {
            stays.insert(id.clone());
        }
    }
    // A line that cannot be read may say `keep`.
    for run in disk::names(&root.join(RUNS))? {
        if Summary::notes_damage(&registry.run_folder(&run))? {
            stays.extend(of_run(&known.origins, &run));
        }
    }
    for (run, parent) in known.open {
        if Summary::is_running(&registry.run_folder(&run)) {
            stays.extend(parent);
        }
    }
    loop {
        let parents = known.origins.iter().filter(|(adapter, ..)| stays.contains(adapter));
        let more: Vec<String> = parents
            .filter_map(|(_, _, parent)| parent.clone())
            .filter(|parent| !stays.contains(parent))
            .collect();
        if more.is_empty() {
            break;
        }
        stays.extend(more);
    }
    let run_of = |id: &str| {
        let mut origins = known.origins.iter().filter(|(adapter, ..)| adapter == id);
        origins.find_map(|(_, run, _)| run.clone())
    };
    let mut items = Vec::new();
    for (adapter, (_, bytes)) in &known.adapters {
        // Files that were never copied here are nobody's garbage.
        if stays.contains(adapter) || !adapters::folder(root, adapter).is_dir() {
            continue;
        }
        let left = match args.dry_run {
            true => adapters::check_removable(root, adapter),
            false => adapters::remove(root, adapter),
        };
        items.push(GarbageItem {
            adapter: adapter.clone(),
            run: run_of(adapter),
            bytes: *bytes,
            left: left.err().map(|error| error.to_string()),
        });
    }
    if !args.dry_run {
        aliases::tidy_served(root)?;
        adapters::tidy(root, LEFT_OVER)?;
        registry.follow();
    }
    let kept = known.adapters.keys().filter(|id| stays.contains(*id)).count();
    Ok(Garbage { items, kept, removed: !args.dry_run })
}

/// The adapters that a run has trained.
fn of_run<'a>(
    origins: &'a [(String, Option<String>, Option<String>)],
    run: &'a str,
) -> impl Iterator<Item = String> + 'a {
    let of_it = origins.iter().filter(move |origin| origin.1.as_deref() == Some(run));
    of_it.map(|(adapter, ..)| adapter.clone())
}

/// When a folder was changed, in seconds of Unix time: the clock may have been wrong when an adapter was
/// saved, and one that was brought here is as old as it was there.
fn changed(folder: &Path) -> f64 {
    let at = std::fs::metadata(folder).and_then(|found| found.modified()).ok();
    let since = at.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    since.map_or(0.0, |since| since.as_secs_f64())
}

fn known(connection: &Connection) -> rusqlite::Result<Known> {
    let mut rows =
        connection.prepare("SELECT id, saved, bytes FROM adapters WHERE removed IS NULL")?;
    let adapters = rows.query_map([], |row| {
        let (at, bytes): (Option<f64>, i64) = (row.get(1)?, row.get(2)?);
        Ok((row.get(0)?, (at.unwrap_or(0.0), bytes as u64)))
    })?;
    let adapters = adapters.collect::<rusqlite::Result<_>>()?;
    let mut rows = connection.prepare("SELECT adapter, run, parent FROM origins")?;
    let origins = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let origins = origins.collect::<rusqlite::Result<_>>()?;
    let mut rows = connection.prepare(
        "SELECT adapter FROM promotions UNION SELECT r.adapter FROM runs r \
         JOIN tags t ON t.run = r.id WHERE t.tag = ?1 AND r.adapter IS NOT NULL \
         UNION SELECT o.adapter FROM origins o JOIN tags t ON t.run = o.run WHERE t.tag = ?1",
    )?;
    let referred = rows.query_map([KEEP], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut rows = connection.prepare("SELECT id, parent FROM runs WHERE state = 'unfinished'")?;
    let open = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let open = open.collect::<rusqlite::Result<_>>()?;
    Ok(Known { adapters, origins, referred, open })
}
