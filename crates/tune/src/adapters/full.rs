//! Full fine-tuning: the model's own weights are trained, all of them or some modules.
//!
//! Nothing is put beside the weights and none of them is kept twice: the trainer's variables take
//! their place in the model. What was there before is gone after the first step, so
//! [`Model::save_pretrained`] writes a whole model, and the way back is to load the base again.
//!
//! ```no_run
//! use tunebook_models::{Device, Model};
//! use tunebook_tune::{Example, Full, FullTuning, Trainer, TrainingArgs};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let train: Vec<Example> = Vec::new();
//! let model = Model::load("SmolLM2-135M-Instruct", &Device::Cpu)?;
//! println!("{}", model.unfreeze(&Full::default())?);
//! Trainer::new(&model, &TrainingArgs { learning_rate: 2e-5, ..Default::default() }).train(&train)?;
//! model.save_pretrained("out/mine")?;
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use candle_core::{DType, Var};
use serde::{Deserialize, Serialize};
use tunebook_models::{Matrix, Model, Overlay, Weight};

use crate::adapters;
use crate::adapters::modules_to_save::{module_of, part_of};
use crate::adapters::registry::{Generation, Registry};
use crate::adapters::served::check_not_served;
use crate::adapters::target::TargetModules;
use crate::error::{Error, Result};
use crate::train::parameter::{Parameter, Parameters};

/// Which of the model's own weights are trained.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Full {
    /// The modules whose weights are trained: names, paths or a regular expression, as in
    /// [`TargetModules`], over all modules, norms and embedding included. `None` (the default):
    /// every weight.
    pub target_modules: Option<TargetModules>,
    /// The blocks whose weights are trained, counted from 0, and nothing outside of them; the rest
    /// stays frozen. `None` (the default): all blocks, and what comes before and after them.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Only biases, those of norms included ([BitFit, Ben Zaken et al.
    /// 2021](https://arxiv.org/abs/2106.10199)). Default false.
    pub bias_only: bool,
}

impl Full {
    /// BitFit: nothing but the biases.
    pub fn bitfit() -> Self {
        Self { bias_only: true, ..Self::default() }
    }

    /// The last `count` of so many blocks, all else frozen.
    pub fn last_blocks(count: usize, blocks: usize) -> Self {
        Self {
            layers_to_transform: Some((blocks.saturating_sub(count)..blocks).collect()),
            ..Self::default()
        }
    }

    /// The weights of a model that are trained, as indices.
    ///
    /// # Errors
    /// A module or block that does not exist, or nothing that is left.
    fn resolve(&self, model: &Model, all: &[Arc<Weight>]) -> Result<Vec<usize>> {
        let modules: Vec<&str> = all.iter().map(|weight| module_of(weight.name())).collect();
        let mut chosen = match &self.target_modules {
            Some(targets) => targets.resolve(&modules)?,
            None => (0..all.len()).collect(),
        };
        let refuse = |field, value: String, expected| Err(Error::Config { field, value, expected });
        if let Some(blocks) = &self.layers_to_transform {
            let of = |index: &usize| model.block_of(all[*index].name());
            if let Some(missing) =
                blocks.iter().find(|block| !chosen.iter().any(|i| of(i) == Some(**block)))
            {
                return refuse(
                    "Full.layers_to_transform",
                    format!("{blocks:?}, of which {missing} has nothing to train"),
                    "numbers of blocks of this model, counted from 0",
                );
            }
            chosen.retain(|index| of(index).is_some_and(|block| blocks.contains(&block)));
        }
        if self.bias_only {
            chosen.retain(|index| all[*index].name().ends_with(".bias"));
            if chosen.is_empty() {
                return refuse(
                    "Full.bias_only",
                    "true".to_owned(),
                    "false: this model has no biases (Llama and its like have none); train an adapter",
                );
            }
        }
        match chosen.is_empty() {
            true => refuse(
                "Full.layers_to_transform",
                "empty".to_owned(),
                "at least one block, or None for all",
            ),
            false => Ok(chosen),
        }
    }
}

/// Full fine-tuning on a [`Model`].
pub trait FullTuning {
    /// Makes the model's own weights trainable, in place of whatever was. An active adapter is
    /// switched off and stays resident.
    ///
    /// # Errors
    /// A target module that does not exist; weights that are neither f32 nor f16, nor bf16 on a
    /// GPU; weights that a server answers with.
    fn unfreeze(&self, config: &Full) -> Result<FullInfo>;

