//! Attention from packed operands, where the processor has AVX512-BF16: the tasks and the memory
//! around the tiles of [`cpu::flash`](crate::cpu::flash).
//!
//! Keys and values of each key head are packed once a call and serve the whole group of query
//! heads. A task of the forward pass is a block of queries of one head; a task of the backward pass
//! has a share of the query blocks of all heads of a group, chosen so that shares are alike in
//! work, and sums the gradients of keys and values in a buffer of its own.
//!
//! Figures: `docs/measurements.md`, "Attention".

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::{Keys, Sizes};
use crate::cpu::crew::{self, Each};
use crate::cpu::flash::{
    self, BACKWARD_QUERIES, FORWARD_QUERIES, Form, KEYS, Kernel, Queries, Unit, packed_units,
    padded,
};
use crate::cpu::{Shared, math};

/// A cache line; a buffer of lines is aligned for vectors.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

const NOTHING: Line = Line([0; 16]);

thread_local! {
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with this thread's scratch of at least so many units.
fn with_scratch<R>(units: usize, work: impl FnOnce(*mut u32) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() * 16 < units {
            scratch.resize(units.div_ceil(16), NOTHING);
        }
        work(scratch.as_mut_ptr().cast())
    })
}

/// Rows of every batch row and key head, packed in one form: `[b·hkv]` runs of the same length.
struct Packed {
    lines: Vec<Line>,
    /// Lines of a run.
    run: usize,
}

impl Packed {
    fn new<U: Unit>(x: Keys, form: Form, Sizes { b, s, hkv, d, .. }: Sizes) -> Self {
        let whole = s.next_multiple_of(KEYS);
        let run = packed_units::<U>(whole, d).div_ceil(16);
        let mut lines = Vec::with_capacity(b * hkv * run);
        let room = &mut lines.spare_capacity_mut()[..b * hkv * run];
        room.par_chunks_mut(run.max(1)).enumerate().each(|(index, to)| {
            let from = x.at(index / hkv, 0, index % hkv).as_ptr();
            // SAFETY: the unit was found (`attention` asks); `x` holds the rows of this head hkv·d
            // apart, and the run has its length.
            unsafe { flash::pack::<U>(form, from, hkv * d, (s, whole), d, to.as_mut_ptr().cast()) };
        });
        // SAFETY: `pack` has written every line.
        unsafe { lines.set_len(b * hkv * run) };
        Self { lines, run }
    }

    /// The run of one batch row and key head.
    fn at(&self, index: usize) -> *const u32 {
        self.lines[index * self.run..(index + 1) * self.run].as_ptr().cast()
    }
}

/// What each query sees: [`crate::Attention::first_keys`].
fn queries<'a>(
    first: &'a [usize],
    row: usize,
    rows: &Range<usize>,
    scale: f32,
    Sizes { t, s, h, d, .. }: Sizes,
) -> Queries<'a> {
    let first = &first[row * t + rows.start..row * t + rows.end];
    Queries { d, scale, first, last: s - t + rows.start, stride: h * d }
}

/// The result `[b, t, h·d]` and the logarithms of the denominators `[b, h, t]`, to base 2.
///
/// The processor has what the kernel is made of, and `scale` is positive.
pub(super) fn forward<K: Kernel>(
    q: &[f32],
    k: Keys,
    v: Keys,
    first: &[usize],
    scale: f32,
    sizes: Sizes,
) -> (Vec<f32>, Vec<f32>) {
    let Sizes { b, t, h, hkv, d, .. } = sizes;
    let keys = Packed::new::<K::Unit>(k, Form::Columns { width: KEYS }, sizes);
    let values = Packed::new::<K::Unit>(v, Form::Depth, sizes);
    // SAFETY: the tasks write every query of every head.
    let mut y = unsafe { crate::cpu::uninit(b * t * h * d) };
    let mut log_sums = vec![0f32; b * h * t];
    let (out, sums) = (Shared::new(&mut y), Shared::new(&mut log_sums));
    let blocks = t.div_ceil(FORWARD_QUERIES);
    let task = |index: usize| {
        // The last blocks see the most keys: they go first.
        let (block, head, row) =
            (blocks - 1 - index % blocks, index / blocks % h, index / blocks / h);
        let rows = block * FORWARD_QUERIES..((block + 1) * FORWARD_QUERIES).min(t);
        let group = row * hkv + head / (h / hkv);
        let at = ((row * t + rows.start) * h + head) * d;
        let mine = (row * h + head) * t;
        with_scratch(K::forward_scratch(d), |scratch| {
            // SAFETY: each task has its own queries of its own head; the packed operands hold all
            // keys up to a whole tile.
            unsafe {
                K::forward(
                    &queries(first, row, &rows, scale, sizes),
                    q[at..].as_ptr(),
                    keys.at(group),
                    values.at(group),
                    out.at(at),
                    sums.slice(mine + rows.start..mine + rows.end),
                    scratch,
                );
            }
        });
    };
    crew::run(b * h * blocks, task);
    (y, log_sums)
}

