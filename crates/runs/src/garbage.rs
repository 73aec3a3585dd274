//! Adapters that are no longer needed. An adapter is the result of a run if the run's last line of an
//! adapter names it, or if the run has saved none after it; one that was saved by hand is a result, too.
//! Results stay, unless they are asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use rusqlite::Connection;
use tunebook_progress::printable;

use crate::adapters;
use crate::aliases;
use crate::data::short;
use crate::disk;
use crate::error::{Error, Result};
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
    /// Takes what runs and people have saved as results, too, if no alias, no tag `keep` and no adapter
    /// that stays refers to it. The default is false.
    pub results: bool,
}

impl Default for GarbageArgs {
    fn default() -> Self {
        Self { dry_run: true, min_age_secs: 7.0 * 24.0 * 3600.0, results: false }
    }
}

/// An adapter that is no longer needed.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GarbageItem {
    /// Its id.
    pub adapter: String,
    /// The run that has trained it.
    pub run: Option<String>,
    /// Why it is not needed, with the run's name.
    pub reason: String,
    /// The size of its files.
    pub bytes: u64,
    /// Why its files are left where they are all the same.
    pub left: Option<String>,
}

/// What [`Registry::gc`] has found.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct Garbage {
    /// The adapters that are not needed.
    pub items: Vec<GarbageItem>,
    /// Adapters whose files stay, those included that are left.
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
        for GarbageItem { adapter, reason, bytes, left, .. } in &self.items {
            let megabytes = *bytes as f64 / 1e6;
            write!(f, "{}, {megabytes:.1} MB: {}", short(adapter), printable(reason))?;
            match left {
                Some(why) => writeln!(f, "; left, as {}", printable(why))?,
                None => writeln!(f)?,
            }
        }
        let count = self.items.iter().filter(|item| item.left.is_none()).count();
        let left = self.items.len() - count;
        let adapters = if count == 1 { "adapter" } else { "adapters" };
        let verb = match (self.removed, count) {
            (false, _) => "would be removed (dry run)",
            (true, 1) => "was removed",
            (true, _) => "were removed",
        };
        let stay = if self.kept == 1 { "stays" } else { "stay" };
        let megabytes = self.bytes() as f64 / 1e6;
        write!(f, "{count} {adapters}, {megabytes:.1} MB, {verb}; {} {stay}", self.kept)?;
        match left {
            0 => Ok(()),
            _ => write!(f, ", {left} of them left"),
        }
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
    origins: Vec<Origin>,
    /// Of all generations of all aliases, and of runs with the tag `keep`.
    referred: BTreeSet<String>,
    /// Each run's name, and the adapter of its last line of one.
    runs: BTreeMap<String, (String, Option<String>)>,
    /// Runs without an end, and their parents.
    open: Vec<(String, Option<String>)>,
}

/// Once that an adapter was saved.
struct Origin {
    adapter: String,
    /// `None`: by hand.
    run: Option<String>,
    parent: Option<String>,
    at: f64,
}

/// See [`Registry::gc`]: an adapter stays if it is a result, if it is or was a generation of an alias, if
/// one of its runs has the tag `keep`, if it is young, if a run that goes on has it as its parent, or if it
/// is the parent, at any distance, of one that stays.
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
    let runs: BTreeSet<String> = disk::names(&root.join(RUNS))?.into_iter().collect();
    let results = known.results(&runs);
    let young = disk::now() - args.min_age_secs;
    let mut stays: BTreeSet<String> = known.referred.clone();
    stays.extend(referred);
    if !args.results {
        stays.extend(results.iter().cloned());
    }
    for (id, (saved, _)) in &known.adapters {
        let came = changed(&adapters::folder(root, id));
        if saved.max(came) > young {
            stays.insert(id.clone());
        }
    }
    // A line that cannot be read may say `keep`.
    for run in &runs {
        if Summary::notes_damage(&registry.run_folder(run))? {
            let of_it = known.origins.iter().filter(|of| of.run.as_ref() == Some(run));
            stays.extend(of_it.map(|of| of.adapter.clone()));
        }
    }
    for (run, parent) in &known.open {
        if Summary::is_running(&registry.run_folder(run)) {
            stays.extend(parent.clone());
        }
    }
    loop {
        let parents = known.origins.iter().filter(|of| stays.contains(&of.adapter));
        let more: Vec<String> = parents
            .filter_map(|of| of.parent.clone())
            .filter(|parent| !stays.contains(parent))
            .collect();
        if more.is_empty() {
            break;
        }
        stays.extend(more);
    }
    let mut items = Vec::new();
    let mut kept = 0;
    for (adapter, (_, bytes)) in &known.adapters {
        // Files that were never copied here are nobody's garbage.
        if !adapters::folder(root, adapter).is_dir() {
            continue;
        }
        if stays.contains(adapter) {
            kept += 1;
            continue;
        }
        let left = match args.dry_run {
            true => adapters::check_removable(root, adapter),
            false => adapters::remove(root, adapter),
        };
        let (run, reason) = known.reason(adapter, results.contains(adapter));
        let left = left.err().map(|error| error.to_string());
        kept += usize::from(left.is_some());
        items.push(GarbageItem { adapter: adapter.clone(), run, reason, bytes: *bytes, left });
    }
    if !args.dry_run {
        aliases::tidy_served(root)?;
        adapters::tidy(root, LEFT_OVER)?;
        registry.follow();
    }
    Ok(Garbage { items, kept, removed: !args.dry_run })
}

