//! Gated activation: both gradients come from one pass that computes the activation again.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::Gate;
use crate::cpu::crew::Each;
use crate::cpu::math::{exp, sigmoid};
use crate::cpu::{CHUNK, Values, multiversion, uninit};
use crate::operation::{Buffer, Operation, Slot, node};
use crate::profile;

/// See [`crate::gated`].
pub(crate) fn gated(gate: &Tensor, up: &Tensor, how: Gate) -> Result<Tensor> {
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    let y = how.values(&gate, &up)?;
    let shape = gate.shape().clone();
    node(how, &[&gate, &up], y, shape)
}

impl Gate {
    fn values(self, gate: &Tensor, up: &Tensor) -> Result<Vec<f32>> {
        let _time = profile::time(self.name(), "forward");
        let (gate, up) = (Values::of(gate)?, Values::of(up)?);
        let forward = match self {
            Self::Silu => silu_forward,
            Self::Gelu => gelu_forward,
            Self::GeluTanh => gelu_tanh_forward,
        };
        // SAFETY: every chunk is written.
        let mut y = unsafe { uninit(gate.len()) };
        y.par_chunks_mut(CHUNK)
            .zip(gate.par_chunks(CHUNK))
            .zip(up.par_chunks(CHUNK))
            .each(|((y, gate), up)| forward(y, gate, up));
        Ok(y)
    }
}

impl Operation for Gate {
    fn name(&self) -> &'static str {
        Self::name(*self)
    }

    fn reads_input(&self, _: usize) -> bool {
        true
    }

    fn remakes(&self) -> bool {
        true
    }

    fn remake(&self, inputs: &[Tensor]) -> Result<Vec<f32>> {
        self.values(&inputs[0], &inputs[1])
    }

    fn backward(&self, inputs: &[Tensor], _: &Tensor, dy: Buffer, into: &mut [Slot]) -> Result<()> {
        let ([gate, up], [dgate, dup]) = (inputs, into) else { return Ok(()) };
        let (g, u) = (Values::of(gate)?, Values::of(up)?);
        let backward = match self {
            Self::Silu => silu_backward,
            Self::Gelu => gelu_backward,
            Self::GeluTanh => gelu_tanh_backward,
        };
        // SAFETY: every chunk of both is written.
        let (mut dg, mut du) = unsafe { (uninit(g.len()), uninit(g.len())) };
        dg.par_chunks_mut(CHUNK)
            .zip(du.par_chunks_mut(CHUNK))
            .zip(g.par_chunks(CHUNK).zip(u.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK)))
            .each(|((dg, du), ((g, u), d))| backward(dg, du, g, u, d));
        if dgate.wanted() {
            dgate.add(dg);
        }
        if dup.wanted() {
            dup.add(du);
        }
        Ok(())
    }
}

/// `x · σ(x)` and its slope `σ · (1 + x · (1 − σ))`.
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let s = sigmoid(x);
    (x * s, s * (1. + x * (1. - s)))
}

/// `x · Φ(x)` and its slope `Φ(x) + x · φ(x)`: Φ is the normal distribution, by Abramowitz and
/// Stegun's 7.1.26 (to 1.5 · 10⁻⁷).
#[inline(always)]
fn gelu(x: f32) -> (f32, f32) {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1. / (1. + 0.327_591_1 * z);
    let bell = exp(-z * z);
    let mut p = 1.061_405_4;
    p = p * t - 1.453_152;
    p = p * t + 1.421_413_7;
    p = p * t - 0.284_496_74;
    p = p * t + 0.254_829_6;
    // Of the side away from the mean.
    let tail = 0.5 * p * t * bell;
    let below = if x < 0. { tail } else { 1. - tail };
    (x * below, below + x * bell * 0.398_942_3)
}

/// `x/2 · (1 + tanh u)`, which is `x · σ(2u)`, with `u = √(2/π) · (x + 0.044715 x³)`; and its
/// slope.
#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    const DOUBLE: f32 = 1.595_769; // 2 · √(2/π)
    let s = sigmoid(DOUBLE * (x + 0.044_715 * x * x * x));
    (x * s, s + x * s * (1. - s) * DOUBLE * (1. + 0.134_145 * x * x))
}

/// `y = f(gate) · up`
#[inline(always)]
fn forward_with(y: &mut [f32], gate: &[f32], up: &[f32], f: impl Fn(f32) -> (f32, f32)) {
    for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
        *y = f(g).0 * u;
    }
}

/// `d gate = dy · up · f′(gate)`, `d up = dy · f(gate)`
#[inline(always)]
fn backward_with(
    dgate: &mut [f32],
    dup: &mut [f32],
    gate: &[f32],
    up: &[f32],
    dy: &[f32],
    f: impl Fn(f32) -> (f32, f32),
) {
    let n = dy.len();
    let (dgate, dup, gate, up) = (&mut dgate[..n], &mut dup[..n], &gate[..n], &up[..n]);
    for i in 0..n {
        let (value, slope) = f(gate[i]);
        dgate[i] = dy[i] * up[i] * slope;
        dup[i] = dy[i] * value;
    }
}

multiversion! {
    /// [`forward_with`] `silu`.
    pub(crate) fn silu_forward(y: &mut [f32], gate: &[f32], up: &[f32]) {
        forward_with(y, gate, up, silu);
    }
}

multiversion! {
    /// [`backward_with`] `silu`.
    pub(crate) fn silu_backward(dgate: &mut [f32], dup: &mut [f32], gate: &[f32], up: &[f32], dy: &[f32]) {
        backward_with(dgate, dup, gate, up, dy, silu);
    }
}

multiversion! {
    /// [`forward_with`] `gelu`.
    pub(crate) fn gelu_forward(y: &mut [f32], gate: &[f32], up: &[f32]) {
        forward_with(y, gate, up, gelu);
    }
}

multiversion! {
    /// [`backward_with`] `gelu`.
    pub(crate) fn gelu_backward(dgate: &mut [f32], dup: &mut [f32], gate: &[f32], up: &[f32], dy: &[f32]) {
        backward_with(dgate, dup, gate, up, dy, gelu);
    }
}

multiversion! {
    /// [`forward_with`] `gelu_tanh`.
    pub(crate) fn gelu_tanh_forward(y: &mut [f32], gate: &[f32], up: &[f32]) {
        forward_with(y, gate, up, gelu_tanh);
    }
}

multiversion! {
    /// [`backward_with`] `gelu_tanh`.
    pub(crate) fn gelu_tanh_backward(dgate: &mut [f32], dup: &mut [f32], gate: &[f32], up: &[f32], dy: &[f32]) {
        backward_with(dgate, dup, gate, up, dy, gelu_tanh);
    }
}
