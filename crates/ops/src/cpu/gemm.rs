//! f32 matrix products in every layout that the operations and their gradients need.
//!
//! With AMX a number is the sum of three in bf16, exactly so, and a product six products of parts
//! ([`half`](super::half)). What is left out lies beyond the 24 bits that f32 has; the sums are
//! f32's. Infinite numbers come out as no numbers, and numbers above 3.38e38 count as infinite.
//! Errors and speeds: `docs/measurements.md`, "Matrix products".
//!
//! On AVX-512 our own kernel: each task packs one panel of B (48 columns) into its second-level
//! cache and runs down the rows of A with it. Packing is a small part of the time, so no weight is
//! kept packed and frozen weights cost their own size once. Elsewhere the `gemm` crate.

use std::cell::RefCell;

use gemm::Parallelism;

use super::blocks::BlockMat;
use super::{Shared, crew, math, uninit};
#[cfg(target_arch = "x86_64")]
use super::{amx, half};

/// A matrix inside a buffer; either its rows or its columns lie contiguously.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert!(data.len() >= rows * cols, "the buffer holds the matrix");
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// How many rows it has.
    pub fn rows(self) -> usize {
        self.rows
    }

    /// The same matrix transposed, in place.
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// Columns `from..to`.
    pub fn columns(self, from: usize, to: usize) -> Self {
        assert!(from <= to && to <= self.cols, "columns inside the matrix");
        let data = if from == to { &[] } else { &self.data[from * self.col_stride..] };
        Self { data, cols: to - from, ..self }
    }

    fn rows_from(self, from: usize, to: usize) -> Self {
        self.t().columns(from, to).t()
    }
}

/// The right side of a product.
#[derive(Clone, Copy)]
pub enum Right<'a> {
    /// Numbers.
    Plain(Mat<'a>),
    /// Quantised, dequantised as it is packed.
    Blocks(BlockMat<'a>),
}

impl<'a> From<Mat<'a>> for Right<'a> {
    fn from(b: Mat<'a>) -> Self {
        Self::Plain(b)
    }
}

impl Right<'_> {
    fn rows(&self) -> usize {
        match self {
            Self::Plain(b) => b.rows,
            Self::Blocks(b) => b.rows(),
        }
    }

    fn cols(&self) -> usize {
        match self {
            Self::Plain(b) => b.cols,
            Self::Blocks(b) => b.cols(),
        }
    }

    /// Whether its columns lie contiguously.
    fn has_columns(&self) -> bool {
        match self {
            Self::Plain(b) => b.row_stride == 1,
            Self::Blocks(b) => b.is_turned(),
        }
    }

    /// Dot product of one of its columns, which lie contiguously, with a row.
    fn dot(&self, row: &[f32], column: usize) -> f32 {
        match self {
            Self::Plain(b) => {
                math::dot(row, &b.data[column * b.col_stride..column * b.col_stride + b.rows])
            }
            Self::Blocks(b) => b.with_row(column, |column| math::dot(row, column)),
        }
    }

    /// Whether its panels can be packed one by one.
    #[cfg(target_arch = "x86_64")]
    fn packs_anywhere(&self) -> bool {
        match self {
            Self::Plain(_) => true,
            Self::Blocks(b) => b.packs_anywhere(),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn rows_from(self, from: usize, to: usize) -> Self {
        match self {
            Self::Plain(b) => Self::Plain(b.rows_from(from, to)),
            Self::Blocks(b) => Self::Blocks(b.rows_from(from, to)),
        }
    }
}

/// One product of a sum: `alpha · a · b`.
#[derive(Clone, Copy)]
pub struct Term<'a> {
    /// `[m, k]`
    pub a: Mat<'a>,
    /// `[k, n]`
    pub b: Right<'a>,
    /// Factor.
    pub alpha: f32,
}

/// What the products are added to.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// Nothing.
    Zero,
    /// A vector, the same for each row.
    Bias(&'a [f32]),
    /// The values that are there.
    Accumulate,
}

