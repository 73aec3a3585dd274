//! Texts beside each other, and runs over each other.

use tunebook_charts::{Cell, Figure, Line, LineChart, Table, format_number};
use tunebook_tune::RunRecord;

/// A table with one column for each list of texts, row by row: answers before and after, or of two
/// adapters. A list that is shorter than the longest leaves its cells empty.
///
/// ```
/// use tunebook::prelude::*;
/// let questions = ["Where is it?".to_string()];
/// let (before, after) = (["It is.".to_string()], ["On its way.".to_string()]);
/// let table = side_by_side(&["question", "before", "after"], &[&questions, &before, &after]);
/// assert_eq!(table.len(), 1);
/// ```
pub fn side_by_side(columns: &[&str], texts: &[&[String]]) -> Table {
    let mut table = Table::new(columns.iter().copied());
    for row in 0..texts.iter().map(|list| list.len()).max().unwrap_or(0) {
        table.row(
            texts
                .iter()
                .map(|list| Cell::from(list.get(row).map(String::as_str).unwrap_or_default())),
        );
    }
    table
}

/// The losses of several runs over their steps, each in a colour of its own: validation as a line
/// with marks, its best step ringed, training (smoothed) as a dashed one. A run without
/// evaluations has its training loss in front.
///
/// ```no_run
/// use tunebook::prelude::*;
/// # fn f(model: Model, split: Splits) -> Result<(), Box<dyn std::error::Error>> {
/// let args = TrainingArgs { eval_strategy: EvalStrategy::Steps(10), ..Default::default() };
/// let slow = Trainer::new(&model, &TrainingArgs { learning_rate: 5e-5, ..args.clone() });
/// let fast = Trainer::new(&model, &TrainingArgs { learning_rate: 2e-4, ..args });
/// let (slow, fast) = (slow.train(&split)?, fast.train(&split)?);
/// compare_runs(&[("5e-5", &slow), ("2e-4", &fast)]).save_svg("rates.svg")?;
/// # Ok(())
/// # }
/// ```
pub fn compare_runs(runs: &[(&str, &RunRecord)]) -> Figure {
    let line = |(name, run): &(&str, &RunRecord)| {
        let train = run.steps.iter().filter(|step| !step.skipped);
        let train = Line::smoothed(*name, train.map(|step| (step.step as f64, step.loss)));
        let validation: Vec<(f64, f64)> =
            run.evals.iter().map(|eval| (eval.step as f64, eval.loss)).collect();
        if validation.is_empty() {
            return train;
        }
        let finite = validation.iter().filter(|(_, loss)| loss.is_finite());
        let best = finite.min_by(|a, b| a.1.total_cmp(&b.1)).copied();
        let told = best.map(|(step, loss)| {
            format!(" (best {} at step {})", format_number(loss), format_number(step))
        });
        Line {
            name: format!("{name}{}", told.unwrap_or_default()),
            points: validation,
            marks: true,
            dashed: train.points,
            note: best.map(|best| (best, String::new())),
            ..Line::default()
        }
    };
    LineChart {
        title: "Loss of several runs".into(),
        subtitle: "marks: validation, the best step ringed; dashed: training (smoothed)".into(),
        x_label: "step".into(),
        y_label: "loss per token (nats)".into(),
        lines: runs.iter().map(line).collect(),
        whole_x: true,
        ..LineChart::default()
    }
    .figure()
}
