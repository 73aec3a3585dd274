//! Weighted mixes of adapters that no longer change: the base, plus each adapter's change of it times
//! a weight.
//!
//! With weights wᵢ, a projection of a mix gives `y + Σ wᵢ·(yᵢ − y)`, where `y` is the base's result
//! and `yᵢ` the one with adapter i alone. For adapters that change weights (LoRA, DoRA, AdaLoRA, IA3)
//! that is the projection with the weight `W + Σ wᵢ·(Wᵢ − W)`. A mix has no tensors of its own.

use std::fmt;
use std::sync::Arc;

use candle_core::Tensor;
use tunebook_models::{Branch, Context, Linear, LowRank, Model, Overlay, Projection};

use crate::adapters::frozen::FrozenAdapter;
use crate::adapters::hooks::Hooks;
use crate::adapters::registry::Generation;
use crate::error::{Error, Result};
use crate::record::fingerprint::answering;

/// A weighted mix of adapters. Clones are the same mix.
///
/// ```no_run
/// use tunebook_models::{Device, Model};
/// use tunebook_tune::{AdapterMix, FrozenAdapter};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let model = Model::load("SmolLM2-135M-Instruct", &Device::Cpu)?;
/// let support = FrozenAdapter::read(&model, "support", "out/support")?;
/// let poet = FrozenAdapter::read(&model, "poet", "out/poet")?;
/// let mix = AdapterMix::new(&model, &[(support, 0.7), (poet, 0.3)])?;
/// println!("{}", model.with_overlay(mix.overlay()).chat("Where is my parcel?")?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct AdapterMix {
    parts: Arc<[(FrozenAdapter, f64)]>,
    overlay: Arc<Overlay>,
    fingerprint: String,
}

impl AdapterMix {
    /// A mix of adapters of this model. The order of the parts and parts of weight 0 change nothing:
    /// nothing but such parts is the base, and one part of weight 1 is that adapter, bit for bit.
    ///
    /// # Errors
    /// A weight that is not finite; an adapter that has no weighted form: vectors before a text
    /// (prompt and prefix tuning), or weights of the model's own that it trained (`modules_to_save`,
    /// `bias`).
    pub fn new(model: &Model, parts: &[(FrozenAdapter, f64)]) -> Result<Self> {
        let mut parts: Vec<_> = parts.iter().filter(|(_, weight)| *weight != 0.0).collect();
        // Sums depend on their order.
        parts.sort_by(|(a, v), (b, w)| a.fingerprint().cmp(b.fingerprint()).then(v.total_cmp(w)));
        let parts: Arc<[(FrozenAdapter, f64)]> = parts.into_iter().cloned().collect();
        let refuse = |value, expected| Err(Error::Config { field: "adapters", value, expected });
        if let Some((adapter, weight)) = parts.iter().find(|(_, weight)| !weight.is_finite()) {
            let value = format!("`{}` with the weight {weight}", adapter.name());
            return refuse(value, "finite weights");
        }
        let overlay = match &*parts {
            [] => Arc::default(),
            [(adapter, 1.0)] => adapter.overlay(),
            _ => {
                let hooks = parts.iter().map(|(adapter, weight)| (adapter.hooks(), *weight));
                let hooks: Vec<(Hooks, f64)> = hooks.collect();
                for ((hooks, _), (adapter, _)) in hooks.iter().zip(parts.iter()) {
                    let (name, config) = (adapter.name(), adapter.config());
                    if hooks.virtual_tokens.is_some() || !hooks.past_key_values.is_empty() {
                        return refuse(
                            format!("`{name}`, a {config}"),
                            "adapters with a weighted form: vectors before a text are there or not, with nothing between. Ask for this one alone",
                        );
                    }
                    if !hooks.weights.is_empty() {
                        return refuse(
                            format!("`{name}`, which trained weights of the model's own"),
                            "adapters without `bias` and `modules_to_save`: whole weights are no updates that add up. Ask for this one alone",
                        );
                    }
                }
                let owner = Arc::new(Generation::Mix(Arc::clone(&parts)));
                Arc::new(mixed(model, &hooks).overlay(model)?.owned_by(owner))
            }
        };
        let fingerprint = answering(&model.with_overlay(Arc::clone(&overlay)))?;
        Ok(Self { parts, overlay, fingerprint })
    }

    /// Its adapters with their weights, in the order in which they are added.
    pub fn parts(&self) -> &[(FrozenAdapter, f64)] {
        &self.parts
    }

