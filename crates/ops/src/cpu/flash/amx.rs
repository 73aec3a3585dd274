//! Attention's tiles with products on AMX: operands in bf16, sums, softmax and results in f32.
//!
//! The packed forms are those of [`flash`](super) with units of two bf16: rows are tiles of
//! a left side, columns and depths tiles of a right one, as they lie. Scores go through a buffer
//! between the tile registers, which multiply, and the vectors, which take powers. The highest
//! score is followed only when one passes it by [`HEADROOM`] powers of two, which leaves a
//! comparison a query in place of a reduction. Products wait in a list and are put between pieces
//! of the vectors' work ([`Pending`]), those of the next scores before the powers of these.
//!
//! Backward, dq is summed transposed: keys are then the left side (packed a third time,
//! [`Form::Turned`]), and the slopes, stored as pairs of keys, the right one.
//!
//! While tiles are in use the second port for 512-bit vectors stands still, so a vector instruction
//! costs twice as much as alone. Figures: `docs/measurements.md`, "Attention".

use std::arch::x86_64::*;
use std::ops::Range;

use super::{
    BACKWARD_QUERIES, FORWARD_QUERIES, Form, Half, KEYS, Kernel, Keys, Numbers, Queries, Unit,
    finish, pack, packed_units, padded, parts,
};
use crate::cpu::amx::{self, Product, Side, Tiles};
use crate::cpu::avx512::lanes;

/// Queries (forward) or keys (backward) that are scored together: two tiles.
const STRIP: usize = 32;
/// Pieces that the vectors' work on a strip is cut into; products come between them.
const PARTS: usize = 4;
/// Bytes of a unit.
const BYTES: usize = 4;
/// A score may pass the one that powers are relative to by so many powers of two: sums of 2⁸ · keys
/// are far from f32's end, and what is rounded to bf16 is as exact at 2⁸ as at 1.
const HEADROOM: f32 = 8.;

/// A left side: rows `row` units apart.
fn left(first: *const u32, row: usize) -> Side {
    Side {
        first: first.cast(),
        second: first.wrapping_add(16 * row).cast(),
        row: row * BYTES,
        step: 64,
    }
}

/// A right side: sixteen columns and the next sixteen, units of depth `unit` units apart.
fn right(first: *const u32, unit: usize) -> Side {
    Side {
        first: first.cast(),
        second: first.wrapping_add(16).cast(),
        row: unit * BYTES,
        step: 16 * unit * BYTES,
    }
}

/// Products that wait to be put between the vectors' work, in their order. What they read lies
/// still, and what they write is not touched, until they are done.
struct Pending {
    products: Vec<Product>,
    done: usize,
}

impl Pending {
    fn new() -> Self {
        Self { products: Vec::with_capacity(32), done: 0 }
    }

    fn add(&mut self, product: Product) {
        self.products.push(product);
    }

    /// Multiplies the first of `parts` parts of what waits.
    ///
    /// # Safety
    /// As [`Product::compute`] for each of them.
    unsafe fn part(&mut self, parts: usize) {
        let left = self.products.len() - self.done;
        for product in &self.products[self.done..self.done + left.div_ceil(parts)] {
            // SAFETY: the caller's promise.
            unsafe { product.compute() };
            self.done += 1;
        }
        if self.done == self.products.len() {
            self.products.clear();
            self.done = 0;
        }
    }

    /// Multiplies all that waits.
    ///
    /// # Safety
    /// As [`Pending::part`].
    unsafe fn finish(&mut self) {
        // SAFETY: the caller's promise.
        unsafe { self.part(1) };
    }
}

/// By tiles.
pub struct Amx;

impl Kernel for Amx {
    type Unit = Half;
    const KEYS_FOR_DQ: Form = Form::Turned;
    /// Processors with AMX have 2 MiB for each core.
    const STRETCH: usize = 1024;

