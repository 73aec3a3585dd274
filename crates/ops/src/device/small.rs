//! The elementwise operations: gated activation and residual connection.

use candle_core::{DType, Result, Tensor};

use super::node::{Composed, node};
use crate::{Gate, cuda, naive, profile};

/// See [`crate::gated`].
pub fn gated(gate: &Tensor, up: &Tensor, how: Gate) -> Result<Tensor> {
    let y = {
        let _time = profile::time(how.name(), "forward");
        let (gate, up) = (gate.detach(), up.detach());
        match cuda::gated(&gate.contiguous()?, &up.contiguous()?, how)? {
            Some(y) => y,
            None => naive::gated(&gate, &up, how)?,
        }
    };
    node(how, &[gate, up], y)
}

impl Composed for Gate {
    fn name(&self) -> &'static str {
        Self::name(*self)
    }

    fn backward(&self, inputs: &[Tensor], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let [gate, up] = inputs else { return Ok(Vec::new()) };
        let narrow = |x: &Tensor| x.detach().contiguous();
        if let Some([dgate, dup]) = cuda::gated_backward(&narrow(gate)?, &narrow(up)?, dy, *self)? {
            return Ok(vec![Some(dgate), Some(dup)]);
        }
        let wide = |x: &Tensor| x.detach().to_dtype(DType::F32)?.contiguous();
        let (value, slope) = value_and_slope(*self, &wide(gate)?)?;
        let dy = wide(dy)?;
        let dup = (&dy * value)?;
        let dgate = ((dy * wide(up)?)? * slope)?;
        Ok(vec![Some(dgate.to_dtype(gate.dtype())?), Some(dup.to_dtype(up.dtype())?)])
    }
}

/// The activation and its derivative at each value of `x`.
fn value_and_slope(how: Gate, x: &Tensor) -> Result<(Tensor, Tensor)> {
    match how {
        Gate::Silu => {
            // σ · (1 + x · (1 − σ))
            let sigmoid = candle_nn::ops::sigmoid(x)?;
            let slope = (&sigmoid * ((x * (1. - &sigmoid)?)? + 1.)?)?;
            Ok(((x * sigmoid)?, slope))
        }
        Gate::GeluTanh => {
            // x/2 · (1 + tanh u) = x · σ(2u): σ + x · σ · (1 − σ) · 2u′
            let double = 2. * (2. / std::f64::consts::PI).sqrt();
            let square = x.sqr()?;
            let sigmoid = candle_nn::ops::sigmoid(
                &((x * (&square * 0.044_715)?.affine(1., 1.)?)? * double)?,
            )?;
            let inner = square.affine(3. * 0.044_715 * double, double)?;
            let value = (x * &sigmoid)?;
            let slope = (&sigmoid + ((&value * (1. - &sigmoid)?)? * inner)?)?;
            Ok((value, slope))
        }
        Gate::Gelu => {
            // Φ + x · φ
            let below = ((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.)?.affine(0.5, 0.)?;
            let bell =
                (x.sqr()? * -0.5)?.exp()?.affine((2. * std::f64::consts::PI).sqrt().recip(), 0.)?;
            Ok(((x * &below)?, (below + (x * bell)?)?))
        }
    }
}

/// See [`crate::add`].
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let sum = {
        let _time = profile::time("add", "forward");
        (x.detach() + y.detach())?
    };
    node(Add, &[x, y], sum)
}

struct Add;

impl Composed for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn backward(&self, _: &[Tensor], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(dy.clone()), Some(dy.clone())])
    }
}
