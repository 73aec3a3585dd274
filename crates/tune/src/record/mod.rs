//! What a run says while it goes: plain records. Who draws a chart or a bar of them is no concern
//! of the loop.

pub mod run_log;
pub mod tensorboard;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cost::preflight::Preflight;
use crate::error::Result;
use crate::train::trainer::Run;

/// One optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Counted from 1.
    pub step: usize,
    /// How many epochs are done after this step, with a fraction.
    pub epoch: f64,
    /// Mean loss per loss-bearing token of this step's rows, in nats, before the update.
    pub loss: f64,
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// Norm of the gradient before clipping; not finite in a step that was skipped.
    pub grad_norm: f64,
    /// What the loss was multiplied with before the backward pass
    /// ([`TrainingArgs::fp16`](crate::TrainingArgs::fp16)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// The gradient overflowed at that scale, and nothing was changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// Tokens that went through the model, padding left out.
    pub tokens: usize,
    /// Tokens that bore a loss.
    pub label_tokens: usize,
    /// Wall-clock time of the step.
    pub secs: f64,
    /// The rank of each of the modules in [`Plan::rank_modules`] after this step. Empty unless
    /// AdaLoRA moves them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<usize>,
}

/// One evaluation on the validation set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// The number of steps taken before it; 0 is before training.
    pub step: usize,
    /// How many epochs were done, with a fraction.
    pub epoch: f64,
    /// Mean loss per loss-bearing token, in nats.
    pub loss: f64,
    /// Loss-bearing tokens of the validation set.
    pub label_tokens: usize,
    /// Wall-clock time of the evaluation.
    pub secs: f64,
    /// What else was measured, by the names given to
    /// [`Trainer::with_metric`](crate::Trainer::with_metric).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
}

/// What a run is about to do, known before its first step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Optimizer steps of the whole run.
    pub total_steps: usize,
    /// Steps already taken by the run that is continued; 0 for a new one.
    pub done_steps: usize,
    /// Optimizer steps of one epoch.
    pub steps_per_epoch: usize,
    /// Training examples.
    pub examples: usize,
    /// Validation examples.
    pub validation_examples: usize,
    /// Numbers that are trained.
    pub trainable_parameters: usize,
    /// Examples cut off at `max_length`, of both sets.
    pub truncated: usize,
    /// Examples left out because the cut left no token that bears a loss.
    pub without_labels: usize,
    /// Rows that the training examples were packed into; `None` without packing.
    #[serde(default)]
    pub packed_rows: Option<usize>,
    /// The settings chosen to fit the memory budget, and what they will take.
    #[serde(default)]
    pub preflight: Option<Preflight>,
    /// The modules between which AdaLoRA moves rank, by path. Empty for everything else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rank_modules: Vec<String>,
}

impl EvalRecord {
    /// A metric by its name; `loss` is the loss.
    pub fn metric(&self, name: &str) -> Option<f64> {
        if name == "loss" { Some(self.loss) } else { self.metrics.get(name).copied() }
    }
}

/// Sees a run as it goes. Every method does nothing unless it is written.
///
/// An error ends the run, with the weights as of the last whole step.
pub trait Callback: Send {
    /// Before the first step.
    fn on_start(&mut self, _plan: &Plan) -> Result<()> {
        Ok(())
    }

    /// After every optimizer step.
    fn on_step(&mut self, _record: &StepRecord) -> Result<()> {
        Ok(())
    }

    /// While the validation set is worked through: rows done, of how many.
    fn on_eval_progress(&mut self, _done: usize, _total: usize) -> Result<()> {
        Ok(())
    }

    /// After every evaluation.
    fn on_eval(&mut self, _record: &EvalRecord) -> Result<()> {
        Ok(())
    }

    /// After every checkpoint.
    fn on_save(&mut self, _step: usize, _folder: &Path) -> Result<()> {
        Ok(())
    }

    /// Asked after every step: true ends the run there, whole, as
    /// [`StopReason::Callback`](crate::StopReason::Callback).
    fn should_stop(&self) -> bool {
        false
    }

    /// When the run ends, whole or stopped.
    fn on_end(&mut self, _run: &Run) -> Result<()> {
        Ok(())
    }
}
