//! Tables with a vector for each token or position.

use std::sync::Arc;

use candle_core::Tensor;

use crate::error::Result;
use crate::layers::Weight;
use crate::pass::Pass;

/// One vector for each token.
#[derive(Clone, Debug)]
pub struct Embedding {
    weight: Arc<Weight>,
}

impl Embedding {
    /// # Shapes
    /// `weight` `[vocab, hid]`.
    pub fn new(weight: Arc<Weight>) -> Self {
        Self { weight }
    }

    /// The table, `[vocab, hid]`.
    pub fn weight(&self) -> &Arc<Weight> {
        &self.weight
    }

    /// # Shapes
    /// `ids` `[b, t]` u32 -> `[b, t, hid]`.
    ///
    /// # Errors
    /// When an id is not below `vocab`.
    pub(crate) fn forward(&self, ids: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        pass.by_overlay(
            ids,
            |overlay| overlay.weight(&self.weight).is_some(),
            |ids, context| {
                let (b, t) = ids.dims2()?;
                // [b, t] -> [b·t, hid] -> [b, t, hid]
                let rows = context.weight(&self.weight).select(&ids.flatten_all()?)?;
                Ok(rows.reshape((b, t, ()))?)
            },
        )
    }
}
