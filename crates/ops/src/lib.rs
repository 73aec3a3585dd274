//! The differentiable operations that a decoder is made of.
//!
//! Each has one file with its fused form for the CPU, one form for every other device and number
//! type in [`device`], and one plain composition in [`naive`], which is the oracle in the tests.
//! All keep candle's graph: `Tensor::backward` runs through them.
//!
//! Layout is `[b, t, h, d]` (batch, time, heads, head size) everywhere, so that no operation has to
//! transpose.

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Result, Shape, Tensor, bail};

mod add;
mod attention;
pub mod cpu;
mod cross_entropy;
pub mod cuda;
pub mod device;
mod gated;
mod linear;
mod matrix;
pub mod naive;
mod norm;
mod operation;
mod paged;
pub mod profile;
mod quantized;
mod rope;
mod rows;
pub mod tape;
#[cfg(test)]
mod tests;

pub use linear::LowRank;
pub use matrix::Matrix;
pub use paged::{PAGE, Page, PageShape, Queries, Scoring, paged_attention};
pub use quantized::{Format, Quantized};
pub use rows::Rows;
pub use tape::Tape;

/// The label of a position that bears no loss.
pub const IGNORE: i64 = -100;

/// How [`attention`] scores and masks. A query sees the keys up to its own position that none of
/// these hides.
///
/// ```
/// use tunebook_ops::Attention;
/// let sliding = Attention { scale: 0.125, window: Some(512), ..Default::default() };
/// # assert!(sliding.segments.is_none());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Factor on the scores, `1/√d` as a rule. Default 1.
    pub scale: f32,
    /// For each row of the batch its first valid key (left padding lies before it). `None`: all
    /// keys are valid.
    pub starts: Option<Vec<usize>>,
    /// A query sees so many keys at most, its own position included (sliding window). `None`: all
    /// before it.
    pub window: Option<usize>,
    /// For each row the lengths of the texts packed into it, in their order: no text sees another.
    /// What is left of a row is one more text (padding). Only for whole rows (`s = t`). `None`: a
    /// row is one text.
    pub segments: Option<Vec<Vec<usize>>>,
    /// Products round their operands to bf16 where the processor multiplies it; sums, softmax and
    /// results stay in f32. Default false.
    pub bf16: bool,
}

impl Default for Attention {
    fn default() -> Self {
        Self { scale: 1., starts: None, window: None, segments: None, bf16: false }
    }
}

impl Attention {
    /// For each query of each row the first key that it sees, `[b, t]`; a query sees nothing where
    /// that is beyond its own position. It never falls along a row.
    ///
    /// # Errors
    /// When a list is not as long as the batch, a window is empty, or segments do not fit a row.
    pub fn first_keys(&self, b: usize, t: usize, s: usize) -> Result<Vec<usize>> {
        if let Some(starts) = &self.starts
            && starts.len() != b
        {
            bail!("attention: expected one start for each of {b} rows, found {}", starts.len())
        }
        if self.window == Some(0) {
            bail!("attention: expected a window of at least 1 key, found 0")
        }
        if let Some(segments) = &self.segments {
            if segments.len() != b || s != t {
                bail!(
                    "attention: expected segments for each of {b} rows of {s} keys and as many queries, found {} rows and {t} queries",
                    segments.len()
                )
            }
            if let Some(row) = segments.iter().find(|row| row.iter().sum::<usize>() > t) {
                bail!("attention: expected segments of {t} tokens in all at most, found {row:?}")
            }
        }
        let mut first = Vec::with_capacity(b * t);
        for row in 0..b {
            let start = self.starts.as_ref().map_or(0, |starts| starts[row]);
            let mut lengths = self.segments.as_ref().map(|rows| rows[row].iter());
            // The segment that the query lies in: its first key and the key behind it.
            let (mut from, mut end) = (0, if lengths.is_some() { 0 } else { s });
            for query in s - t..s {
                while let Some(lengths) = &mut lengths
                    && query >= end
                {
                    (from, end) = (end, lengths.next().map_or(s, |length| end + length));
                }
                let window = self.window.map_or(0, |window| (query + 1).saturating_sub(window));
                first.push(start.max(from).max(window));
            }
        }
        Ok(first)
    }
}

