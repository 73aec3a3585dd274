//! One optimizer step: gradients of some batches, clipping, AdamW.

use std::fmt;
use std::sync::Arc;

use candle_core::Tensor;
use tunebook_models::{Dropout, Model};

use crate::adapters::registry;
use crate::adapters::scheduled::Scheduled;
use crate::adapters::served::TrainedWeights;
use crate::batch::Batch;
use crate::cost::memory::GpuRoom;
use crate::error::{Error, Result};
use crate::files::peft::AdapterFiles;
use crate::record::fingerprint;
use crate::record::run_record::Strategy;
use crate::train::args::TrainingArgs;
use crate::train::backward::{Noise, Segments};
use crate::train::loss_scale::LossScale;
use crate::train::optim::{AdamW, Saved};
use crate::train::parameter::{self, Gradients, Parameters, clip_coefficient};
use crate::train::regularisation::{Start, ToBase};
use crate::train::schedule::Schedule;
use crate::train::trained::{Trained, Weights};

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutcome {
    /// Mean loss per loss-bearing token, before the update.
    pub loss: f64,
    /// The learning rate used.
    pub learning_rate: f64,
    /// Norm of the gradient before clipping; not finite in a step that was skipped.
    pub grad_norm: f64,
    /// What the loss was multiplied with before the backward pass ([`TrainingArgs::fp16`]).
    pub loss_scale: Option<f64>,
    /// The gradient overflowed at that scale, and nothing was changed.
    pub skipped: bool,
    /// Mean KL(base ‖ trained) per loss-bearing token, before its coefficient and before the update;
    /// `None` without [`TrainingArgs::kl_coef`].
    pub kl: Option<f64>,
}

/// A run between two steps. The data order and the dropout masks follow from the arguments and the
/// number of steps.
#[derive(Clone, Default)]
pub(crate) struct RunState {
    pub(crate) steps: usize,
    /// Shared with the run that goes on: what it changes then is copied first.
    pub(crate) optimizer: Arc<AdamW>,
    pub(crate) weights: Weights,
    /// Of the adapter's own schedule, if it has one.
    pub(crate) scheduled: Option<Arc<Saved>>,
    pub(crate) loss_scale: Option<LossScale>,
    /// What the tensors were before the first step, if the arguments ask for it.
    pub(crate) start: Option<Start>,
}

impl fmt::Debug for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunState")
            .field("steps", &self.steps)
            .field("tensors", &self.weights.len())
            .finish_non_exhaustive()
    }
}

/// Takes the steps of one run on the active adapter of a model. This is all that
/// [`Trainer`](crate::Trainer) does between two records; it is public for those who bring batches
/// of their own.
pub struct Stepper {
    model: Model,
    trained: Trained,
    parameters: Parameters,
    optimizer: Arc<AdamW>,
    schedule: Schedule,
    args: TrainingArgs,
    /// What the adapter does by itself between the steps.
    scheduled: Option<Box<dyn Scheduled>>,
    /// In place of what the arguments say.
    checkpointed_blocks: Option<usize>,
    /// Known once for all batches; `None` on the CPU.
    gpu_room: Option<GpuRoom>,
    loss_scale: Option<LossScale>,
    start: Option<Start>,
    to_base: Option<ToBase>,
    /// Keeps a server from answering with weights that the steps move.
    _moved: Option<TrainedWeights>,
    steps: usize,
}

impl fmt::Debug for Stepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stepper")
            .field("trained", &self.trained.name())
            .field("steps", &self.steps)
            .finish_non_exhaustive()
    }
}

