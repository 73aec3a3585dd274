//! Cross-entropy of the output head, in chunks of rows.
//!
//! The idea is Liger Kernel's (<https://arxiv.org/abs/2410.10989>): the forward pass already computes the gradient of
//! the hidden states, chunk by chunk, so that no more than one chunk of logits exists at a time and none is kept.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::cpu::blocks::BlockMat;
use super::cpu::gemm::{Mat, Right as Side, Term, product, sum_of_products};
use super::cpu::half::{self, HalfMat, Right};
use super::cpu::{CHUNK, HalfValues, Values, math};
use super::operation::{Operation, Slot, node};
use super::{IGNORE, profile};
use crate::matrix::Matrix;
use crate::quantized::Quantized;

/// Logits held at a time. Each chunk packs the whole head once: 64 MiB is 341 rows of a vocabulary of 49152.
const CHUNK_BYTES: usize = 64 << 20;

/// See [`super::cross_entropy`].
pub fn cross_entropy(hidden: &Tensor, head_w: &Matrix, labels: &[i64]) -> Result<(Tensor, usize)> {
    let rows: Vec<(usize, usize)> = labels
        .iter()
        .enumerate()
        .filter(|&(_, &label)| label != IGNORE)
        .map(|(row, &label)| (row, label as usize))
        .collect();
    let count = rows.len();
    let (hidden, head_w) = (hidden.contiguous()?, head_w.contiguous()?);
    let want = [hidden.track_op(), head_w.track_op()];
    let size = head_w.dims2()?;
    let values = Values::of(&hidden)?;
    let (loss, gradients) = match &head_w {
        Matrix::Quantized(head) => forward(&values, Head::Blocks(head), size, &rows, want),
        Matrix::Plain(head) if head.dtype() == DType::BF16 => {
            forward(&values, Head::Half(&HalfValues::of(head)?), size, &rows, want)
        }
        Matrix::Plain(head) => forward(&values, Head::Full(&Values::of(head)?), size, &rows, want),
    };
    drop(values);
    let gradients = gradients.map(|gradient| gradient.map_or(Gradient::None, Gradient::Fresh));
    let op = CrossEntropy { gradients: Mutex::new(gradients) };
    let inputs: &[&Tensor] = match &head_w {
        Matrix::Plain(head) if want[1] => &[&hidden, head],
        _ => &[&hidden],
    };
    Ok((node(op, inputs, vec![loss], Shape::from(()))?, count))
}

