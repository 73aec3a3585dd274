//! Outputs that a cell shows while it runs, and replaces in place.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::bundle::MimeBundle;
use crate::sink::{Place, sink};

/// An output that has been shown and can be replaced.
///
/// On a stock kernel an output appears when the cell has ended: only the last state is sent, when
/// this value is dropped.
#[derive(Debug)]
pub struct Display {
    id: String,
    /// The state that a stock kernel has not been sent yet.
    held: std::sync::Mutex<Option<MimeBundle>>,
}

/// Shows `bundle` below the running cell, at once, and returns the handle that replaces it.
pub fn display(bundle: MimeBundle) -> Display {
    let id = new_id();
    sink().display(&id, &bundle);
    Display { id, held: std::sync::Mutex::new(None) }
}

/// Shows `bundle` as the value of the cell (`Out[n]`).
pub fn result(bundle: MimeBundle) {
    sink().result(&bundle);
}

/// Removes the cell's outputs; with `wait`, not before the next output comes. Does nothing outside
/// our kernel.
pub fn clear(wait: bool) {
    sink().clear(wait);
}

impl Display {
    /// The display id, unique in this process and among processes.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Replaces the output. In a terminal, where nothing can be replaced, it is shown when the
    /// handle is dropped.
    pub fn update(&self, bundle: MimeBundle) {
        let mut sink = sink();
        if matches!(sink.place(), Place::Channel { .. }) {
            sink.update(&self.id, &bundle);
        } else {
            *self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(bundle);
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(bundle) = held {
            sink().update(&self.id, &bundle);
        }
    }
}

/// An id that no other output has: the process, the time of the first output, a counter.
fn new_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static START: std::sync::OnceLock<u128> = std::sync::OnceLock::new();
    let start = START.get_or_init(|| {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map(|elapsed| elapsed.as_micros())
            .unwrap_or_default()
    });
    format!("tunebook-{}-{start:x}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ() {
        assert_ne!(new_id(), new_id());
    }
}
