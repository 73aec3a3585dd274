//! What an adapter does by itself while a run takes its steps.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::train::optim::Saved;
use crate::train::parameter::{Gradients, Parameters};

/// The part of one run that belongs to an adapter's type: AdaLoRA adds a term to the loss and
/// moves its ranks. A [`Body`](crate::adapters::body::Body) makes it at the start of the run.
pub(crate) trait Scheduled: Send + Sync {
    /// Before the gradients of step `step` (counted from 0) are measured and clipped.
    ///
    /// # Errors
    /// A schedule that does not fit into the run; a failing operation.
    fn before_clip(
        &mut self,
        step: usize,
        parameters: &Parameters,
        gradients: &mut Gradients,
    ) -> Result<()>;

    /// After the optimizer's step `step`, with the gradients that it took and the factor that
    /// clipping put on them.
    ///
    /// # Errors
    /// A failing operation.
    fn after_step(
        &mut self,
        step: usize,
        parameters: &Parameters,
        gradients: &Gradients,
        clip: f64,
    ) -> Result<()>;

    /// From now on nothing is moved, whatever steps are taken.
    fn hold(&mut self);

    /// The rank of each module that ranks move between, by path, as they are now.
    fn ranks(&self) -> BTreeMap<String, usize>;

    /// What the next step depends on, by name.
    fn state(&self) -> Saved;

    /// Puts back what [`Scheduled::state`] gave.
    fn restore(&mut self, state: &Saved);
}
