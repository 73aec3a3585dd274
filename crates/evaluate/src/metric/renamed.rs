//! Metrics under another name.

use tunebook_tune::Metric;

use super::TextMetric;
use crate::Result;

/// A metric under another name, so that two settings of one metric can stand side by side. Made by
/// [`TextMetric::named`].
#[derive(Debug, Clone)]
pub struct Renamed<M> {
    name: String,
    metric: M,
}

impl<M: TextMetric> Renamed<M> {
    pub(super) fn new(name: String, metric: M) -> Self {
        Self { name, metric }
    }
}

impl<M: TextMetric> TextMetric for Renamed<M> {
    fn metric(&self) -> Metric {
        Metric { name: self.name.clone(), ..self.metric.metric() }
    }

    fn settings(&self) -> String {
        self.metric.settings()
    }

    fn statistics(&self, answer: &str, references: &[String]) -> Result<Vec<f64>> {
        self.metric.statistics(answer, references)
    }

    fn score(&self, sums: &[f64]) -> f64 {
        self.metric.score(sums)
    }

    fn is_rate(&self) -> bool {
        self.metric.is_rate()
    }

    fn needs_references(&self) -> bool {
        self.metric.needs_references()
    }
}
