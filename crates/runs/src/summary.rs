//! What the lines of a run's folder come to: one row of the table of runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tunebook_tune::{EvalRecord, Metric, RunRecord, StepRecord, StopReason, Strategy};

use crate::data::{DataRecord, without_place};
use crate::disk;
use crate::error::Result;
use crate::ids;

/// The run's own lines, by the process that trains.
pub(crate) const LOG: &str = "log.jsonl";
/// What was said of it later, by anybody: notes and tags.
pub(crate) const NOTES: &str = "notes.jsonl";
/// What was asked for, if a recipe can say it.
pub(crate) const RECIPE: &str = "recipe.yaml";
/// Hashes of what the run has written, once it has ended.
pub(crate) const MANIFEST: &str = "manifest.json";

/// The strategy that trains the model's own weights.
pub(crate) const FULL_TUNING: &str = "full fine-tuning";

/// More missing lines than these are a damaged number.
const MOST: usize = u32::MAX as usize;

/// The version of the lines.
pub(crate) const FORMAT: u32 = 1;

/// A line of `log.jsonl`, but those of steps and evaluations.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Line {
    /// The first.
    Begin(Box<Begin>),
    /// The run went on from these many steps; what was logged of later ones is void.
    Resume {
        at: f64,
        done_steps: usize,
        /// Why the run is no more what its recipe says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        no_recipe: Option<String>,
        /// The fingerprint of the training rows; `None`: of a time when it was not written.
        #[serde(default)]
        train: Option<String>,
        /// Where they are others than before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        data: Option<Box<DataRecord>>,
    },
    /// A checkpoint, by its folder's name.
    Save { step: usize, folder: String },
    /// So many lines could not be written before this one.
    Missing { lines: usize, problem: String },
    /// What was trained, in `adapters/`.
    Adapter { adapter: String },
    /// The last.
    End(End),
}

/// How a run begins.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Begin {
    pub(crate) format: u32,
    pub(crate) run: String,
    pub(crate) name: String,
    /// Seconds of Unix time.
    pub(crate) started: f64,
    #[serde(default)]
    pub(crate) tags: Vec<String>,
    /// The adapter that it goes on from.
    #[serde(default)]
    pub(crate) parent: Option<String>,
    #[serde(default)]
    pub(crate) data: Option<DataRecord>,
    /// Why the run has no recipe; `None`: it has one beside its log, or is of a time when none was
    /// written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) no_recipe: Option<String>,
    /// What was trained before the run and is no adapter of the registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) goes_on_from: Option<String>,
    /// Rows that the run went on with, from its later lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) later: Vec<DataRecord>,
    /// It may have gone on with rows that it does not name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) rows_unknown: bool,
    /// The [`RunRecord`] without steps and evaluations.
    pub(crate) record: Value,
}

impl Begin {
    /// The data of the run's last part.
    pub(crate) fn last_data(&self) -> Option<&DataRecord> {
        self.later.last().or(self.data.as_ref())
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct End {
    /// `finished`, `stopped` or `failed`.
    pub(crate) state: String,
    pub(crate) steps: usize,
    pub(crate) secs: f64,
    #[serde(default)]
    pub(crate) stopped: Option<StopReason>,
    #[serde(default)]
    pub(crate) loaded_step: Option<usize>,
    #[serde(default)]
    pub(crate) error: Option<String>,
    pub(crate) ended: f64,
}

/// A line of a step or an evaluation, as it is written.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Measured<'a> {
    Step(&'a StepRecord),
    Eval(&'a EvalRecord),
}

/// A line of `notes.jsonl`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Said {
    Note { text: String, at: f64 },
    Tag { tag: String },
    Untag { tag: String },
}

/// The numbers of a step that a summary is made of.
#[derive(Deserialize)]
struct StepNumbers {
    step: usize,
    #[serde(default)]
    loss: Option<f64>,
    #[serde(default)]
    secs: f64,
}

#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(borrow)]
    kind: &'a str,
}

/// A note on a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunNote {
    /// When, in seconds of Unix time.
    pub at: f64,
    /// The text.
    pub text: String,
}

/// The values of a metric over a run's evaluations.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MetricValues {
    pub(crate) higher_is_better: bool,
    pub(crate) last: f64,
    pub(crate) best: f64,
    pub(crate) best_step: usize,
}

