//! Tests of the whole crate: against torch, transformers and PEFT (golden values and, where
//! installed, themselves), and of what must hold for every run.
//!
//! Some of them press Stop, which is one flag for the process: `cargo nextest run` gives each test
//! a process of its own.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, missing_docs)] // the helpers of tests are tests

mod adapters;
mod bad_adapters;
mod bottleneck;
mod checkpoints;
mod common;
mod composed;
mod concurrent;
mod configs;
mod curves;
mod files;
mod fp16;
mod full;
mod golden_run;
mod invariants;
mod mixed_batch;
mod mixes;
mod peers;
mod peers_layers;
mod preflight;
mod qlora;
mod records;
mod regularisation;
mod smollm;
mod strategies;
mod summary;
mod text_part;
mod tiny;
mod tokens;
mod training;
mod virtual_tokens;
