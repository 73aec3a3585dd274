//! Tables for the terminal.

use std::error::Error;

use polars::prelude::{AnyValue, DataFrame};
use tunebook_progress::printable;

/// The digits of a hash that are shown, as `tunebook_runs` shows them.
const DIGITS: usize = 12;

/// A table as texts; the first row has the names of the columns.
pub(crate) type Rows = Vec<Vec<String>>;

/// The whole frame, with `-` for what is not there.
pub(crate) fn cells(frame: &DataFrame) -> Result<Rows, Box<dyn Error>> {
    let mut rows = vec![Vec::new(); frame.height() + 1];
    for column in frame.columns() {
        rows[0].push(printable(column.name()).into_owned());
        for at in 0..column.len() {
            rows[at + 1].push(match column.get(at)? {
                AnyValue::Null => "-".to_owned(),
                AnyValue::String(text) => printable(text).into_owned(),
                AnyValue::Float64(number) => format!("{number:.4}"),
                other => other.to_string(),
            });
        }
    }
    Ok(rows)
}

/// The rows with their columns aligned.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The beginning of a hash, by which it is found, too; any other text as it is.
pub(crate) fn short(text: &str) -> &str {
    let is_hash = text.len() > DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hash && text.len().is_multiple_of(16) { &text[..DIGITS] } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_alone_are_cut() {
        assert_eq!(short("1a34a80eb7b111a2"), "1a34a80eb7b1");
        assert_eq!(short(&"0f".repeat(32)), "0f0f0f0f0f0f");
        for text in ["0.0001", "1a34a80eb7b1", "support v1 of the company", "ééééééééééééé", ""]
        {
            assert_eq!(short(text), text);
        }
    }
}