impl Known {
    /// What the runs of these folders, and people, have saved as results. Of each run it is the adapter
    /// that its log names last and the one that was saved last: a line may be lost.
    fn results(&self, folders: &BTreeSet<String>) -> BTreeSet<String> {
        let mut results: BTreeSet<String> = BTreeSet::new();
        let mut last: BTreeMap<&str, &Origin> = BTreeMap::new();
        for of in &self.origins {
            match &of.run {
                None => drop(results.insert(of.adapter.clone())),
                Some(run) if folders.contains(run) => {
                    let last = last.entry(run).or_insert(of);
                    if last.at <= of.at {
                        *last = of;
                    }
                }
                Some(_) => {}
            }
        }
        results.extend(last.into_values().map(|of| of.adapter.clone()));
        results.extend(self.runs.values().filter_map(|(_, adapter)| adapter.clone()));
        results
    }

    /// The run of an adapter that is not needed, and why it is not.
    fn reason(&self, adapter: &str, is_result: bool) -> (Option<String>, String) {
        let of_it = self.origins.iter().filter(|of| of.adapter == adapter);
        let Some(run) = of_it.filter_map(|of| of.run.clone()).next_back() else {
            return (None, "saved by hand, and nothing refers to it".to_owned());
        };
        let reason = match self.runs.get(&run) {
            Some((name, _)) if is_result => {
                format!("the result of `{name}` ({run}), to which nothing refers")
            }
            Some((name, _)) => format!("an earlier state of `{name}` ({run})"),
            // Nothing of the run could be written but its adapter.
            None if is_result => format!("the result of {run}, to which nothing refers"),
            None => format!("of the run {run}, whose folder is gone"),
        };
        (Some(run), reason)
    }
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
    let mut rows = connection.prepare("SELECT adapter, run, parent, at FROM origins")?;
    let origins = rows.query_map([], |row| {
        let at: Option<f64> = row.get(3)?;
        let (adapter, run, parent) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(Origin { adapter, run, parent, at: at.unwrap_or(f64::NEG_INFINITY) })
    })?;
    let origins = origins.collect::<rusqlite::Result<_>>()?;
    let mut rows = connection.prepare("SELECT id, name, adapter FROM runs")?;
    let runs = rows.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?;
    let runs = runs.collect::<rusqlite::Result<_>>()?;
    let mut rows = connection.prepare(
        "SELECT adapter FROM promotions UNION SELECT r.adapter FROM runs r \
         JOIN tags t ON t.run = r.id WHERE t.tag = ?1 AND r.adapter IS NOT NULL \
         UNION SELECT o.adapter FROM origins o JOIN tags t ON t.run = o.run WHERE t.tag = ?1",
    )?;
    let referred = rows.query_map([KEEP], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut rows = connection.prepare("SELECT id, parent FROM runs WHERE state = 'unfinished'")?;
    let open = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let open = open.collect::<rusqlite::Result<_>>()?;
    Ok(Known { adapters, origins, referred, runs, open })
}
