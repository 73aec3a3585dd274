//! Experience replay: some old rows among the new ones, so that training on the new does not take the
//! old away.
//!
//! The plainest remedy against forgetting (Robins, *Catastrophic forgetting, rehearsal and
//! pseudorehearsal*, 1995; [Rolnick et al. 2019](https://arxiv.org/abs/1811.11682)): a few per cent of
//! the rows of the task before, or of general data, stand between those of the new task. [Ibrahim et
//! al. 2024](https://arxiv.org/abs/2403.08763) find 5 % enough for a weak shift of a pretrained model
//! and more needed for a strong one.

use polars::prelude::IdxSize;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::dataset::Dataset;
use crate::error::{DataError, Result};
use crate::pipeline::{Pipeline, PipelineStep};

impl Dataset {
    /// These rows with rows of `old` among them, which make up `share` of the result: data of an
    /// earlier task, or general data. They are drawn without replacement, and all rows are shuffled;
    /// both follow from the seed. A larger share with the same seed draws the same old rows and more.
    ///
    /// Give the old task's *training* rows: validation rows that are replayed measure nothing any
    /// more. Columns that only one of the two sets has are filled with null.
    ///
    /// ```
    /// use tunebook_data::Dataset;
    /// let old = Dataset::from_rows(&[("Where is my parcel?", "On its way."); 50]);
    /// let new = Dataset::from_rows(&[("Do you ship to Norway?", "We do."); 90]);
    /// assert_eq!(new.with_replay(&old, 0.1, 42)?.len(), 100);
    /// # Ok::<(), tunebook_data::DataError>(())
    /// ```
    ///
    /// # Errors
    /// A share that is not between 0 and 1, a set without rows, an old set that has too few for this
    /// share, a column of different types in the two.
    pub fn with_replay(&self, old: &Dataset, share: f64, seed: u64) -> Result<Self> {
        if !(share > 0.0 && share < 1.0) {
            return Err(DataError::Setting {
                field: "the share of replayed rows",
                value: share,
                expected: "a number between 0 and 1, 0.1 for 10 % of the result",
            });
        }
        for (field, set) in [("the number of new rows", self), ("the number of old rows", old)] {
            if set.is_empty() {
                return Err(DataError::Setting { field, value: 0.0, expected: "at least 1" });
            }
        }
        let needed = (self.len() as f64 * share / (1.0 - share)).round().max(1.0) as usize;
        if needed > old.len() {
            let most = old.len() as f64 / (self.len() + old.len()) as f64;
            return Err(DataError::Replay {
                share,
                new: self.len(),
                needed,
                old: old.len(),
                // Rounded down, so that it can be given as it is printed.
                most: (most * 1e4).floor() / 1e4,
            });
        }
        let together = self.concat(&old.sample(needed, seed)?)?;
        let place = |row: usize| {
            let mut key = *b"replay\0\0\0\0\0\0\0\0"; // another draw than the sample's
            key[6..].copy_from_slice(&(row as u64).to_le_bytes());
            (xxh3_64_with_seed(&key, seed), row as IdxSize)
        };
        let mut order: Vec<(u64, IdxSize)> = (0..together.len()).map(place).collect();
        order.sort_unstable();
        let order: Vec<IdxSize> = order.into_iter().map(|(_, row)| row).collect();
        let replay =
            |old: &Pipeline| PipelineStep::Replay { share, seed, old: Box::new(old.clone()) };
        Ok(together.take(&order)?.after(self, old.pipeline().map(replay)))
    }
}
