//! Texts beside each other.

use tunebook_charts::{Cell, Table};

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
