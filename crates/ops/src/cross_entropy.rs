//! Cross-entropy of the output head, in chunks of rows and slices of the vocabulary.
//!
//! The idea is Liger Kernel's (<https://arxiv.org/abs/2410.10989>): the forward pass already
//! computes the gradient of the hidden states, chunk by chunk, so that no more than one chunk of
//! logits exists at a time and none is kept.
//!
//! A chunk's logits lie slice by slice, `[slice][rows][2016]`. A slice is a few megabytes: what the
//! product has written is still in the cache when each row's highest logit and sum are updated from
//! it; what becomes the gradient is still there when the next product reads it. The first pass
//! leaves powers relative to the row's highest logit so far, so the second only scales them. With
//! whole rows side by side, the rows of a block would lie a multiple of the page size apart and
//! meet in the same few sets of the cache. Figures: `docs/measurements.md`, "Cross-entropy".

use std::cell::Cell;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::Matrix;
use crate::cpu::blocks::BlockMat;
use crate::cpu::crew::Each;
use crate::cpu::gemm::{Mat, Right as Side, Start, Term, product, products};
use crate::cpu::half::{self, HalfMat, Right};
use crate::cpu::{CHUNK, HalfValues, Values, math, uninit};
use crate::operation::{Buffer, Operation, Slot, node};
use crate::quantized::Quantized;
use crate::{IGNORE, profile};

/// Logits held at a time. Each chunk packs the whole head twice: 96 MiB is 512 rows of a vocabulary
/// of 49152.
const CHUNK_BYTES: usize = 96 << 20;

/// Rows of f32 logits in a chunk of about so many bytes: as many in each as divide all `rows`
/// evenly.
pub(super) fn chunk_rows(rows: usize, vocab: usize, bytes: usize) -> usize {
    let most = (bytes / 4 / vocab.max(1)).max(8);
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}

/// See [`crate::logits_held`].
pub(crate) fn logits_held(rows: usize, vocab: usize) -> usize {
    chunk_rows(rows, vocab, CHUNK_BYTES).min(rows) * vocab
}

/// Columns of the vocabulary at a time: whole panels of 48 and of 32 columns, and an even number of
/// cache lines that is no power of two.
const SLICE: usize = 2016;

thread_local! {
    /// The logits' memory, for the next step of one chunk. It is the largest piece that comes and
    /// goes while all activations are there; given back, it would be cut up by the next forward
    /// pass, and the next loss would take new memory (100 MB of 1140 at 4 x 128 tokens).
    static LOGITS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// See [`crate::cross_entropy`].
pub(crate) fn cross_entropy(
    hidden: &Tensor,
    head_w: &Matrix,
    labels: &[i64],
) -> Result<(Tensor, usize)> {
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
    /// `logits = x · headᵀ` for the columns `from..from + width` of the vocabulary.
    fn logits(&self, logits: &mut [f32], x: Mat, from: usize, width: usize, hid: usize) {
        match self {
            Self::Full(head) => {
                let b = Mat::new(&head[from * hid..], width, hid).t();
                products(logits, &[Term { a: x, b: b.into(), alpha: 1. }], Start::Zero);
            }
            Self::Half(head) => {
                let b = Right::Half(HalfMat::new(&head[from * hid..], width, hid).t());
                half::products(logits, &[half::Term { a: x, b, alpha: 1. }], Start::Zero);
            }
            Self::Blocks(head) => {
                let b = Side::Blocks(BlockMat::new(head).rows_from(from, from + width).t());
                products(logits, &[Term { a: x, b, alpha: 1. }], Start::Zero);
            }
        }
    }

    /// `dx += dlogits · head` for the same columns.
    fn add_gradient(&self, dx: &mut [f32], dlogits: Mat, from: usize, width: usize, hid: usize) {
        match self {
            Self::Full(head) => {
                let b = Mat::new(&head[from * hid..], width, hid);
                products(dx, &[Term { a: dlogits, b: b.into(), alpha: 1. }], Start::Accumulate);
            }
            Self::Half(head) => {
                let b = Right::Half(HalfMat::new(&head[from * hid..], width, hid));
                half::products(dx, &[half::Term { a: dlogits, b, alpha: 1. }], Start::Accumulate);
            }
            Self::Blocks(head) => {
                let b = Side::Blocks(BlockMat::new(head).rows_from(from, from + width));
                products(dx, &[Term { a: dlogits, b, alpha: 1. }], Start::Accumulate);
            }
        }
    }
}

/// The softmax of one row, as far as it has been seen.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    /// Of `e^(logit − max)` over all logits but the label's.
    others: f32,
    /// The label's logit.
    chosen: f32,
}

impl Running {
    const NONE: Self = Self { max: f32::NEG_INFINITY, others: 0., chosen: 0. };

    /// Takes in more logits, which become `e^(logit − max)` with the maximum so far, that of the
    /// label 0; `label` is counted from the first of them.
    fn add(&mut self, logits: &mut [f32], label: Option<usize>) {
        let max = self.max.max(math::max(logits));
        if let Some(label) = label {
            self.chosen = logits[label];
            // So that what the label leaves to the others does not drown in what it has itself.
            logits[label] = f32::NEG_INFINITY;
        }
        self.others = self.others * math::exp(self.max - max) + math::exp_sum(logits, max);
        self.max = max;
    }

