//! Normalisation to mean 0 and variance 1: composed, forward and backward, reduced in f32.

use candle_core::{D, DType, Result, Tensor};

use super::node::{Composed, node};
use crate::{cuda, profile};

/// See [`crate::layer_norm`].
pub fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    let y = {
        let _time = profile::time("layer_norm", "forward");
        let dtype = x.dtype();
        let [x, w, b] = [x, w, b].map(|part| part.detach().to_dtype(dtype)?.contiguous());
        let (x, w, b) = (x?, w?, b?);
        match cuda::layer_norm(&x, &w, &b, eps)? {
            Some(y) => y,
            None => normed(&x, eps)?.0.to_dtype(dtype)?.broadcast_mul(&w)?.broadcast_add(&b)?,
        }
    };
    if w.track_op() || b.track_op() {
        node(LayerNorm { frozen: None, eps }, &[x, w, b], y)
    } else {
        node(LayerNorm { frozen: Some(w.clone()), eps }, &[x], y)
    }
}

/// `(x − mean) · i`, and `i = 1/√(variance + eps)` of each row, in f32.
fn normed(x: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let x = x.detach().to_dtype(DType::F32)?;
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let inverse = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    Ok((centred.broadcast_mul(&inverse)?, inverse))
}

struct LayerNorm {
    /// The scale, unless it or the shift is trained: then they are the second and third input.
    frozen: Option<Tensor>,
    eps: f64,
}

impl Composed for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn backward(&self, inputs: &[Tensor], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let w = match &self.frozen {
            Some(w) => w.detach(),
            None => inputs[1].detach(),
        };
        if self.frozen.is_some() {
            let (x, w) = (inputs[0].detach().contiguous()?, w.to_dtype(dy.dtype())?.contiguous()?);
            if let Some(dx) = cuda::layer_norm_backward(&x, &w, dy, self.eps)? {
                return Ok(vec![Some(dx)]);
            }
        }
        let n = w.dim(0)?;
        // [.., n] -> [rows, n], [rows, 1]
        let (h, inverse) = normed(&inputs[0].detach().reshape(((), n))?, self.eps)?;
        let dy = dy.to_dtype(DType::F32)?.reshape(((), n))?;
        let mut found = vec![None; inputs.len()];
        if inputs[0].track_op() {
            // dx = (g − mean(g) − h · mean(g∘h)) · i with g = w∘dy
            let g = dy.broadcast_mul(&w.to_dtype(DType::F32)?)?;
            let along = (&g * &h)?.mean_keepdim(D::Minus1)?;
            let dx =
                g.broadcast_sub(&g.mean_keepdim(D::Minus1)?)?.sub(&h.broadcast_mul(&along)?)?;
            let dx = dx.broadcast_mul(&inverse)?;
            found[0] = Some(dx.to_dtype(inputs[0].dtype())?.reshape(inputs[0].shape())?);
        }
        if self.frozen.is_none() {
            // dw = Σ dy∘h and db = Σ dy over the rows
            found[1] = Some((&dy * h)?.sum(0)?.to_dtype(inputs[1].dtype())?);
            found[2] = Some(dy.sum(0)?.to_dtype(inputs[2].dtype())?);
        }
        Ok(found)
    }
}
