//! From a file of prompt/completion pairs to a set one can train on and trust.
//!
//! - [`Dataset`]: a polars frame with the text columns `prompt` and `completion`, read from JSONL,
//!   JSON, CSV, Parquet, text files and the Hugging Face hub ([`Dataset::read`]). Rows that cannot
//!   be used are kept aside with file, line and the reason.
//! - [`Cleaning`]: named steps in order; each says what it changed and dropped
//!   ([`Dataset::report`]).
//! - [`Split`]: a hold-out by hash, which appended rows never reshuffle; [`Splits::audit`] looks
//!   for leaks.
//! - [`Profile`]: what is in a set, before one trusts it.
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

mod audit;
mod backticks;
mod boilerplate;
mod casing;
mod clean;
mod csv;
mod dataset;
mod decompress;
mod error;
mod fields;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::print_stderr)]
mod fuzz;
mod html;
mod hub;
mod json;
mod jsonl;
mod key;
mod language;
mod lengths;
mod markdown;
mod minhash;
mod mojibake;
mod near;
mod openai;
mod parquet;
mod pii;
mod profile;
mod quality;
mod read;
mod shape;
mod shingles;
mod source;
mod spill;
mod split;
mod step;
mod stream;
mod table;
mod text;
mod whitespace;
mod write;

pub use audit::{Audit, LabelLeak, Overlap, OverlapKind};
pub use clean::{CleanReport, Cleaning, Example, StepReport};
pub use dataset::{COMPLETION, Dataset, PROMPT, Row};
pub use error::{DataError, Result};
pub use openai::{OpenAiProblem, validate_openai_chat};
pub use pii::Pii;
pub use profile::{LengthSummary, Profile, TokenCount, WorstRow};
pub use quality::{Quality, Repetition};
pub use read::ReadOptions;
pub use shape::Shape;
pub use shingles::Shingles;
pub use split::{Partition, Split, Splits};
pub use step::{Step, Survivor};
pub use stream::{Scan, Streamed};
