//! Weights on disk, and how they come into memory as f32 tensors under Hugging Face's names.

pub mod gguf;
pub(crate) mod hub;
pub(crate) mod safetensors;
pub mod source;

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::error::{Error, Result};

/// A file, or a folder of files, that holds a model's weights.
pub(crate) trait Checkpoint: Sync {
    /// What errors call it.
    fn origin(&self) -> String;
    /// Hugging Face's name and the shape of every tensor.
    fn shapes(&self) -> BTreeMap<String, Vec<usize>>;
    /// One tensor as f32.
    fn load(&self, name: &str, device: &Device) -> Result<Tensor>;
}

/// Tensors by Hugging Face's names.
pub(crate) type Tensors = HashMap<String, Tensor>;

/// Loads exactly the tensors that a decoder `needs`, several at a time. All names and shapes are checked first.
pub(crate) fn load(
    checkpoint: &dyn Checkpoint,
    architecture: &str,
    needs: &[(String, Vec<usize>)],
    device: &Device,
) -> Result<Tensors> {
    let mut found = checkpoint.shapes();
    let mut missing = Vec::new();
    for (name, expected) in needs {
        match found.remove(name) {
            None => missing.push(name.clone()),
            Some(found) if found != *expected => {
                return Err(Error::Shape {
                    origin: checkpoint.origin(),
                    name: name.clone(),
                    expected: expected.clone(),
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
    // Old checkpoints carry the rotary frequencies, and some a copy of the tied output head: both follow from the rest.
    found.retain(|name, _| !name.ends_with("rotary_emb.inv_freq") && name != "lm_head.weight");
    if !found.is_empty() {
        return Err(Error::UnexpectedTensors {
            origin: checkpoint.origin(),
            architecture: architecture.to_owned(),
            names: found.into_keys().collect(),
        });
    }
    // The largest first, so that no thread is left alone with one at the end.
    let mut order: Vec<&(String, Vec<usize>)> = needs.iter().collect();
    order.sort_by_key(|(_, shape)| std::cmp::Reverse(shape.iter().product::<usize>()));
    if device.is_cpu() {
        return order
            .par_iter()
            .with_max_len(1)
            .map(|(name, _)| Ok((name.clone(), checkpoint.load(name, device)?)))
            .collect();
    }
    // Uploaded by this thread alone, since another thread's copies might not be waited for; a few at a time, so that the host does
    // not have to hold a model that only the device has room for.
    let mut loaded = Tensors::new();
    for some in order.chunks(16) {
        let some: Vec<(String, Tensor)> = some
            .par_iter()
            .with_max_len(1)
            .map(|(name, _)| Ok((name.clone(), checkpoint.load(name, &Device::Cpu)?)))
            .collect::<Result<_>>()?;
        for (name, tensor) in some {
            loaded.insert(name, tensor.to_device(device)?);
        }
    }
    Ok(loaded)
}

/// Little-endian numbers of `N` bytes each, as f32.
fn floats<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)).collect()
}
