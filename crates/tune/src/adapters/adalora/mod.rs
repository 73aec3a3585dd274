//! AdaLoRA: a LoRA that moves its rank to where it is of use ([Zhang et al.
//! 2023](https://arxiv.org/abs/2303.10512)).
//!
//! `y = x·Wᵀ + b + scaling · dropout(x)·(A ∘ E)ᵀ·Bᵀ`, with A `[r, in]`, E `[r, 1]` and B `[out, r]`
//! trained: a singular value decomposition that is learned. All modules start with rank `init_r`.
//! While training goes on, the singular values that matter least, of all modules together, are set
//! to zero, until `target_r` for each module is left on average; the trainer does that by itself
//! after its steps. A term of the loss, `orth_reg_weight` times the mean of ‖AAᵀ − I‖ and ‖BᵀB − I‖
//! over all modules, keeps the directions orthogonal; the losses that a run reports are without it.
//!
//! ```
//! use tunebook_tune::AdaLora;
//! let adalora = AdaLora { init_r: 12, target_r: 8, tinit: 20, tfinal: 50, delta_t: 5, ..Default::default() };
//! adalora.validate()?;
//! assert!(AdaLora { target_r: 13, ..adalora }.validate().unwrap_err().to_string().contains("`AdaLora.target_r` is 13"));
//! # Ok::<(), tunebook_tune::Error>(())
//! ```

pub(crate) mod allocation;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Tensor, Var};
use serde::{Deserialize, Serialize};
use tunebook_models::{Context, Linear, LowRank, Mode, Model, Projection};
use tunebook_ops as ops;

use crate::adapters::adalora::allocation::RankSchedule;
use crate::adapters::adapter_type::{AdapterType, Bias, ChoiceMut, IN_MODEL};
use crate::adapters::body::{AdapterTensor, Body, Stored};
use crate::adapters::checks;
use crate::adapters::config::AdapterConfig;
use crate::adapters::dropout;
use crate::adapters::hooks::{self, Hooks};
use crate::adapters::lora::linear::low_rank;
use crate::adapters::scheduled::Scheduled;
use crate::adapters::target::{Choice, TargetModules};
use crate::error::{Error, Result};
use crate::files::stored::StoredTensor;
use crate::train::rng::Stream;

/// Configuration of an AdaLoRA adapter: the fields, names and defaults of PEFT's `AdaLoraConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaLora {
    /// Mean rank of a module at the end. Default 8.
    pub target_r: usize,
    /// Rank of each module at the start. Default 12.
    pub init_r: usize,
    /// Steps before the first rank goes. Default 0.
    pub tinit: usize,
    /// Steps at the end in which the ranks stay as they are. Default 0.
    pub tfinal: usize,
    /// Steps from one allocation to the next. Default 1.
    #[serde(rename = "deltaT")]
    pub delta_t: usize,
    /// Smoothing of the importance of each number, in 0..1. Default 0.85.
    pub beta1: f64,
    /// Smoothing of its uncertainty, in 0..1. Default 0.85.
    pub beta2: f64,
    /// Weight of the term that keeps A and B orthogonal. Default 0.5.
    pub orth_reg_weight: f64,
    /// Steps that the schedule of the ranks counts on. Default `None`: those of the run.
    pub total_step: Option<usize>,
    /// Numerator of the scaling, which is `lora_alpha / (init_r + 1e-5)`. Default 8.
    pub lora_alpha: f64,
    /// Probability with which an input of the low-rank path is dropped in training, in 0..1.
    /// Default 0.
    pub lora_dropout: f64,
    /// The projections to adapt. Default `["q_proj", "v_proj"]`.
    pub target_modules: TargetModules,
    /// Modules that stay as they are among those that `target_modules` matches. Default none.
    pub exclude_modules: Option<TargetModules>,
    /// Blocks to adapt among those that `target_modules` matches. Default all.
    pub layers_to_transform: Option<Vec<usize>>,
    /// What a block's number follows in a path, where the first number is not the one:
    /// `["layers"]`. Default none.
    pub layers_pattern: Vec<String>,
    /// Which of the model's biases are trained, too. Default none.
    pub bias: Bias,
    /// Modules whose own weights are trained whole and saved with the adapter. Default none.
    pub modules_to_save: Vec<String>,
    /// As in [`Lora`](crate::Lora). Default false.
    pub ensure_weight_tying: bool,
    /// E starts at zero; with false it starts random as A and B do, which is of use in tests only.
    /// Default true.
    pub init_lora_weights: bool,
    /// What is left: `PATH.lora_E` to one flag for each of `init_r`. Set by training. Default none.
    pub rank_pattern: Option<BTreeMap<String, Vec<bool>>>,
    /// Seed of the initial weights. Default 42.
    pub init_seed: u64,
}

