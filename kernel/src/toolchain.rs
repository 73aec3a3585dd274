//! The Rust toolchain that compiles the cells: evcxr's choice, made once here so that all parts
//! agree.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::layout;

/// The toolchain.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    /// `cargo`, behind rustup's proxy when there is one.
    pub(crate) cargo: PathBuf,
    /// `rustc`, behind rustup's proxy when there is one.
    pub(crate) rustc: PathBuf,
    /// The host, for which the cells are compiled.
    pub(crate) triple: String,
    /// The directory of the shared standard library.
    pub(crate) libdir: PathBuf,
    /// What `rustc -vV` says; a template made with another compiler is stale.
    pub(crate) version: String,
}

impl Toolchain {
    /// The toolchain that `dir` asks for (through a `rust-toolchain.toml`).
    pub(crate) fn of(dir: &Path) -> Result<Self> {
        let rustc = tool("rustc", dir);
        let cargo = tool("cargo", dir);
        let version = output(Command::new(&rustc).arg("-vV"))?;
        let triple = version
            .lines()
            .find_map(|line| line.strip_prefix("host: "))
            .context("rustc -vV names no host")?
            .trim()
            .to_owned();
        let libdir = output(Command::new(&rustc).args(["--print", "target-libdir"]))?.trim().into();
        Ok(Self { cargo, rustc, triple, libdir, version })
    }
}

/// The tool of the kit's toolchain, else the one that rustup would run, else the one on the PATH.
fn tool(name: &str, dir: &Path) -> PathBuf {
    if let Some(toolchain) = layout::kit_toolchain() {
        return toolchain.join("bin").join(name);
    }
    output(Command::new("rustup").args(["which", name]).current_dir(dir))
        .ok()
        .map(|path| PathBuf::from(path.trim()))
        .filter(|path| path.is_file())
        .unwrap_or_else(|| name.into())
}

fn output(command: &mut Command) -> Result<String> {
    let output =
        command.output().with_context(|| format!("cannot run {command:?}: is Rust installed?"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
