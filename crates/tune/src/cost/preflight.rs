//! What a run will take, measured on a few of its batches before it starts, and a choice of
//! settings that fits a budget.
//!
//! Memory grows with the tokens of a micro-batch along a straight line: the weights and what the
//! process has anyway, and for each token the activations of the blocks that keep theirs. Two
//! batches of different size give the line, with and without recomputed blocks. The longest batch
//! of the run, when the line says that it fits, is the last word, alone and with others before it,
//! which leave gaps. Time is a line over the arithmetic of a batch ([`crate::cost::flops`]), through seven
//! of the run's.

use tunebook_models::Model;

use crate::batch::collate::Sets;
use crate::cost::flops;
use crate::cost::memory;
use crate::cost::rehearsal::Rehearsal;
use crate::error::{Error, Result};
use crate::record::preflight::Preflight;
use crate::train::args::TrainingArgs;
use crate::train::optim;

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

/// How often a choice that turned out too large is made again.
const SECOND_THOUGHTS: usize = 4;
/// What a run takes beyond what its longest batch takes from a heap without gaps: so much was seen
/// at most.
const GAPS: f64 = 0.06;
/// The timed batches: so large a part of the run's has less work. The last one, as long as any, is
/// timed where it fits into memory.
const TIMED: [f64; 6] = [0.5, 0.1, 0.9, 0.5, 0.2, 0.8];

/// Predicts what a run on these sets will take, and with a
/// [`memory_budget`](TrainingArgs::memory_budget) chooses the settings that fit into it.
///
/// # Errors
/// As [`Trainer::preflight`](crate::Trainer::preflight).
pub(crate) fn measure(model: &Model, args: &TrainingArgs, sets: &Sets) -> Result<Preflight> {
    let blocks = model.num_blocks();
    let together = args.rows_per_step();
    let total_steps = sets.total_steps(args);
    let mut rehearsal = Rehearsal::new(model, args, sets)?;
    let numbers = rehearsal.trained() as f64;

    let on_gpu = rehearsal.gpu_room();
    // Of the host's memory the system says what was taken; of a GPU's nothing is measured.
    let known = memory::peak_bytes().is_some() && on_gpu.is_none();
    let budget = args.memory_budget.filter(|_| known || on_gpu.is_some());

    // The optimizer's state comes on top of what one pass needs, and a copy of the best weights
    // where it is asked for.
    let state = numbers
        * (optim::bytes_per_number(args.optim)
            + if args.load_best_model_at_end { 4.0 } else { 0.0 });

    // Micro-batches after the first one find its gradients there.
    let held = |batch_size: usize| if batch_size < together { 4.0 * numbers } else { 0.0 };

    let (mut batch_size, mut chosen, mut eval_batch_size) =
        (args.batch_size, None, args.eval_batch_size);
    let mut batches = rehearsal.batches(batch_size, total_steps);
    // From short to long: what goes wrong for lack of memory goes wrong last.
    let small = rehearsal.quantile(&batches, 0.0)[..1].to_vec();
    let middle = rehearsal.quantile(&batches, 0.5);
    rehearsal.measure(&small, None)?; // threads, caches and lazy allocations
    let mut line = |again: Option<usize>| -> Result<Line> {
        let (small, middle) =
            (rehearsal.measure(&small, again)?, rehearsal.measure(&middle, again)?);
        Ok(Line::through((small.positions, small.peak), (middle.positions, middle.peak)))
    };
    let predicted: Box<dyn Fn(usize, usize) -> f64> = match (on_gpu, budget) {
        (Some(room), _) => Box::new(move |tokens, again| {
            memory::gpu_bytes(model, tokens, room.trained, again) as f64
        }),
        (None, None) => {
            let line = line(None)?;
            Box::new(move |tokens, _| line.at(tokens as f64) + state)
        }
        (None, Some(_)) => {
            let (none, all) = (line(Some(0))?, line(Some(blocks))?);
            Box::new(move |tokens, again| {
                let part = again as f64 / blocks.max(1) as f64;
                none.at(tokens as f64) * (1.0 - part) + all.at(tokens as f64) * part + state
            })
        }
    };
    if let Some(budget) = budget {
        let sizes: Vec<usize> =
            (1..=together).rev().filter(|size| together.is_multiple_of(*size)).collect();
        let longest: Vec<usize> = sizes
            .iter()
            .map(|size| {
                let batches = rehearsal.batches(*size, total_steps);
                rehearsal.positions(&rehearsal.longest(&batches))
            })
            .collect();
        // The line is only good enough to choose by; what was chosen is tried, and chosen again
        // where it takes more.
        let mut factor = 1.0;
        for _ in 0..=SECOND_THOUGHTS {
            let (index, again) = choose(&sizes, blocks, budget, |index, again| {
                (predicted(longest[index], again) * factor + held(sizes[index])) as u64
            })?;
            (batch_size, chosen) = (sizes[index], Some(again));
            batches = rehearsal.batches(batch_size, total_steps);
            if !known {
                break;
            }
            let found = rehearsal.measure(&rehearsal.longest(&batches), chosen)?.peak + state;
            let found = found * (1.0 + GAPS);
            if found + held(batch_size) <= budget as f64 {
                break;
            }
            factor = 1.01 * found / predicted(longest[index], again);
        }
        if known {
            eval_batch_size = rehearsal.eval_batch_size(budget as f64 - state)?;
        }
    }

    let longest = rehearsal.longest(&batches);
    let tokens = rehearsal.positions(&longest);
    let again = rehearsal.again(tokens, chosen);
    let room = memory::available_bytes().unwrap_or(0) + memory::resident_bytes().unwrap_or(0);
    let limit = budget.unwrap_or(room / 10 * 9) as f64;
    let fits = match on_gpu {
        Some(gpu) => predicted(tokens, again) <= gpu.most as f64,
        None => !known || budget.is_some() || predicted(tokens, again) <= limit,
    };
    let clean = if fits { Some(rehearsal.measure(&longest, chosen)?) } else { None };
    let mut timed = Vec::new();
    for part in TIMED {
        timed.push(rehearsal.time(&rehearsal.quantile(&batches, part), chosen)?);
    }
    // The first step asks the system for the memory that those after it find.
    let mut once = 0.0;
    if let Some(clean) = clean {
        let (work, secs) = rehearsal.time(&longest, chosen)?;
        once = (clean.secs - secs).max(0.0);
        timed.push((work, secs));
    }
    // With the gaps that other batches left. How much they make of it is chance, here as in the
    // run, which is taken to lie in the middle.
    let with_gaps = memory::peak_bytes().filter(|_| known).map(|bytes| bytes as f64);
    memory::reset_peak();
    let evaluation_secs = rehearsal.evaluation_secs(eval_batch_size, total_steps)?;
    let evaluation = memory::peak_bytes().unwrap_or(0) as f64;
    let peak_bytes = match (clean, with_gaps) {
        (Some(clean), Some(with_gaps)) => {
            Some(((clean.peak + with_gaps) / 2.0 + held(batch_size)).max(evaluation) + state)
        }
        _ => (known || on_gpu.is_some()).then(|| predicted(tokens, again)),
    }
    .map(|bytes| bytes as u64);

    let (fixed, slope) = flops::line(&timed);
    let per_batch = fixed + slope * rehearsal.mean_work(&batches, chosen);
    let per_step = batches.len() as f64 / batches.steps.max(1) as f64;
    drop(rehearsal);
    // The run begins with what is in use alone.
    tunebook_ops::cpu::give_back_freed_memory();
    let secs_per_step = per_batch * per_step + optim::secs(numbers, args.optim);
    Ok(Preflight {
        batch_size,
        gradient_accumulation_steps: together / batch_size,
        eval_batch_size,
        checkpointed_blocks: again,
        blocks,
        total_steps,
        longest_batch_tokens: tokens,
        peak_bytes,
        memory_budget: args.memory_budget,
        secs_per_step,
        secs: secs_per_step * total_steps as f64 + evaluation_secs + once,
    })
}

