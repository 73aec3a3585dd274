//! Causal grouped-query attention in tiles, after FlashAttention-2
//! (<https://arxiv.org/abs/2307.08691>).
//!
//! The forward pass keeps the result and one number a query (the logarithm of its softmax's
//! denominator); the backward pass computes the scores again, tile by tile. Nothing of size `t × s`
//! ever exists. Tiles beyond the diagonal or before the first key that a query sees (padding, a
//! sliding window, another text of a packed row) are not visited. Keys and values are read where
//! they lie: no head is repeated, and nothing is transposed but keys (and values, backward) into
//! panels for the product's inner loop.

#[cfg(target_arch = "x86_64")]
mod packed;

use std::ops::Range;

use candle_core::{Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::cpu::crew::{self, Each};
use crate::cpu::gemm::Tile;
use crate::cpu::{Shared, Strided, Values, math, multiversion};
#[cfg(target_arch = "x86_64")]
use crate::cpu::{amx, flash};
use crate::operation::{Buffer, Operation, Slot, node};
use crate::profile;
#[cfg(target_arch = "x86_64")]
use packed::Kept;

/// Queries of a tile.
const QUERIES: usize = 64;
/// Keys of a panel, the width of the matrix product's micro-kernel.
const PANEL: usize = 48;
/// Keys of a tile: 64 x 96 scores take 24 KiB, so they stay in the first-level cache.
const KEYS: usize = 2 * PANEL;

/// The sizes of one call.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Rows of the batch.
    pub b: usize,
    /// Queries a row.
    pub t: usize,
    /// Keys a row.
    pub s: usize,
    /// Heads of the queries.
    pub h: usize,
    /// Heads of the keys and values.
    pub hkv: usize,
    /// Size of a head.
    pub d: usize,
}

/// See [`crate::attention`].
///
/// `first` is [`crate::Attention::first_keys`], `bf16` what products are computed in.
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    (scale, bf16): (f32, bool),
    first: Vec<usize>,
    sizes: Sizes,
) -> Result<Tensor> {
    let tracked = q.track_op() || k.track_op() || v.track_op();
    // A key-value cache comes as the filled part of a larger buffer: read it there.
    let rows = |x: &Tensor| {
        if !tracked && Keys::fits(x.layout(), sizes) { Ok(x.clone()) } else { x.contiguous() }
    };
    let (q, k, v) = (q.contiguous()?, rows(k)?, rows(v)?);
    let mut op =
        Flash { scale, first, sizes, log_sums: Vec::new(), tiles: Tiles::of(scale, bf16, sizes) };
    let y = {
        let _time = profile::time("attention", "forward");
        let (keys, values) = (Strided::of(&k)?, Strided::of(&v)?);
        let rows = |x: &Tensor| x.layout().stride().first().copied().unwrap_or(0);
        let keys = Keys { data: &keys, row: rows(&k), sizes };
        let values = Keys { data: &values, row: rows(&v), sizes };
        let q = Values::of(&q)?;
        let (y, log_sums) = match op.tiles {
            Tiles::Plain => op.forward(&q, keys, values),
            #[cfg(target_arch = "x86_64")]
            Tiles::Full => {
                packed::forward::<flash::Full>(&q, keys, values, &op.first, scale, sizes)
            }
            #[cfg(target_arch = "x86_64")]
            Tiles::Half => {
                packed::forward::<flash::Half>(&q, keys, values, &op.first, scale, sizes)
            }
            #[cfg(target_arch = "x86_64")]
            Tiles::Amx => {
                packed::forward::<flash::amx::Amx>(&q, keys, values, &op.first, scale, sizes)
            }
        };
        op.log_sums = log_sums;
        y
    };
    node(op, &[&q, &k, &v], y, Shape::from((sizes.b, sizes.t, sizes.h * sizes.d)))
}

