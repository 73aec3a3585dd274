//! Whole JSON documents: an array of objects, or an object that holds one.
//!
//! The elements are cut apart by their brackets and parsed one by one, so one that cannot be used
//! costs no other.

use rayon::prelude::*;
use serde_json::Value;

use crate::read::jsonl::{BOM, find_shape, parse_line, with_exact_numbers, without_nan};
use crate::read::orient;
use crate::read::shape::RowShape;
use crate::read::table::Part;
use crate::text::excerpt;

/// Elements that one thread parses at a time.
const CHUNK_ROWS: usize = 512;

/// An element of the array: the line that it starts on, and its text.
type Element<'a> = (u64, &'a [u8]);

/// The rows of a document. `shape` is found in the first usable one when it is not given.
///
/// # Errors
/// The document is neither an array nor an object that holds one.
pub(crate) fn read(
    bytes: &[u8],
    shape: &mut Option<RowShape>,
    each: &mut dyn FnMut(Part),
) -> Result<(), String> {
    let bytes = bytes.strip_prefix(BOM).unwrap_or(bytes);
    let plain = std::str::from_utf8(bytes).ok().and_then(without_nan);
    let bytes = plain.as_ref().map_or(bytes, |plain| plain.as_bytes());
    let exact = std::str::from_utf8(bytes).ok().and_then(with_exact_numbers);
    let bytes = exact.as_ref().map_or(bytes, |exact| exact.as_bytes());
    let start = bytes.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(bytes.len());
    match bytes.get(start) {
        Some(b'[') => array(bytes, start, shape, each),
        Some(b'{') => object(bytes, start, shape, each),
        _ => Err("expected a JSON array of objects, found something else".to_owned()),
    }
}

/// An object: itself as the only row, the one list of rows in it, or the rows of one of pandas'
/// orients. Several objects after each other: a row each.
fn object(
    bytes: &[u8],
    start: usize,
    shape: &mut Option<RowShape>,
    each: &mut dyn FnMut(Part),
) -> Result<(), String> {
    let value: Value = match serde_json::from_slice(&bytes[start..]) {
        Ok(value) => value,
        Err(error) => {
            let elements = objects(bytes, start);
            if elements.len() < 2 {
                return Err(format!(
                    "expected a JSON array of objects, found no valid JSON: {error}"
                ));
            }
            parse(&elements, shape, each);
            return Ok(());
        }
    };
    let whole = [(1 + newlines(&bytes[..start]), &bytes[start..])];
    if is_row(whole[0].1, shape) {
        parse(&whole, shape, each);
        return Ok(());
    }
    let members = members(bytes, start);
    let lists: Vec<&Member> = members
        .iter()
        .filter(|member| {
            value[&member.name]
                .as_array()
                .is_some_and(|list| list.first().is_some_and(Value::is_object))
        })
        .collect();
    let usable = |list: &&Member| {
        let (elements, _) = split(&bytes[..list.end], list.start + 1);
        elements.iter().take(SHAPE_ROWS).any(|element| is_row(element.1, shape))
    };
    let usable: Vec<&Member> = lists.iter().copied().filter(usable).collect();
    let has_shape = find_shape(std::iter::once(whole[0].1)).is_some();
    match (usable.as_slice(), lists.as_slice()) {
        ([list], _) => return array(&bytes[..list.end], list.start, shape, each),
        ([], [list]) if !has_shape => {
            return array(&bytes[..list.end], list.start, shape, each);
        }
        (several @ [_, _, ..], _) => {
            let names: Vec<String> =
                several.iter().map(|list| format!("\"{}\"", excerpt(&list.name, 40))).collect();
            return Err(format!(
                "expected one list of rows, found {} in {}: write each to a file of its own",
                several.len(),
                names.join(", ")
            ));
        }
        _ => {}
    }
    if let Some(rows) = orient::rows(&value, |row| is_row(row.as_bytes(), shape)) {
        let rows: Vec<Element> =
            rows.iter().enumerate().map(|(at, row)| (at as u64 + 1, row.as_bytes())).collect();
        parse(&rows, shape, each);
        return Ok(());
    }
    parse(&whole, shape, each);
    Ok(())
}

