//! The data set: pairs of a prompt and a completion in a polars frame.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use polars::prelude::*;
use serde::{Deserialize, Serialize};

use crate::clean::Cleaning;
use crate::clean::report::{CleanReport, dropped_frame};
use crate::columns::{COMPLETION, PROMPT};
use crate::error::{DataError, Result};
use crate::key;
use crate::pipeline::{Pipeline, PipelineStep};
use crate::read::report::ReadReport;
use crate::read::shape::RowShape;
use crate::read::source::Source;
use crate::read::table::{Reject, rejected_frame};
use crate::split::{SideOf, Split};
use crate::text::{counted, excerpt};

/// A pair of a prompt and a completion.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Row {
    /// The text that the model is given.
    pub prompt: String,
    /// The text that it is trained to answer.
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
    shape: Arc<RowShape>,
    /// See [`Dataset::read_reports`].
    reports: Arc<Vec<ReadReport>>,
    cleaning: Option<Arc<Cleaned>>,
    /// See [`Dataset::cleanings`].
    cleanings: Arc<Vec<Vec<Cleaning>>>,
    split: Option<Arc<SideOf>>,
    /// `None`: how the rows came about is not known.
    pipeline: Option<Arc<Pipeline>>,
}

/// The report of [`Dataset::clean`] and the rows that it dropped.
struct Cleaned {
    report: CleanReport,
    dropped: DataFrame,
}

impl Dataset {
    /// A data set of these (prompt, completion) pairs.
    pub fn from_rows(rows: &[(&str, &str)]) -> Self {
        let prompts = StringChunked::from_iter_values(PROMPT.into(), rows.iter().map(|row| row.0));
        let completions =
            StringChunked::from_iter_values(COMPLETION.into(), rows.iter().map(|row| row.1));
        let columns = vec![prompts.into_column(), completions.into_column()];
        let frame = DataFrame::new(rows.len(), columns)
            .expect("two columns of equal length with different names");
        Self::assemble(frame, "rows", rejected_frame(&[]), RowShape::PromptCompletion)
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
        let shape = RowShape::PromptCompletion;
        let report = ReadReport::new("frame", &Source::default(), &shape, &frame, &rejects);
        Ok(Self::assemble(frame, "frame", rejected_frame(&rejects), shape).read_as(report))
    }

    pub(crate) fn assemble(
        frame: DataFrame,
        source: &str,
        rejected: DataFrame,
        shape: RowShape,
    ) -> Self {
        Self {
            frame,
            source: source.into(),
            rejected,
            shape: Arc::new(shape),
            reports: Arc::default(),
            cleaning: None,
            cleanings: Arc::new(vec![Vec::new()]),
            split: None,
            pipeline: None,
        }
    }

    /// The same set with the report of its reading.
    pub(crate) fn read_as(self, report: ReadReport) -> Self {
        Self { reports: Arc::new(vec![report]), ..self }
    }

    /// The same set with other rows. The lines kept aside at reading stay with it; how the rows came
    /// about is for the caller to say.
    pub(crate) fn with_frame(&self, frame: DataFrame) -> Self {
        Self { frame, pipeline: None, ..self.clone() }
    }

    /// The same set, whose rows came about so.
    pub(crate) fn made_by(self, pipeline: Pipeline) -> Self {
        Self { pipeline: Some(Arc::new(pipeline)), ..self }
    }

    /// The same set as the result of a step on `before`; `None`: a step that no pipeline can name.
    pub(crate) fn after(self, before: &Self, step: Option<PipelineStep>) -> Self {
        let pipeline = before.pipeline.as_deref().zip(step);
        let pipeline = pipeline.map(|(before, step)| Arc::new(before.clone().with(step)));
        Self { pipeline, ..self }
    }

    /// How the rows came about: the file that they were read from and the steps since. `None` for
    /// rows that did not come from a file alone: a frame, a list in a program, the rows that an audit
    /// left over.
    pub fn pipeline(&self) -> Option<&Pipeline> {
        self.pipeline.as_deref()
    }

