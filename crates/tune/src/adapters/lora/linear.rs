//! A projection with a LoRA update beside it; see [`Lora`] for the formula.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor, Var};
use tunebook_models::{Context, Linear, LowRank, Matrix, Mode, Projection};
use tunebook_ops as ops;

use crate::adapters::dropout;
use crate::adapters::lora::svd;
use crate::adapters::lora::{Lora, LoraInit};
use crate::error::{Error, Result};
use crate::train::rng::Stream;

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
    known: Mutex<Option<KnownNorms>>,
}

/// The lengths of rows that DoRA divides by, and the A and B that they are of. Computing them takes
/// longer than a step of many answers (docs/measurements.md, "Serving").
#[derive(Debug)]
struct KnownNorms {
    a: Vec<f32>,
    b: Vec<f32>,
    norms: Tensor,
}

impl LoraLinear {
    /// A new update for `base`, which stays as it is.
    ///
    /// # Shapes
    /// A `[r, in]`, B `[out, r]`, both f32 on the base's device.
    pub(crate) fn new(path: &str, base: Arc<Linear>, config: &Lora) -> Result<Self> {
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
            known: Mutex::default(),
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

impl LoraLinear {
    /// DoRA's forward pass, as PEFT's: the base sees x whole, what is learned sees it with its
    /// dropout.
    fn dora(
        &self,
        x: &Tensor,
        [a, b, magnitude]: [&Tensor; 3],
        mask: Option<&Tensor>,
        context: &Context<'_>,
    ) -> tunebook_models::Result<Tensor> {
        let matrix = self.base.matrix_in(context);
        let lengths = self.lengths(a, b, magnitude, context)?.to_dtype(x.dtype())?;
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
        Ok(match self.base.bias_in(context)? {
            Some(bias) => y.broadcast_add(&bias)?,
            None => y,
        })
    }

    /// DoRA's factor of each row, `[out]`: its length by that of the row with the update. The length
    /// is a constant: the paper takes it so, which saves its gradient.
    fn lengths(
        &self,
        a: &Tensor,
        b: &Tensor,
        magnitude: &Tensor,
        context: &Context<'_>,
    ) -> candle_core::Result<Tensor> {
        // On a GPU the comparison would wait for the device.
        let fixed = context.mode() == Mode::default() && self.base.is_as_loaded();
        let norms = match fixed && a.device().is_cpu() {
            true => self.known_norms(a, b)?,
            false => self.norms(a, b)?,
        };
        magnitude / norms
    }

    fn norms(&self, a: &Tensor, b: &Tensor) -> candle_core::Result<Tensor> {
        let delta = (b.detach().matmul(&a.detach())? * self.scaling)?;
        row_norms(&(self.base.weight().to_dtype(DType::F32)? + delta)?)
    }

    /// [`LoraLinear::norms`], computed where A or B is another than the last time.
    fn known_norms(&self, a: &Tensor, b: &Tensor) -> candle_core::Result<Tensor> {
        let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let (a_values, b_values) = (values(a)?, values(b)?);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(KnownNorms { a, b, norms }) = &*known
            && *a == a_values
            && *b == b_values
        {
            return Ok(norms.clone());
        }
        let norms = self.norms(a, b)?;
        *known = Some(KnownNorms { a: a_values, b: b_values, norms: norms.clone() });
        Ok(norms)
    }

    /// `scaling · x·Aᵀ·Bᵀ`: `[.., in]` -> `[.., out]`.
    fn low_rank_of(&self, x: &Tensor, a: &Tensor, b: &Tensor) -> candle_core::Result<Tensor> {
        let low = ops::linear(x, a, None)?;
        ops::linear(&low, b, None)? * self.scaling
    }
}

/// The length of each row: `[out, in]` -> `[out]`.
fn row_norms(weight: &Tensor) -> candle_core::Result<Tensor> {
    weight.sqr()?.sum(1)?.sqrt()
}

impl Projection for LoraLinear {
    fn forward(&self, x: &Tensor, context: &Context<'_>) -> tunebook_models::Result<Tensor> {
        let (a, b) = (context.value(&self.lora_a), context.value(&self.lora_b));
        let mask = dropout::mask(context.mode(), &self.path, self.lora_dropout, x)?;
        if let Some(magnitude) = &self.magnitude {
            let magnitude = context.value(magnitude);
            return self.dora(x, [&a, &b, &magnitude], mask.as_ref(), context);
        }
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
        let (a, b) = (context.value(&self.lora_a), context.value(&self.lora_b));
        let mut y = (y + self.low_rank_of(x, &a, &b)?)?;
        if let Some((a, b)) = &self.initial {
            y = (y - self.low_rank_of(x, a, b)?)?;
        }
        let Some(magnitude) = &self.magnitude else { return Ok(Some(y)) };
        // The bias is no part of what DoRA scales.
        let bias = self.base.bias_in(context)?;
        if let Some(bias) = &bias {
            y = y.broadcast_sub(bias)?;
        }
        let magnitude = context.value(magnitude);
        let lengths = self.lengths(&a, &b, &magnitude, context)?.to_dtype(y.dtype())?;
        y = y.broadcast_mul(&lengths)?;
        Ok(Some(match &bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        }))
    }

    fn low_rank(&self, context: &Context<'_>) -> tunebook_models::Result<Option<Vec<LowRank>>> {
        if self.magnitude.is_some() || context.mode() != Mode::default() {
            return Ok(None);
        }
        let (a, b) = (context.value(&self.lora_a), context.value(&self.lora_b));
        let mut low = vec![LowRank { a, b, scale: self.scaling }];
        if let Some((a, b)) = &self.initial {
            low.push(LowRank { a: a.clone(), b: b.clone(), scale: -self.scaling });
        }
        Ok(Some(low))
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
    use tunebook_models::{Model, Overlay};

    use super::*;

    /// DoRA's output must be the formula's, of the values as they are now; returns it.
    fn assert_follows(dora: &LoraLinear, x: &Tensor) -> Vec<f32> {
        let values = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let expected = values(ops::linear(x, dora.merged().unwrap().weight(), None).unwrap());
        let overlay = Overlay::default();
        let context = Context::new(&overlay, Mode::default());
        let y = ops::linear(x, dora.base.matrix_in(&context), None).unwrap();
        let updated = dora.update(x, &y, &context).unwrap().unwrap();
        for found in [dora.forward(x, &context).unwrap(), updated].map(values) {
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-4, "{found} {expected}");
            }
        }
        expected
    }

