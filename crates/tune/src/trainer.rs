//! The training loop: one function, [`Trainer::fit`], from examples to a [`Run`].
//!
//! ```no_run
//! use tunebook_models::{Device, Model};
//! use tunebook_tune::{Adapters, Example, Lora, Trainer, TrainingArgs};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::load("SmolLM2-135M-Instruct", &Device::Cpu)?;
//! model.add_adapter("support", &Lora { r: 8, lora_alpha: 32.0, ..Default::default() })?;
//! let train = [Example::new("Where is my parcel?", "On its way: …")];
//! let run = Trainer::new(&model, &TrainingArgs { epochs: 3, ..Default::default() }).fit(&train, &[])?;
//! println!("{run}");
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tunebook_models::Model;
use tunebook_progress::ProgressBar;

use crate::args::{EvalStrategy, TrainingArgs};
use crate::backward;
use crate::batch::{Batch, Example, TokenizedSet};
use crate::checkpoint;
use crate::encode;
use crate::error::{Error, Result};
use crate::record::{Callback, EvalRecord, Plan, StepRecord};
use crate::step::{RunState, Stepper};
use crate::trained::Weights;

/// Trains the active adapter of a model, or the model's own weights if they are unfrozen ([`FullTuning`](crate::FullTuning)).
pub struct Trainer {
    model: Model,
    args: TrainingArgs,
    callbacks: Mutex<Vec<Box<dyn Callback>>>,
}

impl fmt::Debug for Trainer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trainer")
            .field("model", &self.model.name())
            .field("args", &self.args)
            .finish_non_exhaustive()
    }
}

/// Why a run ended before its last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopReason {
    /// The user asked for it.
    Interrupted,
    /// The validation loss was no better for `early_stopping_patience` evaluations.
    EarlyStopping,
}

/// The weights of the best evaluation so far.
#[derive(Clone)]
pub(crate) struct Best {
    pub(crate) step: usize,
    pub(crate) weights: Weights,
}

impl fmt::Debug for Best {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Best").field("step", &self.step).finish_non_exhaustive()
    }
}

/// What a run did, up to its last whole step. [`Trainer::resume`] goes on from there.
#[derive(Debug, Clone)]
pub struct Run {
    /// The adapter that was trained, or `full fine-tuning`.
    pub adapter: String,
    /// The arguments.
    pub args: TrainingArgs,
    /// What was to be done.
    pub plan: Plan,
    /// One record for each step taken.
    pub steps: Vec<StepRecord>,
    /// One record for each evaluation.
    pub evals: Vec<EvalRecord>,
    /// Why it ended early; `None` when it did all its steps.
    pub stopped: Option<StopReason>,
    /// Wall-clock time, evaluation included.
    pub secs: f64,
    /// The step whose weights were put back at the end, with `load_best_model_at_end`.
    pub loaded_step: Option<usize>,
    /// The weights of the best evaluation so far, when they are wanted at the end.
    pub(crate) best: Option<Arc<Best>>,
    /// What the next step depends on.
    pub(crate) state: Arc<RunState>,
    /// The training set's fingerprint.
    pub(crate) data: u64,
}

impl Run {
    /// The last evaluation's loss.
    pub fn eval_loss(&self) -> Option<f64> {
        self.evals.last().map(|record| record.loss)
    }

    /// The evaluation with the lowest loss.
    pub fn best_eval(&self) -> Option<&EvalRecord> {
        self.evals.iter().min_by(|a, b| a.loss.total_cmp(&b.loss))
    }

    /// Mean training loss of the last `steps` steps (fewer if there are fewer), weighted by loss-bearing tokens.
    pub fn recent_loss(&self, steps: usize) -> Option<f64> {
        let recent = &self.steps[self.steps.len().saturating_sub(steps)..];
        let tokens: usize = recent.iter().map(|record| record.label_tokens).sum();
        let sum: f64 = recent.iter().map(|record| record.loss * record.label_tokens as f64).sum();
        (tokens > 0).then(|| sum / tokens as f64)
    }