/// Keys or values: each batch row's `[s, hkv, d]` is contiguous, the rows lie `row` apart.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    data: &'a [f32],
    row: usize,
    sizes: Sizes,
}

impl<'a> Keys<'a> {
    /// Of a contiguous tensor.
    pub(crate) fn new(data: &'a [f32], sizes: Sizes) -> Self {
        Self { data, row: sizes.s * sizes.hkv * sizes.d, sizes }
    }

    /// Whether a tensor lies so.
    fn fits(layout: &Layout, sizes: Sizes) -> bool {
        let Sizes { hkv, d, .. } = sizes;
        match *layout.stride() {
            [_, key, head, 1] => key == hkv * d && head == d,
            [_, key, 1] => key == hkv * d,
            _ => false,
        }
    }

    /// From the first value of one key of one head on.
    pub(crate) fn at(&self, row: usize, key: usize, head: usize) -> &'a [f32] {
        &self.data[row * self.row + (key * self.sizes.hkv + head) * self.sizes.d..]
    }
}

/// The form of the tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tiles {
    /// Of this file.
    Plain,
    /// From packed operands in f32.
    #[cfg(target_arch = "x86_64")]
    Full,
    /// From packed operands in bf16, by vectors.
    #[cfg(target_arch = "x86_64")]
    Half,
    /// From packed operands in bf16, on AMX.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

impl Tiles {
    fn of(scale: f32, bf16: bool, sizes: Sizes) -> Self {
        #[cfg(target_arch = "x86_64")]
        if sizes.t > 1
            && scale > 0.
            && scale.is_finite()
            && let Some(unit) = amx::unit()
        {
            return match (bf16, unit) {
                (false, _) => Self::Full,
                (true, amx::Unit::Avx512) => Self::Half,
                (true, amx::Unit::Amx) => Self::Amx,
            };
        }
        Self::Plain
    }
}

struct Flash {
    scale: f32,
    /// The first key that each query sees, `[b, t]`.
    first: Vec<usize>,
    sizes: Sizes,
    /// `[b, h, t]`; infinite for a query without keys, whose weights are then all zero. Packed
    /// tiles have them to base 2.
    log_sums: Vec<f32>,
    tiles: Tiles,
}

impl Operation for Flash {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn reads_input(&self, _: usize) -> bool {
        true
    }

    fn reads_output(&self) -> bool {
        true
    }

    fn backward(&self, inputs: &[Tensor], y: &Tensor, dy: Buffer, into: &mut [Slot]) -> Result<()> {
        let [q, k, v] = inputs else { return Ok(()) };
        let (q, k, v, y) = (&Values::of(q)?, &Values::of(k)?, &Values::of(v)?, &Values::of(y)?);
        #[cfg(target_arch = "x86_64")]
        let kept = Kept { q, k, v, y, log_sums: &self.log_sums };
        let gradients = match self.tiles {
            Tiles::Plain => self.gradients(q, k, v, y, &dy),
            #[cfg(target_arch = "x86_64")]
            Tiles::Full => {
                packed::gradients::<flash::Full>(kept, &dy, &self.first, self.scale, self.sizes)
            }
            #[cfg(target_arch = "x86_64")]
            Tiles::Half => {
                packed::gradients::<flash::Half>(kept, &dy, &self.first, self.scale, self.sizes)
            }
            #[cfg(target_arch = "x86_64")]
            Tiles::Amx => {
                packed::gradients::<flash::amx::Amx>(kept, &dy, &self.first, self.scale, self.sizes)
            }
        };
        for (slot, gradient) in into.iter_mut().zip(gradients) {
            if slot.wanted() {
                slot.add(gradient);
            }
        }
        Ok(())
    }
}

/// Keys (or values) of every row and head, transposed into panels `[b, hkv, panels, d, 48]`.
struct Panels {
    data: Vec<f32>,
    sizes: Sizes,
}

