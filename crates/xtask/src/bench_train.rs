//! The `train` bench: tokens per second and peak memory of our trainer beside the Python peer's.
//!
//! Both sides are processes that answer `step` on standard input with the seconds that the step took (ours is
//! `crates/tune/examples/bench_train.rs`, the peer's `tests/peers/bench_train.py`). They take turns, so that what
//! else the machine does falls on both alike; figures are medians, memory is each process's own peak (`VmHWM`).

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::process;
use crate::setup::Setup;

/// Threads of each side.
const THREADS: usize = 2;
/// Steps before measuring: allocators, thread pools and optimizer states have then settled.
const WARM_UP: usize = 2;
/// A pause between turns: OpenMP's threads spin for a while after their last work.
const PAUSE: Duration = Duration::from_millis(300);
/// Tokens of the vocabulary, which the random ids are drawn from.
const VOCABULARY: u64 = 49152;

/// One row of the table.
struct Case {
    name: &'static str,
    rows: usize,
    length: usize,
    dtype: &'static str,
    method: &'static str,
    /// Whether the block's activations are computed again rather than kept, for us and for the peer.
    checkpointing: [bool; 2],
    steps: usize,
}

const CASES: &[Case] = &[
    Case {
        name: "lora-4x128-f32",
        rows: 4,
        length: 128,
        dtype: "f32",
        method: "lora",
        checkpointing: [false, false],
        steps: 5,
    },
    Case {
        name: "lora-1x2048-f32",
        rows: 1,
        length: 2048,
        dtype: "f32",
        method: "lora",
        checkpointing: [true, false],
        steps: 5,
    },
];

/// Measures the cases (all of them when none is named); with `json`, writes the rows there, and the versions, the
/// machine and every step's time beside it (`NAME.about.json`).
///
/// # Errors
/// An unknown case, a side that fails, or two sides that do not compute the same loss.
pub fn run(setup: &Setup, cases: &[String], json: Option<&Path>) -> Result<()> {
    let chosen = choose(cases)?;
    let Some(python) = setup.peers_python() else {
        return Err(Error::Other(format!(
            "no Python peers in {}; unset TUNEBOOK_PEERS to have them installed",
            setup.peers_folder().display()
        )));
    };
    let gguf = setup.base_model_file();
    let peer_model = peer_model(setup, &python, &gguf)?;
    println!("building our side");
    let mut build = process::cargo(&setup.root);
    process::run(
        build.args(["build", "--quiet", "--package", "tunebook-tune", "--example", "bench_train"]),
        "building the bench",
    )?;

    let mut rows = Vec::new();
    let mut about = Vec::new();
    for case in chosen {
        let measured = measure(setup, case, &python, &gguf, &peer_model)?;
        show(case, &measured);
        rows.extend(measured.rows);
        about.push(measured.about);
    }
    if let Some(path) = json {
        write(path, &Value::Array(rows))?;
        let about = json!({"machine": machine(), "threads": THREADS, "cases": about});
        write(&path.with_extension("about.json"), &about)?;
    }
    Ok(())
}

fn choose(names: &[String]) -> Result<Vec<&'static Case>> {
    if names.is_empty() {
        return Ok(CASES.iter().collect());
    }
    let find = |name: &String| {
        CASES.iter().find(|case| case.name == name).ok_or_else(|| {
            let known: Vec<_> = CASES.iter().map(|case| case.name).collect();
            Error::Usage(format!("there is no case `{name}`; there are: {}", known.join(", ")))
        })
    };
    names.iter().map(find).collect()
}

/// The model as the peer loads it, written once.
fn peer_model(setup: &Setup, python: &Path, gguf: &Path) -> Result<PathBuf> {
    let folder = setup.target.join("tunebook/peer-model");
    if !folder.exists() {
        println!("writing the model as safetensors for the peer, once");
        let mut command = process::command(python);
        command.arg(setup.root.join("tests/peers/bench_train.py")).arg("convert").args([gguf, &folder]);
        process::capture(&mut command, "converting the model")?;
    }
    Ok(folder)
}

struct Measured {
    rows: Vec<Value>,
    about: Value,
}

