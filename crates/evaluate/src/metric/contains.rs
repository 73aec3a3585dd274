//! Answers that contain a reference.

use serde::{Deserialize, Serialize};
use tunebook_tune::Metric;

use super::{Normalise, TextMetric, hit, mean, required};
use crate::{Error, Result};

/// The share of answers that contain one of their references, after [`Normalise`] of both.
///
/// ```
/// use tunebook_evaluate::metric::{Contains, TextMetric};
///
/// let references = ["42".to_owned()];
/// assert_eq!(Contains::default().row_score("The answer is 42.", &references)?, 1.0);
/// assert_eq!(Contains::default().row_score("The answer is 4.", &references)?, 0.0);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Contains {
    /// What the comparison ignores. Default: white space at both ends.
    pub normalise: Normalise,
}

impl TextMetric for Contains {
    fn metric(&self) -> Metric {
        Metric::higher_is_better("contains")
    }

    fn settings(&self) -> String {
        format!("{}|version:1", self.normalise.settings())
    }

    /// # Errors
    ///
    /// If there is no reference, or one is empty after normalisation: every answer contains it.
    fn statistics(&self, answer: &str, references: &[String]) -> Result<Vec<f64>> {
        let metric = self.metric();
        let mut found = false;
        let normalised = self.normalise.apply(answer);
        for reference in required(&metric, answer, references)? {
            let part = self.normalise.apply(reference);
            if part.is_empty() {
                return Err(Error::Reference {
                    metric: metric.name,
                    reference: reference.clone(),
                    problem: "is empty after normalisation",
                });
            }
            found |= normalised.contains(&part);
        }
        Ok(hit(found))
    }

    fn score(&self, sums: &[f64]) -> f64 {
        mean(sums)
    }

    fn is_rate(&self) -> bool {
        true
    }
}
