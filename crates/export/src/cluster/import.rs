//! A run of another engine, brought back into the registry: its losses, its adapter, and the rows that
//! it saw, held against what was exported.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tunebook_models::Model;
use tunebook_runs::{Recipe, Registry};
use tunebook_tune::{
    AdapterConfig, Adapters as _, Callback as _, EvalRecord, Metric, Plan, RunRecord, StepRecord,
    StopReason, Strategy,
};

use super::error::{Error, Result};
use super::{INITIAL, MANIFEST, Manifest, OUT, Prepared, Temporary};
use crate::folder::sum;

/// A run that was brought back.
#[derive(Debug, Clone)]
pub struct Imported {
    /// The run's id in the registry.
    pub run: String,
    /// The adapter's; `None` for full fine-tuning, whose weights a registry does not hold.
    pub adapter: Option<String>,
    /// The run's record.
    pub record: RunRecord,
    /// What is not as it would be after a run here.
    pub notes: Vec<String>,
}

/// What `transformers` writes of a run.
#[derive(Debug, Deserialize)]
struct TrainerState {
    global_step: usize,
    #[serde(default)]
    best_global_step: Option<usize>,
    #[serde(default)]
    log_history: Vec<BTreeMap<String, Value>>,
}

/// Brings the run of an export's folder into a registry. The engine has written to `out` in it.
///
/// The recipe is read and its rows are made again: what differs from the export is refused.
///
/// # Errors
/// A folder that is no export, files that have changed since, data or a base that are others by now, an
/// adapter that is not the recipe's, no `trainer_state.json`, a registry that cannot be written.
pub fn import_run(folder: &Path, registry: &Registry) -> Result<Imported> {
    let manifest: Manifest =
        serde_json::from_slice(&read(&folder.join(MANIFEST)).map_err(|_| {
            refuse(
                folder,
                format!("there is no {MANIFEST}: name the folder that `tunebook export` wrote"),
            )
        })?)?;
    let mut unchanged = manifest.data.clone();
    unchanged.insert("recipe.yaml".to_owned(), manifest.recipe.clone());
    for (name, expected) in &unchanged {
        let path = folder.join(name);
        if sum(&read(&path)?) != *expected {
            return Err(refuse(
                &path,
                "it was changed since it was exported, so that nobody knows what the run saw: export \
                 and train again"
                    .to_owned(),
            ));
        }
    }
    let (state_path, state) = state(&folder.join(OUT))?;
    let recipe = Recipe::read(folder.join("recipe.yaml"))?;
    let prepared = Prepared::new(&recipe)?;
    same(folder, &manifest, &prepared)?;

    let mut notes = Vec::new();
    let name = &recipe.strategy.adapter_name;
    let out = folder.join(OUT);
    let record = record(&recipe, &prepared, &manifest, &state)?;
    let load = || match &recipe.strategy.config {
        Strategy::Full(_) => Ok(()),
        Strategy::Adapter(config) => adapter(folder, &out, config, &prepared.model, name),
    };
    load()?; // refused before anything is recorded
    match &recipe.strategy.config {
        Strategy::Full(_) => notes.push(format!(
            "full fine-tuning: the weights stay in {}, a registry holds adapters",
            out.display()
        )),
        Strategy::Adapter(_) => {
            // A run begins with the new adapter of its recipe.
            prepared.model.delete_adapter(name)?;
            recipe.strategy.add_to(&prepared.model)?;
        }
    }
    if record.steps.len() < state.global_step {
        notes.push(format!(
            "{} of {} steps were logged (`logging_steps` is 1 in what was exported)",
            record.steps.len(),
            state.global_step
        ));
    }
    if state.global_step < manifest.total_steps {
        notes.push(format!(
            "the run ended after {} of {} steps ({})",
            state.global_step,
            manifest.total_steps,
            state_path.display()
        ));
    }
    let title = recipe.name.clone().unwrap_or_else(|| name.clone());
    let engine = manifest.engine.to_string().to_lowercase();
    let recorder =
        registry.record(&title).with_data(&prepared.data).with_tag("imported").with_tag(&engine);
    let mut callback = recorder.clone();
    callback.on_begin(&record, &prepared.model)?;
    load()?;
    record.steps.iter().try_for_each(|step| callback.on_step(step))?;
    record.evals.iter().try_for_each(|eval| callback.on_eval(eval))?;
    callback.on_end(&record)?;
    // A recorder returns no errors.
    let adapter = recorder.adapter();
    let is_adapter = matches!(recipe.strategy.config, Strategy::Adapter(_));
    let warnings = recorder.warnings();
    if recorder.id().is_empty() || (is_adapter && adapter.is_none()) {
        return Err(refuse(registry.root(), warnings.join("; ")));
    }
    notes.extend(warnings);
    Ok(Imported { run: recorder.id(), adapter, record, notes })
}

