//! AdamW: Adam with decoupled weight decay ([Loshchilov and Hutter
//! 2019](https://arxiv.org/abs/1711.05101)), numbers as in `torch.optim.AdamW`.
//!
//! One pass over each tensor: decay, both moments and the update in place. The order is that of the
//! parameters' names.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tunebook_models::tensor_file::{Data, Entry};
use tunebook_ops::cpu::crew::Each;

use crate::error::{Error, Result};
use crate::train::eight_bit::{self, BLOCK, Code, Quantized};
use crate::train::parameter::{Gradients, Parameter, Parameters};

/// The optimizer of a run (`optim` of `transformers`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Optim {
    /// AdamW with both moments in f32: 8 bytes for each trained number.
    #[default]
    #[serde(rename = "adamw_torch")]
    AdamW,
    /// AdamW with both moments in 8 bits, block by block, as bitsandbytes keeps them: 2 bytes for
    /// each trained number. On the CPU.
    #[serde(rename = "adamw_bnb_8bit")]
    AdamW8bit,
}

/// What AdamW needs besides the learning rate; torch's names and defaults, but for the decay, which
/// `transformers` sets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment. Default 0.9.
    pub beta1: f64,
    /// Decay of the second moment. Default 0.999.
    pub beta2: f64,
    /// Added to the denominator. Default 1e-8.
    pub eps: f64,
    /// Decay of the weights, scaled by the learning rate; norms and biases do not decay, as in
    /// `transformers`. Default 0.01.
    pub weight_decay: f64,
    /// How the moments are kept. Default f32.
    pub optim: Optim,
    /// Factor on the learning rate of LoRA's B and of vectors (LoRA+). Default 1.
    pub loraplus_lr_ratio: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            optim: Optim::AdamW,
            loraplus_lr_ratio: 1.0,
        }
    }
}

// torch's names of the moments
const FIRST: &str = ".exp_avg";
const SECOND: &str = ".exp_avg_sq";
/// Behind the name of a moment in 8 bits.
const ABSMAX: &str = ".absmax";

impl AdamWConfig {
    /// How many times as fast as the others this one learns (LoRA+).
    pub(crate) fn lr_ratio(&self, parameter: &Parameter) -> f64 {
        let is_fast = parameter.name.ends_with("lora_B") || parameter.var.rank() == 1;
        if is_fast { self.loraplus_lr_ratio } else { 1.0 }
    }
}

/// The two moments of one tensor.
#[derive(Debug, Clone)]
enum Moments {
    Host { first: Vec<f32>, second: Vec<f32> },
    EightBit { first: Quantized, second: Quantized },
    Device { first: Tensor, second: Tensor },
}

/// The tensors of a saved state by name.
#[derive(Debug, Default)]
pub(crate) struct Saved {
    pub(crate) f32s: BTreeMap<String, Vec<f32>>,
    pub(crate) bytes: BTreeMap<String, Vec<u8>>,
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

    /// The settings.
    pub(crate) fn config(&self) -> AdamWConfig {
        self.config
    }

