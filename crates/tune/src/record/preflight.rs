//! The prediction of what a run will take, and the settings that were chosen for it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::train::args::TrainingArgs;

/// What a run is expected to take, and the settings that were chosen for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preflight {
    /// Rows of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of an optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Rows of a batch of an evaluation.
    #[serde(default = "eval_batch_size")]
    pub eval_batch_size: usize,
    /// Blocks that are run again in the backward pass rather than kept; without a budget those of
    /// the longest batch.
    pub checkpointed_blocks: usize,
    /// Blocks of the model.
    pub blocks: usize,
    /// Optimizer steps of the run.
    pub total_steps: usize,
    /// The longest micro-batch, in tokens, with the padding if there is any.
    pub longest_batch_tokens: usize,
    /// The most memory that the process will have, in bytes; `None` where the system does not say.
    pub peak_bytes: Option<u64>,
    /// The budget that was to be kept.
    pub memory_budget: Option<u64>,
    /// Mean time of a step.
    pub secs_per_step: f64,
    /// Time of the whole run, evaluations included.
    pub secs: f64,
}

/// Of runs that were written down when it was not chosen.
fn eval_batch_size() -> usize {
    TrainingArgs::default().eval_batch_size
}

impl Preflight {
    /// The settings as a run's arguments.
    pub(crate) fn apply(&self, args: &TrainingArgs) -> TrainingArgs {
        TrainingArgs {
            batch_size: self.batch_size,
            gradient_accumulation_steps: self.gradient_accumulation_steps,
            eval_batch_size: self.eval_batch_size,
            gradient_checkpointing: self.checkpointed_blocks > 0,
            checkpointed_blocks: Some(self.checkpointed_blocks),
            ..args.clone()
        }
    }

    /// `micro-batches of 2 rows, 4 to a step, 12 of 30 blocks run again`
    pub(crate) fn settings(&self) -> String {
        let rows = if self.batch_size == 1 { "row" } else { "rows" };
        let mut text = format!(
            "micro-batches of {} {rows}, {} to a step",
            self.batch_size, self.gradient_accumulation_steps
        );
        match self.checkpointed_blocks {
            0 => text.push_str(", no block run again"),
            some => text.push_str(&format!(", {some} of {} blocks run again", self.blocks)),
        }
        text
    }
}

impl fmt::Display for Preflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.settings())?;
        match self.peak_bytes {
            Some(peak) => write!(f, "{:.2} GB at most", peak as f64 / 1e9)?,
            None => write!(f, "memory unknown on this system")?,
        }
        if let Some(budget) = self.memory_budget {
            write!(f, " of a budget of {:.2} GB", budget as f64 / 1e9)?;
        }
        let minutes = self.secs / 60.0;
        write!(f, "; {} steps of {:.2} s, ", self.total_steps, self.secs_per_step)?;
        if minutes < 2.0 {
            write!(f, "{:.0} s in all", self.secs)
        } else {
            write!(f, "{minutes:.1} minutes in all")
        }
    }
}