/// The values of the head.
enum Head<'a> {
    Full(&'a [f32]),
    /// Frozen, products in bf16.
    Half(&'a [::half::bf16]),
    /// Frozen, dequantised as it is packed.
    Blocks(&'a Quantized),
}

impl Head<'_> {
    /// `x · headᵀ`, `[c, vocab]`
    fn logits(&self, x: Mat, (vocab, hid): (usize, usize)) -> Vec<f32> {
        match self {
            Self::Full(head) => product(x, Mat::new(head, vocab, hid).t()),
            Self::Half(head) => {
                let b = Right::Half(HalfMat::new(head, vocab, hid).t());
                half::sum_of_products(&[half::Term { a: x, b, alpha: 1. }], None)
            }
            Self::Blocks(head) => {
                let b = Side::Blocks(BlockMat::new(head).t());
                sum_of_products(&[Term { a: x, b, alpha: 1. }], None)
            }
        }
    }

    /// `dlogits · head`, `[c, hid]`
    fn gradient(&self, dlogits: Mat, (vocab, hid): (usize, usize)) -> Vec<f32> {
        match self {
            Self::Full(head) => product(dlogits, Mat::new(head, vocab, hid)),
            Self::Half(head) => {
                let b = Right::Half(HalfMat::new(head, vocab, hid));
                half::sum_of_products(&[half::Term { a: dlogits, b, alpha: 1. }], None)
            }
            Self::Blocks(head) => {
                let b = Side::Blocks(BlockMat::new(head));
                sum_of_products(&[Term { a: dlogits, b, alpha: 1. }], None)
            }
        }
    }
}

/// The summed loss over the labelled rows (`(row, label)`), and the gradients wanted of hidden and head_w.
fn forward(
    hidden: &[f32],
    head: Head,
    (vocab, hid): (usize, usize),
    rows: &[(usize, usize)],
    want: [bool; 2],
) -> (f32, [Option<Vec<f32>>; 2]) {
    let _time = profile::time("cross_entropy", "forward");
    let mut dh = want[0].then(|| vec![0f32; hidden.len()]);
    let mut dw = want[1].then(|| vec![0f32; vocab * hid]);
    let most = (CHUNK_BYTES / 4 / vocab.max(1)).max(8);
    let chunks = rows.len().div_ceil(most).max(1);
    let size = rows.len().div_ceil(chunks).max(1);
    let mut loss = 0f64;
    for rows in rows.chunks(size) {
        // [c, hid]
        let mut chunk = Vec::with_capacity(rows.len() * hid);
        for &(row, _) in rows {
            chunk.extend_from_slice(&hidden[row * hid..(row + 1) * hid]);
        }
        let input = Mat::new(&chunk, rows.len(), hid);
        // [c, vocab]
        let mut logits = head.logits(input, (vocab, hid));
        let losses: Vec<f64> = logits
            .par_chunks_mut(vocab)
            .zip(rows)
            .map(|(logits, &(_, label))| {
                let chosen = logits[label];
                let max = math::max(logits);
                let sum = math::exp_sum(logits, max);
                // What is left in `logits` becomes the gradient: softmax − one-hot.
                math::scale(logits, 1. / sum);
                logits[label] -= 1.;
                f64::from(sum.ln() + max) - f64::from(chosen)
            })
            .collect();
        loss += losses.iter().sum::<f64>();
        let dlogits = Mat::new(&logits, rows.len(), vocab);
        if let Some(dh) = &mut dh {
            let gradient = head.gradient(dlogits, (vocab, hid));
            for (&(row, _), gradient) in rows.iter().zip(gradient.chunks_exact(hid)) {
                dh[row * hid..(row + 1) * hid].copy_from_slice(gradient);
            }
        }
        if let Some(dw) = &mut dw {
            add_head_gradient(dw, dlogits, input);
        }
    }
    (loss as f32, [dh, dw])
}

/// Columns of the vocabulary at a time: the product before it is turned then stays in the caches.
const SLICE: usize = 3072;

/// `dw += dlogitsᵀ · input`, computed as `inputᵀ · dlogits` and turned: read so, the logits are streamed along their rows rather than one from each
/// page. (Predicted at 512 rows of SmolLM2's vocabulary: from 0.7 s to the 0.15 s that the arithmetic takes.)
///
/// # Shapes
/// `dlogits` `[c, vocab]`, `input` `[c, hid]`, `dw` `[vocab, hid]`.
fn add_head_gradient(dw: &mut [f32], dlogits: Mat, input: Mat) {
    let hid = input.t().rows();
    for (slice, dw) in dw.chunks_mut(SLICE * hid).enumerate() {
        let from = slice * SLICE;
        let width = dw.len() / hid;
        // [hid, width]
        let turned = product(input.t(), dlogits.columns(from, from + width));
        dw.par_chunks_mut(16 * hid).enumerate().for_each(|(group, dw)| {
            for (row, gradient) in dw.chunks_exact_mut(hid).enumerate() {
                let column = group * 16 + row;
                for (i, value) in gradient.iter_mut().enumerate() {
                    *value += turned[i * width + column];
                }
            }
        });
    }
}

struct CrossEntropy {
    /// Of hidden and head_w, from the forward pass.
    gradients: Mutex<[Gradient; 2]>,
}

impl Operation for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn backward(&self, _: &[Tensor], _: &Tensor, d: Cow<[f32]>, into: &mut [Slot]) -> Result<()> {
        let mut kept = self.gradients.lock().unwrap_or_else(PoisonError::into_inner);
        for (slot, gradient) in into.iter_mut().zip(kept.iter_mut()) {
            if slot.wanted() {
                gradient.add_to(slot, d[0])?;
            }
        }
        Ok(())
    }
}

/// A gradient that the forward pass left.
enum Gradient {
    /// Not wanted.
    None,
    /// Of the loss itself.
    Fresh(Vec<f32>),
    /// Taken by a backward pass, which used it up.
    Taken,
}

impl Gradient {
    /// Adds the gradient times `d`, in place: it may be as large as the head.
    ///
    /// # Errors
    /// The second time.
    fn add_to(&mut self, slot: &mut Slot, d: f32) -> Result<()> {
        match std::mem::replace(self, Self::Taken) {
            Self::Fresh(mut values) => {
                values.par_chunks_mut(CHUNK).for_each(|part| math::scale(part, d));
                slot.add(Cow::Owned(values));
                Ok(())
            }
            Self::None => Ok(()),
            Self::Taken => bail!("cross_entropy: a loss can be differentiated once; compute it again"),
        }
    }
}
