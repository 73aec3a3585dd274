//! The rows of pandas' `to_json` in the orients `split`, `tight`, `index` and `columns`, and of
//! `to_dict(orient="list")`, as `datasets` writes its `to_dict` too. `records` and `table` hold
//! objects, and `values` has no names.

use serde_json::{Map, Value};

/// The column of an index that counts otherwise than from 0.
const INDEX: &str = "index";

/// The rows as objects in JSON, if `document` has one of the orients and a row that `is_row` takes.
pub(crate) fn rows(document: &Value, is_row: impl Fn(&str) -> bool) -> Option<Vec<String>> {
    let document = document.as_object()?;
    [split, indexed, columns, lists]
        .into_iter()
        .filter_map(|orient| orient(document))
        .map(|rows| rows.into_iter().map(|row| Value::Object(row).to_string()).collect::<Vec<_>>())
        .find(|rows| rows.iter().any(|row| is_row(row)))
}

type Rows = Option<Vec<Map<String, Value>>>;

/// `{"columns": [..], "index": [..], "data": [[..], ..]}`.
fn split(document: &Map<String, Value>) -> Rows {
    let list = |name: &str| document.get(name).and_then(Value::as_array);
    let names: Vec<&str> = list("columns")?.iter().map(Value::as_str).collect::<Option<_>>()?;
    let data = list("data")?;
    let mut rows = Vec::with_capacity(data.len());
    for values in data {
        let values = values.as_array().filter(|values| values.len() == names.len())?;
        rows.push(
            names.iter().map(|name| (*name).to_owned()).zip(values.iter().cloned()).collect(),
        );
    }
    match list(INDEX) {
        Some(index) if index.len() == rows.len() => Some(with_index(rows, index.clone())),
        _ => Some(rows),
    }
}

/// `{"0": {"prompt": ..}, "1": {..}}`.
fn indexed(document: &Map<String, Value>) -> Rows {
    let rows: Vec<Map<String, Value>> =
        document.values().map(|row| row.as_object().cloned()).collect::<Option<_>>()?;
    Some(with_index(rows, document.keys().map(|key| key.as_str().into()).collect()))
}

/// `{"prompt": {"0": .., "1": ..}, "completion": {..}}`.
fn columns(document: &Map<String, Value>) -> Rows {
    let columns: Vec<(&String, &Map<String, Value>)> = document
        .iter()
        .map(|(name, column)| Some((name, column.as_object()?)))
        .collect::<Option<_>>()?;
    let first = columns.first()?.1;
    if columns.iter().any(|(_, column)| !column.keys().eq(first.keys())) {
        return None;
    }
    let row = |key: &String| {
        columns.iter().map(|(name, column)| ((*name).clone(), column[key].clone())).collect()
    };
    Some(with_index(
        first.keys().map(row).collect(),
        first.keys().cloned().map(Value::from).collect(),
    ))
}

/// `{"prompt": [..], "completion": [..]}`.
fn lists(document: &Map<String, Value>) -> Rows {
    let columns: Vec<(&String, &Vec<Value>)> = document
        .iter()
        .map(|(name, column)| Some((name, column.as_array()?)))
        .collect::<Option<_>>()?;
    let count = columns.first()?.1.len();
    if columns.iter().any(|(_, column)| column.len() != count) {
        return None;
    }
    let row = |at: usize| {
        columns.iter().map(|(name, column)| ((*name).clone(), column[at].clone())).collect()
    };
    Some((0..count).map(row).collect())
}

/// The rows with their index as a column, unless it counts from 0 or they have such a column.
fn with_index(mut rows: Vec<Map<String, Value>>, index: Vec<Value>) -> Vec<Map<String, Value>> {
    let is_count = |(at, value): (usize, &Value)| match value {
        Value::String(text) => *text == at.to_string(),
        value => value.as_u64() == Some(at as u64),
    };
    if index.iter().enumerate().all(is_count) || rows.iter().any(|row| row.contains_key(INDEX)) {
        return rows;
    }
    for (row, value) in rows.iter_mut().zip(index) {
        row.insert(INDEX.to_owned(), value);
    }
    rows
}
