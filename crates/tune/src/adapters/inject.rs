//! Putting what an adapter changes in and out of a model. The model knows nothing of what is put
//! in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candle_core::Var;
use tunebook_models::{Branch, Joint, KeysValues, Model, Projection, Slot, Vectors, Weight};

use crate::adapters::target::Choice;
use crate::error::Result;

/// Everything that an active adapter puts into a model. A type of adapter that reaches into another
/// place gets a field of its own.
#[derive(Debug, Default)]
pub(crate) struct Hooks {
    /// In place of the base's projections, by path.
    pub(crate) projections: BTreeMap<String, Arc<dyn Projection>>,
    /// In place of the base's own tensors.
    pub(crate) weights: Vec<StandIn>,
    /// After the sublayers, by path.
    pub(crate) branches: BTreeMap<String, Arc<dyn Branch>>,
    /// Before the tokens.
    pub(crate) front: Option<Arc<dyn Vectors>>,
    /// Before the keys and values, one for each block; empty for none.
    pub(crate) pasts: Vec<Arc<dyn KeysValues>>,
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
        for joint in model.joints() {
            if let Some(branch) = hooks.branches.get(joint.path()) {
                joint.replace(Arc::clone(branch));
            }
        }
        if let Some(front) = &hooks.front {
            model.front().replace(Arc::clone(front));
        }
        for (past, keys_values) in model.pasts().iter().zip(&hooks.pasts) {
            past.replace(Arc::clone(keys_values));
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

/// What stands in the model's places now, its own tensors aside.
pub(crate) fn in_place(model: &Model) -> Hooks {
    let slot = |slot: &Arc<Slot>| (slot.path().to_owned(), slot.current());
    let joint = |joint: &Arc<Joint>| Some((joint.path().to_owned(), joint.current()?));
    Hooks {
        projections: model.slots().iter().map(slot).collect(),
        branches: model.joints().iter().filter_map(joint).collect(),
        front: model.front().current(),
        pasts: model.pasts().iter().filter_map(|past| past.current()).collect(),
        weights: Vec::new(),
    }
}

/// Puts `hooks`, which fit the model, into its places, and the base's own parts everywhere else;
/// the model's own tensors stay as they are.
pub(crate) fn replace(model: &Model, hooks: &Hooks) {
    for slot in model.slots() {
        // Of the same sizes as the base, so it cannot fail; if it did, the base is there.
        if hooks
            .projections
            .get(slot.path())
            .is_none_or(|layer| slot.replace(Arc::clone(layer)).is_err())
        {
            slot.restore();
        }
    }
    for joint in model.joints() {
        match hooks.branches.get(joint.path()) {
            Some(branch) => joint.replace(Arc::clone(branch)),
            None => joint.restore(),
        }
    }
    match &hooks.front {
        Some(front) => model.front().replace(Arc::clone(front)),
        None => model.front().restore(),
    }
    for (block, past) in model.pasts().iter().enumerate() {
        match hooks.pasts.get(block) {
            Some(keys_values) => past.replace(Arc::clone(keys_values)),
            None => past.restore(),
        }
    }
}

/// Puts the base's own parts back everywhere.
pub(crate) fn restore(model: &Model) {
    model.slots().iter().for_each(|slot| slot.restore());
    model.joints().iter().for_each(|joint| joint.restore());
    model.front().restore();
    model.pasts().iter().for_each(|past| past.restore());
    model.weights().iter().for_each(|weight| weight.restore());
}
