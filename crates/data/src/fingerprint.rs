//! The fingerprint of a data set: a hash of its columns and rows.
//!
//! SHA-256 over the following bytes; integers are little-endian, and `text(x)` is the length of `x`
//! in bytes as a `u64` and then its UTF-8:
//!
//! ```text
//! "tunebook-dataset-1", rows: u64, columns: u64
//! for each column: text(name), text(type), and for each row the value:
//!     null            0
//!     anything else   1, then
//!         bool        0 or 1
//!         i8 … u64    the bytes of the integer
//!         f32, f64    the bits; every NaN as the positive quiet NaN
//!         str, binary the length in bytes: u64, and the bytes
//!         list        the number of items: u64, and each item as a value
//!         struct      each field as a value
//! ```
//!
//! Types are `null`, `bool`, `i8` … `i64`, `u8` … `u64`, `f32`, `f64`, `str`, `binary`, `date`
//! (stored as `i32`), `datetime[UNIT,ZONE]` and `duration[UNIT]` (`i64`; the unit is `ns`, `us` or
//! `ms`), `time` (`i64`), `list[TYPE]` and `struct[LENGTH:NAME:TYPE,…]` with the
//! length of the name in bytes. Any other type is hashed by the
//! name and the text that polars gives to it.

use polars::prelude::*;
use sha2::{Digest, Sha256};

use crate::dataset::Dataset;

const VERSION: &[u8] = b"tunebook-dataset-1";

impl Dataset {
    /// The SHA-256 of the rows, 64 hexadecimal digits.
    ///
    /// It depends on the names, types and order of the columns and on the values and order of the
    /// rows, all further columns included; not on where the rows were read from, on the rows that
    /// were kept aside, on the report of a cleaning, or on how polars divides a column into chunks.
    /// Two data sets with one fingerprint have the same rows; a data set has the same fingerprint
    /// on every machine.
    ///
    /// ```
    /// use tunebook_data::Dataset;
    /// let rows = [("a", "1"), ("b", "2")];
    /// let dataset = Dataset::from_rows(&rows);
    /// assert_eq!(dataset.fingerprint(), Dataset::from_rows(&rows).fingerprint());
    /// assert_ne!(dataset.fingerprint(), dataset.head(1).fingerprint());
    /// ```
    pub fn fingerprint(&self) -> String {
        let frame = self.frame_ref();
        let mut hash = Sha256::new();
        hash.update(VERSION);
        length(&mut hash, frame.height());
        length(&mut hash, frame.width());
        for column in frame.columns() {
            text(&mut hash, column.name());
            text(&mut hash, &type_name(column.dtype()));
            series(&mut hash, column.as_materialized_series());
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn length(hash: &mut Sha256, length: usize) {
    hash.update((length as u64).to_le_bytes());
}

fn text(hash: &mut Sha256, text: &str) {
    length(hash, text.len());
    hash.update(text.as_bytes());
}

/// The values of a column.
fn series(hash: &mut Sha256, values: &Series) {
    // Texts are most of a data set: they are not copied.
    if let Ok(texts) = values.str() {
        for value in texts.iter() {
            match value {
                None => hash.update([0]),
                Some(value) => {
                    hash.update([1]);
                    text(hash, value);
                }
            }
        }
        return;
    }
    // Dates and times are hashed as the integers that they are stored as.
    let physical = values.to_physical_repr();
    for row in 0..physical.len() {
        self::value(hash, physical.get(row).unwrap_or(AnyValue::Null));
    }
}

fn value(hash: &mut Sha256, value: AnyValue<'_>) {
    if value.is_null() {
        hash.update([0]);
        return;
    }
    hash.update([1]);
    match value {
        AnyValue::Boolean(value) => hash.update([u8::from(value)]),
        AnyValue::Int8(value) => hash.update(value.to_le_bytes()),
        AnyValue::Int16(value) => hash.update(value.to_le_bytes()),
        AnyValue::Int32(value) => hash.update(value.to_le_bytes()),
        AnyValue::Int64(value) => hash.update(value.to_le_bytes()),
        AnyValue::UInt8(value) => hash.update(value.to_le_bytes()),
        AnyValue::UInt16(value) => hash.update(value.to_le_bytes()),
        AnyValue::UInt32(value) => hash.update(value.to_le_bytes()),
        AnyValue::UInt64(value) => hash.update(value.to_le_bytes()),
        AnyValue::Float32(value) => {
            let bits = if value.is_nan() { 0x7fc0_0000 } else { value.to_bits() };
            hash.update(bits.to_le_bytes());
        }
        AnyValue::Float64(value) => {
            let bits = if value.is_nan() { 0x7ff8_0000_0000_0000 } else { value.to_bits() };
            hash.update(bits.to_le_bytes());
        }
        AnyValue::String(value) => text(hash, value),
        AnyValue::StringOwned(value) => text(hash, &value),
        AnyValue::Binary(value) => {
            length(hash, value.len());
            hash.update(value);
        }
        AnyValue::BinaryOwned(value) => {
            length(hash, value.len());
            hash.update(value);
        }
        AnyValue::List(items) => {
            length(hash, items.len());
            series(hash, &items);
        }
        AnyValue::StructOwned(fields) => {
            fields.0.into_iter().for_each(|field| self::value(hash, field));
        }
        AnyValue::Struct(..) => match value.into_static() {
            AnyValue::StructOwned(fields) => {
                fields.0.into_iter().for_each(|field| self::value(hash, field));
            }
            other => text(hash, &other.to_string()),
        },
        other => text(hash, &other.to_string()),
    }
}

fn type_name(of: &DataType) -> String {
    let unit = |unit: &TimeUnit| match unit {
        TimeUnit::Nanoseconds => "ns",
        TimeUnit::Microseconds => "us",
        TimeUnit::Milliseconds => "ms",
    };
    match of {
        DataType::Null => "null".to_owned(),
        DataType::Boolean => "bool".to_owned(),
        DataType::Int8 => "i8".to_owned(),
        DataType::Int16 => "i16".to_owned(),
        DataType::Int32 => "i32".to_owned(),
        DataType::Int64 => "i64".to_owned(),
        DataType::UInt8 => "u8".to_owned(),
        DataType::UInt16 => "u16".to_owned(),
        DataType::UInt32 => "u32".to_owned(),
        DataType::UInt64 => "u64".to_owned(),
        DataType::Float32 => "f32".to_owned(),
        DataType::Float64 => "f64".to_owned(),
        DataType::String => "str".to_owned(),
        DataType::Binary => "binary".to_owned(),
        DataType::Date => "date".to_owned(),
        DataType::Time => "time".to_owned(),
        DataType::Datetime(of, zone) => {
            let zone = zone.as_ref().map(|zone| zone.to_string()).unwrap_or_default();
            format!("datetime[{},{zone}]", unit(of))
        }
        DataType::Duration(of) => format!("duration[{}]", unit(of)),
        DataType::List(of) => format!("list[{}]", type_name(of)),
        DataType::Struct(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|field| {
                    let name = field.name();
                    format!("{}:{name}:{}", name.len(), type_name(field.dtype()))
                })
                .collect();
            format!("struct[{}]", fields.join(","))
        }
        other => other.to_string(),
    }
}