/// `start + Σ alpha · a · b` as a new row-major matrix.
pub fn sum_of_products(terms: &[Term], bias: Option<&[f32]>) -> Vec<f32> {
    let (m, n) = terms.first().map_or((0, 0), |term| (term.a.rows, term.b.cols()));
    // SAFETY: `products` writes every element unless it accumulates.
    let mut c = unsafe { uninit(m * n) };
    products(&mut c, terms, bias.map_or(Start::Zero, Start::Bias));
    c
}

/// `a · b` as a new row-major matrix.
pub fn product(a: Mat, b: Mat) -> Vec<f32> {
    sum_of_products(&[Term { a, b: b.into(), alpha: 1. }], None)
}

/// `c = start + Σ alpha · a · b`, `c` row-major.
pub fn products(c: &mut [f32], terms: &[Term], start: Start) {
    let Some(first) = terms.first() else { return };
    let (m, n) = (first.a.rows, first.b.cols());
    for term in terms {
        assert!(
            term.a.rows == m && term.b.cols() == n && term.a.cols == term.b.rows(),
            "shapes fit"
        );
    }
    assert!(c.len() == m * n, "the result has its size");
    if m == 0 || n == 0 {
        return;
    }
    if m < DOT_ROWS && terms.iter().all(|t| t.b.has_columns() && t.a.col_stride == 1) {
        return dots(c, terms, start);
    }
    #[cfg(target_arch = "x86_64")]
    if super::avx512::available() {
        if terms.iter().all(|term| term.b.packs_anywhere()) {
            return whole(c, terms, start);
        }
        return in_slices(c, terms, start);
    }
    portable(c, terms, start);
}

/// Depth of one pass of products from three parts: 32 columns then take 288 KiB.
#[cfg(target_arch = "x86_64")]
const SPLIT_DEPTH: usize = 768;

/// Results from which on three parts are worth their packing (a fifth of the time for 512 x 576). A
/// step of 4 x 128 tokens took 1.2 s with all its products so and 1.3 without, but 2 s instead of
/// 1.6 on a core whose second thread was busy; one of 1 x 2048 gains either way.
#[cfg(target_arch = "x86_64")]
const MANY_RESULTS: usize = 1_000_000;

/// Large products whose panels can all be packed: on AMX from three parts in bf16, else by vectors.
#[cfg(target_arch = "x86_64")]
fn whole(c: &mut [f32], terms: &[Term], start: Start) {
    let (m, n) = (terms[0].a.rows, terms[0].b.cols());
    // Tiles are 32 x 32 results.
    if m >= 32 && n >= 32 && m * n >= MANY_RESULTS && amx::unit() == Some(amx::Unit::Amx) {
        from_parts(c, terms, start);
    } else {
        packed(c, terms, start);
    }
}

/// The processor has AMX.
#[cfg(target_arch = "x86_64")]
fn from_parts(c: &mut [f32], terms: &[Term], start: Start) {
    in_passes(SPLIT_DEPTH, terms, start, |terms, start| {
        let terms = terms.iter().map(|&Term { a, b, alpha }| {
            let b = match b {
                Right::Plain(b) => half::Right::Full(b),
                Right::Blocks(b) => half::Right::Blocks(b),
            };
            half::Term { a, b, alpha }
        });
        half::packed::<3>(amx::Unit::Amx, c, &terms.collect::<Vec<_>>(), start);
    });
}

/// `a · b` with f32's own multiplications, whatever else the processor has: what a benchmark holds
/// [`product`] against.
pub fn product_by_vectors(a: Mat, b: Mat) -> Vec<f32> {
    let mut c = vec![0.; a.rows * b.cols];
    let terms = [Term { a, b: b.into(), alpha: 1. }];
    #[cfg(target_arch = "x86_64")]
    if super::avx512::available() && !c.is_empty() {
        packed(&mut c, &terms, Start::Zero);
        return c;
    }
    products(&mut c, &terms, Start::Zero);
    c
}