impl Stepper {
    /// For a run of `total_steps`, none taken yet.
    ///
    /// # Errors
    /// The arguments are refused, or there is nothing to train.
    pub fn new(model: &Model, args: &TrainingArgs, total_steps: usize) -> Result<Self> {
        args.validate()?;
        tunebook_ops::cpu::keep_freed_memory();
        let (overlay, trained) = registry::trained(model)?;
        let moved = match &trained {
            Trained::Full(_) => {
                let moved = TrainedWeights::hold(model)?;
                fingerprint::forget_base(model); // its weights are about to change
                Some(moved)
            }
            Trained::Adapter(_) => None,
        };
        let scheduled = trained.scheduled(total_steps);
        let parameters = trained.parameters();
        let start = match args.keeps_start(&trained) {
            true => Some(Start::of(&parameters)?),
            false => None,
        };
        let mut stepper = Self {
            model: model.with_overlay(overlay),
            gpu_room: args.gpu_room(model, &trained),
            parameters,
            trained,
            optimizer: Arc::new(AdamW::new(args.adamw())),
            schedule: Schedule::new(
                args.lr_scheduler,
                args.learning_rate,
                args.warmup(total_steps),
                total_steps,
            ),
            scheduled,
            _moved: moved,
            checkpointed_blocks: None,
            loss_scale: args.fp16.then(|| LossScale::new(args.fp16_init_scale)),
            args: args.clone(),
            start,
            to_base: None,
            steps: 0,
        };
        stepper.hold_base()?;
        Ok(stepper)
    }

    /// Holds on to the base that the arguments compare with.
    fn hold_base(&mut self) -> Result<()> {
        if self.args.kl_coef > 0.0 {
            let moved = match &self.trained {
                Trained::Full(_) => self.start.as_ref(),
                Trained::Adapter(_) => None,
            };
            self.to_base = Some(ToBase::new(&self.model, moved, self.args.kl_coef)?);
        }
        Ok(())
    }

    /// One step on these batches together: the loss is the mean over all their loss-bearing tokens,
    /// however they are divided.
    ///
    /// # Errors
    /// A loss or gradient that is not finite, a trainable tensor without a gradient (looked for in
    /// the first step), the user's wish to stop, or a failing operation. The weights are then as
    /// they were.
    pub fn step(&mut self, batches: &[Batch]) -> Result<StepOutcome> {
        // A skipped step does not count for the schedule, as in `transformers`.
        let skipped = self.loss_scale.map_or(0, |scale| scale.skipped());
        self.trained.set_moved(&self.model);
        self.step_at(batches, self.schedule.learning_rate(self.steps - skipped))
    }

    /// [`Stepper::step`] with a learning rate that is not the schedule's.
    pub(crate) fn step_at(&mut self, batches: &[Batch], learning_rate: f64) -> Result<StepOutcome> {
        let (mut losses, kls, mut gradients) = self.losses_and_gradients(batches)?;
        let label_tokens = label_tokens(batches);
        if self.steps == 0 {
            self.check_gradients(&gradients)?;
        }
        if let Some(scheduled) = &mut self.scheduled {
            scheduled.before_clip(self.steps, &self.parameters, &mut gradients)?;
        }
        // Where a step waits for a device.
        let count = losses.len();
        losses.extend(kls);
        let (grad_norm, mut losses) = gradients.norm_and(&losses)?;
        let kls = losses.split_off(count);
        let kl = self.to_base.is_some().then(|| kls.iter().sum::<f64>() / label_tokens as f64);
        let loss = self.total(&losses, batches)? / label_tokens as f64;
        let used = self.loss_scale.map(|scale| scale.scale());
        if !grad_norm.is_finite()
            && let Some(scale) = self.loss_scale.as_mut().filter(|scale| scale.can_shrink())
        {
            scale.skip();
            self.steps += 1;
            return Ok(StepOutcome {
                loss,
                learning_rate,
                grad_norm,
                loss_scale: used,
                skipped: true,
                kl,
            });
        }
        if !grad_norm.is_finite() {
            return Err(Error::GradientNotFinite {
                step: self.steps + 1,
                norm: grad_norm,
                rows: rows(batches),
            });
        }
        let max_norm = self.args.max_grad_norm;
        let scale = if max_norm > 0.0 { clip_coefficient(grad_norm, max_norm) } else { 1.0 };
        let in_step = self.trained.in_step();
        if let Some(start) = &self.start
            && self.args.l2_sp > 0.0
        {
            let (rate, config) = (learning_rate * self.args.l2_sp, self.args.adamw());
            start.pull(&self.parameters, |parameter| rate * config.lr_ratio(parameter))?;
        }
        Arc::make_mut(&mut self.optimizer).step(
            &self.parameters,
            &gradients,
            learning_rate,
            scale,
        )?;
        if let Some(scheduled) = &mut self.scheduled {
            scheduled.after_step(self.steps, &self.parameters, &gradients, scale)?;
        }
        drop(in_step);
        self.trained.changed(&self.model);
        if let Some(scale) = &mut self.loss_scale {
            scale.took();
        }
        self.steps += 1;
        Ok(StepOutcome { loss, learning_rate, grad_norm, loss_scale: used, skipped: false, kl })
    }

