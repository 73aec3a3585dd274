//! Causal grouped-query attention in blocks of queries. A block's scores against all its keys exist
//! for a moment, in the forward pass and again in the backward pass; heads are not repeated: the
//! queries of a group share one product with their key head.

use std::sync::{Mutex, PoisonError};

use candle_core::{D, DType, Device, Result, Tensor, bail};

use super::node::{Composed, node};
use crate::attention::Sizes;
use crate::{cuda, profile};

/// The most queries of a block.
const QUERIES: usize = 256;
/// f32 scores of a block, of which the backward pass needs four.
const BLOCK_BYTES: usize = 256 << 20;
/// What hides a key: far below any score, and finite, so that a row without keys gives no NaN.
const HIDDEN: f32 = -1e30;

/// See [`crate::attention`]. `first` is the first key that each query sees, `[b, t]`.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f32,
    first: Vec<usize>,
    sizes: Sizes,
) -> Result<Tensor> {
    let first = first.iter().any(|first| *first > 0).then_some(first);
    let mut op = Blocks { scale, first, sizes, log_sums: None };
    let y = {
        let _time = profile::time("attention", "forward");
        let (q, k, v) = (q.detach(), k.detach(), v.detach());
        match cuda::attention(&q, &k, &v, op.first.as_deref(), scale, sizes)? {
            Some((y, log_sums)) => {
                op.log_sums = Some(log_sums);
                y
            }
            None => op.forward(&q, &k, &v)?,
        }
    };
    node(op, &[q, k, v], y)
}

struct Blocks {
    scale: f32,
    /// The first key that each query sees, `[b, t]`; `None` when all see the very first.
    first: Option<Vec<usize>>,
    sizes: Sizes,
    /// What a kernel of ours left for its backward pass.
    log_sums: Option<Tensor>,
}

impl Blocks {
    /// The queries of each block, as first query and number.
    fn blocks(&self) -> Vec<(usize, usize)> {
        let Sizes { b, t, s, h, .. } = self.sizes;
        let most = (BLOCK_BYTES / 4 / (b * h * s).max(1)).clamp(16, QUERIES);
        (0..t).step_by(most).map(|from| (from, most.min(t - from))).collect()
    }

    /// How many keys the last query of a block sees.
    fn keys(&self, (from, n): (usize, usize)) -> usize {
        self.sizes.s - self.sizes.t + from + n
    }

    /// Queries (or what has their shape) of a block: `[b, t, h·d]` -> `[b, n, h·d]`
    fn part(&self, x: &Tensor, (from, n): (usize, usize)) -> Result<Tensor> {
        x.reshape((self.sizes.b, self.sizes.t, ()))?.narrow(1, from, n)
    }

    /// The queries of a group as those of one head: `[b, n, h·d]` -> `[b, hkv, g·n, d]`
    fn grouped(&self, x: &Tensor, n: usize) -> Result<Tensor> {
        let Sizes { b, h, hkv, d, .. } = self.sizes;
        // [b, n, hkv, g, d] -> [b, hkv, g, n, d]
        let x = x.reshape((b, n, hkv, h / hkv, d))?.permute((0, 2, 3, 1, 4))?;
        x.contiguous()?.reshape((b, hkv, h / hkv * n, d))
    }

    /// The other way: `[b, hkv, g·n, d]` -> `[b, n, h·d]`
    fn rows(&self, x: &Tensor, n: usize) -> Result<Tensor> {
        let Sizes { b, h, hkv, d, .. } = self.sizes;
        let x = x.reshape((b, hkv, h / hkv, n, d))?.permute((0, 3, 1, 2, 4))?;
        x.contiguous()?.reshape((b, n, h * d))
    }

    /// Keys or values: `[b, s, hkv·d]` -> `[b, hkv, s, d]`
    fn heads(&self, x: &Tensor) -> Result<Tensor> {
        let Sizes { b, s, hkv, d, .. } = self.sizes;
        x.reshape((b, s, hkv, d))?.transpose(1, 2)?.contiguous()
    }

