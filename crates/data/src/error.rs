//! The errors of this crate: the expectation, the finding, and the remedy.

use std::path::PathBuf;

use polars::prelude::PolarsError;
use tunebook_progress::Interrupted;

/// The result of this crate's functions.
pub type Result<T, E = DataError> = std::result::Result<T, E>;

/// An error in reading, cleaning, splitting or writing a data set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// There is no such file.
    #[error(
        "no file {path:?}: expected a data file or a folder there. Relative paths start at {working_directory:?}"
    )]
    NotFound {
        /// The path as given.
        path: PathBuf,
        /// The directory that relative paths start from.
        working_directory: PathBuf,
    },

    /// The path names something that holds no rows.
    #[error("{path:?} cannot be used: {reason}")]
    Unusable {
        /// The path as given.
        path: PathBuf,
        /// The expectation and the finding.
        reason: String,
    },

    /// A data set could not be fetched.
    #[error("cannot fetch {file} of the data set `{repo}` from the hub: {reason}")]
    Hub {
        /// The repository as given.
        repo: String,
        /// The file.
        file: String,
        /// The reason and the remedy.
        reason: String,
    },

    /// A template that cannot be filled.
    #[error("{reason}")]
    Template {
        /// The error in it.
        reason: String,
    },

    /// Text files are read with a shape that needs other columns than they have.
    #[error(
        "text files have the columns `file` and `text`, which the shape {shape} does not fit: \
         leave the shape out, or name the columns or a template"
    )]
    TextFiles {
        /// The shape as given.
        shape: String,
    },

    /// A scan is asked to split by a setting that compares rows with each other.
    #[error(
        "a scan splits by the hash of each prompt alone, and {setting} needs all rows: \
         write the rows that remain, read them and split those"
    )]
    ScanSplit {
        /// The setting of [`Split`](crate::Split), by its name.
        setting: &'static str,
    },

    /// The provider would refuse the file.
    #[error(
        "{path:?} is not written: OpenAI would refuse it for {count} {}. Line {line}: {problem}",
        if *.count == 1 { "reason" } else { "reasons" }
    )]
    OpenAi {
        /// The path as given.
        path: PathBuf,
        /// Problems in all.
        count: usize,
        /// The line of the first one, 0 for the file as a whole.
        line: usize,
        /// The first one.
        problem: String,
    },

    /// The operating system refused.
    #[error("cannot {action} {path:?}: {source}")]
    Io {
        /// The action: "read" or "write".
        action: &'static str,
        /// The path as given.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },

    /// The file holds nothing.
    #[error("{path:?} is empty: expected rows with a prompt and a completion")]
    Empty {
        /// The path as given.
        path: PathBuf,
    },

    /// The file is in another format.
    #[error("{path:?} is {found}: expected JSONL, JSON, CSV or Parquet. {remedy}")]
    Format {
        /// The path as given.
        path: PathBuf,
        /// The format that the file has.
        found: &'static str,
        /// The remedy.
        remedy: &'static str,
    },

    /// Not a single line could be used.
    #[error("{path:?}: none of its {lines} rows can be used. Line {line}: {reason}{advice}")]
    NoUsableRow {
        /// The path as given.
        path: PathBuf,
        /// Lines that are not blank.
        lines: usize,
        /// The first of them.
        line: u64,
        /// The error in it.
        reason: String,
        /// The remedy, if there is one.
        advice: String,
    },

    /// A frame lacks a column, or has it in another type.
    #[error("expected a text column \"{column}\", found {found}")]
    Column {
        /// The column that is needed.
        column: &'static str,
        /// The columns or the type that the frame has.
        found: String,
    },

    /// A frame lacks a column that was asked for.
    #[error("expected a column \"{column}\", found {found}")]
    NoColumn {
        /// The column that is asked for.
        column: String,
        /// The columns that there are.
        found: String,
    },

    /// A split names a column that the rows do not have.
    #[error(
        "the split's `{setting}` names the column {column:?}, which is not in {set}: \
         use one of {found}"
    )]
    SplitColumn {
        /// The setting of [`Split`](crate::Split), by its name.
        setting: &'static str,
        /// The column that is asked for.
        column: String,
        /// Where the rows are from.
        set: String,
        /// The columns that there are.
        found: String,
    },

    /// A step's setting is out of its range.
    #[error("{step}: {problem}")]
    Step {
        /// The step's name.
        step: &'static str,
        /// The expectation and the finding.
        problem: String,
    },

    /// A setting is out of its range.
    #[error("{field} is {value}: expected {expected}")]
    Setting {
        /// The setting's name.
        field: &'static str,
        /// The value as given.
        value: f64,
        /// The range, in words.
        expected: &'static str,
    },

    /// A replay takes more old rows than there are.
    #[error(
        "a share of {share} of replayed rows takes {needed} old rows beside {new} new ones, and there \
         are {old}: use a share of at most {most}, or more old rows"
    )]
    Replay {
        /// The share as given.
        share: f64,
        /// New rows.
        new: usize,
        /// Old rows that the share takes.
        needed: usize,
        /// Old rows that there are.
        old: usize,
        /// The largest share that they suffice for.
        most: f64,
    },

    /// A split would leave one side without a row.
    #[error(
        "a hold-out of {fraction} with seed {seed} leaves no row for {side} (rows: {rows}, distinct prompts: {prompts}{unread}). \
         Use more rows, another fraction, or another seed"
    )]
    EmptySide {
        /// "training" or "validation".
        side: &'static str,
        /// The fraction held out.
        fraction: f64,
        /// The seed of the split.
        seed: u64,
        /// Rows of the set.
        rows: usize,
        /// Distinct prompts of the set; copies of one prompt stay together.
        prompts: usize,
        /// How many rows could not be read and why the first of them, in words; empty if none.
        unread: String,
    },

    /// A split would leave one side without a row, as too few rows may be told apart.
    #[error(
        "a hold-out of {fraction} leaves no row for {side}: {together} stay on one side, which \
         leaves only {groups} {} to divide (rows: {rows}{unread}). {advice}",
        if *.groups == 1 { "group" } else { "groups" }
    )]
    FewGroups {
        /// "training", "validation" or "test".
        side: &'static str,
        /// The fraction held out.
        fraction: f64,
        /// The rows that stay together, in words.
        together: String,
        /// How many such groups there are.
        groups: usize,
        /// Rows of the set.
        rows: usize,
        /// How many rows could not be read and why the first of them, in words; empty if none.
        unread: String,
        /// What to do.
        advice: &'static str,
    },

    /// Polars refused.
    #[error(transparent)]
    Polars(#[from] PolarsError),

    /// The user pressed Stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}
