//! Cross-entropy of the output head, in chunks of rows.
//!
//! The idea is Liger Kernel's (<https://arxiv.org/abs/2410.10989>): the forward pass already computes the gradient of
//! the hidden states, chunk by chunk, so that no more than one chunk of logits exists at a time and none is kept.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::gemm::{Mat, Start, Term, product, products};
use super::cpu::{Values, math, values};
use super::{IGNORE, flat};

/// Logits held at a time.
const CHUNK_BYTES: usize = 32 << 20;

/// See [`super::cross_entropy`].
pub fn cross_entropy(hidden: &Tensor, head_w: &Tensor, labels: &[i64]) -> Result<(Tensor, usize)> {
    let rows: Vec<(usize, usize)> = labels
        .iter()
        .enumerate()
        .filter(|&(_, &label)| label != IGNORE)
        .map(|(row, &label)| (row, label as usize))
        .collect();
    let count = rows.len();
    let (hidden, head_w) = (hidden.contiguous()?, head_w.contiguous()?);
    let op = CrossEntropy {
        rows,
        want: [hidden.track_op(), head_w.track_op()],
        gradients: Mutex::new([None, None]),
    };
    let loss = if hidden.track_op() || head_w.track_op() {
        hidden.apply_op2(&head_w, op)?
    } else {
        hidden.apply_op2_no_bwd(&head_w, &op)?
    };
    Ok((loss, count))
}

struct CrossEntropy {
    /// Labelled rows and their labels.
    rows: Vec<(usize, usize)>,
    want: [bool; 2],
    /// Of hidden and head_w, from the forward pass; a backward pass takes them.
    gradients: Mutex<[Option<Vec<f32>>; 2]>,
}

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, h: &CpuStorage, lh: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let (vocab, hid) = lw.shape().dims2()?;
        let (hidden, w) = (values(h, lh)?, values(w, lw)?);
        let head = Mat::new(w, vocab, hid);
        let mut dh = self.want[0].then(|| vec![0f32; hidden.len()]);
        let mut dw = self.want[1].then(|| vec![0f32; w.len()]);
        let most = (CHUNK_BYTES / 4 / vocab.max(1)).max(8);
        let chunks = self.rows.len().div_ceil(most).max(1);
        let size = self.rows.len().div_ceil(chunks).max(1);
        let mut loss = 0f64;
        for rows in self.rows.chunks(size) {
            // [c, hid]
            let mut chunk = Vec::with_capacity(rows.len() * hid);
            for &(row, _) in rows {
                chunk.extend_from_slice(&hidden[row * hid..(row + 1) * hid]);
            }
            let input = Mat::new(&chunk, rows.len(), hid);
            // [c, vocab]
            let mut logits = product(input, head.t());
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
                let gradient = product(dlogits, head);
                for (&(row, _), gradient) in rows.iter().zip(gradient.chunks_exact(hid)) {
                    dh[row * hid..(row + 1) * hid].copy_from_slice(gradient);
                }
            }
            if let Some(dw) = &mut dw {
                products(dw, &[Term { a: dlogits.t(), b: input, alpha: 1. }], Start::Accumulate);
            }
        }
        *self.gradients.lock().unwrap_or_else(|e| e.into_inner()) = [dh, dw];
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(())))
    }

    fn bwd(&self, h: &Tensor, w: &Tensor, _loss: &Tensor, d: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let d = Values::of(&flat(d)?)?[0];
        let mut kept = self.gradients.lock().unwrap_or_else(|e| e.into_inner());
        let mut scaled = |which: usize, like: &Tensor| -> Result<Option<Tensor>> {
            // Taken, not copied: candle runs a node's backward once, and the buffer is as large as its tensor. A second
            // backward pass over the same graph finds it as it was left and scales it again from there.
            let Some(mut gradient) = kept[which].take() else { return Ok(None) };
            gradient.par_chunks_mut(super::cpu::CHUNK).for_each(|part| math::scale(part, d));
            Tensor::from_vec(gradient, like.shape(), like.device()).map(Some)
        };
        Ok((scaled(0, h)?, scaled(1, w)?))
    }
}