/// Elements that a list is judged by.
const SHAPE_ROWS: usize = 100;

/// Whether an object is a row of the shape, or of a known one.
fn is_row(object: &[u8], shape: &Option<RowShape>) -> bool {
    let found = || find_shape(std::iter::once(object));
    shape.clone().or_else(found).is_some_and(|shape| parse_line(object, &shape).is_ok())
}

fn newlines(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
}

/// A member of the document's object: its name, and where its value stands.
struct Member {
    name: String,
    start: usize,
    end: usize,
}

/// The members of the object that starts at `at`, of a document that is valid.
fn members(bytes: &[u8], mut at: usize) -> Vec<Member> {
    let mut members = Vec::new();
    let blanks =
        |at: usize| bytes[at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count() + at;
    loop {
        // The brace, or the comma before the next name.
        at = blanks(at + 1);
        let mut names = serde_json::Deserializer::from_slice(&bytes[at.min(bytes.len())..])
            .into_iter::<String>();
        let Some(Ok(name)) = names.next() else { return members };
        let start = blanks(blanks(at + names.byte_offset()) + 1);
        let Some(end) = element_end(bytes, start, b'}') else { return members };
        members.push(Member { name, start, end });
        at = end;
    }
}

/// Objects after each other, whatever lies between them. Of one that is broken, the text up to the
/// next line that begins with a brace.
fn objects(bytes: &[u8], mut at: usize) -> Vec<Element<'_>> {
    let mut elements = Vec::new();
    let (mut line, mut counted) = (1, 0);
    let mut push = |start: usize, end: usize| {
        line += memchr::memchr_iter(b'\n', &bytes[counted..start]).count() as u64;
        counted = start;
        elements.push((line, bytes[start..end].trim_ascii_end()));
    };
    while at < bytes.len() {
        if bytes[at].is_ascii_whitespace() || (bytes[at] == b',' && at > 0) {
            at += 1;
            continue;
        }
        // Files that were joined have one within.
        if bytes[at..].starts_with(BOM) {
            at += BOM.len();
            continue;
        }
        let mut stream =
            serde_json::Deserializer::from_slice(&bytes[at..]).into_iter::<serde::de::IgnoredAny>();
        let end = match stream.next() {
            Some(Ok(_)) if bytes[at] == b'{' => at + stream.byte_offset(),
            _ => memchr::memmem::find(&bytes[at + 1..], b"\n{")
                .map_or(bytes.len(), |next| at + 1 + next),
        };
        push(at, end);
        at = end;
    }
    elements
}

fn array(
    bytes: &[u8],
    start: usize,
    shape: &mut Option<RowShape>,
    each: &mut dyn FnMut(Part),
) -> Result<(), String> {
    let (elements, unfinished) = split(bytes, start + 1);
    parse(&elements, shape, each);
    if let Some((line, reason, raw)) = unfinished {
        let mut part = Part::with_capacity(0);
        part.reject(line, reason, raw);
        each(part);
    }
    Ok(())
}

fn parse(elements: &[Element], shape: &mut Option<RowShape>, each: &mut dyn FnMut(Part)) {
    if shape.is_none() {
        *shape = find_shape(elements.iter().map(|element| element.1));
    }
    let fallback = RowShape::PromptCompletion;
    let shape = shape.as_ref().unwrap_or(&fallback);
    let parts: Vec<Part> = elements
        .par_chunks(CHUNK_ROWS)
        .map(|elements| {
            let mut part = Part::with_capacity(elements.len());
            for (line, element) in elements {
                part.lines += 1;
                match parse_line(element, shape) {
                    Ok(pair) => part.push(pair),
                    Err(reason) => part.reject(*line, reason, element),
                }
            }
            part
        })
        .collect();
    parts.into_iter().for_each(each);
}

/// The text after the last whole element: its line, the error, and the text.
type Broken<'a> = Option<(u64, String, &'a [u8])>;

