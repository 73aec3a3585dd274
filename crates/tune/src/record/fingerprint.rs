//! Fingerprints of what a run reads: hashes that differ where the inputs do.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tunebook_models::tensor_file::{self, Data, Entry};
use tunebook_models::{Matrix, Model, Weight};
use xxhash_rust::xxh3::Xxh3;

use crate::adapters::registry::{self, Generation};
use crate::batch::collate::Sets;
use crate::error::Result;

/// Hashes of the inputs of a run, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprints {
    /// The base model's weights as they are in memory: names, shapes, types of number and every
    /// byte (XXH3). The same file loaded as another type has another fingerprint.
    pub base: String,
    /// The tokenizer: its vocabulary, and how it divides a probe.
    pub tokenizer: String,
    /// The source of the chat template.
    pub chat_template: Option<String>,
    /// The training set as token ids and labels, in its order.
    pub train: String,
    /// The validation set, likewise.
    pub validation: Option<String>,
    /// The data set that the examples came from, where the caller named it
    /// ([`Trainer::set_dataset_fingerprint`](crate::Trainer::set_dataset_fingerprint)).
    pub dataset: Option<String>,
}

impl Fingerprints {
    /// # Errors
    /// A device that does not hand its tensors over.
    pub(crate) fn of(model: &Model, sets: &Sets, dataset: Option<String>) -> Result<Self> {
        Ok(Self {
            base: base(model)?,
            tokenizer: model.tokenizer().fingerprint()?,
            chat_template: model.chat_template().map(|template| template.fingerprint()),
            train: sets.train.fingerprint(),
            validation: sets.validation.as_ref().map(|set| set.fingerprint()),
            dataset,
        })
    }
}

/// The fingerprint of a model's weights, once it is known; lives in the model.
#[derive(Default)]
struct Known(Mutex<Option<String>>);

/// The weights of the model change.
pub(crate) fn forget_base(model: &Model) {
    *model.extension::<Known>().0.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// The fingerprint of what answers when this handle is asked: the base's configuration (with the
/// tokens that end an answer) and weights, the active adapter's configuration and numbers (by
/// content, not by name), the tokenizer and the chat template.
///
/// # Errors
/// A handle whose rows have different adapters; a device that does not hand its tensors over.
pub fn answering(model: &Model) -> Result<String> {
    registry::check_one(model)?;
    let mut all = Hashing(Xxh3::new());
    let base = base(model)?;
    let template = model.chat_template().map(|template| template.fingerprint());
    let config = serde_json::to_string(model.config())?;
    let tokenizer = model.tokenizer().fingerprint()?;
    for part in [&config, &base, &tokenizer, &template.unwrap_or_default()] {
        all.0.update(part.as_bytes());
        all.0.update(&[0]);
    }
    let generation = Generation::of(&model.overlay());
    if let Some(Generation::Mix(parts)) = generation.as_deref() {
        all.0.update(b"mix");
        for (adapter, weight) in parts.iter() {
            all.0.update(adapter.fingerprint().as_bytes());
            all.0.update(&weight.to_le_bytes());
        }
    }
    if let Some(generation) = generation.as_deref()
        && let Some(adapter) = generation.adapter()
    {
        all.0.update(&[u8::from(matches!(generation, Generation::Merged(_)))]);
        let _of_one_step = adapter.between_steps();
        all.0.update(&serde_json::to_vec(&adapter.config())?);
        let parameters = adapter.parameters();
        let entries: Vec<Entry<'_>> = parameters
            .iter()
            .map(|parameter| {
                let tensor = parameter.var.as_tensor();
                Entry::new(&parameter.name, tensor.dims(), Data::Tensor(tensor))
            })
            .collect();
        tensor_file::write(&mut all, &entries, &[]).map_err(candle_core::Error::wrap)?;
    }
    Ok(format!("{:032x}", all.0.digest128()))
}

/// See [`Fingerprints::base`]; worked out once for each model, and again after
/// [`forget_base`].
///
/// # Errors
/// A device that does not hand its tensors over.
pub(crate) fn base(model: &Model) -> Result<String> {
    let known = model.extension::<Known>();
    let mut known = known.0.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = &*known {
        return Ok(found.clone());
    }
    let mut weights = model.weights();
    weights.sort_by(|a, b| a.name().cmp(b.name()));
    let hashes = weights.par_iter().map(|weight| hash(weight)).collect::<Result<Vec<_>>>()?;
    let mut all = Xxh3::new();
    hashes.iter().for_each(|hash| all.update(&hash.to_le_bytes()));
    let found = format!("{:032x}", all.digest128());
    *known = Some(found.clone());
    Ok(found)
}

/// A weight as a safetensors file of its own, whose header has its name, shape and type.
fn hash(weight: &Weight) -> Result<u128> {
    let mut out = Hashing(Xxh3::new());
    let entry = |data, dims: &[usize]| Entry::new(weight.name(), dims, data);
    match &weight.matrix() {
        Matrix::Plain(tensor) => {
            tensor_file::write(&mut out, &[entry(Data::Tensor(tensor), tensor.dims())], &[])
        }
        Matrix::Quantized(blocks) => {
            let bytes = blocks.data()?;
            let form = [
                ("format", blocks.format().to_string()),
                ("shape", format!("{:?}", blocks.dims())),
            ];
            let form = form.each_ref().map(|(name, value)| (*name, value.as_str()));
            tensor_file::write(&mut out, &[entry(Data::U8(&bytes), &[bytes.len()])], &form)
        }
    }
    .map_err(candle_core::Error::wrap)?;
    Ok(out.0.digest128())
}

/// A writer that keeps the hash of what goes through.
struct Hashing(Xxh3);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
