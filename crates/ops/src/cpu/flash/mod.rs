//! Attention's tiles on AVX-512, in f32 or with products in bf16 and everything else in f32.
//!
//! Operands are made of 32-bit **units**: one f32, or two values of bf16 that are neighbours along
//! the product's depth. The left side is read unit by unit and broadcast, the right side sixteen
//! columns at a time; so one piece of code serves both, and a unit of bf16 is twice the arithmetic.
//! A matrix is packed in the [`Form`] that its products read.
//!
//! Forward, a strip of four queries is scored against 64 keys, and between the pieces of that
//! product come the powers of the strip before, which wait for one another but not for it. Powers
//! are relative to the first scores that a query has seen, and to higher ones only when they
//! threaten to leave f32's range: no strip looks for its maximum. Backward, the products keep the
//! unit busy by themselves (figures: `docs/measurements.md`, "Attention"): the scores and the gradients of the weights are computed side by side, four keys against
//! 32 queries, with the keys as rows: weights and slopes then lie as the products for dv and dk
//! read them, and only the slopes are stored a second time for dq. Logarithms are to base 2, with
//! the factor on the scores inside: `2^(c·s − log_sum)` is one fused multiplication and a
//! polynomial.

pub mod amx;

use std::arch::x86_64::*;
use std::iter::StepBy;
use std::ops::Range;

use crate::cpu::avx512::{lanes, transpose};

/// Keys of a tile.
pub const KEYS: usize = 64;
/// Queries of a strip, forward.
const STRIP: usize = 4;
/// Queries of a block, forward: whole strips.
pub const FORWARD_QUERIES: usize = 16 * STRIP;
/// Queries of a block, backward.
pub const BACKWARD_QUERIES: usize = 64;
/// Vectors of a key tile.
const TILE: usize = KEYS / 16;
/// Keys and vectors of queries of a strip, backward.
const ROWS: usize = 4;
const HALF_BLOCK: usize = 2;

/// What a 32-bit unit holds.
pub trait Unit: Copy + Send + Sync + 'static {
    /// Values of a unit.
    const VALUES: usize;

    /// Sixteen units, from up to `16 · VALUES` neighbours; zeros behind `count` values.
    ///
    /// # Safety
    /// AVX512-BF16 is there; `from` spans `count` values.
    unsafe fn load(from: *const f32, count: usize) -> __m512;

    /// `sum + Σ` of the units' products.
    ///
    /// # Safety
    /// AVX512-BF16 is there.
    unsafe fn multiply(sum: __m512, a: __m512, b: __m512) -> __m512;

    /// Stores 32 values as `32 / VALUES` units.
    ///
    /// # Safety
    /// AVX512-BF16 is there, and the room.
    unsafe fn store(to: *mut u32, values: [__m512; 2]);

    /// Stores sixteen units each of two rows' values; where a unit is one value, nothing: rows
    /// serve as they are.
    ///
    /// # Safety
    /// As [`Unit::store`].
    unsafe fn store_pairs(to: *mut u32, rows: [[__m512; 2]; 2]);
}

/// One f32.
#[derive(Clone, Copy)]
pub struct Full;

/// Two bf16.
#[derive(Clone, Copy)]
pub struct Half;

