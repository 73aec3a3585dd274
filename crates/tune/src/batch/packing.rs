//! Which examples go through the model together: packing into rows, and the order of the rows in an
//! epoch.

use crate::batch::TokenizedSet;
use crate::train::rng::Stream;

/// Batches of so many batches are sorted by length at a time (`LengthGroupedSampler` of
/// `transformers`).
const MEGABATCH: usize = 50;

/// The rows of a training set: each the indices of the examples packed into it, one without
/// packing.
#[derive(Debug, Clone)]
pub(crate) struct Rows {
    rows: Vec<Vec<usize>>,
    /// Tokens of each.
    lengths: Vec<usize>,
}

impl Rows {
    /// One row for each example.
    pub(crate) fn single(set: &TokenizedSet) -> Self {
        Self {
            rows: (0..set.examples.len()).map(|index| vec![index]).collect(),
            lengths: set.examples.iter().map(|example| example.ids.len()).collect(),
        }
    }

    /// As few rows of at most `length` tokens as best-fit decreasing finds: the longest example
    /// first, each into the fullest row that still has room ([Ding et al.
    /// 2024](https://arxiv.org/abs/2404.10830)). No example is cut.
    pub(crate) fn packed(set: &TokenizedSet, length: usize) -> Self {
        // For each number of free tokens the rows that have it.
        let mut open: std::collections::BTreeMap<usize, Vec<usize>> =
            std::collections::BTreeMap::new();
        let mut packed = Self { rows: Vec::new(), lengths: Vec::new() };
        for index in set.by_length() {
            let tokens = set.examples[index].ids.len();
            let fullest = open.range(tokens..).next().map(|(free, _)| *free);
            let row = match fullest.and_then(|free| Some((free, open.get_mut(&free)?))) {
                Some((free, rows)) => {
                    let row = rows.pop().unwrap_or_default(); // an entry without rows is removed below
                    if rows.is_empty() {
                        open.remove(&free);
                    }
                    row
                }
                None => {
                    packed.rows.push(Vec::new());
                    packed.lengths.push(0);
                    packed.rows.len() - 1
                }
            };
            packed.rows[row].push(index);
            packed.lengths[row] += tokens;
            open.entry(length.saturating_sub(packed.lengths[row])).or_default().push(row);
        }
        packed
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The examples of a row.
    pub(crate) fn get(&self, row: usize) -> &[usize] {
        &self.rows[row]
    }

    /// Tokens of a row.
    pub(crate) fn length(&self, row: usize) -> usize {
        self.lengths[row]
    }

    /// The order of the rows in `epoch`, counted from 0: a permutation fixed by the seed. With
    /// `group` rows of similar length are beside one another, a batch `batch_size` of them:
    /// stretches of the permutation are sorted, and the longest row of all comes first, so that a
    /// run that does not fit fails at once.
    pub(crate) fn order(&self, seed: u64, epoch: usize, group: Option<usize>) -> Vec<usize> {
        let mut order = Stream::new(seed, "shuffle", epoch as u64).permutation(self.len());
        if let Some(batch_size) = group {
            for stretch in order.chunks_mut(MEGABATCH.saturating_mul(batch_size)) {
                stretch.sort_by_key(|row| std::cmp::Reverse(self.lengths[*row]));
            }
            let longest = (0..order.len())
                .max_by_key(|at| (self.lengths[order[*at]], std::cmp::Reverse(*at)));
            if let Some(at) = longest {
                order.swap(0, at);
            }
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::TokenizedExample;

    fn set(lengths: &[usize]) -> TokenizedSet {
        let example = |(row, length): (usize, &usize)| TokenizedExample {
            row,
            ids: vec![1; *length],
            labels: vec![1; *length],
        };
        TokenizedSet {
            examples: lengths.iter().enumerate().map(example).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn packing_loses_nothing_and_fills_rows() {
        let lengths: Vec<usize> = (0..200).map(|i| 3 + i * 37 % 50).collect();
        let set = set(&lengths);
        let rows = Rows::packed(&set, 64);
        let mut seen: Vec<usize> = (0..rows.len()).flat_map(|row| rows.get(row).to_vec()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..200).collect::<Vec<_>>());
        for row in 0..rows.len() {
            let tokens: usize = rows.get(row).iter().map(|index| lengths[*index]).sum();
            assert!(tokens == rows.length(row) && tokens <= 64, "{tokens}");
        }
        let least = lengths.iter().sum::<usize>().div_ceil(64);
        assert!(
            rows.len() <= least + least / 20 + 1,
            "{} rows, at least {least} are needed",
            rows.len()
        );
    }

    #[test]
    fn grouping_saves_padding_and_keeps_every_row_once() {
        let lengths: Vec<usize> = (0..400).map(|i| 2 + i * 61 % 97).collect();
        let rows = Rows::single(&set(&lengths));
        let padded = |order: &[usize]| -> usize {
            order
                .chunks(4)
                .map(|rows| rows.iter().map(|row| lengths[*row]).max().unwrap_or(0) * rows.len())
                .sum()
        };
        let (random, grouped) = (rows.order(1, 0, None), rows.order(1, 0, Some(4)));
        let mut sorted = grouped.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..400).collect::<Vec<_>>());
        assert!((padded(&grouped) as f64) < 0.75 * padded(&random) as f64);
        assert_eq!(lengths[grouped[0]], 98, "the longest first");
        assert_ne!(grouped, rows.order(1, 1, Some(4)));
    }
}
