//! The differentiable operations that a decoder is made of.
//!
//! Each has one file with its fused form for the CPU and one plain composition in [`naive`], which is its oracle in
//! the tests and its stand-in on other devices. All keep candle's graph: `Tensor::backward` runs through them.
//!
//! Layout is `[b, t, h, d]` (batch, time, heads, head size) everywhere, so that no operation has to transpose.

use candle_core::{DType, Result, Tensor, bail};

pub mod naive;

/// The label of a position that bears no loss.
pub const IGNORE: i64 = -100;

/// How [`attention`] scores and masks.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Factor on the scores, `1/√d` as a rule.
    pub scale: f32,
    /// For each row of the batch its first valid key (left padding lies before it). `None`: all keys are valid.
    pub starts: Option<Vec<usize>>,
}

/// Linear map `y = x · wᵀ + bias`.
///
/// A frozen `w` (neither a variable nor computed from one) gets no gradient and costs none; the bias likewise.
///
/// # Shapes
/// `x` `[.., in]`, `w` `[out, in]`, `bias` `[out]` -> `[.., out]`.
///
/// # Errors
/// When the last dimension of `x` is not `in`, or the bias is not `[out]`.
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    check_linear(x, w, bias)?;
    naive::linear(x, w, bias)
}

/// A frozen linear map and its low-rank correction in one operation:
/// `y = x · wᵀ + bias + scale · (x ∘ mask) · aᵀ · bᵀ` (LoRA, <https://arxiv.org/abs/2106.09685>).
///
/// Gradients go to `x`, `a` and `b`; `w` and `bias` are frozen.
///
/// # Shapes
/// `x` `[.., in]`, `w` `[out, in]`, `bias` `[out]`, `a` `[r, in]`, `b` `[out, r]`,
/// `dropout_mask` as `x` with values `0` or `1/(1-p)` -> `[.., out]`.
///
/// # Errors
/// When the shapes do not fit together.
pub fn lora_linear(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    a: &Tensor,
    b: &Tensor,
    scale: f64,
    dropout_mask: Option<&Tensor>,
) -> Result<Tensor> {
    check_linear(x, w, bias)?;
    let (out, inp) = w.dims2()?;
    let (r, a_in) = a.dims2()?;
    if a_in != inp || b.dims() != [out, r] {
        bail!("lora_linear: expected a [r, {inp}] and b [{out}, r], found {:?} and {:?}", a.dims(), b.dims())
    }
    if let Some(mask) = dropout_mask
        && mask.dims() != x.dims()
    {
        bail!("lora_linear: expected a dropout mask {:?} as x, found {:?}", x.dims(), mask.dims())
    }
    naive::lora_linear(x, w, bias, a, b, scale, dropout_mask)
}

/// Root-mean-square normalisation `y = x / √(mean(x²) + eps) · w` over the last dimension
/// (<https://arxiv.org/abs/1910.07467>), reduced in f32.
///
/// # Shapes
/// `x` `[.., n]`, `w` `[n]` -> `[.., n]`.
///
/// # Errors
/// When the last dimension of `x` is not that of `w`.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    if x.dims().last() != Some(&w.dims1()?) {
        bail!("rms_norm: expected x [.., {}], found {:?}", w.dims1()?, x.dims())
    }
    naive::rms_norm(x, w, eps)
}

/// Rotary position embedding (<https://arxiv.org/abs/2104.09864>) in Hugging Face's half-split form: element `i` of a
/// head turns with element `i + d/2`.
///
/// # Shapes
/// `x` `[b, t, h, d]`, `cos` and `sin` `[max, d/2]`, `positions` `[b, t]` u32 -> `[b, t, h, d]`.
///
/// # Errors
/// When the shapes do not fit together or a position is not below `max`.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, positions: &Tensor) -> Result<Tensor> {
    let (b, t, _, d) = x.dims4()?;
    if positions.dims() != [b, t] || positions.dtype() != DType::U32 {
        bail!("rope: expected positions [{b}, {t}] u32, found {:?} {:?}", positions.dims(), positions.dtype())
    }
    if d % 2 != 0 || cos.dims2()?.1 != d / 2 || sin.dims() != cos.dims() {
        bail!(
            "rope: expected cos and sin [max, {}] for heads of size {d}, found {:?} and {:?}",
            d / 2,
            cos.dims(),
            sin.dims()
        )
    }
    naive::rope(x, cos, sin, positions)
}

