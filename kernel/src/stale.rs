//! Whether the template still is what the project's sources would give.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::toolchain::Toolchain;

/// What the template was made from. Two equal stamps mean equal templates.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// The version of this program, which decides the template's form.
    kernel: String,
    /// `rustc -vV`.
    rustc: String,
    /// The crates of the project that are inside, by their path in the project.
    pub(crate) crates: Vec<PathBuf>,
    /// Path, size and modification time (in nanoseconds) of each source file.
    sources: Vec<(PathBuf, u64, i128)>,
}

impl Stamp {
    /// The stamp of the project as it is now, with these crates.
    pub(crate) fn of(layout: &Layout, toolchain: &Toolchain, crates: &[PathBuf]) -> Result<Self> {
        let mut sources = Vec::new();
        for name in ["Cargo.toml", "Cargo.lock", "rust-toolchain.toml"] {
            note(&layout.project, Path::new(name), &mut sources)?;
        }
        for path in crates {
            for file in crate_files(&layout.project.join(path))? {
                note(&layout.project, &path.join(file), &mut sources)?;
            }
        }
        Ok(Self {
            kernel: env!("CARGO_PKG_VERSION").into(),
            rustc: toolchain.version.clone(),
            crates: crates.to_vec(),
            sources,
        })
    }

    /// The stamp in the template, if there is a whole one.
    pub(crate) fn read(layout: &Layout) -> Option<Self> {
        serde_json::from_slice(&fs::read(layout.stamp()).ok()?).ok()
    }

    /// Writes the stamp into the template: the last thing that makes it whole.
    pub(crate) fn write(&self, layout: &Layout) -> Result<()> {
        let path = layout.stamp();
        let part = path.with_extension("part");
        fs::write(&part, serde_json::to_vec(self)?)
            .and_then(|()| fs::rename(&part, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Whether the template is whole and made from the project as it is now.
pub(crate) fn is_fresh(layout: &Layout, toolchain: &Toolchain) -> Result<bool> {
    match Stamp::read(layout) {
        Some(stamp) => Ok(stamp == Stamp::of(layout, toolchain, &stamp.crates)?),
        None => Ok(false),
    }
}

/// The files of a crate that a build of its library reads, relative to the crate and in order.
pub(crate) fn crate_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = vec![PathBuf::from("Cargo.toml")];
    if dir.join("build.rs").is_file() {
        files.push("build.rs".into());
    }
    let mut pending = vec![PathBuf::from("src")];
    while let Some(folder) = pending.pop() {
        let path = dir.join(&folder);
        for entry in
            fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))?
        {
            let entry = entry?;
            let name = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                pending.push(name);
            } else {
                files.push(name);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn note(project: &Path, file: &Path, sources: &mut Vec<(PathBuf, u64, i128)>) -> Result<()> {
    match fs::metadata(project.join(file)) {
        Ok(metadata) => {
            let modified =
                i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
            sources.push((file.to_owned(), metadata.len(), modified));
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("cannot read {}", project.join(file).display()))
        }
    }
}