fn measure(setup: &Setup, case: &Case, python: &Path, gguf: &Path, peer_model: &Path) -> Result<Measured> {
    println!("{}: {} x {} tokens, {} steps each", case.name, case.rows, case.length, case.steps);
    let ids = setup.target.join("tunebook").join(format!("bench-{}x{}.json", case.rows, case.length));
    write(&ids, &batches(case))?;
    let options = |checkpointing: bool| {
        let mut options = vec![
            format!("--threads={THREADS}"),
            format!("--dtype={}", case.dtype),
            format!("--method={}", case.method),
        ];
        if checkpointing {
            options.push("--checkpointing".to_owned());
        }
        options
    };
    let our_side = |name| {
        // Started directly: `cargo run` would wait for whoever else is building.
        let mut command =
            process::command(setup.target.join(&setup.triple).join("debug/examples/bench_train"));
        command
            .args([gguf, &ids])
            .args(options(case.checkpointing[0]))
            .env("RAYON_NUM_THREADS", THREADS.to_string());
        Side::start(name, &mut command)
    };
    let mut ours = our_side("ours")?;
    // A process of its own, so that its matrices are no part of our peak memory.
    let mut ceiling_side = our_side("sgemm")?;
    let mut peer = process::command(python);
    peer.arg(setup.root.join("tests/peers/bench_train.py"))
        .arg("serve")
        .args([peer_model, &ids])
        .args(options(case.checkpointing[1]))
        .env("OMP_NUM_THREADS", THREADS.to_string())
        .env("TRANSFORMERS_VERBOSITY", "error")
        .env("PYTHONWARNINGS", "ignore")
        .stderr(Stdio::null());
    let mut peer = Side::start("peer", &mut peer)?;

    let (mut our_secs, mut peer_secs) = (Vec::new(), Vec::new());
    let mut ceiling = ceiling_side.ask("sgemm")?;
    let mut losses = Vec::new();
    for step in 0..WARM_UP + case.steps {
        let (mine, theirs) = (ours.ask("step")?, peer.ask("step")?);
        let (mine_loss, theirs_loss) = (number(&mine, "loss")?, number(&theirs, "loss")?);
        // Adapters start without effect, so the first losses must be equal; later ones drift with A's random start.
        let tolerance = if step == 0 { 1e-3 } else { 5e-2 };
        if (mine_loss - theirs_loss).abs() > tolerance * theirs_loss.abs() {
            return Err(Error::Other(format!(
                "{}, step {}: our loss is {mine_loss}, the peer's {theirs_loss}: this would compare two different things",
                case.name,
                step + 1
            )));
        }
        println!(
            "  step {:2}: ours {:.2} s (loss {mine_loss:.4}), peer {:.2} s (loss {theirs_loss:.4})",
            step + 1,
            number(&mine, "secs")?,
            number(&theirs, "secs")?
        );
        if step >= WARM_UP {
            our_secs.push(number(&mine, "secs")?);
            peer_secs.push(number(&theirs, "secs")?);
        }
        losses.push(json!([mine_loss, theirs_loss]));
        // The best of all rounds is what the machine can do when nothing else wants it.
        let again = ceiling_side.ask("sgemm")?;
        for key in ["gemm_crate", "own"] {
            if number(&again, key)? > number(&ceiling, key)? {
                ceiling[key] = again[key].clone();
            }
        }
    }
    let (ours, peer) = (ours.end()?, peer.end()?);
    drop(ceiling_side);

    let tokens = (case.rows * case.length) as f64;
    let (our_speed, peer_speed) = (tokens / median(&our_secs), tokens / median(&peer_secs));
    let (our_memory, peer_memory) = (number(&ours, "peak_rss_mb")?, number(&peer, "peak_rss_mb")?);
    let gflops = number(&ceiling, "gemm_crate")?.max(number(&ceiling, "own")?);
    let limit = gflops * 1e9 / number(&ceiling, "flops_per_token")?;
    let row = |metric: &str, ours: f64, peer: Option<f64>| {
        json!({
            "case": case.name,
            "metric": metric,
            "ours": ours,
            "peer": peer,
            "ratio": peer.map(|peer| ours / peer),
        })
    };
    let rows = vec![
        row("tokens_per_s", our_speed, Some(peer_speed)),
        row("peak_rss_mb", our_memory, Some(peer_memory)),
        // Best against best: a median step would count other programs' work as ours.
        row("of_sgemm_ceiling", tokens / least(&our_secs) / limit, None),
    ];
    let about = json!({
        "case": case.name,
        "rows": case.rows,
        "length": case.length,
        "dtype": case.dtype,
        "method": case.method,
        "activation_checkpointing": {"ours": case.checkpointing[0], "peer": case.checkpointing[1]},
        "secs": {"ours": our_secs, "peer": peer_secs},
        "losses": losses,
        "sgemm_gflops": ceiling,
        "sgemm_ceiling_tokens_per_s": limit,
        "profile_secs": ours["profile_secs"],
        "versions": {"ours": ours["versions"], "peer": peer["versions"]},
    });
    Ok(Measured { rows, about })
}

