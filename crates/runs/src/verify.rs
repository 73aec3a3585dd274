//! Whether the registry's files are those that were written.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tunebook_progress::printable;

use crate::adapters::{self, Kept};
use crate::aliases;
use crate::disk;
use crate::error::{Error, Result};
use crate::evaluations::{self, EvaluationRecord};
use crate::ids;
use crate::registry::{ROWS, RUNS, Registry};
use crate::summary::{LOG, MANIFEST, RECIPE, Summary};
use crate::touched;

/// A file that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DamagedFile {
    /// The file, from the registry's folder on.
    pub path: PathBuf,
    /// What was expected and what was found.
    pub problem: String,
}

impl fmt::Display for DamagedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display().to_string();
        write!(f, "`{}`: {}", printable(&path), printable(&self.problem))
    }
}

/// What was found so far.
struct Found {
    root: PathBuf,
    damaged: Vec<DamagedFile>,
}

impl Found {
    fn add(&mut self, path: impl Into<PathBuf>, problem: impl Into<String>) {
        self.damaged.push(DamagedFile { path: path.into(), problem: problem.into() });
    }

    /// What there is, unless it cannot be read.
    fn read<T>(&mut self, path: &Path, read: Result<T>) -> Option<T> {
        match read {
            Ok(read) => Some(read),
            Err(error) => {
                let (path, problem) = match error {
                    Error::File { path, problem } => (path, problem),
                    Error::Io { path, source, .. } => (path, source.to_string()),
                    other => (path.to_owned(), other.to_string()),
                };
                let path = path.strip_prefix(&self.root).unwrap_or(&path).to_owned();
                self.add(path, problem);
                None
            }
        }
    }

    /// The names in a folder that have an ending.
    fn names(&self, folder: &str, ending: &str) -> Result<Vec<String>> {
        let names = disk::names(&self.root.join(folder))?;
        Ok(names.iter().filter_map(|name| name.strip_suffix(ending)).map(str::to_owned).collect())
    }
}

/// See [`Registry::verify`].
pub(crate) fn verify(registry: &Registry) -> Result<Vec<DamagedFile>> {
    let root = registry.root().to_path_buf();
    let mut found = Found { root, damaged: Vec::new() };
    for id in found.names(RUNS, "")? {
        run(registry, &mut found, &id)?;
    }
    for rows in found.names(ROWS, ".txt")? {
        let path = Path::new(ROWS).join(format!("{rows}.txt"));
        let bytes = disk::read(&found.root.join(&path));
        if let Some(Some(bytes)) = found.read(&path, bytes)
            && !touched::is_whole(&rows, &bytes)
        {
            found.add(path, "holds other ids than were written: their hash is not its name");
        }
    }
    for id in found.names(adapters::FOLDER, "")? {
        let folder = adapters::folder(&found.root, &id);
        let is_other = || adapters::content(&folder).ok().is_none_or(|found| found.0 != id);
        if ids::is_adapter(&id) && folder.is_dir() && is_other() {
            let path = Path::new(adapters::FOLDER).join(&id);
            found.add(path, "holds other files than were saved: their hash is not its name");
        }
    }
    for id in found.names(adapters::FOLDER, ".jsonl")? {
        let path = Path::new(adapters::FOLDER).join(format!("{id}.jsonl"));
        let kept = Kept::read(&found.root, &id);
        match found.read(&path, kept) {
            Some(kept) if kept.damaged > 0 => {
                found.add(path, format!("{} lines cannot be read", kept.damaged));
            }
            _ => {}
        }
    }
    for id in found.names(evaluations::FOLDER, ".json")? {
        let path = Path::new(evaluations::FOLDER).join(format!("{id}.json"));
        let read = EvaluationRecord::read(&found.root, &id);
        match found.read(&path, read) {
            Some(Some((evaluation, _))) if evaluation.id != id => {
                found.add(path, "has another id than its name");
            }
            Some(None) => found.add(path, "cannot be read as an evaluation"),
            _ => {}
        }
    }
    for alias in found.names(aliases::FOLDER, ".jsonl")? {
        alias_lines(&mut found, &alias);
    }
    served(&mut found)?;
    Ok(found.damaged)
}

