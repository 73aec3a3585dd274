//! Measures of answers, and the statistics of their comparison.
//!
//! - [`metric`]: text metrics. Each is a sum over rows and a function of the sums ([`TextMetric`]),
//!   from exact match to BLEU, chrF, TER and ROUGE, which equal sacreBLEU's and rouge-score's.
//!
//! ```
//! use tunebook_evaluate::metric::{self, ExactMatch, TextMetric};
//!
//! let metric = ExactMatch::normalised();
//! let rows = [
//!     metric.statistics("The Nile.", &["Nile".into()])?,
//!     metric.statistics("the Amazon", &["Nile".into()])?,
//! ];
//! assert_eq!(metric.score(&metric::sums(&rows)), 0.5);
//! # Ok::<(), tunebook_evaluate::Error>(())
//! ```

mod error;
pub mod metric;

pub use error::{Error, Result};
pub use metric::TextMetric;
