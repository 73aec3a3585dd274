//! The data set: pairs of a prompt and a completion in a polars frame.

use std::fmt::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use polars::prelude::*;
use serde::{Deserialize, Serialize};

use crate::clean::{CleanReport, Cleaning};
use crate::error::{DataError, Result};
use crate::profile::{Profile, TokenCount};
use crate::read::ReadOptions;
use crate::read::shape;
use crate::read::shape::Shape;
use crate::split::audit::Audit;
use crate::split::{Partition, Split, Splits};
use crate::stream::Scan;
use crate::text::{counted, excerpt};
use crate::{clean, key, read, write};

/// The name of the column that holds what the model is asked.
pub const PROMPT: &str = "prompt";
/// The name of the column that holds what it should answer.
pub const COMPLETION: &str = "completion";

/// One pair.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Row {
    /// What the model is asked.
    pub prompt: String,
    /// What it should answer.
    pub completion: String,
}

impl Row {
    /// A pair of these two texts.
    pub fn new(prompt: impl Into<String>, completion: impl Into<String>) -> Self {
        Self { prompt: prompt.into(), completion: completion.into() }
    }
}

/// Pairs of `prompt` and `completion`, with any further columns that the file had. Owned, and cheap
/// to clone.
#[derive(Clone)]
pub struct Dataset {
    frame: DataFrame,
    source: Arc<str>,
    rejected: DataFrame,
    shape: Arc<Shape>,
    cleaning: Option<Arc<Cleaned>>,
}

/// What [`Dataset::clean`] leaves beside the rows that stay.
struct Cleaned {
    report: CleanReport,
    dropped: DataFrame,
}

