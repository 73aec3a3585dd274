//! Attention over keys and values that are kept in pages
//! (PagedAttention, <https://arxiv.org/abs/2309.06180>).
//!
//! A text's keys and values lie in pages of [`PAGE`] positions, each page holding all blocks of the
//! decoder. Texts take pages as they grow and give them back when they end; texts with the same
//! beginning share the pages of it. Within a page keys lie turned, position beside position, so
//! that the scores of a query with all keys of a page are vectors, and values lie as they are, so
//! that a weighted sum of them is one, too.
//!
//! Every query goes through the pages of its text in their order, by itself: its result is
//! bit-identical whichever queries and texts are computed with it.

use std::ops::Range;

use candle_core::{DType, Result, Shape, Tensor, bail};
use half::bf16;

use crate::cpu::{Shared, Values, crew, math, multiversion};
use crate::operation;

/// Positions of a page.
pub const PAGE: usize = 32;

/// The sizes that pages are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageShape {
    /// Blocks of the decoder.
    pub blocks: usize,
    /// Heads of keys and values.
    pub heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// The type of the numbers, f32 or bf16.
    pub dtype: DType,
}

impl PageShape {
    /// Bytes of one page.
    pub fn bytes(&self) -> usize {
        2 * self.blocks * self.plane() * self.dtype.size_in_bytes()
    }

    /// Numbers of one block's keys or values.
    fn plane(&self) -> usize {
        self.heads * self.head_dim * PAGE
    }
}

/// Keys and values of [`PAGE`] positions of one text, in all blocks.
#[derive(Clone)]
pub struct Page {
    shape: PageShape,
    /// `[blocks, (keys [heads, head_dim, PAGE], values [heads, PAGE, head_dim])]`
    cells: Cells,
}

#[derive(Clone)]
enum Cells {
    Full(Vec<f32>),
    Half(Vec<bf16>),
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Page({:?})", self.shape)
    }
}

impl Page {
    /// A page of zeros.
    pub fn new(shape: PageShape) -> Self {
        let count = 2 * shape.blocks * shape.plane();
        let cells = match shape.dtype {
            DType::BF16 => Cells::Half(vec![bf16::ZERO; count]),
            _ => Cells::Full(vec![0.; count]),
        };
        Self { shape, cells }
    }

    /// Writes the keys and values of one position in one block.
    ///
    /// # Shapes
    /// `keys` and `values` `[heads, head_dim]`; `slot` below [`PAGE`].
    ///
    /// # Panics
    /// When the sizes are others.
    pub fn write(&mut self, block: usize, slot: usize, keys: &[f32], values: &[f32]) {
        let (d, plane) = (self.shape.head_dim, self.shape.plane());
        assert!(slot < PAGE && block < self.shape.blocks, "a position of this page");
        assert!(keys.len() == plane / PAGE && values.len() == plane / PAGE, "one position");
        let from = 2 * block * plane;
        match &mut self.cells {
            Cells::Full(cells) => put(&mut cells[from..], slot, keys, values, d, |x| x),
            Cells::Half(cells) => {
                put(&mut cells[from..], slot, keys, values, d, bf16::from_f32);
            }
        }
    }

    /// Keys and values of positions `0..count` in one block, `[count, heads, head_dim]` each.
    pub fn read(&self, block: usize, count: usize) -> (Vec<f32>, Vec<f32>) {
        let plane = self.shape.plane();
        let from = 2 * block * plane;
        let (d, heads) = (self.shape.head_dim, self.shape.heads);
        let at = |index: usize| match &self.cells {
            Cells::Full(cells) => cells[from + index],
            Cells::Half(cells) => cells[from + index].to_f32(),
        };
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for slot in 0..count {
            for head in 0..heads {
                for i in 0..d {
                    keys.push(at((head * d + i) * PAGE + slot));
                    values.push(at(plane + (head * PAGE + slot) * d + i));
                }
            }
        }
        (keys, values)
    }
}

