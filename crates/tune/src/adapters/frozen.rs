//! An adapter that no longer changes: what a server answers with.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use tunebook_models::{Model, Overlay};

use crate::adapters::body::AdapterTensor;
use crate::adapters::config::AdapterConfig;
use crate::adapters::hooks::Hooks;
use crate::adapters::registry::{Generation, Registry};
use crate::adapters::{self, Adapter, check_name, model_key};
use crate::error::{Error, Result};
use crate::files::fingerprint;
use crate::files::peft::{self, AdapterFiles};
use crate::record::fingerprint::answering;

/// An adapter with tensors of its own, which nobody trains: read from a folder, or copied from a
/// model. It is on no model's list, so that loading, replacing and training adapters there changes
/// nothing of it. Clones are the same adapter.
///
/// ```no_run
/// use tunebook_models::{Device, Model};
/// use tunebook_tune::FrozenAdapter;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let model = Model::load("SmolLM2-135M-Instruct", &Device::Cpu)?;
/// let support = FrozenAdapter::read(&model, "support", "out/support")?;
/// let tuned = model.with_overlay(support.overlay());
/// println!("{}: {}", support.fingerprint(), tuned.chat("Where is my parcel?")?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct FrozenAdapter {
    adapter: Arc<Adapter>,
    overlay: Arc<Overlay>,
    fingerprint: String,
    /// Of the model that it is for.
    registry: Weak<Registry>,
}

impl FrozenAdapter {
    /// Reads the adapter in exactly this folder, as
    /// [`Adapters::load_adapter`](crate::Adapters::load_adapter) does, and refuses one of another
    /// base: its own file must name the weights of this model, or its configuration must name this
    /// model, or none.
    ///
    /// # Errors
    /// No adapter there, files that are torn or of another kind, tensors that do not fit this model
    /// or are not finite, another base, tokenizer or chat template, or a name that cannot be used.
    pub fn read(model: &Model, name: &str, folder: impl AsRef<Path>) -> Result<Self> {
        Self::read_in(model, name, folder.as_ref(), false)
    }

    /// As [`FrozenAdapter::read`], also where the files name another base, as they do when the base
    /// lies in a folder of another name.
    ///
    /// # Errors
    /// As there, but for the base.
    pub fn read_for_any_base(model: &Model, name: &str, folder: impl AsRef<Path>) -> Result<Self> {
        Self::read_in(model, name, folder.as_ref(), true)
    }

    fn read_in(model: &Model, name: &str, folder: &Path, any_base: bool) -> Result<Self> {
        check_name(name)?;
        let config_path = folder.join(peft::CONFIG_FILE);
        if !config_path.is_file() {
            let below = adapters::adapters_below(folder);
            return Err(Error::AdapterNotFound { looked: vec![config_path], below });
        }
        let files = AdapterFiles::read(folder)?;
        if !any_base {
            check_base(model, folder, &files)?;
        }
        fingerprint::check(model, folder)?;
        Self::of_files(model, name, files, folder)
    }

    /// A copy of the adapter that this handle answers with, as it is now, between two steps of a run
    /// that trains it. `None` where no adapter answers.
    ///
    /// # Errors
    /// A handle that answers each text with an adapter of its own; numbers that are not finite; a
    /// name that cannot be used.
    pub fn of(model: &Model, name: &str) -> Result<Option<Self>> {
        check_name(name)?;
        adapters::registry::check_one(model)?;
        let generation = Generation::of(&model.overlay());
        let Some(adapter) = generation.as_deref().and_then(Generation::adapter) else {
            return Ok(None);
        };
        let from = PathBuf::from(format!("the adapter `{}`", adapter.name()));
        Self::of_files(model, name, adapter.files(model)?, &from).map(Some)
    }

    /// A copy of the adapter of this name in the model's list, under another name.
    ///
    /// # Errors
    /// As [`FrozenAdapter::of`]; no adapter of that name.
    pub fn of_resident(model: &Model, resident: &str, name: &str) -> Result<Self> {
        check_name(name)?;
        let adapter = Registry::of(model).lock().get(resident)?.adapter;
        let from = PathBuf::from(format!("the adapter `{resident}`"));
        Self::of_files(model, name, adapter.files(model)?, &from)
    }

    /// `from` is their folder, for errors.
    fn of_files(model: &Model, name: &str, files: AdapterFiles, from: &Path) -> Result<Self> {
        let odd = |(key, tensor): (&String, &peft::StoredTensor)| -> Option<(String, f32)> {
            let value = tensor.values.iter().find(|value| !value.is_finite())?;
            Some((key.clone(), *value))
        };
        if let Some((key, value)) = files.tensors.iter().find_map(odd) {
            return Err(Error::AdapterFile {
                path: from.to_path_buf(),
                problem: format!(
                    "`{key}` holds {value}, expected finite numbers: its training has diverged. \
                     Take an earlier checkpoint"
                ),
            });
        }
        let adapter = Arc::new(adapters::from_files(model, name, files, from)?);
        let owner = Arc::new(Generation::Frozen(Arc::clone(&adapter)));
        let overlay = Arc::new(adapter.hooks().overlay(model)?.owned_by(owner));
        let fingerprint = answering(&model.with_overlay(Arc::clone(&overlay)))?;
        let registry = Arc::downgrade(&Registry::of(model));
        Ok(Self { adapter, overlay, fingerprint, registry })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.adapter.name()
    }

    /// The same adapter under another name.
    ///
    /// # Errors
    /// A name that cannot be used.
    pub fn with_name(&self, name: &str) -> Result<Self> {
        check_name(name)?;
        let adapter = Adapter { name: name.to_owned(), ..Adapter::clone(&self.adapter) };
        Ok(Self { adapter: Arc::new(adapter), ..self.clone() })
    }

    /// Whether it is for this model, and not for one that was loaded apart.
    pub fn is_of(&self, model: &Model) -> bool {
        self.registry.ptr_eq(&Arc::downgrade(&Registry::of(model)))
    }

    /// What it puts into the model.
    pub fn overlay(&self) -> Arc<Overlay> {
        Arc::clone(&self.overlay)
    }

    /// The fingerprint of everything that its answers depend on: [`answering_fingerprint`] of a handle
    /// that answers with it. The same files on the same base have the same one.
    ///
    /// [`answering_fingerprint`]: crate::answering_fingerprint
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Its configuration.
    pub fn config(&self) -> AdapterConfig {
        self.adapter.config()
    }

    /// The memory that its tensors take.
    pub fn size_bytes(&self) -> usize {
        let size =
            |tensor: &AdapterTensor| tensor.var.elem_count() * tensor.var.dtype().size_in_bytes();
        self.adapter.tensors().iter().map(size).sum()
    }

    /// What it puts into the model.
    pub(crate) fn hooks(&self) -> Hooks {
        self.adapter.hooks()
    }

    /// What was odd about its files.
    pub fn warnings(&self) -> &[String] {
        &self.adapter.warnings
    }
}

impl fmt::Debug for FrozenAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrozenAdapter({}: {}, {})", self.name(), self.config(), self.fingerprint)
    }
}

/// # Errors
/// The files name other weights and another base than this model.
fn check_base(model: &Model, folder: &Path, files: &AdapterFiles) -> Result<()> {
    if fingerprint::is_of_base(model, folder)? {
        return Ok(());
    }
    match &files.base_model_name_or_path {
        Some(base) if model_key(base) != model_key(model.name()) => Err(Error::OtherBase {
            path: folder.to_path_buf(),
            base: base.clone(),
            model: model.name().to_owned(),
        }),
        _ => Ok(()),
    }
}
