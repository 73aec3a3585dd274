//! Fills the template: everything that the cells link to, compiled once.
//!
//! Nothing is compiled a second time. The project's own build (`cargo build -p tunebook`) does the
//! work, in the project's target directory; its artefacts are then linked into the template, where
//! cargo finds them fresh because the template repeats the project's manifest, lock file, profile
//! and paths (see [`crate::layout`]).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::layout::{self, Layout, PRELUDE};
use crate::stale::{self, Stamp};
use crate::toolchain::Toolchain;
use crate::tree::{self, Mode};

/// Flags that evcxr compiles with. They are part of every artefact's name.
const RUSTFLAGS: &str = "-Cprefer-dynamic";

/// Brings the template up to date. Does nothing when it is; takes up where it stopped when it was
/// stopped.
pub(crate) fn warm(layout: &Layout) -> Result<()> {
    let toolchain = Toolchain::of(&layout.project)?;
    let lock = lock_file(layout)?;
    lock.lock().context("cannot lock the template")?;
    if stale::is_fresh(layout, &toolchain)? {
        eprintln!("The kernel is warm.");
        return Ok(());
    }
    ensure!(
        layout::kit_toolchain().is_none(),
        "this workshop kit is not as it was made: its crates or its Rust have changed. Unpack it \
         anew and run ./install.sh"
    );
    let start = Instant::now();
    eprintln!(
        "Warming the kernel up: building what the cells link to (minutes the first time) ..."
    );
    let project = Project::read(layout, &toolchain)?;
    // Taken before the build: a file that is saved during it makes the template stale again.
    let stamp = Stamp::of(layout, &toolchain, &project.crates)?;
    let _ = fs::remove_file(layout.stamp());
    tree::remove_tree(&layout.template.join(layout::RECORDS))?;

    let features = layout::features();
    let mut args = vec!["--package", PRELUDE];
    args.extend(features.iter().flat_map(|features| ["--features", features]));
    let built = build(&toolchain, &layout.project, &project.target, &args, Shown::Progress)?;
    write_workspace(layout, &project)?;
    fill(layout, &toolchain, &project, &built)?;

    let cell = layout::cell(&layout.template);
    let checked = build(&toolchain, &cell, &layout::target(&layout.template), &[], Shown::Errors)?;
    let again: Vec<&str> =
        checked.compiled.iter().map(String::as_str).filter(|name| *name != "ctx").collect();
    if !again.is_empty() {
        eprintln!("note: built again for the template: {}", again.join(", "));
    }
    remove_cell_artefacts(&layout.template, &toolchain)?;
    stamp.write(layout)?;
    eprintln!("The kernel is warm, after {:.1} s.", start.elapsed().as_secs_f64());
    Ok(())
}

/// The file that guards the template.
pub(crate) fn lock_file(layout: &Layout) -> Result<File> {
    let path = layout.lock();
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
    }
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))
}

/// What cargo knows of the project.
struct Project {
    /// The project's target directory.
    target: PathBuf,
    /// The crates that the prelude is made of, and those that their tests use, by their path in the
    /// project; its own is among them.
    crates: Vec<PathBuf>,
}

impl Project {
    fn read(layout: &Layout, toolchain: &Toolchain) -> Result<Self> {
        let output = Command::new(&toolchain.cargo)
            .args(["metadata", "--format-version=1", "--filter-platform", &toolchain.triple])
            .current_dir(&layout.project)
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run cargo metadata")?;
        ensure!(output.status.success(), "cargo metadata failed in {}", layout.project.display());
        let metadata: Value = serde_json::from_slice(&output.stdout)?;
        let target = metadata["target_directory"]
            .as_str()
            .context("cargo metadata names no target directory")?;
        let packages =
            metadata["packages"].as_array().context("cargo metadata lists no packages")?;
        let nodes =
            metadata["resolve"]["nodes"].as_array().context("cargo metadata resolves nothing")?;
        let local = |id: &str| {
            packages.iter().find(|package| package["id"] == id && package["source"].is_null())
        };
        let prelude = packages
            .iter()
            .find(|package| package["name"] == PRELUDE && package["source"].is_null())
            .and_then(|package| package["id"].as_str())
            .with_context(|| format!("the project has no crate named {PRELUDE}"))?;

        let mut crates = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut pending = vec![prelude];
        while let Some(id) = pending.pop() {
            let Some(package) = local(id) else { continue };
            if !seen.insert(id) {
                continue;
            }
            let manifest = Path::new(
                package["manifest_path"].as_str().context("a package without a manifest")?,
            );
            let dir = manifest.parent().unwrap_or(manifest);
            let inside = dir.strip_prefix(&layout.project).with_context(|| {
                format!("the prelude depends on {}, which is outside the project", dir.display())
            })?;
            crates.insert(inside.to_owned());
            let node = nodes.iter().find(|node| node["id"] == id);
            let deps = node.and_then(|node| node["deps"].as_array());
            for dep in deps.into_iter().flatten() {
                // Development dependencies are not built, but cargo reads their manifests.
                if let Some(id) = dep["pkg"].as_str() {
                    pending.push(id);
                }
            }
        }
        Ok(Self { target: target.into(), crates: crates.into_iter().collect() })
    }
}

