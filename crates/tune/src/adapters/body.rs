//! What an adapter is made of, whatever its type.
//!
//! To add a type: a file with its configuration, which is an
//! [`AdapterType`](crate::adapters::adapter_type::AdapterType), and its [`Body`], and a line in
//! [`config`](crate::adapters::config). Adding, switching, saving, loading, checkpoints, renaming
//! and deleting then work as for the others.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use candle_core::{Tensor, Var};

use crate::adapters::config::AdapterConfig;
use crate::adapters::hooks::Hooks;
use crate::adapters::lora::linear::LoraLinear;
use crate::adapters::scheduled::Scheduled;
use crate::adapters::target;
use crate::error::Result;
use crate::files::stored::StoredTensor;
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

    /// Takes over the values of a file, whose keys and shapes are those of
    /// [`AdapterType::plan`](crate::adapters::adapter_type::AdapterType::plan).
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
