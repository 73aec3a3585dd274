//! Edit distance.

use serde::{Deserialize, Serialize};
use tunebook_tune::Metric;

use super::{Normalise, TextMetric, mean, required};
use crate::Result;

/// The mean of the normalised Levenshtein distance: the fewest insertions, deletions and
/// substitutions of characters that make the answer the reference, divided by the length of the
/// longer text in characters. 0 is equality, 1 is nothing in common; the closest reference counts.
///
/// Time grows with the product of the lengths.
///
/// ```
/// use tunebook_evaluate::metric::{EditDistance, TextMetric};
///
/// assert_eq!(EditDistance::default().row_score("kitten", &["sitting".into()])?, 3.0 / 7.0);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EditDistance {
    /// What the comparison ignores. Default: white space at both ends.
    pub normalise: Normalise,
}

impl TextMetric for EditDistance {
    fn metric(&self) -> Metric {
        Metric::lower_is_better("edit_distance")
    }

    fn settings(&self) -> String {
        format!("distance:levenshtein|{}|version:1", self.normalise.settings())
    }

    fn statistics(&self, answer: &str, references: &[String]) -> Result<Vec<f64>> {
        let text = self.normalise.apply(answer);
        let references = required(&self.metric(), answer, references)?;
        let closest = references.iter().map(|reference| {
            let reference = self.normalise.apply(reference);
            let longer = text.chars().count().max(reference.chars().count());
            if longer == 0 {
                return 0.0;
            }
            strsim::levenshtein(&text, &reference) as f64 / longer as f64
        });
        Ok(vec![closest.fold(1.0, f64::min), 1.0])
    }

    fn score(&self, sums: &[f64]) -> f64 {
        mean(sums)
    }
}
