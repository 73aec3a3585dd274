//! Adapters on a model: several resident at once, at most one active, switched without copying the
//! base.
//!
//! The adapters belong to the model: every handle of it sees the same ones, and they go with its
//! last handle.

pub mod adalora;
pub(crate) mod body;
pub mod bottleneck;
pub mod config;
pub(crate) mod dropout;
pub mod full;
pub mod ia3;
pub(crate) mod inject;
pub mod lora;
pub mod modules_to_save;
pub mod prefix_tuning;
pub mod prompt_tuning;
pub(crate) mod registry;
pub(crate) mod scheduled;
pub mod target;
pub mod weighted;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tunebook_models::{Model, Overlay};

use crate::adapters::adalora::AdaLoraBody;
use crate::adapters::bottleneck::body::BottleneckBody;
use crate::adapters::config::AdapterConfig;
use crate::adapters::lora::Lora;
use crate::adapters::lora::body::LoraBody;
use crate::adapters::lora::linear::LoraLinear;
use crate::adapters::modules_to_save::OwnWeights;
use crate::adapters::scheduled::Scheduled;
use crate::adapters::target::{Choice, TargetModules};
use crate::adapters::weighted::CombinationType;
use crate::error::{Error, Result};
use crate::files::fingerprint;
use crate::files::gguf;
use crate::files::peft::{self, AdapterFiles, StoredTensor};
use crate::train::parameter::Parameters;
use body::{AdapterTensor, Body};
use inject::Hooks;
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
    /// into a subfolder of its name. Returns the folder that holds the files.
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

    /// Reads an adapter that this crate or PEFT wrote, from `dir` or its subfolder `name`, and
    /// makes it the active one. The arguments stand in PEFT's order: the place, then the name.
    ///
    /// # Errors
    /// No adapter there, files that are torn or of another kind, tensors that do not fit this
    /// model, another tokenizer or chat template than it was trained with, or the name is taken.
    fn load_adapter(&self, dir: impl AsRef<Path>, name: &str) -> Result<AdapterInfo>;
}

/// What there is to say about an adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterInfo {
    /// Its name.
    pub name: String,
    /// Whether it is the active one.
    pub active: bool,
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
        write!(f, "{}: {}", self.name, self.config)?;
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

    fn info(&self, model: &Model, active: bool) -> AdapterInfo {
        let tensors = self.tensors();
        let trainable_parameters = tensors.iter().map(|tensor| tensor.var.elem_count()).sum();
        AdapterInfo {
            name: self.name.clone(),
            active,
            config: self.config(),
            modules: self.body.modules(),
            trainable_parameters,
            all_parameters: model.parameter_count() + trainable_parameters,
            warnings: self.warnings.clone(),
        }
    }

    /// As PEFT's files hold it. `all-linear` is written out, as PEFT writes it.
    pub(crate) fn files(&self, model: &Model) -> Result<AdapterFiles> {
        let (mut config, mut tensors) = self.body.stored()?;
        for tensor in self.own.tensors() {
            tensors.insert(tensor.key.clone(), StoredTensor::of(tensor.var.as_tensor())?);
        }
        if let Some(table) = tied_table(model).and_then(|table| tensors.get(&table).cloned()) {
            tensors.insert(HEAD.to_owned(), table); // as PEFT writes a tied head, too
        }
        let modules = self.body.modules();
        if let Some((target_modules, layers_to_transform)) = config.choice_mut() {
            // PEFT refuses a list of blocks beside a pattern.
            let pattern = matches!(target_modules, TargetModules::Pattern(_));
            let blocks = layers_to_transform.as_ref().is_some_and(|blocks| blocks.is_some());
            if *target_modules == TargetModules::all_linear() || pattern && blocks {
                *target_modules = written_out(model, &modules, &self.config());
                let whole_paths = matches!(target_modules, TargetModules::Names(names) if names.len() == modules.len());
                if let Some(blocks) = layers_to_transform.filter(|_| whole_paths) {
                    *blocks = None;
                }
            }
        }
        let base_model_name_or_path = Some(model.name().to_owned());
        Ok(AdapterFiles { config, base_model_name_or_path, tensors, warnings: Vec::new() })
    }
}

const HEAD: &str = "lm_head.weight";

/// The embedding table's name, if it is the output head as well.
fn tied_table(model: &Model) -> Option<String> {
    let table = model.weights().into_iter().find(|weight| model.is_embedding(weight.name()))?;
    model.config().tie_word_embeddings.then(|| table.name().to_owned())
}