    #[test]
    fn doras_lengths_follow_whatever_changes() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/lora_tiny/model");
        let model = Model::load(folder, &Device::Cpu).unwrap();
        let slot = &model.slots()[0];
        let base = Arc::clone(slot.base());
        let config = Lora { r: 2, use_dora: true, init_lora_weights: false, ..Default::default() };
        let dora = LoraLinear::new(slot.path(), Arc::clone(&base), &config).unwrap();
        let tensor =
            |rows, columns, seed| uniform((rows, columns), seed, "test", &Device::Cpu).unwrap();
        let (input, output) = (base.in_features(), base.out_features());
        let x = tensor(3, input, 1);
        let first = assert_follows(&dora, &x);
        assert_eq!(assert_follows(&dora, &x), first, "and again");
        dora.lora_b().set(&tensor(output, 2, 2)).unwrap();
        let second = assert_follows(&dora, &x);
        dora.lora_a().set(&tensor(2, input, 3)).unwrap();
        let third = assert_follows(&dora, &x);
        assert!(first != second && second != third);
        // The base is trained in place.
        let weight = format!("{}.weight", slot.path());
        let weight = model.weights().into_iter().find(|w| w.name().ends_with(&weight)).unwrap();
        let var = Var::from_tensor(&weight.get()).unwrap();
        weight.share(&var).unwrap();
        assert_follows(&dora, &x);
        var.set(&tensor(output, input, 4)).unwrap();
        assert_ne!(assert_follows(&dora, &x), third);
    }
}
