//! The right side of a product, kept in quantised blocks: what packs a panel dequantises it.
//!
//! Q4_0, Q4_1, Q8_0 and NF4 go through registers, sixteen values at a time, straight into the
//! panel; a block of these types is made of such groups, so any panel that begins at a multiple of
//! sixteen can be packed. The other types are decoded by candle, a stretch of rows at a time. The
//! values are those of dequantising first, bit for bit, so the products are, too.
//!
//! A value of a panel meets one multiplication for each row of A, beside which dequantising it is
//! cheap. Figures: `docs/measurements.md`, "Memory and the tape".

use std::cell::RefCell;

use crate::quantized::Quantized;
#[cfg(target_arch = "x86_64")]
use crate::quantized::{Format, NF4_LEVELS};

/// A part of a quantised matrix, or its transpose.
#[derive(Clone, Copy)]
pub struct BlockMat<'a> {
    source: &'a Quantized,
    /// The part's rows and columns in the stored matrix.
    first_row: usize,
    first_col: usize,
    stored_rows: usize,
    stored_cols: usize,
    turned: bool,
}

impl<'a> BlockMat<'a> {
    /// The whole matrix.
    pub fn new(source: &'a Quantized) -> Self {
        let (stored_rows, stored_cols) = (source.dims()[0], source.dims()[1]);
        Self { source, first_row: 0, first_col: 0, stored_rows, stored_cols, turned: false }
    }

    /// The same matrix transposed, in place.
    pub fn t(self) -> Self {
        Self { turned: !self.turned, ..self }
    }

    pub(super) fn rows(&self) -> usize {
        if self.turned { self.stored_cols } else { self.stored_rows }
    }

    pub(super) fn cols(&self) -> usize {
        if self.turned { self.stored_rows } else { self.stored_cols }
    }

    /// Whether its columns are stored rows.
    pub(super) fn is_turned(&self) -> bool {
        self.turned
    }

    /// Rows `from..to`. Those of a transpose begin at whole blocks.
    pub fn rows_from(self, from: usize, to: usize) -> Self {
        assert!(from <= to && to <= self.rows(), "rows inside the matrix");
        if self.turned {
            assert!(from.is_multiple_of(self.source.format().block_size()), "whole blocks");
            Self { first_col: self.first_col + from, stored_cols: to - from, ..self }
        } else {
            Self { first_row: self.first_row + from, stored_rows: to - from, ..self }
        }
    }

    /// Stored rows `from..to` of this part, dequantised.
    pub(super) fn wide(&self, from: usize, to: usize) -> Vec<f32> {
        use rayon::prelude::*;

        use super::crew::Each;

        let mut values = vec![0f32; (to - from) * self.stored_cols];
        values.par_chunks_mut(self.stored_cols.max(1)).enumerate().each(|(row, out)| {
            self.source.row_into(self.first_row + from + row, self.first_col, out);
        });
        values
    }

    /// Does something with one stored row of this part.
    pub(super) fn with_row<T>(&self, row: usize, work: impl FnOnce(&[f32]) -> T) -> T {
        thread_local! {
            static ROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
        }
        ROW.with_borrow_mut(|buffer| {
            buffer.resize(self.stored_cols, 0.);
            self.source.row_into(self.first_row + row, self.first_col, buffer);
            work(buffer)
        })
    }

