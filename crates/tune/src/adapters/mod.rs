//! Adapters on a model: several resident at once, at most one active, switched without copying the
//! base.
//!
//! The adapters belong to the model: every handle of it sees the same ones, and they go with its
//! last handle.

pub(crate) mod adalora;
pub(crate) mod adapter_type;
pub(crate) mod body;
pub(crate) mod bottleneck;
pub(crate) mod checks;
pub(crate) mod config;
pub(crate) mod dropout;
pub(crate) mod frozen;
pub(crate) mod full;
pub(crate) mod hooks;
pub(crate) mod ia3;
pub(crate) mod lora;
pub(crate) mod mix;
pub(crate) mod modules_to_save;
pub(crate) mod prefix_tuning;
pub(crate) mod prompt_tuning;
pub(crate) mod registry;
pub(crate) mod scheduled;
pub(crate) mod served;
pub(crate) mod target;
pub(crate) mod weighted;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde::{Deserialize, Serialize};
use tunebook_models::{Model, Overlay};

use crate::adapters::config::AdapterConfig;
use crate::adapters::frozen::FrozenAdapter;
use crate::adapters::mix::AdapterMix;
use crate::adapters::modules_to_save::OwnWeights;
use crate::adapters::scheduled::Scheduled;
use crate::adapters::weighted::CombinationType;
use crate::error::{Error, Result};
use crate::files::fingerprint;
use crate::files::gguf;
use crate::files::hub;
use crate::files::in_model;
use crate::files::peft::{self, AdapterFiles, StoredTensor};
use crate::files::text_part;
use crate::train::parameter::Parameters;
use body::{AdapterTensor, Body};
use hooks::Hooks;
pub use registry::{Active, BASE};
use registry::{Generation, Registry, Resident};

/// Adapters on a [`Model`]. Names and meaning are PEFT's.
///
/// ```no_run
/// use tunebook_models::{Device, Model};
/// use tunebook_tune::{Adapters, Lora};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let model = Model::load("SmolLM2-135M-Instruct", &Device::Cpu)?;
/// println!("{}", model.add_adapter("support", &Lora { r: 8, lora_alpha: 32.0, ..Default::default() })?);
/// // … train …
/// let folder = model.save_adapter("support", "out")?; // out/support, as PEFT's save_pretrained("out") does
/// model.disable_adapters(); // the base answers
/// model.set_adapter("support")?;
/// # Ok(())
/// # }
/// ```
pub trait Adapters {
    /// Adds a new adapter, of the type of its configuration, and makes it the active one.
    ///
    /// # Errors
    /// The configuration is refused ([`AdapterConfig::validate`]), a target module does not exist,
    /// or the name is taken.
    fn add_adapter(&self, name: &str, config: impl Into<AdapterConfig>) -> Result<AdapterInfo> {
        self.add_adapter_of(name, config.into()) // what a cell compiles
    }

    /// [`Adapters::add_adapter`] where the type is known at run time only.
    ///
    /// # Errors
    /// As there.
    fn add_adapter_of(&self, name: &str, config: AdapterConfig) -> Result<AdapterInfo>;

    /// All adapters of this model, by name.
    fn adapters(&self) -> Vec<AdapterInfo>;

    /// What answers when this handle is asked.
    fn active(&self) -> Active;

    /// The adapter that answers, merged or not, if any does.
    fn active_adapter(&self) -> Option<String>;

    /// Makes this adapter, and no other, the active one: for every handle that is not bound to
    /// another, from its next answer on.
    ///
    /// # Errors
    /// No adapter of that name.
    fn set_adapter(&self, name: &str) -> Result<()>;

    /// A handle on the same weights that answers with this adapter, whichever is active, or with the
    /// base ([`BASE`](crate::BASE)). It keeps the adapter as it is now: loading another under its
    /// name, or deleting it, does not change its answers. Training does: it moves the adapter's
    /// tensors in place.
    ///
    /// ```no_run
    /// # use tunebook_models::Model;
    /// # use tunebook_tune::Adapters;
    /// # fn answers(model: &Model) -> Result<(), Box<dyn std::error::Error>> {
    /// let support = model.with_adapter("support")?;
    /// let (tuned, base) = (support.chat("Where is my parcel?")?, model.base().chat("Where is my parcel?")?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// No adapter of that name.
    fn with_adapter(&self, name: &str) -> Result<Model>;

