//! A counting allocator, for tests that bound memory by the size of a file.
//!
//! A test binary installs it, then measures with [`peak_bytes`]:
//!
//! ```
//! use tunebook_testing::allocator::{Counting, peak_bytes};
//!
//! #[global_allocator]
//! static ALLOCATOR: Counting = Counting;
//!
//! let (list, peak) = peak_bytes(|| vec![0u8; 1000]);
//! assert!(list.len() == 1000 && peak >= 1000);
//! ```
//!
//! The counts belong to the whole process. `cargo nextest` runs each test in a process of its own;
//! `cargo test` runs the tests of a binary as threads of one process, where other tests' memory
//! would be counted, too. So a binary that installs the allocator holds no other tests, and its own
//! take a lock in turn.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};

/// The system's allocator, with a count of the bytes that are alive and of their peak.
pub struct Counting;

// Signed: another thread may stand between the two halves of a reallocation, and memory may be
// freed here that the dynamic standard library allocated before.
static ALIVE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

fn grow(bytes: usize) {
    let bytes = bytes as isize;
    let alive = ALIVE.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(alive, Relaxed);
}

// SAFETY: each method passes its arguments on to `System` unchanged and returns what `System`
// returned; the counters are atomics, which allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller gives a layout of non-zero size, as `GlobalAlloc::alloc` demands.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALIVE.fetch_sub(layout.size() as isize, Relaxed);
        // SAFETY: the caller's pointer came from this allocator, hence from `System`, with the same
        // layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        ALIVE.fetch_sub(layout.size() as isize, Relaxed);
        grow(new);
        // SAFETY: as in `dealloc`; the caller gives a new size that is not zero and does not
        // overflow.
        unsafe { System.realloc(pointer, layout, new) }
    }
}

/// The result of `action`, and the peak of the bytes that the process held while it ran, less those
/// that it held before.
///
/// # Panics
/// When [`Counting`] is not the binary's global allocator: every bound would hold.
pub fn peak_bytes<T>(action: impl FnOnce() -> T) -> (T, usize) {
    let before = ALIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    drop(std::hint::black_box(Vec::<u8>::with_capacity(64)));
    assert!(PEAK.load(Relaxed) > before, "`Counting` is not the global allocator of this binary");
    PEAK.store(before, Relaxed);
    let result = action();
    (result, usize::try_from(PEAK.load(Relaxed) - before).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    /// The binary of these tests keeps the system's allocator.
    #[test]
    #[should_panic(expected = "not the global allocator")]
    fn a_bound_without_the_allocator_is_refused() {
        super::peak_bytes(|| ());
    }
}
