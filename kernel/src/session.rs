//! One running kernel's own clone of the template. evcxr allows one kernel per directory.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ChildStdin;

use anyhow::{Context, Result, ensure};

use crate::layout::{self, Layout};
use crate::toolchain::Toolchain;
use crate::tree::{self, Mode};
use crate::{janitor, stale, warm};

/// A clone, which goes when the kernel goes.
pub(crate) struct Session {
    dir: PathBuf,
    /// Locked while the kernel lives: how others tell a clone in use from one left behind.
    _alive: File,
    /// Open while the kernel lives: how the janitor learns of its end.
    _janitor: ChildStdin,
}

impl Session {
    /// Makes the directory, still empty, and sees to its end.
    pub(crate) fn reserve(layout: &Layout) -> Result<Self> {
        let dir = layout.kernels().join(unique_name());
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let alive_path = dir.join("alive.lock");
        let alive = File::create(&alive_path)
            .with_context(|| format!("cannot create {}", alive_path.display()))?;
        alive.lock().context("cannot lock the kernel's directory")?;
        let janitor = janitor::start(&dir)?;
        Ok(Self { dir, _alive: alive, _janitor: janitor })
    }

    /// Clones the template, after bringing it up to date if the project has changed.
    pub(crate) fn fill(&self, layout: &Layout, toolchain: &Toolchain) -> Result<()> {
        remove_stale(layout)?;
        if !stale::is_fresh(layout, toolchain)? {
            eprintln!(
                "tunebook: the crates have changed since the kernel was warmed up; building them first"
            );
            warm::warm(layout)?;
        }
        let lock = warm::lock_file(layout)?;
        lock.lock_shared().context("cannot lock the template")?;
        clone(&layout.template, &self.dir)?;
        self.write_config()
    }

    /// The clone's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of evcxr's configuration: what runs before the first cell.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("config")
    }

    /// The environment in which evcxr works in this clone.
    pub(crate) fn environment(&self, toolchain: &Toolchain) -> Vec<(&'static str, OsString)> {
        let deps = layout::target(&self.dir).join(&toolchain.triple).join("debug/deps");
        // A cell is moved one folder up after it was linked, so its own run path misses the
        // standard library.
        let mut libraries = OsString::from(&toolchain.libdir);
        libraries.push(":");
        libraries.push(&deps);
        if let Some(inherited) = std::env::var_os("LD_LIBRARY_PATH").filter(|path| !path.is_empty())
        {
            libraries.push(":");
            libraries.push(inherited);
        }
        vec![
            ("EVCXR_TMPDIR", layout::cell(&self.dir).into()),
            ("EVCXR_CONFIG_DIR", self.config().into()),
            ("LD_LIBRARY_PATH", libraries),
        ]
    }

    fn write_config(&self) -> Result<()> {
        let config = self.config();
        fs::create_dir_all(&config)
            .with_context(|| format!("cannot create {}", config.display()))?;
        fs::write(config.join("init.evcxr"), format!(":dep {}\n", layout::dependency(&self.dir)))?;
        fs::write(config.join("prelude.rs"), format!("use {}::prelude::*;\n", layout::PRELUDE))?;
        Ok(())
    }
}

/// Clones what a kernel needs: not the compiler's intermediate files, and not the stamp.
fn clone(template: &Path, dir: &Path) -> Result<()> {
    for name in ["Cargo.toml", "Cargo.lock", "rust-toolchain.toml"] {
        if template.join(name).is_file() {
            tree::copy_file(&template.join(name), &dir.join(name), Mode::Copy)?;
        }
    }
    tree::copy_tree(&template.join("crates"), &dir.join("crates"), Mode::Copy)?;
    let cell = layout::cell(dir);
    tree::copy_tree(&layout::cell(template).join("src"), &cell.join("src"), Mode::Copy)?;
    tree::copy_file(
        &layout::cell(template).join("Cargo.toml"),
        &cell.join("Cargo.toml"),
        Mode::Copy,
    )?;
    tree::copy_tree(&layout::target(template), &layout::target(dir), Mode::Share)
}

/// Removes the clones whose kernel is gone.
pub(crate) fn remove_stale(layout: &Layout) -> Result<()> {
    let Ok(entries) = fs::read_dir(layout.kernels()) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        let in_use = match File::open(path.join("alive.lock")) {
            Ok(file) => file.try_lock().is_err(),
            // Between the creation of the directory and that of its lock file there is a moment;
            // spare the young.
            Err(_) => fs::metadata(&path)
                .and_then(|metadata| metadata.modified())
                .ok()
                .and_then(|modified| modified.elapsed().ok())
                .is_none_or(|age| age.as_secs() < 60),
        };
        if !in_use {
            // Its own janitor may be at work in it.
            let _ = tree::remove_tree(&path);
        }
    }
    Ok(())
}

/// `clean`.
pub(crate) fn clean(layout: &Layout, all: bool) -> Result<()> {
    remove_stale(layout)?;
    if all {
        let in_use = fs::read_dir(layout.kernels()).map(|entries| entries.count()).unwrap_or(0);
        ensure!(in_use == 0, "{in_use} kernel(s) still run: shut them down first");
        tree::remove_tree(&layout.template)?;
    }
    Ok(())
}

fn unique_name() -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map(|elapsed| elapsed.as_nanos())
        .unwrap_or_default();
    format!("{}-{now:x}", std::process::id())
}
