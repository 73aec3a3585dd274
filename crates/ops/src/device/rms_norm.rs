//! Root-mean-square normalisation: forward by candle's own kernel, backward composed, both reduced
//! in f32.

use candle_core::{D, DType, Result, Tensor};

use super::node::{Composed, node};
use crate::{cuda, profile};

/// See [`crate::rms_norm`].
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    let y = {
        let _time = profile::time("rms_norm", "forward");
        let (x, w) = (x.detach().contiguous()?, w.detach().to_dtype(x.dtype())?.contiguous()?);
        match cuda::rms_norm(&x, &w, eps)? {
            Some(y) => y,
            None => candle_nn::ops::rms_norm(&x, &w, eps as f32)?,
        }
    };
    if w.track_op() {
        node(RmsNorm { frozen: None, eps }, &[x, w], y)
    } else {
        node(RmsNorm { frozen: Some(w.clone()), eps }, &[x], y)
    }
}

struct RmsNorm {
    /// The weight, unless it is the second input.
    frozen: Option<Tensor>,
    eps: f64,
}

impl Composed for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn backward(&self, inputs: &[Tensor], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let w = self.frozen.as_ref().unwrap_or(&inputs[inputs.len() - 1]).detach();
        if self.frozen.is_some() {
            let (x, w) = (inputs[0].detach().contiguous()?, w.to_dtype(dy.dtype())?.contiguous()?);
            if let Some(dx) = cuda::rms_norm_backward(&x, &w, dy, self.eps)? {
                return Ok(vec![Some(dx)]);
            }
        }
        let n = w.dim(0)?;
        // [.., n] -> [rows, n]
        let x = inputs[0].detach().to_dtype(DType::F32)?.reshape(((), n))?;
        let dy = dy.to_dtype(DType::F32)?.reshape(((), n))?;
        // 1/√(mean(x²) + eps), [rows, 1]
        let inverse = (x.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?.recip()?;
        let mut found = vec![None; inputs.len()];
        if inputs[0].track_op() {
            // dx = (w∘dy − x · mean(w∘dy∘x) · i²) · i
            let wdy = dy.broadcast_mul(&w.to_dtype(DType::F32)?)?;
            let along = ((&wdy * &x)?.mean_keepdim(D::Minus1)? * inverse.sqr()?)?;
            let dx = (wdy - x.broadcast_mul(&along)?)?.broadcast_mul(&inverse)?;
            found[0] = Some(dx.to_dtype(inputs[0].dtype())?.reshape(inputs[0].shape())?);
        }
        if self.frozen.is_none() {
            // dw = Σ dy∘x·i over the rows
            let dw = (dy * x)?.broadcast_mul(&inverse)?.sum(0)?;
            found[1] = Some(dw.to_dtype(w.dtype())?);
        }
        Ok(found)
    }
}
