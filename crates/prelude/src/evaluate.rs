//! From a data set to an evaluation, and from an evaluation to tables and figures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tunebook_charts::{Cell, Figure, HeatMap, Line, LineChart, Table};
use tunebook_data::Dataset;
use tunebook_evaluate::{
    ChangedRow, Comparison, Error, EvalExample, Evaluation, IntoExamples, RowResult, Score,
};
use tunebook_progress::stream;
use tunebook_runs::evaluation_examples;

use crate::train::DataSets;

/// Labels up to which the confusion table is drawn whole.
const DRAWN_LABELS: usize = 40;
/// Rows that a table of rows shows.
const SHOWN_ROWS: usize = 50;

/// The [`Kind`](IntoExamples) of a file, folder or pattern, read as [`Dataset::read`] does.
#[derive(Debug)]
pub struct DataFile;

impl IntoExamples<DataSets> for &Dataset {
    fn into_examples(self) -> Result<Vec<EvalExample>, Error> {
        Ok(evaluation_examples(self))
    }
}

impl IntoExamples<DataFile> for &str {
    fn into_examples(self) -> Result<Vec<EvalExample>, Error> {
        Path::new(self).into_examples()
    }
}

impl IntoExamples<DataFile> for &Path {
    fn into_examples(self) -> Result<Vec<EvalExample>, Error> {
        let data = Dataset::read(self).map_err(|error| Error::Rows(error.to_string()))?;
        // Scores are of the other rows, which the cell says.
        for report in data.read_reports().iter().filter(|report| report.unreadable > 0) {
            stream(&format!("{report}\n"));
        }
        (&data).into_examples()
    }
}

impl IntoExamples<DataFile> for &PathBuf {
    fn into_examples(self) -> Result<Vec<EvalExample>, Error> {
        self.as_path().into_examples()
    }
}

/// Tables and figures of an evaluation.
pub trait EvaluationViews {
    /// Every score with its interval, rows and signature.
    fn score_table(&self) -> Table;

    /// The scores by the values of the columns in
    /// [`EvaluationArgs::slices`](tunebook_evaluate::EvaluationArgs::slices).
    fn slice_table(&self) -> Table;

    /// The rows of which a metric's value is worst, with question, reference and answer.
    fn worst_rows(&self, metric: &str) -> Table;

    /// Precision, recall and F1 of each label, worst first; `None` without labels.
    fn class_table(&self) -> Option<Table>;

    /// How often each label is taken for each other; of many labels those that are confused most.
    /// `None` without labels.
    fn confusion_chart(&self) -> Option<Figure>;

    /// Accuracy against confidence; on the diagonal a confidence of 80 % is right eight times in
    /// ten. `None` without labels.
    fn reliability_chart(&self) -> Option<Figure>;
}

impl EvaluationViews for Evaluation {
    fn score_table(&self) -> Table {
        let mut table = scores(&self.scores, &format!("{}, {}", self.model, self.active));
        let cut = self.cut_answers();
        if cut > 0 {
            table = table.note(format!(
                "{cut} of {} answers were cut at the most tokens or at the end of the context.",
                self.ends.values().sum::<usize>()
            ));
        }
        let left_out = self.rows.iter().filter(|row| row.left_out.is_some()).count();
        if left_out > 0 {
            let reason = self.rows.iter().find_map(|row| row.left_out.as_deref());
            table = table.note(format!(
                "{left_out} rows are in no score. The first: {}",
                reason.unwrap_or_default()
            ));
        }
        if self.stopped {
            table =
                table.note(format!("Stopped: {} of {} rows.", self.rows.len(), self.planned_rows));
        }
        table
    }

    fn slice_table(&self) -> Table {
        let mut table = Table::new(["column", "value", "score", "", "interval", "rows"]);
        for slice in &self.slices {
            for score in &slice.scores {
                table.row([
                    Cell::from(slice.column.as_str()),
                    Cell::from(slice.value.as_str()),
                    Cell::from(score.metric.name.as_str()),
                    Cell::Number(score.value),
                    Cell::Right(interval(score)),
                    score.rows.into(),
                ]);
            }
        }
        table
    }

