//! The JSONL reader: whole blocks of the file are parsed in parallel, and a line that cannot be
//! used never costs another.

use std::io::Read;

use rayon::prelude::*;
use serde_json::Value;

use crate::error::Result;
use crate::read::fields::{Fields, kind};
use crate::read::shape::{Pair, RowShape};
use crate::read::table::{Part, RAW_BYTES};

/// Bytes that one thread parses at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// Stands for what was cut from an overlong line. JSON text holds no control characters, so no
/// parser takes it.
const CUT: &[u8] = b"\0[line too long]\0";
/// The byte order mark of UTF-8.
pub(crate) const BOM: &[u8] = b"\xef\xbb\xbf";
/// Lines that the shape is looked for in.
const SHAPE_LINES: usize = 1000;

/// The limits on the part of a file in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of a file in memory at a time, without the rows made of them.
    pub block: usize,
    /// A longer line is kept aside: it is a broken file, not a pair of texts.
    pub line: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { block: 16 << 20, line: 256 << 20 }
    }
}

/// Hands the file over in blocks that end at a line's end. Of a line over the limit only the
/// beginning is handed over, with [`CUT`] behind it, which no parser takes.
pub(crate) fn read_blocks(
    mut file: impl Read,
    limits: &Limits,
    failed: &dyn Fn(std::io::Error) -> crate::error::DataError,
    each: &mut dyn FnMut(&[u8], bool) -> Result<()>,
) -> Result<()> {
    let mut buffer: Vec<u8> = Vec::with_capacity(limits.block.min(1 << 20));
    let mut at_start = true;
    let mut first = true;
    loop {
        // What is in the buffer is the beginning of one line.
        let carried = buffer.len();
        let read =
            (&mut file).take(limits.block as u64).read_to_end(&mut buffer).map_err(failed)?;
        let at_end = read < limits.block;
        // An object over several lines begins with a brace, and its further lines do not.
        let object = memchr::memmem::rfind(&buffer[carried.saturating_sub(1)..], b"\n{")
            .map(|at| carried.saturating_sub(1) + at + 1);
        let newline = || memchr::memrchr(b'\n', &buffer[carried..]).map(|at| carried + at + 1);
        let newline = object.or_else(newline);
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

/// The parts of a block, in order. `line` is the number of lines before it, and grows by those in
/// it; `shape` is found in the first usable line when it is not given.
pub(crate) fn parse_block(block: &[u8], shape: &mut Option<RowShape>, line: &mut u64) -> Vec<Part> {
    if shape.is_none() {
        *shape = find_shape(block.split(|&byte| byte == b'\n'));
    }
    let fallback = RowShape::PromptCompletion;
    let known = shape.as_ref().unwrap_or(&fallback);
    let mut parts: Vec<Part> =
        chunks(block).into_par_iter().map(|chunk| parse_chunk(chunk, known)).collect();
    for part in &mut parts {
        part.rejects.iter_mut().for_each(|reject| reject.line += *line);
        *line += part.lines;
    }
    parts
}

/// The shape of the first of these objects that has a known one.
pub(crate) fn find_shape<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Option<RowShape> {
    lines.filter(|line| !line.trim_ascii().is_empty()).take(SHAPE_LINES).find_map(|line| {
        let shape = |line: &[u8]| {
            let fields: Fields = serde_json::from_slice(line.trim_ascii()).ok()?;
            RowShape::recognise(fields.0.iter().map(|(key, field)| (key.as_ref(), field)))
        };
        shape(line).or_else(|| shape(without_nan(std::str::from_utf8(line).ok()?)?.as_bytes()))
    })
}

/// Cuts a block at line ends, into pieces for the threads.
fn chunks(block: &[u8]) -> Vec<&[u8]> {
    let mut chunks = Vec::with_capacity(block.len() / CHUNK_BYTES + 1);
    let mut rest = block;
    while rest.len() > CHUNK_BYTES {
        let near = &rest[CHUNK_BYTES..rest.len().min(2 * CHUNK_BYTES)];
        let end = memchr::memmem::find(near, b"\n{");
        match end.or_else(|| memchr::memchr(b'\n', &rest[CHUNK_BYTES..])) {
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

fn parse_chunk(chunk: &[u8], shape: &RowShape) -> Part {
    let mut part = Part::with_capacity(chunk.len() / 256);
    let chunk = chunk.strip_suffix(b"\n").unwrap_or(chunk);
    let mut rest = Some(chunk);
    while let Some(bytes) = rest {
        let line = match memchr::memchr(b'\n', bytes) {
            Some(end) => {
                rest = Some(&bytes[end + 1..]);
                &bytes[..end]
            }
            None => {
                rest = None;
                bytes
            }
        };
        part.lines += 1;
        let line = line.trim_ascii();
        // Files that were joined have one within.
        let line = line.strip_prefix(BOM).unwrap_or(line).trim_ascii();
        if line.is_empty() {
            continue;
        }
        let reason = match parse_line(line, shape) {
            Ok(pair) => {
                part.push(pair);
                continue;
            }
            Err(reason) => reason,
        };
        if let Some(objects) = several_objects(line) {
            for object in objects {
                match parse_line(object, shape) {
                    Ok(pair) => part.push(pair),
                    Err(reason) => part.reject(part.lines, reason, object),
                }
            }
        } else if let Some((object, after)) = object_over_lines(bytes, line) {
            match parse_line(object, shape) {
                Ok(pair) => part.push(pair),
                Err(reason) => part.reject(part.lines, reason, object),
            }
            part.lines += memchr::memchr_iter(b'\n', object).count() as u64;
            rest = after;
        } else {
            part.reject(part.lines, reason, line);
        }
    }
    part
}

/// The objects of a line that holds several after each other, or one and a comma.
fn several_objects(line: &[u8]) -> Option<Vec<&[u8]>> {
    let mut objects = Vec::new();
    let mut at = 0;
    while at < line.len() {
        let rest = &line[at..];
        if rest[0].is_ascii_whitespace() || (rest[0] == b',' && at > 0) {
            at += 1;
        } else if rest.starts_with(BOM) {
            at += BOM.len();
        } else {
            let mut values =
                serde_json::Deserializer::from_slice(rest).into_iter::<serde::de::IgnoredAny>();
            match values.next() {
                Some(Ok(_)) if rest[0] == b'{' => {
                    objects.push(&rest[..values.byte_offset()]);
                    at += values.byte_offset();
                }
                _ => return None,
            }
        }
    }
    (objects.len() > 1 || objects.iter().any(|object| object.len() < line.len())).then_some(objects)
}

/// The object whose first line is `line` and that ends on a later one, and what comes after it.
/// `bytes` are all from that line on.
fn object_over_lines<'a>(bytes: &'a [u8], line: &[u8]) -> Option<(&'a [u8], Option<&'a [u8]>)> {
    // Indented objects would be looked at again for each of their lines.
    let bytes = bytes.strip_prefix(BOM).unwrap_or(bytes);
    if bytes.first() != Some(&b'{') || line.first() != Some(&b'{') {
        return None;
    }
    let end = memchr::memmem::find(bytes, b"\n{").unwrap_or(bytes.len());
    let object = bytes[..end].trim_ascii_end();
    let text = std::str::from_utf8(object).ok().filter(|text| text.contains('\n'))?;
    let plain = without_nan(text);
    serde_json::from_str::<Fields>(plain.as_deref().unwrap_or(text)).ok()?;
    Some((object, bytes.get(end + 1..)))
}

/// One object, or the reason why it cannot be used: what was expected, and what was found.
pub(crate) fn parse_line<'a>(line: &'a [u8], shape: &RowShape) -> Result<Pair<'a>, String> {
    let text = std::str::from_utf8(line).map_err(|error| {
        let at = error.valid_up_to();
        format!("expected UTF-8, found the byte 0x{:02X} at column {}", line[at], at + 1)
    })?;
    if let Some(exact) = with_exact_numbers(text) {
        return Ok(parse_line(exact.as_bytes(), shape)?.into_owned());
    }
    let fields = match serde_json::from_str::<Fields>(text) {
        Ok(fields) => fields.0,
        Err(error) if !error.is_data() && without_nan(text).is_some() => {
            // Python writes them, but they are no JSON.
            let text = without_nan(text).unwrap_or_default();
            let pair = parse_line(text.as_bytes(), shape)?;
            return Ok(pair.into_owned());
        }
        Err(error) if error.is_data() => {
            let found =
                serde_json::from_str::<Value>(text).map_or("something else", |value| kind(&value));
            let advice = match found {
                "a list" => ": a list has no names of fields, write each row as an object",
                _ => "",
            };
            return Err(format!("expected a JSON object, found {found}{advice}"));
        }
        Err(_) if memchr::memmem::find(line, CUT).is_some() => {
            return Err(format!(
                "expected a line of at most {} MiB, found a longer one",
                Limits::default().line >> 20
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
    shape.pair(fields)
}

/// The line with `null` for each `NaN`, `Infinity` and `-Infinity` outside texts, if there are any.
pub(crate) fn without_nan(text: &str) -> Option<String> {
    const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    if !text.contains("NaN") && !text.contains("Infinity") {
        return None;
    }
    let mut out = String::with_capacity(text.len());
    let (mut at, mut copied, mut quoted) = (0, 0, false);
    let bytes = text.as_bytes();
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if quoted => at += 1,
            b'"' => quoted = !quoted,
            b'-' | b'I' | b'N' if !quoted => {
                if let Some(word) = WORDS.iter().find(|word| text[at..].starts_with(**word)) {
                    out.push_str(&text[copied..at]);
                    out.push_str("null");
                    at += word.len();
                    copied = at;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    out.push_str(&text[copied..]);
    (copied > 0).then_some(out)
}

/// Digits of the first whole numbers that no integer type holds.
const LONG_DIGITS: usize = 19;

/// The line with whole numbers that no integer type holds as texts, if there are any: a float would
/// round them, and two ids become one.
pub(crate) fn with_exact_numbers(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    if !has_long_digits(bytes) {
        return None;
    }
    let mut out = String::with_capacity(text.len() + 2);
    let (mut at, mut copied, mut quoted) = (0, 0, false);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if quoted => at += 1,
            b'"' => quoted = !quoted,
            b'-' | b'0'..=b'9' if !quoted => {
                let is_part =
                    |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                let length = bytes[at..].iter().take_while(|byte| is_part(byte)).count();
                let number = &text[at..at + length];
                let digits = number.strip_prefix('-').unwrap_or(number);
                let is_whole = digits.bytes().all(|byte| byte.is_ascii_digit());
                if is_whole
                    && digits.len() >= LONG_DIGITS
                    && number.parse::<i64>().is_err()
                    && number.parse::<u64>().is_err()
                {
                    out.push_str(&text[copied..at]);
                    out.push('"');
                    out.push_str(number);
                    out.push('"');
                    copied = at + length;
                }
                at += length;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    out.push_str(&text[copied..]);
    (copied > 0).then_some(out)
}

/// Whether so many digits stand together, looked at in steps of that many bytes.
fn has_long_digits(bytes: &[u8]) -> bool {
    let mut at = LONG_DIGITS - 1;
    while at < bytes.len() {
        if bytes[at].is_ascii_digit() {
            let is_digit = |byte: &&u8| byte.is_ascii_digit();
            let before = bytes[..at].iter().rev().take(LONG_DIGITS).take_while(is_digit).count();
            let behind = bytes[at..].iter().take(LONG_DIGITS).take_while(is_digit).count();
            if before + behind >= LONG_DIGITS {
                return true;
            }
        }
        at += LONG_DIGITS;
    }
    false
}

/// The parser's message without its "at line 1 column 5": the line it means is always 1.
fn without_position(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.find(" at line ") {
        Some(at) => message[..at].to_owned(),
        None => message,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::read::table::Table;
    use proptest::prelude::*;

    fn reason(line: &str) -> String {
        parse_line(line.as_bytes(), &RowShape::PromptCompletion)
            .err()
            .unwrap_or_else(|| "usable".into())
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
            parse_line(b"{\"prompt\": \"caf\xe9\"}", &RowShape::PromptCompletion).err().as_deref(),
            Some("expected UTF-8, found the byte 0xE9 at column 16")
        );
    }

    #[test]
    fn numbers_that_json_does_not_have_are_missing() {
        let line = r#"{"prompt":"NaN \\\" Infinity","completion":"é","a":NaN,"b":[-Infinity,1],"c":Infinity}"#;
        let pair = parse_line(line.as_bytes(), &RowShape::PromptCompletion).unwrap();
        assert_eq!(pair.prompt, "NaN \\\" Infinity");
        assert_eq!(pair.extras.len(), 1);
        assert_eq!(pair.extras[0].1.to_string(), "[null,1]");
        assert!(reason("{\"prompt\": NaN, \"completion\": \"b\"}").contains("found null"));
    }

    #[test]
    fn whole_numbers_that_no_type_holds_are_texts() {
        let exact = |text: &str| with_exact_numbers(text);
        assert_eq!(
            exact(r#"{"a":18446744073709551616,"b":[-9223372036854775809, 1],"c":"18446744073709551616"}"#)
                .as_deref(),
            Some(r#"{"a":"18446744073709551616","b":["-9223372036854775809", 1],"c":"18446744073709551616"}"#)
        );
        for line in [
            r#"{"a":18446744073709551615,"b":-9223372036854775808}"#,
            r#"{"a":"94001118992231974284901","b":"\"94001118992231974284901"}"#,
            r#"{"a":0.1234567890123456789012,"b":1e300,"c":12345678901234567890123e2}"#,
        ] {
            assert_eq!(exact(line), None, "{line}");
        }
        let line = r#"{"prompt":"a","completion":"b","id":94001118992231974284901,"deep":{"ids":[94001118992231974284902]}}"#;
        let pair = parse_line(line.as_bytes(), &RowShape::PromptCompletion).unwrap();
        assert_eq!(pair.extras[0].1, Value::from("94001118992231974284901"));
        assert_eq!(pair.extras[1].1.to_string(), r#"{"ids":["94001118992231974284902"]}"#);
    }

    proptest! {
        #[test]
        fn long_digits_are_found_wherever_they_stand(front in "[a1]{0,40}", digits in "[0-9]{1,25}", back in "[a1]{0,40}") {
            let text = format!("{front}{digits}{back}");
            let runs = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
            prop_assert_eq!(has_long_digits(text.as_bytes()), runs.unwrap_or(0) >= LONG_DIGITS);
        }
    }

    /// All blocks of `bytes` under small limits, joined.
    fn table(bytes: &[u8], block: usize, line: usize) -> Table {
        let mut table = Table::default();
        let mut lines = 0;
        let failed = |source| crate::DataError::Io { action: "read", path: "test".into(), source };
        read_blocks(bytes, &Limits { block, line }, &failed, &mut |block, _| {
            for part in parse_block(block, &mut Some(RowShape::PromptCompletion), &mut lines) {
                table.push(part, "test");
            }
            Ok(())
        })
        .expect("reading from memory does not fail");
        table
    }

    proptest! {
        /// The borders of the blocks make no difference.
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
