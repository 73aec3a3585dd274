//! The rows of files as they come, and the frame that they become.

use std::collections::HashMap;

use polars::prelude::*;
use serde_json::Value;

use crate::columns::{COMPLETION, MESSAGES, PROMPT, SYSTEM, TURNS};
use crate::error::Result;
use crate::read::input::Input;
use crate::read::shape::{Pair, RowShape};

/// More distinct further keys than this are kept in one column of JSON text: they are ids, not
/// columns.
const MAX_COLUMNS: usize = 64;
/// Bytes of an unusable line that are kept with the reason.
pub(crate) const RAW_BYTES: usize = 64 << 10;

/// A line that could not be used.
#[derive(Debug)]
pub(crate) struct Reject {
    pub file: String,
    pub line: u64,
    pub reason: String,
    pub raw: String,
}

/// The rows of the lines of one thread.
pub(crate) struct Part {
    prompts: StringChunkedBuilder,
    completions: StringChunkedBuilder,
    extras: Vec<(usize, String, Value)>,
    pub rejects: Vec<Reject>,
    pub rows: usize,
    /// Lines seen, the unusable and the blank ones included.
    pub lines: u64,
    /// The file has no types: its texts may be numbers.
    pub untyped: bool,
}

impl Part {
    pub(crate) fn with_capacity(rows: usize) -> Self {
        Self {
            prompts: StringChunkedBuilder::new(PROMPT.into(), rows),
            completions: StringChunkedBuilder::new(COMPLETION.into(), rows),
            extras: Vec::new(),
            rejects: Vec::new(),
            rows: 0,
            lines: 0,
            untyped: false,
        }
    }

    pub(crate) fn push(&mut self, pair: Pair<'_>) {
        self.prompts.append_value(&pair.prompt);
        self.completions.append_value(&pair.completion);
        let row = self.rows;
        self.extras
            .extend(pair.extras.into_iter().map(|(key, value)| (row, key.into_owned(), value)));
        self.rows += 1;
    }

    /// Keeps a row aside: `raw` is how it stands in the file, as far as that is text.
    pub(crate) fn reject(&mut self, line: u64, reason: String, raw: &[u8]) {
        let raw = &raw[..raw.len().min(RAW_BYTES)];
        self.rejects.push(Reject {
            file: String::new(),
            line,
            reason,
            raw: String::from_utf8_lossy(raw).into_owned(),
        });
    }
}

/// Takes parts of a file, with the shape that they were read by.
pub(crate) type Sink<'a> = dyn FnMut(&Input, Option<&RowShape>, Vec<Part>) -> Result<()> + 'a;

/// The rows of all files.
#[derive(Default)]
pub(crate) struct Table {
    prompts: Vec<StringChunked>,
    completions: Vec<StringChunked>,
    /// Values of further keys: (key, (row, value)), keys in the order in which they first came.
    extras: Vec<(String, Vec<(usize, Value)>)>,
    places: HashMap<String, usize>,
    /// The rows of files without types.
    untyped: Vec<std::ops::Range<usize>>,
    pub rejects: Vec<Reject>,
    pub rows: usize,
}

impl Table {
    /// Adds the rows of a thread, whose line numbers are those in the file.
    pub(crate) fn push(&mut self, part: Part, file: &str) {
        for (row, key, value) in part.extras {
            let at = match self.places.get(&key) {
                Some(&at) => at,
                None => {
                    self.places.insert(key.clone(), self.extras.len());
                    self.extras.push((key, Vec::new()));
                    self.extras.len() - 1
                }
            };
            self.extras[at].1.push((self.rows + row, value));
        }
        self.rejects.extend(
            part.rejects.into_iter().map(|reject| Reject { file: file.to_owned(), ..reject }),
        );
        self.prompts.push(part.prompts.finish());
        self.completions.push(part.completions.finish());
        if part.untyped {
            match self.untyped.last_mut() {
                Some(last) if last.end == self.rows => last.end += part.rows,
                _ => self.untyped.push(self.rows..self.rows + part.rows),
            }
        }
        self.rows += part.rows;
    }

