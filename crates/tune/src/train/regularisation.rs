//! Regularisation towards the start: two remedies against forgetting, both off by default.
//!
//! - **L2-SP** ([Li et al. 2018](https://arxiv.org/abs/1802.01483)): the trained tensors are drawn
//!   towards their values before the first step, θ ← θ − lr · `l2_sp` · (θ − θ₀), decoupled from Adam's
//!   moments as AdamW's decay is.
//! - **KL to the base** (learning without forgetting, [Li and Hoiem
//!   2016](https://arxiv.org/abs/1606.09282), at temperature 1): `kl_coef` times the mean KL(base ‖
//!   trained) over the tokens that bear a loss is added to the loss.
//!
//! The direction of the divergence is distillation's: the rows are given and not drawn from the trained
//! model, so the base's distribution is what is to be kept. (TRL's `kl_coef` weighs the reverse one,
//! on answers of the trained model itself.)

use std::sync::Arc;

use candle_core::{CpuStorage, D, DType, InplaceOp2, Layout, Tensor, Var};
use rayon::prelude::*;
use tunebook_models::tensor_file::{Data, Entry};
use tunebook_models::{Model, Overlay, Pass};
use tunebook_ops as ops;
use tunebook_ops::Tape;
use tunebook_ops::cpu::crew::Each;
use tunebook_ops::tape;

use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::train::backward;
use crate::train::parameter::{Parameter, Parameters};

/// Bytes of f32 logits that are compared at a time.
const SLICE_BYTES: usize = 16 << 20;
/// Tensors of that size that a comparison holds: logits, log-probabilities and probabilities of both
/// models, and what comes between them.
const SLICES_HELD: usize = 8;

/// Positions whose logits are compared at a time.
fn slice_rows(vocab: usize) -> usize {
    (SLICE_BYTES / size_of::<f32>() / vocab.max(1)).max(1)
}

/// How many numbers a comparison of so many positions holds at a time.
pub(crate) fn numbers_held(rows: usize, vocab: usize) -> usize {
    slice_rows(vocab).min(rows) * vocab * SLICES_HELD
}

/// The values of a run's tensors before its first step, in the order of its parameters.
#[derive(Clone)]
pub(crate) struct Start(Arc<Vec<(String, Tensor)>>);

impl Start {
    /// A copy of what the parameters are now.
    pub(crate) fn of(parameters: &Parameters) -> Result<Self> {
        let copy = |parameter: &Parameter| {
            let var = Var::from_tensor(&parameter.var.as_detached_tensor())?;
            Ok((parameter.name.clone(), var.into_inner()))
        };
        Ok(Self(Arc::new(parameters.iter().map(copy).collect::<Result<_>>()?)))
    }

    /// What [`Start::entries`] wrote, flat.
    pub(crate) fn saved(values: impl IntoIterator<Item = (String, Vec<f32>)>) -> Result<Self> {
        let flat = |(name, values): (String, Vec<f32>)| {
            let count = values.len();
            Ok((name, Tensor::from_vec(values, count, &candle_core::Device::Cpu)?))
        };
        Ok(Self(Arc::new(values.into_iter().map(flat).collect::<Result<_>>()?)))
    }

    /// The same values in the shapes of these parameters and where they are.
    ///
    /// # Errors
    /// They are of other tensors.
    pub(crate) fn fitting(&self, parameters: &Parameters) -> Result<Self> {
        let fits = |(parameter, (name, value)): (&Parameter, &(String, Tensor))| {
            parameter.name == *name && parameter.var.elem_count() == value.elem_count()
        };
        let pairs = || parameters.iter().zip(self.0.iter());
        if self.0.len() != parameters.len() || !pairs().all(fits) {
            let problem = "the values that it began with are not of the tensors that are trained: another rank or other target modules";
            return Err(Error::Continue { problem: problem.to_owned() });
        }
        let there = |(parameter, (_, value)): (&Parameter, &(String, Tensor))| {
            value.shape() == parameter.var.shape()
                && value.device().same_device(parameter.var.device())
        };
        if pairs().all(there) {
            return Ok(self.clone());
        }
        let put = |(parameter, (name, value)): (&Parameter, &(String, Tensor))| {
            let value = value.reshape(parameter.var.shape())?.to_device(parameter.var.device())?;
            Ok((name.clone(), value))
        };
        Ok(Self(Arc::new(pairs().map(put).collect::<Result<_>>()?)))
    }

