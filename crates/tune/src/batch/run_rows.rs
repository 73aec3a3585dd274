//! The rows of a whole run in the order in which its steps take them, and the arithmetic that they
//! are: for another engine that is to take the same steps, and for a plan.

use tunebook_models::Model;

use crate::adapters::registry;
use crate::batch::TokenizedSet;
use crate::batch::collate::Sets;
use crate::batch::packing::Rows;
use crate::cost::flops::{Loads, Work};
use crate::error::{Error, Result};
use crate::record::fingerprint::Fingerprints;
use crate::train::args::TrainingArgs;

/// The most rows of all steps together, a row of each epoch counted: each is a number in memory here,
/// and a line of an export.
const MOST: usize = 1 << 28;

/// The rows of a run ([`Trainer::rows`](crate::Trainer::rows)), before it starts.
#[derive(Debug, Clone)]
pub struct RunRows {
    /// The training set as token ids, with its labels.
    pub train: TokenizedSet,
    /// The validation set; `None` if nothing is to be evaluated.
    pub validation: Option<TokenizedSet>,
    /// For each row the indices into [`train`](Self::train) of the examples packed into it: one
    /// without packing.
    pub rows: Vec<Vec<usize>>,
    /// For each optimizer step of the run its rows, as indices into [`rows`](Self::rows).
    pub steps: Vec<Vec<usize>>,
    /// Optimizer steps of one epoch. The last one of an epoch may have fewer rows.
    pub steps_per_epoch: usize,
    /// How often the validation set is worked through.
    pub evaluations: usize,
    /// Multiply-adds of all forward and backward passes of the training, no block run again, rows
    /// padded to the longest of their micro-batch.
    pub multiply_adds: f64,
    /// Multiply-adds of the base's forward passes that [`TrainingArgs::kl_coef`] asks for besides; 0
    /// without it.
    pub base_multiply_adds: f64,
    /// Multiply-adds of all evaluations.
    pub evaluation_multiply_adds: f64,
    /// Hashes of what the run reads.
    pub fingerprints: Fingerprints,
}

impl RunRows {
    /// # Errors
    /// Nothing to train; more steps than can be listed; a device that does not hand its tensors over.
    pub(crate) fn new(model: &Model, args: &TrainingArgs, sets: Sets) -> Result<Self> {
        let (steps_per_epoch, total_steps) = (sets.steps_per_epoch(args), sets.total_steps(args));
        let epochs = total_steps.div_ceil(steps_per_epoch);
        if epochs.saturating_mul(sets.rows.len()) > MOST {
            let (field, value) = match args.max_steps {
                Some(steps) => ("TrainingArgs.max_steps", steps),
                None => ("TrainingArgs.epochs", args.epochs),
            };
            return Err(Error::Config {
                field,
                value: format!("{value}, with {} training rows", sets.rows.len()),
                expected: "at most 268435456 rows, those of all epochs counted, where they are listed before \
                           a run (an export, a plan)",
            });
        }
        let mut steps = Vec::with_capacity(total_steps);
        for epoch in 0..epochs {
            let order = sets.order(args, epoch);
            steps.extend(order.chunks(args.rows_per_step()).map(<[usize]>::to_vec));
        }
        steps.truncate(total_steps);

        let (_, trained) = registry::trained(model)?;
        let work = Work::new(model, &trained.parameters());
        let loads = Loads::new(&sets.train, &sets.rows, false);
        let (mut multiply_adds, mut base_multiply_adds) = (0.0, 0.0);
        for rows in steps.iter().flat_map(|step| step.chunks(args.batch_size)) {
            let load = loads.of(rows);
            multiply_adds += work.both(&load, 0.0);
            if args.kl_coef > 0.0 {
                base_multiply_adds += work.forward(&load);
            }
        }

        let due = |step: &usize| args.eval_is_due(*step, steps_per_epoch, total_steps);
        let evaluations = match &sets.validation {
            Some(_) => (0..=total_steps).filter(due).count(),
            None => 0,
        };
        let evaluation = sets.validation.as_ref().map_or(0.0, |set| {
            let loads = Loads::new(set, &Rows::single(set), false);
            let order = set.by_length();
            order.chunks(args.eval_batch_size).map(|rows| work.forward(&loads.of(rows))).sum()
        });
        let fingerprints = Fingerprints::of(model, &sets, None)?;
        let rows = (0..sets.rows.len()).map(|row| sets.rows.get(row).to_vec()).collect();
        Ok(Self {
            train: sets.train,
            validation: sets.validation,
            rows,
            steps,
            steps_per_epoch,
            evaluations,
            multiply_adds,
            base_multiply_adds,
            evaluation_multiply_adds: evaluation * evaluations as f64,
            fingerprints,
        })
    }

    /// Tokens of a row.
    pub fn row_tokens(&self, row: usize) -> usize {
        self.rows[row].iter().map(|index| self.train.examples[*index].ids.len()).sum()
    }

    /// Tokens of the whole run, without padding.
    pub fn tokens(&self) -> usize {
        self.steps.iter().flatten().map(|row| self.row_tokens(*row)).sum()
    }

    /// Tokens of the whole run that bear a loss.
    pub fn label_tokens(&self) -> usize {
        let of = |row: &usize| -> usize {
            self.rows[*row].iter().map(|i| self.train.examples[*i].label_tokens()).sum()
        };
        self.steps.iter().flatten().map(of).sum()
    }
}
