//! Which adapters a row went into: by hashes of the training rows, and on from parent to child.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rusqlite::Connection;
use tunebook_data::{CleaningStep, Row};

use crate::data::{DataRecord, ids_after, short, value_id};
use crate::disk;
use crate::error::Result;
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
    /// Runs that do not say which rows they were trained on: id and name. Nothing is known of their
    /// adapters.
    pub unknown: Vec<(String, String)>,
}

impl fmt::Display for Touched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.adapters.is_empty() {
            f.write_str("no adapter is known to have seen it")?;
        }
        for (at, touched) in self.adapters.iter().enumerate() {
            let TouchedAdapter { adapter, run, run_name, by_parent, served_as } = touched;
            let end = if at == 0 { "" } else { "\n" };
            write!(f, "{end}adapter {} of run {run} ({run_name})", short(adapter))?;
            match by_parent {
                None => f.write_str(": trained on it")?,
                Some(parent) => write!(f, ": goes on from {}, which saw it", short(parent))?,
            }
            if let Some(aliases) = served_as {
                write!(f, "; served as {aliases}")?;
            }
        }
        let list = |runs: &[(String, String)]| {
            runs.iter().map(|(id, name)| format!("{id} ({name})")).collect::<Vec<_>>().join(", ")
        };
        if !self.without_adapter.is_empty() {
            write!(f, "\ntrained on it, without an adapter here: {}", list(&self.without_adapter))?;
        }
        if !self.unknown.is_empty() {
            write!(f, "\nnot known, as they do not name their rows: {}", list(&self.unknown))?;
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
    data: Option<DataRecord>,
}

fn touched(registry: &Registry, wanted: &Wanted<'_>) -> Result<Touched> {
    let (runs, served) = registry
        .index()
        .ask(|connection| Ok((run_rows(connection)?, table::served(connection)?)))?;
    let (mut without_adapter, mut unknown) = (Vec::new(), Vec::new());
    let mut adapters: BTreeMap<String, TouchedAdapter> = BTreeMap::new();
    let mut search = Search::new(registry, wanted, &runs);
    let touch = |run: &RunRow, adapter: &str, by_parent: Option<String>| TouchedAdapter {
        adapter: adapter.to_owned(),
        run: run.id.clone(),
        run_name: run.name.clone(),
        by_parent,
        served_as: served.get(adapter).cloned(),
    };
    for run in &runs {
        let name = || (run.id.clone(), run.name.clone());
        let saw = match &run.data {
            Some(data) => search.saw(data)?,
            None => None,
        };
        match (saw, &run.adapter) {
            (None, _) => unknown.push(name()),
            (Some(false), _) => {}
            (Some(true), None) => without_adapter.push(name()),
            (Some(true), Some(adapter)) => {
                adapters.insert(adapter.clone(), touch(run, adapter, None));
            }
        }
    }
    // Children of children, until there are no more.
    loop {
        let mut more = Vec::new();
        for run in &runs {
            if let (Some(adapter), Some(parent)) = (&run.adapter, &run.parent)
                && adapters.contains_key(parent)
                && !adapters.contains_key(adapter)
            {
                more.push(touch(run, adapter, Some(parent.clone())));
            }
        }
        if more.is_empty() {
            break;
        }
        adapters.extend(more.into_iter().map(|touched| (touched.adapter.clone(), touched)));
    }
    unknown.retain(|(id, _)| !adapters.values().any(|touched| touched.run == *id));
    let mut adapters: Vec<TouchedAdapter> = adapters.into_values().collect();
    adapters.sort_by_key(|touched| touched.by_parent.is_some());
    Ok(Touched { adapters, without_adapter, unknown })
}

fn run_rows(connection: &Connection) -> rusqlite::Result<Vec<RunRow>> {
    let mut rows = connection.prepare(
        "SELECT r.id, r.name, r.adapter, r.parent, c.config FROM runs r \
         LEFT JOIN configs c ON c.run = r.id ORDER BY r.started, r.id",
    )?;
    let rows = rows.query_map([], |row| {
        let config: Option<String> = row.get(4)?;
        let begin: Option<Begin> = config.and_then(|config| serde_json::from_str(&config).ok());
        Ok(RunRow {
            id: row.get(0)?,
            name: row.get(1)?,
            adapter: row.get(2)?,
            parent: row.get(3)?,
            data: begin.and_then(|begin| begin.data),
        })
    })?;
    rows.collect()
}

/// Looks into each file of rows once.
struct Search<'a> {
    registry: &'a Registry,
    /// The column that must be among a run's id columns.
    column: Option<&'a str>,
    /// What is looked for: a row as it is and as any run's cleaning makes it. A set that is put
    /// together of others has rows that were cleaned in several ways.
    ids: BTreeSet<String>,
    found: BTreeMap<String, Option<bool>>,
}

impl<'a> Search<'a> {
    fn new(registry: &'a Registry, wanted: &Wanted<'a>, runs: &[RunRow]) -> Self {
        let (column, ids) = match wanted {
            Wanted::Value(column, value) => {
                (Some(*column), BTreeSet::from([value_id(column, value)]))
            }
            Wanted::Row(row) => {
                let mut recipes: Vec<&[CleaningStep]> = vec![&[]];
                for data in runs.iter().filter_map(|run| run.data.as_ref()) {
                    if !recipes.contains(&data.train.cleaning.as_slice()) {
                        recipes.push(&data.train.cleaning);
                    }
                }
                (None, recipes.iter().flat_map(|steps| ids_after(row, steps)).collect())
            }
        };
        Self { registry, column, ids, found: BTreeMap::new() }
    }

    /// Whether the row is among the training rows; `None` where that is not known.
    fn saw(&mut self, data: &DataRecord) -> Result<Option<bool>> {
        if self.column.is_some_and(|column| !data.id_columns.iter().any(|id| id == column)) {
            return Ok(None);
        }
        if let Some(found) = self.found.get(&data.rows) {
            return Ok(*found);
        }
        let path = self.registry.root().join(ROWS).join(format!("{}.txt", data.rows));
        let is_wanted =
            |line: &[u8]| std::str::from_utf8(line).is_ok_and(|line| self.ids.contains(line));
        let found = disk::read(&path)?.map(|bytes| disk::lines(&bytes).0.any(is_wanted));
        self.found.insert(data.rows.clone(), found);
        Ok(found)
    }
}
