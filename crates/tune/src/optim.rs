//! AdamW: Adam with decoupled weight decay ([Loshchilov and Hutter 2019](https://arxiv.org/abs/1711.05101)), numbers as in
//! `torch.optim.AdamW`.
//!
//! One pass over each tensor: decay, both moments and the update in place. The order is that of the parameters' names.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor};
use rayon::prelude::*;

use crate::error::Result;
use crate::parameter::{Gradients, Parameter, Parameters};

/// What AdamW needs besides the learning rate; torch's names and defaults, but for the decay, which `transformers` sets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment. Default 0.9.
    pub beta1: f64,
    /// Decay of the second moment. Default 0.999.
    pub beta2: f64,
    /// Added to the denominator. Default 1e-8.
    pub eps: f64,
    /// Decay of the weights, scaled by the learning rate. Default 0.01.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

// torch's names of the moments
const FIRST: &str = ".exp_avg";
const SECOND: &str = ".exp_avg_sq";

/// The two moments of one tensor.
#[derive(Debug, Clone)]
enum Moments {
    Host { first: Vec<f32>, second: Vec<f32> },
    Device { first: Tensor, second: Tensor },
}

/// The optimizer and its state.
#[derive(Debug, Clone, Default)]
pub struct AdamW {
    config: AdamWConfig,
    steps: u64,
    moments: BTreeMap<String, Moments>,
}

impl AdamW {
    /// No step taken yet.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, steps: 0, moments: BTreeMap::new() }
    }

    /// The same state under these settings.
    pub(crate) fn with_config(self, config: AdamWConfig) -> Self {
        Self { config, ..self }
    }

    /// How many steps have been taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One step on every parameter that has a gradient; `scale` multiplies the gradients first (the clipping factor).
    ///
    /// # Errors
    /// A parameter that is not f32 and contiguous.
    pub fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &Gradients,
        learning_rate: f64,
        scale: f64,
    ) -> Result<()> {
        self.steps += 1;
        let update = Update::new(&self.config, self.steps, learning_rate, scale);
        for (parameter, gradient) in parameters.iter().zip(gradients.iter()) {
            let Some(gradient) = gradient else { continue };
            let moments = match self.moments.get_mut(&parameter.name) {
                Some(moments) => moments,
                None => self.moments.entry(parameter.name.clone()).or_insert(Moments::new(parameter)?),
            };
            match moments {
                Moments::Host { first, second } => {
                    let op = FusedAdamW { update, first: RefCell::new(first), second: RefCell::new(second) };
                    parameter.var.as_tensor().inplace_op2(&gradient.contiguous()?, &op)?;
                }
                Moments::Device { first, second } => update.composed(parameter, gradient, first, second)?,
            }
        }
        Ok(())
    }

    /// Puts back what [`AdamW::state`] gave, after `steps` steps, for tensors on the CPU.
    pub(crate) fn restored(config: AdamWConfig, steps: u64, state: BTreeMap<String, Vec<f32>>) -> Self {
        let mut moments = BTreeMap::new();
        for (key, first) in &state {
            if let Some(name) = key.strip_suffix(FIRST)
                && let Some(second) = state.get(&format!("{name}{SECOND}"))
            {
                moments
                    .insert(name.to_owned(), Moments::Host { first: first.clone(), second: second.clone() });
            }
        }
        Self { config, steps, moments }
    }

    /// The state as named tensors, for a checkpoint: `NAME.exp_avg` and `NAME.exp_avg_sq`, as torch calls them, flat.
    pub(crate) fn state(&self) -> Result<Vec<(String, Vec<f32>)>> {
        let mut state = Vec::new();
        for (name, moments) in &self.moments {
            let (first, second) = match moments {
                Moments::Host { first, second } => (first.clone(), second.clone()),
                Moments::Device { first, second } => {
                    (first.flatten_all()?.to_vec1::<f32>()?, second.flatten_all()?.to_vec1::<f32>()?)
                }
            };
            state.push((format!("{name}{FIRST}"), first));
            state.push((format!("{name}{SECOND}"), second));
        }
        Ok(state)
    }
}

impl Moments {
    fn new(parameter: &Parameter) -> Result<Self> {
        let var = &parameter.var;
        Ok(if var.device().is_cpu() {
            Self::Host { first: vec![0.0; var.elem_count()], second: vec![0.0; var.elem_count()] }
        } else {
            Self::Device { first: var.as_tensor().zeros_like()?, second: var.as_tensor().zeros_like()? }
        })
    }
}

/// The numbers of one step.
#[derive(Debug, Clone, Copy)]
struct Update {
    scale: f32,
    keep: f32,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    step_size: f32,
    root_correction2: f32,
    eps: f32,
}