/// Writes one position of one block.
fn put<T: Copy>(
    cells: &mut [T],
    slot: usize,
    keys: &[f32],
    values: &[f32],
    d: usize,
    cell: impl Fn(f32) -> T,
) {
    let (turned, rows) = cells.split_at_mut(keys.len() * PAGE);
    for (i, key) in keys.iter().enumerate() {
        turned[i * PAGE + slot] = cell(*key);
    }
    for (head, values) in values.chunks_exact(d).enumerate() {
        let from = (head * PAGE + slot) * d;
        for (to, value) in rows[from..from + d].iter_mut().zip(values) {
            *to = cell(*value);
        }
    }
}

/// Some queries of one text: their rows in the batch, the position of the first, and the text's
/// pages.
#[derive(Clone, Debug)]
pub struct Queries<'a> {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// The position of the first row; the others follow it.
    pub position: usize,
    /// The pages of all positions up to the last row's.
    pub pages: Vec<&'a Page>,
}

/// How scores are made.
#[derive(Clone, Debug, Default)]
pub struct Scoring<'a> {
    /// Factor on the scores.
    pub scale: f32,
    /// A query sees this many keys, itself included.
    pub window: Option<usize>,
    /// Scores `s` become `c · tanh(s / c)` (Gemma 2).
    pub softcap: Option<f32>,
    /// For each head how much is added for each position of the key (ALiBi,
    /// <https://arxiv.org/abs/2108.12409>), rounded to bf16 and before the factor.
    pub alibi: Option<&'a [f32]>,
}

/// Causal grouped-query attention of one block over pages. The keys and values of the queries' own
/// positions have been written.
///
/// # Shapes
/// `q` `[n, 1, h, d]` -> `[n, 1, h·d]`
///
/// # Errors
/// When `q` is not f32 on the CPU, the heads do not fit, or pages are missing.
pub fn paged_attention(
    q: &Tensor,
    texts: &[Queries<'_>],
    block: usize,
    scoring: &Scoring<'_>,
) -> Result<Tensor> {
    let (n, _, h, d) = q.dims4()?;
    let Some(shape) = texts.iter().find_map(|text| text.pages.first()).map(|page| page.shape)
    else {
        bail!("paged_attention: expected at least one page, found none")
    };
    if shape.head_dim != d || h % shape.heads != 0 {
        bail!(
            "paged_attention: expected heads of {} in groups of {}, found {h} of {d}",
            shape.head_dim,
            shape.heads
        )
    }
    for text in texts {
        let needed = (text.position + text.rows.len()).div_ceil(PAGE);
        if text.rows.end > n || text.pages.len() < needed {
            bail!(
                "paged_attention: expected {needed} pages for rows {:?} of {n}, found {}",
                text.rows,
                text.pages.len()
            )
        }
    }
    let q = q.contiguous()?;
    let values = Values::of(&q)?;
    let group = h / shape.heads;
    let mut out = vec![0f32; n * h * d];
    let shared = Shared::new(&mut out);
    // A task: one head of keys, and some queries of one text.
    let mut tasks: Vec<(usize, usize, Range<usize>)> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        for head in 0..shape.heads {
            let count = text.rows.len() * group;
            for from in (0..count).step_by(TASK_QUERIES) {
                tasks.push((index, head, from..(from + TASK_QUERIES).min(count)));
            }
        }
    }
    let task = |index: usize| {
        let (text, head, queries) = &tasks[index];
        let text = &texts[*text];
        for from in queries.clone().step_by(QUERIES) {
            let count = QUERIES.min(queries.end - from);
            let queries: Vec<Query<'_>> = (from..from + count)
                .map(|query| {
                    let (row, at) = (query / group, head * group + query % group);
                    let place = ((text.rows.start + row) * h + at) * d;
                    Query {
                        q: &values[place..place + d],
                        position: text.position + row,
                        slope: scoring.alibi.map_or(0., |slopes| slopes[at]),
                        // SAFETY: each query of each head is of one task.
                        out: unsafe { shared.slice(place..place + d) },
                    }
                })
                .collect();
            through(queries, &text.pages, block, *head, scoring, shape);
        }
    };
    let work: usize = texts.iter().map(|t| t.rows.len() * (t.position + t.rows.len())).sum();
    if tasks.len() < 2 || work * h * d < SERIAL_WORK {
        (0..tasks.len()).for_each(task);
    } else {
        crew::run(tasks.len(), task);
    }
    operation::constant(out, Shape::from((n, 1, h * d)))
}

