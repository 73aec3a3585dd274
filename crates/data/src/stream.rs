//! Files larger than memory: rows are read, cleaned, compared and written a block at a time.
//!
//! To find duplicates, one hash of 8 bytes is kept of each row: 100 million rows need about 2 GB of
//! memory. The hashes of a profile go to temporary files.

use std::collections::HashSet;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use polars::prelude::*;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tunebook_disk::WholeFile;

use crate::clean::Cleaning;
use crate::clean::report::{CleanReport, EXAMPLES, StepReport};
use crate::clean::step::{CleaningStep, StepKind};
use crate::dataset::Dataset;
use crate::error::{DataError, Result};
use crate::profile::{Profile, Tally, TokenCount};
use crate::read::jsonl::Limits;
use crate::read::shape::RowShape;
use crate::read::source;
use crate::read::table::{Table, rejected_frame};
use crate::read::{self, ReadOptions};
use crate::split::{Side, Split};
use crate::{key, write};

/// Bytes of a file that are rows in memory at a time.
const BLOCK_BYTES: usize = 32 << 20;
/// A set of hashes grows part by part, so that it is never held twice.
const PARTS: usize = 256;

/// A data set that stays where it is: read a block at a time. Cheap to clone; nothing is read
/// before a result is asked for.
///
/// ```no_run
/// use tunebook_data::{Cleaning, Dataset, Split};
/// let scan = Dataset::scan("dump/*.jsonl.gz")?;
/// println!("{}", scan.profile()?);
/// let done = scan.clean(&Cleaning::standard())?.split_into(&Split::holdout(0.12), "clean")?;
/// println!("{} rows in clean/train.jsonl", done.train_rows);
/// # Ok::<(), tunebook_data::DataError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Scan {
    given: PathBuf,
    options: ReadOptions,
    cleaning: Cleaning,
}

/// The result of [`Scan::split_into`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Streamed {
    /// The report of the cleaning.
    pub report: CleanReport,
    /// Rows in `train.jsonl`.
    pub train_rows: usize,
    /// Rows in `validation.jsonl`.
    pub validation_rows: usize,
    /// Rows in `test.jsonl`, which is there when the split has a test.
    pub test_rows: usize,
    /// Rows that the reader could not use; they are in `quarantine.jsonl` with the dropped ones.
    pub rejected: usize,
}

impl Dataset {
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
}

impl Scan {
    fn new(given: &Path, options: &ReadOptions) -> Result<Self> {
        // A file that is not there is better known at once.
        source::find(given, options.files.as_deref())?;
        Ok(Self {
            given: given.to_owned(),
            options: options.clone(),
            cleaning: Cleaning::default(),
        })
    }

    /// Adds the steps of a cleaning. Exact duplicates can be dropped, as the last step.
    ///
    /// # Errors
    /// A step that compares all rows with each other, or a setting out of its range.
    pub fn clean(&self, cleaning: &Cleaning) -> Result<Self> {
        cleaning.check()?;
        let mut scan = self.clone();
        scan.cleaning.steps.extend(cleaning.steps.iter().cloned());
        let last = scan.cleaning.steps.len().saturating_sub(1);
        for (at, step) in scan.cleaning.steps.iter().enumerate() {
            let fits = match step {
                CleaningStep::DropDuplicates => at == last,
                CleaningStep::DropEmpty => true,
                step => !matches!(step.kind(), StepKind::Set),
            };
            if !fits {
                let problem = match step {
                    CleaningStep::DropDuplicates => {
                        "expected it as the last step of a scan".to_owned()
                    }
                    _ => "it compares all rows, which a scan never holds: \
                          write the rows that remain and clean those"
                        .to_owned(),
                };
                return Err(DataError::Step { step: step.name(), problem });
            }
        }
        Ok(scan)
    }

    /// The profile of the files, before any cleaning.
    ///
    /// # Errors
    /// As [`Dataset::read`]; a temporary file cannot be written.
    pub fn profile(&self) -> Result<Profile> {
        self.tally(None, None)
    }

    /// [`Scan::profile`] with the tokens of a model, and how many it can see.
    ///
    /// # Errors
    /// As [`Scan::profile`].
    pub fn profile_with_tokens(
        &self,
        tokens: &TokenCount<'_>,
        context_tokens: usize,
    ) -> Result<Profile> {
        self.tally(Some(tokens), Some(context_tokens))
    }

