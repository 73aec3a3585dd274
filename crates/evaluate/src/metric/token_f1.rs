//! Overlap of words, as SQuAD measures it.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use tunebook_tune::Metric;

use super::{Normalise, TextMetric, mean, python, required};
use crate::Result;

/// The mean F1 of the words that answer and reference share, by the official evaluation of SQuAD
/// 2.0: words are counted with repetitions after [`Normalise::squad`], and the best reference
/// counts. If either text has no words, the value is 1 where both have none, else 0.
///
/// ```
/// use tunebook_evaluate::metric::{TextMetric, TokenF1};
///
/// let f1 = TokenF1::default().row_score("the Blue Nile", &["Nile".into(), "Congo".into()])?;
/// assert_eq!(f1, 2.0 / 3.0);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenF1 {
    /// What the comparison ignores. Default: [`Normalise::squad`].
    pub normalise: Normalise,
}

impl Default for TokenF1 {
    fn default() -> Self {
        Self { normalise: Normalise::squad() }
    }
}

impl TokenF1 {
    fn f1(&self, answer: &str, reference: &str) -> f64 {
        let (answer, reference) = (self.normalise.apply(answer), self.normalise.apply(reference));
        let answer: Vec<_> = python::split(&answer).collect();
        let reference: Vec<_> = python::split(&reference).collect();
        if answer.is_empty() || reference.is_empty() {
            return f64::from(u8::from(answer == reference));
        }
        let mut left: HashMap<&str, usize> = HashMap::new();
        for word in &reference {
            *left.entry(word).or_default() += 1;
        }
        let mut shared = 0_usize;
        for word in &answer {
            if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
                *count -= 1;
                shared += 1;
            }
        }
        if shared == 0 {
            return 0.0;
        }
        let precision = shared as f64 / answer.len() as f64;
        let recall = shared as f64 / reference.len() as f64;
        2.0 * precision * recall / (precision + recall)
    }
}

impl TextMetric for TokenF1 {
    fn metric(&self) -> Metric {
        Metric::higher_is_better("token_f1")
    }

    fn settings(&self) -> String {
        format!("{}|version:1", self.normalise.settings())
    }

    fn statistics(&self, answer: &str, references: &[String]) -> Result<Vec<f64>> {
        let references = required(&self.metric(), answer, references)?;
        let best = references.iter().map(|reference| self.f1(answer, reference));
        Ok(vec![best.fold(0.0, f64::max), 1.0])
    }

    fn score(&self, sums: &[f64]) -> f64 {
        mean(sums)
    }
}
