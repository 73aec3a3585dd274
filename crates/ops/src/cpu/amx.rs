//! The block kernels of the bf16 matrix product: 32 x 32 results from packed operands (see
//! [`super::half`]).
//!
//! With AMX, four tiles of 16 x 16 results take two tiles of each operand per 32 steps of depth:
//! one load an instruction, which the first- and second-level caches sustain. Without AMX the same
//! packed operands go through `vdpbf16ps`. The intrinsics of AMX are unstable, hence the assembly.
//! Figures: `docs/measurements.md`, "Matrix products".

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::{Level, Shared};

/// What multiplies bf16 on this processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// AMX tiles.
    Amx,
    /// AVX512-BF16.
    Avx512,
}

/// The best unit, found once; `None`: bf16 is widened to f32. `TUNEBOOK_SIMD` (`avx512bf16`,
/// `avx512`, and what [`super::level`] knows) asks for less.
pub fn unit() -> Option<Unit> {
    static UNIT: OnceLock<Option<Unit>> = OnceLock::new();
    *UNIT.get_or_init(|| {
        let wish = std::env::var("TUNEBOOK_SIMD").unwrap_or_default();
        if super::level() != Level::Avx512
            || wish == "avx512"
            || !std::is_x86_feature_detected!("avx512bf16")
        {
            return None;
        }
        Some(if wish != "avx512bf16" && has_amx() && permitted() {
            Unit::Amx
        } else {
            Unit::Avx512
        })
    })
}

fn has_amx() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    // The highest leaf is known to reach 7: AVX-512 was found there.
    let leaf = __cpuid_count(7, 0);
    leaf.edx & BF16 != 0 && leaf.edx & TILE != 0
}

/// Asks Linux for the tiles' state, which a process does not have by itself. All threads started
/// later or before get it.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call changes what this process may use, no memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

#[repr(C, align(64))]
struct Config([u8; 64]);

/// Eight tiles of 16 rows of 64 bytes.
static CONFIG: Config = {
    let mut bytes = [0u8; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = 16;
        tile += 1;
    }
    Config(bytes)
};

/// The tiles of this thread, in use until this is dropped.
pub struct Tiles(Unit);

impl Tiles {
    /// Sets them up, where the unit has any.
    pub fn new(unit: Unit) -> Self {
        if unit == Unit::Amx {
            // SAFETY: `unit` found the instructions and got the permission; the configuration is a
            // valid one.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly)) };
        }
        Self(unit)
    }

