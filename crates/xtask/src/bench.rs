//! The benchmarks: our side and the peer, measured in one run.

pub(crate) mod machine;
pub(crate) mod peer;
pub(crate) mod rows;
pub(crate) mod seat;
pub(crate) mod side;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::arguments::Bench;
use crate::error::{Error, Result};
use crate::process;
use crate::setup::Setup;
use crate::{bench_cells, bench_data, bench_generate, bench_judge, bench_serve, bench_train};

/// Threads of each side.
pub(crate) const THREADS: usize = 2;

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
        Bench::Generate => {
            setup.ensure_fetched()?;
            setup.ensure_peers()?;
            ensure_engines(setup);
            bench_generate::run(setup, cases, json.as_deref())
        }
        Bench::Serve => {
            setup.ensure_fetched()?;
            setup.ensure_peers()?;
            ensure_engines(setup);
            bench_serve::run(setup, cases, json.as_deref())
        }
        Bench::Data => {
            setup.ensure_peers()?;
            bench_data::run(setup, cases, json.as_deref())
        }
        Bench::Judge => {
            setup.ensure_fetched()?;
            bench_judge::run(setup, cases, json.as_deref())
        }
        Bench::Cells => {
            setup.ensure()?;
            bench_cells::run(setup, cases, json.as_deref())
        }
    }
}

/// llama.cpp and mistral.rs. One that cannot be had is missing from the rows, which say why.
fn ensure_engines(setup: &Setup) {
    for peer in [setup.ensure_llama_cpp(), setup.ensure_mistral_rs()] {
        if let Err(error) = peer {
            println!("{error}");
        }
    }
}

/// The cases of these names; all of them where there is no name.
///
/// # Errors
/// A name that no case has.
pub(crate) fn choose<C>(
    cases: &'static [C],
    name_of: impl Fn(&C) -> &'static str,
    names: &[String],
) -> Result<Vec<&'static C>> {
    if names.is_empty() {
        return Ok(cases.iter().collect());
    }
    let find = |name: &String| {
        cases.iter().find(|case| name_of(case) == name).ok_or_else(|| {
            let known: Vec<_> = cases.iter().map(&name_of).collect();
            Error::Usage(format!("there is no case `{name}`; there are: {}", known.join(", ")))
        })
    };
    names.iter().map(find).collect()
}

/// Builds our side for the CPU, an example of a package.
///
/// # Errors
/// When it does not compile.
pub(crate) fn build(setup: &Setup, package: &str, example: &str) -> Result<()> {
    println!("building our side");
    let mut build = process::cargo(&setup.root);
    process::run(
        build.args(["build", "--quiet", "--package", package, "--example", example]),
        "building the bench",
    )
}

/// The program of such an example. It is started directly: `cargo run` would wait for whoever else
/// is building.
pub(crate) fn program(setup: &Setup, example: &str) -> Command {
    let folder = setup.target.join(&setup.triple).join("debug/examples");
    let mut command = process::command(folder.join(example));
    command.env("RAYON_NUM_THREADS", THREADS.to_string());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_case_lists_those_that_exist() {
        const CASES: &[&str] = &["first", "second"];
        let chosen = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            choose(CASES, |case| case, &names)
        };
        let error = chosen(&["first", "third"]).err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("there is no case `third`; there are: first, second"));
        assert_eq!(chosen(&["second"]).ok(), Some(vec![&"second"]));
        assert_eq!(chosen(&[]).map(|cases| cases.len()).ok(), Some(2));
    }
}
