//! Fine-tuning: adapters, the training loop and its parts.
//!
//! A model is a stack of frozen projections. [`Adapters`] puts a trainable update beside those that [`Lora`] names; the
//! [`Trainer`] moves the update, and nothing else, so that the completions of the [`Example`]s become likely; and the update is saved
//! on its own, a few megabytes, in the format of Hugging Face's PEFT.

mod args;
mod atomic;
mod batch;
mod error;
mod lora;
mod optim;
mod parameter;
pub mod peft;
mod record;
mod rng;
mod schedule;
mod target;

pub use args::{EvalStrategy, TrainingArgs};
pub use batch::{Batch, Example, TokenizedExample, TokenizedSet};
pub use error::{Error, Result};
pub use lora::Lora;
pub use optim::{AdamW, AdamWConfig};
pub use parameter::{Gradients, Parameter, Parameters, clip_coefficient};
pub use record::{Callback, EvalRecord, Plan, StepRecord};
pub use schedule::{LrScheduler, Schedule};
pub use target::TargetModules;
