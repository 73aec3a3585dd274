//! A few batches of a run, worked through before it starts, to see what they take.

use std::time::Instant;

use tunebook_models::Model;

use crate::batch::collate::{self, Sets};
use crate::batch::packing::Rows;
use crate::batch::{Batch, TokenizedSet};
use crate::cost::flops::{Load, Loads, Work};
use crate::cost::memory::{self, GpuRoom};
use crate::error::Result;
use crate::train::args::{EvalStrategy, TrainingArgs};
use crate::train::backward;
use crate::train::step::Stepper;

/// Of a run's micro-batches, as many are looked at: those after them are like them.
const BATCHES: usize = 50_000;

/// The micro-batches of a run, as they will come.
#[derive(Debug, Clone)]
pub(crate) struct Batches {
    /// Rows of each.
    rows: Vec<Vec<usize>>,
    /// How many optimizer steps these are.
    pub(crate) steps: usize,
}

impl Batches {
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }
}

/// What one batch took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) positions: f64,
    /// The most memory that the process had, in bytes.
    pub(crate) peak: f64,
    pub(crate) secs: f64,
}

pub(crate) struct Rehearsal<'a> {
    model: &'a Model,
    args: &'a TrainingArgs,
    sets: &'a Sets,
    stepper: Stepper,
    work: Work,
    loads: Loads,
}

impl<'a> Rehearsal<'a> {
    pub(crate) fn new(model: &'a Model, args: &'a TrainingArgs, sets: &'a Sets) -> Result<Self> {
        let stepper = Stepper::new(model, args, 1)?;
        let work = Work::new(model, stepper.parameters());
        let loads = Loads::new(&sets.train, &sets.rows, collate::may_join_rows(model, args));
        Ok(Self { model, args, sets, stepper, work, loads })
    }

    /// How many numbers are trained.
    pub(crate) fn trained(&self) -> usize {
        self.stepper.parameters().elem_count()
    }

    fn batch_of(&self, set: &TokenizedSet, rows: &Rows, chosen: &[usize]) -> Result<Batch> {
        collate::batch_of(self.model, self.args, set, rows, chosen)
    }

    /// The micro-batches of `batch_size` rows that the run consists of.
    pub(crate) fn batches(&self, batch_size: usize, total_steps: usize) -> Batches {
        let steps_per_epoch = self.sets.steps_per_epoch(self.args);
        let mut batches = Batches { rows: Vec::new(), steps: 0 };
        for epoch in 0..total_steps.div_ceil(steps_per_epoch) {
            // The order is that of the arguments as they are given: a choice of micro-batches
            // changes nothing about it.
            let order = self.sets.order(self.args, epoch);
            for step in order.chunks(self.args.rows_per_step()) {
                if batches.steps == total_steps || batches.rows.len() > BATCHES {
                    return batches;
                }
                batches.rows.extend(step.chunks(batch_size).map(<[usize]>::to_vec));
                batches.steps += 1;
            }
        }
        batches
    }

    /// The batch that so large a part of the others has less work than: 0 the least, 1 the most.
    pub(crate) fn quantile(&self, batches: &Batches, part: f64) -> Vec<usize> {
        let mut sorted: Vec<&Vec<usize>> = batches.rows.iter().collect();
        sorted.sort_by(|a, b| self.work_of(a, Some(0)).total_cmp(&self.work_of(b, Some(0))));
        let index = ((sorted.len().saturating_sub(1)) as f64 * part).round() as usize;
        sorted.get(index).map(|rows| (*rows).clone()).unwrap_or_default()
    }

    /// The batch with the most positions.
    pub(crate) fn longest(&self, batches: &Batches) -> Vec<usize> {
        batches.rows.iter().max_by_key(|rows| self.positions(rows)).cloned().unwrap_or_default()
    }

    /// How many positions these rows have together.
    pub(crate) fn positions(&self, rows: &[usize]) -> usize {
        self.loads.of(rows).positions
    }

    /// How many blocks are run again: what was chosen, else what the arguments say of so long a
    /// batch.
    pub(crate) fn again(&self, positions: usize, chosen: Option<usize>) -> usize {
        chosen.unwrap_or_else(|| self.stepper.checkpointed_blocks_of(positions))
    }

    /// What the run may take of a GPU's memory; `None` on the CPU.
    pub(crate) fn gpu_room(&self) -> Option<GpuRoom> {
        self.stepper.gpu_room()
    }