/// Takes the second copy of a tied table out of what a file holds.
///
/// # Errors
/// The copies differ: the file's model has an output head of its own.
fn drop_tied_head(model: &Model, files: &mut AdapterFiles, path: &Path) -> Result<()> {
    let Some(table) = tied_table(model) else { return Ok(()) };
    if let (Some(head), Some(embedding)) = (files.tensors.get(HEAD), files.tensors.get(&table)) {
        if head != embedding {
            return Err(Error::AdapterFile {
                path: path.to_path_buf(),
                problem: format!(
                    "`{HEAD}` and `{table}` differ, expected them to be the one table that they are in this model: the adapter was trained on a \
                     base with an output head of its own"
                ),
            });
        }
        files.tensors.remove(HEAD);
    }
    Ok(())
}

/// Short names where they mean exactly these modules, whole paths otherwise.
fn written_out(model: &Model, modules: &[String], config: &AdapterConfig) -> TargetModules {
    let mut names: Vec<String> = Vec::new();
    for module in modules {
        let short = module.rsplit('.').next().unwrap_or_default().to_owned();
        if !names.contains(&short) {
            names.push(short);
        }
    }
    let short = TargetModules::Names(names);
    let slots = model.slots();
    let paths: Vec<&str> = slots.iter().map(|slot| slot.path()).collect();
    let choice = config.choice().map(|choice| Choice { target_modules: &short, ..choice });
    match choice.map(|choice| choice.resolve(&paths)) {
        Some(Ok(matched)) if matched.len() == modules.len() => short,
        _ => TargetModules::Names(modules.to_vec()),
    }
}

/// A name that is one folder's name and no part of PEFT's tensor names.
fn check_name(name: &str) -> Result<()> {
    let problem = if name.is_empty() {
        "is empty"
    } else if !name.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_') {
        "has a character that cannot stand in a folder's name on every system"
    } else {
        return Ok(());
    };
    Err(Error::AdapterName { name: name.to_owned(), problem })
}

fn build(model: &Model, name: &str, config: AdapterConfig) -> Result<Adapter> {
    check_name(name)?;
    let body = body::build(model, &config)?;
    let own = Arc::new(OwnWeights::new(model, &config, &body.modules())?);
    Ok(Adapter { name: name.to_owned(), body, own, warnings: Vec::new() })
}

/// Adds an adapter and makes it the active one.
///
/// # Errors
/// The name is taken, or something has another size than what it replaces.
fn add(model: &Model, adapter: Adapter) -> Result<AdapterInfo> {
    let resident = Resident::new(model, adapter)?;
    let info = resident.adapter.info(model, true);
    Registry::of(model).lock().add(model, resident)?;
    Ok(info)
}