    /// Whether [`pack`](Self::pack) can begin and end between the blocks' ends.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn packs_anywhere(&self) -> bool {
        self.turned || group(self.source.format()).is_some()
    }

    /// Packs columns into a panel: `out[row · width + column]`.
    ///
    /// # Safety
    /// The processor has AVX-512; `out` has room for `rows · width` values, `width` being the
    /// columns rounded up to sixteen. What is not turned begins at a multiple of sixteen and [packs
    /// anywhere](Self::packs_anywhere).
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn pack(&self, cols: std::ops::Range<usize>, out: *mut f32, width: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match group(self.source.format()) {
                Some(Group::Q4_0) => self.pack_groups::<simd::Q4_0>(cols, out, width),
                Some(Group::Q4_1) => self.pack_groups::<simd::Q4_1>(cols, out, width),
                Some(Group::Q8_0) => self.pack_groups::<simd::Q8_0>(cols, out, width),
                Some(Group::Nf4) => self.pack_groups::<simd::Nf4>(cols, out, width),
                None => self.pack_rows(cols, out, width),
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn pack_groups<G: simd::Groups>(
        &self,
        cols: std::ops::Range<usize>,
        out: *mut f32,
        width: usize,
    ) {
        use std::arch::x86_64::{_mm512_setzero_ps, _mm512_storeu_ps};
        let row_bytes = self.source.format().row_bytes(self.source.dims()[1]);
        let blocks = self.source.blocks();
        let row = |row: usize| blocks[(self.first_row + row) * row_bytes..][..row_bytes].as_ptr();
        // SAFETY: groups lie inside their rows, which are whole blocks; the caller gave room for
        // the rest.
        unsafe {
            if !self.turned {
                for p in 0..self.stored_rows {
                    let from = row(p);
                    let mut column = cols.start;
                    while column < cols.end {
                        let at = out.add(p * width + column - cols.start);
                        _mm512_storeu_ps(at, G::sixteen(from, (self.first_col + column) / 16));
                        column += 16;
                    }
                }
                return;
            }
            let mut column = 0;
            while column < cols.len() {
                let mut p = 0;
                while p < self.stored_cols {
                    let mut square = [_mm512_setzero_ps(); 16];
                    for (i, values) in square.iter_mut().enumerate().take(cols.len() - column) {
                        *values =
                            G::sixteen(row(cols.start + column + i), (self.first_col + p) / 16);
                    }
                    super::avx512::transpose(&mut square);
                    for (i, values) in square.iter().enumerate().take(self.stored_cols - p) {
                        _mm512_storeu_ps(out.add((p + i) * width + column), *values);
                    }
                    p += 16;
                }
                column += 16;
            }
        }
    }

    /// Columns that are stored rows, decoded sixteen at a time.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    unsafe fn pack_rows(&self, cols: std::ops::Range<usize>, out: *mut f32, width: usize) {
        thread_local! {
            static ROWS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
        }
        let depth = self.stored_cols;
        ROWS.with_borrow_mut(|buffer| {
            buffer.resize(16 * depth, 0.);
            let mut column = 0;
            while column < cols.len() {
                let count = 16.min(cols.len() - column);
                for (i, values) in buffer.chunks_exact_mut(depth.max(1)).enumerate().take(count) {
                    self.source.row_into(
                        self.first_row + cols.start + column + i,
                        self.first_col,
                        values,
                    );
                }
                // SAFETY: the caller gave room; the buffer holds `count` rows of `depth`.
                unsafe {
                    super::avx512::pack_transposed(
                        depth,
                        count,
                        buffer.as_ptr(),
                        depth,
                        out.add(column),
                        width,
                    );
                }
                column += 16;
            }
        });
    }
}

#[cfg(target_arch = "x86_64")]
enum Group {
    Q4_0,
    Q4_1,
    Q8_0,
    Nf4,
}

/// The type's form in registers, if it has one.
#[cfg(target_arch = "x86_64")]
fn group(format: Format) -> Option<Group> {
    use candle_core::quantized::GgmlDType;
    Some(match format {
        Format::Nf4 => Group::Nf4,
        Format::Ggml(GgmlDType::Q4_0) => Group::Q4_0,
        Format::Ggml(GgmlDType::Q4_1) => Group::Q4_1,
        Format::Ggml(GgmlDType::Q8_0) => Group::Q8_0,
        Format::Ggml(_) => return None,
    })
}

#[cfg(target_arch = "x86_64")]
pub(super) mod simd {
    use std::arch::x86_64::*;

    use super::NF4_LEVELS;

    /// A type whose blocks are made of groups of sixteen values.
    pub(in crate::cpu) trait Groups {
        /// Group `index` of a row.
        ///
        /// # Safety
        /// The processor has AVX-512 with its byte instructions, and the row has such a group.
        unsafe fn sixteen(row: *const u8, index: usize) -> __m512;

        /// Groups `2 · index` and the next, which are of one block.
        ///
        /// # Safety
        /// As for [`Groups::sixteen`], for both.
        unsafe fn thirty_two(row: *const u8, index: usize) -> [__m512; 2];

        /// The same rounded to bf16, in order.
        ///
        /// # Safety
        /// As for [`Groups::sixteen`], and the processor has the instructions for bf16.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
        unsafe fn rounded(row: *const u8, index: usize) -> __m512i {
            // SAFETY: the caller's promise.
            let [low, high] = unsafe { Self::thirty_two(row, index) };
            // SAFETY: both are 64 bytes without a meaning of their own.
            unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
        }
    }