    fn work_of(&self, rows: &[usize], chosen: Option<usize>) -> f64 {
        let load = self.loads.of(rows);
        let blocks = self.model.num_blocks().max(1);
        self.work.both(&load, self.again(load.positions, chosen) as f64 / blocks as f64)
    }

    /// Work of a batch of the run, in the mean.
    pub(crate) fn mean_work(&self, batches: &Batches, chosen: Option<usize>) -> f64 {
        let sum: f64 = batches.rows.iter().map(|rows| self.work_of(rows, chosen)).sum();
        sum / batches.len().max(1) as f64
    }

    /// A forward and a backward pass over these rows, beginning with no more memory than what is in
    /// use.
    pub(crate) fn measure(&mut self, rows: &[usize], chosen: Option<usize>) -> Result<Measured> {
        memory::reset_peak();
        let (positions, secs) = self.pass(rows, chosen)?;
        let peak = memory::peak_bytes().unwrap_or(0) as f64;
        Ok(Measured { positions: positions as f64, peak, secs })
    }

    /// Work and time of such passes where memory is as the passes before left it, as in a run.
    pub(crate) fn time(&mut self, rows: &[usize], chosen: Option<usize>) -> Result<(f64, f64)> {
        let (_, secs) = self.pass(rows, chosen)?;
        Ok((self.work_of(rows, chosen), secs))
    }

    /// How many positions, and how long it took.
    fn pass(&mut self, rows: &[usize], chosen: Option<usize>) -> Result<(usize, f64)> {
        let started = Instant::now();
        let batch = [self.batch_of(&self.sets.train, &self.sets.rows, rows)?];
        let positions = batch[0].ids.elem_count();
        self.stepper.set_checkpointed_blocks(self.again(positions, chosen));
        let (_, gradients) = self.stepper.gradients(&batch)?;
        gradients.norm()?;
        Ok((positions, started.elapsed().as_secs_f64()))
    }

    /// The largest number of rows in an evaluation, at most that of the arguments, with which it
    /// stays within `most` bytes.
    pub(crate) fn eval_batch_size(&self, most: f64) -> Result<usize> {
        let mut size = self.args.eval_batch_size;
        while size > 1 && self.evaluates() {
            memory::reset_peak();
            self.evaluate_longest(size)?;
            if memory::peak_bytes().unwrap_or(0) as f64 <= most {
                break;
            }
            size = size.div_ceil(2);
        }
        Ok(size)
    }

    fn evaluates(&self) -> bool {
        self.sets.validation.is_some() && self.args.eval_strategy != EvalStrategy::No
    }

    /// The longest batch of the validation set goes through the model.
    fn evaluate_longest(&self, batch_size: usize) -> Result<()> {
        if let Some(set) = &self.sets.validation {
            let order = set.by_length();
            let longest = order.chunks(batch_size).next().unwrap_or_default();
            self.evaluate(&self.batch_of(set, &Rows::single(set), longest)?)?;
        }
        Ok(())
    }

    fn evaluate(&self, batch: &Batch) -> Result<f64> {
        let started = Instant::now();
        backward::loss(self.model, batch)?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// Time of all evaluations of a run.
    pub(crate) fn evaluation_secs(&self, batch_size: usize, total_steps: usize) -> Result<f64> {
        let Some(set) = self.sets.validation.as_ref().filter(|_| self.evaluates()) else {
            return Ok(0.0);
        };
        let steps_per_epoch = self.sets.steps_per_epoch(self.args);
        let times = (0..=total_steps)
            .filter(|step| self.args.eval_is_due(*step, steps_per_epoch, total_steps))
            .count();
        let rows = Rows::single(set);
        let loads = Loads::new(set, &rows, collate::may_join_rows(self.model, self.args));
        let order = set.by_length();
        let batches: Vec<&[usize]> = order.chunks(batch_size).collect();
        let forward = |load: Load| self.work.forward(&load);
        let middle = batches[batches.len() / 2];
        // The first one finds no memory that a forward pass left.
        self.evaluate_longest(batch_size)?;
        let secs = self.evaluate(&self.batch_of(set, &rows, middle)?)?;
        let all: f64 = batches.iter().map(|batch| forward(loads.of(batch))).sum();
        Ok(secs / forward(loads.of(middle)).max(1.0) * all * times as f64)
    }
}
