//! Tests of the whole crate: files of every kind, cleaning, splitting, and real data.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    missing_docs
)]

mod clean;
mod configs;
mod conversations;
mod fingerprint;
mod forms;
mod fuzz;
mod harmless;
mod jsonl;
mod near;
mod personal_data;
mod profile;
mod read;
mod real_data;
mod replay;
mod report;
mod split;
mod stream;
