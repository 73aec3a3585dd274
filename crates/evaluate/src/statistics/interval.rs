//! Intervals.

use serde::{Deserialize, Deserializer, Serialize};

use super::{check_level, distribution};
use crate::{Error, Result};

/// An interval for a quantity, in its unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The lower end.
    #[serde(deserialize_with = "number_or_nan")]
    pub low: f64,
    /// The upper end.
    #[serde(deserialize_with = "number_or_nan")]
    pub high: f64,
    /// How often such an interval holds the true value: 0.95.
    pub level: f64,
}

/// A number that is none is null in JSON.
pub(crate) fn number_or_nan<'de, D: Deserializer<'de>>(
    from: D,
) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

impl Interval {
    /// Whether the value lies in it, ends included.
    #[must_use]
    pub fn contains(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }
}

/// The Wilson score interval for a rate of hits among rows, from 0 to 1 (Wilson 1927).
///
/// ```text
/// (p + z²/2n ± z · √(p(1 - p)/n + z²/4n²)) / (1 + z²/n)
/// ```
///
/// It holds for few rows and for rates near 0 and 1, too: with all of 20 rows right the rate is
/// from 84 % to 100 %.
///
/// ```
/// use tunebook_evaluate::statistics::wilson;
///
/// let interval = wilson(20, 20, 0.95)?;
/// assert!((interval.low - 0.8389).abs() < 1e-4 && interval.high == 1.0);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
///
/// # Errors
///
/// If there are no rows, more hits than rows, or the level is not between 0 and 1.
pub fn wilson(hits: u64, rows: u64, level: f64) -> Result<Interval> {
    check_level("level", level)?;
    if rows == 0 {
        return Err(Error::TooFewRows { what: "a rate", needed: 1, found: 0 });
    }
    if hits > rows {
        return Err(Error::Setting {
            field: "hits",
            value: hits.to_string(),
            expected: "at most the number of rows",
        });
    }
    let interval = wilson_of_share(hits as f64 / rows as f64, rows as f64, level);
    let low = if hits == 0 { 0.0 } else { interval.low };
    let high = if hits == rows { 1.0 } else { interval.high };
    Ok(Interval { low, high, level })
}

/// The Wilson interval for a rate of hits among rows that form clusters, each `[hits, rows]`, from 0
/// to 1.
///
/// As many rows count as would tell as much if they were independent: `p(1 - p)` over the variance of
/// the rate between clusters, the rows at most and, where all clusters agree, the clusters.
///
/// ```
/// use tunebook_evaluate::statistics::{clustered_rate, wilson};
///
/// // Ten customers with four rows each, of whom each is right in all or in none.
/// let clusters: Vec<Vec<f64>> = (0..10).map(|at| vec![if at < 7 { 4.0 } else { 0.0 }, 4.0]).collect();
/// let (clustered, single) = (clustered_rate(&clusters, 0.95)?, wilson(28, 40, 0.95)?);
/// assert!(clustered.low < single.low - 0.1 && clustered.high > single.high);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
///
/// # Errors
///
/// If there are no rows, a cluster has more hits than rows, or the level is not between 0 and 1.
pub fn clustered_rate(clusters: &[Vec<f64>], level: f64) -> Result<Interval> {
    check_level("level", level)?;
    let hits: f64 = clusters.iter().map(|cluster| cluster[0]).sum();
    let rows: f64 = clusters.iter().map(|cluster| cluster[1]).sum();
    if rows <= 0.0 {
        return Err(Error::TooFewRows { what: "a rate", needed: 1, found: 0 });
    }
    if let Some(cluster) = clusters.iter().find(|cluster| cluster[0] > cluster[1]) {
        return Err(Error::Setting {
            field: "hits",
            value: cluster[0].to_string(),
            expected: "at most the number of rows",
        });
    }
    let (count, rate) = (clusters.len() as f64, hits / rows);
    let apart = |cluster: &Vec<f64>| (cluster[0] - rate * cluster[1]).powi(2);
    let variance =
        clusters.iter().map(apart).sum::<f64>() * count / (count - 1.0).max(1.0) / (rows * rows);
    let effective = match variance > 0.0 {
        true => (rate * (1.0 - rate) / variance).clamp(1.0, rows),
        false => count,
    };
    let interval = wilson_of_share(rate, effective, level);
    let low = if hits == 0.0 { 0.0 } else { interval.low };
    let high = if hits == rows { 1.0 } else { interval.high };
    Ok(Interval { low, high, level })
}

fn wilson_of_share(p: f64, n: f64, level: f64) -> Interval {
    let z = distribution::normal_quantile(0.5 + level / 2.0);
    let middle = p + z * z / (2.0 * n);
    let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let whole = 1.0 + z * z / n;
    Interval { low: (middle - half) / whole, high: (middle + half) / whole, level }
}
