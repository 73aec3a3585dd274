//! Cross-entropy of the output head, in chunks of rows.
//!
//! The idea is Liger Kernel's (<https://arxiv.org/abs/2410.10989>): the forward pass already computes the gradient of
//! the hidden states, chunk by chunk, so that no more than one chunk of logits exists at a time and none is kept.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::IGNORE;
use super::cpu::gemm::{Mat, Start, Term, product, products};
use super::cpu::{CHUNK, math, values};

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
        gradients: Mutex::new([Gradient::None, Gradient::None]),
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
    /// Of hidden and head_w, from the forward pass.
    gradients: Mutex<[Gradient; 2]>,
}

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(
        &self,
        h: &CpuStorage,
        lh: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let _time = super::profile::time("cross_entropy forward");
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
        *self.gradients.lock().unwrap_or_else(|e| e.into_inner()) =
            [dh, dw].map(|gradient| gradient.map_or(Gradient::None, Gradient::Fresh));
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(())))
    }

    fn bwd(
        &self,
        h: &Tensor,
        w: &Tensor,
        _loss: &Tensor,
        d: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let _time = super::profile::time("cross_entropy backward");
        let d = d.to_scalar::<f32>()?;
        let mut kept = self.gradients.lock().unwrap_or_else(|e| e.into_inner());
        let dh = kept[0].scaled(d, h)?;
        let dw = kept[1].scaled(d, w)?;
        Ok((dh, dw))
    }
}

/// A gradient that the forward pass left.
enum Gradient {
    /// Not wanted.
    None,
    /// Of the loss itself.
    Fresh(Vec<f32>),
    /// Already scaled by the loss's own gradient and handed out.
    Given(Tensor, f32),
}

impl Gradient {
    /// The gradient times `d`: in place the first time, for it may be as large as the head.
    fn scaled(&mut self, d: f32, like: &Tensor) -> Result<Option<Tensor>> {
        match self {
            Self::None => Ok(None),
            Self::Given(gradient, by) if *by == d => Ok(Some(gradient.clone())),
            Self::Given(gradient, by) => gradient.affine(f64::from(d) / f64::from(*by), 0.).map(Some),
            Self::Fresh(values) => {
                let mut values = std::mem::take(values);
                values.par_chunks_mut(CHUNK).for_each(|part| math::scale(part, d));
                let gradient = Tensor::from_vec(values, like.shape(), like.device())?;
                *self = Self::Given(gradient.clone(), d);
                Ok(Some(gradient))
            }
        }
    }
}