fn refuse(path: &Path, problem: String) -> Error {
    Error::File { path: path.to_owned(), problem }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// The state of the run's last checkpoint.
fn state(out: &Path) -> Result<(PathBuf, TrainerState)> {
    const NAME: &str = "trainer_state.json";
    let step = |path: &Path| -> Option<usize> {
        path.file_name()?.to_str()?.strip_prefix("checkpoint-")?.parse().ok()
    };
    let inside = fs::read_dir(out).map_err(|_| {
        refuse(out, "it is not there: bring the folder that the engine wrote here".to_owned())
    })?;
    let folders = inside.flatten().map(|entry| entry.path());
    let mut checkpoints: Vec<(usize, PathBuf)> =
        folders.filter_map(|path| Some((step(&path)?, path.join(NAME)))).collect();
    checkpoints.retain(|(_, path)| path.is_file());
    checkpoints.sort();
    let last = [out.join(NAME)].into_iter().find(|path| path.is_file());
    let Some(path) = last.or_else(|| checkpoints.pop().map(|(_, path)| path)) else {
        return Err(refuse(
            out,
            format!(
                "there is no {NAME} in it or in its `checkpoint-…`: the run wrote no checkpoint"
            ),
        ));
    };
    // Python's JSON has NaN and Infinity, which is none.
    let text = String::from_utf8_lossy(&read(&path)?).replace(": NaN", ": null");
    let text = text.replace(": Infinity", ": null").replace(": -Infinity", ": null");
    let state = serde_json::from_str(&text)
        .map_err(|error| refuse(&path, format!("it is no state of a trainer: {error}")))?;
    Ok((path, state))
}

/// Refuses data and a base that are not those of the export.
fn same(folder: &Path, manifest: &Manifest, prepared: &Prepared) -> Result<()> {
    let (then, now) = (&manifest.fingerprints, &prepared.rows.fingerprints);
    let all = [
        ("the base model", &then.base, &now.base),
        ("the tokenizer", &then.tokenizer, &now.tokenizer),
        ("the training rows", &then.train, &now.train),
    ];
    let differs = all.into_iter().find(|(_, then, now)| then != now);
    let what = match differs {
        Some((what, ..)) => what,
        None if then.chat_template != now.chat_template => "the chat template",
        None if then.validation != now.validation => "the validation rows",
        None => return Ok(()),
    };
    Err(refuse(
        folder,
        format!(
            "{what}: not what the export had (another fingerprint): bring the files back, or the registry \
             would name the wrong origin"
        ),
    ))
}

/// Loads the engine's adapter onto the model, under the recipe's name.
fn adapter(
    folder: &Path,
    out: &Path,
    config: &AdapterConfig,
    model: &Model,
    name: &str,
) -> Result<()> {
    model.delete_adapter(name)?;
    let copy = Temporary::new()?;
    let to = copy.0.join(name);
    fs::create_dir_all(&to).map_err(|source| Error::Io { path: to.clone(), source })?;
    let put = |file: &str, bytes: Vec<u8>| {
        let path = to.join(file);
        fs::write(&path, bytes).map_err(|source| Error::Io { path, source })
    };
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        put(file, read(&out.join(file))?)?;
    }
    // The fingerprints of base, tokenizer and template, which loading holds against the model's.
    let fingerprints = folder.join(INITIAL).join("tunebook.json");
    if fingerprints.is_file() {
        put("tunebook.json", read(&fingerprints)?)?;
    }
    let info = model.load_adapter(&to, name)?;
    let found = info.config.as_lora();
    let expected = config.as_lora();
    let differs = match (found, expected) {
        (Some(found), Some(expected)) => {
            let all = [
                ("r", found.r.to_string(), expected.r.to_string()),
                ("lora_alpha", found.lora_alpha.to_string(), expected.lora_alpha.to_string()),
                ("use_dora", found.use_dora.to_string(), expected.use_dora.to_string()),
                ("use_rslora", found.use_rslora.to_string(), expected.use_rslora.to_string()),
            ];
            all.into_iter().find(|(_, found, expected)| found != expected)
        }
        _ => Some(("type", info.config.to_string(), config.to_string())),
    };
    match differs {
        None => Ok(()),
        Some((field, found, expected)) => Err(refuse(
            &out.join("adapter_config.json"),
            format!(
                "`{field}` is {found}, and {expected} in the recipe: it is another run's adapter"
            ),
        )),
    }
}

