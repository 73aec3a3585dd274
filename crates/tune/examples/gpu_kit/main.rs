//! The program of the GPU kit (`cargo xtask gpu-kit`): what has to be proven on a machine with a
//! GPU, part by part.
//!
//! - `gpu_kit card` tells the card, or why there is none;
//! - `gpu_kit operations|kernels|trainer|generate KIT` writes one line of JSON for each finding
//!   (`report.rs`), as soon as it has it;
//! - `gpu_kit plan` lists the comparisons of kernels that a whole part has;
//! - `gpu_kit bench-train …` is `bench_train` (`examples/bench_train.rs`).
//!
//! `--device=cuda` (the default) or `cpu`; `--tiny` takes sizes that a CPU does in seconds. On the
//! CPU the composed forms run (`TUNEBOOK_OPS=composed`), so that the parts themselves are tried out
//! without a GPU.

#![allow(clippy::print_stdout, clippy::print_stderr)]

#[allow(dead_code)] // its own `main`
#[path = "../bench_train.rs"]
mod bench_train;
mod card;
mod clock;
mod generate;
mod kernels;
mod operations;
mod report;
mod trainer;

use std::path::PathBuf;
use std::process::ExitCode;

use report::Result;
use tunebook_models::{BestDevice, Device};

/// The exit code where there is no GPU.
const NO_DEVICE: u8 = 3;

/// What the command line asks for.
struct Options {
    /// The folder of the kit, or of the repository's `tests`.
    kit: PathBuf,
    /// Models to generate with.
    models: Vec<PathBuf>,
    device: Device,
    tiny: bool,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    if command == "bench-train" {
        return told(bench_train::run(arguments));
    }
    if command == "plan" {
        println!("{}", serde_json::Value::from(kernels::plan()));
        return ExitCode::SUCCESS;
    }
    match options(arguments) {
        Ok(options) => told(run(&command, &options)),
        Err(error) => {
            println!("{}", serde_json::json!({"no_device": error.to_string()}));
            ExitCode::from(NO_DEVICE)
        }
    }
}

fn told(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpu_kit: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Reads the command line and opens the device.
///
/// # Errors
/// The device cannot be opened.
fn options(arguments: impl Iterator<Item = String>) -> Result<Options> {
    let (mut paths, mut cpu, mut tiny) = (Vec::new(), false, false);
    for argument in arguments {
        match argument.as_str() {
            "--device=cpu" => cpu = true,
            "--device=cuda" => cpu = false,
            "--tiny" => tiny = true,
            _ => paths.push(PathBuf::from(argument)),
        }
    }
    let device = if cpu { Device::Cpu } else { Device::gpu(0)? };
    let kit = if paths.is_empty() { PathBuf::from(".") } else { paths.remove(0) };
    Ok(Options { kit, models: paths, device, tiny })
}

fn run(command: &str, options: &Options) -> Result<()> {
    match command {
        "card" => card::tell(&options.device),
        "operations" => operations::run(&options.device),
        "kernels" => kernels::run(&options.device, options.tiny),
        "trainer" => trainer::run(&options.kit, &options.models, &options.device),
        "generate" => generate::run(&options.kit, &options.models, &options.device, options.tiny),
        other => Err(format!(
            "there is no part `{other}`; there are card, operations, kernels, trainer, generate, plan and bench-train"
        )
        .into()),
    }
}