/// Queries that meet a page's keys together.
const QUERIES: usize = 8;
/// Queries of a task.
const TASK_QUERIES: usize = 32;
/// Multiplications below which attention is not worth handing to other threads.
const SERIAL_WORK: usize = 1 << 14;

struct Query<'a> {
    q: &'a [f32],
    position: usize,
    slope: f32,
    out: &'a mut [f32],
}

/// A few queries through all pages that they see.
fn through(
    queries: Vec<Query<'_>>,
    pages: &[&Page],
    block: usize,
    head: usize,
    scoring: &Scoring<'_>,
    shape: PageShape,
) {
    let mut queries = queries;
    while !queries.is_empty() {
        let rest = queries.split_off(match queries.len() {
            8 => 8,
            4..8 => 4,
            few => few,
        });
        match queries.len() {
            8 => go::<8>(queries, pages, block, head, scoring, shape),
            4 => go::<4>(queries, pages, block, head, scoring, shape),
            3 => go::<3>(queries, pages, block, head, scoring, shape),
            2 => go::<2>(queries, pages, block, head, scoring, shape),
            _ => go::<1>(queries, pages, block, head, scoring, shape),
        }
        queries = rest;
    }
}

fn go<const Q: usize>(
    mut queries: Vec<Query<'_>>,
    pages: &[&Page],
    block: usize,
    head: usize,
    scoring: &Scoring<'_>,
    shape: PageShape,
) {
    let (d, plane) = (shape.head_dim, shape.plane());
    let last = queries.iter().map(|query| query.position).max().unwrap_or(0);
    let first = queries
        .iter()
        .map(|query| scoring.window.map_or(0, |window| (query.position + 1).saturating_sub(window)))
        .min()
        .unwrap_or(0);
    let mut most = [f32::NEG_INFINITY; Q];
    let mut sum = [0f32; Q];
    for (index, page) in pages.iter().enumerate().take(last / PAGE + 1).skip(first / PAGE) {
        let mut weights = [[0f32; PAGE]; Q];
        let inputs: [&[f32]; Q] = std::array::from_fn(|i| queries[i].q);
        let keys = 2 * block * plane + head * d * PAGE;
        let values = (2 * block + 1) * plane + head * d * PAGE;
        match &page.cells {
            Cells::Full(cells) => scores_full(&mut weights, &inputs, &cells[keys..][..d * PAGE]),
            Cells::Half(cells) => scores_half(&mut weights, &inputs, &cells[keys..][..d * PAGE]),
        }
        let mut factors = [1f32; Q];
        for (i, query) in queries.iter().enumerate() {
            let base = index * PAGE;
            let from = scoring.window.map_or(0, |w| (query.position + 1).saturating_sub(w));
            let seen = from.saturating_sub(base).min(PAGE)
                ..(query.position + 1).saturating_sub(base).min(PAGE);
            finish(&mut weights[i], base, query.slope, scoring);
            (most[i], sum[i], factors[i]) = softmax(&mut weights[i], &seen, most[i], sum[i]);
        }
        let outs: [&mut [f32]; Q] = {
            let mut all = queries.iter_mut();
            std::array::from_fn(|_| match all.next() {
                Some(query) => &mut *query.out,
                None => &mut [],
            })
        };
        match &page.cells {
            Cells::Full(cells) => add_full(outs, &factors, &weights, &cells[values..][..d * PAGE]),
            Cells::Half(cells) => add_half(outs, &factors, &weights, &cells[values..][..d * PAGE]),
        }
    }
    for (query, sum) in queries.iter_mut().zip(sum) {
        math::scale(query.out, if sum > 0. { 1. / sum } else { 0. });
    }
}