/// As [`products`], by a kernel in which each row of the result is the same bits whichever rows are
/// computed with it. `false` where the processor has none; nothing is computed then.
pub fn products_by_panels(c: &mut [f32], terms: &[Term], start: Start) -> bool {
    #[cfg(target_arch = "x86_64")]
    if super::avx512::available()
        && !c.is_empty()
        && terms.iter().all(|term| term.b.packs_anywhere())
    {
        // Tiles are 32 columns wide; the number of rows has no say.
        match terms[0].b.cols() >= 32 && amx::unit() == Some(amx::Unit::Amx) {
            true => from_parts(c, terms, start),
            false => packed(c, terms, start),
        }
        return true;
    }
    let _ = (c, terms, start);
    false
}

/// Rows of a quantised matrix that are dequantised at a time where they cannot be as a panel is
/// packed.
const SLICE_ROWS: usize = 512;

/// Types whose blocks are larger than a panel is wide: each stretch of depth is dequantised once,
/// for all panels.
#[cfg(target_arch = "x86_64")]
fn in_slices(c: &mut [f32], terms: &[Term], start: Start) {
    let mut start = start;
    for &Term { a, b, alpha } in terms {
        match b {
            Right::Blocks(b) if !b.packs_anywhere() => {
                for from in (0..b.rows()).step_by(SLICE_ROWS) {
                    let to = (from + SLICE_ROWS).min(b.rows());
                    let wide = b.wide(from, to);
                    let b = Mat::new(&wide, to - from, b.cols()).into();
                    whole(c, &[Term { a: a.columns(from, to), b, alpha }], start);
                    start = Start::Accumulate;
                }
            }
            b => {
                whole(c, &[Term { a, b, alpha }], start);
                start = Start::Accumulate;
            }
        }
    }
}

/// Below this many rows a product with transposed weights reads each weight once and is bound by
/// memory: packing it would double the traffic.
const DOT_ROWS: usize = 8;

/// Decoding: few rows of A against weights whose rows are the columns of B.
fn dots(c: &mut [f32], terms: &[Term], start: Start) {
    let (m, n) = (terms[0].a.rows, terms[0].b.cols());
    let out = Shared::new(c);
    let task = |from: usize, to: usize| {
        for j in from..to {
            for i in 0..m {
                // SAFETY: each column belongs to one task, i < m and j < n.
                let place = unsafe { &mut *out.at(i * n + j) };
                let mut sum = match start {
                    Start::Zero => 0.,
                    Start::Bias(bias) => bias[j],
                    Start::Accumulate => *place,
                };
                for Term { a, b, alpha } in terms {
                    let row = &a.data[i * a.row_stride..i * a.row_stride + a.cols];
                    sum += alpha * b.dot(row, j);
                }
                *place = sum;
            }
        }
    };
    let depth: usize = terms.iter().map(|t| t.a.cols).sum();
    let width = (64 * 1024 / depth.max(1)).clamp(1, n);
    if n <= width {
        task(0, n);
    } else {
        crew::run(n.div_ceil(width), |i| task(i * width, ((i + 1) * width).min(n)));
    }
}

fn portable(c: &mut [f32], terms: &[Term], start: Start) {
    let n = terms[0].b.cols();
    if let Start::Bias(bias) = start {
        for row in c.chunks_exact_mut(n) {
            row.copy_from_slice(bias);
        }
    }
    let mut read = !matches!(start, Start::Zero);
    for Term { a, b, alpha } in terms {
        match b {
            Right::Plain(b) => portable_product(&mut c[..], n, *a, *b, *alpha, read),
            Right::Blocks(b) => {
                let stored = if b.is_turned() { n } else { b.rows() };
                for from in (0..stored).step_by(SLICE_ROWS) {
                    let to = (from + SLICE_ROWS).min(stored);
                    let wide = b.wide(from, to);
                    if b.is_turned() {
                        let columns = Mat::new(&wide, to - from, b.rows()).t();
                        portable_product(&mut c[from..], n, *a, columns, *alpha, read);
                    } else {
                        let rows = Mat::new(&wide, to - from, n);
                        portable_product(c, n, a.columns(from, to), rows, *alpha, read || from > 0);
                    }
                }
            }
        }
        read = true;
    }
}

