//! Test helpers of the workspace: Python peers, random numbers, an allocator that counts, a client of
//! streamed answers.
//!
//! The crate is a development dependency only. Its functions fail a test by panicking, as the
//! test's own assertions do.

// It is test code: a failed step fails the test, and a skip is said on standard error.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

pub mod allocator;
mod peers;
mod random;
pub mod sse;

pub use peers::Python;
pub use random::Random;

/// Says on standard error that the running test skips, and why. `cargo xtask test` counts a test
/// that wrote such a line as skipped, not as passed, and `--long` counts it as a failure.
pub fn skip(reason: impl std::fmt::Display) {
    eprintln!("SKIPPED: {reason}");
}
