//! Metrics of one's own.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tunebook_tune::Metric;

use super::{TextMetric, mean, required};
use crate::{Error, Result};

/// A metric from a closure that measures an answer against one reference. Made by [`metric_fn`].
#[derive(Debug, Clone)]
pub struct MetricFn<F> {
    metric: Metric,
    version: u32,
    needs_references: bool,
    measure: F,
}

/// A metric from a closure: the mean of its values over rows. Of several references the one with
/// the best value counts.
///
/// Its code is not part of the signature, so change the [version](MetricFn::version) with it. A
/// panic of the closure is an error of the row; the panic's message goes to standard error all the
/// same.
///
/// ```
/// use tunebook_evaluate::metric::{TextMetric, metric_fn};
///
/// let metric = metric_fn("same_first_word", true, |answer: &str, reference: &str| {
///     let first = |text: &str| text.split_whitespace().next().map(str::to_owned);
///     f64::from(u8::from(first(answer) == first(reference)))
/// });
/// assert_eq!(metric.row_score("Yes, I do.", &["Yes, of course.".into()])?, 1.0);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
pub fn metric_fn<F>(name: impl Into<String>, higher_is_better: bool, measure: F) -> MetricFn<F>
where
    F: Fn(&str, &str) -> f64 + Send + Sync,
{
    let metric = Metric { name: name.into(), unit: None, higher_is_better };
    MetricFn { metric, version: 1, needs_references: true, measure }
}

impl<F> MetricFn<F> {
    /// The same with another version in its signature. Default: 1.
    #[must_use]
    pub fn version(self, version: u32) -> Self {
        Self { version, ..self }
    }

    /// The same for rows without references, too, for which the closure gets an empty one: a measure
    /// of the answer alone, such as its length.
    #[must_use]
    pub fn without_references(self) -> Self {
        Self { needs_references: false, ..self }
    }

    /// The same with a unit.
    #[must_use]
    pub fn unit(self, unit: impl Into<String>) -> Self {
        Self { metric: self.metric.unit(unit), ..self }
    }
}

impl<F: Fn(&str, &str) -> f64 + Send + Sync> TextMetric for MetricFn<F> {
    fn metric(&self) -> Metric {
        self.metric.clone()
    }

    fn settings(&self) -> String {
        format!("closure:{}|version:{}", self.metric.name.replace('|', r"\x7c"), self.version)
    }

    fn statistics(&self, answer: &str, references: &[String]) -> Result<Vec<f64>> {
        let mut best: Option<f64> = None;
        let none = [String::new()];
        let references = match references.is_empty() && !self.needs_references {
            true => &none,
            false => required(&self.metric, answer, references)?,
        };
        for reference in references {
            // The closure is only ever called again with other texts: what a panic left half done
            // in its own captures is its author's to see.
            let value = catch_unwind(AssertUnwindSafe(|| (self.measure)(answer, reference)))
                .map_err(|panic| Error::Panicked {
                    metric: self.metric.name.clone(),
                    message: message(panic.as_ref()),
                    answer: answer.to_owned(),
                })?;
            if !value.is_finite() {
                return Err(Error::NotFinite {
                    metric: self.metric.name.clone(),
                    value,
                    answer: answer.to_owned(),
                });
            }
            best = Some(best.map_or(value, |best| {
                if self.metric.higher_is_better { best.max(value) } else { best.min(value) }
            }));
        }
        Ok(vec![best.unwrap_or_default(), 1.0])
    }

    fn score(&self, sums: &[f64]) -> f64 {
        mean(sums)
    }

    fn needs_references(&self) -> bool {
        self.needs_references
    }
}

/// The message of a panic.
fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
