//! The report of a cleaning: what each step changed and dropped, with examples.

use std::fmt;

use polars::prelude::*;
use serde::{Deserialize, Serialize};

use crate::clean::step::CleaningStep;
use crate::error::Result;
use crate::text::{counted, excerpt, thousands};

/// Examples that the report of a step keeps.
pub(crate) const EXAMPLES: usize = 3;
/// Characters of a text that an example shows.
const EXAMPLE_CHARS: usize = 280;

/// The report of a cleaning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CleanReport {
    /// Rows before.
    pub rows_before: usize,
    /// Rows after.
    pub rows_after: usize,
    /// Rows that stayed and that at least one step changed.
    pub rows_changed: usize,
    /// The steps, in order.
    pub steps: Vec<StepReport>,
}

/// The report of one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The step.
    pub step: CleaningStep,
    /// Rows whose prompt or completion it changed.
    pub changed: usize,
    /// Rows it dropped.
    pub dropped: usize,
    /// Examples: the first few of these rows.
    pub examples: Vec<Change>,
}

/// One text before and after a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The row's index in the set before the cleaning.
    pub row: usize,
    /// The column.
    pub column: String,
    /// The text before the step, cut to the part around the change.
    pub before: String,
    /// The text after it; for a dropped row, nothing.
    pub after: Option<String>,
    /// For a dropped row: why.
    pub reason: Option<String>,
}

impl CleanReport {
    pub(crate) fn untouched(rows: usize) -> Self {
        Self { rows_before: rows, rows_after: rows, rows_changed: 0, steps: Vec::new() }
    }

    /// Rows that were dropped, by all steps together.
    pub fn rows_dropped(&self) -> usize {
        self.rows_before - self.rows_after
    }
}

impl fmt::Display for CleanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} before, {} after: {} changed, {} dropped",
            counted(self.rows_before, "row"),
            thousands(self.rows_after),
            thousands(self.rows_changed),
            thousands(self.rows_dropped())
        )?;
        for step in &self.steps {
            write!(
                f,
                "\n{:<21} {:>8} changed {:>8} dropped",
                step.step.name(),
                thousands(step.changed),
                thousands(step.dropped)
            )?;
            for example in &step.examples {
                write!(
                    f,
                    "\n    row {} {}: {:?}",
                    example.row,
                    example.column,
                    excerpt(&example.before, 70)
                )?;
                match (&example.after, &example.reason) {
                    (Some(after), _) => write!(f, "\n      → {:?}", excerpt(after, 70))?,
                    (None, Some(reason)) => write!(f, "\n      dropped: {reason}")?,
                    (None, None) => {}
                }
            }
        }
        Ok(())
    }
}

impl Change {
    pub(crate) fn changed(row: usize, column: &str, before: &str, after: &str) -> Self {
        let (before, after) = around_the_change(before, after);
        Self { row, column: column.to_owned(), before, after: Some(after), reason: None }
    }

    /// An example of a dropped row: the text that names it, and the reason.
    pub(crate) fn dropped(row: usize, column: &str, text: &str, reason: &str) -> Self {
        Self {
            row,
            column: column.to_owned(),
            before: excerpt(text, EXAMPLE_CHARS),
            after: None,
            reason: Some(reason.to_owned()),
        }
    }
}

/// Both texts, cut to the neighbourhood of the first character in which they differ.
fn around_the_change(before: &str, after: &str) -> (String, String) {
    let same: usize = before
        .chars()
        .zip(after.chars())
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a.len_utf8())
        .sum();
    let start = before[..same].char_indices().rev().nth(60).map_or(0, |(at, _)| at);
    let cut = |text: &str| {
        let mut shown = String::from(if start > 0 { "…" } else { "" });
        shown.extend(text[start..].chars().take(EXAMPLE_CHARS));
        if text[start..].chars().nth(EXAMPLE_CHARS).is_some() {
            shown.push('…');
        }
        shown
    };
    (cut(before), cut(after))
}

/// A dropped row: its index, the name of the step, and the reason.
pub(crate) struct DroppedRow {
    pub row: usize,
    pub step: &'static str,
    pub reason: String,
}

/// The dropped rows as they were in `frame`, with the row, the step and the reason in front.
pub(crate) fn dropped_frame(frame: &DataFrame, drops: &[DroppedRow]) -> Result<DataFrame> {
    let rows: Vec<IdxSize> = drops.iter().map(|drop| drop.row as IdxSize).collect();
    let taken = frame.take(&IdxCa::from_slice("row".into(), &rows))?;
    let rows: Vec<i64> = drops.iter().map(|drop| drop.row as i64).collect();
    let steps = StringChunked::from_iter_values("step".into(), drops.iter().map(|drop| drop.step));
    let reasons = StringChunked::from_iter_values(
        "reason".into(),
        drops.iter().map(|drop| drop.reason.as_str()),
    );
    let mut columns =
        vec![Column::new("row".into(), rows), steps.into_column(), reasons.into_column()];
    for column in taken.columns() {
        let name = column.name().as_str();
        if !["row", "step", "reason"].contains(&name) {
            columns.push(column.clone());
        } else {
            columns.push(column.clone().with_name(format!("original_{name}").into()));
        }
    }
    Ok(DataFrame::new(drops.len(), columns)?)
}
