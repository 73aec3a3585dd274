//! The stop token: whom long work asks whether to go on.
//!
//! A cell and a request to a server can run at once, in one process and over one model, and each
//! has its own Stop. A function that works for long takes a [`Stop`] (or holds one in its options,
//! whose default is the cell's) and looks at it between steps, layers or chunks:
//!
//! ```
//! use tunebook_progress::{Interrupted, Stop};
//!
//! fn sum(numbers: &[u64], stop: &Stop) -> Result<u64, Interrupted> {
//!     let mut sum = 0;
//!     for number in numbers {
//!         stop.check()?;
//!         sum += number;
//!     }
//!     Ok(sum)
//! }
//!
//! // In a notebook: Stop ends it.
//! assert_eq!(sum(&[1, 2, 3], &Stop::cell()), Ok(6));
//!
//! // In a server: the request's own token, which the thread of the connection keeps a clone of.
//! let stop = Stop::new();
//! let of_connection = stop.clone();
//! of_connection.stop();
//! assert_eq!(sum(&[1, 2, 3], &stop), Err(Interrupted));
//! ```
//!
//! Only [`Stop::cell`] may be given to work that the running cell waits for: a look at it answers
//! the user's Stop. Were a server's thread to look at it, the kernel would take the Stop for
//! answered although the cell goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::interrupt::{self, Interrupted};

/// A stop token. Clones are the same token: a clone can be moved to the thread that asks for the
/// stop, or to the threads that work.
#[derive(Clone, Debug, Default)]
pub struct Stop(Source);

#[derive(Clone, Debug, Default)]
enum Source {
    #[default]
    Cell,
    Own(Arc<AtomicBool>),
    Never,
    Either(Arc<(Stop, Stop)>),
}

impl Stop {
    /// The notebook's Stop (in a program, Ctrl-C): the flag of [`crate::interrupt`]. This is the
    /// default.
    ///
    /// A look at it acknowledges the Stop, so it belongs to work that the running cell waits for,
    /// on whatever thread.
    pub fn cell() -> Self {
        Self(Source::Cell)
    }

    /// A token of its own, for one request. It neither sees nor acknowledges the notebook's Stop.
    pub fn new() -> Self {
        Self(Source::Own(Arc::default()))
    }

    /// A token that nothing stops.
    pub fn never() -> Self {
        Self(Source::Never)
    }

    /// A token that is stopped when `self` or `other` is. Its own [`Stop::stop`] stops `self` only.
    #[must_use]
    pub fn either(&self, other: &Stop) -> Self {
        Self(Source::Either(Arc::new((self.clone(), other.clone()))))
    }

    /// Asks the work to stop. On [`Stop::cell`] this is a press of Stop; on [`Stop::never`] it does
    /// nothing.
    pub fn stop(&self) {
        match &self.0 {
            Source::Cell => interrupt::request(),
            Source::Own(stopped) => stopped.store(true, Ordering::Release),
            Source::Never => {}
            Source::Either(both) => both.0.stop(),
        }
    }

    /// Whether the work is to stop. Cheap enough for every step, layer or chunk.
    pub fn requested(&self) -> bool {
        match &self.0 {
            Source::Cell => interrupt::requested(),
            Source::Own(stopped) => stopped.load(Ordering::Acquire),
            Source::Never => false,
            // Both are looked at, so that a Stop of the cell is acknowledged in any case.
            Source::Either(both) => both.0.requested() | both.1.requested(),
        }
    }

    /// [`Stop::requested`] as a result, for use with `?`.
    ///
    /// # Errors
    /// [`Interrupted`] when the work is to stop.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.requested() { Err(Interrupted) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_its_own_is_stopped_through_any_clone_and_stays_so() {
        let stop = Stop::new();
        let (clone, other) = (stop.clone(), Stop::new());
        assert_eq!(stop.check(), Ok(()));
        std::thread::spawn(move || clone.stop()).join().expect("no panic");
        assert!(stop.requested());
        assert_eq!(stop.check(), Err(Interrupted));
        assert!(!other.requested());
    }

    #[test]
    fn nothing_stops_never() {
        let stop = Stop::never();
        stop.stop();
        assert!(!stop.requested());
    }

    #[test]
    fn either_sees_both_and_stops_the_first_only() {
        let (request, server) = (Stop::new(), Stop::new());
        let both = request.either(&server);
        assert!(!both.requested());
        server.stop();
        assert!(both.requested() && !request.requested());

        let server = Stop::new();
        let both = request.either(&server);
        both.stop();
        assert!(request.requested() && !server.requested());
    }
}