    /// Tokens that went through the model in the training steps, per second of those steps.
    pub fn tokens_per_sec(&self) -> f64 {
        let secs: f64 = self.steps.iter().map(|record| record.secs).sum();
        let tokens: usize = self.steps.iter().map(|record| record.tokens).sum();
        if secs > 0.0 { tokens as f64 / secs } else { 0.0 }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} of {} steps", self.adapter, self.steps.len(), self.plan.total_steps)?;
        if let (Some(first), Some(recent)) = (self.steps.first(), self.recent_loss(self.plan.steps_per_epoch))
        {
            write!(f, ", training loss {:.4} -> {recent:.4}", first.loss)?;
        }
        if let (Some(first), Some(last)) = (self.evals.first(), self.evals.last()) {
            match self.evals.len() {
                1 => write!(f, ", validation loss {:.4}", last.loss)?,
                _ => write!(f, ", validation loss {:.4} -> {:.4}", first.loss, last.loss)?,
            }
        }
        write!(f, ", {:.0} s ({:.0} tokens/s)", self.secs, self.tokens_per_sec())?;
        if self.plan.truncated > 0 {
            write!(f, "; {} examples were cut off at `max_length`", self.plan.truncated)?;
        }
        if self.plan.without_labels > 0 {
            write!(f, "; {} examples had no completion left and were left out", self.plan.without_labels)?;
        }
        match self.stopped {
            Some(StopReason::Interrupted) => {
                write!(
                    f,
                    "; stopped on request after step {}, `resume` goes on from there",
                    self.steps.len()
                )?;
            }
            Some(StopReason::EarlyStopping) => {
                write!(f, "; stopped after step {}: the validation loss fell no more", self.steps.len())?;
            }
            None => {}
        }
        match self.loaded_step {
            Some(step) => write!(f, "; the weights of step {step}, the best evaluation, are loaded"),
            None => Ok(()),
        }
    }
}

impl Trainer {
    /// For what is to be trained when training starts: the active adapter, or the unfrozen weights. The arguments are checked then, too.
    pub fn new(model: &Model, args: &TrainingArgs) -> Self {
        Self { model: model.clone(), args: args.clone(), callbacks: Mutex::default() }
    }

    /// Lets `callback` see the run as it goes. May be called more than once.
    #[must_use]
    pub fn with_callback(self, callback: Box<dyn Callback>) -> Self {
        self.callbacks.lock().unwrap_or_else(PoisonError::into_inner).push(callback);
        self
    }

    /// Does `work` with one more callback, which goes when it is done.
    pub fn observed<T>(&self, callback: Box<dyn Callback>, work: impl FnOnce(&Self) -> T) -> T {
        self.callbacks.lock().unwrap_or_else(PoisonError::into_inner).push(callback);
        let done = work(self);
        self.callbacks.lock().unwrap_or_else(PoisonError::into_inner).pop();
        done
    }

    /// The model that is trained.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The arguments.
    pub fn args(&self) -> &TrainingArgs {
        &self.args
    }

    /// Trains on `train`, and evaluates on `validation` (which may be empty) as the arguments say.
    ///
    /// A request to stop ends the run with `Ok`: the weights and the [`Run`] are those of the last whole step.
    ///
    /// # Errors
    /// Wrong arguments, no active adapter, examples that cannot be used, a loss that is not finite, a tensor without a gradient, a failing
    /// callback or operation. The weights are then those of the last whole step.
    pub fn fit(&self, train: &[Example], validation: &[Example]) -> Result<Run> {
        self.run(train, validation, None)
    }

    /// Goes on with a run that was stopped, from its last whole step: weights, optimizer, schedule and data order are put back, so that the
    /// result is that of a run never stopped, bit for bit.
    ///
    /// # Errors
    /// As [`Trainer::fit`]; other arguments, another adapter or another training set than the run's.
    pub fn resume(&self, run: &Run, train: &[Example], validation: &[Example]) -> Result<Run> {
        self.run(train, validation, Some(run))
    }

    /// The examples as token ids and labels, as [`Trainer::fit`] sees them.
    ///
    /// # Errors
    /// Examples that cannot be used.
    pub fn tokenize(&self, examples: &[Example]) -> Result<TokenizedSet> {
        encode::tokenize(&self.model, "training", examples, self.args.max_length)
    }

    /// The loss on a set of examples, with the model as it is now.
    ///
    /// # Errors
    /// Wrong arguments, examples that cannot be used, a failing operation, or a request to stop.
    pub fn evaluate(&self, examples: &[Example]) -> Result<EvalRecord> {
        self.args.validate()?;
        let set = encode::tokenize(&self.model, "validation", examples, self.args.max_length)?;
        let bar = ProgressBar::new("Evaluating", Some(set.examples.len() as u64)).unit("row");
        self.evaluate_set(&set, 0, 0.0, &|done| bar.set(done as u64))
    }