impl Panels {
    fn new(x: Keys, sizes: Sizes) -> Self {
        let Sizes { b, s, hkv, d, .. } = sizes;
        let count = s.div_ceil(PANEL);
        let mut data = vec![0f32; b * hkv * count * d * PANEL];
        data.par_chunks_mut((count * d * PANEL).max(1)).enumerate().each(|(index, out)| {
            let (row, head) = (index / hkv, index % hkv);
            for (panel, out) in out.chunks_exact_mut(d * PANEL).enumerate() {
                let keys = PANEL.min(s - panel * PANEL);
                let from = x.at(row, panel * PANEL, head);
                #[cfg(target_arch = "x86_64")]
                if crate::cpu::avx512::available() {
                    // SAFETY: `from` holds `keys` rows of d values hkv·d apart, `out` d rows of 48.
                    unsafe {
                        crate::cpu::avx512::pack_transposed(
                            d,
                            keys,
                            from.as_ptr(),
                            hkv * d,
                            out.as_mut_ptr(),
                            PANEL,
                        );
                    }
                    continue;
                }
                for key in 0..keys {
                    for (i, value) in from[key * hkv * d..key * hkv * d + d].iter().enumerate() {
                        out[i * PANEL + key] = *value;
                    }
                }
            }
        });
        Self { data, sizes }
    }

    /// The panel that begins with key `key`, a multiple of 48.
    fn at(&self, row: usize, head: usize, key: usize) -> &[f32] {
        let Sizes { s, hkv, d, .. } = self.sizes;
        let count = s.div_ceil(PANEL);
        &self.data[((row * hkv + head) * count + key / PANEL) * d * PANEL..][..d * PANEL]
    }
}

/// The queries `rows` of one head of one batch row.
struct Place {
    row: usize,
    head: usize,
    rows: Range<usize>,
}

impl Flash {
    /// `scores = factor · a · panelsᵀ` for the queries at `place` against the keys `keys`.
    fn scores(
        &self,
        scores: &mut [f32],
        a: &[f32],
        panels: &Panels,
        place: &Place,
        keys: &Range<usize>,
        factor: f32,
    ) {
        let Place { row, head, rows } = place;
        let Sizes { t, h, hkv, d, .. } = self.sizes;
        let queries = &a[((row * t + rows.start) * h + head) * d..];
        let mut key = keys.start;
        while key < keys.end {
            let n = PANEL.min(keys.end - key);
            let panel = panels.at(*row, head / (h / hkv), key);
            // SAFETY: `queries` holds the block's rows h·d apart, the panel d rows of 48, `scores`
            // 64 rows of 96.
            unsafe {
                Tile {
                    m: rows.len(),
                    n,
                    k: d,
                    a: (queries.as_ptr(), h * d, 1),
                    b: (panel.as_ptr(), PANEL),
                    c: (scores[key - keys.start..].as_mut_ptr(), KEYS),
                    alpha: factor,
                    accumulate: false,
                }
                .compute();
            }
            key += n;
        }
    }

    /// The tiles of keys that the queries `rows` of a batch row may see.
    fn tiles(&self, row: usize, rows: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let Sizes { t, s, .. } = self.sizes;
        let end = s - t + rows.end;
        let first = self.first[row * t + rows.start].min(end) / PANEL * PANEL;
        (first..end).step_by(KEYS).map(move |from| from..(from + KEYS).min(end))
    }

    /// The keys of a tile that a query sees, counted from the tile's first.
    fn seen(&self, row: usize, query: usize, keys: &Range<usize>) -> Range<usize> {
        let Sizes { t, s, .. } = self.sizes;
        let from = self.first[row * t + query].clamp(keys.start, keys.end);
        let to = (s - t + query + 1).clamp(from, keys.end);
        from - keys.start..to - keys.start
    }

