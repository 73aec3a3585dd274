//! The Jupyter kernel: one binary, several roles. See HOW_IT_WORKS.md for the map.
//!
//! - `run FILE`: serve the Jupyter protocol for the connection file (role "server", [`server`]).
//! - `--control_file FILE`: the stock evcxr kernel, unchanged, in the same warm environment (role
//!   "stock", [`stock`]).
//! - child: where the cells run. evcxr starts its own executable again, and tells the copy so by
//!   the environment. Under our server it is [`child`], under the stock kernel evcxr's own.
//! - `cargo`, `rustc` and `rustup`, when called by these names: what evcxr finds in place of the
//!   real ones ([`shim`]).
//! - `warm`, `install`, `clean`: set-up, called by `cargo xtask`.
//! - `janitor DIR`: waits until a kernel is gone, however it went, and removes its directory.

// This is a program of the command line: what it says on the terminal is its interface.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod child;
mod cli;
mod install;
mod janitor;
mod layout;
mod server;
mod session;
mod shim;
mod stale;
mod stock;
mod toolchain;
mod tree;
mod warm;

use std::process::ExitCode;

fn main() -> ExitCode {
    // The roles that others give this executable come first. A tool that a cell calls inherits the
    // child's environment, so the name counts before the environment.
    if let Some(code) = shim::run_if_called_as_tool() {
        return code;
    }
    child::run_if_child();
    evcxr::runtime_hook();
    match cli::run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
