//! Reading: files of any known kind become one data set, and what cannot be used is kept aside.

pub(crate) mod csv;
pub(crate) mod decompress;
pub(crate) mod fields;
pub(crate) mod hub;
pub(crate) mod json;
pub(crate) mod jsonl;
pub(crate) mod parquet;
pub(crate) mod shape;
pub(crate) mod source;
pub(crate) mod table;

use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use polars::prelude::DataFrame;
use serde::{Deserialize, Serialize};
use tunebook_progress::{ProgressBar, interrupt};

use crate::dataset::{Dataset, rejected_frame};
use crate::error::{DataError, Result};
use crate::read::jsonl::Limits;
use crate::read::shape::Shape;
use crate::read::source::{Format, Input};
use crate::read::table::{Part, Table};

/// A progress bar is worth it from this size on.
const BAR_BYTES: u64 = 32 << 20;
/// Formats that are read whole end here.
const MAX_WHOLE_BYTES: u64 = 8 << 30;
/// How much of a file is looked at to tell what it is.
const SNIFF_BYTES: usize = 64 << 10;
/// Text files that become one part.
const TEXT_FILES: usize = 256;

/// How to read, where the file does not say it by itself.
///
/// ```no_run
/// use tunebook_data::{Dataset, ReadOptions};
/// let options = ReadOptions::default().template("{question}\n\n{context}", "{answer}").files("*train*");
/// let dataset = Dataset::read_with("some/folder", &options)?;
/// # Ok::<(), tunebook_data::DataError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReadOptions {
    /// How rows become pairs; recognised by itself when it is `None`.
    pub shape: Option<Shape>,
    /// Which files of a folder or repository, as a pattern over their paths in it, such as
    /// `"data/train-*"`. Of a repository those with "train" in their path are read when it is
    /// `None`, if there are any.
    pub files: Option<String>,
}

impl ReadOptions {
    /// The columns that hold the two texts.
    #[must_use]
    pub fn columns(mut self, prompt: &str, completion: &str) -> Self {
        self.shape =
            Some(Shape::Columns { prompt: prompt.to_owned(), completion: completion.to_owned() });
        self
    }

    /// The two texts made of columns, whose names stand in braces.
    #[must_use]
    pub fn template(mut self, prompt: &str, completion: &str) -> Self {
        self.shape =
            Some(Shape::Template { prompt: prompt.to_owned(), completion: completion.to_owned() });
        self
    }

    /// The shape, instead of the one that would be recognised.
    #[must_use]
    pub fn shape(mut self, shape: Shape) -> Self {
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
        if let Some(Shape::Template { prompt, completion }) = &self.shape {
            for template in [prompt, completion] {
                shape::check_template(template).map_err(|reason| DataError::Template { reason })?;
            }
        }
        Ok(())
    }
}

pub(crate) fn read(given: &Path, options: &ReadOptions) -> Result<Dataset> {
    options.check()?;
    let inputs = source::find(given, options.files.as_deref())?;
    let mut table = Table::default();
    let mut shape = options.shape.clone();
    each(&inputs, &mut shape, Limits::default(), &mut |input, _, parts| {
        parts.into_iter().for_each(|part| table.push(part, &input.name));
        Ok(())
    })?;
    finish(table, given, shape)
}

/// The pairs of a frame, by the shape that its columns have.
pub(crate) fn frame(frame: &DataFrame, options: &ReadOptions) -> Result<Dataset> {
    options.check()?;
    let mut table = Table::default();
    let mut shape = options.shape.clone();
    parquet::rows(frame, &mut shape, &mut |part| table.push(part, "frame"));
    finish(table, Path::new("frame"), shape)
}

fn finish(table: Table, path: &Path, shape: Option<Shape>) -> Result<Dataset> {
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
                        ". Known shapes: {}. For others name the columns with ReadOptions",
                        shape::KNOWN
                    ),
                    Some(_) => String::new(),
                },
            },
        });
    }
    let rejected = rejected_frame(&table.rejects);
    let frame = table.into_frame()?;
    let shape = shape.unwrap_or(Shape::PromptCompletion);
    Ok(Dataset::assemble(frame, &path.display().to_string(), rejected, shape))
}

/// Takes parts of a file, with the shape that they were read by.
pub(crate) type Sink<'a> = dyn FnMut(&Input, Option<&Shape>, Vec<Part>) -> Result<()> + 'a;

/// Hands the rows of all files to `sink`, in order, a block at a time where the format allows it.
///
/// One file that cannot be used is an error; of several, it is kept aside as line 0.
pub(crate) fn each(
    inputs: &[Input],
    shape: &mut Option<Shape>,
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
        shape.get_or_insert(Shape::Text);
        return each_text(&texts, shape, sink);
    }
    let read = Arc::new(AtomicU64::new(0));
    let mut shown = 0;
    for input in inputs {
        interrupt::check()?;
        let mut advance = |shape: Option<&Shape>, parts: Vec<Part>| {
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
type PartSink<'a> = dyn FnMut(Option<&Shape>, Vec<Part>) -> Result<()> + 'a;

/// The rows of one file.
fn each_of(
    input: &Input,
    shape: &mut Option<Shape>,
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
    let format = format(input.format, &start);
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
            Format::Text | Format::JsonLines => push(text(input, &bytes)),
        }
        sink(shape.as_ref(), parts)?;
    }
    if let Some(damage) = plain.damage() {
        let mut part = Part::with_capacity(0);
        let compression = plain.compression().unwrap_or("compressed");
        part.reject(
            line + 1,
            format!("expected more {compression} data, found it damaged or cut off: {damage}"),
            b"",
        );
        sink(shape.as_ref(), vec![part])?;
    }
    Ok(())
}

