//! Dropout masks that are the same whenever the same numbers draw them.

use candle_core::Tensor;
use rayon::prelude::*;
use tunebook_models::{Dropout, Mode};
use tunebook_ops::cpu::crew::Each;

use crate::train::rng::Stream;

/// A mask of 0 and 1/(1 − p) like `x` for the module at `path`, or `None` where nothing is dropped.
pub(crate) fn mask(
    mode: Mode,
    path: &str,
    drop: f64,
    x: &Tensor,
) -> candle_core::Result<Option<Tensor>> {
    let Some(Dropout { seed, draw }) = mode.dropout.filter(|_| drop != 0.0) else {
        return Ok(None);
    };
    if !x.device().is_cpu() {
        return device_mask(path, seed, draw, drop, x).map(Some);
    }
    // A stream for each stretch, so that the threads that draw do not change what is drawn.
    const STRETCH: usize = 1 << 14;
    let mut mask = vec![0f32; x.elem_count()];
    mask.par_chunks_mut(STRETCH).enumerate().each(|(stretch, mask)| {
        Stream::new(seed, &format!("{path}.dropout.{stretch}"), draw).dropout(mask, drop);
    });
    Ok(Some(Tensor::from_vec(mask, x.shape(), x.device())?))
}

/// A dropout mask like `x` that is drawn on its device; only a few numbers for each row and column
/// come from the host.
///
/// An element is dropped where `r·x + s (mod 2³²)` lies below the threshold, with `r` (odd) and `s`
/// random for each row and `x` random for each column: any two elements are independent of each
/// other.
fn device_mask(
    path: &str,
    seed: u64,
    draw: u64,
    drop: f64,
    x: &Tensor,
) -> candle_core::Result<Tensor> {
    let width = x.dims().last().copied().unwrap_or(1);
    let rows = x.elem_count() / width.max(1);
    let mut stream = Stream::new(seed, &format!("{path}.dropout.device"), draw);
    let mut numbers =
        |n: usize, set: u32| (0..n).map(|_| stream.bits() | set).collect::<Vec<u32>>();
    let factors = Tensor::from_vec(numbers(rows, 1), (rows, 1), x.device())?;
    let offsets = Tensor::from_vec(numbers(rows, 0), (rows, 1), x.device())?;
    let columns = Tensor::from_vec(numbers(width, 0), (1, width), x.device())?;
    // [rows, width]; u32 arithmetic wraps
    let hash = factors.broadcast_mul(&columns)?.broadcast_add(&offsets)?;
    let threshold = (drop * 4_294_967_296.0) as u32;
    let kept = hash.ge(threshold)?.to_dtype(x.dtype())?;
    (kept * (1.0 / (1.0 - drop)))?.reshape(x.shape())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn a_mask_drawn_on_the_device_drops_its_part_everywhere_and_repeats() {
        let x = Tensor::zeros((4, 128, 256), DType::F32, &Device::Cpu).unwrap();
        let mask = |draw| {
            device_mask("p", 1, draw, 0.1, &x)
                .unwrap()
                .reshape((512, 256))
                .unwrap()
                .to_vec2::<f32>()
                .unwrap()
        };
        let rows = mask(0);
        assert!(rows == mask(0) && rows != mask(1));
        let dropped =
            |values: &mut dyn Iterator<Item = f32>| values.filter(|value| *value == 0.0).count();
        let all = dropped(&mut rows.iter().flatten().copied());
        assert!((all as f64 / (512.0 * 256.0) - 0.1).abs() < 0.005, "{all}");
        assert!(
            rows.iter().flatten().all(|value| *value == 0.0 || (*value - 1.0 / 0.9).abs() < 1e-6)
        );
        // Neighbours, in a row and in a column, are dropped together as often as chance has it: in
        // one of a hundred cases.
        let (mut right, mut below) = (0, 0);
        for (i, row) in rows.iter().enumerate() {
            for (j, value) in row.iter().enumerate().filter(|(_, value)| **value == 0.0) {
                right += usize::from(row.get(j + 1) == Some(value));
                below += usize::from(rows.get(i + 1).map(|next| next[j]) == Some(*value));
            }
        }
        for pairs in [right, below] {
            assert!((pairs as f64 / (512.0 * 256.0) - 0.01).abs() < 0.002, "{right} {below}");
        }
    }
}