/// Linear map `y = x · wᵀ + bias`.
///
/// A frozen `w` (neither a variable nor computed from one) gets no gradient and costs none; the
/// bias likewise. A quantised one is dequantised a tile at a time, in the forward and in the
/// backward pass.
///
/// # Shapes
/// `x` `[.., in]`, `w` `[out, in]`, `bias` `[out]` -> `[.., out]`. The input dimension may be split
/// over the last dimensions of `x` (`[b, t, h, d]` with `h·d = in`).
///
/// # Errors
/// When the last dimensions of `x` do not make `in`, or the bias is not `[out]`.
pub fn linear(x: &Tensor, w: impl Into<Matrix>, bias: Option<&Tensor>) -> Result<Tensor> {
    let w = &w.into();
    check_linear(x, w, bias)?;
    match form_with(&[x], w) {
        Form::Fused => linear::linear(x, w, bias),
        Form::Composed => device::linear(x, w, bias),
        Form::Plain => naive::linear(x, &w.tensor()?, bias),
    }
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
    w: impl Into<Matrix>,
    bias: Option<&Tensor>,
    a: &Tensor,
    b: &Tensor,
    scale: f64,
    dropout_mask: Option<&Tensor>,
) -> Result<Tensor> {
    let w = &w.into();
    check_linear(x, w, bias)?;
    let (out, inp) = w.dims2()?;
    let (r, a_in) = a.dims2()?;
    if a_in != inp || b.dims() != [out, r] {
        bail!(
            "lora_linear: expected a [r, {inp}] and b [{out}, r], found {:?} and {:?}",
            a.dims(),
            b.dims()
        )
    }
    if let Some(mask) = dropout_mask
        && mask.dims() != x.dims()
    {
        bail!("lora_linear: expected a dropout mask {:?} as x, found {:?}", x.dims(), mask.dims())
    }
    match form_with(&[x, a, b], w) {
        Form::Fused => linear::lora_linear(x, w, bias, a, b, scale, dropout_mask),
        Form::Composed => device::lora_linear(x, w, bias, a, b, scale, dropout_mask),
        Form::Plain => naive::lora_linear(x, &w.tensor()?, bias, a, b, scale, dropout_mask),
    }
}

/// Low-rank corrections of a linear map's result, for some rows each: `y += scale · x · aᵀ · bᵀ`.
/// No gradient flows through it. `None` where it has no form for these tensors: not f32 on the CPU.
///
/// # Shapes
/// `x` `[n, .., in]`, `y` `[n, .., out]`, `a` `[r, in]`, `b` `[out, r]` -> as `y`. Rows are numbers
/// of the first dimension, each at most once; `None` for all.
///
/// # Errors
/// When the shapes do not fit together.
pub fn add_low_rank(
    x: &Tensor,
    y: &Tensor,
    parts: &[(Option<&[u32]>, &[LowRank])],
) -> Result<Option<Tensor>> {
    for low in parts.iter().flat_map(|(_, low)| *low) {
        let ((r, inp), (out, b_r)) = (low.a.dims2()?, low.b.dims2()?);
        if r != b_r || x.dims().last() != Some(&inp) || y.dims().last() != Some(&out) {
            bail!(
                "add_low_rank: expected x [.., {inp}] and y [.., {out}] for a [{r}, {inp}] and b [{out}, {b_r}], found {:?} and {:?}",
                x.dims(),
                y.dims()
            )
        }
    }
    let tensors = parts.iter().flat_map(|(_, low)| *low).flat_map(|low| [&low.a, &low.b]);
    match form(&tensors.chain([x, y]).collect::<Vec<_>>()) {
        Form::Fused => linear::add_low_rank(x, y, parts).map(Some),
        Form::Composed | Form::Plain => Ok(None),
    }
}

/// Whether [`add_low_rank`] has a form for tensors like this.
pub fn adds_low_rank(x: &Tensor) -> bool {
    matches!(form(&[x]), Form::Fused)
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
    match form(&[x, w]) {
        Form::Fused => norm::rms_norm(x, w, eps),
        Form::Composed => device::rms_norm(x, w, eps),
        Form::Plain => naive::rms_norm(x, w, eps),
    }
}

/// Normalisation `y = (x − mean) / √(variance + eps) · w + b` over the last dimension
/// (<https://arxiv.org/abs/1607.06450>), reduced in f32.
///
/// # Shapes
/// `x` `[.., n]`, `w` and `b` `[n]` -> `[.., n]`.
///
/// # Errors
/// When the last dimension of `x` is not that of `w` and `b`.
pub fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    if x.dims().last() != Some(&w.dims1()?) || w.dims() != b.dims() {
        bail!(
            "layer_norm: expected x [.., n], w [n] and b [n], found {:?}, {:?} and {:?}",
            x.dims(),
            w.dims(),
            b.dims()
        )
    }
    match form(&[x, w, b]) {
        Form::Fused => norm::layer_norm(x, w, b, eps),
        Form::Composed => device::layer_norm(x, w, b, eps),
        Form::Plain => naive::layer_norm(x, w, b, eps),
    }
}

