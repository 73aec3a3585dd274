//! Calibration: whether a confidence of 80 % is right eight times in ten.

use serde::{Deserialize, Serialize};

use super::check_rows;
use crate::{Error, Result};

/// How far confidences can be believed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reliability {
    /// The bins, from low to high confidence; empty ones, too.
    pub bins: Vec<ReliabilityBin>,
    /// The expected calibration error, from 0 to 1: the distance of accuracy from confidence, as
    /// the mean over rows of their bins' (Guo et al. 2017, <https://arxiv.org/abs/1706.04599>).
    pub ece: f64,
    /// The Brier score of the event that the prediction is right, from 0 to 1: the mean of
    /// `(confidence - right)²`.
    pub brier: f64,
    /// The number of rows.
    pub rows: u64,
}

/// The rows whose confidence lies in one part of 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ReliabilityBin {
    /// The lower bound, excluded; the first bin includes 0.
    pub low: f64,
    /// The upper bound, included.
    pub high: f64,
    /// The mean confidence of its rows; `None` if it has none.
    pub confidence: Option<f64>,
    /// The share of its rows whose prediction is right; `None` if it has none.
    pub accuracy: Option<f64>,
    /// The number of its rows.
    pub rows: u64,
}

/// The reliability table of predictions, in bins of equal width, as scikit-learn's
/// `calibration_curve(strategy="uniform")` makes them. 10 bins are usual.
///
/// ```
/// use tunebook_evaluate::classes::reliability;
///
/// let table = reliability(&[0.95, 0.85, 0.9, 0.35], &[true, false, true, false], 10)?;
/// assert_eq!((table.bins[8].rows, table.bins[8].accuracy), (2, Some(0.5))); // 0.85 and 0.9
/// assert!((table.ece - 0.2875).abs() < 1e-12);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
///
/// # Errors
///
/// If there are no rows, not as many confidences as outcomes, no bins, or a confidence that is not
/// from 0 to 1.
pub fn reliability(confidences: &[f64], right: &[bool], bins: usize) -> Result<Reliability> {
    check_rows("confidences", right.len(), confidences.len())?;
    if bins == 0 {
        return Err(Error::Setting {
            field: "bins",
            value: bins.to_string(),
            expected: "at least 1",
        });
    }
    // The bounds are numpy's `linspace(0, 1, bins + 1)`, so that rows on a bound fall alike.
    let step = 1.0 / bins as f64;
    let bound = |place: usize| if place == bins { 1.0 } else { place as f64 * step };
    let inner: Vec<f64> = (1..bins).map(bound).collect();

    let mut sums = vec![(0.0, 0_u64, 0_u64); bins];
    let mut squares = 0.0;
    for (row, (&confidence, &right)) in confidences.iter().zip(right).enumerate() {
        if !(0.0..=1.0).contains(&confidence) {
            return Err(Error::Value {
                what: "the confidence",
                row,
                value: confidence.to_string(),
                expected: "0 to 1",
            });
        }
        let (sum, hits, rows) = &mut sums[inner.partition_point(|&bound| bound < confidence)];
        *sum += confidence;
        *hits += u64::from(right);
        *rows += 1;
        squares += (confidence - f64::from(u8::from(right))).powi(2);
    }
    let all = confidences.len() as f64;
    let ece = sums.iter().map(|&(sum, hits, _)| (hits as f64 - sum).abs()).sum::<f64>() / all;
    let bins = sums.iter().enumerate().map(|(place, &(sum, hits, rows))| {
        let mean = |sum: f64| (rows > 0).then(|| sum / rows as f64);
        ReliabilityBin {
            low: bound(place),
            high: bound(place + 1),
            confidence: mean(sum),
            accuracy: mean(hits as f64),
            rows,
        }
    });
    Ok(Reliability {
        bins: bins.collect(),
        ece,
        brier: squares / all,
        rows: confidences.len() as u64,
    })
}
