//! `tunebook export`.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use tunebook_export::{Checkout, Options};

use crate::cluster;
use crate::recipe::Overrides;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A notebook, or a recipe (YAML).
    #[arg(value_name = "FILE")]
    notebook: PathBuf,
    /// The folder to write [default: out/export/ and the file's name].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Exports the cells tagged `exercise` and `solution`, too.
    #[arg(long)]
    with_exercises: bool,
    /// The checkout of tunebook that the crate uses [default: the one around this folder or the
    /// notebook, else the one that this program was built in].
    #[arg(long, value_name = "DIR")]
    checkout: Option<PathBuf>,
    #[command(flatten)]
    cluster: cluster::ExportArguments,
    #[command(flatten)]
    overrides: Overrides,
}

/// Writes the crate or the engine's folder, and says what to do with it.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let notebook = &arguments.notebook;
    let is_notebook = notebook.extension().is_some_and(|extension| extension == "ipynb");
    if !is_notebook {
        return cluster::export(
            notebook,
            &arguments.overrides,
            arguments.out.as_deref(),
            &arguments.cluster,
        );
    }
    if arguments.cluster.to.is_some() {
        return Err("--to takes a recipe (YAML): a notebook becomes a crate".into());
    }
    if let Some(value) = arguments.overrides.first() {
        return Err(format!(
            "`{value}` is for a recipe (YAML); the parameters of a notebook are set where it runs: \
             `cargo xtask run NOTEBOOK -p epochs=5`"
        )
        .into());
    }
    let text =
        fs::read_to_string(notebook).map_err(|error| format!("{}: {error}", notebook.display()))?;
    let name = notebook.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let stem = name.strip_suffix(".ipynb").unwrap_or(&name);
    let out = match &arguments.out {
        Some(out) => out.clone(),
        None if ["", ".", ".."].contains(&stem) => {
            return Err(format!("`{name}` names no folder; name one with --out").into());
        }
        None => Path::new("out/export").join(stem),
    };
    let out = std::path::absolute(&out)?;
    let checkout = match &arguments.checkout {
        Some(checkout) => std::path::absolute(checkout)?,
        None => find_checkout(notebook)?,
    };
    let options = Options {
        notebook: name.clone(),
        with_exercises: arguments.with_exercises,
        checkout: read_checkout(&checkout, &out)?,
    };
    let exported = tunebook_export::export(&text, &options)?;
    // As the checkout sees it, so that both can move.
    let (from, root) = (fs::canonicalize(notebook)?, fs::canonicalize(&checkout)?);
    let from = from.strip_prefix(&root).unwrap_or(&from).to_string_lossy().into_owned();
    tunebook_export::folder::write(&exported, &from, &out)?;
    for note in &exported.notes {
        eprintln!("note: {note}");
    }
    println!("{}", out.display());
    eprintln!(
        "Build it: cd {} && cargo build\nStart {} in the folder that the notebook's paths begin in.",
        out.display(),
        exported.package
    );
    Ok(())
}

/// The manifest of the prelude in a checkout.
const PRELUDE: &str = "crates/prelude/Cargo.toml";

fn find_checkout(notebook: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let here = std::env::current_dir()?;
    let notebook = std::path::absolute(notebook)?;
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = here.ancestors().chain(notebook.ancestors()).chain(built.ancestors());
    let found = folders.find(|folder| folder.join(PRELUDE).is_file());
    Ok(found.ok_or("there is no checkout of tunebook here; name one with --checkout")?.to_owned())
}

fn read_checkout(checkout: &Path, out: &Path) -> Result<Checkout, Box<dyn Error>> {
    let read = |name: &str| {
        let path = checkout.join(name);
        fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    // Relative where both move together.
    let crates = match out.strip_prefix(checkout) {
        Ok(inside) => {
            let up: PathBuf = inside.iter().map(|_| "..").collect();
            up.join("crates")
        }
        Err(_) => checkout.join("crates"),
    };
    Ok(Checkout {
        crates: crates.to_string_lossy().into_owned(),
        manifest: read("Cargo.toml")?,
        lock: read("Cargo.lock")?,
        config: read(".cargo/config.toml")?,
        target_dir: Some(checkout.join("target").to_string_lossy().into_owned()),
    })
}
