//! A recipe for engines that train on many cards: TRL's command and Axolotl, with accelerate's profiles
//! and a task for SkyPilot around them; and the data for hosted models.
//!
//! An engine gets the rows as token ids with their labels, in the order of our steps, so that template,
//! masks, cuts and order cannot differ, and the initial weights of the adapter. [`unmapped`] names what
//! it has no option for, and [`export`] writes nothing then. [`plan`] says what a run takes before it is
//! paid for, [`import_run`] brings it back into the registry.
//!
//! ```no_run
//! use tunebook_export::cluster::{self, Engine, ExportOptions};
//! use tunebook_runs::Recipe;
//! let recipe = Recipe::read("recipe.yaml")?;
//! let options = ExportOptions { gpus: 8, ..ExportOptions::new(Engine::Trl) };
//! let folder = cluster::export(&recipe, &options)?;
//! tunebook_export::folder::write_files(&folder.files, "recipe.yaml", "out/cluster".as_ref())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cards;
mod error;
mod hosted;
mod import;
mod launch;
mod mapped;
mod model;
mod plan;
mod prices;
mod record;
mod result;
mod strategy;
mod tokens;
mod training;
mod unchanged;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tunebook_data::Dataset;
use tunebook_models::{Device, Model};
use tunebook_runs::{ModelDtype, Recipe, RunData, training_examples};
use tunebook_tune::{Adapters as _, ExampleSets, Fingerprints, RunRows, Strategy, Trainer};

pub use cards::{CARDS, Card};
pub use error::{Error, Result};
pub use hosted::{HostedData, hosted};
pub use import::{EngineRun, Imported, import_run};
pub use mapped::Unmapped;
pub use plan::{CardPlan, ClusterPlan, plan};
pub use prices::{HostedPrice, Prices};

use crate::Files;
use crate::folder::sum;

/// The folder that an engine writes to, beside its file: in a folder for each export.
pub(crate) const OUT: &str = "out";
/// The folder with the adapter as it is before the first step.
pub(crate) const INITIAL: &str = "initial";
/// What the export was made of, for [`import_run`].
pub(crate) const MANIFEST: &str = "tunebook.json";
/// The engine's file.
pub(crate) const SETTINGS: &str = "train.yaml";
/// What `transformers` keeps of a run in a checkpoint.
pub(crate) const STATE: &str = "trainer_state.json";

/// An engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// `trl sft`.
    Trl,
    /// `axolotl train`.
    Axolotl,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trl => "TRL",
            Self::Axolotl => "Axolotl",
        })
    }
}

/// How a model is shared out among cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerate {
    /// PyTorch's fully sharded data parallel, second version.
    Fsdp2,
    /// DeepSpeed's ZeRO, stage 3.
    Zero3,
}

/// What an export needs to know beside the recipe.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportOptions {
    /// The engine.
    pub engine: Engine,
    /// How the model is shared out; `None`: each card has all of it.
    pub accelerate: Option<Accelerate>,
    /// How many cards there are.
    pub gpus: usize,
    /// Which ones, by SkyPilot's name.
    pub gpu: String,
    /// Whether a task for SkyPilot is written.
    pub sky: bool,
    /// The base model for the engine, a repository or a folder, where the recipe's is a file or a name
    /// that only this machine knows. It has to be the same model.
    pub base: Option<String>,
}

impl ExportOptions {
    /// One card, an H100.
    pub fn new(engine: Engine) -> Self {
        Self { engine, accelerate: None, gpus: 1, gpu: "H100".to_owned(), sky: false, base: None }
    }
}

/// What the options of an engine depend on beside the recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunShape {
    /// Optimizer steps of the run.
    pub total_steps: usize,
    /// Optimizer steps of an epoch.
    pub steps_per_epoch: usize,
    /// Training rows.
    pub rows: usize,
    /// Blocks of the model.
    pub blocks: usize,
    /// Tokens of the longest row.
    pub longest: usize,
    /// Whether there are validation rows.
    pub validates: bool,
    /// How often the engine goes through the rows that are written.
    pub passes: usize,
    /// Whether the initial weights of an adapter are written.
    pub initial: bool,
}