/// `c = alpha · a · b (+ c)`, with `ldc` from a row of `c` to the next.
fn portable_product(c: &mut [f32], ldc: usize, a: Mat, b: Mat, alpha: f32, read: bool) {
    let (m, n) = (a.rows, b.cols);
    assert!(m == 0 || n == 0 || c.len() >= (m - 1) * ldc + n, "the result has its size");
    let work = m * n * a.cols;
    let threads = if work < SERIAL_WORK { Parallelism::None } else { Parallelism::Rayon(0) };
    // SAFETY: the shapes were checked by `products`, the result above and the buffers by `Mat`.
    unsafe {
        gemm::gemm(
            m,
            n,
            a.cols,
            c.as_mut_ptr(),
            1,
            ldc as isize,
            read,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.,
            alpha,
            false,
            false,
            false,
            threads,
        );
    }
}

/// Multiplications below which a product is not worth handing to other threads.
const SERIAL_WORK: usize = 1 << 19;

#[cfg(target_arch = "x86_64")]
mod own {
    use super::*;
    use crate::cpu::avx512::{self, Block};

    /// Depth of one pass: a panel of 48 columns then takes 384 KiB at most, within a second-level
    /// cache.
    const DEPTH: usize = 2048;

    thread_local! {
        static PANEL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }

    /// Divides products that are deeper than `most` into passes of at most that depth, and a little
    /// more for a low-rank term.
    pub(super) fn in_passes(
        most: usize,
        terms: &[Term],
        start: Start,
        mut one_pass: impl FnMut(&[Term], Start),
    ) {
        // Deep products go in passes that every task finishes together, so that B streams through
        // the caches once.
        let mut start = start;
        let mut pass: Vec<Term> = Vec::new();
        let mut depth = 0;
        for &Term { a, b, alpha } in terms {
            let mut from = 0;
            while from < a.cols {
                let to = (from + most).min(a.cols);
                if depth + (to - from) > most + 64 {
                    one_pass(&pass, start);
                    start = Start::Accumulate;
                    pass.clear();
                    depth = 0;
                }
                pass.push(Term { a: a.columns(from, to), b: b.rows_from(from, to), alpha });
                depth += to - from;
                from = to;
            }
        }
        if pass.is_empty() {
            // A product of depth 0 is still a matrix of zeros (or the bias).
            pass.extend_from_slice(&terms[..1]);
        }
        one_pass(&pass, start);
    }

    pub(super) fn packed(c: &mut [f32], terms: &[Term], start: Start) {
        in_passes(DEPTH, terms, start, |terms, start| one_pass(c, terms, start));
    }