impl Unit for Full {
    const VALUES: usize = 1;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn load(from: *const f32, count: usize) -> __m512 {
        // SAFETY: the caller's promise; masked lanes are not read.
        unsafe { _mm512_maskz_loadu_ps(lanes(0, 0, count), from) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn multiply(sum: __m512, a: __m512, b: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, sum)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn store(to: *mut u32, values: [__m512; 2]) {
        // SAFETY: the caller's promise.
        unsafe {
            _mm512_storeu_ps(to.cast(), values[0]);
            _mm512_storeu_ps(to.add(16).cast(), values[1]);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn store_pairs(_: *mut u32, _: [[__m512; 2]; 2]) {}
}

/// Sixteen values of one vector of bf16 beside those of another: lane `i` takes word `i/2` of the
/// first (even) or second (odd).
static EVEN_ODD: [[u16; 32]; 2] = {
    let mut words = [[0; 32]; 2];
    let mut i = 0;
    while i < 32 {
        words[0][i] = (i as u16 % 2) * 32 + i as u16 / 2;
        words[1][i] = (i as u16 % 2) * 32 + i as u16 / 2 + 16;
        i += 1;
    }
    words
};

impl Unit for Half {
    const VALUES: usize = 2;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn load(from: *const f32, count: usize) -> __m512 {
        // SAFETY: the caller's promise; masked lanes are not read. Both types are 512 bits.
        unsafe {
            let low = _mm512_maskz_loadu_ps(lanes(0, 0, count), from);
            let high = _mm512_maskz_loadu_ps(lanes(1, 0, count), from.wrapping_add(16));
            std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(high, low))
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn multiply(sum: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the types of float vectors and of bf16 vectors have one layout.
        unsafe {
            let (a, b) = (
                std::mem::transmute::<__m512, __m512bh>(a),
                std::mem::transmute::<__m512, __m512bh>(b),
            );
            _mm512_dpbf16_ps(sum, a, b)
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn store(to: *mut u32, values: [__m512; 2]) {
        // SAFETY: the caller's promise.
        unsafe {
            let words =
                std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(values[1], values[0]));
            _mm512_storeu_si512(to.cast(), words);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn store_pairs(to: *mut u32, rows: [[__m512; 2]; 2]) {
        // SAFETY: the caller's promise.
        unsafe {
            let words = |row: [__m512; 2]| {
                std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(row[1], row[0]))
            };
            let (first, second) = (words(rows[0]), words(rows[1]));
            for (i, order) in EVEN_ODD.iter().enumerate() {
                let order = _mm512_loadu_si512(order.as_ptr().cast());
                let pairs = _mm512_permutex2var_epi16(first, order, second);
                _mm512_storeu_si512(to.add(16 * i).cast(), pairs);
            }
        }
    }
}

/// How the rows of a matrix (queries, keys …, each of `d` values) are packed for a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Row by row, units along `d`: a left side of depth `d`.
    Rows,
    /// `[units of d][width rows]` for each `width` rows: a right side of depth `d` whose columns
    /// are the rows.
    Columns {
        /// Rows side by side.
        width: usize,
    },
    /// `[units of rows][d]`: a right side whose depth is the rows.
    Depth,
    /// `[d][units of rows]` for each [`KEYS`] rows: a left side whose depth is the rows.
    Turned,
}

/// The values of a head rounded up so that units and vectors come out even.
pub const fn padded(d: usize) -> usize {
    d.next_multiple_of(32)
}

/// Units that `rows` rows of `d` values take in any form; the rows of [`Form::Columns`] come in
/// whole widths.
pub const fn packed_units<U: Unit>(rows: usize, d: usize) -> usize {
    rows * padded(d) / U::VALUES
}

/// Packs rows `stride` apart; rows from `rows` up to `whole` become zeros.
///
/// # Safety
/// AVX512-BF16 is there; `from` spans the rows; `to` has room for [`packed_units`] of `whole` rows;
/// `whole` is a multiple of 16 (of the width for columns, of [`KEYS`] for what is turned).
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn pack<U: Unit>(
    form: Form,
    from: *const f32,
    stride: usize,
    (rows, whole): (usize, usize),
    d: usize,
    to: *mut u32,
) {
    let wide = padded(d);
    let units = wide / U::VALUES;
    // SAFETY: the caller's promise: rows inside `rows` are read as far as `d`, all others are
    // zeros.
    unsafe {
        let load = |row: usize, unit: usize| {
            let value = unit * U::VALUES;
            if row < rows && value < d {
                U::load(from.add(row * stride + value), d - value)
            } else {
                _mm512_setzero_ps()
            }
        };
        // 32 values of a row.
        let vectors = |row: usize, column: usize| {
            let vector = |column: usize| {
                if row < rows && column < d {
                    Full::load(from.add(row * stride + column), d - column)
                } else {
                    _mm512_setzero_ps()
                }
            };
            [vector(column), vector(column + 16)]
        };
        // 32 units along the rows.
        let along_rows = |to: *mut u32, row: usize, column: usize| {
            if U::VALUES == 1 {
                U::store(to, vectors(row, column));
            } else {
                U::store_pairs(to, [vectors(row, column), vectors(row + 1, column)]);
            }
        };
        match form {
            Form::Rows => {
                for row in 0..whole {
                    for unit in (0..units).step_by(16) {
                        _mm512_storeu_ps(to.add(row * units + unit).cast(), load(row, unit));
                    }
                }
            }
            Form::Columns { width } => {
                for row in (0..whole).step_by(16) {
                    let to = to.add(row / width * width * units + row % width);
                    for unit in (0..units).step_by(16) {
                        let mut square = [_mm512_setzero_ps(); 16];
                        for (i, values) in square.iter_mut().enumerate() {
                            *values = load(row + i, unit);
                        }
                        transpose(&mut square);
                        for (i, values) in square.iter().enumerate() {
                            _mm512_storeu_ps(to.add((unit + i) * width).cast(), *values);
                        }
                    }
                }
            }
            Form::Depth => {
                for row in (0..whole).step_by(U::VALUES) {
                    let to = to.add(row / U::VALUES * wide);
                    for column in (0..wide).step_by(32) {
                        along_rows(to.add(column), row, column);
                    }
                }
            }
            Form::Turned => {
                let (units, across) = (KEYS / U::VALUES, 16 * U::VALUES);
                for row in (0..whole).step_by(across) {
                    let to = to.add(row / KEYS * units * wide + row % KEYS / U::VALUES);
                    for column in (0..wide).step_by(32) {
                        let mut squares = [[_mm512_setzero_ps(); 16]; 2];
                        for i in 0..16 {
                            let mut both = [0u32; 32];
                            along_rows(both.as_mut_ptr(), row + i * U::VALUES, column);
                            for (j, square) in squares.iter_mut().enumerate() {
                                square[i] = _mm512_loadu_ps(both.as_ptr().add(16 * j).cast());
                            }
                        }
                        for (j, square) in squares.iter_mut().enumerate() {
                            transpose(square);
                            for (i, values) in square.iter().enumerate() {
                                _mm512_storeu_ps(
                                    to.add((column + 16 * j + i) * units).cast(),
                                    *values,
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `2ˣ` to about 1 unit in the last place; 0 far below, and where `seen` is not.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn exp2(x: __m512, seen: __mmask16) -> __m512 {
    let n = _mm512_roundscale_ps::<0>(x);
    let r = _mm512_sub_ps(x, n);
    let mut p = _mm512_set1_ps(1.535_336_2e-4);
    for c in
        [1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, std::f32::consts::LN_2, 1.]
    {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    }
    _mm512_maskz_scalef_ps(seen, p, n)
}

/// The left side of a product: the first unit, from a row to the next, from a unit of depth to the
/// next.
type Left = (*const u32, usize, usize);

/// `sums += left · right`: the right side has `16 · NV` columns, its rows `step` units apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn multiply<U: Unit, const MR: usize, const NV: usize>(
    mut sums: [[__m512; NV]; MR],
    depth: usize,
    (mut left, row, unit): Left,
    mut right: *const u32,
    step: usize,
) -> [[__m512; NV]; MR] {
    // SAFETY: the caller vouches for what rows, columns and depth span.
    unsafe {
        for _ in 0..depth {
            let mut columns = [_mm512_setzero_ps(); NV];
            for (j, column) in columns.iter_mut().enumerate() {
                *column = _mm512_loadu_ps(right.add(16 * j).cast());
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let value =
                    _mm512_castsi512_ps(_mm512_set1_epi32(left.add(i * row).read().cast_signed()));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = U::multiply(*sum, value, column);
                }
            }
            left = left.add(unit);
            right = right.add(step);
        }
    }
    sums
}

/// `c += left · right` for `MR` rows of `columns` results (a multiple of 32).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn add_product<U: Unit, const MR: usize>(
    c: *mut f32,
    columns: usize,
    depth: usize,
    left: Left,
    right: *const u32,
) {
    // SAFETY: the caller vouches for what the shapes span.
    unsafe {
        let mut from = 0;
        while from < columns {
            let (c, right) = (c.add(from), right.add(from));
            if columns - from >= 64 {
                add_columns::<U, MR, 4>(c, columns, depth, left, right);
                from += 64;
            } else {
                add_columns::<U, MR, 2>(c, columns, depth, left, right);
                from += 32;
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn add_columns<U: Unit, const MR: usize, const NV: usize>(
    c: *mut f32,
    stride: usize,
    depth: usize,
    left: Left,
    right: *const u32,
) {
    // SAFETY: the caller vouches for what the shapes span.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); NV]; MR];
        for (i, sums) in sums.iter_mut().enumerate() {
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_loadu_ps(c.add(i * stride + 16 * j));
            }
        }
        let sums = multiply::<U, MR, NV>(sums, depth, left, right, stride);
        for (i, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                _mm512_storeu_ps(c.add(i * stride + 16 * j), *sum);
            }
        }
    }
}

/// How a block of queries is worked through, from packed operands.
pub trait Kernel {
    /// What the operands are packed in.
    type Unit: Unit;
    /// How [`Keys::depth`] is packed.
    const KEYS_FOR_DQ: Form;
    /// Keys that the backward pass goes through at a time, whole tiles: what is packed of them and
    /// their gradients stay in the second-level cache.
    const STRETCH: usize;

    /// Units of scratch that [`Kernel::forward`] needs.
    fn forward_scratch(d: usize) -> usize;

    /// The results of a block of queries, at most [`FORWARD_QUERIES`], and the logarithms of their
    /// softmax's denominators (to base 2, infinite for a query without keys).
    ///
    /// `keys` are packed as [`Form::Columns`] of [`KEYS`], `values` as [`Form::Depth`], both up to
    /// a whole tile.
    ///
    /// # Safety
    /// The processor has what the kernel is made of; `q` and `y` span the queries, the packed
    /// operands every tile that they see, `scratch` has [`Kernel::forward_scratch`] units and is
    /// aligned to 64 bytes.
    unsafe fn forward(
        queries: &Queries,
        q: *const f32,
        keys: *const u32,
        values: *const u32,
        y: *mut f32,
        log_sums: &mut [f32],
        scratch: *mut u32,
    );

    /// Units of scratch that [`Kernel::backward`] needs.
    fn backward_scratch(d: usize) -> usize;

    /// Adds the gradients that a block of queries, packed by [`pack_queries`], gives with the keys
    /// in `range` (whole tiles): of q, and of keys and values to rows of [`padded`] values that are
    /// [`KEYS`]-wise whole, where keys' come without the factor on the scores.
    ///
    /// `along` is `y · dy` of each query, `log_sums` what [`Kernel::forward`] gave.
    ///
    /// # Safety
    /// As [`Kernel::forward`], with `packed`, `dq`, `dk` and `dv` too.
    #[allow(clippy::too_many_arguments)]
    unsafe fn backward(
        queries: &Queries,
        packed: *const u32,
        keys: (Keys, Range<usize>),
        along: &[f32],
        log_sums: &[f32],
        dq: *mut f32,
        gradients: (*mut f32, *mut f32),
        scratch: *mut u32,
    );
}

/// By vectors: [`Full`] units in f32, [`Half`] ones by AVX512-BF16.
impl<U: Unit> Kernel for U {
    type Unit = U;
    const KEYS_FOR_DQ: Form = Form::Depth;
    const STRETCH: usize = 256 * U::VALUES;

    fn forward_scratch(d: usize) -> usize {
        packed_units::<U>(FORWARD_QUERIES, d)
            + FORWARD_QUERIES * padded(d)
            + FORWARD_QUERIES * 16
            + STRIP * KEYS / U::VALUES
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
        let units = wide / U::VALUES;
        let strips = count.div_ceil(STRIP);
        let c = queries.scale * std::f32::consts::LOG2_E;
        // SAFETY: the caller's promise; the scratch is divided as `forward_scratch` counts it.
        unsafe {
            let packed = scratch;
            let out: *mut f32 = packed.add(packed_units::<U>(FORWARD_QUERIES, d)).cast();
            // Sixteen partial sums a query.
            let sums = out.add(FORWARD_QUERIES * wide);
            let weights: *mut u32 = sums.add(FORWARD_QUERIES * 16).cast();
            let mut shifts = [f32::NEG_INFINITY; FORWARD_QUERIES];
            let whole = (strips * STRIP).next_multiple_of(16);
            pack::<U>(Form::Rows, q, queries.stride, (count, whole), d, packed);
            out.write_bytes(0, strips * STRIP * wide);
            sums.write_bytes(0, strips * STRIP * 16);

            let left = |strip: Strip| packed.add(strip.row * units).cast_const();
            let right = |strip: Strip| keys.add(strip.tile * units);
            let [mut now, mut then] = [Scores::NONE; 2];
            let (mut now, mut then) = (&mut now, &mut then);
            let tiles = queries.tiles_range();
            let mut next = Strip { tile: tiles.start, row: 0 }.or_after(queries, tiles.end);
            if let Some(strip) = next {
                score::<U>(units, left(strip), right(strip), now, |_| ());
            }
            while let Some(strip) = next {
                let seen = strip.seen(queries);
                let Some(shifts) = shifts[strip.row..].first_chunk_mut::<STRIP>() else { break };
                settle(now, &seen, c, shifts);
                let mut found = [_mm512_setzero_ps(); STRIP];
                let mut raise = |part: usize| {
                    let i = part / 2;
                    found[i] = _mm512_add_ps(
                        found[i],
                        now.raise::<U>(part, c, shifts[i], &seen[i], weights),
                    );
                };
                next = Strip { row: strip.row + STRIP, ..strip }.or_after(queries, tiles.end);
                match next {
                    Some(next) => score::<U>(units, left(next), right(next), then, raise),
                    None => (0..PARTS).for_each(&mut raise),
                }
                let out = out.add(strip.row * wide);
                let sums = sums.add(strip.row * 16);
                // Not below the limit: no number, either.
                let all = _mm512_add_ps(
                    _mm512_add_ps(found[0], found[1]),
                    _mm512_add_ps(found[2], found[3]),
                );
                if _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(all, _mm512_set1_ps(LIMIT)) != 0 {
                    found = raise_again::<U>(now, &seen, c, shifts, (out, wide), sums, weights);
                }
                for (i, found) in found.iter().enumerate() {
                    let at = sums.add(16 * i);
                    _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), *found));
                }
                // Keys beyond the strip's last have no weight.
                let depth = (strip.end(queries) - strip.tile).min(KEYS).div_ceil(U::VALUES);
                let left = (weights.cast_const(), KEYS / U::VALUES, 1);
                let right = values.add(strip.tile / U::VALUES * wide);
                add_product::<U, STRIP>(out, wide, depth, left, right);
                std::mem::swap(&mut now, &mut then);
            }
            finish(queries, &shifts, (out, sums), y, log_sums);
        }
    }

    fn backward_scratch(d: usize) -> usize {
        BACKWARD_QUERIES * padded(d) + 3 * KEYS * BACKWARD_QUERIES / U::VALUES
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
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
        let units = wide / U::VALUES;
        let c = queries.scale * std::f32::consts::LOG2_E;
        let tiles = queries.tiles_of(range);
        if tiles.len() == 0 {
            return;
        }
        let numbers = Numbers::of(queries, along, log_sums);
        // SAFETY: the caller's promise; the scratch is divided as `backward_scratch` counts it.
        unsafe {
            let [q_columns, dy_columns, q_depth, dy_depth] = parts::<U>(packed, d);
            let sum: *mut f32 = scratch.cast();
            let square = KEYS * BLOCK / U::VALUES;
            let [weights, slopes, pairs] =
                [0, 1, 2].map(|i| scratch.add(BLOCK * wide + i * square));
            // Where a unit is one value, the slopes' rows are a right form for dq as they are.
            let pairs = if U::VALUES == 1 { slopes } else { pairs };
            sum.write_bytes(0, BLOCK * wide);
            let end = count.next_multiple_of(32);
            for tile in tiles {
                let open = queries.last + 1 >= tile + KEYS
                    && queries.first[count - 1] <= tile
                    && count == BLOCK;
                // The first query that sees a key, rounded down to what is computed together.
                let begin = |key: usize| (tile + key).saturating_sub(queries.last) / 32 * 32;
                for key in (0..KEYS).step_by(ROWS) {
                    for half in (begin(key)..end).step_by(32) {
                        let right = [q_columns.add(half), dy_columns.add(half)];
                        let rows = (tile + key) * units;
                        let zero = [[_mm512_setzero_ps(); HALF_BLOCK]; ROWS];
                        let [scores, grads] = multiply_two::<U>(
                            [zero, zero],
                            units,
                            [keys.rows.add(rows), keys.values.add(rows)],
                            right,
                        );
                        let mut w = zero;
                        let mut s = zero;
                        for j in 0..HALF_BLOCK {
                            let at = half + 16 * j;
                            let log_sum = _mm512_loadu_ps(numbers.log_sums.as_ptr().add(at));
                            let along = _mm512_loadu_ps(numbers.along.as_ptr().add(at));
                            let first = _mm512_loadu_si512(numbers.first.as_ptr().add(at).cast());
                            let last = _mm512_loadu_si512(numbers.last.as_ptr().add(at).cast());
                            for i in 0..ROWS {
                                let mut power = exp2(
                                    _mm512_fmsub_ps(scores[i][j], _mm512_set1_ps(c), log_sum),
                                    !0,
                                );
                                if !open {
                                    let number = _mm512_set1_epi32((tile + key + i) as i32);
                                    let mask = _mm512_cmple_epi32_mask(first, number)
                                        & _mm512_cmpge_epi32_mask(last, number);
                                    power = _mm512_maskz_mov_ps(mask, power);
                                }
                                w[i][j] = power;
                                s[i][j] = _mm512_mul_ps(power, _mm512_sub_ps(grads[i][j], along));
                            }
                        }
                        for i in 0..ROWS {
                            let at = ((key + i) * BLOCK + half) / U::VALUES;
                            U::store(weights.add(at), w[i]);
                            U::store(slopes.add(at), s[i]);
                        }
                        for i in (0..ROWS).step_by(2) {
                            U::store_pairs(
                                pairs.add((key + i) / 2 * BLOCK + half),
                                [s[i], s[i + 1]],
                            );
                        }
                    }
                }
                for key in (0..KEYS).step_by(ROWS) {
                    let from = begin(key);
                    if from >= end {
                        break;
                    }
                    let depth = (end - from) / U::VALUES;
                    let to = (tile + key) * wide;
                    for (sums, left, right) in [(dv, weights, dy_depth), (dk, slopes, q_depth)] {
                        let left = left.add((key * BLOCK + from) / U::VALUES).cast_const();
                        let right = right.add(from / U::VALUES * wide);
                        let left = (left, BLOCK / U::VALUES, 1);
                        add_product::<U, ROWS>(sums.add(to), wide, depth, left, right);
                    }
                }
                let right = keys.depth.add(tile / U::VALUES * wide);
                for query in (0..count).step_by(ROWS) {
                    let last = queries.last + query + ROWS;
                    if last <= tile {
                        continue;
                    }
                    let depth = (last - tile).min(KEYS).div_ceil(U::VALUES);
                    let left = (pairs.add(query).cast_const(), 1, BLOCK);
                    add_product::<U, ROWS>(sum.add(query * wide), wide, depth, left, right);
                }
            }
            let scale = _mm512_set1_ps(queries.scale);
            for query in 0..count {
                for column in (0..d).step_by(16) {
                    let mask = lanes(0, 0, d - column);
                    let at = dq.add(query * queries.stride + column);
                    let value = _mm512_loadu_ps(sum.add(query * wide + column));
                    let value = _mm512_fmadd_ps(value, scale, _mm512_maskz_loadu_ps(mask, at));
                    _mm512_mask_storeu_ps(at, mask, value);
                }
            }
        }
    }
}

/// Units that [`pack_queries`] writes of a block.
pub const fn query_units<U: Unit>(d: usize) -> usize {
    4 * packed_units::<U>(BACKWARD_QUERIES, d)
}

/// Packs what the backward pass reads of a block of at most [`BACKWARD_QUERIES`] queries and of
/// their gradients `dy`, once for all stretches of keys. (Packed for each stretch, a tenth of the
/// backward pass in bf16 at 2048 tokens: the rows lie far apart.)
///
/// # Safety
/// AVX512-BF16 is there; `q` and `dy` span the queries, `to` has room for [`query_units`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn pack_queries<U: Unit>(
    queries: &Queries,
    q: *const f32,
    dy: *const f32,
    to: *mut u32,
) {
    const BLOCK: usize = BACKWARD_QUERIES;
    let (d, count) = (queries.d, queries.first.len());
    let part = packed_units::<U>(BLOCK, d);
    for (i, from) in [q, dy].into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let columns = Form::Columns { width: BLOCK };
            pack::<U>(columns, from, queries.stride, (count, BLOCK), d, to.add(i * part));
            pack::<U>(Form::Depth, from, queries.stride, (count, BLOCK), d, to.add((2 + i) * part));
        }
    }
}

/// Where [`pack_queries`] has put the queries and their gradients by columns, and both by depth.
pub(super) fn parts<U: Unit>(packed: *const u32, d: usize) -> [*const u32; 4] {
    [0, 1, 2, 3].map(|i| packed.wrapping_add(i * packed_units::<U>(BACKWARD_QUERIES, d)))
}

/// Some queries of one head of one row, and what they see.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    /// Values of a head.
    pub d: usize,
    /// Factor on the scores, positive.
    pub scale: f32,
    /// The first key that each query sees; as many as there are queries.
    pub first: &'a [usize],
    /// The last key that the first query sees; each further query sees one more.
    pub last: usize,
    /// From a query's values to the next query's, in q, y and their gradients.
    pub stride: usize,
}

impl Queries<'_> {
    /// The first keys of the tiles that hold anything for these queries.
    pub(super) fn tiles(&self) -> StepBy<Range<usize>> {
        self.tiles_range().step_by(KEYS)
    }

    /// From the first key of the first of them to one behind the last key.
    fn tiles_range(&self) -> Range<usize> {
        let end = self.last + self.first.len();
        self.first.first().map_or(end, |first| (*first).min(end) / KEYS * KEYS)..end
    }

    /// Those of the tiles that begin within `keys`, which begins with a tile.
    pub(super) fn tiles_of(&self, keys: Range<usize>) -> StepBy<Range<usize>> {
        let all = self.tiles_range();
        (all.start.max(keys.start)..all.end.min(keys.end)).step_by(KEYS)
    }

    /// The keys of a tile that a query sees, counted from the tile's first.
    #[inline]
    pub(super) fn seen(&self, query: usize, tile: usize) -> (usize, usize) {
        let from = self.first[query].clamp(tile, tile + KEYS);
        let to = (self.last + query + 1).clamp(from, tile + KEYS);
        (from - tile, to - tile)
    }
}

/// What a block of queries reads backward, a number of each query. Those behind the last see no
/// key.
pub(super) struct Numbers {
    pub(super) log_sums: [f32; BACKWARD_QUERIES],
    /// `y · dy`
    pub(super) along: [f32; BACKWARD_QUERIES],
    /// The first key that it sees.
    pub(super) first: [i32; BACKWARD_QUERIES],
    /// The last.
    pub(super) last: [i32; BACKWARD_QUERIES],
}

impl Numbers {
    pub(super) fn of(queries: &Queries, along: &[f32], log_sums: &[f32]) -> Self {
        const NOTHING: [f32; BACKWARD_QUERIES] = [0.; BACKWARD_QUERIES];
        let (first, last) = ([i32::MAX; BACKWARD_QUERIES], [-1; BACKWARD_QUERIES]);
        let mut numbers = Self { log_sums: NOTHING, along: NOTHING, first, last };
        for (i, first) in queries.first.iter().enumerate() {
            (numbers.log_sums[i], numbers.along[i]) = (log_sums[i], along[i]);
            // A key's number is below 2³¹: there is memory for no more.
            (numbers.first[i], numbers.last[i]) = (*first as i32, (queries.last + i) as i32);
        }
        numbers
    }
}

/// The end of a forward pass: `out` over its denominators to `y`, and their logarithms. Of each
/// query there are sixteen partial `sums` of powers relative to its shift (to base 2).
///
/// # Safety
/// AVX-512 is there; the pointers span the queries.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn finish(
    queries: &Queries,
    shifts: &[f32; FORWARD_QUERIES],
    (out, sums): (*const f32, *const f32),
    y: *mut f32,
    log_sums: &mut [f32],
) {
    let (d, wide) = (queries.d, padded(queries.d));
    // SAFETY: the caller's promise.
    unsafe {
        for query in 0..queries.first.len() {
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

/// In so many parts the scores of a strip are computed, and meanwhile the powers of the strip
/// before.
const PARTS: usize = STRIP * TILE / 2;
/// A power so high that the next might be none: the query's shift is chosen anew.
const LIMIT: f32 = (1u64 << 40) as f32;

/// A strip of queries and a tile of keys.
#[derive(Clone, Copy)]
struct Strip {
    /// The first key.
    tile: usize,
    /// The first query, counted from the block's.
    row: usize,
}

impl Strip {
    /// This strip, or the first after it whose queries see a key of its tile; tiles begin before
    /// `end`.
    #[inline]
    fn or_after(mut self, queries: &Queries, end: usize) -> Option<Self> {
        loop {
            if self.row >= queries.first.len() {
                self = Self { tile: self.tile + KEYS, row: 0 };
            }
            if self.tile >= end {
                return None;
            }
            if self.end(queries) > self.tile {
                return Some(self);
            }
            self.row += STRIP;
        }
    }

    /// One more than the last key that its last query sees.
    fn end(self, queries: &Queries) -> usize {
        queries.last + (self.row + STRIP).min(queries.first.len())
    }

    /// Which keys each query sees, sixteen at a time.
    #[inline]
    fn seen(self, queries: &Queries) -> [[__mmask16; TILE]; STRIP] {
        let last = self.row + STRIP - 1;
        if last < queries.first.len()
            && queries.last + self.row >= self.tile + KEYS - 1
            && queries.first[last] <= self.tile
        {
            return [[!0; TILE]; STRIP];
        }
        std::array::from_fn(|i| {
            let (from, to) = match self.row + i < queries.first.len() {
                true => queries.seen(self.row + i, self.tile),
                false => (0, 0),
            };
            std::array::from_fn(|j| lanes(j, from, to))
        })
    }
}

/// Scores of a strip.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Scores([[[f32; 16]; TILE]; STRIP]);

impl Scores {
    const NONE: Self = Self([[[0.; 16]; TILE]; STRIP]);

    /// The highest that a query sees.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn highest(&self, query: usize, seen: [__mmask16; TILE]) -> f32 {
        let mut most = _mm512_set1_ps(f32::NEG_INFINITY);
        for (scores, seen) in self.0[query].iter().zip(seen) {
            // SAFETY: sixteen values on a cache line.
            let scores = unsafe { _mm512_load_ps(scores.as_ptr()) };
            most = _mm512_mask_max_ps(most, seen, most, scores);
        }
        _mm512_reduce_max_ps(most)
    }

    /// The powers `2^(c·score − shift)` of one of [`PARTS`] of the scores, zeros where they are not
    /// `seen`: their sum, and they themselves as weights. No closure inside: it would be called,
    /// and all registers stored around it.
    ///
    /// # Safety
    /// AVX512-BF16 is there; `weights` has room for a strip.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn raise<U: Unit>(
        &self,
        part: usize,
        c: f32,
        shift: f32,
        seen: &[__mmask16; TILE],
        weights: *mut u32,
    ) -> __m512 {
        let (i, pair) = (part / 2, part % 2);
        let mut powers = [_mm512_setzero_ps(); 2];
        // SAFETY: sixteen values on a cache line each; the caller's promise.
        unsafe {
            for (j, power) in powers.iter_mut().enumerate() {
                let scores = _mm512_load_ps(self.0[i][2 * pair + j].as_ptr());
                let exponent = _mm512_fmsub_ps(scores, _mm512_set1_ps(c), _mm512_set1_ps(shift));
                *power = exp2(exponent, seen[2 * pair + j]);
            }
            U::store(weights.add((i * KEYS + 32 * pair) / U::VALUES), powers);
        }
        _mm512_add_ps(powers[0], powers[1])
    }
}

/// The scores of a strip with a tile, in [`PARTS`]; after each something else gets its turn, whose
/// operations the processor fits in between.
///
/// # Safety
/// AVX512-BF16 is there; `left` spans the strip's rows of `units`, `keys` the tile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn score<U: Unit>(
    units: usize,
    left: *const u32,
    keys: *const u32,
    scores: &mut Scores,
    mut meanwhile: impl FnMut(usize),
) {
    let depth = units / PARTS;
    let mut sums = [[_mm512_setzero_ps(); TILE]; STRIP];
    // SAFETY: the caller's promise.
    unsafe {
        for part in 0..PARTS {
            let from = part * depth;
            let left = (left.add(from), units, 1);
            sums = multiply::<U, STRIP, TILE>(sums, depth, left, keys.add(from * KEYS), KEYS);
            meanwhile(part);
        }
        for (scores, sums) in scores.0.iter_mut().zip(sums) {
            for (scores, sums) in scores.iter_mut().zip(sums) {
                _mm512_store_ps(scores.as_mut_ptr(), sums);
            }
        }
    }
}

/// Gives the queries that see keys for the first time a shift: the highest of these scores, to
/// base 2. Powers of later scores are relative to it, whatever they are, until one is beyond
/// [`LIMIT`].
#[inline]
#[target_feature(enable = "avx512f")]
fn settle(scores: &Scores, seen: &[[__mmask16; TILE]; STRIP], c: f32, shifts: &mut [f32; STRIP]) {
    for (i, shift) in shifts.iter_mut().enumerate() {
        if *shift == f32::NEG_INFINITY && seen[i] != [0; TILE] {
            let highest = scores.highest(i, seen[i]);
            *shift = if highest == f32::NEG_INFINITY { 0. } else { highest * c };
        }
    }
}

/// The powers of a strip once more, relative to its highest scores if those are higher than the
/// shifts so far; what was summed is brought to the new ones.
///
/// # Safety
/// As [`score`]; `out` has rows of so many values, `sums` sixteen of each query.
#[cold]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn raise_again<U: Unit>(
    scores: &Scores,
    seen: &[[__mmask16; TILE]; STRIP],
    c: f32,
    shifts: &mut [f32; STRIP],
    (out, wide): (*mut f32, usize),
    sums: *mut f32,
    weights: *mut u32,
) -> [__m512; STRIP] {
    let mut found = [_mm512_setzero_ps(); STRIP];
    for i in 0..STRIP {
        let shift = scores.highest(i, seen[i]) * c;
        // SAFETY: the caller's promise.
        unsafe {
            if shift > shifts[i] {
                let factor = exp2(_mm512_set1_ps(shifts[i] - shift), !0);
                for at in (0..wide)
                    .step_by(16)
                    .map(|column| out.add(i * wide + column))
                    .chain([sums.add(16 * i)])
                {
                    _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), factor));
                }
                shifts[i] = shift;
            }
            for part in 2 * i..2 * i + 2 {
                found[i] = _mm512_add_ps(
                    found[i],
                    scores.raise::<U>(part, c, shifts[i], &seen[i], weights),
                );
            }
        }
    }
    found
}

