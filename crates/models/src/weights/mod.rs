//! Weights on disk, and how they come into memory under Hugging Face's names.

pub(crate) mod gguf;
pub(crate) mod hub;
pub(crate) mod safetensors;
pub(crate) mod save;
pub(crate) mod source;
pub mod tensor_file;

use std::collections::BTreeMap;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::families::decoder::Need;
use tunebook_ops::Matrix;
use tunebook_ops::{Format, Quantized};
use tunebook_progress::interrupt;

/// A file, or a folder of files, that holds a model's weights.
pub(crate) trait Checkpoint: Sync {
    /// What errors call it.
    fn origin(&self) -> String;
    /// Hugging Face's name and the shape of every tensor.
    fn shapes(&self) -> BTreeMap<String, Vec<usize>>;
    /// One tensor as `dtype`, on the CPU.
    fn load(&self, name: &str, dtype: DType) -> Result<Tensor>;
    /// Whether it holds the weights of `Conv1D` as `[in, out]`.
    fn transposes(&self) -> bool {
        false
    }
    /// The blocks that a matrix lies in; `None` for plain f32.
    fn format(&self, name: &str) -> Option<Format>;
    /// A matrix in these blocks, on the CPU.
    fn load_blocks(&self, name: &str) -> Result<Quantized>;
}

/// How the matrices of a model are kept when they are not plain numbers: blocks that are
/// dequantised as they are used. Vectors (norms, biases) stay plain, activations and products f32
/// (bf16 on a GPU).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantization {
    /// As they lie in the file: GGUF's quantised types, or f16 and bf16.
    #[default]
    Stored,
    /// The projections as NF4 (see [`Quantized`]), the embedding table and the output head as Q8_0,
    /// made on loading. What a file already holds quantised stays as it is.
    Nf4,
}

/// What weights become in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keep {
    /// Plain numbers of one type.
    As(DType),
    /// Blocks.
    Quantized(Quantization),
}

impl Keep {
    /// The type of activations, and of the vectors that they meet.
    pub(crate) fn activations(self, device: &Device) -> DType {
        match self {
            Self::As(DType::BF16) if device.is_cpu() => DType::F32,
            Self::As(dtype) => dtype,
            Self::Quantized(_) if device.is_cpu() => DType::F32,
            Self::Quantized(_) => DType::BF16,
        }
    }

    /// What one weight becomes.
    fn plan(self, checkpoint: &dyn Checkpoint, need: &Need, device: &Device) -> Plan {
        let plain = Plan::Plain(self.activations(device));
        let how = match self {
            _ if need.shape.len() != 2 => return plain,
            Self::As(dtype) => return Plan::Plain(dtype),
            Self::Quantized(how) => how,
        };
        let name = need.weight.name();
        let fits = |format: Format| need.shape[1].is_multiple_of(format.block_size());
        let stored = checkpoint.format(name);
        let quantised = stored.filter(|format| format.block_size() > 1);
        match (how, quantised.or(stored.filter(|_| how == Quantization::Stored))) {
            (_, Some(format)) if need.transposed && checkpoint.transposes() => Plan::Coded(format),
            (_, Some(format)) => Plan::Stored(format),
            (Quantization::Stored, None) => plain,
            (Quantization::Nf4, None) if is_table(name) => {
                let format = Format::Ggml(GgmlDType::Q8_0);
                if fits(format) { Plan::Coded(format) } else { plain }
            }
            (Quantization::Nf4, None) => Plan::Coded(Format::Nf4),
        }
    }
}

/// A table with one row for each token or position: an error there is not averaged out, and
/// bitsandbytes leaves these alone, too.
fn is_table(name: &str) -> bool {
    matches!(
        name,
        "lm_head.weight"
            | "model.embed_tokens.weight"
            | "transformer.wte.weight"
            | "transformer.word_embeddings.weight"
            | "transformer.wpe.weight"
    )
}

/// What one weight becomes.
#[derive(Clone, Copy, Debug)]
enum Plan {
    Plain(DType),
    /// The file's own blocks.
    Stored(Format),
    /// Blocks made here.
    Coded(Format),
}

/// What the weights will take in memory, and in which forms, the largest first.
pub(crate) fn size(
    checkpoint: &dyn Checkpoint,
    needs: &[Need],
    keep: Keep,
    device: &Device,
) -> (u64, Vec<String>) {
    let mut forms: BTreeMap<String, u64> = BTreeMap::new();
    for need in needs {
        let count: usize = need.shape.iter().product();
        let (form, bytes) = match keep.plan(checkpoint, need, device) {
            Plan::Plain(dtype) => (format!("{dtype:?}"), count * dtype.size_in_bytes()),
            Plan::Stored(format) | Plan::Coded(format) => {
                (format.to_string(), need.shape[0] * format.row_bytes(need.shape[1]))
            }
        };
        *forms.entry(form).or_default() += bytes as u64;
    }
    let total = forms.values().sum();
    let mut forms: Vec<(String, u64)> = forms.into_iter().collect();
    forms.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    (total, forms.into_iter().map(|(form, _)| form).collect())
}

