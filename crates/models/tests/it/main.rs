//! Against Python's transformers (golden files with their generators in `tests/golden/`), and
//! against damaged files.
//!
//! Tests of the default model take it from the cache, where `cargo xtask lab` and `cargo xtask
//! test` put it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod chat_template;
mod checkpoints;
mod conversations;
mod damaged;
mod engine;
mod families;
mod format;
mod hooks;
mod peers;
mod pretrained;
mod support;
mod tiny;
mod tokenizer;
