//! The `cells` bench: how long typical cells take on our kernel, beside the stock kernel with the same dependencies.
//! `tests/kernel/bench_cells.py` measures, as a Jupyter client does.

use std::path::Path;

use crate::error::{Error, Result};
use crate::process;
use crate::setup::Setup;

/// Runs the bench; with `json`, writes the rows there, and the versions, the machine and each cell's time beside it
/// (`NAME.about.json`).
///
/// # Errors
/// When a cell fails or Python does; also for a list of cases, as the cells are measured together.
pub fn run(setup: &Setup, cases: &[String], json: Option<&Path>) -> Result<()> {
    if let Some(case) = cases.first() {
        return Err(Error::Usage(format!(
            "`bench cells` measures all cells in one session and takes no case ({case})"
        )));
    }
    let mut command = process::command(setup.python());
    command.arg(setup.root.join("tests/kernel/bench_cells.py"));
    if let Some(json) = json {
        command.arg("--json").arg(json);
    }
    process::run(&mut command, "measuring the cells")
}