/// The keys and shapes of all tensors of an adapter of this configuration.
fn plan(model: &Model, config: &AdapterConfig) -> Result<BTreeMap<String, Vec<usize>>> {
    let mut plan = body::plan(model, config)?;
    let modules: Vec<String> = match config.choice() {
        Some(choice) => {
            inject::targets(model, &choice)?.iter().map(|slot| slot.path().to_owned()).collect()
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

/// [`Adapters::load_adapter`].
fn load(model: &Model, dir: &Path, name: &str) -> Result<AdapterInfo> {
    Registry::of(model).lock().check_free(name)?;
    let mut looked = vec![dir.join(peft::CONFIG_FILE)];
    looked.push(dir.join(name).join(peft::CONFIG_FILE));
    let Some(config_path) = looked.iter().find(|path| path.is_file()) else {
        return Err(Error::AdapterNotFound { looked });
    };
    let folder = config_path.parent().unwrap_or(dir);
    let mut files = AdapterFiles::read(folder)?;
    drop_tied_head(model, &mut files, &folder.join(peft::TENSORS_FILE))?;
    fingerprint::check(model, folder)?;
    // Before anything is built, so that a wrong configuration costs no memory.
    if let AdapterConfig::AdaLora(adalora) = &files.config {
        AdaLoraBody::check_ranks(model, adalora)?; // its masks can leave a file small
    }
    files.check(&plan(model, &files.config)?, &folder.join(files.tensors_file_name()))?;
    let mut adapter = build(model, name, files.config.clone())?;
    adapter.body.fill(&files.tensors)?;
    adapter.own.tensors().try_for_each(|tensor| tensor.fill(&files.tensors))?;
    adapter.warnings.clone_from(&files.warnings);
    if let Some(base) = &files.base_model_name_or_path
        && model_key(base) != model_key(model.name())
    {
        adapter.warnings.push(format!(
            "this adapter was trained on `{base}`, and this model is `{}`",
            model.name()
        ));
    }
    add(model, adapter)
}

impl Adapters for Model {
    fn add_adapter_of(&self, name: &str, config: AdapterConfig) -> Result<AdapterInfo> {
        let registry = Registry::of(self);
        registry.lock().check_free(name)?;
        config.validate()?;
        match &config {
            AdapterConfig::Lora(lora) => LoraBody::check_ranks(self, lora)?,
            AdapterConfig::AdaLora(adalora) => AdaLoraBody::check_ranks(self, adalora)?,
            AdapterConfig::Bottleneck(bottleneck) => BottleneckBody::check_units(self, bottleneck)?,
            AdapterConfig::Ia3(_)
            | AdapterConfig::PromptTuning(_)
            | AdapterConfig::PrefixTuning(_) => {}
        }
        add(self, build(self, name, config)?)
    }

    fn adapters(&self) -> Vec<AdapterInfo> {
        let generation = Generation::of(&self.overlay());
        let answers = generation.as_deref().and_then(Generation::adapter);
        let registry = Registry::of(self);
        let state = registry.lock();
        state
            .all()
            .map(|Resident { adapter, .. }| {
                let active = answers.is_some_and(|answers| Arc::ptr_eq(answers, adapter));
                adapter.info(self, active)
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
        let refuse =
            |value: String, expected| Err(Error::Config { field: "adapters", value, expected });
        if adapters.is_empty() {
            return refuse("empty".to_owned(), "at least one adapter");
        }
        let mut parts: Vec<(Arc<Adapter>, f64)> = Vec::with_capacity(adapters.len());
        for (of, weight) in adapters {
            let adapter = registry.lock().get(of)?.adapter;
            match &adapter.config() {
                AdapterConfig::Lora(lora) if lora.use_dora => {
                    return refuse(
                        format!("`{of}` with DoRA"),
                        "LoRAs: DoRA's lengths do not add up",
                    );
                }
                config if adapter.body.lora().is_none() => {
                    return refuse(
                        format!("`{of}`, a {config}"),
                        "LoRAs: no other type can be summed",
                    );
                }
                _ if adapter.own.tensors().next().is_some() => {
                    return refuse(
                        format!("`{of}`, which trained weights of the model's own"),
                        "LoRAs without `bias` and `modules_to_save`: whole weights are no updates that add up",
                    );
                }
                _ => {}
            }
            if !weight.is_finite() {
                return refuse(format!("`{of}` with the weight {weight}"), "finite weights");
            }
            parts.push((adapter, *weight));
        }
        let layers = |adapter: &Adapter| adapter.body.lora().unwrap_or_default().to_vec();
        let mut paths: Vec<String> = Vec::new();
        let mut ranks = Vec::with_capacity(parts.len());
        for (adapter, _) in &parts {
            let mut largest = 0;
            for layer in layers(adapter) {
                largest = largest.max(layer.plain()?.0.dim(0)?);
                if !paths.iter().any(|path| path == layer.path()) {
                    paths.push(layer.path().to_owned());
                }
            }
            ranks.push(largest);
        }
        let rank = combination.rank(&ranks)?;
        let config = Lora {
            r: rank,
            lora_alpha: rank as f64, // a scaling of 1
            target_modules: paths.clone().into(),
            ..Default::default()
        };
        let target_modules = written_out(self, &paths, &config.clone().into());
        let adapter = build(self, name, Lora { target_modules, ..config }.into())?;
        for layer in layers(&adapter) {
            let of_layer: Vec<(Arc<LoraLinear>, f64)> = parts
                .iter()
                .filter_map(|(adapter, weight)| {
                    let found =
                        layers(adapter).into_iter().find(|other| other.path() == layer.path())?;
                    Some((found, *weight))
                })
                .collect();
            let of_layer: Vec<(&LoraLinear, f64)> =
                of_layer.iter().map(|(layer, weight)| (layer.as_ref(), *weight)).collect();
            let (a, b) = combination.combine(&of_layer, rank)?;
            layer.lora_a().set(&a)?;
            layer.lora_b().set(&b)?;
        }
        add(self, adapter)
    }

    fn merge_adapter(&self, name: &str) -> Result<()> {
        let registry = Registry::of(self);
        let adapter = registry.lock().get(name)?.adapter;
        let Some(merged) = adapter.body.merged()? else {
            return Err(Error::Config {
                field: "merge_adapter",
                value: format!("`{name}`, a {}", adapter.config()),
                expected: "an adapter that changes weights (LoRA, AdaLoRA, IA3): no weight can take this one up. Use `set_adapter`",
            });
        };
        let overlay = adapter.with_own(merged).overlay(self)?;
        let overlay = overlay.owned_by(Arc::new(Generation::Merged(Arc::clone(&adapter))));
        let mut state = registry.lock();
        state.get(name)?;
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
        for name in ["", "a/b", "..", "a.b", "a b"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        for name in ["default", "support-v2", "ä_1"] {
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