/// The largest of the micro-batches, by its index, that fits, with as few blocks run again as
/// possible; keeping blocks comes first, for running them again costs a third of the time, and
/// small micro-batches cost less.
fn choose(
    sizes: &[usize],
    blocks: usize,
    budget: u64,
    peak: impl Fn(usize, usize) -> u64,
) -> Result<(usize, usize)> {
    let fits = |again: usize| (0..sizes.len()).find(|index| peak(*index, again) <= budget);
    match (0..=blocks).find_map(|again| Some((fits(again)?, again))) {
        Some(choice) => Ok(choice),
        None => {
            let least = (0..sizes.len()).map(|index| peak(index, blocks)).min().unwrap_or(0);
            Err(Error::Budget { budget, least })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeping_blocks_comes_before_large_micro_batches() {
        // 1 GB, and for each row of a micro-batch 0.8 GB, or 0.1 GB where all ten blocks are run
        // again.
        let sizes = [8, 4, 2, 1];
        let peak = |index: usize, again: usize| {
            (1e9 + sizes[index] as f64 * (8e8 - 7e7 * again as f64)) as u64
        };
        let choose = |budget| choose(&sizes, 10, budget, peak);
        assert_eq!(choose(8_000_000_000).unwrap(), (0, 0));
        assert_eq!(choose(4_500_000_000).unwrap(), (1, 0));
        assert_eq!(choose(1_900_000_000).unwrap(), (3, 0));
        assert_eq!(choose(1_500_000_000).unwrap(), (3, 5));
        // Gradients that are held between micro-batches may cost more than the rows of a larger
        // one.
        let held = |index: usize, again: usize| {
            peak(index, again) + if index > 0 { 4_000_000_000 } else { 0 }
        };
        assert_eq!(super::choose(&sizes, 10, 4_000_000_000, held).unwrap(), (0, 7));
        let error = choose(1_050_000_000).unwrap_err().to_string();
        assert!(error.contains("1.05 GB") && error.contains("1.10 GB"), "{error}");
    }
}
