//! Lengths of texts: exact percentiles from counts, so that any number of rows needs little memory.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Lengths of texts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LengthSummary {
    /// The shortest.
    pub min: u32,
    /// Half are no longer than this.
    pub median: u32,
    /// The mean.
    pub mean: f64,
    /// 95 % are no longer than this.
    pub p95: u32,
    /// 99 % are no longer than this.
    pub p99: u32,
    /// The longest.
    pub max: u32,
    /// Each length with the number of texts that have it, the shortest first.
    pub counts: Vec<(u32, u64)>,
}

impl LengthSummary {
    /// The summary of these lengths; all zero when there are none.
    pub fn of(lengths: Vec<u32>) -> Self {
        let mut counts = BTreeMap::new();
        lengths.into_iter().for_each(|length| *counts.entry(length).or_insert(0u64) += 1);
        Self::of_counts(counts)
    }

    pub(crate) fn of_counts(counts: BTreeMap<u32, u64>) -> Self {
        let rows: u64 = counts.values().sum();
        let total: u64 = counts.iter().map(|(&length, count)| u64::from(length) * count).sum();
        let counts: Vec<(u32, u64)> = counts.into_iter().collect();
        // Nearest rank: the smallest length that this share of the rows does not exceed.
        let at = |share: f64| {
            let rank = (share * rows as f64).ceil() as u64;
            let mut seen = 0;
            counts.iter().find(|(_, count)| {
                seen += count;
                seen >= rank.max(1)
            })
        };
        let length = |found: Option<&(u32, u64)>| found.map_or(0, |(length, _)| *length);
        Self {
            min: length(counts.first()),
            median: length(at(0.5)),
            mean: if rows == 0 { 0.0 } else { total as f64 / rows as f64 },
            p95: length(at(0.95)),
            p99: length(at(0.99)),
            max: length(counts.last()),
            counts,
        }
    }

    /// The number of texts.
    pub fn rows(&self) -> u64 {
        self.counts.iter().map(|(_, count)| count).sum()
    }

    /// The number of texts longer than `limit`.
    pub fn over(&self, limit: usize) -> u64 {
        self.counts
            .iter()
            .filter(|(length, _)| *length as usize > limit)
            .map(|(_, count)| count)
            .sum()
    }

    /// At most about `most` lengths that are spread as all are, for a histogram. The shortest and
    /// the longest are among them.
    pub fn spread(&self, most: usize) -> Vec<u32> {
        let rows = self.rows();
        let step = (rows / most.max(1) as u64).max(1);
        let mut lengths = Vec::new();
        let (mut seen, mut next) = (0u64, 0u64);
        for &(length, count) in &self.counts {
            seen += count;
            while next < seen {
                lengths.push(length);
                next += step;
            }
        }
        if let (Some(&last), true) = (lengths.last(), rows > 0)
            && last != self.max
        {
            lengths.push(self.max);
        }
        lengths
    }
}
