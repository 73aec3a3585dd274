//! The kernel's executable and its kernelspecs.
//!
//! The executable is built apart from the other crates, in `target/kernel` and without
//! `-Cprefer-dynamic`: Jupyter starts it without cargo's library path, and it shares no large
//! dependency with them. A target folder of its own also lets a kernel that rebuilds itself go on
//! while the workspace is being compiled.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::hash;
use crate::process;
use crate::stamp::Stamp;

use super::progress::{Build, Progress, Weights};
use super::{Setup, Step};

/// Builds the kernel.
pub(super) struct Kernel {
    root: PathBuf,
    target: PathBuf,
    binary: PathBuf,
}

impl Kernel {
    pub(super) fn new(setup: &Setup) -> Self {
        Self {
            root: setup.root.clone(),
            target: setup.kernel_target(),
            binary: setup.kernel_binary(),
        }
    }

    fn compiled(&self) -> Build {
        let target = self.binary.parent().unwrap_or(&self.target).to_path_buf();
        Build { weights: Weights::of("kernel"), target }
    }
}

impl Step for Kernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn what(&self) -> String {
        if self.binary.exists() {
            "bringing it up to date".to_owned()
        } else {
            "compiling it, rust-analyzer included".to_owned()
        }
    }

    /// Cargo knows best, and says so in a second.
    fn is_done(&self) -> bool {
        false
    }

    fn build(&self) -> Option<Build> {
        Some(self.compiled())
    }

    fn run(&self, progress: &Progress) -> Result<()> {
        let mut cargo = process::cargo(&self.root);
        cargo
            .args(["build", "--locked", "--package", "tunebook-kernel", "--target-dir"])
            .arg(&self.target)
            .env("RUSTFLAGS", "");
        progress.compile(&mut cargo, &self.compiled(), "building the kernel")
    }
}

/// Installs the kernelspecs into the notebooks' Python environment.
pub(super) struct Kernelspecs {
    binary: PathBuf,
    root: PathBuf,
    prefix: PathBuf,
    stamp: Stamp,
}

impl Kernelspecs {
    pub(super) fn new(setup: &Setup) -> Self {
        let binary = setup.kernel_binary();
        let prefix = setup.target.join("tunebook/python");
        // Another build may write other kernelspecs; its size and time are enough to tell it apart.
        let built = std::fs::metadata(&binary)
            .map(|m| format!("{} {:?}", m.len(), m.modified().ok()))
            .unwrap_or_default();
        let content =
            hash::of_parts([built, binary.display().to_string(), prefix.display().to_string()]);
        let stamp = Stamp::new(&setup.stamps(), "kernelspecs", content);
        Self { binary, root: setup.root.clone(), prefix, stamp }
    }
}

/// JupyterLab's settings in this environment: it asks nobody for news, and no question about it
/// lies over the notebook. (A user's own settings win.)
pub(crate) const LAB_SETTINGS: &str = r#"{
  "@jupyterlab/apputils-extension:notification": { "checkForUpdates": false, "fetchNews": "false" }
}
"#;

impl Kernelspecs {
    fn lab_settings(&self) -> PathBuf {
        self.prefix.join("share/jupyter/lab/settings/overrides.json")
    }

    fn write_lab_settings(&self) -> Result<()> {
        let path = self.lab_settings();
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        std::fs::write(&path, LAB_SETTINGS).map_err(Error::io("write", &path))
    }
}

impl Step for Kernelspecs {
    fn name(&self) -> &'static str {
        "kernelspecs"
    }

    fn what(&self) -> String {
        "telling Jupyter about the kernel".to_owned()
    }

    fn is_done(&self) -> bool {
        self.stamp.is_valid()
            && self.lab_settings().is_file()
            && ["tunebook", "tunebook-stock"].iter().all(|name| {
                self.prefix.join("share/jupyter/kernels").join(name).join("kernel.json").is_file()
            })
    }

    fn run(&self, _: &Progress) -> Result<()> {
        self.stamp.clear()?;
        process::run(
            process::command(&self.binary)
                .arg("install")
                .arg("--prefix")
                .arg(&self.prefix)
                .arg("--project")
                .arg(&self.root),
            "installing the kernelspecs",
        )?;
        self.write_lab_settings()?;
        self.stamp.set()
    }
}