    /// Puts the base itself back to work. The adapters stay resident.
    fn disable_adapters(&self);

    /// Undoes [`Adapters::disable_adapters`]: makes the adapter active that was so before it.
    ///
    /// # Errors
    /// There is none.
    fn enable_adapters(&self) -> Result<()>;

    /// A handle on the same weights that answers with the base plus each adapter's change of it times a
    /// weight: an adapter in part (`&[("support", 0.5)]`), or several at once. Nothing is trained or
    /// merged for it, adapters of different types may be mixed, and it keeps them as they are now.
    /// Weight 0 is the base and weight 1 the adapter, bit for bit.
    ///
    /// # Errors
    /// As [`AdapterMix::new`]; no adapter of one of the names.
    fn with_adapter_weights(&self, adapters: &[(&str, f64)]) -> Result<Model>;

    /// Removes an adapter. If it was the active one, the base is back to work.
    ///
    /// # Errors
    /// No adapter of that name.
    fn delete_adapter(&self, name: &str) -> Result<()>;

    /// Gives an adapter another name.
    ///
    /// # Errors
    /// No adapter of that name, or the new name is taken or cannot be used.
    fn rename_adapter(&self, name: &str, new_name: &str) -> Result<()>;

    /// Combines adapters, each with its weight (which may be negative), into a new one, and makes
    /// it the active one. The others stay.
    ///
    /// # Errors
    /// No adapter of one of the names, none named, one that is no LoRA or has DoRA (whose lengths
    /// do not add up) or trained weights of the model's own, weights that are not finite, ranks
    /// that the combination does not take, or the name is taken.
    fn add_weighted_adapter(
        &self,
        adapters: &[(&str, f64)],
        name: &str,
        combination: CombinationType,
    ) -> Result<AdapterInfo>;

    /// Makes this adapter the active one in merged form: each weight a copy with the update added,
    /// so that it runs as fast as the base. The base is kept; any other switch undoes it exactly. A
    /// merged adapter cannot be trained. Over a quantised base the copies are f32: nothing is
    /// quantised anew, so that merging changes no answer.
    ///
    /// # Errors
    /// No adapter of that name, or one of a type that weights cannot take up.
    fn merge_adapter(&self, name: &str) -> Result<()>;

    /// A handle on the same weights that answers each text of a batch with an adapter of its own:
    /// `adapter_names` as in PEFT, [`BASE`](crate::BASE) (`__base__`) for none. Adapters of every
    /// type may share a batch, and the base's products are computed once for all rows. It keeps the
    /// adapters as they are now, as [`Adapters::with_adapter`] does.
    ///
    /// ```no_run
    /// # use tunebook_models::{GenerationConfig, Model};
    /// # use tunebook_tune::Adapters;
    /// # fn answers(model: &Model) -> Result<(), Box<dyn std::error::Error>> {
    /// let prompts = ["Where is my parcel?".to_owned(), "A rose".to_owned(), "1 + 1 =".to_owned()];
    /// let batch = model.with_adapter_names(&["support", "poet", "__base__"])?;
    /// let texts = batch.generate_batch(&prompts, &GenerationConfig::default())?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// A name that is no adapter's.
    fn with_adapter_names(&self, adapter_names: &[&str]) -> Result<Model>;

    /// Writes an adapter as PEFT's `save_pretrained(dir)` does: `default` into `dir`, any other
    /// into a subfolder of its name. Returns the folder that holds the files. An adapter of the same
    /// name that is there already is replaced; other files in the folder stay.
    ///
    /// # Errors
    /// No adapter of that name, or a file cannot be written.
    fn save_adapter(&self, name: &str, dir: impl AsRef<Path>) -> Result<PathBuf>;

    /// Writes a LoRA as one GGUF file, which llama.cpp puts onto its own file of this model.
    /// Returns the path.
    ///
    /// # Errors
    /// No adapter of that name, one that is another thing than a LoRA or more (DoRA, trained
    /// biases), a model that llama.cpp does not have, or the file cannot be written.
    fn save_adapter_gguf(&self, name: &str, path: impl AsRef<Path>) -> Result<PathBuf>;