    fn worst_rows(&self, metric: &str) -> Table {
        let better = self.score(metric).is_none_or(|score| score.metric.higher_is_better);
        let of = |row: &RowResult| row.scores.get(metric).copied();
        let mut rows: Vec<(f64, &RowResult)> =
            self.rows.iter().filter_map(|row| Some((of(row)?, row))).collect();
        rows.sort_by(|(a, _), (b, _)| if better { a.total_cmp(b) } else { b.total_cmp(a) });
        let mut table = Table::new(["row", metric, "question", "reference", "answer"]);
        for (value, row) in rows.iter().take(SHOWN_ROWS) {
            table.row([
                row.row.into(),
                Cell::Number(*value),
                Cell::from(row.question.as_str()),
                Cell::from(row.references.first().map_or("", String::as_str)),
                Cell::from(row.answer.as_deref().unwrap_or("")),
            ]);
        }
        table
    }

    fn class_table(&self) -> Option<Table> {
        let report = &self.classification.as_ref()?.report;
        let mut classes: Vec<_> = report.classes.iter().collect();
        classes.sort_by(|a, b| a.f1.total_cmp(&b.f1));
        let mut table = Table::new(["label", "precision", "recall", "F1", "rows"]);
        for class in classes {
            table.row([
                Cell::from(class.label.as_str()),
                Cell::Number(class.precision),
                Cell::Number(class.recall),
                Cell::Number(class.f1),
                Cell::Number(class.support as f64),
            ]);
        }
        let (mean, weighted) = (&report.macro_average, &report.weighted_average);
        Some(table.note(format!(
            "accuracy {:.4}; F1 macro {:.4}, weighted {:.4}; {} rows",
            report.accuracy, mean.f1, weighted.f1, report.rows
        )))
    }

    fn confusion_chart(&self) -> Option<Figure> {
        let confusion = &self.classification.as_ref()?.confusion;
        let count = confusion.labels.len();
        let wrong = |at: usize| -> u64 {
            let mistaken: u64 =
                (0..count).filter(|other| *other != at).map(|to| confusion.counts[at][to]).sum();
            let taken: u64 = (0..count)
                .filter(|other| *other != at)
                .map(|from| confusion.counts[from][at])
                .sum();
            mistaken + taken
        };
        let mut shown: Vec<usize> = (0..count).collect();
        if count > DRAWN_LABELS {
            shown.sort_by_key(|at| std::cmp::Reverse(wrong(*at)));
            shown.truncate(DRAWN_LABELS);
            shown.sort_unstable();
        }
        let most = shown.iter().flat_map(|row| shown.iter().map(|to| confusion.counts[*row][*to]));
        let most = most.max().unwrap_or(1).max(1);
        let title = match count > DRAWN_LABELS {
            true => {
                format!("Confusion, the {DRAWN_LABELS} labels that are confused most of {count}")
            }
            false => "Confusion".to_owned(),
        };
        let names: Vec<String> = shown.iter().map(|at| confusion.labels[*at].clone()).collect();
        let value = |row: usize, to: usize| {
            let rows = confusion.counts[row][to];
            (rows > 0).then_some(rows as f64)
        };
        let values =
            shown.iter().map(|row| shown.iter().map(|to| value(*row, *to)).collect()).collect();
        let map = HeatMap {
            title,
            x_label: "predicted".to_owned(),
            value_label: "rows".to_owned(),
            columns: names.clone(),
            rows: names,
            values,
            range: (0.0, most as f64),
        };
        Some(map.figure())
    }

    fn reliability_chart(&self) -> Option<Figure> {
        let table = self.classification.as_ref()?.reliability.as_ref()?;
        let points = table.bins.iter().filter_map(|bin| Some((bin.confidence?, bin.accuracy?)));
        let lines = vec![
            Line::new("perfect", [(0.0, 0.0), (1.0, 1.0)]),
            Line::new(format!("found (ECE {:.3})", table.ece), points).marked(),
        ];
        let chart = LineChart {
            title: format!("Reliability, {} rows", table.rows),
            x_label: "confidence".to_owned(),
            y_label: "accuracy".to_owned(),
            lines,
            ..LineChart::default()
        };
        Some(chart.figure())
    }
}

/// Tables of a comparison.
pub trait ComparisonViews {
    /// Every score of both with the difference, its interval, the test and the verdict.
    fn table(&self) -> Table;

    /// Rows that this model has right and the other has not, differences marked.
    fn newly_right_table(&self, metric: &str) -> Table;

    /// Rows that the other model has right and this one has not, differences marked.
    fn newly_wrong_table(&self, metric: &str) -> Table;

