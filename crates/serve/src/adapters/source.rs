//! Where a served adapter comes from.

use std::path::{Path, PathBuf};

use tunebook_models::Model;
use tunebook_tune::Run;

/// An adapter to serve. It is copied: what happens to its source later does not change answers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum AdapterSource {
    /// The one that a handle on the served model answers with.
    Handle(Model),
    /// The one of this name on the served model.
    Resident(String),
    /// The files in this folder.
    Folder(PathBuf),
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
