//! The JSONL reader: whole blocks of the file are parsed in parallel, and a line that cannot be used never costs another.

use std::borrow::Cow;
use std::fmt;
use std::io::Read;
use std::path::Path;

use polars::prelude::*;
use rayon::prelude::*;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use tunebook_progress::{ProgressBar, interrupt};

use crate::dataset::{COMPLETION, Dataset, PROMPT, Reject, rejected_frame};
use crate::error::{DataError, Result};

/// How much of a file is in memory beside the rows themselves.
const BLOCK_BYTES: usize = 16 << 20;
/// A longer line is kept aside: it is a broken file, not a pair of texts.
const MAX_LINE_BYTES: usize = 256 << 20;
/// What one thread parses at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// A progress bar is worth it from this size on.
const BAR_BYTES: u64 = 32 << 20;
/// How much of a line is kept with the reason why it was not used.
const RAW_BYTES: usize = 64 << 10;
/// Stands for what was cut from an overlong line. JSON text holds no control characters, so no parser takes it.
const CUT: &[u8] = b"\0[line too long]\0";
const BOM: &[u8] = b"\xef\xbb\xbf";
/// More distinct further keys than this are kept in one column of JSON text: they are ids, not columns.
const MAX_COLUMNS: usize = 64;

/// The keys that hold the two texts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys<'a> {
    pub prompt: &'a str,
    pub completion: &'a str,
}

impl Default for Keys<'static> {
    fn default() -> Self {
        Self { prompt: PROMPT, completion: COMPLETION }
    }
}

/// `keys` are those of the prompt and of the completion.
pub(crate) fn read(path: &Path, keys: Keys<'_>) -> Result<Dataset> {
    let io = |source| DataError::Io { action: "read", path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => DataError::NotFound {
            path: path.to_owned(),
            working_directory: std::env::current_dir().unwrap_or_default(),
        },
        _ => io(error),
    })?;
    if metadata.is_dir() {
        return Err(DataError::NotAFile { path: path.to_owned() });
    }
    let file = std::fs::File::open(path).map_err(io)?;
    let bar = (metadata.len() >= BAR_BYTES)
        .then(|| ProgressBar::new(format!("Reading {}", path.display()), Some(metadata.len())).unit("B"));
    let mut table = Table::default();
    let limits = Limits { block: BLOCK_BYTES, line: MAX_LINE_BYTES };
    read_blocks(file, &limits, path, &mut |block, first| {
        interrupt::check()?;
        if first && let Some((found, remedy)) = other_format(block) {
            return Err(DataError::Format { path: path.to_owned(), found, remedy });
        }
        table.append(block, keys);
        if let Some(bar) = &bar {
            bar.advance(block.len() as u64);
        }
        Ok(())
    })?;
    finish(table, path)
}

fn finish(table: Table, path: &Path) -> Result<Dataset> {
    if table.rows == 0 {
        return Err(match table.rejects.first() {
            None => DataError::Empty { path: path.to_owned() },
            Some(first) => DataError::NoUsableRow {
                path: path.to_owned(),
                lines: table.rejects.len(),
                line: first.line,
                reason: first.reason.clone(),
            },
        });
    }
    let rejected = rejected_frame(&table.rejects);
    let frame = table.into_frame()?;
    Ok(Dataset::assemble(frame, &path.display().to_string(), rejected))
}

struct Limits {
    block: usize,
    line: usize,
}