/// One run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Summary {
    pub(crate) id: String,
    pub(crate) name: String,
    /// `finished`, `stopped`, `failed`; `unfinished` where no line says how it ended.
    pub(crate) state: String,
    pub(crate) started: f64,
    pub(crate) secs: f64,
    pub(crate) base_model: String,
    pub(crate) base: String,
    pub(crate) strategy: String,
    pub(crate) parent: Option<String>,
    pub(crate) adapter: Option<String>,
    pub(crate) data: Option<DataRecord>,
    /// The training set's fingerprint, by the data or by the trainer.
    pub(crate) dataset: Option<String>,
    pub(crate) total_steps: usize,
    pub(crate) steps: usize,
    pub(crate) loss: Option<f64>,
    /// Its evaluations, of a run that went on those of the last way.
    pub(crate) evals: Vec<EvalRecord>,
    /// The metric that the run is judged by.
    pub(crate) judged_by: String,
    pub(crate) tags: BTreeSet<String>,
    pub(crate) notes: Vec<RunNote>,
    /// The whole `begin` line.
    pub(crate) begin: Option<Begin>,
    pub(crate) error: Option<String>,
    /// Why there is no recipe, if the run said so.
    pub(crate) no_recipe: Option<String>,
    /// The fingerprint of the training rows of the run's last part.
    pub(crate) train: String,
    /// Lines that cannot be read.
    pub(crate) damaged: usize,
    /// Lines that the run could not write.
    pub(crate) missing: usize,
    pub(crate) log_bytes: u64,
    pub(crate) notes_bytes: u64,
    known: Vec<Metric>,
    /// A line that cannot be read may have said that the run went on with other rows.
    may_have_gone_on: bool,
}

impl Summary {
    /// What a run's folder says.
    ///
    /// # Errors
    /// A file that cannot be read. A damaged line is no error: it is counted.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let id = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut summary =
            Self { name: id.clone(), id, state: "unfinished".to_owned(), ..Self::default() };
        if let Some(log) = disk::read(&folder.join(LOG))? {
            summary.log_bytes = log.len() as u64;
            let (lines, torn) = disk::lines(&log);
            lines.for_each(|line| summary.log_line(line));
            summary.damaged += usize::from(torn);
        }
        if let Some(begin) = &mut summary.begin {
            begin.rows_unknown |= summary.may_have_gone_on;
        }
        if let Some(notes) = disk::read(&folder.join(NOTES))? {
            summary.notes_bytes = notes.len() as u64;
            let (lines, torn) = disk::lines(&notes);
            lines.for_each(|line| summary.notes_line(line));
            summary.damaged += usize::from(torn);
        }
        Ok(summary)
    }

    fn log_line(&mut self, line: &[u8]) {
        // A step is nearly every line, and its kind stands first.
        let read = match line.starts_with(b"{\"kind\":\"step\"") {
            true => self.step(line),
            false => self.other_line(line),
        };
        if read.is_none() {
            self.damaged += 1;
            let measured = ["step", "eval", "save"].map(|kind| format!("{{\"kind\":\"{kind}\""));
            self.may_have_gone_on |= !measured.iter().any(|of| line.starts_with(of.as_bytes()));
        }
    }

    fn step(&mut self, line: &[u8]) -> Option<()> {
        let numbers: StepNumbers = serde_json::from_slice(line).ok()?;
        self.steps = numbers.step;
        self.loss = numbers.loss;
        self.secs += numbers.secs;
        Some(())
    }

    fn other_line(&mut self, line: &[u8]) -> Option<()> {
        let Kind { kind } = serde_json::from_slice(line).ok()?;
        match kind {
            "step" => self.step(line)?,
            "eval" => self.eval(serde_json::from_slice(line).ok()?),
            _ => match serde_json::from_slice(line).ok()? {
                Line::Begin(begin) => self.begin(*begin),
                Line::Resume { done_steps, no_recipe, train, data, .. } => {
                    self.went_on(train, data.map(|data| *data));
                    self.no_recipe = self.no_recipe.take().or(no_recipe);
                    (self.steps, self.state) = (done_steps, "unfinished".to_owned());
                    self.evals.retain(|eval| eval.step <= done_steps);
                }
                Line::Save { .. } => {}
                Line::Missing { lines, .. } => {
                    self.missing = self.missing.saturating_add(lines).min(MOST)
                }
                Line::Adapter { adapter } if !ids::is_adapter(&adapter) => return None,
                Line::Adapter { adapter } => self.adapter = Some(adapter),
                Line::End(end) => {
                    (self.state, self.steps, self.secs) = (end.state, end.steps, end.secs);
                    self.error = end.error;
                }
            },
        }
        Some(())
    }

    /// Which rows the run went on with. Rows of another fingerprint that are not named are not known.
    fn went_on(&mut self, train: Option<String>, data: Option<DataRecord>) {
        let Some(begin) = &mut self.begin else { return };
        match (train, data) {
            (Some(train), _) if train == self.train => {}
            (Some(train), Some(data)) => {
                begin.later.push(data);
                self.train = train;
            }
            (train, _) => {
                begin.rows_unknown = true;
                self.train = train.unwrap_or_default();
            }
        }
    }

    /// Field by field, so that a line of another version says what it can.
    fn begin(&mut self, begin: Begin) {
        self.name.clone_from(&begin.name);
        self.started = begin.started;
        self.tags.extend(begin.tags.iter().cloned());
        self.parent.clone_from(&begin.parent);
        self.data.clone_from(&begin.data);
        self.no_recipe.clone_from(&begin.no_recipe);
        let record = &begin.record;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.base_model = without_place(&text(&record["base_model"])).to_owned();
        self.train = text(&record["fingerprints"]["train"]);
        self.base = text(&record["fingerprints"]["base"]);
        let by_trainer = record["fingerprints"]["dataset"].as_str().map(str::to_owned);
        let by_data = begin.data.as_ref().map(|data| data.train.fingerprint.clone());
        self.dataset = by_data.or(by_trainer);
        self.strategy = match serde_json::from_value(record["strategy"].clone()) {
            Ok(Strategy::Adapter(config)) => config.to_string(),
            Ok(Strategy::Full(_)) => FULL_TUNING.to_owned(),
            Err(_) => record["strategy"].to_string(),
        };
        self.total_steps = record["plan"]["total_steps"].as_u64().unwrap_or(0) as usize;
        self.judged_by = text(&record["args"]["metric_for_best_model"]);
        self.known = serde_json::from_value(record["metrics"].clone()).unwrap_or_default();
        self.begin = Some(begin);
    }

    fn eval(&mut self, eval: EvalRecord) {
        self.secs += eval.secs;
        self.evals.push(eval);
    }

    /// Each metric's values over the evaluations, the loss among them.
    pub(crate) fn metrics(&self) -> BTreeMap<String, MetricValues> {
        let mut all: BTreeMap<String, MetricValues> = BTreeMap::new();
        for eval in &self.evals {
            let others = eval.metrics.iter().map(|(name, value)| (name.as_str(), *value));
            for (name, value) in others.chain([("loss", eval.loss)]) {
                if value.is_nan() {
                    continue;
                }
                let known = self.known.iter().find(|metric| metric.name == name);
                let metric = known.cloned().unwrap_or_else(|| Metric::lower_is_better(name));
                let values = all.entry(name.to_owned()).or_insert(MetricValues {
                    higher_is_better: metric.higher_is_better,
                    last: value,
                    best: value,
                    best_step: eval.step,
                });
                values.last = value;
                if metric.improves(value, values.best) {
                    (values.best, values.best_step) = (value, eval.step);
                }
            }
        }
        all
    }

    fn notes_line(&mut self, line: &[u8]) {
        match serde_json::from_slice(line) {
            Ok(Said::Note { text, at }) => self.notes.push(RunNote { at, text }),
            Ok(Said::Tag { tag }) => drop(self.tags.insert(tag)),
            Ok(Said::Untag { tag }) => drop(self.tags.remove(&tag)),
            Err(_) => self.damaged += 1,
        }
    }

    /// Whether a line of a run's notes cannot be read.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn notes_damage(folder: &Path) -> Result<bool> {
        let notes = disk::read(&folder.join(NOTES))?.unwrap_or_default();
        let (mut lines, torn) = disk::lines(&notes);
        Ok(torn || lines.any(|line| serde_json::from_slice::<Said>(line).is_err()))
    }

    /// Whether a process writes to the run now.
    pub(crate) fn is_running(folder: &Path) -> bool {
        disk::is_locked(&folder.join(LOG))
    }
}