/// Keys and values of one head, packed for the backward pass.
#[derive(Clone, Copy)]
pub struct Keys {
    /// Keys as [`Form::Rows`].
    pub rows: *const u32,
    /// Keys as [`Kernel::KEYS_FOR_DQ`].
    pub depth: *const u32,
    /// Values as [`Form::Rows`].
    pub values: *const u32,
}

/// Two products side by side: [`ROWS`] rows of `depth` units against 32 columns of
/// [`BACKWARD_QUERIES`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn multiply_two<U: Unit>(
    mut sums: [[[__m512; HALF_BLOCK]; ROWS]; 2],
    depth: usize,
    left: [*const u32; 2],
    right: [*const u32; 2],
) -> [[[__m512; HALF_BLOCK]; ROWS]; 2] {
    // SAFETY: the caller vouches for what the shapes span.
    unsafe {
        for unit in 0..depth {
            for (side, sums) in sums.iter_mut().enumerate() {
                let at = right[side].add(unit * BACKWARD_QUERIES);
                let columns = [_mm512_loadu_ps(at.cast()), _mm512_loadu_ps(at.add(16).cast())];
                for (i, sums) in sums.iter_mut().enumerate() {
                    let value = left[side].add(i * depth + unit).read().cast_signed();
                    let value = _mm512_castsi512_ps(_mm512_set1_epi32(value));
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = U::multiply(*sum, value, column);
                    }
                }
            }
        }
    }
    sums
}
