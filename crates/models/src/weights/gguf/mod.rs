//! GGUF files (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>): the metadata, and
//! tensors dequantised to f32 under Hugging Face's names.
//!
//! Names, the order of rows and other differences are [`layout`]'s.
//!
//! The header is read by code of our own, so that an error names the key or the tensor at which a
//! damaged file breaks, and nothing is allocated that the file is too small to fill: what is kept
//! of a header takes at most eight times its bytes (a list of one-byte numbers does, a list of
//! texts takes half as much).

pub(crate) mod adapter;
pub(crate) mod layout;
pub(crate) mod split;
pub(crate) mod tokenizer;
pub(crate) mod vocabulary;
pub(crate) mod weights;
pub(crate) mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::weights::floats;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// Any float.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    String(String),
    /// Values of one type.
    Array(Array),
}

/// The values of a list, which all have one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Any unsigned integers.
    Unsigned(Vec<u64>),
    /// Any signed integers.
    Signed(Vec<i64>),
    /// Any floats.
    Float(Vec<f64>),
    /// Flags.
    Bool(Vec<bool>),
    /// Texts.
    String(Vec<String>),
    /// Lists.
    Array(Vec<Array>),
}

impl Array {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Unsigned(values) => values.len(),
            Self::Signed(values) => values.len(),
            Self::Float(values) => values.len(),
            Self::Bool(values) => values.len(),
            Self::String(values) => values.len(),
            Self::Array(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers, if they are ones.
    pub fn to_f64(&self) -> Option<Vec<f64>> {
        match self {
            Self::Unsigned(values) => Some(values.iter().map(|n| *n as f64).collect()),
            Self::Signed(values) => Some(values.iter().map(|n| *n as f64).collect()),
            Self::Float(values) => Some(values.clone()),
            _ => None,
        }
    }

    /// The whole numbers, if they are ones.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        match self {
            Self::Unsigned(values) => values.iter().map(|n| i64::try_from(*n).ok()).collect(),
            Self::Signed(values) => Some(values.clone()),
            _ => None,
        }
    }
}

impl Value {
    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    /// The number, if it is a whole one of at least 0.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(n) => Some(*n),
            Self::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// The number, if it is one.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Unsigned(n) => Some(*n as f64),
            Self::Signed(n) => Some(*n as f64),
            Self::Float(n) => Some(*n),
            _ => None,
        }
    }

    /// The flag, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(flag) = self { Some(*flag) } else { None }
    }
}

/// Where one tensor lies in the file.
#[derive(Clone, Debug)]
struct TensorInfo {
    dtype: GgmlDType,
    /// The slowest dimension first, as everywhere but in GGUF.
    shape: Vec<usize>,
    /// Byte range in the file.
    start: usize,
    end: usize,
}

/// An open GGUF file.
pub struct Gguf {
    path: PathBuf,
    file: Mmap,
    metadata: Metadata,
    tensors: Tensors,
}

// Ordered maps: one that is hashed has up to three times the room that it needs while it grows.
type Metadata = BTreeMap<String, Value>;
type Tensors = BTreeMap<String, TensorInfo>;

