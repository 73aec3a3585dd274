//! Normalisation to mean 0 and variance 1, in one pass over each row; the backward pass computes
//! the row's mean and scale again.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::cpu::crew::Each;
use crate::cpu::math::lanes;
use crate::cpu::{CHUNK, Values, multiversion, uninit};
use crate::operation::{Buffer, Operation, Slot, node};
use crate::{norm, profile};

/// See [`crate::layer_norm`].
pub(crate) fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    let (x, w, b, eps) = (x.contiguous()?, w.contiguous()?, b.contiguous()?, eps as f32);
    let y = forward(&Values::of(&x)?, &Values::of(&w)?, &Values::of(&b)?, eps);
    let shape = x.shape().clone();
    if w.track_op() || b.track_op() {
        node(LayerNorm { frozen: None, eps }, &[&x, &w, &b], y, shape)
    } else {
        node(LayerNorm { frozen: Some([w, b]), eps }, &[&x], y, shape)
    }
}

struct LayerNorm {
    /// Scale and shift, unless one of them is trained: then they are the second and third input.
    frozen: Option<[Tensor; 2]>,
    eps: f32,
}

impl LayerNorm {
    fn scale_and_shift<'a>(&'a self, inputs: &'a [Tensor]) -> (&'a Tensor, &'a Tensor) {
        match &self.frozen {
            Some([w, b]) => (w, b),
            None => (&inputs[1], &inputs[2]),
        }
    }
}

impl Operation for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn reads_input(&self, _: usize) -> bool {
        true
    }

    fn remakes(&self) -> bool {
        true
    }

    fn remake(&self, inputs: &[Tensor]) -> Result<Vec<f32>> {
        let (w, b) = self.scale_and_shift(inputs);
        Ok(forward(&Values::of(&inputs[0])?, &Values::of(w)?, &Values::of(b)?, self.eps))
    }

    fn backward(&self, inputs: &[Tensor], _: &Tensor, dy: Buffer, into: &mut [Slot]) -> Result<()> {
        let x = Values::of(&inputs[0])?;
        let w = Values::of(self.scale_and_shift(inputs).0)?;
        let before = into[0].take();
        let trained = self.frozen.is_none();
        let (dx, gradients) =
            norm::backward(before, &x, &dy, (w.len(), trained), |rows, [dw, db]| {
                backward_rows(rows.dx, rows.accumulate, dw, db, rows.x, &w, rows.dy, self.eps);
            });
        into[0].set(dx);
        for (slot, gradient) in into.iter_mut().skip(1).zip(gradients) {
            if slot.wanted() {
                slot.add(gradient);
            }
        }
        Ok(())
    }
}

fn forward(x: &[f32], w: &[f32], b: &[f32], eps: f32) -> Vec<f32> {
    let _time = profile::time("layer_norm", "forward");
    // SAFETY: every row is written.
    let mut y = unsafe { uninit(x.len()) };
    let rows = (CHUNK / w.len()).max(1) * w.len();
    y.par_chunks_mut(rows).zip(x.par_chunks(rows)).each(|(y, x)| forward_rows(y, x, w, b, eps));
    y
}

/// Mean of a row, and `1/√(variance + eps)`.
#[inline(always)]
fn statistics(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len();
    let mean = lanes(n, |i| x[i]) / n as f32;
    let variance = lanes(n, |i| (x[i] - mean) * (x[i] - mean)) / n as f32;
    (mean, 1. / (variance + eps).sqrt())
}

multiversion! {
    /// `y = (x − mean) · i · w + b` with `i = 1/√(variance + eps)`, row by row.
    pub(super) fn forward_rows(y: &mut [f32], x: &[f32], w: &[f32], b: &[f32], eps: f32) {
        let n = w.len();
        let b = &b[..n];
        for (y, x) in y.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
            let (mean, inverse) = statistics(x, eps);
            for i in 0..n {
                y[i] = (x[i] - mean) * inverse * w[i] + b[i];
            }
        }
    }
}

multiversion! {
    /// With `h = (x − mean) · i` and `g = w∘dy`: `dx = (g − mean(g) − h · mean(g∘h)) · i`, added to
    /// `dx` if `accumulate`; `dw += dy∘h` and `db += dy` unless they are empty.
    pub(super) fn backward_rows(
        dx: &mut [f32], accumulate: bool, dw: &mut [f32], db: &mut [f32], x: &[f32], w: &[f32], dy: &[f32], eps: f32,
    ) {
        let n = w.len();
        for ((dx, x), dy) in dx.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(dy.chunks_exact(n)) {
            let (mean, inverse) = statistics(x, eps);
            let level = lanes(n, |i| w[i] * dy[i]) / n as f32;
            let along = lanes(n, |i| w[i] * dy[i] * (x[i] - mean)) / n as f32 * inverse * inverse;
            if accumulate {
                for i in 0..n {
                    dx[i] += (w[i] * dy[i] - level - (x[i] - mean) * along) * inverse;
                }
            } else {
                for i in 0..n {
                    dx[i] = (w[i] * dy[i] - level - (x[i] - mean) * along) * inverse;
                }
            }
            for (i, (dw, db)) in dw.iter_mut().zip(db.iter_mut()).enumerate() {
                *dw += dy[i] * (x[i] - mean) * inverse;
                *db += dy[i];
            }
        }
    }
}
