//! (IA)³: learned vectors that scale what a projection takes or gives ([Liu et al.
//! 2022](https://arxiv.org/abs/2205.05638)).
//!
//! `y = l ∘ (x·Wᵀ + b)`, with l `[out]` trained; in feed-forward modules `y = (l ∘ x)·Wᵀ + b`, with
//! l `[in]`. All l start at 1, so that a new adapter changes nothing. A few numbers for each
//! projection are all there is to train.
//!
//! ```
//! use tunebook_tune::Ia3;
//! let ia3 = Ia3 { target_modules: ["k_proj", "v_proj", "down_proj"].into(), ..Default::default() };
//! ia3.validate()?;
//! # Ok::<(), tunebook_tune::Error>(())
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Tensor, Var};
use serde::{Deserialize, Serialize};
use tunebook_models::{Context, Linear, Model, Projection};

use crate::adapters::adapter_type::{AdapterType, Bias, ChoiceMut, IN_MODEL};
use crate::adapters::body::{AdapterTensor, Body};
use crate::adapters::config::AdapterConfig;
use crate::adapters::hooks::{self, Hooks};
use crate::adapters::target::{Choice, TargetModules};
use crate::error::{Error, Result};

/// Configuration of an (IA)³ adapter: the fields, names and defaults of PEFT's `IA3Config`, with
/// its targets for the Llama family.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ia3 {
    /// The projections to scale. Default `["k_proj", "v_proj", "down_proj"]`.
    pub target_modules: TargetModules,
    /// Those among them whose input is scaled, not their output. Default `["down_proj"]`.
    pub feedforward_modules: TargetModules,
    /// Modules that stay as they are among those that `target_modules` matches. Default none.
    pub exclude_modules: Option<TargetModules>,
    /// Modules whose own weights are trained whole and saved with the adapter: `lm_head`,
    /// `embed_tokens`. Default none.
    pub modules_to_save: Vec<String>,
}

impl Default for Ia3 {
    fn default() -> Self {
        Self {
            target_modules: ["k_proj", "v_proj", "down_proj"].into(),
            feedforward_modules: ["down_proj"].into(),
            exclude_modules: None,
            modules_to_save: Vec::new(),
        }
    }
}

impl Ia3 {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// A feed-forward module that is no target.
    pub fn validate(&self) -> Result<()> {
        if let (TargetModules::Names(all), TargetModules::Names(feedforward)) =
            (&self.target_modules, &self.feedforward_modules)
            && let Some(other) = feedforward.iter().find(|name| !all.contains(name))
        {
            return Err(Error::Config {
                field: "Ia3.feedforward_modules",
                value: format!("`{other}` among others"),
                expected: "names that stand in `target_modules`, too",
            });
        }
        Ok(())
    }

    pub(crate) fn choice(&self) -> Choice<'_> {
        Choice {
            target_modules: &self.target_modules,
            exclude_modules: self.exclude_modules.as_ref(),
            layers_to_transform: None,
            layers_pattern: &[],
            modules_to_save: &self.modules_to_save,
        }
    }

    /// The shape of l, as PEFT has it.
    fn shape(&self, path: &str, base: &Linear) -> Result<(usize, usize)> {
        Ok(match self.feedforward_modules.matches(path)? {
            true => (1, base.in_features()),
            false => (base.out_features(), 1),
        })
    }
}

impl AdapterType for Ia3 {
    fn peft_type(&self) -> &'static str {
        "IA3"
    }

    fn validate(&self) -> Result<()> {
        Self::validate(self)
    }

    fn description(&self) -> String {
        "IA3".to_owned()
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![("type", "IA3".to_owned())]
    }

    fn plan(&self, model: &Model) -> Result<BTreeMap<String, Vec<usize>>> {
        Ia3Body::plan(model, self)
    }

    fn build(&self, model: &Model) -> Result<Arc<dyn Body>> {
        Ok(Arc::new(Ia3Body::new(model, self)?))
    }

    fn own_weights(&self) -> (Bias, &[String], bool) {
        (Bias::None, &self.modules_to_save, false)
    }

    fn key_prefix(&self) -> &'static str {
        IN_MODEL
    }

    fn choice(&self) -> Option<Choice<'_>> {
        Some(Self::choice(self))
    }

    fn choice_mut(&mut self) -> Option<ChoiceMut<'_>> {
        Some((&mut self.target_modules, None))
    }
}

const L: &str = "ia3_l";

/// A projection with a scaled input or output.
#[derive(Debug)]
struct Ia3Linear {
    path: String,
    base: Arc<Linear>,
    /// `[1, in]` before the base, `[out, 1]` behind it.
    l: Var,
    before: bool,
}