/// What the backward pass reads of the forward pass.
#[derive(Clone, Copy)]
pub(super) struct Kept<'a> {
    /// `[b, t, h, d]`
    pub q: &'a [f32],
    /// `[b, s, hkv, d]`
    pub k: &'a [f32],
    /// `[b, s, hkv, d]`
    pub v: &'a [f32],
    /// `[b, t, h·d]`
    pub y: &'a [f32],
    /// From [`forward`].
    pub log_sums: &'a [f32],
}

/// The gradients of q, k and v.
pub(super) fn gradients<K: Kernel>(
    kept: Kept,
    dy: &[f32],
    first: &[usize],
    scale: f32,
    sizes: Sizes,
) -> [Vec<f32>; 3] {
    let Sizes { b, t, s, h, hkv, d } = sizes;
    let Kept { q, k, v, y, log_sums } = kept;
    let key_rows = Packed::new::<K::Unit>(Keys::new(k, sizes), Form::Rows, sizes);
    let key_depth = Packed::new::<K::Unit>(Keys::new(k, sizes), K::KEYS_FOR_DQ, sizes);
    let value_rows = Packed::new::<K::Unit>(Keys::new(v, sizes), Form::Rows, sizes);
    // y · dy of each query, `[b, h, t]`: once, for every stretch of keys. Read as it lies, all
    // heads of a query.
    let mut along = vec![0f32; b * h * t];
    let products = Shared::new(&mut along);
    crew::run((b * t).div_ceil(BACKWARD_QUERIES), |block| {
        for index in block * BACKWARD_QUERIES..((block + 1) * BACKWARD_QUERIES).min(b * t) {
            let (row, query) = (index / t, index % t);
            for head in 0..h {
                let at = (index * h + head) * d;
                // SAFETY: each task has its own queries.
                unsafe {
                    *products.at((row * h + head) * t + query) =
                        math::dot(&y[at..at + d], &dy[at..at + d])
                };
            }
        }
    });
    let mut dq = vec![0f32; q.len()];
    let out = Shared::new(&mut dq);
    let (group, blocks, wide) = (h / hkv, t.div_ceil(BACKWARD_QUERIES), padded(d));
    let shares = shares(b * hkv, blocks);
    let task = |index: usize| {
        let (share, head_group) = (index % shares, index / shares);
        let row = head_group / hkv;
        let keys = flash::Keys {
            rows: key_rows.at(head_group),
            depth: key_depth.at(head_group),
            values: value_rows.at(head_group),
        };
        let size = s.next_multiple_of(KEYS) * wide;
        let (mut dk, mut dv) = (vec![0f32; size], vec![0f32; size]);
        // A stretch of keys at a time, so that what is packed of them and their gradients stay in
        // the second-level cache.
        let stretch = K::STRETCH;
        let mine: Vec<Range<usize>> = share_of(share, shares, blocks)
            .map(|block| block * BACKWARD_QUERIES..((block + 1) * BACKWARD_QUERIES).min(t))
            .collect();
        let units = flash::query_units::<K::Unit>(d);
        let mut packed = vec![NOTHING; mine.len() * units.div_ceil(16)];
        for head in head_group % hkv * group..(head_group % hkv + 1) * group {
            for (rows, packed) in mine.iter().zip(packed.chunks_exact_mut(units.div_ceil(16))) {
                let at = ((row * t + rows.start) * h + head) * d;
                let queries = queries(first, row, rows, scale, sizes);
                // SAFETY: as in `forward`; there is room for a block's units.
                unsafe {
                    flash::pack_queries::<K::Unit>(
                        &queries,
                        q[at..].as_ptr(),
                        dy[at..].as_ptr(),
                        packed.as_mut_ptr().cast(),
                    );
                }
            }
            for from in (0..s).step_by(stretch) {
                for (rows, packed) in mine.iter().zip(packed.chunks_exact(units.div_ceil(16))) {
                    if s - t + rows.end <= from {
                        continue;
                    }
                    let at = ((row * t + rows.start) * h + head) * d;
                    let of = (row * h + head) * t;
                    with_scratch(K::backward_scratch(d), |scratch| {
                        // SAFETY: as in `forward`; dk and dv hold every tile of keys.
                        unsafe {
                            K::backward(
                                &queries(first, row, rows, scale, sizes),
                                packed.as_ptr().cast(),
                                (keys, from..from + stretch),
                                &along[of + rows.start..of + rows.end],
                                &log_sums[of + rows.start..of + rows.end],
                                out.at(at),
                                (dk.as_mut_ptr(), dv.as_mut_ptr()),
                                scratch,
                            );
                        }
                    });
                }
            }
        }
        (dk, dv)
    };
    let mut sums = vec![(Vec::new(), Vec::new()); b * hkv * shares];
    sums.par_iter_mut().enumerate().each(|(index, sums)| *sums = task(index));
    // [b, s, hkv, d], summed over the shares in their order, so that a run repeats bit for bit
    let (mut dk, mut dv) = (vec![0f32; k.len()], vec![0f32; v.len()]);
    dk.par_chunks_mut((hkv * d).max(1)).zip(dv.par_chunks_mut((hkv * d).max(1))).enumerate().each(
        |(index, (dk, dv))| {
            let (row, key) = (index / s, index % s);
            for head in 0..hkv {
                let (dk, dv) =
                    (&mut dk[head * d..(head + 1) * d], &mut dv[head * d..(head + 1) * d]);
                for (part_k, part_v) in &sums[(row * hkv + head) * shares..][..shares] {
                    math::add_scaled(dk, scale, &part_k[key * wide..key * wide + d]);
                    math::add_scaled(dv, 1., &part_v[key * wide..key * wide + d]);
                }
            }
        },
    );
    [dq, dk, dv]
}

