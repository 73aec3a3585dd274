//! What can go wrong while answers are measured, each with what was expected, what was found and
//! what to do.

use std::path::{Path, PathBuf};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting holds a value that cannot work.
    #[error("`{field}` is {value}, expected {expected}")]
    Setting {
        /// The setting as the user writes it, with its type: `Bleu.max_order`.
        field: &'static str,
        /// The value found.
        value: String,
        /// The range or form that is accepted.
        expected: &'static str,
    },

    /// A row has no reference to compare the answer with.
    #[error(
        "`{metric}` compares with a reference, and this row has none; give it one, or leave the \
         row out. Its answer: {}",
        quote(answer)
    )]
    NoReference {
        /// The metric's name.
        metric: String,
        /// The row's answer.
        answer: String,
    },

    /// A reference says nothing that the metric can compare with.
    #[error("the reference {} {problem}, so `{metric}` cannot compare with it", quote(reference))]
    Reference {
        /// The metric's name.
        metric: String,
        /// The reference.
        reference: String,
        /// What is wrong with it: `holds no number`.
        problem: &'static str,
    },

    /// A regular expression cannot be compiled.
    #[error("the pattern `{pattern}` is no regular expression: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// The reason and the place.
        reason: String,
    },

    /// A JSON schema cannot be used.
    #[error("the JSON schema cannot be used: {reason}")]
    Schema {
        /// The reason and the place.
        reason: String,
    },

    /// A metric of the user's panicked.
    #[error("the metric `{metric}` panicked ({message}) over the answer {}", quote(answer))]
    Panicked {
        /// The metric's name.
        metric: String,
        /// The panic's message.
        message: String,
        /// The row's answer.
        answer: String,
    },

    /// A metric's value is no number.
    #[error("the metric `{metric}` is {value} for {}; a value must be finite", quote(answer))]
    NotFinite {
        /// The metric's name.
        metric: String,
        /// The value: NaN or an infinity.
        value: f64,
        /// The row's answer.
        answer: String,
    },

    /// Two lists that belong together have different lengths.
    #[error("{left_name} has {left} rows and {right_name} has {right}; each row needs both")]
    Lengths {
        /// The first list's name.
        left_name: &'static str,
        /// Its length.
        left: usize,
        /// The second list's name.
        right_name: &'static str,
        /// Its length.
        right: usize,
    },

    /// There are too few rows to say anything.
    #[error("{what} needs at least {needed} rows, and there are {found}")]
    TooFewRows {
        /// The statistic.
        what: &'static str,
        /// The smallest number of rows, or of clusters where rows form clusters.
        needed: usize,
        /// The number found.
        found: usize,
    },

    /// A value lies outside its range.
    #[error("{what} of row {row} is {value}, expected {expected}")]
    Value {
        /// The quantity.
        what: &'static str,
        /// The row, from 0.
        row: usize,
        /// The value found.
        value: String,
        /// The range that is accepted.
        expected: &'static str,
    },

    /// There is nothing to judge.
    #[error("there are no rows to judge; was the split's part left empty?")]
    NoRows,

    /// The rows cannot be read.
    #[error("the rows cannot be read: {0}")]
    Rows(String),

    /// A row cannot be judged.
    #[error("row {row}: {problem}")]
    Row {
        /// The row, from 0.
        row: usize,
        /// What is wrong with it.
        problem: String,
    },

    /// No row has a reference for a metric that compares with one.
    #[error(
        "`{metric}` compares answers with references, and no row has one: give the rows right answers, or \
         take a metric that needs none (`metric_fn(..).without_references()`, `JsonValid`, `DistinctN`)"
    )]
    NoReferences {
        /// The metric's name.
        metric: String,
    },

    /// References that are none of the answers to choose from: no answer to them could be right.
    #[error(
        "{count} of {rows} rows have references that are none of {field}, so that no answer to \
         them could be right; the first: row {row}, {}. {advice}",
        quote(reference)
    )]
    NotAChoice {
        /// Where the answers to choose from stand: `EvaluationArgs.labels`.
        field: &'static str,
        /// How many rows have no reference among them.
        count: usize,
        /// How many rows have answers to choose from and references.
        rows: usize,
        /// The first such row, from 0.
        row: usize,
        /// Its first reference.
        reference: String,
        /// What to do.
        advice: String,
    },

    /// No row has a value in a column.
    #[error(
        "no row has a column `{column}`, by which rows are to be grouped; slices may also be \
         `class` and `length`"
    )]
    NoColumn {
        /// The column.
        column: String,
    },

    /// Two evaluations that measured different things.
    #[error("these evaluations cannot be compared: their `{field}` {problem}")]
    NotComparable {
        /// The setting, score or other part that differs.
        field: String,
        /// How.
        problem: String,
    },

    /// A condition that is not met, or none.
    #[error("`{condition}` is required: {problem}")]
    Condition {
        /// The condition as it was given.
        condition: String,
        /// What was found instead.
        problem: String,
    },

    /// Another process works with the same answers.
    #[error(
        "`{}` is being written by another process, which evaluates the same model; wait for it, or \
         give another `EvaluationArgs.output_dir`",
        path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },

    /// A file of answers has a line that is none.
    #[error(
        "line {line} of `{}` is no answer of an evaluation: {problem}. Move the file away to begin anew",
        path.display()
    )]
    Answers {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },

    /// A file or folder cannot be used.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },

    /// A record cannot be written as JSON.
    #[error("cannot write as JSON: {0}")]
    Json(String),

    /// The model could not do it.
    #[error(transparent)]
    Model(Box<tunebook_models::Error>),

    /// The adapters could not do it.
    #[error(transparent)]
    Tune(Box<tunebook_tune::Error>),
}

impl From<tunebook_models::Error> for Error {
    fn from(error: tunebook_models::Error) -> Self {
        Self::Model(Box::new(error))
    }
}

impl From<tunebook_tune::Error> for Error {
    fn from(error: tunebook_tune::Error) -> Self {
        Self::Tune(Box::new(error))
    }
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn json(error: serde_json::Error) -> Self {
        Self::Json(error.to_string())
    }
}

/// The longest quotation in an error, in characters.
const QUOTE_CHARS: usize = 120;

/// The text as an error quotes it: on one line, and cut.
fn quote(text: &str) -> String {
    let start: String = text.chars().take(QUOTE_CHARS).collect();
    let more = if start.len() < text.len() { "…" } else { "" };
    format!("{start:?}{more}")
}
