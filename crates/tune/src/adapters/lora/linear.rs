//! A projection with a LoRA update beside it; see [`Lora`] for the formula.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use candle_core::{DType, Device, Tensor, Var};
use rayon::prelude::*;
use tunebook_models::{Linear, Matrix, Projection};
use tunebook_ops as ops;
use tunebook_ops::cpu::crew::Each;

use crate::adapters::lora::svd;
use crate::adapters::lora::{Lora, LoraInit};
use crate::error::{Error, Result};
use crate::train::rng::Stream;

/// What all layers of one adapter share while it is used: whether it is being trained, and which
/// dropout mask is due.
#[derive(Debug, Default)]
pub(crate) struct Mode {
    /// Dropout is on.
    training: AtomicBool,
    /// A and B are variables of the graph; otherwise no graph is built, and nothing is kept for a
    /// backward pass.
    gradients: Arc<AtomicBool>,
    seed: AtomicU64,
    draw: AtomicU64,
}

impl Mode {
    pub(crate) fn set_training(&self, training: bool) {
        self.training.store(training, Ordering::Relaxed);
    }

    pub(crate) fn set_gradients(&self, gradients: bool) {
        self.gradients.store(gradients, Ordering::Relaxed);
    }

    /// A trained tensor as part of the graph where one is built. Detached elsewhere: generation and
    /// evaluation must not build one that holds every activation.
    pub(crate) fn value(&self, var: &Var) -> Tensor {
        match self.gradients.load(Ordering::Relaxed) {
            true => var.as_tensor().clone(),
            false => var.as_detached_tensor(),
        }
    }

    /// Whether a graph is built, for those who share it.
    pub(crate) fn gradients(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.gradients)
    }

    /// Fixes the dropout masks of the next forward pass: the same numbers give the same masks, so
    /// that a block can be recomputed.
    pub(crate) fn set_draw(&self, seed: u64, draw: u64) {
        self.seed.store(seed, Ordering::Relaxed);
        self.draw.store(draw, Ordering::Relaxed);
    }
}

/// A projection with a LoRA update.
#[derive(Debug)]
pub struct LoraLinear {
    path: String,
    base: Arc<Linear>,
    lora_a: Var,
    lora_b: Var,
    /// DoRA's m, `[out]`.
    magnitude: Option<Var>,
    /// A and B as they began, where they were taken out of the base.
    initial: Option<(Tensor, Tensor)>,
    scaling: f64,
    lora_dropout: f64,
    mode: Arc<Mode>,
}

impl LoraLinear {
    /// A new update for `base`, which stays as it is.
    ///
    /// # Shapes
    /// A `[r, in]`, B `[out, r]`, both f32 on the base's device.
    pub(crate) fn new(
        path: &str,
        base: Arc<Linear>,
        config: &Lora,
        mode: Arc<Mode>,
    ) -> Result<Self> {
        let (r, scaling) = config.rank_and_scaling(path)?;
        let (input, output) = (base.in_features(), base.out_features());
        let device = base.matrix().device().clone();
        let random = |shape, name: &str| {
            uniform(shape, config.init_seed, &format!("{path}.{name}"), &device)
        };
        let (lora_a, lora_b) = match config.lora_init {
            LoraInit::Kaiming if config.init_lora_weights => {
                (random((r, input), "lora_A")?, Tensor::zeros((output, r), DType::F32, &device)?)
            }
            LoraInit::Kaiming => (random((r, input), "lora_A")?, random((output, r), "lora_B")?),
            LoraInit::Gaussian => {
                let mut stream = Stream::new(config.init_seed, &format!("{path}.lora_A"), 0);
                let values: Vec<f32> = (0..r * input).map(|_| stream.normal() / r as f32).collect();
                let a = Tensor::from_vec(values, (r, input), &device)?;
                (a, Tensor::zeros((output, r), DType::F32, &device)?)
            }
            LoraInit::Pissa => svd::principal(&base.weight(), r, scaling)?,
            LoraInit::Olora => svd::orthogonal(&base.weight(), r)?,
        };
        let mut base = base;
        let mut initial = None;
        if config.lora_init.takes_from_base() {
            // What is left would have to be quantised anew, and merging could not give the base
            // back.
            if let Matrix::Quantized(blocks) = base.matrix() {
                return Err(Error::Config {
                    field: "lora_init",
                    value: format!(
                        "{:?} on `{path}`, kept in {}",
                        config.lora_init,
                        blocks.format()
                    ),
                    expected: "Kaiming or Gaussian on a quantised base: the other kinds change the base's own weights",
                });
            }
            let weight = base.weight();
            let taken = (lora_b.matmul(&lora_a)? * scaling)?.to_dtype(weight.dtype())?;
            base = Arc::new(base.with_weight((weight - taken)?));
            initial = Some((lora_a.clone(), lora_b.clone()));
        }
        let magnitude = match config.use_dora {
            true => {
                let delta = (lora_b.matmul(&lora_a)? * scaling)?;
                Some(Var::from_tensor(&row_norms(
                    &(base.weight().to_dtype(DType::F32)? + delta)?,
                )?)?)
            }
            false => None,
        };
        Ok(Self {
            path: path.to_owned(),
            base,
            lora_a: Var::from_tensor(&lora_a)?,
            lora_b: Var::from_tensor(&lora_b)?,
            magnitude,
            initial,
            scaling,
            lora_dropout: config.lora_dropout,
            mode,
        })
    }