/// Hands the file over in blocks that end at a line's end. Of a line over the limit only the beginning is handed over, with
/// [`CUT`] behind it, which no parser takes.
fn read_blocks(
    mut file: impl Read,
    limits: &Limits,
    path: &Path,
    each: &mut dyn FnMut(&[u8], bool) -> Result<()>,
) -> Result<()> {
    let io = |source| DataError::Io { action: "read", path: path.to_owned(), source };
    let mut buffer: Vec<u8> = Vec::with_capacity(limits.block);
    let mut at_start = true;
    let mut first = true;
    loop {
        // What is in the buffer is the beginning of one line.
        let carried = buffer.len();
        let read = (&mut file).take(limits.block as u64).read_to_end(&mut buffer).map_err(io)?;
        let at_end = read < limits.block;
        let newline = memchr::memrchr(b'\n', &buffer[carried..]).map(|at| carried + at + 1);
        let end = if at_end { buffer.len() } else { newline.unwrap_or(0) };
        if end > 0 {
            let bom = if at_start && buffer.starts_with(BOM) { BOM.len() } else { 0 };
            at_start = false;
            each(&buffer[bom..end], first)?;
            first = false;
            buffer.drain(..end);
        }
        if at_end {
            return Ok(());
        }
        if buffer.len() > limits.line {
            buffer.truncate(RAW_BYTES.min(limits.line));
            buffer.extend_from_slice(CUT);
        }
    }
}

/// What the file is, if its first bytes say that it is no JSONL, and what to do.
fn other_format(start: &[u8]) -> Option<(&'static str, &'static str)> {
    let recode = "Save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE";
    match start {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some(("text in UTF-16", recode)),
        [0x1f, 0x8b, ..] => Some(("gzip-compressed", "Decompress it first: gunzip FILE")),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(("zstd-compressed", "Decompress it first: unzstd FILE")),
        [b'P', b'K', 3, 4, ..] => Some(("a ZIP archive", "Unpack it first: unzip FILE")),
        [b'P', b'A', b'R', b'1', ..] => {
            Some(("a Parquet file", "Read it with polars and hand the frame to Dataset::from_frame"))
        }
        _ => {
            // An array over several lines, or of objects: not just one odd line.
            let rest = start.trim_ascii_start().strip_prefix(b"[")?;
            let array = rest.trim_ascii_start().starts_with(b"{")
                || rest.starts_with(b"\n")
                || rest.starts_with(b"\r");
            array.then_some(("a JSON array", "Write its objects one a line: jq -c '.[]' FILE"))
        }
    }
}

/// The rows of a file as they come.
#[derive(Default)]
struct Table {
    prompts: Vec<StringChunked>,
    completions: Vec<StringChunked>,
    /// Values of further keys: (key, (row, value)), keys in the order in which they first came.
    extras: Vec<(String, Vec<(usize, Value)>)>,
    rejects: Vec<Reject>,
    rows: usize,
    lines: u64,
}

/// What one thread made of its lines.
struct Part {
    prompts: StringChunkedBuilder,
    completions: StringChunkedBuilder,
    extras: Vec<(usize, String, Value)>,
    rejects: Vec<Reject>,
    rows: usize,
    lines: u64,
}

impl Table {
    fn append(&mut self, block: &[u8], keys: Keys<'_>) {
        let parts: Vec<Part> = chunks(block).into_par_iter().map(|chunk| parse_chunk(chunk, keys)).collect();
        for part in parts {
            for (row, key, value) in part.extras {
                let at = self.extras.iter().position(|(name, _)| *name == key).unwrap_or_else(|| {
                    self.extras.push((key, Vec::new()));
                    self.extras.len() - 1
                });
                self.extras[at].1.push((self.rows + row, value));
            }
            let lines = self.lines;
            self.rejects.extend(
                part.rejects.into_iter().map(|reject| Reject { line: lines + reject.line, ..reject }),
            );
            self.prompts.push(part.prompts.finish());
            self.completions.push(part.completions.finish());
            self.rows += part.rows;
            self.lines += part.lines;
        }
    }

    fn into_frame(self) -> Result<DataFrame> {
        let rows = self.rows;
        let mut columns = vec![joined(self.prompts)?.into_column(), joined(self.completions)?.into_column()];
        if self.extras.len() > MAX_COLUMNS {
            let mut objects: Vec<Option<serde_json::Map<String, Value>>> = vec![None; rows];
            for (key, values) in self.extras {
                for (row, value) in values {
                    objects[row].get_or_insert_default().insert(key.clone(), value);
                }
            }
            let text =
                objects.into_iter().map(|object| object.map(|object| Value::Object(object).to_string()));
            columns.push(StringChunked::from_iter_options("extra".into(), text).into_column());
        } else {
            columns.extend(self.extras.into_iter().map(|(key, values)| typed_column(&key, values, rows)));
        }
        Ok(DataFrame::new(rows, columns)?)
    }
}

