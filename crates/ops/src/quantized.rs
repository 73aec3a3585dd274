//! A matrix that is kept in quantised blocks and dequantised where it is used, a tile at a time:
//! what QLoRA (<https://arxiv.org/abs/2305.14314>) trains adapters on.
//!
//! | format | values a block | bits a value | value |
//! |---|---|---|---|
//! | GGUF's `Q4_0` … `Q6_K` | 32 or 256 | 2.6 to 9 | as [ggml](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) has them |
//! | `F16`, `BF16` | 1 | 16 | itself |
//! | NF4 | 64 | 4.5 | `level[code] · absmax` |
//!
//! NF4 is bitsandbytes' plain blockwise form: 16 levels at the quantiles of a normal distribution,
//! one `absmax` in f32 for each 64 values of a row (bitsandbytes calls it `quant_type="nf4"`,
//! `blocksize=64`, `compress_statistics=False`; its double quantisation, which would save another
//! 0.37 bits, is not done). A block lies as `absmax`, then 32 bytes of two codes each, the first
//! value's in the high four bits. The last block of a row is filled up with the code of zero.
//!
//! Rows are whole blocks, so that rows can be permuted, sliced and looked up without touching a
//! block.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K,
    BlockQ8_0, BlockQ8_1, BlockQ8K,
};
use candle_core::quantized::{GgmlDType, GgmlType, QStorage, QTensor};
use candle_core::{DType, Device, Result, Tensor, bail};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::cpu::Values;

/// How the values of a block are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One of GGUF's types.
    Ggml(GgmlDType),
    /// Four bits at the quantiles of a normal distribution.
    Nf4,
}

impl Format {
    /// Values of a block.
    pub fn block_size(self) -> usize {
        match self {
            Self::Ggml(dtype) => dtype.block_size(),
            Self::Nf4 => NF4_BLOCK,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Ggml(dtype) => dtype.type_size(),
            Self::Nf4 => NF4_BYTES,
        }
    }

    /// Bytes of a row of so many values.
    pub fn row_bytes(self, values: usize) -> usize {
        values.div_ceil(self.block_size()) * self.block_bytes()
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ggml(dtype) => write!(f, "{dtype:?}"),
            Self::Nf4 => f.write_str("NF4"),
        }
    }
}

/// Values of an NF4 block.
const NF4_BLOCK: usize = 64;
/// Its `absmax` and its codes.
const NF4_BYTES: usize = 4 + NF4_BLOCK / 2;
/// The code of zero.
const NF4_ZERO: u8 = 7;

/// NF4's levels (appendix E of the paper, as bitsandbytes has them).
pub(crate) const NF4_LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// A matrix `[rows, cols]` in blocks along its rows.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tunebook_ops::Quantized;
/// let w = Tensor::new(&[[0.5f32, -1.0, 0.0, 0.25]], &Device::Cpu)?;
/// let nf4 = Quantized::nf4(&w)?;
/// assert_eq!(nf4.dequantize()?.to_vec2::<f32>()?, [[0.44070983, -1.0, 0.0, 0.2461123]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Quantized {
    format: Format,
    shape: [usize; 2],
    device: Device,
    store: Store,
}

enum Store {
    /// On the CPU: the blocks as they are, in words so that any block type lies aligned.
    Host(Vec<u32>),
    /// On another device: GGUF's types as candle's kernels take them.
    Ggml(Arc<QTensor>),
    /// On another device: two codes a byte `[blocks, 32]` u8, `[blocks, 1]` f32, and both levels of
    /// every byte `[256, 2]`.
    Nf4 { codes: Tensor, absmax: Tensor, levels: Tensor },
}

