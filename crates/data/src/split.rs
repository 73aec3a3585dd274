//! A hold-out that stays put: which side a row is on depends on its prompt and the seed, and on nothing else.
//!
//! Hashing an id instead of shuffling rows means that appended rows never move old ones between training and validation, so
//! losses stay comparable while a set grows. The id is the prompt's words (case, punctuation and spaces aside), so copies
//! of one prompt are always on one side.

use std::fmt;

use polars::prelude::*;
use serde::{Deserialize, Serialize};

use crate::audit::Audit;
use crate::dataset::Dataset;
use crate::error::{DataError, Result};
use crate::text::{counted, excerpt};
use crate::{key, near};

/// Fewer validation rows than this say little: the loss on them is mostly chance.
const FEW_ROWS: usize = 30;

/// How to divide a data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// The share of prompts held out for validation, between 0 and 1. The default is 0.12.
    pub fraction: f64,
    /// Another seed holds out other prompts. The default is 42.
    pub seed: u64,
    /// Keeps prompts that are nearly the same on one side. The default is false: only prompts of the same words stay together.
    #[serde(default)]
    pub near_duplicates_together: bool,
}

impl Default for Split {
    fn default() -> Self {
        Self { fraction: 0.12, seed: 42, near_duplicates_together: false }
    }
}

impl Split {
    /// Holds out this fraction of the prompts for validation (10 to 15 % is usual). As each prompt is decided on its own,
    /// the share of a small set differs by a few rows.
    pub fn holdout(fraction: f64) -> Self {
        Self { fraction, ..Self::default() }
    }

    /// Chooses other prompts.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Keeps groups of nearly the same prompts on one side, that of the group's earliest row. Appended rows then move old ones
    /// only where they join two groups into one.
    #[must_use]
    pub fn near_duplicates_together(mut self) -> Self {
        self.near_duplicates_together = true;
        self
    }

    /// Whether a row with this prompt is held out, if no other row decides for it.
    pub fn holds_out(&self, prompt: &str) -> bool {
        key::unit_interval(prompt, self.seed) < self.fraction
    }

    pub(crate) fn apply(&self, dataset: &Dataset) -> Result<Splits> {
        if !(self.fraction > 0.0 && self.fraction < 1.0) {
            return Err(DataError::Setting {
                field: "the hold-out fraction",
                value: self.fraction,
                expected: "a number between 0 and 1, 0.12 for 12 %",
            });
        }
        let prompts: Vec<&str> = dataset.pairs().map(|pair| pair.0).collect();
        let deciding: Vec<usize> = if self.near_duplicates_together {
            near::groups(prompts.len(), &near::pairs(&prompts, near::THRESHOLD, &|_, _| true)?)
        } else {
            (0..prompts.len()).collect()
        };
        let (mut train, mut validation) = (Vec::new(), Vec::new());
        for (row, deciding) in deciding.into_iter().enumerate() {
            if self.holds_out(prompts[deciding]) { &mut validation } else { &mut train }.push(row as IdxSize);
        }
        for (side, rows) in [("training", &train), ("validation", &validation)] {
            if rows.is_empty() {
                return Err(DataError::EmptySide {
                    side,
                    fraction: self.fraction,
                    seed: self.seed,
                    rows: dataset.len(),
                    prompts: dataset.distinct_prompts(),
                });
            }
        }
        Ok(Splits { train: dataset.take(&train)?, validation: dataset.take(&validation)? })
    }
}

/// The two sides of a split.
#[derive(Clone)]
pub struct Splits {
    /// The rows to learn from.
    pub train: Dataset,
    /// The rows held out to judge by.
    pub validation: Dataset,
}

impl Splits {
    /// Looks for rows of the validation side that the training side gives away.
    ///
    /// # Errors
    /// The user pressed Stop.
    pub fn audit(&self) -> Result<Audit> {
        Audit::of(self)
    }

    /// A word of caution when the validation side is too small to judge by.
    pub fn caution(&self) -> Option<String> {
        (self.validation.len() < FEW_ROWS).then(|| {
            format!(
                "{} for validation: the loss on so few is mostly chance. Prefer {FEW_ROWS} or more",
                counted(self.validation.len(), "row")
            )
        })
    }
}

impl fmt::Display for Splits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = (self.train.len() + self.validation.len()).max(1);
        for (name, side) in [("train", &self.train), ("validation", &self.validation)] {
            let share = 100.0 * side.len() as f64 / total as f64;
            writeln!(f, "{name:<10} {:>12} ({share:.1} %)", counted(side.len(), "row"))?;
        }
        if let Some(caution) = self.caution() {
            writeln!(f, "{caution}")?;
        }
        let first = self.validation.row(0).map(|row| excerpt(&row.prompt, 70)).unwrap_or_default();
        write!(f, "held out, for example: {first}")
    }
}

impl fmt::Debug for Splits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
