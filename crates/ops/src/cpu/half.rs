//! Matrix products from operands in bf16: rounded to it, sums and results in f32; or f32 in three
//! parts, see [`gemm`](super::gemm).
//!
//! Both sides are packed once, in groups of 16 rows or columns, pairs of depth together, and blocks
//! of 32 x 32 results divided among the threads. Depths are filled up with zeros to multiples of
//! 32, and the terms of a sum lie one behind the other, so a low-rank product is a little more
//! depth. Where the processor has no unit for it, weights are widened to f32.

#[cfg(target_arch = "x86_64")]
use std::cell::RefCell;

use ::half::bf16;
use rayon::prelude::*;

use super::blocks::BlockMat;
use super::crew::{self, Each};
use super::gemm::{self, Mat, Start};
use super::multiversion;
#[cfg(target_arch = "x86_64")]
use super::{
    Shared,
    amx::{self, Tiles, Unit},
};

/// A row-major matrix of bf16 or its transpose.
#[derive(Clone, Copy)]
pub struct HalfMat<'a> {
    data: &'a [bf16],
    rows: usize,
    cols: usize,
    turned: bool,
}

impl<'a> HalfMat<'a> {
    /// A row-major matrix.
    pub fn new(data: &'a [bf16], rows: usize, cols: usize) -> Self {
        assert!(data.len() >= rows * cols, "the buffer holds the matrix");
        Self { data, rows, cols, turned: false }
    }

    /// The same matrix transposed, in place.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, turned: !self.turned, ..self }
    }
}

/// The right side of a product.
#[derive(Clone, Copy)]
pub enum Right<'a> {
    /// A weight.
    Half(HalfMat<'a>),
    /// Rounded as it is packed.
    Full(Mat<'a>),
    /// Dequantised and rounded as it is packed.
    Blocks(BlockMat<'a>),
}

impl Right<'_> {
    fn size(&self) -> (usize, usize) {
        match self {
            Self::Half(b) => (b.rows, b.cols),
            Self::Full(b) => (b.rows, b.cols),
            Self::Blocks(b) => (b.rows(), b.cols()),
        }
    }
}

/// One product of a sum: `alpha · a · b`. The rows of `a` are contiguous.
#[derive(Clone, Copy)]
pub struct Term<'a> {
    /// `[m, k]`
    pub a: Mat<'a>,
    /// `[k, n]`
    pub b: Right<'a>,
    /// Factor.
    pub alpha: f32,
}

/// `start + Σ alpha · a · b` as a new row-major matrix.
pub fn sum_of_products(terms: &[Term], bias: Option<&[f32]>) -> Vec<f32> {
    let (m, n) = terms.first().map_or((0, 0), |term| (term.a.rows, term.b.size().1));
    // SAFETY: `products` writes every element unless it accumulates.
    let mut c = unsafe { super::uninit(m * n) };
    products(&mut c, terms, bias.map_or(Start::Zero, Start::Bias));
    c
}