    /// Reads an adapter that this crate or PEFT wrote, from the subfolder `name` of `dir` or, where
    /// there is none and for `default`, from `dir`, and makes it the active one. The arguments stand in
    /// PEFT's order: the place, then the name. An adapter of a model that reads pictures, too, goes to
    /// the text model by its text part.
    ///
    /// Where there is no such folder, `owner/name` or `owner/name@revision` is a repository of the
    /// Hugging Face hub. The adapter's files alone are fetched, once.
    ///
    /// # Errors
    /// No adapter there (the error names those that lie below), the two arguments in the wrong order,
    /// files that are torn or of another kind, tensors that do not fit this model, another tokenizer
    /// or chat template than it was trained with, or the name is taken or cannot be used.
    fn load_adapter(&self, dir: impl AsRef<Path>, name: &str) -> Result<AdapterInfo>;
}

/// What there is to say about an adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterInfo {
    /// Its name.
    pub name: String,
    /// Whether it is the active one.
    pub active: bool,
    /// Whether it is active in merged form ([`Adapters::merge_adapter`]), in which it cannot be
    /// trained.
    #[serde(default)]
    pub merged: bool,
    /// Its configuration.
    pub config: AdapterConfig,
    /// The modules it sits on.
    pub modules: Vec<String>,
    /// How many numbers it trains.
    pub trainable_parameters: usize,
    /// How many numbers the model has, the adapter included.
    pub all_parameters: usize,
    /// What was odd about its files, if it was loaded.
    pub warnings: Vec<String>,
}

impl fmt::Display for AdapterInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let merged = if self.merged { " (merged)" } else { "" };
        write!(f, "{}{merged}: {}", self.name, self.config)?;
        if !self.modules.is_empty() {
            write!(f, ", {} modules", self.modules.len())?;
        }
        write!(
            f,
            "; trainable params: {} || all params: {} || trainable%: {:.4}",
            thousands(self.trainable_parameters),
            thousands(self.all_parameters),
            100.0 * self.trainable_parameters as f64 / self.all_parameters as f64
        )?;
        for warning in &self.warnings {
            write!(f, "\nwarning: {warning}")?;
        }
        Ok(())
    }
}

pub(crate) fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// One adapter on one model.
#[derive(Debug, Clone)]
pub(crate) struct Adapter {
    name: String,
    body: Arc<dyn Body>,
    own: Arc<OwnWeights>,
    warnings: Vec<String>,
    /// See [`Adapter::in_step`] and [`Adapter::between_steps`].
    steps: Arc<RwLock<()>>,
    /// Its numbers are others than its configuration gives.
    moved: Arc<AtomicBool>,
}

impl Adapter {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn description(&self) -> (String, usize) {
        (self.config().to_string(), self.body.modules().len())
    }

    pub(crate) fn scheduled(&self, total_steps: usize) -> Option<Box<dyn Scheduled>> {
        Arc::clone(&self.body).scheduled(total_steps)
    }

    pub(crate) fn config(&self) -> AdapterConfig {
        self.body.config()
    }

    /// Its numbers are no more those that its configuration gives.
    pub(crate) fn set_moved(&self) {
        self.moved.store(true, Ordering::Relaxed);
    }

    /// Whether it has been trained, loaded or made of others.
    pub(crate) fn is_moved(&self) -> bool {
        self.moved.load(Ordering::Relaxed)
    }

    /// To be held while its tensors are moved from one step to the next.
    pub(crate) fn in_step(&self) -> RwLockWriteGuard<'_, ()> {
        self.steps.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be held while its tensors are read, so that all are of one step of a run that trains it
    /// meanwhile. Once for a thread: the run waits for it, and others then wait for the run.
    pub(crate) fn between_steps(&self) -> RwLockReadGuard<'_, ()> {
        self.steps.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn tensors(&self) -> Vec<AdapterTensor> {
        let mut tensors = self.body.tensors();
        tensors.extend(self.own.tensors().cloned());
        tensors
    }

    pub(crate) fn parameters(&self) -> Parameters {
        Parameters::new(self.tensors().iter().map(AdapterTensor::parameter).collect())
    }

    /// What it puts into the model.
    pub(crate) fn hooks(&self) -> Hooks {
        self.with_own(self.body.hooks())
    }

    /// With what is trained of the model's own.
    fn with_own(&self, hooks: Hooks) -> Hooks {
        let mut weights = hooks.weights;
        weights.extend(self.own.stand_ins());
        Hooks { weights, ..hooks }
    }