    /// For a checkpoint, each name after `prefix`, flat.
    pub(crate) fn entries(&self, prefix: &str) -> Vec<Entry<'_>> {
        self.0
            .iter()
            .map(|(name, value)| {
                let data = Data::Tensor(value);
                Entry::new(format!("{prefix}{name}"), &[value.elem_count()], data)
            })
            .collect()
    }

    /// Draws the parameters towards these values by a part of the way; `part` says how large a part
    /// for each of them.
    pub(crate) fn pull(
        &self,
        parameters: &Parameters,
        part: impl Fn(&Parameter) -> f64,
    ) -> Result<()> {
        for (parameter, (_, start)) in parameters.iter().zip(self.0.iter()) {
            let part = part(parameter);
            let value = parameter.var.as_tensor();
            if value.device().is_cpu() {
                value.inplace_op2(start, &Pull { part: part as f32 })?;
            } else {
                let value = parameter.var.as_detached_tensor();
                parameter.var.set(&(&value - ((&value - start)? * part)?)?)?;
            }
        }
        Ok(())
    }
}

/// value ← value − part · (value − start).
struct Pull {
    part: f32,
}

impl InplaceOp2 for Pull {
    fn name(&self) -> &'static str {
        "l2_sp"
    }

    fn cpu_fwd(
        &self,
        value: &mut CpuStorage,
        layout: &Layout,
        start: &CpuStorage,
        start_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (CpuStorage::F32(value), CpuStorage::F32(start)) = (value, start) else {
            candle_core::bail!("l2_sp: expected f32 parameters")
        };
        let (Some(at), Some(start_at)) =
            (layout.contiguous_offsets(), start_layout.contiguous_offsets())
        else {
            candle_core::bail!("l2_sp: expected contiguous parameters")
        };
        const CHUNK: usize = 1 << 14;
        let part = self.part;
        let (value, start) = (&mut value[at.0..at.1], &start[start_at.0..start_at.1]);
        value.par_chunks_mut(CHUNK).zip(start.par_chunks(CHUNK)).each(|(value, start)| {
            for (value, start) in value.iter_mut().zip(start) {
                *value -= part * (*value - start);
            }
        });
        Ok(())
    }
}

/// KL(base ‖ trained) as a part of the loss.
pub(crate) struct ToBase {
    base: Model,
    coefficient: f64,
}

/// The base's view of one batch: what its head turns into logits, at the positions that bear a loss.
pub(crate) struct BaseView {
    /// Their indices among all positions, `[n]` u32.
    pub(crate) positions: Tensor,
    /// After the last norm, `[n, hid]`.
    hidden: Tensor,
}

/// See [`ToBase::divergence`].
pub(crate) struct Divergence {
    /// The summed KL, a scalar in f32.
    pub(crate) sum: Tensor,
    /// The gradient of the coefficient times that sum by the trained model's hidden states, `[n, hid]`
    /// in f32.
    pub(crate) gradient: Tensor,
}

impl ToBase {
    /// For an adapter the base is the model without it. The weights of full fine-tuning are moved in
    /// place, so `start` stands in for them.
    pub(crate) fn new(model: &Model, start: Option<&Start>, coefficient: f64) -> Result<Self> {
        let Some(start) = start else { return Ok(Self { base: model.base(), coefficient }) };
        let mut overlay = Overlay::default();
        for weight in model.weights() {
            if let Some((_, value)) = start.0.iter().find(|(name, _)| name == weight.name()) {
                overlay.put_weight(&weight, Var::from_tensor(value)?)?;
            }
        }
        Ok(Self { base: model.with_overlay(Arc::new(overlay)), coefficient })
    }

    /// A pass of the base over the batch, without noise and dropout; `None` if no position bears a
    /// loss.
    pub(crate) fn view(&self, batch: &Batch) -> Result<Option<BaseView>> {
        let labelled = batch.labels.iter().enumerate().filter(|(_, label)| **label != ops::IGNORE);
        let positions: Vec<u32> = labelled.map(|(at, _)| at as u32).collect();
        if positions.is_empty() {
            return Ok(None);
        }
        let positions = Tensor::new(positions, self.base.device())?;
        // [b·t, hid] -> [n, hid]
        let hidden = backward::hidden_states(&self.base, batch)?.index_select(&positions, 0)?;
        Ok(Some(BaseView { positions, hidden: hidden.detach() }))
    }