impl Quantized {
    /// Of blocks as a file holds them.
    ///
    /// # Shapes
    /// `shape` `[rows, cols]`.
    ///
    /// # Errors
    /// When `cols` are not whole blocks, or there are not the bytes of `rows` such rows.
    pub fn from_blocks(
        format: Format,
        shape: [usize; 2],
        blocks: &[u8],
        device: &Device,
    ) -> Result<Self> {
        let [rows, cols] = shape;
        let whole = format == Format::Nf4 || cols.is_multiple_of(format.block_size());
        let expected = format.row_bytes(cols).checked_mul(rows);
        if !whole || expected != Some(blocks.len()) {
            bail!(
                "a matrix {shape:?} in {format}: expected rows of whole blocks of {} values in {} bytes, found {} bytes",
                format.block_size(),
                format.block_bytes(),
                blocks.len()
            )
        }
        let store = match (device.is_cpu(), format) {
            (true, _) => Store::Host(words(blocks)),
            (false, Format::Ggml(dtype)) => {
                let storage = QStorage::from_data(blocks.into(), device, dtype)?;
                Store::Ggml(Arc::new(QTensor::new(storage, (rows, cols))?))
            }
            (false, Format::Nf4) => nf4_on(blocks, device)?,
        };
        Ok(Self { format, shape, device: device.clone(), store })
    }

    /// Codes a matrix as NF4: each value becomes the nearest level of its block.
    ///
    /// # Shapes
    /// `w` `[rows, cols]`, of any number type.
    ///
    /// # Errors
    /// When it is no matrix.
    pub fn nf4(w: &Tensor) -> Result<Self> {
        let (rows, cols) = w.dims2()?;
        let values = w.detach().to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
        let values = Values::of(&values)?;
        let row_bytes = Format::Nf4.row_bytes(cols);
        let mut blocks = vec![0u8; rows * row_bytes];
        if !blocks.is_empty() {
            blocks.par_chunks_mut(row_bytes).zip(values.par_chunks(cols)).for_each(
                |(blocks, values)| {
                    for (block, values) in
                        blocks.chunks_exact_mut(NF4_BYTES).zip(values.chunks(NF4_BLOCK))
                    {
                        nf4_block(values, block);
                    }
                },
            );
        }
        Self::from_blocks(Format::Nf4, [rows, cols], &blocks, w.device())
    }

    /// Codes a matrix in one of GGUF's types, as candle does it.
    ///
    /// # Shapes
    /// `w` `[rows, cols]`, of any number type.
    ///
    /// # Errors
    /// When it is no matrix, or its rows are not whole blocks.
    pub fn ggml(w: &Tensor, dtype: GgmlDType) -> Result<Self> {
        let (rows, cols) = w.dims2()?;
        let values = w.detach().to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
        let blocks = QTensor::quantize(&values, dtype)?;
        Self::from_blocks(Format::Ggml(dtype), [rows, cols], &blocks.data()?, w.device())
    }

