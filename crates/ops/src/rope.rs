//! Rotary embedding, one pass; the backward pass turns the other way.

use candle_core::{Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::crew::Each;
use crate::cpu::{CHUNK, Values, multiversion, uninit};
use crate::operation::{Buffer, Operation, Slot, node};
use crate::profile;

/// See [`crate::rope`].
pub(crate) fn rope(
    x: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    positions: &Tensor,
    shape: [usize; 4],
) -> Result<Tensor> {
    let positions = positions.flatten_all()?.to_vec1::<u32>()?;
    let max = cos.dim(0)?;
    if let Some(position) = positions.iter().find(|&&p| p as usize >= max) {
        bail!("rope: expected positions below {max} (the context length), found {position}")
    }
    let width = shape[2] * shape[3];
    let op = Rope { cos: cos.contiguous()?, sin: sin.contiguous()?, positions, width };
    let x = x.contiguous()?;
    let y = {
        let _time = profile::time("rope", "forward");
        op.turn(&Values::of(&x)?, 1.)?
    };
    node(op, &[&x], y, Shape::from(&shape[..]))
}

struct Rope {
    cos: Tensor,
    sin: Tensor,
    positions: Vec<u32>,
    /// Values a position: all its heads.
    width: usize,
}

impl Rope {
    fn turn(&self, x: &[f32], direction: f32) -> Result<Vec<f32>> {
        let (cos, sin) = (Values::of(&self.cos)?, Values::of(&self.sin)?);
        let half = self.cos.dim(1)?;
        let (width, count) = (self.width, (CHUNK / self.width.max(1)).max(1));
        let chunk = (count * width).max(1);
        // SAFETY: every head of every position is written.
        let mut y = unsafe { uninit(x.len()) };
        let each =
            y.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).zip(self.positions.par_chunks(count));
        each.each(|((y, x), positions)| {
            for ((y, x), &p) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(positions)
            {
                let at = p as usize * half..(p as usize + 1) * half;
                turn_heads(y, x, &cos[at.clone()], &sin[at], direction);
            }
        });
        Ok(y)
    }
}

impl Operation for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn reads_input(&self, _: usize) -> bool {
        false
    }

    fn backward(&self, _: &[Tensor], _: &Tensor, dy: Buffer, into: &mut [Slot]) -> Result<()> {
        into[0].add(self.turn(&dy, -1.)?);
        Ok(())
    }
}

multiversion! {
    /// Turns the two halves of each head by one position's angles.
    pub(crate) fn turn_heads(y: &mut [f32], x: &[f32], cos: &[f32], sin: &[f32], direction: f32) {
        let half = cos.len();
        let sin = &sin[..half];
        for (y, x) in y.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
            let ((y1, y2), (x1, x2)) = (y.split_at_mut(half), x.split_at(half));
            for i in 0..half {
                let (a, b, s) = (x1[i], x2[i], sin[i] * direction);
                y1[i] = a * cos[i] - b * s;
                y2[i] = b * cos[i] + a * s;
            }
        }
    }
}
