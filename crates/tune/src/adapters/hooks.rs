//! What an adapter puts into a model's places, as an [`Overlay`]. The model knows nothing of what is
//! put in.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Var;
use tunebook_models::{
    Branch, KeysValues, Model, Overlay, Projection, Slot, VirtualTokens, Weight,
};

use crate::adapters::target::Choice;
use crate::error::Result;

/// Everything that an adapter puts into a model. A type of adapter that reaches into another place
/// gets a field of its own.
#[derive(Debug, Default)]
pub(crate) struct Hooks {
    /// In place of the base's projections, by path.
    pub(crate) projections: BTreeMap<String, Arc<dyn Projection>>,
    /// In place of the base's own tensors.
    pub(crate) weights: Vec<StandIn>,
    /// After the sublayers, by path.
    pub(crate) branches: BTreeMap<String, Arc<dyn Branch>>,
    /// Before the tokens.
    pub(crate) virtual_tokens: Option<Arc<dyn VirtualTokens>>,
    /// Before the keys and values, one for each block; empty for none.
    pub(crate) past_key_values: Vec<Arc<dyn KeysValues>>,
}

/// A tensor that is used in place of one of the base's.
#[derive(Debug)]
pub(crate) struct StandIn {
    pub(crate) weight: Arc<Weight>,
    pub(crate) var: Var,
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

impl Hooks {
    /// The overlay that has each of these in its place.
    ///
    /// # Errors
    /// Something has another size than what it replaces.
    pub(crate) fn overlay(self, model: &Model) -> Result<Overlay> {
        let mut overlay = Overlay::default();
        for slot in model.slots() {
            if let Some(projection) = self.projections.get(slot.path()) {
                overlay.put_projection(&slot, Arc::clone(projection))?;
            }
        }
        for place in model.residuals() {
            if let Some(branch) = self.branches.get(place.path()) {
                overlay.put_branch(&place, Arc::clone(branch));
            }
        }
        if let Some(vectors) = self.virtual_tokens {
            overlay.put_virtual_tokens(vectors);
        }
        if !self.past_key_values.is_empty() {
            overlay.put_past_key_values(&model.past_key_values(), self.past_key_values)?;
        }
        for StandIn { weight, var } in self.weights {
            overlay.put_weight(&weight, var)?;
        }
        Ok(overlay)
    }
}
