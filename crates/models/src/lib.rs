//! Language models: weights from GGUF or safetensors, tokenizer, chat template, decoder and generation.
//!
//! ```no_run
//! use tunebook_models::{BestDevice, Device, GenerationConfig, Model};
//! let model = Model::load("SmolLM2-135M-Instruct", &Device::best()?)?;
//! model.chat("What is a llama?")?; // shown as it comes
//! let text = model.generate("Once upon a time", &GenerationConfig { temperature: 0.7, ..Default::default() })?;
//! # Ok::<(), tunebook_models::Error>(())
//! ```
//!
//! [`Model`] is the handle. A decoder knows nothing of adapters: each of its projections stands in a [`Slot`], whose
//! content can be replaced. One file (`llama.rs`) is one family, read from top to bottom.

mod cache;
mod chat_template;
mod config;
mod device;
mod error;
mod generate;
mod layers;
mod llama;
mod model;
pub mod ops;
mod save;
pub mod tensor_file;
mod tokenizer;
mod weights;

pub use candle_core::{DType, Device, Tensor};
pub use chat_template::{ChatTemplate, Message};
pub use config::{Config, KNOWN_ARCHITECTURES};
pub use device::BestDevice;
pub use error::{Error, Result};
pub use generate::GenerationConfig;
pub use layers::{Embedding, Linear, Projection, RmsNorm, Slot, Weight};
pub use llama::Positions;
pub use model::Model;
pub use tokenizer::{Digits, Tokenizer};
pub use weights::gguf::{Gguf, Value as GgufValue};
pub use weights::source::{DEFAULT_MODEL, models_dir};
