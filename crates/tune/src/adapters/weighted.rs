//! Several LoRAs combined into one: PEFT's `add_weighted_adapter`.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use tunebook_models::Model;

use crate::adapters::config::AdapterConfig;
use crate::adapters::lora::Lora;
use crate::adapters::lora::svd;
use crate::adapters::registry::Registry;
use crate::adapters::{Adapter, build};
use crate::error::{Error, Result};
use crate::files::in_model;

/// How adapters are combined. With weights wᵢ and scalings sᵢ:
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CombinationType {
    /// A is Σ ±√|wᵢ·sᵢ|·Aᵢ and B is Σ √|wᵢ·sᵢ|·Bᵢ. All of one rank. Fast and rough: the product has
    /// terms of Aᵢ with Bⱼ, too.
    Linear,
    /// The Aᵢ below one another, the Bᵢ beside one another: exactly Σ wᵢ·sᵢ·Bᵢ·Aᵢ, with the sum of
    /// the ranks.
    Cat,
    /// The best approximation of Σ wᵢ·sᵢ·Bᵢ·Aᵢ of this rank; `None`: the largest of the ranks.
    Svd {
        /// Rank of the result.
        rank: Option<usize>,
    },
    /// As `Linear`, but of each tensor the largest part only, and of these the values that have the
    /// sign of their sum, averaged ([TIES, Yadav et al. 2023](https://arxiv.org/abs/2306.01708)).
    Ties {
        /// The part of the values that is kept, in 0..=1.
        density: f64,
    },
    /// As `Linear`, of each tensor the largest part only.
    MagnitudePrune {
        /// The part of the values that is kept, in 0..=1.
        density: f64,
    },
}

const ONE_RANK: &str = "one rank for all; `Cat` and `Svd` take any";

/// A `[r, in]` and B `[out, r]` of one adapter in a layer, and what their product is multiplied by.
type Part = ((Tensor, Tensor), f64);

/// A new adapter that sums these, each with its weight.
///
/// # Errors
/// As [`Adapters::add_weighted_adapter`](crate::Adapters::add_weighted_adapter).
pub(super) fn combine(
    model: &Model,
    adapters: &[(&str, f64)],
    name: &str,
    combination: CombinationType,
) -> Result<Adapter> {
    let registry = Registry::of(model);
    let refuse =
        |value: String, expected| Err(Error::Config { field: "adapters", value, expected });
    if adapters.is_empty() {
        return refuse("empty".to_owned(), "at least one adapter");
    }
    let mut parts: Vec<(Arc<Adapter>, f64)> = Vec::with_capacity(adapters.len());
    for (of, weight) in adapters {
        let adapter = registry.lock().get(of)?.adapter;
        match &adapter.config() {
            AdapterConfig::Lora(lora) if lora.use_dora => {
                return refuse(format!("`{of}` with DoRA"), "LoRAs: DoRA's lengths do not add up");
            }
            config if adapter.body.lora().is_none() => {
                return refuse(format!("`{of}`, a {config}"), "LoRAs: no other type can be summed");
            }
            _ if adapter.own.tensors().next().is_some() => {
                return refuse(
                    format!("`{of}`, which trained weights of the model's own"),
                    "LoRAs without `bias` and `modules_to_save`: whole weights are no updates that add up",
                );
            }
            _ => {}
        }
        if !weight.is_finite() {
            return refuse(format!("`{of}` with the weight {weight}"), "finite weights");
        }
        parts.push((adapter, *weight));
    }
    // In the order in which they are met, and for each what is summed in it.
    let mut layers: Vec<(String, Vec<Part>)> = Vec::new();
    let mut ranks = Vec::with_capacity(parts.len());
    for (adapter, weight) in &parts {
        let mut largest = 0;
        // Copies, since a run may train it.
        let _of_one_step = adapter.between_steps();
        for layer in adapter.body.lora().unwrap_or_default() {
            let (a, b) = layer.plain()?;
            largest = largest.max(a.dim(0)?);
            let part = ((a.copy()?, b.copy()?), weight * layer.scaling());
            match layers.iter_mut().find(|(path, _)| path == layer.path()) {
                Some((_, parts)) => parts.push(part),
                None => layers.push((layer.path().to_owned(), vec![part])),
            }
        }
        ranks.push(largest);
    }
    let rank = combination.rank(&ranks)?;
    if combination.needs_one_rank() {
        // `rank_pattern` gives layers ranks of their own.
        for (path, parts) in &layers {
            let ranks: Vec<usize> = parts.iter().map(|((a, _), _)| a.dims()[0]).collect();
            if ranks.iter().any(|rank| *rank != ranks[0]) {
                return refuse(format!("of ranks {ranks:?} in `{path}`"), ONE_RANK);
            }
        }
    }
    let paths: Vec<String> = layers.iter().map(|(path, _)| path.clone()).collect();
    let config = Lora {
        r: rank,
        lora_alpha: rank as f64, // a scaling of 1
        target_modules: paths.clone().into(),
        ..Default::default()
    };
    let target_modules = in_model::written_out(model, &paths, &config.clone().into());
    let adapter = build(model, name, Lora { target_modules, ..config }.into())?;
    for layer in adapter.body.lora().unwrap_or_default() {
        let Some((_, parts)) = layers.iter().find(|(path, _)| path == layer.path()) else {
            continue;
        };
        let (a, b) = combination.combine(parts, rank)?;
        layer.lora_a().set(&a)?;
        layer.lora_b().set(&b)?;
    }
    adapter.set_moved();
    Ok(adapter)
}

