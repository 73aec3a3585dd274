//! Writing safetensors (<https://github.com/huggingface/safetensors>) tensor by tensor, so that a
//! file as large as the model costs no second copy of it in memory.
//!
//! ```
//! use tunebook_models::tensor_file::{Data, Entry, write};
//! let values = [1f32, 2.0];
//! let mut bytes = Vec::new();
//! write(&mut bytes, &[Entry::new("x", &[2], Data::F32(&values))], &[("format", "pt")])?;
//! assert_eq!(safetensors::SafeTensors::deserialize(&bytes)?.tensor("x")?.shape(), [2]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::io::{Error, Result, Write};

use candle_core::{CpuStorage, DType, Storage, Tensor};
use serde_json::{Map, Value, json};

use tunebook_ops::Quantized;

/// The values of one tensor.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// f32.
    F32(&'a [f32]),
    /// f64.
    F64(&'a [f64]),
    /// Bytes.
    U8(&'a [u8]),
    /// In the tensor's own type: f32, bf16, f16, f64 or u8.
    Tensor(&'a Tensor),
    /// Quantised blocks, dequantised to f32 a few rows at a time.
    Blocks(&'a Quantized),
}

/// One tensor of a file.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    name: String,
    shape: Vec<usize>,
    data: Data<'a>,
}

impl<'a> Entry<'a> {
    /// A tensor under its name.
    pub fn new(name: impl Into<String>, shape: &[usize], data: Data<'a>) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), data }
    }

    /// A tensor with its own shape.
    pub fn tensor(name: impl Into<String>, tensor: &'a Tensor) -> Self {
        Self { name: name.into(), shape: tensor.dims().to_vec(), data: Data::Tensor(tensor) }
    }

    fn dtype(&self) -> Result<(&'static str, usize)> {
        Ok(match self.data {
            Data::F32(_) | Data::Blocks(_) => ("F32", 4),
            Data::F64(_) => ("F64", 8),
            Data::U8(_) => ("U8", 1),
            Data::Tensor(tensor) => match tensor.dtype() {
                DType::F32 => ("F32", 4),
                DType::F64 => ("F64", 8),
                DType::BF16 => ("BF16", 2),
                DType::F16 => ("F16", 2),
                DType::U8 => ("U8", 1),
                other => return Err(Error::other(format!("`{}` is {other:?}", self.name))),
            },
        })
    }
}

/// Writes a whole file.
///
/// # Errors
/// When `out` fails, a tensor holds another number of values than its shape says, or is of a type
/// that the format lacks.
pub fn write(out: &mut impl Write, entries: &[Entry<'_>], metadata: &[(&str, &str)]) -> Result<()> {
    write_while(out, entries, metadata, &|| Ok(()))
}

/// The same as long as `goes_on` is no error, which is asked before each tensor and each part of a
/// large one.
///
/// # Errors
/// As [`write`]; what `goes_on` says.
pub fn write_while(
    out: &mut impl Write,
    entries: &[Entry<'_>],
    metadata: &[(&str, &str)],
    goes_on: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let out = &mut Watched { out, goes_on, unasked: 0 };
    let mut header = Map::new();
    if !metadata.is_empty() {
        let pairs: Map<String, Value> =
            metadata.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        header.insert("__metadata__".to_owned(), Value::Object(pairs));
    }
    let mut end = 0usize;
    for entry in entries {
        let (dtype, size) = entry.dtype()?;
        let count: usize = entry.shape.iter().product();
        let holds = match entry.data {
            Data::F32(values) => values.len(),
            Data::F64(values) => values.len(),
            Data::U8(values) => values.len(),
            Data::Tensor(tensor) => tensor.elem_count(),
            Data::Blocks(blocks) => blocks.dims().iter().product(),
        };
        if holds != count {
            let problem =
                format!("`{}` holds {holds} values, expected {:?}", entry.name, entry.shape);
            return Err(Error::other(problem));
        }
        let start = end;
        end += count * size;
        let info = json!({"dtype": dtype, "shape": entry.shape, "data_offsets": [start, end]});
        header.insert(entry.name.clone(), info);
    }
    let mut header = Value::Object(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' '); // the data begins at a multiple of eight
    }
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    for entry in entries {
        match entry.data {
            Data::F32(values) => put(out, values, |value| value.to_le_bytes())?,
            Data::F64(values) => put(out, values, |value| value.to_le_bytes())?,
            Data::U8(values) => out.write_all(values)?,
            Data::Tensor(tensor) => put_tensor(out, tensor)?,
            Data::Blocks(blocks) => put_blocks(out, blocks)?,
        }
    }
    Ok(())
}

/// Asks on the way whether to go on.
struct Watched<'a, W> {
    out: &'a mut W,
    goes_on: &'a dyn Fn() -> Result<()>,
    /// Bytes since it was asked last.
    unasked: usize,
}

/// What a disk takes in a moment.
const ASK_BYTES: usize = 16 << 20;

impl<W: Write> Write for Watched<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        if self.unasked >= ASK_BYTES {
            (self.goes_on)()?;
            self.unasked = 0;
        }
        let count = self.out.write(&bytes[..bytes.len().min(ASK_BYTES)])?;
        self.unasked += count;
        Ok(count)
    }

    fn flush(&mut self) -> Result<()> {
        self.out.flush()
    }
}

fn put<T: Copy, const N: usize>(
    out: &mut impl Write,
    values: &[T],
    bytes: impl Fn(T) -> [u8; N],
) -> Result<()> {
    let mut buffer = Vec::with_capacity(N << 14);
    for chunk in values.chunks(1 << 14) {
        buffer.clear();
        chunk.iter().for_each(|value| buffer.extend_from_slice(&bytes(*value)));
        out.write_all(&buffer)?;
    }
    Ok(())
}

fn put_blocks(out: &mut impl Write, blocks: &Quantized) -> Result<()> {
    if !blocks.device().is_cpu() {
        return put_tensor(out, &blocks.dequantize().map_err(Error::other)?);
    }
    let &[rows, cols] = blocks.dims() else { return Ok(()) };
    for first in (0..rows).step_by(1024) {
        let mut values = vec![0f32; 1024.min(rows - first) * cols];
        blocks.rows_into(first, &mut values);
        put(out, &values, |value| value.to_le_bytes())?;
    }
    Ok(())
}

fn put_tensor(out: &mut impl Write, tensor: &Tensor) -> Result<()> {
    let tensor = tensor.contiguous().map_err(Error::other)?;
    let tensor = tensor.to_device(&candle_core::Device::Cpu).map_err(Error::other)?;
    let (storage, layout) = tensor.storage_and_layout();
    let (from, to) = (layout.start_offset(), layout.start_offset() + layout.shape().elem_count());
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => {
            put(out, &values[from..to], |value| value.to_le_bytes())
        }
        Storage::Cpu(CpuStorage::F64(values)) => {
            put(out, &values[from..to], |value| value.to_le_bytes())
        }
        Storage::Cpu(CpuStorage::BF16(values)) => {
            put(out, &values[from..to], |value| value.to_le_bytes())
        }
        Storage::Cpu(CpuStorage::F16(values)) => {
            put(out, &values[from..to], |value| value.to_le_bytes())
        }
        Storage::Cpu(CpuStorage::U8(values)) => out.write_all(&values[from..to]),
        _ => Err(Error::other(format!("a tensor of {:?} cannot be written", tensor.dtype()))),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use safetensors::SafeTensors;

    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let tensor =
            Tensor::arange(0f32, 6., &Device::Cpu).unwrap().reshape((2, 3)).unwrap().t().unwrap();
        let half = tensor.to_dtype(DType::BF16).unwrap();
        let entries = [
            Entry::tensor("t", &tensor),
            Entry::tensor("half", &half),
            Entry::new("bytes", &[3], Data::U8(&[1, 2, 3])),
            Entry::new("d", &[1, 1], Data::F64(&[0.1])),
        ];
        let mut bytes = Vec::new();
        write(&mut bytes, &entries, &[("format", "pt")]).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.len(), 4);
        let t = file.tensor("t").unwrap();
        assert_eq!((t.shape(), t.dtype()), (&[3, 2][..], safetensors::Dtype::F32));
        let values: Vec<f32> = t
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        assert_eq!(values, [0., 3., 1., 4., 2., 5.]);
        assert_eq!(file.tensor("half").unwrap().data().len(), 12);
        assert_eq!(file.tensor("d").unwrap().data(), 0.1f64.to_le_bytes());
        assert!(write(&mut Vec::new(), &[Entry::new("x", &[2], Data::U8(&[1]))], &[]).is_err());
    }
}