impl Default for AdaLora {
    fn default() -> Self {
        Self {
            target_r: 8,
            init_r: 12,
            tinit: 0,
            tfinal: 0,
            delta_t: 1,
            beta1: 0.85,
            beta2: 0.85,
            orth_reg_weight: 0.5,
            total_step: None,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: TargetModules::default(),
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            bias: Bias::None,
            modules_to_save: Vec::new(),
            ensure_weight_tying: false,
            init_lora_weights: true,
            rank_pattern: None,
            init_seed: 42,
        }
    }
}

impl AdaLora {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// A rank of 0, a target rank above the initial one, a smoothing or dropout outside 0..1, a
    /// schedule without a step between `tinit` and `tfinal`: the field, the value and the range.
    pub fn validate(&self) -> Result<()> {
        let refuse = |field, value: String, expected| Err(Error::Config { field, value, expected });
        if self.init_r == 0 {
            return refuse("AdaLora.init_r", "0".to_owned(), "a rank of at least 1 (12 is usual)");
        }
        if self.target_r == 0 || self.target_r > self.init_r {
            return refuse(
                "AdaLora.target_r",
                format!("{} with `init_r` {}", self.target_r, self.init_r),
                "at least 1 and at most `init_r`",
            );
        }
        if self.delta_t == 0 {
            return refuse("AdaLora.delta_t", "0".to_owned(), "at least 1 step");
        }
        for (field, beta) in [("AdaLora.beta1", self.beta1), ("AdaLora.beta2", self.beta2)] {
            if !(beta > 0.0 && beta < 1.0) {
                return refuse(field, beta.to_string(), "above 0 and below 1");
            }
        }
        if !(self.orth_reg_weight.is_finite() && self.orth_reg_weight >= 0.0) {
            return refuse(
                "AdaLora.orth_reg_weight",
                self.orth_reg_weight.to_string(),
                "a finite number, at least 0",
            );
        }
        checks::alpha("AdaLora.lora_alpha", self.lora_alpha)?;
        checks::dropout("AdaLora.lora_dropout", self.lora_dropout)?;
        checks::blocks("AdaLora.layers_to_transform", self.layers_to_transform.as_ref())?;
        if let Some(total_step) = self.total_step {
            self.check_schedule(total_step)?;
        }
        let wrong = |mask: &Vec<bool>| mask.len() != self.init_r;
        if let Some((key, mask)) = self.rank_pattern.iter().flatten().find(|(_, mask)| wrong(mask))
        {
            return refuse(
                "AdaLora.rank_pattern",
                format!("{} flags for `{key}` with `init_r` {}", mask.len(), self.init_r),
                "one flag for each of `init_r`",
            );
        }
        Ok(())
    }

    /// # Errors
    /// There is no step between `tinit` and `tfinal`.
    pub(crate) fn check_schedule(&self, total_step: usize) -> Result<()> {
        let left =
            self.tinit.checked_add(self.tfinal).and_then(|taken| total_step.checked_sub(taken));
        match left {
            Some(1..) => Ok(()),
            _ => Err(Error::Config {
                field: "AdaLora.tinit",
                value: format!(
                    "{} with `tfinal` {} in {total_step} steps",
                    self.tinit, self.tfinal
                ),
                expected: "steps left between `tinit` and `tfinal`, in which the ranks fall: make them smaller, or train longer",
            }),
        }
    }

    pub(crate) fn choice(&self) -> Choice<'_> {
        Choice {
            target_modules: &self.target_modules,
            exclude_modules: self.exclude_modules.as_ref(),
            layers_to_transform: self.layers_to_transform.as_deref(),
            layers_pattern: &self.layers_pattern,
            modules_to_save: &self.modules_to_save,
        }
    }

    /// What `rank_pattern` leaves of the module at `path`.
    fn mask(&self, path: &str) -> Option<&Vec<bool>> {
        self.rank_pattern.as_ref()?.get(&format!("{path}.{E}"))
    }

    /// As PEFT's `ranknum`, an f32.
    fn scaling(&self) -> f64 {
        self.lora_alpha / f64::from(self.init_r as f32 + 1e-5)
    }
}

