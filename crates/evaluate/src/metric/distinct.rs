//! Variety of words.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use tunebook_tune::Metric;

use super::{TextMetric, mean, python};
use crate::Result;

/// The share of n-grams of words that are different within their answer: distinct-n of Li et al.
/// (2016, <https://aclanthology.org/N16-1014>), counted answer by answer.
///
/// Low values show answers that repeat themselves. The n-grams of each answer are counted apart and
/// the counts are added: that several answers say the same does not lower the value, unlike the
/// paper's, which counts over all answers and falls with their number. Words are separated by white
/// space. Needs no references; answers shorter than `n` words add nothing, and the score of nothing
/// is 0.
///
/// ```
/// use tunebook_evaluate::metric::{DistinctN, TextMetric};
///
/// let metric = DistinctN { n: 2 };
/// assert_eq!(metric.row_score("yes yes yes yes yes", &[])?, 0.25);
/// assert_eq!(metric.row_score("yes, it does work", &[])?, 1.0);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistinctN {
    /// The number of words in an n-gram. 0 counts as 1. Default: 2.
    pub n: usize,
}

impl Default for DistinctN {
    fn default() -> Self {
        Self { n: 2 }
    }
}

impl DistinctN {
    fn order(&self) -> usize {
        self.n.max(1)
    }
}

impl TextMetric for DistinctN {
    fn metric(&self) -> Metric {
        Metric::higher_is_better(format!("distinct_{}", self.order()))
    }

    fn settings(&self) -> String {
        format!("n:{}|tok:space|count:answer|version:1", self.order())
    }

    fn statistics(&self, answer: &str, _references: &[String]) -> Result<Vec<f64>> {
        let words: Vec<_> = python::split(answer).collect();
        let ngrams = words.windows(self.order());
        let total = ngrams.len();
        let distinct = ngrams.collect::<HashSet<_>>().len();
        Ok(vec![distinct as f64, total as f64])
    }

    fn score(&self, sums: &[f64]) -> f64 {
        mean(sums)
    }

    fn needs_references(&self) -> bool {
        false
    }
}
