//! Which adapters a row went into: by hashes of the training rows, and on from parent to child.
//!
//! "No" is said only where all is known: all rows of all parts of a run, all runs of an adapter, all its
//! parents. Whatever is lost on the way, as a line of a log or a file of rows, makes it "not known", for
//! the adapter and for all that go on from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rusqlite::Connection;
use tunebook_data::{Cleaning, Row};
use tunebook_progress::printable;

use crate::data::{DataRecord, ids_after, short, value_id};
use crate::disk;
use crate::error::Result;
use crate::ids;
use crate::registry::{ROWS, Registry};
use crate::summary::Begin;
use crate::table;

/// An adapter that a row went into.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TouchedAdapter {
    /// Its id.
    pub adapter: String,
    /// The run that has trained it.
    pub run: String,
    /// The run's name.
    pub run_name: String,
    /// The adapter that it goes on from, which the row went into; `None` where the run itself was
    /// trained on the row.
    pub by_parent: Option<String>,
    /// The aliases that stand for it: `support@3`.
    pub served_as: Option<String>,
}

/// The answer to: which adapters saw this row?
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Touched {
    /// The adapters, those that were trained on the row first.
    pub adapters: Vec<TouchedAdapter>,
    /// Runs that were trained on it and have no adapter here: id and name.
    pub without_adapter: Vec<(String, String)>,
    /// Runs of whose adapters it is not known, by id and name: they do not say which rows they were
    /// trained on, or go on from an adapter of which it is not known.
    pub unknown: Vec<(String, String)>,
    /// Adapters of which it is not known and that no run here has trained: saved by hand, or by a run
    /// that is not here.
    pub unknown_adapters: Vec<String>,
}

