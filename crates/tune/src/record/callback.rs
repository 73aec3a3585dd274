//! An observer of a run.

use std::path::Path;

use tunebook_models::Model;

use crate::error::{Error, Result};
use crate::record::run_record::RunRecord;
use crate::record::{EvalRecord, Plan, StepRecord};

/// Sees a run as it goes. Every method does nothing unless it is written.
///
/// An error ends the run, with the weights as of the last whole step.
pub trait Callback: Send {
    /// Before the first step.
    fn on_start(&mut self, _plan: &Plan) -> Result<()> {
        Ok(())
    }

    /// Before the first step, after [`Callback::on_start`]: the record with all that is known of
    /// the run by then, and the handle that is trained.
    fn on_begin(&mut self, _run: &RunRecord, _model: &Model) -> Result<()> {
        Ok(())
    }

    /// After every optimizer step.
    fn on_step(&mut self, _record: &StepRecord) -> Result<()> {
        Ok(())
    }

    /// While the validation set is worked through: rows done, of how many.
    fn on_eval_progress(&mut self, _done: usize, _total: usize) -> Result<()> {
        Ok(())
    }

    /// After every evaluation.
    fn on_eval(&mut self, _record: &EvalRecord) -> Result<()> {
        Ok(())
    }

    /// After every checkpoint.
    fn on_save(&mut self, _step: usize, _folder: &Path) -> Result<()> {
        Ok(())
    }

    /// Asked after every step: true ends the run there, whole, as
    /// [`StopReason::Callback`](crate::StopReason::Callback).
    fn should_stop(&self) -> bool {
        false
    }

    /// When the run ends, whole or stopped.
    fn on_end(&mut self, _run: &RunRecord) -> Result<()> {
        Ok(())
    }

    /// When an error ends the run; the record is that up to the last whole step.
    fn on_fail(&mut self, _run: &RunRecord, _error: &Error) {}
}

/// A closure is a callback that sees each optimizer step.
impl<F: FnMut(&StepRecord) + Send> Callback for F {
    fn on_step(&mut self, record: &StepRecord) -> Result<()> {
        self(record);
        Ok(())
    }
}
