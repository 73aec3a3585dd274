//! The `generate` bench: how fast our models write text, beside llama.cpp, `transformers` and
//! mistral.rs.
//!
//! Every side is a process that holds the model in one form and continues prompts when asked, all
//! greedily and with the same number of tokens (ours is `crates/tune/examples/bench_generate.rs`,
//! the peers' `tests/peers/bench_generate.py`). They take turns, so that what else the machine does
//! falls on all alike; figures are medians. Decoding without the prompt is the time of 65 new
//! tokens less that of one. Beside our figures stands the speed at which reading weights, keys and
//! values alone would end a step. A peer that is not there has a row without its figure whose
//! `reason` says why.

mod case;
mod measure;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use case::{CASES, Case, OURS, PEERS};
use measure::Measured;

use crate::bench::rows::{line, write};
use crate::bench::seat::Seat;
use crate::bench::side::Side;
use crate::bench::{self, THREADS, machine, peer};
use crate::error::{Error, Result};
use crate::process;
use crate::setup::Setup;

const PROGRAM: &str = "bench_generate";

/// Measures the cases (all of them when none is named); with `json`, writes the rows there, and the
/// versions, the machine and every time beside it (`NAME.about.json`).
///
/// # Errors
/// An unknown case; cases that failed, when the others are done: our side ended early, or a side
/// did not generate as many tokens as it was asked for.
pub(crate) fn run(setup: &Setup, cases: &[String], json: Option<&Path>) -> Result<()> {
    let chosen = bench::choose(CASES, |case| case.name, cases)?;
    let python = peer::python(setup)?;
    let peer_model = peer::model(setup, &python)?;
    bench::build(setup, "tunebook-tune", PROGRAM)?;
    let prompts = setup.target.join("tunebook/bench-prompts.json");
    let gguf = setup.base_model_file();
    let mut command = bench::program(setup, PROGRAM);
    process::capture(command.arg(&gguf).arg("prompts").arg(&prompts), "writing the prompts")?;
    let files = Files { gguf, peer_model, prompts };
    let mut seats = start(setup, &python, &files, &chosen)?;

    let (mut rows, mut about, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for case in chosen {
        println!("{}", case.name);
        let measured = measure::measure(&mut seats, case).unwrap_or_else(|error| {
            failed.push(format!("{}: {error}", case.name));
            Measured::without(case, &format!("failed: {error}"))
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
    let ends: Vec<Value> = seats.into_iter().map(Seat::end).collect();
    if let Some(path) = json {
        write(&path.with_extension("about.json"), &about_all(&about, &ends))?;
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::Other(failed.join("\n"))) }
}

fn about_all(cases: &[Value], sides: &[Value]) -> Value {
    json!({"machine": machine::machine(), "threads": THREADS, "cases": cases, "sides": sides})
}

struct Files {
    gguf: PathBuf,
    /// The same model as `transformers` loads it.
    peer_model: PathBuf,
    prompts: PathBuf,
}

/// The sides that these cases need. One of ours must start, a peer may be missing.
fn start(setup: &Setup, python: &Path, files: &Files, cases: &[&Case]) -> Result<Vec<Seat>> {
    println!("loading the models");
    let mut seats = Vec::new();
    for form in OURS {
        let mut command = bench::program(setup, PROGRAM);
        command.arg(&files.gguf).arg("serve").arg(&files.prompts).arg(format!("--form={form}"));
        // Progress bars; what goes wrong is an answer.
        command.stderr(std::process::Stdio::null());
        seats.push(Seat::new(form, Ok(Side::start(form, &mut command)?)));
    }
    if !cases.iter().any(|case| case.has_peers()) {
        return Ok(seats);
    }
    for peer in PEERS {
        let mut command = peer::script(setup, python, "bench_generate.py", THREADS);
        let model = if peer.reads_gguf { &files.gguf } else { &files.peer_model };
        command.arg(peer.program).args([model, &files.prompts]);
        command.arg(format!("--threads={THREADS}")).args(peer.options);
        // mistral.rs computes with rayon, too.
        command.env("RAYON_NUM_THREADS", THREADS.to_string());
        let side = Side::start(peer.name, &mut command).map_err(|error| error.to_string());
        if let Err(reason) = &side {
            println!("without {}: {reason}", peer.name);
        }
        seats.push(Seat::new(peer.name, side));
    }
    Ok(seats)
}