    /// The projection's path in the model.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A, `[r, in]`.
    pub fn lora_a(&self) -> &Var {
        &self.lora_a
    }

    /// B, `[out, r]`.
    pub fn lora_b(&self) -> &Var {
        &self.lora_b
    }

    /// The factor on `B·A`.
    pub fn scaling(&self) -> f64 {
        self.scaling
    }

    /// DoRA's length of each row, `[out]`.
    pub fn magnitude(&self) -> Option<&Var> {
        self.magnitude.as_ref()
    }

    /// A and B of the plain LoRA that does the same on the model's own weights: A and B themselves,
    /// or, where they began with a part of the base, `[A; A₀]` and `[B, −B₀]`, of twice the rank
    /// and twice the scaling's alpha.
    pub(crate) fn plain(&self) -> Result<(Tensor, Tensor)> {
        let (a, b) = (self.lora_a.as_detached_tensor(), self.lora_b.as_detached_tensor());
        Ok(match &self.initial {
            Some((a0, b0)) => (Tensor::cat(&[&a, a0], 0)?, Tensor::cat(&[b, b0.neg()?], 1)?),
            None => (a, b),
        })
    }

    /// `scaling · B·A`, `[out, in]`: the update as one matrix, without what DoRA does to it.
    pub fn delta_weight(&self) -> Result<Tensor> {
        let delta = self.lora_b.as_detached_tensor().matmul(&self.lora_a.as_detached_tensor())?;
        Ok((delta * self.scaling)?)
    }

    /// The base with the update added to its weight: one plain projection, as fast as the base.
    pub fn merged(&self) -> Result<Linear> {
        let weight = self.base.weight();
        let mut merged = (&weight + self.delta_weight()?.to_dtype(weight.dtype())?)?;
        if let Some(magnitude) = &self.magnitude {
            let f32s = merged.to_dtype(DType::F32)?;
            let lengths = (magnitude.as_detached_tensor() / row_norms(&f32s)?)?;
            // [out] -> [out, 1]
            merged = f32s.broadcast_mul(&lengths.unsqueeze(1)?)?.to_dtype(weight.dtype())?;
        }
        Ok(self.base.with_weight(merged))
    }
}

impl Mode {
    /// A mask of 0 and 1/(1 − p) like `x` for the module at `path`, or `None` where nothing is
    /// dropped.
    pub(crate) fn dropout_mask(
        &self,
        path: &str,
        drop: f64,
        x: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        if drop == 0.0 || !self.training.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let seed = self.seed.load(Ordering::Relaxed);
        let draw = self.draw.load(Ordering::Relaxed);
        if !x.device().is_cpu() {
            return device_mask(path, seed, draw, drop, x).map(Some);
        }
        // A stream for each stretch, so that the threads that draw do not change what is drawn.
        const STRETCH: usize = 1 << 14;
        let mut mask = vec![0f32; x.elem_count()];
        mask.par_chunks_mut(STRETCH).enumerate().each(|(stretch, mask)| {
            Stream::new(seed, &format!("{path}.dropout.{stretch}"), draw).dropout(mask, drop);
        });
        Ok(Some(Tensor::from_vec(mask, x.shape(), x.device())?))
    }
}

impl LoraLinear {
    /// DoRA's forward pass, as PEFT's: the base sees x whole, what is learned sees it with its
    /// dropout.
    fn dora(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        magnitude: &Tensor,
        mask: Option<&Tensor>,
    ) -> tunebook_models::Result<Tensor> {
        let (weight, matrix) = (self.base.weight(), self.base.matrix());
        // Detached: the paper takes the norm as a constant, which saves its gradient.
        let delta = (b.detach().matmul(&a.detach())? * self.scaling)?;
        let norms = row_norms(&(weight.to_dtype(DType::F32)? + delta)?)?;
        drop(weight);
        let lengths = (magnitude / norms)?.to_dtype(x.dtype())?;
        let y = match mask {
            None => ops::lora_linear(x, &matrix, None, a, b, self.scaling, None)?
                .broadcast_mul(&lengths)?,
            Some(mask) => {
                let dropped = (x * mask)?;
                let learned = ops::lora_linear(&dropped, &matrix, None, a, b, self.scaling, None)?;
                let base =
                    (ops::linear(x, &matrix, None)? - ops::linear(&dropped, &matrix, None)?)?;
                (learned.broadcast_mul(&lengths)? + base)?
            }
        };
        Ok(match self.base.bias() {
            Some(bias) => y.broadcast_add(&bias)?,
            None => y,
        })
    }
}

/// The length of each row: `[out, in]` -> `[out]`.
fn row_norms(weight: &Tensor) -> candle_core::Result<Tensor> {
    weight.sqr()?.sum(1)?.sqrt()
}