/// Gated activation `silu(gate) · up` (<https://arxiv.org/abs/2002.05202>).
///
/// # Shapes
/// `gate` and `up` of one shape, which is the result's.
///
/// # Errors
/// When the shapes differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        bail!("swiglu: expected one shape, found {:?} and {:?}", gate.dims(), up.dims())
    }
    naive::swiglu(gate, up)
}

/// Causal grouped-query attention. Query `i` of `t` stands at key position `s - t + i`, so a decoding step passes
/// `t = 1` and all keys so far. A query that sees no valid key (it is padding itself) yields zeros.
///
/// # Shapes
/// `q` `[b, t, h, d]`, `k` and `v` `[b, s, hkv, d]` with `s ≥ t` and `h` a multiple of `hkv` -> `[b, t, h, d]`.
///
/// # Errors
/// When the shapes do not fit together.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, how: &Attention) -> Result<Tensor> {
    let (b, t, h, d) = q.dims4()?;
    let (kb, s, hkv, kd) = k.dims4()?;
    if v.dims() != k.dims() || kb != b || kd != d || s < t || hkv == 0 || h % hkv != 0 {
        bail!(
            "attention: expected q [b, t, h, d] and k, v [b, s >= t, hkv, d] with h a multiple of hkv, found {:?}, {:?}, {:?}",
            q.dims(),
            k.dims(),
            v.dims()
        )
    }
    if let Some(starts) = &how.starts
        && starts.len() != b
    {
        bail!("attention: expected one start for each of {b} rows, found {}", starts.len())
    }
    naive::attention(q, k, v, how)
}

/// Cross-entropy of the output head at the labelled rows, summed, and how many rows were labelled.
///
/// Logits are computed only where a label is.
/// The sum is a scalar f32 tensor, differentiable to `hidden` (and to `head_w` when it is trained); divide it by the
/// number of labels that one optimizer step covers.
///
/// # Shapes
/// `hidden` `[n, hid]`, `head_w` `[vocab, hid]`, `labels` of length `n`, [`IGNORE`] where there is none.
///
/// # Errors
/// When the shapes do not fit together or a label is outside the vocabulary.
pub fn cross_entropy(hidden: &Tensor, head_w: &Tensor, labels: &[i64]) -> Result<(Tensor, usize)> {
    let (n, hid) = hidden.dims2()?;
    let (vocab, head_hid) = head_w.dims2()?;
    if hid != head_hid || labels.len() != n {
        bail!(
            "cross_entropy: expected hidden [n, hid], head_w [vocab, hid] and n labels, found {:?}, {:?} and {}",
            hidden.dims(),
            head_w.dims(),
            labels.len()
        )
    }
    if let Some(label) = labels.iter().find(|&&l| l != IGNORE && !(0..vocab as i64).contains(&l)) {
        bail!("cross_entropy: expected labels in 0..{vocab} or {IGNORE}, found {label}")
    }
    naive::cross_entropy(hidden, head_w, labels)
}

fn check_linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    let (out, inp) = w.dims2()?;
    if x.dims().last() != Some(&inp) {
        bail!("linear: expected x [.., {inp}] for a weight {:?}, found {:?}", w.dims(), x.dims())
    }
    if let Some(bias) = bias
        && bias.dims() != [out]
    {
        bail!("linear: expected a bias [{out}], found {:?}", bias.dims())
    }
    Ok(())
}
