//! The loss curve.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::axis::number;
use crate::figure::Figure;
use crate::lines::{Gap, Line, LineChart, Points, thinned};
use crate::panels::{Panel, Panels};

/// From this many training points on, a smoothed line is drawn and the values themselves go behind
/// it.
const SMOOTH_FROM: usize = 24;

/// How many steps [`LossChart::with_panels`] takes for the training loss, and for each line of the
/// other charts.
const LOSSES_KEPT: usize = 400;
const OTHERS_KEPT: usize = 80;

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
/// behind it), validation as marks, and the lowest validation loss noted.
pub fn loss_curve(points: &[LossPoint]) -> Figure {
    LossChart { points: points.to_vec(), ..LossChart::default() }.figure()
}

/// A loss curve with what is said of it.
///
/// ```
/// use tunebook_charts::{LossChart, LossPoint};
/// let point = |step, train, validation| LossPoint { step, train, validation };
/// let figure = LossChart {
///     points: vec![point(1, Some(2.0), None), point(2, Some(1.0), None), point(2, None, Some(1.4))],
///     verdict: "too few evaluations to judge".into(),
///     gap: Some(0.4),
/// }
/// .figure();
/// assert!(figure.text().contains("too few evaluations") && figure.text().contains("gap 0.400"));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LossChart {
    /// The losses, by rising step.
    pub points: Vec<LossPoint>,
    /// What the curve says, in a sentence under the title; empty for none.
    pub verdict: String,
    /// The latest validation loss less the training loss around it, in nats per token, which is
    /// drawn between the two lines. `None` draws nothing.
    pub gap: Option<f64>,
}

impl LossChart {
    /// The figure.
    pub fn figure(&self) -> Figure {
        let (train, validation) = self.losses();
        LineChart {
            title: title(&train, &validation),
            subtitle: self.verdict.clone(),
            x_label: "step".into(),
            y_label: Y_LABEL.into(),
            gap: gap(&validation, self.gap),
            lines: loss_lines(train, validation),
            whole_x: true,
            ..LineChart::default()
        }
        .figure()
    }

    /// The loss with other charts over the same steps under it, at most seven. Of a long run about a
    /// thousand steps are drawn, those of the highest and lowest values among them. `hover` has what
    /// hovering over a step shows besides its values.
    pub fn with_panels(&self, panels: &[Panel], hover: &[(usize, String)]) -> Figure {
        let (train, validation) = self.losses();
        let mark = lowest(&validation).filter(|_| validation.len() > 1).map(|(step, _)| step);
        let first =
            Panel { y_label: Y_LABEL.into(), lines: loss_lines(train.clone(), validation.clone()) };
        // The same steps in all panels, so that hovering finds a value of each.
        let mut kept: BTreeSet<u64> = BTreeSet::new();
        let mut keep = |points: &[(f64, f64)], most: usize| {
            kept.extend(thinned(points, most).iter().map(|(step, _)| step.to_bits()));
        };
        keep(&train, LOSSES_KEPT);
        for line in panels.iter().flat_map(|panel| &panel.lines) {
            keep(if line.behind.is_empty() { &line.points } else { &line.behind }, OTHERS_KEPT);
        }
        let is_kept = |(step, _): &(f64, f64)| kept.contains(&step.to_bits());
        let only = |points: &Points| -> Points { points.iter().copied().filter(is_kept).collect() };
        let thin = |line: &Line| match line.marks {
            true => line.clone(),
            false => {
                Line { points: only(&line.points), behind: only(&line.behind), ..line.clone() }
            }
        };
        let panels = std::iter::once(&first).chain(panels).map(|panel| Panel {
            y_label: panel.y_label.clone(),
            lines: panel.lines.iter().map(thin).collect(),
        });
        let hover = hover.iter().map(|(step, text)| (*step as f64, text.clone()));
        Panels {
            title: title(&train, &validation),
            subtitle: self.verdict.clone(),
            x_label: "step".into(),
            gap: gap(&validation, self.gap),
            mark,
            panels: panels.collect(),
            hover: hover.filter(|(step, _)| kept.contains(&step.to_bits())).collect(),
        }
        .figure()
    }

    /// Training and validation losses by step.
    fn losses(&self) -> (Points, Points) {
        let values = |get: fn(&LossPoint) -> Option<f64>| -> Points {
            self.points.iter().filter_map(|point| Some((point.step as f64, get(point)?))).collect()
        };
        (values(|point| point.train), values(|point| point.validation))
    }
}

/// Says how many losses cannot be drawn.
fn title(train: &[(f64, f64)], validation: &[(f64, f64)]) -> String {
    match train.iter().chain(validation).filter(|point| !point.1.is_finite()).count() {
        0 => "Loss".to_owned(),
        1 => "Loss (one value is not finite)".to_owned(),
        n => format!("Loss ({n} values are not finite)"),
    }
}

/// What y is in a chart of losses.
const Y_LABEL: &str = "loss per token (nats)";

/// The lines of training and validation.
fn loss_lines(train: Points, validation: Points) -> Vec<Line> {
    let mut lines = Vec::new();
    if !train.is_empty() || validation.is_empty() {
        let line = Line::smoothed("training", train);
        let name = if line.behind.is_empty() { line.name } else { "training (smoothed)".into() };
        lines.push(Line { name, ..line });
    }
    if !validation.is_empty() {
        let note = lowest(&validation)
            .map(|(step, loss)| {
                ((step, loss), format!("best {} at step {}", number(loss), number(step)))
            })
            .filter(|_| validation.len() > 1);
        lines.push(Line {
            name: "validation".into(),
            points: validation,
            marks: true,
            note,
            ..Line::default()
        });
    }
    lines
}

/// The first of the lowest values.
fn lowest(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let finite = points.iter().filter(|point| point.1.is_finite());
    finite.min_by(|a, b| a.1.total_cmp(&b.1)).copied()
}

/// The gap below (or above) the last validation loss.
fn gap(validation: &[(f64, f64)], gap: Option<f64>) -> Option<Gap> {
    let (&(x, to), gap) = (validation.last()?, gap?);
    let label = format!("gap {}", number(gap));
    (to.is_finite() && gap.is_finite()).then_some(Gap { x, from: to - gap, to, label })
}

impl Line {
    /// A line of values that scatter, by rising x: where there are many, their weighted mean over
    /// about a twentieth of them, with the values behind it.
    pub fn smoothed(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let line = Self::new(name, points);
        match line.points.len() >= SMOOTH_FROM {
            true => Self { points: smoothed(&line.points), behind: line.points, ..line },
            false => line,
        }
    }
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
