//! The bootstrap: how a score would vary if other rows of the same kind had been drawn.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Interval, check_level, check_pairs, distribution};
use crate::metric::sums;
use crate::{Error, Result};

/// Bootstrap intervals (Efron 1979) of scores that are functions of sums over rows.
///
/// Rows are drawn with replacement, as many as there are, and scored; the interval is between
/// percentiles of many such scores. Plain percentiles are too narrow for few rows, for which the
/// interval is [expanded](Self::expanded): the mean of 20 normal values is held by 94 % of the
/// intervals, not by 92 %. Of 20 skewed (exponential) values it is 92 %, not 90 %.
///
/// The same seed gives the same interval, bit for bit, on any number of threads. Rows are whatever
/// was drawn independently: give the sums of clusters ([`cluster_sums`](super::cluster_sums)) where
/// rows belong together.
///
/// A score that is the same for each row, such as an accuracy of 100 %, has an interval of no width
/// here; [`wilson`](super::wilson) knows better about rates.
///
/// ```
/// use tunebook_evaluate::metric::{ExactMatch, TextMetric};
/// use tunebook_evaluate::statistics::Bootstrap;
///
/// // 30 of 40 right.
/// let rows: Vec<_> = (0..40).map(|row| vec![f64::from(u8::from(row % 4 != 0)), 1.0]).collect();
/// let metric = ExactMatch::default();
/// let interval = Bootstrap::default().interval(&rows, |sums| metric.score(sums))?;
/// assert!((0.58..0.64).contains(&interval.low) && (0.86..0.90).contains(&interval.high));
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bootstrap {
    /// The number of resamples. Default: 10,000.
    pub resamples: usize,
    /// The level of the interval. Default: 0.95.
    pub level: f64,
    /// The seed of the resamples. Default: 0.
    pub seed: u64,
    /// Take percentiles further out, for the level that Student's t and the variance of few rows
    /// ask for (Hesterberg 2015, <https://doi.org/10.1080/00031305.2015.1089789>, section 4.6.2).
    /// Default: yes. Without it, the interval is scipy's `bootstrap(method="percentile")`.
    pub expanded: bool,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { resamples: 10_000, level: 0.95, seed: 0, expanded: true }
    }
}

/// The paired bootstrap of two models on the same rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PairedBootstrap {
    /// The score of the first model.
    pub first: f64,
    /// The score of the second model.
    pub second: f64,
    /// The second score less the first.
    pub difference: f64,
    /// The interval of the difference.
    pub interval: Interval,
    /// The standard deviation of the difference over resamples, in the unit of the score.
    pub standard_error: f64,
    /// The two-sided p-value: 1 less the level of the interval that just touches 0.
    pub p_value: f64,
    /// The number of rows, or of clusters where rows form clusters.
    pub units: u64,
}

impl Bootstrap {
    /// The interval of the score of rows' statistics.
    ///
    /// # Errors
    ///
    /// If there are fewer than two rows, rows of different lengths, a setting out of range, or a
    /// score that is not finite.
    pub fn interval(
        &self,
        rows: &[Vec<f64>],
        score: impl Fn(&[f64]) -> f64 + Sync,
    ) -> Result<Interval> {
        self.check(rows)?;
        let scores = self.resample(rows.len(), |drawn| score(&drawn_sums(rows, drawn)))?;
        Ok(self.percentiles(&scores, rows.len()))
    }

    /// The difference of two models' scores on the same rows: each resample takes the same rows of
    /// both, so that what makes a row hard for both cancels.
    ///
    /// # Errors
    ///
    /// As [`interval`](Self::interval), and if the models have different numbers of rows.
    pub fn paired(
        &self,
        first: &[Vec<f64>],
        second: &[Vec<f64>],
        score: impl Fn(&[f64]) -> f64 + Sync,
    ) -> Result<PairedBootstrap> {
        self.check(first)?;
        self.check(second)?;
        check_pairs(first.len(), second.len())?;
        let differences = self.resample(first.len(), |drawn| {
            score(&drawn_sums(second, drawn)) - score(&drawn_sums(first, drawn))
        })?;
        let (first_score, second_score) = (score(&sums(first)), score(&sums(second)));
        Ok(PairedBootstrap {
            first: first_score,
            second: second_score,
            difference: second_score - first_score,
            interval: self.percentiles(&differences, first.len()),
            standard_error: deviation(&differences),
            p_value: self.p_value(&differences, first.len()),
            units: first.len() as u64,
        })
    }

