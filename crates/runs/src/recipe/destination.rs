//! The folder that gets what a recipe trains. It is made, tried and locked before the first step, so
//! that no training ends at a place that cannot hold it, and what another recipe has trained stays.

use std::fs::{self, File, TryLockError};
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};
use tunebook_disk::WholeFile;
use tunebook_models::{Model, check_save_folder};
use tunebook_tune::{RunRecord, StopReason, Strategy, peft};

use super::Recipe;
use crate::disk;
use crate::error::{Error, Result};

/// The file of an adapter's folder that says what it was trained with, and here by which recipe.
const FILE: &str = "tunebook.json";
const RECIPE: &str = "recipe";
const STOPPED: &str = "stopped_after_step";
/// By which a folder is known to hold an adapter, or a model.
const MODEL_CONFIG: &str = "config.json";
/// The tensors of AdapterHub's adapters.
const BOTTLENECK_TENSORS: &str = "adapter.safetensors";

/// A folder that is ready for what is trained, until it is dropped.
#[derive(Debug)]
pub(super) struct Destination {
    folder: PathBuf,
    /// The recipe's fingerprint.
    recipe: String,
    /// No other training writes here; `None` where the file system has no locks.
    _lock: Option<File>,
}

impl Destination {
    /// Makes the folder of a recipe in `out`, and sees to it that what is trained can be written there.
    ///
    /// # Errors
    /// The folder cannot be made or written to; another training is going on for it; it holds
    /// something that is not to be replaced: what another recipe has trained (unless `overwrite`), or a
    /// model that this program did not write.
    pub(super) fn take(recipe: &Recipe, out: &Path, overwrite: bool) -> Result<Self> {
        let (folder, what, config) = match &recipe.strategy.config {
            Strategy::Adapter(_) => {
                let name = &recipe.strategy.adapter_name;
                check_name(name)?;
                (peft::folder(out, name), "adapter", peft::CONFIG_FILE)
            }
            Strategy::Full(_) => (out.to_path_buf(), "model", MODEL_CONFIG),
        };
        disk::create_dir(&folder)?;
        let refuse = |problem: String| Err(Error::File { path: folder.clone(), problem });
        let Some(lock) = lock(&folder)? else {
            return refuse(format!(
                "gets the {what} of a training that is going on: wait for its end, or give this one \
                 another folder (`--out`, `RecipeArgs.out`)"
            ));
        };
        // What would be found after hours: no right to write, a folder of a file's name.
        drop(WholeFile::create(&folder.join(config)).map_err(disk::io("write into", &folder))?);
        for name in [config, peft::TENSORS_FILE, BOTTLENECK_TENSORS, FILE] {
            if folder.join(name).is_dir() {
                return refuse(format!("has a folder `{name}`, where a file is to be written"));
            }
        }
        if what == "model" {
            check_save_folder(&folder).map_err(tunebook_tune::Error::from)?;
        }
        let taken = Self { recipe: recipe.fingerprint()?, _lock: lock, folder };
        if !overwrite && taken.folder.join(config).exists() && !taken.is_of_this_recipe() {
            return Err(Error::File {
                path: taken.folder,
                problem: format!(
                    "holds the {what} of another recipe, or of none: give another folder (`--out`, \
                     `RecipeArgs.out`), or let it be replaced (`--overwrite`, `RecipeArgs.overwrite`)"
                ),
            });
        }
        Ok(taken)
    }

    /// # Errors
    /// The folder is the base's own, which is read again whenever the run goes on.
    pub(super) fn check_base(&self, model: &Model) -> Result<()> {
        let same = fs::canonicalize(model.path())
            .is_ok_and(|base| fs::canonicalize(&self.folder).is_ok_and(|here| here == base));
        if !same {
            return Ok(());
        }
        let problem = "is the base model's own folder, which stays as it is: give another folder \
                       (`--out`, `RecipeArgs.out`)";
        Err(Error::File { path: self.folder.clone(), problem: problem.to_owned() })
    }

    /// Where the result of a run goes that is to be written to `out`: what a run was stopped at takes
    /// the place of no whole one, and goes into a folder beside it.
    pub(super) fn of(&self, run: &RunRecord, out: &Path) -> PathBuf {
        let whole = [peft::CONFIG_FILE, MODEL_CONFIG].map(|name| self.folder.join(name).exists());
        let is_whole = whole.contains(&true) && !facts(&self.folder).contains_key(STOPPED);
        match stopped(run) {
            true if is_whole => {
                // A path such as `.` has no last part to which something could be added.
                let out = std::path::absolute(out).unwrap_or_else(|_| out.to_path_buf());
                let name = out.file_name().unwrap_or_default().to_string_lossy().into_owned();
                out.with_file_name(name + "-stopped")
            }
            _ => out.to_path_buf(),
        }
    }

    /// Notes in the folder with the result which recipe has filled it, and whether its run was stopped.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn mark(&self, folder: &Path, run: &RunRecord) -> Result<()> {
        let mut facts = facts(folder);
        facts.insert(RECIPE.to_owned(), Value::String(self.recipe.clone()));
        facts.remove(STOPPED);
        if stopped(run) {
            facts.insert(STOPPED.to_owned(), run.steps.len().into());
        }
        let text = serde_json::to_string_pretty(&facts)? + "\n";
        disk::write_whole(&folder.join(FILE), text.as_bytes())
    }

    fn is_of_this_recipe(&self) -> bool {
        facts(&self.folder).get(RECIPE).and_then(Value::as_str) == Some(self.recipe.as_str())
    }
}

fn stopped(run: &RunRecord) -> bool {
    run.stopped == Some(StopReason::Interrupted)
}

/// What a folder's own file says.
fn facts(folder: &Path) -> Map<String, Value> {
    let bytes = fs::read(folder.join(FILE)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// # Errors
/// A name that leads out of the folder. What else cannot be in a name is found when the adapter is made.
fn check_name(name: &str) -> Result<()> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(part)), None) if part == name => Ok(()),
        _ => Err(Error::Name {
            what: "adapter",
            name: name.to_owned(),
            problem: "is no name of a folder",
        }),
    }
}

/// Locks a folder. `None`: somebody else has the lock; `Some(None)`: there are no locks here.
fn lock(folder: &Path) -> Result<Option<Option<File>>> {
    let opened = File::open(folder).map_err(disk::io("read", folder))?;
    Ok(match opened.try_lock() {
        Ok(()) => Some(Some(opened)),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(_)) => Some(None),
    })
}
