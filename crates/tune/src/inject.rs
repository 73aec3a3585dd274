//! Putting layers in and out of a model's projections, by path. The model knows nothing of what is put in.

use std::collections::BTreeMap;
use std::sync::Arc;

use tunebook_models::{Model, Projection, Slot};

use crate::error::Result;
use crate::lora::Lora;

/// The model's projections that an adapter goes to, in the model's order.
///
/// # Errors
/// A target that matches nothing; the error lists what exists.
pub(crate) fn targets(model: &Model, config: &Lora) -> Result<Vec<Arc<Slot>>> {
    let slots = model.slots();
    let paths: Vec<&str> = slots.iter().map(|slot| slot.path()).collect();
    let matched = config.resolve(&paths)?;
    Ok(matched.into_iter().map(|index| Arc::clone(&slots[index])).collect())
}

/// Puts `layers` in by path and the base's own projection everywhere else.
///
/// # Errors
/// A layer maps between other sizes than the projection it replaces; the base is back everywhere then.
pub(crate) fn install(model: &Model, layers: &BTreeMap<String, Arc<dyn Projection>>) -> Result<()> {
    restore(model);
    for slot in model.slots() {
        if let Some(layer) = layers.get(slot.path())
            && let Err(error) = slot.replace(Arc::clone(layer))
        {
            restore(model);
            return Err(error.into());
        }
    }
    Ok(())
}

/// Puts the base's own projections back everywhere.
pub(crate) fn restore(model: &Model) {
    model.slots().iter().for_each(|slot| slot.restore());
}