impl fmt::Display for Touched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.adapters.is_empty() {
            f.write_str("no adapter is known to have seen it")?;
        }
        for (at, touched) in self.adapters.iter().enumerate() {
            let TouchedAdapter { adapter, run, run_name, by_parent, served_as } = touched;
            let end = if at == 0 { "" } else { "\n" };
            let (run, run_name) = (printable(run), printable(run_name));
            write!(f, "{end}adapter {} of run {run} ({run_name})", short(adapter))?;
            match by_parent {
                None => f.write_str(": trained on it")?,
                Some(parent) => {
                    write!(f, ": goes on from {}, which saw it", printable(short(parent)))?;
                }
            }
            if let Some(aliases) = served_as {
                write!(f, "; served as {aliases}")?;
            }
        }
        let list = |runs: &[(String, String)]| {
            let runs = runs.iter().map(|(id, name)| format!("{id} ({name})"));
            printable(&runs.collect::<Vec<_>>().join(", ")).into_owned()
        };
        if !self.without_adapter.is_empty() {
            write!(f, "\ntrained on it, without an adapter here: {}", list(&self.without_adapter))?;
        }
        if !self.unknown.is_empty() {
            write!(
                f,
                "\nnot known, as they do not name their rows or go on from such: {}",
                list(&self.unknown)
            )?;
        }
        if !self.unknown_adapters.is_empty() {
            let adapters: Vec<&str> = self.unknown_adapters.iter().map(|id| short(id)).collect();
            write!(f, "\nnot known, as no run here has trained them: {}", adapters.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Touched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is to be found.
enum Wanted<'a> {
    Row(&'a Row),
    /// A value of a column.
    Value(&'a str, &'a str),
}

pub(crate) fn by_row(registry: &Registry, row: &Row) -> Result<Touched> {
    touched(registry, &Wanted::Row(row))
}

pub(crate) fn by_id(registry: &Registry, column: &str, value: &str) -> Result<Touched> {
    touched(registry, &Wanted::Value(column, value))
}

struct RunRow {
    id: String,
    name: String,
    adapter: Option<String>,
    parent: Option<String>,
    begin: Option<Begin>,
}

/// How an adapter came about: a run and a parent. An adapter may have come about in several ways.
type Origin = (Option<String>, Option<String>);

fn touched(registry: &Registry, wanted: &Wanted<'_>) -> Result<Touched> {
    let (runs, mut origins, served) = registry.index().ask(|connection| {
        Ok((run_rows(connection)?, origins(connection)?, table::served(connection)?))
    })?;
    let mut search = Search::new(registry, wanted, &runs);
    let mut saw: BTreeMap<&str, Option<bool>> = BTreeMap::new();
    for run in &runs {
        saw.insert(&run.id, search.saw(run.begin.as_ref())?);
    }
    let by_id: BTreeMap<&str, &RunRow> = runs.iter().map(|run| (run.id.as_str(), run)).collect();
    for run in &runs {
        if let Some(adapter) = &run.adapter {
            let origin = (Some(run.id.clone()), run.parent.clone());
            origins.entry(adapter.clone()).or_default().push(origin);
        }
    }
    for ways in origins.values_mut() {
        // An adapter that a run has trained may have been saved by hand as well.
        if ways.iter().any(|(run, _)| run.is_some()) {
            ways.retain(|(run, _)| run.is_some());
        }
        let of_run = |run: &str| by_id.get(run).and_then(|run| run.parent.clone());
        let more: Vec<Origin> = ways
            .iter()
            .filter_map(|(run, _)| Some((run.clone(), Some(of_run(run.as_deref()?)?))))
            .collect();
        ways.extend(more);
    }

    let touch = |run: Option<&String>, adapter: &str, by_parent: Option<String>| TouchedAdapter {
        adapter: adapter.to_owned(),
        run: run.cloned().unwrap_or_default(),
        run_name: run
            .and_then(|run| by_id.get(run.as_str()))
            .map(|run| run.name.clone())
            .unwrap_or_default(),
        by_parent,
        served_as: served.get(adapter).cloned(),
    };
    let saw_it = |run: &str| saw.get(run) == Some(&Some(true));
    let mut adapters: BTreeMap<String, TouchedAdapter> = BTreeMap::new();
    for (adapter, ways) in &origins {
        let run = ways.iter().filter_map(|(run, _)| run.as_ref()).find(|run| saw_it(run));
        if let Some(run) = run {
            adapters.insert(adapter.clone(), touch(Some(run), adapter, None));
        }
    }
    // Children of children, until there are no more.
    loop {
        let mut more = Vec::new();
        for (adapter, ways) in
            origins.iter().filter(|(adapter, _)| !adapters.contains_key(*adapter))
        {
            let by_parent = ways.iter().find_map(|(run, parent)| {
                let parent = parent.as_ref().filter(|parent| adapters.contains_key(*parent))?;
                Some(touch(run.as_ref(), adapter, Some(parent.clone())))
            });
            more.extend(by_parent);
        }
        if more.is_empty() {
            break;
        }
        adapters.extend(more.into_iter().map(|touched| (touched.adapter.clone(), touched)));
    }

    // The same for what is not known.
    let run_is_known = |run: &str| {
        let goes_on = |run: &RunRow| run.begin.as_ref().is_some_and(|of| of.goes_on_from.is_some());
        saw.get(run).is_some_and(Option::is_some) && by_id.get(run).is_some_and(|of| !goes_on(of))
    };
    let mut unknown: BTreeSet<&String> = BTreeSet::new();
    loop {
        let is_known = |(run, parent): &Origin| {
            let parent_is_known = |parent: &String| {
                adapters.contains_key(parent)
                    || origins.contains_key(parent) && !unknown.contains(parent)
            };
            run.as_deref().is_some_and(run_is_known) && parent.iter().all(parent_is_known)
        };
        let more: Vec<&String> = origins
            .iter()
            .filter(|(adapter, _)| !adapters.contains_key(*adapter) && !unknown.contains(adapter))
            .filter(|(_, ways)| ways.is_empty() || !ways.iter().all(is_known))
            .map(|(adapter, _)| adapter)
            .collect();
        if more.is_empty() {
            break;
        }
        unknown.extend(more);
    }

    let trained = |run: &str| -> Vec<&String> {
        let of_run = |ways: &[Origin]| ways.iter().any(|(of, _)| of.as_deref() == Some(run));
        origins.iter().filter(|(_, ways)| of_run(ways)).map(|(adapter, _)| adapter).collect()
    };
    let (mut without_adapter, mut unknown_runs) = (Vec::new(), Vec::new());
    let mut named: BTreeSet<&String> = BTreeSet::new();
    for run in &runs {
        let (of_run, name) = (trained(&run.id), (run.id.clone(), run.name.clone()));
        if saw_it(&run.id) {
            if of_run.is_empty() {
                without_adapter.push(name);
            }
        } else if of_run.iter().any(|adapter| unknown.contains(adapter))
            || of_run.is_empty() && saw.get(run.id.as_str()) == Some(&None)
        {
            named.extend(of_run);
            unknown_runs.push(name);
        }
    }
    let unknown_adapters =
        unknown.iter().filter(|adapter| !named.contains(**adapter)).map(|id| (*id).clone());
    let unknown_adapters = unknown_adapters.collect();
    let mut adapters: Vec<TouchedAdapter> = adapters.into_values().collect();
    adapters.sort_by_key(|touched| touched.by_parent.is_some());
    Ok(Touched { adapters, without_adapter, unknown: unknown_runs, unknown_adapters })
}

fn run_rows(connection: &Connection) -> rusqlite::Result<Vec<RunRow>> {
    let mut rows = connection.prepare(
        "SELECT r.id, r.name, r.adapter, r.parent, c.config FROM runs r \
         LEFT JOIN configs c ON c.run = r.id ORDER BY r.started, r.id",
    )?;
    let rows = rows.query_map([], |row| {
        let config: Option<String> = row.get(4)?;
        Ok(RunRow {
            id: row.get(0)?,
            name: row.get(1)?,
            adapter: row.get(2)?,
            parent: row.get(3)?,
            begin: config.and_then(|config| serde_json::from_str(&config).ok()),
        })
    })?;
    rows.collect()
}

/// How each adapter came about, as its own file says.
fn origins(connection: &Connection) -> rusqlite::Result<BTreeMap<String, Vec<Origin>>> {
    let mut origins: BTreeMap<String, Vec<Origin>> = BTreeMap::new();
    let mut rows = connection.prepare(
        "SELECT a.id, o.number, o.run, o.parent FROM adapters a \
         LEFT JOIN origins o ON o.adapter = a.id ORDER BY a.id, o.number",
    )?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let ways = origins.entry(row.get(0)?).or_default();
        if row.get::<_, Option<i64>>(1)?.is_some() {
            ways.push((row.get(2)?, row.get(3)?));
        }
    }
    Ok(origins)
}

/// Looks into each file of rows once.
struct Search<'a> {
    registry: &'a Registry,
    /// The column that must be among a run's id columns.
    column: Option<&'a str>,
    /// What is looked for: a row as it is and as any run's cleaning makes it.
    ids: BTreeSet<String>,
    /// Ways of cleaning that the row cannot go.
    closed: Vec<Vec<Cleaning>>,
    found: BTreeMap<String, Option<bool>>,
}