impl Gguf {
    /// Opens the file, reads its header and checks that every tensor lies inside it.
    ///
    /// # Errors
    /// When it cannot be read, is no GGUF file, ends too early, or holds a tensor type that is not
    /// known.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_path(path.as_ref())
    }

    fn open_path(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        // SAFETY: model files are written once and then only read; they are replaced by renaming,
        // which keeps this mapping.
        let file = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        let mut reader = Reader { bytes: &file, at: 0, part: "the header".to_owned() };
        let (metadata, tensors) = read_header(&mut reader).map_err(|fault| match fault {
            Fault::Damaged(reason) => {
                Error::Corrupt { path: path.to_owned(), at: reader.part.clone(), reason }
            }
            Fault::TensorType(found) => Error::Unsupported {
                origin: path.display().to_string(),
                what: "a tensor of type",
                found,
                known: "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K".to_owned(),
            },
        })?;
        Ok(Self { path: path.to_owned(), file, metadata, tensors })
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &String> {
        self.metadata.keys()
    }

    pub(crate) fn has_tensor(&self, gguf_name: &str) -> bool {
        self.tensors.contains_key(gguf_name)
    }

    pub(crate) fn wrong<T>(&self, key: &str, expected: &str) -> Result<T> {
        let found = match self.get(key) {
            None => "missing".to_owned(),
            Some(Value::Array(values)) => format!("an array of {}", values.len()),
            Some(value) => format!("{value:?}"),
        };
        Err(Error::Config {
            origin: self.origin(),
            field: key.to_owned(),
            found,
            expected: expected.to_owned(),
        })
    }

    pub(crate) fn text(&self, key: &str) -> Result<&str> {
        match self.get(key).and_then(Value::as_str) {
            Some(text) => Ok(text),
            None => self.wrong(key, "a text"),
        }
    }

    pub(crate) fn count(&self, key: &str) -> Result<usize> {
        match self.get(key).and_then(Value::as_u64) {
            Some(n) if (1..=1 << 31).contains(&n) => Ok(n as usize),
            _ => self.wrong(key, "a whole number above 0"),
        }
    }

    pub(crate) fn optional_count(&self, key: &str) -> Result<Option<usize>> {
        self.get(key).map(|_| self.count(key)).transpose()
    }

    pub(crate) fn number(&self, key: &str) -> Result<f64> {
        match self.get(key).and_then(Value::as_f64) {
            Some(n) => Ok(n),
            None => self.wrong(key, "a number"),
        }
    }

    pub(crate) fn array(&self, key: &str) -> Result<&Array> {
        match self.get(key) {
            Some(Value::Array(values)) => Ok(values),
            _ => self.wrong(key, "an array"),
        }
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Vec<&str>> {
        match self.array(key)? {
            Array::String(texts) => Ok(texts.iter().map(String::as_str).collect()),
            _ => self.wrong(key, "an array of texts"),
        }
    }

    /// A number that the file holds as f32, as its decimal form was meant.
    pub(crate) fn written_number(&self, key: &str) -> Result<f64> {
        Ok(as_written(self.number(key)?))
    }

    /// The values of a small tensor of type F32, if it is there.
    pub(crate) fn numbers(&self, gguf_name: &str) -> Result<Option<Vec<f64>>> {
        let Some(info) = self.tensors.get(gguf_name) else { return Ok(None) };
        if info.dtype != GgmlDType::F32 {
            return Err(Error::Unsupported {
                origin: self.origin(),
                what: "a tensor of type",
                found: format!("{:?} (`{gguf_name}`)", info.dtype),
                known: "F32".to_owned(),
            });
        }
        let values = floats(&self.file[info.start..info.end], f32::from_le_bytes);
        Ok(Some(values.into_iter().map(|value| as_written(f64::from(value))).collect()))
    }

    /// The type of most of the weights; f32 for quantised ones.
    pub(crate) fn dtype(&self) -> DType {
        let largest = self.tensors.values().max_by_key(|info| info.end - info.start);
        match largest.map(|info| info.dtype) {
            Some(GgmlDType::F16) => DType::F16,
            Some(GgmlDType::BF16) => DType::BF16,
            _ => DType::F32,
        }
    }

    /// The file, as errors call it.
    pub(crate) fn origin(&self) -> String {
        self.path.display().to_string()
    }
}

/// The number whose nearest f32 this is: `1e-5` and not `9.999999747378752e-6`.
fn as_written(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}

/// What is wrong with a header.
enum Fault {
    Damaged(String),
    TensorType(String),
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Damaged(reason)
    }
}

type Parsed<T> = std::result::Result<T, Fault>;

