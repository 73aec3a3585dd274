//! The `serve` bench: how fast our server answers many clients at once, compared with llama.cpp's
//! batched decoding without HTTP and with mistral.rs.
//!
//! Every side is a process that holds the same GGUF file and answers 1 to 32 clients, each of which
//! asks again as soon as it is answered: ours over HTTP (`crates/serve/examples/bench_serve.rs`), the
//! peers in their own process (`tests/peers/bench_serve.py`). Sides take turns, so that what else the
//! machine does falls on all alike; figures are medians. Tokens a second are those that came while
//! the clients asked, prompts included; llama.cpp's are those of its decoding alone.

mod case;
mod measure;

use std::path::Path;

use serde_json::{Value, json};

use case::CASES;
use measure::{Seats, without};

use crate::bench::rows::{line, write};
use crate::bench::seat::Seat;
use crate::bench::side::Side;
use crate::bench::{self, THREADS, machine, peer};
use crate::error::{Error, Result};
use crate::setup::Setup;

const PROGRAM: &str = "bench_serve";

/// Measures the cases (all of them when none is named); with `json`, writes the rows there, and the
/// versions, the machine and every answer next to them (`NAME.about.json`).
///
/// # Errors
/// An unknown case; a case of which our side failed, when the others are done.
pub(crate) fn run(setup: &Setup, cases: &[String], json: Option<&Path>) -> Result<()> {
    let chosen = bench::choose(CASES, |case| case.name, cases)?;
    let python = peer::python(setup)?;
    bench::build(setup, "tunebook-serve", PROGRAM)?;
    let mut seats = start(setup, &python)?;
    let (mut rows, mut about, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for case in chosen {
        println!("{}", case.name);
        let measured = seats.measure(case).unwrap_or_else(|error| {
            failed.push(format!("{}: {error}", case.name));
            without(case, &format!("failed: {error}"))
        });
        measured.rows.iter().for_each(|row| println!("{}", line(row)));
        rows.extend(measured.rows);
        about.push(measured.about);
        if let Some(path) = json {
            // After each case, so that a run cut short leaves what it has measured.
            write(path, &Value::Array(rows.clone()))?;
            write(&path.with_extension("about.json"), &about_all(&about, &[]))?;
        }
    }
    let ends = seats.end();
    if let Some(path) = json {
        write(&path.with_extension("about.json"), &about_all(&about, &ends))?;
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::Other(failed.join("\n"))) }
}

fn about_all(cases: &[Value], sides: &[Value]) -> Value {
    json!({"machine": machine::machine(), "threads": THREADS, "cases": cases, "sides": sides})
}

/// Ours must start, a peer may be missing.
fn start(setup: &Setup, python: &Path) -> Result<Seats> {
    println!("loading the models");
    let gguf = setup.base_model_file();
    let adapters = setup.target.join("tunebook/bench-adapters");
    std::fs::create_dir_all(&adapters).map_err(Error::io("create", &adapters))?;
    let mut command = bench::program(setup, PROGRAM);
    command.args([&gguf, &adapters]).stderr(std::process::Stdio::null());
    let ours = Seat::new("ours", Ok(Side::start("ours", &mut command)?));
    let peer = |name: &'static str, program: &str| {
        let mut command = peer::script(setup, python, "bench_serve.py", THREADS);
        command.arg(program).args([&gguf, &adapters]).arg(format!("--threads={THREADS}"));
        // mistral.rs computes with rayon, too.
        command.env("RAYON_NUM_THREADS", THREADS.to_string());
        let side = Side::start(name, &mut command).map_err(|error| error.to_string());
        if let Err(reason) = &side {
            println!("without {name}: {reason}");
        }
        Seat::new(name, side)
    };
    Ok(Seats {
        ours,
        llama_cpp: peer("llama.cpp", "llama.cpp"),
        mistralrs: peer("mistral.rs", "mistralrs"),
    })
}
