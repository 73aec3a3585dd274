//! Reading: files of any known format become one data set, and unusable rows are kept aside.

pub(crate) mod conversation;
pub(crate) mod csv;
pub(crate) mod decompress;
pub(crate) mod fields;
pub(crate) mod hub;
pub(crate) mod input;
pub(crate) mod json;
pub(crate) mod jsonl;
pub(crate) mod orient;
pub(crate) mod parquet;
pub(crate) mod report;
pub(crate) mod shape;
pub(crate) mod source;
pub(crate) mod table;
pub(crate) mod text_files;

use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use polars::prelude::DataFrame;
use serde::{Deserialize, Serialize};
use tunebook_progress::{ProgressBar, interrupt};

use crate::dataset::Dataset;
use crate::error::{DataError, Result};
use crate::pipeline::Pipeline;
use crate::read::input::{Format, Input, other_format};
use crate::read::jsonl::Limits;
use crate::read::report::ReadReport;
use crate::read::shape::RowShape;
use crate::read::source::Source;
use crate::read::table::{Part, Sink, Table, rejected_frame};

/// A progress bar is worth it from this size on.
const BAR_BYTES: u64 = 32 << 20;
/// Formats that are read whole end here.
const MAX_WHOLE_BYTES: u64 = 8 << 30;
/// Bytes of a file that its format is recognised by.
const SNIFF_BYTES: usize = 64 << 10;
/// The settings of reading.
///
/// ```no_run
/// use tunebook_data::{Dataset, ReadOptions};
/// let options =
///     ReadOptions::default().template("{question}\n\n{context}", "{answer}").files("*train*");
/// let dataset = Dataset::read_with("some/folder", &options)?;
/// # Ok::<(), tunebook_data::DataError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReadOptions {
    /// The shape of the rows. The default is `None`: the shape is recognised.
    pub shape: Option<RowShape>,
    /// Which files of a folder or repository, as a pattern over their paths in it, such as
    /// `"data/train-*"`. The default is `None`: all files of a folder, and of a repository the
    /// files with "train" in their path, if there are any.
    pub files: Option<String>,
}

impl ReadOptions {
    /// The columns that hold the two texts.
    #[must_use]
    pub fn columns(mut self, prompt: &str, completion: &str) -> Self {
        self.shape = Some(RowShape::Columns {
            prompt: prompt.to_owned(),
            completion: completion.to_owned(),
        });
        self
    }

    /// The two texts made of columns, whose names stand in braces.
    #[must_use]
    pub fn template(mut self, prompt: &str, completion: &str) -> Self {
        self.shape = Some(RowShape::Template {
            prompt: prompt.to_owned(),
            completion: completion.to_owned(),
        });
        self
    }

    /// The shape, instead of the one that would be recognised.
    #[must_use]
    pub fn shape(mut self, shape: RowShape) -> Self {
        self.shape = Some(shape);
        self
    }

    /// Which files of a folder or a repository.
    #[must_use]
    pub fn files(mut self, pattern: &str) -> Self {
        self.files = Some(pattern.to_owned());
        self
    }

    fn check(&self) -> Result<()> {
        if let Some(RowShape::Template { prompt, completion }) = &self.shape {
            for template in [prompt, completion] {
                shape::check_template(template).map_err(|reason| DataError::Template { reason })?;
            }
        }
        Ok(())
    }
}

impl Dataset {
    /// Reads a file, a folder, a pattern such as `data/*.jsonl.gz`, or a data set of the Hugging
    /// Face hub (`owner/name`).
    ///
    /// JSONL, JSON, CSV and Parquet are recognised by content and name, gzip and Zstandard by
    /// content; a folder of text files gives a row for each. A JSON document may hold a list of
    /// objects, an object with one such list, or a table as pandas' `to_json` writes it. How the rows become pairs is
    /// recognised by the names of their fields ([`RowShape`]). Further fields become further
    /// columns (numbers and booleans as such, lists and objects as JSON text).
    ///
    /// A row that cannot be used (not UTF-8, not JSON, a field missing or not a text, too many
    /// fields …) does not stop the reading: it is kept in [`Dataset::rejected`] with its file, line
    /// and the reason. [`Dataset::read_reports`] says which files, rows and columns are used.
    ///
    /// # Errors
    /// The file is missing, empty, in another format, or holds not a single usable row; or the user
    /// pressed Stop.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        read(path.as_ref(), &ReadOptions::default())
    }

    /// [`Dataset::read`] for rows whose shape has to be named, or for some files of a folder or
    /// repository.
    ///
    /// # Errors
    /// As [`Dataset::read`]; a template with a brace too many.
    pub fn read_with(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Self> {
        read(path.as_ref(), options)
    }

    /// [`Dataset::read`] for a file that names the two texts otherwise ("question" and "answer",
    /// say). The columns are `prompt` and `completion` all the same.
    ///
    /// # Errors
    /// As [`Dataset::read`].
    pub fn read_keys(path: impl AsRef<Path>, prompt: &str, completion: &str) -> Result<Self> {
        read(path.as_ref(), &ReadOptions::default().columns(prompt, completion))
    }

    /// A data set of a frame whose columns have one of the known shapes, or the one that `options`
    /// names.
    ///
    /// # Errors
    /// Not a single row can be used.
    pub fn from_frame_with(frame: DataFrame, options: &ReadOptions) -> Result<Self> {
        frame_rows(&frame, options)
    }
}

