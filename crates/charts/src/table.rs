//! Tables: HTML with a plain-text twin. Every cell is escaped.

use std::fmt::Write as _;

use tunebook_progress::{MimeBundle, escape_html};

use crate::axis::number;
use crate::diff::{diff_html, diff_text};

/// A cell of the plain-text form is cut to this many characters.
const TEXT_CELL_CHARS: usize = 60;
/// A cell of the HTML form is cut to this many.
const HTML_CELL_CHARS: usize = 600;

/// One cell.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Text, to the left.
    Text(String),
    /// A number, to the right, with four digits.
    Number(f64),
    /// Text to the right: a number with its unit.
    Right(String),
    /// A text before and after a change, with the change marked.
    Diff(String, String),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<f64> for Cell {
    fn from(value: f64) -> Self {
        Self::Number(value)
    }
}

impl From<usize> for Cell {
    fn from(value: usize) -> Self {
        Self::Number(value as f64)
    }
}

impl Cell {
    fn html(&self) -> String {
        match self {
            Self::Text(text) | Self::Right(text) => escape_html(&cut(text, HTML_CELL_CHARS)),
            Self::Number(value) => escape_html(&number(*value)),
            Self::Diff(before, after) => diff_html(before, after),
        }
    }

    fn text(&self) -> String {
        let text = match self {
            Self::Text(text) | Self::Right(text) => text.clone(),
            Self::Number(value) => number(*value),
            Self::Diff(before, after) => diff_text(before, after),
        };
        let line: String = text
            .chars()
            .map(|c| {
                if c == '\n' {
                    '⏎'
                } else if c.is_control() {
                    ' '
                } else {
                    c
                }
            })
            .collect();
        cut(&line, TEXT_CELL_CHARS)
    }

    fn is_right(&self) -> bool {
        matches!(self, Self::Number(_) | Self::Right(_))
    }
}

/// A table with a caption.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    caption: String,
    columns: Vec<String>,
    rows: Vec<Vec<Cell>>,
    notes: Vec<String>,
}

impl Table {
    /// A table with these columns and no rows.
    pub fn new<S: Into<String>>(columns: impl IntoIterator<Item = S>) -> Self {
        Self { columns: columns.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// A line above the table.
    #[must_use]
    pub fn caption(mut self, caption: impl Into<String>) -> Self {
        self.caption = caption.into();
        self
    }

    /// A line below the table.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Adds a row. Cells beyond the columns are left out, missing ones are empty.
    pub fn row<C: Into<Cell>>(&mut self, cells: impl IntoIterator<Item = C>) {
        let mut cells: Vec<Cell> = cells.into_iter().map(Into::into).collect();
        cells.resize(self.columns.len(), Cell::Text(String::new()));
        self.rows.push(cells);
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Both forms.
    pub fn bundle(&self) -> MimeBundle {
        MimeBundle::text(self.text()).html(self.html())
    }

    /// The HTML form.
    pub fn html(&self) -> String {
        // Writing to a String cannot fail.
        let mut html = String::from("<div style=\"overflow-x:auto\">");
        if !self.caption.is_empty() {
            let _ = write!(
                html,
                "<p style=\"margin:0.4em 0\"><b>{}</b></p>",
                escape_html(&self.caption)
            );
        }
        html.push_str("<table style=\"border-collapse:collapse;text-align:left\"><thead><tr>");
        for (i, column) in self.columns.iter().enumerate() {
            let _ = write!(
                html,
                "<th style=\"text-align:{};padding:2px 8px\">{}</th>",
                self.alignment(i),
                escape_html(column)
            );
        }
        html.push_str("</tr></thead><tbody>\n");
        for row in &self.rows {
            html.push_str("<tr>");
            for cell in row {
                let side = if cell.is_right() { "right" } else { "left" };
                let _ = write!(
                    html,
                    "<td style=\"text-align:{side};vertical-align:top;padding:2px 8px;white-space:pre-wrap;max-width:40em\">{}</td>",
                    cell.html()
                );
            }
            html.push_str("</tr>\n");
        }
        html.push_str("</tbody></table>");
        for note in &self.notes {
            let _ = write!(html, "<p style=\"margin:0.4em 0\">{}</p>", escape_html(note));
        }
        html.push_str("</div>");
        html
    }

    /// The plain-text form.
    pub fn text(&self) -> String {
        let rows: Vec<Vec<String>> =
            self.rows.iter().map(|row| row.iter().map(Cell::text).collect()).collect();
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(i, column)| {
                let cells = rows.iter().map(|row| row[i].chars().count());
                cells.chain([column.chars().count()]).max().unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        if !self.caption.is_empty() {
            text.push_str(&self.caption);
            text.push('\n');
        }
        let mut line = |cells: Vec<(&str, bool)>| {
            let mut line = String::new();
            for ((cell, right), &width) in cells.iter().zip(&widths) {
                let room = " ".repeat(width - cell.chars().count());
                let (before, after) =
                    if *right { (room, String::new()) } else { (String::new(), room) };
                let _ = write!(line, "{before}{cell}{after}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        };
        line(
            self.columns
                .iter()
                .enumerate()
                .map(|(i, column)| (column.as_str(), self.alignment(i) == "right"))
                .collect(),
        );
        let rules: Vec<String> = widths.iter().map(|&width| "─".repeat(width)).collect();
        line(rules.iter().map(|rule| (rule.as_str(), false)).collect());
        for (cells, row) in rows.iter().zip(&self.rows) {
            line(
                cells
                    .iter()
                    .zip(row)
                    .map(|(text, cell)| (text.as_str(), cell.is_right()))
                    .collect(),
            );
        }
        for note in &self.notes {
            text.push_str(note);
            text.push('\n');
        }
        text.truncate(text.trim_end().len());
        text
    }

    /// The side on which a column's heading stands: that of most of its cells that are not empty.
    fn alignment(&self, column: usize) -> &'static str {
        let empty = |cell: &Cell| matches!(cell, Cell::Text(text) if text.is_empty());
        let filled = || self.rows.iter().map(|row| &row[column]).filter(|cell| !empty(cell));
        let right = filled().filter(|cell| cell.is_right()).count();
        if right * 2 > filled().count() { "right" } else { "left" }
    }
}

fn cut(text: &str, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
