//! Intervals.

use serde::{Deserialize, Serialize};

use super::{check_level, distribution};
use crate::{Error, Result};

/// An interval for a quantity, in its unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// How often such an interval holds the true value: 0.95.
    pub level: f64,
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
    let n = rows as f64;
    let p = hits as f64 / n;
    let z = distribution::normal_quantile(0.5 + level / 2.0);
    let middle = p + z * z / (2.0 * n);
    let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let whole = 1.0 + z * z / n;
    let low = if hits == 0 { 0.0 } else { (middle - half) / whole };
    let high = if hits == rows { 1.0 } else { (middle + half) / whole };
    Ok(Interval { low, high, level })
}