impl Ia3Linear {
    /// The base with the scale in its weight.
    fn merged(&self) -> Result<Linear> {
        let (weight, l) = (self.base.weight(), self.l.as_detached_tensor());
        let scaled = weight.to_dtype(DType::F32)?.broadcast_mul(&l)?.to_dtype(weight.dtype())?;
        let bias = match self.base.bias() {
            Some(bias) if !self.before => Some((&bias * l.flatten_all()?.to_dtype(bias.dtype())?)?),
            bias => bias,
        };
        Ok(Linear::new(scaled, bias))
    }
}

impl Ia3Linear {
    fn scale(&self, x: &Tensor, context: &Context<'_>) -> tunebook_models::Result<Tensor> {
        let l = context.value(&self.l).flatten_all()?.to_dtype(x.dtype())?;
        // The dimension may be split over the last ones: [in] -> [h, d]
        let (dims, mut from) = (x.dims(), x.rank());
        while from > 0 && dims[from..].iter().product::<usize>() < l.elem_count() {
            from -= 1;
        }
        Ok(x.broadcast_mul(&l.reshape(&dims[from..])?)?)
    }
}

impl Projection for Ia3Linear {
    fn forward(&self, x: &Tensor, context: &Context<'_>) -> tunebook_models::Result<Tensor> {
        match self.before {
            true => self.base.forward(&self.scale(x, context)?, context),
            false => self.scale(&self.base.forward(x, context)?, context),
        }
    }

    fn input(&self, x: &Tensor, context: &Context<'_>) -> tunebook_models::Result<Option<Tensor>> {
        self.before.then(|| self.scale(x, context)).transpose()
    }

    fn update(
        &self,
        _: &Tensor,
        y: &Tensor,
        context: &Context<'_>,
    ) -> tunebook_models::Result<Option<Tensor>> {
        Ok(Some(if self.before { y.clone() } else { self.scale(y, context)? }))
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

/// (IA)³ as the body of an adapter.
#[derive(Debug)]
pub(crate) struct Ia3Body {
    config: Ia3,
    layers: Vec<Arc<Ia3Linear>>,
}

impl Ia3Body {
    pub(crate) fn plan(model: &Model, config: &Ia3) -> Result<BTreeMap<String, Vec<usize>>> {
        let mut plan = BTreeMap::new();
        for slot in hooks::targets(model, &config.choice())? {
            let (rows, columns) = config.shape(slot.path(), slot.base())?;
            plan.insert(format!("{}.{L}", slot.path()), vec![rows, columns]);
        }
        Ok(plan)
    }

    pub(crate) fn new(model: &Model, config: &Ia3) -> Result<Self> {
        let mut layers = Vec::new();
        for slot in hooks::targets(model, &config.choice())? {
            let base = Arc::clone(slot.base());
            let shape = config.shape(slot.path(), &base)?;
            layers.push(Arc::new(Ia3Linear {
                path: slot.path().to_owned(),
                l: Var::ones(shape, DType::F32, model.device())?,
                before: config.feedforward_modules.matches(slot.path())?,
                base,
            }));
        }
        Ok(Self { config: config.clone(), layers })
    }
}

impl Body for Ia3Body {
    fn modules(&self) -> Vec<String> {
        self.layers.iter().map(|layer| layer.path.clone()).collect()
    }

    fn tensors(&self) -> Vec<AdapterTensor> {
        self.layers.iter().map(|layer| AdapterTensor::of_module(&layer.path, L, &layer.l)).collect()
    }

    fn config(&self) -> AdapterConfig {
        self.config.clone().into()
    }

    fn hooks(&self) -> Hooks {
        let layer =
            |layer: &Arc<Ia3Linear>| (layer.path.clone(), Arc::clone(layer) as Arc<dyn Projection>);
        Hooks { projections: self.layers.iter().map(layer).collect(), ..Hooks::default() }
    }

    fn merged(&self) -> Result<Option<Hooks>> {
        let mut projections: BTreeMap<String, Arc<dyn Projection>> = BTreeMap::new();
        for layer in &self.layers {
            projections.insert(layer.path.clone(), Arc::new(layer.merged()?));
        }
        Ok(Some(Hooks { projections, ..Hooks::default() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feedforward_module_must_be_a_target() {
        Ia3::default().validate().unwrap();
        let wrong = Ia3 { target_modules: ["k_proj"].into(), ..Default::default() };
        let error = wrong.validate().unwrap_err().to_string();
        assert!(error.contains("`Ia3.feedforward_modules` is `down_proj`"), "{error}");
    }
}
