//! Exact match.

use serde::{Deserialize, Serialize};
use tunebook_tune::Metric;

use super::{Normalise, TextMetric, hit, mean, required};
use crate::Result;

/// The share of answers that equal one of their references, after [`Normalise`].
///
/// ```
/// use tunebook_evaluate::metric::{ExactMatch, TextMetric};
///
/// let references = ["the Nile".to_owned()];
/// assert_eq!(ExactMatch::default().row_score(" the Nile\n", &references)?, 1.0);
/// assert_eq!(ExactMatch::default().row_score("Nile.", &references)?, 0.0);
/// assert_eq!(ExactMatch::normalised().row_score("Nile.", &references)?, 1.0);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExactMatch {
    /// What the comparison ignores. Default: white space at both ends.
    pub normalise: Normalise,
}

impl ExactMatch {
    /// Equality after SQuAD's normalisation: case, punctuation, articles and spacing are ignored.
    #[must_use]
    pub fn normalised() -> Self {
        Self { normalise: Normalise::squad() }
    }

    /// Whether the answer equals one of the references.
    pub(super) fn equals(&self, answer: &str, references: &[String]) -> bool {
        let answer = self.normalise.apply(answer);
        references.iter().any(|reference| self.normalise.apply(reference) == answer)
    }
}

impl TextMetric for ExactMatch {
    fn metric(&self) -> Metric {
        Metric::higher_is_better(match *self == Self::normalised() {
            true => "exact_match_normalised",
            false => "exact_match",
        })
    }

    fn settings(&self) -> String {
        format!("{}|version:1", self.normalise.settings())
    }

    fn statistics(&self, answer: &str, references: &[String]) -> Result<Vec<f64>> {
        let references = required(&self.metric(), answer, references)?;
        Ok(hit(self.equals(answer, references)))
    }

    fn score(&self, sums: &[f64]) -> f64 {
        mean(sums)
    }

    fn is_rate(&self) -> bool {
        true
    }
}
