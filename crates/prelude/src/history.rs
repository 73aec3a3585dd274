//! What runs and range tests recorded, as frames and figures.

use polars::prelude::{DataFrame, NamedFrom, PolarsResult, Series};
use tunebook_charts::{Figure, Line, LineChart, LossChart, LossPoint, Panel, format_number};
use tunebook_tune::{LrRange, RunRecord, StepRecord};

use crate::train::LossCurve as _;

/// The log of a run, as a frame and as a figure.
pub trait History {
    /// One row for each step: `step`, `epoch`, `loss`, `learning_rate`, `grad_norm`, `tokens`,
    /// `label_tokens`, `secs`, `memory_bytes` (null where unknown); and for each step that was followed by an evaluation `eval_loss` and
    /// what else was measured, null elsewhere. A row of step 0 holds an evaluation before training.
    ///
    /// # Errors
    /// A metric has the name of a column.
    fn history(&self) -> PolarsResult<DataFrame>;

    /// The loss, and under it gradient norm, learning rate, tokens per second and memory over the
    /// same steps, with the diagnosis in a sentence. Hovering over a step (in front ends that draw
    /// plotly's form) shows its values and the numbers of its training rows. Of a long run about a
    /// thousand steps are drawn.
    fn curves(&self) -> Figure;
}

impl History for RunRecord {
    fn history(&self) -> PolarsResult<DataFrame> {
        let before = self.evals.iter().any(|eval| eval.step == 0);
        let steps: Vec<_> =
            before.then_some(None).into_iter().chain(self.steps.iter().map(Some)).collect();
        let eval = |step: usize| self.evals.iter().rev().find(|eval| eval.step == step);
        let at = |index: usize| steps[index].map_or(0, |step| step.step);
        let count = |name: &str, get: fn(&StepRecord) -> usize| {
            let values: Vec<Option<u64>> =
                steps.iter().map(|step| step.map(|s| get(s) as u64)).collect();
            Series::new(name.into(), values).into()
        };
        let number = |name: &str, get: fn(&StepRecord) -> f64| {
            let values: Vec<Option<f64>> = steps.iter().map(|step| step.map(get)).collect();
            Series::new(name.into(), values).into()
        };
        let numbers: Vec<u64> = (0..steps.len()).map(|index| at(index) as u64).collect();
        let epochs: Vec<f64> =
            steps.iter().map(|step| step.map_or(0.0, |step| step.epoch)).collect();
        let mut columns = vec![
            Series::new("step".into(), numbers).into(),
            Series::new("epoch".into(), epochs).into(),
            number("loss", |step| step.loss),
            number("learning_rate", |step| step.learning_rate),
            number("grad_norm", |step| step.grad_norm),
            count("tokens", |step| step.tokens),
            count("label_tokens", |step| step.label_tokens),
            number("secs", |step| step.secs),
        ];
        let memory = steps.iter().map(|step| step.and_then(|step| step.memory_bytes));
        columns.push(Series::new("memory_bytes".into(), memory.collect::<Vec<_>>()).into());
        let losses: Vec<Option<f64>> =
            (0..steps.len()).map(|index| eval(at(index)).map(|eval| eval.loss)).collect();
        columns.push(Series::new("eval_loss".into(), losses).into());
        let names: std::collections::BTreeSet<&String> =
            self.evals.iter().flat_map(|eval| eval.metrics.keys()).collect();
        for name in names {
            let values: Vec<Option<f64>> =
                (0..steps.len()).map(|index| eval(at(index))?.metrics.get(name).copied()).collect();
            columns.push(Series::new(format!("eval_{name}").into(), values).into());
        }
        DataFrame::new(steps.len(), columns)
    }

    fn curves(&self) -> Figure {
        let found = self.diagnosis();
        curves(&self.steps, self.loss_points(), found.to_string(), found.gap)
    }
}

/// The figure of [`History::curves`].
pub(crate) fn curves(
    steps: &[StepRecord],
    points: Vec<LossPoint>,
    verdict: String,
    gap: Option<f64>,
) -> Figure {
    let values = |get: &dyn Fn(&StepRecord) -> Option<f64>| -> Vec<(f64, f64)> {
        steps.iter().filter_map(|step| Some((step.step as f64, get(step)?))).collect()
    };
    let norm = Line::smoothed("gradient norm", values(&|step| Some(step.grad_norm)));
    let rate = Line::new("learning rate", values(&|step| Some(step.learning_rate)));
    let speed = |step: &StepRecord| (step.secs > 0.0).then(|| step.tokens as f64 / step.secs);
    let speed = Line::smoothed("tokens/s", values(&speed));
    let memory = |step: &StepRecord| step.memory_bytes.map(|bytes| bytes as f64 / 1e9);
    let memory = Line::new("memory (GB)", values(&memory));
    let lines = [norm, rate, speed, memory].into_iter().filter(|line| !line.points.is_empty());
    let panels: Vec<Panel> =
        lines.map(|line| Panel { y_label: line.name.clone(), lines: vec![line] }).collect();
    let hover: Vec<(usize, String)> = steps.iter().map(|step| (step.step, rows(step))).collect();
    LossChart { points, verdict, gap }.with_panels(&panels, &hover)
}

/// `learning rate 2.0e-4, rows 3, 17, 40, 8`: the numbers of the training rows, the first of many.
fn rows(step: &StepRecord) -> String {
    const MOST: usize = 12;
    let mut text = format!("learning rate {:.1e}", step.learning_rate);
    for (at, row) in step.rows.iter().take(MOST).enumerate() {
        let before = if at == 0 { ", rows " } else { ", " };
        text = format!("{text}{before}{row}");
    }
    match step.rows.len() > MOST {
        true => format!("{text} … ({} in all)", step.rows.len()),
        false => text,
    }
}

/// A range test as a figure.
pub trait LrCurve {
    /// The loss over the learning rate, with the rate where it falls fastest.
    fn curve(&self) -> Figure;
}

impl LrCurve for LrRange {
    fn curve(&self) -> Figure {
        let note = self.suggestion.and_then(|rate| {
            let near = self.points.iter().min_by(|a, b| {
                (a.learning_rate / rate).ln().abs().total_cmp(&(b.learning_rate / rate).ln().abs())
            })?;
            let text = format!("falls fastest near {}", format_number(near.learning_rate));
            Some(((near.learning_rate, near.smoothed), text))
        });
        let points = |get: fn(&tunebook_tune::LrPoint) -> f64| {
            self.points.iter().map(|point| (point.learning_rate, get(point))).collect()
        };
        LineChart {
            title: "Learning-rate range test".into(),
            x_label: "learning rate".into(),
            y_label: "loss per token (nats)".into(),
            lines: vec![Line {
                name: "training (smoothed)".into(),
                points: points(|point| point.smoothed),
                behind: points(|point| point.loss),
                note,
                ..Line::default()
            }],
            log_x: true,
            ..LineChart::default()
        }
        .figure()
    }
}
