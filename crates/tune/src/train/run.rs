//! A run: its record, and the state from which it goes on.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tunebook_models::Model;

use crate::error::{Error, Result};
use crate::record::fingerprint::Fingerprints;
use crate::record::run_record::{RunRecord, StopReason, Strategy};
use crate::train::args::TrainingArgs;
use crate::train::step::RunState;
use crate::train::trained::{Weights, moved_before};

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
        self.record.fmt(f)?;
        match self.record.stopped {
            Some(StopReason::Interrupted) => write!(f, "; `resume` goes on from there"),
            _ => Ok(()),
        }
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
    /// What is to go on now is of another strategy, other arguments, another base, tokenizer or chat
    /// template, or other rows than this run: all that differs.
    pub(crate) fn check_continues(&self, now: &Now<'_>) -> Result<()> {
        let Now { model, args, adapter, strategy, fingerprints } = now;
        if self.adapter != *adapter {
            let problem =
                format!("it trained the adapter `{}`, and `{adapter}` is active", self.adapter);
            return Err(Error::Continue { problem });
        }
        let moved = moved_before(model)?.is_some();
        let mut problems: Vec<String> = Vec::new();
        let differences = strategy.differences(&self.strategy, moved)?;
        problems.extend(differences.iter().map(ToString::to_string));
        problems.extend(args.differences(&self.args)?.iter().map(ToString::to_string));
        let (was, is) = (&self.fingerprints, fingerprints);
        // Full fine-tuning moves the base itself.
        let moves = moved && matches!(strategy, Strategy::Full(_));
        if was.base != is.base && !moves {
            let (here, there) = (model.name(), &self.base_model);
            problems.push(format!(
                "the weights of the base `{here}` are not the run's (`{there}`, {}): another model, or \
                 the same in another type of number",
                self.dtype
            ));
        }
        if was.tokenizer != is.tokenizer {
            problems.push("the tokenizer is not the run's".to_owned());
        }
        if was.chat_template != is.chat_template {
            problems.push("the chat template is not the run's".to_owned());
        }
        if was.train != is.train {
            problems
                .push("the training set is not the run's: another order or other rows".to_owned());
        }
        // Without evaluations there are no rows to compare.
        if let (Some(was), Some(is)) = (&was.validation, &is.validation)
            && was != is
        {
            problems.push(
                "the validation set is not the run's: another order or other rows".to_owned(),
            );
        }
        match problems.as_slice() {
            [] => Ok(()),
            _ => Err(Error::Continue {
                problem: format!(
                    "{}. Go on with what the run had, or begin a new run, with an `output_dir` of its \
                     own if it writes checkpoints",
                    problems.join("; ")
                ),
            }),
        }
    }
}

/// What is to go on with a run.
#[derive(Debug)]
pub(crate) struct Now<'a> {
    pub(crate) model: &'a Model,
    pub(crate) args: &'a TrainingArgs,
    /// The name of what is trained.
    pub(crate) adapter: &'a str,
    pub(crate) strategy: Strategy,
    pub(crate) fingerprints: Fingerprints,
}