/// The run as if it had been one of ours.
fn record(
    recipe: &Recipe,
    prepared: &Prepared,
    manifest: &Manifest,
    state: &TrainerState,
) -> Result<RunRecord> {
    let strategy = recipe.strategy.config.clone();
    let rows = &prepared.rows;
    let number =
        |entry: &BTreeMap<String, Value>, key: &str| entry.get(key).and_then(Value::as_f64);
    let step_of = |entry: &BTreeMap<String, Value>| number(entry, "step").map(|step| step as usize);
    let epoch = |step: usize| step as f64 / rows.steps_per_epoch.max(1) as f64;
    let examples = |step: usize| -> Vec<usize> {
        let taken = rows.steps.get(step.saturating_sub(1)).into_iter().flatten();
        taken.flat_map(|row| rows.rows[*row].iter().copied()).collect()
    };
    let mut steps = Vec::new();
    let mut evals = Vec::new();
    for entry in &state.log_history {
        let Some(step) = step_of(entry) else { continue };
        if let Some(loss) = number(entry, "loss") {
            let taken = examples(step);
            let of = |index: &usize| &rows.train.examples[*index];
            steps.push(StepRecord {
                step,
                epoch: epoch(step),
                loss,
                learning_rate: number(entry, "learning_rate").unwrap_or(0.0),
                grad_norm: number(entry, "grad_norm").unwrap_or(f64::NAN),
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
        } else if let Some(loss) = number(entry, "eval_loss") {
            let labels = rows.validation.iter().flat_map(|set| &set.examples);
            evals.push(EvalRecord {
                step,
                epoch: epoch(step),
                loss,
                label_tokens: labels.map(|example| example.label_tokens()).sum(),
                secs: number(entry, "eval_runtime").unwrap_or(0.0),
                metrics: BTreeMap::new(),
            });
        }
    }
    let secs = state.log_history.iter().rev().find_map(|entry| number(entry, "train_runtime"));
    let early = recipe.training.early_stopping_patience.is_some();
    let stopped = (state.global_step < manifest.total_steps).then_some(match early {
        true => StopReason::EarlyStopping,
        false => StopReason::Interrupted,
    });
    let sets = [Some(&rows.train), rows.validation.as_ref()];
    let of_sets = |count: fn(&tunebook_tune::TokenizedSet) -> usize| -> usize {
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
        loaded_step: state.best_global_step.filter(|_| recipe.training.load_best_model_at_end),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}