    fn info(&self, model: &Model, active: bool, merged: bool) -> AdapterInfo {
        let tensors = self.tensors();
        let trainable_parameters = tensors.iter().map(|tensor| tensor.var.elem_count()).sum();
        AdapterInfo {
            name: self.name.clone(),
            active,
            merged,
            config: self.config(),
            modules: self.body.modules(),
            trainable_parameters,
            all_parameters: model.parameter_count() + trainable_parameters,
            warnings: self.warnings.clone(),
        }
    }

    /// As PEFT's files hold it. `all-linear` is written out, as PEFT writes it.
    pub(crate) fn files(&self, model: &Model) -> Result<AdapterFiles> {
        let of_one_step = self.between_steps();
        let (mut config, mut tensors) = self.body.stored()?;
        for tensor in self.own.tensors() {
            tensors.insert(tensor.key.clone(), StoredTensor::of(tensor.var.as_tensor())?);
        }
        drop(of_one_step);
        in_model::add_tied_head(model, &mut tensors);
        in_model::write_out_targets(model, &mut config, &self.config(), &self.body.modules());
        let base_model_name_or_path = Some(model.name().to_owned());
        Ok(AdapterFiles { config, base_model_name_or_path, tensors, warnings: Vec::new() })
    }
}

/// A name that is one folder's name and no part of PEFT's tensor names.
fn check_name(name: &str) -> Result<()> {
    let problem = if name.is_empty() {
        "is empty"
    } else if name.len() > MOST_NAME_BYTES {
        "has more than 200 bytes, too many for a folder's name"
    } else if !name.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_') {
        "has a character that cannot stand in a folder's name on every system"
    } else {
        return Ok(());
    };
    Err(Error::AdapterName { name: name.to_owned(), problem })
}

/// Of 255 that a file may have, with room for the endings of files beside its folder.
const MOST_NAME_BYTES: usize = 200;

fn build(model: &Model, name: &str, config: AdapterConfig) -> Result<Adapter> {
    check_name(name)?;
    config.validate()?;
    let body = config.as_type().build(model)?;
    let own = Arc::new(OwnWeights::new(model, &config, &body.modules())?);
    let (steps, moved) = (Arc::default(), Arc::default());
    Ok(Adapter { name: name.to_owned(), body, own, warnings: Vec::new(), steps, moved })
}

/// Adds an adapter and makes it the active one.
///
/// # Errors
/// The name is taken, or something has another size than what it replaces.
fn add(model: &Model, adapter: Adapter) -> Result<AdapterInfo> {
    let resident = Resident::new(model, adapter)?;
    let info = resident.adapter.info(model, true, false);
    Registry::of(model).lock().add(model, resident)?;
    Ok(info)
}

/// The keys and shapes of all tensors of an adapter of this configuration.
fn plan(model: &Model, config: &AdapterConfig) -> Result<BTreeMap<String, Vec<usize>>> {
    config.validate()?;
    let mut plan = config.as_type().plan(model)?;
    let modules: Vec<String> = match config.as_type().choice() {
        Some(choice) => {
            hooks::targets(model, &choice)?.iter().map(|slot| slot.path().to_owned()).collect()
        }
        None => Vec::new(),
    };
    for (key, weight) in OwnWeights::plan(model, config, &modules)? {
        plan.insert(key, weight.matrix().dims().to_vec());
    }
    Ok(plan)
}

/// The last part of a hub id or path, without a file's extension, in lower case.
fn model_key(name: &str) -> String {
    let last = name.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_lowercase();
    last.strip_suffix(".gguf").unwrap_or(&last).to_owned()
}

/// # Errors
/// The name is a path and the folder is none: they stand in the wrong order.
fn check_order(dir: &Path, name: &str) -> Result<()> {
    let is_path = name.contains(['/', '\\']) || Path::new(name).is_dir();
    match is_path && !dir.exists() {
        true => Err(Error::Swapped { dir: dir.display().to_string(), name: name.to_owned() }),
        false => Ok(()),
    }
}

/// The folders in `dir` that hold an adapter, by name; the first few.
fn adapters_below(dir: &Path) -> Vec<PathBuf> {
    const SHOWN: usize = 8;
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut below: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.join(peft::CONFIG_FILE).is_file())
        .collect();
    below.sort();
    below.truncate(SHOWN);
    below
}