impl CombinationType {
    /// # Errors
    /// A density outside 0..=1, a rank of 0, or ranks that must be equal and are not.
    fn rank(self, ranks: &[usize]) -> Result<usize> {
        let refuse = |field, value: String, expected| Err(Error::Config { field, value, expected });
        if let Self::Ties { density } | Self::MagnitudePrune { density } = self
            && !(0.0..=1.0).contains(&density)
        {
            return refuse(
                "CombinationType.density",
                density.to_string(),
                "at least 0 and at most 1",
            );
        }
        let largest = ranks.iter().copied().max().unwrap_or(0);
        match self {
            Self::Cat => Ok(ranks.iter().sum()),
            Self::Svd { rank: Some(0) } => {
                refuse("CombinationType.rank", "0".to_owned(), "at least 1")
            }
            Self::Svd { rank } => Ok(rank.unwrap_or(largest)),
            _ if ranks.iter().any(|rank| *rank != largest) => {
                refuse("adapters", format!("of ranks {ranks:?}"), ONE_RANK)
            }
            _ => Ok(largest),
        }
    }

    /// Whether it adds the A and the B themselves.
    fn needs_one_rank(self) -> bool {
        !matches!(self, Self::Cat | Self::Svd { .. })
    }

    /// A `[rank, in]` and B `[out, rank]` of the combined layer, for a scaling of 1.
    ///
    /// # Shapes
    /// All parts are of the same projection, and none has more than `rank`.
    fn combine(self, parts: &[Part], rank: usize) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Cat => {
                let a =
                    parts.iter().map(|((a, _), w)| Ok((a * *w)?)).collect::<Result<Vec<_>>>()?;
                let b: Vec<&Tensor> = parts.iter().map(|((_, b), _)| b).collect();
                Ok((filled(Tensor::cat(&a, 0)?, rank, 0)?, filled(Tensor::cat(&b, 1)?, rank, 1)?))
            }
            Self::Svd { .. } => {
                // Σ wᵢ·Bᵢ·Aᵢ is one product: of the Bᵢ beside one another, and the Aᵢ below.
                let a =
                    parts.iter().map(|((a, _), w)| Ok((a * *w)?)).collect::<Result<Vec<_>>>()?;
                let b: Vec<&Tensor> = parts.iter().map(|((_, b), _)| b).collect();
                svd::truncated(&Tensor::cat(&b, 1)?, &Tensor::cat(&a, 0)?, rank)
            }
            _ => {
                let weight = |w: &f64| w.abs().sqrt();
                let a: Vec<(&Tensor, f64)> = parts
                    .iter()
                    .map(|((a, _), w)| (a, weight(w) * if *w < 0.0 { -1.0 } else { 1.0 }))
                    .collect();
                let b: Vec<(&Tensor, f64)> =
                    parts.iter().map(|((_, b), w)| (b, weight(w))).collect();
                Ok((filled(self.sum(&a)?, rank, 0)?, filled(self.sum(&b)?, rank, 1)?))
            }
        }
    }

    fn sum(self, tensors: &[(&Tensor, f64)]) -> Result<Tensor> {
        let Some((like, _)) = tensors.first() else {
            return Err(candle_core::Error::Msg("nothing to combine".to_owned()).bt().into());
        };
        let density = match self {
            Self::Ties { density } | Self::MagnitudePrune { density } => density,
            _ => 1.0,
        };
        let mut values = Vec::with_capacity(tensors.len());
        for (tensor, weight) in tensors {
            let mut of = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
            prune(&mut of, density);
            values.push((of, *weight as f32));
        }
        let combined: Vec<f32> = (0..like.elem_count())
            .map(|i| {
                if !matches!(self, Self::Ties { .. }) {
                    return values.iter().map(|(of, weight)| of[i] * weight).sum();
                }
                let positive = values.iter().map(|(of, _)| of[i]).sum::<f32>() >= 0.0;
                let agree = |value: f32| if positive { value > 0.0 } else { value < 0.0 };
                let chosen = values.iter().filter(|(of, _)| agree(of[i]));
                let count = chosen.clone().count().max(1) as f32;
                chosen.map(|(of, weight)| of[i] * weight).sum::<f32>() / count
            })
            .collect();
        Ok(Tensor::from_vec(combined, like.shape(), like.device())?)
    }
}

/// Keeps the largest part of the values, the first of equals.
fn prune(values: &mut [f32], density: f64) {
    let kept = (density * values.len() as f64) as usize;
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
    order.iter().skip(kept).for_each(|index| values[*index] = 0.0);
}

/// Zeros up to `rank` along a dimension: a projection that not all of the adapters sit on, or in
/// which they have a smaller rank than elsewhere.
fn filled(tensor: Tensor, rank: usize, dim: usize) -> Result<Tensor> {
    let missing = rank.saturating_sub(tensor.dim(dim)?);
    if missing == 0 { Ok(tensor) } else { Ok(tensor.pad_with_zeros(dim, 0, missing)?) }
}
