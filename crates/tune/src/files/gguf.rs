//! A LoRA as a GGUF file that llama.cpp puts onto its own file of the model (`--lora`).

use std::path::{Path, PathBuf};

use tunebook_models::{Device, LoraUpdate, Model, Tensor};

use crate::adapters::config::AdapterConfig;
use crate::adapters::lora::body::{A, B};
use crate::error::{Error, Result};
use crate::files::peft::{AdapterFiles, StoredTensor};

/// Writes what PEFT's files would hold.
///
/// # Errors
/// The adapter is another thing than a product of two matrices for each projection, or the file
/// cannot be written.
pub(crate) fn write(
    model: &Model,
    name: &str,
    files: &AdapterFiles,
    path: &Path,
) -> Result<PathBuf> {
    let no_place = |what: String| Error::AdapterFile {
        path: path.to_owned(),
        problem: format!(
            "`{name}` {what}, for which a GGUF adapter has no place; merge it and write the whole model with `save_gguf`"
        ),
    };
    let AdapterConfig::Lora(lora) = &files.config else {
        return Err(no_place(format!("is of the type {}", files.config.peft_type())));
    };
    let tensor = |stored: &StoredTensor| {
        Tensor::from_slice(&stored.values, stored.shape.as_slice(), &Device::Cpu)
    };
    let mut updates = Vec::with_capacity(files.tensors.len() / 2);
    for (key, stored) in &files.tensors {
        if let Some(layer) = key.strip_suffix(&format!(".{A}")) {
            let Some(b) = files.tensors.get(&format!("{layer}.{B}")) else {
                return Err(no_place(format!("has only one matrix for `{layer}`")));
            };
            let (_, scaling) = lora.rank_and_scaling(layer)?;
            updates.push(LoraUpdate {
                path: layer.to_owned(),
                a: tensor(stored)?,
                b: tensor(b)?,
                scaling,
            });
        } else if !key.ends_with(&format!(".{B}")) {
            return Err(no_place(format!("holds `{key}`")));
        }
    }
    Ok(model.save_gguf_lora(path, name, lora.lora_alpha, &updates)?)
}
