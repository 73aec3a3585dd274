//! The residual connection's addition.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::cpu::crew::Each;
use crate::cpu::{CHUNK, Values, multiversion, uninit};
use crate::operation::{Buffer, Operation, Slot, node};
use crate::profile;

/// See [`crate::add`].
pub(crate) fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (x, y) = (x.contiguous()?, y.contiguous()?);
    let sum = {
        let _time = profile::time("add", "forward");
        let (x, y) = (Values::of(&x)?, Values::of(&y)?);
        // SAFETY: every chunk is written.
        let mut sum = unsafe { uninit(x.len()) };
        sum.par_chunks_mut(CHUNK)
            .zip(x.par_chunks(CHUNK).zip(y.par_chunks(CHUNK)))
            .each(|(sum, (x, y))| forward(sum, x, y));
        sum
    };
    let shape = x.shape().clone();
    node(Add, &[&x, &y], sum, shape)
}

struct Add;

impl Operation for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn reads_input(&self, _: usize) -> bool {
        false
    }

    fn backward(&self, _: &[Tensor], _: &Tensor, dy: Buffer, into: &mut [Slot]) -> Result<()> {
        let [dx, other] = into else { return Ok(()) };
        // One buffer for both: the sublayer's side has read it before the other adds to it.
        if dx.wanted() {
            dx.add(Arc::clone(&dy));
        }
        if other.wanted() {
            other.add(dy);
        }
        Ok(())
    }
}

multiversion! {
    /// `sum = x + y`
    pub(crate) fn forward(sum: &mut [f32], x: &[f32], y: &[f32]) {
        for ((sum, x), y) in sum.iter_mut().zip(x).zip(y) {
            *sum = x + y;
        }
    }
}