    fn sum(&self) -> f32 {
        self.others + math::exp(self.chosen - self.max)
    }

    fn loss(&self) -> f64 {
        f64::from(self.sum().ln()) + f64::from(self.max) - f64::from(self.chosen)
    }

    /// What [`Running::add`] left of a slice, when the maximum was `max`, becomes the gradient:
    /// softmax − one-hot.
    fn gradient(&self, powers: &mut [f32], max: f32, label: Option<usize>) {
        let sum = self.sum();
        math::scale(powers, math::exp(max - self.max) / sum);
        if let Some(label) = label {
            powers[label] = -self.others / sum;
        }
    }
}

/// The summed loss over the labelled rows (`(row, label)`), and the gradients wanted of hidden and
/// head_w.
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
    let size = chunk_rows(rows.len(), vocab, CHUNK_BYTES);
    let mut all = LOGITS.take();
    let needed = logits_held(rows.len(), vocab);
    if all.len() < needed {
        // Before more is asked for.
        drop(all);
        // SAFETY: every slice is written by its product before it is read.
        all = unsafe { uninit(needed) };
    }
    let mut loss = 0f64;
    for rows in rows.chunks(size) {
        let count = rows.len();
        // [c, hid]
        let mut chunk = Vec::with_capacity(count * hid);
        for &(row, _) in rows {
            chunk.extend_from_slice(&hidden[row * hid..(row + 1) * hid]);
        }
        let input = Mat::new(&chunk, count, hid);
        let mut running = vec![Running::NONE; count];
        // The maximum that each slice's powers are relative to, `[slice][c]`.
        let mut maxima = vec![0f32; vocab.div_ceil(SLICE) * count];
        let slices = |all: &mut [f32], work: &mut dyn FnMut(usize, usize, &mut [f32])| {
            for (index, logits) in all[..count * vocab].chunks_mut(count * SLICE).enumerate() {
                work(index * SLICE, logits.len() / count, logits);
            }
        };
        slices(&mut all, &mut |from, width, logits| {
            head.logits(logits, input, from, width, hid);
            let maxima = &mut maxima[from / SLICE * count..][..count];
            let each = logits.par_chunks_mut(width).zip(&mut running).zip(maxima).zip(rows);
            each.each(|(((logits, running), max), &(_, label))| {
                running.add(logits, label.checked_sub(from).filter(|label| *label < width));
                *max = running.max;
            });
        });
        loss += running.iter().map(Running::loss).sum::<f64>();
        if !want[0] && !want[1] {
            continue;
        }
        let mut dx = vec![0f32; if want[0] { count * hid } else { 0 }];
        slices(&mut all, &mut |from, width, logits| {
            let maxima = &maxima[from / SLICE * count..][..count];
            let each = logits.par_chunks_mut(width).zip(&running).zip(maxima).zip(rows);
            each.each(|(((powers, running), &max), &(_, label))| {
                running.gradient(
                    powers,
                    max,
                    label.checked_sub(from).filter(|label| *label < width),
                );
            });
            let dlogits = Mat::new(logits, count, width);
            if want[0] {
                head.add_gradient(&mut dx, dlogits, from, width, hid);
            }
            if let Some(dw) = &mut dw {
                add_head_gradient(&mut dw[from * hid..(from + width) * hid], dlogits, input);
            }
        });
        if let Some(dh) = &mut dh {
            for (&(row, _), gradient) in rows.iter().zip(dx.chunks_exact(hid)) {
                dh[row * hid..(row + 1) * hid].copy_from_slice(gradient);
            }
        }
    }
    // Of a long batch the activations are so many more that the backward pass had better have the
    // memory.
    if rows.len() <= size {
        LOGITS.set(all);
    }
    (loss as f32, [dh, dw])
}

/// `dw += dlogitsᵀ · input` for some columns of the vocabulary, computed as `inputᵀ · dlogits` and
/// turned: read so, the logits are streamed along their rows rather than one from each page.
/// Figures: `docs/measurements.md`, "Cross-entropy".
///
/// # Shapes
/// `dlogits` `[c, width]`, `input` `[c, hid]`, `dw` `[width, hid]`.
fn add_head_gradient(dw: &mut [f32], dlogits: Mat, input: Mat) {
    let hid = input.t().rows();
    let width = dw.len() / hid;
    // [hid, width]
    let turned = product(input.t(), dlogits);
    dw.par_chunks_mut(16 * hid).enumerate().each(|(group, dw)| {
        for (row, gradient) in dw.chunks_exact_mut(hid).enumerate() {
            let column = group * 16 + row;
            for (i, value) in gradient.iter_mut().enumerate() {
                *value += turned[i * width + column];
            }
        }
    });
}

struct CrossEntropy {
    /// Of hidden and head_w, from the forward pass.
    gradients: Mutex<[Gradient; 2]>,
}

impl Operation for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn reads_input(&self, _: usize) -> bool {
        false
    }

    fn backward(&self, _: &[Tensor], _: &Tensor, d: Buffer, into: &mut [Slot]) -> Result<()> {
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
                values.par_chunks_mut(CHUNK).each(|part| math::scale(part, d));
                slot.add(values);
                Ok(())
            }
            Self::None => Ok(()),
            Self::Taken => {
                bail!("cross_entropy: a loss can be differentiated once; compute it again")
            }
        }
    }
}
