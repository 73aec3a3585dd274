//! The record of another engine's run, made of its trainer's log and of the rows of the steps.

use std::collections::BTreeMap;

use serde_json::Value;
use tunebook_runs::Recipe;
use tunebook_tune::{
    Adapters as _, EvalRecord, Metric, Plan, RunRecord, Schedule, StepRecord, StopReason, Strategy,
    TokenizedSet,
};

use super::error::{Result, refuse};
use super::result::{EngineResult, number};
use super::{Accelerate, Manifest, Prepared};

/// The learning rates of a log agree to this part of the highest one.
const RATES_AGREE: f64 = 1e-6;

/// The run as if it had been one of ours.
///
/// # Errors
/// A log that is none of this run, or of one that has diverged.
pub(super) fn record(
    recipe: &Recipe,
    prepared: &Prepared,
    manifest: &Manifest,
    result: &EngineResult,
) -> Result<RunRecord> {
    let state = &result.state;
    let strategy = recipe.strategy.config.clone();
    let rows = &prepared.rows;
    let refused = |problem: String| refuse(&result.state_path, problem);
    let epoch = |step: usize| step as f64 / rows.steps_per_epoch.max(1) as f64;
    let rates = Rates::new(recipe, manifest);
    let mut steps: Vec<StepRecord> = Vec::new();
    let mut evals: Vec<EvalRecord> = Vec::new();
    for entry in &state.log_history {
        let (loss, eval_loss) = (entry.get("loss"), entry.get("eval_loss"));
        if loss.or(eval_loss).is_none() {
            continue; // the run's times
        }
        let before = match loss {
            Some(_) => steps.last().map(|last| last.step),
            None => evals.last().map(|last| last.step),
        };
        let step = step_of(entry, before, usize::from(loss.is_some()), state.global_step)
            .map_err(refused)?;
        let of = |key: &str| {
            let wrong = || refused(format!("`{key}` of step {step} is {}", shown(entry.get(key))));
            number(entry, key).ok_or_else(wrong)
        };
        if loss.is_some() {
            let loss = of("loss")?;
            let grad_norm = number(entry, "grad_norm");
            let learning_rate = number(entry, "learning_rate");
            diverged(step, loss, grad_norm, rates.skips).map_err(refused)?;
            rates.check(step, learning_rate).map_err(refused)?;
            let taken: Vec<usize> = rows.steps[step - 1]
                .iter()
                .flat_map(|row| rows.rows[*row].iter().copied())
                .collect();
            let of = |index: &usize| &rows.train.examples[*index];
            steps.push(StepRecord {
                step,
                epoch: epoch(step),
                loss,
                learning_rate: learning_rate.unwrap_or_else(|| rates.of(step)),
                grad_norm: grad_norm.unwrap_or(f64::NAN),
                loss_scale: None,
                skipped: false,
                kl: None,
                tokens: taken.iter().map(|index| of(index).ids.len()).sum(),
                label_tokens: taken.iter().map(|index| of(index).label_tokens()).sum(),
                secs: 0.0,
                memory_bytes: None,
                rows: taken.iter().map(|index| of(index).row).collect(),
                ranks: Vec::new(),
            });
        } else {
            let labels = rows.validation.iter().flat_map(|set| &set.examples);
            evals.push(EvalRecord {
                step,
                epoch: epoch(step),
                loss: of("eval_loss")?,
                label_tokens: labels.map(|example| example.label_tokens()).sum(),
                secs: number(entry, "eval_runtime").unwrap_or(0.0),
                metrics: BTreeMap::new(),
            });
        }
    }
    let secs = state.log_history.iter().rev().find_map(|entry| number(entry, "train_runtime"));
    let early = recipe.training.early_stopping_patience.is_some() && result.ended;
    let stopped = (state.global_step < manifest.total_steps).then_some(match early {
        true => StopReason::EarlyStopping,
        false => StopReason::Interrupted,
    });
    let loads_best = manifest.settings["load_best_model_at_end"] == true && result.ended;
    let sets = [Some(&rows.train), rows.validation.as_ref()];
    let of_sets = |count: fn(&TokenizedSet) -> usize| -> usize {
        sets.iter().flatten().map(|set| count(set)).sum()
    };
    let trained = prepared.model.adapters().into_iter().find(|info| info.active);
    let all = prepared.model.parameter_count();
    Ok(RunRecord {
        adapter: match &strategy {
            Strategy::Adapter(_) => recipe.strategy.adapter_name.clone(),
            Strategy::Full(_) => "full fine-tuning".to_owned(),
        },
        strategy,
        base_model: prepared.model.name().to_owned(),
        device: manifest.engine.to_string().to_lowercase(),
        dtype: serde_json::to_value(recipe.model.dtype)?.as_str().unwrap_or_default().to_owned(),
        args: recipe.training.clone(),
        plan: Plan {
            total_steps: manifest.total_steps,
            done_steps: 0,
            steps_per_epoch: rows.steps_per_epoch,
            examples: rows.train.examples.len(),
            validation_examples: rows.validation.as_ref().map_or(0, |set| set.examples.len()),
            trainable_parameters: trained.map_or(all, |info| info.trainable_parameters),
            truncated: of_sets(|set| set.truncated),
            without_labels: of_sets(|set| set.without_labels.len()),
            packed_rows: None,
            preflight: None,
            rank_modules: Vec::new(),
        },
        fingerprints: rows.fingerprints.clone(),
        metrics: vec![Metric::loss()],
        steps,
        evals,
        stopped,
        secs: secs.unwrap_or(0.0),
        loaded_step: state.best_global_step.filter(|_| loads_best),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// The step of a line of the log.
///
/// # Errors
/// It is no whole number, before the `first` or after the `last` one, or not after the one `before`.
fn step_of(
    entry: &BTreeMap<String, Value>,
    before: Option<usize>,
    first: usize,
    last: usize,
) -> Result<usize, String> {
    let found = entry.get("step");
    let step = found.and_then(Value::as_u64).and_then(|step| usize::try_from(step).ok());
    let Some(step) = step.filter(|step| (first..=last).contains(step)) else {
        return Err(format!(
            "a line of its log is of step {}, expected {first} to {last}: it is not the log of this run",
            shown(found)
        ));
    };
    match before {
        Some(before) if before >= step => Err(format!(
            "its log has step {step} after step {before}: it is not the log of one run"
        )),
        _ => Ok(step),
    }
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "not there".to_owned(), Value::to_string)
}

/// Refuses a step that has lost the run: here it would have ended it. An engine goes on, and may log a loss
/// that is not finite as 0 (`logging_nan_inf_filter`).
fn diverged(step: usize, loss: f64, grad_norm: Option<f64>, skips: bool) -> Result<(), String> {
    let hidden = loss == 0.0 && !skips && grad_norm.is_some_and(|norm| !norm.is_finite());
    if loss.is_finite() && !hidden {
        return Ok(());
    }
    let what = if hidden {
        "the gradient's norm is not finite, and the loss is logged as 0".to_owned()
    } else {
        format!("the loss is {loss}")
    };
    Err(format!(
        "{what} in step {step}: the run diverged, and what it has trained is of no use. Try a lower \
         learning rate, or a longer warm-up"
    ))
}

/// The learning rates of a run, by the recipe.
struct Rates {
    schedule: Schedule,
    highest: f64,
    /// The loss is scaled: a step is skipped if its gradient overflows, and does not count for the
    /// schedule.
    skips: bool,
    /// DeepSpeed has moved its schedule on before the rate is logged.
    ahead: bool,
}

impl Rates {
    fn new(recipe: &Recipe, manifest: &Manifest) -> Self {
        let (args, total) = (&recipe.training, manifest.total_steps);
        Self {
            schedule: Schedule::new(
                args.lr_scheduler,
                args.learning_rate,
                args.warmup(total),
                total,
            ),
            highest: args.learning_rate,
            skips: manifest.settings["fp16"] == true,
            ahead: manifest.accelerate == Some(Accelerate::Zero3),
        }
    }

    /// The rate of a step, counted from 1.
    fn of(&self, step: usize) -> f64 {
        self.schedule.learning_rate(step - 1)
    }

    /// # Errors
    /// A rate that is not the recipe's: it was set on the command line, or the log is another run's.
    fn check(&self, step: usize, found: Option<f64>) -> Result<(), String> {
        let Some(found) = found else { return Ok(()) };
        let from = if self.skips { 1 } else { step };
        let to = step + usize::from(self.ahead);
        let agrees = |at: usize| (found - self.of(at)).abs() <= RATES_AGREE * self.highest;
        if (from..=to).any(agrees) {
            return Ok(());
        }
        Err(format!(
            "the learning rate of step {step} is {found}, and {} by the recipe: it is another run's log, or \
             the engine was told another rate",
            self.of(step)
        ))
    }
}
