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

use crate::batch::packing::Rows;
use crate::batch::tokenize;
use crate::batch::{Batch, Example, TokenizedSet};
use crate::cost::preflight::{Preflight, Sets};
use crate::error::{Error, Result};
use crate::record::{Callback, EvalRecord, Plan, StepRecord};
use crate::train::args::{EvalStrategy, SaveStrategy, TrainingArgs};
use crate::train::backward;
use crate::train::checkpoint;
use crate::train::lr_range::{LrRange, LrRangeTest};
use crate::train::step::{RunState, Stepper};
use crate::train::trained::Weights;

/// Trains the active adapter of a model, or the model's own weights if they are unfrozen
/// ([`FullTuning`](crate::FullTuning)).
pub struct Trainer {
    model: Model,
    args: TrainingArgs,
    callbacks: Mutex<Vec<Box<dyn Callback>>>,
    metrics: Arc<Vec<(String, Measure)>>,
}

/// What a metric measures of a model; see [`Trainer::with_metric`].
pub type Measure = Box<dyn Fn(&Model) -> MeasureResult + Send + Sync>;

/// What a [`Measure`] gives.
pub type MeasureResult = std::result::Result<f64, Box<dyn std::error::Error + Send + Sync>>;

/// The last run of a model that ended with an error; lives in the model.
#[derive(Default)]
struct LastRun(Mutex<Option<Run>>);

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
    /// The validation loss (or `metric_for_best_model`) was no better for `early_stopping_patience`
    /// evaluations.
    EarlyStopping,
    /// A callback asked for it.
    Callback,
    /// An error ended it; the run is that up to the last whole step.
    Failed,
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

    /// The best evaluation: that with the lowest loss, unless the arguments name another metric.
    /// The first of equals.
    pub fn best_eval(&self) -> Option<&EvalRecord> {
        let metric = |eval: &EvalRecord| {
            eval.metric(&self.args.metric_for_best_model).filter(|v| !v.is_nan())
        };
        self.evals.iter().filter(|eval| metric(eval).is_some()).reduce(|best, eval| {
            let better =
                matches!((metric(eval), metric(best)), (Some(a), Some(b)) if self.args.better(a, b, 0.0));
            if better { eval } else { best }
        })
    }

    /// Mean training loss of the last `steps` steps (fewer if there are fewer), weighted by
    /// loss-bearing tokens.
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
        if let (Some(first), Some(recent)) =
            (self.steps.first(), self.recent_loss(self.plan.steps_per_epoch))
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
        if let Some(preflight) = &self.plan.preflight {
            write!(f, "; {}", preflight.settings())?;
        }
        if self.plan.truncated > 0 {
            write!(f, "; {} examples were cut off at `max_length`", self.plan.truncated)?;
        }
        if self.plan.without_labels > 0 {
            write!(
                f,
                "; {} examples had no completion left and were left out",
                self.plan.without_labels
            )?;
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
                let what = match self.args.metric_for_best_model.as_str() {
                    "loss" => "the validation loss fell no more".to_owned(),
                    name => format!("`{name}` got no better"),
                };
                write!(f, "; stopped after step {}: {what}", self.steps.len())?;
            }
            Some(StopReason::Callback) => {
                write!(f, "; stopped by a callback after step {}", self.steps.len())?;
            }
            Some(StopReason::Failed) => write!(f, "; failed after step {}", self.steps.len())?,
            None => {}
        }
        match self.loaded_step {
            Some(step) => {
                write!(f, "; the weights of step {step}, the best evaluation, are loaded")
            }
            None => Ok(()),
        }
    }
}

impl Trainer {
    /// For what is to be trained when training starts: the active adapter, or the unfrozen weights.
    /// The arguments are checked then, too.
    pub fn new(model: &Model, args: &TrainingArgs) -> Self {
        Self {
            model: model.clone(),
            args: args.clone(),
            callbacks: Mutex::default(),
            metrics: Arc::default(),
        }
    }