impl AdapterType for AdaLora {
    fn peft_type(&self) -> &'static str {
        "ADALORA"
    }

    fn validate(&self) -> Result<()> {
        Self::validate(self)
    }

    fn description(&self) -> String {
        format!(
            "AdaLoRA init_r={}, target_r={}, lora_alpha={}",
            self.init_r, self.target_r, self.lora_alpha
        )
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![
            ("type", "AdaLoRA".to_owned()),
            ("init_r", self.init_r.to_string()),
            ("target_r", self.target_r.to_string()),
            ("lora_alpha", self.lora_alpha.to_string()),
            ("lora_dropout", self.lora_dropout.to_string()),
        ]
    }

    fn plan(&self, model: &Model) -> Result<BTreeMap<String, Vec<usize>>> {
        AdaLoraBody::plan(model, self)
    }

    fn build(&self, model: &Model) -> Result<Arc<dyn Body>> {
        Ok(Arc::new(AdaLoraBody::new(model, self)?))
    }

    fn check_new(&self, model: &Model) -> Result<()> {
        AdaLoraBody::check_ranks(model, self)
    }

    fn own_weights(&self) -> (Bias, &[String], bool) {
        (self.bias, &self.modules_to_save, self.ensure_weight_tying)
    }

    fn key_prefix(&self) -> &'static str {
        IN_MODEL
    }

    fn choice(&self) -> Option<Choice<'_>> {
        Some(Self::choice(self))
    }

    fn choice_mut(&mut self) -> Option<ChoiceMut<'_>> {
        Some((&mut self.target_modules, Some(&mut self.layers_to_transform)))
    }
}

// PEFT's names of the tensors, which have no `.weight` behind them here
const A: &str = "lora_A";
const E: &str = "lora_E";
const B: &str = "lora_B";

/// A projection with a low-rank update in three factors.
#[derive(Debug)]
pub(crate) struct AdaLoraLinear {
    pub(crate) path: String,
    base: Arc<Linear>,
    /// `[r, in]`
    pub(crate) lora_a: Var,
    /// `[r, 1]`
    pub(crate) lora_e: Var,
    /// `[out, r]`
    pub(crate) lora_b: Var,
    scaling: f64,
    lora_dropout: f64,
}

impl AdaLoraLinear {
    fn new(path: &str, base: Arc<Linear>, config: &AdaLora) -> Result<Self> {
        let (r, input, output) = (config.init_r, base.in_features(), base.out_features());
        let device = base.matrix().device().clone();
        let normal = |shape: (usize, usize), name: &str| -> Result<Var> {
            let mut stream = Stream::new(config.init_seed, &format!("{path}.{name}"), 0);
            let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| 0.02 * stream.normal()).collect();
            Ok(Var::from_vec(values, shape, &device)?)
        };
        let lora_e = match config.init_lora_weights {
            true => Var::zeros((r, 1), DType::F32, &device)?,
            false => normal((r, 1), E)?,
        };
        Ok(Self {
            path: path.to_owned(),
            lora_a: normal((r, input), A)?,
            lora_e,
            lora_b: normal((output, r), B)?,
            base,
            scaling: config.scaling(),
            lora_dropout: config.lora_dropout,
        })
    }

    /// The base with the update added to its weight.
    fn merged(&self) -> Result<Linear> {
        let weight = self.base.weight();
        let scaled =
            self.lora_a.as_detached_tensor().broadcast_mul(&self.lora_e.as_detached_tensor())?;
        let delta = (self.lora_b.as_detached_tensor().matmul(&scaled)? * self.scaling)?;
        Ok(self.base.with_weight((&weight + delta.to_dtype(weight.dtype())?)?))
    }

    /// The three factors by name.
    fn factors(&self) -> [(&'static str, &Var); 3] {
        [(A, &self.lora_a), (E, &self.lora_e), (B, &self.lora_b)]
    }
}

impl AdaLoraLinear {
    /// A ∘ E and B of this pass: the factors of the update.
    fn low_rank_factors(&self, context: &Context<'_>) -> candle_core::Result<(Tensor, Tensor)> {
        // [r, in] · [r, 1]
        let scaled = context.value(&self.lora_a).broadcast_mul(&context.value(&self.lora_e))?;
        Ok((scaled, context.value(&self.lora_b)))
    }
}

