//! A run: its record, and the state from which it goes on.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::record::run_record::RunRecord;
use crate::train::args::TrainingArgs;
use crate::train::step::RunState;
use crate::train::trained::Weights;

/// A [`RunRecord`], whose fields and methods it has, and what
/// [`Trainer::resume`](crate::Trainer::resume) needs to go on from the last whole step.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its own number, which it keeps when it goes on: its checkpoints are known by it.
    pub(crate) id: String,
    pub(crate) record: RunRecord,
    /// The weights of the best evaluation so far, when they are wanted at the end.
    pub(crate) best: Option<Arc<Best>>,
    /// What the next step depends on.
    pub(crate) state: Arc<RunState>,
}

/// The weights of the best evaluation so far.
#[derive(Clone)]
pub(crate) struct Best {
    pub(crate) step: usize,
    pub(crate) weights: Weights,
}

impl fmt::Debug for Best {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Best").field("step", &self.step).finish_non_exhaustive()
    }
}

impl Deref for Run {
    type Target = RunRecord;

    fn deref(&self) -> &RunRecord {
        &self.record
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.record.fmt(f)
    }
}

/// A number that no other run has.
pub(crate) fn new_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{:x}-{:x}-{count:x}", since.as_nanos(), std::process::id())
}

impl Run {
    /// The facts of this run, without the state to go on from.
    pub fn record(&self) -> &RunRecord {
        &self.record
    }

    /// # Errors
    /// The run is of other arguments, another adapter or another training set.
    pub(crate) fn check_continues(
        &self,
        args: &TrainingArgs,
        adapter: &str,
        train: &str,
    ) -> Result<()> {
        let refuse = |problem: String| Err(Error::Continue { problem });
        let differing = self.args.differing(args)?;
        if !differing.is_empty() {
            return refuse(format!("other arguments than the run's: {}", differing.join(", ")));
        }
        if self.adapter != adapter {
            return refuse(format!(
                "it trained the adapter `{}`, and `{adapter}` is active",
                self.adapter
            ));
        }
        if self.fingerprints.train != train {
            return refuse(
                "the training set is not the run's: another order or other rows".to_owned(),
            );
        }
        Ok(())
    }
}