/// The files of an export, and what is different there.
#[derive(Debug, Clone)]
pub struct ClusterExport {
    /// The files, by their path in the folder.
    pub files: Files,
    /// What does not go there as it goes here.
    pub notes: Vec<String>,
    /// The command that trains, in the folder.
    pub command: String,
}

/// What an engine has no option for, without a look at the data; with a `shape` all of it.
pub fn unmapped(
    recipe: &Recipe,
    options: &ExportOptions,
    shape: Option<&RunShape>,
) -> Vec<Unmapped> {
    model::recipe(recipe, shape, options).unmapped
}

/// A recipe's model with what is trained on it, its rows, and the rows of its steps.
pub(crate) struct Prepared {
    pub(crate) model: Model,
    pub(crate) data: RunData,
    pub(crate) rows: RunRows,
}

impl Prepared {
    /// # Errors
    /// A model, data or strategy that cannot be used.
    pub(crate) fn new(recipe: &Recipe) -> Result<Self> {
        let data = recipe.data.load()?;
        let mut base = recipe.model.clone();
        if let (Strategy::Full(_), ModelDtype::Bfloat16) = (&recipe.strategy.config, base.dtype) {
            // All weights are trained as float32, which the CPU does not do beside bfloat16. Rows and
            // counts are the same.
            base.dtype = ModelDtype::Float32;
        }
        let model = base.load(&Device::Cpu)?;
        recipe.strategy.add_to(&model)?;
        let trainer = Trainer::new(&model, &recipe.training);
        let mut rows = trainer.rows(examples(&data))?;
        rows.fingerprints.dataset = Some(data.train().fingerprint());
        Ok(Self { model, data, rows })
    }

    pub(crate) fn trainer(&self, recipe: &Recipe) -> Trainer {
        Trainer::new(&self.model, &recipe.training)
    }

    fn shape(&self) -> RunShape {
        let sets = [Some(&self.rows.train), self.rows.validation.as_ref()];
        RunShape {
            total_steps: self.rows.steps.len(),
            steps_per_epoch: self.rows.steps_per_epoch,
            rows: self.rows.rows.len(),
            blocks: self.model.num_blocks(),
            longest: sets.iter().flatten().map(|set| set.longest()).max().unwrap_or(0),
            validates: self.rows.validation.is_some(),
            passes: 1,
            initial: false,
        }
    }
}

/// The sets of a run as a trainer takes them.
pub(crate) fn examples(data: &RunData) -> ExampleSets {
    let validation = data.validation().map(training_examples).unwrap_or_default();
    ExampleSets::new(training_examples(data.train()), validation)
}

/// Rows of the recipe's files that are in none of the sets because they could not be read, and what is
/// wrong with the sets.
pub(crate) fn unread(recipe: &Recipe, data: &RunData) -> Vec<String> {
    // The sides of a split are of one file.
    let validation = data.validation().filter(|_| recipe.data.validation.is_some());
    let of = |rows: &Dataset| {
        let count = rows.rejected().height();
        let note =
            || format!("rows of `{}` that cannot be read and are left out: {count}", rows.source());
        (count > 0).then(note)
    };
    let unread = [Some(data.train()), validation].into_iter().flatten().filter_map(of);
    unread.chain(data.summary().cautions).collect()
}