impl Projection for AdaLoraLinear {
    fn forward(&self, x: &Tensor, context: &Context<'_>) -> tunebook_models::Result<Tensor> {
        let (a, b) = self.low_rank_factors(context)?;
        let mask = dropout::mask(context.mode(), &self.path, self.lora_dropout, x)?;
        let (weight, bias) = (self.base.matrix_in(context), self.base.bias_in(context)?);
        low_rank(x, &weight, bias, &a, &b, self.scaling, mask.as_ref())
    }

    fn update(
        &self,
        x: &Tensor,
        y: &Tensor,
        context: &Context<'_>,
    ) -> tunebook_models::Result<Option<Tensor>> {
        if context.mode().dropout.is_some() && self.lora_dropout > 0.0 {
            return Ok(None);
        }
        let (a, b) = self.low_rank_factors(context)?;
        let low = ops::linear(x, a, None)?;
        Ok(Some((y + (ops::linear(&low, b, None)? * self.scaling)?)?))
    }

    fn low_rank(&self, context: &Context<'_>) -> tunebook_models::Result<Option<Vec<LowRank>>> {
        if context.mode() != Mode::default() {
            return Ok(None);
        }
        let (a, b) = self.low_rank_factors(context)?;
        Ok(Some(vec![LowRank { a, b, scale: self.scaling }]))
    }

    fn in_features(&self) -> usize {
        self.base.in_features()
    }

    fn out_features(&self) -> usize {
        self.base.out_features()
    }

    fn weight(&self) -> Tensor {
        self.base.weight()
    }
}

/// One flag for each singular value of each module, by path: whether it is kept.
pub(crate) type Masks = BTreeMap<String, Vec<bool>>;

/// AdaLoRA as the body of an adapter.
#[derive(Debug)]
pub(crate) struct AdaLoraBody {
    pub(crate) config: AdaLora,
    pub(crate) layers: Vec<Arc<AdaLoraLinear>>,
    /// What the last allocation left, if there was one.
    masks: Mutex<Option<Masks>>,
    /// Steps of the last run, for PEFT's configuration wants a number.
    total_step: AtomicUsize,
}

impl AdaLoraBody {
    pub(crate) fn plan(model: &Model, config: &AdaLora) -> Result<BTreeMap<String, Vec<usize>>> {
        let mut plan = BTreeMap::new();
        for slot in hooks::targets(model, &config.choice())? {
            let (path, base) = (slot.path(), slot.base());
            let kept = |mask: &Vec<bool>| mask.iter().filter(|kept| **kept).count();
            let r = config.mask(path).map_or(config.init_r, kept);
            plan.insert(format!("{path}.{A}"), vec![r, base.in_features()]);
            plan.insert(format!("{path}.{E}"), vec![r, 1]);
            plan.insert(format!("{path}.{B}"), vec![base.out_features(), r]);
        }
        Ok(plan)
    }

    pub(crate) fn new(model: &Model, config: &AdaLora) -> Result<Self> {
        let mut layers = Vec::new();
        let mut masks = Masks::new();
        for slot in hooks::targets(model, &config.choice())? {
            let path = slot.path();
            if let Some(mask) = config.mask(path) {
                masks.insert(path.to_owned(), mask.clone());
            }
            layers.push(Arc::new(AdaLoraLinear::new(path, Arc::clone(slot.base()), config)?));
        }
        let masks = Mutex::new(Some(masks).filter(|masks| masks.len() == layers.len()));
        Ok(Self { config: config.clone(), layers, masks, total_step: AtomicUsize::new(0) })
    }

    /// Refuses ranks beyond which nothing more can be learned.
    ///
    /// # Errors
    /// A rank above the smaller side of its matrix.
    pub(crate) fn check_ranks(model: &Model, config: &AdaLora) -> Result<()> {
        for slot in hooks::targets(model, &config.choice())? {
            checks::rank("AdaLora.init_r", config.init_r, slot.path(), slot.base().as_ref())?;
        }
        Ok(())
    }

    /// The rank of each module by its path, as the last allocation left it.
    pub(crate) fn ranks(&self) -> BTreeMap<String, usize> {
        let masks = self.masks();
        let kept = |path: &str| {
            masks.as_ref()?.get(path).map(|mask| mask.iter().filter(|kept| **kept).count())
        };
        self.layers
            .iter()
            .map(|l| (l.path.clone(), kept(&l.path).unwrap_or(self.config.init_r)))
            .collect()
    }

