//! Data sets for fine-tuning: reading, cleaning, profiling, splitting and writing.
//!
//! - [`Dataset`]: a polars frame with the text columns `prompt` and `completion`, read from JSONL,
//!   JSON, CSV, Parquet, text files and the Hugging Face hub ([`Dataset::read`]). Rows that cannot
//!   be used are kept aside with file, line and the reason.
//! - [`Cleaning`]: named steps in order, with a report of the changed and dropped rows
//!   ([`Dataset::report`]).
//! - [`ReadReport`], [`DataSummary`]: which rows and columns of the files are used, and which are not.
//! - [`Split`]: a hold-out by hash, which appended rows never reshuffle; [`Splits::audit`] looks
//!   for leaks.
//! - [`Dataset::with_replay`] and [`Dataset::without_overlap`]: new data for a model that is trained
//!   further.
//! - [`Profile`]: lengths, languages, duplicates, markup and personal data of a set.
//! - [`TrainingText`]: the conversation or text of each row for training
//!   ([`Dataset::conversations`]).
//!
//! ```
//! use tunebook_data::{Cleaning, Dataset, Split};
//!
//! let raw = Dataset::from_rows(&[
//!     ("<p>Where is my parcel?</p>", "It left our warehouse &amp; is on its way."),
//!     ("Where is my parcel?", "It left our warehouse & is on its way."),
//!     ("CAN I CHANGE MY ADDRESS?", "Yes, until the parcel has left."),
//!     ("Do you ship to Norway?", "We do, in four days."),
//! ]);
//! let clean = raw.clean(&Cleaning::standard())?;
//! assert_eq!(clean.len(), 3); // the first two were the same row
//! assert_eq!(clean.rows()[1].prompt, "Can I change my address?");
//!
//! let split = clean.split(&Split::holdout(0.4).seed(1))?;
//! assert_eq!(split.train.len() + split.validation.len(), 3);
//! assert!(split.audit()?.is_clean());
//! # Ok::<(), tunebook_data::DataError>(())
//! ```

mod clean;
mod columns;
mod dataset;
mod error;
mod fingerprint;
mod key;
mod near;
mod pipeline;
mod profile;
mod read;
mod replay;
mod split;
mod stream;
mod summary;
mod text;
mod training_text;
mod turn;
mod write;

pub use clean::Cleaning;
pub use clean::pii::Pii;
pub use clean::quality::{Quality, Repetition};
pub use clean::report::{Change, CleanReport, StepReport};
pub use clean::step::{CleaningStep, Survivor};
pub use columns::{COMPLETION, PROMPT};
pub use dataset::{Dataset, Row};
pub use error::{DataError, Result};
pub use near::shingles::Shingles;
pub use pipeline::{Pipeline, PipelineStep, SplitSide};
pub use profile::lengths::LengthSummary;
pub use profile::{Profile, TokenCount, WorstRow};
pub use read::ReadOptions;
pub use read::report::ReadReport;
pub use read::shape::RowShape;
pub use split::audit::{Audit, LabelLeak, Overlap, OverlapKind};
pub use split::overlap::WithoutOverlap;
pub use split::{Split, Splits};
pub use stream::{Scan, Streamed};
pub use summary::DataSummary;
pub use training_text::TrainingText;
pub use turn::{Role, Turn};
pub use write::openai::{OpenAiProblem, validate_openai_chat};
