//! The Jupyter kernel: one binary, several roles. See HOW_IT_WORKS.md for the map.
//!
//! - `run FILE`: serve the Jupyter protocol for the connection file (role "server").
//! - `--control_file FILE`: the stock evcxr kernel, unchanged, in the same warm environment (role "stock").
//! - child and rustc wrapper: evcxr starts its own executable again, and tells the copy by the environment what to be.
//! - `warm`, `install`, `clean`: set-up, called by `cargo xtask`.
//! - `janitor DIR`: waits until a kernel is gone, however it went, and removes its directory.

// This is a program of the command line: what it says on the terminal is its interface.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod cli;
mod install;
mod janitor;
mod layout;
mod session;
mod stale;
mod stock;
mod toolchain;
mod tree;
mod warm;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Must come first: in the roles that evcxr gives its own executable, the call does not return.
    evcxr::runtime_hook();
    match cli::run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
