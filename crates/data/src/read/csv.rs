//! The CSV reader: RFC 4180, with a comma, semicolon, tab or bar between the fields, and a row that
//! cannot be used never costs another.
//!
//! polars reads CSV faster, but it stops at the first ragged row or takes the rest of the file into
//! a quote that is never closed. Here a quoted field must be followed by a delimiter or a line's
//! end; where it is not, its first line is kept aside and reading goes on at the next one.

use std::borrow::Cow;

use rayon::prelude::*;
use serde_json::Value;

use crate::read::fields::Field;
use crate::read::jsonl::BOM;
use crate::read::shape::RowShape;
use crate::read::table::Part;

/// The delimiters that may stand between fields.
const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];
/// Bytes looked at again after quotes without a partner, in multiples of the file; then the rest is
/// kept aside.
const RETRIES: usize = 8;
/// Records that one thread makes pairs of at a time.
const CHUNK_ROWS: usize = 4096;

/// A field, and whether it was quoted.
type RawField<'a> = (Cow<'a, [u8]>, bool);
/// The text of a quoted field and the offset after it; or the error and its offset.
type Quoted<'a> = Result<(Cow<'a, [u8]>, usize), (String, usize)>;

/// A record: where it starts, and its fields.
struct Record<'a> {
    line: u64,
    raw: &'a [u8],
    fields: Result<Vec<RawField<'a>>, String>,
}

/// The rows of a CSV file. `shape` is filled in from the header when it is not given and the header
/// is one of a known shape.
///
/// # Errors
/// There is no header, or two of its names are the same.
pub(crate) fn read(
    bytes: &[u8],
    shape: &mut Option<RowShape>,
    each: &mut dyn FnMut(Part),
) -> Result<(), String> {
    let newline = newline(bytes);
    let named = named_delimiter(bytes, newline);
    let (at, line) = named.map_or((0, 1), |(_, end)| (end, 2));
    let delimiter = named.map_or_else(|| delimiter(bytes, newline), |(delimiter, _)| delimiter);
    let budget = bytes.len().saturating_mul(RETRIES);
    let mut records = Records { bytes, at, line, delimiter, newline, budget };
    let header = loop {
        match records.next() {
            None => return Err("expected a header and rows, found nothing".to_owned()),
            Some(record) => match record.fields {
                Ok(fields) if fields.iter().all(|(name, _)| name.trim_ascii().is_empty()) => {}
                Ok(fields) => break fields,
                Err(reason) => return Err(format!("the header cannot be read: {reason}")),
            },
        }
    };
    let mut names: Vec<String> = Vec::with_capacity(header.len());
    for (at, (name, _)) in header.iter().enumerate() {
        let name = std::str::from_utf8(name).map_err(|_| {
            format!("expected UTF-8 in the header, found something else in column {}", at + 1)
        })?;
        let name = name.trim();
        // pandas writes an index column without a name.
        let name = if name.is_empty() { format!("column_{}", at + 1) } else { name.to_owned() };
        if names.contains(&name) {
            return Err(format!(
                "expected each column's name once in the header, found \"{name}\" twice"
            ));
        }
        names.push(name);
    }
    let text = Field::Text(Cow::Borrowed(""));
    if shape.is_none() {
        *shape = RowShape::recognise(names.iter().map(|name| (name.as_str(), &text)));
    }
    let fallback = RowShape::PromptCompletion;
    let shape = shape.as_ref().unwrap_or(&fallback);
    loop {
        let chunk: Vec<Record> = records.by_ref().take(16 * CHUNK_ROWS).collect();
        if chunk.is_empty() {
            return Ok(());
        }
        let parts: Vec<Part> = chunk
            .into_par_iter()
            .chunks(CHUNK_ROWS)
            .map(|records| {
                let mut part = Part::with_capacity(records.len());
                part.untyped = true;
                for record in records {
                    part.lines += 1;
                    let pair = record
                        .fields
                        .and_then(|fields| no_header(&names, fields))
                        .and_then(|fields| row(&names, fields))
                        .and_then(|row| shape.pair(row));
                    match pair {
                        Ok(pair) => part.push(pair),
                        Err(reason) => part.reject(record.line, reason, record.raw),
                    }
                }
                part
            })
            .collect();
        parts.into_iter().for_each(&mut *each);
    }
}

/// The fields, unless they are the header again: files that were joined have it once each.
fn no_header<'a>(names: &[String], fields: Vec<RawField<'a>>) -> Result<Vec<RawField<'a>>, String> {
    let is_name = |(name, field): (&String, &RawField)| name.as_bytes() == field.0.trim_ascii();
    if names.len() > 1 && names.len() == fields.len() && names.iter().zip(&fields).all(is_name) {
        return Err(
            "expected a row, found the header again, as in files that were joined".to_owned()
        );
    }
    Ok(fields)
}