fn joined(parts: Vec<StringChunked>) -> Result<StringChunked> {
    let mut parts = parts.into_iter();
    let mut all = parts.next().unwrap_or_else(|| StringChunked::full_null(PlSmallStr::EMPTY, 0));
    for part in parts {
        all.append_owned(part)?;
    }
    Ok(all.rechunk().into_owned())
}

/// The values of a further key in the narrowest type that holds them all.
fn typed_column(key: &str, values: Vec<(usize, Value)>, rows: usize) -> Column {
    fn spread<T: Clone>(
        values: &[(usize, Value)],
        rows: usize,
        get: impl Fn(&Value) -> Option<T>,
    ) -> Option<Vec<Option<T>>> {
        let mut column = vec![None; rows];
        for (row, value) in values {
            column[*row] = Some(get(value)?);
        }
        Some(column)
    }
    if let Some(column) = spread(&values, rows, Value::as_bool) {
        return Column::new(key.into(), column);
    }
    if let Some(column) = spread(&values, rows, Value::as_i64) {
        return Column::new(key.into(), column);
    }
    if let Some(column) = spread(&values, rows, Value::as_f64) {
        return Column::new(key.into(), column);
    }
    let mut column: Vec<Option<String>> = vec![None; rows];
    for (row, value) in values {
        column[row] = Some(match value {
            Value::String(text) => text,
            other => other.to_string(),
        });
    }
    Column::new(key.into(), column)
}

/// Cuts a block at line ends, into pieces for the threads.
fn chunks(block: &[u8]) -> Vec<&[u8]> {
    let mut chunks = Vec::with_capacity(block.len() / CHUNK_BYTES + 1);
    let mut rest = block;
    while rest.len() > CHUNK_BYTES {
        match memchr::memchr(b'\n', &rest[CHUNK_BYTES..]) {
            Some(at) => {
                let (chunk, after) = rest.split_at(CHUNK_BYTES + at + 1);
                chunks.push(chunk);
                rest = after;
            }
            None => break,
        }
    }
    if !rest.is_empty() {
        chunks.push(rest);
    }
    chunks
}

fn parse_chunk(chunk: &[u8], keys: Keys<'_>) -> Part {
    let mut part = Part {
        prompts: StringChunkedBuilder::new(PROMPT.into(), chunk.len() / 256),
        completions: StringChunkedBuilder::new(COMPLETION.into(), chunk.len() / 256),
        extras: Vec::new(),
        rejects: Vec::new(),
        rows: 0,
        lines: 0,
    };
    let chunk = chunk.strip_suffix(b"\n").unwrap_or(chunk);
    for line in chunk.split(|&byte| byte == b'\n') {
        part.lines += 1;
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        match parse_line(line, keys) {
            Ok(pair) => {
                part.prompts.append_value(&pair.prompt);
                part.completions.append_value(&pair.completion);
                let row = part.rows;
                part.extras
                    .extend(pair.extras.into_iter().map(|(key, value)| (row, key.into_owned(), value)));
                part.rows += 1;
            }
            Err(reason) => {
                let raw = &line[..line.len().min(RAW_BYTES)];
                part.rejects.push(Reject {
                    line: part.lines,
                    reason,
                    raw: String::from_utf8_lossy(raw).into_owned(),
                });
            }
        }
    }
    part
}

struct Pair<'a> {
    prompt: Cow<'a, str>,
    completion: Cow<'a, str>,
    extras: Vec<(Cow<'a, str>, Value)>,
}

