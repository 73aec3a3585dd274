//! How the rows of a set came about, as plain data: a file and steps. From it they are made again,
//! byte for byte, if the file is the same.
//!
//! Every set that was read from a file carries its pipeline along ([`Dataset::pipeline`]) through all
//! of this crate's functions on sets. Rows that come from elsewhere (a list in a program, a frame) have
//! none.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clean::Cleaning;
use crate::clean::step::CleaningStep;
use crate::dataset::Dataset;
use crate::error::{DataError, Result};
use crate::read::ReadOptions;
use crate::read::shape::RowShape;
use crate::split::Split;

/// A file and what is done to its rows, in order.
///
/// ```no_run
/// use tunebook_data::{Cleaning, Dataset, Split};
/// let raw = Dataset::read("datasets/support/tickets_raw.jsonl")?;
/// let split = raw.clean(&Cleaning::standard())?.split(&Split::holdout(0.12))?;
/// let pipeline = split.train.pipeline().expect("the rows come from a file");
/// assert_eq!(pipeline.run()?.fingerprint(), split.train.fingerprint());
/// # Ok::<(), tunebook_data::DataError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// A file, a folder, a pattern, or a data set of the hub (`owner/name`), as [`Dataset::read`] takes
    /// it.
    pub path: String,
    /// See [`ReadOptions::shape`]. Default none: it is recognised.
    #[serde(default)]
    pub shape: Option<RowShape>,
    /// See [`ReadOptions::files`]. Default none.
    #[serde(default)]
    pub files: Option<String>,
    /// What is done to the rows, in order. Default nothing.
    #[serde(default)]
    pub steps: Vec<PipelineStep>,
}

/// One step of a [`Pipeline`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum PipelineStep {
    /// [`Dataset::clean`] with these steps.
    Clean(Vec<CleaningStep>),
    /// [`Dataset::head`].
    Head {
        /// How many rows stay.
        rows: usize,
    },
    /// [`Dataset::sample`].
    Sample {
        /// How many rows stay.
        rows: usize,
        /// Which ones.
        seed: u64,
    },
    /// One side of [`Dataset::split`].
    Side {
        /// Which one.
        side: SplitSide,
        /// The settings.
        split: Split,
    },
    /// One side of one of [`Dataset::folds`].
    Fold {
        /// Which fold, counted from 0.
        fold: usize,
        /// How many folds there are.
        folds: usize,
        /// Which side of it.
        side: SplitSide,
        /// The settings.
        split: Split,
    },
    /// [`Dataset::concat`]: the rows of another set behind these.
    Concat(Box<Pipeline>),
    /// [`Dataset::with_replay`].
    Replay {
        /// The share of the old rows in the result, between 0 and 1.
        share: f64,
        /// Which rows, and the order of all.
        seed: u64,
        /// The old rows.
        old: Box<Pipeline>,
    },
    /// [`Dataset::without_overlap`] with this held-out set.
    WithoutOverlap(Box<Pipeline>),
}

/// A side of a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitSide {
    /// The training rows.
    Train,
    /// The validation rows.
    Validation,
    /// The test rows.
    Test,
}

impl fmt::Display for SplitSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        })
    }
}

impl Pipeline {
    /// The rows of a file, as they are read.
    pub fn new(path: &str, options: &ReadOptions) -> Self {
        Self {
            path: path.to_owned(),
            shape: options.shape.clone(),
            files: options.files.clone(),
            steps: Vec::new(),
        }
    }

    /// The same with one more step.
    #[must_use]
    pub fn with(mut self, step: PipelineStep) -> Self {
        self.steps.push(step);
        self
    }

    /// Reads the file and does the steps.
    ///
    /// # Errors
    /// Those of the functions that the steps name; a side that the split does not have.
    pub fn run(&self) -> Result<Dataset> {
        let options = ReadOptions { shape: self.shape.clone(), files: self.files.clone() };
        let rows = Dataset::read_with(&self.path, &options)?;
        self.steps.iter().try_fold(rows, |rows, step| step.run(&rows))
    }
}

impl PipelineStep {
    /// Does the step to these rows.
    ///
    /// # Errors
    /// As [`Pipeline::run`].
    pub fn run(&self, rows: &Dataset) -> Result<Dataset> {
        match self {
            Self::Clean(steps) => rows.clean(&Cleaning { steps: steps.clone() }),
            Self::Head { rows: count } => Ok(rows.head(*count)),
            Self::Sample { rows: count, seed } => rows.sample(*count, *seed),
            Self::Side { side, split } => rows.split(split)?.side(*side),
            Self::Fold { fold, folds, side, split } => {
                match rows.folds(*folds, split)?.into_iter().nth(*fold) {
                    Some(splits) => splits.side(*side),
                    None => Err(DataError::Setting {
                        field: "the fold",
                        value: *fold as f64,
                        expected: "a number below that of the folds, counted from 0",
                    }),
                }
            }
            Self::Concat(other) => rows.concat(&other.run()?),
            Self::Replay { share, seed, old } => rows.with_replay(&old.run()?, *share, *seed),
            Self::WithoutOverlap(held_out) => Ok(rows.without_overlap(&held_out.run()?)?.kept),
        }
    }
}
