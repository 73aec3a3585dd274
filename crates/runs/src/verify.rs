//! Whether the registry's files are those that were written.

use std::fmt;
use std::path::PathBuf;

use serde_json::Value;

use crate::adapters;
use crate::disk;
use crate::error::Result;
use crate::registry::{RUNS, Registry};
use crate::summary::{LOG, MANIFEST, RECIPE, Summary};

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
        write!(f, "`{}`: {}", self.path.display(), self.problem)
    }
}

/// See [`Registry::verify`].
pub(crate) fn verify(registry: &Registry) -> Result<Vec<DamagedFile>> {
    let root = registry.root();
    let mut found = Vec::new();
    for id in disk::names(&root.join(RUNS))? {
        let folder = registry.run_folder(&id);
        let path = PathBuf::from(RUNS).join(&id);
        let summary = Summary::read(&folder)?;
        if summary.damaged > 0 && !Summary::is_running(&folder) {
            let problem = format!("{} lines cannot be read", summary.damaged);
            found.push(DamagedFile { path: path.join(LOG), problem });
        }
        if let Some(manifest) = disk::read(&folder.join(MANIFEST))? {
            for name in [LOG, RECIPE] {
                let bytes = disk::read(&folder.join(name))?.unwrap_or_default();
                found.extend(
                    differing(&manifest, name, &bytes)
                        .map(|problem| DamagedFile { path: path.join(name), problem }),
                );
            }
        }
    }
    for id in disk::names(&root.join(adapters::FOLDER))? {
        let folder = adapters::folder(root, &id);
        if folder.is_dir() && adapters::content(&folder).ok().is_none_or(|found| found.0 != id) {
            found.push(DamagedFile {
                path: PathBuf::from(adapters::FOLDER).join(&id),
                problem: "holds other files than were saved: their hash is not its name".to_owned(),
            });
        }
    }
    Ok(found)
}

/// A run that went on has a longer log than its last manifest.
fn differing(manifest: &[u8], name: &str, found: &[u8]) -> Option<String> {
    let manifest: Value = serde_json::from_slice(manifest).ok()?;
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
