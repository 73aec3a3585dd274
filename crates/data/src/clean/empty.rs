//! Rows whose prompt or completion is empty.

use crate::clean::rows::{CleaningRows, Drops};

/// The empty rows: of plain texts the rows without a text, else the rows without a prompt or a
/// completion.
pub(crate) fn drops(rows: &CleaningRows<'_>) -> Drops {
    let empty = |text: &str| text.chars().all(char::is_whitespace);
    let reason = |row: usize| match (empty(&rows.prompts[row]), empty(&rows.completions[row])) {
        (_, true) if rows.plain_text => Some("the text is empty".to_owned()),
        _ if rows.plain_text => None,
        (true, true) => Some("prompt and completion are empty".to_owned()),
        (true, false) => Some("the prompt is empty".to_owned()),
        (false, true) => Some("the completion is empty".to_owned()),
        (false, false) => None,
    };
    rows.staying().filter_map(|row| Some((row, reason(row)?))).collect()
}
