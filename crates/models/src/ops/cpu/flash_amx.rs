//! Attention's tiles with products on AMX: operands in bf16, sums, softmax and results in f32.
//!
//! The packed forms are those of [`flash`](super::flash) with units of two bf16: rows are tiles of a left side, columns and depths tiles of a right one, as
//! they lie. Scores go through a buffer of the first-level cache between the tile registers, which multiply, and the vectors, which take powers.
//! A product of 64 x 64 x 64 takes 512 cycles, the powers of as many scores some 2000, so the vectors decide: the highest score is followed
//! only when one passes it by [`HEADROOM`] powers of two, which leaves a comparison a query in place of a reduction.
//!
//! Backward, dq is summed transposed: keys are then the left side (packed a third time, [`Form::Turned`]), and the slopes, stored as pairs of
//! keys, the right one.
//!
//! Predicted at 1 x 2048 tokens of SmolLM2-135M on one core at 2.7 GHz: forward 3500 cycles for 64 queries and 64 keys (370 GFLOP/s), backward
//! 5000 to 7000 (500 to 700). For what was measured see `HOW_IT_WORKS.md`.

use std::arch::x86_64::*;
use std::ops::Range;

use super::amx::{self, Side, Tiles};
use super::avx512::lanes;
use super::flash::{
    BACKWARD_QUERIES, FORWARD_QUERIES, Form, Half, KEYS, Kernel, Keys, Queries, Unit, exp2, pack,
    packed_units, padded,
};

/// Queries (forward) or keys (backward) that are scored together: two tiles.
const STRIP: usize = 32;
/// Bytes of a unit.
const BYTES: usize = 4;
/// A score may pass the one that powers are relative to by so many powers of two: sums of 2⁸ · keys are far from f32's end, and what is rounded
/// to bf16 is as exact at 2⁸ as at 1.
const HEADROOM: f32 = 8.;