/// `c = start + Σ alpha · a · b`, `c` row-major.
pub fn products(c: &mut [f32], terms: &[Term], start: Start) {
    let Some(first) = terms.first() else { return };
    let (m, n) = (first.a.rows, first.b.size().1);
    for term in terms {
        assert!(term.a.rows == m && term.b.size() == (term.a.cols, n), "shapes fit");
        assert!(term.a.col_stride == 1 || term.a.cols <= 1, "rows of the left side are contiguous");
    }
    assert!(c.len() == m * n, "the result has its size");
    if m == 0 || n == 0 {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(unit) = amx::unit()
        && m >= FEW_ROWS
    {
        return packed::<1>(unit, c, terms, start);
    }
    widened(c, terms, start);
}

/// As [`products`], by a kernel in which each row of the result is the same bits whichever rows are
/// computed with it. `false` where the processor has none; nothing is computed then.
pub fn products_by_panels(c: &mut [f32], terms: &[Term], start: Start) -> bool {
    #[cfg(target_arch = "x86_64")]
    if let Some(unit) = amx::unit()
        && !c.is_empty()
    {
        packed::<1>(unit, c, terms, start);
        return true;
    }
    let _ = (c, terms, start);
    false
}

/// Fewer rows are bound by reading the weights, which packing would double.
#[cfg(target_arch = "x86_64")]
const FEW_ROWS: usize = 8;

/// In f32. The weights of a single row are not widened but multiplied as they are.
fn widened(c: &mut [f32], terms: &[Term], start: Start) {
    if let [Term { a, b: Right::Half(b), alpha }] = terms
        && b.turned
        && a.rows < 8
    {
        return dots(c, *a, *b, *alpha, start);
    }
    let wide: Vec<Option<Vec<f32>>> = terms
        .iter()
        .map(|term| match term.b {
            Right::Half(b) => {
                Some(b.data[..b.rows * b.cols].par_iter().map(|v| v.to_f32()).collect())
            }
            Right::Full(_) | Right::Blocks(_) => None,
        })
        .collect();
    let terms: Vec<gemm::Term> = terms
        .iter()
        .zip(&wide)
        .map(|(term, wide)| {
            let b = match (term.b, wide) {
                (Right::Half(b), Some(wide)) if b.turned => {
                    Mat::new(wide, b.cols, b.rows).t().into()
                }
                (Right::Half(b), Some(wide)) => Mat::new(wide, b.rows, b.cols).into(),
                (Right::Full(b), _) => b.into(),
                (Right::Blocks(b), _) => gemm::Right::Blocks(b),
                (Right::Half(_), None) => Mat::new(&[], 0, 0).into(), // each half has its wide form
            };
            gemm::Term { a: term.a, b, alpha: term.alpha }
        })
        .collect();
    gemm::products(c, &terms, start);
}

fn dots(c: &mut [f32], a: Mat, b: HalfMat, alpha: f32, start: Start) {
    let (m, n, k) = (a.rows, b.cols, b.rows);
    let mut turned = vec![0f32; m * n];
    turned.par_chunks_mut(m).enumerate().each(|(j, out)| {
        let column = &b.data[j * k..(j + 1) * k];
        for (i, out) in out.iter_mut().enumerate() {
            *out = alpha * dot(&a.data[i * a.row_stride..i * a.row_stride + k], column);
        }
    });
    for (i, row) in c.chunks_exact_mut(n).enumerate() {
        for (j, place) in row.iter_mut().enumerate() {
            let before = match start {
                Start::Zero => 0.,
                Start::Bias(bias) => bias[j],
                Start::Accumulate => *place,
            };
            *place = before + turned[j * m + i];
        }
    }
}

multiversion! {
    /// Dot product with a weight's row.
    pub fn dot(a: &[f32], b: &[bf16]) -> f32 {
        let mut sums = [0f32; 32];
        let (x, y) = (a.chunks_exact(32), b.chunks_exact(32));
        let rest: f32 = x.remainder().iter().zip(y.remainder()).map(|(p, q)| p * f32::from_bits(u32::from(q.to_bits()) << 16)).sum();
        for (p, q) in x.zip(y) {
            for i in 0..32 {
                sums[i] += p[i] * f32::from_bits(u32::from(q[i].to_bits()) << 16);
            }
        }
        sums.iter().sum::<f32>() + rest
    }
}

/// Packed rows, of each part, that a task works on for all its columns.
#[cfg(target_arch = "x86_64")]
const ROW_BYTES: usize = 160 << 10;

/// Packed columns that it works on for all its rows: both lie in the second-level cache together,
/// which is twice as large where there is AMX.
#[cfg(target_arch = "x86_64")]
fn column_bytes(unit: Unit) -> usize {
    match unit {
        Unit::Amx => 1 << 20,
        Unit::Avx512 => 768 << 10,
    }
}

/// Operands in one part, or in three on AMX.
#[cfg(target_arch = "x86_64")]
pub(super) fn packed<const PARTS: usize>(unit: Unit, c: &mut [f32], terms: &[Term], start: Start) {
    let (m, n) = (terms[0].a.rows, terms[0].b.size().1);
    let steps: usize = terms.iter().map(|term| term.a.cols.div_ceil(32)).sum();
    if let Start::Bias(bias) = start {
        for row in c.chunks_exact_mut(n) {
            row.copy_from_slice(bias);
        }
    }
    let add = !matches!(start, Start::Zero);
    let left = Groups::new(m, PARTS * steps, |from, out| pack_rows::<PARTS>(terms, from, m, out));
    let right =
        Groups::new(n, PARTS * steps, |from, out| pack_columns::<PARTS>(terms, from, n, out));
    // 32 rows or columns of an operand.
    let pair_bytes = ((2 * PARTS * steps) << 10).max(1);
    let slab = (ROW_BYTES * PARTS / pair_bytes).max(1);
    let (pairs, panels) = (m.div_ceil(32), n.div_ceil(32));
    let slabs = pairs.div_ceil(slab);
    let enough = (4 * crew::threads()).div_ceil(slabs);
    let stripe = (column_bytes(unit) / pair_bytes).min(panels / enough).max(1);
    let out = Shared::new(c);
    let task = |index: usize| {
        let (from, to) = (index / slabs * stripe, panels.min((index / slabs + 1) * stripe));
        let (first, last) = (index % slabs * slab, pairs.min((index % slabs + 1) * slab));
        let tiles = Tiles::new(unit);
        for pair in first..last {
            let mut ahead = left.pair((pair + 1).min(pairs - 1));
            for panel in from..to {
                let (a, b) = (left.pair(pair), right.pair(panel));
                if panel + 1 < to {
                    amx::prefetch_block(out, (m, n), (32 * pair, 32 * panel + 32));
                }
                // SAFETY: both operands hold two groups; tasks write disjoint blocks of `c`.
                unsafe {
                    let place = (32 * pair, 32 * panel);
                    ahead = result::<PARTS>(&tiles, a, b, steps, out, (m, n), place, add, ahead);
                }
            }
        }
    };
    let tasks = slabs * panels.div_ceil(stripe);
    if tasks < 2 || m * n * steps < 1 << 14 {
        (0..tasks).for_each(task);
    } else {
        crew::run(tasks, task);
    }
}

/// A packed operand: groups of sixteen rows or columns, an even number of them.
#[cfg(target_arch = "x86_64")]
struct Groups {
    data: Vec<u16>,
    /// Values before the first group, which begins with a cache line.
    before: usize,
    /// Values of a group.
    size: usize,
}

#[cfg(target_arch = "x86_64")]
impl Groups {
    /// So many rows or columns in groups of so many KiB. `write` fills each group, given its first
    /// row or column.
    fn new(rows: usize, kib: usize, write: impl Fn(usize, &mut [u16]) + Sync) -> Self {
        let (size, count) = (512 * kib, 2 * rows.div_ceil(32));
        let mut data: Vec<u16> = Vec::with_capacity(count * size + 32);
        let before = data.as_ptr().align_offset(64);
        // SAFETY: the capacity is there; `write` writes every element that is read.
        #[allow(clippy::uninit_vec)]
        unsafe {
            data.set_len(before + count * size);
        }
        let groups = data[before..].par_chunks_mut(size.max(1));
        groups.enumerate().each(|(index, group)| write(16 * index, group));
        Self { data, before, size }
    }

    /// Two groups, side by side.
    fn pair(&self, index: usize) -> *const u16 {
        self.data[self.before + 2 * index * self.size..].as_ptr()
    }
}

/// Sixteen rows from `from` on, as many as there are.
#[cfg(target_arch = "x86_64")]
fn pack_rows<const PARTS: usize>(terms: &[Term], from: usize, m: usize, out: &mut [u16]) {
    let (from, to) = (from.min(m), (from + 16).min(m));
    let mut at = out.as_mut_ptr();
    for Term { a, alpha, .. } in terms {
        // SAFETY: a unit was found; the rows lie in the matrix, and `out` has a KiB for each part
        // of 32 of depth.
        unsafe {
            let first = a.data.as_ptr().wrapping_add(from * a.row_stride);
            if a.col_stride == 1 {
                amx::pack_left::<PARTS>(first, a.row_stride, to - from, a.cols, *alpha, at);
            } else {
                amx::pack_left_turned::<PARTS>(first, a.col_stride, to - from, a.cols, *alpha, at);
            }
            at = at.add(512 * PARTS * a.cols.div_ceil(32));
        }
    }
}

/// One block of 32 x 32, or the part of it that lies in the result. Meanwhile what lies from
/// `ahead` on is brought nearer, and where that ends returned.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::too_many_arguments)]
unsafe fn result<const PARTS: usize>(
    tiles: &Tiles,
    a: *const u16,
    b: *const u16,
    steps: usize,
    out: Shared,
    (m, n): (usize, usize),
    (row, column): (usize, usize),
    add: bool,
    ahead: *const u16,
) -> *const u16 {
    let (rows, columns) = (32.min(m - row), 32.min(n - column));
    // SAFETY: the caller's promise; only what lies in the result is touched.
    unsafe {
        let c = out.at(row * n + column);
        if (rows, columns) == (32, 32) {
            return tiles.block::<PARTS>(a, b, steps, c, n, add, ahead);
        }
        let mut edge = [0f32; 32 * 32];
        if add {
            for i in 0..rows {
                std::ptr::copy_nonoverlapping(c.add(i * n), edge[32 * i..].as_mut_ptr(), columns);
            }
        }
        let ahead = tiles.block::<PARTS>(a, b, steps, edge.as_mut_ptr(), 32, add, ahead);
        for i in 0..rows {
            std::ptr::copy_nonoverlapping(edge[32 * i..].as_ptr(), c.add(i * n), columns);
        }
        ahead
    }
}

/// Sixteen columns from `from` on, as many as there are.
#[cfg(target_arch = "x86_64")]
fn pack_columns<const PARTS: usize>(terms: &[Term], from: usize, n: usize, out: &mut [u16]) {
    thread_local! {
        static WIDE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    let from = from.min(n);
    let columns = 16.min(n - from);
    let mut at = out.as_mut_ptr();
    for term in terms {
        let depth = term.b.size().0;
        // SAFETY: a unit was found; the columns lie in the matrix, and `out` has a KiB for each
        // part of 32 of depth. Blocks that come here pack anywhere.
        unsafe {
            match term.b {
                Right::Half(b) if b.turned => {
                    let first = b.data.as_ptr().wrapping_add(from * depth);
                    amx::pack_runs::<_, PARTS>(first, depth, columns, depth, at);
                }
                Right::Half(b) => {
                    let first = b.data.as_ptr().wrapping_add(from);
                    amx::pack_rows::<_, PARTS>(first, b.cols, columns, depth, at);
                }
                Right::Full(b) if b.row_stride == 1 && b.col_stride != 1 => {
                    let first = b.data.as_ptr().wrapping_add(from * b.col_stride);
                    amx::pack_runs::<_, PARTS>(first, b.col_stride, columns, depth, at);
                }
                Right::Full(b) => {
                    debug_assert!(b.col_stride == 1);
                    let first = b.data.as_ptr().wrapping_add(from);
                    amx::pack_rows::<_, PARTS>(first, b.row_stride, columns, depth, at);
                }
                Right::Blocks(b) => WIDE.with_borrow_mut(|wide| {
                    wide.resize(16 * depth, 0.);
                    b.pack(from..from + columns, wide.as_mut_ptr(), 16);
                    amx::pack_rows::<_, PARTS>(wide.as_ptr(), 16, columns, depth, at);
                }),
            }
            at = at.add(512 * PARTS * depth.div_ceil(32));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.).collect()
    }

    fn rounded(values: &[f32]) -> Vec<f32> {
        values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect()
    }

    /// Both forms against the same sums of rounded operands in f64.
    #[test]
    fn every_layout_and_edge_is_right() {
        for m in [1, 7, 8, 33, 70, 160] {
            for n in [1, 16, 31, 48, 100] {
                for k in [1, 31, 32, 70, 300] {
                    for turned in [false, true] {
                        check(m, n, k, turned);
                    }
                }
            }
        }
    }

    fn check(m: usize, n: usize, k: usize, turned: bool) {
        let (a, low, right) = (numbers(m * k, 1), numbers(m * 5, 3), numbers(5 * n, 4));
        let b: Vec<bf16> = numbers(k * n, 2).iter().map(|v| bf16::from_f32(*v)).collect();
        let bias = numbers(n, 5);
        let weight = if turned { HalfMat::new(&b, n, k).t() } else { HalfMat::new(&b, k, n) };
        let second = if turned { Mat::new(&right, n, 5).t() } else { Mat::new(&right, 5, n) };
        let terms = [
            Term { a: Mat::new(&a, m, k), b: Right::Half(weight), alpha: 1. },
            Term { a: Mat::new(&low, m, 5), b: Right::Full(second), alpha: -0.5 },
        ];
        let (ra, rl, rr) = (rounded(&a), rounded(&low), rounded(&right));
        for form in [products, widened] {
            for start in [Start::Zero, Start::Bias(&bias), Start::Accumulate] {
                let mut c = numbers(m * n, 6);
                let before = c.clone();
                form(&mut c, &terms, start);
                for i in 0..m {
                    for j in 0..n {
                        let mut sum = match start {
                            Start::Zero => 0.,
                            Start::Bias(bias) => f64::from(bias[j]),
                            Start::Accumulate => f64::from(before[i * n + j]),
                        };
                        for p in 0..k {
                            let w = b[if turned { j * k + p } else { p * n + j }].to_f32();
                            sum += f64::from(ra[i * k + p]) * f64::from(w);
                        }
                        for p in 0..5 {
                            let w = rr[if turned { j * 5 + p } else { p * n + j }];
                            sum -= 0.5 * f64::from(rl[i * 5 + p]) * f64::from(w);
                        }
                        let error = (f64::from(c[i * n + j]) - sum).abs();
                        // The widened form does not round the left side.
                        let bound = 1e-2 * ((k + 5) as f64).sqrt();
                        assert!(
                            error < bound,
                            "{m}x{n}x{k} {turned} [{i},{j}]: {} for {sum}",
                            c[i * n + j]
                        );
                    }
                }
            }
        }
    }
}
