//! What a preflight of the base model says, beside what the run then takes: within 15 %, in memory
//! and in time.
//!
//! Every run has a process of its own, so that its peak memory is the run's.

#![cfg(target_os = "linux")]

use serde::{Deserialize, Serialize};
use tunebook_tune::{Adapters, Example, Full, FullTuning, Lora, Preflight, Trainer, TrainingArgs};

use crate::common::*;

/// What the child is asked to do.
#[derive(Serialize, Deserialize)]
struct Asked {
    /// `q,v`, `all-linear` or `full`.
    trained: String,
    /// Words of a text: the shortest and the longest.
    words: (usize, usize),
    texts: usize,
    batch_size: usize,
    memory_budget: Option<u64>,
}

/// What came of it.
#[derive(Serialize, Deserialize)]
struct Found {
    flight: Preflight,
    peak_bytes: u64,
    secs: f64,
    /// What the preflight itself took.
    preflight_secs: f64,
    /// For whoever reads a failure.
    steps: String,
}

const CHILD: &str = "TUNEBOOK_TEST_PREFLIGHT";

/// Texts of very different length.
fn texts(count: usize, (least, most): (usize, usize)) -> Vec<Example> {
    let words = "my parcel has not come and the tracking page says nothing since Monday can you look into it";
    let words: Vec<&str> = words.split(' ').collect();
    let text = |i: usize| {
        let length = least + i * 11 % (most - least + 1);
        (0..length).map(|k| words[(k + i) % words.len()]).collect::<Vec<_>>().join(" ")
    };
    (0..count).map(|i| Example::new(text(i), text(3 * i + 1))).collect()
}

fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
#[ignore = "run by the tests below, in a process of its own"]
fn child() {
    let Ok(asked) = std::env::var(CHILD) else { return };
    let asked: Asked = serde_json::from_str(&asked).unwrap();
    let model = smollm();
    match asked.trained.as_str() {
        "full" => {
            model.unfreeze(&Full::default()).unwrap();
        }
        "all-linear" => {
            let lora = Lora { r: 16, target_modules: "all-linear".into(), ..Default::default() };
            model.add_adapter("a", &lora).unwrap();
        }
        _ => {
            model.add_adapter("a", Lora::default()).unwrap();
        }
    }
    let args = TrainingArgs {
        epochs: 1,
        batch_size: asked.batch_size,
        learning_rate: 1e-5,
        memory_budget: asked.memory_budget,
        ..Default::default()
    };
    let (train, validation) =
        (texts(asked.texts, asked.words), texts(asked.texts.div_ceil(8), asked.words));
    let trainer = Trainer::new(&model, &args);
    let started = std::time::Instant::now();
    // A run with a budget makes its own preflight.
    let before =
        args.memory_budget.is_none().then(|| trainer.preflight((&train, &validation)).unwrap());
    let preflight_secs = started.elapsed().as_secs_f64();
    if before.is_some() {
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
    }
    let run = trainer.train((&train, &validation)).unwrap();
    let flight = before.or(run.plan.preflight.clone()).unwrap();
    let secs =
        run.steps.iter().map(|step| step.secs).chain(run.evals.iter().map(|eval| eval.secs)).sum();
    let steps: Vec<(usize, f64)> = run.steps.iter().map(|step| (step.tokens, step.secs)).collect();
    let steps = format!(
        "tokens and seconds of the steps: {steps:.2?}, of the evaluations: {:.2?}",
        run.evals
    );
    let found = Found { flight, peak_bytes: peak_bytes(), secs, preflight_secs, steps };
    println!("found {}", serde_json::to_string(&found).unwrap());
}

