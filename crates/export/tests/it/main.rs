//! Notebooks in, crates out; recipes in, the files of other engines out.

#![allow(clippy::panic, clippy::unwrap_used, missing_docs)] // the helpers of tests are tests

mod awkward;
mod cluster;
mod course;
mod refused;
mod run;
mod written;

use serde_json::{Value, json};
use tunebook_export::{Checkout, Error, Exported, Options, export};

/// A notebook of these cells; `md:` begins a text, `tag NAME:` a cell with this tag.
fn notebook(cells: &[&str]) -> String {
    let cell = |source: &&str| -> Value {
        let (mut source, mut tags) = (*source, Vec::new());
        if let Some(text) = source.strip_prefix("md:") {
            return json!({"cell_type": "markdown", "metadata": {}, "source": text});
        }
        while let Some((tag, rest)) = source.strip_prefix("tag ").and_then(|s| s.split_once(": ")) {
            tags.push(tag);
            source = rest;
        }
        json!({
            "cell_type": "code", "execution_count": null, "outputs": [],
            "metadata": {"tags": tags},
            // As Jupyter writes them: a list of lines.
            "source": source.split_inclusive('\n').collect::<Vec<_>>(),
        })
    };
    let cells: Vec<Value> = cells.iter().map(cell).collect();
    json!({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).to_string()
}

fn options() -> Options {
    Options {
        notebook: "a test.ipynb".into(),
        with_exercises: false,
        checkout: Checkout {
            crates: "../crates".into(),
            manifest: "[workspace]\nmembers = [\"crates/*\"]\nresolver = \"3\"\n\
                       [workspace.package]\nedition = \"2024\"\n[workspace.lints.clippy]\nall = \"warn\"\n\
                       [workspace.dependencies]\ntunebook = { path = \"crates/prelude\" }\n\
                       clap = { version = \"4.6\", default-features = false, features = [\"derive\"] }\n\
                       tokio = { version = \"1\", features = [\"time\"] }\n\
                       [profile.dev]\nopt-level = 2\nrpath = true\n[profile.dev.package]\n\
                       polars-lazy = { opt-level = 1 }\nclap_builder = { opt-level = 1 }\n"
                .into(),
            lock: "[[package]]\nname = \"tunebook\"\ndependencies = [\"polars 0.55.0\"]\n\
                   [[package]]\nname = \"polars\"\ndependencies = [\"polars-lazy\"]\n\
                   [[package]]\nname = \"polars-lazy\"\n\
                   [[package]]\nname = \"clap\"\ndependencies = [\"clap_builder\"]\n"
                .into(),
            config: "[alias]\nx = \"run\"\n[build]\nrustflags = [\"-Cprefer-dynamic\"]\n".into(),
            target_dir: Some("/target".into()),
        },
    }
}

fn exported(cells: &[&str]) -> Exported {
    export(&notebook(cells), &options()).unwrap_or_else(|error| panic!("{cells:?}: {error}"))
}

/// The program, and the statements of its cells without what is always there.
fn program(cells: &[&str]) -> String {
    let files = exported(cells).files;
    let main = &files["src/main.rs"];
    if let Err(error) = syn::parse_file(main) {
        panic!("{error}\n{main}");
    }
    syn::parse_file(&files["src/exported_notebook.rs"]).unwrap();
    main.clone()
}

fn refusals(cells: &[&str]) -> Vec<String> {
    match export(&notebook(cells), &options()) {
        Err(Error::Refused { refusals, .. }) => refusals.iter().map(ToString::to_string).collect(),
        Err(other) => panic!("{other}"),
        Ok(exported) => panic!("{cells:?}: exported\n{}", exported.files["src/main.rs"]),
    }
}
