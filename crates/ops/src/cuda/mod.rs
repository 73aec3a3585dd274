//! Kernels of our own for NVIDIA GPUs, and products through cuBLAS that add to what is there.
//!
//! **None of this has run on a GPU yet**, so [`PROVEN`] is empty and none of it is used unless
//! [`allow`] (or `TUNEBOOK_CUDA_KERNELS=unproven` in the environment) asks for it; without it a GPU
//! takes the compositions of [`crate::device`] alone. What has been done without a GPU: the kernels
//! compile with nvcc, without spills (each source has a table of its kernels' registers, shared
//! memory and occupancy, which `cargo xtask test --long` holds against ptxas), and the same sources,
//! compiled as C++ with a stand-in for CUDA's words (`kernels/shim.h`), agree with [`crate::naive`]
//! on the CPU (`tests.rs`). The tests whose names begin with `gpu_` compare on a GPU; `cargo xtask
//! test --long` runs them where there is one, and `cargo xtask gpu-kit` takes the same comparisons
//! ([`checks`]) to a machine that has one.
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

use candle_core::Tensor;

#[cfg(any(test, feature = "cuda"))]
use crate::Gate;
use crate::attention::Sizes;

#[cfg(not(feature = "cuda"))]
mod absent;
pub mod checks;
mod count;
pub mod geometry;
#[cfg(feature = "cuda")]
mod launch;
pub mod proven;
#[cfg(test)]
mod tests;

#[cfg(not(feature = "cuda"))]
pub use absent::*;
pub use count::{Launches, launches};
#[cfg(feature = "cuda")]
pub use launch::*;
pub use proven::{Allowed, Kernel, PROVEN, Proof, allow, allowed};

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
