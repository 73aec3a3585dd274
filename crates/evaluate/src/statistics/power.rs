//! The smallest difference that so many rows can show.

use super::{check_level, distribution};
use crate::{Error, Result};

/// The smallest true difference that a two-sided test at the level 0.05 finds with the given power.
///
/// ```text
/// (z₁₋α/₂ + z_power) · standard error = 2.80 · standard error  for α = 0.05, power = 0.8
/// ```
///
/// The standard error is the difference's:
/// [`PairedBootstrap::standard_error`](super::PairedBootstrap::standard_error), which knows of
/// clusters and of scores that are no means, or the standard deviation of rows' differences divided
/// by the root of their number. The result is in its unit. A power of 0.8 is usual: four of five
/// such differences are found.
///
/// ```
/// use tunebook_evaluate::statistics::smallest_difference;
///
/// // Rows' differences of BLEU with a standard deviation of 20 points, 200 rows.
/// let smallest = smallest_difference(20.0 / 200_f64.sqrt(), 0.8)?;
/// assert!((smallest - 3.96).abs() < 0.01);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
///
/// # Errors
///
/// If the power is not between 0 and 1, or the standard error is negative or not finite.
pub fn smallest_difference(standard_error: f64, power: f64) -> Result<f64> {
    check_level("power", power)?;
    if !(standard_error >= 0.0 && standard_error.is_finite()) {
        return Err(Error::Setting {
            field: "standard_error",
            value: standard_error.to_string(),
            expected: "at least 0, and finite",
        });
    }
    Ok((z_level() + distribution::normal_quantile(power)) * standard_error)
}

/// The smallest true difference of two rates that McNemar's test at the level 0.05 finds with the
/// given power on the same rows (Connor 1987, <https://doi.org/10.2307/2531966>). The solution of
///
/// ```text
/// δ · √n = z₁₋α/₂ · √ψ + z_power · √(ψ - δ²)
/// ```
///
/// where ψ is `discordant`, the share of the `rows` n that only one of the models has right. If no
/// difference up to ψ, the largest possible, is found so often, the result is `None`: too few rows.
///
/// ```
/// use tunebook_evaluate::statistics::smallest_rate_difference;
///
/// // 200 rows, of which 12 % are right with one model only, cannot show less than 7 points.
/// let smallest = smallest_rate_difference(0.12, 200, 0.8)?;
/// assert!(smallest.is_some_and(|smallest| (smallest - 0.068).abs() < 0.001));
/// assert_eq!(smallest_rate_difference(0.12, 20, 0.8)?, None);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
///
/// # Errors
///
/// If there are no rows, the share is not from 0 to 1, or the power is not between 0 and 1.
pub fn smallest_rate_difference(discordant: f64, rows: u64, power: f64) -> Result<Option<f64>> {
    check_level("power", power)?;
    if rows == 0 {
        return Err(Error::TooFewRows { what: "a difference of rates", needed: 1, found: 0 });
    }
    if !(0.0..=1.0).contains(&discordant) {
        return Err(Error::Setting {
            field: "discordant",
            value: discordant.to_string(),
            expected: "0 to 1",
        });
    }
    // δ√n - z_α√ψ = z_β√(ψ - δ²), squared: a quadratic equation in δ, whose larger root counts if
    // the power is above one half and the smaller else.
    let n = rows as f64;
    let (level, power) = (z_level(), distribution::normal_quantile(power));
    let root = discordant.sqrt();
    let a = n + power * power;
    let half_b = level * root * n.sqrt();
    let c = (level * level - power * power) * discordant;
    let spread = (half_b * half_b - a * c).max(0.0).sqrt();
    let smallest = (half_b + spread * power.signum()) / a;
    Ok((discordant > 0.0 && smallest <= discordant).then_some(smallest))
}

/// z₁₋α/₂ of the level 0.05.
fn z_level() -> f64 {
    distribution::normal_quantile(0.975)
}
