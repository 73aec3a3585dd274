//! Weights on disk, and how they come into memory under Hugging Face's names.

pub mod gguf;
pub(crate) mod gguf_layout;
pub(crate) mod gguf_writer;
pub(crate) mod hub;
pub(crate) mod safetensors;
pub mod source;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::decoder::Need;
use crate::error::{Error, Result};

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

/// Fills the weights of a decoder from a checkpoint that [`check`] found fitting, several at a time.
pub(crate) fn load(checkpoint: &dyn Checkpoint, needs: &[Need], dtype: DType, device: &Device) -> Result<()> {
    // The largest first, so that no thread is left alone with one at the end.
    let mut order: Vec<&Need> = needs.iter().collect();
    order.sort_by_key(|need| std::cmp::Reverse(need.shape.iter().product::<usize>()));
    let one = |need: &&Need| -> Result<Tensor> {
        // Activations on the CPU are f32 beside weights in bf16, and so are the norms and biases that they meet.
        let vector = device.is_cpu() && dtype == DType::BF16 && need.shape.len() == 1;
        let tensor = checkpoint.load(need.weight.name(), if vector { DType::F32 } else { dtype })?;
        let turned = need.transposed && checkpoint.transposes();
        Ok(if turned { tensor.t()?.contiguous()? } else { tensor })
    };
    if device.is_cpu() {
        return order.par_iter().with_max_len(1).try_for_each(|need| {
            need.weight.fill(one(need)?);
            Ok(())
        });
    }
    // Uploaded by this thread alone, since another thread's copies might not be waited for; a few at a time, so that the host does
    // not have to hold a model that only the device has room for.
    for some in order.chunks(16) {
        let tensors: Vec<Tensor> = some.par_iter().with_max_len(1).map(one).collect::<Result<_>>()?;
        for (need, tensor) in some.iter().zip(tensors) {
            need.weight.fill(tensor.to_device(device)?);
        }
    }
    Ok(())
}

/// Rotary frequencies and their divisors, GPT-2's masks, and some copies of a tied output head: old checkpoints carry them.
fn follows_from_the_rest(name: &str) -> bool {
    name == "lm_head.weight"
        || name.ends_with("rotary_emb.inv_freq")
        || name.ends_with(".attn.bias")
        || name.ends_with(".attn.masked_bias")
        || matches!(name, "rope_freqs.weight" | "rope_factors_long.weight" | "rope_factors_short.weight")
}

/// A plain type of numbers in a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stored {
    F32,
    F16,
    Bf16,
}

/// Little-endian numbers as a tensor of `dtype`; kept as they are where that is their type.
pub(crate) fn values(bytes: &[u8], stored: Stored, dtype: DType, shape: &[usize]) -> Result<Tensor> {
    let device = &Device::Cpu;
    let tensor = match (stored, dtype) {
        (Stored::F16, DType::F16) => Tensor::from_vec(numbers(bytes, f16::from_le_bytes), shape, device)?,
        (Stored::Bf16, DType::BF16) => Tensor::from_vec(numbers(bytes, bf16::from_le_bytes), shape, device)?,
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
