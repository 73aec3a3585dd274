//! The sources of all Rust dependencies, fetched before anything is compiled.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::hash;
use crate::process;
use crate::stamp::Stamp;

use super::progress::Progress;
use super::{Setup, Step};

/// Fetches what `Cargo.lock` names.
pub(super) struct Fetch {
    root: PathBuf,
    triple: String,
    stamp: Stamp,
}

impl Fetch {
    pub(super) fn new(setup: &Setup) -> Self {
        let lock = std::fs::read(setup.root.join("Cargo.lock")).unwrap_or_default();
        let stamp = Stamp::new(
            &setup.stamps(),
            "crates",
            hash::of_parts([lock.as_slice(), setup.triple.as_bytes()]),
        );
        Self { root: setup.root.clone(), triple: setup.triple.clone(), stamp }
    }

    fn fetch(&self) -> std::process::Command {
        let mut command = process::cargo(&self.root);
        command.args(["fetch", "--locked", "--target", &self.triple]);
        command
    }
}

impl Step for Fetch {
    fn name(&self) -> &'static str {
        "Rust dependencies"
    }

    fn what(&self) -> String {
        "fetching the sources that Cargo.lock names (about a minute)".to_owned()
    }

    fn is_done(&self) -> bool {
        self.stamp.is_valid()
    }

    fn secs(&self) -> f64 {
        60.0
    }

    fn run(&self, _: &Progress) -> Result<()> {
        self.stamp.clear()?;
        // Crates that are there already need no network.
        if process::capture(self.fetch().arg("--offline"), "cargo fetch").is_err() {
            process::run(&mut self.fetch(), "fetching the Rust dependencies")
                .map_err(with_network_remedy)?;
        }
        self.stamp.set()
    }
}

/// Says what to do when a download failed.
pub(super) fn with_network_remedy(error: Error) -> Error {
    match error {
        Error::Failed { what, status, .. } => Error::Failed {
            what,
            status,
            remedy: Some(
                "This step needs the network: check the connection (behind a proxy, set HTTPS_PROXY), then run the \
                 same command again; what has been fetched is kept."
                    .to_owned(),
            ),
        },
        other => other,
    }
}
