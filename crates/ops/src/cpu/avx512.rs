//! The AVX-512 micro-kernel of the f32 matrix product and the packing that feeds it.
//!
//! A block of `MR` rows and `16·NV` columns of the result stays in registers for the whole depth; A
//! is read in place (its elements are broadcast), B comes in panels. 8 x 48 and 12 x 32 both use 24
//! of the 32 registers and keep the FMA unit busy; 14 x 32 spills and halves the speed. Figures:
//! `docs/measurements.md`, "Matrix products".

use std::arch::x86_64::*;

use super::Level;

/// Whether the kernels of this file may run (see [`Level`]).
pub fn available() -> bool {
    super::level() == Level::Avx512
}

/// One block product: `c = alpha · a · b + start`.
#[derive(Clone, Copy)]
pub struct Block {
    /// Depth of the product.
    pub k: usize,
    /// First element of A.
    pub a: *const f32,
    /// From a row of A to the next, in elements.
    pub a_rows: usize,
    /// From a column of A to the next.
    pub a_cols: usize,
    /// First element of B, whose columns lie side by side.
    pub b: *const f32,
    /// From a row of B to the next.
    pub b_rows: usize,
    /// Factor on the product.
    pub alpha: f32,
    /// What is added: null for nothing, the result itself to accumulate, a bias with `start_rows`
    /// 0.
    pub start: *const f32,
    /// From a row of `start` to the next.
    pub start_rows: usize,
}