    fn forward_scratch(d: usize) -> usize {
        packed_units::<Half>(FORWARD_QUERIES, d)
            + FORWARD_QUERIES * padded(d)
            + FORWARD_QUERIES * 16
            + 2 * STRIP * KEYS
            + STRIP * KEYS
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
    unsafe fn forward(
        queries: &Queries,
        q: *const f32,
        keys: *const u32,
        values: *const u32,
        y: *mut f32,
        log_sums: &mut [f32],
        scratch: *mut u32,
    ) {
        let (d, wide, count) = (queries.d, padded(queries.d), queries.first.len());
        let units = wide / 2;
        let strips = count.div_ceil(STRIP);
        let c = queries.scale * std::f32::consts::LOG2_E;
        let _tiles = Tiles::new(amx::Unit::Amx);
        // SAFETY: the caller's promise; the scratch is divided as `forward_scratch` counts it.
        unsafe {
            let packed = scratch;
            let out: *mut f32 = packed.add(packed_units::<Half>(FORWARD_QUERIES, d)).cast();
            // Sixteen partial sums a query.
            let sums = out.add(FORWARD_QUERIES * wide);
            let scores = sums.add(FORWARD_QUERIES * 16);
            let scores = [scores, scores.add(STRIP * KEYS)];
            let weights: *mut u32 = scores[1].add(STRIP * KEYS).cast();
            let weights = [weights, weights.add(STRIP * KEYS / 2)];
            // What powers are relative to, times `c`.
            let mut shifts = [f32::NEG_INFINITY; FORWARD_QUERIES];
            pack::<Half>(Form::Rows, q, queries.stride, (count, strips * STRIP), d, packed);
            out.write_bytes(0, strips * STRIP * wide);
            sums.write_bytes(0, strips * STRIP * 16);
            // A strip against a tile: the first query, the tile's first key, how many halves of the
            // tile the strip sees anything of.
            let mut jobs = queries
                .tiles()
                .flat_map(|tile| (0..strips).map(move |strip| (strip * STRIP, tile)))
                .filter_map(|(from, tile)| {
                    let last = queries.last + count.min(from + STRIP) - 1;
                    (last >= tile).then_some((from, tile, if last < tile + STRIP { 1 } else { 2 }))
                })
                .peekable();
            let mut pending = Pending::new();
            let score = |pending: &mut Pending,
                         (from, tile, halves): (usize, usize, usize),
                         scores: *mut f32| {
                for half in 0..halves {
                    pending.add(Product {
                        a: left(packed.add(from * units), units),
                        b: right(keys.add(tile * units + half * STRIP), KEYS),
                        steps: wide / 32,
                        c: scores.add(half * STRIP),
                        ldc: KEYS,
                        add: false,
                    });
                }
            };
            if let Some(job) = jobs.peek() {
                score(&mut pending, *job, scores[0]);
                pending.finish();
            }
            // Two of each buffer: while one serves the vectors, the products fill or read the
            // other.
            let (mut turn, mut strip_before) = (0, None);
            while let Some((from, tile, halves)) = jobs.next() {
                if strip_before == Some(from) {
                    // Results must be whole before they are multiplied by a factor.
                    pending.finish();
                }
                strip_before = Some(from);
                if let Some(job) = jobs.peek() {
                    score(&mut pending, *job, scores[1 - turn]);
                }
                let end = count.min(from + STRIP);
                let open = queries.last + from >= tile + KEYS - 1
                    && queries.first[end - 1] <= tile
                    && end == from + STRIP;
                for i in 0..STRIP {
                    if i % (STRIP / PARTS) == 0 {
                        pending.part(PARTS - i / (STRIP / PARTS));
                    }
                    let query = from + i;
                    let seen = match (open, query < end) {
                        (true, _) => (0, KEYS),
                        (_, true) => queries.seen(query, tile),
                        _ => (0, 0),
                    };
                    let factor = powers(
                        scores[turn].add(i * KEYS),
                        ([c, 1. / c], open, seen),
                        &mut shifts[query],
                        sums.add(query * 16),
                        weights[turn].add(i * KEYS / 2),
                    );
                    if factor != 1. {
                        let factor = _mm512_set1_ps(factor);
                        for column in (0..wide).step_by(16) {
                            let at = out.add(query * wide + column);
                            _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), factor));
                        }
                    }
                }
                for column in (0..wide).step_by(STRIP) {
                    pending.add(Product {
                        a: left(weights[turn], KEYS / 2),
                        b: right(values.add(tile / 2 * wide + column), wide),
                        steps: halves,
                        c: out.add(from * wide + column),
                        ldc: wide,
                        add: true,
                    });
                }
                turn = 1 - turn;
            }
            pending.finish();
            finish(queries, &shifts, (out, sums), y, log_sums);
        }
    }

    fn backward_scratch(d: usize) -> usize {
        BACKWARD_QUERIES * padded(d) + 4 * STRIP * STRIP + 4 * KEYS * BACKWARD_QUERIES / 2
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
    unsafe fn backward(
        queries: &Queries,
        packed: *const u32,
        (keys, range): (Keys, Range<usize>),
        along: &[f32],
        log_sums: &[f32],
        dq: *mut f32,
        (dk, dv): (*mut f32, *mut f32),
        scratch: *mut u32,
    ) {
        const BLOCK: usize = BACKWARD_QUERIES;
        let (d, wide, count) = (queries.d, padded(queries.d), queries.first.len());
        let (units, steps) = (wide / 2, wide / 32);
        let c = queries.scale * std::f32::consts::LOG2_E;
        let tiles = queries.tiles_of(range);
        if tiles.len() == 0 {
            return;
        }
        let numbers = Numbers::of(queries, along, log_sums);
        let _tiles = Tiles::new(amx::Unit::Amx);
        // SAFETY: the caller's promise; the scratch is divided as `backward_scratch` counts it.
        unsafe {
            let [q_columns, dy_columns, q_depth, dy_depth] = parts::<Half>(packed, d);
            // dq transposed: `[d][queries]`.
            let sum: *mut f32 = scratch.cast();
            let squares = sum.add(BLOCK * wide);
            // Scores and gradients of weights, two of each.
            let squares =
                [0, 1].map(|turn| [0, 1].map(|i| squares.add((2 * turn + i) * STRIP * STRIP)));
            let rest = scratch.add(BLOCK * wide + 4 * STRIP * STRIP);
            let [weights, slopes, pairs, more_pairs] =
                [0, 1, 2, 3].map(|i| rest.add(i * KEYS * BLOCK / 2));
            let pairs = [pairs, more_pairs];
            sum.write_bytes(0, BLOCK * wide);
            let end = count.next_multiple_of(STRIP);
            // The first query that sees a key, rounded down to what is computed together.
            let begin = |key: usize| key.saturating_sub(queries.last) / STRIP * STRIP;
            // 32 keys against 32 queries: the tile's first key, the keys' first counted from there,
            // the first query.
            let mut jobs = tiles
                .flat_map(|tile| (0..KEYS).step_by(STRIP).map(move |key| (tile, key)))
                .flat_map(|(tile, key)| {
                    (begin(tile + key)..end).step_by(STRIP).map(move |half| (tile, key, half))
                })
                .peekable();
            let mut pending = Pending::new();
            let score = |pending: &mut Pending,
                         (tile, key, half): (usize, usize, usize),
                         to: [*mut f32; 2]| {
                let sides = [(keys.rows, q_columns), (keys.values, dy_columns)];
                for ((left_side, right_side), to) in sides.into_iter().zip(to) {
                    pending.add(Product {
                        a: left(left_side.add((tile + key) * units), units),
                        b: right(right_side.add(half), BLOCK),
                        steps,
                        c: to,
                        ldc: STRIP,
                        add: false,
                    });
                }
            };
            if let Some(job) = jobs.peek() {
                score(&mut pending, *job, squares[0]);
                pending.finish();
            }
            let (mut turn, mut tile_turn, mut keys_before) = (0, 0, None);
            while let Some((tile, key, half)) = jobs.next() {
                let from = begin(tile + key);
                if keys_before == Some(key) && half == from {
                    // The weights and slopes of these keys' place are still being read.
                    pending.finish();
                }
                keys_before = Some(key);
                if let Some(job) = jobs.peek() {
                    score(&mut pending, *job, squares[1 - turn]);
                }
                let open = queries.last + 1 >= tile + KEYS
                    && queries.first[count - 1] <= tile
                    && count == BLOCK;
                let [scores, grads] = squares[turn];
                for piece in 0..PARTS {
                    pending.part(PARTS - piece);
                    let (first, count) = (piece * (STRIP / PARTS), STRIP / PARTS);
                    let at = (key + first) * BLOCK / 2 + half / 2;
                    numbers.slopes(
                        (scores.add(first * STRIP), grads.add(first * STRIP), count),
                        (c, half, (!open).then_some(tile + key + first)),
                        [
                            weights.add(at),
                            slopes.add(at),
                            pairs[tile_turn].add((key + first) / 2 * BLOCK + half),
                        ],
                    );
                }
                if half + STRIP >= end {
                    for (sums, left_side, right_side) in
                        [(dv, weights, dy_depth), (dk, slopes, q_depth)]
                    {
                        for column in (0..wide).step_by(STRIP) {
                            pending.add(Product {
                                a: left(left_side.add((key * BLOCK + from) / 2), BLOCK / 2),
                                b: right(right_side.add(from / 2 * wide + column), wide),
                                steps: (end - from) / STRIP,
                                c: sums.add((tile + key) * wide + column),
                                ldc: wide,
                                add: true,
                            });
                        }
                    }
                }
                if jobs.peek().is_none_or(|(next, ..)| *next != tile) {
                    for half in (0..end).step_by(STRIP) {
                        let seen = (0..KEYS)
                            .step_by(STRIP)
                            .filter(|key| begin(tile + *key) <= half)
                            .count();
                        for row in (0..wide).step_by(STRIP).filter(|_| seen > 0) {
                            pending.add(Product {
                                a: left(keys.depth.add(tile * units + row * KEYS / 2), KEYS / 2),
                                b: right(pairs[tile_turn].add(half), BLOCK),
                                steps: seen,
                                c: sum.add(row * BLOCK + half),
                                ldc: BLOCK,
                                add: true,
                            });
                        }
                    }
                    tile_turn = 1 - tile_turn;
                }
                turn = 1 - turn;
            }
            pending.finish();
            let scale = _mm512_set1_ps(queries.scale);
            for query in (0..count).step_by(16) {
                for column in (0..d).step_by(16) {
                    let mut square = [_mm512_setzero_ps(); 16];
                    for (i, values) in square.iter_mut().enumerate() {
                        *values = _mm512_loadu_ps(sum.add((column + i) * BLOCK + query));
                    }
                    crate::cpu::avx512::transpose(&mut square);
                    let mask = lanes(0, 0, d - column);
                    for (i, values) in square.iter().enumerate().take(count - query) {
                        let at = dq.add((query + i) * queries.stride + column);
                        let value =
                            _mm512_fmadd_ps(*values, scale, _mm512_maskz_loadu_ps(mask, at));
                        _mm512_mask_storeu_ps(at, mask, value);
                    }
                }
            }
        }
    }
}

