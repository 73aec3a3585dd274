//! The `train` bench: tokens per second and peak memory of our trainer and of the Python peer.
//!
//! The sides are processes that answer `step` on standard input with the seconds that the step took
//! (our side is `crates/tune/examples/bench_train.rs`, the peer's `tests/peers/bench_train.py`).
//! They take turns, so that what else the machine does falls on all alike; figures are medians,
//! memory is each process's own peak (`VmHWM`). On a GPU the sides have the card one after the
//! other ([`gpu`]). Every step is one of the trainer's default path. A case that this machine or
//! this build cannot run has a row whose ratio is null and whose `reason` says why.

pub(crate) mod card;
pub(crate) mod case;
pub(crate) mod gpu;
pub(crate) mod measure;
pub(crate) mod random_model;
mod sft;
pub(crate) mod shape;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use case::{CASES, Case, Kind};
use measure::{Measured, without};

use crate::bench::rows::write;
use crate::bench::{self, THREADS, machine, peer};
use crate::error::{Error, Result};
use crate::setup::Setup;

/// The things that all cases need.
struct Bench<'a> {
    setup: &'a Setup,
    python: PathBuf,
    gguf: PathBuf,
    /// The same model as the peer loads it.
    peer_model: PathBuf,
}

/// Measures the cases (all of them when none is named); with `json`, writes the rows there, and the
/// versions, the machine and every step's time next to them (`NAME.about.json`).
///
/// # Errors
/// An unknown case; cases that failed, when the others are done: a side ended early, or two sides
/// do not compute the same loss.
pub(crate) fn run(setup: &Setup, cases: &[String], json: Option<&Path>) -> Result<()> {
    let chosen = bench::choose(CASES, |case| case.name, cases)?;
    let python = peer::python(setup)?;
    let peer_model = peer::model(setup, &python)?;
    let gguf = setup.base_model_file();
    bench::build(setup, "tunebook-tune", "bench_train")?;
    let bench = Bench { setup, python, gguf, peer_model };
    let mut rows = Vec::new();
    let mut about = Vec::new();
    let mut failed = Vec::new();
    for case in chosen {
        let measured = bench.measure(case).unwrap_or_else(|error| {
            failed.push(format!("{}: {error}", case.name));
            without(case.name, &format!("failed: {error}"))
        });
        show(case, &measured);
        rows.extend(measured.rows);
        about.push(measured.about);
        if let Some(path) = json {
            // After each case, so that a run cut short leaves what it has measured.
            write(path, &Value::Array(rows.clone()))?;
            let about = json!({"machine": machine::machine(), "threads": THREADS, "cases": about});
            write(&path.with_extension("about.json"), &about)?;
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::Other(failed.join("\n"))) }
}

impl Bench<'_> {
    fn measure(&self, case: &Case) -> Result<Measured> {
        Ok(match &case.kind {
            Kind::Steps(what) => self.steps(case, what)?,
            Kind::Memory { lengths } => self.memory(case, lengths)?,
            Kind::Sft => self.sft(case)?,
            Kind::Gpu(what) => self.gpu(case, what)?,
        })
    }
}

fn show(case: &Case, measured: &Measured) {
    println!("{}", case.name);
    for row in &measured.rows {
        if let Some(reason) = row["reason"].as_str() {
            println!("  {reason}");
            continue;
        }
        let of =
            |key: &str| row[key].as_f64().map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"));
        println!(
            "  {:34} ours {:>9}   peer {:>9}   ratio {:>6}",
            row["metric"].as_str().unwrap_or_default(),
            of("ours"),
            of("peer"),
            of("ratio")
        );
    }
    if let Some(gflops) = measured.about["gemm_gflops"].as_f64() {
        println!("  matrix products at the model's shapes: {gflops:.0} GFLOP/s");
    }
    if let Some(parts) = measured.about["profile_secs"].as_object() {
        println!("  where a step's time goes:");
        for (part, secs) in parts {
            println!("    {part:24} {:.3} s", secs.as_f64().unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cases_stand_in_the_table_s_order() {
        let names: Vec<_> = CASES.iter().map(|case| case.name).collect();
        assert_eq!(
            names,
            [
                "lora-4x128-f32",
                "lora-1x2048-f32",
                "lora-4x128-bf16",
                "lora-1x2048-bf16",
                "banking77-sft",
                "full-4x128-f32",
                "qlora-4x128",
                "memory-512-4096",
                "h100-lora-1b",
                "h100-adapter-1b",
                "h100-full-1b",
                "h100-lora-7b"
            ]
        );
    }
}
