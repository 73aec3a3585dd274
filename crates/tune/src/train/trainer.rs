//! The training loop, from examples to a [`Run`]: [`Trainer::train`] prepares a run, goes through
//! its steps and ends it.
//!
//! ```no_run
//! use tunebook_models::{Device, Model};
//! use tunebook_tune::{Adapters, Example, Lora, Trainer, TrainingArgs};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::load("SmolLM2-135M-Instruct", &Device::Cpu)?;
//! model.add_adapter("support", &Lora { r: 8, lora_alpha: 32.0, ..Default::default() })?;
//! let train = [Example::new("Where is my parcel?", "On its way: …")];
//! let run = Trainer::new(&model, &TrainingArgs { epochs: 3, ..Default::default() }).train(&train)?;
//! println!("{run}");
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tunebook_models::{Device, Model};
use tunebook_progress::ProgressBar;
use tunebook_progress::interrupt::Interrupted;

use crate::adapters::registry;
use crate::batch::collate::{self, Sets};
use crate::batch::example_sets::{ExampleSets, IntoSets, Measure, Measured};
use crate::batch::packing::Rows;
use crate::batch::run_rows::RunRows;
use crate::batch::tokenize;
use crate::batch::{Example, TokenizedSet};
use crate::cost::memory;
use crate::cost::preflight;
use crate::cost::summary::{self, TrainingSummary};
use crate::error::{Error, Result};
use crate::record::callback::Callback;
use crate::record::fingerprint::Fingerprints;
use crate::record::metric::Metric;
use crate::record::preflight::Preflight;
use crate::record::run_record::{RunRecord, StopReason};
use crate::record::{EvalRecord, Plan, StepRecord};
use crate::train::args::{SaveStrategy, TrainingArgs};
use crate::train::backward;
use crate::train::lr_range::{self, LrRange, LrRangeTest};
use crate::train::output_dir::{self, OutputDir};
use crate::train::run::{self, Best, Now, Run};
use crate::train::step::Stepper;

/// Trains the active adapter of a model, or the model's own weights if they are unfrozen
/// ([`FullTuning`](crate::FullTuning)).
pub struct Trainer {
    model: Model,
    args: TrainingArgs,
    callbacks: Mutex<Vec<Box<dyn Callback>>>,
    metrics: Vec<Measured>,
    /// What the sets of the run that goes on measure.
    judged: Mutex<Vec<Measured>>,
    /// The fingerprint of the data set that the examples come from.
    dataset: Mutex<Option<String>>,
}

/// The value of a metric, or why there is none.
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

impl Trainer {
    /// For what is to be trained when training starts: the active adapter, or the unfrozen weights.
    /// The arguments are checked then, too.
    pub fn new(model: &Model, args: &TrainingArgs) -> Self {
        Self {
            model: model.clone(),
            args: args.clone(),
            callbacks: Mutex::default(),
            metrics: Vec::new(),
            judged: Mutex::default(),
            dataset: Mutex::default(),
        }
    }

    /// Measures the model with `measure` at every evaluation; the values stand under the metric's
    /// name in [`EvalRecord::metrics`]. The arguments' `metric_for_best_model` may name it.
    ///
    /// ```no_run
    /// # use tunebook_tune::{Metric, Trainer, TrainingArgs};
    /// # fn f(model: tunebook_models::Model, share_of_right_answers: fn(&tunebook_models::Model) -> f64) {
    /// let args = TrainingArgs { metric_for_best_model: "accuracy".into(), ..Default::default() };
    /// let trainer = Trainer::new(&model, &args)
    ///     .with_metric(Metric::higher_is_better("accuracy"), move |model| Ok(share_of_right_answers(model)));
    /// # }
    /// ```
    #[must_use]
    pub fn with_metric(
        self,
        metric: Metric,
        measure: impl Fn(&Model) -> MeasureResult + Send + Sync + 'static,
    ) -> Self {
        self.with_measure(metric, Box::new(measure)) // what a cell compiles
    }

    fn with_measure(mut self, metric: Metric, measure: Measure) -> Self {
        self.metrics.push((metric, measure));
        self
    }

