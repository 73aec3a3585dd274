//! A run of another engine, brought back into the registry: its losses, its adapter, and the rows that
//! it saw, held against what was exported.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tunebook_models::{Device, Model};
use tunebook_runs::{ModelDtype, Recipe, Registry};
use tunebook_tune::{
    AdapterConfig, AdapterInfo, Adapters as _, Callback as _, Lora, RunRecord, Strategy,
};

use super::error::{Error, Result, refuse};
use super::result::EngineResult;
use super::{INITIAL, Manifest, Prepared, Temporary, record, unchanged};

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

/// A run in an export's folder, held against what was exported.
pub struct EngineRun {
    folder: PathBuf,
    manifest: Manifest,
    recipe: Recipe,
    prepared: Prepared,
    result: EngineResult,
    record: RunRecord,
    notes: Vec<String>,
}

impl std::fmt::Debug for EngineRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineRun").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// Brings the run of an export's folder into a registry.
///
/// # Errors
/// As [`EngineRun::read`] and [`EngineRun::record`].
pub fn import_run(folder: &Path, registry: &Registry) -> Result<Imported> {
    EngineRun::read(folder)?.record(registry)
}

impl EngineRun {
    /// Reads the run of an export's folder. The engine has written to the `output_dir` of `train.yaml`,
    /// which is another one for each export.
    ///
    /// The recipe is read and its rows are made again: what differs from the export is refused.
    ///
    /// # Errors
    /// A folder that is no export, files or settings that have changed since, data or a base that are
    /// others by now, an adapter that is not the recipe's, no `trainer_state.json`, a log that is not
    /// this run's or of one that has diverged.
    pub fn read(folder: &Path) -> Result<Self> {
        let manifest = Manifest::read(folder)?;
        let mut notes = unchanged::unchanged(folder, &manifest)?;
        let recipe = Recipe::read(folder.join("recipe.yaml"))?;
        let is_adapter = matches!(recipe.strategy.config, Strategy::Adapter(_));
        let result = EngineResult::find(folder, &manifest, is_adapter)?;
        let prepared = Prepared::new(&recipe)?;
        same(folder, &manifest, &prepared)?;
        let record = record::record(&recipe, &prepared, &manifest, &result)?;
        notes.extend(remarks(&record, &result, &manifest));
        let run =
            Self { folder: folder.to_owned(), manifest, recipe, prepared, result, record, notes };
        run.load_adapter()?; // refused before anything is recorded
        Ok(run)
    }

    /// Puts the run into a registry.
    ///
    /// # Errors
    /// It is there already; a registry that cannot be written.
    pub fn record(self, registry: &Registry) -> Result<Imported> {
        self.is_new(registry)?;
        let Self { manifest, recipe, prepared, record, .. } = &self;
        let mut notes = self.notes.clone();
        let name = &recipe.strategy.adapter_name;
        let is_adapter = matches!(recipe.strategy.config, Strategy::Adapter(_));
        // A run begins with the new adapter of its recipe.
        let model = if is_adapter {
            prepared.model.delete_adapter(name)?;
            recipe.strategy.add_to(&prepared.model)?;
            prepared.model.clone()
        } else {
            notes.push(format!(
                "full fine-tuning: the weights stay in {}, a registry holds adapters",
                self.folder.join(manifest.out()).display()
            ));
            self.base()?
        };
        let title = recipe.name.clone().unwrap_or_else(|| name.clone());
        let engine = manifest.engine.to_string().to_lowercase();
        let recorder = registry
            .record(&title)
            .with_data(&prepared.data)
            .with_recipe(recipe)
            .with_tag("imported")
            .with_tag(&engine)
            .with_tag(&manifest.tag());
        let mut callback = recorder.clone();
        callback.on_begin(record, &model)?;
        self.load_adapter()?;
        record.steps.iter().try_for_each(|step| callback.on_step(step))?;
        record.evals.iter().try_for_each(|eval| callback.on_eval(eval))?;
        callback.on_end(record)?;
        // A recorder returns no errors.
        let adapter = recorder.adapter();
        let warnings = recorder.warnings();
        if recorder.id().is_empty() || (is_adapter && adapter.is_none()) {
            return Err(refuse(registry.root(), warnings.join("; ")));
        }
        notes.extend(warnings);
        Ok(Imported { run: recorder.id(), adapter, record: self.record, notes })
    }

