//! The Python peers of the benches.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};
use crate::process;
use crate::setup::Setup;

/// The Python of the peers.
///
/// # Errors
/// When there is none: `TUNEBOOK_PEERS` names a folder without one.
pub(crate) fn python(setup: &Setup) -> Result<PathBuf> {
    setup.peers_python().ok_or_else(|| {
        Error::Other(format!(
            "no Python peers in {}; unset TUNEBOOK_PEERS to have them installed",
            setup.peers_folder().display()
        ))
    })
}

/// A script of `tests/peers`, quiet, with so many threads.
pub(crate) fn script(setup: &Setup, python: &Path, name: &str, threads: usize) -> Command {
    script_in(&setup.root.join("tests/peers"), python, name, threads)
}

/// The same from a copy of that folder.
pub(crate) fn script_in(folder: &Path, python: &Path, name: &str, threads: usize) -> Command {
    let mut command = process::command(python);
    command
        .arg(folder.join(name))
        .env("OMP_NUM_THREADS", threads.to_string())
        .env("TRANSFORMERS_VERBOSITY", "error")
        .env("PYTHONWARNINGS", "ignore")
        .stderr(Stdio::null());
    command
}

/// The base model as `transformers` loads it, written once.
///
/// # Errors
/// When the peer cannot convert it.
pub(crate) fn model(setup: &Setup, python: &Path) -> Result<PathBuf> {
    let folder = setup.target.join("tunebook/peer-model");
    if !folder.exists() {
        println!("writing the model as safetensors for the peer, once");
        let mut command = process::command(python);
        command
            .arg(setup.root.join("tests/peers/bench_train.py"))
            .arg("convert")
            .args([&setup.base_model_file(), &folder]);
        process::capture(&mut command, "converting the model")?;
    }
    Ok(folder)
}