    /// Lets `callback` see the run as it goes: a [`Callback`], or a closure that sees each step. May
    /// be called more than once.
    ///
    /// ```no_run
    /// # use tunebook_tune::{StepRecord, Trainer, TrainingArgs};
    /// # fn f(model: tunebook_models::Model) {
    /// let trainer = Trainer::new(&model, &TrainingArgs::default())
    ///     .with_callback(|step: &StepRecord| println!("{}: {:.3}", step.step, step.loss));
    /// # }
    /// ```
    #[must_use]
    pub fn with_callback(self, callback: impl Callback + 'static) -> Self {
        self.push(Box::new(callback));
        self
    }

    /// Does `work` with one more callback, which goes when it is done.
    pub fn observed<T>(
        &self,
        callback: impl Callback + 'static,
        work: impl FnOnce(&Self) -> T,
    ) -> T {
        self.push(Box::new(callback));
        let done = work(self);
        self.pop();
        done
    }

    fn push(&self, callback: Box<dyn Callback>) {
        self.callbacks.lock().unwrap_or_else(PoisonError::into_inner).push(callback);
    }

    fn pop(&self) {
        self.callbacks.lock().unwrap_or_else(PoisonError::into_inner).pop();
    }

    /// The fingerprint of the data set that the examples of the next runs come from, for the
    /// [`Fingerprints`] of their records; `None`: not known.
    pub fn set_dataset_fingerprint(&self, fingerprint: Option<String>) {
        *self.dataset.lock().unwrap_or_else(PoisonError::into_inner) = fingerprint;
    }

    /// The model that is trained.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The arguments.
    pub fn args(&self) -> &TrainingArgs {
        &self.args
    }

    /// Trains on the training set, and evaluates on the validation set, if there is one, as the
    /// arguments say: `train(&examples)`, `train((&examples, &held_out))`, or with the prelude
    /// `train(&split)`.
    ///
    /// A request to stop ends the run with `Ok`: the weights and the [`Run`] are those of the last
    /// whole step.
    ///
    /// # Errors
    /// Wrong arguments, no active adapter, one that is merged, a handle that answers each text with an
    /// adapter of its own, examples that cannot be used, a loss that is not finite,
    /// a tensor without a gradient, a failing callback or operation. The weights are then those of
    /// the last whole step.
    pub fn train<Kind>(&self, sets: impl IntoSets<Kind>) -> Result<Run> {
        self.run(sets.into_sets(), None)
    }

    /// Goes on with a run that was stopped, from its last whole step: weights, optimizer, schedule
    /// and data order are put back, so that the result is that of a run never stopped, bit for bit.
    ///
    /// # Errors
    /// As [`Trainer::train`]; other arguments, another configuration of what is trained, another base,
    /// tokenizer or chat template, or other rows than the run's: each with what it was.
    pub fn resume<Kind>(&self, run: &Run, sets: impl IntoSets<Kind>) -> Result<Run> {
        self.run(sets.into_sets(), Some(run))
    }

    /// Goes on with a run under this trainer's arguments and with these examples: weights,
    /// optimizer and the number of steps taken are the run's, the schedule and the order of the
    /// rows are new. The way on after a loss that was not finite, with a lower learning rate or
    /// without the rows that caused it.
    ///
    /// # Errors
    /// As [`Trainer::train`]; a run of another adapter, configuration, base, tokenizer or chat template.
    pub fn continue_from<Kind>(&self, run: &Run, sets: impl IntoSets<Kind>) -> Result<Run> {
        self.run_amended(run, sets.into_sets())
    }

    fn run_amended(&self, run: &Run, examples: ExampleSets) -> Result<Run> {
        let sets = self.sets(&examples)?;
        let mut amended = run.clone();
        let record = &mut amended.record;
        record.args = self.args.clone();
        record.fingerprints.train = sets.train.fingerprint();
        record.fingerprints.validation = sets.validation.as_ref().map(|set| set.fingerprint());
        record.plan.total_steps = sets.total_steps(&self.args);
        record.plan.steps_per_epoch = sets.steps_per_epoch(&self.args);
        record.plan.examples = sets.train.examples.len();
        record.plan.validation_examples = examples.validation.len();
        if self.args.save_strategy != SaveStrategy::No
            && let Some(dir) = &self.args.output_dir
        {
            output_dir::check_last(dir, &run.id, run.steps.len())?;
        }
        self.run(examples, Some(&amended))
    }