/// Rotary position embedding (<https://arxiv.org/abs/2104.09864>) in Hugging Face's half-split
/// form: element `i` of a head turns with element `i + d/2`.
///
/// # Shapes
/// `x` `[b, t, h, d]` or `[b, t, h·d]`, `cos` and `sin` `[max, d/2]`, `positions` `[b, t]` u32 ->
/// `[b, t, h, d]`.
///
/// # Errors
/// When the shapes do not fit together or a position is not below `max`.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, positions: &Tensor) -> Result<Tensor> {
    let half = cos.dims2()?.1;
    let shape = match *x.dims() {
        [b, t, h, d] if d == 2 * half => [b, t, h, d],
        [b, t, width] if half > 0 && width % (2 * half) == 0 => {
            [b, t, width / (2 * half), 2 * half]
        }
        _ => bail!(
            "rope: expected x [b, t, h, {d}] or [b, t, h·{d}] for angles [max, {half}], found {:?}",
            x.dims(),
            d = 2 * half
        ),
    };
    if sin.dims() != cos.dims() {
        bail!(
            "rope: expected cos and sin of one shape, found {:?} and {:?}",
            cos.dims(),
            sin.dims()
        )
    }
    if positions.dims() != &shape[..2] || positions.dtype() != DType::U32 {
        bail!(
            "rope: expected positions {:?} u32, found {:?} {:?}",
            &shape[..2],
            positions.dims(),
            positions.dtype()
        )
    }
    match form(&[x, cos, sin]) {
        Form::Fused => rope::rope(x, cos, sin, positions, shape),
        Form::Composed => device::rope(x, cos, sin, positions, shape),
        Form::Plain => naive::rope(&x.reshape(&shape[..])?, cos, sin, positions),
    }
}

/// Residual connection `x + y`.
///
/// # Shapes
/// Both of one shape, which is the result's.
///
/// # Errors
/// When the shapes differ.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.dims() != y.dims() {
        bail!("add: expected one shape, found {:?} and {:?}", x.dims(), y.dims())
    }
    match form(&[x, y]) {
        Form::Fused => add::add(x, y),
        Form::Composed => device::add(x, y),
        Form::Plain => x + y,
    }
}

/// The activation of a [`gated`] feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `x · σ(x)`: SwiGLU.
    Silu,
    /// `x · Φ(x)` with the normal distribution Φ: GeGLU.
    Gelu,
    /// Its approximation `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`: Gemma's GeGLU.
    GeluTanh,
}

impl Gate {
    /// Name in profiles and errors.
    fn name(self) -> &'static str {
        match self {
            Self::Silu => "swiglu",
            Self::Gelu | Self::GeluTanh => "geglu",
        }
    }
}

/// Gated activation `silu(gate) · up` (<https://arxiv.org/abs/2002.05202>).
///
/// # Shapes
/// `gate` and `up` of one shape, which is the result's.
///
/// # Errors
/// When the shapes differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated(gate, up, Gate::Silu)
}

/// Gated activation `activation(gate) · up` (<https://arxiv.org/abs/2002.05202>).
///
/// # Shapes
/// `gate` and `up` of one shape, which is the result's.
///
/// # Errors
/// When the shapes differ.
pub fn gated(gate: &Tensor, up: &Tensor, how: Gate) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        bail!("{}: expected one shape, found {:?} and {:?}", how.name(), gate.dims(), up.dims())
    }
    match form(&[gate, up]) {
        Form::Fused => gated::gated(gate, up, how),
        Form::Composed => device::gated(gate, up, how),
        Form::Plain => naive::gated(gate, up, how),
    }
}

/// Causal grouped-query attention. Query `i` of `t` stands at key position `s - t + i`, so a
/// decoding step passes `t = 1` and all keys so far. A query that sees no valid key (it is padding
/// itself) yields zeros.
///
/// # Shapes
/// `q` `[b, t, h, d]`, `k` and `v` `[b, s, hkv, d]` (or `[b, s, hkv·d]`) with `s ≥ t` and `h` a
/// multiple of `hkv` -> `[b, t, h·d]`, as an output projection takes it.
///
/// # Errors
/// When the shapes do not fit together.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, how: &Attention) -> Result<Tensor> {
    let (b, t, h, d) = q.dims4()?;
    let keys = |x: &Tensor| match *x.dims() {
        [xb, s, heads, size] if xb == b && size == d => Some((s, heads)),
        [xb, s, width] if xb == b && d > 0 && width % d == 0 => Some((s, width / d)),
        _ => None,
    };
    let sizes = match (keys(k), keys(v)) {
        (Some((s, hkv)), Some(other)) if other == (s, hkv) && s >= t && hkv > 0 && h % hkv == 0 => {
            attention::Sizes { b, t, s, h, hkv, d }
        }
        _ => bail!(
            "attention: expected q [b, t, h, d] and k, v [b, s >= t, hkv, d] with h a multiple of hkv, \
             found {:?}, {:?}, {:?}",
            q.dims(),
            k.dims(),
            v.dims()
        ),
    };
    let first = how.first_keys(b, t, sizes.s)?;
    match form(&[q, k, v]) {
        Form::Fused => attention::attention(q, k, v, (how.scale, how.bf16), first, sizes),
        Form::Composed => device::attention(q, k, v, how.scale, first, sizes),
        Form::Plain => {
            let shape = (b, sizes.s, sizes.hkv, d);
            naive::attention(q, &k.reshape(shape)?, &v.reshape(shape)?, how)
        }
    }
}

