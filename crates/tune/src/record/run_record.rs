//! The record of a run: plain facts, which go through JSON whole.
//!
//! ```
//! # use tunebook_tune::RunRecord;
//! # fn f(run: &tunebook_tune::Run) -> Result<(), serde_json::Error> {
//! let json = serde_json::to_string(run.record())?;
//! let record: RunRecord = serde_json::from_str(&json)?;
//! assert_eq!(record.args, run.args);
//! # Ok(())
//! # }
//! ```
//!
//! A number may lose its last bit on its way through JSON; a checkpoint keeps the numbers of steps
//! and evaluations exactly, in its tensors' file.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::adapters::config::AdapterConfig;
use crate::adapters::full::Full;
use crate::error::Result;
use crate::files::peft_config;
use crate::record::fingerprint::Fingerprints;
use crate::record::metric::{LOSS, Metric};
use crate::record::{EvalRecord, Plan, StepRecord};
use crate::train::args::TrainingArgs;
use crate::train::difference::Difference;

/// What a run was asked to do, on what, and what it did, up to its last whole step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The name of the adapter that was trained, or `full fine-tuning`.
    pub adapter: String,
    /// The configuration of what was trained, as it was before the first step.
    pub strategy: Strategy,
    /// The name that the base model was loaded by.
    pub base_model: String,
    /// Where it was: `cpu`, `cuda`.
    pub device: String,
    /// The type of its activations: `f32`, `bf16`.
    pub dtype: String,
    /// The arguments, with the settings that a memory budget led to.
    pub args: TrainingArgs,
    /// What was to be done.
    pub plan: Plan,
    /// Hashes of all that the run read.
    pub fingerprints: Fingerprints,
    /// What every evaluation measured, the loss first.
    pub metrics: Vec<Metric>,
    /// One record for each step taken.
    pub steps: Vec<StepRecord>,
    /// One record for each evaluation.
    pub evals: Vec<EvalRecord>,
    /// Why it ended early; `None` when it did all its steps, or goes on.
    pub stopped: Option<StopReason>,
    /// Wall-clock time, evaluations included.
    pub secs: f64,
    /// The step whose weights were put back at the end, with `load_best_model_at_end`.
    pub loaded_step: Option<usize>,
    /// The version of this crate.
    pub version: String,
}

/// What a run trains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// An adapter.
    Adapter(Box<AdapterConfig>),
    /// The model's own weights.
    Full(Full),
}

impl<C: Into<AdapterConfig>> From<C> for Strategy {
    fn from(config: C) -> Self {
        Self::Adapter(Box::new(config.into()))
    }
}

impl From<Full> for Strategy {
    fn from(config: Full) -> Self {
        Self::Full(config)
    }
}

/// Fields that choose modules: a file spells the choice out. Tensors of other modules do not go into
/// those that are there, so nothing is missed.
const CHOICE: [&str; 4] =
    ["target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"];

impl Strategy {
    /// What differs from what a run has trained: fields, or the type itself. `moved`: what is trained
    /// was trained, loaded or combined before, so that nothing says how it began.
    pub(crate) fn differences(&self, was: &Self, moved: bool) -> Result<Vec<Difference>> {
        let of = |strategy: &Self| -> Result<(&'static str, Value)> {
            Ok(match strategy {
                Self::Adapter(config) => (config.type_name(), serde_json::to_value(config)?),
                Self::Full(config) => ("Full", serde_json::to_value(config)?),
            })
        };
        let ((kind, is), (kind_was, was)) = (of(self)?, of(was)?);
        if kind == kind_was {
            let mut except = Vec::new();
            if moved {
                except.extend(peft_config::OWN);
                except.extend(CHOICE);
            }
            if kind == "AdaLora" {
                except.push("rank_pattern"); // it moves, and is part of the run's state
            }
            return Ok(Difference::all(kind, &was, &is, &except));
        }
        let (was, is) = (json!({ "type": kind_was }), json!({ "type": kind }));
        Ok(Difference::all("strategy", &was, &is, &[]))
    }
}

/// Why a run ended before its last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopReason {
    /// The user asked for it.
    Interrupted,
    /// The validation loss (or `metric_for_best_model`) was no better for `early_stopping_patience`
    /// evaluations.
    EarlyStopping,
    /// A callback asked for it.
    Callback,
    /// An error ended it; the run is that up to the last whole step.
    Failed,
}

impl RunRecord {
    /// The last evaluation's loss.
    pub fn eval_loss(&self) -> Option<f64> {
        self.evals.last().map(|record| record.loss)
    }

    /// The metric that the arguments judge an evaluation by: the loss, unless they name another.
    pub fn metric_for_best_model(&self) -> Option<&Metric> {
        self.metrics.iter().find(|metric| metric.name == self.args.metric_for_best_model)
    }

