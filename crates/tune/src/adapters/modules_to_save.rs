//! The model's own tensors that are trained with an adapter: biases, and whole modules (PEFT's
//! `bias` and `modules_to_save`).
//!
//! Each is a copy that stands in for the model's while the adapter is active; the model's own stays
//! as it is beside it.

use std::sync::Arc;

use candle_core::{DType, Var};
use tunebook_models::{Model, Weight};

use crate::adapters::adapter_type::Bias;
use crate::adapters::body::AdapterTensor;
use crate::adapters::config::AdapterConfig;
use crate::adapters::hooks::StandIn;
use crate::error::{Error, Result};
use crate::train::parameter::Part;

/// The tensors of a model that an adapter trains itself.
#[derive(Debug, Default)]
pub(crate) struct OwnWeights(Vec<(Arc<Weight>, AdapterTensor)>);

/// Where a model's tensor is used.
pub(crate) fn part_of(model: &Model, weight: &str) -> Part {
    match model.block_of(weight) {
        Some(block) => Part::Block(block),
        None if model.is_embedding(weight) => Part::Embedding,
        None => Part::Head,
    }
}

impl OwnWeights {
    /// What `config` asks for beside `modules`, those that the adapter itself sits on: key in the
    /// file and weight.
    ///
    /// # Errors
    /// A name that is no module of this model, or a bias where it has none.
    pub(crate) fn plan(
        model: &Model,
        config: &AdapterConfig,
        modules: &[String],
    ) -> Result<Vec<(String, Arc<Weight>)>> {
        let (bias, save, tied) = config.as_type().own_weights();
        let all = model.weights();
        let mut chosen: Vec<(String, Arc<Weight>)> = Vec::new();
        if bias != Bias::None {
            for weight in &all {
                let Some(module) = weight.name().strip_suffix(".bias") else { continue };
                let adapted = modules.iter().any(|path| path == module);
                // PEFT keeps an adapted module as `base_layer` within its own.
                let layer = if adapted { ".base_layer" } else { "" };
                if adapted || bias == Bias::All {
                    chosen.push((format!("{module}{layer}.bias"), Arc::clone(weight)));
                }
            }
            if chosen.is_empty() {
                return Err(Error::Config {
                    field: "bias",
                    value: format!("{bias:?}"),
                    expected: "`None`: this model has no such bias",
                });
            }
        }
        for name in save {
            let mut found = false;
            for weight in &all {
                let module = module_of(weight.name());
                // As PEFT takes it: the end of a path, not a whole part of it. `norm` means
                // `input_layernorm`, too.
                if !module.ends_with(name.as_str()) {
                    continue;
                }
                found = true;
                let is_table = model.is_embedding(weight.name());
                if is_table && model.config().tie_word_embeddings && !tied {
                    return Err(Error::Config {
                        field: "modules_to_save",
                        value: format!("`{name}`, which is the output head of this model as well"),
                        expected: "`ensure_weight_tying: true` beside it, to train both as the one table that they are",
                    });
                }
                if !chosen.iter().any(|(key, _)| key == weight.name()) {
                    chosen.push((weight.name().to_owned(), Arc::clone(weight)));
                }
            }
            // A tied head is no weight of its own, so no name of one matches.
            if !found && "lm_head".ends_with(name.as_str()) && model.config().tie_word_embeddings {
                let table = all
                    .iter()
                    .map(|weight| weight.name())
                    .find(|weight| model.is_embedding(weight));
                let table = table.map_or("embed_tokens", |weight| short_name(module_of(weight)));
                return Err(Error::Config {
                    field: "modules_to_save",
                    value: format!(
                        "`{name}`, and this model's output head is its embedding table `{table}` (tie_word_embeddings)"
                    ),
                    expected: "that table with `ensure_weight_tying: true` beside it, to train both as the one table that they are",
                });
            }
            if !found {
                let mut available: Vec<String> = Vec::new();
                for weight in &all {
                    let short = short_name(module_of(weight.name())).to_owned();
                    if !available.contains(&short) {
                        available.push(short);
                    }
                }
                let example = all.first().map(|weight| module_of(weight.name()).to_owned());
                return Err(Error::UnknownTarget {
                    target: name.clone(),
                    available,
                    example: example.unwrap_or_default(),
                    is_pattern: false,
                });
            }
        }
        Ok(chosen)
    }

    /// Copies of what [`OwnWeights::plan`] names, as f32.
    ///
    /// # Errors
    /// As there; the memory does not suffice.
    pub(crate) fn new(model: &Model, config: &AdapterConfig, modules: &[String]) -> Result<Self> {
        let mut own = Vec::new();
        for (key, weight) in Self::plan(model, config, modules)? {
            let var = Var::from_tensor(&weight.get().to_dtype(DType::F32)?.copy()?)?;
            let part = part_of(model, weight.name());
            own.push((weight, AdapterTensor { key, var, part }));
        }
        Ok(Self(own))
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = &AdapterTensor> {
        self.0.iter().map(|(_, tensor)| tensor)
    }

    pub(crate) fn stand_ins(&self) -> Vec<StandIn> {
        let stand_in = |(weight, tensor): &(Arc<Weight>, AdapterTensor)| StandIn {
            weight: Arc::clone(weight),
            var: tensor.var.clone(),
        };
        self.0.iter().map(stand_in).collect()
    }
}

/// The last part of a module's path.
fn short_name(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// The module of a weight's name.
pub(crate) fn module_of(name: &str) -> &str {
    name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias")).unwrap_or(name)
}
