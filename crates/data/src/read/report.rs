//! The report of reading: which rows and columns of the files are used, and which are not.

use std::fmt;

use polars::prelude::{DataFrame, DataType};

use crate::columns::{COMPLETION, MESSAGES, PROMPT, SYSTEM, TURNS};
use crate::read::input::Format;
use crate::read::shape::RowShape;
use crate::read::source::Source;
use crate::read::table::Reject;
use crate::text::{counted, excerpt, thousands};

/// Names of columns that hold the answer to a text: its class, or a text about it.
const ANSWERS: [&str; 20] = [
    "label",
    "labels",
    "label_text",
    "label_name",
    "category",
    "class",
    "intent",
    "sentiment",
    "emotion",
    "target",
    "topic",
    "answer",
    "answers",
    "completion",
    "response",
    "reply",
    "output",
    "summary",
    "headline",
    "translation",
];
/// Names that a line of the report shows.
const SHOWN: usize = 6;

/// What [`Dataset::read`](crate::Dataset::read) made of its files
/// ([`Dataset::read_reports`](crate::Dataset::read_reports)).
///
/// ```
/// use tunebook_data::Dataset;
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("tickets.csv");
/// std::fs::write(&path, "text,label\nWhere is my parcel?,delivery\n").unwrap();
/// let report = &Dataset::read(&path)?.read_reports()[0];
/// assert_eq!((report.rows, report.unreadable), (1, 0));
/// assert_eq!(report.unused_columns, ["label"]);
/// assert!(report.caution().is_some()); // the labels are not trained
/// println!("{report}");
/// # Ok::<(), tunebook_data::DataError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadReport {
    /// The path as given.
    pub source: String,
    /// The files that were read, in order; empty for a frame.
    pub files: Vec<String>,
    /// Files of the folder, pattern or repository that were not read: of another kind, texts beside
    /// data files, or files of another split.
    pub skipped_files: Vec<String>,
    /// Rows that are used.
    pub rows: usize,
    /// Rows that could not be used ([`Dataset::rejected`](crate::Dataset::rejected)).
    pub unreadable: usize,
    /// The first of them: its place, what was expected and what was found.
    pub first_unreadable: Option<String>,
    /// The shape of the rows.
    pub shape: RowShape,
    /// Columns that neither prompt nor completion are made of.
    pub unused_columns: Vec<String>,
    /// The one of them that looks like the answer to a plain text, and whether it holds text.
    answer: Option<(String, bool)>,
}

impl ReadReport {
    pub(crate) fn new(
        source: &str,
        found: &Source,
        shape: &RowShape,
        frame: &DataFrame,
        rejects: &[Reject],
    ) -> Self {
        let files: Vec<String> = found.inputs.iter().map(|input| input.name.clone()).collect();
        let first_unreadable = rejects.first().map(|reject| {
            let file = (files.len() > 1).then(|| reject.file.clone());
            let line = (reject.line > 0).then(|| format!("line {}", reject.line));
            let place: Vec<String> = file.into_iter().chain(line).collect();
            match place.is_empty() {
                true => reject.reason.clone(),
                false => format!("{}: {}", place.join(", "), reject.reason),
            }
        });
        // The reader's own column of text files.
        let is_texts = found.inputs.iter().any(|input| input.format == Format::Text);
        let unused = frame.columns().iter().filter(|column| {
            let name = column.name().as_str();
            let is_chat = [SYSTEM, TURNS, MESSAGES].contains(&name) && *shape != RowShape::Text;
            let is_known = [PROMPT, COMPLETION].contains(&name) || (is_texts && name == "file");
            !is_known && !is_chat && !shape.fills(name)
        });
        let unused: Vec<(String, bool)> = unused
            .map(|column| (column.name().to_string(), column.dtype() == &DataType::String))
            .collect();
        let is_answer = |(name, _): &&(String, bool)| {
            let name = name.trim().to_lowercase();
            ANSWERS.contains(&name.strip_prefix("original_").unwrap_or(&name))
        };
        let answer = match shape {
            RowShape::Text => unused.iter().find(is_answer).cloned(),
            _ => None,
        };
        Self {
            source: source.to_owned(),
            files,
            skipped_files: found.skipped.clone(),
            rows: frame.height(),
            unreadable: rejects.len(),
            first_unreadable,
            shape: shape.clone(),
            unused_columns: unused.into_iter().map(|(name, _)| name).collect(),
            answer,
        }
    }

    /// The file, or the files with their number.
    pub(crate) fn place(&self) -> String {
        match self.files.as_slice() {
            [] => self.source.clone(),
            [one] => one.clone(),
            several => format!("{} files ({})", several.len(), names(several)),
        }
    }

    /// The lines on columns and files that are not used.
    pub(crate) fn write_unused(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.unused_columns.is_empty() {
            let noun = if self.unused_columns.len() == 1 { "column" } else { "columns" };
            write!(f, "\nnot used: {noun} {}", names(&self.unused_columns))?;
        }
        if !self.skipped_files.is_empty() {
            write!(f, "\nnot read: {}", names(&self.skipped_files))?;
        }
        Ok(())
    }

    /// A warning where plain texts have a column beside them that looks like the answer to each.
    pub fn caution(&self) -> Option<String> {
        let (name, is_text) = self.answer.as_ref()?;
        // The column of a file whose name the reader has changed.
        let name = name.strip_prefix("original_").unwrap_or(name);
        let (program, recipe) = match is_text {
            true => (
                format!("`Dataset::read_keys(path, \"text\", {name:?})`"),
                format!("`data.shape: {{columns: {{prompt: \"text\", completion: {name:?}}}}}`"),
            ),
            false => (
                format!("`ReadOptions::default().template(\"{{text}}\", \"{{{name}}}\")`"),
                format!(
                    "`data.shape: {{template: {{prompt: \"{{text}}\", completion: \"{{{name}}}\"}}}}`"
                ),
            ),
        };
        Some(format!(
            "the column \"{name}\" is no part of the texts; to train it as the answer to each text \
             read with {program}, in a recipe {recipe}"
        ))
    }
}

impl fmt::Display for ReadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {}: {} used as {}",
            counted(self.rows + self.unreadable, "row"),
            self.place(),
            thousands(self.rows),
            self.shape
        )?;
        if let Some(first) = &self.first_unreadable {
            write!(f, ", {} unreadable (first: {first})", thousands(self.unreadable))?;
        }
        self.write_unused(f)
    }
}

/// The first few names.
fn names(all: &[String]) -> String {
    let shown: Vec<String> = all.iter().take(SHOWN).map(|name| excerpt(name, 80)).collect();
    match all.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