// Loops over registers: written with indices so that every bound is a constant.
#[allow(clippy::needless_range_loop)]
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn kernel<const MR: usize, const NV: usize>(
    block: &Block,
    row: usize,
    c: *mut f32,
    ldc: usize,
    last: u16,
) {
    // SAFETY: the caller of `product` vouches for every address that rows, columns and depth span;
    // the last vector of a row is masked.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); NV]; MR];
        let mut a = block.a.add(row * block.a_rows);
        let mut b = block.b;
        for _ in 0..block.k {
            let mut columns = [_mm512_setzero_ps(); NV];
            for j in 0..NV {
                columns[j] = if j + 1 == NV {
                    _mm512_maskz_loadu_ps(last, b.add(16 * j))
                } else {
                    _mm512_loadu_ps(b.add(16 * j))
                };
            }
            for i in 0..MR {
                let value = _mm512_set1_ps(*a.add(i * block.a_rows));
                for j in 0..NV {
                    acc[i][j] = _mm512_fmadd_ps(value, columns[j], acc[i][j]);
                }
            }
            a = a.add(block.a_cols);
            b = b.add(block.b_rows);
        }
        let alpha = _mm512_set1_ps(block.alpha);
        for i in 0..MR {
            for j in 0..NV {
                let mask = if j + 1 == NV { last } else { !0 };
                let mut value = acc[i][j];
                if block.start.is_null() {
                    value = _mm512_mul_ps(value, alpha);
                } else {
                    let start = block.start.add((row + i) * block.start_rows + 16 * j);
                    value = _mm512_fmadd_ps(value, alpha, _mm512_maskz_loadu_ps(mask, start));
                }
                _mm512_mask_storeu_ps(c.add((row + i) * ldc + 16 * j), mask, value);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn rows<const MR: usize, const NV: usize>(
    blocks: &[Block],
    from: usize,
    m: usize,
    c: *mut f32,
    ldc: usize,
    last: u16,
) -> usize {
    let mut row = from;
    while row + MR <= m {
        for block in blocks {
            // SAFETY: the caller's promise.
            unsafe { kernel::<MR, NV>(block, row, c, ldc, last) };
        }
        row += MR;
    }
    row
}

/// `c = Σ alpha · a · b + start` for `m` rows and `n ≤ 48` columns: the blocks follow one another,
/// and while one is being added to, its part of `c` is in the first-level cache.
///
/// # Safety
/// The processor has AVX-512 (see [`available`]); every pointer is valid for what the shapes span.
#[target_feature(enable = "avx512f")]
pub unsafe fn product(blocks: &[Block], m: usize, n: usize, c: *mut f32, ldc: usize) {
    let last = match n % 16 {
        0 => !0,
        rest => (1u16 << rest) - 1,
    };
    // SAFETY: the caller's promise.
    unsafe {
        match n.div_ceil(16) {
            0 => {}
            1 => {
                let row = rows::<16, 1>(blocks, 0, m, c, ldc, last);
                let row = rows::<4, 1>(blocks, row, m, c, ldc, last);
                rows::<1, 1>(blocks, row, m, c, ldc, last);
            }
            2 => {
                let row = rows::<12, 2>(blocks, 0, m, c, ldc, last);
                let row = rows::<4, 2>(blocks, row, m, c, ldc, last);
                rows::<1, 2>(blocks, row, m, c, ldc, last);
            }
            _ => {
                let row = rows::<8, 3>(blocks, 0, m, c, ldc, last);
                let row = rows::<4, 3>(blocks, row, m, c, ldc, last);
                rows::<1, 3>(blocks, row, m, c, ldc, last);
            }
        }
    }
}

/// Packs columns that lie as rows (`w[column · ld + p]`) into a panel (`out[p · width + column]`).
///
/// # Safety
/// As for [`product`]: `w` spans `columns` rows of `k` elements, `out` `k · width`.
#[target_feature(enable = "avx512f")]
pub unsafe fn pack_transposed(
    k: usize,
    columns: usize,
    w: *const f32,
    ld: usize,
    out: *mut f32,
    width: usize,
) {
    // SAFETY: the caller's promise; whole 16 x 16 squares go through registers, what is left one by
    // one.
    unsafe {
        let mut column = 0;
        while column < columns {
            let mut p = 0;
            if column + 16 <= columns {
                while p + 16 <= k {
                    let mut square = [_mm512_setzero_ps(); 16];
                    for (i, row) in square.iter_mut().enumerate() {
                        *row = _mm512_loadu_ps(w.add((column + i) * ld + p));
                    }
                    transpose(&mut square);
                    for (i, row) in square.iter().enumerate() {
                        _mm512_storeu_ps(out.add((p + i) * width + column), *row);
                    }
                    p += 16;
                }
            }
            let until = (column + 16).min(columns);
            while p < k {
                for c in column..until {
                    *out.add(p * width + c) = *w.add(c * ld + p);
                }
                p += 1;
            }
            column = until;
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(v: &mut [__m512; 16]) {
    let mut pairs = [_mm512_setzero_ps(); 16];
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]);
    }
    // quads[4·i + c]: lane l holds column 4·l + c of rows 4·i .. 4·i + 4
    let mut quads = [_mm512_setzero_ps(); 16];
    for i in 0..4 {
        for half in 0..2 {
            let x = _mm512_castps_pd(pairs[4 * i + half]);
            let y = _mm512_castps_pd(pairs[4 * i + 2 + half]);
            quads[4 * i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
            quads[4 * i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
        }
    }
    for c in 0..4 {
        let even_low = _mm512_shuffle_f32x4::<0x88>(quads[c], quads[4 + c]);
        let odd_low = _mm512_shuffle_f32x4::<0xdd>(quads[c], quads[4 + c]);
        let even_high = _mm512_shuffle_f32x4::<0x88>(quads[8 + c], quads[12 + c]);
        let odd_high = _mm512_shuffle_f32x4::<0xdd>(quads[8 + c], quads[12 + c]);
        v[c] = _mm512_shuffle_f32x4::<0x88>(even_low, even_high);
        v[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd_low, odd_high);
        v[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even_low, even_high);
        v[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd_low, odd_high);
    }
}

/// `eˣ` to about 1 unit in the last place; 0 far below (at −∞, too), infinity far above.
#[inline]
#[target_feature(enable = "avx512f")]
fn exp(x: __m512) -> __m512 {
    let x = _mm512_max_ps(x, _mm512_set1_ps(-110.));
    let n = _mm512_roundscale_ps::<0>(_mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)));
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693_359_4), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.121_944_4e-4), r);
    let mut p = _mm512_set1_ps(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    }
    let value = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.)));
    _mm512_scalef_ps(value, n)
}

