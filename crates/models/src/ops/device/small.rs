//! The elementwise operations: gated activation and residual connection.

use candle_core::{DType, Result, Tensor};

use super::node::{Composed, node};
use crate::ops::{cuda, profile};

/// See [`crate::ops::swiglu`].
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let y = {
        let _time = profile::time("swiglu", "forward");
        let (gate, up) = (gate.detach(), up.detach());
        match cuda::swiglu(&gate.contiguous()?, &up.contiguous()?)? {
            Some(y) => y,
            None => gate.silu()?.mul(&up)?,
        }
    };
    node(Swiglu, &[gate, up], y)
}

struct Swiglu;

impl Composed for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn backward(&self, inputs: &[Tensor], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let [gate, up] = inputs else { return Ok(Vec::new()) };
        let narrow = |x: &Tensor| x.detach().contiguous();
        if let Some([dgate, dup]) = cuda::swiglu_backward(&narrow(gate)?, &narrow(up)?, dy)? {
            return Ok(vec![Some(dgate), Some(dup)]);
        }
        let wide = |x: &Tensor| x.detach().to_dtype(DType::F32);
        let (g, dy) = (wide(gate)?, wide(dy)?);
        let sigmoid = candle_nn::ops::sigmoid(&g.contiguous()?)?;
        // d up = dy · gate · σ
        let dup = ((&dy * &g)? * &sigmoid)?;
        // d gate = dy · up · σ · (1 + gate · (1 − σ))
        let slope = (&sigmoid * ((g * (1. - &sigmoid)?)? + 1.)?)?;
        let dgate = ((dy * wide(up)?)? * slope)?;
        Ok(vec![Some(dgate.to_dtype(gate.dtype())?), Some(dup.to_dtype(up.dtype())?)])
    }
}

/// See [`crate::ops::add`].
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