    /// The last run on this model that an error ended, as it was after its last whole step.
    pub fn last_run(&self) -> Option<Run> {
        let kept = self.model.extension::<LastRun>();
        kept.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Predicts what [`Trainer::train`] on these sets will take, and with a
    /// [`memory_budget`](TrainingArgs::memory_budget) chooses the settings that fit into it. A few
    /// batches of the run are worked through for it; nothing is trained.
    ///
    /// # Errors
    /// As [`Trainer::train`]; a budget that not even one row at a time fits into.
    pub fn preflight<Kind>(&self, sets: impl IntoSets<Kind>) -> Result<Preflight> {
        self.args.validate()?;
        preflight::measure(&self.model, &self.args, &self.sets(&sets.into_sets())?)
    }

    /// A table of a run's trained parameters, memory and file size, before it starts.
    ///
    /// # Errors
    /// Wrong arguments, nothing to train, or examples that cannot be used.
    pub fn summary<Kind>(&self, sets: impl IntoSets<Kind>) -> Result<TrainingSummary> {
        self.args.validate()?;
        summary::count(&self.model, &self.args, &self.sets(&sets.into_sets())?)
    }

    /// The rows of [`Trainer::train`] on these sets, step by step, without taking one: for an engine
    /// that is to take the same steps.
    ///
    /// # Errors
    /// As [`Trainer::summary`].
    pub fn rows<Kind>(&self, sets: impl IntoSets<Kind>) -> Result<RunRows> {
        self.args.validate()?;
        RunRows::new(&self.model, &self.args, self.sets(&sets.into_sets())?)
    }

    /// A short run whose learning rate rises from step to step, to see where the loss falls and
    /// where it breaks away. The trained tensors are put back when it is done, and no callback
    /// hears of it. A request to stop ends it with what there is.
    ///
    /// # Errors
    /// As [`Trainer::train`]; a loss that is not finite ends the test, it is no error.
    pub fn lr_range_test<Kind>(
        &self,
        sets: impl IntoSets<Kind>,
        test: &LrRangeTest,
    ) -> Result<LrRange> {
        test.validate()?;
        self.args.validate()?;
        lr_range::run(&self.model, &self.args, &self.sets(&sets.into_sets())?, test)
    }

    /// The examples as token ids and labels, as [`Trainer::train`] sees them.
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
        registry::check_one(&self.model)?;
        let model = self.model.pinned();
        let set = tokenize::tokenize(&model, "validation", examples, self.args.max_length)?;
        let bar = ProgressBar::new("Evaluating", Some(set.examples.len() as u64)).unit("row");
        self.evaluate_set(&model, &self.args, &set, (0, 0.0), &|done| bar.set(done as u64))
    }

    fn sets(&self, examples: &ExampleSets) -> Result<Sets> {
        Sets::new(&self.model, &self.args, examples)
    }

    /// Runs on these sets, watched by their observer.
    fn run(&self, mut examples: ExampleSets, from: Option<&Run>) -> Result<Run> {
        let Some(observer) = examples.observer.take() else {
            return self.run_unwatched(examples, from);
        };
        self.push(observer(from));
        let done = self.run_unwatched(examples, from);
        self.pop();
        done
    }

