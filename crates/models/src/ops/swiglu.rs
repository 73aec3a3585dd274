//! Gated activation: both gradients come from one pass that computes the sigmoid again.

use std::borrow::Cow;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::cpu::crew::Each;
use super::cpu::math::sigmoid;
use super::cpu::{CHUNK, Values, multiversion, uninit};
use super::operation::{Operation, Slot, node};
use super::profile;

/// See [`super::swiglu`].
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    let y = activated(&gate, &up)?;
    let shape = gate.shape().clone();
    node(Swiglu, &[&gate, &up], y, shape)
}

fn activated(gate: &Tensor, up: &Tensor) -> Result<Vec<f32>> {
    let _time = profile::time("swiglu", "forward");
    let (gate, up) = (Values::of(gate)?, Values::of(up)?);
    // SAFETY: every chunk is written.
    let mut y = unsafe { uninit(gate.len()) };
    y.par_chunks_mut(CHUNK)
        .zip(gate.par_chunks(CHUNK))
        .zip(up.par_chunks(CHUNK))
        .each(|((y, gate), up)| forward(y, gate, up));
    Ok(y)
}

struct Swiglu;

impl Operation for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn reads_input(&self, _: usize) -> bool {
        true
    }

    fn remakes(&self) -> bool {
        true
    }

    fn remake(&self, inputs: &[Tensor]) -> Result<Vec<f32>> {
        activated(&inputs[0], &inputs[1])
    }

    fn backward(&self, inputs: &[Tensor], _: &Tensor, dy: Cow<[f32]>, into: &mut [Slot]) -> Result<()> {
        let ([gate, up], [dgate, dup]) = (inputs, into) else { return Ok(()) };
        let (g, u) = (Values::of(gate)?, Values::of(up)?);
        // SAFETY: every chunk of both is written.
        let (mut dg, mut du) = unsafe { (uninit(g.len()), uninit(g.len())) };
        dg.par_chunks_mut(CHUNK)
            .zip(du.par_chunks_mut(CHUNK))
            .zip(g.par_chunks(CHUNK).zip(u.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK)))
            .each(|((dg, du), ((g, u), d))| backward(dg, du, g, u, d));
        if dgate.wanted() {
            dgate.add(Cow::Owned(dg));
        }
        if dup.wanted() {
            dup.add(Cow::Owned(du));
        }
        Ok(())
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
