//! Evaluations: a model's answers, their measures, and the statistics of their comparison.
//!
//! - [`evaluate`] judges what a model answers, [`Evaluation::compare`] two of them.
//! - [`metric`]: text metrics. Each is a sum over rows and a function of the sums ([`TextMetric`]),
//!   from exact match to BLEU, chrF, TER and ROUGE, which equal sacreBLEU's and rouge-score's.
//! - [`classes`]: the report of a classifier: precision, recall and F1 by class, the confusion
//!   table, calibration.
//! - [`statistics`]: intervals and tests: Wilson, McNemar, bootstrap over rows or clusters, Holm,
//!   and the smallest difference that so many rows can show.
//!
//! ```
//! use tunebook_evaluate::metric::{self, ExactMatch, TextMetric};
//! use tunebook_evaluate::statistics::wilson;
//!
//! let metric = ExactMatch::normalised();
//! let rows = [
//!     metric.statistics("The Nile.", &["Nile".into()])?,
//!     metric.statistics("the Amazon", &["Nile".into()])?,
//! ];
//! assert_eq!(metric.score(&metric::sums(&rows)), 0.5);
//! assert!(wilson(1, 2, 0.95)?.low < 0.1); // two rows say little
//! # Ok::<(), tunebook_evaluate::Error>(())
//! ```

pub mod classes;
mod error;
pub mod metric;
mod run;
pub mod statistics;
mod watch;

pub use error::{Error, Result};
pub use metric::TextMetric;
pub use run::answers::AnswerEnd;
pub use run::args::EvaluationArgs;
pub use run::comparison::{ChangedRow, ComparedScore, Comparison, Verdict};
pub use run::evaluate::{evaluate, evaluate_with};
pub use run::evaluation::{Classification, Evaluation, RowResult, Score, SliceScores};
pub use run::example::{EvalExample, EvalPrompt, IntoExamples, List};
pub use watch::diagnosis::{Diagnosis, Finding};
pub use watch::forgetting::{Drift, Forgetting, ForgettingArgs, forgetting, forgetting_with};
pub use watch::grounding::{Fact, FactKind, unsupported};
pub use watch::memorisation::{Canary, Exposure, Extraction, Recited, extraction};
pub use watch::passages::{Passage, PassageIndex};
pub use watch::style::{AnswerForm, FormIssue, FormKind};