    /// `c = a · b (+ c)` for 32 x 32 results over `32 · steps` of depth. `a` points to two groups
    /// of 16 rows, `b` to two of 16 columns, each group `PARTS · steps` KiB. In three parts what
    /// lies from `ahead` on is meanwhile brought into the second-level cache (any address will do),
    /// and where that ended is returned.
    ///
    /// # Safety
    /// The pointers are valid for that, `c` for 32 rows of 32 values `ldc` apart. Three parts take
    /// AMX.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn block<const PARTS: usize>(
        &self,
        a: *const u16,
        b: *const u16,
        steps: usize,
        c: *mut f32,
        ldc: usize,
        add: bool,
        ahead: *const u16,
    ) -> *const u16 {
        let side = |first: *const u16| {
            let second = first.wrapping_add(512 * PARTS * steps);
            Side { first, second, row: 64, step: 1024 * PARTS }
        };
        let product = |a, b| Product { a, b, steps, c, ldc, add };
        // SAFETY: the caller's promise; a `Tiles` exists only where the instructions do.
        unsafe {
            match (self.0, PARTS) {
                (_, 3) => return product(side(a), side(b)).compute_split(ahead),
                (Unit::Amx, _) => product(side(a), side(b)).compute(),
                (Unit::Avx512, _) => avx512_block(a, b, steps, c, ldc, add),
            }
            ahead
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        if self.0 == Unit::Amx {
            // SAFETY: as in `new`.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }
}

/// Asks for the 32 x 32 results at `row` and `column` to come into the cache to be written, as far
/// as they lie in the `m · n` ones.
pub fn prefetch_block(c: Shared, (m, n): (usize, usize), (row, column): (usize, usize)) {
    for row in row..(row + 32).min(m) {
        // SAFETY: the place lies in the results, and a prefetch neither reads nor writes.
        unsafe {
            let at = c.at(row * n + column);
            _mm_prefetch::<_MM_HINT_ET0>(at.cast());
            _mm_prefetch::<_MM_HINT_ET0>(at.wrapping_add(16).cast());
        }
    }
}

/// Where two tiles of an operand lie.
#[derive(Clone, Copy)]
pub struct Side {
    /// The first tile's first value.
    pub first: *const u16,
    /// The second's.
    pub second: *const u16,
    /// Bytes from a tile's row to the next.
    pub row: usize,
    /// Bytes from a tile to the one that follows it along the depth.
    pub step: usize,
}

impl Side {
    /// The same operand from so many steps of depth on.
    fn after(self, steps: usize) -> Self {
        let by = steps * self.step;
        Self {
            first: self.first.wrapping_byte_add(by),
            second: self.second.wrapping_byte_add(by),
            ..self
        }
    }
}

/// `c = a · b (+ c)` for 32 x 32 results over `32 · steps` of depth. A tile of `a` has 16 rows of
/// 32 values, a tile of `b` 16 rows of 16 pairs, a pair being two neighbours along the depth. Rows
/// of `c` lie `ldc` apart.
#[derive(Clone, Copy)]
pub struct Product {
    /// Left side.
    pub a: Side,
    /// Right side.
    pub b: Side,
    /// Tiles along the depth.
    pub steps: usize,
    /// The first result.
    pub c: *mut f32,
    /// From a row of results to the next.
    pub ldc: usize,
    /// Whether to add to what is there.
    pub add: bool,
}

// Tile registers are not the compiler's: what one piece of assembly leaves in them the next one
// finds.
impl Product {
    /// Of operands in one part.
    ///
    /// # Safety
    /// The processor has AMX and this thread's [`Tiles`] are set up for it; the pointers are valid
    /// for the shapes.
    #[inline]
    pub unsafe fn compute(self) {
        let Self { mut a, mut b, steps: mut left, c, ldc, add } = self;
        if add && left == 0 {
            return;
        }
        // SAFETY: the caller's promise.
        unsafe {
            if add {
                let below = c.add(16 * ldc);
                // What is added to is loaded between the first step's products: they wait for less
                // (244 and 190 cycles for two steps).
                asm!(
                    "tileloadd tmm4, [{a} + {ar}]",
                    "tileloadd tmm6, [{b} + {br}]",
                    "tileloadd tmm0, [{c} + {l}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b2} + {br}]",
                    "tileloadd tmm1, [{c} + {l} + 64]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{a2} + {ar}]",
                    "tileloadd tmm2, [{d} + {l}]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tileloadd tmm3, [{d} + {l} + 64]",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    a = in(reg) a.first, a2 = in(reg) a.second, b = in(reg) b.first, b2 = in(reg) b.second,
                    ar = in(reg) a.row, br = in(reg) b.row,
                    c = in(reg) c, d = in(reg) below, l = in(reg) 4 * ldc, options(nostack, readonly)
                );
                (a, b, left) = (a.after(1), b.after(1), left - 1);
            } else {
                self.start();
            }
            if left > 0 {
                asm!(
                    "2:",
                    "tileloadd tmm4, [{a} + {ar}]",
                    "tileloadd tmm6, [{b} + {br}]",
                    "tileloadd tmm5, [{a2} + {ar}]",
                    "tileloadd tmm7, [{b2} + {br}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {a}, {astep}",
                    "add {a2}, {astep}",
                    "add {b}, {bstep}",
                    "add {b2}, {bstep}",
                    "dec {n}",
                    "jnz 2b",
                    a = inout(reg) a.first => _, a2 = inout(reg) a.second => _,
                    b = inout(reg) b.first => _, b2 = inout(reg) b.second => _,
                    ar = in(reg) a.row, br = in(reg) b.row, astep = in(reg) a.step, bstep = in(reg) b.step,
                    n = inout(reg) left => _, options(nostack, readonly)
                );
            }
            self.store();
        }
    }

    /// Of operands in three parts, a KiB apart: those six of the nine products that reach into the
    /// 24 bits of an f32, small ones first. The next 832 bytes from `ahead` on are asked for with
    /// each step; where that ended is returned.
    ///
    /// # Safety
    /// As [`Product::compute`].
    unsafe fn compute_split(self, mut ahead: *const u16) -> *const u16 {
        macro_rules! multiply {
            () => {
                concat!(
                    "tdpbf16ps tmm0, tmm4, tmm6\n",
                    "tdpbf16ps tmm1, tmm4, tmm7\n",
                    "tdpbf16ps tmm2, tmm5, tmm6\n",
                    "tdpbf16ps tmm3, tmm5, tmm7\n",
                )
            };
        }
        let Self { a, b, steps, .. } = self;
        // SAFETY: the caller's promise.
        unsafe {
            self.start();
            if steps > 0 {
                asm!(
                    "2:",
                    "prefetcht1 [{p}]", "prefetcht1 [{p} + 64]", "prefetcht1 [{p} + 128]",
                    "tileloadd tmm4, [{a} + {row}]",
                    "tileloadd tmm6, [{b} + {row} + 2048]",
                    "tileloadd tmm5, [{a2} + {row}]",
                    "tileloadd tmm7, [{b2} + {row} + 2048]",
                    multiply!(),
                    "prefetcht1 [{p} + 192]", "prefetcht1 [{p} + 256]",
                    "tileloadd tmm6, [{b} + {row} + 1024]",
                    "tileloadd tmm7, [{b2} + {row} + 1024]",
                    multiply!(),
                    "prefetcht1 [{p} + 320]", "prefetcht1 [{p} + 384]",
                    "tileloadd tmm4, [{a} + {row} + 1024]",
                    "tileloadd tmm5, [{a2} + {row} + 1024]",
                    multiply!(),
                    "prefetcht1 [{p} + 448]", "prefetcht1 [{p} + 512]",
                    "tileloadd tmm6, [{b} + {row}]",
                    "tileloadd tmm7, [{b2} + {row}]",
                    multiply!(),
                    "prefetcht1 [{p} + 576]", "prefetcht1 [{p} + 640]",
                    "tileloadd tmm4, [{a} + {row} + 2048]",
                    "tileloadd tmm5, [{a2} + {row} + 2048]",
                    multiply!(),
                    "prefetcht1 [{p} + 704]", "prefetcht1 [{p} + 768]",
                    "tileloadd tmm4, [{a} + {row}]",
                    "tileloadd tmm5, [{a2} + {row}]",
                    multiply!(),
                    "add {a}, 3072",
                    "add {a2}, 3072",
                    "add {b}, 3072",
                    "add {b2}, 3072",
                    "add {p}, 832",
                    "dec {n}",
                    "jnz 2b",
                    a = inout(reg) a.first => _, a2 = inout(reg) a.second => _,
                    b = inout(reg) b.first => _, b2 = inout(reg) b.second => _,
                    row = in(reg) 64usize, n = inout(reg) steps => _, p = inout(reg) ahead, options(nostack, readonly)
                );
            }
            self.store();
        }
        ahead
    }

    /// Zeros, or what is added to, into the tiles of results.
    #[inline]
    unsafe fn start(self) {
        let Self { c, ldc, add, .. } = self;
        // SAFETY: the caller's promise.
        unsafe {
            if add {
                asm!(
                    "tileloadd tmm0, [{c} + {l}]",
                    "tileloadd tmm1, [{c} + {l} + 64]",
                    "tileloadd tmm2, [{d} + {l}]",
                    "tileloadd tmm3, [{d} + {l} + 64]",
                    c = in(reg) c, d = in(reg) c.add(16 * ldc), l = in(reg) 4 * ldc, options(nostack, readonly)
                );
            } else {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, nomem)
                );
            }
        }
    }

    /// The tiles of results to their place.
    #[inline]
    unsafe fn store(self) {
        let Self { c, ldc, .. } = self;
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "tilestored [{c} + {l}], tmm0",
                "tilestored [{c} + {l} + 64], tmm1",
                "tilestored [{d} + {l}], tmm2",
                "tilestored [{d} + {l} + 64], tmm3",
                c = in(reg) c, d = in(reg) c.add(16 * ldc), l = in(reg) 4 * ldc, options(nostack)
            );
        }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn avx512_block(
    a: *const u16,
    b: *const u16,
    steps: usize,
    c: *mut f32,
    ldc: usize,
    add: bool,
) {
    const ROWS: usize = 8;
    // SAFETY: the caller's promise. The types of bf16 vectors and of integer vectors have one
    // layout.
    unsafe {
        for from in (0..32).step_by(ROWS) {
            let a = a.add(from / 16 * 512 * steps + from % 16 * 32).cast::<i32>();
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            if add {
                for (i, sums) in sums.iter_mut().enumerate() {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = _mm512_loadu_ps(c.add((from + i) * ldc + 16 * j));
                    }
                }
            }
            for step in 0..steps {
                for pair in 0..16 {
                    let at = b.add(512 * step + 32 * pair);
                    let columns: [__m512bh; 2] = [
                        std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(at.cast())),
                        std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(
                            at.add(512 * steps).cast(),
                        )),
                    ];
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let row = _mm512_set1_epi32(*a.add(256 * step + 16 * i + pair));
                        let row = std::mem::transmute::<__m512i, __m512bh>(row);
                        for j in 0..2 {
                            sums[j] = _mm512_dpbf16_ps(sums[j], row, columns[j]);
                        }
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                for (j, sum) in sums.iter().enumerate() {
                    _mm512_storeu_ps(c.add((from + i) * ldc + 16 * j), *sum);
                }
            }
        }
    }
}