/// The elements of the array whose content starts at `at`; and what comes after the last whole one,
/// if that is not the array's end.
fn split(bytes: &[u8], mut at: usize) -> (Vec<Element<'_>>, Broken<'_>) {
    let mut elements = Vec::new();
    let mut line = 1 + memchr::memchr_iter(b'\n', &bytes[..at]).count() as u64;
    let skip = |at: &mut usize, line: &mut u64, more: &[u8]| {
        while let Some(byte) =
            bytes.get(*at).filter(|byte| byte.is_ascii_whitespace() || more.contains(byte))
        {
            *line += u64::from(*byte == b'\n');
            *at += 1;
        }
    };
    loop {
        skip(&mut at, &mut line, b",");
        match bytes.get(at) {
            None => {
                let reason =
                    "expected the array to end with \"]\", found the end of the file".to_owned();
                return (elements, Some((line, reason, &[])));
            }
            Some(b']') => {
                at += 1;
                skip(&mut at, &mut line, b"");
                let rest = (at < bytes.len()).then(|| {
                    let reason = "expected nothing after the array, found more text".to_owned();
                    (line, reason, &bytes[at..])
                });
                return (elements, rest);
            }
            Some(_) => match element_end(bytes, at, b']') {
                Some(end) => {
                    let element = bytes[at..end].trim_ascii_end();
                    elements.push((line, element));
                    line += memchr::memchr_iter(b'\n', &bytes[at..end]).count() as u64;
                    at = end;
                }
                None => {
                    let reason =
                        "expected an object that ends, found the end of the file within it"
                            .to_owned();
                    return (elements, Some((line, reason, &bytes[at..])));
                }
            },
        }
    }
}

/// The end of the element that starts at `at`: the comma that follows it, or the list's or
/// object's end.
fn element_end(bytes: &[u8], at: usize, close: u8) -> Option<usize> {
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for (offset, &byte) in bytes[at..].iter().enumerate() {
        if quoted {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => quoted = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => quoted = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth > 0 => depth -= 1,
            b',' if depth == 0 => return Some(at + offset),
            byte if byte == close && depth == 0 => return Some(at + offset),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::read::table::Table;
    use proptest::prelude::*;

    fn table(text: &str) -> Table {
        let mut table = Table::default();
        read(text.as_bytes(), &mut None, &mut |part| table.push(part, "f")).unwrap();
        table
    }

    #[test]
    fn one_bad_element_costs_no_other() {
        let table = table(
            "[\n {\"question\":\"a, [x]\",\"answer\":\"1\"},\n 7,\n {\"question\":\"b\"},\n{\"question\":\"c\",\"answer\":\"]}\\\"\"}\n]\n",
        );
        assert_eq!(table.rows, 2);
        assert_eq!(table.rejects.iter().map(|reject| reject.line).collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn a_document_that_stops_in_the_middle_keeps_its_rows() {
        let table = table("[{\"text\":\"a\"},\n{\"text\":\"b");
        assert_eq!((table.rows, table.rejects.len(), table.rejects[0].line), (1, 1, 2));
    }

    #[test]
    fn a_brace_without_its_partner_costs_its_element() {
        let table = table("[}, {\"text\":\"a\"}}, {\"text\":\"b\"}]");
        assert_eq!((table.rows, table.rejects.len()), (1, 2));
    }

    #[test]
    fn a_list_inside_an_object_is_found() {
        assert_eq!(table("{\"version\":1,\"data\":[{\"text\":\"a\"},{\"text\":\"b\"}]}").rows, 2);
        assert_eq!(table("{\"text\":\"a\",\"data\":[{\"x\":\"a\"}]}").rows, 1);
    }

    #[test]
    fn objects_over_several_lines_are_rows() {
        let table = table(
            "{\n  \"text\": \"a\"\n}\n{\n  \"text\": \"b\"\n}\n{\n \"text\": oh\n}\n{\"text\": \"d\",\n\"x\": NaN}\n",
        );
        assert_eq!(table.rows, 3);
        assert_eq!(table.rejects.iter().map(|reject| reject.line).collect::<Vec<_>>(), [7]);
    }

    proptest! {
        #[test]
        fn any_text_is_handled(text in "[\\[{\\]}\",: a1\\\\\n]{0,60}") {
            let _ = read(text.as_bytes(), &mut None, &mut |_| ());
        }
    }
}
