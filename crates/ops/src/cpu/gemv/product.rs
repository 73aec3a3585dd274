//! The product in registers: tiles of rows of `x` by rows of the weight.

use std::arch::x86_64::*;
use std::cell::RefCell;

use candle_core::quantized::GgmlDType;
use half::bf16;

use super::source::{
    Blocks, Full, Half, HalfRows, Near, NearHalves, Pairs, Rounded, Source, fetch_ahead, lanes,
};
use super::{FEW, Weights};
use crate::cpu::blocks::simd::{Groups, Nf4, Q4_0, Q4_1, Q8_0};
use crate::cpu::{Shared, amx};
use crate::quantized::{Format, Quantized};

/// Weight rows that meet several rows of `x` at a time.
const NR: usize = 4;
/// The same of weights in f32, which are not written into a buffer first.
const WIDE: usize = 6;
/// Rows of `x` that meet them at a time.
const MR: usize = 4;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static HALVES: RefCell<Vec<u16>> = const { RefCell::new(Vec::new()) };
}

/// The four sums of four registers' lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn sums(x: [__m512; 4]) -> __m128 {
    let four = |x: __m512| {
        let eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
        _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight))
    };
    let (ab, cd) = (_mm_hadd_ps(four(x[0]), four(x[1])), _mm_hadd_ps(four(x[2]), four(x[3])));
    _mm_hadd_ps(ab, cd)
}

/// One product.
pub(super) struct Product<'a> {
    out: Shared,
    x: *const f32,
    w: Weights<'a>,
    m: usize,
    n: usize,
    k: usize,
    bias: Option<&'a [f32]>,
    /// `x` in bf16, rows filled up with zeros to whole registers, where products are in bf16.
    halves: Option<Vec<u16>>,
}

// SAFETY: the pointers are to slices that outlive the product, `x` is only read, and `out` is
// written at disjoint places.
unsafe impl Sync for Product<'_> {}

impl<'a> Product<'a> {
    pub(super) fn new(
        out: Shared,
        x: &'a [f32],
        w: Weights<'a>,
        (m, n, k): (usize, usize, usize),
        bias: Option<&'a [f32]>,
    ) -> Self {
        let halves = match w {
            Weights::Half(_) | Weights::Blocks(_) if amx::unit().is_some() => {
                let width = k.next_multiple_of(32);
                let mut halves = vec![0u16; m * width];
                for (to, from) in
                    halves.chunks_exact_mut(width.max(1)).zip(x.chunks_exact(k.max(1)))
                {
                    for (to, from) in to.iter_mut().zip(from) {
                        *to = bf16::from_f32(*from).to_bits();
                    }
                }
                Some(halves)
            }
            _ => None,
        };
        Self { out, x: x.as_ptr(), w, m, n, k, bias, halves }
    }

    /// Columns `from..to` of the result.
    ///
    /// # Safety
    /// The processor has AVX-512; nobody else writes these columns.
    pub(super) unsafe fn columns(&self, from: usize, to: usize) {
        let k = self.k;
        // SAFETY: the caller's promise.
        unsafe {
            match self.w {
                Weights::Full(w) => self.plain(Full { data: w.as_ptr(), k }, from, to),
                Weights::Half(w) => match &self.halves {
                    Some(x) => {
                        let w = HalfRows { data: w.as_ptr().cast(), stride: k };
                        self.in_bf16(x, w, from, to);
                    }
                    None => {
                        let data = w.as_ptr().cast();
                        self.dequantized(Half { data, k }, from, to);
                    }
                },
                Weights::Blocks(w) => match w.format() {
                    Format::Nf4 => self.blocks::<Nf4>(w, from, to),
                    Format::Ggml(GgmlDType::Q4_0) => self.blocks::<Q4_0>(w, from, to),
                    Format::Ggml(GgmlDType::Q4_1) => self.blocks::<Q4_1>(w, from, to),
                    Format::Ggml(GgmlDType::Q8_0) => self.blocks::<Q8_0>(w, from, to),
                    Format::Ggml(_) => self.decoded(w, from, to),
                },
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn blocks<G: Groups>(&self, w: &Quantized, from: usize, to: usize) {
        let row_bytes = w.format().row_bytes(self.k);
        let source =
            Blocks::<G> { data: w.blocks().as_ptr(), row_bytes, form: std::marker::PhantomData };
        // SAFETY: the caller's promise.
        unsafe {
            match &self.halves {
                Some(x) => self.rounded(x, source, from, to),
                None => self.dequantized(source, from, to),
            }
        }
    }

    /// Types that only candle decodes.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn decoded(&self, w: &Quantized, from: usize, to: usize) {
        let k = self.k;
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(NR * k, 0.);
            for first in (from..to).step_by(NR) {
                let count = NR.min(to - first);
                for (j, row) in scratch.chunks_exact_mut(k.max(1)).enumerate().take(count) {
                    w.row_into(first + j, 0, row);
                }
                let rows = Near(Full { data: scratch.as_ptr(), k });
                // SAFETY: the caller's promise; the scratch holds `count` rows.
                unsafe {
                    match &self.halves {
                        Some(x) => self.all_rows_rounded(x, rows, (0, first), count),
                        None => self.all_rows(rows.0, first, count),
                    }
                };
            }
        });
    }