/// Whether anything would be kept in blocks.
pub(crate) fn has_blocks(
    checkpoint: &dyn Checkpoint,
    needs: &[Need],
    keep: Keep,
    device: &Device,
) -> bool {
    needs.iter().any(|need| !matches!(keep.plan(checkpoint, need, device), Plan::Plain(_)))
}

/// Whether names and shapes are exactly those that a decoder needs.
pub(crate) fn check(checkpoint: &dyn Checkpoint, architecture: &str, needs: &[Need]) -> Result<()> {
    let mut found = checkpoint.shapes();
    let mut missing = Vec::new();
    for need in needs {
        let mut expected = need.shape.clone();
        if need.transposed && checkpoint.transposes() {
            expected.reverse();
        }
        match found.remove(need.weight.name()) {
            None => missing.push(need.weight.name().to_owned()),
            Some(found) if found != expected => {
                return Err(Error::Shape {
                    origin: checkpoint.origin(),
                    name: need.weight.name().to_owned(),
                    expected,
                    found,
                });
            }
            Some(_) => {}
        }
    }
    if !missing.is_empty() {
        return Err(Error::MissingTensors {
            origin: checkpoint.origin(),
            architecture: architecture.to_owned(),
            names: missing,
        });
    }
    found.retain(|name, _| !follows_from_the_rest(name));
    if !found.is_empty() {
        return Err(Error::UnexpectedTensors {
            origin: checkpoint.origin(),
            architecture: architecture.to_owned(),
            names: found.into_keys().collect(),
        });
    }
    Ok(())
}

/// Fills the weights of a decoder from a checkpoint that [`check`] found fitting, several at a
/// time.
pub(crate) fn load(
    checkpoint: &dyn Checkpoint,
    needs: &[Need],
    keep: Keep,
    device: &Device,
) -> Result<()> {
    // The largest first, so that no thread is left alone with one at the end.
    let mut order: Vec<&Need> = needs.iter().collect();
    order.sort_by_key(|need| std::cmp::Reverse(need.shape.iter().product::<usize>()));
    let plain = |need: &Need, dtype: DType| -> Result<Tensor> {
        let tensor = checkpoint.load(need.weight.name(), dtype)?;
        let turned = need.transposed && checkpoint.transposes();
        Ok(if turned { tensor.t()?.contiguous()? } else { tensor })
    };
    let one = |need: &&Need| -> Result<Matrix> {
        interrupt::check()?;
        Ok(match keep.plan(checkpoint, need, device) {
            Plan::Plain(dtype) => plain(need, dtype)?.into(),
            Plan::Stored(_) => checkpoint.load_blocks(need.weight.name())?.into(),
            Plan::Coded(Format::Nf4) => Quantized::nf4(&plain(need, DType::F32)?)?.into(),
            Plan::Coded(Format::Ggml(dtype)) => {
                Quantized::ggml(&plain(need, DType::F32)?, dtype)?.into()
            }
        })
    };
    if device.is_cpu() {
        return order.par_iter().with_max_len(1).try_for_each(|need| {
            need.weight.fill(one(need)?);
            Ok(())
        });
    }
    // Uploaded by this thread alone, since another thread's copies might not be waited for; a few
    // at a time, so that the host does not have to hold a model that only the device has room for.
    for some in order.chunks(16) {
        let matrices: Vec<Matrix> =
            some.par_iter().with_max_len(1).map(one).collect::<Result<_>>()?;
        for (need, matrix) in some.iter().zip(matrices) {
            need.weight.fill(match matrix {
                Matrix::Plain(tensor) => tensor.to_device(device)?.into(),
                Matrix::Quantized(blocks) => blocks.to_device(device)?.into(),
            });
        }
    }
    Ok(())
}

/// Rotary frequencies and their divisors, GPT-2's masks, and some copies of a tied output head: old
/// checkpoints carry them.
fn follows_from_the_rest(name: &str) -> bool {
    name == "lm_head.weight"
        || name.ends_with("rotary_emb.inv_freq")
        || name.ends_with(".attn.bias")
        || name.ends_with(".attn.masked_bias")
        || matches!(
            name,
            "rope_freqs.weight" | "rope_factors_long.weight" | "rope_factors_short.weight"
        )
}

/// A plain type of numbers in a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stored {
    F32,
    F16,
    Bf16,
}

/// Little-endian numbers as a tensor of `dtype`; kept as they are where that is their type.
pub(crate) fn values(
    bytes: &[u8],
    stored: Stored,
    dtype: DType,
    shape: &[usize],
) -> Result<Tensor> {
    let device = &Device::Cpu;
    let tensor = match (stored, dtype) {
        (Stored::F16, DType::F16) => {
            Tensor::from_vec(numbers(bytes, f16::from_le_bytes), shape, device)?
        }
        (Stored::Bf16, DType::BF16) => {
            Tensor::from_vec(numbers(bytes, bf16::from_le_bytes), shape, device)?
        }
        _ => {
            let values = match stored {
                Stored::F32 => floats(bytes, f32::from_le_bytes),
                Stored::F16 => floats(bytes, |b| f16::from_le_bytes(b).to_f32()),
                Stored::Bf16 => floats(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            };
            Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?
        }
    };
    Ok(tensor)
}

/// Little-endian numbers of `N` bytes each, as f32.
fn floats<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    numbers(bytes, read)
}

fn numbers<T, const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)).collect()
}
