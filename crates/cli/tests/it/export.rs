//! `tunebook export`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;

fn export(notebook: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunebook"));
    command.current_dir(notebook.parent().unwrap());
    command.arg("export").arg(notebook).args(more).output().unwrap()
}

fn write_notebook(path: &Path, cells: &[&str]) {
    let cell = |source: &&str| json!({"cell_type": "code", "metadata": {}, "source": source});
    let cells: Vec<_> = cells.iter().map(cell).collect();
    let notebook = json!({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5});
    fs::write(path, notebook.to_string()).unwrap();
}

#[test]
fn a_notebook_becomes_a_crate_and_no_file_of_the_user_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let notebook = folder.path().join("train.ipynb");
    write_notebook(&notebook, &["use tunebook::prelude::*;", ":timing\n1 + 1"]);
    let output = export(&notebook, &[]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{told}");
    assert!(told.contains("note: cell 2: `:timing` is left out"), "{told}");
    let made = folder.path().join("out/export/train");
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), made.to_str().unwrap());
    // The checkout that this program was built in.
    assert!(made.join("crates/prelude/Cargo.toml").is_file());
    assert!(fs::read_to_string(made.join("Cargo.toml")).unwrap().contains("notebook-train"));

    fs::write(made.join("src/main.rs"), "mine").unwrap();
    let refused = export(&notebook, &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("src/main.rs was changed"));
    assert_eq!(fs::read_to_string(made.join("src/main.rs")).unwrap(), "mine");
}

#[test]
fn a_cell_that_cannot_be_exported_is_named_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let notebook = folder.path().join("train.ipynb");
    write_notebook(&notebook, &["1", "let a = 1;\nlet b = ("]);
    let output = export(&notebook, &["--out", "made"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("train.ipynb cannot be exported:\n  cell 2, line 2: "), "{told}");
    assert!(!folder.path().join("made").exists());
}
