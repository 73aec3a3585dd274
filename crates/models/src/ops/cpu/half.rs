//! Matrix products with weights in bf16: operands rounded to bf16, sums in f32, results in f32.
//!
//! The left side (activations or gradients, f32) is rounded and packed once, in groups of 16 rows; each task packs its columns of the
//! right side, pairs of depth together, and runs down the rows. Depths are filled up with zeros to multiples of 32, and the terms of a sum lie one
//! behind the other, so a low-rank product is a little more depth. Where the processor has no unit for it, weights are widened to f32.

#[cfg(target_arch = "x86_64")]
use std::cell::RefCell;

use ::half::bf16;
use rayon::prelude::*;

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
}

impl Right<'_> {
    fn size(&self) -> (usize, usize) {
        match self {
            Self::Half(b) => (b.rows, b.cols),
            Self::Full(b) => (b.rows, b.cols),
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
        return packed(unit, c, terms, start);
    }
    widened(c, terms, start);
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
            Right::Half(b) => Some(b.data[..b.rows * b.cols].par_iter().map(|v| v.to_f32()).collect()),
            Right::Full(_) => None,
        })
        .collect();
    let terms: Vec<gemm::Term> = terms
        .iter()
        .zip(&wide)
        .map(|(term, wide)| {
            let b = match (term.b, wide) {
                (Right::Half(b), Some(wide)) if b.turned => Mat::new(wide, b.cols, b.rows).t(),
                (Right::Half(b), Some(wide)) => Mat::new(wide, b.rows, b.cols),
                (Right::Full(b), _) => b,
                (Right::Half(_), None) => Mat::new(&[], 0, 0), // each half has its wide form
            };
            gemm::Term { a: term.a, b: b.into(), alpha: term.alpha }
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

#[cfg(target_arch = "x86_64")]
thread_local! {
    static PANEL: RefCell<Vec<u16>> = const { RefCell::new(Vec::new()) };
}

/// Rows that a task works on before it goes to its next columns: with 576 of depth they take 147 KiB of the second-level cache.
#[cfg(target_arch = "x86_64")]
const ROWS: usize = 128;

/// Packed columns that a task keeps: within the second-level cache, beside the rows.
#[cfg(target_arch = "x86_64")]
const STRIPE_BYTES: usize = 768 << 10;

/// As many results do not stay in the second-level cache: each block is asked for while the one before is multiplied (5 to 10 % at 2048 rows).
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 1 << 19;

#[cfg(target_arch = "x86_64")]
fn packed(unit: Unit, c: &mut [f32], terms: &[Term], start: Start) {
    let (m, n) = (terms[0].a.rows, terms[0].b.size().1);
    let steps: usize = terms.iter().map(|term| term.a.cols.div_ceil(32)).sum();
    if let Start::Bias(bias) = start {
        for row in c.chunks_exact_mut(n) {
            row.copy_from_slice(bias);
        }
    }
    let add = !matches!(start, Start::Zero);
    // Groups of 16 rows, an even number of them, each `steps` KiB.
    let (pairs, group) = (m.div_ceil(32), 512 * steps);
    let mut left: Vec<u16> = Vec::with_capacity(2 * pairs * group + 32);
    let aligned = left.as_ptr().align_offset(64);
    // SAFETY: the capacity is there; every element that is read is packed below.
    #[allow(clippy::uninit_vec)]
    unsafe {
        left.set_len(2 * pairs * group + 32);
    }
    let left = &mut left[aligned..aligned + 2 * pairs * group];
    left.par_chunks_mut(group.max(1)).enumerate().each(|(index, out)| {
        let mut at = out.as_mut_ptr();
        for Term { a, alpha, .. } in terms {
            let (from, to) = ((16 * index).min(m), (16 * index + 16).min(m));
            // SAFETY: a unit was found; the rows lie in the matrix, and `out` has a KiB for each step.
            unsafe {
                let first = a.data.as_ptr().wrapping_add(from * a.row_stride);
                amx::pack_left(first, a.row_stride, to - from, a.cols, *alpha, at);
                at = at.add(512 * a.cols.div_ceil(32));
            }
        }
    });
    let left = &*left;
    let panels = n.div_ceil(32);
    let threads = crew::threads();
    let most = (STRIPE_BYTES / (4 * group.max(1))).max(1);
    let stripes = (2 * threads).max(panels.div_ceil(most)).min(panels);
    let out = Shared::new(c);
    let task = |stripe: usize| {
        let mine = panels * stripe / stripes..panels * (stripe + 1) / stripes;
        PANEL.with_borrow_mut(|panel| {
            let size = 2 * mine.len() * group;
            if panel.len() < size + 32 {
                panel.resize(size + 32, 0);
            }
            let aligned = panel.as_ptr().align_offset(64);
            let panel = &mut panel[aligned..aligned + size];
            for (index, out) in panel.chunks_exact_mut(group.max(1)).enumerate() {
                pack_columns(terms, (32 * mine.start + 16 * index).min(n), n, out);
            }
            let tiles = Tiles::new(unit);
            for from in (0..m).step_by(ROWS) {
                for (index, columns) in panel.chunks_exact((2 * group).max(1)).enumerate() {
                    let column = 32 * (mine.start + index);
                    for row in (from..(from + ROWS).min(m)).step_by(32) {
                        let a = left[row / 16 * group..].as_ptr();
                        if m * n >= AHEAD {
                            amx::prefetch_block(out, (m, n), (row + 32, column));
                        }
                        // SAFETY: both operands hold two groups; tasks write disjoint columns of `c`.
                        unsafe {
                            result(&tiles, a, columns.as_ptr(), steps, out, (m, n), (row, column), add)
                        };
                    }
                }
            }
        });
    };
    if stripes < 2 || m * n * steps < 1 << 14 {
        (0..stripes).for_each(task);
    } else {
        crew::run(stripes, task);
    }
}

/// One block of 32 x 32, or the part of it that lies in the result.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::too_many_arguments)]
unsafe fn result(
    tiles: &Tiles,
    a: *const u16,
    b: *const u16,
    steps: usize,
    out: Shared,
    (m, n): (usize, usize),
    (row, column): (usize, usize),
    add: bool,
) {
    let (rows, columns) = (32.min(m - row), 32.min(n - column));
    // SAFETY: the caller's promise; only what lies in the result is touched.
    unsafe {
        let c = out.at(row * n + column);
        if (rows, columns) == (32, 32) {
            return tiles.block(a, b, steps, c, n, add);
        }
        let mut edge = [0f32; 32 * 32];
        if add {
            for i in 0..rows {
                std::ptr::copy_nonoverlapping(c.add(i * n), edge[32 * i..].as_mut_ptr(), columns);
            }
        }
        tiles.block(a, b, steps, edge.as_mut_ptr(), 32, add);
        for i in 0..rows {
            std::ptr::copy_nonoverlapping(edge[32 * i..].as_ptr(), c.add(i * n), columns);
        }
    }
}

/// Sixteen columns from `from` on, as many as there are.
#[cfg(target_arch = "x86_64")]
fn pack_columns(terms: &[Term], from: usize, n: usize, out: &mut [u16]) {
    let columns = 16.min(n - from);
    let mut at = out.as_mut_ptr();
    for term in terms {
        let depth = term.b.size().0;
        // SAFETY: a unit was found; the columns lie in the matrix, and `out` has a KiB for each 32 of depth.
        unsafe {
            match term.b {
                Right::Half(b) if b.turned => {
                    amx::pack_runs(b.data.as_ptr().wrapping_add(from * depth), depth, columns, depth, at);
                }
                Right::Half(b) => {
                    amx::pack_rows(b.data.as_ptr().wrapping_add(from), b.cols, columns, depth, at);
                }
                Right::Full(b) if b.row_stride == 1 && b.col_stride != 1 => {
                    let first = b.data.as_ptr().wrapping_add(from * b.col_stride);
                    amx::pack_runs(first, b.col_stride, columns, depth, at);
                }
                Right::Full(b) => {
                    debug_assert!(b.col_stride == 1);
                    amx::pack_rows(b.data.as_ptr().wrapping_add(from), b.row_stride, columns, depth, at);
                }
            }
            at = at.add(512 * depth.div_ceil(32));
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
                        assert!(error < bound, "{m}x{n}x{k} {turned} [{i},{j}]: {} for {sum}", c[i * n + j]);
                    }
                }
            }
        }
    }
}
