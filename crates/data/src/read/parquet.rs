//! Parquet: polars reads it, and the columns become pairs.

use std::borrow::Cow;
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};

use polars::prelude::*;
use polars_io::prelude::{ParquetReader, SerReader};
use rayon::prelude::*;
use serde_json::{Map, Value};

use crate::read::fields::Field;
use crate::read::shape::RowShape;
use crate::read::table::Part;

/// Rows that one thread makes pairs of at a time.
const CHUNK_ROWS: usize = 4096;
const MAGIC: &[u8; 4] = b"PAR1";

/// The frame in a file.
pub(crate) fn read_file(mut file: File) -> Result<DataFrame, String> {
    // A file that was cut off has lost its index, which stands at the end.
    let mut end = [0u8; 4];
    let ends = file.seek(SeekFrom::End(-4)).and_then(|_| file.read_exact(&mut end));
    if ends.is_err() || &end != MAGIC {
        return Err(
            "expected a whole Parquet file, found one without an end: was it cut off?".to_owned()
        );
    }
    file.rewind().map_err(|error| error.to_string())?;
    guarded(|| ParquetReader::new(file).finish())
}

/// The frame in bytes in memory.
pub(crate) fn read_bytes(bytes: Vec<u8>) -> Result<DataFrame, String> {
    if bytes.len() < 12 || !bytes.ends_with(MAGIC) {
        return Err(
            "expected a whole Parquet file, found one without an end: was it cut off?".to_owned()
        );
    }
    guarded(|| ParquetReader::new(Cursor::new(bytes)).finish())
}

/// A damaged file must not end the notebook: the reader panics at some.
fn guarded(read: impl FnOnce() -> PolarsResult<DataFrame>) -> Result<DataFrame, String> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(frame)) => Ok(frame),
        Ok(Err(error)) => Err(format!("expected a Parquet file, found a damaged one: {error}")),
        Err(_) => Err("expected a Parquet file, found a damaged one".to_owned()),
    }
}

/// The rows of a frame. `shape` is found in the first usable row when it is not given; rows are
/// counted from 1.
pub(crate) fn rows(frame: &DataFrame, shape: &mut Option<RowShape>, each: &mut dyn FnMut(Part)) {
    if shape.is_none() {
        *shape = (0..frame.height().min(1000)).find_map(|row| {
            let fields = fields(frame, row);
            RowShape::recognise(fields.iter().map(|(key, field)| (key.as_ref(), field)))
        });
    }
    let fallback = RowShape::PromptCompletion;
    let shape = shape.as_ref().unwrap_or(&fallback);
    let starts: Vec<usize> = (0..frame.height()).step_by(CHUNK_ROWS).collect();
    let parts: Vec<Part> = starts
        .into_par_iter()
        .map(|start| {
            let mut part = Part::with_capacity(CHUNK_ROWS);
            for row in start..frame.height().min(start + CHUNK_ROWS) {
                part.lines += 1;
                match shape.pair(fields(frame, row)) {
                    Ok(pair) => part.push(pair),
                    Err(reason) => {
                        let raw: Map<String, Value> = fields(frame, row)
                            .into_iter()
                            .map(|(key, field)| (key.into_owned(), field.into_value()))
                            .collect();
                        part.reject(
                            row as u64 + 1,
                            reason,
                            Value::Object(raw).to_string().as_bytes(),
                        );
                    }
                }
            }
            part
        })
        .collect();
    parts.into_iter().for_each(each);
}

fn fields(frame: &DataFrame, row: usize) -> Vec<(Cow<'_, str>, Field<'_>)> {
    frame
        .columns()
        .iter()
        .map(|column| {
            let field = match column.get(row) {
                Ok(AnyValue::String(text)) => Field::Text(Cow::Owned(text.to_owned())),
                Ok(value) => match json(&value) {
                    Value::String(text) => Field::Text(Cow::Owned(text)),
                    other => Field::Other(other),
                },
                Err(_) => Field::Other(Value::Null),
            };
            (Cow::Borrowed(column.name().as_str()), field)
        })
        .collect()
}

/// A value of a frame as JSON: lists and structs whole.
pub(crate) fn json(value: &AnyValue<'_>) -> Value {
    match value {
        AnyValue::Null => Value::Null,
        AnyValue::Boolean(value) => (*value).into(),
        AnyValue::String(text) => (*text).into(),
        AnyValue::StringOwned(text) => text.as_str().into(),
        AnyValue::Float32(value) => f64::from(*value).into(),
        AnyValue::Float64(value) => (*value).into(),
        AnyValue::List(items) => (0..items.len())
            .map(|at| items.get(at).map_or(Value::Null, |item| json(&item)))
            .collect::<Vec<_>>()
            .into(),
        AnyValue::StructOwned(fields) => Value::Object(
            fields
                .1
                .iter()
                .zip(&fields.0)
                .map(|(field, value)| (field.name().to_string(), json(value)))
                .collect(),
        ),
        AnyValue::Struct(..) => json(&value.clone().into_static()),
        // A text that is no text: say so by its type rather than by megabytes.
        AnyValue::Binary(bytes) => format!("{} bytes", bytes.len()).into(),
        AnyValue::BinaryOwned(bytes) => format!("{} bytes", bytes.len()).into(),
        other => match other.extract::<i64>() {
            Some(whole) if other.dtype().is_integer() => whole.into(),
            _ => other.to_string().into(),
        },
    }
}
