//! AdaLoRA's allocation of rank, step by step: PEFT's `RankAllocator` and `update_and_allocate`.
//!
//! The importance of a number is |w·g|, smoothed; its uncertainty is how far that strays from the
//! smoothed one, smoothed in turn. Their product is its score, and a triplet (one singular value
//! with its two directions) scores the sum of E's score, the mean of A's row and the mean of B's
//! column. Of all triplets of all modules the best are kept, as many as the budget has: all of them
//! up to `tinit`, then falling as a cube to `target_r` for each module at `tfinal` steps before the
//! end. What is dropped has its singular value set to zero; it may come back until the last
//! allocation.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};

use crate::adapters::adalora::{AdaLora, AdaLoraBody, AdaLoraLinear, Masks};
use crate::adapters::scheduled::Scheduled;
use crate::error::Result;
use crate::train::optim::Saved;
use crate::train::parameter::{Gradients, Parameters, with_f32};

/// Sensitivity and uncertainty of one tensor, smoothed.
#[derive(Debug, Clone, PartialEq)]
struct Importance {
    sensitivity: Vec<f32>,
    uncertainty: Vec<f32>,
}

/// What the allocation of a run depends on beside the weights.
#[derive(Debug, Clone, PartialEq, Default)]
struct Allocation {
    /// By the tensor's name.
    importance: BTreeMap<String, Importance>,
    masks: Option<Masks>,
    budget: usize,
}

// PEFT's names of the two
const SENSITIVITY: &str = ".exp_avg_ipt";
const UNCERTAINTY: &str = ".exp_avg_unc";
const MASK: &str = ".mask";

impl Allocation {
    /// For a run that starts where `body` is now.
    fn new(body: &AdaLoraBody) -> Self {
        Self { importance: BTreeMap::new(), masks: body.masks(), budget: 0 }
    }

    /// After step `step` of `total` (counted from 0), with the gradients that it took and what they
    /// were scaled with.
    ///
    /// # Errors
    /// A failing operation.
    fn update(
        &mut self,
        body: &AdaLoraBody,
        parameters: &Parameters,
        gradients: &Gradients,
        scale: f64,
        (step, total): (usize, usize),
    ) -> Result<()> {
        let config = &body.config;
        let last = total.saturating_sub(config.tfinal);
        if step < last {
            self.note(config, parameters, gradients, scale)?;
        }
        let all = body.layers.len() * config.init_r;
        let (budget, due) = budget(config, all, body.layers.len() * config.target_r, step, total);
        self.budget = budget;
        if step > last {
            // The ranks stay, but the optimizer has moved what was zero.
            if let Some(masks) = &self.masks {
                apply(&body.layers, masks)?;
            }
            return Ok(());
        }
        if due || step == last {
            let masks = self.choose(&body.layers, all.saturating_sub(budget))?;
            apply(&body.layers, &masks)?;
            self.masks = Some(masks);
        }
        if step == last {
            self.importance.clear();
        }
        Ok(())
    }

    /// Smooths the importance of each number.
    fn note(
        &mut self,
        config: &AdaLora,
        parameters: &Parameters,
        gradients: &Gradients,
        scale: f64,
    ) -> Result<()> {
        let (beta1, beta2) = (config.beta1 as f32, config.beta2 as f32);
        let (rest1, rest2) = ((1.0 - config.beta1) as f32, (1.0 - config.beta2) as f32);
        for (parameter, gradient) in parameters.iter().zip(gradients.iter()) {
            let (Some(gradient), true) = (gradient, parameter.name.contains(".lora_")) else {
                continue;
            };
            let count = parameter.var.elem_count();
            let zeros =
                || Importance { sensitivity: vec![0.0; count], uncertainty: vec![0.0; count] };
            let importance = self.importance.entry(parameter.name.clone()).or_insert_with(zeros);
            let host = |tensor: &Tensor| tensor.to_device(&Device::Cpu);
            let (value, gradient) = (host(&parameter.var.as_detached_tensor())?, host(gradient)?);
            with_f32(&value, |values| {
                with_f32(&gradient, |gradients| {
                    let smoothed =
                        importance.sensitivity.iter_mut().zip(&mut importance.uncertainty);
                    for ((sensitivity, uncertainty), (w, g)) in
                        smoothed.zip(values.iter().zip(gradients))
                    {
                        let now = (w * (g * scale as f32)).abs();
                        *sensitivity = beta1 * *sensitivity + rest1 * now;
                        *uncertainty = beta2 * *uncertainty + rest2 * (now - *sensitivity).abs();
                    }
                })
            })??;
        }
        Ok(())
    }

