//! Attention with what some families add to it: a bound on the scores, a bias by distance.
//!
//! Without these the fused operation does the work; with them the scores are held in memory and
//! candle differentiates.

use candle_core::{D, DType, Device, Tensor};

use crate::error::Result;
use crate::pass::positions::Positions;
use tunebook_ops as ops;

/// How a family scores keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scores {
    /// Factor on the scores.
    pub(crate) scale: f32,
    /// A query sees this many keys, itself included.
    pub(crate) window: Option<usize>,
    /// Scores `s` become `c · tanh(s / c)` (Gemma 2).
    pub(crate) softcap: Option<f64>,
    /// For each head how much is added for each position of the key (ALiBi,
    /// <https://arxiv.org/abs/2108.12409>), before the factor.
    pub(crate) alibi: Option<Vec<f32>>,
}

/// Causal grouped-query attention.
///
/// # Shapes
/// `q` `[b, t, h, d]`, `k` and `v` `[b, s, hkv, d]` (or `[b, s, hkv·d]`) -> `[b, t, h·d]`
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    positions: &Positions,
    scores: &Scores,
) -> Result<Tensor> {
    let how = ops::Attention {
        scale: scores.scale,
        starts: positions.starts().map(<[usize]>::to_vec),
        window: scores.window,
        segments: positions.segments().map(<[Vec<usize>]>::to_vec),
        bf16: positions.bf16(),
    };
    if scores.softcap.is_none() && scores.alibi.is_none() {
        return Ok(ops::attention(q, k, v, &how)?);
    }
    plain(q, k, v, &how, scores)
}

/// With all scores in memory.
fn plain(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    how: &ops::Attention,
    scores: &Scores,
) -> Result<Tensor> {
    let (b, t, h, d) = q.dims4()?;
    let s = k.dim(1)?;
    // [b, s, hkv·d] -> [b, s, hkv, d]
    let (k, v) = (k.reshape((b, s, (), d))?, v.reshape((b, s, (), d))?);
    let hkv = k.dim(2)?;
    // [b, t, h, d] -> [b, h, t, d]
    let q = q.transpose(1, 2)?.contiguous()?;
    // [b, s, hkv, d] -> [b, h, s, d]
    let spread = |x: &Tensor| -> Result<Tensor> {
        let x = x.transpose(1, 2)?.unsqueeze(2)?;
        Ok(x.broadcast_as((b, hkv, h / hkv, s, d))?.contiguous()?.reshape((b, h, s, d))?)
    };
    let (k, v) = (spread(&k)?, spread(&v)?);
    let mut x = (q.matmul(&k.t()?)? * f64::from(scores.scale))?.to_dtype(DType::F32)?;
    if let Some(cap) = scores.softcap {
        x = ((x / cap)?.tanh()? * cap)?;
    }
    let first = how.first_keys(b, t, s)?;
    let (blocked, alive) = mask(&first, (b, t, s), q.device())?;
    x = x.broadcast_add(&blocked)?;
    if let Some(slopes) = &scores.alibi {
        x = x.broadcast_add(&alibi(slopes, &first, (b, t, s), scores.scale, q.device())?)?;
    }
    let weights = candle_nn::ops::softmax(&x, D::Minus1)?.to_dtype(v.dtype())?;
    // [b, h, t, d] -> [b, t, h, d] -> [b, t, h·d]
    let y = weights.matmul(&v)?.transpose(1, 2)?.contiguous()?;
    Ok(y.broadcast_mul(&alive.to_dtype(y.dtype())?)?.reshape((b, t, h * d))?)
}

/// What is added to the scores of hidden keys, `[b, 1, t, s]`, and 0 for queries that see none,
/// `[b, t, 1, 1]`.
fn mask(
    first: &[usize],
    (b, t, s): (usize, usize, usize),
    device: &Device,
) -> Result<(Tensor, Tensor)> {
    let mut blocked = vec![-1e30f32; b * t * s];
    let mut alive = vec![1f32; b * t];
    for (at, first) in first.iter().enumerate() {
        let last = s - t + at % t;
        if *first > last {
            alive[at] = 0.0;
        } else {
            blocked[at * s + first..=at * s + last].fill(0.0);
        }
    }
    Ok((
        Tensor::from_vec(blocked, (b, 1, t, s), device)?,
        Tensor::from_vec(alive, (b, t, 1, 1), device)?,
    ))
}

/// What ALiBi adds to the scores, `[b, h, t, s]`, rounded to bf16 as in transformers. A key's
/// position counts from the first that its query sees; only differences matter.
fn alibi(
    slopes: &[f32],
    first: &[usize],
    (b, t, s): (usize, usize, usize),
    scale: f32,
    device: &Device,
) -> Result<Tensor> {
    let mut bias = Vec::with_capacity(b * slopes.len() * t * s);
    for first in first.chunks_exact(t) {
        for slope in slopes {
            let slope = half::bf16::from_f32(*slope);
            for first in first {
                bias.extend((0..s).map(|key| {
                    let position = half::bf16::from_f32(key.saturating_sub(*first) as f32);
                    (slope * position).to_f32() * scale
                }));
            }
        }
    }
    Ok(Tensor::from_vec(bias, (b, slopes.len(), t, s), device)?)
}

/// ALiBi's slopes: a geometric series, with every second step of a finer one where the number of
/// heads is no power of two.
pub(crate) fn alibi_slopes(heads: usize) -> Vec<f32> {
    let whole = 1usize << heads.max(1).ilog2();
    let base = |n: usize| 2f32.powf(-(2f32.powf(-((n as f32).log2() - 3.0))));
    let mut slopes: Vec<f32> = (1..=whole).map(|power| base(whole).powi(power as i32)).collect();
    slopes.extend((0..heads - whole).map(|i| base(2 * whole).powi(2 * i as i32 + 1)));
    slopes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_the_papers() {
        assert_eq!(
            alibi_slopes(8),
            [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]
        );
        let six = alibi_slopes(6);
        assert_eq!((six.len(), six[0], six[4], six[5]), (6, 0.25, 0.5, 0.125));
    }

    /// Without bound and bias the plain form is the fused one, padding and window included.
    #[test]
    fn the_plain_form_is_the_fused_one() {
        let device = Device::Cpu;
        let tensor = |shape| Tensor::rand(-1f32, 1f32, shape, &device).unwrap();
        let (q, k, v) = (tensor((2, 3, 4, 8)), tensor((2, 5, 2, 8)), tensor((2, 5, 2, 8)));
        for window in [None, Some(2)] {
            let how = ops::Attention {
                scale: 0.3,
                starts: Some(vec![1, 3]),
                window,
                ..Default::default()
            };
            let scores = Scores { scale: 0.3, window, ..Default::default() };
            let fused = ops::attention(&q, &k, &v, &how).unwrap();
            let ours = plain(&q, &k, &v, &how, &scores).unwrap();
            let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (a, b) in flat(&fused).iter().zip(flat(&ours)) {
                assert!((a - b).abs() < 1e-5, "{a} {b}");
            }
        }
    }
}