/// The same pseudo-random ids for both sides (SplitMix64): `[step][row][position]`.
fn batches(case: &Case) -> Value {
    let mut state = 42u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % VOCABULARY
    };
    let mut row = || -> Vec<u64> { (0..case.length).map(|_| next()).collect() };
    let mut batch = || -> Vec<Vec<u64>> { (0..case.rows).map(|_| row()).collect() };
    json!((0..WARM_UP + case.steps).map(|_| batch()).collect::<Vec<_>>())
}

/// A process that takes steps when asked.
struct Side {
    name: &'static str,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Side {
    /// Starts it and waits until it has loaded its model.
    fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|source| Error::Start { program, source })?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::Other("a process was started without its pipes".to_owned()));
        };
        let mut side = Self { name, child, input, output: BufReader::new(output) };
        side.answer()?;
        Ok(side)
    }

    fn ask(&mut self, what: &str) -> Result<Value> {
        std::thread::sleep(PAUSE);
        // Should the process be gone, its answer is missed below.
        let _ = writeln!(self.input, "{what}").and_then(|()| self.input.flush());
        self.answer()
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line).unwrap_or(0);
        serde_json::from_str(&line).map_err(|_| {
            Error::Other(match read {
                0 => format!("the bench's process ({}) ended early; what it wrote is above", self.name),
                _ => format!("the bench's process ({}) answered `{}`", self.name, line.trim()),
            })
        })
    }

    /// Ends it; its last words are its peak memory and versions.
    fn end(mut self) -> Result<Value> {
        let last = self.ask("end")?;
        let _ = self.child.wait();
        Ok(last)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn number(value: &Value, key: &str) -> Result<f64> {
    value[key].as_f64().ok_or_else(|| Error::Other(format!("expected a number `{key}`, found {value}")))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.,
    }
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn show(case: &Case, measured: &Measured) {
    println!("{}", case.name);
    for row in &measured.rows {
        let of = |key: &str| row[key].as_f64().map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"));
        println!(
            "  {:18} ours {:>9}   peer {:>9}   ratio {:>6}",
            row["metric"].as_str().unwrap_or_default(),
            of("ours"),
            of("peer"),
            of("ratio")
        );
    }
    let sgemm = &measured.about["sgemm_gflops"];
    println!(
        "  sgemm at the model's shapes: gemm crate {:.0} GFLOP/s, own kernel {:.0} GFLOP/s",
        sgemm["gemm_crate"].as_f64().unwrap_or_default(),
        sgemm["own"].as_f64().unwrap_or_default()
    );
    if let Some(parts) = measured.about["profile_secs"].as_object() {
        println!("  where a step's time goes:");
        for (part, secs) in parts {
            println!("    {part:24} {:.3} s", secs.as_f64().unwrap_or_default());
        }
    }
}

fn write(path: &Path, value: &Value) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    let mut text = value.to_string();
    text.push('\n');
    std::fs::write(path, text).map_err(Error::io("write", path))
}

/// The machine, for whoever reads the figures later.
fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        text.lines()
            .find(|line| line.starts_with(name))
            .and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let cpu = read("/proc/cpuinfo");
    let flags = field(&cpu, "flags");
    let sets: Vec<&str> = ["avx2", "avx512f", "avx512_bf16", "amx_tile"]
        .into_iter()
        .filter(|set| flags.split_whitespace().any(|flag| flag == *set))
        .collect();
    json!({
        "processor": field(&cpu, "model name"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "instruction_sets": sets,
        "memory": field(&read("/proc/meminfo"), "MemTotal"),
        "system": read("/proc/sys/kernel/osrelease").trim(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3., 1., 2.]), 2.);
        assert_eq!(median(&[4., 1., 2., 3.]), 2.5);
    }

    #[test]
    fn an_unknown_case_lists_those_that_exist() {
        let error = choose(&["lora".to_owned()]).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("`lora`") && error.contains("lora-4x128-f32"), "{error}");
        assert_eq!(choose(&[]).map(|cases| cases.len()).ok(), Some(CASES.len()));
    }

    #[test]
    fn batches_have_the_case_s_shape_and_do_not_change() {
        let value = batches(&CASES[0]);
        assert_eq!(value.as_array().map(Vec::len), Some(WARM_UP + CASES[0].steps));
        assert_eq!(value[0].as_array().map(Vec::len), Some(4));
        assert_eq!(value[0][0].as_array().map(Vec::len), Some(128));
        assert_eq!(value, batches(&CASES[0]));
        assert!(value[1][2][3].as_u64().is_some_and(|id| id < VOCABULARY));
    }
}