    fn forward(&self, q: &[f32], k: Keys, v: Keys) -> (Vec<f32>, Vec<f32>) {
        let Sizes { b, t, s, h, hkv, d } = self.sizes;
        let mut y = vec![0f32; b * t * h * d];
        let mut log_sums = vec![f32::INFINITY; b * h * t];
        let (out, sums) = (Shared::new(&mut y), Shared::new(&mut log_sums));
        if t == 1 {
            let one = |index: usize| {
                let (row, head) = (index / h, index % h);
                // SAFETY: each task has its own head's result.
                let y = unsafe { out.slice(index * d..(index + 1) * d) };
                self.decode(y, &q[index * d..(index + 1) * d], k, v, row, head / (h / hkv));
            };
            if b * h * s * d < 1 << 18 {
                (0..b * h).for_each(one);
            } else {
                crew::run(b * h, one);
            }
            return (y, log_sums);
        }
        let panels = Panels::new(k, self.sizes);
        let blocks = t.div_ceil(QUERIES);
        let task = |index: usize| {
            // The last blocks see the most keys: they go first.
            let (block, head, row) =
                (blocks - 1 - index % blocks, index / blocks % h, index / blocks / h);
            let rows = block * QUERIES..((block + 1) * QUERIES).min(t);
            let place = Place { row, head, rows: rows.clone() };
            let mut scores = [0f32; QUERIES * KEYS];
            let mut most = [f32::NEG_INFINITY; QUERIES];
            let mut sum = [0f32; QUERIES];
            for keys in self.tiles(row, &rows) {
                self.scores(&mut scores, q, &panels, &place, &keys, self.scale);
                for (i, query) in rows.clone().enumerate() {
                    let seen = self.seen(row, query, &keys);
                    let scores = &mut scores[i * KEYS..(i + 1) * KEYS];
                    let rescale = softmax_step(scores, seen, keys.len(), &mut most[i], &mut sum[i]);
                    if rescale != 1. {
                        let at = ((row * t + query) * h + head) * d;
                        // SAFETY: each task has its own queries of its own head.
                        math::scale(unsafe { out.slice(at..at + d) }, rescale);
                    }
                }
                let values = v.at(row, keys.start, head / (h / hkv));
                // SAFETY: as above; `values` holds the tile's rows hkv·d apart.
                unsafe {
                    Tile {
                        m: rows.len(),
                        n: d,
                        k: keys.len(),
                        a: (scores.as_ptr(), KEYS, 1),
                        b: (values.as_ptr(), hkv * d),
                        c: (out.at(((row * t + rows.start) * h + head) * d), h * d),
                        alpha: 1.,
                        accumulate: true,
                    }
                    .compute();
                }
            }
            for (i, query) in rows.enumerate() {
                if sum[i] > 0. {
                    let at = ((row * t + query) * h + head) * d;
                    // SAFETY: each task has its own queries of its own head, in both buffers.
                    unsafe {
                        math::scale(out.slice(at..at + d), 1. / sum[i]);
                        *sums.at((row * h + head) * t + query) = most[i] + sum[i].ln();
                    }
                }
            }
        };
        crew::run(b * h * blocks, task);
        (y, log_sums)
    }

    /// One query against all keys: bound by memory, so nothing is packed.
    fn decode(&self, y: &mut [f32], q: &[f32], k: Keys, v: Keys, row: usize, head: usize) {
        let Sizes { s, d, .. } = self.sizes;
        let start = self.first[row].min(s);
        let mut weights: Vec<f32> =
            (start..s).map(|key| math::dot(q, &k.at(row, key, head)[..d]) * self.scale).collect();
        if weights.is_empty() {
            return;
        }
        let most = math::max(&weights);
        let sum = math::exp_sum(&mut weights, most);
        for (key, weight) in (start..s).zip(&weights) {
            math::add_scaled(y, weight / sum, &v.at(row, key, head)[..d]);
        }
    }

