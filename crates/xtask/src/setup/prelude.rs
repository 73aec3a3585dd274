//! The prelude, compiled once for all cells.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::error::Result;
use crate::process;
use crate::stamp::Stamp;

use super::progress::{Build, Progress, Weights};
use super::{Setup, Step};

/// Warms the kernel: compiles the prelude and lays out the template that each kernel is cloned
/// from.
pub(super) struct Warm {
    binary: PathBuf,
    root: PathBuf,
    /// The compiled prelude; the tests make it, too.
    library: PathBuf,
    /// Says only that it has been warm once, for the estimates; whether it is warm the kernel finds
    /// out itself.
    stamp: Stamp,
    environment: Vec<(&'static str, OsString)>,
}

impl Warm {
    pub(super) fn new(setup: &Setup) -> Self {
        Self {
            binary: setup.kernel_binary(),
            root: setup.root.clone(),
            library: setup.target.join(&setup.triple).join("debug/libtunebook.so"),
            stamp: Stamp::new(&setup.stamps(), "warm", "once".to_owned()),
            environment: Vec::new(),
        }
    }

    /// Whether the prelude's library is there, however old.
    pub(super) fn has_compiled(&self) -> bool {
        self.library.exists()
    }

    fn compiled(&self) -> Build {
        let target = self.library.parent().map(std::path::Path::to_path_buf).unwrap_or_default();
        Build { weights: Weights::of("prelude"), target }
    }

    /// The prelude of a CUDA build.
    pub(super) fn with(self, environment: Vec<(&'static str, OsString)>) -> Self {
        Self { environment, ..self }
    }
}

impl Step for Warm {
    fn name(&self) -> &'static str {
        "prelude"
    }

    fn what(&self) -> String {
        if self.stamp.is_valid() || self.library.exists() {
            "bringing it up to date".to_owned()
        } else {
            "compiling polars, candle and our crates for the cells".to_owned()
        }
    }

    fn is_done(&self) -> bool {
        false
    }

    fn build(&self) -> Option<Build> {
        Some(self.compiled())
    }

    fn run(&self, progress: &Progress) -> Result<()> {
        let mut warm = process::command(&self.binary);
        warm.arg("warm")
            .arg("--project")
            .arg(&self.root)
            .current_dir(&self.root)
            .envs(self.environment.iter().map(|(name, value)| (*name, value)));
        progress.compile(&mut warm, &self.compiled(), "warming the kernel")?;
        self.stamp.set()
    }
}