fn read_header(reader: &mut Reader<'_>) -> Parsed<(Metadata, Tensors)> {
    let magic = reader.take(4)?;
    if magic != b"GGUF" {
        return Err(format!("expected the four bytes `GGUF` at the start, found {magic:?}").into());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("expected version 2 or 3, found {version}").into());
    }
    let tensor_count = reader.u64()?;
    let metadata_count = reader.u64()?;
    let mut metadata = Metadata::new();
    for index in 0..metadata_count {
        reader.part = format!("key {} of {metadata_count}", index + 1);
        let key = reader.string()?;
        reader.part = format!("key `{key}`");
        let kind = reader.u32()?;
        let value = reader.value(kind, 0)?;
        metadata.insert(key, value);
    }
    let mut tensors = Tensors::new();
    for index in 0..tensor_count {
        reader.part = format!("the entry of tensor {} of {tensor_count}", index + 1);
        let name = reader.string()?;
        reader.part = format!("the entry of tensor `{name}`");
        let info = reader.tensor_info()?;
        tensors.insert(name, info);
    }
    reader.part = "key `general.alignment`".to_owned();
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(value) => {
            match value.as_u64().filter(|n| n.is_power_of_two() && (8..=1 << 20).contains(n)) {
                Some(n) => n as usize,
                None => {
                    return Err(
                        format!("expected a power of two of at least 8, found {value:?}").into()
                    );
                }
            }
        }
    };
    let data = reader.at.next_multiple_of(alignment);
    let mut in_order: Vec<(&String, &mut TensorInfo)> = tensors.iter_mut().collect();
    in_order.sort_by_key(|(_, info)| info.start);
    let mut taken = 0;
    for (name, info) in in_order {
        reader.part = format!("tensor `{name}`");
        let (offset, bytes) = (info.start, info.end);
        if !offset.is_multiple_of(alignment) {
            return Err(format!(
                "expected an offset that is a multiple of {alignment}, found {offset}"
            )
            .into());
        }
        // Otherwise a small file could hold any number of large tensors.
        if offset < taken {
            return Err(format!(
                "expected an offset of at least {taken}, where the tensor before it ends, found {offset}"
            )
            .into());
        }
        let range =
            data.checked_add(offset).and_then(|start| Some((start, start.checked_add(bytes)?)));
        match range {
            Some((start, end)) if end <= reader.bytes.len() => {
                (info.start, info.end) = (start, end)
            }
            _ => {
                return Err(format!(
                    "expected {bytes} bytes from byte {} on, found the end of the file at byte {}",
                    data.saturating_add(offset),
                    reader.bytes.len()
                )
                .into());
            }
        }
        taken = offset + bytes;
    }
    Ok((metadata, tensors))
}

fn unknown_type(number: u32) -> Fault {
    format!("expected a value type of 0 to 12, found {number}").into()
}