    /// The masks that drop the `drop` worst triplets of all, and what is no better than the last of
    /// them.
    fn choose(&self, layers: &[Arc<AdaLoraLinear>], drop: usize) -> Result<Masks> {
        let mut scores: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for layer in layers {
            scores.insert(layer.path.clone(), self.scores(layer)?);
        }
        let mut ranking: Vec<f32> = scores.values().flatten().copied().collect();
        ranking.sort_by(f32::total_cmp);
        let threshold = drop.checked_sub(1).and_then(|last| ranking.get(last)).copied();
        let kept = |score: &f32| threshold.is_none_or(|threshold| *score > threshold);
        Ok(scores
            .into_iter()
            .map(|(path, scores)| (path, scores.iter().map(kept).collect()))
            .collect())
    }

    /// One for each singular value.
    fn scores(&self, layer: &AdaLoraLinear) -> Result<Vec<f32>> {
        let of = |factor: &str| -> Vec<f32> {
            let found = self.importance.get(&format!("{}.{factor}", layer.path));
            let product = |(sensitivity, uncertainty): (&f32, &f32)| sensitivity * uncertainty;
            found.map_or_else(Vec::new, |i| {
                i.sensitivity.iter().zip(&i.uncertainty).map(product).collect()
            })
        };
        let (r, width) = layer.lora_a.dims2()?;
        let out = layer.lora_b.dims2()?.0;
        let (a, e, b) = (of("lora_A"), of("lora_E"), of("lora_B"));
        let mean = |sum: f64, count: usize| (sum / count as f64) as f32;
        Ok((0..r)
            .map(|i| {
                let row = a.get(i * width..(i + 1) * width).unwrap_or_default();
                let column = (0..out).filter_map(|o| b.get(o * r + i));
                let row: f64 = row.iter().map(|value| f64::from(*value)).sum();
                let column: f64 = column.map(|value| f64::from(*value)).sum();
                e.get(i).copied().unwrap_or(0.0) + (mean(row, width) + mean(column, out))
            })
            .collect())
    }

    /// The state by name, for a checkpoint.
    fn saved(&self) -> Saved {
        let mut saved = Saved::default();
        for (name, importance) in &self.importance {
            saved.f32s.insert(format!("{name}{SENSITIVITY}"), importance.sensitivity.clone());
            saved.f32s.insert(format!("{name}{UNCERTAINTY}"), importance.uncertainty.clone());
        }
        for (path, mask) in self.masks.iter().flatten() {
            saved
                .bytes
                .insert(format!("{path}{MASK}"), mask.iter().map(|kept| u8::from(*kept)).collect());
        }
        saved
    }

    /// Puts back what [`Allocation::saved`] gave.
    fn restored(saved: &Saved) -> Self {
        let mut importance = BTreeMap::new();
        let names: Vec<String> = saved
            .f32s
            .keys()
            .filter_map(|key| key.strip_suffix(SENSITIVITY).map(str::to_owned))
            .collect();
        for name in names {
            let take = |key: &str| saved.f32s.get(&format!("{name}{key}")).cloned();
            if let (Some(sensitivity), Some(uncertainty)) = (take(SENSITIVITY), take(UNCERTAINTY)) {
                importance.insert(name, Importance { sensitivity, uncertainty });
            }
        }
        let masks: Masks = saved
            .bytes
            .iter()
            .filter_map(|(key, bytes)| {
                Some((
                    key.strip_suffix(MASK)?.to_owned(),
                    bytes.iter().map(|byte| *byte != 0).collect(),
                ))
            })
            .collect();
        Self { importance, masks: Some(masks).filter(|masks| !masks.is_empty()), budget: 0 }
    }
}

/// AdaLoRA's part in one run.
pub(crate) struct RankSchedule {
    body: Arc<AdaLoraBody>,
    total_steps: usize,
    /// `None`: the ranks stay as they are.
    allocation: Option<Allocation>,
}

impl RankSchedule {
    /// For a run of `total_steps` that starts where `body` is now.
    pub(crate) fn new(body: Arc<AdaLoraBody>, total_steps: usize) -> Self {
        let allocation = Some(Allocation::new(&body));
        Self { body, total_steps, allocation }
    }
}

impl Scheduled for RankSchedule {
    fn before_clip(
        &mut self,
        _step: usize,
        parameters: &Parameters,
        gradients: &mut Gradients,
    ) -> Result<()> {
        if self.allocation.is_some() {
            self.body.config.check_schedule(self.body.start_run(self.total_steps))?;
        }
        add_orthogonality(&self.body, parameters, gradients)
    }

    fn after_step(
        &mut self,
        step: usize,
        parameters: &Parameters,
        gradients: &Gradients,
        clip: f64,
    ) -> Result<()> {
        let Some(allocation) = &mut self.allocation else { return Ok(()) };
        let at = (step, self.body.start_run(self.total_steps));
        allocation.update(&self.body, parameters, gradients, clip, at)?;
        self.body.set_masks(allocation.masks.clone());
        Ok(())
    }

    fn hold(&mut self) {
        self.allocation = None;
    }