/// A left side: rows `row` units apart.
fn left(first: *const u32, row: usize) -> Side {
    Side { first: first.cast(), second: first.wrapping_add(16 * row).cast(), row: row * BYTES, step: 64 }
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

/// By tiles.
pub struct Amx;

impl Kernel for Amx {
    type Unit = Half;
    const KEYS_FOR_DQ: Form = Form::Turned;

    fn forward_scratch(d: usize) -> usize {
        forward_scratch(d)
    }

    unsafe fn forward(
        queries: &Queries,
        q: *const f32,
        keys: *const u32,
        values: *const u32,
        y: *mut f32,
        log_sums: &mut [f32],
        scratch: *mut u32,
    ) {
        // SAFETY: the caller's promise.
        unsafe { forward(queries, q, keys, values, y, log_sums, scratch) }
    }

    fn backward_scratch(d: usize) -> usize {
        backward_scratch(d)
    }

    unsafe fn backward(
        queries: &Queries,
        inputs: (*const f32, *const f32),
        keys: (Keys, Range<usize>),
        along: &[f32],
        log_sums: &[f32],
        dq: *mut f32,
        gradients: (*mut f32, *mut f32),
        scratch: *mut u32,
    ) {
        // SAFETY: the caller's promise.
        unsafe { backward(queries, inputs, keys, along, log_sums, dq, gradients, scratch) }
    }
}

const fn forward_scratch(d: usize) -> usize {
    packed_units::<Half>(FORWARD_QUERIES, d)
        + FORWARD_QUERIES * padded(d)
        + FORWARD_QUERIES * 16
        + STRIP * KEYS
        + STRIP * KEYS / 2
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
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
        let weights: *mut u32 = scores.add(STRIP * KEYS).cast();
        // What powers are relative to, times `c`.
        let mut shifts = [f32::NEG_INFINITY; FORWARD_QUERIES];
        pack::<Half>(Form::Rows, q, queries.stride, (count, strips * STRIP), d, packed);
        out.write_bytes(0, strips * STRIP * wide);
        sums.write_bytes(0, strips * STRIP * 16);
        for tile in queries.tiles() {
            let keys = keys.add(tile * units);
            let values = values.add(tile / 2 * wide);
            for strip in 0..strips {
                let rows = strip * STRIP..count.min((strip + 1) * STRIP);
                let last = queries.last + rows.end - 1;
                if last < tile {
                    continue;
                }
                // Keys beyond the strip's last have no weight.
                let halves = if last < tile + STRIP { 1 } else { 2 };
                let queries_packed = left(packed.add(rows.start * units), units);
                for half in 0..halves {
                    let keys = right(keys.add(half * STRIP), KEYS);
                    amx::amx_product(queries_packed, keys, wide / 32, scores.add(half * STRIP), KEYS, false);
                }
                let open = queries.last + rows.start >= tile + KEYS - 1
                    && queries.first[rows.end - 1] <= tile
                    && rows.len() == STRIP;
                for i in 0..STRIP {
                    let query = rows.start + i;
                    let seen = match (open, query < rows.end) {
                        (true, _) => (0, KEYS),
                        (_, true) => queries.seen(query, tile),
                        _ => (0, 0),
                    };
                    let factor = powers(
                        scores.add(i * KEYS),
                        (c, open, seen),
                        &mut shifts[query],
                        sums.add(query * 16),
                        weights.add(i * KEYS / 2),
                    );
                    if factor != 1. {
                        let factor = _mm512_set1_ps(factor);
                        for column in (0..wide).step_by(16) {
                            let at = out.add(query * wide + column);
                            _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), factor));
                        }
                    }
                }
                let weights = left(weights, KEYS / 2);
                for column in (0..wide).step_by(STRIP) {
                    let values = right(values.add(column), wide);
                    amx::amx_product(
                        weights,
                        values,
                        halves,
                        out.add(rows.start * wide + column),
                        wide,
                        true,
                    );
                }
            }
        }
        for query in 0..count {
            let sum = _mm512_reduce_add_ps(_mm512_loadu_ps(sums.add(query * 16)));
            let inverse = _mm512_set1_ps(if sum > 0. { 1. / sum } else { 0. });
            log_sums[query] = if sum > 0. { shifts[query] + sum.log2() } else { f32::INFINITY };
            for column in (0..d).step_by(16) {
                let mask = lanes(0, 0, d - column);
                let value = _mm512_mul_ps(_mm512_loadu_ps(out.add(query * wide + column)), inverse);
                _mm512_mask_storeu_ps(y.add(query * queries.stride + column), mask, value);
            }
        }
    }
}

/// The weights of a query with the keys of a tile, before they are divided: `2^(c·score − shift)`, rounded to bf16, and their part of its
/// `sums`. Where a score lies too far above `shift`, that moves; what was summed before must then be multiplied by what is returned.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn powers(
    scores: *const f32,
    (c, open, (from, to)): (f32, bool, (usize, usize)),
    shift: &mut f32,
    sums: *mut f32,
    weights: *mut u32,
) -> f32 {
    // SAFETY: the caller vouches for 64 scores, 16 sums and 32 units of weights.
    unsafe {
        let mut scaled = [_mm512_setzero_ps(); 4];
        for (j, scaled) in scaled.iter_mut().enumerate() {
            *scaled = _mm512_mul_ps(_mm512_loadu_ps(scores.add(16 * j)), _mm512_set1_ps(c));
            if !open {
                let low = _mm512_set1_ps(f32::NEG_INFINITY);
                *scaled = _mm512_mask_mov_ps(low, lanes(j, from, to), *scaled);
            }
        }
        let most = _mm512_max_ps(_mm512_max_ps(scaled[0], scaled[1]), _mm512_max_ps(scaled[2], scaled[3]));
        let mut factor = 1.;
        if _mm512_cmp_ps_mask::<_CMP_GT_OQ>(most, _mm512_set1_ps(*shift + HEADROOM)) != 0 {
            let highest = _mm512_reduce_max_ps(most);
            // 2^(−∞ − highest) is no number the way it is computed.
            let first = *shift == f32::NEG_INFINITY;
            factor = if first { 0. } else { _mm512_cvtss_f32(exp2(_mm512_set1_ps(*shift - highest))) };
            *shift = highest;
        }
        let old = _mm512_loadu_ps(sums);
        // A query that has seen no key yet: no score lies above −∞.
        let relative = _mm512_set1_ps(if *shift == f32::NEG_INFINITY { 0. } else { *shift });
        let mut sum = _mm512_setzero_ps();
        for (j, scaled) in scaled.iter_mut().enumerate() {
            let power = exp2(_mm512_sub_ps(*scaled, relative));
            *scaled = if open { power } else { _mm512_maskz_mov_ps(lanes(j, from, to), power) };
            sum = _mm512_add_ps(sum, *scaled);
        }
        _mm512_storeu_ps(sums, _mm512_fmadd_ps(old, _mm512_set1_ps(factor), sum));
        Half::store(weights, [scaled[0], scaled[1]]);
        Half::store(weights.add(16), [scaled[2], scaled[3]]);
        factor
    }
}

