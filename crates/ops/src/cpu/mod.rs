//! What the fused forms share on the CPU: matrix products, vectorised arithmetic, access to
//! candle's buffers.
//!
//! Instruction sets are found at run time; threads are [`crew`]'s.

use std::ops::{Deref, Range};
use std::sync::OnceLock;

use candle_core::{CpuStorage, Result, Storage, StorageRef, Tensor, bail};

#[cfg(target_arch = "x86_64")]
pub mod amx;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
pub mod blocks;
pub mod crew;
#[cfg(target_arch = "x86_64")]
pub mod flash;
pub mod gemm;
pub mod gemv;
pub mod half;
pub mod math;

/// A family of instruction sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every processor of the architecture has.
    Baseline,
    /// AVX2.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

/// The highest level of this processor, found once. `TUNEBOOK_SIMD` (`baseline`, `avx2`) asks for
/// less: to compare, and to test each form on one machine.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let most = match std::env::var("TUNEBOOK_SIMD").as_deref() {
            Ok("baseline") => Level::Baseline,
            Ok("avx2") => Level::Avx2,
            _ => Level::Avx512,
        };
        highest().min(most)
    })
}

#[cfg(target_arch = "x86_64")]
fn highest() -> Level {
    use std::is_x86_feature_detected as has;
    match has!("avx2") {
        true if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") => {
            Level::Avx512
        }
        true => Level::Avx2,
        false => Level::Baseline,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn highest() -> Level {
    Level::Baseline
}

/// Elements of one parallel task of an elementwise operation: 64 KiB of f32, so a few microseconds
/// of work.
pub const CHUNK: usize = 16 * 1024;

/// The f32 values of a contiguous CPU tensor.
pub struct Values<'a> {
    guard: StorageRef<'a>,
    range: Range<usize>,
}

impl<'a> Values<'a> {
    /// Locks the tensor's buffer for reading.
    ///
    /// # Errors
    /// When the tensor is not a contiguous f32 tensor on the CPU.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (guard, layout) = tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("expected a contiguous tensor, found strides {:?}", layout.stride())
        };
        if !matches!(&*guard, Storage::Cpu(CpuStorage::F32(_))) {
            bail!("expected f32 on the CPU, found {:?} on {:?}", tensor.dtype(), tensor.device())
        }
        Ok(Self { guard, range: start..end })
    }
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.guard {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            // `of` lets nothing else in, and the lock keeps it so.
            _ => &[],
        }
    }
}

/// The bf16 values of a contiguous CPU tensor.
pub struct HalfValues<'a> {
    guard: StorageRef<'a>,
    range: Range<usize>,
}

impl<'a> HalfValues<'a> {
    /// Locks the tensor's buffer for reading.
    ///
    /// # Errors
    /// When the tensor is not a contiguous bf16 tensor on the CPU.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (guard, layout) = tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("expected a contiguous tensor, found strides {:?}", layout.stride())
        };
        if !matches!(&*guard, Storage::Cpu(CpuStorage::BF16(_))) {
            bail!("expected bf16 on the CPU, found {:?} on {:?}", tensor.dtype(), tensor.device())
        }
        Ok(Self { guard, range: start..end })
    }
}

impl Deref for HalfValues<'_> {
    type Target = [::half::bf16];

    fn deref(&self) -> &[::half::bf16] {
        match &*self.guard {
            Storage::Cpu(CpuStorage::BF16(values)) => &values[self.range.clone()],
            // `of` lets nothing else in, and the lock keeps it so.
            _ => &[],
        }
    }
}

/// The f32 buffer of a CPU tensor from its first element on, whatever its strides.
pub struct Strided<'a> {
    guard: StorageRef<'a>,
    start: usize,
}

impl<'a> Strided<'a> {
    /// Locks the tensor's buffer for reading.
    ///
    /// # Errors
    /// When the tensor is not f32 on the CPU.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (guard, layout) = tensor.storage_and_layout();
        if !matches!(&*guard, Storage::Cpu(CpuStorage::F32(_))) {
            bail!("expected f32 on the CPU, found {:?} on {:?}", tensor.dtype(), tensor.device())
        }
        Ok(Self { start: layout.start_offset(), guard })
    }
}

impl Deref for Strided<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.guard {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.start..],
            // `of` lets nothing else in, and the lock keeps it so.
            _ => &[],
        }
    }
}

/// Has the allocator keep what is freed instead of giving it back to the system, from now on: a
/// training step frees hundreds of megabytes that the next one wants again, and each page that
/// comes back costs a fault. Figures: `docs/measurements.md`, "Memory and the tape". Each arena keeps its own: whatever is large should be allocated by one thread. Only glibc needs
/// and knows this.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const M_TRIM_THRESHOLD: libc::c_int = -1;
        const M_MMAP_THRESHOLD: libc::c_int = -3;
        // SAFETY: both only change when the allocator calls the system.
        unsafe {
            libc::mallopt(M_TRIM_THRESHOLD, libc::c_int::MAX);
            libc::mallopt(M_MMAP_THRESHOLD, 1 << 30);
        }
    }
}

/// Gives back to the system what [`keep_freed_memory`] had the allocator keep, so that what is
/// measured next is what is in use.
pub fn give_back_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it only hands unused pages to the system.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A buffer whose values are whatever the memory holds: zeroing it first would cost as much as many
/// operations do.
///
/// # Safety
/// Every element has to be written before it is read.
#[allow(clippy::uninit_vec)]
pub unsafe fn uninit(len: usize) -> Vec<f32> {
    let mut buffer = Vec::with_capacity(len);
    // SAFETY: the capacity is there, f32 has no invalid bit patterns and no drop; the caller writes
    // before reading.
    unsafe { buffer.set_len(len) };
    buffer
}

/// A pointer into an output that several tasks write at disjoint places.
#[derive(Clone, Copy)]
pub struct Shared(*mut f32);

// SAFETY: whoever writes through it promises disjoint places (see `Shared::at`).
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Shares a buffer among tasks.
    pub fn new(buffer: &mut [f32]) -> Self {
        Self(buffer.as_mut_ptr())
    }

    /// The pointer to element `i`.
    ///
    /// # Safety
    /// `i` lies inside the buffer, the buffer outlives the use, and no two tasks touch the same
    /// element.
    pub unsafe fn at(self, i: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(i) }
    }

    /// The elements `range` as a slice of this task's own.
    ///
    /// # Safety
    /// As for [`Shared::at`], for every element of the range.
    pub unsafe fn slice<'a>(self, range: Range<usize>) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

/// Compiles a function once for AVX-512, once for AVX2 and once for the baseline, and picks at run
/// time. The body is plain Rust in a form that the compiler vectorises.
macro_rules! multiversion {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                match $crate::cpu::level() {
                    // SAFETY: `level` asked the processor.
                    $crate::cpu::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::cpu::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::cpu::Level::Baseline => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use multiversion;

multiversion! {
    /// `out = x · y`, element by element.
    pub fn multiply(out: &mut [f32], x: &[f32], y: &[f32]) {
        for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
            *out = x * y;
        }
    }
}

multiversion! {
    /// `x *= y`, element by element.
    pub fn multiply_in_place(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x *= y;
        }
    }
}