/// One line, or the reason why it cannot be used: what was expected, and what was found.
fn parse_line<'a>(line: &'a [u8], names: Keys<'_>) -> Result<Pair<'a>, String> {
    let text = std::str::from_utf8(line).map_err(|error| {
        let at = error.valid_up_to();
        format!("expected UTF-8, found the byte 0x{:02X} at column {}", line[at], at + 1)
    })?;
    let fields = match serde_json::from_str::<Fields>(text) {
        Ok(fields) => fields.0,
        Err(error) if error.is_data() => {
            let found = serde_json::from_str::<Value>(text).map_or("something else", |value| kind(&value));
            return Err(format!("expected a JSON object, found {found}"));
        }
        Err(_) if memchr::memmem::find(line, CUT).is_some() => {
            return Err(format!(
                "expected a line of at most {} MiB, found a longer one",
                MAX_LINE_BYTES >> 20
            ));
        }
        Err(error) => {
            return Err(format!(
                "expected a JSON object, found no valid JSON: {} at column {}",
                without_position(&error),
                error.column()
            ));
        }
    };
    let (mut prompt, mut completion) = (None, None);
    let mut extras: Vec<(Cow<str>, Value)> = Vec::new();
    let mut keys = Vec::with_capacity(fields.len());
    for (key, field) in fields {
        if keys.contains(&key) {
            return Err(format!("expected each key once, found \"{key}\" twice"));
        }
        keys.push(key.clone());
        let slot = if key == names.prompt {
            &mut prompt
        } else if key == names.completion {
            &mut completion
        } else {
            // The two columns have their own names; another key of such a name would be a second one.
            let key =
                if key == PROMPT || key == COMPLETION { Cow::Owned(format!("original_{key}")) } else { key };
            match field {
                Field::Other(Value::Null) => {}
                Field::Other(value) => extras.push((key, value)),
                Field::Text(text) => extras.push((key, Value::String(text.into_owned()))),
            }
            continue;
        };
        match field {
            Field::Text(text) => *slot = Some(text),
            Field::Other(value) => return Err(format!("expected text in \"{key}\", found {}", kind(&value))),
        }
    }
    match (prompt, completion) {
        (Some(prompt), Some(completion)) => Ok(Pair { prompt, completion, extras }),
        (prompt, _) => {
            let missing = if prompt.is_none() { names.prompt } else { names.completion };
            let found = match keys.as_slice() {
                [] => "no key at all".to_owned(),
                keys => {
                    let shown: Vec<String> = keys
                        .iter()
                        .take(8)
                        .map(|key| format!("\"{}\"", crate::text::excerpt(key, 40)))
                        .collect();
                    format!("only {}{}", shown.join(", "), if keys.len() > 8 { ", …" } else { "" })
                }
            };
            Err(format!(
                "expected the keys \"{}\" and \"{}\": \"{missing}\" is missing, found {found}",
                names.prompt, names.completion
            ))
        }
    }
}