/// `2ˣ` to 3e-6, far finer than bf16; 0 far below. The whole part goes into the exponent, the rest
/// through a polynomial of least relative error on [0, 1].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
fn exp2(x: __m512) -> __m512 {
    // Rounded down, no exceptions.
    const DOWN: i32 = 0b1001;
    let r = _mm512_reduce_ps::<DOWN>(x);
    let mut p = _mm512_set1_ps(0.013_534_168);
    for c in [0.052_011_46, 0.241_442_76, 0.693_003_83, 1.000_002_6] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    }
    _mm512_scalef_ps(p, x)
}

/// The weights of a query with the keys of a tile, before they are divided: `2^(c·score − shift)`,
/// rounded to bf16, and their part of its `sums`. Where a score lies too far above `shift`, that
/// moves; what was summed before must then be multiplied by what is returned.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
unsafe fn powers(
    scores: *const f32,
    ([c, inverse], open, (from, to)): ([f32; 2], bool, (usize, usize)),
    shift: &mut f32,
    sums: *mut f32,
    weights: *mut u32,
) -> f32 {
    // SAFETY: the caller vouches for 64 scores, 16 sums and 32 units of weights.
    unsafe {
        let mut row = [_mm512_setzero_ps(); 4];
        for (j, score) in row.iter_mut().enumerate() {
            *score = _mm512_loadu_ps(scores.add(16 * j));
            if !open {
                let low = _mm512_set1_ps(f32::NEG_INFINITY);
                *score = _mm512_mask_mov_ps(low, lanes(j, from, to), *score);
            }
        }
        let most = _mm512_max_ps(_mm512_max_ps(row[0], row[1]), _mm512_max_ps(row[2], row[3]));
        let mut factor = 1.;
        if _mm512_cmp_ps_mask::<_CMP_GT_OQ>(most, _mm512_set1_ps((*shift + HEADROOM) * inverse))
            != 0
        {
            let highest = _mm512_reduce_max_ps(most) * c;
            // 2^(−∞ − highest) is no number the way it is computed.
            let first = *shift == f32::NEG_INFINITY;
            factor =
                if first { 0. } else { _mm512_cvtss_f32(exp2(_mm512_set1_ps(*shift - highest))) };
            *shift = highest;
        }
        let old = _mm512_loadu_ps(sums);
        // A query that has seen no key yet: no score lies above −∞.
        let relative = _mm512_set1_ps(if *shift == f32::NEG_INFINITY { 0. } else { *shift });
        let mut sum = _mm512_setzero_ps();
        for (j, score) in row.iter_mut().enumerate() {
            let power = exp2(_mm512_fmsub_ps(*score, _mm512_set1_ps(c), relative));
            *score = if open { power } else { _mm512_maskz_mov_ps(lanes(j, from, to), power) };
            sum = _mm512_add_ps(sum, *score);
        }
        _mm512_storeu_ps(sums, _mm512_fmadd_ps(old, _mm512_set1_ps(factor), sum));
        Half::store(weights, [row[0], row[1]]);
        Half::store(weights.add(16), [row[2], row[3]]);
        factor
    }
}