    fn run(&self, train: &[Example], validation: &[Example], from: Option<&Run>) -> Result<Run> {
        let args = &self.args;
        args.validate()?;
        let started = Instant::now();
        let train = encode::tokenize(&self.model, "training", train, args.max_length)?;
        let validation = if validation.is_empty() || args.eval_strategy == EvalStrategy::No {
            None
        } else {
            Some(encode::tokenize(&self.model, "validation", validation, args.max_length)?)
        };
        let rows_per_step = args.batch_size * args.gradient_accumulation_steps;
        let steps_per_epoch = train.examples.len().div_ceil(rows_per_step);
        let total_steps = args.max_steps.unwrap_or(args.epochs * steps_per_epoch);
        let watches = args.load_best_model_at_end || args.early_stopping_patience.is_some();
        if watches && validation.is_none() {
            return Err(Error::NoExamples { set: "validation" });
        }
        let mut stepper = Stepper::new(&self.model, args, total_steps)?;
        let mut run = match from {
            None => Run {
                adapter: stepper.adapter_name().to_owned(),
                args: args.clone(),
                plan: Plan {
                    total_steps,
                    done_steps: 0,
                    steps_per_epoch,
                    examples: train.examples.len(),
                    validation_examples: validation.as_ref().map_or(0, |set| set.examples.len()),
                    trainable_parameters: stepper.parameters().elem_count(),
                    truncated: train.truncated + validation.as_ref().map_or(0, |set| set.truncated),
                    without_labels: train.without_labels.len()
                        + validation.as_ref().map_or(0, |set| set.without_labels.len()),
                },
                steps: Vec::new(),
                evals: Vec::new(),
                stopped: None,
                secs: 0.0,
                loaded_step: None,
                best: None,
                state: Arc::default(),
                data: train.fingerprint(),
            },
            Some(from) => {
                from.check_continues(args, stepper.adapter_name(), train.fingerprint())?;
                stepper.restore(&from.state)?;
                let plan = Plan { done_steps: from.steps.len(), ..from.plan.clone() };
                Run { plan, stopped: None, loaded_step: None, args: args.clone(), ..from.clone() }
            }
        };
        self.tell(|callback| callback.on_start(&run.plan))?;
        let secs_before = run.secs;
        let ended = self.steps(&mut stepper, &train, validation.as_ref(), &mut run);
        run.secs = secs_before + started.elapsed().as_secs_f64();
        run.state = Arc::new(stepper.state()?);
        run.stopped = match ended {
            Ok(stopped) => stopped,
            Err(error) if error.is_interruption() => Some(StopReason::Interrupted),
            Err(error) => return Err(error),
        };
        if let Some(best) = &run.best
            && run.stopped != Some(StopReason::Interrupted)
        {
            stepper.set_weights(&best.weights)?;
            run.loaded_step = Some(best.step);
        }
        self.tell(|callback| callback.on_end(&run))?;
        Ok(run)
    }