    /// As [`Self::dequantized`], with weights and `x` rounded to bf16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn rounded<S: Source>(&self, x: &[u16], w: S, from: usize, to: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.m {
                1 => self.few_rounded::<1, { 2 * NR }, S>(x, w, from, to),
                2 => self.few_rounded::<2, NR, S>(x, w, from, to),
                3 => self.few_rounded::<3, NR, S>(x, w, from, to),
                FEW => self.few_rounded::<FEW, NR, S>(x, w, from, to),
                _ => {
                    for first in (from..to).step_by(NR) {
                        let count = NR.min(to - first);
                        self.all_rows_rounded(x, w, (first, first), count);
                    }
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn few_rounded<const M: usize, const N: usize, S: Source>(
        &self,
        x: &[u16],
        w: S,
        from: usize,
        to: usize,
    ) {
        let mut j = from;
        // SAFETY: the caller's promise.
        unsafe {
            while j + N <= to {
                self.half_tile::<M, N, _>(x, Rounded { w, k: self.k }, (j, j), 0);
                j += N;
            }
            while j < to {
                self.half_tile::<M, 1, _>(x, Rounded { w, k: self.k }, (j, j), 0);
                j += 1;
            }
        }
    }

    /// All rows of `x` with `count` rows of the source from `j` on, which are the columns from
    /// `column` on; the rows are rounded once, into a scratch buffer.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn all_rows_rounded<S: Source>(
        &self,
        x: &[u16],
        w: S,
        (j, column): (usize, usize),
        count: usize,
    ) {
        let stride = self.k.next_multiple_of(32);
        HALVES.with_borrow_mut(|scratch| {
            scratch.resize(NR * stride, 0);
            let source = Rounded { w, k: self.k };
            // SAFETY: the caller's promise; the scratch has room for `count` rows.
            unsafe {
                for p in (0..self.k).step_by(32) {
                    if S::FAR {
                        fetch_ahead(w, (j, NR), p, self.k);
                    }
                    for row in 0..count {
                        let at = scratch.as_mut_ptr().add(row * stride + p);
                        _mm512_storeu_si512(at.cast(), source.pairs(j + row, p));
                    }
                }
                let rows = NearHalves(HalfRows { data: scratch.as_ptr(), stride });
                self.all_half_rows(x, rows, (0, column), count);
            }
        });
    }

