//! Where weight rows come from: numbers in f32 or bf16, or quantised blocks that become numbers in
//! registers.

use std::arch::x86_64::*;

use crate::cpu::avx512;
use crate::cpu::blocks::simd::Groups;

/// Where the weight rows come from, 32 values of one at a time.
pub(super) trait Source: Copy {
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
pub(super) fn fetch_ahead<S: Source>(w: S, (j, count): (usize, usize), p: usize, k: usize) {
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
pub(super) fn lanes(p: usize, k: usize) -> __mmask16 {
    avx512::lanes(p / 16, 0, k)
}

#[derive(Clone, Copy)]
pub(super) struct Full {
    pub(super) data: *const f32,
    pub(super) k: usize,
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
pub(super) struct Near(pub(super) Full);

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
pub(super) struct Half {
    pub(super) data: *const u16,
    pub(super) k: usize,
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

pub(super) struct Blocks<G> {
    pub(super) data: *const u8,
    pub(super) row_bytes: usize,
    pub(super) form: std::marker::PhantomData<G>,
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
pub(super) trait Pairs: Copy {
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
pub(super) struct HalfRows {
    pub(super) data: *const u16,
    pub(super) stride: usize,
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
pub(super) struct NearHalves(pub(super) HalfRows);

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
pub(super) struct Rounded<S> {
    pub(super) w: S,
    pub(super) k: usize,
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
