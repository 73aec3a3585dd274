//! A metric: its name, its unit and the direction in which it improves.

use serde::{Deserialize, Serialize};

/// The name of the validation loss among the metrics.
pub(crate) const LOSS: &str = "loss";

/// A number that is measured at every evaluation.
///
/// ```
/// use tunebook_tune::Metric;
/// let perplexity = Metric::lower_is_better("perplexity");
/// let accuracy = Metric::higher_is_better("accuracy").unit("%");
/// assert!(perplexity.improves(3.0, 4.0) && accuracy.improves(80.0, 75.0));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// Its name, by which [`EvalRecord::metrics`](crate::EvalRecord::metrics) holds its values.
    pub name: String,
    /// The unit of its values, if they have one: `%`.
    #[serde(default)]
    pub unit: Option<String>,
    /// Whether a higher value is a better one.
    pub higher_is_better: bool,
}

impl Metric {
    /// A metric such as an accuracy.
    pub fn higher_is_better(name: impl Into<String>) -> Self {
        Self { name: name.into(), unit: None, higher_is_better: true }
    }

    /// A metric such as a perplexity.
    pub fn lower_is_better(name: impl Into<String>) -> Self {
        Self { name: name.into(), unit: None, higher_is_better: false }
    }

    /// The same with a unit.
    #[must_use]
    pub fn unit(self, unit: impl Into<String>) -> Self {
        Self { unit: Some(unit.into()), ..self }
    }

    /// The validation loss, which every evaluation measures.
    pub fn loss() -> Self {
        Self::lower_is_better(LOSS).unit("nats per token")
    }

    /// Whether `value` is better than `best`. A value that is no number is never better.
    pub fn improves(&self, value: f64, best: f64) -> bool {
        self.improves_by(value, best, 0.0)
    }

    /// Whether `value` is better than `best` by more than `threshold`.
    pub(crate) fn improves_by(&self, value: f64, best: f64, threshold: f64) -> bool {
        if self.higher_is_better { value > best + threshold } else { value < best - threshold }
    }
}