    /// The divergence of `model` from the base at `hidden`, and what follows from it. The gradients of
    /// the head's own tensors, of `weight` · coefficient · sum, are handed to `collect`.
    ///
    /// # Shapes
    /// `hidden` `[n, hid]`: what the trained model's last norm gave at the view's positions.
    pub(crate) fn divergence(
        &self,
        view: &BaseView,
        hidden: &Tensor,
        weight: f64,
        (model, pass): (&Model, &Pass<'_>),
        collect: &mut dyn FnMut(&mut tape::Gradients) -> Result<()>,
    ) -> Result<Divergence> {
        let base = self.base.snapshot();
        let anywhere = self.base.positions(1, 1, &base)?;
        let base = Pass::new(&base, &anywhere);
        let (n, rows) = (hidden.dim(0)?, slice_rows(self.base.config().vocab_size));
        let (mut sum, mut gradients) = (None, Vec::new());
        for from in (0..n).step_by(rows) {
            pass.snapshot().stop().check()?;
            let rows = rows.min(n - from);
            let p = self.base.logits(&view.hidden.narrow(0, from, rows)?.contiguous()?, &base)?;
            let x = Var::from_tensor(&hidden.narrow(0, from, rows)?.detach())?.into_inner();
            let recorder = Tape::record();
            let logits = model.logits(&x, pass)?;
            let tape = recorder.stop();
            // [rows, vocab]
            let (p, q) = (log_softmax(&p)?, log_softmax(&logits)?);
            let likely = p.exp()?;
            let kl = (&likely * (p - &q)?)?.sum_all()?;
            sum = Some(match sum {
                None => kl,
                Some(sum) => (sum + kl)?,
            });
            // By the logits: softmax(q) − p. With `weight`, so that f16 holds it as it holds the
            // loss's own.
            let by_logits = ((q.exp()? - likely)? * (weight * self.coefficient))?;
            let mut found = tape.backward(&logits, &by_logits.to_dtype(logits.dtype())?)?;
            collect(&mut found)?;
            let by_hidden = match found.remove(&x)? {
                Some(gradient) => gradient.to_dtype(DType::F32)?,
                None => x.zeros_like()?.to_dtype(DType::F32)?,
            };
            gradients.push((by_hidden * (1.0 / weight))?.detach());
        }
        let sum = match sum {
            Some(sum) => sum,
            None => Tensor::zeros((), DType::F32, hidden.device())?,
        };
        Ok(Divergence { sum, gradient: Tensor::cat(&gradients, 0)? })
    }
}

/// `[n, vocab]` -> the same in f32, without a graph.
fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let logits = logits.detach().to_dtype(DType::F32)?;
    let logits = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    Ok(logits.broadcast_sub(&logits.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::train::parameter::Part;

    #[test]
    fn a_pull_goes_a_part_of_the_way_back() {
        let count = 40_000;
        let numbers = |scale: f32| (0..count).map(|i| (i as f32 * 0.37).sin() * scale).collect();
        let var = Var::from_vec(numbers(1.0), (200, 200), &Device::Cpu).unwrap();
        let parameters =
            Parameters::new(vec![Parameter { name: "w".into(), var, part: Part::Block(0) }]);
        let start = Start::of(&parameters).unwrap();
        let var = &parameters.get(0).var;
        let all = || var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let before = all();
        start.pull(&parameters, |_| 0.25).unwrap();
        assert_eq!(all(), before, "nothing has moved yet");
        let moved: Vec<f32> = numbers(3.0);
        var.set(&Tensor::from_vec(moved.clone(), (200, 200), &Device::Cpu).unwrap()).unwrap();
        start.pull(&parameters, |_| 0.25).unwrap();
        for ((after, start), moved) in all().iter().zip(&before).zip(&moved) {
            assert!((after - (start + 0.75 * (moved - start))).abs() < 1e-6);
        }
        // As a checkpoint brings it back.
        let flat = start.0.iter().map(|(name, value)| {
            (name.clone(), value.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        });
        let again = Start::saved(flat).unwrap().fitting(&parameters).unwrap();
        again.pull(&parameters, |_| 1.0).unwrap();
        let error = all().iter().zip(&before).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(error < 1e-6, "{error}");
        let other = Start::saved([("v".to_owned(), before)]).unwrap();
        assert!(other.fitting(&parameters).is_err());
    }
}
