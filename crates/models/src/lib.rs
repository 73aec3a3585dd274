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
//! [`Model`] is the handle. A decoder knows nothing of adapters: what stands in its places (the
//! [`Slot`]s of projections, the [`Residual`]s after sublayers, virtual tokens, past keys and
//! values) is an [`Overlay`], and each forward [`Pass`] is a snapshot of one. One file is one
//! family, read from top to bottom (`families/`).

mod config;
mod device;
mod error;
mod families;
mod generate;
mod hooks;
mod layers;
mod memory;
mod model;
mod pass;
mod text;
mod weights;

pub use candle_core::{DType, Device, Tensor};
pub use config::Config;
pub use device::{BestDevice, default_dtype, gpu_memory};
pub use error::{Error, Result};
pub use families::falcon::FalconConfig;
pub use families::gemma::GemmaConfig;
pub use families::gpt2::Gpt2Config;
pub use families::llama::LlamaConfig;
pub use families::phi3::Phi3Config;
pub use families::{Family, known_architectures};
pub use generate::choices::{ChoiceScore, Choices};
pub use generate::divergence::Divergence;
pub use generate::engine::{
    EngineConfig, Finish, FinishReason, GenerationEngine, GenerationEvent, GenerationRequest,
    RequestId, TokenUsage,
};
pub use generate::format::{AnswerFormat, AnswerGrammar};
pub use generate::score::{LogLikelihood, TextLoss, TokenScore};
pub use generate::service::EngineHandle;
pub use generate::{Completion, GenerationConfig};
pub use hooks::past_key_values::{KeysValues, PastKeyValues};
pub use hooks::residual::{Branch, Flow, Residual, Sublayer};
pub use hooks::virtual_tokens::VirtualTokens;
pub use layers::rope::{RopeParameters, RopeScaling};
pub use layers::{Embedding, LayerNorm, Linear, Projection, RmsNorm, Slot, Weight};
pub use model::Model;
pub use pass::overlay::Overlay;
pub use pass::positions::Positions;
pub use pass::snapshot::Snapshot;
pub use pass::{Context, Dropout, Mode, Pass};
pub use text::chat_template::ChatTemplate;
pub use text::conversation::{ChatTokenizer, Message, TokenizedText};
pub use text::tokenizer::{Digits, Tokenizer};
pub use tunebook_ops::{Format, LowRank, Matrix, Quantized};
pub use weights::Quantization;
pub use weights::gguf::adapter::LoraUpdate;
pub use weights::gguf::writer::GgufType;
pub use weights::gguf::{Array as GgufArray, Gguf, Value as GgufValue};
pub use weights::save::check_save_folder;
pub use weights::source::{DEFAULT_MODEL, models_dir};
pub use weights::tensor_file;