    /// The best evaluation by [`RunRecord::metric_for_best_model`], the first of equals. `None`
    /// without an evaluation that has a value of it.
    pub fn best_eval(&self) -> Option<&EvalRecord> {
        let metric = self.metric_for_best_model()?;
        let value = |eval: &EvalRecord| eval.metric(&metric.name).filter(|value| !value.is_nan());
        self.evals.iter().filter(|eval| value(eval).is_some()).reduce(|best, eval| {
            let improves = value(eval)
                .zip(value(best))
                .is_some_and(|(value, best)| metric.improves(value, best));
            if improves { eval } else { best }
        })
    }

    /// Mean training loss of the last `steps` steps (fewer if there are fewer), weighted by
    /// loss-bearing tokens.
    pub fn recent_loss(&self, steps: usize) -> Option<f64> {
        let recent = &self.steps[self.steps.len().saturating_sub(steps)..];
        let tokens: usize = recent.iter().map(|record| record.label_tokens).sum();
        let sum: f64 = recent.iter().map(|record| record.loss * record.label_tokens as f64).sum();
        (tokens > 0).then(|| sum / tokens as f64)
    }

    /// Tokens that went through the model in the training steps, per second of those steps.
    pub fn tokens_per_sec(&self) -> f64 {
        let secs: f64 = self.steps.iter().map(|record| record.secs).sum();
        let tokens: usize = self.steps.iter().map(|record| record.tokens).sum();
        if secs > 0.0 { tokens as f64 / secs } else { 0.0 }
    }

    /// How many evaluations came after the last one that was better, by more than `threshold`, than
    /// all before it.
    pub(crate) fn evals_since_best(&self, threshold: f64) -> usize {
        let Some(metric) = self.metric_for_best_model() else { return 0 };
        let (mut best, mut since) = (None, 0);
        for eval in &self.evals {
            let value = eval.metric(&metric.name).filter(|value| !value.is_nan());
            match (value, best) {
                (Some(value), None) => (best, since) = (Some(value), 0),
                (Some(value), Some(so_far)) if metric.improves_by(value, so_far, threshold) => {
                    (best, since) = (Some(value), 0);
                }
                _ => since += 1,
            }
        }
        since
    }
}

impl fmt::Display for RunRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} of {} steps", self.adapter, self.steps.len(), self.plan.total_steps)?;
        if let (Some(first), Some(last)) = (self.steps.first(), self.steps.last()) {
            write!(f, ", training loss {:.4} (step {})", first.loss, first.step)?;
            if last.step > first.step {
                write!(f, " -> {:.4} (step {})", last.loss, last.step)?;
            }
            let recent = self.plan.steps_per_epoch.min(self.steps.len());
            if let Some(mean) = self.recent_loss(recent).filter(|_| recent > 1) {
                write!(f, ", mean of the last {recent} steps {mean:.4}")?;
            }
        }
        if let (Some(first), Some(last)) = (self.evals.first(), self.evals.last()) {
            match self.evals.len() {
                1 => write!(f, ", validation loss {:.4}", last.loss)?,
                _ => write!(f, ", validation loss {:.4} -> {:.4}", first.loss, last.loss)?,
            }
        }
        // Another engine's run may have no times.
        if self.secs > 0.0 {
            write!(f, ", {:.0} s ({:.0} tokens/s)", self.secs, self.tokens_per_sec())?;
        }
        if let Some(preflight) = &self.plan.preflight {
            write!(f, "; {}", preflight.settings())?;
        }
        if self.plan.truncated > 0 {
            write!(f, "; {} examples were cut off at `max_length`", self.plan.truncated)?;
        }
        if self.plan.without_labels > 0 {
            write!(
                f,
                "; {} examples had no completion left and were left out",
                self.plan.without_labels
            )?;
        }
        match self.stopped {
            Some(StopReason::Interrupted) => {
                write!(f, "; stopped on request after step {}", self.steps.len())?;
            }
            Some(StopReason::EarlyStopping) => {
                let what = match self.args.metric_for_best_model.as_str() {
                    LOSS => "the validation loss fell no more".to_owned(),
                    name => format!("`{name}` got no better"),
                };
                write!(f, "; stopped after step {}: {what}", self.steps.len())?;
            }
            Some(StopReason::Callback) => {
                write!(f, "; stopped by a callback after step {}", self.steps.len())?;
            }
            Some(StopReason::Failed) => write!(f, "; failed after step {}", self.steps.len())?,
            None => {}
        }
        match self.loaded_step {
            Some(step) => {
                write!(f, "; the weights of step {step}, the best evaluation, are loaded")
            }
            None => Ok(()),
        }
    }
}
