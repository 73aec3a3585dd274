//! `cargo xtask`: set-up, notebooks, tests and benchmarks of this repository. See
//! [`arguments::USAGE`].

// This is a program of the command line: what it says on the terminal is its interface.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod arguments;
mod bench;
mod bench_cells;
mod bench_data;
mod bench_generate;
mod bench_judge;
mod bench_serve;
mod bench_train;
mod dist;
mod error;
mod features;
mod gpu_kit;
mod hash;
mod lab;
mod notebook;
mod prerequisites;
mod process;
mod report;
mod setup;
mod stamp;
mod tally;
mod test;
mod test_files;
mod unused;

use std::process::ExitCode;

use arguments::Command;
use error::Result;
use setup::Setup;

fn main() -> ExitCode {
    match arguments::parse(std::env::args().skip(1)).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        // The closing line of the tests has said it and must stay the last.
        Err(error::Error::Tests { .. }) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Help => {
            println!("{}", arguments::USAGE);
            Ok(())
        }
        Command::Features { check: true } => features::check(&Setup::locate()?.root),
        Command::Features { check: false } => features::renew(&Setup::locate()?.root),
        Command::Setup => Setup::locate()?.ensure(),
        Command::Dist(dist) => dist.run(),
        Command::GpuKit(kit) => kit.run(),
        Command::Lab { browser, port, cuda } => {
            let setup = Setup::locate()?;
            let environment = ensure(&setup, cuda)?;
            lab::open(&setup, browser, port, &environment)
        }
        Command::Run { notebook, kernel, out, parameters, cuda } => {
            let setup = Setup::locate()?;
            let out = out.unwrap_or_else(|| setup.root.join("out"));
            let execution = notebook::Execution {
                notebook: &notebook,
                kernel: &kernel,
                out: &out,
                parameters: &parameters,
            };
            execution.check()?;
            let environment = ensure(&setup, cuda)?;
            execution.run_with(&setup, &environment)
        }
        Command::Test { long } => test::run(long),
        Command::Bench { which, cases, json } => {
            bench::run(&Setup::locate()?, which, &cases, json.as_deref())
        }
    }
}

/// Sets everything up; returns the variables that the kernel needs in addition to its own.
fn ensure(setup: &Setup, cuda: bool) -> Result<Vec<(&'static str, std::ffi::OsString)>> {
    if cuda {
        return Ok(setup.ensure_cuda()?.environment());
    }
    setup.ensure()?;
    Ok(Vec::new())
}
