//! Scores of probabilities over classes.

use super::check_rows;
use crate::{Error, Result};

/// How far the probabilities of a row may be from 1 in sum.
const SUM_TOLERANCE: f64 = 1e-3;

/// The Brier score of probabilities over classes, from 0 to 2: the mean over rows of
/// `Σ (probability - truth)²` over all classes, as scikit-learn's
/// `brier_score_loss(scale_by_half=False)`.
///
/// `probabilities` has a row for each example and a column for each class, `truth` the column of
/// the true class.
///
/// ```
/// use tunebook_evaluate::classes::brier_score;
///
/// let score = brier_score(&[vec![0.8, 0.1, 0.1], vec![0.2, 0.7, 0.1]], &[0, 1])?;
/// assert!((score - 0.10).abs() < 1e-12);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
///
/// # Errors
///
/// If there are no rows, not as many rows as true classes, a class that has no column, or
/// probabilities that are not from 0 to 1 or do not add up to 1.
pub fn brier_score(probabilities: &[Vec<f64>], truth: &[usize]) -> Result<f64> {
    check(probabilities, truth)?;
    let row = |(row, &truth): (&Vec<f64>, &usize)| -> f64 {
        let square = |(class, probability): (usize, &f64)| {
            (probability - f64::from(u8::from(class == truth))).powi(2)
        };
        row.iter().enumerate().map(square).sum()
    };
    Ok(probabilities.iter().zip(truth).map(row).sum::<f64>() / truth.len() as f64)
}

/// The log loss in nats: the mean of `-ln` of the true class's probability, as scikit-learn's
/// `log_loss`. Probabilities are kept 2.2e-16 away from 0 and 1.
///
/// ```
/// use tunebook_evaluate::classes::log_loss;
///
/// let loss = log_loss(&[vec![0.5, 0.5], vec![0.25, 0.75]], &[0, 1])?;
/// assert!((loss - (0.5_f64.ln() + 0.75_f64.ln()) / -2.0).abs() < 1e-12);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
///
/// # Errors
///
/// As [`brier_score`].
pub fn log_loss(probabilities: &[Vec<f64>], truth: &[usize]) -> Result<f64> {
    check(probabilities, truth)?;
    let row = |(row, &truth): (&Vec<f64>, &usize)| {
        -row[truth].clamp(f64::EPSILON, 1.0 - f64::EPSILON).ln()
    };
    Ok(probabilities.iter().zip(truth).map(row).sum::<f64>() / truth.len() as f64)
}

pub(super) fn check(probabilities: &[Vec<f64>], truth: &[usize]) -> Result<()> {
    check_rows("probabilities", truth.len(), probabilities.len())?;
    for (row, (probabilities, &truth)) in probabilities.iter().zip(truth).enumerate() {
        let refuse = |what, value: String, expected| Error::Value { what, row, value, expected };
        if truth >= probabilities.len() {
            return Err(refuse("the true class", truth.to_string(), "one of the columns"));
        }
        if let Some(wrong) = probabilities.iter().find(|value| !(0.0..=1.0).contains(*value)) {
            return Err(refuse("a probability", wrong.to_string(), "0 to 1"));
        }
        let sum: f64 = probabilities.iter().sum();
        if (sum - 1.0).abs() > SUM_TOLERANCE {
            return Err(refuse("the sum of the probabilities", sum.to_string(), "1"));
        }
    }
    Ok(())
}