    fn check(&self, rows: &[Vec<f64>]) -> Result<()> {
        check_level("Bootstrap.level", self.level)?;
        if self.resamples == 0 {
            return Err(Error::Setting {
                field: "Bootstrap.resamples",
                value: "0".to_owned(),
                expected: "at least 1; 1,000 for a glance, 10,000 for two digits",
            });
        }
        if rows.len() < 2 {
            return Err(Error::TooFewRows {
                what: "a bootstrap interval",
                needed: 2,
                found: rows.len(),
            });
        }
        match rows.iter().position(|row| row.len() != rows[0].len()) {
            None => Ok(()),
            Some(row) => Err(Error::Value {
                what: "the number of statistics",
                row,
                value: rows[row].len().to_string(),
                expected: "as many as row 0 has",
            }),
        }
    }

    /// The values of all resamples, sorted.
    fn resample(&self, units: usize, value: impl Fn(&[usize]) -> f64 + Sync) -> Result<Vec<f64>> {
        let mut values: Vec<f64> = (0..self.resamples as u64)
            .into_par_iter()
            .map_init(
                || vec![0; units],
                |drawn, resample| {
                    // A stream of its own for each resample: its rows do not depend on threads.
                    let mut random = ChaCha8Rng::seed_from_u64(self.seed);
                    random.set_stream(resample);
                    drawn.fill_with(|| below(units, &mut random));
                    value(drawn)
                },
            )
            .collect();
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(Error::Setting {
                field: "score",
                value: format!("{value} for a resample"),
                expected: "a finite number",
            });
        }
        values.sort_by(f64::total_cmp);
        Ok(values)
    }

    /// How much further out than a normal distribution's a quantile of so many units lies.
    fn inflation(units: usize) -> f64 {
        (units as f64 / (units as f64 - 1.0)).sqrt()
    }

    fn percentiles(&self, sorted: &[f64], units: usize) -> Interval {
        let mut tail = (1.0 - self.level) / 2.0;
        if self.expanded {
            let t = distribution::student_quantile(tail, units as f64 - 1.0);
            tail = distribution::normal_cdf(t * Self::inflation(units));
        }
        Interval {
            low: quantile(sorted, tail),
            high: quantile(sorted, 1.0 - tail),
            level: self.level,
        }
    }

    fn p_value(&self, sorted: &[f64], units: usize) -> f64 {
        let at_most = sorted.partition_point(|&value| value <= 0.0);
        let at_least = sorted.len() - sorted.partition_point(|&value| value < 0.0);
        let tail = (at_most.min(at_least) as f64 + 1.0) / (sorted.len() as f64 + 1.0);
        if tail >= 0.5 {
            return 1.0;
        }
        if !self.expanded {
            return 2.0 * tail;
        }
        let t = distribution::normal_quantile(tail) / Self::inflation(units);
        2.0 * distribution::student_cdf(t, units as f64 - 1.0)
    }
}

/// A number from 0 to below `end`, each as likely as the others to one part in 2⁶⁴ / `end`.
fn below(end: usize, random: &mut ChaCha8Rng) -> usize {
    ((u128::from(random.next_u64()) * end as u128) >> 64) as usize
}

fn drawn_sums(rows: &[Vec<f64>], drawn: &[usize]) -> Vec<f64> {
    let mut sums = vec![0.0; rows[0].len()];
    for &row in drawn {
        for (sum, value) in sums.iter_mut().zip(&rows[row]) {
            *sum += value;
        }
    }
    sums
}

/// The quantile of sorted values, between neighbours in proportion, as numpy's default.
fn quantile(sorted: &[f64], probability: f64) -> f64 {
    let place = probability.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// The standard deviation of values.
fn deviation(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (n - 1.0).max(1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `numpy.percentile([1, 2, 4, 8], [0, 2.5, 50, 90, 100])`.
    #[test]
    fn quantiles_equal_numpys() {
        let found = [0.0, 0.025, 0.5, 0.9, 1.0].map(|of| quantile(&[1.0, 2.0, 4.0, 8.0], of));
        for (found, expected) in found.iter().zip([1.0, 1.075, 3.0, 6.8, 8.0]) {
            assert!((found - expected).abs() < 1e-12, "{found}, expected {expected}");
        }
    }
}
