//! Work that shows no progress: who calls decides whether bars are drawn.

use std::cell::Cell;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` without progress bars: no [`ProgressBar`](crate::ProgressBar) that this thread makes
/// meanwhile is ever drawn, on whatever thread it is advanced.
///
/// A thread in the background (a server's, for one) puts its whole body in it. What it drew would
/// appear under the cell that happens to run.
///
/// ```
/// use tunebook_progress::{ProgressBar, quiet};
///
/// let rows = std::thread::spawn(|| {
///     quiet(|| {
///         let bar = ProgressBar::new("Reading", Some(3));
///         (0..3).inspect(|_| bar.advance(1)).count()
///     })
/// });
/// assert_eq!(rows.join().ok(), Some(3));
/// ```
///
/// Bars only: [`display`](crate::display()) and [`stream`](crate::stream()) show what their caller
/// gives them in any case.
pub fn quiet<R>(work: impl FnOnce() -> R) -> R {
    /// Puts the former state back, also when `work` panics.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            QUIET.set(self.0);
        }
    }
    let _restore = Restore(QUIET.replace(true));
    work()
}

/// Whether this thread is within [`quiet`].
pub(crate) fn is_quiet() -> bool {
    QUIET.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_comes_back_also_after_a_panic() {
        assert!(!is_quiet());
        quiet(|| {
            quiet(|| assert!(is_quiet()));
            assert!(is_quiet());
        });
        assert!(!is_quiet());
        let panicked =
            std::panic::catch_unwind(|| quiet(|| std::panic::resume_unwind(Box::new(1))));
        assert!(panicked.is_err());
        assert!(!is_quiet());
    }

    #[test]
    fn other_threads_are_not_quiet() {
        let other = quiet(|| std::thread::spawn(is_quiet).join());
        assert!(!other.expect("no panic"));
    }
}
