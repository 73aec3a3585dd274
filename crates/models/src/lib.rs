//! Language models: weights from GGUF or safetensors, tokenizer, chat template, decoder and
//! generation.
//!
//! ```no_run
//! use tunebook_models::{BestDevice, Device, GenerationConfig, Model};
//! let model = Model::load("SmolLM2-135M-Instruct", &Device::best()?)?;
//! model.chat("What is a llama?")?; // shown as it comes
//! let text = model.generate("Once upon a time", &GenerationConfig { temperature: 0.7, ..Default::default() })?;
//! # Ok::<(), tunebook_models::Error>(())
//! ```
//!
//! [`Model`] is the handle. A decoder knows nothing of adapters: each of its projections stands in
//! a [`Slot`], whose content can be replaced; each sublayer ends in a [`Joint`]; and there is a
//! place before the tokens ([`Front`]) and one before each block's keys and values ([`Past`]). One
//! file is one family, read from top to bottom (`llama.rs`, `falcon.rs`, `gemma.rs`, `phi3.rs`,
//! `gpt2.rs`).

mod attention;
mod branch;
mod cache;
mod chat_template;
mod config;
mod decoder;
mod device;
mod error;
mod falcon;
mod front;
mod gemma;
mod generate;
mod gpt2;
mod head;
mod layers;
mod llama;
mod matrix;
mod memory;
mod model;
pub mod ops;
mod past;
mod phi3;
mod positions;
mod quantized;
mod rope;
pub mod rows;
mod save;
pub mod tensor_file;
mod tokenizer;
mod weights;

pub use branch::{Branch, Flow, Joint, Sublayer};
pub use candle_core::{DType, Device, Tensor};
pub use chat_template::{ChatTemplate, Message};
pub use config::{Config, Family, KNOWN_ARCHITECTURES};
pub use device::{BestDevice, gpu_memory};
pub use error::{Error, Result};
pub use falcon::FalconConfig;
pub use front::{Front, Vectors};
pub use gemma::GemmaConfig;
pub use generate::GenerationConfig;
pub use gpt2::Gpt2Config;
pub use layers::{Embedding, LayerNorm, Linear, Projection, RmsNorm, Slot, Weight};
pub use llama::LlamaConfig;
pub use matrix::Matrix;
pub use model::Model;
pub use past::{KeysValues, Past};
pub use phi3::Phi3Config;
pub use positions::Positions;
pub use quantized::{Format, Quantized};
pub use rope::{RopeParameters, RopeScaling};
pub use tokenizer::{Digits, Tokenizer};
pub use weights::Quantization;
pub use weights::gguf::{Array as GgufArray, Gguf, Value as GgufValue};
pub use weights::gguf_adapter::LoraUpdate;
pub use weights::gguf_writer::GgufType;
pub use weights::source::{DEFAULT_MODEL, models_dir};
