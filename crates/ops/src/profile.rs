//! Where the time of the operations goes. Off unless [`start`] was called; then each operation adds
//! the time of its forward and backward pass to a table.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

static ON: AtomicBool = AtomicBool::new(false);
static TABLE: Mutex<BTreeMap<(&'static str, &'static str), Duration>> = Mutex::new(BTreeMap::new());

/// Begins to measure, with an empty table.
pub fn start() {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner).clear();
    ON.store(true, Ordering::Relaxed);
}

/// Ends measuring and gives the time spent in each operation's `forward` and `backward`.
pub fn stop() -> BTreeMap<(&'static str, &'static str), Duration> {
    ON.store(false, Ordering::Relaxed);
    std::mem::take(&mut TABLE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Measures until what it returns is dropped.
pub(super) fn time(operation: &'static str, pass: &'static str) -> Option<Timer> {
    ON.load(Ordering::Relaxed).then(|| Timer { what: (operation, pass), since: Instant::now() })
}

pub(super) struct Timer {
    what: (&'static str, &'static str),
    since: Instant,
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
        *table.entry(self.what).or_default() += self.since.elapsed();
    }
}
