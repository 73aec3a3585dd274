//! Few rows against a weight as it is stored (`y = x · wᵀ`): what decoding is made of.
//!
//! A decoding step is bound by reading the weights, so each is read once, in the form that it has
//! in memory: f32, bf16, or quantised blocks that become numbers in registers. For more than
//! [`FEW`] rows a few weight rows at a time are dequantised into the first-level cache, where all
//! rows of `x` meet them.
//!
//! Every result is one dot product in sixteen lanes, and the order of its additions depends on the
//! depth alone. A row's results are therefore bit-identical whichever rows are computed with it.

#[cfg(target_arch = "x86_64")]
mod product;
#[cfg(target_arch = "x86_64")]
mod source;

use half::bf16;

use super::{Shared, crew, math};
use crate::quantized::Quantized;

/// A weight `[n, k]`, row-major.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    /// In f32.
    Full(&'a [f32]),
    /// In bf16. Where the processor multiplies bf16, `x` is rounded to it.
    Half(&'a [bf16]),
    /// In quantised blocks. Where the processor multiplies bf16, they and `x` are rounded to it, as
    /// llama.cpp rounds `x` to eight bits.
    Blocks(&'a Quantized),
}

/// Rows of `x` up to which a weight is dequantised in registers.
#[cfg(target_arch = "x86_64")]
const FEW: usize = 4;

/// Multiplications below which a product is not worth handing to other threads.
const SERIAL_WORK: usize = 1 << 15;

/// `out = x · wᵀ + bias`.
///
/// # Shapes
/// `x` `[m, k]`, `w` `[n, k]`, `bias` `[n]`, `out` `[m, n]`, all row-major.
pub fn gemv(
    out: &mut [f32],
    x: &[f32],
    w: Weights<'_>,
    (m, n, k): (usize, usize, usize),
    bias: Option<&[f32]>,
) {
    assert!(x.len() >= m * k && out.len() == m * n, "the buffers have their sizes");
    assert!(bias.is_none_or(|bias| bias.len() == n), "a bias for each column");
    match w {
        Weights::Full(w) => assert!(w.len() >= n * k, "the weight has its size"),
        Weights::Half(w) => assert!(w.len() >= n * k, "the weight has its size"),
        Weights::Blocks(w) => assert!(w.dims() == [n, k], "the weight has its size"),
    }
    if m == 0 || n == 0 {
        return;
    }
    let pieces = 6 * crew::threads();
    let width = if m * n * k < SERIAL_WORK || crew::threads() == 1 {
        n
    } else {
        n.div_ceil(pieces).next_multiple_of(16)
    };
    let shared = Shared::new(out);
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::avx512::available() {
        let product = product::Product::new(shared, x, w, (m, n, k), bias);
        // SAFETY: the processor was asked; tasks write disjoint columns.
        let task = |from: usize| unsafe { product.columns(from, (from + width).min(n)) };
        return each(n.div_ceil(width), |piece| task(piece * width));
    }
    each(n.div_ceil(width), |piece| {
        let (from, to) = (piece * width, ((piece + 1) * width).min(n));
        portable(shared, x, w, (m, n, k), bias, from..to);
    });
}

fn each(count: usize, task: impl Fn(usize) + Sync) {
    if count < 2 { (0..count).for_each(task) } else { crew::run(count, task) }
}

/// Some columns of the result, on any processor.
fn portable(
    out: Shared,
    x: &[f32],
    w: Weights<'_>,
    (m, n, k): (usize, usize, usize),
    bias: Option<&[f32]>,
    columns: std::ops::Range<usize>,
) {
    // A few weight rows at a time meet each row of `x`.
    const ROWS: usize = 8;
    let mut wide = vec![0f32; ROWS * k];
    for first in columns.clone().step_by(ROWS) {
        let count = ROWS.min(columns.end - first);
        let rows: &[f32] = match w {
            Weights::Full(w) => &w[first * k..(first + count) * k],
            Weights::Half(w) => {
                let rows = &w[first * k..(first + count) * k];
                for (wide, value) in wide.iter_mut().zip(rows) {
                    *wide = value.to_f32();
                }
                &wide
            }
            Weights::Blocks(w) => {
                for (j, row) in wide.chunks_exact_mut(k.max(1)).take(count).enumerate() {
                    w.row_into(first + j, 0, row);
                }
                &wide
            }
        };
        for i in 0..m {
            for j in 0..count {
                let sum = math::dot(&x[i * k..(i + 1) * k], &rows[j * k..(j + 1) * k]);
                let sum = bias.map_or(sum, |bias| sum + bias[first + j]);
                // SAFETY: tasks have disjoint columns, i < m and first + j < n.
                unsafe { *out.at(i * n + first + j) = sum };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType;
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::quantized::Format;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.).collect()
    }

    fn product(x: &[f32], w: Weights<'_>, sizes: (usize, usize, usize)) -> Vec<f32> {
        let mut out = vec![f32::NAN; sizes.0 * sizes.1];
        let bias = numbers(sizes.1, 3);
        gemv(&mut out, x, w, sizes, Some(&bias));
        out
    }

    /// Against f64, and every row alone against the same row among others.
    fn check(w: Weights<'_>, wide: &[f32], (n, k): (usize, usize), tolerance: f64) {
        let rows = 37;
        let x = numbers(rows * k, 1);
        let alone: Vec<f32> = x.chunks_exact(k).flat_map(|x| product(x, w, (1, n, k))).collect();
        let bias = numbers(n, 3);
        for (i, row) in alone.chunks_exact(n).enumerate() {
            for (j, found) in row.iter().enumerate() {
                let mut sum = f64::from(bias[j]);
                for p in 0..k {
                    sum += f64::from(x[i * k + p]) * f64::from(wide[j * k + p]);
                }
                assert!((f64::from(*found) - sum).abs() < tolerance, "{i} {j}: {found} {sum}");
            }
        }
        for m in [2, 3, 4, 5, 6, 7, 8, 31, 37] {
            assert_eq!(product(&x[..m * k], w, (m, n, k)), alone[..m * n], "{m} rows");
        }
    }

    /// Whether weights in blocks and what they meet are rounded to bf16.
    fn rounds() -> bool {
        #[cfg(target_arch = "x86_64")]
        return crate::cpu::amx::unit().is_some();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    #[test]
    fn rows_are_the_same_bits_alone_and_together() {
        for (n, k) in [(1, 1), (7, 33), (64, 64), (50, 576), (300, 160)] {
            let w = numbers(n * k, 2);
            check(Weights::Full(&w), &w, (n, k), 1e-4);
            let halves: Vec<bf16> = w.iter().map(|w| bf16::from_f32(*w)).collect();
            let wide: Vec<f32> = halves.iter().map(|w| w.to_f32()).collect();
            // The left side is rounded to eight bits where the processor multiplies bf16.
            check(Weights::Half(&halves), &wide, (n, k), 0.15);
        }
    }

    #[test]
    fn blocks_are_dequantised_as_bf16_weights_are_or_exactly() {
        let ggml = [
            GgmlDType::Q4_0,
            GgmlDType::Q4_1,
            GgmlDType::Q5_0,
            GgmlDType::Q8_0,
            GgmlDType::Q4K,
            GgmlDType::Q6K,
        ];
        let formats = ggml.map(Format::Ggml).into_iter().chain([Format::Nf4]);
        for (format, (n, k)) in formats.flat_map(|format| [(format, (50, 256)), (format, (9, 512))])
        {
            let w = Tensor::from_vec(numbers(n * k, 2), (n, k), &Device::Cpu).unwrap();
            let blocks = match format {
                Format::Ggml(dtype) => Quantized::ggml(&w, dtype).unwrap(),
                Format::Nf4 => Quantized::nf4(&w).unwrap(),
            };
            let wide =
                blocks.dequantize().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let halves: Vec<bf16> = wide.iter().map(|w| bf16::from_f32(*w)).collect();
            let rounds = rounds();
            check(Weights::Blocks(&blocks), &wide, (n, k), if rounds { 0.3 } else { 1e-3 });
            for m in [1, 3, 9] {
                let x = numbers(m * k, 5);
                let first = if rounds { Weights::Half(&halves) } else { Weights::Full(&wide) };
                assert_eq!(
                    product(&x, Weights::Blocks(&blocks), (m, n, k)),
                    product(&x, first, (m, n, k)),
                    "{format}: the same bits as dequantising first"
                );
            }
        }
        // A row that ends inside a block.
        let w = Tensor::from_vec(numbers(5 * 100, 2), (5, 100), &Device::Cpu).unwrap();
        let nf4 = Quantized::nf4(&w).unwrap();
        let wide = nf4.dequantize().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        check(Weights::Blocks(&nf4), &wide, (5, 100), if rounds() { 0.15 } else { 1e-3 });
    }
}