    /// How many steps have been taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One step on every parameter that has a gradient; `scale` multiplies the gradients first (the
    /// clipping factor).
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
        for (parameter, gradient) in parameters.iter().zip(gradients.iter()) {
            let Some(gradient) = gradient else { continue };
            let rate = learning_rate * self.config.lr_ratio(parameter);
            let rate = Update::new(&self.config, self.steps, rate, scale);
            let update = if decays(&parameter.name) { rate } else { Update { keep: 1.0, ..rate } };
            let moments = match self.moments.get_mut(&parameter.name) {
                Some(moments) => moments,
                None => {
                    let new = Moments::new(parameter, self.config.optim)?;
                    self.moments.entry(parameter.name.clone()).or_insert(new)
                }
            };
            moments.follow(parameter)?;
            let value = parameter.var.as_tensor();
            match moments {
                Moments::Host { first, second } => {
                    let op = FusedAdamW {
                        update,
                        first: RefCell::new(first),
                        second: RefCell::new(second),
                    };
                    value.inplace_op2(&gradient.contiguous()?, &op)?;
                }
                Moments::EightBit { first, second } => {
                    let op = EightBitAdamW {
                        update,
                        first: RefCell::new(first),
                        second: RefCell::new(second),
                    };
                    value.inplace_op2(&gradient.contiguous()?, &op)?;
                }
                Moments::Device { first, second } => {
                    update.composed(parameter, gradient, first, second)?
                }
            }
        }
        Ok(())
    }

    /// Puts back what [`AdamW::entries`] gave, after `steps` steps.
    pub(crate) fn restored(config: AdamWConfig, steps: u64, mut saved: Saved) -> Self {
        let mut moments = BTreeMap::new();
        let names: Vec<String> = saved
            .f32s
            .keys()
            .chain(saved.bytes.keys())
            .filter_map(|key| key.strip_suffix(FIRST).map(str::to_owned))
            .collect();
        for name in names {
            let (first, second) = (format!("{name}{FIRST}"), format!("{name}{SECOND}"));
            let mut quantized = |key: &str| {
                let bytes = saved.bytes.remove(key)?;
                let absmax = saved.f32s.remove(&format!("{key}{ABSMAX}"))?;
                (absmax.len() == bytes.len().div_ceil(BLOCK)).then_some(Quantized { bytes, absmax })
            };
            if let (Some(first), Some(second)) = (quantized(&first), quantized(&second)) {
                moments.insert(name, Moments::EightBit { first, second });
            } else if let (Some(first), Some(second)) =
                (saved.f32s.remove(&first), saved.f32s.remove(&second))
            {
                moments.insert(name, Moments::Host { first, second });
            }
        }
        Self { config, steps, moments }
    }

    /// The state as tensors for a checkpoint, each name after `prefix`: `NAME.exp_avg` and
    /// `NAME.exp_avg_sq`, as torch calls them, flat; in 8 bits with `….absmax` beside them.
    pub(crate) fn entries(&self, prefix: &str) -> Vec<Entry<'_>> {
        let mut entries = Vec::new();
        for (name, moments) in &self.moments {
            let mut add = |key: &str, data, count| {
                entries.push(Entry::new(format!("{prefix}{name}{key}"), &[count], data));
            };
            match moments {
                Moments::Host { first, second } => {
                    add(FIRST, Data::F32(first), first.len());
                    add(SECOND, Data::F32(second), second.len());
                }
                Moments::EightBit { first, second } => {
                    for (key, moment) in [(FIRST, first), (SECOND, second)] {
                        add(key, Data::U8(&moment.bytes), moment.bytes.len());
                        add(
                            &format!("{key}{ABSMAX}"),
                            Data::F32(&moment.absmax),
                            moment.absmax.len(),
                        );
                    }
                }
                Moments::Device { first, second } => {
                    add(FIRST, Data::Tensor(first), first.elem_count());
                    add(SECOND, Data::Tensor(second), second.elem_count());
                }
            }
        }
        entries
    }
}

/// Whether a weight decays: norms and biases do not (`get_decay_parameter_names` of
/// `transformers`).
fn decays(name: &str) -> bool {
    !name.split('.').any(|part| part.contains("bias") || part.contains("norm"))
}