/// What of a build is shown on the terminal.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// Cargo's own progress.
    Progress,
    /// Nothing, unless it fails.
    Errors,
}

/// What cargo reported.
#[derive(Default)]
struct Built {
    /// The hashes in the artefacts' names.
    hashes: BTreeSet<String>,
    /// The packages that were compiled rather than found fresh.
    compiled: BTreeSet<String>,
}

fn build(
    toolchain: &Toolchain,
    dir: &Path,
    target: &Path,
    args: &[&str],
    shown: Shown,
) -> Result<Built> {
    let mut command = Command::new(&toolchain.cargo);
    command
        .arg("build")
        .args(args)
        .args(["--target", &toolchain.triple])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(dir)
        .env("CARGO_TARGET_DIR", target)
        .env("CARGO_BUILD_BUILD_DIR", target)
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTFLAGS", RUSTFLAGS)
        // Set by an outer cargo when this program is run by one; build scripts would see the wrong
        // values.
        .env_remove("CARGO_MANIFEST_DIR")
        .stdout(Stdio::piped())
        .stderr(if shown == Shown::Progress { Stdio::inherit() } else { Stdio::piped() });
    let mut child = command.spawn().context("cannot run cargo build")?;
    // Read apart from standard output, or a full pipe would stop cargo.
    let errors = child.stderr.take().map(|mut stderr| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = std::io::Read::read_to_end(&mut stderr, &mut text);
            text
        })
    });
    let stdout = child.stdout.take().context("cargo has no standard output")?;
    let mut built = Built::default();
    for line in BufReader::new(stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(&line?) else { continue };
        built.note(&message);
    }
    let status = child.wait()?;
    let errors = errors.and_then(|thread| thread.join().ok()).unwrap_or_default();
    if !status.success() {
        eprint!("{}", String::from_utf8_lossy(&errors));
        bail!("cargo build failed in {} ({status})", dir.display());
    }
    Ok(built)
}

impl Built {
    fn note(&mut self, message: &Value) {
        let mut paths: Vec<&str> = Vec::new();
        match message["reason"].as_str() {
            Some("compiler-artifact") => {
                paths.extend(
                    message["filenames"].as_array().into_iter().flatten().filter_map(Value::as_str),
                );
                if message["fresh"] == false
                    && let Some(name) =
                        package_name(message["package_id"].as_str().unwrap_or_default())
                {
                    self.compiled.insert(name);
                }
            }
            Some("build-script-executed") => paths.extend(message["out_dir"].as_str()),
            _ => {}
        }
        for path in paths {
            // .../deps/libserde-0123456789abcdef.rlib, .../build/serde-0123456789abcdef/out
            for part in Path::new(path).iter().filter_map(|part| part.to_str()) {
                if let Some(hash) = hash_of(part) {
                    self.hashes.insert(hash.to_owned());
                }
            }
        }
    }
}

/// The hash in `libserde-0123456789abcdef.rlib` or `serde-0123456789abcdef`.
fn hash_of(name: &str) -> Option<&str> {
    let stem = name.split('.').next()?;
    let (_, hash) = stem.rsplit_once('-')?;
    (hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit())).then_some(hash)
}

/// The name in `registry+https://…#serde@1.0.0` or `path+file:///…/crates/data#tunebook-data@0.1.0`
/// or `path+…/ctx#1.0.0`.
fn package_name(id: &str) -> Option<String> {
    let (source, fragment) = id.rsplit_once('#')?;
    match fragment.split_once('@') {
        Some((name, _)) => Some(name.to_owned()),
        None => source
            .rsplit('/')
            .next()
            .map(|dir| if dir == "cell" { "ctx".into() } else { dir.into() }),
    }
}

/// Writes the template's manifests and copies the crates' sources.
fn write_workspace(layout: &Layout, project: &Project) -> Result<()> {
    let template = &layout.template;
    fs::create_dir_all(template)
        .with_context(|| format!("cannot create {}", template.display()))?;
    let text = fs::read_to_string(layout.project.join("Cargo.toml"))
        .context("cannot read the project's Cargo.toml")?;
    let mut manifest: toml::Table =
        text.parse().context("the project's Cargo.toml is not valid TOML")?;
    let workspace = manifest
        .get_mut("workspace")
        .and_then(toml::Value::as_table_mut)
        .context("the project's Cargo.toml has no [workspace]")?;
    let mut members: Vec<toml::Value> =
        project.crates.iter().map(|path| path.to_string_lossy().into_owned().into()).collect();
    members.push("cell".into());
    workspace.insert("members".into(), members.into());
    workspace.remove("exclude");
    workspace.remove("default-members");
    write_if_changed(&template.join("Cargo.toml"), &toml::to_string(&manifest)?)?;
    for name in ["Cargo.lock", "rust-toolchain.toml"] {
        if layout.project.join(name).is_file() {
            tree::copy_file(&layout.project.join(name), &template.join(name), Mode::Copy)?;
        }
    }

    tree::remove_tree(&template.join("crates"))?;
    for path in &project.crates {
        for file in stale::crate_files(&layout.project.join(path))? {
            let to = template.join(path).join(&file);
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent)
                    .with_context(|| format!("cannot create {}", parent.display()))?;
            }
            tree::copy_file(&layout.project.join(path).join(&file), &to, Mode::Copy)?;
        }
    }

    let cell = layout::cell(template);
    fs::create_dir_all(cell.join("src"))
        .with_context(|| format!("cannot create {}", cell.display()))?;
    write_if_changed(&cell.join("Cargo.toml"), &layout::cell_manifest(template))?;
    // As good as any cell: it makes cargo and the linker look at everything once.
    write_if_changed(
        &cell.join("src/lib.rs"),
        "#![allow(unused_imports)]\nuse tunebook::prelude::*;\n",
    )
}

