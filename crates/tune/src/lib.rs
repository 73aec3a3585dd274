//! Fine-tuning: adapters, the training loop and its parts.
//!
//! A model is a stack of frozen projections. [`Adapters`] puts a trainable update beside those that
//! [`Lora`] names; the [`Trainer`] moves the update, and nothing else, so that the completions of
//! the [`Example`]s become likely; and the update is saved on its own, a few megabytes, in the
//! format of Hugging Face's PEFT.

mod adalora;
mod adapter_config;
mod adapterhub;
mod adapters;
mod allocation;
mod args;
mod atomic;
mod backward;
mod batch;
mod body;
mod bottleneck;
mod bottleneck_body;
mod checkpoint;
mod decompose;
mod eight_bit;
mod encode;
mod error;
mod fingerprint;
mod full;
mod gguf_adapter;
mod ia3;
mod inject;
mod lora;
mod lora_body;
mod lora_linear;
mod loss_scale;
mod lr_range;
mod memory;
mod mixed_batch;
mod mlx;
mod optim;
mod own_weights;
mod parameter;
pub mod peft;
mod peft_config;
mod prefix_tuning;
mod preflight;
mod prompt_tuning;
mod record;
mod rehearsal;
mod rng;
mod rows;
mod run_log;
mod schedule;
mod step;
mod target;
mod tensorboard;
mod trained;
mod trainer;
mod training_summary;
mod weighted;
mod work;

pub use adalora::AdaLora;
pub use adapter_config::AdapterConfig;
pub use adapters::{AdapterInfo, Adapters};
pub use args::{EvalStrategy, SaveStrategy, TrainingArgs};
pub use batch::{Batch, Example, Span, TokenizedExample, TokenizedSet};
pub use bottleneck::{Bottleneck, BottleneckInit, ReductionFactor};
pub use encode::encode_example;
pub use error::{Error, Result};
pub use full::{Full, FullInfo, FullTuning};
pub use ia3::Ia3;
pub use lora::{Lora, LoraInit};
pub use lora_linear::LoraLinear;
pub use lr_range::{LrPoint, LrRange, LrRangeTest};
pub use mixed_batch::{BASE, MixedBatch};
pub use optim::{AdamW, AdamWConfig, Optim};
pub use own_weights::Bias;
pub use parameter::{Gradients, Parameter, Parameters, Part, clip_coefficient};
pub use prefix_tuning::{PrefixInit, PrefixTuning};
pub use preflight::Preflight;
pub use prompt_tuning::{PromptTuning, PromptTuningInit};
pub use record::{Callback, EvalRecord, Plan, StepRecord};
pub use run_log::RunLog;
pub use schedule::{LrScheduler, Schedule};
pub use step::{StepOutcome, Stepper};
pub use target::TargetModules;
pub use tensorboard::TensorBoard;
pub use trainer::{Measure, MeasureResult, Run, StopReason, Trainer};
pub use training_summary::TrainingSummary;
pub use weighted::CombinationType;
