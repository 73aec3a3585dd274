//! Servers as their clients see them: over HTTP, with the 2-layer Llama of `tests/golden/lora_tiny`.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)] // the helpers of tests are tests

mod adapters;
mod chat;
mod completions;
mod conformance;
mod fairness;
mod formats;
mod hostile;
mod lifecycle;
mod limits;
mod lm_eval;
mod memory;
mod mixes;
mod peers;
mod robustness;
mod soak;
mod support;
mod watch;
