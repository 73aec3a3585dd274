//! What the backward passes of both normalisations share: the division of the rows among threads.

mod layer;
mod rms;

pub(crate) use layer::layer_norm;
pub(crate) use rms::rms_norm;

use rayon::prelude::*;

use crate::cpu::crew::Each;
use crate::cpu::math::add_scaled;
use crate::cpu::{CHUNK, uninit};

/// Some rows of a backward pass.
pub(crate) struct Rows<'a> {
    /// Their gradient, to be written or, if `accumulate`, added to.
    pub dx: &'a mut [f32],
    /// Whether `dx` holds a sum already.
    pub accumulate: bool,
    /// The input.
    pub x: &'a [f32],
    /// The gradient of the result.
    pub dy: &'a [f32],
}

/// The gradient of `x`, rows of `n`, added to `before`; and those of `P` parameters of the size of
/// a row if they are `trained` (empty otherwise), to which `work` adds what its rows give.
pub(crate) fn backward<const P: usize>(
    before: Option<Vec<f32>>,
    x: &[f32],
    dy: &[f32],
    (n, trained): (usize, bool),
    work: impl Fn(Rows, &mut [Vec<f32>; P]) + Sync,
) -> (Vec<f32>, [Vec<f32>; P]) {
    let accumulate = before.is_some();
    // SAFETY: every row is written, or was there before.
    let mut dx = before.unwrap_or_else(|| unsafe { uninit(x.len()) });
    let rows = (CHUNK / n).max(1) * n;
    let zeros = || [(); P].map(|()| vec![0.; if trained { n } else { 0 }]);
    let mut parts = vec![[(); P].map(|()| Vec::new()); x.len().div_ceil(rows)];
    let each = dx.par_chunks_mut(rows).zip(x.par_chunks(rows)).zip(dy.par_chunks(rows));
    each.zip(&mut parts).each(|(((dx, x), dy), part)| {
        *part = zeros();
        work(Rows { dx, accumulate, x, dy }, part);
    });
    let mut sums = zeros();
    // In order, so that a run repeats bit for bit.
    for part in &parts {
        for (sum, part) in sums.iter_mut().zip(part) {
            add_scaled(sum, 1., part);
        }
    }
    (dx, sums)
}
