//! Everything that a cell needs, by one `use`.
//!
//! The names are those of the field: polars' for frames, candle's for tensors, PEFT's and
//! `transformers`' for adapters and training. None of them shadows a name of Rust's own prelude, of
//! polars or of candle. Every type in a signature is here, too. Errors have the names of their
//! rooms ([`DataError`], [`ModelError`], [`TuneError`]): a method of a [`Callback`] gives
//! `Result<(), TuneError>`.

// Names by `*` only: of two equal ones neither would win, and the compiler says so. A name that is
// exported by itself would take polars' place in silence.
#![deny(ambiguous_glob_reexports)]

pub use others::*;
pub use own::*;
pub use polars::prelude::*;

mod others {
    pub use candle_core::{D, DType, Device, Module, Shape, Tensor, Var};
    pub use plotly::{self, Layout, Plot};
    pub use {candle_core, candle_nn, candle_transformers, polars, serde_json, tokenizers};
}

mod own {
    pub use tunebook_charts::{
        Bar, Cell, Figure, Gap, HeatMap, Line, LineChart, LossChart, LossPoint, Panel, Panels,
        ParetoChart, ParetoPoint, Sample, Table, bar_chart, histogram, line_chart, loss_curve,
    };
    pub use tunebook_data::{
        Audit, Change as CleanChange, CleanReport, Cleaning, CleaningStep, DataError, DataSummary,
        Dataset, LabelLeak, LengthSummary, OpenAiProblem, Overlap, OverlapKind, Pii, Pipeline,
        PipelineStep, Profile, Quality, ReadOptions, ReadReport, Repetition, Role, Row, RowShape,
        Scan, Shingles, Split, SplitSide, Splits, StepReport, Streamed, Survivor, TrainingText,
        Turn, WithoutOverlap, WorstRow, validate_openai_chat,
    };
    pub use tunebook_evaluate::classes::{
        ClassAverage, ClassReport, ClassScores, Confusion, LabelIssue, Reliability, ReliabilityBin,
        label_issues,
    };
    pub use tunebook_evaluate::metric::{
        Bleu, BleuTokenizer, Chrf, Contains, DistinctN, EditDistance, ExactMatch, JsonSchema,
        JsonValid, MetricFn, Normalise, NumericAnswer, Occurrence, RegexMatch, Renamed, Rouge,
        RougeKind, Smoothing, Ter, TextMetric, TokenF1, metric_fn,
    };
    pub use tunebook_evaluate::statistics::Interval;
    pub use tunebook_evaluate::{
        AnswerEnd, AnswerForm, Canary, ChangedRow, Classification, ComparedScore, Comparison,
        Diagnosis, Drift, Error as EvaluateError, EvalExample, EvalPrompt, Evaluation,
        EvaluationArgs, Exposure, Extraction, Fact, FactKind, Finding, Forgetting, ForgettingArgs,
        FormIssue, FormKind, IntoExamples, Passage, PassageIndex, Recited, RowResult, Score,
        SliceScores, Verdict, evaluate, evaluate_with, extraction, forgetting, forgetting_with,
        unsupported,
    };
    pub use tunebook_models::{
        AnswerFormat, AnswerGrammar, BestDevice, ChatTemplate, ChatTokenizer, ChoiceScore, Choices,
        Completion, Config as ModelConfig, DEFAULT_MODEL, Digits, Divergence, EngineConfig,
        EngineHandle, Error as ModelError, Finish, FinishReason, GenerationConfig,
        GenerationEngine, GenerationEvent, GenerationRequest, Gguf, GgufArray, GgufType, GgufValue,
        LogLikelihood, Message, Model, Quantization, RequestId, TextLoss, TokenScore, TokenUsage,
        TokenizedText, Tokenizer, models_dir,
    };
    pub use tunebook_progress::{
        Display, MimeBundle, Progress, ProgressBar, Stop, clear, display, input, interrupt,
        password, progress, stream,
    };
    pub use tunebook_runs::{
        Alias, AliasGeneration, Benchmark, CardArgs, CardError, ComparisonRecord, DamagedFile,
        DataRecipe, DataRecord, Error as RegistryError, EvaluationRecord, Garbage, GarbageArgs,
        GarbageItem, License, ModelCard, ModelDtype, ModelRecipe, PromotionKind, Recipe,
        RecipeArgs, Recorder, Registry, RunComparison, RunData, RunNote, SetRecord, StrategyRecipe,
        Touched, TouchedAdapter, TrainedRecipe, Why, WhyLink, row_id,
    };
    pub use tunebook_serve::{
        Access, AccessLog, AdapterSource, AdapterStatus, ApiKey, Error as ServeError, EventLog,
        Limits, ModelStatus, Serve, Server, ServerConfig, ServerState, ServerStatus, Watch,
        WeakServer,
    };
    pub use tunebook_tune::{
        Active, AdaLora, AdapterConfig, AdapterInfo, AdapterMix, Adapters, BASE, Bias, Bottleneck,
        BottleneckInit, Callback, CombinationType, Error as TuneError, EvalRecord, EvalStrategy,
        Example, ExampleSets, Fingerprints, FrozenAdapter, Full, FullInfo, FullTuning, Ia3,
        IntoSets, Lora, LoraInit, LrPoint, LrRange, LrRangeTest, LrScheduler, MeasureResult,
        Metric, Optim, Plan, PrefixInit, PrefixTuning, Preflight, PromptTuning, PromptTuningInit,
        ReductionFactor, Run, RunLog, RunRecord, RunRows, SaveStrategy, Schedule, StepRecord,
        StopReason, Strategy, TargetModules, TensorBoard, TokenizedExample, TokenizedSet, Trainer,
        TrainingArgs, TrainingSummary,
    };

    pub use crate::compare::{compare_runs, side_by_side};
    pub use crate::course::{Scale, UnknownScale};
    pub use crate::evaluate::{ComparisonViews as _, EvaluationViews as _};
    pub use crate::history::{History as _, LrCurve as _};
    pub use crate::rank_map::RankMap as _;
    pub use crate::report::{Report, ReportPart};
    pub use crate::seen::{See as _, Seen, SeenToken};
    pub use crate::show::EvcxrDisplay as _;
    pub use crate::strategies::{
        Candidate, StrategyComparison, StrategyResult, compare_strategies,
    };
    pub use crate::summary::Summary as _;
    pub use crate::tradeoff::forgetting_chart;
    pub use crate::train::{Examples as _, LossCurve as _};
}

/// Nor do the names shadow candle's: this does not compile if one does. Two modules, since candle's
/// crates share names with each other.
#[cfg(test)]
pub mod beside_candle {
    /// With `candle_core`.
    pub mod core {
        pub use super::super::own::*;
        pub use candle_core::*;
    }
    /// With `candle_nn`.
    pub mod nn {
        pub use super::super::own::*;
        pub use candle_nn::*;
    }
}
