//! What an adapter is made of, whatever its type.
//!
//! To add a type: a configuration in [`AdapterConfig`](crate::AdapterConfig), a [`Body`], and a
//! line each in [`plan`] and [`build`]. Adding, switching, saving, loading, checkpoints, renaming
//! and deleting then work as for the others.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use candle_core::{Tensor, Var};
use tunebook_models::Model;

use crate::adapters::adalora::AdaLoraBody;
use crate::adapters::bottleneck::body::BottleneckBody;
use crate::adapters::config::AdapterConfig;
use crate::adapters::ia3::Ia3Body;
use crate::adapters::inject::Hooks;
use crate::adapters::lora::body::LoraBody;
use crate::adapters::lora::linear::LoraLinear;
use crate::adapters::prefix_tuning::PrefixBody;
use crate::adapters::prompt_tuning::PromptBody;
use crate::adapters::scheduled::Scheduled;
use crate::adapters::target;
use crate::error::Result;
use crate::files::peft::StoredTensor;
use crate::train::parameter::{Parameter, Part};

/// A trainable tensor of an adapter.
#[derive(Debug, Clone)]
pub(crate) struct AdapterTensor {
    /// Its name in PEFT's file, and with that the run's name for it.
    pub(crate) key: String,
    pub(crate) var: Var,
    pub(crate) part: Part,
}

impl AdapterTensor {
    /// One that belongs to the module at `path`; `name` is what follows it in the file:
    /// `lora_A.weight`.
    pub(crate) fn of_module(path: &str, name: &str, var: &Var) -> Self {
        let part = target::block_index(path).map_or(Part::Head, Part::Block);
        Self { key: format!("{path}.{name}"), var: var.clone(), part }
    }

    /// Takes over the file's value, if it has one.
    ///
    /// # Errors
    /// Another number of values.
    pub(crate) fn fill(&self, tensors: &BTreeMap<String, StoredTensor>) -> Result<()> {
        if let Some(stored) = tensors.get(&self.key) {
            self.var.set(&Tensor::from_slice(
                &stored.values,
                self.var.shape(),
                self.var.device(),
            )?)?;
        }
        Ok(())
    }

    pub(crate) fn parameter(&self) -> Parameter {
        // `lora_A.weight` of a file is the parameter `lora_A`.
        let name = match self.key.strip_suffix(".weight") {
            Some(name) if name.ends_with("lora_A") || name.ends_with("lora_B") => name,
            _ => &self.key,
        };
        Parameter { name: name.to_owned(), var: self.var.clone(), part: self.part }
    }
}

/// What a file holds of a body: the configuration as PEFT has to see it, and the tensors by key.
pub(crate) type Stored = (AdapterConfig, BTreeMap<String, StoredTensor>);

/// What an adapter of one type is made of.
pub(crate) trait Body: fmt::Debug + Send + Sync {
    /// The modules of the model that it changes.
    fn modules(&self) -> Vec<String>;

    /// What is trained, in any order.
    fn tensors(&self) -> Vec<AdapterTensor>;

    /// What it puts into the model.
    fn hooks(&self) -> Hooks;

    /// The same with nothing to train in it and as fast as the base; `None` for a type that no
    /// weight can take up.
    ///
    /// # Errors
    /// A failing operation.
    fn merged(&self) -> Result<Option<Hooks>>;

    /// Its configuration, as training has left it.
    fn config(&self) -> AdapterConfig;

    /// What its file holds: all tensors as they are, unless the type has more to say.
    ///
    /// # Errors
    /// A failing operation.
    fn stored(&self) -> Result<Stored> {
        let mut tensors = BTreeMap::new();
        for tensor in self.tensors() {
            tensors.insert(tensor.key, StoredTensor::of(tensor.var.as_tensor())?);
        }
        Ok((self.config(), tensors))
    }

    /// Takes over the values of a file, whose keys and shapes are those of [`plan`].
    ///
    /// # Errors
    /// A failing operation.
    fn fill(&self, tensors: &BTreeMap<String, StoredTensor>) -> Result<()> {
        self.tensors().iter().try_for_each(|tensor| tensor.fill(tensors))
    }

    /// What it does by itself in a run of `total_steps`, if its type does anything.
    fn scheduled(self: Arc<Self>, _total_steps: usize) -> Option<Box<dyn Scheduled>> {
        None
    }

    /// The layers, if it is a LoRA; weighted sums know these only.
    fn lora(&self) -> Option<&[Arc<LoraLinear>]> {
        None
    }
}

/// The keys and shapes of the tensors that an adapter of this configuration has on this model,
/// before any is made.
///
/// # Errors
/// The configuration is refused, or a target does not exist.
pub(crate) fn plan(model: &Model, config: &AdapterConfig) -> Result<BTreeMap<String, Vec<usize>>> {
    config.validate()?;
    match config {
        AdapterConfig::Lora(lora) => LoraBody::plan(model, lora),
        AdapterConfig::AdaLora(adalora) => AdaLoraBody::plan(model, adalora),
        AdapterConfig::Ia3(ia3) => Ia3Body::plan(model, ia3),
        AdapterConfig::PromptTuning(prompt) => PromptBody::plan(model, prompt),
        AdapterConfig::PrefixTuning(prefix) => PrefixBody::plan(model, prefix),
        AdapterConfig::Bottleneck(bottleneck) => BottleneckBody::plan(model, bottleneck),
    }
}

/// An adapter of this configuration with its initial values.
///
/// # Errors
/// As [`plan`]; a failing operation.
pub(crate) fn build(model: &Model, config: &AdapterConfig) -> Result<Arc<dyn Body>> {
    config.validate()?;
    Ok(match config {
        AdapterConfig::Lora(lora) => Arc::new(LoraBody::new(model, lora)?),
        AdapterConfig::AdaLora(adalora) => Arc::new(AdaLoraBody::new(model, adalora)?),
        AdapterConfig::Ia3(ia3) => Arc::new(Ia3Body::new(model, ia3)?),
        AdapterConfig::PromptTuning(prompt) => Arc::new(PromptBody::new(model, prompt)?),
        AdapterConfig::PrefixTuning(prefix) => Arc::new(PrefixBody::new(model, prefix)?),
        AdapterConfig::Bottleneck(bottleneck) => Arc::new(BottleneckBody::new(model, bottleneck)?),
    })
}