    /// Measures the model with `measure` at every evaluation, under `name` in
    /// [`EvalRecord::metrics`]. The arguments' `metric_for_best_model` may name it.
    #[must_use]
    pub fn with_metric(mut self, name: &str, measure: Measure) -> Self {
        // Shared only while a run is on, which borrows the trainer.
        if let Some(metrics) = Arc::get_mut(&mut self.metrics) {
            metrics.push((name.to_owned(), measure));
        }
        self
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
    /// A request to stop ends the run with `Ok`: the weights and the [`Run`] are those of the last
    /// whole step.
    ///
    /// # Errors
    /// Wrong arguments, no active adapter, examples that cannot be used, a loss that is not finite,
    /// a tensor without a gradient, a failing callback or operation. The weights are then those of
    /// the last whole step.
    pub fn fit(&self, train: &[Example], validation: &[Example]) -> Result<Run> {
        self.run(train, validation, None)
    }

    /// Goes on with a run that was stopped, from its last whole step: weights, optimizer, schedule
    /// and data order are put back, so that the result is that of a run never stopped, bit for bit.
    ///
    /// # Errors
    /// As [`Trainer::fit`]; other arguments, another adapter or another training set than the
    /// run's.
    pub fn resume(&self, run: &Run, train: &[Example], validation: &[Example]) -> Result<Run> {
        self.run(train, validation, Some(run))
    }

    /// Goes on with a run under this trainer's arguments and with these examples: weights,
    /// optimizer and the number of steps taken are the run's, the schedule and the order of the
    /// rows are new. The way on after a loss that was not finite, with a lower learning rate or
    /// without the rows that caused it.
    ///
    /// # Errors
    /// As [`Trainer::fit`]; a run of another adapter.
    pub fn continue_from(
        &self,
        run: &Run,
        train: &[Example],
        validation: &[Example],
    ) -> Result<Run> {
        let (set, _) = self.sets(train, &[])?;
        let rows = self.rows(&set)?;
        let steps_per_epoch =
            rows.len().div_ceil(self.args.batch_size * self.args.gradient_accumulation_steps);
        let plan = Plan {
            total_steps: self.args.max_steps.unwrap_or(self.args.epochs * steps_per_epoch),
            steps_per_epoch,
            examples: set.examples.len(),
            validation_examples: validation.len(),
            ..run.plan.clone()
        };
        let amended = Run { args: self.args.clone(), data: set.fingerprint(), plan, ..run.clone() };
        self.run(train, validation, Some(&amended))
    }

    /// The last run on this model that an error ended, as it was after its last whole step.
    pub fn last_run(&self) -> Option<Run> {
        let kept = self.model.extension::<LastRun>();
        kept.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A short run whose learning rate rises from step to step, to see where the loss falls and
    /// where it breaks away. The trained tensors are put back when it is done, and no callback
    /// hears of it. A request to stop ends it with what there is.
    ///
    /// # Errors
    /// As [`Trainer::fit`]; a loss that is not finite ends the test, it is no error.
    pub fn lr_range_test(&self, train: &[Example], test: &LrRangeTest) -> Result<LrRange> {
        test.validate()?;
        self.args.validate()?;
        let (set, _) = self.sets(train, &[])?;
        let rows = self.rows(&set)?;
        let mut stepper = Stepper::new(&self.model, &self.args, test.steps)?;
        stepper.hold_ranks();
        let before = stepper.weights()?;
        let mut range = LrRange::default();
        let tested = (|| {
            let together = self.args.batch_size * self.args.gradient_accumulation_steps;
            let steps_per_epoch = rows.len().div_ceil(together);
            for step in 0..test.steps {
                let order =
                    rows.order(self.args.data_seed(), step / steps_per_epoch, self.args.group());
                let chosen = order.chunks(together).nth(step % steps_per_epoch).unwrap_or_default();
                let batches = self.batches(&set, &rows, chosen)?;
                match stepper.step_at(&batches, test.rate(step)) {
                    Ok(outcome) if range.push(test.rate(step), outcome.loss, test) => {}
                    Ok(_) => break,
                    Err(Error::NotFinite { .. } | Error::GradientNotFinite { .. }) => {
                        range.diverged_at = Some(test.rate(step));
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })();
        stepper.set_weights(&before)?;
        match tested {
            Err(error) if !error.is_interruption() => return Err(error),
            _ => {}
        }
        range.suggest();
        Ok(range)
    }

    /// The examples as token ids and labels, as [`Trainer::fit`] sees them.
    ///
    /// # Errors
    /// Examples that cannot be used.
    pub fn tokenize(&self, examples: &[Example]) -> Result<TokenizedSet> {
        tokenize::tokenize(&self.model, "training", examples, self.args.max_length)
    }

    /// The loss on a set of examples, with the model as it is now.
    ///
    /// # Errors
    /// Wrong arguments, examples that cannot be used, a failing operation, or a request to stop.
    pub fn evaluate(&self, examples: &[Example]) -> Result<EvalRecord> {
        self.args.validate()?;
        let set = tokenize::tokenize(&self.model, "validation", examples, self.args.max_length)?;
        let bar = ProgressBar::new("Evaluating", Some(set.examples.len() as u64)).unit("row");
        self.evaluate_set(&set, 0, 0.0, &|done| bar.set(done as u64))
    }

    /// Both sets as token ids; no validation set if none is wanted.
    pub(crate) fn sets(
        &self,
        train: &[Example],
        validation: &[Example],
    ) -> Result<(TokenizedSet, Option<TokenizedSet>)> {
        let args = &self.args;
        if self.args.packing && self.model.positions_before() > 0 {
            return Err(Error::Config {
                field: "TrainingArgs.packing",
                value: format!(
                    "true, with {} virtual tokens before each text",
                    self.model.positions_before()
                ),
                expected: "false with prompt and prefix tuning: the virtual tokens stand before a row, and packed texts would not see them",
            });
        }
        let train = tokenize::tokenize(&self.model, "training", train, args.max_length)?;
        let validation = if validation.is_empty() || args.eval_strategy == EvalStrategy::No {
            None
        } else {
            Some(tokenize::tokenize(&self.model, "validation", validation, args.max_length)?)
        };
        Ok((train, validation))
    }

    /// The rows that the training examples make.
    pub(crate) fn rows(&self, train: &TokenizedSet) -> Result<Rows> {
        match self.args.max_length.filter(|_| self.args.packing) {
            Some(length) => Ok(Rows::packed(train, length)),
            None => Ok(Rows::single(train)),
        }
    }

    /// This trainer with other arguments, for the time of `work`.
    fn with_args<T>(&self, args: TrainingArgs, work: impl FnOnce(&Self) -> T) -> T {
        let lock = |trainer: &Self| {
            std::mem::take(&mut *trainer.callbacks.lock().unwrap_or_else(PoisonError::into_inner))
        };
        let other = Self {
            model: self.model.clone(),
            args,
            callbacks: Mutex::new(lock(self)),
            metrics: Arc::clone(&self.metrics),
        };
        let done = work(&other);
        let callbacks = lock(&other);
        *self.callbacks.lock().unwrap_or_else(PoisonError::into_inner) = callbacks;
        done
    }

    fn run(&self, train: &[Example], validation: &[Example], from: Option<&Run>) -> Result<Run> {
        let args = &self.args;
        args.validate()?;
        self.check_metric()?;
        let started = Instant::now();
        let (train, validation) = self.sets(train, validation)?;
        let watches = args.load_best_model_at_end || args.early_stopping_patience.is_some();
        if watches && validation.is_none() {
            return Err(Error::NoExamples { set: "validation" });
        }
        let rows = self.rows(&train)?;
        let together = args.batch_size * args.gradient_accumulation_steps;
        let sets = Sets { train: &train, rows: &rows, validation: validation.as_ref() };
        let preflight = match (args.memory_budget, from) {
            (None, _) => None,
            // Chosen once for a run: other micro-batches would add up in another order.
            (Some(_), Some(from)) => from.plan.preflight.clone().filter(|chosen| {
                chosen.batch_size * chosen.gradient_accumulation_steps == together
            }),
            (Some(_), None) => Some(self.plan(&sets)?),
        };
        let args =
            preflight.as_ref().map_or_else(|| args.clone(), |preflight| preflight.apply(args));
        self.with_args(args, |trainer| trainer.run_sets(&sets, from, preflight, started))
    }

    fn run_sets(
        &self,
        sets: &Sets<'_>,
        from: Option<&Run>,
        preflight: Option<Preflight>,
        started: Instant,
    ) -> Result<Run> {
        let args = &self.args;
        let (train, validation) = (sets.train, sets.validation);
        let steps_per_epoch =
            sets.rows.len().div_ceil(args.batch_size * args.gradient_accumulation_steps);
        let total_steps = args.max_steps.unwrap_or(args.epochs * steps_per_epoch);
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
                    validation_examples: validation.map_or(0, |set| set.examples.len()),
                    trainable_parameters: stepper.parameters().elem_count(),
                    truncated: train.truncated + validation.map_or(0, |set| set.truncated),
                    without_labels: train.without_labels.len()
                        + validation.map_or(0, |set| set.without_labels.len()),
                    packed_rows: args.packing.then(|| sets.rows.len()),
                    preflight,
                    rank_modules: stepper.rank_modules(),
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
        run.state = Arc::default(); // the stepper has it; held here, too, the next step would have to copy it
        if let Some(output_dir) =
            args.output_dir.as_deref().filter(|_| args.save_strategy != SaveStrategy::No)
        {
            checkpoint::remove_unfinished(output_dir)?; // of a run that was killed
        }
        self.tell(|callback| callback.on_start(&run.plan))?;
        let secs_before = run.secs;
        let ended = self.steps(&mut stepper, sets, &mut run);
        run.secs = secs_before + started.elapsed().as_secs_f64();
        run.state = Arc::new(stepper.state()?);
        run.stopped = match ended {
            Ok(stopped) => stopped,
            Err(error) if error.is_interruption() => Some(StopReason::Interrupted),
            Err(error) => {
                run.stopped = Some(StopReason::Failed);
                self.keep(run, &stepper, &error);
                return Err(error);
            }
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

    /// Keeps a run that failed for [`Trainer::last_run`], and writes its last whole step down where
    /// checkpoints are wanted.
    fn keep(&self, run: Run, stepper: &Stepper, error: &Error) {
        let bad_numbers =
            matches!(error, Error::NotFinite { .. } | Error::GradientNotFinite { .. });
        if bad_numbers
            && self.args.save_strategy != SaveStrategy::No
            && let Some(output_dir) = &self.args.output_dir
            && let Ok(files) = stepper.adapter_files()
        {
            // Best effort: the error that matters is the one that ended the run, and the run is
            // kept in memory.
            let _ = run.write_checkpoint(output_dir, self.args.save_total_limit, files.as_ref());
        }
        *self.model.extension::<LastRun>().0.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(run);
    }

    fn check_metric(&self) -> Result<()> {
        let name = &self.args.metric_for_best_model;
        let known: Vec<String> = ["loss".to_owned()]
            .into_iter()
            .chain(self.metrics.iter().map(|(name, _)| name.clone()))
            .collect();
        if known.contains(name) {
            Ok(())
        } else {
            Err(Error::UnknownMetric { name: name.clone(), known })
        }
    }

    /// The loop: why it ended before the last step, if it did.
    fn steps(
        &self,
        stepper: &mut Stepper,
        sets: &Sets<'_>,
        run: &mut Run,
    ) -> Result<Option<StopReason>> {
        let args = &self.args;
        let rows_per_step = args.batch_size * args.gradient_accumulation_steps;
        let (total_steps, steps_per_epoch) = (run.plan.total_steps, run.plan.steps_per_epoch);
        let epochs = |steps: usize| steps as f64 / steps_per_epoch as f64;
        let from = run.plan.done_steps;

        let (train, rows) = (sets.train, sets.rows);
        let mut order = (usize::MAX, Vec::new());
        loop {
            // First what is due after the steps taken so far: a run may have been stopped just
            // before it.
            let step = stepper.steps();
            let mut evaluated = false;
            if let Some(set) = sets.validation
                && args.eval_is_due(step, steps_per_epoch, total_steps)
                && run.evals.last().is_none_or(|last| last.step < step)
            {
                let record = self.evaluate_set(set, step, epochs(step), &|_| ())?;
                run.evals.push(record.clone());
                if args.load_best_model_at_end && run.evals_since_best(0.0) == 0 {
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
                && args.early_stopping_patience.is_some_and(|patience| {
                    run.evals_since_best(args.early_stopping_threshold) >= patience
                })
            {
                return Ok(Some(StopReason::EarlyStopping));
            }

            let started = Instant::now();
            let (epoch, step_of_epoch) = (step / steps_per_epoch, step % steps_per_epoch);
            if order.0 != epoch {
                order = (epoch, rows.order(args.data_seed(), epoch, args.group()));
            }
            let chosen = order.1.chunks(rows_per_step).nth(step_of_epoch).unwrap_or_default();
            let batches = self.batches(train, rows, chosen)?;

            let outcome = stepper.step(&batches)?;

            let record = StepRecord {
                step: step + 1,
                epoch: epochs(step + 1),
                loss: outcome.loss,
                learning_rate: outcome.learning_rate,
                grad_norm: outcome.grad_norm,
                loss_scale: outcome.loss_scale,
                skipped: outcome.skipped,
                tokens: batches.iter().map(|batch| batch.tokens).sum(),
                label_tokens: batches.iter().map(|batch| batch.label_tokens).sum(),
                secs: started.elapsed().as_secs_f64(),
                ranks: stepper.ranks(),
            };
            run.steps.push(record.clone());
            self.tell(|callback| callback.on_step(&record))?;
            let mut asked = false;
            self.tell(|callback| {
                asked |= callback.should_stop();
                Ok(())
            })?;
            if asked {
                return Ok(Some(StopReason::Callback));
            }
        }
    }

    fn evaluate_set(
        &self,
        set: &TokenizedSet,
        step: usize,
        epoch: f64,
        on_row: &dyn Fn(usize),
    ) -> Result<EvalRecord> {
        let started = Instant::now();
        let (mut sum, mut label_tokens, mut done) = (0.0, 0, 0);
        let single = Rows::single(set);
        for rows in set.by_length().chunks(self.args.eval_batch_size) {
            let batch = self.batch_of(set, &single, rows)?;
            sum += backward::loss(&self.model, &batch)?;
            label_tokens += batch.label_tokens;
            done += rows.len();
            on_row(done);
            self.tell(|callback| callback.on_eval_progress(done, set.examples.len()))?;
        }
        let loss = sum / label_tokens.max(1) as f64;
        let mut metrics = BTreeMap::new();
        for (name, measure) in self.metrics.iter() {
            let value = measure(&self.model)
                .map_err(|error| Error::Callback(format!("the metric `{name}`: {error}")))?;
            metrics.insert(name.clone(), value);
        }
        Ok(EvalRecord {
            step,
            epoch,
            loss,
            label_tokens,
            secs: started.elapsed().as_secs_f64(),
            metrics,
        })
    }

    /// The micro-batches of a step on these rows.
    fn batches(&self, set: &TokenizedSet, rows: &Rows, chosen: &[usize]) -> Result<Vec<Batch>> {
        chosen.chunks(self.args.batch_size).map(|chosen| self.batch_of(set, rows, chosen)).collect()
    }

    /// One batch of these rows.
    pub(crate) fn batch_of(
        &self,
        set: &TokenizedSet,
        rows: &Rows,
        chosen: &[usize],
    ) -> Result<Batch> {
        let packed: Vec<Vec<_>> = chosen
            .iter()
            .map(|row| rows.get(*row).iter().map(|index| &set.examples[*index]).collect())
            .collect();
        let single = packed.iter().all(|row| row.len() == 1);
        let lengths =
            || packed.iter().map(|row| row.iter().map(|example| example.ids.len()).sum::<usize>());
        if lengths().min() < lengths().max() && self.may_join_rows() {
            let joined = [packed.into_iter().flatten().collect()];
            return Batch::packed(&joined, tokenize::PAD_ID, self.model.device());
        }
        let batch = Batch::packed(&packed, tokenize::PAD_ID, self.model.device())?;
        Ok(if single { Batch { segments: None, ..batch } } else { batch })
    }

    /// Whether rows of different lengths go through the model end to end, as one row without
    /// padding, of which every text sees itself alone. (Of `banking77`'s chats eight to a batch, a
    /// fifth of all positions would be padding.) Not where something counts a row's positions, or
    /// stands before each row.
    pub(crate) fn may_join_rows(&self) -> bool {
        self.model.device().is_cpu()
            && self.model.attends_in_tiles()
            && self.model.positions_before() == 0
            && self.args.neftune_noise_alpha.is_none()
    }

    fn tell(&self, mut event: impl FnMut(&mut dyn Callback) -> Result<()>) -> Result<()> {
        let mut callbacks = self.callbacks.lock().unwrap_or_else(PoisonError::into_inner);
        callbacks.iter_mut().try_for_each(|callback| event(callback.as_mut()))
    }
}

impl Run {
    /// How many evaluations came after the last one that was better, by more than `threshold`, than
    /// all before it.
    fn evals_since_best(&self, threshold: f64) -> usize {
        let (mut best, mut since) = (None, 0);
        for eval in &self.evals {
            let value =
                eval.metric(&self.args.metric_for_best_model).filter(|value| !value.is_nan());
            match (value, best) {
                (Some(value), None) => (best, since) = (Some(value), 0),
                (Some(value), Some(so_far)) if self.args.better(value, so_far, threshold) => {
                    (best, since) = (Some(value), 0);
                }
                _ => since += 1,
            }
        }
        since
    }

    fn check_continues(&self, args: &TrainingArgs, adapter: &str, data: u64) -> Result<()> {
        let refuse = |problem: String| Err(Error::Continue { problem });
        let differing = self.args.differing(args)?;
        if !differing.is_empty() {
            return refuse(format!("other arguments than the run's: {}", differing.join(", ")));
        }
        if self.adapter != adapter {
            return refuse(format!(
                "it trained the adapter `{}`, and `{adapter}` is active",
                self.adapter
            ));
        }
        if self.data != data {
            return refuse(
                "the training set is not the run's: another order or other rows".to_owned(),
            );
        }
        Ok(())
    }
}