impl<'a> Search<'a> {
    fn new(registry: &'a Registry, wanted: &Wanted<'a>, runs: &[RunRow]) -> Self {
        let (found, closed) = (BTreeMap::new(), Vec::new());
        let mut search = Self { registry, column: None, ids: BTreeSet::new(), closed, found };
        let row = match wanted {
            Wanted::Value(column, value) => {
                search.column = Some(column);
                // As they are written, and as polars once showed floats and categories.
                let float = value
                    .parse()
                    .ok()
                    .map(|number: f64| polars::prelude::AnyValue::Float64(number).to_string());
                let shown = [Some((*value).to_owned()), float, Some(format!("\"{value}\""))];
                search.ids.extend(shown.iter().flatten().map(|value| value_id(column, value)));
                return search;
            }
            Wanted::Row(row) => row,
        };
        let mut seen: Vec<Vec<Cleaning>> = vec![Vec::new()];
        for set in runs.iter().filter_map(|run| run.begin.as_ref()).flat_map(sets) {
            for way in set.train.ways().unwrap_or_default() {
                if !seen.contains(&way) {
                    seen.push(way);
                }
            }
        }
        for way in seen {
            match ids_after(row, &way) {
                Some(ids) => search.ids.extend(ids),
                None => search.closed.push(way),
            }
        }
        search
    }

    /// Whether the row is among the training rows of a run; `None` where that is not known.
    fn saw(&mut self, begin: Option<&Begin>) -> Result<Option<bool>> {
        let Some(begin) = begin else { return Ok(None) };
        let mut is_known = begin.data.is_some() && !begin.rows_unknown;
        for set in sets(begin) {
            match self.set_has(set)? {
                Some(true) => return Ok(Some(true)),
                Some(false) => {}
                None => is_known = false,
            }
        }
        Ok(is_known.then_some(false))
    }

    fn set_has(&mut self, data: &DataRecord) -> Result<Option<bool>> {
        let found = match self.found.get(&data.rows) {
            Some(found) => *found,
            None => {
                let found = self.file_has(&data.rows)?;
                self.found.insert(data.rows.clone(), found);
                found
            }
        };
        let is_sure = match self.column {
            Some(column) => data.id_columns.iter().any(|id| id == column),
            None => {
                let ways = data.train.ways();
                ways.is_some_and(|ways| ways.iter().all(|way| !self.closed.contains(way)))
            }
        };
        Ok(found.filter(|found| *found || is_sure))
    }

    /// A file that is not the one that was written, as its name says, has lost rows or has others.
    fn file_has(&self, rows: &str) -> Result<Option<bool>> {
        let name = ids::adapter_name(rows);
        let path = self.registry.root().join(ROWS).join(format!("{name}.txt"));
        let is_wanted =
            |line: &[u8]| std::str::from_utf8(line).is_ok_and(|line| self.ids.contains(line));
        let Some(bytes) = disk::read(&path)? else { return Ok(None) };
        let found = disk::lines(&bytes).0.any(is_wanted);
        Ok((found || is_whole(rows, &bytes)).then_some(found))
    }
}

/// All sets of rows that a run names.
fn sets(begin: &Begin) -> impl Iterator<Item = &DataRecord> {
    begin.data.iter().chain(&begin.later)
}

/// Whether a file of rows is the one that its name says.
pub(crate) fn is_whole(name: &str, bytes: &[u8]) -> bool {
    disk::sha256(bytes).get(..32) == Some(name)
}