    fn tally(&self, tokens: Option<&TokenCount<'_>>, context: Option<usize>) -> Result<Profile> {
        let mut tally = Tally::default();
        self.blocks(&mut |block| tally.add(&block, tokens))?;
        tally.finish(tokens.is_some(), context)
    }

    /// Cleans and divides the rows into `train.jsonl` and `validation.jsonl` (and `test.jsonl`, if
    /// the split has one) in `folder`. What was dropped or could not be used goes to
    /// `quarantine.jsonl`, with the step or file and the reason. The files appear whole or not at
    /// all; the rows are those that [`Dataset::clean`] and [`Dataset::split`] give.
    ///
    /// # Errors
    /// As [`Dataset::read`]; a split that compares rows (groups, time, strata, near-duplicates); a
    /// file cannot be written.
    pub fn split_into(&self, split: &Split, folder: impl AsRef<Path>) -> Result<Streamed> {
        split.check_for_scan()?;
        let folder = folder.as_ref();
        let mut names = vec!["train.jsonl", "validation.jsonl", "quarantine.jsonl"];
        if split.test > 0.0 {
            names.push("test.jsonl");
        }
        let mut out = OutputFiles::create(folder, &names)?;
        let mut seen = SeenHashes::default();
        let dedup = self.cleaning.steps.last() == Some(&CleaningStep::DropDuplicates);
        let mut each_block = self.cleaning.clone();
        if dedup {
            each_block.steps.pop();
        }
        let mut report = CleanReport::untouched(0);
        report.steps = self
            .cleaning
            .steps
            .iter()
            .map(|step| StepReport {
                step: step.clone(),
                changed: 0,
                dropped: 0,
                examples: Vec::new(),
            })
            .collect();
        let (mut counts, mut rejected) = ([0usize; 3], 0);
        self.blocks(&mut |block| {
            let first = report.rows_before;
            rejected += block.rejected().height();
            out.quarantine(2, &block.rejected(), first)?;
            let clean = block.clean(&each_block)?;
            out.quarantine(2, &clean.dropped(), first)?;
            let of_block = clean.report();
            for (all, step) in report.steps.iter_mut().zip(of_block.steps) {
                all.changed += step.changed;
                all.dropped += step.dropped;
                let room = EXAMPLES.saturating_sub(all.examples.len());
                all.examples.extend(step.examples.into_iter().take(room).map(|mut example| {
                    example.row += first;
                    example
                }));
            }
            report.rows_changed += of_block.rows_changed;
            report.rows_before += block.len();
            let clean =
                if dedup { without_seen(&clean, &mut seen, &mut report, &mut out)? } else { clean };
            report.rows_after += clean.len();
            let sides: Vec<Side> = clean
                .id_texts()
                .collect::<Vec<_>>()
                .into_par_iter()
                .map(|text| split.side(key::unit_interval(text, split.seed)))
                .collect();
            for (file, side) in [(0, Side::Train), (1, Side::Validation), (3, Side::Test)] {
                let rows: Vec<IdxSize> = (0..sides.len())
                    .filter(|&row| sides[row] == side)
                    .map(|row| row as IdxSize)
                    .collect();
                if !rows.is_empty() {
                    out.rows(file, &clean.take(&rows)?)?;
                    counts[file.min(2)] += rows.len();
                }
            }
            Ok(())
        })?;
        out.finish()?;
        let [train_rows, validation_rows, test_rows] = counts;
        Ok(Streamed { report, train_rows, validation_rows, test_rows, rejected })
    }

    /// Hands over the rows, a block at a time.
    fn blocks(&self, each: &mut dyn FnMut(Dataset) -> Result<()>) -> Result<()> {
        let inputs = source::find(&self.given, self.options.files.as_deref())?.inputs;
        let mut shape = self.options.shape.clone();
        let limits = Limits { block: BLOCK_BYTES, ..Limits::default() };
        let source = self.given.display().to_string();
        let (mut any, mut first_reject) = (false, None);
        read::each(&inputs, &mut shape, limits, &mut |input, shape, parts| {
            let mut table = Table::default();
            parts.into_iter().for_each(|part| table.push(part, &input.name));
            if table.rows == 0 && table.rejects.is_empty() {
                return Ok(());
            }
            any |= table.rows > 0;
            if first_reject.is_none() {
                first_reject =
                    table.rejects.first().map(|reject| (reject.line, reject.reason.clone()));
            }
            let rejected = rejected_frame(&table.rejects);
            let frame = table.into_frame()?;
            let shape = shape.cloned().unwrap_or(RowShape::PromptCompletion);
            each(Dataset::assemble(frame, &source, rejected, shape))
        })?;
        match (any, first_reject) {
            (true, _) => Ok(()),
            (false, None) => Err(DataError::Empty { path: self.given.clone() }),
            (false, Some((line, reason))) => Err(DataError::NoUsableRow {
                path: self.given.clone(),
                lines: 1,
                line,
                reason,
                advice: String::new(),
            }),
        }
    }
}