/// [`Adapters::load_adapter`].
fn load(model: &Model, dir: &Path, name: &str) -> Result<AdapterInfo> {
    check_order(dir, name)?;
    check_name(name)?;
    Registry::of(model).lock().check_free(name)?;
    let fetched = if hub::is_meant(dir) { Some(hub::fetch(dir, name)?) } else { None };
    let dir = fetched.as_deref().unwrap_or(dir);
    let mut looked = vec![dir.to_path_buf(), dir.join(name)];
    // Where `save_adapter` writes it comes first: another one may be in the other place.
    looked.sort_by_key(|folder| *folder != peft::folder(dir, name));
    looked.iter_mut().for_each(|folder| folder.push(peft::CONFIG_FILE));
    let Some(config_path) = looked.iter().find(|path| path.is_file()) else {
        return Err(Error::AdapterNotFound { looked, below: adapters_below(dir) });
    };
    let folder = config_path.parent().unwrap_or(dir);
    let files = AdapterFiles::read(folder)?;
    fingerprint::check(model, folder)?;
    add(model, from_files(model, name, files, folder)?)
}

/// The adapter that files hold. `folder` is theirs, for errors.
///
/// # Errors
/// Tensors that do not fit this model, a configuration that it refuses, or a name that cannot be
/// used.
fn from_files(
    model: &Model,
    name: &str,
    mut files: AdapterFiles,
    folder: &Path,
) -> Result<Adapter> {
    let tensors_path = folder.join(peft::TENSORS_FILE);
    text_part::rename(model, &mut files, &folder.join(peft::CONFIG_FILE))?;
    in_model::drop_tied_head(model, &mut files, &tensors_path)?;
    in_model::name_tables(model, &mut files, &tensors_path)?;
    // Before anything is built, so that a wrong configuration costs no memory.
    if matches!(files.config, AdapterConfig::AdaLora(_)) {
        files.config.as_type().check_new(model)?; // its masks can leave a file small
    }
    files.check(&plan(model, &files.config)?, &folder.join(files.tensors_file_name()))?;
    let mut adapter = build(model, name, files.config.clone())?;
    adapter.body.fill(&files.tensors)?;
    adapter.own.tensors().try_for_each(|tensor| tensor.fill(&files.tensors))?;
    adapter.set_moved();
    adapter.warnings.clone_from(&files.warnings);
    if let Some(base) = &files.base_model_name_or_path
        && model_key(base) != model_key(model.name())
    {
        adapter.warnings.push(format!(
            "this adapter was trained on `{base}`, and this model is `{}`",
            model.name()
        ));
    }
    Ok(adapter)
}

impl Adapters for Model {
    fn add_adapter_of(&self, name: &str, config: AdapterConfig) -> Result<AdapterInfo> {
        let registry = Registry::of(self);
        registry.lock().check_free(name)?;
        config.validate()?;
        config.as_type().check_new(self)?;
        add(self, build(self, name, config)?)
    }

    fn adapters(&self) -> Vec<AdapterInfo> {
        let generation = Generation::of(&self.overlay());
        let answers = generation.as_deref().and_then(Generation::adapter);
        let is_merged = matches!(generation.as_deref(), Some(Generation::Merged(_)));
        let registry = Registry::of(self);
        let state = registry.lock();
        state
            .all()
            .map(|Resident { adapter, .. }| {
                let active = answers.is_some_and(|answers| Arc::ptr_eq(answers, adapter));
                adapter.info(self, active, active && is_merged)
            })
            .collect()
    }

    fn active(&self) -> Active {
        registry::active(self)
    }

    fn active_adapter(&self) -> Option<String> {
        match registry::active(self) {
            Active::Adapter(name) | Active::Merged(name) => Some(name),
            Active::Base | Active::Full => None,
        }
    }

    fn set_adapter(&self, name: &str) -> Result<()> {
        let registry = Registry::of(self);
        let mut state = registry.lock();
        let overlay = state.get(name)?.overlay;
        state.activate(self, &overlay);
        Ok(())
    }

    fn with_adapter(&self, name: &str) -> Result<Model> {
        Ok(self.with_overlay(registry::overlay(self, name)?))
    }