impl Projection for LoraLinear {
    fn forward(&self, x: &Tensor) -> tunebook_models::Result<Tensor> {
        let (a, b) = (self.mode.value(&self.lora_a), self.mode.value(&self.lora_b));
        let mask = self.mode.dropout_mask(&self.path, self.lora_dropout, x)?;
        if let Some(magnitude) = &self.magnitude {
            return self.dora(x, &a, &b, &self.mode.value(magnitude), mask.as_ref());
        }
        let (weight, bias) = (self.base.matrix(), self.base.bias());
        low_rank(x, &weight, bias, &a, &b, self.scaling, mask.as_ref())
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

/// The base and its low-rank update in one operation; a bias that is trained is added by itself, as
/// the operation takes it for a constant.
///
/// # Shapes
/// As [`ops::lora_linear`].
pub(crate) fn low_rank(
    x: &Tensor,
    weight: &Matrix,
    bias: Option<Tensor>,
    a: &Tensor,
    b: &Tensor,
    scaling: f64,
    mask: Option<&Tensor>,
) -> tunebook_models::Result<Tensor> {
    match bias {
        Some(bias) if bias.track_op() => {
            Ok(ops::lora_linear(x, weight, None, a, b, scaling, mask)?.broadcast_add(&bias)?)
        }
        bias => Ok(ops::lora_linear(x, weight, bias.as_ref(), a, b, scaling, mask)?),
    }
}

/// A dropout mask like `x` that is drawn on its device; only a few numbers for each row and column
/// come from the host.
///
/// An element is dropped where `r·x + s (mod 2³²)` lies below the threshold, with `r` (odd) and `s`
/// random for each row and `x` random for each column: any two elements are independent of each
/// other.
fn device_mask(
    path: &str,
    seed: u64,
    draw: u64,
    drop: f64,
    x: &Tensor,
) -> candle_core::Result<Tensor> {
    let width = x.dims().last().copied().unwrap_or(1);
    let rows = x.elem_count() / width.max(1);
    let mut stream = Stream::new(seed, &format!("{path}.dropout.device"), draw);
    let mut numbers =
        |n: usize, set: u32| (0..n).map(|_| stream.bits() | set).collect::<Vec<u32>>();
    let factors = Tensor::from_vec(numbers(rows, 1), (rows, 1), x.device())?;
    let offsets = Tensor::from_vec(numbers(rows, 0), (rows, 1), x.device())?;
    let columns = Tensor::from_vec(numbers(width, 0), (1, width), x.device())?;
    // [rows, width]; u32 arithmetic wraps
    let hash = factors.broadcast_mul(&columns)?.broadcast_add(&offsets)?;
    let threshold = (drop * 4_294_967_296.0) as u32;
    let kept = hash.ge(threshold)?.to_dtype(x.dtype())?;
    (kept * (1.0 / (1.0 - drop)))?.reshape(x.shape())
}

/// Kaiming uniform with a = √5: ±√(6 / ((1 + 5) · fan_in)) = ±1/√fan_in.
fn uniform(shape: (usize, usize), seed: u64, name: &str, device: &Device) -> Result<Tensor> {
    let bound = 1.0 / (shape.1 as f32).sqrt();
    let mut stream = Stream::new(seed, name, 0);
    let values: Vec<f32> =
        (0..shape.0 * shape.1).map(|_| (2.0 * stream.uniform() - 1.0) * bound).collect();
    Ok(Tensor::from_vec(values, shape, device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_drawn_on_the_device_drops_its_part_everywhere_and_repeats() {
        let x = Tensor::zeros((4, 128, 256), DType::F32, &Device::Cpu).unwrap();
        let mask = |draw| {
            device_mask("p", 1, draw, 0.1, &x)
                .unwrap()
                .reshape((512, 256))
                .unwrap()
                .to_vec2::<f32>()
                .unwrap()
        };
        let rows = mask(0);
        assert!(rows == mask(0) && rows != mask(1));
        let dropped =
            |values: &mut dyn Iterator<Item = f32>| values.filter(|value| *value == 0.0).count();
        let all = dropped(&mut rows.iter().flatten().copied());
        assert!((all as f64 / (512.0 * 256.0) - 0.1).abs() < 0.005, "{all}");
        assert!(
            rows.iter().flatten().all(|value| *value == 0.0 || (*value - 1.0 / 0.9).abs() < 1e-6)
        );
        // Neighbours, in a row and in a column, are dropped together as often as chance has it: in
        // one of a hundred cases.
        let (mut right, mut below) = (0, 0);
        for (i, row) in rows.iter().enumerate() {
            for (j, value) in row.iter().enumerate().filter(|(_, value)| **value == 0.0) {
                right += usize::from(row.get(j + 1) == Some(value));
                below += usize::from(rows.get(i + 1).map(|next| next[j]) == Some(*value));
            }
        }
        for pairs in [right, below] {
            assert!((pairs as f64 / (512.0 * 256.0) - 0.01).abs() < 0.002, "{right} {below}");
        }
    }
}
