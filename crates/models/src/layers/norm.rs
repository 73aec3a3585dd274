//! Normalisations.

use std::sync::Arc;

use candle_core::Tensor;

use crate::error::Result;
use crate::layers::Weight;
use crate::pass::Pass;
use tunebook_ops as ops;

/// Root-mean-square normalisation with a learned scale.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Arc<Weight>,
    eps: f64,
    /// Added to the weight: 1 in Gemma, whose weights are stored as their difference from 1.
    offset: f64,
}

impl RmsNorm {
    /// # Shapes
    /// `weight` `[n]`.
    pub fn new(weight: Arc<Weight>, eps: f64) -> Self {
        Self { weight, eps, offset: 0.0 }
    }

    /// The same, with the scale `1 + weight`.
    pub(crate) fn around_one(weight: Arc<Weight>, eps: f64) -> Self {
        Self { weight, eps, offset: 1.0 }
    }
}

/// Normalisation to mean 0 and variance 1 (<https://arxiv.org/abs/1607.06450>) with a learned scale
/// and shift.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Arc<Weight>,
    bias: Arc<Weight>,
    eps: f64,
}

impl LayerNorm {
    /// # Shapes
    /// `weight` and `bias` `[n]`.
    pub fn new(weight: Arc<Weight>, bias: Arc<Weight>, eps: f64) -> Self {
        Self { weight, bias, eps }
    }
}

/// A normalisation over the last dimension.
pub(crate) trait Norm {
    /// # Shapes
    /// `[.., n]` -> `[.., n]`, reduced in f32.
    ///
    /// # Errors
    /// When the last dimension of `x` is not `n`.
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor>;
}

impl Norm for RmsNorm {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        pass.by_overlay(
            x,
            |overlay| overlay.weight(&self.weight).is_some(),
            |x, context| {
                let weight = context.tensor(&self.weight)?;
                let weight = if self.offset == 0.0 { weight } else { (weight + self.offset)? };
                Ok(ops::rms_norm(x, &weight, self.eps)?)
            },
        )
    }
}

impl Norm for LayerNorm {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        pass.by_overlay(
            x,
            |overlay| {
                overlay.weight(&self.weight).is_some() || overlay.weight(&self.bias).is_some()
            },
            |x, context| {
                let (weight, bias) = (context.tensor(&self.weight)?, context.tensor(&self.bias)?);
                Ok(ops::layer_norm(x, &weight, &bias, self.eps)?)
            },
        )
    }
}
