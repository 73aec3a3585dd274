//! What a run says while it goes: plain records. Who draws a chart or a bar of them is no concern
//! of the loop.

pub(crate) mod callback;
pub(crate) mod fingerprint;
pub(crate) mod metric;
pub(crate) mod preflight;
pub(crate) mod run_log;
pub(crate) mod run_record;
pub(crate) mod tensorboard;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::record::metric::LOSS;
use crate::record::preflight::Preflight;

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
    /// Norm of the gradient before clipping; not finite in a step that was skipped (`null` in
    /// JSON).
    #[serde(deserialize_with = "number_or_nan")]
    pub grad_norm: f64,
    /// What the loss was multiplied with before the backward pass
    /// ([`TrainingArgs::fp16`](crate::TrainingArgs::fp16)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// The gradient overflowed at that scale, and nothing was changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// Mean KL(base ‖ trained) per loss-bearing token, in nats, before its coefficient and before the
    /// update; `None` without [`TrainingArgs::kl_coef`](crate::TrainingArgs::kl_coef).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Tokens that went through the model, padding left out.
    pub tokens: usize,
    /// Tokens that bore a loss.
    pub label_tokens: usize,
    /// Wall-clock time of the step.
    pub secs: f64,
    /// Memory in use after this step, in bytes: the resident memory of this process; on a GPU the
    /// device's, of all processes. `None` where the system or the driver does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Which training examples it took, by their numbers in the set, counted from 0. Empty in
    /// records of older versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<usize>,
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
    #[serde(deserialize_with = "number_or_nan")]
    pub loss: f64,
    /// Loss-bearing tokens of the validation set.
    pub label_tokens: usize,
    /// Wall-clock time of the evaluation.
    pub secs: f64,
    /// What else was measured, by the names given to
    /// [`Trainer::with_metric`](crate::Trainer::with_metric).
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "numbers_or_nan"
    )]
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
        if name == LOSS { Some(self.loss) } else { self.metrics.get(name).copied() }
    }
}

/// A number that JSON holds as `null` where it is not finite.
fn number_or_nan<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

fn numbers_or_nan<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let numbers = BTreeMap::<String, Option<f64>>::deserialize(from)?;
    Ok(numbers.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
}