fn read(given: &Path, options: &ReadOptions) -> Result<Dataset> {
    options.check()?;
    let found = source::find(given, options.files.as_deref())?;
    let mut table = Table::default();
    let mut shape = options.shape.clone();
    each(&found.inputs, &mut shape, Limits::default(), &mut |input, _, parts| {
        parts.into_iter().for_each(|part| table.push(part, &input.name));
        Ok(())
    })?;
    let rows = finish(table, given, &found, shape)?;
    // What is no UTF-8 could not be written down.
    Ok(match given.to_str() {
        Some(path) => rows.made_by(Pipeline::new(path, options)),
        None => rows,
    })
}

/// The pairs of a frame, by the shape that its columns have.
fn frame_rows(frame: &DataFrame, options: &ReadOptions) -> Result<Dataset> {
    options.check()?;
    let mut table = Table::default();
    let mut shape = options.shape.clone();
    parquet::rows(frame, &mut shape, &mut |part| table.push(part, "frame"));
    finish(table, Path::new("frame"), &Source::default(), shape)
}

fn finish(
    mut table: Table,
    path: &Path,
    found: &Source,
    shape: Option<RowShape>,
) -> Result<Dataset> {
    if table.rows == 0 {
        return Err(match table.rejects.first() {
            None => DataError::Empty { path: path.to_owned() },
            Some(first) => DataError::NoUsableRow {
                path: path.to_owned(),
                lines: table.rejects.len(),
                line: first.line,
                reason: first.reason.clone(),
                advice: match shape {
                    None => format!(
                        ". Known shapes: {}. For others name the two columns: \
                         `Dataset::read_keys(path, \"question\", \"answer\")`, in a recipe `data.shape: {{columns: {{prompt: …, \
                         completion: …}}}}`",
                        shape::KNOWN
                    ),
                    Some(_) => String::new(),
                },
            },
        });
    }
    let rejected = rejected_frame(&table.rejects);
    let rejects = std::mem::take(&mut table.rejects);
    let frame = table.into_frame()?;
    let shape = shape.unwrap_or(RowShape::PromptCompletion);
    let source = path.display().to_string();
    let report = ReadReport::new(&source, found, &shape, &frame, &rejects);
    Ok(Dataset::assemble(frame, &source, rejected, shape).read_as(report))
}

/// Hands the rows of all files to `sink`, in order, a block at a time where the format allows it.
///
/// One file that cannot be used is an error; of several, it is kept aside as line 0.
pub(crate) fn each(
    inputs: &[Input],
    shape: &mut Option<RowShape>,
    limits: Limits,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let size: u64 = inputs
        .iter()
        .filter_map(|input| std::fs::metadata(&input.path).ok())
        .map(|data| data.len())
        .sum();
    let what = match inputs {
        [one] => format!("Reading {}", one.name),
        several => format!("Reading {} files", several.len()),
    };
    let bar = (size >= BAR_BYTES).then(|| ProgressBar::new(what, Some(size)).unit("B"));
    let texts: Vec<&Input> = inputs.iter().filter(|input| input.format == Format::Text).collect();
    if texts.len() == inputs.len() {
        shape.get_or_insert(RowShape::Text);
        return text_files::each(&texts, shape, sink);
    }
    let read = Arc::new(AtomicU64::new(0));
    let mut shown = 0;
    for input in inputs {
        interrupt::check()?;
        let mut advance = |shape: Option<&RowShape>, parts: Vec<Part>| {
            interrupt::check()?;
            if let Some(bar) = &bar {
                let now = read.load(Ordering::Relaxed);
                bar.advance(now.saturating_sub(shown));
                shown = now;
            }
            sink(input, shape, parts)
        };
        let result = each_of(input, shape, limits, read.clone(), &mut advance);
        match result {
            Err(
                error @ (DataError::Unusable { .. }
                | DataError::Format { .. }
                | DataError::Io { action: "read", .. }),
            ) if inputs.len() > 1 => {
                let mut part = Part::with_capacity(0);
                part.reject(0, error.to_string(), b"");
                sink(input, shape.as_ref(), vec![part])?;
            }
            other => other?,
        }
    }
    Ok(())
}