/// See [`exp_sum`](super::math::exp_sum): with fused multiplications a third of the instructions of
/// its plain form.
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f")]
pub unsafe fn exp_sum(x: &mut [f32], shift: f32) -> f32 {
    let shift = _mm512_set1_ps(shift);
    let mut sums = [_mm512_setzero_ps(); 4];
    let mut chunks = x.chunks_exact_mut(64);
    // SAFETY: each vector lies in its chunk; the last is masked.
    unsafe {
        for chunk in &mut chunks {
            for (i, sum) in sums.iter_mut().enumerate() {
                let at = chunk.as_mut_ptr().add(16 * i);
                let power = exp(_mm512_sub_ps(_mm512_loadu_ps(at), shift));
                _mm512_storeu_ps(at, power);
                *sum = _mm512_add_ps(*sum, power);
            }
        }
        for chunk in chunks.into_remainder().chunks_mut(16) {
            let (at, mask) = (chunk.as_mut_ptr(), lanes(0, 0, chunk.len()));
            let power = exp(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, at), shift));
            _mm512_mask_storeu_ps(at, mask, power);
            sums[0] = _mm512_mask_add_ps(sums[0], mask, sums[0], power);
        }
    }
    _mm512_reduce_add_ps(_mm512_add_ps(
        _mm512_add_ps(sums[0], sums[1]),
        _mm512_add_ps(sums[2], sums[3]),
    ))
}

/// The lanes of vector `index` that lie in `from..to`.
#[inline]
pub(super) fn lanes(index: usize, from: usize, to: usize) -> __mmask16 {
    let below = |end: usize| ((1u32 << end.saturating_sub(16 * index).min(16)) - 1) as u16;
    below(to) & !below(from)
}

/// See [`softmax_step`](crate::attention), which this is in intrinsics: a maximum over
/// floats and a polynomial without fused multiplications do not come out well of plain loops (a
/// third of attention's time at 2048 tokens).
///
/// # Safety
/// The processor has AVX-512; `scores` holds `keys` values, rounded up to sixteen.
#[target_feature(enable = "avx512f")]
pub unsafe fn softmax_step(
    scores: *mut f32,
    (from, to): (usize, usize),
    keys: usize,
    most: &mut f32,
    sum: &mut f32,
) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let count = keys.div_ceil(16);
        let mut highest = _mm512_set1_ps(*most);
        for index in 0..count {
            let score = _mm512_loadu_ps(scores.add(16 * index));
            highest = _mm512_mask_max_ps(highest, lanes(index, from, to), highest, score);
        }
        let highest = _mm512_reduce_max_ps(highest);
        let shift = _mm512_set1_ps(highest);
        let mut new = _mm512_setzero_ps();
        for index in 0..count {
            let at = scores.add(16 * index);
            let weight = exp(_mm512_sub_ps(_mm512_loadu_ps(at), shift));
            let weight = _mm512_maskz_mov_ps(lanes(index, from, to), weight);
            _mm512_storeu_ps(at, weight);
            new = _mm512_add_ps(new, weight);
        }
        let rescale = _mm512_cvtss_f32(exp(_mm512_set1_ps(*most - highest)));
        *sum = *sum * rescale + _mm512_reduce_add_ps(new);
        *most = highest;
        rescale
    }
}

/// The backward pass of a query's softmax over one tile: scores become weights, the weights'
/// gradients the scores'.
///
/// # Safety
/// The processor has AVX-512; both hold `keys` values, rounded up to sixteen.
#[target_feature(enable = "avx512f")]
pub unsafe fn softmax_backward(
    weights: *mut f32,
    slopes: *mut f32,
    (from, to): (usize, usize),
    keys: usize,
    log_sum: f32,
    along: f32,
    scale: f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let (log_sum, along, scale) =
            (_mm512_set1_ps(log_sum), _mm512_set1_ps(along), _mm512_set1_ps(scale));
        for index in 0..keys.div_ceil(16) {
            let (weight, slope) = (weights.add(16 * index), slopes.add(16 * index));
            let seen = lanes(index, from, to);
            let w = _mm512_maskz_mov_ps(seen, exp(_mm512_sub_ps(_mm512_loadu_ps(weight), log_sum)));
            let s = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(slope), along), scale);
            _mm512_storeu_ps(weight, w);
            _mm512_storeu_ps(slope, _mm512_maskz_mul_ps(seen, w, s));
        }
    }
}
