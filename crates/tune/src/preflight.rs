//! What a run will take, measured on a few of its batches before it starts, and a choice of settings that fits a budget.
//!
//! Memory grows with the tokens of a micro-batch along a straight line: the weights and what the process has anyway, and for each token the
//! activations of the blocks that keep theirs. Two batches of different size give the line, with and without recomputed blocks; a step on the
//! longest batch of the run, when the line says that it fits, is the last word. Time is a line over the tokens, too.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::args::{EvalStrategy, TrainingArgs};
use crate::backward;
use crate::batch::{Batch, TokenizedSet};
use crate::error::{Error, Result};
use crate::memory;
use crate::optim;
use crate::rows::Rows;
use crate::step::Stepper;
use crate::trainer::Trainer;

/// What a run is expected to take, and the settings that were chosen for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preflight {
    /// Rows of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of an optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Blocks that are run again in the backward pass rather than kept.
    pub checkpointed_blocks: usize,
    /// Blocks of the model.
    pub blocks: usize,
    /// Optimizer steps of the run.
    pub total_steps: usize,
    /// The longest micro-batch, in tokens with padding.
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

impl Preflight {
    /// The settings as a run's arguments.
    pub(crate) fn apply(&self, args: &TrainingArgs) -> TrainingArgs {
        TrainingArgs {
            batch_size: self.batch_size,
            gradient_accumulation_steps: self.gradient_accumulation_steps,
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

/// A straight line through what was measured.
#[derive(Debug, Clone, Copy)]
struct Line {
    at_zero: f64,
    per_token: f64,
}

impl Line {
    fn through((x1, y1): (f64, f64), (x2, y2): (f64, f64)) -> Self {
        let per_token = if x2 > x1 { ((y2 - y1) / (x2 - x1)).max(0.0) } else { 0.0 };
        Self { at_zero: y1 - per_token * x1, per_token }
    }

    fn at(&self, tokens: f64) -> f64 {
        self.at_zero + self.per_token * tokens
    }
}

/// The sets of a run.
pub(crate) struct Sets<'a> {
    pub(crate) train: &'a TokenizedSet,
    pub(crate) rows: &'a Rows,
    pub(crate) validation: Option<&'a TokenizedSet>,
}

impl Trainer {
    /// Predicts what [`Trainer::fit`] on these sets will take, and with a [`memory_budget`](TrainingArgs::memory_budget) chooses the settings that
    /// fit into it. A few batches of the run are worked through for it; nothing is trained.
    ///
    /// # Errors
    /// As [`Trainer::fit`]; a budget that not even one row at a time fits into.
    pub fn preflight(
        &self,
        train: &[crate::batch::Example],
        validation: &[crate::batch::Example],
    ) -> Result<Preflight> {
        self.args().validate()?;
        let (train, validation) = self.sets(train, validation)?;
        let rows = self.rows(&train)?;
        self.plan(&Sets { train: &train, rows: &rows, validation: validation.as_ref() })
    }

    /// See [`Trainer::preflight`].
    pub(crate) fn plan(&self, sets: &Sets<'_>) -> Result<Preflight> {
        let args = self.args();
        let blocks = self.model().num_blocks();
        let together = args.batch_size * args.gradient_accumulation_steps;
        let mut bench = Bench { trainer: self, sets, stepper: Stepper::new(self.model(), args, 1)? };
        // From short to long: what goes wrong for lack of memory goes wrong last.
        let longest_row = (0..sets.rows.len()).max_by_key(|row| sets.rows.length(*row)).unwrap_or(0);
        let mut by_length: Vec<usize> = (0..sets.rows.len()).collect();
        by_length.sort_by_key(|row| sets.rows.length(*row));
        let short = by_length[by_length.len() / 4];
        let kept = args.checkpointed_blocks(self.model(), args.batch_size * sets.rows.length(longest_row));
        bench.measure(&[short], kept)?; // threads, caches and lazy allocations
        let (middle, timed, tokens, secs) = bench.typical(&by_length, args.batch_size.min(together))?;
        let small = bench.measure(&[short], 0)?;
        let large = bench.measure(&middle, 0)?;
        let all_kept = Line::through(small.memory(), large.memory());
        let small_again = bench.measure(&[short], blocks)?;
        let large_again = bench.measure(&middle, blocks)?;
        let none_kept = Line::through(small_again.memory(), large_again.memory());
        // The optimizer's state comes on top of what one pass needs, and a copy of the best weights where it is asked for.
        let numbers = bench.stepper.parameters().elem_count() as f64;
        let state = numbers
            * (optim::bytes_per_number(args.optim) + if args.load_best_model_at_end { 4.0 } else { 0.0 });
        let known = memory::peak_bytes().is_some();
        let peak = |tokens: f64, again: usize| {
            let part = again as f64 / blocks.max(1) as f64;
            let pass = all_kept.at(tokens) * (1.0 - part) + none_kept.at(tokens) * part;
            (pass + state) as u64
        };

        let mut choice = (args.batch_size, args.gradient_accumulation_steps, kept);
        if let Some(budget) = args.memory_budget
            && known
        {
            choice = choose(together, blocks, budget, |batch_size, again| {
                peak((batch_size * sets.rows.length(longest_row)) as f64, again)
            })?;
        }
        let mut flight = Preflight {
            batch_size: choice.0,
            gradient_accumulation_steps: choice.1,
            checkpointed_blocks: choice.2,
            blocks,
            total_steps: 0,
            longest_batch_tokens: 0,
            peak_bytes: None,
            memory_budget: args.memory_budget,
            secs_per_step: 0.0,
            secs: 0.0,
        };
        let chosen = flight.apply(args);
        let steps_per_epoch = sets.rows.len().div_ceil(together);
        flight.total_steps = chosen.max_steps.unwrap_or(chosen.epochs * steps_per_epoch);

        // The batches of the run, as they will come.
        let (mut all_tokens, mut batches, mut longest) = (0usize, 0usize, (0usize, Vec::new()));
        let mut order = Vec::new();
        for step in 0..flight.total_steps {
            let (epoch, at) = (step / steps_per_epoch, step % steps_per_epoch);
            if at == 0 {
                order = sets.rows.order(chosen.data_seed(), epoch, chosen.group());
            }
            let rows = order.chunks(together).nth(at).unwrap_or_default();
            for micro in rows.chunks(chosen.batch_size) {
                let tokens = padded(sets.rows, micro);
                (all_tokens, batches) = (all_tokens + tokens, batches + 1);
                if tokens > longest.0 {
                    longest = (tokens, micro.to_vec());
                }
            }
            // A long run's later epochs are like its first ones.
            if step + 1 == 3 * steps_per_epoch && flight.total_steps > 4 * steps_per_epoch {
                let more = flight.total_steps as f64 / (step + 1) as f64;
                all_tokens = (all_tokens as f64 * more) as usize;
                batches = (batches as f64 * more) as usize;
                break;
            }
        }
        flight.longest_batch_tokens = longest.0;
        let mut last = None;
        if known {
            let predicted = peak(longest.0 as f64, flight.checkpointed_blocks);
            let room = memory::available_bytes().unwrap_or(0) + memory::resident_bytes().unwrap_or(0);
            let limit = args.memory_budget.unwrap_or(room / 10 * 9);
            flight.peak_bytes = Some(predicted);
            if predicted <= limit {
                let measured = bench.measure(&longest.1, flight.checkpointed_blocks)?;
                flight.peak_bytes = Some((measured.peak + state) as u64);
                last = Some(measured);
            }
        }
        let evaluation = bench.evaluation(&chosen, flight.total_steps, steps_per_epoch)?;
        let optimizer = optim::secs(numbers, args.optim);
        // Time of one batch: the typical one's, and what the longest one took more for its further tokens.
        let other = last.map_or((small.tokens, small.secs), |last| (last.tokens, last.secs));
        let line = match other.0 == tokens {
            true => Line { at_zero: 0.0, per_token: secs / tokens.max(1.0) },
            false if other.0 > tokens => Line::through((tokens, secs), other),
            false => Line::through(other, (tokens, secs)),
        };
        // A short batch may tell more of a fixed cost than there is.
        let line =
            if line.at_zero < 0.0 { Line { at_zero: 0.0, per_token: secs / tokens.max(1.0) } } else { line };
        let steps = line.at_zero * batches as f64 + line.per_token * all_tokens as f64;
        let steps = steps
            * bench.slower(
                // Without a budget each batch decides for itself.
                if args.memory_budget.is_some() { flight.checkpointed_blocks } else { timed },
                timed,
                &large,
                &large_again,
            )
            + optimizer * flight.total_steps as f64;
        flight.secs_per_step = steps / flight.total_steps.max(1) as f64;
        flight.secs = steps + evaluation;
        Ok(flight)
    }
}

/// The largest micro-batch that keeps the batch as it is and fits, with as few blocks run again as possible; keeping blocks comes first, for
/// running them again costs a third of the time, and small micro-batches cost less.
fn choose(
    together: usize,
    blocks: usize,
    budget: u64,
    peak: impl Fn(usize, usize) -> u64,
) -> Result<(usize, usize, usize)> {
    let sizes: Vec<usize> = (1..=together).rev().filter(|size| together.is_multiple_of(*size)).collect();
    if let Some(size) = sizes.iter().find(|size| peak(**size, 0) <= budget) {
        return Ok((*size, together / size, 0));
    }
    match (1..=blocks).find(|again| peak(1, *again) <= budget) {
        Some(again) => Ok((1, together, again)),
        None => Err(Error::Budget { budget, least: peak(1, blocks) }),
    }
}

/// Tokens of a batch of these rows, with padding.
fn padded(rows: &Rows, batch: &[usize]) -> usize {
    batch.iter().map(|row| rows.length(*row)).max().unwrap_or(0) * batch.len()
}

struct Bench<'a> {
    trainer: &'a Trainer,
    sets: &'a Sets<'a>,
    stepper: Stepper,
}

#[derive(Debug, Clone, Copy)]
struct Measured {
    tokens: f64,
    peak: f64,
    secs: f64,
}

impl Measured {
    fn memory(&self) -> (f64, f64) {
        (self.tokens, self.peak)
    }
}

impl Bench<'_> {
    /// A forward and a backward pass over these rows.
    fn measure(&mut self, rows: &[usize], again: usize) -> Result<Measured> {
        let batch = [self.batch(rows)?];
        self.stepper.set_checkpointed_blocks(again);
        memory::reset_peak();
        let started = std::time::Instant::now();
        let _ = self.stepper.gradients(&batch)?;
        let secs = started.elapsed().as_secs_f64();
        let peak = memory::peak_bytes().unwrap_or(0) as f64;
        Ok(Measured { tokens: padded(self.sets.rows, rows) as f64, peak, secs })
    }