/// Scores of products.
fn finish(scores: &mut [f32; PAGE], base: usize, slope: f32, scoring: &Scoring<'_>) {
    math::scale(scores, scoring.scale);
    if let Some(cap) = scoring.softcap {
        for score in scores.iter_mut() {
            *score = cap * (*score / cap).tanh();
        }
    }
    if scoring.alibi.is_some() {
        let slope = bf16::from_f32(slope);
        for (key, score) in scores.iter_mut().enumerate() {
            let position = bf16::from_f32((base + key) as f32);
            *score += (slope * position).to_f32() * scoring.scale;
        }
    }
}

/// Scores become powers relative to the highest so far; returns it, the sum of powers so far, and
/// the factor on what was summed before.
fn softmax(scores: &mut [f32; PAGE], seen: &Range<usize>, most: f32, sum: f32) -> (f32, f32, f32) {
    if seen.is_empty() {
        scores.fill(0.);
        return (most, sum, 1.);
    }
    scores[..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..].fill(f32::NEG_INFINITY);
    let highest = math::max(scores).max(most);
    let factor = if most == f32::NEG_INFINITY { 0. } else { math::exp(most - highest) };
    let added = powers(scores, highest);
    (highest, sum * factor + added, factor)
}

multiversion! {
    /// `x = e^(x − shift)`; returns the sum.
    pub(crate) fn powers(x: &mut [f32; PAGE], shift: f32) -> f32 {
        let mut sums = [0f32; 16];
        for half in x.chunks_exact_mut(16) {
            for (x, sum) in half.iter_mut().zip(&mut sums) {
                *x = math::exp(*x - shift);
                *sum += *x;
            }
        }
        sums.iter().sum()
    }
}

/// A number of a page.
trait Cell: Copy {
    fn wide(self) -> f32;
}

impl Cell for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
}

impl Cell for bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// `sum + a · b`, rounded once where the processor has an instruction for it.
#[inline(always)]
fn add_product<const FUSED: bool>(sum: f32, a: f32, b: f32) -> f32 {
    if FUSED { a.mul_add(b, sum) } else { sum + a * b }
}

/// Products of some queries with the keys of a page, `[d, PAGE]`.
#[inline(always)]
fn scores_of<const FUSED: bool, const Q: usize, T: Cell>(
    out: &mut [[f32; PAGE]; Q],
    queries: &[&[f32]; Q],
    keys: &[T],
) {
    let mut sums = [[0f32; PAGE]; Q];
    for (i, keys) in keys.chunks_exact(PAGE).enumerate() {
        for (sums, query) in sums.iter_mut().zip(queries) {
            let value = query[i];
            for (sum, key) in sums.iter_mut().zip(keys) {
                *sum = add_product::<FUSED>(*sum, value, key.wide());
            }
        }
    }
    *out = sums;
}

/// Numbers of a result that are summed in registers.
const WIDTH: usize = 32;