fn run(registry: &Registry, found: &mut Found, id: &str) -> Result<()> {
    let folder = registry.run_folder(id);
    let path = PathBuf::from(RUNS).join(id);
    let summary = Summary::read(&folder);
    if let Some(summary) = found.read(&path.join(LOG), summary) {
        if summary.damaged > 0 && !Summary::is_running(&folder) {
            found.add(path.join(LOG), format!("{} lines cannot be read", summary.damaged));
        }
        let sets = summary.begin.iter().flat_map(|begin| begin.data.iter().chain(&begin.later));
        for rows in sets.map(|data| &data.rows) {
            let file = Path::new(ROWS).join(format!("{}.txt", ids::adapter_name(rows)));
            if !found.root.join(&file).exists() {
                found.add(file, format!("is gone: it has the ids of the rows of the run {id}"));
            }
        }
    }
    let manifest = disk::read(&folder.join(MANIFEST));
    let Some(Some(manifest)) = found.read(&path.join(MANIFEST), manifest) else { return Ok(()) };
    let Ok(manifest) = serde_json::from_slice::<Value>(&manifest) else {
        found.add(path.join(MANIFEST), "cannot be read as JSON");
        return Ok(());
    };
    if manifest["files"][LOG]["sha256"].as_str().is_none() {
        found.add(path.join(MANIFEST), format!("does not say what `{LOG}` was"));
    }
    for name in [LOG, RECIPE] {
        let bytes = disk::read(&folder.join(name));
        if let Some(bytes) = found.read(&path.join(name), bytes)
            && let Some(problem) = differing(&manifest, name, &bytes.unwrap_or_default())
        {
            found.add(path.join(name), problem);
        }
    }
    Ok(())
}

/// The lines of an alias, and the files that it stands for.
fn alias_lines(found: &mut Found, alias: &str) {
    let path = Path::new(aliases::FOLDER).join(format!("{alias}.jsonl"));
    let history = aliases::history(&found.root, alias);
    let Some(history) = found.read(&path, history) else { return };
    if let Some(damage) = history.damage {
        found.add(path, damage);
        return;
    }
    let mut seen = Vec::new();
    for generation in &history.generations {
        let id = &generation.adapter;
        if !seen.contains(id) && !adapters::folder(&found.root, id).is_dir() {
            let number = generation.generation;
            let problem = format!("is gone: it is generation {number} of the alias {alias}");
            found.add(Path::new(adapters::FOLDER).join(id), problem);
        }
        seen.push(id.clone());
    }
}

/// What a server reads.
fn served(found: &mut Found) -> Result<()> {
    for alias in aliases::names(&found.root)? {
        let path = Path::new(aliases::SERVING).join(&alias);
        let unserved = aliases::unserved(&found.root, &alias);
        match unserved {
            Ok(Some(adapter)) => found.add(
                path,
                format!(
                    "does not lead to the adapter {adapter}, which the alias stands for: \
                     `rebuild` puts it right"
                ),
            ),
            // Damaged lines have been told.
            Ok(None) | Err(Error::File { .. }) => {}
            Err(error) => drop(found.read::<()>(&path, Err(error))),
        }
    }
    let folder = Path::new(aliases::SERVING).join(aliases::FILES);
    for id in disk::names(&found.root.join(&folder))? {
        let content = adapters::content(&found.root.join(&folder).join(&id));
        if content.ok().is_none_or(|content| content.0 != id) {
            let problem = "holds other files than the adapter's: a promotion makes it again";
            found.add(folder.join(&id), problem);
        }
    }
    Ok(())
}

/// A run that went on has a longer log than its last manifest.
fn differing(manifest: &Value, name: &str, found: &[u8]) -> Option<String> {
    let file = &manifest["files"][name];
    let (bytes, hash) = (file["bytes"].as_u64()? as usize, file["sha256"].as_str()?);
    match found.get(..bytes) {
        None => Some(format!("has {} bytes, expected {bytes} or more", found.len())),
        Some(part) if disk::sha256(part) != hash => {
            Some(format!("its first {bytes} bytes are not those of its manifest"))
        }
        Some(_) => None,
    }
}
