//! Runs side by side: of their settings what differs, and their metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use polars::prelude::*;
use rusqlite::Connection;
use serde_json::Value;

use crate::error::Result;
use crate::registry::Registry;

/// Settings that differ between any two runs and say nothing.
const OWN: [&str; 4] = ["run", "name", "started", "format"];

/// Types of numbers by torch's names and by candle's.
const DTYPES: [(&str, &str); 3] = [("float32", "f32"), ("bfloat16", "bf16"), ("float16", "f16")];

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
    metrics: BTreeMap<Measure, f64>,
}

/// A column of the metrics: its name, and what it is of. Two may have one name, as a metric may have
/// any.
type Measure = (String, Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Last,
    Best,
    Evaluation,
}

/// The names of columns so far, of which no two may be the same.
struct Names(BTreeSet<String>);

impl Names {
    fn new(first: &str) -> Self {
        Self(BTreeSet::from([first.to_owned()]))
    }

    /// The name, with a number where there is one of it.
    fn unique(&mut self, name: &str) -> String {
        let mut unique = name.to_owned();
        let mut number = 2;
        while !self.0.insert(unique.clone()) {
            unique = format!("{name} ({number})");
            number += 1;
        }
        unique
    }
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
    let mut taken = Names::new("setting");
    for run in &compared {
        let value = |key: &&String| run.settings.get(*key).map(String::as_str);
        let values: Vec<Option<&str>> = differing.iter().map(value).collect();
        columns.push(Column::new(taken.unique(&run.label).into(), values));
    }
    let settings = DataFrame::new(differing.len(), columns)?;
    let same = keys.len() - differing.len();
    Ok(RunComparison { settings, metrics: metrics(&compared, baseline.is_some())?, same })
}

fn metrics(compared: &[Compared], has_baseline: bool) -> Result<DataFrame> {
    let labels: Vec<&str> = compared.iter().map(|run| run.label.as_str()).collect();
    let mut columns = vec![Column::new("run".into(), labels)];
    let measures: BTreeSet<&Measure> = compared.iter().flat_map(|run| run.metrics.keys()).collect();
    let mut taken = Names::new("run");
    for measure in measures {
        let name = taken.unique(&measure.0);
        let values: Vec<Option<f64>> =
            compared.iter().map(|run| run.metrics.get(measure).copied()).collect();
        let baseline = values.first().copied().flatten().filter(|_| has_baseline);
        columns.push(Column::new(name.as_str().into(), &values));
        if let Some(baseline) = baseline {
            let differences: Vec<Option<f64>> =
                values.iter().map(|value| value.map(|value| value - baseline)).collect();
            columns.push(Column::new(taken.unique(&format!("Δ {name}")).into(), differences));
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
    // Runs that were brought back from another engine may have torch's names.
    if let Some(dtype) = settings.get_mut("dtype")
        && let Some((_, name)) = DTYPES.iter().find(|(of_torch, _)| of_torch == dtype)
    {
        *dtype = (*name).to_owned();
    }
    let mut metrics = BTreeMap::new();
    let mut rows = connection.prepare("SELECT name, last, best FROM metrics WHERE run = ?1")?;
    let mut rows = rows.query([id])?;
    while let Some(row) = rows.next()? {
        let name: String = row.get(0)?;
        // SQLite has no NaN: it is null there.
        let (last, best): (Option<f64>, Option<f64>) = (row.get(1)?, row.get(2)?);
        metrics.extend(best.map(|best| ((format!("best {name}"), Kind::Best), best)));
        metrics.extend(last.map(|last| ((name, Kind::Last), last)));
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
            let value: Option<f64> = row.get(1)?;
            let key = (format!("{name} (evaluation)"), Kind::Evaluation);
            metrics.insert(key, value.unwrap_or(f64::NAN));
        }
    }
    Ok(Compared { label: format!("{name} ({})", id.get(..6).unwrap_or(id)), settings, metrics })
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
