//! Runs side by side: of their settings what differs, and their metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use polars::prelude::*;
use rusqlite::Connection;
use serde_json::Value;

use crate::data::short;
use crate::error::Result;
use crate::registry::Registry;

/// Settings that differ between any two runs and say nothing.
const OWN: [&str; 4] = ["run", "name", "started", "format"];

/// Runs side by side.
#[derive(Clone)]
pub struct RunComparison {
    settings: DataFrame,
    metrics: DataFrame,
    same: usize,
}

impl RunComparison {
    /// What differs: a row for each setting, in the column `setting`, and a column for each run, by
    /// name and id. The baseline's is the first.
    pub fn settings(&self) -> DataFrame {
        self.settings.clone()
    }

    /// A row for each run and a column for each metric: the last value in training and the best
    /// (`best loss`), and the scores of the adapter's newest evaluation (`exact_match (evaluation)`).
    /// Beside a baseline there is a column `Δ …` with the difference from it.
    pub fn metrics(&self) -> DataFrame {
        self.metrics.clone()
    }

    /// How many settings are the same in all.
    pub fn same_settings(&self) -> usize {
        self.same
    }
}

impl fmt::Display for RunComparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}\n{} settings are the same", self.settings, self.metrics, self.same)
    }
}

impl fmt::Debug for RunComparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is compared of one run.
struct Compared {
    label: String,
    settings: BTreeMap<String, String>,
    metrics: BTreeMap<String, f64>,
}

/// See [`Registry::compare_with`].
pub(crate) fn compare(
    registry: &Registry,
    baseline: Option<&str>,
    runs: &[&str],
) -> Result<RunComparison> {
    registry.touch()?;
    let mut ids: Vec<String> = Vec::new();
    for run in baseline.iter().chain(runs) {
        let id = registry.run_now(run)?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    let compared = registry.index().look(|connection| {
        ids.iter().map(|id| of_run(connection, id)).collect::<Result<Vec<_>, _>>()
    })?;
    let keys: BTreeSet<&String> = compared.iter().flat_map(|run| run.settings.keys()).collect();
    let differs = |key: &&&String| {
        let mut values = compared.iter().map(|run| run.settings.get(**key));
        let first = values.next();
        values.any(|value| Some(value) != first)
    };
    let differing: Vec<&String> = keys.iter().filter(differs).copied().collect();
    let mut columns = vec![Column::new(
        "setting".into(),
        differing.iter().map(|key| key.as_str()).collect::<Vec<_>>(),
    )];
    for run in &compared {
        let value = |key: &&String| run.settings.get(*key).map(String::as_str);
        let values: Vec<Option<&str>> = differing.iter().map(value).collect();
        columns.push(Column::new(run.label.as_str().into(), values));
    }
    let settings = DataFrame::new(differing.len(), columns)?;
    let same = keys.len() - differing.len();
    Ok(RunComparison { settings, metrics: metrics(&compared, baseline.is_some())?, same })
}

fn metrics(compared: &[Compared], has_baseline: bool) -> Result<DataFrame> {
    let labels: Vec<&str> = compared.iter().map(|run| run.label.as_str()).collect();
    let mut columns = vec![Column::new("run".into(), labels)];
    let names: BTreeSet<&String> = compared.iter().flat_map(|run| run.metrics.keys()).collect();
    for name in names {
        let values: Vec<Option<f64>> =
            compared.iter().map(|run| run.metrics.get(name).copied()).collect();
        let baseline = values.first().copied().flatten().filter(|_| has_baseline);
        columns.push(Column::new(name.as_str().into(), &values));
        if let Some(baseline) = baseline {
            let differences: Vec<Option<f64>> =
                values.iter().map(|value| value.map(|value| value - baseline)).collect();
            columns.push(Column::new(format!("Δ {name}").into(), differences));
        }
    }
    Ok(DataFrame::new(compared.len(), columns)?)
}

fn of_run(connection: &Connection, id: &str) -> rusqlite::Result<Compared> {
    let (name, adapter): (String, Option<String>) =
        connection.query_row("SELECT name, adapter FROM runs WHERE id = ?1", [id], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    let mut settings = BTreeMap::new();
    let mut configs = connection.prepare("SELECT config FROM configs WHERE run = ?1")?;
    let configs: Vec<String> =
        configs.query_map([id], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for config in configs {
        let value = serde_json::from_str(&config).unwrap_or(Value::Null);
        flatten("", &value, &mut settings);
    }
    settings.retain(|key, _| !OWN.contains(&key.as_str()));
    let mut metrics = BTreeMap::new();
    let mut rows = connection.prepare("SELECT name, last, best FROM metrics WHERE run = ?1")?;
    let mut rows = rows.query([id])?;
    while let Some(row) = rows.next()? {
        let name: String = row.get(0)?;
        metrics.insert(format!("best {name}"), row.get(2)?);
        metrics.insert(name, row.get(1)?);
    }
    if let Some(adapter) = adapter {
        // The newest stands: `INSERT` in their order in time.
        let mut rows = connection.prepare(
            "SELECT s.name, s.value FROM scores s JOIN evaluations e ON e.id = s.evaluation \
             JOIN answering a ON a.fingerprint = e.fingerprint WHERE a.adapter = ?1 ORDER BY e.at",
        )?;
        let mut rows = rows.query([adapter])?;
        while let Some(row) = rows.next()? {
            let name: String = row.get(0)?;
            metrics.insert(format!("{name} (evaluation)"), row.get(1)?);
        }
    }
    Ok(Compared { label: format!("{name} ({})", &short(id)[..6]), settings, metrics })
}

/// The leaves of a value by their path, in short names: `args.learning_rate`. A list of plain values
/// is one leaf.
fn flatten(path: &str, value: &Value, leaves: &mut BTreeMap<String, String>) {
    let below = |key: &str| match (path, key) {
        ("", "record") => String::new(),
        ("", key) => key.to_owned(),
        (path, key) => format!("{path}.{key}"),
    };
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| flatten(&below(key), value, leaves));
        }
        Value::Array(items) if items.is_empty() => {}
        Value::String(text) => drop(leaves.insert(path.to_owned(), text.clone())),
        other => drop(leaves.insert(path.to_owned(), other.to_string())),
    }
}