/// Packs up to sixteen columns whose elements lie as rows: column `i` begins at `from + i · ld`. In
/// `out` the parts of a step lie one behind the other, a KiB each.
///
/// # Safety
/// AVX512-BF16 is there; `from` spans `columns` runs of `depth` values, `out` `PARTS` KiB for each
/// 32 of depth.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn pack_runs<T: Element, const PARTS: usize>(
    from: *const T,
    ld: usize,
    columns: usize,
    depth: usize,
    out: *mut u16,
) {
    // SAFETY: the caller's promise; what lies beyond depth and columns is masked.
    unsafe {
        for step in 0..depth.div_ceil(32) {
            let left = (depth - 32 * step).min(32);
            let mut squares = [[_mm512_setzero_ps(); 16]; PARTS];
            for i in 0..columns {
                let parts = T::load::<PARTS>(from.add(i * ld + 32 * step), left, 1.);
                for (square, part) in squares.iter_mut().zip(parts) {
                    square[i] = _mm512_castsi512_ps(part);
                }
            }
            for (part, square) in squares.iter_mut().enumerate() {
                super::avx512::transpose(square);
                let out = out.add(512 * (step * PARTS + part));
                for (i, row) in square.iter().enumerate() {
                    _mm512_storeu_ps(out.add(32 * i).cast(), *row);
                }
            }
        }
    }
}

