//! The `cells` bench: time of typical cells on our kernel and on the stock kernel with the
//! same dependencies. `tests/kernel/bench_cells.py` measures, as a Jupyter client does.

use std::path::Path;

use crate::error::{Error, Result};
use crate::process;
use crate::setup::Setup;

/// The measured cases; the first five come out of one session. `tests/kernel/bench_cells.py` has
/// the same names.
const CASES: [&str; 6] =
    ["kernel_info", "first-result-warm", "cell-median", "cell-max", "kernel-rss", "cells-1000"];

/// Runs the bench for these cases, or for all; with `json`, writes the rows there, and the
/// versions, the machine and each cell's time next to them (`NAME.about.json`).
///
/// # Errors
/// A case that is not there; when a cell fails or Python does.
pub(crate) fn run(setup: &Setup, cases: &[String], json: Option<&Path>) -> Result<()> {
    if let Some(case) = cases.iter().find(|case| !CASES.contains(&case.as_str())) {
        return Err(Error::Usage(format!(
            "`bench cells` has no case `{case}`; there are: {}",
            CASES.join(", ")
        )));
    }
    let mut command = process::command(setup.python());
    command.arg(setup.root.join("tests/kernel/bench_cells.py"));
    for case in cases {
        command.args(["--case", case]);
    }
    if let Some(json) = json {
        command.arg("--json").arg(json);
    }
    process::run(&mut command, "measuring the cells")
}
