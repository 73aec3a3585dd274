//! Kernels of our own for NVIDIA GPUs, and products through cuBLAS that add to what is there.
//!
//! **None of this has run on a GPU yet**, so none of it is used unless [`enable_unproven`] (or
//! `TUNEBOOK_CUDA_KERNELS=unproven` in the environment) asks for it; without it a GPU takes the
//! compositions of [`crate::device`] alone. What has been done without a GPU: the kernels compile
//! with nvcc, and the same sources, compiled as C++ with a stand-in for CUDA's words
//! (`kernels/shim.h`), agree with [`crate::naive`] on the CPU (`tests.rs`). The tests whose names
//! begin with `gpu_` compare on a GPU; `cargo xtask test --long` runs them where there is one.
//!
//! | kernel | types | limits |
//! |---|---|---|
//! | RMSNorm and LayerNorm, forward and backward (frozen weights) | f32, bf16 | – |
//! | rotary embedding, SwiGLU and GeGLU, forward and backward | f32, bf16 | – |
//! | cross-entropy of a chunk of logits, gradient in place | f32, bf16 | – |
//! | causal attention forward and backward, tensor cores | bf16 | heads of 64 or 128 |
//! | LoRA's low-rank products, added by cuBLAS | bf16, f32 | – |
//!
//! Every function answers `None` where it does not apply, and the caller composes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Tensor;

#[cfg(any(test, feature = "cuda"))]
use crate::Gate;
use crate::attention::Sizes;

#[cfg(not(feature = "cuda"))]
mod absent;
pub mod geometry;
#[cfg(feature = "cuda")]
mod launch;
#[cfg(test)]
mod tests;

#[cfg(not(feature = "cuda"))]
pub use absent::*;
#[cfg(feature = "cuda")]
pub use launch::*;

/// What the forward pass of attention had and gave.
#[derive(Clone, Copy, Debug)]
pub struct Attended<'a> {
    /// Queries, keys and values.
    pub inputs: [&'a Tensor; 3],
    /// The result.
    pub y: &'a Tensor,
    /// From [`attention`].
    pub log_sums: &'a Tensor,
    /// The first key that each query sees.
    pub first: Option<&'a [usize]>,
    /// Factor on the scores.
    pub scale: f32,
    /// The sizes.
    pub sizes: Sizes,
}

/// What a gated activation's kernels are called.
#[cfg(any(test, feature = "cuda"))]
fn gate_kernel(how: Gate) -> &'static str {
    match how {
        Gate::Silu => "silu",
        Gate::Gelu => "gelu",
        Gate::GeluTanh => "gelu_tanh",
    }
}

static ENABLED: AtomicBool = AtomicBool::new(false);

/// Lets GPUs use the kernels of this module, which have never run on one. For tests, and for those
/// who want to find out.
pub fn enable_unproven(on: bool) {
    ENABLED.store(on, Ordering::Relaxed);
}

/// Whether the kernels of this module are used on GPUs.
pub fn unproven_is_enabled() -> bool {
    static ASKED: OnceLock<bool> = OnceLock::new();
    ENABLED.load(Ordering::Relaxed)
        || *ASKED.get_or_init(|| {
            std::env::var("TUNEBOOK_CUDA_KERNELS").is_ok_and(|value| value == "unproven")
        })
}
