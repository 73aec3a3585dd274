//! The benchmarks: our side and the peer, measured in one run.

use std::path::{Path, PathBuf};

use crate::arguments::Bench;
use crate::error::{Error, Result};
use crate::setup::Setup;
use crate::{bench_cells, bench_data, bench_train};

/// Runs one family of benchmarks after the set-up that it needs.
///
/// # Errors
/// When the set-up or a measurement fails.
pub(crate) fn run(
    setup: &Setup,
    which: Bench,
    cases: &[String],
    json: Option<&Path>,
) -> Result<()> {
    let json: Option<PathBuf> =
        json.map(|path| std::path::absolute(path).map_err(Error::io("find", path))).transpose()?;
    match which {
        Bench::Train => {
            setup.ensure_fetched()?;
            setup.ensure_peers()?;
            bench_train::run(setup, cases, json.as_deref())
        }
        Bench::Data => {
            setup.ensure_peers()?;
            bench_data::run(setup, cases, json.as_deref())
        }
        Bench::Cells => {
            setup.ensure()?;
            bench_cells::run(setup, cases, json.as_deref())
        }
    }
}