    fn gradients(&self, q: &[f32], k: &[f32], v: &[f32], y: &[f32], dy: &[f32]) -> [Vec<f32>; 3] {
        let Sizes { b, t, s, h, hkv, d } = self.sizes;
        let log_sums = &self.log_sums;
        let all_keys = Keys::new(k, self.sizes);
        let key_panels = Panels::new(all_keys, self.sizes);
        let value_panels = Panels::new(Keys::new(v, self.sizes), self.sizes);
        let mut dq = vec![0f32; q.len()];
        let out = Shared::new(&mut dq);
        let blocks = t.div_ceil(QUERIES);
        // One task has a head's queries, all or a part of them, and sums of its own for the keys
        // and values.
        let parts = (4 * crew::threads()).div_ceil((b * h).max(1)).clamp(1, blocks.max(1));
        let task = |index: usize| {
            let (part, head, row) = (index % parts, index / parts % h, index / parts / h);
            let group = head / (h / hkv);
            let mine = blocks * part / parts..blocks * (part + 1) / parts;
            let seen_keys = (s - t + (mine.end * QUERIES).min(t)) * d;
            let (mut dk, mut dv) = (vec![0f32; seen_keys], vec![0f32; seen_keys]);
            let mut weights = [0f32; QUERIES * KEYS];
            let mut slopes = [0f32; QUERIES * KEYS];
            let mut along = [0f32; QUERIES];
            for block in mine {
                let rows = block * QUERIES..((block + 1) * QUERIES).min(t);
                for (i, query) in rows.clone().enumerate() {
                    let at = ((row * t + query) * h + head) * d;
                    along[i] = math::dot(&y[at..at + d], &dy[at..at + d]);
                }
                let first = ((row * t + rows.start) * h + head) * d;
                for keys in self.tiles(row, &rows) {
                    let place = Place { row, head, rows: rows.clone() };
                    self.scores(&mut weights, q, &key_panels, &place, &keys, self.scale);
                    self.scores(&mut slopes, dy, &value_panels, &place, &keys, 1.);
                    for (i, query) in rows.clone().enumerate() {
                        let seen = self.seen(row, query, &keys);
                        softmax_backward(
                            &mut weights[i * KEYS..(i + 1) * KEYS],
                            &mut slopes[i * KEYS..(i + 1) * KEYS],
                            seen,
                            keys.len(),
                            (log_sums[(row * h + head) * t + query], along[i], self.scale),
                        );
                    }
                    let (m, n) = (rows.len(), keys.len());
                    let tile = Tile {
                        m: n,
                        n: d,
                        k: m,
                        a: (weights.as_ptr(), 1, KEYS),
                        b: (dy[first..].as_ptr(), h * d),
                        c: (dv[keys.start * d..].as_mut_ptr(), d),
                        alpha: 1.,
                        accumulate: true,
                    };
                    // SAFETY: weights and slopes hold 64 rows of 96; the queries' rows lie h·d
                    // apart, the keys' hkv·d; dk and dv hold every key that this task sees; no
                    // other task has these queries of this head.
                    unsafe {
                        // dv += weightsᵀ · dy
                        tile.compute();
                        // dk += slopesᵀ · q
                        Tile {
                            a: (slopes.as_ptr(), 1, KEYS),
                            b: (q[first..].as_ptr(), h * d),
                            c: (dk[keys.start * d..].as_mut_ptr(), d),
                            ..tile
                        }
                        .compute();
                        // dq += slopes · k
                        Tile {
                            m,
                            n: d,
                            k: n,
                            a: (slopes.as_ptr(), KEYS, 1),
                            b: (all_keys.at(row, keys.start, group).as_ptr(), hkv * d),
                            c: (out.at(first), h * d),
                            alpha: 1.,
                            accumulate: true,
                        }
                        .compute();
                    }
                }
            }
            (dk, dv)
        };
        let mut sums = vec![(Vec::new(), Vec::new()); b * h * parts];
        sums.par_iter_mut().enumerate().each(|(index, sums)| *sums = task(index));
        // [b, s, hkv, d], summed over each group's heads in order, so that a run repeats bit for
        // bit
        let (mut dk, mut dv) = (vec![0f32; k.len()], vec![0f32; v.len()]);
        let group = h / hkv * parts;
        dk.par_chunks_mut((s * hkv * d).max(1))
            .zip(dv.par_chunks_mut((s * hkv * d).max(1)))
            .zip(sums.par_chunks((hkv * group).max(1)))
            .each(|((dk, dv), sums)| {
                for (head, sums) in sums.chunks_exact(group).enumerate() {
                    for (part_k, part_v) in sums {
                        gather(dk, part_k, head * d, hkv * d, d);
                        gather(dv, part_v, head * d, hkv * d, d);
                    }
                }
            });
        [dq, dk, dv]
    }
}