impl Numbers {
    /// Weights and slopes of `count` keys against the queries `half..half + 32`, by keys (two rows
    /// of units a line of the block), and the slopes as pairs of keys. `masked` is the first key's
    /// number where not every query sees every key.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
    unsafe fn slopes(
        &self,
        (scores, grads, count): (*const f32, *const f32, usize),
        (c, half, masked): (f32, usize, Option<usize>),
        [weights, slopes, pairs]: [*mut u32; 3],
    ) {
        // SAFETY: the caller vouches for the squares and for 32 queries from `half` on.
        unsafe {
            let floats = |from: &[f32; BACKWARD_QUERIES]| {
                [0, 16].map(|at| _mm512_loadu_ps(from.as_ptr().add(half + at)))
            };
            let (log_sums, along) = (floats(&self.log_sums), floats(&self.along));
            let keys = |from: &[i32; BACKWARD_QUERIES]| {
                [0, 16].map(|at| _mm512_loadu_si512(from.as_ptr().add(half + at).cast()))
            };
            let (first, last) = (keys(&self.first), keys(&self.last));
            let c = _mm512_set1_ps(c);
            for key in (0..count).step_by(2) {
                let mut both = [[_mm512_setzero_ps(); 2]; 2];
                for (i, slope) in both.iter_mut().enumerate() {
                    let at = (key + i) * STRIP;
                    let mut weight = [_mm512_setzero_ps(); 2];
                    for j in 0..2 {
                        let score = _mm512_loadu_ps(scores.add(at + 16 * j));
                        let grad = _mm512_loadu_ps(grads.add(at + 16 * j));
                        let mut power = exp2(_mm512_fmsub_ps(score, c, log_sums[j]));
                        if let Some(number) = masked {
                            let number = _mm512_set1_epi32((number + key + i) as i32);
                            let mask = _mm512_cmple_epi32_mask(first[j], number)
                                & _mm512_cmpge_epi32_mask(last[j], number);
                            power = _mm512_maskz_mov_ps(mask, power);
                        }
                        weight[j] = power;
                        slope[j] = _mm512_mul_ps(power, _mm512_sub_ps(grad, along[j]));
                    }
                    let line = (key + i) * BACKWARD_QUERIES / 2;
                    Half::store(weights.add(line), weight);
                    Half::store(slopes.add(line), *slope);
                }
                Half::store_pairs(pairs.add(key / 2 * BACKWARD_QUERIES), both);
            }
        }
    }
}
