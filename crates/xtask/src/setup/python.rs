//! A Python environment made from a requirements file, which pins every package and the hashes of
//! its files.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::hash;
use crate::process;
use crate::stamp::Stamp;

use super::crates::with_network_remedy;
use super::progress::Progress;
use super::{Setup, Step};

/// A virtual environment.
pub(crate) struct Environment {
    name: &'static str,
    what: &'static str,
    base: PathBuf,
    folder: PathBuf,
    requirements: PathBuf,
    /// A module of the last package installed: the environment may have been made anew since.
    module: &'static str,
    /// CMake's arguments for the one package of a file that is compiled.
    cmake: Option<&'static str>,
    stamp: Stamp,
}

impl Environment {
    pub(super) fn new(
        setup: &Setup,
        name: &'static str,
        folder: &Path,
        requirements: &str,
        what: &'static str,
    ) -> Self {
        let requirements = setup.root.join(requirements);
        let pins = std::fs::read(&requirements).unwrap_or_default();
        let content = hash::of_parts([
            pins.as_slice(),
            setup.base_python.as_os_str().as_encoded_bytes(),
            folder.as_os_str().as_encoded_bytes(),
        ]);
        let stamp = Stamp::new(&setup.stamps(), &name.replace(' ', "-").to_lowercase(), content);
        Self {
            name,
            what,
            base: setup.base_python.clone(),
            folder: folder.to_path_buf(),
            requirements,
            module: "pip",
            cmake: None,
            stamp,
        }
    }

    /// Also asks for this module before it is called done.
    pub(super) fn with_module(self, module: &'static str) -> Self {
        Self { module, ..self }
    }

    /// Compiles a package with these arguments of CMake.
    pub(super) fn compiled(self, cmake: &'static str) -> Self {
        Self { cmake: Some(cmake), ..self }
    }

    /// Its interpreter.
    pub(crate) fn python(&self) -> PathBuf {
        self.folder.join("bin/python")
    }

    /// Whether the interpreter starts: the Python it was made from may have gone or moved on.
    fn starts(&self) -> bool {
        self.has("pip")
    }

    fn has(&self, module: &str) -> bool {
        let import = format!("import {module}");
        self.python().exists()
            && process::capture(process::command(self.python()).args(["-c", &import]), "python")
                .is_ok()
    }
}

impl Step for Environment {
    fn name(&self) -> &'static str {
        self.name
    }

    fn what(&self) -> String {
        self.what.to_owned()
    }

    fn is_done(&self) -> bool {
        self.stamp.is_valid() && self.has(self.module)
    }

    fn secs(&self) -> f64 {
        // The peers' environments take far longer, and are no part of a first set-up.
        100.0
    }

    fn run(&self, _: &Progress) -> Result<()> {
        self.stamp.clear()?;
        if !self.requirements.is_file() {
            return Err(Error::Other(format!(
                "{} is missing from the repository",
                self.requirements.display()
            )));
        }
        // An environment that works is only brought up to date; half of one is made again.
        if !self.starts() {
            process::run(
                process::command(&self.base).args(["-m", "venv", "--clear"]).arg(&self.folder),
                "making the Python environment",
            )?;
        }
        let mut pip = process::command(self.python());
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input"]);
        // The file names every package. pip 23 looks for newer ones all the same where one is wanted
        // with an extra, and then misses their hashes.
        pip.args(["--require-hashes", "--no-deps"]);
        if let Some(arguments) = self.cmake {
            pip.env("CMAKE_ARGS", arguments);
        }
        process::run(
            pip.arg("--requirement").arg(&self.requirements),
            "installing the Python packages",
        )
        .map_err(with_network_remedy)?;
        self.stamp.set()
    }
}
