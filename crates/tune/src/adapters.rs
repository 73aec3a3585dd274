//! Adapters on a model: several resident at once, at most one active, switched without copying the base.
//!
//! The adapters belong to the model: every handle of it sees the same ones, and they go with its last handle.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Tensor;
use tunebook_models::{Model, Projection};

use crate::error::{Error, Result};
use crate::fingerprint;
use crate::full::FullWeights;
use crate::inject;
use crate::lora::{Lora, LoraInit};
use crate::lora_linear::{LoraLinear, Mode};
use crate::parameter::{Parameter, Parameters, Part};
use crate::peft::{self, AdapterFiles, LoraMatrices, Matrix};
use crate::target::{self, TargetModules};
use crate::trained::Trained;
use crate::weighted::CombinationType;

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
    /// Adds a new adapter and makes it the active one.
    ///
    /// # Errors
    /// The configuration is refused ([`Lora::validate`]), a target module does not exist, or the name is taken.
    fn add_adapter(&self, name: &str, config: &Lora) -> Result<AdapterInfo>;

    /// All adapters of this model, by name.
    fn adapters(&self) -> Vec<AdapterInfo>;

    /// The adapter in use, if any.
    fn active_adapter(&self) -> Option<String>;

    /// Makes this adapter, and no other, the active one.
    ///
    /// # Errors
    /// No adapter of that name.
    fn set_adapter(&self, name: &str) -> Result<()>;

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

    /// Combines adapters, each with its weight (which may be negative), into a new one, and makes it the active one. The others stay.
    ///
    /// # Errors
    /// No adapter of one of the names, none named, one with DoRA (whose lengths do not add up), weights that are not finite, ranks that the
    /// combination does not take, or the name is taken.
    fn add_weighted_adapter(
        &self,
        adapters: &[(&str, f64)],
        name: &str,
        combination: CombinationType,
    ) -> Result<AdapterInfo>;

    /// Makes this adapter the active one in merged form: each weight a copy with the update added, so that it runs as fast as the base. The
    /// base is kept; any other switch undoes it exactly. A merged adapter cannot be trained.
    ///
    /// # Errors
    /// No adapter of that name.
    fn merge_adapter(&self, name: &str) -> Result<()>;

    /// Writes an adapter as PEFT's `save_pretrained(dir)` does: `default` into `dir`, any other into a subfolder of its name.
    /// Returns the folder that holds the files.
    ///
    /// # Errors
    /// No adapter of that name, or a file cannot be written.
    fn save_adapter(&self, name: &str, dir: &str) -> Result<PathBuf>;

    /// Reads an adapter that this crate or PEFT wrote, from `dir` or its subfolder `name`, and makes it the active one.
    ///
    /// # Errors
    /// No adapter there, files that are torn or of another kind, tensors that do not fit this model, another tokenizer or chat template than it was
    /// trained with, or the name is taken.
    fn load_adapter(&self, name: &str, dir: &str) -> Result<AdapterInfo>;
}

