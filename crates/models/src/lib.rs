//! Language models: weights, tokenizer, chat template, decoder and generation.

mod error;
mod layers;
pub mod ops;

pub use candle_core::{DType, Device, Tensor};
pub use error::{Error, Result};
pub use layers::{Embedding, Linear, Projection, RmsNorm, Slot};
