//! The loss curve.

use serde::{Deserialize, Serialize};

use crate::axis::number;
use crate::figure::Figure;
use crate::lines::{Line, LineChart};

/// From this many training points on, a smoothed line is drawn and the values themselves go behind
/// it.
const SMOOTH_FROM: usize = 24;

/// The losses known after one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LossPoint {
    /// The optimizer step, counted from 1; 0 is before training.
    pub step: usize,
    /// Mean loss per token of the step's batch.
    pub train: Option<f64>,
    /// Mean loss per token of the validation set.
    pub validation: Option<f64>,
}

/// The loss over the steps: training as a line (smoothed when there are many steps, with the values
/// behind it), validation as marks, and the lowest validation loss noted when it is not the last
/// one.
pub fn loss_curve(points: &[LossPoint]) -> Figure {
    let values = |get: fn(&LossPoint) -> Option<f64>| -> Vec<(f64, f64)> {
        points.iter().filter_map(|point| Some((point.step as f64, get(point)?))).collect()
    };
    let (train, validation) = (values(|point| point.train), values(|point| point.validation));
    let mut lines = Vec::new();
    let wild = train.iter().chain(&validation).filter(|point| !point.1.is_finite()).count();
    if !train.is_empty() || validation.is_empty() {
        let smooth = train.len() >= SMOOTH_FROM;
        lines.push(Line {
            name: if smooth { "training (smoothed)".into() } else { "training".into() },
            points: if smooth { smoothed(&train) } else { train.clone() },
            behind: if smooth { train } else { Vec::new() },
            ..Line::default()
        });
    }
    if !validation.is_empty() {
        let finite = || validation.iter().filter(|point| point.1.is_finite());
        let best = finite().min_by(|a, b| a.1.total_cmp(&b.1));
        let note = match (best, finite().next_back()) {
            (Some(best), Some(last)) if best.0 < last.0 && best.1 < last.1 => {
                Some((*best, format!("lowest {} at step {}", number(best.1), number(best.0))))
            }
            _ => None,
        };
        lines.push(Line {
            name: "validation".into(),
            points: validation,
            marks: true,
            note,
            ..Line::default()
        });
    }
    let title = match wild {
        0 => "Loss".to_owned(),
        1 => "Loss (one value is not finite)".to_owned(),
        n => format!("Loss ({n} values are not finite)"),
    };
    LineChart {
        title,
        x_label: "step".into(),
        y_label: "loss per token (nats)".into(),
        lines,
        whole_x: true,
        ..LineChart::default()
    }
    .figure()
}

/// The exponentially weighted mean over about a twentieth of the run, started without a bias
/// towards zero.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (points.len() as f64 / 20.0).max(4.0);
    let (mut mean, mut weight) = (0.0, 0.0);
    points
        .iter()
        .filter(|point| point.1.is_finite())
        .map(|&(step, value)| {
            mean = keep * mean + (1.0 - keep) * value;
            weight = keep * weight + (1.0 - keep);
            (step, mean / weight)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_keeps_a_constant_and_starts_at_the_first_value() {
        let constant: Vec<(f64, f64)> = (0..100).map(|i| (i as f64, 2.5)).collect();
        assert!(smoothed(&constant).iter().all(|point| (point.1 - 2.5).abs() < 1e-12));
        assert_eq!(smoothed(&[(1.0, 7.0), (2.0, 1.0)])[0], (1.0, 7.0));
    }
}
