//! How much arithmetic a batch is, so that the time of one tells that of another.
//!
//! Counted in multiply-adds: of the blocks' projections for each position, of attention for each
//! pair of positions that see one another, of the output head where there is a label. What is
//! trained costs one product more, a block that is run again its forward pass once more. How long
//! one of them takes is measured (see [`crate::cost::preflight`]); only the proportions matter here.

use tunebook_models::{Model, Projection};

use crate::batch::TokenizedSet;
use crate::batch::packing::Rows;
use crate::train::parameter::{Parameters, Part};

/// What a batch gives the model to do.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Load {
    /// Positions that go through the blocks, padding included.
    pub(crate) positions: usize,
    /// Pairs of positions of which one sees the other.
    pairs: f64,
    /// Positions that bear a loss.
    labels: usize,
}

/// The loads of a set's rows, from which those of batches follow.
#[derive(Debug)]
pub(crate) struct Loads {
    rows: Vec<Load>,
    joined: bool,
}

impl Loads {
    /// `joined`: rows of a batch go through the model end to end, without padding.
    pub(crate) fn new(set: &TokenizedSet, rows: &Rows, joined: bool) -> Self {
        let load = |row: usize| {
            let mut load = Load::default();
            for example in rows.get(row).iter().map(|index| &set.examples[*index]) {
                let length = example.ids.len();
                load.positions += length;
                load.pairs += (length * (length + 1)) as f64 / 2.0;
                load.labels += example.label_tokens();
            }
            load
        };
        Self { rows: (0..rows.len()).map(load).collect(), joined }
    }

    /// The most labels that so many rows together can have.
    pub(crate) fn most_labels(&self, rows: usize) -> usize {
        let mut labels: Vec<usize> = self.rows.iter().map(|row| row.labels).collect();
        labels.sort_unstable_by(|a, b| b.cmp(a));
        labels.iter().take(rows).sum()
    }

    /// That of these rows together.
    pub(crate) fn of(&self, rows: &[usize]) -> Load {
        let mut sum = Load::default();
        let mut longest = 0;
        for row in rows.iter().map(|row| &self.rows[*row]) {
            sum.positions += row.positions;
            sum.pairs += row.pairs;
            sum.labels += row.labels;
            longest = longest.max(row.positions);
        }
        if !self.joined {
            sum.positions = longest * rows.len();
        }
        sum
    }
}

/// What a load costs of one model, trained in one way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    /// Multiply-adds of all blocks' projections for one position.
    position: f64,
    /// Of attention's two products for one pair.
    pair: f64,
    /// Of the head for one label.
    label: f64,
    /// Trained numbers in the blocks and in the head.
    trained: f64,
    trained_head: f64,
    /// The part of the blocks that the backward pass goes through.
    backward: f64,
}

impl Work {
    pub(crate) fn new(model: &Model, parameters: &Parameters) -> Self {
        let config = model.config();
        let blocks = model.num_blocks();
        let numbers = |slot: &std::sync::Arc<tunebook_models::Slot>| {
            let base = slot.base();
            (base.in_features() * base.out_features()) as f64
        };
        let counted = |here: fn(Part) -> bool| {
            parameters
                .iter()
                .filter(|p| here(p.part))
                .map(|p| p.var.elem_count() as f64)
                .sum::<f64>()
        };
        let below = parameters.first_block().unwrap_or(blocks);
        Self {
            position: model.slots().iter().map(numbers).sum(),
            pair: (2 * blocks * config.num_attention_heads * config.head_dim) as f64,
            label: (config.hidden_size * config.vocab_size) as f64,
            trained: counted(|part| matches!(part, Part::Block(_) | Part::Blocks)),
            trained_head: counted(|part| matches!(part, Part::Head | Part::Embedding)),
            backward: (blocks - below) as f64 / blocks.max(1) as f64,
        }
    }

    /// A pass without gradients.
    pub(crate) fn forward(&self, load: &Load) -> f64 {
        self.blocks(load) + load.labels as f64 * self.label
    }

    /// A forward and a backward pass, with this part of the blocks run again.
    pub(crate) fn both(&self, load: &Load, again: f64) -> f64 {
        let positions = load.positions as f64;
        // The backward pass of attention has five products where the forward pass has two.
        let backward = self.backward * (positions * self.position + 2.5 * load.pairs * self.pair);
        // Products with trained numbers: forward, for the input and for themselves. The base's own
        // are counted above, so only the last is left.
        let trained = positions * self.trained;
        let head = load.labels as f64 * (2.0 * self.label + self.trained_head);
        self.blocks(load) * (1.0 + again) + backward + trained + head
    }

    fn blocks(&self, load: &Load) -> f64 {
        load.positions as f64 * self.position + load.pairs * self.pair
    }
}

/// Seconds as a straight line over work, through what was measured: `(fixed, for each unit)`.
/// Errors count by their relation to the time.
pub(crate) fn line(measured: &[(f64, f64)]) -> (f64, f64) {
    // Least squares of (fixed + slope·work) / secs − 1.
    let (mut ff, mut fs, mut ss, mut f, mut s) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (work, secs) in measured.iter().filter(|(work, secs)| *work > 0.0 && *secs > 0.0) {
        let (a, b) = (1.0 / secs, work / secs);
        (ff, fs, ss, f, s) = (ff + a * a, fs + a * b, ss + b * b, f + a, s + b);
    }
    if ss == 0.0 {
        return (0.0, 0.0);
    }
    let determinant = ff * ss - fs * fs;
    let slope_alone = (0.0, s / ss);
    if determinant <= 1e-6 * ff * ss {
        return slope_alone; // batches of one size
    }
    let (fixed, slope) = ((f * ss - s * fs) / determinant, (s * ff - f * fs) / determinant);
    // Neither can be negative: what looks so is noise.
    if fixed < 0.0 || slope < 0.0 { slope_alone } else { (fixed, slope) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::TokenizedExample;

    #[test]
    fn a_line_is_found_and_never_bends_below_zero() {
        let points = [(1.0, 3.0), (2.0, 5.0), (4.0, 9.0)];
        let (fixed, slope) = line(&points);
        assert!((fixed - 1.0).abs() < 1e-9 && (slope - 2.0).abs() < 1e-9, "{fixed} {slope}");
        let (fixed, slope) = line(&[(1.0, 1.0), (2.0, 2.4)]);
        assert!(fixed == 0.0 && slope > 1.0 && slope < 1.2, "{fixed} {slope}");
        assert_eq!(line(&[(3.0, 6.0), (3.0, 6.0)]), (0.0, 2.0));
        assert_eq!(line(&[]), (0.0, 0.0));
    }

    #[test]
    fn rows_end_to_end_have_no_padding_and_padded_ones_do() {
        let example = |row: usize, length: usize| {
            let labels =
                (0..length).map(|at| if at < 2 { tunebook_ops::IGNORE } else { 1 }).collect();
            TokenizedExample { row, ids: vec![1; length], labels }
        };
        let examples = vec![example(0, 4), example(1, 10)];
        let set = TokenizedSet { examples, ..Default::default() };
        let rows = Rows::single(&set);
        let load = |joined| Loads::new(&set, &rows, joined).of(&[0, 1]);
        assert_eq!(load(true), Load { positions: 14, pairs: 10.0 + 55.0, labels: 2 + 8 });
        assert_eq!(load(false), Load { positions: 20, ..load(true) });
    }
}