    fn batch(&self, rows: &[usize]) -> Result<Batch> {
        self.trainer.batch_of(self.sets.train, self.sets.rows, rows)
    }

    /// A batch of the usual length, how many blocks it runs again, its tokens, and the time that it takes: the lower of two.
    fn typical(&mut self, by_length: &[usize], batch_size: usize) -> Result<(Vec<usize>, usize, f64, f64)> {
        let args = self.trainer.args();
        let order = self.sets.rows.order(args.data_seed(), 0, args.group());
        let mut batches: Vec<&[usize]> = order.chunks(batch_size).filter(|b| b.len() == batch_size).collect();
        batches.sort_by_key(|batch| padded(self.sets.rows, batch));
        let rows = match batches.get(batches.len() / 2) {
            Some(batch) => batch.to_vec(),
            None => by_length.to_vec(),
        };
        let again = args.checkpointed_blocks(self.trainer.model(), padded(self.sets.rows, &rows));
        let first = self.measure(&rows, again)?;
        let second = self.measure(&rows, again)?;
        Ok((rows, again, first.tokens, first.secs.min(second.secs)))
    }

    /// How much longer a batch takes with the chosen blocks run again than with those that were timed.
    fn slower(&self, chosen: usize, timed: usize, without: &Measured, with: &Measured) -> f64 {
        let blocks = self.trainer.model().num_blocks().max(1) as f64;
        let per_block = ((with.secs - without.secs) / without.secs).clamp(0.0, 1.0) / blocks;
        (1.0 + per_block * chosen as f64) / (1.0 + per_block * timed as f64)
    }

