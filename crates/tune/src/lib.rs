//! Fine-tuning: adapters, the training loop and its parts.
//!
//! A model is a stack of frozen projections. [`Adapters`] puts a trainable update beside those that
//! [`Lora`] names; the [`Trainer`] moves the update, and nothing else, so that the assistant's words
//! in the [`Example`]s become likely; and the update is saved on its own, a few megabytes, in the
//! format of Hugging Face's PEFT.

mod adapters;
mod batch;
mod cost;
mod error;
mod files;
mod record;
mod train;

pub use adapters::adalora::AdaLora;
pub use adapters::adapter_type::Bias;
pub use adapters::bottleneck::{Bottleneck, BottleneckInit, ReductionFactor};
pub use adapters::config::AdapterConfig;
pub use adapters::frozen::FrozenAdapter;
pub use adapters::full::{Full, FullInfo, FullTuning};
pub use adapters::ia3::Ia3;
pub use adapters::lora::linear::LoraLinear;
pub use adapters::lora::{Lora, LoraInit};
pub use adapters::mix::AdapterMix;
pub use adapters::prefix_tuning::{PrefixInit, PrefixTuning};
pub use adapters::prompt_tuning::{PromptTuning, PromptTuningInit};
pub use adapters::served::ServedWeights;
pub use adapters::target::TargetModules;
pub use adapters::weighted::CombinationType;
pub use adapters::{Active, AdapterInfo, Adapters, BASE};
pub use batch::example_sets::{
    ExampleSets, IntoSets, Judge, Measure, Measured, Observer, OneSet, TwoSets,
};
pub use batch::run_rows::RunRows;
pub use batch::tokenize::tokenize_example;
pub use batch::{Batch, Example, TokenizedExample, TokenizedSet};
pub use cost::summary::TrainingSummary;
pub use error::{Error, Result};
pub use files::hub::adapter_folder;
pub use files::peft;
pub use record::callback::Callback;
pub use record::fingerprint::{Fingerprints, answering as answering_fingerprint};
pub use record::metric::Metric;
pub use record::preflight::Preflight;
pub use record::run_log::RunLog;
pub use record::run_record::{RunRecord, StopReason, Strategy};
pub use record::tensorboard::TensorBoard;
pub use record::{EvalRecord, Plan, StepRecord};
pub use train::args::{EvalStrategy, SaveStrategy, TrainingArgs};
pub use train::lr_range::{LrPoint, LrRange, LrRangeTest};
pub use train::optim::{AdamW, AdamWConfig, Optim};
pub use train::parameter::{Gradients, Parameter, Parameters, Part, clip_coefficient};
pub use train::run::Run;
pub use train::schedule::{LrScheduler, Schedule};
pub use train::step::{StepOutcome, Stepper};
pub use train::trained::moved_before;
pub use train::trainer::{MeasureResult, Trainer};