/// Text files, one row each, with the column `file`.
fn each_text(inputs: &[&Input], shape: &Option<Shape>, sink: &mut Sink<'_>) -> Result<()> {
    if !matches!(shape, Some(Shape::Text | Shape::Columns { .. } | Shape::Template { .. })) {
        return Err(DataError::Template {
            reason: "text files have the columns `file` and `text` only: leave the shape out, or make a template of these".to_owned(),
        });
    }
    for inputs in inputs.chunks(TEXT_FILES) {
        for input in inputs {
            interrupt::check()?;
            let mut part =
                match decompress::open(&input.path, Arc::default()).and_then(|mut plain| {
                    let mut bytes = Vec::new();
                    let io =
                        |source| DataError::Io { action: "read", path: input.path.clone(), source };
                    (&mut plain)
                        .take(Limits::default().line as u64)
                        .read_to_end(&mut bytes)
                        .map_err(io)?;
                    Ok(bytes)
                }) {
                    Ok(bytes) => text_with(input, &bytes, shape.as_ref().unwrap_or(&Shape::Text)),
                    Err(error) => {
                        let mut part = Part::with_capacity(0);
                        part.reject(0, error.to_string(), b"");
                        part
                    }
                };
            part.lines += 1;
            sink(input, shape.as_ref(), vec![part])?;
        }
    }
    Ok(())
}

fn text(input: &Input, bytes: &[u8]) -> Part {
    text_with(input, bytes, &Shape::Text)
}

fn text_with(input: &Input, bytes: &[u8], shape: &Shape) -> Part {
    use crate::read::fields::Field;
    use std::borrow::Cow;

    let mut part = Part::with_capacity(1);
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + memchr::memchr_iter(b'\n', &bytes[..error.valid_up_to()]).count() as u64;
        (line, format!("expected UTF-8, found the byte 0x{:02X}", bytes[error.valid_up_to()]))
    });
    let pair = text.and_then(|text| {
        if let Some(at) = memchr::memchr(0, bytes) {
            let line = 1 + memchr::memchr_iter(b'\n', &bytes[..at]).count() as u64;
            return Err((line, "expected text, found a null byte".to_owned()));
        }
        let fields = vec![
            (Cow::Borrowed("file"), Field::Text(Cow::Borrowed(input.name.as_str()))),
            (Cow::Borrowed("text"), Field::Text(Cow::Borrowed(text))),
        ];
        shape.pair(fields).map_err(|reason| (1, reason))
    });
    match pair {
        Ok(pair) => part.push(pair),
        Err((line, reason)) => part.reject(line, reason, bytes),
    }
    part
}

/// What the file is: its first bytes say more than its name.
fn format(by_name: Format, start: &[u8]) -> Format {
    if start.starts_with(b"PAR1") {
        return Format::Parquet;
    }
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    match by_name {
        Format::Json | Format::JsonLines => {
            let first_line = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
            if text.starts_with(b"[") {
                // An array over several lines, or of objects: not just one odd line.
                let rest = text[1..].trim_ascii_start();
                let array =
                    rest.starts_with(b"{") || text[1..].trim_start_spaces().starts_with(b"\n");
                return if array || by_name == Format::Json {
                    Format::Json
                } else {
                    Format::JsonLines
                };
            }
            // `.json` is also what many call JSONL.
            let whole = serde_json::from_slice::<serde::de::IgnoredAny>(first_line).is_ok();
            match by_name {
                Format::Json
                    if text.starts_with(b"{") && !whole && first_line.len() < text.len() =>
                {
                    Format::Json
                }
                Format::Json if text.starts_with(b"{") && first_line.len() == text.len() => {
                    Format::Json
                }
                Format::Json if !text.starts_with(b"{") => Format::Json,
                _ => Format::JsonLines,
            }
        }
        other => other,
    }
}

trait TrimSpaces {
    fn trim_start_spaces(&self) -> &[u8];
}

impl TrimSpaces for [u8] {
    fn trim_start_spaces(&self) -> &[u8] {
        let at = self
            .iter()
            .position(|byte| !matches!(byte, b' ' | b'\t' | b'\r'))
            .unwrap_or(self.len());
        &self[at..]
    }
}

/// What the file is, if its first bytes say that it is nothing that can be read, and what to do.
fn other_format(start: &[u8]) -> Option<(&'static str, &'static str)> {
    let recode = "Save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE";
    match start {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some(("text in UTF-16", recode)),
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Some(("compressed twice", "Decompress it once: gunzip FILE or unzstd FILE"))
        }
        [b'P', b'K', 3, 4, ..] => Some(("a ZIP archive", "Unpack it first: unzip FILE")),
        [b'%', b'P', b'D', b'F', ..] => {
            Some(("a PDF document", "Extract its text first: pdftotext FILE"))
        }
        _ => None,
    }
}
