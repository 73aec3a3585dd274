//! Our side of `cargo xtask bench serve`: a server, and clients that each ask again as soon as they
//! are answered.
//!
//! `bench_serve MODEL FOLDER` serves the model with its weights as stored and four LoRAs, which it
//! writes into the folder. It answers lines of JSON:
//! `{"do": "load", "clients": 8, "adapters": 4, "secs": 10}` asks for streamed answers of
//! [`TOKENS`] tokens for so long, of the base or of adapters in turn, and tells `secs`, `tokens`,
//! and the times to the first token (`first_ms`) and from one to the next (`between_ms`);
//! `{"do": "end"}` tells the peak memory and versions.

#![allow(clippy::print_stdout)] // its answers

use std::error::Error;
use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use tunebook_models::{Device, Model, Quantization};
use tunebook_serve::{Serve as _, Server};
use tunebook_testing::sse::{self, percentile};
use tunebook_tune::{Adapters as _, Lora};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Of an answer; `tests/peers/bench_serve.py` asks for as many.
const TOKENS: usize = 64;
const ADAPTERS: usize = 4;

/// Prompts differ from their first word on, so that no side has anything to keep for the next;
/// `tests/peers/bench_serve.py` has the same.
fn prompt(number: usize) -> String {
    format!("{number} parcels are late, a customer writes, and the clerk who has to answer says:")
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{}", json!({"reason": format!("bench_serve: {error}")}));
            ExitCode::FAILURE
        }
    }
}

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Request {
    Load { clients: usize, adapters: usize, secs: f64 },
    End,
}

fn run() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [path, folder] = words.as_slice() else { return Err("needs MODEL FOLDER".into()) };
    let model = Model::load_quantized(path, Quantization::Stored, &Device::Cpu)?;
    add_adapters(&model, Path::new(folder))?;
    let server = model.serve("127.0.0.1:0")?;
    let asked = AtomicUsize::new(1);
    let mut answer = std::io::stdout();
    writeln!(answer, "{}", json!({"ready": true}))?;
    for line in std::io::stdin().lock().lines() {
        let reply = match serde_json::from_str(&line?)? {
            Request::Load { clients, adapters, secs } => {
                load(&server, &asked, clients, adapters, Duration::from_secs_f64(secs))?
            }
            Request::End => {
                let versions = json!({"tunebook": env!("CARGO_PKG_VERSION")});
                writeln!(
                    answer,
                    "{}",
                    json!({"peak_rss_mb": peak_rss_mb()?, "versions": versions})
                )?;
                break;
            }
        };
        writeln!(answer, "{reply}")?;
        answer.flush()?;
    }
    Ok(())
}

fn name(adapter: usize) -> String {
    format!("bench-{adapter}")
}

/// As PEFT has LoRA by default, but B is random, so that no adapter is without effect.
fn add_adapters(model: &Model, folder: &Path) -> Result<()> {
    for adapter in 0..ADAPTERS {
        let config = Lora {
            r: 8,
            target_modules: ["q_proj", "v_proj"].into(),
            init_lora_weights: false,
            init_seed: adapter as u64,
            ..Default::default()
        };
        model.add_adapter(&name(adapter), &config)?;
        model.save_adapter(&name(adapter), folder)?;
    }
    Ok(())
}

#[derive(Default)]
struct Seen {
    tokens: usize,
    first: Vec<Duration>,
    between: Vec<Duration>,
}

/// All clients begin at once; answers that are on their way when the time is over are broken off.
fn load(
    server: &Server,
    asked: &AtomicUsize,
    clients: usize,
    adapters: usize,
    window: Duration,
) -> Result<Value> {
    let models: Vec<String> = match adapters {
        0 => vec![server.model_name().to_owned()],
        _ => (0..adapters).map(name).collect(),
    };
    let begun = Instant::now();
    let mut all = Seen::default();
    std::thread::scope(|scope| {
        let client = |client: usize| {
            let model = &models[client % models.len()];
            scope.spawn(move || ask(server, model, asked, begun + window))
        };
        let threads: Vec<_> = (0..clients).map(client).collect();
        for thread in threads {
            let seen = thread.join().map_err(|_| "a client panicked")??;
            all.tokens += seen.tokens;
            all.first.extend(seen.first);
            all.between.extend(seen.between);
        }
        Ok::<_, Box<dyn Error + Send + Sync>>(())
    })?;
    let ms = |times: &[Duration]| {
        let at = |share| percentile(times, share).as_secs_f64() * 1e3;
        json!({"p50": at(0.5), "p99": at(0.99)})
    };
    Ok(json!({
        "secs": window.as_secs_f64(), "tokens": all.tokens,
        "first_ms": ms(&all.first), "between_ms": ms(&all.between),
    }))
}

/// One client until the end.
fn ask(server: &Server, model: &str, asked: &AtomicUsize, end: Instant) -> Result<Seen> {
    let mut seen = Seen::default();
    while Instant::now() < end {
        // With log-probabilities every token has an event, also one that has no text yet.
        let body = json!({
            "model": model, "prompt": prompt(asked.fetch_add(1, Ordering::Relaxed)),
            "max_tokens": TOKENS, "temperature": 0, "ignore_eos": true, "stream": true,
            "logprobs": 0,
        });
        let (begun, mut last) = (Instant::now(), None);
        sse::post(server.addr(), "/v1/completions", &body.to_string(), |_, now| {
            if now > end {
                return false;
            }
            seen.tokens += 1;
            match last.replace(now) {
                None => seen.first.push(now - begun),
                Some(last) => seen.between.push(now - last),
            }
            true
        })?;
    }
    Ok(seen)
}

fn peak_rss_mb() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kb = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kb = kb.and_then(|rest| rest.split_whitespace().next()).ok_or("no VmHWM")?;
    Ok(kb.parse::<f64>()? / 1024.)
}
