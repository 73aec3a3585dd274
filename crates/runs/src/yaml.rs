//! How YAML is written: block style in the order of the fields, so that equal values have equal
//! texts, by rules that readers of YAML 1.1 (PyYAML) and of YAML 1.2 take for the same.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// A list of scalars stands in one line up to this column.
const WIDTH: usize = 100;

/// Plain words that some reader takes for something else than a text.
const RESERVED: [&str; 11] =
    ["true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan", "inf"];

/// The text of a document.
pub(crate) fn text(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => entries(&mut out, map, 0, false),
        Value::Array(list) if !list.is_empty() => items(&mut out, list, 0),
        other => {
            out.push_str(&flow(other));
            out.push('\n');
        }
    }
    out
}

/// The entries of a map; `started`: the first one's indentation is there already.
fn entries(out: &mut String, map: &Map<String, Value>, indent: usize, mut started: bool) {
    for (key, value) in map {
        if !std::mem::take(&mut started) {
            out.extend(std::iter::repeat_n(' ', indent));
        }
        let key = string(key);
        let _ = write!(out, "{key}:"); // a String takes everything
        match value {
            Value::Object(map) if !map.is_empty() => {
                out.push('\n');
                entries(out, map, indent + 2, false);
            }
            Value::Array(list) if !fits(list, indent + key.chars().count() + 2) => {
                out.push('\n');
                items(out, list, indent);
            }
            other => {
                let _ = writeln!(out, " {}", flow(other));
            }
        }
    }
}

fn items(out: &mut String, list: &[Value], indent: usize) {
    for item in list {
        out.extend(std::iter::repeat_n(' ', indent));
        out.push_str("- ");
        match item {
            Value::Object(map) if !map.is_empty() => entries(out, map, indent + 2, true),
            other => {
                out.push_str(&flow(other));
                out.push('\n');
            }
        }
    }
}

/// Whether a list stands in one line that begins at this column.
fn fits(list: &[Value], column: usize) -> bool {
    let scalars = !list.iter().any(|item| item.is_array() || item.is_object());
    list.is_empty() || (scalars && column + flow_list(list).chars().count() <= WIDTH)
}

fn flow(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(bool) => bool.to_string(),
        Value::Number(number) => self::number(&number.to_string()),
        Value::String(text) => string(text),
        Value::Array(list) => flow_list(list),
        Value::Object(map) => {
            let entry =
                |(key, value): (&String, &Value)| format!("{}: {}", string(key), flow(value));
            format!("{{{}}}", map.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
    }
}

fn flow_list(list: &[Value]) -> String {
    format!("[{}]", list.iter().map(flow).collect::<Vec<_>>().join(", "))
}

/// A number as JSON has it, the exponent in the form that PyYAML takes for a number: with a point
/// before it and a sign.
fn number(json: &str) -> String {
    let Some((mantissa, exponent)) = json.split_once(['e', 'E']) else { return json.to_owned() };
    let point = if mantissa.contains('.') { "" } else { ".0" };
    let sign = if exponent.starts_with(['-', '+']) { "" } else { "+" };
    format!("{mantissa}{point}e{sign}{exponent}")
}

/// A text: bare where nobody can take it for something else, otherwise in double quotes.
fn string(text: &str) -> String {
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        || text.starts_with("./")
        || text.starts_with("../");
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    let reserved = RESERVED.contains(&text.to_ascii_lowercase().as_str());
    if starts && !reserved && text.chars().all(plain) { text.to_owned() } else { quoted(text) }
}

/// A text in double quotes, which no reader takes for something else.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            // What a reader may refuse as it stands, or take for the end of a line.
            '\0'..'\u{20}' | '\u{7f}'..='\u{a0}' => {
                let _ = write!(quoted, "\\x{:02X}", u32::from(c)); // a string takes all
            }
            '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fff0}'..='\u{ffff}' => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_reads_as_it_was_meant() {
        let value = json!({
            "name": null,
            "steps": [
                { "clean": ["strip_html", "drop_empty"] },
                { "clean": [{ "drop_short": { "min_words": 3 } }, "drop_empty"] },
            ],
            "empty": [], "none": {},
            "learning_rate": 1e-8, "alpha": 8.0, "big": 1e300,
            "words": ["no", "2024-01-01", "q_proj", "a: b", "", "./x", "1e5", "ü"],
            "nested": { "deep": { "seed": u64::MAX } },
        });
        let expected = "\
name: null
steps:
- clean: [strip_html, drop_empty]
- clean:
  - drop_short:
      min_words: 3
  - drop_empty
empty: []
none: {}
learning_rate: 1.0e-8
alpha: 8.0
big: 1.0e+300
words: [\"no\", \"2024-01-01\", q_proj, \"a: b\", \"\", ./x, \"1e5\", \"ü\"]
nested:
  deep:
    seed: 18446744073709551615
";
        assert_eq!(text(&value), expected);
    }

    #[test]
    fn texts_of_any_characters_come_back() {
        let all: String = (0..0x3000).chain(0xfe00..=0xffff).filter_map(char::from_u32).collect();
        let value = json!({ "a": all, "b": "line\n\n  two\t", "c": " # no comment", "d": "😀" });
        let back: serde_json::Value = serde_saphyr::from_str(&text(&value)).unwrap();
        assert_eq!(back, value);
    }
}
