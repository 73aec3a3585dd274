//! What a run and a range test recorded, as frames and figures.

use polars::prelude::{DataFrame, NamedFrom, PolarsResult, Series};
use tunebook_charts::{Figure, Line, LineChart, format_number};
use tunebook_tune::{LrRange, RunRecord};

/// The log of a run as a frame.
pub trait History {
    /// One row for each step: `step`, `epoch`, `loss`, `learning_rate`, `grad_norm`, `tokens`,
    /// `label_tokens`, `secs`; and for each step that was followed by an evaluation `eval_loss` and
    /// what else was measured, null elsewhere. A row of step 0 holds an evaluation before training.
    ///
    /// # Errors
    /// A metric has the name of a column.
    fn history(&self) -> PolarsResult<DataFrame>;
}

impl History for RunRecord {
    fn history(&self) -> PolarsResult<DataFrame> {
        let before = self.evals.iter().any(|eval| eval.step == 0);
        let steps: Vec<_> =
            before.then_some(None).into_iter().chain(self.steps.iter().map(Some)).collect();
        let eval = |step: usize| self.evals.iter().rev().find(|eval| eval.step == step);
        let at = |index: usize| steps[index].map_or(0, |step| step.step);
        let count = |name: &str, get: fn(&tunebook_tune::StepRecord) -> usize| {
            let values: Vec<Option<u64>> =
                steps.iter().map(|step| step.map(|s| get(s) as u64)).collect();
            Series::new(name.into(), values).into()
        };
        let number = |name: &str, get: fn(&tunebook_tune::StepRecord) -> f64| {
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
