//! Root-mean-square normalisation in one pass over each row; the backward pass computes the row's
//! scale again.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::cpu::crew::Each;
use crate::cpu::math::lanes;
use crate::cpu::{CHUNK, Values, multiversion, uninit};
use crate::operation::{Buffer, Operation, Slot, node};
use crate::{norm, profile};

/// See [`crate::rms_norm`].
pub(crate) fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    let (x, w, eps) = (x.contiguous()?, w.contiguous()?, eps as f32);
    let y = forward(&Values::of(&x)?, &Values::of(&w)?, eps);
    let shape = x.shape().clone();
    if w.track_op() {
        node(RmsNorm { w: None, eps }, &[&x, &w], y, shape)
    } else {
        node(RmsNorm { w: Some(w), eps }, &[&x], y, shape)
    }
}

struct RmsNorm {
    /// A frozen weight; a trained one is the second input.
    w: Option<Tensor>,
    eps: f32,
}

impl Operation for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn reads_input(&self, _: usize) -> bool {
        true
    }

    fn remakes(&self) -> bool {
        true
    }

    fn remake(&self, inputs: &[Tensor]) -> Result<Vec<f32>> {
        let w = self.w.as_ref().unwrap_or(&inputs[inputs.len() - 1]);
        Ok(forward(&Values::of(&inputs[0])?, &Values::of(w)?, self.eps))
    }

    fn backward(&self, inputs: &[Tensor], _: &Tensor, dy: Buffer, into: &mut [Slot]) -> Result<()> {
        let x = Values::of(&inputs[0])?;
        let weight = self.w.is_none();
        let w = Values::of(self.w.as_ref().unwrap_or(&inputs[inputs.len() - 1]))?;
        let before = into[0].take();
        let (dx, [dw]) = norm::backward(before, &x, &dy, (w.len(), weight), |rows, [dw]| {
            backward_rows(rows.dx, rows.accumulate, dw, rows.x, &w, rows.dy, self.eps);
        });
        into[0].set(dx);
        if weight {
            into[1].add(dw);
        }
        Ok(())
    }
}

fn forward(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let _time = profile::time("rms_norm", "forward");
    let n = w.len();
    // SAFETY: every row is written.
    let mut y = unsafe { uninit(x.len()) };
    let rows = (CHUNK / n).max(1) * n;
    y.par_chunks_mut(rows).zip(x.par_chunks(rows)).each(|(y, x)| forward_rows(y, x, w, eps));
    y
}

multiversion! {
    /// `y = x / √(mean(x²) + eps) · w`, row by row.
    pub(super) fn forward_rows(y: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
        let n = w.len();
        for (y, x) in y.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
            let inverse = 1. / (lanes(n, |i| x[i] * x[i]) / n as f32 + eps).sqrt();
            for i in 0..n {
                y[i] = x[i] * inverse * w[i];
            }
        }
    }
}

multiversion! {
    /// `dx = (w∘dy − x · mean(w∘dy∘x) · i²) · i` with `i = 1/√(mean(x²) + eps)`; added to `dx` if
    /// `accumulate`; `dw += dy∘x·i` unless `dw` is empty.
    pub(super) fn backward_rows(dx: &mut [f32], accumulate: bool, dw: &mut [f32], x: &[f32], w: &[f32], dy: &[f32], eps: f32) {
        let n = w.len();
        for ((dx, x), dy) in dx.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(dy.chunks_exact(n)) {
            let inverse = 1. / (lanes(n, |i| x[i] * x[i]) / n as f32 + eps).sqrt();
            let along = lanes(n, |i| w[i] * dy[i] * x[i]) / n as f32 * inverse * inverse;
            if accumulate {
                for i in 0..n {
                    dx[i] += (w[i] * dy[i] - x[i] * along) * inverse;
                }
            } else {
                for i in 0..n {
                    dx[i] = (w[i] * dy[i] - x[i] * along) * inverse;
                }
            }
            for (i, dw) in dw.iter_mut().enumerate() {
                *dw += dy[i] * x[i] * inverse;
            }
        }
    }
}
