//! Everything that a cell needs, by one `use`.
//!
//! The names are those of the field: polars' for frames, candle's for tensors, PEFT's and
//! `transformers`' for adapters and training. No name of Rust's own prelude is shadowed.

// polars first: a name that is imported on its own below wins over the same name from here.
pub use polars::prelude::*;

pub use candle_core::{D, DType, Device, Module, Shape, Tensor, Var};
pub use plotly::{self, Layout, Plot};
pub use {candle_core, candle_nn, candle_transformers, polars, serde_json, tokenizers};

pub use tunebook_charts::{
    Bar, Cell, Figure, LineChart, LossPoint, Sample, Table, bar_chart, histogram, loss_curve,
};
pub use tunebook_data::{
    Audit, CleanReport, Cleaning, Dataset, LabelLeak, Overlap, OverlapKind, Partition, Pii,
    Profile, Quality, ReadOptions, Repetition, Row, Scan, Shape as RowShape, Shingles, Split,
    Splits, Step, Streamed, Survivor, validate_openai_chat,
};
pub use tunebook_models::{
    BestDevice, ChatTemplate, GenerationConfig, Message, Model, Quantization, Tokenizer,
};
pub use tunebook_progress::{
    Display, MimeBundle, ProgressBar, display, interrupt, progress, stream,
};
pub use tunebook_tune::{
    AdaLora, AdapterConfig, AdapterInfo, Adapters, Bias, Bottleneck, BottleneckInit, Callback,
    EvalRecord, EvalStrategy, Example, Full, FullInfo, FullTuning, Ia3, Lora, LrRange, LrRangeTest,
    LrScheduler, MixedBatch, Optim, Plan, PrefixInit, PrefixTuning, Preflight, PromptTuning,
    PromptTuningInit, ReductionFactor, Run, RunLog, SaveStrategy, Schedule, StepRecord, StopReason,
    TargetModules, TensorBoard, TokenizedSet, Trainer, TrainingArgs, TrainingSummary,
};

pub use crate::compare::side_by_side;
pub use crate::history::{History as _, LrCurve as _};
pub use crate::rank_map::RankMap as _;
pub use crate::seen::{See as _, Seen};
pub use crate::show::EvcxrDisplay as _;
pub use crate::summary::Summary as _;
pub use crate::train::{Examples as _, LossCurve as _, Train as _};