/// The fields of a record under their names.
fn row<'a>(
    names: &'a [String],
    fields: Vec<(Cow<'a, [u8]>, bool)>,
) -> Result<Vec<(Cow<'a, str>, Field<'a>)>, String> {
    if fields.len() != names.len() {
        return Err(format!(
            "expected {} fields, as in the header, found {}",
            names.len(),
            fields.len()
        ));
    }
    let mut row = Vec::with_capacity(fields.len());
    for (name, (value, quoted)) in names.iter().zip(fields) {
        let text: Cow<str> = match value {
            Cow::Borrowed(bytes) => {
                std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|error| (bytes, error))
            }
            Cow::Owned(ref bytes) => std::str::from_utf8(bytes)
                .map(|text| Cow::Owned(text.to_owned()))
                .map_err(|error| (&bytes[..], error)),
        }
        .map_err(|(bytes, error)| {
            format!(
                "expected UTF-8 in \"{name}\", found the byte 0x{:02X}",
                bytes[error.valid_up_to()]
            )
        })?;
        if text.contains('\0') {
            return Err(format!("expected text in \"{name}\", found a null byte"));
        }
        // An empty field without quotes is how most programs write a missing value.
        let field =
            if text.is_empty() && !quoted { Field::Other(Value::Null) } else { Field::Text(text) };
        row.push((Cow::Borrowed(name.as_str()), field));
    }
    Ok(row)
}

/// The byte that ends a line: a carriage return alone where the first line ends with one, as old
/// Macs and Excel for them write it.
fn newline(bytes: &[u8]) -> u8 {
    let mut quoted = false;
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b'\r' if !quoted && bytes.get(at + 1) != Some(&b'\n') => return b'\r',
            b'\r' | b'\n' if !quoted => return b'\n',
            _ => {}
        }
    }
    b'\n'
}

/// The delimiter that a first line such as `sep=;` names, as Excel reads it, and the offset after
/// that line.
fn named_delimiter(bytes: &[u8], newline: u8) -> Option<(u8, usize)> {
    let end = memchr::memchr(newline, bytes)?;
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    let line = line.strip_prefix(b"\"").and_then(|line| line.strip_suffix(b"\"")).unwrap_or(line);
    match line {
        [s, e, p, b'=', delimiter] if [*s, *e, *p].eq_ignore_ascii_case(b"sep") => {
            delimiter.is_ascii().then_some((*delimiter, end + 1))
        }
        _ => None,
    }
}

/// The one that the first line has most of, quoted parts aside.
fn delimiter(bytes: &[u8], newline: u8) -> u8 {
    let mut counts = [0usize; DELIMITERS.len()];
    let mut quoted = false;
    for &byte in bytes.iter().take(1 << 16) {
        match byte {
            b'"' => quoted = !quoted,
            byte if byte == newline && !quoted => break,
            byte if !quoted => {
                if let Some(at) = DELIMITERS.iter().position(|&delimiter| delimiter == byte) {
                    counts[at] += 1;
                }
            }
            _ => {}
        }
    }
    let most = counts.iter().copied().max().unwrap_or(0);
    let at = counts.iter().position(|&count| count == most && most > 0).unwrap_or(0);
    DELIMITERS[at]
}

struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
    line: u64,
    delimiter: u8,
    newline: u8,
    /// Bytes that may still be looked at twice.
    budget: usize,
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        loop {
            if self.at >= self.bytes.len() {
                return None;
            }
            // Files that were joined have one within.
            if self.bytes[self.at..].starts_with(BOM) {
                self.at += BOM.len();
            }
            let (start, line) = (self.at, self.line);
            let first_end = memchr::memchr(self.newline, &self.bytes[start..])
                .map_or(self.bytes.len(), |at| start + at + 1);
            if self.bytes[start..first_end].trim_ascii().is_empty() {
                (self.at, self.line) = (first_end, line + 1);
                continue;
            }
            if self.budget == 0 {
                let raw = &self.bytes[start..];
                self.at = self.bytes.len();
                let reason =
                    "too many quotes without a partner: this line and all that follow are not read"
                        .to_owned();
                return Some(Record { line, raw, fields: Err(reason) });
            }
            return Some(match self.record(start) {
                Ok((fields, end)) => {
                    let raw = &self.bytes[start..end];
                    self.at = end;
                    self.line = line + memchr::memchr_iter(self.newline, raw).count() as u64;
                    Record { line, raw, fields: Ok(fields) }
                }
                Err((reason, looked)) => {
                    self.budget = self.budget.saturating_sub(looked - start);
                    self.at = first_end;
                    self.line = line + 1;
                    Record { line, raw: &self.bytes[start..first_end], fields: Err(reason) }
                }
            });
        }
    }
}