/// Into how many shares the query blocks of a group of heads go: enough tasks to even out, and as
/// many for each thread.
fn shares(groups: usize, blocks: usize) -> usize {
    let threads = crew::threads();
    let mut shares = (4 * threads).div_ceil(groups.max(1)).max(1);
    while !(groups * shares).is_multiple_of(threads) {
        shares += 1;
    }
    shares.min(blocks.max(1))
}

/// The query blocks of a share. They are dealt out from the last, which see the most keys, back and
/// forth.
fn share_of(share: usize, shares: usize, blocks: usize) -> impl Iterator<Item = usize> {
    (0..blocks).rev().enumerate().filter_map(move |(dealt, block)| {
        let (round, place) = (dealt / shares, dealt % shares);
        let place = if round.is_multiple_of(2) { place } else { shares - 1 - place };
        (place == share).then_some(block)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_in_one_share_and_shares_are_alike() {
        for (shares, blocks) in [(1, 5), (4, 32), (3, 7), (4, 3)] {
            let mut all: Vec<usize> =
                (0..shares).flat_map(|share| share_of(share, shares, blocks)).collect();
            all.sort_unstable();
            assert_eq!(all, (0..blocks).collect::<Vec<_>>());
        }
        let work: Vec<usize> =
            (0..4).map(|share| share_of(share, 4, 32).map(|block| block + 1).sum()).collect();
        assert!(work.iter().all(|each| *each == work[0]), "{work:?}");
    }
}