    /// Prepares a run, or what is left of `from`, goes through its steps and ends it.
    fn run_unwatched(&self, mut examples: ExampleSets, from: Option<&Run>) -> Result<Run> {
        self.args.validate()?;
        registry::trained(&self.model)?; // before anything is tokenised
        *self.judged() = self.judges(&mut examples)?;
        self.check_metric()?;
        let started = Instant::now();
        // What the model is switched to meanwhile is nothing to this run.
        let model = &self.model.pinned();
        let sets = Sets::new(model, &self.args, &examples)?;
        drop(examples); // held as token ids from here on
        let watches =
            self.args.load_best_model_at_end || self.args.early_stopping_patience.is_some();
        if watches && sets.validation.is_none() {
            return Err(Error::NoExamples { set: "validation" });
        }
        let preflight = self.chosen(model, &sets, from)?;
        let args = match &preflight {
            Some(preflight) => preflight.apply(&self.args),
            None => self.args.clone(),
        };
        let mut stepper = Stepper::new(model, &args, sets.total_steps(&args))?;
        let id = from.map_or_else(run::new_id, |from| from.id.clone());
        let mut run = match from {
            None => self.begin(id, &args, &sets, preflight, &stepper)?,
            Some(from) => {
                from.check_continues(&Now {
                    model,
                    args: &args,
                    adapter: stepper.adapter_name(),
                    strategy: stepper.strategy(),
                    fingerprints: Fingerprints::of(&self.model, &sets, None)?,
                })?;
                let mut run = from.clone();
                run.record.plan.done_steps = from.steps.len();
                run.record.args = args.clone();
                run.record.metrics = self.metrics();
                (run.record.stopped, run.record.loaded_step) = (None, None);
                run
            }
        };
        let output_dir = match &self.args.output_dir {
            Some(dir) if self.args.save_strategy != SaveStrategy::No => {
                Some(OutputDir::take(dir, &run.id)?)
            }
            _ => None,
        };
        let output_dir = output_dir.as_ref();
        if let Some(from) = from {
            stepper.restore(&from.state)?;
        }
        run.state = Arc::default(); // the stepper has it; held here, too, the next step would have to copy it
        self.tell(|callback| {
            callback.on_start(&run.plan)?;
            callback.on_begin(&run.record, model)
        })?;

        let secs_before = run.secs;
        let ended = self.steps(model, &args, &sets, &mut stepper, &mut run, output_dir);
        run.record.secs = secs_before + started.elapsed().as_secs_f64();
        run.state = Arc::new(stepper.state()?);
        run.record.stopped = match ended {
            Ok(stopped) => stopped,
            Err(error) if error.is_interruption() => Some(StopReason::Interrupted),
            Err(error) => {
                run.record.stopped = Some(StopReason::Failed);
                let _ = self.tell(|callback| {
                    callback.on_fail(&run.record, &error);
                    Ok(())
                });
                self.keep(run, &stepper, &error, output_dir);
                return Err(error);
            }
        };
        if run.stopped == Some(StopReason::Interrupted)
            && let Some(output_dir) = output_dir
            && let Err(error) = self.save_stopped(&run, &stepper, output_dir)
        {
            self.keep(run, &stepper, &error, None);
            return Err(error);
        }
        if let Some(best) = &run.best
            && run.stopped != Some(StopReason::Interrupted)
        {
            stepper.set_weights(&best.weights)?;
            run.record.loaded_step = Some(best.step);
        }
        self.tell(|callback| callback.on_end(&run.record))?;
        Ok(run)
    }

