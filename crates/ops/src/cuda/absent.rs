//! A build without CUDA: no kernel applies anywhere.

use candle_core::{Result, Tensor};

use super::Attended;
use crate::Gate;
use crate::attention::Sizes;

/// See [`crate::rms_norm`].
pub fn rms_norm(_x: &Tensor, _w: &Tensor, _eps: f64) -> Result<Option<Tensor>> {
    Ok(None)
}

/// The gradient of `x`.
pub fn rms_norm_backward(
    _x: &Tensor,
    _w: &Tensor,
    _dy: &Tensor,
    _eps: f64,
) -> Result<Option<Tensor>> {
    Ok(None)
}

/// See [`crate::layer_norm`].
pub fn layer_norm(_x: &Tensor, _w: &Tensor, _b: &Tensor, _eps: f64) -> Result<Option<Tensor>> {
    Ok(None)
}

/// The gradient of `x`.
pub fn layer_norm_backward(
    _x: &Tensor,
    _w: &Tensor,
    _dy: &Tensor,
    _eps: f64,
) -> Result<Option<Tensor>> {
    Ok(None)
}

/// See [`crate::gated`].
pub fn gated(_gate: &Tensor, _up: &Tensor, _how: Gate) -> Result<Option<Tensor>> {
    Ok(None)
}

/// The gradients of `gate` and `up`.
pub fn gated_backward(
    _gate: &Tensor,
    _up: &Tensor,
    _dy: &Tensor,
    _how: Gate,
) -> Result<Option<[Tensor; 2]>> {
    Ok(None)
}

/// See [`crate::rope`]; `x` is `[b, t, h, d]`, and a `direction` of −1 turns back.
pub fn rope(
    _x: &Tensor,
    _cos: &Tensor,
    _sin: &Tensor,
    _positions: &Tensor,
    _direction: f32,
) -> Result<Option<Tensor>> {
    Ok(None)
}

/// See [`crate::attention`]: the result and each query's logarithm of its softmax's
/// denominator, `[b, h, t]`.
pub fn attention(
    _q: &Tensor,
    _k: &Tensor,
    _v: &Tensor,
    _first: Option<&[usize]>,
    _scale: f32,
    _sizes: Sizes,
) -> Result<Option<(Tensor, Tensor)>> {
    Ok(None)
}

/// The gradients of queries, keys and values.
pub fn attention_backward(_attended: Attended, _dy: &Tensor) -> Result<Option<[Tensor; 3]>> {
    Ok(None)
}

/// The loss of each row of a chunk of logits, `[c]`, which are overwritten by their gradient.
pub fn cross_entropy(_logits: &Tensor, _targets: &Tensor) -> Result<Option<Tensor>> {
    Ok(None)
}

/// `y [n, out] += left [n, k] · right`, in place, with `right` `[k, out]`, or `[out, k]` to be read
/// transposed. Answers whether it was done.
pub fn add_product(
    _y: &Tensor,
    _left: &Tensor,
    _right: &Tensor,
    _right_transposed: bool,
) -> Result<bool> {
    Ok(false)
}