    fn ranks(&self) -> BTreeMap<String, usize> {
        self.body.ranks()
    }

    fn state(&self) -> Saved {
        self.allocation.as_ref().map(Allocation::saved).unwrap_or_default()
    }

    fn restore(&mut self, state: &Saved) {
        let allocation = Allocation::restored(state);
        self.body.set_masks(allocation.masks.clone());
        self.allocation = Some(allocation);
    }
}

/// How many triplets are kept after step `step` of `total`, from `all` down to `target`, and
/// whether they are chosen anew.
fn budget(config: &AdaLora, all: usize, target: usize, step: usize, total: usize) -> (usize, bool) {
    let last = total.saturating_sub(config.tfinal);
    if step <= config.tinit {
        return (all, false);
    }
    if step > last {
        return (target, true);
    }
    let left = 1.0 - (step - config.tinit) as f64 / (last - config.tinit) as f64;
    let budget = (all - target) as f64 * left.powi(3) + target as f64;
    (budget as usize, step.is_multiple_of(config.delta_t))
}

/// Sets the singular values to zero that the masks drop.
fn apply(layers: &[Arc<AdaLoraLinear>], masks: &Masks) -> Result<()> {
    for layer in layers {
        let Some(mask) = masks.get(&layer.path) else { continue };
        let kept: Vec<f32> = mask.iter().map(|kept| f32::from(u8::from(*kept))).collect();
        let e = &layer.lora_e;
        let kept = Tensor::from_vec(kept, e.shape(), e.device())?;
        e.set(&(e.as_detached_tensor() * kept)?)?;
    }
    Ok(())
}

/// Adds the gradient of the term that keeps A and B orthogonal: `orth_reg_weight` · mean of ‖AAᵀ −
/// I‖ and ‖BᵀB − I‖.
///
/// With M = AAᵀ − I, which is symmetric, the gradient of ‖M‖ is 2·M·A / ‖M‖; of ‖BᵀB − I‖ it is
/// 2·B·M / ‖M‖.
///
/// # Errors
/// A failing operation.
fn add_orthogonality(
    body: &AdaLoraBody,
    parameters: &Parameters,
    gradients: &mut Gradients,
) -> Result<()> {
    let factor = body.config.orth_reg_weight / (2 * body.layers.len()).max(1) as f64;
    if factor == 0.0 {
        return Ok(());
    }
    let at: BTreeMap<&str, usize> = parameters
        .iter()
        .enumerate()
        .map(|(index, parameter)| (parameter.name.as_str(), index))
        .collect();
    for layer in &body.layers {
        let gradient = |var: &Var, of_rows: bool| -> Result<Tensor> {
            let w = var.as_detached_tensor();
            let r = if of_rows { w.dim(0)? } else { w.dim(1)? };
            let product = if of_rows { w.matmul(&w.t()?)? } else { w.t()?.matmul(&w)? };
            let m = (product - Tensor::eye(r, w.dtype(), w.device())?)?;
            // Not read by the host, which would wait for the device. Where M is zero, so is the
            // gradient.
            let norm = m.sqr()?.sum_all()?.sqrt()?.maximum(f64::from(f32::MIN_POSITIVE))?;
            let turned = if of_rows { m.matmul(&w)? } else { w.matmul(&m)? };
            Ok((turned.broadcast_div(&norm)? * (2.0 * factor))?)
        };
        for (name, var, of_rows) in
            [("lora_A", &layer.lora_a, true), ("lora_B", &layer.lora_b, false)]
        {
            if let Some(index) = at.get(format!("{}.{name}", layer.path).as_str()) {
                gradients.add(*index, gradient(var, of_rows)?)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_falls_as_a_cube() {
        let config = AdaLora {
            init_r: 4,
            target_r: 2,
            tinit: 5,
            tfinal: 15,
            delta_t: 2,
            ..Default::default()
        };
        let at = |step| budget(&config, 24, 12, step, 50);
        assert_eq!(at(0), (24, false));
        assert_eq!(at(5), (24, false));
        // 12 · (29/30)³ + 12 = 22.8
        assert_eq!(at(6), (22, true));
        assert!(!at(7).1);
        // 12 · (1/2)³ + 12 = 13.5
        assert_eq!(at(20), (13, true));
        assert_eq!(at(35).0, 12);
        assert_eq!(at(36), (12, true));
    }

    #[test]
    fn a_state_is_saved_whole() {
        let allocation = Allocation {
            importance: [(
                "q.lora_A".to_owned(),
                Importance { sensitivity: vec![1.0, 2.0], uncertainty: vec![3.0, 4.0] },
            )]
            .into(),
            masks: Some([("q".to_owned(), vec![true, false])].into()),
            budget: 0,
        };
        assert_eq!(Allocation::restored(&allocation.saved()), allocation);
    }
}