    fn with_adapter_weights(&self, adapters: &[(&str, f64)]) -> Result<Model> {
        let part = |(name, weight): &(&str, f64)| {
            Ok((FrozenAdapter::of_resident(self, name, name)?, *weight))
        };
        let parts = adapters.iter().map(part).collect::<Result<Vec<_>>>()?;
        Ok(self.with_overlay(AdapterMix::new(self, &parts)?.overlay()))
    }

    fn disable_adapters(&self) {
        Registry::of(self).lock().pause(self, Arc::default());
    }

    fn enable_adapters(&self) -> Result<()> {
        Registry::of(self).lock().resume(self)
    }

    fn delete_adapter(&self, name: &str) -> Result<()> {
        Registry::of(self).lock().remove(self, name)
    }

    fn rename_adapter(&self, name: &str, new_name: &str) -> Result<()> {
        let registry = Registry::of(self);
        let old = registry.lock().get(name)?;
        check_name(new_name)?;
        let renamed = Adapter { name: new_name.to_owned(), ..Adapter::clone(&old.adapter) };
        let new = Resident::new(self, renamed)?;
        registry.lock().check_free(new_name)?;
        registry.lock().replace(self, &old, new)
    }

    fn add_weighted_adapter(
        &self,
        adapters: &[(&str, f64)],
        name: &str,
        combination: CombinationType,
    ) -> Result<AdapterInfo> {
        let registry = Registry::of(self);
        registry.lock().check_free(name)?;
        add(self, weighted::combine(self, adapters, name, combination)?)
    }

    fn merge_adapter(&self, name: &str) -> Result<()> {
        let registry = Registry::of(self);
        let adapter = registry.lock().get(name)?.adapter;
        let of_one_step = adapter.between_steps();
        let Some(merged) = adapter.body.merged()? else {
            return Err(Error::Config {
                field: "merge_adapter",
                value: format!("`{name}`, a {}", adapter.config()),
                expected: "an adapter that changes weights (LoRA, AdaLoRA, IA3): no weight can take this one up. Use `set_adapter`",
            });
        };
        drop(of_one_step);
        let overlay = adapter.with_own(merged).overlay(self)?;
        let overlay = overlay.owned_by(Arc::new(Generation::Merged(Arc::clone(&adapter))));
        let mut state = registry.lock();
        state.check_is(name, &adapter)?;
        state.activate(self, &Arc::new(overlay));
        Ok(())
    }

    fn with_adapter_names(&self, adapter_names: &[&str]) -> Result<Model> {
        let overlays: Vec<Arc<Overlay>> = adapter_names
            .iter()
            .map(|name| registry::overlay(self, name))
            .collect::<Result<_>>()?;
        Ok(self.with_overlays(overlays))
    }

    fn save_adapter(&self, name: &str, dir: impl AsRef<Path>) -> Result<PathBuf> {
        let adapter = Registry::of(self).lock().get(name)?.adapter;
        let folder = peft::folder(dir, name);
        adapter.files(self)?.write_as(&folder, name)?;
        fingerprint::write(self, &folder)?;
        Ok(folder)
    }

    fn save_adapter_gguf(&self, name: &str, path: impl AsRef<Path>) -> Result<PathBuf> {
        let adapter = Registry::of(self).lock().get(name)?.adapter;
        gguf::write(self, name, &adapter.files(self)?, path.as_ref())
    }

    fn load_adapter(&self, dir: impl AsRef<Path>, name: &str) -> Result<AdapterInfo> {
        load(self, dir.as_ref(), name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(
            [0, 999, 1000, 134_515_008].map(thousands),
            ["0", "999", "1,000", "134,515,008"]
        );
    }

    #[test]
    fn names_must_be_folders_everywhere() {
        for name in ["", "a/b", "..", "a.b", "a b", &"a".repeat(201), &"ä".repeat(101)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        for name in ["default", "support-v2", "ä_1", &"a".repeat(200)] {
            check_name(name).unwrap();
        }
    }

    #[test]
    fn the_same_base_is_known_by_hub_id_and_by_file() {
        assert_eq!(
            model_key("HuggingFaceTB/SmolLM2-135M-Instruct"),
            model_key("SmolLM2-135M-Instruct/")
        );
        assert_eq!(model_key("/x/SmolLM2-135M-Instruct.gguf"), model_key("SmolLM2-135M-Instruct"));
    }
}
