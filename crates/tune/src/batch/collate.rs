//! The sets of a run, and the batches that their rows make.

use tunebook_models::Model;

use crate::batch::example_sets::ExampleSets;
use crate::batch::packing::Rows;
use crate::batch::tokenize;
use crate::batch::{Batch, TokenizedSet};
use crate::error::{Error, Result};
use crate::train::args::{EvalStrategy, TrainingArgs};

/// The sets of a run as token ids.
pub(crate) struct Sets {
    pub(crate) train: TokenizedSet,
    /// The rows that the training examples make.
    pub(crate) rows: Rows,
    /// `None` if nothing is to be evaluated.
    pub(crate) validation: Option<TokenizedSet>,
}

impl Sets {
    /// Tokenises both sets.
    ///
    /// # Errors
    /// Examples that cannot be used, or packing with virtual tokens before each text.
    pub(crate) fn new(model: &Model, args: &TrainingArgs, examples: &ExampleSets) -> Result<Self> {
        if args.packing && model.positions_before() > 0 {
            return Err(Error::Config {
                field: "TrainingArgs.packing",
                value: format!(
                    "true, with {} virtual tokens before each text",
                    model.positions_before()
                ),
                expected: "false with prompt and prefix tuning: the virtual tokens stand before a row, and packed texts would not see them",
            });
        }
        let train = tokenize::tokenize(model, "training", &examples.train, args.max_length)?;
        let validation = &examples.validation;
        let validation = if validation.is_empty() || args.eval_strategy == EvalStrategy::No {
            None
        } else {
            Some(tokenize::tokenize(model, "validation", validation, args.max_length)?)
        };
        let rows = match args.max_length.filter(|_| args.packing) {
            Some(length) => Rows::packed(&train, length),
            None => Rows::single(&train),
        };
        Ok(Self { train, rows, validation })
    }

    /// Optimizer steps of one epoch.
    pub(crate) fn steps_per_epoch(&self, args: &TrainingArgs) -> usize {
        self.rows.len().div_ceil(args.rows_per_step())
    }

    /// Optimizer steps of the whole run.
    pub(crate) fn total_steps(&self, args: &TrainingArgs) -> usize {
        // Both are less than 2^32, by `TrainingArgs::validate` and by what memory holds.
        args.max_steps.unwrap_or_else(|| args.epochs.saturating_mul(self.steps_per_epoch(args)))
    }

    /// The order of the training rows in `epoch`, counted from 0.
    pub(crate) fn order(&self, args: &TrainingArgs, epoch: usize) -> Vec<usize> {
        self.rows.order(args.data_seed(), epoch, args.group())
    }

    /// The micro-batches of a step on these training rows.
    ///
    /// # Errors
    /// The memory does not suffice.
    pub(crate) fn micro_batches(
        &self,
        model: &Model,
        args: &TrainingArgs,
        chosen: &[usize],
    ) -> Result<Vec<Batch>> {
        let batch = |chosen| batch_of(model, args, &self.train, &self.rows, chosen);
        chosen.chunks(args.batch_size).map(batch).collect()
    }
}

/// One batch of these rows.
///
/// # Errors
/// The memory does not suffice.
pub(crate) fn batch_of(
    model: &Model,
    args: &TrainingArgs,
    set: &TokenizedSet,
    rows: &Rows,
    chosen: &[usize],
) -> Result<Batch> {
    let packed: Vec<Vec<_>> = chosen
        .iter()
        .map(|row| rows.get(*row).iter().map(|index| &set.examples[*index]).collect())
        .collect();
    let single = packed.iter().all(|row| row.len() == 1);
    let lengths =
        || packed.iter().map(|row| row.iter().map(|example| example.ids.len()).sum::<usize>());
    if lengths().min() < lengths().max() && may_join_rows(model, args) {
        let joined = [packed.into_iter().flatten().collect()];
        return Batch::packed(&joined, tokenize::PAD_ID, model.device());
    }
    let batch = Batch::packed(&packed, tokenize::PAD_ID, model.device())?;
    Ok(if single { Batch { segments: None, ..batch } } else { batch })
}

/// Whether rows of different lengths go through the model end to end, as one row without padding,
/// of which every text sees itself alone. (Of `banking77`'s chats eight to a batch, a fifth of all
/// positions would be padding.) Not where something counts a row's positions, or stands before
/// each row.
pub(crate) fn may_join_rows(model: &Model, args: &TrainingArgs) -> bool {
    model.device().is_cpu()
        && model.attends_in_tiles()
        && model.positions_before() == 0
        && args.neftune_noise_alpha.is_none()
}