    /// The same blocks on another device.
    ///
    /// # Errors
    /// When they are not on the CPU, or the device refuses.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Self::from_blocks(self.format, self.shape, self.blocks(), device)
    }

    /// How it is coded.
    pub fn format(&self) -> Format {
        self.format
    }

    /// `[rows, cols]`.
    pub fn dims(&self) -> &[usize] {
        &self.shape
    }

    /// Where it is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What it takes in memory.
    pub fn bytes(&self) -> u64 {
        (self.format.row_bytes(self.shape[1]) * self.shape[0]) as u64
    }

    /// The blocks as a file holds them, copied from the device where they are on another than the
    /// CPU.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn data(&self) -> Result<Cow<'_, [u8]>> {
        match &self.store {
            Store::Host(_) => Ok(Cow::Borrowed(self.blocks())),
            Store::Ggml(blocks) => Ok(Cow::Owned(blocks.data()?.into_owned())),
            Store::Nf4 { codes, absmax, .. } => {
                let (codes, absmax) = (codes.to_vec2::<u8>()?, absmax.flatten_all()?.to_vec1()?);
                let block =
                    |(codes, absmax): (Vec<u8>, f32)| absmax.to_le_bytes().into_iter().chain(codes);
                Ok(Cow::Owned(codes.into_iter().zip(absmax).flat_map(block).collect()))
            }
        }
    }

    /// All values, `[rows, cols]` f32.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn dequantize(&self) -> Result<Tensor> {
        self.dequantize_as(DType::F32)
    }

    /// All values as another type of number.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn dequantize_as(&self, dtype: DType) -> Result<Tensor> {
        let [rows, cols] = self.shape;
        match &self.store {
            Store::Host(_) => {
                let mut values = vec![0f32; rows * cols];
                self.rows_into(0, &mut values);
                Tensor::from_vec(values, (rows, cols), &Device::Cpu)?.to_dtype(dtype)
            }
            Store::Ggml(blocks) if dtype == DType::F16 => blocks.dequantize_f16(&self.device),
            Store::Ggml(blocks) => blocks.dequantize(&self.device)?.to_dtype(dtype),
            Store::Nf4 { codes, absmax, levels } => {
                let count = codes.dim(0)?;
                // As u32: candle takes the largest number of an index's type, byte 255 here, for no
                // index at all.
                let codes = codes.flatten_all()?.to_dtype(DType::U32)?;
                // [blocks · 32] -> [blocks · 32, 2] -> [blocks, 64]
                let values = levels.index_select(&codes, 0)?.reshape((count, NF4_BLOCK))?;
                // [blocks, 64] -> [rows, blocks of a row · 64] -> [rows, cols]
                let values = values.broadcast_mul(absmax)?.reshape((rows, ()))?;
                values.narrow(1, 0, cols)?.contiguous()?.to_dtype(dtype)
            }
        }
    }

    /// Some rows, f32: an embedding's look-up.
    ///
    /// # Shapes
    /// `ids` `[n]` u32 -> `[n, cols]`.
    ///
    /// # Errors
    /// When an id is not below `rows`.
    pub fn select(&self, ids: &Tensor) -> Result<Tensor> {
        let [rows, cols] = self.shape;
        match &self.store {
            Store::Host(_) => {
                let ids = ids.to_vec1::<u32>()?;
                if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
                    bail!("expected ids below {rows}, found {id}")
                }
                let mut values = vec![0f32; ids.len() * cols];
                values
                    .par_chunks_mut(cols.max(1))
                    .zip(&ids)
                    .for_each(|(values, id)| self.row_into(*id as usize, 0, values));
                Tensor::from_vec(values, (ids.len(), cols), &Device::Cpu)
            }
            Store::Ggml(blocks) => blocks.embedding(ids),
            Store::Nf4 { .. } => self.dequantize()?.index_select(ids, 0),
        }
    }

    /// The blocks, on the CPU.
    pub(crate) fn blocks(&self) -> &[u8] {
        match &self.store {
            Store::Host(words) => {
                let bytes = self.format.row_bytes(self.shape[1]) * self.shape[0];
                // SAFETY: the words hold at least so many bytes (`words`), and any byte is a u8.
                unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), bytes) }
            }
            // What is on another device has no bytes here; the CPU's operations are not called with
            // it.
            _ => &[],
        }
    }

    /// The values of row `row` from `from` on, where a block begins, as many as `out` takes: whole
    /// blocks, or up to the row's end.
    pub(crate) fn row_into(&self, row: usize, from: usize, out: &mut [f32]) {
        let row_bytes = self.format.row_bytes(self.shape[1]);
        let start = row * row_bytes + from / self.format.block_size() * self.format.block_bytes();
        decode(self.format, &self.blocks()[start..start + self.format.row_bytes(out.len())], out);
    }

    /// The rows from `first` on, as many as `out` takes.
    pub fn rows_into(&self, first: usize, out: &mut [f32]) {
        let cols = self.shape[1].max(1);
        out.par_chunks_mut(cols)
            .enumerate()
            .for_each(|(row, out)| self.row_into(first + row, 0, out));
    }
}

impl fmt::Debug for Quantized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Quantized({:?} {})", self.shape, self.format)
    }
}

/// Bytes in aligned memory.
fn words(bytes: &[u8]) -> Vec<u32> {
    let (whole, rest) = bytes.as_chunks::<4>();
    let mut words: Vec<u32> = Vec::with_capacity(whole.len() + 1);
    words.extend(whole.iter().map(|word| u32::from_ne_bytes(*word)));
    if !rest.is_empty() {
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        words.push(u32::from_ne_bytes(last));
    }
    words
}

