//! Activation functions of feed-forward networks.

use candle_core::Tensor;

use crate::error::Result;
use tunebook_ops::{self as ops, Gate};

/// The non-linear function of a feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    /// `x · sigmoid(x)`
    Silu,
    /// With the error function.
    Gelu,
    /// GELU's approximation with a hyperbolic tangent.
    GeluTanh,
    /// `max(x, 0)`
    Relu,
}

impl Activation {
    /// The names that [`Activation::from_name`] knows.
    pub(crate) const KNOWN: &str = "silu, gelu, gelu_new, gelu_pytorch_tanh, relu";

    /// By Hugging Face's name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Self::Silu,
            "gelu" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Self::GeluTanh,
            "relu" => Self::Relu,
            _ => return None,
        })
    }

    /// # Shapes
    /// Any, which is the result's.
    pub(crate) fn forward(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Silu => x.silu()?,
            Self::Gelu => x.gelu_erf()?,
            Self::GeluTanh => x.gelu()?,
            Self::Relu => x.relu()?,
        })
    }

    /// `activation(gate) · up`
    pub(crate) fn gate(self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let how = match self {
            Self::Silu => Gate::Silu,
            Self::Gelu => Gate::Gelu,
            Self::GeluTanh => Gate::GeluTanh,
            Self::Relu => return Ok((gate.relu()? * up)?),
        };
        Ok(ops::gated(gate, up, how)?)
    }
}