    pub(crate) fn with_cleaning(
        &self,
        frame: DataFrame,
        report: CleanReport,
        dropped: DataFrame,
    ) -> Self {
        let steps: Vec<_> = report.steps.iter().map(|step| step.step.clone()).collect();
        let cleaning = Some(Arc::new(Cleaned { report, dropped }));
        let mut cleanings = Vec::clone(&self.cleanings);
        for part in &mut cleanings {
            let next = Cleaning { steps: steps.clone() };
            // A second cleaning by the same steps changes nothing.
            if part.last() != Some(&next) {
                part.push(next);
            }
        }
        let cleanings = Arc::new(cleanings);
        let cleaned = Self { frame, cleaning, cleanings, ..self.clone() };
        cleaned.after(self, Some(PipelineStep::Clean(steps)))
    }

    /// The same rows as a side of a split.
    pub(crate) fn of_split(self, split: &Arc<SideOf>) -> Self {
        Self { split: Some(Arc::clone(split)), ..self }
    }

    pub(crate) fn side_of(&self) -> Option<&SideOf> {
        self.split.as_deref()
    }

    /// The settings of the split that the rows are a side of; `None` for a set that was not split.
    pub fn split_settings(&self) -> Option<&Split> {
        self.split.as_deref().map(|of| &of.split)
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.frame.height()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The source of the rows: the path of the file as given.
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

    /// The shape of the rows in the file.
    pub fn shape(&self) -> &RowShape {
        &self.shape
    }

    /// What reading made of the files, one report for each source that the set was put together of
    /// ([`Dataset::concat`], [`Dataset::with_replay`]): which rows and columns are used, and which are
    /// not. Empty for rows that a program made.
    pub fn read_reports(&self) -> Vec<ReadReport> {
        Vec::clone(&self.reports)
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
        let head = self.with_frame(self.frame.head(Some(rows)));
        head.after(self, Some(PipelineStep::Head { rows }))
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
        let step = PipelineStep::Sample { rows, seed };
        Ok(self.take(&chosen)?.after(self, Some(step)))
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
        let mut cleanings = Vec::clone(&self.cleanings);
        cleanings.extend(other.cleanings.iter().filter(|of| !self.cleanings.contains(of)).cloned());
        let both = Self::assemble(frame, &source, rejected, RowShape::clone(&self.shape));
        let mut reports = Vec::clone(&self.reports);
        reports.extend(other.reports.iter().filter(|of| !self.reports.contains(of)).cloned());
        let both = Self { cleanings: Arc::new(cleanings), reports: Arc::new(reports), ..both };
        let step = other.pipeline().map(|other| PipelineStep::Concat(Box::new(other.clone())));
        Ok(both.after(self, step))
    }

    pub(crate) fn take(&self, rows: &[IdxSize]) -> Result<Self> {
        let indices = IdxCa::from_slice("row".into(), rows);
        Ok(self.with_frame(self.frame.take(&indices)?))
    }

    /// All cleanings that the rows have been through, in order: one list for each part that the set was
    /// put together of ([`Dataset::concat`], [`Dataset::with_replay`]). An empty list is a part that was
    /// not cleaned since it was read.
    ///
    /// ```
    /// use tunebook_data::{Cleaning, Dataset};
    /// let new = Dataset::from_rows(&[("<b>Hi</b>", "Hello!")]).clean(&Cleaning::standard())?;
    /// let old = Dataset::from_rows(&[("Bye", "Bye!")]);
    /// assert_eq!(new.concat(&old)?.cleanings(), [vec![Cleaning::standard()], vec![]]);
    /// # Ok::<(), tunebook_data::DataError>(())
    /// ```
    pub fn cleanings(&self) -> Vec<Vec<Cleaning>> {
        Vec::clone(&self.cleanings)
    }

    /// The report of the cleaning, step by step. Empty for a set that was not cleaned.
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
            None => dropped_frame(&self.frame, &[]).unwrap_or_default(),
        }
    }

    /// The number of distinct prompts, upper and lower case, spaces and the punctuation of prose aside.
    pub fn distinct_prompts(&self) -> usize {
        let keys: std::collections::HashSet<u128> =
            self.pairs().map(|(prompt, _)| key::text_hash(&key::normalized(prompt))).collect();
        keys.len()
    }

    /// The texts that identify rows: the prompts, or the completions where the prompt is empty, as
    /// in plain text.
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
        if *self.shape != RowShape::PromptCompletion {
            write!(f, "\nread as {}", self.shape)?;
        }
        for report in self.reports.iter() {
            if report.files.len() > 1 {
                write!(f, "\n{}", report.place())?;
            }
            report.write_unused(f)?;
            if let Some(caution) = report.caution() {
                write!(f, "\n{caution}")?;
            }
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