/// Codes up to 64 values.
fn nf4_block(values: &[f32], block: &mut [u8]) {
    let absmax = values.iter().fold(0f32, |most, value| most.max(value.abs()));
    let inverse = if absmax > 0.0 { 1.0 / absmax } else { 0.0 };
    let code = |index: usize| values.get(index).map_or(NF4_ZERO, |value| nearest(value * inverse));
    block[..4].copy_from_slice(&absmax.to_le_bytes());
    for (pair, byte) in block[4..NF4_BYTES].iter_mut().enumerate() {
        *byte = code(2 * pair) << 4 | code(2 * pair + 1);
    }
}

/// The code of the level nearest to a value in −1 to 1.
fn nearest(value: f32) -> u8 {
    // Each level begins at the middle between it and the one below.
    (1..16)
        .rev()
        .find(|code| value > (NF4_LEVELS[*code] + NF4_LEVELS[*code - 1]) * 0.5)
        .unwrap_or(0) as u8
}

/// The values of some blocks, as many as `out` takes.
fn decode(format: Format, blocks: &[u8], out: &mut [f32]) {
    match format {
        Format::Nf4 => {
            for (block, out) in blocks.chunks_exact(NF4_BYTES).zip(out.chunks_mut(NF4_BLOCK)) {
                let absmax = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
                for (index, value) in out.iter_mut().enumerate() {
                    let byte = block[4 + index / 2];
                    let code = if index % 2 == 0 { byte >> 4 } else { byte & 15 };
                    *value = NF4_LEVELS[usize::from(code)] * absmax;
                }
            }
        }
        Format::Ggml(dtype) => match dtype {
            GgmlDType::F32 => typed::<f32>(blocks, out),
            GgmlDType::F16 => typed::<f16>(blocks, out),
            GgmlDType::BF16 => typed::<bf16>(blocks, out),
            GgmlDType::Q4_0 => typed::<BlockQ4_0>(blocks, out),
            GgmlDType::Q4_1 => typed::<BlockQ4_1>(blocks, out),
            GgmlDType::Q5_0 => typed::<BlockQ5_0>(blocks, out),
            GgmlDType::Q5_1 => typed::<BlockQ5_1>(blocks, out),
            GgmlDType::Q8_0 => typed::<BlockQ8_0>(blocks, out),
            GgmlDType::Q8_1 => typed::<BlockQ8_1>(blocks, out),
            GgmlDType::Q2K => typed::<BlockQ2K>(blocks, out),
            GgmlDType::Q3K => typed::<BlockQ3K>(blocks, out),
            GgmlDType::Q4K => typed::<BlockQ4K>(blocks, out),
            GgmlDType::Q5K => typed::<BlockQ5K>(blocks, out),
            GgmlDType::Q6K => typed::<BlockQ6K>(blocks, out),
            GgmlDType::Q8K => typed::<BlockQ8K>(blocks, out),
        },
    }
}

fn typed<T: GgmlType>(blocks: &[u8], out: &mut [f32]) {
    // SAFETY: T is plain numbers without padding, valid whatever the bytes; `words` aligned the
    // first block, and all sizes are multiples of the alignment, so nothing is cut off in front.
    let (before, blocks, _) = unsafe { blocks.align_to::<T>() };
    debug_assert!(before.is_empty());
    T::to_float(blocks, out);
}

