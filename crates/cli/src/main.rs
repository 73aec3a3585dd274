//! The program `tunebook`: what is done without a notebook.
//!
//! Standard output has what was asked for, standard error everything else. Exit code 1: it failed,
//! and said why; 2: the arguments are wrong; 130: a training was stopped on request.

// First: its `println!` and `eprintln!` are those of all modules.
#[macro_use]
mod terminal;

mod cluster;
mod export;
mod push;
mod recipe;
mod registry;
mod serve;
mod train;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Fine-tuned language models outside of a notebook.
#[derive(Debug, Parser)]
#[command(name = "tunebook", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train what a recipe says.
    Train(train::Arguments),
    /// Serve a model and its adapters over OpenAI's HTTP interface.
    Serve(Box<serve::Arguments>),
    /// Write a notebook as a crate, or a recipe for another engine.
    Export(Box<export::Arguments>),
    /// Tell what a recipe takes on named cards: tokens, steps, hours, memory.
    Plan(cluster::PlanArguments),
    /// Bring the run of another engine back into a registry.
    ImportRun(cluster::ImportArguments),
    /// Upload an adapter or a model to the Hugging Face hub, with a card.
    Push(Box<push::Arguments>),
    /// Look at a registry of runs, and keep it in order.
    Registry(registry::Arguments),
}

fn main() -> ExitCode {
    let done = run(Arguments::parse().command);
    match done.and_then(|code| terminal::finish().map(|()| code)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        Command::Train(arguments) => return train::run(&arguments),
        Command::Serve(arguments) => serve::run(&arguments)?,
        Command::Export(arguments) => export::run(&arguments)?,
        Command::Plan(arguments) => cluster::plan(&arguments)?,
        Command::ImportRun(arguments) => cluster::import(&arguments)?,
        Command::Push(arguments) => push::run(&arguments)?,
        Command::Registry(arguments) => registry::run(&arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_hold_together() {
        Arguments::command().debug_assert();
    }
}
