//! What evcxr finds in place of `cargo`, `rustc` and `rustup`, in the environment of our server.
//!
//! - [`record`]: a cell is compiled by the command line that cargo gave the first one, without
//!   cargo.
//! - [`rewrite`]: evcxr's generated code prints frames of the display channel instead of control
//!   words.
//! - [`definitions`]: a variable is kept only as long as what its type is made of stays as it was.
//! - [`probe`]: the types of a cell's variables come from rustc. rust-analyzer, which evcxr loads
//!   with every crate in the graph (2 GB) in order to infer them, gets an empty graph here.
//!
//! Server and shim are the same program in two processes: variables of the environment say where
//! things are, and files in the kernel's directory say what is wanted
//! ([`crate::server::executor`] writes and reads them).

mod definitions;
mod path_deps;
mod probe;
mod record;
mod rewrite;

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use serde_json::json;

use self::record::{Kind, RECORD_VAR, compile, record};
use crate::layout::{self, PRELUDE};

/// The kernel's directory (a clone of the template).
pub(crate) const DIR_VAR: &str = "TUNEBOOK_KERNEL_DIR";
/// The real tools.
pub(crate) const CARGO_VAR: &str = "TUNEBOOK_REAL_CARGO";
pub(crate) const RUSTC_VAR: &str = "TUNEBOOK_REAL_RUSTC";

/// Files in the kernel's directory by which server and shim talk.
pub(crate) const PROBE_FILE: &str = "probe.request";
pub(crate) const TYPES_FILE: &str = "probe.types";
pub(crate) const COMPILER_FILE: &str = "compiler.pid";
/// While it is there, nothing is compiled: evcxr would try again what Stop has ended.
pub(crate) const STOP_FILE: &str = "compiler.stop";
/// Places of evcxr's generated code that were not found, one a line.
pub(crate) const MISSED_FILE: &str = "rewrite.missed";
/// What the compiler says about values that the cell does not look at: a JSON list of pairs, what
/// and the line.
pub(crate) const UNUSED_FILE: &str = "unused.values";
/// While it is there, a cell is not worth optimising.
pub(crate) const QUICK_FILE: &str = "cell.quick";

/// Acts as the tool by whose name this program was called, if it was.
pub(crate) fn run_if_called_as_tool() -> Option<ExitCode> {
    let mut args = std::env::args_os();
    let called = PathBuf::from(args.next()?);
    let args: Vec<OsString> = args.collect();
    let result = match called.file_name()?.to_str()? {
        "cargo" => cargo(&args),
        "rustc" => rustc(&args),
        "rustup" => rustup(&args),
        _ if std::env::var_os(RECORD_VAR).is_some() => record(&args),
        _ => return None,
    };
    Some(result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    }))
}

fn var(name: &str) -> Result<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).with_context(|| format!("{name} is not set"))
}