/// How many logits [`cross_entropy`] holds at a time on the CPU, over so many labelled rows.
pub fn logits_held(rows: usize, vocab: usize) -> usize {
    cross_entropy::logits_held(rows, vocab)
}

/// Cross-entropy of the output head at the labelled rows, summed, and how many rows were labelled.
///
/// Logits are computed only where a label is. The sum is a scalar f32 tensor, differentiable to
/// `hidden` (and to `head_w` when it is trained); divide it by the number of labels that one
/// optimizer step covers.
///
/// # Shapes
/// `hidden` `[n, hid]`, `head_w` `[vocab, hid]`, `labels` of length `n`, [`IGNORE`] where there is
/// none.
///
/// # Errors
/// When the shapes do not fit together or a label is outside the vocabulary.
pub fn cross_entropy(
    hidden: &Tensor,
    head_w: impl Into<Matrix>,
    labels: &[i64],
) -> Result<(Tensor, usize)> {
    let head_w = &head_w.into();
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
    match form_with(&[hidden], head_w) {
        Form::Fused => cross_entropy::cross_entropy(hidden, head_w, labels),
        Form::Composed => match head_w {
            Matrix::Plain(head_w) => device::cross_entropy(hidden, head_w, labels),
            Matrix::Quantized(head_w) => {
                device::cross_entropy(hidden, &head_w.dequantize_as(hidden.dtype())?, labels)
            }
        },
        Form::Plain => naive::cross_entropy(hidden, &head_w.tensor()?, labels),
    }
}

static PLAIN: AtomicBool = AtomicBool::new(false);

/// Has every operation of this process run as its plain composition (or in its best form again):
/// for comparisons.
pub fn compose(plainly: bool) {
    PLAIN.store(plainly, Ordering::Relaxed);
}

/// How an operation is computed.
enum Form {
    /// On the CPU's buffers.
    Fused,
    /// By tensor operations on any device, see [`device`].
    Composed,
    /// By tensor operations that candle differentiates, see [`naive`].
    Plain,
}

/// The one place that decides.
fn form(tensors: &[&Tensor]) -> Form {
    if PLAIN.load(Ordering::Relaxed) {
        return Form::Plain;
    }
    match device::forced()
        || !tensors.iter().all(|t| t.device().is_cpu() && t.dtype() == DType::F32)
    {
        true => Form::Composed,
        false => Form::Fused,
    }
}

/// The same for an operation with a weight, which may be bf16 beside f32 when it is frozen: its
/// products are then computed in bf16 and summed in f32.
fn form_with(tensors: &[&Tensor], w: &Matrix) -> Form {
    match (form(tensors), w) {
        (Form::Fused, Matrix::Quantized(blocks)) if blocks.device().is_cpu() => Form::Fused,
        (Form::Fused, Matrix::Quantized(_)) => Form::Composed,
        (Form::Fused, Matrix::Plain(w)) => {
            match w.device().is_cpu() && w.dtype() == DType::BF16 && !w.track_op() {
                true => Form::Fused,
                false => form(&[w]),
            }
        }
        (other, _) => other,
    }
}

/// The result's shape: the dimensions of `x` that make `in` replaced by `out`.
fn linear_shape(x: &Tensor, w: &[usize]) -> Result<Shape> {
    let &[out, inp] = w else { bail!("linear: expected a weight [out, in], found {w:?}") };
    let dims = x.dims();
    let mut width = 1;
    for (i, size) in dims.iter().enumerate().rev() {
        width *= size;
        if width == inp {
            return Ok(Shape::from([&dims[..i], &[out]].concat()));
        }
    }
    bail!("linear: expected x [.., {inp}] for a weight {w:?}, found {dims:?}")
}

fn check_linear(x: &Tensor, w: &Matrix, bias: Option<&Tensor>) -> Result<()> {
    let out = w.dims2()?.0;
    linear_shape(x, w.dims())?;
    if let Some(bias) = bias
        && bias.dims() != [out]
    {
        bail!("linear: expected a bias [{out}], found {:?}", bias.dims())
    }
    Ok(())
}
