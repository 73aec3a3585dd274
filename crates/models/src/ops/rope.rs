//! Rotary embedding, one pass; the backward pass turns the other way.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::cpu::{CHUNK, Values, multiversion, uninit, values};
use super::flat;

/// See [`super::rope`].
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, positions: &Tensor, shape: [usize; 4]) -> Result<Tensor> {
    let positions = positions.flatten_all()?.to_vec1::<u32>()?;
    let max = cos.dim(0)?;
    if let Some(position) = positions.iter().find(|&&p| p as usize >= max) {
        bail!("rope: expected positions below {max} (the context length), found {position}")
    }
    let op =
        Rope { cos: cos.contiguous()?, sin: sin.contiguous()?, positions, shape: Shape::from(&shape[..]) };
    let x = x.contiguous()?;
    if x.track_op() { x.apply_op1(op) } else { x.apply_op1_no_bwd(&op) }
}

struct Rope {
    cos: Tensor,
    sin: Tensor,
    positions: Vec<u32>,
    shape: Shape,
}

impl Rope {
    fn turn(&self, x: &[f32], direction: f32) -> Result<Vec<f32>> {
        let (_, _, heads, d) = self.shape.dims4()?;
        let (cos, sin) = (Values::of(&self.cos)?, Values::of(&self.sin)?);
        // SAFETY: every position's heads are written.
        let mut y = unsafe { uninit(x.len()) };
        let width = heads * d;
        let count = (CHUNK / width.max(1)).max(1);
        y.par_chunks_mut(count * width)
            .zip(x.par_chunks(count * width))
            .zip(self.positions.par_chunks(count))
            .for_each(|((y, x), positions)| {
                for ((y, x), &p) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(positions) {
                    let at = p as usize * (d / 2)..(p as usize + 1) * (d / 2);
                    turn_heads(y, x, &cos[at.clone()], &sin[at], direction);
                }
            });
        Ok(y)
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _time = super::profile::time("rope forward");
        Ok((CpuStorage::F32(self.turn(values(x, layout)?, 1.)?), self.shape.clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let _time = super::profile::time("rope backward");
        let dy = flat(dy)?;
        Tensor::from_vec(self.turn(&Values::of(&dy)?, -1.)?, x.shape(), x.device()).map(Some)
    }
}

multiversion! {
    /// Turns the two halves of each head by one position's angles.
    pub fn turn_heads(y: &mut [f32], x: &[f32], cos: &[f32], sin: &[f32], direction: f32) {
        let half = cos.len();
        let sin = &sin[..half];
        for (y, x) in y.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
            let ((y1, y2), (x1, x2)) = (y.split_at_mut(half), x.split_at(half));
            for i in 0..half {
                let s = sin[i] * direction;
                y1[i] = x1[i] * cos[i] - x2[i] * s;
                y2[i] = x2[i] * cos[i] + x1[i] * s;
            }
        }
    }
}