    /// Rows whose loss changed most, differences marked.
    fn most_changed_table(&self) -> Table;
}

impl ComparisonViews for Comparison {
    fn table(&self) -> Table {
        let mut table = Table::new([
            "score",
            &self.other,
            &self.name,
            "difference",
            "interval",
            "p (Holm)",
            "smallest shown",
            "verdict",
        ])
        .caption(format!("{} against {}", self.name, self.other));
        for score in &self.scores {
            let interval = score.interval.map_or("none".to_owned(), |interval| {
                format!("{:+.4} to {:+.4}", interval.low, interval.high)
            });
            table.row([
                Cell::from(score.metric.name.as_str()),
                Cell::Number(score.other),
                Cell::Number(score.value),
                Cell::Right(format!("{:+.4}", score.difference)),
                Cell::Right(interval),
                Cell::Right(p_value(score.adjusted_p_value)),
                Cell::Right(
                    score.smallest_difference.map_or("none".to_owned(), |d| format!("{d:.4}")),
                ),
                Cell::from(score.verdict.to_string()),
            ]);
        }
        let units = self.scores.iter().map(|score| score.units).max().unwrap_or(0);
        let clustered = self.scores.iter().any(|score| score.clustered);
        let unit = match (clustered, units) {
            (true, _) => "groups of rows, each counted once",
            (false, 1) => "row",
            (false, _) => "rows",
        };
        let mut tests: Vec<&str> = self.scores.iter().map(|score| score.test.as_str()).collect();
        tests.sort_unstable();
        tests.dedup();
        table.note(format!(
            "{units} {unit}. Tests: {}; corrected for {} (loss and perplexity are one). A true difference of the \
             size \"smallest shown\" is found four times in five.",
            tests.join("; "),
            self.tests()
        ))
    }

    fn newly_right_table(&self, metric: &str) -> Table {
        moved(&self.newly_right, metric, self)
    }

    fn newly_wrong_table(&self, metric: &str) -> Table {
        moved(&self.newly_wrong, metric, self)
    }

    fn most_changed_table(&self) -> Table {
        changed(&self.most_changed, &self.other, &self.name)
    }
}

/// Rows that moved in a metric; where it has none, which do.
fn moved(rows: &BTreeMap<String, Vec<ChangedRow>>, metric: &str, comparison: &Comparison) -> Table {
    match rows.get(metric) {
        Some(rows) => changed(rows, &comparison.other, &comparison.name),
        None => changed(&[], &comparison.other, &comparison.name).note(format!(
            "`{metric}` is no share of hits that both have measured; these are: {}",
            rows.keys().cloned().collect::<Vec<_>>().join(", ")
        )),
    }
}

fn changed(rows: &[ChangedRow], other: &str, name: &str) -> Table {
    let mut table =
        Table::new(["row", "question", "reference", &format!("{other} → {name}"), "score"]);
    for row in rows.iter().take(SHOWN_ROWS) {
        table.row([
            row.row.into(),
            Cell::from(row.question.as_str()),
            Cell::from(row.references.first().map_or("", String::as_str)),
            Cell::Diff(row.before.clone(), row.after.clone()),
            Cell::Right(format!("{:.3} → {:.3}", row.score_before, row.score_after)),
        ]);
    }
    match rows.len() > SHOWN_ROWS {
        true => table.note(format!("{SHOWN_ROWS} of {} rows.", rows.len())),
        false => table,
    }
}

fn p_value(p: f64) -> String {
    if p < 0.0001 { "< 0.0001".to_owned() } else { format!("{p:.4}") }
}

fn interval(score: &Score) -> String {
    score.interval.map_or("".to_owned(), |i| format!("{:.4} to {:.4}", i.low, i.high))
}

fn scores(scores: &[Score], caption: &str) -> Table {
    let mut table = Table::new(["score", "", "interval", "rows"]).caption(caption);
    for score in scores {
        let unit = score.metric.unit.as_ref().map(|unit| format!(" ({unit})")).unwrap_or_default();
        table.row([
            Cell::from(format!("{}{unit}", score.metric.name)),
            Cell::Number(score.value),
            Cell::Right(interval(score)),
            score.rows.into(),
        ]);
    }
    match scores.first() {
        Some(score) => {
            table.note(format!("signature of {}: {}", score.metric.name, score.signature))
        }
        None => table,
    }
}