/// The parts of NF4 blocks on a device.
fn nf4_on(blocks: &[u8], device: &Device) -> Result<Store> {
    let count = blocks.len() / NF4_BYTES;
    let (mut codes, mut absmax) =
        (Vec::with_capacity(count * NF4_BLOCK / 2), Vec::with_capacity(count));
    for block in blocks.chunks_exact(NF4_BYTES) {
        absmax.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]]));
        codes.extend_from_slice(&block[4..]);
    }
    let levels: Vec<f32> =
        (0..256).flat_map(|byte: usize| [NF4_LEVELS[byte >> 4], NF4_LEVELS[byte & 15]]).collect();
    Ok(Store::Nf4 {
        codes: Tensor::from_vec(codes, (count, NF4_BLOCK / 2), device)?,
        absmax: Tensor::from_vec(absmax, (count, 1), device)?,
        levels: Tensor::from_vec(levels, (256, 2), device)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(rows: usize, cols: usize) -> Tensor {
        let value = |i: usize| (((i * 7919 + 13) % 2003) as f64 / 1001.5 - 1.) as f32;
        Tensor::from_vec(
            (0..rows * cols).map(value).collect::<Vec<_>>(),
            (rows, cols),
            &Device::Cpu,
        )
        .unwrap()
    }

    #[test]
    fn nf4_gives_the_nearest_level_and_rows_end_their_last_block() {
        let w = numbers(3, 100);
        let q = Quantized::nf4(&w).unwrap();
        assert_eq!(q.bytes(), 3 * 2 * 36);
        let (exact, found) =
            (w.to_vec2::<f32>().unwrap(), q.dequantize().unwrap().to_vec2::<f32>().unwrap());
        for (exact, found) in exact.iter().zip(&found) {
            for (exact, found) in exact.chunks(64).zip(found.chunks(64)) {
                let absmax = exact.iter().fold(0f32, |most, v| most.max(v.abs()));
                for (value, found) in exact.iter().zip(found) {
                    let best = NF4_LEVELS
                        .iter()
                        .map(|level| (level * absmax - value).abs())
                        .fold(f32::INFINITY, f32::min);
                    assert!((found - value).abs() <= best + 1e-6, "{value} became {found}");
                }
            }
        }
    }

    /// `quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=False)` of
    /// bitsandbytes 0.50.2 on the same values.
    #[test]
    fn nf4_is_bitsandbytes() {
        use sha2::{Digest, Sha256};
        let q = Quantized::nf4(&numbers(4, 128)).unwrap();
        let blocks: Vec<&[u8]> = q.blocks().chunks_exact(NF4_BYTES).collect();
        let absmax: Vec<f32> =
            blocks.iter().map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).take(4).collect();
        assert_eq!(absmax, [0.987_019_5, 0.984_024, 0.991_013_47, 0.998_003]);
        let codes: Vec<u8> = blocks.iter().flat_map(|block| block[4..].to_vec()).collect();
        let first = [15, 238, 237, 203, 169, 135, 101, 67, 34, 17, 0, 255, 238, 221, 203, 169];
        assert_eq!(codes[..16], first);
        let found: String =
            Sha256::digest(&codes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, "801d9130d015a5e856579f28f694779cf7b8589c1bf60c954ea135f8892e7eb2");
    }

    #[test]
    fn blocks_of_zeros_stay_zeros() {
        let w = Tensor::zeros((2, 64), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(
            Quantized::nf4(&w).unwrap().dequantize().unwrap().to_vec2::<f32>().unwrap(),
            [[0f32; 64]; 2]
        );
    }

    /// The form for other devices, which needs none to be computed.
    #[test]
    fn nf4_by_tensor_operations_is_the_same() {
        let q = Quantized::nf4(&numbers(3, 100)).unwrap();
        let store = nf4_on(q.blocks(), &Device::Cpu).unwrap();
        let other = Quantized { format: Format::Nf4, shape: [3, 100], device: Device::Cpu, store };
        let flat = |q: &Quantized| q.dequantize().unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(flat(&q), flat(&other));
        assert_eq!(q.data().unwrap(), other.data().unwrap());
        let ids = Tensor::new(&[2u32, 0, 2], &Device::Cpu).unwrap();
        let rows = |q: &Quantized| q.select(&ids).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(rows(&q), rows(&other));
        assert_eq!(rows(&q), [&flat(&q)[2][..], &flat(&q)[0][..], &flat(&q)[2][..]]);
    }

    #[test]
    fn wrong_sizes_and_ids_are_refused() {
        let short =
            Quantized::from_blocks(Format::Ggml(GgmlDType::Q8_0), [2, 32], &[0; 67], &Device::Cpu);
        assert!(short.unwrap_err().to_string().contains("found 67 bytes"));
        assert!(
            Quantized::from_blocks(Format::Ggml(GgmlDType::Q8_0), [1, 33], &[0; 68], &Device::Cpu)
                .is_err()
        );
        let q = Quantized::nf4(&numbers(2, 64)).unwrap();
        let error = q.select(&Tensor::new(&[2u32], &Device::Cpu).unwrap()).unwrap_err().to_string();
        assert!(error.contains("below 2") && error.contains("found 2"), "{error}");
    }
}