    /// The base of full fine-tuning in the type of its recipe, which the registry looks up on the model.
    fn base(&self) -> Result<Model> {
        let recipe = &self.recipe.model;
        if recipe.dtype != ModelDtype::Bfloat16 {
            return Ok(self.prepared.model.clone());
        }
        // Its rows were counted on float32. A recorder wants to know what was trained before: nothing, as
        // on any new adapter.
        let model = recipe.load(&Device::Cpu)?;
        let new = Lora { r: 1, target_modules: "all-linear".into(), ..Lora::default() };
        model.add_adapter("new", new)?;
        Ok(model)
    }

    /// Refuses a run that the registry has: the same losses of the same export.
    fn is_new(&self, registry: &Registry) -> Result<()> {
        let odd = |error: &dyn std::fmt::Display| refuse(registry.root(), error.to_string());
        let runs = registry.runs()?;
        let texts = |name: &str| -> Result<Vec<String>> {
            let column = runs.column(name).map_err(|error| odd(&error))?;
            let texts = column.str().map_err(|error| odd(&error))?;
            let text = |row| texts.get(row).unwrap_or_default().to_owned();
            Ok((0..runs.height()).map(text).collect())
        };
        let tag = self.manifest.tag();
        for (id, tags) in texts("id")?.into_iter().zip(texts("tags")?) {
            let is_of_export = tags.split([',', ' ']).any(|other| other == tag);
            if is_of_export && registry.run(&id).is_ok_and(|kept| self.is(&kept)) {
                return Err(refuse(
                    &self.folder,
                    format!("it is in the registry {} as run {id}", registry.root().display()),
                ));
            }
        }
        Ok(())
    }

    fn is(&self, kept: &RunRecord) -> bool {
        // A number may lose its last bit in JSON.
        let same = |a: f64, b: f64| (a - b).abs() <= 1e-12 * a.abs();
        let steps = || self.record.steps.iter().zip(&kept.steps);
        self.record.steps.len() == kept.steps.len() && steps().all(|(a, b)| same(a.loss, b.loss))
    }

    /// Loads the engine's adapter onto the model, under the recipe's name.
    ///
    /// # Errors
    /// It is no adapter of this base, or not one that the recipe makes.
    fn load_adapter(&self) -> Result<()> {
        let Strategy::Adapter(config) = &self.recipe.strategy.config else { return Ok(()) };
        let Some(from) = &self.result.adapter else { return Ok(()) };
        let path = from.join(CONFIG);
        self.same_base(&path)?;
        let (model, name) = (&self.prepared.model, &self.recipe.strategy.adapter_name);
        let expected = of_name(model, name);
        model.delete_adapter(name)?;
        let copy = Temporary::new()?;
        let to = copy.0.join(name);
        fs::create_dir_all(&to).map_err(|source| Error::Io { path: to.clone(), source })?;
        let put = |file: &str, bytes: Vec<u8>| {
            let path = to.join(file);
            fs::write(&path, bytes).map_err(|source| Error::Io { path, source })
        };
        for file in [CONFIG, "adapter_model.safetensors"] {
            put(file, read(&from.join(file))?)?;
        }
        // The fingerprints of base, tokenizer and template, which loading holds against the model's.
        let fingerprints = self.folder.join(INITIAL).join("tunebook.json");
        if fingerprints.is_file() {
            put("tunebook.json", read(&fingerprints)?)?;
        }
        let found = model.load_adapter(&to, name)?;
        let differs = differs(&found.config, config)
            .or_else(|| expected.and_then(|expected| other_modules(&found, &expected)));
        match differs {
            None => Ok(()),
            Some(differs) => Err(refuse(&path, format!("{differs}: it is another run's adapter"))),
        }
    }