    /// The summed loss of the batches and the gradient of their mean loss (with
    /// [`TrainingArgs::kl_coef`], of that and the penalty), without a step.
    ///
    /// # Errors
    /// As [`Stepper::step`].
    pub fn gradients(&self, batches: &[Batch]) -> Result<(f64, Gradients)> {
        let (losses, _, gradients) = self.losses_and_gradients(batches)?;
        Ok((self.total(&parameter::read(&losses)?, batches)?, gradients))
    }

    /// The sum of the batches' losses.
    ///
    /// # Errors
    /// One that is not finite.
    fn total(&self, losses: &[f64], batches: &[Batch]) -> Result<f64> {
        for (loss, batch) in losses.iter().zip(batches) {
            if !loss.is_finite() {
                return Err(Error::NotFinite {
                    step: self.steps + 1,
                    loss: *loss,
                    rows: batch.rows.clone(),
                });
            }
        }
        Ok(losses.iter().sum())
    }

    /// Each batch's summed loss and its summed KL to the base, if there is one, not read yet, and the
    /// gradient of their mean loss.
    fn losses_and_gradients(
        &self,
        batches: &[Batch],
    ) -> Result<(Vec<Tensor>, Vec<Tensor>, Gradients)> {
        let segments = Segments {
            model: &self.model,
            parameters: &self.parameters,
            dropout: Dropout { seed: self.args.seed, draw: 0 },
            checkpointed_blocks: 0,
            label_smoothing: self.args.label_smoothing_factor,
            noise: None,
            to_base: self.to_base.as_ref(),
        };
        let scale = self.loss_scale.map_or(1.0, |scale| scale.scale());
        let weight = scale / label_tokens(batches) as f64;
        let mut gradients = Gradients::new(&self.parameters);
        let (mut losses, mut kls) = (Vec::with_capacity(batches.len()), Vec::new());
        for (index, batch) in batches.iter().enumerate() {
            let first = self.steps.wrapping_mul(self.args.gradient_accumulation_steps);
            let (seed, draw) = (self.args.seed, first.wrapping_add(index) as u64);
            let noise = self.args.neftune_noise_alpha.map(|alpha| Noise { alpha, seed, draw });
            let positions = batch.ids.elem_count();
            let checkpointed_blocks =
                self.checkpointed_blocks.unwrap_or_else(|| self.checkpointed_blocks_of(positions));
            let dropout = Dropout { seed, draw };
            let segments = Segments { noise, dropout, checkpointed_blocks, ..segments };
            // On this thread: a GPU's stream may be its own; and on the CPU, where a thread of
            // rayon's would start each loop sooner (600 loops a step, 1.6 % at 4 x 128 tokens),
            // what is allocated must come from one arena of the allocator: two that take turns keep
            // twice the memory.
            let found = segments.loss_and_gradients(batch, weight, &mut gradients)?;
            losses.push(found.loss);
            kls.extend(found.kl);
        }
        if self.loss_scale.is_some() {
            gradients.multiply(1.0 / scale)?;
        }
        Ok((losses, kls, gradients))
    }

    /// The name of what is trained: the adapter's, or `full fine-tuning`.
    pub fn adapter_name(&self) -> &str {
        self.trained.name()
    }

    /// The adapter as PEFT's files hold it; `None` if the model's own weights are trained.
    pub(crate) fn adapter_files(&self) -> Result<Option<AdapterFiles>> {
        self.trained.files(&self.model)
    }

    /// How many blocks the arguments have run again in the backward pass of a batch of so many
    /// positions.
    pub(crate) fn checkpointed_blocks_of(&self, positions: usize) -> usize {
        self.args.checkpointed_blocks(&self.model, positions, self.gpu_room)
    }

    /// What the run may take of a GPU's memory; `None` on the CPU.
    pub(crate) fn gpu_room(&self) -> Option<GpuRoom> {
        self.gpu_room
    }