    /// The loop: why it ended before the last step, if it did.
    fn steps(
        &self,
        model: &Model,
        args: &TrainingArgs,
        sets: &Sets,
        stepper: &mut Stepper,
        run: &mut Run,
        output_dir: Option<&OutputDir>,
    ) -> Result<Option<StopReason>> {
        let (total_steps, steps_per_epoch) = (run.plan.total_steps, run.plan.steps_per_epoch);
        let epochs = |steps: usize| steps as f64 / steps_per_epoch as f64;
        let from = run.plan.done_steps;
        let mut order = (usize::MAX, Vec::new());
        loop {
            // First what is due after the steps taken so far: a run may have been stopped just
            // before it.
            let step = stepper.steps();
            let mut evaluated = false;
            if let Some(set) = &sets.validation
                && args.eval_is_due(step, steps_per_epoch, total_steps)
                && run.evals.last().is_none_or(|last| last.step < step)
            {
                let record = self.evaluate_set(model, args, set, (step, epochs(step)), &|_| ())?;
                run.record.evals.push(record.clone());
                if args.load_best_model_at_end && run.evals_since_best(0.0) == 0 {
                    run.best = Some(Arc::new(Best { step, weights: stepper.weights()? }));
                }
                self.tell(|callback| callback.on_eval(&record))?;
                evaluated = true;
            }
            if args.save_is_due(step, steps_per_epoch, total_steps)
                && let Some(output_dir) = output_dir
                && (step > from || !output_dir.checkpoint(step).exists())
            {
                run.state = Arc::new(stepper.state()?);
                let files = stepper.adapter_files()?;
                let folder = output_dir.write(run, args.save_total_limit, files.as_ref())?;
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
                order = (epoch, sets.order(args, epoch));
            }
            let chosen =
                order.1.chunks(args.rows_per_step()).nth(step_of_epoch).unwrap_or_default();
            let batches = sets.micro_batches(model, args, chosen)?;

            let outcome = stepper.step(&batches)?;

            let record = StepRecord {
                step: step + 1,
                epoch: epochs(step + 1),
                loss: outcome.loss,
                learning_rate: outcome.learning_rate,
                grad_norm: outcome.grad_norm,
                loss_scale: outcome.loss_scale,
                skipped: outcome.skipped,
                kl: outcome.kl,
                tokens: batches.iter().map(|batch| batch.tokens).sum(),
                label_tokens: batches.iter().map(|batch| batch.label_tokens).sum(),
                secs: started.elapsed().as_secs_f64(),
                memory_bytes: memory::bytes_in_use(model.device()),
                rows: batches.iter().flat_map(|batch| batch.rows.iter().copied()).collect(),
                ranks: stepper.ranks(),
            };
            run.record.steps.push(record.clone());
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

    /// The settings that keep the memory budget, if there is one.
    fn chosen(&self, model: &Model, sets: &Sets, from: Option<&Run>) -> Result<Option<Preflight>> {
        match (self.args.memory_budget, from) {
            (None, _) => Ok(None),
            // Chosen once for a run: other micro-batches would add up in another order.
            (Some(_), Some(from)) => Ok(from.plan.preflight.clone().filter(|chosen| {
                chosen.batch_size * chosen.gradient_accumulation_steps == self.args.rows_per_step()
            })),
            (Some(_), None) => preflight::measure(model, &self.args, sets).map(Some),
        }
    }

    /// A run of which no step is taken yet.
    fn begin(
        &self,
        id: String,
        args: &TrainingArgs,
        sets: &Sets,
        preflight: Option<Preflight>,
        stepper: &Stepper,
    ) -> Result<Run> {
        let (train, validation) = (&sets.train, sets.validation.as_ref());
        let plan = Plan {
            total_steps: sets.total_steps(args),
            done_steps: 0,
            steps_per_epoch: sets.steps_per_epoch(args),
            examples: train.examples.len(),
            validation_examples: validation.map_or(0, |set| set.examples.len()),
            trainable_parameters: stepper.parameters().elem_count(),
            truncated: train.truncated + validation.map_or(0, |set| set.truncated),
            without_labels: train.without_labels.len()
                + validation.map_or(0, |set| set.without_labels.len()),
            packed_rows: args.packing.then(|| sets.rows.len()),
            preflight,
            rank_modules: stepper.rank_modules(),
        };
        let dataset = self.dataset.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let record = RunRecord {
            adapter: stepper.adapter_name().to_owned(),
            strategy: stepper.strategy(),
            base_model: self.model.name().to_owned(),
            device: device_name(self.model.device()).to_owned(),
            dtype: self.model.activation_dtype().as_str().to_owned(),
            args: args.clone(),
            plan,
            fingerprints: Fingerprints::of(&self.model, sets, dataset)?,
            metrics: self.metrics(),
            steps: Vec::new(),
            evals: Vec::new(),
            stopped: None,
            secs: 0.0,
            loaded_step: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Ok(Run { id, record, best: None, state: Arc::default() })
    }

    /// Writes the last step of a run that was stopped down, where checkpoints are wanted and the last
    /// one is of an earlier step.
    fn save_stopped(&self, run: &Run, stepper: &Stepper, output_dir: &OutputDir) -> Result<()> {
        let step = run.steps.len();
        if step == run.plan.done_steps || output_dir.checkpoint(step).exists() {
            return Ok(());
        }
        let files = stepper.adapter_files()?;
        let folder = output_dir.write(run, self.args.save_total_limit, files.as_ref())?;
        self.tell(|callback| callback.on_save(step, &folder))
    }

    /// Keeps a run that failed for [`Trainer::last_run`], and writes its last whole step down where
    /// checkpoints are wanted.
    fn keep(&self, run: Run, stepper: &Stepper, error: &Error, output_dir: Option<&OutputDir>) {
        let bad_numbers =
            matches!(error, Error::NotFinite { .. } | Error::GradientNotFinite { .. });
        if bad_numbers
            && let Some(output_dir) = output_dir
            && let Ok(files) = stepper.adapter_files()
        {
            // Best effort: the error that matters is the one that ended the run, and the run is
            // kept in memory.
            let _ = output_dir.write(&run, self.args.save_total_limit, files.as_ref());
        }
        *self.model.extension::<LastRun>().0.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(run);
    }

    fn judged(&self) -> MutexGuard<'_, Vec<Measured>> {
        self.judged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the arguments want to have measured of answers.
    ///
    /// # Errors
    /// The sets cannot be judged so, or there is no such metric.
    fn judges(&self, examples: &mut ExampleSets) -> Result<Vec<Measured>> {
        let wanted = &self.args.eval_metrics;
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let refuse = |expected: String| Error::EvalMetrics { wanted: wanted.join(", "), expected };
        match examples.judge.take() {
            Some(judge) => judge(&self.args).map_err(refuse),
            None => Err(refuse(
                "sets whose answers can be judged, as the prelude's `&split` with validation rows; \
                 of others `Trainer::with_metric` measures what you give it"
                    .to_owned(),
            )),
        }
    }

    /// What every evaluation measures.
    fn metrics(&self) -> Vec<Metric> {
        let judged = self.judged();
        let own = self.metrics.iter().chain(judged.iter()).map(|(metric, _)| metric.clone());
        std::iter::once(Metric::loss()).chain(own).collect()
    }

    /// # Errors
    /// Two metrics of one name, or a `metric_for_best_model` that is not measured.
    fn check_metric(&self) -> Result<()> {
        let known: Vec<String> = self.metrics().into_iter().map(|metric| metric.name).collect();
        if let Some(twice) = (1..known.len()).find(|at| known[..*at].contains(&known[*at])) {
            return Err(Error::Config {
                field: "Metric.name",
                value: format!("`{}`, which another metric has", known[twice]),
                expected: "a name of its own for each metric; `loss` is measured always",
            });
        }
        let name = &self.args.metric_for_best_model;
        match known.contains(name) {
            true => Ok(()),
            false => Err(Error::UnknownMetric { name: name.clone(), known }),
        }
    }

    /// The loss on a set, and all metrics, after `step` steps.
    fn evaluate_set(
        &self,
        model: &Model,
        args: &TrainingArgs,
        set: &TokenizedSet,
        (step, epoch): (usize, f64),
        on_row: &dyn Fn(usize),
    ) -> Result<EvalRecord> {
        let started = Instant::now();
        let (mut sum, mut label_tokens, mut done) = (0.0, 0, 0);
        let single = Rows::single(set);
        for rows in set.by_length().chunks(args.eval_batch_size) {
            let batch = collate::batch_of(model, args, set, &single, rows)?;
            sum += backward::loss(model, &batch)?;
            label_tokens += batch.label_tokens;
            done += rows.len();
            on_row(done);
            self.tell(|callback| callback.on_eval_progress(done, set.examples.len()))?;
        }
        let loss = sum / label_tokens.max(1) as f64;
        let mut metrics = BTreeMap::new();
        let judged = self.judged();
        for (Metric { name, .. }, measure) in self.metrics.iter().chain(judged.iter()) {
            let value = measure(model).map_err(|error| match error.downcast::<Interrupted>() {
                Ok(stopped) => Error::from(*stopped),
                Err(error) => Error::Callback(format!("the metric `{name}`: {error}")),
            })?;
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

    fn tell(&self, mut event: impl FnMut(&mut dyn Callback) -> Result<()>) -> Result<()> {
        let mut callbacks = self.callbacks.lock().unwrap_or_else(PoisonError::into_inner);
        callbacks.iter_mut().try_for_each(|callback| event(callback.as_mut()))
    }
}

fn device_name(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}