    /// Time of all evaluations of a run.
    fn evaluation(&self, args: &TrainingArgs, total_steps: usize, steps_per_epoch: usize) -> Result<f64> {
        let Some(set) = self.sets.validation.filter(|_| args.eval_strategy != EvalStrategy::No) else {
            return Ok(0.0);
        };
        let times =
            (0..=total_steps).filter(|step| args.eval_is_due(*step, steps_per_epoch, total_steps)).count();
        let rows = Rows::single(set);
        let order = set.by_length();
        let batches: Vec<&[usize]> = order.chunks(args.eval_batch_size).collect();
        let middle = batches[batches.len() / 2];
        let batch = self.trainer.batch_of(set, &rows, middle)?;
        let started = std::time::Instant::now();
        backward::loss(self.trainer.model(), &batch)?;
        let per_token = started.elapsed().as_secs_f64() / padded(&rows, middle).max(1) as f64;
        let tokens: usize = batches.iter().map(|batch| padded(&rows, batch)).sum();
        Ok(per_token * tokens as f64 * times as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeping_blocks_comes_before_large_micro_batches() {
        // 1 GB, and for each row of a micro-batch 0.8 GB, or 0.1 GB where all ten blocks are run again.
        let peak = |rows: usize, again: usize| (1e9 + rows as f64 * (8e8 - 7e7 * again as f64)) as u64;
        let choose = |budget| choose(8, 10, budget, peak);
        assert_eq!(choose(8_000_000_000).unwrap(), (8, 1, 0));
        assert_eq!(choose(4_500_000_000).unwrap(), (4, 2, 0));
        assert_eq!(choose(1_900_000_000).unwrap(), (1, 8, 0));
        assert_eq!(choose(1_500_000_000).unwrap(), (1, 8, 5));
        let error = choose(1_050_000_000).unwrap_err().to_string();
        assert!(error.contains("1.05 GB") && error.contains("1.10 GB"), "{error}");
    }
}
