//! Root-mean-square normalisation in one pass over each row; the backward pass computes the row's scale again.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::math::lanes;
use super::cpu::{CHUNK, Values, multiversion, uninit, values};
use super::flat;

/// See [`super::rms_norm`].
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    let (x, eps) = (x.contiguous()?, eps as f32);
    if w.track_op() {
        return x.apply_op2(&w.contiguous()?, Trained { eps });
    }
    let op = Frozen { w: w.contiguous()?, eps };
    if x.track_op() { x.apply_op1(op) } else { x.apply_op1_no_bwd(&op) }
}

struct Frozen {
    w: Tensor,
    eps: f32,
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "rms-norm-frozen"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _time = super::profile::time("rms_norm forward");
        let w = Values::of(&self.w)?;
        Ok((CpuStorage::F32(forward(values(x, layout)?, &w, self.eps)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let _time = super::profile::time("rms_norm backward");
        let dy = flat(dy)?;
        let (dx, _) = backward(&Values::of(x)?, &Values::of(&self.w)?, &Values::of(&dy)?, self.eps, false);
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}

struct Trained {
    eps: f32,
}

impl CustomOp2 for Trained {
    fn name(&self) -> &'static str {
        "rms-norm-trained"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let _time = super::profile::time("rms_norm forward");
        Ok((CpuStorage::F32(forward(values(x, lx)?, values(w, lw)?, self.eps)), lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let _time = super::profile::time("rms_norm backward");
        let dy = flat(dy)?;
        let (dx, dw) = backward(&Values::of(x)?, &Values::of(w)?, &Values::of(&dy)?, self.eps, true);
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        let dw = Tensor::from_vec(dw, w.shape(), w.device())?;
        Ok((Some(dx), Some(dw)))
    }
}

fn forward(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let n = w.len();
    // SAFETY: every row is written.
    let mut y = unsafe { uninit(x.len()) };
    let rows = (CHUNK / n).max(1) * n;
    y.par_chunks_mut(rows).zip(x.par_chunks(rows)).for_each(|(y, x)| forward_rows(y, x, w, eps));
    y
}

/// Gradients of `x` and, if asked for, of `w` (empty otherwise).
fn backward(x: &[f32], w: &[f32], dy: &[f32], eps: f32, weight: bool) -> (Vec<f32>, Vec<f32>) {
    let n = w.len();
    // SAFETY: every row is written.
    let mut dx = unsafe { uninit(x.len()) };
    let rows = (CHUNK / n).max(1) * n;
    let parts: Vec<Vec<f32>> = dx
        .par_chunks_mut(rows)
        .zip(x.par_chunks(rows))
        .zip(dy.par_chunks(rows))
        .map(|((dx, x), dy)| {
            let mut dw = vec![0.; if weight { n } else { 0 }];
            backward_rows(dx, &mut dw, x, w, dy, eps);
            dw
        })
        .collect();
    let mut dw = vec![0.; if weight { n } else { 0 }];
    // In order, so that a run repeats bit for bit.
    for part in &parts {
        super::cpu::math::add_scaled(&mut dw, 1., part);
    }
    (dx, dw)
}

multiversion! {
    /// `y = x / √(mean(x²) + eps) · w`, row by row.
    pub fn forward_rows(y: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
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
    /// `dx = (w∘dy − x · mean(w∘dy∘x) · i²) · i` with `i = 1/√(mean(x²) + eps)`; `dw += dy∘x·i` unless `dw` is empty.
    pub fn backward_rows(dx: &mut [f32], dw: &mut [f32], x: &[f32], w: &[f32], dy: &[f32], eps: f32) {
        let n = w.len();
        for ((dx, x), dy) in dx.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(dy.chunks_exact(n)) {
            let inverse = 1. / (lanes(n, |i| x[i] * x[i]) / n as f32 + eps).sqrt();
            let along = lanes(n, |i| w[i] * dy[i] * x[i]) / n as f32 * inverse * inverse;
            for i in 0..n {
                dx[i] = (w[i] * dy[i] - x[i] * along) * inverse;
            }
            for (i, dw) in dw.iter_mut().enumerate() {
                *dw += dy[i] * x[i] * inverse;
            }
        }
    }
}