/// The files with which another engine trains as the recipe says.
///
/// # Errors
/// [`Error::Unmapped`] with all options that the engine does not have, before anything long is done
/// where that is possible; data, a model or a strategy that cannot be used.
pub fn export(recipe: &Recipe, options: &ExportOptions) -> Result<ClusterExport> {
    check(unmapped(recipe, options, None), options)?;
    let prepared = Prepared::new(recipe)?;
    let mut shape = prepared.shape();
    let adapter = matches!(recipe.strategy.config, Strategy::Adapter(_));
    // A checkpoint of shards, which both profiles would go on from, cannot be written here.
    shape.initial = adapter && options.accelerate.is_none();
    let mut mapped = model::recipe(recipe, Some(&shape), options);
    model::same_base(&prepared.model, options, &mut mapped);
    check(std::mem::take(&mut mapped.unmapped), options)?;
    let per_step = recipe.training.rows_per_step();
    let train = tokens::of_steps(&prepared.rows, per_step, options.engine);
    shape.passes = train.passes;
    model::of_run(&shape, options, &mut mapped);
    mapped.notes.extend(train.note);
    mapped.notes.extend(unread(recipe, &prepared.data));
    if adapter && !shape.initial {
        mapped.note(
            "the adapter begins with the engine's own random weights: losses differ from the second \
             step on",
        );
    }
    if recipe.training.label_smoothing_factor > 0.0 {
        mapped.note("losses that it reports have the label smoothing in them, evaluations too");
    }

    let mut files = Files::new();
    let mut put = |name: &str, text: String| drop(files.insert(name.to_owned(), text.into_bytes()));
    put("data/train.jsonl", tokens::readable(prepared.data.train()));
    put(&format!("{}/train.jsonl", tokens::FOLDER), train.lines);
    let mut order = json!({ "train": train.order });
    if let Some(validation) = &prepared.rows.validation {
        let readable = prepared.data.validation().map(tokens::readable).unwrap_or_default();
        put("data/validation.jsonl", readable);
        let tokens = tokens::of_set(&validation.examples, options.engine);
        put(&format!("{}/validation.jsonl", tokens::FOLDER), tokens.lines);
        order["validation"] = tokens.order.into();
    }
    put("data/order.json", format!("{order}\n"));
    put("data/cut.json", format!("{}\n", tokens::cut(&prepared)?));

    let command = launch::command(options);
    match (options.engine, options.accelerate) {
        (_, None) => {}
        (Engine::Trl, Some(profile)) => {
            let precision = model::Precision::of(recipe).mixed;
            let profile = launch::accelerate(profile, options, precision, mapped.again);
            put(launch::ACCELERATE, tunebook_runs::to_yaml(&profile));
        }
        (Engine::Axolotl, Some(Accelerate::Zero3)) => {
            put(launch::DEEPSPEED, format!("{:#}\n", launch::deepspeed_zero3()));
        }
        (Engine::Axolotl, Some(Accelerate::Fsdp2)) => {}
    }
    let name = recipe.name.clone().unwrap_or_else(|| recipe.strategy.adapter_name.clone());
    if options.sky {
        put("sky.yaml", tunebook_runs::to_yaml(&launch::sky(&name, options)));
    }
    let eight_bit = recipe.training.optim == tunebook_tune::Optim::AdamW8bit;
    let quantized = recipe.model.quantization.is_some();
    put("requirements.txt", launch::requirements(options, quantized, eight_bit));
    put("verify.py", include_str!("verify.py").to_owned());
    put("recipe.yaml", recipe.to_yaml()?);
    if shape.initial {
        initial(&prepared.model, &recipe.strategy.adapter_name, &mapped.settings, &mut files)?;
    }
    let id = id(&mapped.settings, &files);
    model::of_export(&id, options, &mut mapped);
    let settings = Value::Object(std::mem::take(&mut mapped.settings));
    let head = format!("# {} of `tunebook export`: {command}\n", options.engine);
    let text = head + &tunebook_runs::to_yaml(&settings);
    files.insert(SETTINGS.to_owned(), text.into_bytes());
    let manifest = Manifest {
        engine: options.engine,
        accelerate: options.accelerate,
        id,
        total_steps: shape.total_steps,
        fingerprints: prepared.rows.fingerprints.clone(),
        settings,
        files: files
            .iter()
            .filter(|(name, _)| !unchanged::is_free(name))
            .map(|(name, bytes)| (name.clone(), sum(bytes)))
            .collect(),
    };
    let text = format!("{:#}\n", serde_json::to_value(&manifest)?);
    files.insert(MANIFEST.to_owned(), text.into_bytes());
    Ok(ClusterExport { files, notes: mapped.notes, command })
}