impl Dataset {
    /// Reads a file, a folder, a pattern such as `data/*.jsonl.gz`, or a data set of the Hugging
    /// Face hub (`owner/name`).
    ///
    /// JSONL, JSON, CSV and Parquet are told apart by their content and name, gzip and Zstandard by
    /// their content; a folder of text files gives a row for each. How the rows become pairs is
    /// recognised by the names of their fields ([`Shape`]). Further fields become further columns
    /// (numbers and booleans as such, lists and objects as JSON text).
    ///
    /// A row that cannot be used (not UTF-8, not JSON, a field missing or not a text, too many
    /// fields …) does not stop the reading: it is kept in [`Dataset::rejected`] with its file, line
    /// and the reason.
    ///
    /// # Errors
    /// The file is missing, empty, in another format, or holds not a single usable row; or the user
    /// pressed Stop.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        read::read(path.as_ref(), &ReadOptions::default())
    }

    /// [`Dataset::read`] for rows whose shape has to be named, or for some files of a folder or
    /// repository.
    ///
    /// # Errors
    /// As [`Dataset::read`]; a template with a brace too many.
    pub fn read_with(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Self> {
        read::read(path.as_ref(), options)
    }

    /// [`Dataset::read`] for a file that names the two texts otherwise ("question" and "answer",
    /// say). The columns are `prompt` and `completion` all the same.
    ///
    /// # Errors
    /// As [`Dataset::read`].
    pub fn read_keys(path: impl AsRef<Path>, prompt: &str, completion: &str) -> Result<Self> {
        read::read(path.as_ref(), &ReadOptions::default().columns(prompt, completion))
    }

    /// A data set of these (prompt, completion) pairs.
    pub fn from_rows(rows: &[(&str, &str)]) -> Self {
        let prompts = StringChunked::from_iter_values(PROMPT.into(), rows.iter().map(|row| row.0));
        let completions =
            StringChunked::from_iter_values(COMPLETION.into(), rows.iter().map(|row| row.1));
        let columns = vec![prompts.into_column(), completions.into_column()];
        let frame = DataFrame::new(rows.len(), columns)
            .expect("two columns of equal length with different names");
        Self::assemble(frame, "rows", rejected_frame(&[]), Shape::PromptCompletion)
    }

    /// A data set of a frame that has the text columns `prompt` and `completion`. Rows where one of
    /// them is null are kept aside in [`Dataset::rejected`].
    ///
    /// # Errors
    /// A column is missing or holds no text.
    pub fn from_frame(frame: DataFrame) -> Result<Self> {
        for column in [PROMPT, COMPLETION] {
            let Ok(found) = frame.column(column) else {
                let names: Vec<&str> =
                    frame.get_column_names().iter().map(|name| name.as_str()).collect();
                return Err(DataError::Column { column, found: format!("the columns {names:?}") });
            };
            if found.dtype() != &DataType::String {
                return Err(DataError::Column {
                    column,
                    found: format!("it in the type {}", found.dtype()),
                });
            }
        }
        let filled = frame.column(PROMPT)?.is_not_null() & frame.column(COMPLETION)?.is_not_null();
        let mut rejects = Vec::new();
        for (row, filled) in filled.iter().enumerate() {
            if filled != Some(true) {
                let missing = if frame.column(PROMPT)?.is_null().get(row) == Some(true) {
                    PROMPT
                } else {
                    COMPLETION
                };
                rejects.push(Reject {
                    file: "frame".to_owned(),
                    line: row as u64 + 1,
                    reason: format!("expected text in \"{missing}\", found null"),
                    raw: format!("{:?}", frame.get(row).unwrap_or_default()),
                });
            }
        }
        let frame = if rejects.is_empty() { frame } else { frame.filter(&filled)? };
        Ok(Self::assemble(frame, "frame", rejected_frame(&rejects), Shape::PromptCompletion))
    }

    /// A data set of a frame whose columns have one of the known shapes, or the one that `options`
    /// names.
    ///
    /// # Errors
    /// Not a single row can be used.
    pub fn from_frame_with(frame: DataFrame, options: &ReadOptions) -> Result<Self> {
        read::frame(&frame, options)
    }

    pub(crate) fn assemble(
        frame: DataFrame,
        source: &str,
        rejected: DataFrame,
        shape: Shape,
    ) -> Self {
        Self { frame, source: source.into(), rejected, shape: Arc::new(shape), cleaning: None }
    }

    /// The same set with other rows. The lines kept aside at reading stay with it.
    pub(crate) fn with_frame(&self, frame: DataFrame) -> Self {
        Self { frame, ..self.clone() }
    }

    pub(crate) fn with_cleaning(
        &self,
        frame: DataFrame,
        report: CleanReport,
        dropped: DataFrame,
    ) -> Self {
        Self { frame, cleaning: Some(Arc::new(Cleaned { report, dropped })), ..self.clone() }
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.frame.height()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the rows came from: the file's path as given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The polars frame. Cheap: the columns are shared.
    pub fn frame(&self) -> DataFrame {
        self.frame.clone()
    }

    pub(crate) fn frame_ref(&self) -> &DataFrame {
        &self.frame
    }

    /// How the rows of the file became pairs.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The rows that could not be used: columns `file`, `line` (from 1; 0 for a whole file),
    /// `reason`, `raw` (bytes that are not UTF-8 replaced).
    pub fn rejected(&self) -> DataFrame {
        self.rejected.clone()
    }

    /// All rows, as pairs of strings.
    pub fn rows(&self) -> Vec<Row> {
        self.pairs().map(|(prompt, completion)| Row::new(prompt, completion)).collect()
    }

    /// The row with this index, counted from 0.
    pub fn row(&self, index: usize) -> Option<Row> {
        if index >= self.len() {
            return None;
        }
        Some(Row::new(self.text(PROMPT).get(index)?, self.text(COMPLETION).get(index)?))
    }

    /// The turns of the row's conversation as (role, content), where it has several: those of the
    /// column `messages`, which reading fills and cleaning keeps in step.
    pub fn conversation(&self, index: usize) -> Option<Vec<(String, String)>> {
        let messages = self.frame.column(shape::MESSAGES).ok()?.str().ok()?;
        let count = self.frame.column(shape::TURNS).ok()?.i64().ok()?.get(index)?;
        // A column of that name that says something else is none of ours.
        shape::turns_of(messages.get(index)?).filter(|turns| turns.len() as i64 == count)
    }

    /// All prompts.
    pub fn prompts(&self) -> Vec<String> {
        self.pairs().map(|pair| pair.0.to_owned()).collect()
    }

    /// All completions.
    pub fn completions(&self) -> Vec<String> {
        self.pairs().map(|pair| pair.1.to_owned()).collect()
    }

    /// The first `rows` rows.
    pub fn head(&self, rows: usize) -> Self {
        self.with_frame(self.frame.head(Some(rows)))
    }

    /// `rows` rows chosen by the seed, in their order here (all rows when there are fewer). A
    /// larger sample with the same seed holds the smaller one.
    pub fn sample(&self, rows: usize, seed: u64) -> Result<Self> {
        let mut order: Vec<(u64, IdxSize)> = (0..self.len())
            .map(|row| {
                (
                    xxhash_rust::xxh3::xxh3_64_with_seed(&(row as u64).to_le_bytes(), seed),
                    row as IdxSize,
                )
            })
            .collect();
        order.sort_unstable();
        order.truncate(rows);
        let mut chosen: Vec<IdxSize> = order.into_iter().map(|(_, row)| row).collect();
        chosen.sort_unstable();
        self.take(&chosen)
    }

    /// The rows of `self`, then those of `other`. Columns that only one of them has are filled with
    /// null.
    ///
    /// # Errors
    /// A column has different types in the two.
    pub fn concat(&self, other: &Dataset) -> Result<Self> {
        let (mut upper, mut lower) = (self.frame.clone(), other.frame.clone());
        for column in other.frame.columns() {
            if self.frame.column(column.name()).is_err() {
                upper.with_column(Column::full_null(
                    column.name().clone(),
                    upper.height(),
                    column.dtype(),
                ))?;
            }
        }
        for column in upper.columns() {
            if lower.column(column.name()).is_err() {
                lower.with_column(Column::full_null(
                    column.name().clone(),
                    lower.height(),
                    column.dtype(),
                ))?;
            }
        }
        let names: Vec<PlSmallStr> = upper.get_column_names_owned();
        let frame = upper.vstack(&lower.select(names)?)?;
        let rejected = self.rejected.vstack(&other.rejected)?;
        let source = format!("{} + {}", self.source, other.source);
        Ok(Self::assemble(frame, &source, rejected, Shape::clone(&self.shape)))
    }

    pub(crate) fn take(&self, rows: &[IdxSize]) -> Result<Self> {
        let indices = IdxCa::from_slice("row".into(), rows);
        Ok(self.with_frame(self.frame.take(&indices)?))
    }

    /// Runs the steps of `cleaning` over all rows. The new set remembers what was changed
    /// ([`Dataset::report`]) and what was dropped ([`Dataset::dropped`]).
    ///
    /// # Errors
    /// The user pressed Stop.
    pub fn clean(&self, cleaning: &Cleaning) -> Result<Self> {
        clean::run(self, cleaning)
    }

    /// What the cleaning changed and dropped, step by step. Empty for a set that was not cleaned.
    pub fn report(&self) -> CleanReport {
        match &self.cleaning {
            Some(cleaned) => cleaned.report.clone(),
            None => CleanReport::untouched(self.len()),
        }
    }

    /// The rows that the cleaning dropped, as they were before it, with the columns `row` (index in
    /// the set before), `step` and `reason` in front.
    pub fn dropped(&self) -> DataFrame {
        match &self.cleaning {
            Some(cleaned) => cleaned.dropped.clone(),
            None => clean::dropped_frame(&self.frame, &[]).unwrap_or_default(),
        }
    }

    /// Prompts (case, punctuation and spaces aside) that stand with different completions: columns
    /// `group` (numbered), `row`, `prompt` and `completion`, the rows of a group together.
    ///
    /// [`Cleaning::resolve_conflicts`] keeps one of each.
    ///
    /// # Errors
    /// Polars refuses the frame.
    pub fn conflicts(&self) -> Result<DataFrame> {
        clean::conflicts(self)
    }

    /// Divides the rows into training and validation.
    ///
    /// # Errors
    /// The fraction is not between 0 and 1, or one side would have no row.
    pub fn split(&self, split: &Split) -> Result<Splits> {
        split.apply(self)
    }

    /// Divides the rows into training, validation and a test: `Split::holdout(0.12).test(0.1)`.
    ///
    /// # Errors
    /// As [`Dataset::split`]; no test fraction.
    pub fn split_with_test(&self, split: &Split) -> Result<Partition> {
        split.apply_with_test(self)
    }

    /// Divides the rows into `k` parts by the rules of `split` (its fractions aside), and gives `k`
    /// splits, each with another part held out.
    ///
    /// # Errors
    /// Fewer than two folds, more than rows, a part without a row, or a split by time.
    pub fn folds(&self, k: usize, split: &Split) -> Result<Vec<Splits>> {
        split.folds(self, k)
    }

    /// Looks for rows of `benchmark`, a set to be judged by later, that this one gives away.
    /// [`Audit::repair_train`] takes them out.
    ///
    /// # Errors
    /// The user pressed Stop.
    pub fn audit_against(&self, benchmark: &Dataset) -> Result<Audit> {
        Audit::of(&Splits { train: self.clone(), validation: benchmark.clone() }, "the benchmark")
    }

    /// What is in the set: lengths, languages, duplicates, markup, personal data, the worst rows.
    pub fn profile(&self) -> Profile {
        // It can fail only where keys of very many rows do not fit on the disk.
        Profile::of(self, None, None).unwrap_or_default()
    }

    /// [`Dataset::profile`] with the tokens of a model, counted by `tokens`, and how many of them
    /// it can see.
    ///
    /// # Errors
    /// A temporary file cannot be written (only for very large sets).
    pub fn profile_with_tokens(
        &self,
        tokens: &TokenCount<'_>,
        context_tokens: usize,
    ) -> Result<Profile> {
        Profile::of(self, Some(tokens), Some(context_tokens))
    }

    /// A data set that stays where it is and is read a block at a time, for files larger than
    /// memory.
    ///
    /// # Errors
    /// No such file.
    pub fn scan(path: impl AsRef<Path>) -> Result<Scan> {
        Scan::new(path.as_ref(), &ReadOptions::default())
    }

    /// [`Dataset::scan`] for rows whose shape has to be named, or for some files of a folder or
    /// repository.
    ///
    /// # Errors
    /// No such file.
    pub fn scan_with(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Scan> {
        Scan::new(path.as_ref(), options)
    }

    /// The number of distinct prompts, upper and lower case, punctuation and spaces aside.
    pub fn distinct_prompts(&self) -> usize {
        let keys: std::collections::HashSet<u128> =
            self.pairs().map(|(prompt, _)| key::text_hash(&key::normalized(prompt))).collect();
        keys.len()
    }

    /// Writes the rows as JSONL, all columns, nulls left out. The file appears whole or not at all.
    /// Returns the number of rows.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_jsonl(&self, path: impl AsRef<Path>) -> Result<usize> {
        write::jsonl(self, path.as_ref())
    }

    /// Writes the rows as Parquet, all columns. The file appears whole or not at all. Returns the
    /// number of rows.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_parquet(&self, path: impl AsRef<Path>) -> Result<usize> {
        write::parquet(self, path.as_ref())
    }

    /// Writes the rows in the chat format that OpenAI takes for fine-tuning, checked against the
    /// published rules ([`validate_openai_chat`](crate::validate_openai_chat)). A column `system`
    /// becomes the system message; other columns are left out. Returns the number of rows.
    ///
    /// # Errors
    /// The provider would refuse the file (fewer than ten rows, an empty text), or it cannot be
    /// written.
    pub fn write_openai_chat(&self, path: impl AsRef<Path>) -> Result<usize> {
        write::openai_chat(self, path.as_ref())
    }

    /// What tells rows apart: the prompts, or the completions where the prompt is empty, as in
    /// plain text.
    pub(crate) fn id_texts(&self) -> impl Iterator<Item = &str> {
        self.pairs().map(|(prompt, completion)| if prompt.is_empty() { completion } else { prompt })
    }

    /// The prompts and completions in order.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let prompts = self.text(PROMPT).iter().map(Option::unwrap_or_default);
        let completions = self.text(COMPLETION).iter().map(Option::unwrap_or_default);
        prompts.zip(completions)
    }

    pub(crate) fn text(&self, column: &str) -> &StringChunked {
        self.frame
            .column(column)
            .and_then(|column| column.str())
            .expect("every data set has the two text columns")
    }
}

