//! What a run will train and take, on one table, before it starts and without a step taken.
//!
//! Counts and files are exact. The activations are what the blocks keep between the passes of the
//! largest batch, by the shapes of the model; what one operation needs while it runs comes on top.
//! [`Trainer::preflight`](crate::Trainer::preflight) measures where this counts.

use std::fmt;

use serde::{Deserialize, Serialize};
use tunebook_models::Model;
use tunebook_ops as ops;

use crate::adapters::registry;
use crate::adapters::thousands;
use crate::batch::collate::Sets;
use crate::cost::flops::Loads;
use crate::cost::memory;
use crate::error::Result;
use crate::train::args::TrainingArgs;
use crate::train::{optim, regularisation};

/// What a run will train and take. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingSummary {
    /// What is trained: an adapter's name, or `full fine-tuning`.
    pub name: String,
    /// Its type and its ranks: `LoRA r=8, lora_alpha=16`.
    pub strategy: String,
    /// How many modules it sits on.
    pub modules: usize,
    /// How many numbers are trained.
    pub trainable_parameters: usize,
    /// How many numbers the model has, an adapter included.
    pub all_parameters: usize,
    /// The model's weights, and an adapter's.
    pub weights_bytes: u64,
    /// The gradients of what is trained.
    pub gradients_bytes: u64,
    /// The optimizer's state, and a copy of what is trained where the arguments take one (`l2_sp`,
    /// `kl_coef`).
    pub optimizer_bytes: u64,
    /// What the blocks keep for the backward pass of the largest batch.
    pub activations_bytes: u64,
    /// The logits that the loss holds at a time, where most tokens bear one.
    pub logits_bytes: u64,
    /// Tokens of the largest batch, its padding included.
    pub largest_batch_tokens: usize,
    /// Blocks that are run again in the backward pass of that batch, so that they keep less.
    pub checkpointed_blocks: usize,
    /// Of the tensors' file that `save_adapter` writes; `None` where the model's own weights are
    /// trained.
    pub file_bytes: Option<u64>,
}

impl TrainingSummary {
    /// The part of all numbers that is trained, 0 to 1.
    pub fn share(&self) -> f64 {
        self.trainable_parameters as f64 / self.all_parameters.max(1) as f64
    }

    /// All of the memory named here.
    pub fn memory_bytes(&self) -> u64 {
        self.weights_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.activations_bytes
            + self.logits_bytes
    }

    /// The lines of the table: names and values.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("strategy", self.strategy.clone()),
            ("modules", thousands(self.modules)),
            ("trainable parameters", thousands(self.trainable_parameters)),
            ("all parameters", thousands(self.all_parameters)),
            ("share", format!("{:.4} %", 100.0 * self.share())),
            ("memory of the weights", megabytes(self.weights_bytes)),
            ("memory of the gradients", megabytes(self.gradients_bytes)),
            ("memory of the optimizer", megabytes(self.optimizer_bytes)),
            (
                "memory of the activations",
                format!(
                    "{} at {} tokens",
                    megabytes(self.activations_bytes),
                    thousands(self.largest_batch_tokens)
                ),
            ),
            ("memory of the logits", megabytes(self.logits_bytes)),
            ("memory in all", megabytes(self.memory_bytes())),
        ];
        if self.checkpointed_blocks > 0 {
            lines.push(("blocks run again", self.checkpointed_blocks.to_string()));
        }
        if let Some(bytes) = self.file_bytes {
            lines.push(("adapter file", megabytes(bytes)));
        }
        lines
    }
}

/// `12.3 MB`, or kB below a tenth of one.
fn megabytes(bytes: u64) -> String {
    match bytes {
        ..100_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

impl fmt::Display for TrainingSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        for (name, value) in self.lines() {
            write!(f, "\n{name:<26} {value}")?;
        }
        Ok(())
    }
}

/// What a run on these sets with these arguments will train and take.
///
/// # Errors
/// Nothing to train.
pub(crate) fn count(model: &Model, args: &TrainingArgs, sets: &Sets) -> Result<TrainingSummary> {
    let (set, rows) = (&sets.train, &sets.rows);
    let (_, trained) = registry::trained(model)?;
    let parameters = trained.parameters();
    let longest = (0..rows.len()).map(|row| rows.length(row)).max().unwrap_or(0);
    let tokens = longest * args.batch_size.min(rows.len());

    let labels = Loads::new(set, rows, false).most_labels(args.batch_size);
    let vocab = model.config().vocab_size;
    let compared = match args.kl_coef > 0.0 {
        true => regularisation::numbers_held(labels, vocab),
        false => 0,
    };
    let logits = ops::logits_held(labels, vocab) + compared;
    let start = if args.keeps_start(&trained) { 4.0 } else { 0.0 };

    let blocks = model.num_blocks();
    let in_graph = blocks - parameters.first_block().unwrap_or(blocks);
    let checkpointed_blocks =
        args.checkpointed_blocks(model, tokens, args.gpu_room(model, &trained)).min(in_graph);
    let kept = memory::block_numbers(model) * (in_graph - checkpointed_blocks)
        + model.config().hidden_size * checkpointed_blocks;

    let trainable_parameters = parameters.elem_count();
    let numbers = trainable_parameters as f64;
    let f32s = |count: usize| (count * size_of::<f32>()) as u64;
    let files = trained.files(model)?;
    let (strategy, modules) = trained.description();
    // A model's own trained weights are the model's.
    let beside = if files.is_some() { trainable_parameters } else { 0 };
    Ok(TrainingSummary {
        name: trained.name().to_owned(),
        strategy,
        modules,
        trainable_parameters,
        all_parameters: model.parameter_count() + beside,
        weights_bytes: model.memory_bytes() + f32s(beside),
        gradients_bytes: f32s(trainable_parameters),
        optimizer_bytes: (numbers * (optim::bytes_per_number(args.optim) + start)) as u64,
        activations_bytes: f32s(tokens * kept),
        logits_bytes: f32s(logits),
        largest_batch_tokens: tokens,
        checkpointed_blocks,
        file_bytes: files.map(|files| files.tensors_bytes()).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        assert_eq!(megabytes(900), "0.9 kB");
        assert_eq!(megabytes(3_686_400), "3.7 MB");
    }
}
