//! Rotary embedding, one pass; the backward pass turns the other way.

use std::borrow::Cow;

use candle_core::{Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::cpu::crew::Each;
use super::cpu::{CHUNK, Values, multiversion};
use super::operation::{Operation, Slot, node};
use super::profile;

/// See [`super::rope`].
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, positions: &Tensor, shape: [usize; 4]) -> Result<Tensor> {
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
        let mut y = Values::of(&x)?.to_vec();
        op.turn(&mut y, 1.)?;
        y
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
    fn turn(&self, x: &mut [f32], direction: f32) -> Result<()> {
        let (cos, sin) = (Values::of(&self.cos)?, Values::of(&self.sin)?);
        let half = self.cos.dim(1)?;
        let (width, count) = (self.width, (CHUNK / self.width.max(1)).max(1));
        x.par_chunks_mut((count * width).max(1)).zip(self.positions.par_chunks(count)).each(
            |(x, positions)| {
                for (x, &p) in x.chunks_exact_mut(width).zip(positions) {
                    let at = p as usize * half..(p as usize + 1) * half;
                    turn_heads(x, &cos[at.clone()], &sin[at], direction);
                }
            },
        );
        Ok(())
    }
}

impl Operation for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn reads_input(&self, _: usize) -> bool {
        false
    }

    fn backward(&self, _: &[Tensor], _: &Tensor, dy: Cow<[f32]>, into: &mut [Slot]) -> Result<()> {
        let mut dx = dy.into_owned();
        self.turn(&mut dx, -1.)?;
        into[0].add(Cow::Owned(dx));
        Ok(())
    }
}

multiversion! {
    /// Turns the two halves of each head by one position's angles.
    pub fn turn_heads(x: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
        let half = cos.len();
        let sin = &sin[..half];
        for x in x.chunks_exact_mut(2 * half) {
            let (x1, x2) = x.split_at_mut(half);
            for i in 0..half {
                let (a, b, s) = (x1[i], x2[i], sin[i] * direction);
                x1[i] = a * cos[i] - b * s;
                x2[i] = b * cos[i] + a * s;
            }
        }
    }
}
