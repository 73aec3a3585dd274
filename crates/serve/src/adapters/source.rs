//! Where a served adapter comes from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tunebook_models::Model;
use tunebook_tune::{FrozenAdapter, Run};

use crate::adapters;
use crate::app::App;
use crate::error::{Error, Result};

/// An adapter to serve. It is copied: what happens to its source later does not change answers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum AdapterSource {
    /// The one that a handle on the served model answers with.
    Handle(Model),
    /// The one of this name on the served model.
    Resident(String),
    /// One that is a copy already: the name points to it, and nothing is copied.
    Frozen(FrozenAdapter),
    /// The files in this folder.
    Folder(PathBuf),
}

impl AdapterSource {
    /// A copy of the adapter under a name.
    ///
    /// # Errors
    /// None there, or one that cannot be served.
    pub(crate) fn load(self, app: &Arc<App>, name: &str) -> Result<FrozenAdapter> {
        if let Self::Frozen(adapter) = &self {
            return match adapter.is_of(&app.model) {
                true => Ok(adapter.with_name(name)?), // a copy already
                false => Err(Error::OtherModel),
            };
        }
        let (loading, name) = (Arc::clone(app), name.to_owned());
        app.loader.run(move || {
            let app = loading;
            match self {
                Self::Handle(handle) => {
                    if !handle.shares_weights_with(&app.model) {
                        return Err(Error::OtherModel);
                    }
                    FrozenAdapter::of(&handle, &name)?.ok_or(Error::NoAdapter { name })
                }
                Self::Resident(resident) => {
                    Ok(FrozenAdapter::of_resident(&app.model, &resident, &name)?)
                }
                Self::Frozen(adapter) => Ok(adapter),
                Self::Folder(folder) => adapters::read(&app.model, &name, &folder, &app.config),
            }
        })
    }
}

impl From<&Model> for AdapterSource {
    fn from(model: &Model) -> Self {
        Self::Handle(model.clone())
    }
}

impl From<&Run> for AdapterSource {
    /// The adapter that the run has trained, as it is on the model now.
    fn from(run: &Run) -> Self {
        Self::Resident(run.adapter.clone())
    }
}

impl From<&FrozenAdapter> for AdapterSource {
    fn from(adapter: &FrozenAdapter) -> Self {
        Self::Frozen(adapter.clone())
    }
}

impl From<&str> for AdapterSource {
    fn from(name: &str) -> Self {
        Self::Resident(name.to_owned())
    }
}

impl From<&Path> for AdapterSource {
    fn from(folder: &Path) -> Self {
        Self::Folder(folder.to_path_buf())
    }
}

impl From<PathBuf> for AdapterSource {
    fn from(folder: PathBuf) -> Self {
        Self::Folder(folder)
    }
}