    fn one_pass(c: &mut [f32], terms: &[Term], start: Start) {
        let (m, n) = (terms[0].a.rows, terms[0].b.cols());
        // 64 columns go better as 32 + 32 than as 48 + 16.
        let width = if !n.is_multiple_of(48) && n.is_multiple_of(32) && n < 512 {
            32
        } else {
            48.min(n.next_multiple_of(16))
        };
        let panels = n.div_ceil(width);
        let depth: usize = terms.iter().map(|t| t.a.cols).sum();
        let out = Shared::new(c);
        let threads = crew::threads();
        let parts = if panels < 2 * threads {
            (2 * threads).div_ceil(panels).min(m.div_ceil(96))
        } else {
            1
        };
        let height = m.div_ceil(parts).next_multiple_of(24);
        let task = |index: usize| {
            let (panel, part) = (index / parts, index % parts);
            let (from, to) = (part * height, ((part + 1) * height).min(m));
            if from < to {
                // SAFETY: tasks cover disjoint rows and columns of `c`; `packed` is called where
                // AVX-512 is.
                unsafe {
                    panel_product(
                        out,
                        n,
                        terms,
                        start,
                        from..to,
                        panel * width..((panel + 1) * width).min(n),
                    )
                };
            }
        };
        if m * n * depth < SERIAL_WORK || threads == 1 {
            (0..panels * parts).for_each(task);
        } else {
            crew::run(panels * parts, task);
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn panel_product(
        out: Shared,
        ldc: usize,
        terms: &[Term],
        start: Start,
        rows: std::ops::Range<usize>,
        cols: std::ops::Range<usize>,
    ) {
        let n = cols.len();
        let width = n.next_multiple_of(16);
        PANEL.with_borrow_mut(|panel| {
            let depth: usize = terms.iter().map(|t| t.a.cols).sum();
            if panel.len() < depth * width + 16 {
                panel.resize(depth * width + 16, 0.);
            }
            // Vectors that do not straddle cache lines.
            let aligned = panel.as_ptr().align_offset(64);
            let mut packed = panel[aligned..].as_mut_ptr();
            // SAFETY: the caller's promise; the panel was sized above.
            unsafe {
                let c = out.at(rows.start * ldc + cols.start);
                let mut blocks = Vec::with_capacity(terms.len());
                let mut from: (*const f32, usize) = match start {
                    Start::Zero => (std::ptr::null(), 0),
                    Start::Bias(bias) => (bias[cols.clone()].as_ptr(), 0),
                    Start::Accumulate => (c.cast_const(), ldc),
                };
                for &Term { a, b, alpha } in terms {
                    let k = a.cols;
                    let (b_data, b_rows) = match b {
                        // Too few rows to repay the packing.
                        Right::Plain(b) if b.col_stride == 1 && rows.len() <= 16 => {
                            (b.data.as_ptr().add(cols.start), b.row_stride)
                        }
                        b => {
                            match b {
                                Right::Plain(b) => pack(b, cols.clone(), packed, width),
                                Right::Blocks(b) => b.pack(cols.clone(), packed, width),
                            }
                            let data = packed.cast_const();
                            packed = packed.add(k * width);
                            (data, width)
                        }
                    };
                    blocks.push(Block {
                        k,
                        a: a.data.as_ptr().add(rows.start * a.row_stride),
                        a_rows: a.row_stride,
                        a_cols: a.col_stride,
                        b: b_data,
                        b_rows,
                        alpha,
                        start: from.0,
                        start_rows: from.1,
                    });
                    from = (c.cast_const(), ldc);
                }
                avx512::product(&blocks, rows.len(), n, c, ldc);
            }
        });
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn pack(b: Mat, cols: std::ops::Range<usize>, out: *mut f32, width: usize) {
        let n = cols.len();
        // SAFETY: `out` has room for b.rows · width values, and b holds its columns.
        unsafe {
            if b.row_stride == 1 {
                let from = b.data.as_ptr().add(cols.start * b.col_stride);
                avx512::pack_transposed(b.rows, n, from, b.col_stride, out, width);
            } else if b.col_stride == 1 {
                for p in 0..b.rows {
                    let from = b.data.as_ptr().add(p * b.row_stride + cols.start);
                    std::ptr::copy_nonoverlapping(from, out.add(p * width), n);
                }
            } else {
                for p in 0..b.rows {
                    for (i, j) in cols.clone().enumerate() {
                        *out.add(p * width + i) = b.data[p * b.row_stride + j * b.col_stride];
                    }
                }
            }
        }
    }
}
#[cfg(target_arch = "x86_64")]
use own::{in_passes, packed};

/// One small product on the calling thread, `c = alpha · a · b (+ c)`, whose B has contiguous rows:
/// what attention's tiles are made of.
pub struct Tile {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Depth.
    pub k: usize,
    /// First element, distance of rows and distance of columns of A.
    pub a: (*const f32, usize, usize),
    /// First element and distance of rows of B.
    pub b: (*const f32, usize),
    /// First element and distance of rows of the result.
    pub c: (*mut f32, usize),
    /// Factor on the product.
    pub alpha: f32,
    /// Whether to add to what `c` holds.
    pub accumulate: bool,
}

impl Tile {
    /// Computes it.
    ///
    /// # Safety
    /// The pointers are valid for what the shapes span, and `c` does not overlap `a` or `b`.
    pub unsafe fn compute(&self) {
        #[cfg(target_arch = "x86_64")]
        if super::avx512::available() {
            let width =
                if !self.n.is_multiple_of(48) && self.n.is_multiple_of(32) { 32 } else { 48 };
            let mut from = 0;
            while from < self.n {
                let n = width.min(self.n - from);
                // SAFETY: the caller's promise, and `available` asked the processor.
                unsafe {
                    let c = self.c.0.add(from);
                    let block = super::avx512::Block {
                        k: self.k,
                        a: self.a.0,
                        a_rows: self.a.1,
                        a_cols: self.a.2,
                        b: self.b.0.add(from),
                        b_rows: self.b.1,
                        alpha: self.alpha,
                        start: if self.accumulate { c } else { std::ptr::null() },
                        start_rows: self.c.1,
                    };
                    super::avx512::product(&[block], self.m, n, c, self.c.1);
                }
                from += n;
            }
            return;
        }
        // SAFETY: the caller's promise.
        unsafe {
            gemm::gemm(
                self.m,
                self.n,
                self.k,
                self.c.0,
                1,
                self.c.1 as isize,
                self.accumulate,
                self.a.0,
                self.a.2 as isize,
                self.a.1 as isize,
                self.b.0,
                1,
                self.b.1 as isize,
                1.,
                self.alpha,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A way to compute products.
    type Form = fn(&mut [f32], &[Term], Start);

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.).collect()
    }

    fn expected(c: &[f32], terms: &[Term], start: Start) -> Vec<f32> {
        let (m, n) = (terms[0].a.rows, terms[0].b.cols());
        let mut out = vec![0.; m * n];
        for i in 0..m {
            for j in 0..n {
                let mut sum = match start {
                    Start::Zero => 0.,
                    Start::Bias(bias) => f64::from(bias[j]),
                    Start::Accumulate => f64::from(c[i * n + j]),
                };
                for Term { a, b, alpha } in terms {
                    let Right::Plain(b) = b else { continue };
                    for p in 0..a.cols {
                        let x = f64::from(a.data[i * a.row_stride + p * a.col_stride]);
                        let y = f64::from(b.data[p * b.row_stride + j * b.col_stride]);
                        sum += f64::from(*alpha) * x * y;
                    }
                }
                out[i * n + j] = sum as f32;
            }
        }
        out
    }

    fn check(form: Form, m: usize, n: usize, k: usize, ta: bool, tb: bool) {
        let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
        let (a2, b2) = (numbers(m * 3, 3), numbers(3 * n, 4));
        let bias = numbers(n, 5);
        let a = if ta { Mat::new(&a, k, m).t() } else { Mat::new(&a, m, k) };
        let b = if tb { Mat::new(&b, n, k).t() } else { Mat::new(&b, k, n) };
        let terms = [
            Term { a, b: b.into(), alpha: 1. },
            Term { a: Mat::new(&a2, m, 3), b: Mat::new(&b2, n, 3).t().into(), alpha: -0.5 },
        ];
        for start in [Start::Zero, Start::Bias(&bias), Start::Accumulate] {
            let mut c = numbers(m * n, 6);
            let right = expected(&c, &terms, start);
            form(&mut c, &terms, start);
            for (i, (x, y)) in c.iter().zip(&right).enumerate() {
                let error = (x - y).abs();
                let size = y.abs().max((k as f32).sqrt()).max(1.);
                assert!(error <= 4e-6 * size, "{m}x{n}x{k} {ta} {tb} [{i}]: {x} for {y}");
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn three_parts_hold_all_bits() {
        if amx::unit() != Some(amx::Unit::Amx) {
            return;
        }
        for m in [32, 33, 70, 200] {
            for n in [32, 48, 100] {
                for k in [31, 64, 700, 800, 1600] {
                    for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
                        check(from_parts, m, n, k, ta, tb);
                    }
                }
            }
        }
        // Numbers of all sizes, beside sums by vectors.
        let (m, n, k) = (64, 64, 700);
        let sizes = |n, seed| -> Vec<f32> {
            let scaled = |(i, v): (usize, f32)| v * 2f32.powi((i * 31 % 41) as i32 - 20);
            numbers(n, seed).into_iter().enumerate().map(scaled).collect()
        };
        let (a, b) = (sizes(m * k, 1), sizes(k * n, 2));
        let terms = [Term { a: Mat::new(&a, m, k), b: Mat::new(&b, k, n).into(), alpha: 1. }];
        let right = expected(&[], &terms, Start::Zero);
        let error = |form: Form| {
            let mut c = vec![0.; m * n];
            form(&mut c, &terms, Start::Zero);
            c.iter().zip(&right).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>().sqrt()
        };
        let (parts, vectors) = (error(from_parts), error(packed));
        assert!(parts < 1.5 * vectors, "{parts} beside {vectors}");
    }

    #[test]
    fn every_layout_and_edge_is_right() {
        for m in [1, 3, 8, 17, 50, 230] {
            for n in [1, 8, 16, 31, 48, 64, 100] {
                for k in [0, 1, 8, 33, 2100] {
                    for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
                        if m * n * k > 2_000_000 {
                            continue;
                        }
                        check(products, m, n, k, ta, tb);
                        check(portable, m, n, k, ta, tb);
                    }
                }
            }
        }
    }

    /// The forms that take such blocks on this processor.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused))]
    fn forms(block: BlockMat) -> Vec<Form> {
        let mut forms: Vec<Form> = vec![products, portable];
        #[cfg(target_arch = "x86_64")]
        if block.packs_anywhere() && amx::unit() == Some(amx::Unit::Amx) {
            forms.push(from_parts);
        }
        forms
    }

    /// Products with quantised sides have the bits of products with dequantised ones where both are
    /// packed alike.
    #[test]
    fn quantised_sides_are_dequantised_exactly() {
        use candle_core::quantized::GgmlDType::*;
        use candle_core::{Device, Tensor};

        use crate::quantized::{Format, Quantized};

        let ggml = [F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K];
        let formats: Vec<Format> =
            ggml.into_iter().map(Format::Ggml).chain([Format::Nf4]).collect();
        for format in formats {
            for (rows, cols) in [(1, 256), (50, 256), (96, 512), (70, 2560), (600, 256)] {
                // NF4 ends its rows anywhere.
                let cols = if format == Format::Nf4 { cols - 5 } else { cols };
                let values =
                    Tensor::from_vec(numbers(rows * cols, 7), (rows, cols), &Device::Cpu).unwrap();
                let blocks = match format {
                    Format::Ggml(dtype) => Quantized::ggml(&values, dtype).unwrap(),
                    Format::Nf4 => Quantized::nf4(&values).unwrap(),
                };
                let wide: Vec<f32> =
                    blocks.dequantize().unwrap().flatten_all().unwrap().to_vec1().unwrap();
                for m in [1, 7, 20, 130] {
                    for turned in [true, false] {
                        let (n, k) = if turned { (rows, cols) } else { (cols, rows) };
                        let (a, low_a, low_b) =
                            (numbers(m * k, 1), numbers(m * 3, 3), numbers(3 * n, 4));
                        let block = BlockMat::new(&blocks);
                        let block = if turned { block.t() } else { block };
                        let plain = Mat::new(&wide, rows, cols);
                        let plain = if turned { plain.t() } else { plain };
                        let low = Term {
                            a: Mat::new(&low_a, m, 3),
                            b: Mat::new(&low_b, 3, n).into(),
                            alpha: 0.5,
                        };
                        let term = |b| [Term { a: Mat::new(&a, m, k), b, alpha: 1. }, low];
                        let bias = numbers(n, 5);
                        for start in [Start::Zero, Start::Bias(&bias), Start::Accumulate] {
                            for form in forms(block) {
                                let (mut found, mut expected) =
                                    (numbers(m * n, 6), numbers(m * n, 6));
                                form(&mut found, &term(Right::Blocks(block)), start);
                                form(&mut expected, &term(plain.into()), start);
                                for (found, expected) in found.iter().zip(&expected) {
                                    let bound = 2e-6 * expected.abs().max((k as f32).sqrt());
                                    let close = (found - expected).abs() <= bound;
                                    assert!(
                                        close,
                                        "{format} {rows}x{cols} {m} {turned}: {found} for {expected}"
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
