//! Gated activation: both gradients come from one pass that computes the sigmoid again.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::math::sigmoid;
use super::cpu::{CHUNK, Values, multiversion, uninit, values};
use super::flat;

/// See [`super::swiglu`].
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    if gate.track_op() || up.track_op() {
        gate.apply_op2(&up, Swiglu)
    } else {
        gate.apply_op2_no_bwd(&up, &Swiglu)
    }
}

struct Swiglu;

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        lg: &Layout,
        up: &CpuStorage,
        lu: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let _time = super::profile::time("swiglu forward");
        let (gate, up) = (values(gate, lg)?, values(up, lu)?);
        // SAFETY: every chunk is written.
        let mut y = unsafe { uninit(gate.len()) };
        y.par_chunks_mut(CHUNK)
            .zip(gate.par_chunks(CHUNK))
            .zip(up.par_chunks(CHUNK))
            .for_each(|((y, gate), up)| forward(y, gate, up));
        Ok((CpuStorage::F32(y), lg.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let _time = super::profile::time("swiglu backward");
        let dy = flat(dy)?;
        let (g, u, d) = (Values::of(gate)?, Values::of(up)?, Values::of(&dy)?);
        // SAFETY: every chunk of both is written.
        let (mut dg, mut du) = unsafe { (uninit(g.len()), uninit(g.len())) };
        dg.par_chunks_mut(CHUNK)
            .zip(du.par_chunks_mut(CHUNK))
            .zip(g.par_chunks(CHUNK).zip(u.par_chunks(CHUNK)).zip(d.par_chunks(CHUNK)))
            .for_each(|((dg, du), ((g, u), d))| backward(dg, du, g, u, d));
        let dg = Tensor::from_vec(dg, gate.shape(), gate.device())?;
        let du = Tensor::from_vec(du, up.shape(), up.device())?;
        Ok((Some(dg), Some(du)))
    }
}

multiversion! {
    /// `y = gate · σ(gate) · up`
    pub fn forward(y: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
            *y = g * sigmoid(g) * u;
        }
    }
}

multiversion! {
    /// `d gate = dy · up · σ · (1 + gate · (1 − σ))`, `d up = dy · gate · σ`
    pub fn backward(dgate: &mut [f32], dup: &mut [f32], gate: &[f32], up: &[f32], dy: &[f32]) {
        let n = dy.len();
        let (dgate, dup, gate, up) = (&mut dgate[..n], &mut dup[..n], &gate[..n], &up[..n]);
        for i in 0..n {
            let (g, s) = (gate[i], sigmoid(gate[i]));
            dgate[i] = dy[i] * up[i] * s * (1. + g * (1. - s));
            dup[i] = dy[i] * g * s;
        }
    }
}