/// The rows whose words were not seen before; the others go to the quarantine.
fn without_seen(
    clean: &Dataset,
    seen: &mut SeenHashes,
    report: &mut CleanReport,
    out: &mut OutputFiles,
) -> Result<Dataset> {
    let pairs: Vec<(&str, &str)> = clean.pairs().collect();
    let hashes: Vec<u64> = pairs
        .into_par_iter()
        .with_min_len(512)
        .map(|(prompt, completion)| {
            key::pair_hash(&key::normalized(prompt), &key::normalized(completion)) as u64
        })
        .collect();
    let (mut kept, mut dropped): (Vec<IdxSize>, Vec<IdxSize>) = (Vec::new(), Vec::new());
    for (row, hash) in hashes.into_iter().enumerate() {
        if seen.insert(hash) { &mut kept } else { &mut dropped }.push(row as IdxSize);
    }
    if dropped.is_empty() {
        return Ok(clean.clone());
    }
    if let Some(step) = report.steps.last_mut() {
        step.dropped += dropped.len();
    }
    let mut frame = clean.take(&dropped)?.frame();
    let fill = |name: &str, text: &str| {
        StringChunked::full(name.into(), text, dropped.len()).into_column()
    };
    frame.with_column(fill("step", CleaningStep::DropDuplicates.name()))?;
    frame.with_column(fill("reason", "the same words as an earlier row"))?;
    out.quarantine(2, &frame, 0)?;
    clean.take(&kept)
}

/// Hashes of the rows so far.
struct SeenHashes(Vec<HashSet<u64, key::Identity>>);

impl Default for SeenHashes {
    fn default() -> Self {
        Self((0..PARTS).map(|_| HashSet::default()).collect())
    }
}

impl SeenHashes {
    /// Whether it is new.
    fn insert(&mut self, hash: u64) -> bool {
        // The set takes the low bits for places and the top seven for tags; these are in between.
        self.0[(hash >> 40) as usize % PARTS].insert(hash)
    }
}

/// Files that appear together at the end.
struct OutputFiles {
    files: Vec<(PathBuf, BufWriter<WholeFile>)>,
}

impl OutputFiles {
    fn create(folder: &Path, names: &[&str]) -> Result<Self> {
        let io = |source| DataError::Io { action: "write", path: folder.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(io)?;
        let mut files = Vec::new();
        for name in names {
            let path = folder.join(name);
            let file = WholeFile::create(&path).map_err(io)?;
            files.push((path, BufWriter::with_capacity(1 << 20, file)));
        }
        Ok(Self { files })
    }

    fn rows(&mut self, file: usize, rows: &Dataset) -> Result<()> {
        let (path, file) = &mut self.files[file];
        let io = |source| DataError::Io { action: "write", path: path.clone(), source };
        write::lines(rows.frame_ref(), file).map_err(io)
    }

    /// Rows of any columns; their numbers are counted from the first row of the scan.
    fn quarantine(&mut self, file: usize, frame: &DataFrame, first: usize) -> Result<()> {
        if frame.height() == 0 {
            return Ok(());
        }
        let mut frame = frame.clone();
        if let (Ok(rows), true) = (frame.column("row"), frame.column("step").is_ok() && first > 0) {
            let rows =
                rows.i64()?.iter().map(|row| row.map(|row| row + first as i64)).collect::<Vec<_>>();
            frame.with_column(Column::new("row".into(), rows))?;
        }
        let (path, file) = &mut self.files[file];
        let io = |source| DataError::Io { action: "write", path: path.clone(), source };
        write::lines(&frame, file).map_err(io)
    }

    fn finish(self) -> Result<()> {
        let mut whole = Vec::new();
        for (path, file) in self.files {
            let io = |source| DataError::Io { action: "write", path: path.clone(), source };
            let file = file.into_inner().map_err(|error| io(error.into_error()))?;
            file.sync_all().map_err(io)?;
            whole.push((path, file));
        }
        for (path, file) in whole {
            file.put().map_err(|source| DataError::Io { action: "write", path, source })?;
        }
        Ok(())
    }
}