/// `out = factor · out + Σ weight · values`, the values being `[PAGE, d]`.
#[inline(always)]
fn add_of<const FUSED: bool, const Q: usize, T: Cell>(
    mut outs: [&mut [f32]; Q],
    factors: &[f32; Q],
    weights: &[[f32; PAGE]; Q],
    values: &[T],
) {
    let d = values.len() / PAGE;
    let whole = d / WIDTH * WIDTH;
    let mut from = 0;
    while from < whole {
        let mut sums = [[0f32; WIDTH]; Q];
        for ((sums, out), factor) in sums.iter_mut().zip(&outs).zip(factors) {
            for (sum, out) in sums.iter_mut().zip(&out[from..from + WIDTH]) {
                *sum = out * factor;
            }
        }
        for key in 0..PAGE {
            let values = &values[key * d + from..key * d + from + WIDTH];
            for (sums, weights) in sums.iter_mut().zip(weights) {
                let weight = weights[key];
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum = add_product::<FUSED>(*sum, weight, value.wide());
                }
            }
        }
        for (out, sums) in outs.iter_mut().zip(&sums) {
            out[from..from + WIDTH].copy_from_slice(sums);
        }
        from += WIDTH;
    }
    for i in whole..d {
        for ((out, factor), weights) in outs.iter_mut().zip(factors).zip(weights) {
            let mut sum = out[i] * factor;
            for (key, weight) in weights.iter().enumerate() {
                sum = add_product::<FUSED>(sum, *weight, values[key * d + i].wide());
            }
            out[i] = sum;
        }
    }
}