/// About how long one step on so many numbers takes, measured on as many, but on eight million at
/// most: more than a processor's caches hold, and no more memory than what a run with so many to
/// train takes itself.
pub(crate) fn secs(numbers: f64, optim: Optim) -> f64 {
    const MOST: usize = 8 << 20;
    let count = (numbers as usize).clamp(1, MOST);
    let update = Update::new(&AdamWConfig::default(), 1, 1e-3, 1.0);
    let gradient = CpuStorage::F32(vec![1e-3; count]);
    let mut value = CpuStorage::F32(vec![1.0; count]);
    let layout = Layout::contiguous(count);
    let (f32s, bytes) = if optim == Optim::AdamW { (count, 0) } else { (0, count) };
    let (mut first, mut second) = (vec![0.0; f32s], vec![0.0; f32s]);
    let (mut m, mut v) =
        (Quantized::zeros(bytes, Code::signed()), Quantized::zeros(bytes, Code::unsigned()));
    let mut least = f64::INFINITY;
    for _ in 0..3 {
        let started = std::time::Instant::now();
        let done = match optim {
            Optim::AdamW => FusedAdamW {
                update,
                first: RefCell::new(&mut first),
                second: RefCell::new(&mut second),
            }
            .cpu_fwd(&mut value, &layout, &gradient, &layout),
            Optim::AdamW8bit => {
                EightBitAdamW { update, first: RefCell::new(&mut m), second: RefCell::new(&mut v) }
                    .cpu_fwd(&mut value, &layout, &gradient, &layout)
            }
        };
        if done.is_ok() {
            least = least.min(started.elapsed().as_secs_f64());
        }
    }
    if least.is_finite() { least * numbers / count as f64 } else { 0.0 }
}

/// What one number needs of the optimizer, in bytes.
pub(crate) fn bytes_per_number(optim: Optim) -> f64 {
    match optim {
        Optim::AdamW => 8.0,
        Optim::AdamW8bit => 2.0 * (1.0 + 4.0 / BLOCK as f64),
    }
}

impl Moments {
    fn new(parameter: &Parameter, optim: Optim) -> Result<Self> {
        let var = &parameter.var;
        let count = var.elem_count();
        let small = count < eight_bit::LEAST;
        Ok(match (optim, var.device().is_cpu()) {
            (Optim::AdamW8bit, false) => {
                return Err(Error::Config {
                    field: "TrainingArgs.optim",
                    value: "AdamW8bit".to_owned(),
                    expected: "AdamW on this device: states in 8 bits are kept on the CPU only, so far",
                });
            }
            (Optim::AdamW8bit, true) if !small => Self::EightBit {
                first: Quantized::zeros(count, Code::signed()),
                second: Quantized::zeros(count, Code::unsigned()),
            },
            (_, true) => Self::Host { first: vec![0.0; count], second: vec![0.0; count] },
            (_, false) => Self::Device {
                first: var.as_tensor().zeros_like()?,
                second: var.as_tensor().zeros_like()?,
            },
        })
    }

    /// Moves moments that were read from a checkpoint to where the parameter is.
    fn follow(&mut self, parameter: &Parameter) -> Result<()> {
        let (device, shape) = (parameter.var.device(), parameter.var.shape());
        if let Self::Host { first, second } = self
            && !device.is_cpu()
        {
            let first = Tensor::from_slice(first, shape, device)?;
            *self = Self::Device { first, second: Tensor::from_slice(second, shape, device)? };
        }
        Ok(())
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
        *second =
            ((&*second * f64::from(self.beta2))? + (gradient.sqr()? * f64::from(self.rest2))?)?;
        let denominator =
            ((second.sqrt()? / f64::from(self.root_correction2))? + f64::from(self.eps))?;
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
        let (value, gradient) = slices(value, layout, gradient, gradient_layout)?;
        const CHUNK: usize = 1 << 14;
        let update = self.update;
        let mut first = self.first.borrow_mut();
        let mut second = self.second.borrow_mut();
        value
            .par_chunks_mut(CHUNK)
            .zip(gradient.par_chunks(CHUNK))
            .zip(first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK)))
            .each(|((value, gradient), (first, second))| {
                for (((value, gradient), first), second) in
                    value.iter_mut().zip(gradient).zip(first).zip(second)
                {
                    update.apply(value, *gradient, first, second);
                }
            });
        Ok(())
    }
}