    /// The weights of a block, f32: `[b, hkv, g·n, keys]`
    fn weights(&self, q: &Tensor, k: &Tensor, block: (usize, usize)) -> Result<Tensor> {
        let Sizes { b, h, hkv, .. } = self.sizes;
        let (n, keys) = (block.1, self.keys(block));
        let scores = q.matmul(&k.narrow(2, 0, keys)?.contiguous()?.t()?)?.to_dtype(DType::F32)?;
        let scores = (scores * f64::from(self.scale))?.reshape((b, hkv, h / hkv, n, keys))?;
        let scores =
            if n == 1 { scores } else { scores.broadcast_add(&self.causal(block, q.device())?)? };
        let scores = match self.before_first(block, q.device())? {
            Some(hidden) => scores.broadcast_add(&hidden)?,
            None => scores,
        };
        candle_nn::ops::softmax_last_dim(&scores.reshape((b, hkv, h / hkv * n, keys))?)
    }

    /// What hides the keys after each query: `[n, keys]`
    fn causal(&self, block: (usize, usize), device: &Device) -> Result<Tensor> {
        let (n, keys) = (block.1, self.keys(block));
        let triangle = triangle(device)?.narrow(0, 0, n)?.narrow(1, 0, n)?;
        match keys - n {
            0 => triangle.contiguous(),
            seen => Tensor::cat(&[&Tensor::zeros((n, seen), DType::F32, device)?, &triangle], 1),
        }
    }

    /// The first keys of a block's queries, `b·n` of them.
    fn firsts(&self, (from, n): (usize, usize)) -> Option<Vec<usize>> {
        let t = self.sizes.t;
        self.first.as_ref().map(|first| {
            first.chunks_exact(t).flat_map(|row| row[from..from + n].iter().copied()).collect()
        })
    }

    /// What hides the keys before the first that each query sees: `[b, 1, 1, n, keys]`. Only the
    /// first keys' numbers go to the device.
    fn before_first(&self, block: (usize, usize), device: &Device) -> Result<Option<Tensor>> {
        let (b, n, keys) = (self.sizes.b, block.1, self.keys(block));
        let Some(first) = self.firsts(block) else { return Ok(None) };
        let first: Vec<u32> = first.into_iter().map(|first| first as u32).collect();
        let first = Tensor::from_vec(first, (b, 1, 1, n, 1), device)?;
        let key = Tensor::arange(0u32, keys as u32, device)?.reshape((1, 1, 1, 1, keys))?;
        let hidden = key.broadcast_lt(&first)?.to_dtype(DType::F32)?;
        Ok(Some((hidden * f64::from(HIDDEN))?))
    }

    /// 0 for queries that see no key, 1 for the others: `[b, n, 1]`; `None` when all see one.
    fn alive(&self, block: (usize, usize), like: &Tensor) -> Result<Option<Tensor>> {
        let Sizes { b, t, s, .. } = self.sizes;
        let (from, n) = block;
        let Some(first) = self.firsts(block) else { return Ok(None) };
        let alive =
            |(i, first): (usize, usize)| if first > s - t + from + i % n { 0f32 } else { 1. };
        let alive: Vec<f32> = first.into_iter().enumerate().map(alive).collect();
        if alive.iter().all(|alive| *alive == 1.) {
            return Ok(None);
        }
        Ok(Some(Tensor::from_vec(alive, (b, n, 1), like.device())?.to_dtype(like.dtype())?))
    }

    fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (k, v) = (self.heads(k)?, self.heads(v)?);
        let mut parts = Vec::new();
        for block in self.blocks() {
            let weights = self
                .weights(&self.grouped(&self.part(q, block)?, block.1)?, &k, block)?
                .to_dtype(v.dtype())?;
            let y = weights.matmul(&v.narrow(2, 0, self.keys(block))?.contiguous()?)?;
            let y = self.rows(&y, block.1)?;
            parts.push(match self.alive(block, &y)? {
                Some(alive) => y.broadcast_mul(&alive)?,
                None => y,
            });
        }
        if parts.len() == 1 { Ok(parts.swap_remove(0)) } else { Tensor::cat(&parts, 1) }
    }
}