    /// Makes all weights constants again, with the values that they have now. Adding or choosing an
    /// adapter does this, too.
    fn freeze(&self);
}

impl FullTuning for Model {
    fn unfreeze(&self, config: &Full) -> Result<FullInfo> {
        check_not_served(self)?;
        let weights = FullWeights::new(self, config)?;
        let info = FullInfo {
            modules: weights.parameters.iter().map(|p| module_of(&p.name).to_owned()).collect(),
            trainable_parameters: weights.parameters.elem_count(),
            all_parameters: self.parameter_count(),
        };
        let mut overlay = Overlay::default();
        for (weight, var) in &weights.weights {
            overlay.put_weight(weight, var.clone())?;
        }
        let overlay = overlay.owned_by(Arc::new(Generation::Full(Arc::new(weights))));
        Registry::of(self).lock().pause(self, Arc::new(overlay));
        Ok(info)
    }

    fn freeze(&self) {
        let registry = Registry::of(self);
        let mut state = registry.lock();
        if let Some(Generation::Full(_)) = Generation::of(&self.active_overlay()).as_deref() {
            state.pause(self, Arc::default());
        }
    }
}

/// What there is to say about full fine-tuning of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullInfo {
    /// The modules that are trained.
    pub modules: Vec<String>,
    /// How many numbers are trained.
    pub trainable_parameters: usize,
    /// How many numbers the model has.
    pub all_parameters: usize,
}

impl fmt::Display for FullInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "full fine-tuning: {} tensors; trainable params: {} || all params: {} || trainable%: {:.4}",
            self.modules.len(),
            adapters::thousands(self.trainable_parameters),
            adapters::thousands(self.all_parameters),
            100.0 * self.trainable_parameters as f64 / self.all_parameters.max(1) as f64
        )
    }
}

/// The trained weights of a model. The model's own share their memory, so that there is one copy, and
/// every handle sees what is trained as it is trained.
pub(crate) struct FullWeights {
    pub(crate) config: Full,
    weights: Vec<(Arc<Weight>, Var)>,
    pub(crate) parameters: Parameters,
    /// Changes with every change of the weights, so that a run knows whether the model still holds
    /// its own.
    pub(crate) version: Arc<AtomicU64>,
}

impl FullWeights {
    fn new(model: &Model, config: &Full) -> Result<Self> {
        let all = model.weights();
        let chosen = config.resolve(model, &all)?;
        if let Some((weight, blocks)) = chosen.iter().find_map(|index| match all[*index].matrix() {
            Matrix::Quantized(blocks) => Some((&all[*index], blocks)),
            Matrix::Plain(_) => None,
        }) {
            let (name, format) = (weight.name().to_owned(), blocks.format());
            return Err(tunebook_models::Error::QuantizedWeight { name, format }.into());
        }
        // On the CPU activations beside weights in bf16 are f32, and so nothing would be gained by
        // it.
        let has_masters = |dtype| match dtype {
            DType::F32 | DType::F16 => true,
            DType::BF16 => !model.device().is_cpu(),
            _ => false,
        };
        if let Some(weight) =
            chosen.iter().map(|index| &all[*index]).find(|w| !has_masters(w.matrix().dtype()))
        {
            return Err(Error::Config {
                field: "Full",
                value: format!("`{}` in {:?}", weight.name(), weight.matrix().dtype()),
                expected: "f32 weights (or f16, or bf16 on a GPU, with masters in f32): load the model as f32, or train an adapter",
            });
        }
        let mut weights = Vec::with_capacity(chosen.len());
        let mut parameters = Vec::with_capacity(chosen.len());
        for index in chosen {
            let weight = &all[index];
            // One tensor at a time: the old one goes before the next is copied. What is trained is
            // f32: a step is too small for f16 or bf16 to add. Activations beside it stay what they
            // were.
            let var = Var::from_tensor(&weight.get().to_dtype(DType::F32)?)?;
            weight.share(&var)?;
            let part = part_of(model, weight.name());
            parameters.push(Parameter { name: weight.name().to_owned(), var: var.clone(), part });
            weights.push((Arc::clone(weight), var));
        }
        let (config, parameters) = (config.clone(), Parameters::new(parameters));
        Ok(Self { config, weights, parameters, version: Arc::default() })
    }
}
