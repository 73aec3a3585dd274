//! An overlay: everything that stands in a model's places besides its own parts.
//!
//! Overlays are immutable. An adapter, a merged adapter and a full fine-tune are each one overlay;
//! switching stores a pointer to another, and whoever holds one keeps it until done.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

use candle_core::Var;

use crate::error::{Error, Result};
use crate::hooks::past_key_values::{KeysValues, PastKeyValues};
use crate::hooks::residual::{Branch, Residual};
use crate::hooks::virtual_tokens::VirtualTokens;
use crate::layers::{Projection, Slot, Weight};

/// Everything that stands in a model's places besides its own parts. The default is the base
/// itself.
///
/// ```
/// use tunebook_models::Overlay;
/// assert!(Overlay::default().is_base());
/// ```
#[derive(Clone, Default)]
pub struct Overlay {
    /// By the slot's index; may be shorter than the model's list.
    projections: Vec<Option<Arc<dyn Projection>>>,
    /// By the place's index; may be shorter than the model's list.
    branches: Vec<Option<Arc<dyn Branch>>>,
    virtual_tokens: Option<Arc<dyn VirtualTokens>>,
    /// One for each block, or none.
    past_key_values: Vec<Arc<dyn KeysValues>>,
    /// By the weight's index.
    weights: BTreeMap<usize, Var>,
    owner: Option<Arc<dyn Any + Send + Sync>>,
}

impl Overlay {
    /// The overlay of the base: nothing stands anywhere.
    pub(crate) fn base() -> &'static Self {
        static BASE: LazyLock<Overlay> = LazyLock::new(Overlay::default);
        &BASE
    }

    /// Whether nothing stands anywhere.
    pub fn is_base(&self) -> bool {
        self.projections.is_empty()
            && self.branches.is_empty()
            && self.virtual_tokens.is_none()
            && self.past_key_values.is_empty()
            && self.weights.is_empty()
    }

    /// Puts a projection in a slot.
    ///
    /// # Errors
    /// When it maps between other sizes than the slot's own.
    pub fn put_projection(&mut self, slot: &Slot, projection: Arc<dyn Projection>) -> Result<()> {
        let base = slot.base();
        let (found, expected) = (
            [projection.out_features(), projection.in_features()],
            [base.out_features(), base.in_features()],
        );
        if found != expected {
            return Err(Error::Shape {
                origin: "the replacement".to_owned(),
                name: slot.path().to_owned(),
                expected: expected.to_vec(),
                found: found.to_vec(),
            });
        }
        put(&mut self.projections, slot.index(), projection);
        Ok(())
    }

    /// Puts a branch after a sublayer.
    pub fn put_branch(&mut self, place: &Residual, branch: Arc<dyn Branch>) {
        put(&mut self.branches, place.index(), branch);
    }

    /// Puts vectors before the tokens of every text.
    pub fn put_virtual_tokens(&mut self, vectors: Arc<dyn VirtualTokens>) {
        self.virtual_tokens = Some(vectors);
    }

    /// Puts keys and values before those of each block's tokens, one for each block in their order.
    ///
    /// # Errors
    /// When there is not one for each of these places.
    pub fn put_past_key_values(
        &mut self,
        places: &[Arc<PastKeyValues>],
        pasts: Vec<Arc<dyn KeysValues>>,
    ) -> Result<()> {
        if pasts.len() != places.len() {
            return Err(Error::Argument {
                field: "past_key_values",
                value: format!("for {} blocks", pasts.len()),
                expected: "keys and values for each block of the model",
            });
        }
        self.past_key_values = pasts;
        Ok(())
    }

    /// Lets a variable stand in for a weight.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn put_weight(&mut self, weight: &Weight, var: Var) -> Result<()> {
        weight.check_shape(&var)?;
        self.weights.insert(weight.index(), var);
        Ok(())
    }

    /// The value that the overlay was made of, kept with it. [`Overlay::owner`] gives it back.
    #[must_use]
    pub fn owned_by<T: Any + Send + Sync>(self, owner: Arc<T>) -> Self {
        Self { owner: Some(owner), ..self }
    }

    /// The value that the overlay was made of, if it is of this type.
    pub fn owner<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.owner.clone()?.downcast().ok()
    }

    /// The projection in a slot, if it is not the slot's own.
    pub fn projection(&self, slot: &Slot) -> Option<&Arc<dyn Projection>> {
        self.projections.get(slot.index())?.as_ref()
    }

    /// The branch after a sublayer.
    pub fn branch(&self, place: &Residual) -> Option<&Arc<dyn Branch>> {
        self.branches.get(place.index())?.as_ref()
    }

    /// The vectors before the tokens.
    pub fn virtual_tokens(&self) -> Option<&Arc<dyn VirtualTokens>> {
        self.virtual_tokens.as_ref()
    }

    /// The keys and values before those of a block's tokens.
    pub fn past_key_values(&self, block: usize) -> Option<&Arc<dyn KeysValues>> {
        self.past_key_values.get(block)
    }

    /// The variable that stands in for a weight.
    pub fn weight(&self, weight: &Weight) -> Option<&Var> {
        // Most overlays have none, and every layer of every pass asks.
        if self.weights.is_empty() { None } else { self.weights.get(&weight.index()) }
    }

    /// How many vectors stand before the tokens.
    pub fn virtual_count(&self) -> usize {
        self.virtual_tokens.as_ref().map_or(0, |vectors| vectors.count())
    }

    /// How many positions stand before the keys and values.
    pub fn past_count(&self) -> usize {
        self.past_key_values.first().map_or(0, |past| past.count())
    }

    /// How many positions of the context are taken before a text begins.
    pub fn positions_before(&self) -> usize {
        self.virtual_count() + self.past_count()
    }
}

fn put<T>(list: &mut Vec<Option<T>>, index: usize, value: T) {
    if list.len() <= index {
        list.resize_with(index + 1, || None);
    }
    list[index] = Some(value);
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlay")
            .field("projections", &self.projections.iter().flatten().count())
            .field("branches", &self.branches.iter().flatten().count())
            .field("virtual_tokens", &self.virtual_count())
            .field("past_key_values", &self.past_count())
            .field("weights", &self.weights.len())
            .finish()
    }
}