struct EightBitAdamW<'a> {
    update: Update,
    first: RefCell<&'a mut Quantized>,
    second: RefCell<&'a mut Quantized>,
}

impl InplaceOp2 for EightBitAdamW<'_> {
    fn name(&self) -> &'static str {
        "adamw (8 bit)"
    }

    fn cpu_fwd(
        &self,
        value: &mut CpuStorage,
        layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (value, gradient) = slices(value, layout, gradient, gradient_layout)?;
        /// Blocks of one task.
        const BLOCKS: usize = 64;
        let update = self.update;
        let (signed, unsigned) = (Code::signed(), Code::unsigned());
        let mut first = self.first.borrow_mut();
        let mut second = self.second.borrow_mut();
        let (first, second) = (&mut **first, &mut **second);
        value
            .par_chunks_mut(BLOCKS * BLOCK)
            .zip(gradient.par_chunks(BLOCKS * BLOCK))
            .zip(
                first.bytes.par_chunks_mut(BLOCKS * BLOCK).zip(first.absmax.par_chunks_mut(BLOCKS)),
            )
            .zip(
                second
                    .bytes
                    .par_chunks_mut(BLOCKS * BLOCK)
                    .zip(second.absmax.par_chunks_mut(BLOCKS)),
            )
            .each(|(((value, gradient), (first, first_max)), (second, second_max))| {
                let (mut m, mut v) = ([0f32; BLOCK], [0f32; BLOCK]);
                let blocks = value.chunks_mut(BLOCK).zip(gradient.chunks(BLOCK));
                let firsts = first.chunks_mut(BLOCK).zip(first_max);
                let seconds = second.chunks_mut(BLOCK).zip(second_max);
                for (((value, gradient), (first, first_max)), (second, second_max)) in
                    blocks.zip(firsts).zip(seconds)
                {
                    let (m, v) = (&mut m[..value.len()], &mut v[..value.len()]);
                    signed.decode(first, *first_max, m);
                    unsigned.decode(second, *second_max, v);
                    for (((value, gradient), m), v) in
                        value.iter_mut().zip(gradient).zip(m.iter_mut()).zip(v.iter_mut())
                    {
                        update.apply(value, *gradient, m, v);
                    }
                    *first_max = signed.encode(m, first);
                    *second_max = unsigned.encode(v, second);
                }
            });
        Ok(())
    }
}

