//! Measures of answers, and the statistics of their comparison.
//!
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
pub mod statistics;

pub use error::{Error, Result};
pub use metric::TextMetric;
