//! The table of runs.

use std::collections::{HashMap, HashSet};

use polars::prelude::*;
use rusqlite::{Connection, Row};

use crate::adapters;
use crate::disk;
use crate::error::Result;
use crate::registry::Registry;
use crate::summary::Summary;

/// Texts and numbers of a column, by row.
#[derive(Default)]
struct Columns {
    texts: Vec<Vec<Option<String>>>,
    numbers: Vec<Vec<Option<f64>>>,
    counts: Vec<Vec<Option<i64>>>,
}

const TEXTS: [&str; 10] = [
    "id",
    "name",
    "state",
    "base_model",
    "base",
    "strategy",
    "dataset",
    "adapter",
    "parent",
    "tags",
];
/// The adapter's place among them.
const ADAPTER: usize = 7;
const NUMBERS: [&str; 5] = ["started", "secs", "loss", "eval_loss", "best"];
const COUNTS: [&str; 7] =
    ["steps", "total_steps", "best_step", "evals", "notes", "missing", "damaged"];
/// The order in which they are shown.
const ORDER: [&str; 26] = [
    "id",
    "name",
    "state",
    "started",
    "secs",
    "strategy",
    "steps",
    "total_steps",
    "loss",
    "eval_loss",
    "best_metric",
    "best",
    "best_step",
    "evals",
    "evaluations",
    "adapter",
    "adapter_files",
    "served_as",
    "parent",
    "base_model",
    "base",
    "dataset",
    "tags",
    "notes",
    "missing",
    "damaged",
];

/// See [`Registry::runs`].
pub(crate) fn runs(registry: &Registry) -> Result<DataFrame> {
    let (asked, removed) = registry.index().ask(|connection| {
        let (columns, best_metric) = rows(connection)?;
        let asked = (columns, best_metric, evaluations(connection)?, served(connection)?);
        Ok((asked, removed(connection)?))
    })?;
    let (mut columns, best_metric, evaluations, served) = asked;
    let [ids, _, states, ..] = columns.texts.as_mut_slice() else {
        return Ok(DataFrame::default());
    };
    for (id, state) in ids.iter().zip(states) {
        if state.as_deref() == Some("unfinished")
            && Summary::is_running(&registry.run_folder(id.as_deref().unwrap_or_default()))
        {
            *state = Some("running".to_owned());
        }
    }
    let height = ids.len();
    let evaluations: Vec<i64> = columns.texts[ADAPTER]
        .iter()
        .map(|id| id.as_ref().and_then(|id| evaluations.get(id)).copied().unwrap_or(0))
        .collect();
    let served: Vec<Option<&str>> = columns.texts[ADAPTER]
        .iter()
        .map(|id| id.as_ref().and_then(|id| served.get(id)).map(String::as_str))
        .collect();
    let there: HashSet<String> =
        disk::names(&registry.root().join(adapters::FOLDER))?.into_iter().collect();
    let files: Vec<Option<&str>> = columns.texts[ADAPTER]
        .iter()
        .map(|id| {
            id.as_ref().map(|id| match (there.contains(id), removed.contains(id)) {
                (true, _) => "present",
                (false, true) => "collected",
                (false, false) => "missing",
            })
        })
        .collect();
    let mut all = vec![
        Column::new("adapter_files".into(), files),
        Column::new("best_metric".into(), best_metric),
        Column::new("evaluations".into(), evaluations),
        Column::new("served_as".into(), served),
    ];
    all.extend(TEXTS.iter().zip(&columns.texts).map(|(n, v)| Column::new((*n).into(), v)));
    all.extend(COUNTS.iter().zip(&columns.counts).map(|(n, v)| Column::new((*n).into(), v)));
    for (name, values) in NUMBERS.iter().zip(&columns.numbers) {
        all.push(match *name {
            "started" => {
                let millis: Vec<Option<i64>> =
                    values.iter().map(|at| at.and_then(millis)).collect();
                let time = DataType::Datetime(TimeUnit::Milliseconds, None);
                Column::new((*name).into(), millis).cast(&time)?
            }
            name => Column::new(name.into(), values),
        });
    }
    Ok(DataFrame::new(height, all)?.select(ORDER)?)
}

/// A time of the years 0 to 9999: of others, as a wrong clock or a damaged line gives them, there is no
/// text.
fn millis(secs: f64) -> Option<i64> {
    const YEARS: std::ops::Range<f64> = -62_167_219_200.0..253_402_300_800.0;
    YEARS.contains(&secs).then_some((secs * 1e3) as i64)
}

fn rows(connection: &Connection) -> rusqlite::Result<(Columns, Vec<Option<String>>)> {
    let names: Vec<&str> = TEXTS.into_iter().chain(NUMBERS).chain(COUNTS).collect();
    let sql =
        format!("SELECT {}, best_metric FROM runs ORDER BY started DESC, id", names.join(", "));
    let mut statement = connection.prepare(&sql)?;
    let mut columns = Columns {
        texts: vec![Vec::new(); TEXTS.len()],
        numbers: vec![Vec::new(); NUMBERS.len()],
        counts: vec![Vec::new(); COUNTS.len()],
    };
    let mut best_metric = Vec::new();
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        take(row, 0, &mut columns.texts)?;
        take(row, TEXTS.len(), &mut columns.numbers)?;
        take(row, TEXTS.len() + NUMBERS.len(), &mut columns.counts)?;
        best_metric.push(row.get(names.len())?);
    }
    Ok((columns, best_metric))
}

fn take<T: rusqlite::types::FromSql>(
    row: &Row<'_>,
    first: usize,
    columns: &mut [Vec<T>],
) -> rusqlite::Result<()> {
    for (at, column) in columns.iter_mut().enumerate() {
        column.push(row.get(first + at)?);
    }
    Ok(())
}

/// Adapters whose files were collected as garbage.
fn removed(connection: &Connection) -> rusqlite::Result<HashSet<String>> {
    let mut rows = connection.prepare("SELECT id FROM adapters WHERE removed IS NOT NULL")?;
    rows.query_map([], |row| row.get(0))?.collect()
}

/// How many evaluations each adapter has.
fn evaluations(connection: &Connection) -> rusqlite::Result<HashMap<String, i64>> {
    let mut rows = connection.prepare(
        "SELECT a.adapter, COUNT(DISTINCT e.id) FROM evaluations e \
         JOIN answering a ON a.fingerprint = e.fingerprint GROUP BY a.adapter",
    )?;
    rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// The aliases that stand for each adapter now: `support@3`.
pub(crate) fn served(connection: &Connection) -> rusqlite::Result<HashMap<String, String>> {
    let mut rows = connection.prepare(
        "SELECT alias, MAX(generation), adapter FROM promotions GROUP BY alias ORDER BY alias",
    )?;
    let mut served: HashMap<String, String> = HashMap::new();
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let (alias, generation, adapter): (String, i64, String) =
            (row.get(0)?, row.get(1)?, row.get(2)?);
        let names = served.entry(adapter).or_default();
        let comma = if names.is_empty() { "" } else { ", " };
        names.push_str(&format!("{comma}{alias}@{generation}"));
    }
    Ok(served)
}