fn write_if_changed(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Links the artefacts of the project's build into the template, and drops those that are no longer
/// part of it.
fn fill(layout: &Layout, toolchain: &Toolchain, project: &Project, built: &Built) -> Result<()> {
    let target = layout::target(&layout.template);
    fs::create_dir_all(&target).with_context(|| format!("cannot create {}", target.display()))?;
    for side in [Path::new(&toolchain.triple).join("debug"), PathBuf::from("debug")] {
        let (from, to) = (project.target.join(&side), target.join(&side));
        for folder in ["deps", ".fingerprint", "build"] {
            let (from, to) = (from.join(folder), to.join(folder));
            tree::remove_tree(&to)?;
            if !from.is_dir() {
                continue;
            }
            fs::create_dir_all(&to).with_context(|| format!("cannot create {}", to.display()))?;
            for entry in
                fs::read_dir(&from).with_context(|| format!("cannot read {}", from.display()))?
            {
                let entry = entry?;
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if !is_wanted(&name, folder, &entry.path(), built) {
                    continue;
                }
                if entry.file_type()?.is_dir() {
                    tree::copy_tree(&entry.path(), &to.join(&*name), Mode::Share)?;
                } else {
                    tree::copy_file(&entry.path(), &to.join(&*name), Mode::Share)?;
                }
            }
        }
    }
    let rustc_info = project.target.join(".rustc_info.json");
    if rustc_info.is_file() {
        tree::copy_file(&rustc_info, &target.join(".rustc_info.json"), Mode::Copy)?;
    }
    Ok(())
}

/// Whether an entry of the project's target directory belongs to the prelude's build.
fn is_wanted(name: &str, folder: &str, path: &Path, built: &Built) -> bool {
    // A crate in a workspace that is a dylib has no hash in its files' names: nobody could link to
    // it by its name else. Its fingerprint has one, and cargo does not report it. Cells link to the
    // dylib, but without the rlib beside it cargo would build the prelude again.
    match folder {
        "deps" if [".so", ".rlib"].iter().any(|end| name == format!("lib{PRELUDE}{end}")) => {
            return true;
        }
        ".fingerprint"
            if name
                .strip_prefix(PRELUDE)
                .is_some_and(|rest| hash_of(rest) == rest.strip_prefix('-')) =>
        {
            return path.join(format!("lib-{PRELUDE}")).is_file();
        }
        _ => {}
    }
    hash_of(name).is_some_and(|hash| built.hashes.contains(hash))
}

/// Leaves the cell's own artefacts out of the template: each kernel makes its own.
fn remove_cell_artefacts(template: &Path, toolchain: &Toolchain) -> Result<()> {
    let debug = layout::target(template).join(&toolchain.triple).join("debug");
    for folder in ["deps", ".fingerprint", "incremental", "."] {
        let Ok(entries) = fs::read_dir(debug.join(folder)) else { continue };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let of_cell = ["libctx.", "libctx-", "ctx.", "ctx-"]
                .iter()
                .any(|prefix| name.starts_with(prefix));
            if of_cell && entry.file_type()?.is_dir() {
                tree::remove_tree(&entry.path())?;
            } else if of_cell {
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_read_off_artefact_names() {
        assert_eq!(hash_of("libserde-0123456789abcdef.rlib"), Some("0123456789abcdef"));
        assert_eq!(hash_of("serde-json-0123456789abcdef"), Some("0123456789abcdef"));
        assert_eq!(hash_of("libtunebook.so"), None);
        assert_eq!(hash_of("build-script-build"), None);
    }

    #[test]
    fn packages_are_named_by_their_id() {
        let registry = "registry+https://github.com/rust-lang/crates.io-index#serde@1.0.229";
        assert_eq!(package_name(registry).as_deref(), Some("serde"));
        let renamed = "path+file:///p/crates/data#tunebook-data@0.1.0";
        assert_eq!(package_name(renamed).as_deref(), Some("tunebook-data"));
        assert_eq!(package_name("path+file:///p/cell#ctx@1.0.0").as_deref(), Some("ctx"));
    }
}