fn check(asked: &Asked) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "preflight::child", "--ignored", "--nocapture"])
        .env(CHILD, serde_json::to_string(asked).unwrap())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    let found = text.lines().find_map(|line| line.split("found ").nth(1)).unwrap();
    let Found { flight, peak_bytes, secs, preflight_secs, steps } =
        serde_json::from_str(found).unwrap();
    let off = |said: f64, found: f64| 100.0 * (said / found - 1.0);
    let said_peak = flight.peak_bytes.unwrap();
    let (memory, time) = (off(said_peak as f64, peak_bytes as f64), off(flight.secs, secs));
    eprintln!(
        "{}, {} texts, {:?} words, budget {:?}: {}\n  memory {:.3} GB said, {:.3} GB found ({memory:+.1} %); time {:.1} s said, {secs:.1} s found ({time:+.1} %); the preflight took {preflight_secs:.1} s\n  {steps}",
        asked.trained,
        asked.texts,
        asked.words,
        asked.memory_budget,
        flight,
        said_peak as f64 / 1e9,
        peak_bytes as f64 / 1e9,
        flight.secs,
    );
    assert!(memory.abs() < 15.0, "memory {memory:+.1} %");
    assert!(time.abs() < 15.0, "time {time:+.1} %");
    if let Some(budget) = asked.memory_budget {
        assert!(peak_bytes <= budget, "the budget of {budget} is kept: {peak_bytes}");
        assert!(said_peak <= budget, "what is said is within the budget");
        assert!(
            flight.batch_size < asked.batch_size || flight.checkpointed_blocks > 0,
            "it had to be made to fit"
        );
    }
}

fn asked(trained: &str, words: (usize, usize), texts: usize, batch_size: usize) -> Asked {
    Asked { trained: trained.to_owned(), words, texts, batch_size, memory_budget: None }
}

const SHORT: (usize, usize) = (6, 65);
const LONG: (usize, usize) = (150, 400);

#[test]
#[ignore = "trains the base model, alone on the machine; a minute"]
fn a_preflight_is_within_15_percent_for_lora_on_short_rows() {
    check(&asked("q,v", SHORT, 64, 8));
}

#[test]
#[ignore = "trains the base model, alone on the machine; a minute"]
fn a_preflight_is_within_15_percent_for_lora_on_long_rows() {
    check(&asked("q,v", LONG, 12, 2));
}

#[test]
#[ignore = "trains the base model, alone on the machine; a minute"]
fn a_preflight_is_within_15_percent_for_all_linear_on_short_rows() {
    check(&asked("all-linear", SHORT, 64, 8));
}

#[test]
#[ignore = "trains the base model, alone on the machine; a minute"]
fn a_preflight_is_within_15_percent_for_all_linear_on_long_rows() {
    check(&asked("all-linear", LONG, 12, 2));
}

#[test]
#[ignore = "trains the base model, alone on the machine; a minute"]
fn a_preflight_is_within_15_percent_for_full_tuning_on_short_rows() {
    check(&asked("full", SHORT, 32, 8));
}

#[test]
#[ignore = "trains the base model, alone on the machine; a minute"]
fn a_preflight_is_within_15_percent_for_full_tuning_on_long_rows() {
    check(&asked("full", LONG, 8, 2));
}

#[test]
#[ignore = "trains the base model, alone on the machine; a minute"]
fn a_preflight_is_within_15_percent_and_a_budget_is_kept_on_short_rows() {
    check(&Asked { memory_budget: Some(1_300_000_000), ..asked("q,v", SHORT, 64, 8) });
}

#[test]
#[ignore = "trains the base model, alone on the machine; a minute"]
fn a_preflight_is_within_15_percent_and_a_budget_is_kept_on_long_rows() {
    check(&Asked { memory_budget: Some(1_000_000_000), ..asked("q,v", LONG, 12, 2) });
}

#[test]
#[ignore = "trains the base model, alone on the machine; a minute"]
fn a_preflight_is_within_15_percent_and_a_budget_is_kept_in_full_tuning() {
    check(&Asked { memory_budget: Some(2_600_000_000), ..asked("full", LONG, 8, 2) });
}