    /// Weights that are numbers as they stand.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn plain(&self, w: Full, from: usize, to: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.m == 1 {
                return self.one_row(w, from, to);
            }
            let mut first = from;
            while first < to {
                // As many weight rows as registers hold sums for: `x` does not fit into the
                // nearest cache, and is read once for each of these groups.
                let count = if first + WIDE <= to { WIDE } else { NR.min(to - first) };
                let rows = Full { data: w.data.add(first * w.k), k: w.k };
                for p in (0..w.k).step_by(32) {
                    fetch_ahead(rows, (0, count), p, w.k);
                }
                self.all_rows(rows, first, count);
                first += count;
            }
        }
    }

    /// Weights that become numbers in registers, for many rows by way of a scratch buffer.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn dequantized<S: Source>(&self, w: S, from: usize, to: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.m {
                1 => return self.one_row(w, from, to),
                2 => return self.few_rows::<2, S>(w, from, to),
                3 => return self.few_rows::<3, S>(w, from, to),
                FEW => return self.few_rows::<FEW, S>(w, from, to),
                _ => {}
            }
        }
        let k = self.k;
        let width = k.next_multiple_of(32);
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(NR * width, 0.);
            for first in (from..to).step_by(NR) {
                let count = NR.min(to - first);
                // SAFETY: the caller's promise; the scratch has room for `count` rows.
                unsafe {
                    for p in (0..k).step_by(32) {
                        fetch_ahead(w, (first, NR), p, k);
                        for j in 0..count {
                            let row = scratch.as_mut_ptr().add(j * k);
                            let [low, high] = w.values(first + j, p);
                            _mm512_mask_storeu_ps(row.add(p), lanes(p, k), low);
                            let at = row.wrapping_add(p + 16);
                            _mm512_mask_storeu_ps(at, lanes(p + 16, k), high);
                        }
                    }
                    self.all_rows(Full { data: scratch.as_ptr(), k }, first, count);
                }
            }
        });
    }

    /// One row of `x`: eight weight rows at a time, so that their additions overlap.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn one_row<S: Source>(&self, w: S, from: usize, to: usize) {
        let mut j = from;
        // SAFETY: the caller's promise.
        unsafe {
            while j + 2 * NR <= to {
                self.tile::<1, { 2 * NR }, S>(w, (j, j), 0);
                j += 2 * NR;
            }
            while j < to {
                self.tile::<1, 1, S>(w, (j, j), 0);
                j += 1;
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn few_rows<const M: usize, S: Source>(&self, w: S, from: usize, to: usize) {
        let mut j = from;
        // SAFETY: the caller's promise.
        unsafe {
            while j + NR <= to {
                self.tile::<M, NR, S>(w, (j, j), 0);
                j += NR;
            }
            while j < to {
                self.tile::<M, 1, S>(w, (j, j), 0);
                j += 1;
            }
        }
    }

    /// All rows of `x` with `count` weight rows in the nearest cache, which are the columns from
    /// `first` on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn all_rows(&self, w: Full, first: usize, count: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match count {
                WIDE => self.all_rows_of::<WIDE>(w, first),
                NR => self.all_rows_of::<NR>(w, first),
                _ => {
                    for j in 0..count {
                        let row = Full { data: w.data.add(j * w.k), k: w.k };
                        self.all_rows_of::<1>(row, first + j);
                    }
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn all_rows_of<const N: usize>(&self, w: Full, first: usize) {
        let mut i = 0;
        // SAFETY: the caller's promise.
        unsafe {
            while i + MR <= self.m {
                self.near_tile::<MR, N>(w, first, i);
                i += MR;
            }
            match self.m - i {
                3 => self.near_tile::<3, N>(w, first, i),
                2 => self.near_tile::<2, N>(w, first, i),
                1 => self.near_tile::<1, N>(w, first, i),
                _ => {}
            }
        }
    }

    /// Rows `i..i + M` of `x` with the `N` weight rows from `w` on, which are the columns from
    /// `column` on. The sums are those of [`Self::tile`], which has fewer of them at a time.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn near_tile<const M: usize, const N: usize>(&self, w: Full, column: usize, i: usize) {
        let k = self.k;
        let mut sums = [[_mm512_setzero_ps(); N]; M];
        // SAFETY: the caller's promise; lanes outside the rows are not read.
        unsafe {
            for p in (0..k).step_by(16) {
                let mask = lanes(p, k);
                let mut x = [_mm512_setzero_ps(); M];
                for (row, x) in x.iter_mut().enumerate() {
                    *x = _mm512_maskz_loadu_ps(mask, self.x.add((i + row) * k + p));
                }
                for n in 0..N {
                    let values = _mm512_maskz_loadu_ps(mask, w.data.add(n * k + p));
                    for (sums, x) in sums.iter_mut().zip(x) {
                        sums[n] = _mm512_fmadd_ps(x, values, sums[n]);
                    }
                }
            }
            self.write::<M, N>(sums, i, column);
        }
    }

    /// Rows `i..i + M` of `x` with `N` rows of the source from `j` on, which are the columns
    /// from `column` on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn tile<const M: usize, const N: usize, S: Source>(
        &self,
        w: S,
        (j, column): (usize, usize),
        i: usize,
    ) {
        let k = self.k;
        let mut sums = [[_mm512_setzero_ps(); N]; M];
        let mut p = 0;
        // SAFETY: the caller's promise; lanes outside the rows are not read.
        unsafe {
            while p < k {
                let mut x = [[_mm512_setzero_ps(); 2]; M];
                for (row, x) in x.iter_mut().enumerate() {
                    let at = self.x.add((i + row) * k + p);
                    *x = if p + 32 <= k {
                        [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16))]
                    } else {
                        [
                            _mm512_maskz_loadu_ps(lanes(p, k), at),
                            _mm512_maskz_loadu_ps(lanes(p + 16, k), at.wrapping_add(16)),
                        ]
                    };
                }
                if S::FAR {
                    fetch_ahead(w, (j, N), p, k);
                }
                for n in 0..N {
                    let [low, high] = w.values(j + n, p);
                    for (sums, x) in sums.iter_mut().zip(&x) {
                        sums[n] = _mm512_fmadd_ps(x[0], low, sums[n]);
                    }
                    for (sums, x) in sums.iter_mut().zip(&x) {
                        sums[n] = _mm512_fmadd_ps(x[1], high, sums[n]);
                    }
                }
                p += 32;
            }
            self.write::<M, N>(sums, i, column);
        }
    }

    /// Adds the lanes up.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn write<const M: usize, const N: usize>(
        &self,
        lanes: [[__m512; N]; M],
        i: usize,
        column: usize,
    ) {
        for (m, row) in lanes.iter().enumerate() {
            let mut n = 0;
            while n < N {
                let count = NR.min(N - n);
                let mut four = [_mm512_setzero_ps(); 4];
                four[..count].copy_from_slice(&row[n..n + count]);
                let mut results = sums(four);
                let mask = (1u8 << count) - 1;
                let at = column + n;
                // SAFETY: the caller's promise: rows and columns of the result.
                unsafe {
                    if let Some(bias) = self.bias {
                        let bias = _mm_maskz_loadu_ps(mask, bias.as_ptr().add(at));
                        results = _mm_add_ps(results, bias);
                    }
                    let to = self.out.at((i + m) * self.n + at);
                    _mm_mask_storeu_ps(to, mask, results);
                }
                n += count;
            }
        }
    }

    /// Weights in bf16 and `x` rounded to it, summed in f32.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn in_bf16(&self, x: &[u16], w: HalfRows, from: usize, to: usize) {
        let mut j = from;
        // SAFETY: the caller's promise.
        unsafe {
            if self.m == 1 {
                while j + 2 * NR <= to {
                    self.half_tile::<1, { 2 * NR }, _>(x, w, (j, j), 0);
                    j += 2 * NR;
                }
            }
            for j in (j..to).step_by(NR) {
                self.all_half_rows(x, w, (j, j), NR.min(to - j));
            }
        }
    }

    /// All rows of `x` with `count` rows of the source from `j` on, which are the columns from
    /// `column` on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn all_half_rows<S: Pairs>(
        &self,
        x: &[u16],
        w: S,
        (j, column): (usize, usize),
        count: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            if count < NR {
                for n in 0..count {
                    for i in 0..self.m {
                        self.half_tile::<1, 1, S>(x, w, (j + n, column + n), i);
                    }
                }
                return;
            }
            let mut i = 0;
            while i + MR <= self.m {
                self.half_tile::<MR, NR, S>(x, w, (j, column), i);
                i += MR;
            }
            match self.m - i {
                3 => self.half_tile::<3, NR, S>(x, w, (j, column), i),
                2 => self.half_tile::<2, NR, S>(x, w, (j, column), i),
                1 => self.half_tile::<1, NR, S>(x, w, (j, column), i),
                _ => {}
            }
        }
    }

    /// As [`Self::tile`], in bf16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn half_tile<const M: usize, const N: usize, S: Pairs>(
        &self,
        x: &[u16],
        w: S,
        (j, column): (usize, usize),
        i: usize,
    ) {
        let k = self.k;
        let width = k.next_multiple_of(32);
        let mut sums = [[_mm512_setzero_ps(); N]; M];
        let mut p = 0;
        // SAFETY: the caller's promise; lanes outside the rows are not read, and rows of `x`
        // are filled up.
        unsafe {
            while p < k {
                w.fetch_ahead((j, N), p, k);
                let mut left = [_mm512_setzero_si512(); M];
                for (row, left) in left.iter_mut().enumerate() {
                    *left = _mm512_loadu_si512(x.as_ptr().add((i + row) * width + p).cast());
                }
                for n in 0..N {
                    let right = w.pairs(j + n, p);
                    for (sums, left) in sums.iter_mut().zip(left) {
                        sums[n] = _mm512_dpbf16_ps(
                            sums[n],
                            std::mem::transmute::<__m512i, __m512bh>(left),
                            std::mem::transmute::<__m512i, __m512bh>(right),
                        );
                    }
                }
                p += 32;
            }
            self.write::<M, N>(sums, i, column);
        }
    }
}