/// Becomes the real tool.
fn exec(program: &Path, args: &[OsString]) -> Result<ExitCode> {
    let error = Command::new(program).args(args).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

fn rustup(args: &[OsString]) -> Result<ExitCode> {
    if args.first().is_some_and(|arg| arg == "which") {
        let path = match args.get(1).and_then(|arg| arg.to_str()) {
            Some("cargo") => var(DIR_VAR)?.join("bin/cargo"),
            Some("rustc") => var(RUSTC_VAR)?,
            _ => bail!("unknown tool"),
        };
        println!("{}", path.display());
        return Ok(ExitCode::SUCCESS);
    }
    let own = var(DIR_VAR)?.join("bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let real = std::env::split_paths(&path)
        .filter(|dir| *dir != own)
        .map(|dir| dir.join("rustup"))
        .find(|path| path.is_file())
        .context("rustup is not installed")?;
    exec(&real, args)
}

/// Only rust-analyzer asks this one.
fn rustc(args: &[OsString]) -> Result<ExitCode> {
    if args.iter().any(|arg| arg == "sysroot") && in_cell() {
        bail!("the cells' rust-analyzer needs no standard library");
    }
    exec(&var(RUSTC_VAR)?, args)
}

/// Whether the tool is called for the cell: in its package, or (as rust-analyzer does) in the
/// workspace around it.
fn in_cell() -> bool {
    let Ok(dir) = var(DIR_VAR) else { return false };
    std::env::current_dir().is_ok_and(|cwd| cwd == dir || cwd == dir.join("cell"))
}

fn cargo(args: &[OsString]) -> Result<ExitCode> {
    let real = var(CARGO_VAR)?;
    let command = args
        .iter()
        .find(|arg| !arg.to_string_lossy().starts_with('-'))
        .and_then(|arg| arg.to_str());
    if !in_cell() {
        return exec(&real, args);
    }
    match command {
        Some("build") => compile(&real, args, Kind::Build),
        Some("check") => compile(&real, args, Kind::Check),
        // rust-analyzer names the manifest, evcxr does not.
        Some("metadata") if args.iter().any(|arg| arg == "--manifest-path") => empty_graph(),
        // evcxr asks whether a dependency can be had. The prelude can.
        Some("metadata") if is_validation_of_prelude() => {
            println!("{{}}");
            Ok(ExitCode::SUCCESS)
        }
        _ if layout::kit_toolchain().is_some() => bail!(NOT_IN_A_KIT),
        _ => exec(&real, args),
    }
}

/// The answer of a workshop kit where cargo would be asked.
const NOT_IN_A_KIT: &str = "this is a workshop kit, in which cells use `tunebook` and the standard \
    library. Other crates (`:dep`) and other settings of the compiler (`:opt`, `:offline`) need a full \
    set-up: clone the repository and run `cargo xtask lab`";

fn is_validation_of_prelude() -> bool {
    let manifest =
        var(DIR_VAR).and_then(|dir| Ok(fs::read_to_string(dir.join("cell/Cargo.toml"))?));
    manifest.is_ok_and(|text| text.contains("evcxr_dummy_validate_dep") && only_prelude(&text))
}

/// Whether a manifest depends on nothing but the prelude, which each clone of the template holds.
fn only_prelude(manifest: &str) -> bool {
    let own = format!("{PRELUDE} =");
    manifest.split("[dependencies]").nth(1).is_some_and(|dependencies| {
        dependencies.lines().map(str::trim).all(|line| {
            line.is_empty()
                || line.starts_with(&own)
                || line.starts_with("[net]")
                || line.starts_with("offline")
        })
    })
}

/// Whether a manifest depends on the prelude. (`:clear` takes it out.)
fn has_prelude(manifest: &str) -> bool {
    let own = format!("{PRELUDE} =");
    manifest.lines().any(|line| line.trim_start().starts_with(&own))
}

/// What rust-analyzer is told about the cell: a package without dependencies.
fn empty_graph() -> Result<ExitCode> {
    let cell = var(DIR_VAR)?.join("cell");
    let id = format!("path+file://{}#ctx@1.0.0", cell.display());
    let metadata = json!({
        "packages": [{
            "name": "ctx", "version": "1.0.0", "id": id, "license": null, "license_file": null, "description": null,
            "source": null, "dependencies": [], "features": {}, "manifest_path": cell.join("Cargo.toml"),
            "targets": [{
                "kind": ["cdylib"], "crate_types": ["cdylib"], "name": "ctx", "src_path": cell.join("src/lib.rs"),
                "edition": "2024", "doc": true, "doctest": false, "test": true,
            }],
            "metadata": null, "publish": null, "authors": [], "categories": [], "keywords": [], "readme": null,
            "repository": null, "homepage": null, "documentation": null, "edition": "2024", "links": null,
            "default_run": null, "rust_version": null,
        }],
        "workspace_members": [id],
        "workspace_default_members": [id],
        "resolve": {"nodes": [{"id": id, "dependencies": [], "deps": [], "features": []}], "root": id},
        "target_directory": cell.join("target"),
        "version": 1,
        "workspace_root": cell,
        "metadata": null,
    });
    println!("{metadata}");
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_tells_whether_the_prelude_is_there() {
        assert!(has_prelude("[dependencies]\ntunebook = { path = \"/x\" }\n"));
        assert!(!has_prelude("[dependencies]\nother_tunebook = \"1\"\n"));
    }
}