    /// Refuses an adapter of another base than the engine was told.
    fn same_base(&self, path: &Path) -> Result<()> {
        let config: Value = serde_json::from_slice(&read(path)?)
            .map_err(|error| refuse(path, format!("it is no configuration of PEFT: {error}")))?;
        let settings = &self.manifest.settings;
        let told = settings.get("model_name_or_path").or_else(|| settings.get("base_model"));
        let plain = |base: Option<&Value>| {
            base.and_then(Value::as_str).unwrap_or("not there").trim_end_matches('/').to_owned()
        };
        let (found, expected) = (plain(config.get("base_model_name_or_path")), plain(told));
        if found == expected {
            return Ok(());
        }
        Err(refuse(
            path,
            format!(
                "`base_model_name_or_path` is {found}, and {expected} in the export: it is an adapter of \
                 another base"
            ),
        ))
    }
}

const CONFIG: &str = "adapter_config.json";

/// What is not as it would be after a run here.
fn remarks(record: &RunRecord, result: &EngineResult, manifest: &Manifest) -> Vec<String> {
    let (taken, all) = (result.state.global_step, manifest.total_steps);
    let mut notes = Vec::new();
    if record.steps.len() < taken {
        notes.push(format!(
            "{} of {taken} steps were logged (`logging_steps` is 1 in what was exported)",
            record.steps.len()
        ));
    }
    if taken < all {
        let state = result.state_path.display();
        notes.push(format!("the run ended after {taken} of {all} steps ({state})"));
    }
    if !result.ended
        && let Some(adapter) = &result.adapter
    {
        notes.push(format!(
            "the engine did not come to its end: the adapter is the last checkpoint's ({})",
            adapter.display()
        ));
    }
    for eval in record.evals.iter().filter(|eval| !eval.loss.is_finite()) {
        notes.push(format!("the loss of the evaluation after step {} is {}", eval.step, eval.loss));
    }
    notes
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })
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

fn of_name(model: &Model, name: &str) -> Option<AdapterInfo> {
    model.adapters().into_iter().find(|info| info.name == name)
}

/// The first field in which an adapter is not the recipe's.
fn differs(found: &AdapterConfig, expected: &AdapterConfig) -> Option<String> {
    let (Some(one), Some(other)) = (found.as_lora(), expected.as_lora()) else {
        return Some(format!("it is {found}, and {expected} in the recipe"));
    };
    // Where it sits is compared by the modules themselves: an engine writes them out.
    let fields = |lora: &Lora| {
        [
            ("r", lora.r.to_string()),
            ("lora_alpha", lora.lora_alpha.to_string()),
            ("lora_dropout", lora.lora_dropout.to_string()),
            ("use_dora", lora.use_dora.to_string()),
            ("use_rslora", lora.use_rslora.to_string()),
            ("bias", format!("{:?}", lora.bias)),
            ("rank_pattern", format!("{:?}", lora.rank_pattern)),
            ("alpha_pattern", format!("{:?}", lora.alpha_pattern)),
        ]
    };
    let pairs = fields(one).into_iter().zip(fields(other));
    let mut pairs = pairs.filter(|((_, found), (_, expected))| found != expected);
    let ((field, found), (_, expected)) = pairs.next()?;
    Some(format!("`{field}` is {found}, and {expected} in the recipe"))
}

/// The first module that only one of the two adapters sits on.
fn other_modules(found: &AdapterInfo, expected: &AdapterInfo) -> Option<String> {
    let only = |one: &AdapterInfo, other: &AdapterInfo| {
        one.modules.iter().find(|module| !other.modules.contains(module)).cloned()
    };
    if let Some(module) = only(found, expected) {
        return Some(format!("it sits on `{module}`, and the recipe's does not"));
    }
    if let Some(module) = only(expected, found) {
        return Some(format!("it does not sit on `{module}`, and the recipe's does"));
    }
    let (found, expected) = (found.trainable_parameters, expected.trainable_parameters);
    (found != expected).then(|| format!("it has {found} numbers, and the recipe's has {expected}"))
}