/// What an export was made of.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) engine: Engine,
    pub(crate) accelerate: Option<Accelerate>,
    /// Made of all that an engine reads: exports of the same recipe with the same options share it.
    pub(crate) id: String,
    pub(crate) total_steps: usize,
    pub(crate) fingerprints: Fingerprints,
    /// The settings of the engine's file.
    pub(crate) settings: Value,
    /// SHA-256 of the files that a run is made of.
    pub(crate) files: BTreeMap<String, String>,
}

impl Manifest {
    /// # Errors
    /// The folder is none that an export has written.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        let Ok(bytes) = std::fs::read(&path) else {
            let problem =
                format!("there is no {MANIFEST}: name the folder that `tunebook export` wrote");
            return Err(error::refuse(folder, problem));
        };
        // An adapter's folder has a file of this name, too.
        let json: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if !json["engine"].is_string() {
            let problem = "it is no export's: name the folder that `tunebook export` wrote, which has the \
                           engine's results in it";
            return Err(error::refuse(&path, problem.to_owned()));
        }
        serde_json::from_value(json).map_err(|error| {
            error::refuse(
                &path,
                format!("it is not what this version writes ({error}): export and train again"),
            )
        })
    }

    /// Where the engine writes to, in the export's folder.
    pub(crate) fn out(&self) -> PathBuf {
        Path::new(OUT).join(&self.id)
    }

    /// The tag of its runs in a registry.
    pub(crate) fn tag(&self) -> String {
        format!("export-{}", self.id)
    }
}

/// A name for an export, made of its settings and files.
fn id(settings: &Map<String, Value>, files: &Files) -> String {
    let mut all = Value::Object(settings.clone()).to_string();
    for (name, bytes) in files {
        all.push_str(&format!("\n{name} {}", sum(bytes)));
    }
    sum(all.as_bytes())[..12].to_owned()
}

fn check(unmapped: Vec<Unmapped>, options: &ExportOptions) -> Result<()> {
    match unmapped.as_slice() {
        [] => Ok(()),
        _ => Err(Error::Unmapped { engine: options.engine, unmapped }),
    }
}

/// The adapter as it is before the first step, as a checkpoint at step 0.
fn initial(
    model: &Model,
    name: &str,
    settings: &Map<String, Value>,
    files: &mut Files,
) -> Result<()> {
    let folder = Temporary::new()?;
    let written = model.save_adapter(name, &folder.0)?;
    let io = |source| Error::Io { path: written.clone(), source };
    for entry in std::fs::read_dir(&written).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = std::fs::read(&path).map_err(|source| Error::Io { path, source })?;
        files.insert(format!("{INITIAL}/{name}"), bytes);
    }
    // What `transformers` wants of a folder to go on from: settings as in the engine's file, and a state
    // of its own that it takes for granted.
    let no = |key: &str| (key.to_owned(), Value::Bool(false));
    let control: Map<String, Value> = [
        no("should_epoch_stop"),
        no("should_evaluate"),
        no("should_log"),
        no("should_save"),
        no("should_training_stop"),
    ]
    .into_iter()
    .collect();
    let mut state = json!({
        "epoch": 0.0,
        "global_step": 0,
        "log_history": [],
        "stateful_callbacks": { "TrainerControl": { "args": control, "attributes": {} } },
        "train_batch_size": settings.get("per_device_train_batch_size"),
    });
    for key in ["eval_steps", "logging_steps", "max_steps", "save_steps"] {
        if let Some(value) = settings.get(key) {
            state[key] = value.clone();
        }
    }
    let state = format!("{state:#}\n").into_bytes();
    files.insert(format!("{INITIAL}/{STATE}"), state);
    Ok(())
}

/// A folder that goes with its value.
pub(crate) struct Temporary(pub(crate) std::path::PathBuf);

impl Temporary {
    pub(crate) fn new() -> Result<Self> {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tunebook-export-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path)
            .map_err(|source| Error::Io { path: path.clone(), source })?;
        Ok(Self(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0); // of this process alone
    }
}