/// The parser's message without its "at line 1 column 5": the line it means is always 1.
fn without_position(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.find(" at line ") {
        Some(at) => message[..at].to_owned(),
        None => message,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The fields of one object, in order, repeated keys included.
struct Fields<'a>(Vec<(Cow<'a, str>, Field<'a>)>);

/// A value: text borrowed from the line where it has no escapes.
enum Field<'a> {
    Text(Cow<'a, str>),
    Other(Value),
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::with_capacity(map.size_hint().unwrap_or(2));
                while let Some(key) = map.next_key::<Field>()? {
                    let Field::Text(key) = key else {
                        return Err(de::Error::custom("expected text as a key"));
                    };
                    fields.push((key, map.next_value()?));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_any(Object)
    }
}

impl<'de> Deserialize<'de> for Field<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Field<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Field<'de>, E> {
                Ok(Field::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Field<'de>, E> {
                Ok(Field::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_string<E>(self, text: String) -> Result<Field<'de>, E> {
                Ok(Field::Text(Cow::Owned(text)))
            }

            fn visit_unit<E>(self) -> Result<Field<'de>, E> {
                Ok(Field::Other(Value::Null))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Field<'de>, E> {
                Ok(Field::Other(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Field<'de>, E> {
                Ok(Field::Other(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Field<'de>, E> {
                Ok(Field::Other(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Field<'de>, E> {
                Ok(Field::Other(value.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Field<'de>, A::Error> {
                Value::deserialize(de::value::SeqAccessDeserializer::new(seq)).map(Field::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Field<'de>, A::Error> {
                Value::deserialize(de::value::MapAccessDeserializer::new(map)).map(Field::Other)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reason(line: &str) -> String {
        parse_line(line.as_bytes(), Keys::default()).err().unwrap_or_else(|| "usable".into())
    }

    #[test]
    fn reasons_say_what_was_expected_and_found() {
        let lines = [
            "{\"prompt\": \"a\", \"completion\": \"b\"}",
            "prompt,completion",
            "{\"prompt\": \"a\", \"completion\": \"b\"",
            "[1, 2]",
            "\"text\"",
            "null",
            "{}",
            "{\"prompt\": \"a\"}",
            "{\"completion\": \"a\", \"id\": 3}",
            "{\"prompt\": 7, \"completion\": \"b\"}",
            "{\"prompt\": \"a\", \"completion\": null}",
            "{\"prompt\": \"a\", \"completion\": [\"b\"]}",
            "{\"prompt\": \"a\", \"prompt\": \"b\", \"completion\": \"c\"}",
            "{\"prompt\": \"a\\ud800\", \"completion\": \"c\"}",
            "{\"prompt\": \"a\", \"completion\": \"b\"} {}",
        ];
        let reasons: Vec<(&str, String)> = lines.iter().map(|line| (*line, reason(line))).collect();
        insta::assert_debug_snapshot!(reasons);
        assert_eq!(
            parse_line(b"{\"prompt\": \"caf\xe9\"}", Keys::default()).err().as_deref(),
            Some("expected UTF-8, found the byte 0xE9 at column 16")
        );
    }

    /// All blocks of `bytes` under small limits, joined.
    fn table(bytes: &[u8], block: usize, line: usize) -> Table {
        let mut table = Table::default();
        let path = Path::new("test");
        read_blocks(bytes, &Limits { block, line }, path, &mut |block, _| {
            table.append(block, Keys::default());
            Ok(())
        })
        .expect("reading from memory does not fail");
        table
    }

    proptest! {
        /// Where the blocks are cut makes no difference.
        #[test]
        fn block_borders_do_not_matter(lines in proptest::collection::vec("\\{\"prompt\":\"[a-z\u{e9}]{0,9}\",\"completion\":\"x\"\\}|bad|\r?|", 1..30), block in 1usize..60) {
            let text = lines.join("\n");
            let whole = table(text.as_bytes(), 1 << 20, 1 << 20);
            let cut = table(text.as_bytes(), block, 1 << 20);
            prop_assert_eq!(whole.rows, cut.rows);
            let numbers = |table: &Table| table.rejects.iter().map(|reject| reject.line).collect::<Vec<_>>();
            prop_assert_eq!(numbers(&whole), numbers(&cut));
            if whole.rows > 0 {
                prop_assert!(whole.into_frame().unwrap().equals(&cut.into_frame().unwrap()));
            }
        }

        #[test]
        fn any_bytes_are_handled(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let table = table(&bytes, 16, 1 << 20);
            let filled = bytes.split(|&b| b == b'\n').filter(|line| !line.trim_ascii().is_empty()).count();
            let bom = bytes.starts_with(b"\xef\xbb\xbf");
            prop_assert!(bom || table.rows + table.rejects.len() == filled);
        }
    }

    #[test]
    fn an_overlong_line_is_kept_aside_and_its_neighbours_load() {
        let good = "{\"prompt\":\"a\",\"completion\":\"b\"}\n";
        let long = format!("{{\"prompt\":\"{}\",\"completion\":\"b\"}}\n", "x".repeat(400_000));
        let table = table(format!("{good}{long}{good}").as_bytes(), 1 << 10, 100_000);
        assert_eq!(table.rows, 2);
        assert_eq!(table.rejects.iter().map(|reject| reject.line).collect::<Vec<_>>(), [2]);
    }
}
