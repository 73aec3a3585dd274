//! A different adapter for each row of a batch: PEFT's `adapter_names`.
//!
//! The rows that share an adapter go through its layers together, those without one through the
//! base, and the rest of the model sees one batch. For inference; each adapter is trained by
//! itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::Tensor;
use tunebook_models::{Branch, GenerationConfig, Model, Projection, rows};

use crate::adapters;
use crate::adapters::inject::{self, Hooks};
use crate::error::{Error, Result};

/// PEFT's name for rows without an adapter.
pub const BASE: &str = "__base__";

/// A model whose batches are of texts that have an adapter each; see
/// [`Adapters::mixed_batch`](crate::Adapters::mixed_batch).
///
/// After each call the model is as it was before: the same adapter is active.
#[derive(Debug, Clone)]
pub struct MixedBatch {
    model: Model,
    adapter_names: Vec<String>,
}

impl MixedBatch {
    /// # Errors
    /// A name that is no adapter's and not [`BASE`], or an adapter that cannot share a batch.
    pub(crate) fn new(model: &Model, adapter_names: &[&str]) -> Result<Self> {
        let mixed = Self {
            model: model.clone(),
            adapter_names: adapter_names.iter().map(|name| (*name).to_owned()).collect(),
        };
        mixed.hooks()?;
        Ok(mixed)
    }

    /// The adapter of each text, in their order.
    pub fn adapter_names(&self) -> &[String] {
        &self.adapter_names
    }

    /// Logits at every position, each row with its adapter.
    ///
    /// # Shapes
    /// `ids` `[b, t]` u32, b being the number of names -> `[b, t, vocab]`.
    ///
    /// # Errors
    /// Another number of rows; an adapter that was deleted since; as [`Model::forward`].
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let texts: Vec<usize> = (0..self.check(ids.dim(0)?)?).collect();
        self.mixed(|model| rows::with(&texts, || model.forward(ids)))
    }

    /// Continues each prompt with its adapter; see [`Model::generate_batch`].
    ///
    /// # Errors
    /// Another number of prompts than names; an adapter that was deleted since; as there.
    pub fn generate_batch(
        &self,
        prompts: &[String],
        config: &GenerationConfig,
    ) -> Result<Vec<String>> {
        self.check(prompts.len())?;
        self.mixed(|model| model.generate_batch(prompts, config))
    }

    /// Continues each prompt with its adapter, token ids to token ids; see [`Model::generate_ids`].
    ///
    /// # Errors
    /// As [`MixedBatch::generate_batch`].
    pub fn generate_ids(
        &self,
        prompts: &[Vec<u32>],
        config: &GenerationConfig,
    ) -> Result<Vec<Vec<u32>>> {
        self.check(prompts.len())?;
        self.mixed(|model| model.generate_ids(prompts, config))
    }

    /// Answers each message with its adapter; see [`Model::chat_batch`].
    ///
    /// # Errors
    /// As [`MixedBatch::generate_batch`]; when the model has no chat template.
    pub fn chat_batch(&self, users: &[String], config: &GenerationConfig) -> Result<Vec<String>> {
        self.check(users.len())?;
        self.mixed(|model| model.chat_batch(users, config))
    }

    fn check(&self, texts: usize) -> Result<usize> {
        match texts == self.adapter_names.len() {
            true => Ok(texts),
            false => Err(Error::Config {
                field: "adapter_names",
                value: format!("{} names for {texts} texts", self.adapter_names.len()),
                expected: "one name for each text",
            }),
        }
    }

    /// What stands in the model while the batch goes through.
    fn hooks(&self) -> Result<Hooks> {
        let names: BTreeSet<&String> =
            self.adapter_names.iter().filter(|name| *name != BASE).collect();
        let mut parts: BTreeMap<&String, Hooks> = BTreeMap::new();
        for name in names {
            let hooks = adapters::hooks(&self.model, name)?;
            let why = if hooks.front.is_some() || !hooks.pasts.is_empty() {
                "virtual tokens, which would shift the positions of its rows alone"
            } else if !hooks.weights.is_empty() {
                "weights of the model itself (bias, modules_to_save), of which a batch has one set"
            } else {
                parts.insert(name, hooks);
                continue;
            };
            return Err(Error::Config {
                field: "adapter_names",
                value: format!("`{name}`, which has {why}"),
                expected: "adapters that change projections or add to sublayers' outputs (LoRA, IA3, bottleneck adapters)",
            });
        }
        let mut mixed = Hooks::default();
        for slot in self.model.slots() {
            let by_name = |name: &String| parts.get(name)?.projections.get(slot.path()).cloned();
            let own: Vec<_> = self.adapter_names.iter().map(by_name).collect();
            if own.iter().any(Option::is_some) {
                let mixed_projection =
                    MixedProjection { base: slot.base(), before: slot.current(), own };
                mixed.projections.insert(slot.path().to_owned(), Arc::new(mixed_projection));
            }
        }
        for joint in self.model.joints() {
            let by_name = |name: &String| parts.get(name)?.branches.get(joint.path()).cloned();
            let own: Vec<_> = self.adapter_names.iter().map(by_name).collect();
            if own.iter().any(Option::is_some) {
                let branch = MixedBranch { before: joint.current(), own };
                mixed.branches.insert(joint.path().to_owned(), Arc::new(branch));
            }
        }
        Ok(mixed)
    }

    /// Does `work` with the mixed layers in the model, and puts back what was there, however the
    /// work ends.
    fn mixed<T>(&self, work: impl FnOnce(&Model) -> tunebook_models::Result<T>) -> Result<T> {
        /// Puts everything back, however the work ends.
        struct Back<'a>(&'a Model, Hooks);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                inject::replace(self.0, &self.1);
            }
        }
        let hooks = self.hooks()?;
        if self.model.weights().iter().any(|weight| weight.is_replaced()) {
            return Err(Error::Config {
                field: "adapter_names",
                value: "of a batch, while the active adapter has trained weights of the model itself (bias, modules_to_save)".to_owned(),
                expected: "that adapter to be switched off first: `disable_adapters()`",
            });
        }
        let _back = Back(&self.model, inject::in_place(&self.model));
        inject::replace(&self.model, &hooks);
        Ok(work(&self.model)?)
    }
}