/// A run's record from its folder, steps and evaluations included: of a run that went on, those of
/// the last way.
pub(crate) fn record(folder: &Path) -> Result<Option<RunRecord>> {
    let Some(log) = disk::read(&folder.join(LOG))? else { return Ok(None) };
    let mut record: Option<RunRecord> = None;
    for line in disk::lines(&log).0 {
        let Ok(Kind { kind }) = serde_json::from_slice(line) else { continue };
        match (kind, &mut record) {
            ("step", Some(record)) => record.steps.extend(serde_json::from_slice(line).ok()),
            ("eval", Some(record)) => record.evals.extend(serde_json::from_slice(line).ok()),
            ("step" | "eval", None) => {}
            (_, record) => match (serde_json::from_slice(line), record) {
                (Ok(Line::Begin(begin)), record) => {
                    *record = serde_json::from_value(begin.record).ok();
                }
                (Ok(Line::Resume { done_steps, .. }), Some(record)) => {
                    record.steps.retain(|step| step.step <= done_steps);
                    record.evals.retain(|eval| eval.step <= done_steps);
                }
                (Ok(Line::End(end)), Some(record)) => {
                    (record.secs, record.stopped) = (end.secs, end.stopped);
                    record.loaded_step = end.loaded_step;
                }
                _ => {}
            },
        }
    }
    Ok(record)
}
