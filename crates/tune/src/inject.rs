//! Putting what an adapter changes in and out of a model. The model knows nothing of what is put in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candle_core::Var;
use tunebook_models::{Model, Projection, Slot, Weight};

use crate::error::Result;
use crate::target::Choice;

/// Everything that an active adapter puts into a model. A type of adapter that reaches into another place gets a field of its own.
#[derive(Debug, Default)]
pub(crate) struct Hooks {
    /// In place of the base's projections, by path.
    pub(crate) projections: BTreeMap<String, Arc<dyn Projection>>,
    /// In place of the base's own tensors.
    pub(crate) weights: Vec<StandIn>,
}

/// A tensor that is used in place of one of the base's.
#[derive(Debug)]
pub(crate) struct StandIn {
    pub(crate) weight: Arc<Weight>,
    pub(crate) var: Var,
    /// Whether a graph is built to it.
    pub(crate) gradients: Arc<AtomicBool>,
}

/// The model's projections that an adapter goes to, in the model's order.
///
/// # Errors
/// A target that matches nothing; the error lists what exists.
pub(crate) fn targets(model: &Model, choice: &Choice<'_>) -> Result<Vec<Arc<Slot>>> {
    let slots = model.slots();
    let paths: Vec<&str> = slots.iter().map(|slot| slot.path()).collect();
    let matched = choice.resolve(&paths)?;
    Ok(matched.into_iter().map(|index| Arc::clone(&slots[index])).collect())
}

/// Puts `hooks` in, and the base's own parts everywhere else.
///
/// # Errors
/// Something has another size than what it replaces; the base is back everywhere then.
pub(crate) fn install(model: &Model, hooks: &Hooks) -> Result<()> {
    restore(model);
    let installed = (|| {
        for slot in model.slots() {
            if let Some(layer) = hooks.projections.get(slot.path()) {
                slot.replace(Arc::clone(layer))?;
            }
        }
        for stand_in in &hooks.weights {
            stand_in.weight.stand_in(&stand_in.var, Arc::clone(&stand_in.gradients))?;
        }
        Ok(())
    })();
    if installed.is_err() {
        restore(model);
    }
    installed
}

/// Puts the base's own parts back everywhere.
pub(crate) fn restore(model: &Model) {
    model.slots().iter().for_each(|slot| slot.restore());
    model.weights().iter().for_each(|weight| weight.restore());
}