type Parsed<'a> = Result<(Vec<(Cow<'a, [u8]>, bool)>, usize), (String, usize)>;

impl<'a> Records<'a> {
    /// The record that starts at `at`, and where the next one starts; or the reason and how far was
    /// looked.
    fn record(&self, mut at: usize) -> Parsed<'a> {
        let bytes = self.bytes;
        let mut fields = Vec::new();
        loop {
            if bytes.get(at) == Some(&b'"') {
                let (value, after) = self.quoted(at + 1)?;
                fields.push((value, true));
                at = after;
            } else {
                let end = memchr::memchr3(self.delimiter, self.newline, b'"', &bytes[at..])
                    .map_or(bytes.len(), |end| at + end);
                // A quote inside a plain field stands for itself, as in 5" or "so-called" words.
                let end = if bytes.get(end) == Some(&b'"') {
                    memchr::memchr2(self.delimiter, self.newline, &bytes[end..])
                        .map_or(bytes.len(), |more| end + more)
                } else {
                    end
                };
                let value = &bytes[at..end];
                let value = match bytes.get(end) {
                    Some(b'\n') | None if self.newline == b'\n' => {
                        value.strip_suffix(b"\r").unwrap_or(value)
                    }
                    _ => value,
                };
                fields.push((Cow::Borrowed(value), false));
                at = end;
            }
            match bytes.get(at) {
                Some(&byte) if byte == self.delimiter => at += 1,
                Some(_) => return Ok((fields, at + 1)),
                None => return Ok((fields, at)),
            }
        }
    }

    /// The text of a quoted field whose opening quote stands before `at`, and where the delimiter
    /// or line's end after it is.
    fn quoted(&self, mut at: usize) -> Quoted<'a> {
        let bytes = self.bytes;
        let start = at;
        let mut text: Option<Vec<u8>> = None;
        let mut copied = start;
        loop {
            let Some(quote) = memchr::memchr(b'"', &bytes[at..]).map(|quote| at + quote) else {
                return Err((
                    "expected a quote that ends the field, found none".to_owned(),
                    bytes.len(),
                ));
            };
            match bytes.get(quote + 1) {
                Some(b'"') => {
                    let text = text.get_or_insert_default();
                    text.extend_from_slice(&bytes[copied..=quote]);
                    copied = quote + 2;
                    at = copied;
                }
                next => {
                    let mut after = quote + 1;
                    if self.newline == b'\n'
                        && next == Some(&b'\r')
                        && matches!(bytes.get(after + 1), Some(b'\n') | None)
                    {
                        after += 1;
                    }
                    if bytes
                        .get(after)
                        .is_some_and(|byte| ![self.newline, self.delimiter].contains(byte))
                    {
                        return Err((
                            "expected a delimiter after a closing quote, found other text: quotes without a partner"
                                .to_owned(),
                            after,
                        ));
                    }
                    let value = match text {
                        Some(mut text) => {
                            text.extend_from_slice(&bytes[copied..quote]);
                            Cow::Owned(text)
                        }
                        None => Cow::Borrowed(&bytes[start..quote]),
                    };
                    return Ok((value, after));
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::read::table::Table;
    use proptest::prelude::*;

    fn table(text: &[u8]) -> Table {
        let mut table = Table::default();
        let mut shape = None;
        read(text, &mut shape, &mut |part| table.push(part, "f")).unwrap();
        table
    }

    fn rows(text: &str) -> Vec<(String, String)> {
        let frame = table(text.as_bytes()).into_frame().unwrap();
        let column = |name: &str| -> Vec<String> {
            frame
                .column(name)
                .unwrap()
                .str()
                .unwrap()
                .iter()
                .map(|v| v.unwrap().to_owned())
                .collect()
        };
        column("prompt").into_iter().zip(column("completion")).collect()
    }

    #[test]
    fn quotes_line_breaks_and_delimiters() {
        let pair = |p: &str, c: &str| (p.to_owned(), c.to_owned());
        assert_eq!(
            rows("prompt,completion\r\n\"a, \"\"b\"\"\nc\",d\r\n5\" nails,\"\"\n\n"),
            [pair("a, \"b\"\nc", "d"), pair("5\" nails", "")]
        );
        assert_eq!(rows("completion;prompt\n1,5;x"), [pair("x", "1,5")]);
        assert_eq!(rows("prompt\tcompletion\na\tb\n"), [pair("a", "b")]);
    }

    #[test]
    fn a_quote_without_a_partner_costs_its_own_line() {
        let text = "prompt,completion\n\"open,a\ngood,1\n\"quoted\",2\nshort\na,b,c\nlast,3\n\"never closed,4";
        let table = table(text.as_bytes());
        assert_eq!(
            table.rejects.iter().map(|reject| reject.line).collect::<Vec<_>>(),
            [2, 5, 6, 8]
        );
        assert_eq!(
            rows(text).iter().map(|(p, _)| p.as_str()).collect::<Vec<_>>(),
            ["good", "quoted", "last"]
        );
        assert!(table.rejects[1].reason.contains("expected 2 fields, as in the header, found 1"));
    }

    #[test]
    fn many_open_quotes_end_in_time() {
        let mut text = "prompt,completion\ngood,1\n".to_owned();
        text.push_str(&"\"open,a\n".repeat(200_000));
        let table = table(text.as_bytes());
        assert_eq!((table.rows, table.rejects.len()), (1, 200_000));
    }

    #[test]
    fn a_column_is_numeric_if_every_value_is_written_as_a_number() {
        let frame = table(
            b"prompt,completion,zip,count,price,version,serial,phone,id,mixed,rating\n\
              a,b,02134,1,0.5,3.10,89014103211118510720,0176123456,18446744073709551557,1234,4\n\
              c,d,98101,-7,12.25,3.9,89014103211118510721,0301234567,3,D-53111,4.5\n\
              e,f,,,,,,,,,\n",
        )
        .into_frame()
        .unwrap();
        let kinds: Vec<(&str, String)> = frame.columns()[2..]
            .iter()
            .map(|column| (column.name().as_str(), column.dtype().to_string()))
            .collect();
        let kinds: Vec<(&str, &str)> =
            kinds.iter().map(|(name, kind)| (*name, kind.as_str())).collect();
        assert_eq!(
            kinds,
            [
                ("zip", "str"),
                ("count", "i64"),
                ("price", "f64"),
                ("version", "str"),
                ("serial", "str"),
                ("phone", "str"),
                ("id", "u64"),
                ("mixed", "str"),
                ("rating", "f64"),
            ]
        );
        let texts = |name: &str| -> Vec<Option<&str>> {
            frame.column(name).unwrap().str().unwrap().iter().collect()
        };
        assert_eq!(texts("zip"), [Some("02134"), Some("98101"), None]);
        assert_eq!(texts("version"), [Some("3.10"), Some("3.9"), None]);
        assert_eq!(texts("mixed"), [Some("1234"), Some("D-53111"), None]);
        assert_eq!(
            frame.column("id").unwrap().u64().unwrap().iter().collect::<Vec<_>>(),
            [Some(18446744073709551557), Some(3), None]
        );
    }

    proptest! {
        /// Whatever type a column gets, its values print as they were written.
        #[test]
        fn values_print_as_written(values in proptest::collection::vec("-?[0-9]{1,21}|0?[0-9]{1,3}\\.[0-9]{1,3}|[a-z]", 1..6)) {
            let rows: String = values.iter().map(|value| format!("a,b,{value}\n")).collect();
            let frame = table(format!("prompt,completion,x\n{rows}").as_bytes()).into_frame().unwrap();
            let column = frame.column("x").unwrap();
            for (at, value) in values.iter().enumerate() {
                let printed = match column.get(at).unwrap() {
                    // A whole number among floats keeps its value.
                    polars::prelude::AnyValue::Float64(float) if !value.contains('.') => format!("{float}"),
                    polars::prelude::AnyValue::Float64(float) => format!("{float:?}"),
                    other => other.str_value().into_owned(),
                };
                prop_assert_eq!(&printed, value);
            }
        }

        #[test]
        fn what_is_written_is_read(cells in proptest::collection::vec(("[a,\"\n\r ;é]{0,12}", "[a,\"\n\r ;é]{0,12}"), 1..20)) {
            let quote = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
            let mut text = "prompt,completion\n".to_owned();
            for (a, b) in &cells {
                text.push_str(&format!("{},{}\n", quote(a), quote(b)));
            }
            prop_assert_eq!(rows(&text), cells);
        }

        #[test]
        fn any_bytes_are_handled(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'"'), Just(b','), Just(b'\n')], 0..200)) {
            let mut shape = None;
            let _ = read(&bytes, &mut shape, &mut |_| ());
        }
    }
}