impl fmt::Display for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> =
            self.frame.get_column_names().iter().map(|name| name.as_str()).collect();
        write!(
            f,
            "Dataset of {} ({}) from {}",
            counted(self.len(), "row"),
            names.join(", "),
            self.source
        )?;
        if *self.shape != Shape::PromptCompletion {
            write!(f, "\nread as {}", self.shape)?;
        }
        let rejected = self.rejected.height();
        if rejected > 0 {
            write!(f, "\n{} kept aside, see rejected():", counted(rejected, "line"))?;
            for reject in self.first_rejects(3) {
                let file = if reject.file == *self.source {
                    String::new()
                } else {
                    format!("{}, ", reject.file)
                };
                write!(f, "\n  {file}line {}: {}", reject.line, reject.reason)?;
            }
            if rejected > 3 {
                write!(f, "\n  … and {} more", rejected - 3)?;
            }
        }
        if let Some(cleaned) = &self.cleaning {
            let (changed, dropped) = (cleaned.report.rows_changed, cleaned.report.rows_dropped());
            write!(
                f,
                "\ncleaned: {} changed, {} dropped, see report()",
                counted(changed, "row"),
                dropped
            )?;
        }
        for (row, (prompt, completion)) in self.pairs().take(5).enumerate() {
            write!(f, "\n{row:>4}  {} → {}", excerpt(prompt, 60), excerpt(completion, 60))?;
        }
        if self.len() > 5 {
            f.write_char('\n')?;
            f.write_str("   …")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Dataset {
    pub(crate) fn first_rejects(&self, count: usize) -> Vec<Reject> {
        let text = |column: &str, row: usize| {
            let column = self.rejected.column(column).and_then(|column| column.str());
            column.ok().and_then(|column| column.get(row)).unwrap_or_default().to_owned()
        };
        let lines = self.rejected.column("line").and_then(|column| column.i64());
        (0..self.rejected.height().min(count))
            .map(|row| Reject {
                file: text("file", row),
                line: lines.as_ref().ok().and_then(|lines| lines.get(row)).unwrap_or_default()
                    as u64,
                reason: text("reason", row),
                raw: text("raw", row),
            })
            .collect()
    }
}

/// A line that could not be used.
#[derive(Debug)]
pub(crate) struct Reject {
    pub file: String,
    pub line: u64,
    pub reason: String,
    pub raw: String,
}

pub(crate) fn rejected_frame(rejects: &[Reject]) -> DataFrame {
    let lines: Vec<i64> = rejects.iter().map(|reject| reject.line as i64).collect();
    let reasons = StringChunked::from_iter_values(
        "reason".into(),
        rejects.iter().map(|reject| reject.reason.as_str()),
    );
    let raw = StringChunked::from_iter_values(
        "raw".into(),
        rejects.iter().map(|reject| reject.raw.as_str()),
    );
    let files = StringChunked::from_iter_values(
        "file".into(),
        rejects.iter().map(|reject| reject.file.as_str()),
    );
    let columns = vec![
        files.into_column(),
        Column::new("line".into(), lines),
        reasons.into_column(),
        raw.into_column(),
    ];
    DataFrame::new(rejects.len(), columns)
        .expect("four columns of equal length with different names")
}