/// Reads little-endian values from the start of the file on, and knows which part it is in.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    part: String,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Parsed<&'a [u8]> {
        match self.at.checked_add(n).and_then(|end| self.bytes.get(self.at..end)) {
            Some(bytes) => {
                self.at += n;
                Ok(bytes)
            }
            None => Err(format!(
                "expected {n} more bytes at byte {}, found the end of the file at byte {}",
                self.at,
                self.bytes.len()
            )
            .into()),
        }
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let bytes = self.take(N)?;
        <[u8; N]>::try_from(bytes).map_err(|error| error.to_string().into())
    }

    fn u32(&mut self) -> Parsed<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Parsed<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn length(&mut self) -> Parsed<usize> {
        let length = self.u64()?;
        usize::try_from(length).map_err(|_| format!("found the impossible length {length}").into())
    }

    fn string(&mut self) -> Parsed<String> {
        let length = self.length()?;
        let bytes = self.take(length)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(format!("expected text in UTF-8, found: {error}").into()),
        }
    }

    fn value(&mut self, kind: u32, depth: usize) -> Parsed<Value> {
        Ok(match kind {
            0 => Value::Unsigned(self.array::<1>()?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.flag()?),
            8 => Value::String(self.string()?),
            9 => Value::Array(self.values(depth)?),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(unknown_type(other)),
        })
    }

    /// A list: the type of its values, their number, and the values.
    fn values(&mut self, depth: usize) -> Parsed<Array> {
        const DEEPEST: usize = 4;
        if depth == DEEPEST {
            return Err(format!("expected arrays nested at most {DEEPEST} deep, found more").into());
        }
        let kind = self.u32()?;
        let length = self.length()?;
        // Before room is made for them: a false length must not ask for more than the file can
        // fill.
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            _ => 12,
        };
        let left = self.bytes.len() - self.at;
        if length.checked_mul(least).is_none_or(|bytes| bytes > left) {
            return Err(format!(
                "expected {length} values of at least {least} bytes at byte {}, found the end of the file at byte {}",
                self.at,
                self.bytes.len()
            )
            .into());
        }
        Ok(match kind {
            0 => Array::Unsigned(self.take(length)?.iter().map(|n| u64::from(*n)).collect()),
            1 => Array::Signed(self.take(length)?.iter().map(|n| i64::from(*n as i8)).collect()),
            2 => Array::Unsigned(self.numbers(length, |bytes| u16::from_le_bytes(bytes).into())?),
            3 => Array::Signed(self.numbers(length, |bytes| i16::from_le_bytes(bytes).into())?),
            4 => Array::Unsigned(self.numbers(length, |bytes| u32::from_le_bytes(bytes).into())?),
            5 => Array::Signed(self.numbers(length, |bytes| i32::from_le_bytes(bytes).into())?),
            6 => Array::Float(self.numbers(length, |bytes| f32::from_le_bytes(bytes).into())?),
            7 => Array::Bool(self.list(length, |reader| reader.flag())?),
            8 => Array::String(self.list(length, |reader| reader.string())?),
            9 => Array::Array(self.list(length, |reader| reader.values(depth + 1))?),
            10 => Array::Unsigned(self.numbers(length, u64::from_le_bytes)?),
            11 => Array::Signed(self.numbers(length, i64::from_le_bytes)?),
            12 => Array::Float(self.numbers(length, f64::from_le_bytes)?),
            other => return Err(unknown_type(other)),
        })
    }

    fn numbers<const N: usize, T>(
        &mut self,
        length: usize,
        number: fn([u8; N]) -> T,
    ) -> Parsed<Vec<T>> {
        self.list(length, |reader| reader.array().map(number))
    }

    /// So many values, which the caller knows the file to have room for.
    fn list<T>(
        &mut self,
        length: usize,
        mut value: impl FnMut(&mut Self) -> Parsed<T>,
    ) -> Parsed<Vec<T>> {
        let mut values = Vec::with_capacity(length);
        for _ in 0..length {
            values.push(value(self)?);
        }
        Ok(values)
    }

    fn flag(&mut self) -> Parsed<bool> {
        match self.array::<1>()?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(format!("expected 0 or 1 for a flag, found {other}").into()),
        }
    }

    /// `start` is the offset into the data and `end` the size in bytes until the caller knows where
    /// the data begins.
    fn tensor_info(&mut self) -> Parsed<TensorInfo> {
        let rank = self.u32()?;
        if !(1..=4).contains(&rank) {
            return Err(format!("expected 1 to 4 dimensions, found {rank}").into());
        }
        let mut shape = self.list(rank as usize, Self::length)?;
        let dtype = match self.u32()? {
            0 => GgmlDType::F32,
            1 => GgmlDType::F16,
            2 => GgmlDType::Q4_0,
            3 => GgmlDType::Q4_1,
            6 => GgmlDType::Q5_0,
            7 => GgmlDType::Q5_1,
            8 => GgmlDType::Q8_0,
            10 => GgmlDType::Q2K,
            11 => GgmlDType::Q3K,
            12 => GgmlDType::Q4K,
            13 => GgmlDType::Q5K,
            14 => GgmlDType::Q6K,
            30 => GgmlDType::BF16,
            other => return Err(Fault::TensorType(format!("number {other}"))),
        };
        let offset = self.length()?;
        let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let row = shape[0];
        let bytes = elements
            .filter(|n| *n > 0 && row.is_multiple_of(dtype.block_size()))
            .and_then(|n| (n / dtype.block_size()).checked_mul(dtype.type_size()));
        shape.reverse();
        let Some(bytes) = bytes else {
            return Err(format!(
                "expected rows of whole blocks of {} values ({dtype:?}), found the shape {shape:?}",
                dtype.block_size()
            )
            .into());
        };
        Ok(TensorInfo { dtype, shape, start: offset, end: bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_read_as_they_were_written() {
        assert_eq!(as_written(f64::from(1e-5f32)), 1e-5);
        assert_eq!(as_written(100_000.0), 100_000.0);
    }
}