impl Composed for Blocks {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn backward(&self, inputs: &[Tensor], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let [q, k, v] = inputs else { return Ok(Vec::new()) };
        if let Some(log_sums) = &self.log_sums {
            let (q, k, v) = (q.detach(), k.detach(), v.detach());
            let (first, scale, sizes) = (self.first.as_deref(), self.scale, self.sizes);
            let attended =
                cuda::Attended { inputs: [&q, &k, &v], y, log_sums, first, scale, sizes };
            return match cuda::attention_backward(attended, dy)? {
                Some(found) => Ok(found.into_iter().map(Some).collect()),
                None => bail!(
                    "attention: the kernels were switched off between the forward and the backward pass"
                ),
            };
        }
        let Sizes { s, .. } = self.sizes;
        let (q, k, v) = (q.detach(), self.heads(&k.detach())?, self.heads(&v.detach())?);
        let dtype = q.dtype();
        let mut dq = Vec::new();
        let (mut dk, mut dv) = (
            Tensor::zeros(k.shape(), DType::F32, k.device())?,
            Tensor::zeros(v.shape(), DType::F32, v.device())?,
        );
        for block in self.blocks() {
            let keys = self.keys(block);
            let mut dyb = self.part(dy, block)?;
            if let Some(alive) = self.alive(block, dy)? {
                dyb = dyb.broadcast_mul(&alive)?;
            }
            let dyb = self.grouped(&dyb, block.1)?;
            let of_block = |x: &Tensor| self.grouped(&self.part(x, block)?, block.1);
            let (qb, yb) = (of_block(&q)?, of_block(y)?);
            let (kb, vb) =
                (k.narrow(2, 0, keys)?.contiguous()?, v.narrow(2, 0, keys)?.contiguous()?);
            let weights = self.weights(&qb, &k, block)?;
            let along =
                (yb.to_dtype(DType::F32)? * dyb.to_dtype(DType::F32)?)?.sum_keepdim(D::Minus1)?;
            let slopes = dyb.matmul(&vb.t()?)?.to_dtype(DType::F32)?;
            let slopes = ((slopes.broadcast_sub(&along)? * &weights)? * f64::from(self.scale))?;
            let (weights, slopes) = (weights.to_dtype(dtype)?, slopes.to_dtype(dtype)?);
            let grown = |part: Tensor| part.to_dtype(DType::F32)?.pad_with_zeros(2, 0, s - keys);
            dv = (dv + grown(weights.transpose(2, 3)?.matmul(&dyb)?)?)?;
            dk = (dk + grown(slopes.transpose(2, 3)?.matmul(&qb)?)?)?;
            dq.push(self.rows(&slopes.matmul(&kb)?, block.1)?);
        }
        // [b, hkv, s, d] -> [b, s, hkv, d]
        let back = |x: Tensor, like: &Tensor| {
            x.transpose(1, 2)?.contiguous()?.to_dtype(like.dtype())?.reshape(like.shape())
        };
        Ok(vec![
            Some(Tensor::cat(&dq, 1)?.reshape(inputs[0].shape())?),
            Some(back(dk, &inputs[1])?),
            Some(back(dv, &inputs[2])?),
        ])
    }
}

/// `[256, 256]`: [`HIDDEN`] above the diagonal, 0 elsewhere. Made once for each device: it would be
/// copied there for each block otherwise.
fn triangle(device: &Device) -> Result<Tensor> {
    static MADE: Mutex<Vec<Tensor>> = Mutex::new(Vec::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(there) = made.iter().find(|tensor| tensor.device().same_device(device)) {
        return Ok(there.clone());
    }
    let values: Vec<f32> = (0..QUERIES)
        .flat_map(|i| (0..QUERIES).map(move |j| if j > i { HIDDEN } else { 0. }))
        .collect();
    let tensor = Tensor::from_vec(values, (QUERIES, QUERIES), device)?;
    made.push(tensor.clone());
    Ok(tensor)
}