/// Packs up to sixteen columns that lie side by side: row `p` begins at `from + p · ld`.
///
/// # Safety
/// As for [`pack_runs`], `from` spanning `depth` rows of `columns` values.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn pack_rows<T: Element, const PARTS: usize>(
    from: *const T,
    ld: usize,
    columns: usize,
    depth: usize,
    out: *mut u16,
) {
    // SAFETY: as in `pack_runs`.
    unsafe {
        let order = _mm512_loadu_si512(PAIRS.as_ptr().cast());
        for pair in 0..16 * depth.div_ceil(32) {
            let row = |p: usize| if p < depth { Some(from.add(p * ld)) } else { None };
            let rows = T::load_two::<PARTS>([row(2 * pair), row(2 * pair + 1)], columns);
            for (part, rows) in rows.into_iter().enumerate() {
                let out = out.add(512 * (pair / 16 * PARTS + part) + 32 * (pair % 16));
                _mm512_storeu_si512(out.cast(), _mm512_permutexvar_epi16(order, rows));
            }
        }
    }
}

/// Sixteen words and the sixteen after them, word by word.
static PAIRS: [u16; 32] = {
    let mut words = [0; 32];
    let mut i = 0;
    while i < 32 {
        words[i] = (i as u16 % 2) * 16 + i as u16 / 2;
        i += 1;
    }
    words
};

/// Packs up to sixteen rows of f32 times `alpha`: row `i` begins at `from + i · ld`.
///
/// # Safety
/// As for [`pack_runs`]; of each KiB in `out` row `i` takes 64 bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn pack_left<const PARTS: usize>(
    from: *const f32,
    ld: usize,
    rows: usize,
    depth: usize,
    alpha: f32,
    out: *mut u16,
) {
    // SAFETY: as in `pack_runs`.
    unsafe {
        for i in 0..16 {
            for step in 0..depth.div_ceil(32) {
                let left = (depth - 32 * step).min(32);
                let parts = if i < rows {
                    f32::load::<PARTS>(from.add(i * ld + 32 * step), left, alpha)
                } else {
                    [_mm512_setzero_si512(); PARTS]
                };
                for (part, values) in parts.into_iter().enumerate() {
                    _mm512_storeu_si512(
                        out.add(512 * (step * PARTS + part) + 32 * i).cast(),
                        values,
                    );
                }
            }
        }
    }
}