    /// The loop: why it ended before the last step, if it did.
    fn steps(
        &self,
        stepper: &mut Stepper,
        train: &TokenizedSet,
        validation: Option<&TokenizedSet>,
        run: &mut Run,
    ) -> Result<Option<StopReason>> {
        let args = &self.args;
        let rows_per_step = args.batch_size * args.gradient_accumulation_steps;
        let (total_steps, steps_per_epoch) = (run.plan.total_steps, run.plan.steps_per_epoch);
        let epochs = |steps: usize| steps as f64 / steps_per_epoch as f64;
        let from = run.plan.done_steps;

        let mut order = (usize::MAX, Vec::new());
        loop {
            // First what is due after the steps taken so far: a run may have been stopped just before it.
            let step = stepper.steps();
            let mut evaluated = false;
            if let Some(set) = validation
                && args.eval_is_due(step, steps_per_epoch, total_steps)
                && run.evals.last().is_none_or(|last| last.step < step)
            {
                let record = self.evaluate_set(set, step, epochs(step), &|_| ())?;
                run.evals.push(record.clone());
                if args.load_best_model_at_end && run.evals_since_best() == 0 {
                    run.best = Some(Arc::new(Best { step, weights: stepper.weights()? }));
                }
                self.tell(|callback| callback.on_eval(&record))?;
                evaluated = true;
            }
            if args.save_is_due(step, steps_per_epoch, total_steps)
                && let Some(output_dir) = &args.output_dir
                && (step > from || !checkpoint::folder(output_dir, step).exists())
            {
                run.state = Arc::new(stepper.state()?);
                let folder = run.write_checkpoint(
                    output_dir,
                    args.save_total_limit,
                    stepper.adapter_files()?.as_ref(),
                )?;
                run.state = Arc::default(); // held on, it would have to be copied by the next step
                self.tell(|callback| callback.on_save(step, &folder))?;
            }
            if step >= total_steps {
                return Ok(None);
            }
            if evaluated
                && args.early_stopping_patience.is_some_and(|patience| run.evals_since_best() >= patience)
            {
                return Ok(Some(StopReason::EarlyStopping));
            }

            let started = Instant::now();
            let (epoch, step_of_epoch) = (step / steps_per_epoch, step % steps_per_epoch);
            if order.0 != epoch {
                order = (epoch, train.order(args.seed, epoch));
            }
            let rows = order.1.chunks(rows_per_step).nth(step_of_epoch).unwrap_or_default();
            let batches = rows
                .chunks(args.batch_size)
                .map(|rows| self.batch(train, rows))
                .collect::<Result<Vec<_>>>()?;

            let outcome = stepper.step(&batches)?;

            let record = StepRecord {
                step: step + 1,
                epoch: epochs(step + 1),
                loss: outcome.loss,
                learning_rate: outcome.learning_rate,
                grad_norm: outcome.grad_norm,
                tokens: batches.iter().map(|batch| batch.tokens).sum(),
                label_tokens: batches.iter().map(|batch| batch.label_tokens).sum(),
                secs: started.elapsed().as_secs_f64(),
            };
            run.steps.push(record.clone());
            self.tell(|callback| callback.on_step(&record))?;
        }
    }

    fn evaluate_set(
        &self,
        set: &TokenizedSet,
        step: usize,
        epoch: f64,
        on_rows: &dyn Fn(usize),
    ) -> Result<EvalRecord> {
        let started = Instant::now();
        let (mut sum, mut label_tokens, mut done) = (0.0, 0, 0);
        for rows in set.by_length().chunks(self.args.eval_batch_size) {
            let batch = self.batch(set, rows)?;
            sum += backward::loss(&self.model, &batch)?;
            label_tokens += batch.label_tokens;
            done += rows.len();
            on_rows(done);
            self.tell(|callback| callback.on_eval_progress(done, set.examples.len()))?;
        }
        let loss = sum / label_tokens.max(1) as f64;
        Ok(EvalRecord {
            step,
            epoch,
            loss,
            label_tokens,
            secs: started.elapsed().as_secs_f64(),
            metrics: BTreeMap::new(),
        })
    }

    fn batch(&self, set: &TokenizedSet, rows: &[usize]) -> Result<Batch> {
        let examples: Vec<_> = rows.iter().map(|row| &set.examples[*row]).collect();
        Batch::new(&examples, encode::PAD_ID, self.model.device())
    }

    fn tell(&self, mut event: impl FnMut(&mut dyn Callback) -> Result<()>) -> Result<()> {
        let mut callbacks = self.callbacks.lock().unwrap_or_else(PoisonError::into_inner);
        callbacks.iter_mut().try_for_each(|callback| event(callback.as_mut()))
    }
}

impl Run {
    /// How many evaluations came after the best one (the first of equals).
    fn evals_since_best(&self) -> usize {
        let best = self.best_eval().map(|best| best.step);
        self.evals.iter().rev().take_while(|eval| Some(eval.step) != best).count()
    }

    fn check_continues(&self, args: &TrainingArgs, adapter: &str, data: u64) -> Result<()> {
        let refuse = |problem: String| Err(Error::Continue { problem });
        let differing = self.args.differing(args)?;
        if !differing.is_empty() {
            return refuse(format!("other arguments than the run's: {}", differing.join(", ")));
        }
        if self.adapter != adapter {
            return refuse(format!("it trained the adapter `{}`, and `{adapter}` is active", self.adapter));
        }
        if self.data != data {
            return refuse("the training set is not the run's: another order or other rows".to_owned());
        }
        Ok(())
    }
}
