//! LoRA as the body of an adapter: one [`LoraLinear`] for each target.

use std::collections::BTreeMap;
use std::sync::Arc;

use tunebook_models::{Model, Projection};

use crate::adapters::body::{AdapterTensor, Body, Stored};
use crate::adapters::checks;
use crate::adapters::config::AdapterConfig;
use crate::adapters::hooks::{self, Hooks};
use crate::adapters::lora::linear::LoraLinear;
use crate::adapters::lora::{Lora, LoraInit};
use crate::error::Result;
use crate::files::stored::StoredTensor;

pub(crate) const A: &str = "lora_A.weight";
pub(crate) const B: &str = "lora_B.weight";
const MAGNITUDE: &str = "lora_magnitude_vector";

#[derive(Debug)]
pub(crate) struct LoraBody {
    config: Lora,
    layers: Vec<Arc<LoraLinear>>,
}

impl LoraBody {
    pub(crate) fn plan(model: &Model, config: &Lora) -> Result<BTreeMap<String, Vec<usize>>> {
        let mut plan = BTreeMap::new();
        for slot in hooks::targets(model, &config.choice())? {
            let (path, base) = (slot.path(), slot.base());
            let r = config.rank_and_scaling(path)?.0;
            plan.insert(format!("{path}.{A}"), vec![r, base.in_features()]);
            plan.insert(format!("{path}.{B}"), vec![base.out_features(), r]);
            if config.use_dora {
                plan.insert(format!("{path}.{MAGNITUDE}"), vec![base.out_features()]);
            }
        }
        Ok(plan)
    }

    pub(crate) fn new(model: &Model, config: &Lora) -> Result<Self> {
        let mut layers = Vec::new();
        for slot in hooks::targets(model, &config.choice())? {
            layers.push(Arc::new(LoraLinear::new(slot.path(), Arc::clone(slot.base()), config)?));
        }
        Ok(Self { config: config.clone(), layers })
    }

    /// Refuses ranks beyond which nothing more can be learned.
    ///
    /// # Errors
    /// A rank above the smaller side of its matrix.
    pub(crate) fn check_ranks(model: &Model, config: &Lora) -> Result<()> {
        for slot in hooks::targets(model, &config.choice())? {
            let r = config.rank_and_scaling(slot.path())?.0;
            checks::rank("Lora.r", r, slot.path(), slot.base().as_ref())?;
        }
        Ok(())
    }
}

impl Body for LoraBody {
    fn modules(&self) -> Vec<String> {
        self.layers.iter().map(|layer| layer.path().to_owned()).collect()
    }

    fn tensors(&self) -> Vec<AdapterTensor> {
        let mut tensors = Vec::with_capacity(2 * self.layers.len());
        for layer in &self.layers {
            tensors.push(AdapterTensor::of_module(layer.path(), A, layer.lora_a()));
            tensors.push(AdapterTensor::of_module(layer.path(), B, layer.lora_b()));
            if let Some(magnitude) = layer.magnitude() {
                tensors.push(AdapterTensor::of_module(layer.path(), MAGNITUDE, magnitude));
            }
        }
        tensors
    }

    fn hooks(&self) -> Hooks {
        let layer = |layer: &Arc<LoraLinear>| {
            (layer.path().to_owned(), Arc::clone(layer) as Arc<dyn Projection>)
        };
        Hooks { projections: self.layers.iter().map(layer).collect(), ..Hooks::default() }
    }

    fn merged(&self) -> Result<Option<Hooks>> {
        let mut projections: BTreeMap<String, Arc<dyn Projection>> = BTreeMap::new();
        for layer in &self.layers {
            projections.insert(layer.path().to_owned(), Arc::new(layer.merged()?));
        }
        Ok(Some(Hooks { projections, ..Hooks::default() }))
    }

    fn config(&self) -> AdapterConfig {
        self.config.clone().into()
    }

    fn stored(&self) -> Result<Stored> {
        let mut tensors = BTreeMap::new();
        for layer in &self.layers {
            let (a, b) = layer.plain()?;
            tensors.insert(format!("{}.{A}", layer.path()), StoredTensor::of(&a)?);
            tensors.insert(format!("{}.{B}", layer.path()), StoredTensor::of(&b)?);
            if let Some(magnitude) = layer.magnitude() {
                tensors
                    .insert(format!("{}.{MAGNITUDE}", layer.path()), StoredTensor::of(magnitude)?);
            }
        }
        let mut lora = self.config.clone();
        if lora.lora_init.takes_from_base() {
            // The file holds [A; A₀] and [B, −B₀]: twice the rank, and the scaling as it was.
            let factor = if lora.use_rslora { 2f64.sqrt() } else { 2.0 };
            lora.r *= 2;
            lora.lora_alpha *= factor;
            lora.rank_pattern.values_mut().for_each(|r| *r *= 2);
            lora.alpha_pattern.values_mut().for_each(|alpha| *alpha *= factor);
            lora.lora_init = LoraInit::Kaiming;
        }
        Ok((lora.into(), tensors))
    }

    fn lora(&self) -> Option<&[Arc<LoraLinear>]> {
        Some(&self.layers)
    }
}