/// The rows of a batch that share a layer: that of the first of them, and their numbers.
fn groups<T: ?Sized>(texts: &[usize], own: &[Option<Arc<T>>]) -> Vec<(Option<Arc<T>>, Vec<u32>)> {
    let mut groups: Vec<(Option<Arc<T>>, Vec<u32>)> = Vec::new();
    for (row, text) in (0..).zip(texts) {
        let layer = own.get(*text).cloned().flatten();
        let same = |other: &Option<Arc<T>>| match (other, &layer) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        match groups.iter_mut().find(|(other, _)| same(other)) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((layer, vec![row])),
        }
    }
    groups
}

/// Puts the results of groups of rows into the order of the rows.
///
/// # Shapes
/// Each part `[rows of the group, ..]` -> `[b, ..]`.
fn in_order(parts: &[Tensor], rows: &[u32]) -> tunebook_models::Result<Tensor> {
    let mut place = vec![0u32; rows.len()];
    for (at, row) in (0..).zip(rows) {
        if let Some(place) = place.get_mut(*row as usize) {
            *place = at;
        }
    }
    let all = Tensor::cat(parts, 0)?;
    Ok(all.index_select(&Tensor::from_vec(place, rows.len(), all.device())?, 0)?)
}

#[derive(Debug)]
struct MixedProjection {
    base: Arc<dyn Projection>,
    /// For calls that are of no batch of ours.
    before: Arc<dyn Projection>,
    /// For each text.
    own: Vec<Option<Arc<dyn Projection>>>,
}

impl Projection for MixedProjection {
    fn forward(&self, x: &Tensor) -> tunebook_models::Result<Tensor> {
        let Some(texts) = rows::current() else { return self.before.forward(x) };
        let groups = groups(&texts, &self.own);
        if let [(layer, _)] = &groups[..] {
            return layer.as_ref().unwrap_or(&self.base).forward(x);
        }
        let (mut parts, mut order) =
            (Vec::with_capacity(groups.len()), Vec::with_capacity(texts.len()));
        for (layer, rows) in groups {
            let index = Tensor::new(rows.as_slice(), x.device())?;
            parts.push(layer.as_ref().unwrap_or(&self.base).forward(&x.index_select(&index, 0)?)?);
            order.extend(rows);
        }
        in_order(&parts, &order)
    }

    fn in_features(&self) -> usize {
        self.base.in_features()
    }

    fn out_features(&self) -> usize {
        self.base.out_features()
    }

    fn weight(&self) -> Tensor {
        self.base.weight()
    }
}

#[derive(Debug)]
struct MixedBranch {
    /// For calls that are of no batch of ours.
    before: Option<Arc<dyn Branch>>,
    /// For each text.
    own: Vec<Option<Arc<dyn Branch>>>,
}

impl Branch for MixedBranch {
    fn forward(&self, x: &Tensor, y: &Tensor) -> tunebook_models::Result<Tensor> {
        let Some(texts) = rows::current() else {
            return match &self.before {
                Some(branch) => branch.forward(x, y),
                None => Ok(y.clone()),
            };
        };
        let (mut parts, mut order) = (Vec::new(), Vec::with_capacity(texts.len()));
        for (layer, rows) in groups(&texts, &self.own) {
            let index = Tensor::new(rows.as_slice(), x.device())?;
            let y = y.index_select(&index, 0)?;
            parts.push(match layer {
                Some(branch) => branch.forward(&x.index_select(&index, 0)?, &y)?,
                None => y,
            });
            order.extend(rows);
        }
        in_order(&parts, &order)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn rows_come_back_in_their_order() {
        let row =
            |values: &[f32]| Tensor::from_slice(values, (values.len(), 1), &Device::Cpu).unwrap();
        let y = in_order(&[row(&[0., 3.]), row(&[1.]), row(&[2.])], &[0, 3, 1, 2]).unwrap();
        assert_eq!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0., 1., 2., 3.]);
    }

    #[test]
    fn rows_that_share_a_layer_go_together() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let own = [Some(a.clone()), None, Some(b), Some(a), None];
        let found: Vec<_> = groups(&[4, 3, 2, 0], &own)
            .into_iter()
            .map(|(layer, rows)| (layer.as_deref().map(str::to_owned), rows))
            .collect();
        assert_eq!(
            found,
            [(None, vec![0]), (Some("a".to_owned()), vec![1, 3]), (Some("b".to_owned()), vec![2])]
        );
    }
}