/// Compiles a pair of generic functions for AVX-512, AVX2 and the baseline.
macro_rules! versions {
    ($scores:ident, $add:ident, $cell:ty) => {
        fn $scores<const Q: usize>(
            out: &mut [[f32; PAGE]; Q],
            queries: &[&[f32]; Q],
            keys: &[$cell],
        ) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512<const Q: usize>(
                    out: &mut [[f32; PAGE]; Q],
                    queries: &[&[f32]; Q],
                    keys: &[$cell],
                ) {
                    scores_of::<true, Q, $cell>(out, queries, keys);
                }
                #[target_feature(enable = "avx2")]
                fn avx2<const Q: usize>(
                    out: &mut [[f32; PAGE]; Q],
                    queries: &[&[f32]; Q],
                    keys: &[$cell],
                ) {
                    scores_of::<false, Q, $cell>(out, queries, keys);
                }
                match crate::cpu::level() {
                    // SAFETY: `level` asked the processor.
                    crate::cpu::Level::Avx512 => return unsafe { avx512(out, queries, keys) },
                    // SAFETY: as above.
                    crate::cpu::Level::Avx2 => return unsafe { avx2(out, queries, keys) },
                    crate::cpu::Level::Baseline => {}
                }
            }
            scores_of::<false, Q, $cell>(out, queries, keys);
        }

        fn $add<const Q: usize>(
            outs: [&mut [f32]; Q],
            factors: &[f32; Q],
            weights: &[[f32; PAGE]; Q],
            values: &[$cell],
        ) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512<const Q: usize>(
                    outs: [&mut [f32]; Q],
                    factors: &[f32; Q],
                    weights: &[[f32; PAGE]; Q],
                    values: &[$cell],
                ) {
                    add_of::<true, Q, $cell>(outs, factors, weights, values);
                }
                #[target_feature(enable = "avx2")]
                fn avx2<const Q: usize>(
                    outs: [&mut [f32]; Q],
                    factors: &[f32; Q],
                    weights: &[[f32; PAGE]; Q],
                    values: &[$cell],
                ) {
                    add_of::<false, Q, $cell>(outs, factors, weights, values);
                }
                match crate::cpu::level() {
                    crate::cpu::Level::Avx512 => {
                        // SAFETY: `level` asked the processor.
                        return unsafe { avx512(outs, factors, weights, values) };
                    }
                    crate::cpu::Level::Avx2 => {
                        // SAFETY: as above.
                        return unsafe { avx2(outs, factors, weights, values) };
                    }
                    crate::cpu::Level::Baseline => {}
                }
            }
            add_of::<false, Q, $cell>(outs, factors, weights, values);
        }
    };
}
versions!(scores_full, add_full, f32);
versions!(scores_half, add_half, bf16);

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::Attention;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.).collect()
    }

    fn flat(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    }

    fn pages(shape: PageShape, block: usize, k: &[f32], v: &[f32]) -> Vec<Page> {
        let size = shape.heads * shape.head_dim;
        let positions: Vec<_> = k.chunks_exact(size).zip(v.chunks_exact(size)).collect();
        positions
            .chunks(PAGE)
            .map(|positions| {
                let mut page = Page::new(shape);
                for (slot, (k, v)) in positions.iter().enumerate() {
                    page.write(block, slot, k, v);
                }
                page
            })
            .collect()
    }

    /// Against attention over whole tensors; every query alone against all together.
    #[test]
    fn pages_attend_as_whole_tensors_do_query_by_query() {
        for (h, hkv, d, s) in [(3, 1, 64, 70), (4, 2, 8, 33), (2, 2, 40, 100), (5, 1, 16, 1)] {
            for window in [None, Some(5), Some(40)] {
                let shape = PageShape { blocks: 2, heads: hkv, head_dim: d, dtype: DType::F32 };
                let (k, v) = (numbers(s * hkv * d, 1), numbers(s * hkv * d, 2));
                let q = numbers(s * h * d, 3);
                let pages = pages(shape, 1, &k, &v);
                let scoring = Scoring { scale: 0.3, window, ..Scoring::default() };
                let tensor = |x: &[f32], heads| {
                    Tensor::from_slice(x, (s, 1, heads, d), &Device::Cpu).unwrap()
                };
                let queries = tensor(&q, h);
                let all = [Queries { rows: 0..s, position: 0, pages: pages.iter().collect() }];
                let together = paged_attention(&queries, &all, 1, &scoring).unwrap();
                let whole = |x: &[f32], heads| {
                    Tensor::from_slice(x, (1, s, heads, d), &Device::Cpu).unwrap()
                };
                let how = Attention { scale: 0.3, window, ..Attention::default() };
                let expected =
                    crate::attention(&whole(&q, h), &whole(&k, hkv), &whole(&v, hkv), &how)
                        .unwrap();
                for (a, b) in flat(&together).iter().zip(flat(&expected)) {
                    assert!((a - b).abs() < 1e-5, "{a} {b}");
                }
                for (row, expected) in flat(&together).chunks_exact(h * d).enumerate() {
                    let one = queries.narrow(0, row, 1).unwrap();
                    let one = paged_attention(
                        &one,
                        &[Queries {
                            rows: 0..1,
                            position: row,
                            pages: pages[..row / PAGE + 1].iter().collect(),
                        }],
                        1,
                        &scoring,
                    );
                    assert_eq!(flat(&one.unwrap()), expected, "query {row}");
                }
            }
        }
    }

    #[test]
    fn pages_in_bf16_hold_half_as_much_and_give_back_what_was_written() {
        let shape = PageShape { blocks: 2, heads: 2, head_dim: 4, dtype: DType::BF16 };
        assert_eq!(shape.bytes() * 2, PageShape { dtype: DType::F32, ..shape }.bytes());
        let mut page = Page::new(shape);
        let (k, v) = ([1., 2., 3., 4., 5., 6., 7., 8.], [8., 7., 6., 5., 4., 3., 2., 1.]);
        page.write(1, 0, &[0.; 8], &[0.; 8]);
        page.write(1, 1, &k, &v);
        let (keys, values) = page.read(1, 2);
        assert_eq!((&keys[8..], &values[8..]), (&k[..], &v[..]));
        assert_eq!(page.read(0, 2).0, [0.; 16]);
    }

    #[test]
    fn missing_pages_are_told() {
        let shape = PageShape { blocks: 1, heads: 1, head_dim: 4, dtype: DType::F32 };
        let q = Tensor::zeros((1, 1, 1, 4), DType::F32, &Device::Cpu).unwrap();
        let pages = [Page::new(shape)];
        let texts = [Queries { rows: 0..1, position: PAGE, pages: pages.iter().collect() }];
        let error = paged_attention(&q, &texts, 0, &Scoring::default()).unwrap_err().to_string();
        assert!(error.contains("expected 2 pages"), "{error}");
    }
}