/// One step of the running softmax on a query's scores against one tile: leaves `e^(score − most)`
/// where the query sees and 0 elsewhere, and returns the factor for what was summed before.
fn softmax_step(
    scores: &mut [f32],
    seen: Range<usize>,
    keys: usize,
    most: &mut f32,
    sum: &mut f32,
) -> f32 {
    if seen.is_empty() {
        scores[..keys].fill(0.);
        return 1.;
    }
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::avx512::available() {
        debug_assert!(scores.len() >= keys.next_multiple_of(16));
        // SAFETY: asked the processor; a row has room for a whole tile, and a tile is a multiple of
        // sixteen.
        return unsafe {
            crate::cpu::avx512::softmax_step(
                scores.as_mut_ptr(),
                (seen.start, seen.end),
                keys,
                most,
                sum,
            )
        };
    }
    let visible = &mut scores[seen.clone()];
    let highest = most.max(math::max(visible));
    let new = math::exp_sum(visible, highest);
    scores[..seen.start].fill(0.);
    scores[seen.end..keys].fill(0.);
    let rescale = math::exp(*most - highest);
    *sum = *sum * rescale + new;
    *most = highest;
    rescale
}

/// Turns a query's scores into its weights, and the weights' gradients into the scores'.
fn softmax_backward(
    weights: &mut [f32],
    slopes: &mut [f32],
    seen: Range<usize>,
    keys: usize,
    (log_sum, along, scale): (f32, f32, f32),
) {
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::avx512::available() {
        debug_assert!(weights.len().min(slopes.len()) >= keys.next_multiple_of(16));
        // SAFETY: as in `softmax_step`.
        return unsafe {
            crate::cpu::avx512::softmax_backward(
                weights.as_mut_ptr(),
                slopes.as_mut_ptr(),
                (seen.start, seen.end),
                keys,
                log_sum,
                along,
                scale,
            );
        };
    }
    softmax_backward_plain(
        &mut weights[seen.clone()],
        &mut slopes[seen.clone()],
        log_sum,
        along,
        scale,
    );
    for hidden in [&mut *weights, slopes] {
        hidden[..seen.start].fill(0.);
        hidden[seen.end..keys].fill(0.);
    }
}

multiversion! {
    /// The keys that the query sees.
    pub(crate) fn softmax_backward_plain(weights: &mut [f32], slopes: &mut [f32], log_sum: f32, along: f32, scale: f32) {
        for (weight, slope) in weights.iter_mut().zip(slopes) {
            *weight = math::exp(*weight - log_sum);
            *slope = *weight * (*slope - along) * scale;
        }
    }
}

multiversion! {
    /// Adds rows of `d` values that lie side by side to rows that lie `stride` apart.
    pub(crate) fn gather(to: &mut [f32], from: &[f32], offset: usize, stride: usize, d: usize) {
        for (key, from) in from.chunks_exact(d).enumerate() {
            let at = offset + key * stride;
            for (to, from) in to[at..at + d].iter_mut().zip(from) {
                *to += from;
            }
        }
    }
}