/// The same of rows that lie side by side: the values at depth `p` begin at `from + p · ld`.
///
/// # Safety
/// As for [`pack_left`], `from` spanning `depth` times `rows` values.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn pack_left_turned<const PARTS: usize>(
    from: *const f32,
    ld: usize,
    rows: usize,
    depth: usize,
    alpha: f32,
    out: *mut u16,
) {
    // SAFETY: as in `pack_runs`.
    unsafe {
        let mask = ((1u32 << rows.min(16)) - 1) as u16;
        let alpha = _mm512_set1_ps(alpha);
        for step in 0..depth.div_ceil(32) {
            let mut squares = [[_mm512_setzero_ps(); 16]; 2];
            for (p, values) in
                squares.as_flattened_mut().iter_mut().enumerate().take(depth - 32 * step)
            {
                *values = _mm512_maskz_loadu_ps(mask, from.add((32 * step + p) * ld));
                *values = _mm512_mul_ps(*values, alpha);
            }
            for square in &mut squares {
                super::avx512::transpose(square);
            }
            let [low, high] = squares;
            for (i, (low, high)) in low.into_iter().zip(high).enumerate() {
                for (part, values) in split::<PARTS>([low, high]).into_iter().enumerate() {
                    _mm512_storeu_si512(
                        out.add(512 * (step * PARTS + part) + 32 * i).cast(),
                        values,
                    );
                }
            }
        }
    }
}

/// 32 values as sums of `PARTS` values of bf16 each: the nearest one, the nearest one to what that
/// leaves, and so on. Three parts hold all 24 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn split<const PARTS: usize>([mut low, mut high]: [__m512; 2]) -> [__m512i; PARTS] {
    let mut parts = [_mm512_setzero_si512(); PARTS];
    for (i, part) in parts.iter_mut().enumerate() {
        // SAFETY: both types are 512 bits.
        *part = unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) };
        if i + 1 < PARTS {
            let wide = |half: __m256i| {
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
            };
            low = _mm512_sub_ps(low, wide(_mm512_castsi512_si256(*part)));
            high = _mm512_sub_ps(high, wide(_mm512_extracti64x4_epi64::<1>(*part)));
        }
    }
    parts
}

/// What can be packed.
pub trait Element: Copy {
    /// Up to 32 values times `alpha` in parts of bf16, zeros behind them.
    ///
    /// # Safety
    /// AVX512-BF16 is there and `at` spans `count` values.
    unsafe fn load<const PARTS: usize>(
        at: *const Self,
        count: usize,
        alpha: f32,
    ) -> [__m512i; PARTS];

    /// Up to 16 values of each of two rows, one row behind the other; zeros for none.
    ///
    /// # Safety
    /// AVX512-BF16 is there and each row spans `count` values.
    unsafe fn load_two<const PARTS: usize>(
        rows: [Option<*const Self>; 2],
        count: usize,
    ) -> [__m512i; PARTS];
}

impl Element for f32 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn load<const PARTS: usize>(
        at: *const Self,
        count: usize,
        alpha: f32,
    ) -> [__m512i; PARTS] {
        let mask = ((1u64 << count.min(32)) - 1) as u32;
        let alpha = _mm512_set1_ps(alpha);
        // SAFETY: the caller's promise; masked lanes are not read.
        unsafe {
            let low = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask as u16, at), alpha);
            let high = _mm512_mul_ps(
                _mm512_maskz_loadu_ps((mask >> 16) as u16, at.wrapping_add(16)),
                alpha,
            );
            split([low, high])
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn load_two<const PARTS: usize>(
        rows: [Option<*const Self>; 2],
        count: usize,
    ) -> [__m512i; PARTS] {
        let mask = ((1u32 << count.min(16)) - 1) as u16;
        split(rows.map(|row| {
            row.map_or(_mm512_setzero_ps(), |at| {
                // SAFETY: the caller's promise, as in `load`; masked lanes are not read.
                unsafe { _mm512_maskz_loadu_ps(mask, at) }
            })
        }))
    }
}

/// One part; weights come without a factor.
impl Element for half::bf16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn load<const PARTS: usize>(at: *const Self, count: usize, _: f32) -> [__m512i; PARTS] {
        let mask = ((1u64 << count.min(32)) - 1) as u32;
        let mut parts = [_mm512_setzero_si512(); PARTS];
        // SAFETY: the caller's promise; masked lanes are not read.
        parts[0] = unsafe { _mm512_maskz_loadu_epi16(mask, at.cast()) };
        parts
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn load_two<const PARTS: usize>(
        rows: [Option<*const Self>; 2],
        count: usize,
    ) -> [__m512i; PARTS] {
        let [low, high] = rows.map(|row| {
            row.map_or(_mm512_setzero_si512(), |at| {
                // SAFETY: the caller's promise, for fewer elements.
                let [part] = unsafe { Self::load::<1>(at, count.min(16), 1.) };
                part
            })
        });
        let mut parts = [_mm512_setzero_si512(); PARTS];
        parts[0] = _mm512_inserti64x4::<1>(low, _mm512_castsi512_si256(high));
        parts
    }
}
