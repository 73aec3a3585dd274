//! A frame as a table: its first and last rows.

use polars::prelude::{AnyValue, DataFrame};
use tunebook_charts::{Cell, Table};
use tunebook_progress::MimeBundle;

/// Rows shown of a longer frame: these many at its head, and half as many at its tail.
const HEAD: usize = 10;
const TAIL: usize = 5;
/// Columns shown of a wider frame.
const COLUMNS: usize = 24;

pub(super) fn bundle(frame: &DataFrame) -> MimeBundle {
    MimeBundle::text(frame.to_string()).html(table(frame).html())
}

/// The frame's first and last rows.
pub(super) fn table(frame: &DataFrame) -> Table {
    let (rows, width) = frame.shape();
    let columns: Vec<_> = frame.columns().iter().take(COLUMNS).collect();
    let names = columns.iter().map(|column| format!("{} ({})", column.name(), column.dtype()));
    let mut table = Table::new(names).caption(format!("{rows} rows × {width} columns"));
    let all = rows <= HEAD + TAIL;
    let head = if all { rows } else { HEAD };
    for row in 0..head {
        table.row(columns.iter().map(|column| cell(column.get(row).unwrap_or(AnyValue::Null))));
    }
    if !all {
        table.row(columns.iter().map(|_| "…"));
        for row in rows - TAIL..rows {
            table.row(columns.iter().map(|column| cell(column.get(row).unwrap_or(AnyValue::Null))));
        }
    }
    if width > COLUMNS {
        table = table.note(format!("{} more columns", width - COLUMNS));
    }
    table
}

fn cell(value: AnyValue<'_>) -> Cell {
    match value {
        AnyValue::Null => Cell::Text("null".into()),
        AnyValue::String(text) => Cell::Text(text.to_owned()),
        value if value.is_primitive_numeric() => Cell::Right(value.to_string()),
        value => Cell::Text(value.to_string()),
    }
}