    pub(crate) fn masks(&self) -> Option<Masks> {
        self.masks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_masks(&self, masks: Option<Masks>) {
        *self.masks.lock().unwrap_or_else(PoisonError::into_inner) = masks;
    }

    /// The number of steps that the ranks' schedule counts on, in a run of so many.
    pub(crate) fn start_run(&self, total_steps: usize) -> usize {
        self.total_step.store(total_steps, Ordering::Relaxed);
        self.config.total_step.unwrap_or(total_steps)
    }

    /// The configuration with these masks as its pattern.
    fn with_masks(&self, masks: Option<Masks>) -> AdaLora {
        let pattern = |masks: Masks| {
            masks.into_iter().map(|(path, mask)| (format!("{path}.{E}"), mask)).collect()
        };
        AdaLora { rank_pattern: masks.map(pattern), ..self.config.clone() }
    }

    /// The singular values that a file keeps: what the last allocation left, and what is not zero
    /// all the same (weights of an earlier step that were put back).
    fn kept(&self) -> Result<Option<Masks>> {
        let Some(mut masks) = self.masks() else { return Ok(None) };
        for layer in &self.layers {
            let values = layer.lora_e.flatten_all()?.to_vec1::<f32>()?;
            if let Some(mask) = masks.get_mut(&layer.path) {
                mask.iter_mut().zip(values).for_each(|(kept, value)| *kept |= value != 0.0);
            }
        }
        Ok(Some(masks))
    }
}

impl Body for AdaLoraBody {
    fn modules(&self) -> Vec<String> {
        self.layers.iter().map(|layer| layer.path.clone()).collect()
    }

    fn tensors(&self) -> Vec<AdapterTensor> {
        let of = |layer: &Arc<AdaLoraLinear>| {
            layer.factors().map(|(name, var)| AdapterTensor::of_module(&layer.path, name, var))
        };
        self.layers.iter().flat_map(of).collect()
    }

    fn hooks(&self) -> Hooks {
        let layer = |layer: &Arc<AdaLoraLinear>| {
            (layer.path.clone(), Arc::clone(layer) as Arc<dyn Projection>)
        };
        Hooks { projections: self.layers.iter().map(layer).collect(), ..Hooks::default() }
    }

    fn merged(&self) -> Result<Option<Hooks>> {
        let mut projections: BTreeMap<String, Arc<dyn Projection>> = BTreeMap::new();
        for layer in &self.layers {
            projections.insert(layer.path.clone(), Arc::new(layer.merged()?));
        }
        Ok(Some(Hooks { projections, ..Hooks::default() }))
    }

    fn config(&self) -> AdapterConfig {
        self.with_masks(self.masks()).into()
    }

    fn stored(&self) -> Result<Stored> {
        let kept = self.kept()?;
        let mut tensors = BTreeMap::new();
        for layer in &self.layers {
            let mask = kept.as_ref().and_then(|masks| masks.get(&layer.path));
            for (name, var) in layer.factors() {
                let stored = StoredTensor::of(var.as_tensor())?;
                let stored = match mask {
                    Some(mask) if name == B => pruned_columns(&stored, mask),
                    Some(mask) => pruned_rows(&stored, mask),
                    None => stored,
                };
                tensors.insert(format!("{}.{name}", layer.path), stored);
            }
        }
        let mut config = self.with_masks(kept);
        let least = config.tinit.saturating_add(config.tfinal).saturating_add(1);
        let run = self.total_step.load(Ordering::Relaxed);
        config.total_step = Some(config.total_step.unwrap_or(run).max(least));
        Ok((config.into(), tensors))
    }

    fn fill(&self, tensors: &BTreeMap<String, StoredTensor>) -> Result<()> {
        for layer in &self.layers {
            let mask = self.config.mask(&layer.path);
            for (name, var) in layer.factors() {
                let Some(stored) = tensors.get(&format!("{}.{name}", layer.path)) else { continue };
                let shape = var.dims2()?;
                let values = match mask {
                    Some(mask) if name == B => spread_columns(stored, mask),
                    Some(mask) => spread_rows(stored, mask),
                    None => stored.values.clone(),
                };
                var.set(&Tensor::from_vec(values, shape, var.device())?)?;
            }
        }
        Ok(())
    }