const fn backward_scratch(d: usize) -> usize {
    4 * packed_units::<Half>(BACKWARD_QUERIES, d)
        + BACKWARD_QUERIES * padded(d)
        + 2 * STRIP * STRIP
        + 3 * KEYS * BACKWARD_QUERIES / 2
}

#[allow(clippy::too_many_arguments)]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn backward(
    queries: &Queries,
    (q, dy): (*const f32, *const f32),
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
        let part = packed_units::<Half>(BLOCK, d);
        let [q_columns, dy_columns, q_depth, dy_depth] = [0, 1, 2, 3].map(|i| scratch.add(i * part));
        // dq transposed: `[d][queries]`.
        let sum: *mut f32 = scratch.add(4 * part).cast();
        let [scores, grads] = [0, 1].map(|i| sum.add(BLOCK * wide + i * STRIP * STRIP));
        let square = KEYS * BLOCK / 2;
        let rest = scratch.add(4 * part + BLOCK * wide + 2 * STRIP * STRIP);
        let [weights, slopes, pairs] = [0, 1, 2].map(|i| rest.add(i * square));
        let columns = Form::Columns { width: BLOCK };
        for (from, by_columns, by_depth) in [(q, q_columns, q_depth), (dy, dy_columns, dy_depth)] {
            pack::<Half>(columns, from, queries.stride, (count, BLOCK), d, by_columns);
            pack::<Half>(Form::Depth, from, queries.stride, (count, BLOCK), d, by_depth);
        }
        sum.write_bytes(0, BLOCK * wide);
        let end = count.next_multiple_of(STRIP);
        for tile in tiles {
            let open = queries.last + 1 >= tile + KEYS && queries.first[count - 1] <= tile && count == BLOCK;
            // The first query that sees a key, rounded down to what is computed together.
            let begin = |key: usize| (tile + key).saturating_sub(queries.last) / STRIP * STRIP;
            for key in (0..KEYS).step_by(STRIP) {
                let rows = (tile + key) * units;
                for half in (begin(key)..end).step_by(STRIP) {
                    for (left_side, right_side, to) in
                        [(keys.rows, q_columns, scores), (keys.values, dy_columns, grads)]
                    {
                        let left = left(left_side.add(rows), units);
                        amx::amx_product(left, right(right_side.add(half), BLOCK), steps, to, STRIP, false);
                    }
                    let at = key * BLOCK / 2 + half / 2;
                    numbers.slopes(
                        (scores, grads),
                        (c, half, (!open).then_some(tile + key)),
                        [weights.add(at), slopes.add(at), pairs.add(key / 2 * BLOCK + half)],
                    );
                }
                let from = begin(key);
                if from >= end {
                    continue;
                }
                for (sums, left_side, right_side) in [(dv, weights, dy_depth), (dk, slopes, q_depth)] {
                    let left = left(left_side.add((key * BLOCK + from) / 2), BLOCK / 2);
                    for column in (0..wide).step_by(STRIP) {
                        let right = right(right_side.add(from / 2 * wide + column), wide);
                        let to = sums.add((tile + key) * wide + column);
                        amx::amx_product(left, right, (end - from) / STRIP, to, wide, true);
                    }
                }
            }
            for half in (0..end).step_by(STRIP) {
                let depth = (0..KEYS).step_by(STRIP).filter(|key| begin(*key) <= half).count();
                let right = right(pairs.add(half), BLOCK);
                for row in (0..wide).step_by(STRIP) {
                    let left = left(keys.depth.add(tile * units + row * KEYS / 2), KEYS / 2);
                    amx::amx_product(left, right, depth, sum.add(row * BLOCK + half), BLOCK, true);
                }
            }
        }
        let scale = _mm512_set1_ps(queries.scale);
        for query in (0..count).step_by(16) {
            for column in (0..d).step_by(16) {
                let mut square = [_mm512_setzero_ps(); 16];
                for (i, values) in square.iter_mut().enumerate() {
                    *values = _mm512_loadu_ps(sum.add((column + i) * BLOCK + query));
                }
                super::avx512::transpose(&mut square);
                let mask = lanes(0, 0, d - column);
                for (i, values) in square.iter().enumerate().take(count - query) {
                    let at = dq.add((query + i) * queries.stride + column);
                    let value = _mm512_fmadd_ps(*values, scale, _mm512_maskz_loadu_ps(mask, at));
                    _mm512_mask_storeu_ps(at, mask, value);
                }
            }
        }
    }
}

