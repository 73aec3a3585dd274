//! McNemar's test.

use serde::{Deserialize, Serialize};

use super::{check_pairs, distribution};
use crate::Result;

/// With fewer discordant rows the exact test is used.
const EXACT_BELOW: u64 = 25;

/// McNemar's test of two models on the same rows, each row right or wrong.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct McNemar {
    /// Rows that only the first model has right.
    pub only_first: u64,
    /// Rows that only the second model has right.
    pub only_second: u64,
    /// Whether the p-value is the exact binomial one.
    pub exact: bool,
    /// The statistic: the smaller of both numbers if exact, else chi-square with one degree of
    /// freedom, with continuity correction.
    pub statistic: f64,
    /// The two-sided p-value. It errs on the safe side: equal models are called different at 0.05
    /// in 2 to 4 of 100 cases.
    pub p_value: f64,
    /// The exact p-value with half the weight of the result itself: mid-p, which keeps to 0.05 more
    /// closely and seldom exceeds it (Fagerland et al. 2013,
    /// <https://doi.org/10.1186/1471-2288-13-91>).
    pub mid_p_value: f64,
}

/// McNemar's test by the two numbers of discordant rows, as statsmodels' `mcnemar` computes it:
/// exact with fewer than 25 discordant rows, else by chi-square with continuity correction.
///
/// ```
/// use tunebook_evaluate::statistics::mcnemar;
///
/// let test = mcnemar(2, 11);
/// assert!(test.exact && (test.p_value - 0.0225).abs() < 1e-4);
/// assert_eq!(mcnemar(0, 0).p_value, 1.0);
/// ```
#[must_use]
pub fn mcnemar(only_first: u64, only_second: u64) -> McNemar {
    let discordant = only_first + only_second;
    let fewer = only_first.min(only_second);
    let exact = discordant < EXACT_BELOW;
    let (at_most, exactly) = distribution::coin(fewer, discordant);
    let corrected = (only_first.abs_diff(only_second) as f64 - 1.0).powi(2);
    let (statistic, p_value) = if exact {
        (fewer as f64, (2.0 * at_most).min(1.0))
    } else {
        let statistic = corrected / discordant as f64;
        (statistic, distribution::chi_square_tail(statistic))
    };
    let mid_p_value = if only_first == only_second { 1.0 } else { 2.0 * at_most - exactly };
    McNemar { only_first, only_second, exact, statistic, p_value, mid_p_value }
}

/// McNemar's test by which rows each model has right.
///
/// ```
/// use tunebook_evaluate::statistics::mcnemar_rows;
///
/// let test = mcnemar_rows(&[true, true, false], &[true, false, false])?;
/// assert_eq!((test.only_first, test.only_second), (1, 0));
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
///
/// # Errors
///
/// If the lists have different lengths.
pub fn mcnemar_rows(first: &[bool], second: &[bool]) -> Result<McNemar> {
    check_pairs(first.len(), second.len())?;
    let pairs = || first.iter().zip(second);
    let only_first = pairs().filter(|&(&first, &second)| first && !second).count();
    let only_second = pairs().filter(|&(&first, &second)| !first && second).count();
    Ok(mcnemar(only_first as u64, only_second as u64))
}