    /// From now on so many blocks are run again in the backward pass. The result is the same, bit
    /// for bit.
    pub(crate) fn set_checkpointed_blocks(&mut self, blocks: usize) {
        self.checkpointed_blocks = Some(blocks);
    }

    /// The trained tensors.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Steps taken.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Everything that the next step depends on.
    pub(crate) fn state(&self) -> Result<RunState> {
        let weights = self.trained.weights(&self.parameters)?;
        Ok(RunState {
            steps: self.steps,
            optimizer: Arc::clone(&self.optimizer),
            weights,
            scheduled: self.scheduled.as_ref().map(|scheduled| Arc::new(scheduled.state())),
            loss_scale: self.loss_scale,
            start: self.start.clone(),
        })
    }

    /// Puts back what [`Stepper::state`] gave.
    ///
    /// # Errors
    /// The tensors are not those that are trained here. Nothing has changed then.
    pub(crate) fn restore(&mut self, state: &RunState) -> Result<()> {
        let kept = state.start.as_ref().filter(|_| self.start.is_some());
        let kept = kept.map(|start| start.fitting(&self.parameters)).transpose()?;
        self.set_weights(&state.weights)?;
        if self.start.is_some() {
            // A run that began without one starts, to this one, where it goes on.
            self.start = Some(match kept {
                Some(start) => start,
                None => Start::of(&self.parameters)?,
            });
            self.hold_base()?;
        }
        self.optimizer = Arc::clone(&state.optimizer);
        let config = self.args.adamw();
        if self.optimizer.config() != config {
            self.optimizer = Arc::new(AdamW::clone(&self.optimizer).with_config(config));
        }
        if let (Some(scheduled), Some(state)) = (&mut self.scheduled, &state.scheduled) {
            scheduled.restore(state);
        }
        self.steps = state.steps;
        if self.args.fp16 && state.loss_scale.is_some() {
            self.loss_scale = state.loss_scale;
        }
        Ok(())
    }

    /// The adapter's own schedule stands still, whatever steps are taken.
    pub(crate) fn hold_ranks(&mut self) {
        if let Some(scheduled) = &mut self.scheduled {
            scheduled.hold();
        }
    }

    /// The rank of each module that ranks move between, in the order of their paths; empty where
    /// none moves.
    pub(crate) fn ranks(&self) -> Vec<usize> {
        self.scheduled.iter().flat_map(|scheduled| scheduled.ranks().into_values()).collect()
    }

    /// The modules that [`Stepper::ranks`] counts.
    pub(crate) fn rank_modules(&self) -> Vec<String> {
        self.scheduled.iter().flat_map(|scheduled| scheduled.ranks().into_keys()).collect()
    }

    /// The configuration of what is trained, as it is now.
    pub(crate) fn strategy(&self) -> Strategy {
        self.trained.strategy()
    }

    /// A copy of the trained tensors.
    pub(crate) fn weights(&self) -> Result<Weights> {
        Weights::copy(&self.parameters)
    }

    /// Puts a copy back.
    ///
    /// # Errors
    /// As [`Stepper::restore`].
    pub(crate) fn set_weights(&self, weights: &Weights) -> Result<()> {
        let in_step = self.trained.in_step();
        weights.put_back(&self.parameters)?;
        drop(in_step);
        if matches!(weights, Weights::Copied(_)) {
            self.trained.changed(&self.model);
        }
        Ok(())
    }

    fn check_gradients(&self, gradients: &Gradients) -> Result<()> {
        let names: Vec<String> = self
            .parameters
            .iter()
            .zip(gradients.iter())
            .filter(|(_, gradient)| gradient.is_none())
            .map(|(parameter, _)| parameter.name.clone())
            .collect();
        if names.is_empty() { Ok(()) } else { Err(Error::NoGradient { names }) }
    }
}

fn label_tokens(batches: &[Batch]) -> usize {
    batches.iter().map(|batch| batch.label_tokens).sum::<usize>().max(1)
}

fn rows(batches: &[Batch]) -> Vec<usize> {
    batches.iter().flat_map(|batch| batch.rows.iter().copied()).collect()
}