/// Takes the rows of one file as they come.
type PartSink<'a> = dyn FnMut(Option<&RowShape>, Vec<Part>) -> Result<()> + 'a;

/// The rows of one file.
fn each_of(
    input: &Input,
    shape: &mut Option<RowShape>,
    limits: Limits,
    read: Arc<AtomicU64>,
    sink: &mut PartSink,
) -> Result<()> {
    let path = &input.path;
    let io = |source| DataError::Io { action: "read", path: path.clone(), source };
    let unusable = |reason: String| DataError::Unusable { path: path.clone(), reason };
    let mut plain = decompress::open(path, read)?;
    let mut start = Vec::with_capacity(SNIFF_BYTES);
    (&mut plain).take(SNIFF_BYTES as u64).read_to_end(&mut start).map_err(io)?;
    if let Some((found, remedy)) = other_format(&start) {
        return Err(DataError::Format { path: path.clone(), found, remedy });
    }
    let format = input.format.sniffed(&start);
    if format == Format::Parquet && plain.compression().is_none() {
        drop(plain);
        let frame = parquet::read_file(std::fs::File::open(path).map_err(io)?).map_err(unusable)?;
        let mut parts = Vec::new();
        parquet::rows(&frame, shape, &mut |part| parts.push(part));
        return sink(shape.as_ref(), parts);
    }
    let mut line = 0;
    let whole = Cursor::new(start).chain(&mut plain);
    if format == Format::JsonLines {
        jsonl::read_blocks(whole, &limits, &io, &mut |block, _| {
            let parts = jsonl::parse_block(block, shape, &mut line);
            sink(shape.as_ref(), parts)
        })?;
    } else {
        let mut bytes = Vec::new();
        whole.take(MAX_WHOLE_BYTES).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 == MAX_WHOLE_BYTES {
            return Err(unusable(format!(
                "it is larger than {} GiB and of a kind that is read whole: convert it to JSONL or Parquet",
                MAX_WHOLE_BYTES >> 30
            )));
        }
        if bytes.trim_ascii().is_empty() {
            return Ok(());
        }
        // The last record of a file that is cut off may be cut, too.
        let torn = match (format, plain.damage()) {
            (Format::Csv, Some(_)) => {
                let end = memchr::memrchr(b'\n', &bytes).map_or(0, |at| at + 1);
                bytes.split_off(end)
            }
            _ => Vec::new(),
        };
        line = memchr::memchr_iter(b'\n', &bytes).count() as u64;
        let mut parts = Vec::new();
        let mut push = |part| parts.push(part);
        match format {
            Format::Json => json::read(&bytes, shape, &mut push).map_err(unusable)?,
            Format::Csv => {
                let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
                csv::read(bytes, shape, &mut push).map_err(unusable)?;
            }
            Format::Parquet => {
                let frame = parquet::read_bytes(bytes).map_err(unusable)?;
                parquet::rows(&frame, shape, &mut push);
            }
            Format::Text | Format::JsonLines => {
                let reason = match plain.damage() {
                    Some(damage) => Some(plain.damage_reason(&damage)),
                    None => text_files::too_long(bytes.len(), limits.line),
                };
                return match reason {
                    Some(reason) => sink(shape.as_ref(), vec![text_files::torn(&bytes, reason)]),
                    None => {
                        sink(shape.as_ref(), vec![text_files::row(input, &bytes, &RowShape::Text)])
                    }
                };
            }
        }
        sink(shape.as_ref(), parts)?;
        if !torn.is_empty() {
            let mut part = Part::with_capacity(0);
            part.reject(line + 1, "expected a whole row, found it cut off".to_owned(), &torn);
            sink(shape.as_ref(), vec![part])?;
        }
    }
    if let Some(damage) = plain.damage() {
        let mut part = Part::with_capacity(0);
        part.reject(line + 1, plain.damage_reason(&damage), b"");
        sink(shape.as_ref(), vec![part])?;
    }
    Ok(())
}
