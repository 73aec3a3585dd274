//! An allocator that counts, for tests that hold memory against the size of a file. The counts are
//! the whole process's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};

/// Counts what is alive, and keeps the most that ever was. Signed: another thread may be between
/// the two halves of a change.
struct Counting;

static ALIVE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

fn grown(by: usize) {
    let by = by as isize;
    let now = ALIVE.fetch_add(by, Relaxed) + by;
    PEAK.fetch_max(now, Relaxed);
}

// SAFETY: the system's allocator does the work; beside it only numbers change.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALIVE.fetch_sub(layout.size() as isize, Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        ALIVE.fetch_sub(layout.size() as isize, Relaxed);
        grown(new);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, new) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What an action gives, and the most bytes that were alive at once while it ran, beyond those
/// before it.
pub fn most_taken<T>(action: impl FnOnce() -> T) -> (T, usize) {
    let before = ALIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let given = action();
    (given, usize::try_from(PEAK.load(Relaxed) - before).unwrap_or(0))
}