/// What there is to say about an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterInfo {
    /// Its name.
    pub name: String,
    /// Whether it is the active one.
    pub active: bool,
    /// Its configuration.
    pub config: Lora,
    /// The projections it sits on.
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
        write!(
            f,
            "{}: LoRA r={}, lora_alpha={}, {} modules; trainable params: {} || all params: {} || trainable%: {:.4}",
            self.name,
            self.config.r,
            self.config.lora_alpha,
            self.modules.len(),
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
#[derive(Debug)]
pub(crate) struct Adapter {
    name: String,
    config: Lora,
    layers: Vec<Arc<LoraLinear>>,
    pub(crate) mode: Arc<Mode>,
    warnings: Vec<String>,
}

impl Adapter {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn parameters(&self) -> Parameters {
        let mut parameters = Vec::with_capacity(2 * self.layers.len());
        for layer in &self.layers {
            let part = Part::Block(target::block_index(layer.path()).unwrap_or(0));
            let mut add = |half: &str, var: &candle_core::Var| {
                parameters.push(Parameter {
                    name: format!("{}.{half}", layer.path()),
                    var: var.clone(),
                    part,
                });
            };
            add("lora_A", layer.lora_a());
            add("lora_B", layer.lora_b());
            if let Some(magnitude) = layer.magnitude() {
                add("lora_magnitude_vector", magnitude);
            }
        }
        Parameters::new(parameters)
    }

    fn info(&self, model: &Model, active: bool) -> AdapterInfo {
        let trainable_parameters = self.parameters().elem_count();
        AdapterInfo {
            name: self.name.clone(),
            active,
            config: self.config.clone(),
            modules: self.layers.iter().map(|layer| layer.path().to_owned()).collect(),
            trainable_parameters,
            all_parameters: model.parameter_count() + trainable_parameters,
            warnings: self.warnings.clone(),
        }
    }

    /// As PEFT's files hold it. `all-linear` is written out, as PEFT writes it.
    pub(crate) fn files(&self, model: &Model) -> Result<AdapterFiles> {
        let matrix = |tensor: &Tensor| -> Result<Matrix> {
            let (rows, columns) = tensor.dims2()?;
            Ok(Matrix { rows, columns, values: tensor.flatten_all()?.to_vec1()? })
        };
        let mut layers = BTreeMap::new();
        for layer in &self.layers {
            let (a, b) = layer.plain()?;
            let magnitude = layer.magnitude().map(|magnitude| magnitude.to_vec1()).transpose()?;
            let matrices = LoraMatrices { lora_a: matrix(&a)?, lora_b: matrix(&b)?, magnitude };
            layers.insert(layer.path().to_owned(), matrices);
        }
        let mut config = self.config.clone();
        // PEFT refuses a list of blocks beside a pattern.
        let pattern = matches!(config.target_modules, TargetModules::Pattern(_));
        if config.target_modules == TargetModules::all_linear()
            || pattern && config.layers_to_transform.is_some()
        {
            config.target_modules = self.written_out(model);
            if matches!(&config.target_modules, TargetModules::Names(names) if names.len() == self.layers.len())
            {
                config.layers_to_transform = None; // whole paths
            }
        }
        if config.lora_init.takes_from_base() {
            // The file holds [A; A₀] and [B, −B₀]: twice the rank, and the scaling as it was.
            let factor = if config.use_rslora { 2f64.sqrt() } else { 2.0 };
            config.r *= 2;
            config.lora_alpha *= factor;
            config.rank_pattern.values_mut().for_each(|r| *r *= 2);
            config.alpha_pattern.values_mut().for_each(|alpha| *alpha *= factor);
            config.lora_init = LoraInit::Kaiming;
        }
        Ok(AdapterFiles { config, base_model_name_or_path: Some(model.name().to_owned()), layers })
    }

    /// Short names where they mean exactly these projections, whole paths otherwise.
    fn written_out(&self, model: &Model) -> TargetModules {
        let mut names: Vec<String> = Vec::new();
        for layer in &self.layers {
            let short = layer.path().rsplit('.').next().unwrap_or_default().to_owned();
            if !names.contains(&short) {
                names.push(short);
            }
        }
        let short = TargetModules::Names(names);
        let slots = model.slots();
        let paths: Vec<&str> = slots.iter().map(|slot| slot.path()).collect();
        match short.resolve(&paths) {
            Ok(matched) if matched.len() == self.layers.len() => short,
            _ => TargetModules::Names(self.layers.iter().map(|layer| layer.path().to_owned()).collect()),
        }
    }
}

/// The adapters of one model; lives in the model.
#[derive(Default)]
struct Registry(Mutex<State>);

#[derive(Default)]
struct State {
    adapters: BTreeMap<String, Arc<Adapter>>,
    active: Option<String>,
    /// The one that `disable_adapters` switched off.
    paused: Option<String>,
    /// The model's own weights, while they are trained in place of an adapter.
    full: Option<Arc<FullWeights>>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the state half changed: every change is one assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn get(&self, name: &str) -> Result<Arc<Adapter>> {
        self.adapters.get(name).cloned().ok_or_else(|| Error::NoSuchAdapter {
            name: name.to_owned(),
            available: self.adapters.keys().cloned().collect(),
        })
    }

    fn check_free(&self, name: &str) -> Result<()> {
        if self.adapters.contains_key(name) {
            Err(Error::AdapterExists { name: name.to_owned() })
        } else {
            Ok(())
        }
    }

    fn activate(&mut self, model: &Model, adapter: &Adapter) -> Result<()> {
        let layers = adapter
            .layers
            .iter()
            .map(|layer| (layer.path().to_owned(), Arc::clone(layer) as Arc<dyn Projection>))
            .collect();
        self.active = None;
        self.full = None;
        inject::install(model, &layers)?;
        self.active = Some(adapter.name.clone());
        self.paused = None;
        Ok(())
    }

    fn add(&mut self, model: &Model, adapter: Adapter) -> Result<AdapterInfo> {
        let adapter = Arc::new(adapter);
        self.activate(model, &adapter)?;
        self.adapters.insert(adapter.name.clone(), Arc::clone(&adapter));
        Ok(adapter.info(model, true))
    }
}

/// What is to be trained: the model's own weights if they are unfrozen, else the active adapter.
///
/// # Errors
/// There is neither.
pub(crate) fn trained(model: &Model) -> Result<Trained> {
    let registry = model.extension::<Registry>();
    let state = registry.lock();
    match (&state.full, &state.active) {
        (Some(weights), _) => Ok(Trained::Full(Arc::clone(weights))),
        (None, Some(name)) => state.get(name).map(Trained::Adapter),
        (None, None) => Err(Error::NothingToTrain { resident: state.adapters.keys().cloned().collect() }),
    }
}

/// From now on the model's own weights are trained.
pub(crate) fn start_full(model: &Model, weights: FullWeights) {
    let registry = model.extension::<Registry>();
    let mut state = registry.lock();
    inject::restore(model);
    if let Some(active) = state.active.take() {
        state.paused = Some(active);
    }
    state.full = Some(Arc::new(weights));
}

/// The model's own weights are constants again.
pub(crate) fn end_full(model: &Model) {
    model.extension::<Registry>().lock().full = None;
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

fn build(model: &Model, name: &str, config: &Lora) -> Result<Adapter> {
    check_name(name)?;
    config.validate()?;
    let mode = Arc::new(Mode::default());
    let mut layers = Vec::new();
    for slot in inject::targets(model, config)? {
        layers.push(Arc::new(LoraLinear::new(slot.path(), slot.base(), config, Arc::clone(&mode))?));
    }
    Ok(Adapter { name: name.to_owned(), config: config.clone(), layers, mode, warnings: Vec::new() })
}

/// Puts the file's values into a freshly built adapter, when they fit it exactly.
fn fill(adapter: &Adapter, files: &AdapterFiles, path: &Path) -> Result<()> {
    let problem = |problem: String| Error::AdapterFile { path: path.to_path_buf(), problem };
    let missing: Vec<&str> = adapter
        .layers
        .iter()
        .map(|layer| layer.path())
        .filter(|path| !files.layers.contains_key(*path))
        .collect();
    if let Some(first) = missing.first() {
        return Err(problem(format!(
            "expected tensors for {} projections of this model, as `target_modules` says; {} are missing, `{first}` the first of them",
            adapter.layers.len(),
            missing.len()
        )));
    }
    if let Some(extra) =
        files.layers.keys().find(|path| !adapter.layers.iter().any(|layer| layer.path() == *path))
    {
        return Err(problem(format!(
            "holds tensors for `{extra}`, which is no target module of this model: was the adapter trained on another base ({})?",
            files.base_model_name_or_path.as_deref().unwrap_or("unnamed")
        )));
    }
    for layer in &adapter.layers {
        let matrices = &files.layers[layer.path()];
        for (name, var, found) in
            [("lora_A", layer.lora_a(), &matrices.lora_a), ("lora_B", layer.lora_b(), &matrices.lora_b)]
        {
            let expected = var.dims2()?;
            if expected != (found.rows, found.columns) {
                return Err(problem(format!(
                    "`{}.{name}` is [{}, {}], expected [{}, {}] for rank {} on this model: was the adapter trained on another base ({})?",
                    layer.path(),
                    found.rows,
                    found.columns,
                    expected.0,
                    expected.1,
                    layer.lora_a().dims2()?.0,
                    files.base_model_name_or_path.as_deref().unwrap_or("unnamed")
                )));
            }
            var.set(&Tensor::from_slice(&found.values, expected, var.device())?)?;
        }
        let (expected, found) = (layer.magnitude(), &matrices.magnitude);
        match (expected, found) {
            (Some(var), Some(values)) if var.elem_count() == values.len() => {
                var.set(&Tensor::from_slice(values, values.len(), var.device())?)?;
            }
            (None, None) => {}
            _ => {
                let length = |n: Option<usize>| n.map_or("none".to_owned(), |n| format!("[{n}]"));
                return Err(problem(format!(
                    "`{}.lora_magnitude_vector`: expected {} as `use_dora` says, found {}",
                    layer.path(),
                    length(expected.map(|var| var.elem_count())),
                    length(found.as_ref().map(Vec::len))
                )));
            }
        }
    }
    Ok(())
}

/// The last part of a hub id or path, without a file's extension, in lower case.
fn model_key(name: &str) -> String {
    let last = name.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_lowercase();
    last.strip_suffix(".gguf").unwrap_or(&last).to_owned()
}

impl Adapters for Model {
    fn add_adapter(&self, name: &str, config: &Lora) -> Result<AdapterInfo> {
        let registry = self.extension::<Registry>();
        let mut state = registry.lock();
        state.check_free(name)?;
        for slot in inject::targets(self, config)? {
            let r = config.rank_and_scaling(slot.path())?.0;
            let (input, output) = (slot.base().in_features(), slot.base().out_features());
            if r > input.min(output) {
                return Err(Error::Config {
                    field: "Lora.r",
                    value: format!("{r} for `{}`, which maps {input} to {output}", slot.path()),
                    expected: "a rank of at most the smaller side of the matrix: beyond it nothing more can be learned",
                });
            }
        }
        let adapter = build(self, name, config)?;
        state.add(self, adapter)
    }

    fn adapters(&self) -> Vec<AdapterInfo> {
        let registry = self.extension::<Registry>();
        let state = registry.lock();
        let active = |name: &str| state.active.as_deref() == Some(name);
        state.adapters.values().map(|adapter| adapter.info(self, active(&adapter.name))).collect()
    }

    fn active_adapter(&self) -> Option<String> {
        self.extension::<Registry>().lock().active.clone()
    }

    fn set_adapter(&self, name: &str) -> Result<()> {
        let registry = self.extension::<Registry>();
        let mut state = registry.lock();
        let adapter = state.get(name)?;
        state.activate(self, &adapter)
    }

    fn disable_adapters(&self) {
        let registry = self.extension::<Registry>();
        let mut state = registry.lock();
        inject::restore(self);
        if let Some(active) = state.active.take() {
            state.paused = Some(active);
        }
    }

    fn enable_adapters(&self) -> Result<()> {
        let registry = self.extension::<Registry>();
        let mut state = registry.lock();
        if state.active.is_some() {
            return Ok(());
        }
        let Some(name) = state.paused.clone() else {
            return Err(Error::NothingToTrain { resident: state.adapters.keys().cloned().collect() });
        };
        let adapter = state.get(&name)?;
        state.activate(self, &adapter)
    }

    fn delete_adapter(&self, name: &str) -> Result<()> {
        let registry = self.extension::<Registry>();
        let mut state = registry.lock();
        state.get(name)?;
        state.adapters.remove(name);
        state.paused.take_if(|paused| paused == name);
        if state.active.take_if(|active| active == name).is_some() {
            inject::restore(self);
        }
        Ok(())
    }

    fn rename_adapter(&self, name: &str, new_name: &str) -> Result<()> {
        let registry = self.extension::<Registry>();
        let mut state = registry.lock();
        let adapter = state.get(name)?;
        check_name(new_name)?;
        state.check_free(new_name)?;
        let renamed = Adapter {
            name: new_name.to_owned(),
            config: adapter.config.clone(),
            layers: adapter.layers.clone(),
            mode: Arc::clone(&adapter.mode),
            warnings: adapter.warnings.clone(),
        };
        state.adapters.remove(name);
        state.adapters.insert(new_name.to_owned(), Arc::new(renamed));
        if state.active.as_deref() == Some(name) {
            state.active = Some(new_name.to_owned());
        }
        if state.paused.as_deref() == Some(name) {
            state.paused = Some(new_name.to_owned());
        }
        Ok(())
    }

    fn add_weighted_adapter(
        &self,
        adapters: &[(&str, f64)],
        name: &str,
        combination: CombinationType,
    ) -> Result<AdapterInfo> {
        let registry = self.extension::<Registry>();
        let mut state = registry.lock();
        state.check_free(name)?;
        let refuse = |value: String, expected| Err(Error::Config { field: "adapters", value, expected });
        if adapters.is_empty() {
            return refuse("empty".to_owned(), "at least one adapter");
        }
        let mut parts = Vec::with_capacity(adapters.len());
        for (of, weight) in adapters {
            let adapter = state.get(of)?;
            if adapter.config.use_dora {
                return refuse(format!("`{of}` with DoRA"), "LoRAs: DoRA's lengths do not add up");
            }
            if !weight.is_finite() {
                return refuse(format!("`{of}` with the weight {weight}"), "finite weights");
            }
            parts.push((adapter, *weight));
        }
        let mut paths: Vec<String> = Vec::new();
        let mut ranks = Vec::with_capacity(parts.len());
        for (adapter, _) in &parts {
            let mut largest = 0;
            for layer in &adapter.layers {
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
            target_modules: paths.into(),
            ..Default::default()
        };
        let mut adapter = build(self, name, &config)?;
        for layer in &adapter.layers {
            let of_layer: Vec<(&LoraLinear, f64)> = parts
                .iter()
                .filter_map(|(adapter, weight)| {
                    let found = adapter.layers.iter().find(|other| other.path() == layer.path())?;
                    Some((found.as_ref(), *weight))
                })
                .collect();
            let (a, b) = combination.combine(&of_layer, rank)?;
            layer.lora_a().set(&a)?;
            layer.lora_b().set(&b)?;
        }
        adapter.config.target_modules = adapter.written_out(self);
        state.add(self, adapter)
    }

    fn merge_adapter(&self, name: &str) -> Result<()> {
        let registry = self.extension::<Registry>();
        let mut state = registry.lock();
        let adapter = state.get(name)?;
        let mut merged: BTreeMap<String, Arc<dyn Projection>> = BTreeMap::new();
        for layer in &adapter.layers {
            merged.insert(layer.path().to_owned(), Arc::new(layer.merged()?));
        }
        state.active = None;
        state.full = None;
        inject::install(self, &merged)?;
        state.paused = Some(name.to_owned());
        Ok(())
    }

    fn save_adapter(&self, name: &str, dir: &str) -> Result<PathBuf> {
        let adapter = self.extension::<Registry>().lock().get(name)?;
        let folder = peft::folder(Path::new(dir), name);
        adapter.files(self)?.write(&folder)?;
        fingerprint::write(self, &folder)?;
        Ok(folder)
    }

    fn load_adapter(&self, name: &str, dir: &str) -> Result<AdapterInfo> {
        let registry = self.extension::<Registry>();
        let mut state = registry.lock();
        state.check_free(name)?;
        let mut looked = vec![Path::new(dir).join(peft::CONFIG_FILE)];
        looked.push(Path::new(dir).join(name).join(peft::CONFIG_FILE));
        let Some(config_path) = looked.iter().find(|path| path.is_file()) else {
            return Err(Error::AdapterNotFound { looked });
        };
        let folder = config_path.parent().unwrap_or(Path::new(dir));
        let files = AdapterFiles::read(folder)?;
        fingerprint::check(self, folder)?;
        let mut adapter = build(self, name, &files.config)?;
        fill(&adapter, &files, &folder.join(peft::TENSORS_FILE))?;
        if let Some(base) = &files.base_model_name_or_path
            && model_key(base) != model_key(self.name())
        {
            adapter
                .warnings
                .push(format!("this adapter was trained on `{base}`, and this model is `{}`", self.name()));
        }
        state.add(self, adapter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1000, 134_515_008].map(thousands), ["0", "999", "1,000", "134,515,008"]);
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
        assert_eq!(model_key("HuggingFaceTB/SmolLM2-135M-Instruct"), model_key("SmolLM2-135M-Instruct/"));
        assert_eq!(model_key("/x/SmolLM2-135M-Instruct.gguf"), model_key("SmolLM2-135M-Instruct"));
    }
}