/// The values of a parameter and of its gradient.
fn slices<'a>(
    value: &'a mut CpuStorage,
    layout: &Layout,
    gradient: &'a CpuStorage,
    gradient_layout: &Layout,
) -> candle_core::Result<(&'a mut [f32], &'a [f32])> {
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
    Ok((value, gradient))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::train::parameter::Part;

    #[test]
    fn norms_and_biases_do_not_decay() {
        for name in [
            "model.layers.0.input_layernorm.weight",
            "model.norm.weight",
            "model.layers.1.mlp.up_proj.bias",
        ] {
            assert!(!decays(name), "{name}");
        }
        for name in [
            "model.embed_tokens.weight",
            "model.layers.0.self_attn.q_proj.lora_A",
            "lm_head.weight",
        ] {
            assert!(decays(name), "{name}");
        }
        let parameter = |name: &str| Parameter {
            name: name.to_owned(),
            var: Var::new(&[1f32], &Device::Cpu).unwrap(),
            part: Part::Head,
        };
        let parameters = Parameters::new(vec![parameter("model.norm.weight"), parameter("w")]);
        let mut gradients = Gradients::new(&parameters);
        for index in 0..2 {
            gradients.add(index, Tensor::new(&[0f32], &Device::Cpu).unwrap()).unwrap();
        }
        AdamW::new(AdamWConfig { weight_decay: 0.5, ..Default::default() })
            .step(&parameters, &gradients, 0.1, 1.0)
            .unwrap();
        let values: Vec<f32> =
            parameters.iter().map(|parameter| parameter.var.to_vec1::<f32>().unwrap()[0]).collect();
        assert_eq!(values, [1.0, 0.95]);
    }

    /// On a noisy quadratic, 8-bit moments follow the f32 ones closely, and a saved state goes on
    /// bit for bit.
    #[test]
    fn eight_bits_follow_f32_and_survive_being_saved() {
        const COUNT: usize = 3 * eight_bit::LEAST + 77;
        let noise =
            |step: usize, i: usize| ((step * 7919 + i * 104_729) % 1000) as f32 / 1000.0 - 0.5;
        let goal = |i: usize| (i as f32 * 0.01).sin();
        let new =
            |optim| AdamW::new(AdamWConfig { optim, weight_decay: 0.0, ..Default::default() });
        let run = |mut adamw: AdamW, from: usize, to: usize, start: Vec<f32>| {
            let var = Var::from_vec(start, COUNT, &Device::Cpu).unwrap();
            let parameters = Parameters::new(vec![Parameter {
                name: "w".into(),
                var: var.clone(),
                part: Part::Block(0),
            }]);
            for step in from..to {
                let values = var.to_vec1::<f32>().unwrap();
                let gradient: Vec<f32> = values
                    .iter()
                    .enumerate()
                    .map(|(i, v)| v - goal(i) + 0.3 * noise(step, i))
                    .collect();
                let mut gradients = Gradients::new(&parameters);
                gradients.add(0, Tensor::new(gradient, &Device::Cpu).unwrap()).unwrap();
                adamw.step(&parameters, &gradients, 1e-2, 1.0).unwrap();
            }
            (adamw, var.to_vec1::<f32>().unwrap())
        };
        let loss = |values: &[f32]| {
            values.iter().enumerate().map(|(i, v)| f64::from((v - goal(i)).powi(2))).sum::<f64>()
                / COUNT as f64
        };
        let start = vec![0.0; COUNT];
        let (_, exact) = run(new(Optim::AdamW), 0, 60, start.clone());
        let (half, middle) = run(new(Optim::AdamW8bit), 0, 30, start.clone());
        let mut saved = Saved::default();
        let Some(Moments::EightBit { first, second }) = half.moments.get("w") else {
            panic!("not in 8 bits")
        };
        for (key, moment) in [("w.exp_avg", first), ("w.exp_avg_sq", second)] {
            saved.bytes.insert(key.to_owned(), moment.bytes.clone());
            saved.f32s.insert(format!("{key}{ABSMAX}"), moment.absmax.clone());
        }
        let bytes =
            first.bytes.len() + second.bytes.len() + 4 * (first.absmax.len() + second.absmax.len());
        assert!((bytes as f64 / COUNT as f64 - bytes_per_number(Optim::AdamW8bit)).abs() < 0.01);
        let restored = AdamW::restored(half.config, half.steps, saved);
        let (_, whole) = run(half, 30, 60, middle.clone());
        let (_, resumed) = run(restored, 30, 60, middle);
        assert!(whole == resumed);
        let (a, b, before) = (loss(&exact), loss(&whole), loss(&start));
        assert!(a < 0.5 * before && (b / a - 1.0).abs() < 0.05, "{before} -> {a} and {b}");
    }

    #[test]
    fn fused_and_composed_agree() {
        let values: Vec<f32> = (0..40_000).map(|i| (i as f32 * 0.37).sin()).collect();
        let gradient =
            Tensor::new(values.iter().map(|v| v * 3.0 - 0.5).collect::<Vec<_>>(), &Device::Cpu)
                .unwrap();
        let var = || Var::new(values.as_slice(), &Device::Cpu).unwrap();
        let parameters =
            Parameters::new(vec![Parameter { name: "w".into(), var: var(), part: Part::Block(0) }]);
        let composed = Parameter { name: "w".into(), var: var(), part: Part::Block(0) };
        let (mut first, mut second) =
            (gradient.zeros_like().unwrap(), gradient.zeros_like().unwrap());
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