/// What the slopes of a block of queries take: numbers of each query.
struct Numbers {
    log_sums: [f32; BACKWARD_QUERIES],
    along: [f32; BACKWARD_QUERIES],
    /// The first and the last key that it sees.
    seen: [[i32; BACKWARD_QUERIES]; 2],
}

impl Numbers {
    fn of(queries: &Queries, along: &[f32], log_sums: &[f32]) -> Self {
        const NOTHING: [f32; BACKWARD_QUERIES] = [0.; BACKWARD_QUERIES];
        let seen = [[i32::MAX; BACKWARD_QUERIES], [-1; BACKWARD_QUERIES]];
        let mut numbers = Self { log_sums: NOTHING, along: NOTHING, seen };
        for (i, first) in queries.first.iter().enumerate() {
            (numbers.log_sums[i], numbers.along[i]) = (log_sums[i], along[i]);
            // A key's number is below 2³¹: there is memory for no more.
            (numbers.seen[0][i], numbers.seen[1][i]) = (*first as i32, (queries.last + i) as i32);
        }
        numbers
    }

    /// Weights and slopes of 32 keys against the queries `half..half + 32`, by keys (two rows of units a line of the block), and the slopes as pairs of keys.
    /// `masked` is the first key's number where not every query sees every key.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn slopes(
        &self,
        (scores, grads): (*const f32, *const f32),
        (c, half, masked): (f32, usize, Option<usize>),
        [weights, slopes, pairs]: [*mut u32; 3],
    ) {
        // SAFETY: the caller vouches for the squares and for 32 queries from `half` on.
        unsafe {
            let floats = |from: &[f32; BACKWARD_QUERIES]| {
                [0, 16].map(|at| _mm512_loadu_ps(from.as_ptr().add(half + at)))
            };
            let (log_sums, along) = (floats(&self.log_sums), floats(&self.along));
            let [first, last] = [0, 1]
                .map(|i| [0, 16].map(|at| _mm512_loadu_si512(self.seen[i].as_ptr().add(half + at).cast())));
            let c = _mm512_set1_ps(c);
            for key in (0..STRIP).step_by(2) {
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