    /// The numbers from 0 to 15.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn codes() -> __m512 {
        _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.)
    }

    /// What a table of sixteen values has for the low and for the high four bits of sixteen bytes.
    ///
    /// # Safety
    /// The bytes can be read.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn looked_up(table: __m512, at: *const u8) -> [__m512; 2] {
        // SAFETY: the caller's promise. Only the low four bits of an index count.
        let low = unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast())) };
        let high = _mm512_srli_epi32::<4>(low);
        [_mm512_permutexvar_ps(low, table), _mm512_permutexvar_ps(high, table)]
    }

    /// As [`looked_up`], in bf16: the table is rounded before.
    ///
    /// # Safety
    /// The bytes can be read.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn looked_up_rounded(table: __m512, at: *const u8) -> __m512i {
        // SAFETY: 32 bytes without a meaning of their own.
        let table: __m256i = unsafe { std::mem::transmute(_mm512_cvtneps_pbh(table)) };
        // Twice, since five bits of an index count.
        let table = _mm512_broadcast_i64x4(table);
        // SAFETY: the caller's promise.
        let low = unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(at.cast())) };
        let high = _mm256_srli_epi16::<4>(low);
        let codes = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
        _mm512_permutexvar_epi16(codes, table)
    }

    /// A number in f16, in all lanes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn half(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise: two bytes of a block.
        let bits = unsafe { at.cast::<i16>().read_unaligned() };
        _mm512_cvtph_ps(_mm256_set1_epi16(bits))
    }

    /// Four bits of each of sixteen bytes, the low ones or the high ones.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn nibbles(at: *const u8, high: bool) -> __m512i {
        // SAFETY: the caller's promise: the sixteen bytes of a block.
        let bytes = unsafe { _mm_loadu_si128(at.cast()) };
        let bytes = if high { _mm_srli_epi16::<4>(bytes) } else { bytes };
        _mm512_cvtepu8_epi32(_mm_and_si128(bytes, _mm_set1_epi8(15)))
    }

    pub(in crate::cpu) struct Q4_0;

    impl Groups for Q4_0 {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn sixteen(row: *const u8, index: usize) -> __m512 {
            // SAFETY: the caller's promise.
            unsafe {
                let block = row.add(index / 2 * 18);
                let codes =
                    _mm512_sub_epi32(nibbles(block.add(2), index % 2 == 1), _mm512_set1_epi32(8));
                _mm512_mul_ps(_mm512_cvtepi32_ps(codes), half(block))
            }
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn thirty_two(row: *const u8, index: usize) -> [__m512; 2] {
            // SAFETY: the caller's promise.
            unsafe {
                let block = row.add(index * 18);
                looked_up(Self::table(block), block.add(2))
            }
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
        unsafe fn rounded(row: *const u8, index: usize) -> __m512i {
            // SAFETY: the caller's promise.
            unsafe {
                let block = row.add(index * 18);
                looked_up_rounded(Self::table(block), block.add(2))
            }
        }
    }

    impl Q4_0 {
        /// The values of the sixteen codes of a block.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn table(block: *const u8) -> __m512 {
            let codes = _mm512_sub_ps(codes(), _mm512_set1_ps(8.));
            // SAFETY: the caller's promise: a block begins here.
            _mm512_mul_ps(codes, unsafe { half(block) })
        }
    }

    pub(in crate::cpu) struct Q4_1;

    impl Q4_1 {
        /// The values of the sixteen codes of a block.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn table(block: *const u8) -> __m512 {
            // SAFETY: the caller's promise: a block begins here.
            unsafe { _mm512_add_ps(_mm512_mul_ps(codes(), half(block)), half(block.add(2))) }
        }
    }

    impl Groups for Q4_1 {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn sixteen(row: *const u8, index: usize) -> __m512 {
            // SAFETY: the caller's promise.
            unsafe {
                let block = row.add(index / 2 * 20);
                let codes = _mm512_cvtepi32_ps(nibbles(block.add(4), index % 2 == 1));
                // Rounded twice, as candle does it.
                _mm512_add_ps(_mm512_mul_ps(codes, half(block)), half(block.add(2)))
            }
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn thirty_two(row: *const u8, index: usize) -> [__m512; 2] {
            // SAFETY: the caller's promise.
            unsafe {
                let block = row.add(index * 20);
                looked_up(Self::table(block), block.add(4))
            }
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
        unsafe fn rounded(row: *const u8, index: usize) -> __m512i {
            // SAFETY: the caller's promise.
            unsafe {
                let block = row.add(index * 20);
                looked_up_rounded(Self::table(block), block.add(4))
            }
        }
    }

    pub(in crate::cpu) struct Q8_0;

    impl Groups for Q8_0 {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn sixteen(row: *const u8, index: usize) -> __m512 {
            // SAFETY: the caller's promise.
            unsafe {
                let block = row.add(index / 2 * 34);
                let codes = _mm_loadu_si128(block.add(2 + 16 * (index % 2)).cast());
                _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)), half(block))
            }
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn thirty_two(row: *const u8, index: usize) -> [__m512; 2] {
            // SAFETY: the caller's promise.
            unsafe { [Self::sixteen(row, 2 * index), Self::sixteen(row, 2 * index + 1)] }
        }
    }

    pub(in crate::cpu) struct Nf4;

    impl Groups for Nf4 {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn sixteen(row: *const u8, index: usize) -> __m512 {
            // SAFETY: the caller's promise.
            unsafe {
                let block = row.add(index / 4 * 36);
                let pairs = _mm_loadl_epi64(block.add(4 + 8 * (index % 4)).cast());
                // The first of a pair is in the high bits.
                let both = _mm_unpacklo_epi8(_mm_srli_epi16::<4>(pairs), pairs);
                let codes = _mm512_cvtepu8_epi32(_mm_and_si128(both, _mm_set1_epi8(15)));
                let levels = _mm512_permutexvar_ps(codes, _mm512_loadu_ps(NF4_LEVELS.as_ptr()));
                let absmax = block.cast::<f32>().read_unaligned();
                _mm512_mul_ps(levels, _mm512_set1_ps(absmax))
            }
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn thirty_two(row: *const u8, index: usize) -> [__m512; 2] {
            // SAFETY: the caller's promise.
            unsafe { [Self::sixteen(row, 2 * index), Self::sixteen(row, 2 * index + 1)] }
        }
    }
}