    /// The overlay to answer with.
    pub fn overlay(&self) -> Arc<Overlay> {
        Arc::clone(&self.overlay)
    }

    /// The fingerprint of everything that its answers depend on, as [`FrozenAdapter::fingerprint`].
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

impl fmt::Debug for AdapterMix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AdapterMix({}, {})", description(&self.parts), self.fingerprint)
    }
}

/// `support:0.7+poet:0.3`
pub(crate) fn description(parts: &[(FrozenAdapter, f64)]) -> String {
    let part = |(adapter, weight): &(FrozenAdapter, f64)| format!("{}:{weight}", adapter.name());
    parts.iter().map(part).collect::<Vec<_>>().join("+")
}

/// For each place of the model what the adapters put there, with their weights.
fn mixed(model: &Model, all: &[(Hooks, f64)]) -> Hooks {
    let mut mixed = Hooks::default();
    for slot in model.slots() {
        let part = |(hooks, weight): &(Hooks, f64)| {
            Some((Arc::clone(hooks.projections.get(slot.path())?), *weight))
        };
        let parts: Vec<_> = all.iter().filter_map(part).collect();
        if !parts.is_empty() {
            let projection = MixedProjection { base: Arc::clone(slot.base()), parts };
            mixed.projections.insert(slot.path().to_owned(), Arc::new(projection));
        }
    }
    for place in model.residuals() {
        let part = |(hooks, weight): &(Hooks, f64)| {
            Some((Arc::clone(hooks.branches.get(place.path())?), *weight))
        };
        let parts: Vec<_> = all.iter().filter_map(part).collect();
        if !parts.is_empty() {
            mixed.branches.insert(place.path().to_owned(), Arc::new(MixedBranch { parts }));
        }
    }
    mixed
}

/// Projections of several adapters in one slot.
#[derive(Debug)]
struct MixedProjection {
    base: Arc<Linear>,
    parts: Vec<(Arc<dyn Projection>, f64)>,
}

impl MixedProjection {
    /// `sum + weight·(z − y)`
    fn add(sum: &Tensor, z: &Tensor, y: &Tensor, weight: f64) -> candle_core::Result<Tensor> {
        sum + ((z - y)? * weight)?
    }
}

impl Projection for MixedProjection {
    fn forward(&self, x: &Tensor, context: &Context<'_>) -> tunebook_models::Result<Tensor> {
        let y = self.base.forward(x, context)?;
        let mut sum = y.clone();
        for (part, weight) in &self.parts {
            let updated = match part.input(x, context)? {
                Some(input) => part.update(x, &self.base.forward(&input, context)?, context)?,
                None => part.update(x, &y, context)?,
            };
            let z = match updated {
                Some(z) => z,
                None => part.forward(x, context)?,
            };
            sum = Self::add(&sum, &z, &y, *weight)?;
        }
        Ok(sum)
    }

    fn update(
        &self,
        x: &Tensor,
        y: &Tensor,
        context: &Context<'_>,
    ) -> tunebook_models::Result<Option<Tensor>> {
        let mut sum = y.clone();
        for (part, weight) in &self.parts {
            // A part that gives the base another input needs another product than `y`.
            if part.input(x, context)?.is_some() {
                return Ok(None);
            }
            let Some(z) = part.update(x, y, context)? else { return Ok(None) };
            sum = Self::add(&sum, &z, y, *weight)?;
        }
        Ok(Some(sum))
    }

    fn low_rank(&self, context: &Context<'_>) -> tunebook_models::Result<Option<Vec<LowRank>>> {
        let mut all = Vec::new();
        for (part, weight) in &self.parts {
            let Some(low) = part.low_rank(context)? else { return Ok(None) };
            all.extend(low.into_iter().map(|low| LowRank { scale: low.scale * weight, ..low }));
        }
        Ok(Some(all))
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

/// Branches of several adapters after one sublayer.
#[derive(Debug)]
struct MixedBranch {
    parts: Vec<(Arc<dyn Branch>, f64)>,
}

impl Branch for MixedBranch {
    fn forward(
        &self,
        x: &Tensor,
        y: &Tensor,
        context: &Context<'_>,
    ) -> tunebook_models::Result<Tensor> {
        let mut sum = y.clone();
        for (part, weight) in &self.parts {
            sum = MixedProjection::add(&sum, &part.forward(x, y, context)?, y, *weight)?;
        }
        Ok(sum)
    }
}