impl Update {
    fn new(config: &AdamWConfig, steps: u64, learning_rate: f64, scale: f64) -> Self {
        let steps = steps as f64;
        Self {
            scale: scale as f32,
            keep: (1.0 - learning_rate * config.weight_decay) as f32,
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            rest1: (1.0 - config.beta1) as f32,
            rest2: (1.0 - config.beta2) as f32,
            step_size: (learning_rate / (1.0 - config.beta1.powf(steps))) as f32,
            root_correction2: (1.0 - config.beta2.powf(steps)).sqrt() as f32,
            eps: config.eps as f32,
        }
    }

    #[inline]
    fn apply(&self, value: &mut f32, gradient: f32, first: &mut f32, second: &mut f32) {
        let gradient = gradient * self.scale;
        *first = *first * self.beta1 + gradient * self.rest1;
        *second = *second * self.beta2 + gradient * gradient * self.rest2;
        let denominator = second.sqrt() / self.root_correction2 + self.eps;
        *value = *value * self.keep - self.step_size * (*first / denominator);
    }

    /// The same in tensor operations, for devices without a fused form.
    fn composed(
        &self,
        parameter: &Parameter,
        gradient: &Tensor,
        first: &mut Tensor,
        second: &mut Tensor,
    ) -> Result<()> {
        let gradient = (gradient * f64::from(self.scale))?;
        *first = ((&*first * f64::from(self.beta1))? + (&gradient * f64::from(self.rest1))?)?;
        *second = ((&*second * f64::from(self.beta2))? + (gradient.sqr()? * f64::from(self.rest2))?)?;
        let denominator = ((second.sqrt()? / f64::from(self.root_correction2))? + f64::from(self.eps))?;
        let value = parameter.var.as_detached_tensor();
        let step = ((&*first / denominator)? * f64::from(self.step_size))?;
        parameter.var.set(&((value * f64::from(self.keep))? - step)?)?;
        Ok(())
    }
}

struct FusedAdamW<'a> {
    update: Update,
    first: RefCell<&'a mut Vec<f32>>,
    second: RefCell<&'a mut Vec<f32>>,
}

impl InplaceOp2 for FusedAdamW<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        value: &mut CpuStorage,
        layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (CpuStorage::F32(value), CpuStorage::F32(gradient)) = (value, gradient) else {
            candle_core::bail!("adamw: expected f32 parameters and gradients")
        };
        let (Some((from, to)), Some((gradient_from, gradient_to))) =
            (layout.contiguous_offsets(), gradient_layout.contiguous_offsets())
        else {
            candle_core::bail!("adamw: expected contiguous parameters and gradients")
        };
        let value = &mut value[from..to];
        let gradient = &gradient[gradient_from..gradient_to];
        if value.len() != gradient.len() {
            candle_core::bail!(
                "adamw: a parameter of {} values has a gradient of {}",
                value.len(),
                gradient.len()
            )
        }
        const CHUNK: usize = 1 << 14;
        let update = self.update;
        let mut first = self.first.borrow_mut();
        let mut second = self.second.borrow_mut();
        value
            .par_chunks_mut(CHUNK)
            .zip(gradient.par_chunks(CHUNK))
            .zip(first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK)))
            .for_each(|((value, gradient), (first, second))| {
                for (((value, gradient), first), second) in
                    value.iter_mut().zip(gradient).zip(first).zip(second)
                {
                    update.apply(value, *gradient, first, second);
                }
            });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn fused_and_composed_agree() {
        let values: Vec<f32> = (0..40_000).map(|i| (i as f32 * 0.37).sin()).collect();
        let gradient =
            Tensor::new(values.iter().map(|v| v * 3.0 - 0.5).collect::<Vec<_>>(), &Device::Cpu).unwrap();
        let var = || Var::new(values.as_slice(), &Device::Cpu).unwrap();
        let parameters = Parameters::new(vec![Parameter { name: "w".into(), var: var(), block: 0 }]);
        let composed = Parameter { name: "w".into(), var: var(), block: 0 };
        let (mut first, mut second) = (gradient.zeros_like().unwrap(), gradient.zeros_like().unwrap());
        let mut gradients = Gradients::new(&parameters);
        gradients.add(0, gradient.clone()).unwrap();
        let mut adamw = AdamW::new(AdamWConfig::default());
        for step in 1..=5 {
            adamw.step(&parameters, &gradients, 1e-2, 0.5).unwrap();
            let update = Update::new(&AdamWConfig::default(), step, 1e-2, 0.5);
            update.composed(&composed, &gradient, &mut first, &mut second).unwrap();
        }
        let fused = parameters.iter().next().unwrap().var.to_vec1::<f32>().unwrap();
        let composed = composed.var.to_vec1::<f32>().unwrap();
        assert_ne!(fused, values);
        for (a, b) in fused.iter().zip(&composed) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
    }
}