    pub(crate) fn into_frame(self) -> Result<DataFrame> {
        let rows = self.rows;
        let mut columns =
            vec![joined(self.prompts)?.into_column(), joined(self.completions)?.into_column()];
        let mut extras = self.extras;
        extras.iter_mut().for_each(|(_, values)| type_texts(values, &self.untyped));
        if extras.len() > MAX_COLUMNS {
            // A conversation keeps its columns, however many others there are.
            let (known, others): (Vec<_>, Vec<_>) = extras
                .into_iter()
                .partition(|(key, _)| [SYSTEM, TURNS, MESSAGES].contains(&key.as_str()));
            extras = known;
            let mut objects: Vec<Option<serde_json::Map<String, Value>>> = vec![None; rows];
            for (key, values) in others {
                for (row, value) in values {
                    objects[row].get_or_insert_default().insert(key.clone(), value);
                }
            }
            let text = objects
                .into_iter()
                .map(|object| object.map(|object| Value::Object(object).to_string()));
            columns.push(StringChunked::from_iter_options("extra".into(), text).into_column());
        }
        columns.extend(extras.into_iter().map(|(key, values)| typed_column(&key, values, rows)));
        Ok(DataFrame::new(rows, columns)?)
    }
}

/// The rows kept aside, as [`Dataset::rejected`](crate::Dataset::rejected) gives them.
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
    if let Some(column) = spread(&values, rows, Value::as_u64) {
        return Column::new(key.into(), column);
    }
    if let Some(column) = spread(&values, rows, exact_f64) {
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

/// The number, unless it is a whole one that a float would round.
fn exact_f64(value: &Value) -> Option<f64> {
    let whole = match (value.as_i64(), value.as_u64()) {
        (Some(whole), _) => whole.unsigned_abs(),
        (None, Some(whole)) => whole,
        (None, None) => return value.as_f64(),
    };
    (whole <= 1 << f64::MANTISSA_DIGITS).then(|| value.as_f64()).flatten()
}

/// Makes numbers of the texts of files without types, if every one is written as the number prints:
/// `7` and `0.5`, but not `007`, `3.10` or digits that no number holds. Among floats `7` is `7.0`.
fn type_texts(values: &mut [(usize, Value)], untyped: &[std::ops::Range<usize>]) {
    let is_untyped = |row: usize| {
        let at = untyped.partition_point(|rows| rows.end <= row);
        untyped.get(at).is_some_and(|rows| rows.contains(&row))
    };
    let mut numbers = Vec::new();
    for (at, (row, value)) in values.iter().enumerate() {
        if let Value::String(text) = value
            && is_untyped(*row)
        {
            match number(text) {
                Some(number) => numbers.push((at, number)),
                None => return,
            }
        }
    }
    let floats = numbers.iter().any(|(_, number)| number.is_f64());
    let exact = |number: &Value| {
        let whole = number.as_i64().map(i64::unsigned_abs).or(number.as_u64());
        whole.is_none_or(|whole| whole <= 1 << f64::MANTISSA_DIGITS)
    };
    if floats && !numbers.iter().all(|(_, number)| exact(number)) {
        return;
    }
    // A whole number beyond the others' range would become a float.
    let negative = numbers.iter().any(|(_, number)| number.as_i64().is_some_and(|n| n < 0));
    if negative && numbers.iter().any(|(_, number)| number.is_u64() && !number.is_i64()) {
        return;
    }
    for (at, number) in numbers {
        values[at].1 = number;
    }
}

fn number(text: &str) -> Option<Value> {
    if let Ok(whole) = text.parse::<i64>() {
        return (whole.to_string() == text).then(|| whole.into());
    }
    if let Ok(whole) = text.parse::<u64>() {
        return (whole.to_string() == text).then(|| whole.into());
    }
    let float = text.parse::<f64>().ok()?;
    (text.contains('.') && format!("{float:?}") == text).then(|| float.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_not_rounded() {
        let column = |values: &[Value]| {
            typed_column("x", values.iter().cloned().enumerate().collect(), values.len())
        };
        let large: Value = 18446744073709551557u64.into();
        let odd: Value = 9007199254740993u64.into();
        assert_eq!(column(&[large.clone(), odd.clone()]).dtype(), &DataType::UInt64);
        assert_eq!(column(&[odd.clone(), (-1).into()]).dtype(), &DataType::Int64);
        assert_eq!(column(&[1.into(), 0.5.into()]).dtype(), &DataType::Float64);
        let mixed = column(&[odd, 0.5.into(), large]);
        let texts: Vec<Option<&str>> = mixed.str().unwrap().iter().collect();
        assert_eq!(texts, [Some("9007199254740993"), Some("0.5"), Some("18446744073709551557")]);
    }
}
