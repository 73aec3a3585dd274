//! Every operation of this module composed from plain candle operations.
//!
//! This is the oracle: short enough to be checked by eye, differentiable through candle alone. All
//! other forms are tested against it, value and gradient.

use candle_core::{D, DType, Result, Tensor};

use crate::{Attention, Gate, IGNORE};

/// What is computed in f32 at least stays f64: so the tests have an oracle without rounding.
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// `x · wᵀ + bias`, see [`crate::linear`].
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let inp = w.dim(1)?;
    let shape = crate::linear_shape(x, w.dims())?;
    // [.., in] -> [n, in]
    let y = x.reshape(((), inp))?.matmul(&w.to_dtype(x.dtype())?.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    y.reshape(shape)
}

/// `x · wᵀ + bias + scale · (x ∘ mask) · aᵀ · bᵀ`, see [`crate::lora_linear`].
pub fn lora_linear(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    a: &Tensor,
    b: &Tensor,
    scale: f64,
    dropout_mask: Option<&Tensor>,
) -> Result<Tensor> {
    let base = linear(x, w, bias)?;
    let dropped = match dropout_mask {
        Some(mask) => x.mul(mask)?,
        None => x.clone(),
    };
    let low = linear(&linear(&dropped, a, None)?, b, None)?;
    base + (low * scale)?
}

/// `x / √(mean(x²) + eps) · w`, see [`crate::rms_norm`].
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(wide(dtype))?;
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = x.broadcast_div(&(mean_square + eps)?.sqrt()?)?;
    normed.to_dtype(dtype)?.broadcast_mul(w)
}

/// `(x − mean) / √(variance + eps) · w + b`, see [`crate::layer_norm`].
pub fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(wide(dtype))?;
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    normed.to_dtype(dtype)?.broadcast_mul(w)?.broadcast_add(b)
}

/// Rotary embedding in the half-split form, see [`crate::rope`].
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, positions: &Tensor) -> Result<Tensor> {
    let (b, t, _h, d) = x.dims4()?;
    let half = d / 2;
    let rows = positions.flatten_all()?;
    // [max, d/2] -> [b, t, 1, d/2]
    let cos = cos.index_select(&rows, 0)?.reshape((b, t, 1, half))?.to_dtype(x.dtype())?;
    let sin = sin.index_select(&rows, 0)?.reshape((b, t, 1, half))?.to_dtype(x.dtype())?;
    let (x1, x2) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
    let y1 = (x1.broadcast_mul(&cos)? - x2.broadcast_mul(&sin)?)?;
    let y2 = (x2.broadcast_mul(&cos)? + x1.broadcast_mul(&sin)?)?;
    Tensor::cat(&[y1, y2], 3)
}

/// `silu(gate) · up`, see [`crate::swiglu`].
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated(gate, up, Gate::Silu)
}

/// `activation(gate) · up`, see [`crate::gated`].
pub fn gated(gate: &Tensor, up: &Tensor, how: Gate) -> Result<Tensor> {
    let active = match how {
        Gate::Silu => gate.silu(),
        Gate::Gelu => gate.gelu_erf(),
        Gate::GeluTanh => gate.gelu(),
    };
    active?.mul(up)
}

/// Causal attention with the whole score matrix in memory, see [`crate::attention`].
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, how: &Attention) -> Result<Tensor> {
    let (b, t, h, d) = q.dims4()?;
    let (_, s, hkv, _) = k.dims4()?;
    let groups = h / hkv;
    let mut blocked = vec![0f32; b * t * s];
    let mut alive = vec![1f32; b * t];
    for row in 0..b {
        let start = how.starts.as_ref().map_or(0, |starts| starts[row]);
        let mut text = vec![0; s];
        for (number, length) in how.segments.iter().flat_map(|rows| &rows[row]).enumerate() {
            let from = text.iter().take_while(|text| **text > 0).count();
            text[from..from + length].fill(number + 1);
        }
        for i in 0..t {
            let last = s - t + i;
            let seen = |j: usize| {
                j >= start
                    && j <= last
                    && how.window.is_none_or(|window| last - j < window)
                    && text[j] == text[last]
            };
            for j in 0..s {
                if !seen(j) {
                    blocked[(row * t + i) * s + j] = -1e30;
                }
            }
            if !(0..s).any(seen) {
                alive[row * t + i] = 0.;
            }
        }
    }
    let wide = wide(q.dtype());
    let blocked = Tensor::from_vec(blocked, (b, 1, t, s), q.device())?.to_dtype(wide)?;
    let alive = Tensor::from_vec(alive, (b, t, 1, 1), q.device())?.to_dtype(q.dtype())?;
    // [b, t, h, d] -> [b, h, t, d]
    let q = q.transpose(1, 2)?.contiguous()?;
    // [b, s, hkv, d] -> [b, h, s, d]
    let spread = |x: &Tensor| -> Result<Tensor> {
        x.transpose(1, 2)?
            .unsqueeze(2)?
            .broadcast_as((b, hkv, groups, s, d))?
            .contiguous()?
            .reshape((b, h, s, d))
    };
    let (k, v) = (spread(k)?, spread(v)?);
    let scores = (q.matmul(&k.t()?)? * f64::from(how.scale))?;
    let scores = scores.to_dtype(wide)?.broadcast_add(&blocked)?;
    let weights = candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(v.dtype())?;
    // [b, h, t, d] -> [b, t, h, d] -> [b, t, h·d]
    let y = weights.matmul(&v)?.transpose(1, 2)?.contiguous()?;
    y.broadcast_mul(&alive)?.reshape((b, t, h * d))
}

/// Sum of the labelled rows' losses with all their logits in memory, see [`crate::cross_entropy`].
pub fn cross_entropy(hidden: &Tensor, head_w: &Tensor, labels: &[i64]) -> Result<(Tensor, usize)> {
    let (rows, targets): (Vec<u32>, Vec<u32>) = labels
        .iter()
        .enumerate()
        .filter(|&(_, &label)| label != IGNORE)
        .map(|(row, &label)| (row as u32, label as u32))
        .unzip();
    let count = rows.len();
    if count == 0 {
        // Still a node of the graph, so that a backward pass over a batch without labels finds
        // zeros.
        let zero = hidden.zeros_like()?;
        return Ok((hidden.mul(&zero)?.to_dtype(DType::F32)?.sum_all()?, 0));
    }
    let rows = Tensor::from_vec(rows, count, hidden.device())?;
    let targets = Tensor::from_vec(targets, (count, 1), hidden.device())?;
    let logits = hidden
        .index_select(&rows, 0)?
        .matmul(&head_w.to_dtype(hidden.dtype())?.t()?)?
        .to_dtype(wide(hidden.dtype()))?;
    let max = logits.max_keepdim(D::Minus1)?.detach();
    let log_sum_exp = (logits.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?.log()? + max)?;
    let chosen = logits.gather(&targets, D::Minus1)?;
    let loss = (log_sum_exp - chosen)?.sum_all()?;
    Ok((loss, count))
}