    fn scheduled(self: Arc<Self>, total_steps: usize) -> Option<Box<dyn Scheduled>> {
        Some(Box::new(RankSchedule::new(self, total_steps)))
    }
}

/// The rows that `mask` keeps.
fn pruned_rows(tensor: &StoredTensor, mask: &[bool]) -> StoredTensor {
    let width = tensor.shape.get(1).copied().unwrap_or(1).max(1);
    let rows = tensor.values.chunks_exact(width).zip(mask).filter(|(_, kept)| **kept);
    let values: Vec<f32> = rows.flat_map(|(row, _)| row.iter().copied()).collect();
    StoredTensor { shape: vec![values.len() / width, width], values }
}

/// The columns that `mask` keeps.
fn pruned_columns(tensor: &StoredTensor, mask: &[bool]) -> StoredTensor {
    let rows = tensor.values.chunks_exact(mask.len().max(1));
    let row = |row: &[f32]| {
        row.iter()
            .zip(mask)
            .filter(|(_, kept)| **kept)
            .map(|(value, _)| *value)
            .collect::<Vec<f32>>()
    };
    let kept = mask.iter().filter(|kept| **kept).count();
    StoredTensor { shape: vec![rows.len(), kept], values: rows.flat_map(row).collect() }
}

/// Rows of zeros where `mask` dropped them.
fn spread_rows(tensor: &StoredTensor, mask: &[bool]) -> Vec<f32> {
    let width = tensor.shape.get(1).copied().unwrap_or(1);
    let mut rows = tensor.values.chunks_exact(width.max(1));
    let mut values = Vec::with_capacity(mask.len() * width);
    for kept in mask {
        match if *kept { rows.next() } else { None } {
            Some(row) => values.extend_from_slice(row),
            None => values.resize(values.len() + width, 0.0),
        }
    }
    values
}

/// Columns of zeros where `mask` dropped them.
fn spread_columns(tensor: &StoredTensor, mask: &[bool]) -> Vec<f32> {
    let kept = mask.iter().filter(|kept| **kept).count();
    let mut values = Vec::with_capacity(tensor.shape[0] * mask.len());
    for row in 0..tensor.shape[0] {
        let mut columns = tensor.values[row * kept..(row + 1) * kept].iter();
        for kept in mask {
            values.push(if *kept { columns.next().copied().unwrap_or(0.0) } else { 0.0 });
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pruned_is_spread_again() {
        let mask = [true, false, true, false];
        let rows = StoredTensor { shape: vec![4, 2], values: vec![1., 2., 0., 0., 3., 4., 0., 0.] };
        let pruned = pruned_rows(&rows, &mask);
        assert_eq!(pruned, StoredTensor { shape: vec![2, 2], values: vec![1., 2., 3., 4.] });
        assert_eq!(spread_rows(&pruned, &mask), rows.values);
        let columns =
            StoredTensor { shape: vec![2, 4], values: vec![1., 0., 2., 0., 3., 0., 4., 0.] };
        let pruned = pruned_columns(&columns, &mask);
        assert_eq!(pruned, StoredTensor { shape: vec![2, 2], values: vec![1., 2., 3., 4.] });
        assert_eq!(spread_columns(&pruned, &mask), columns.values);
        let nothing = pruned_columns(&columns, &[false; 4]);
        assert_eq!(nothing.shape, [2, 0]);
        assert_eq!(spread_columns(&nothing, &[false; 4]), [0.0; 8]);
    }

    #[test]
    fn wrong_values_are_refused_with_field_value_and_range() {
        let base = AdaLora::default();
        base.validate().unwrap();
        for (adalora, says) in [
            (AdaLora { init_r: 0, ..base.clone() }, "`AdaLora.init_r` is 0"),
            (AdaLora { target_r: 13, ..base.clone() }, "`AdaLora.target_r` is 13 with `init_r` 12"),
            (AdaLora { beta1: 1.0, ..base.clone() }, "`AdaLora.beta1` is 1"),
            (AdaLora { delta_t: 0, ..base.clone() }, "`AdaLora.delta_t` is 0"),
            (AdaLora { orth_reg_weight: -1.0, ..base.clone() }, "`AdaLora.orth_reg_weight` is -1"),
            (
                AdaLora { tinit: 5, tfinal: 5, total_step: Some(10), ..base.clone() },
                "`AdaLora.tinit` is 5 with `tfinal` 5 in 10 steps",
            ),
            (
                AdaLora {
                    rank_pattern: Some([("q.lora_E".to_owned(), vec![true])].into()),
                    ..base.clone()
                },
                "`AdaLora.rank_pattern` is 1 flags for `q.lora_E`",
            ),
        ] {
            let error = adalora.validate().unwrap_err().to_string();
            assert!(error.starts_with(says), "{error}");
        }
    }
}
