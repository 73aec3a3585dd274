//! Few rows against a weight as it is stored (`y = x · wᵀ`): what decoding is made of.
//!
//! A decoding step is bound by reading the weights, so each is read once, in the form that it has
//! in memory: f32, bf16, or quantised blocks that become numbers in registers. For more than
//! [`FEW`] rows a few weight rows at a time are dequantised into the first-level cache, where all
//! rows of `x` meet them.
//!
//! Every result is one dot product in sixteen lanes, and the order of its additions depends on the
//! depth alone. A row's results are therefore bit-identical whichever rows are computed with it.

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
    if super::avx512::available() {
        let product = wide::Product::new(shared, x, w, (m, n, k), bias);
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

#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::*;
    use std::cell::RefCell;

    use candle_core::quantized::GgmlDType;

    use super::super::blocks::simd::{Groups, Nf4, Q4_0, Q4_1, Q8_0};
    use super::super::{amx, avx512};
    use super::{FEW, Shared, Weights, bf16};
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

    /// Where the weight rows come from, 32 values of one at a time.
    trait Source: Copy {
        /// Values `p..p + 32` of weight row `j`; those from `k` on may be anything finite.
        ///
        /// # Safety
        /// The processor has AVX-512; the row exists and `p < k`.
        unsafe fn values(self, j: usize, p: usize) -> [__m512; 2];

        /// The same rounded to bf16.
        ///
        /// # Safety
        /// As for [`Source::values`], and the processor has the instructions for bf16.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
        unsafe fn rounded(self, j: usize, p: usize) -> __m512i {
            // SAFETY: the caller's promise; both are 64 bytes without a meaning of their own.
            unsafe {
                let [low, high] = self.values(j, p);
                std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
            }
        }

        /// Whether the rows come from afar, so that they had better be asked for early.
        const FAR: bool = true;

        /// Where weight row `j` begins, which may be beyond the last.
        fn row(self, j: usize) -> *const u8;
    }

    /// Has the processor fetch what follows rows `j..j + count`, piece by piece: the part that
    /// corresponds to values `p..p + 32`. Rows are too short for it to see by itself where they go.
    #[inline(always)]
    fn fetch_ahead<S: Source>(w: S, (j, count): (usize, usize), p: usize, k: usize) {
        let (from, to) = (w.row(j + count), w.row(j + 2 * count));
        let bytes = (to as usize - from as usize) * 32 / k.next_multiple_of(32);
        let first = from.wrapping_add(p / 32 * bytes);
        for line in 0..bytes.div_ceil(64) {
            // SAFETY: a prefetch of an address that is not mapped does nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(first.wrapping_add(64 * line).cast()) };
        }
    }

    /// The lanes of sixteen values from `p` on that lie before `k`.
    #[inline(always)]
    fn lanes(p: usize, k: usize) -> __mmask16 {
        avx512::lanes(p / 16, 0, k)
    }

    #[derive(Clone, Copy)]
    struct Full {
        data: *const f32,
        k: usize,
    }

    impl Source for Full {
        #[inline(always)]
        fn row(self, j: usize) -> *const u8 {
            self.data.wrapping_add(j * self.k).cast()
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn values(self, j: usize, p: usize) -> [__m512; 2] {
            // SAFETY: the caller's promise; lanes outside the row are not read.
            unsafe {
                let at = self.data.add(j * self.k + p);
                if p + 32 <= self.k {
                    [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16))]
                } else {
                    [
                        _mm512_maskz_loadu_ps(lanes(p, self.k), at),
                        _mm512_maskz_loadu_ps(lanes(p + 16, self.k), at.wrapping_add(16)),
                    ]
                }
            }
        }
    }

    /// Rows that lie in the nearest cache.
    #[derive(Clone, Copy)]
    struct Near(Full);

    impl Source for Near {
        const FAR: bool = false;

        #[inline(always)]
        fn row(self, j: usize) -> *const u8 {
            self.0.row(j)
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn values(self, j: usize, p: usize) -> [__m512; 2] {
            // SAFETY: the caller's promise.
            unsafe { self.0.values(j, p) }
        }
    }

    #[derive(Clone, Copy)]
    struct Half {
        data: *const u16,
        k: usize,
    }

    impl Source for Half {
        #[inline(always)]
        fn row(self, j: usize) -> *const u8 {
            self.data.wrapping_add(j * self.k).cast()
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn values(self, j: usize, p: usize) -> [__m512; 2] {
            // SAFETY: the caller's promise; lanes outside the row are not read.
            unsafe {
                let at = self.data.add(j * self.k + p).cast::<i16>();
                let load = |mask, at| {
                    let bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, at));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
                };
                [load(lanes(p, self.k), at), load(lanes(p + 16, self.k), at.wrapping_add(16))]
            }
        }
    }

    struct Blocks<G> {
        data: *const u8,
        row_bytes: usize,
        form: std::marker::PhantomData<G>,
    }

    impl<G> Clone for Blocks<G> {
        fn clone(&self) -> Self {
            *self
        }
    }

    impl<G> Copy for Blocks<G> {}

    impl<G: Groups> Source for Blocks<G> {
        #[inline(always)]
        fn row(self, j: usize) -> *const u8 {
            self.data.wrapping_add(j * self.row_bytes)
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn values(self, j: usize, p: usize) -> [__m512; 2] {
            // SAFETY: the caller's promise; rows are whole blocks of at least 32 values.
            unsafe { G::thirty_two(self.data.add(j * self.row_bytes), p / 32) }
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
        unsafe fn rounded(self, j: usize, p: usize) -> __m512i {
            // SAFETY: as above.
            unsafe { G::rounded(self.data.add(j * self.row_bytes), p / 32) }
        }
    }

    /// Where weight rows in bf16 come from, 32 values of one at a time.
    trait Pairs: Copy {
        /// Values `p..p + 32` of weight row `j`; those from the row's end on are zeros, or meet
        /// zeros of `x`.
        ///
        /// # Safety
        /// The processor has AVX-512 and its bf16 instructions; the row exists and `p` is before
        /// its end.
        unsafe fn pairs(self, j: usize, p: usize) -> __m512i;

        /// See [`fetch_ahead`].
        fn fetch_ahead(self, rows: (usize, usize), p: usize, k: usize);
    }

    /// Rows in bf16, `stride` apart.
    #[derive(Clone, Copy)]
    struct HalfRows {
        data: *const u16,
        stride: usize,
    }

    impl Pairs for HalfRows {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
        unsafe fn pairs(self, j: usize, p: usize) -> __m512i {
            let left = self.stride - p;
            let mask: __mmask32 = if left >= 32 { !0 } else { (1u32 << left) - 1 };
            // SAFETY: the caller's promise; lanes outside the row are not read.
            unsafe { _mm512_maskz_loadu_epi16(mask, self.data.add(j * self.stride + p).cast()) }
        }

        #[inline(always)]
        fn fetch_ahead(self, (j, count): (usize, usize), p: usize, _: usize) {
            let ahead = self.data.wrapping_add((j + count) * self.stride + count * p).cast::<i8>();
            for line in 0..count {
                // SAFETY: a prefetch of an address that is not mapped does nothing.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * line)) };
            }
        }
    }

    /// Rows in bf16 that lie in the nearest cache.
    #[derive(Clone, Copy)]
    struct NearHalves(HalfRows);

    impl Pairs for NearHalves {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
        unsafe fn pairs(self, j: usize, p: usize) -> __m512i {
            // SAFETY: the caller's promise.
            unsafe { self.0.pairs(j, p) }
        }

        #[inline(always)]
        fn fetch_ahead(self, _: (usize, usize), _: usize, _: usize) {}
    }

    /// A source whose values are rounded to bf16 in registers.
    #[derive(Clone, Copy)]
    struct Rounded<S> {
        w: S,
        k: usize,
    }

    impl<S: Source> Pairs for Rounded<S> {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
        unsafe fn pairs(self, j: usize, p: usize) -> __m512i {
            debug_assert!(p < self.k, "within the row");
            // SAFETY: the caller's promise.
            unsafe { self.w.rounded(j, p) }
        }

        #[inline(always)]
        fn fetch_ahead(self, rows: (usize, usize), p: usize, k: usize) {
            if S::FAR {
                fetch_ahead(self.w, rows, p, k);
            }
        }
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
            let source = Blocks::<G> {
                data: w.blocks().as_ptr(),
                row_bytes,
                form: std::marker::PhantomData,
            };
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
        unsafe fn near_tile<const M: usize, const N: usize>(
            &self,
            w: Full,
            column: usize,
            i: usize,
        ) {
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
        return super::super::amx::unit().is_some();
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
