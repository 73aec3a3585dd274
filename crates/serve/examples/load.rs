//! Tokens a second of a server with 1, 8, 16 and 32 clients, each asking again as soon as it is answered.
//!
//! `cargo run --release -p tunebook-serve --example load -- http://127.0.0.1:8080/v1 MODEL[,MODEL..] [SECS]`
//!
//! Clients take the models in turn. Times are those of streamed tokens as they arrive: to the first one,
//! and from one to the next, at the middle and the 99th percentile.

#![allow(clippy::print_stdout, missing_docs)] // a program for the terminal

use std::error::Error;
use std::io::{BufRead as _, BufReader};
use std::time::{Duration, Instant};

use serde_json::json;

const TOKENS: usize = 64;

#[derive(Default)]
struct Seen {
    tokens: usize,
    first: Vec<Duration>,
    between: Vec<Duration>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [url, models, rest @ ..] = words.as_slice() else {
        return Err("expected URL MODEL[,MODEL..] [SECS]".into());
    };
    let models: Vec<&str> = models.split(',').collect();
    let secs = rest.first().map_or(Ok(10.0), |text| text.parse::<f64>())?;
    println!("clients  tokens/s  first p50  p99 [ms]  between p50  p99 [ms]");
    for clients in [1, 8, 16, 32] {
        let begun = Instant::now();
        let end = begun + Duration::from_secs_f64(secs);
        let mut all = Seen::default();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..clients)
                .map(|client| {
                    let model = models[client % models.len()];
                    scope.spawn(move || ask(url, model, client, end).map_err(|e| e.to_string()))
                })
                .collect();
            for thread in threads {
                let seen = thread.join().map_err(|_| "a client panicked".to_owned())??;
                all.tokens += seen.tokens;
                all.first.extend(seen.first);
                all.between.extend(seen.between);
            }
            Ok::<_, String>(())
        })?;
        let rate = all.tokens as f64 / begun.elapsed().as_secs_f64();
        let [first, between] = [all.first, all.between]
            .map(|times| format!("{:9.1} {:9.1}", at(&times, 0.5), at(&times, 0.99)));
        println!("{clients:7} {rate:9.1}  {first}    {between}");
    }
    Ok(())
}

/// Milliseconds that this share of times does not exceed.
fn at(times: &[Duration], share: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let place = (share * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(place).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

/// One client until the time is over; answers that have begun by then are read to their end.
fn ask(url: &str, model: &str, client: usize, end: Instant) -> Result<Seen, Box<dyn Error>> {
    let agent = ureq::Agent::new_with_defaults();
    let mut seen = Seen::default();
    let mut round = 0;
    while Instant::now() < end {
        let prompt = format!("Client {client} asks question {round} about its parcel, and waits:");
        let body = json!({
            "model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0,
            "ignore_eos": true, "stream": true, "logprobs": 0,
        });
        let asked = Instant::now();
        let mut response = agent.post(format!("{url}/completions")).send_json(&body)?;
        let mut last = None;
        for line in BufReader::new(response.body_mut().as_reader()).lines() {
            let line = line?;
            let Some(data) = line.strip_prefix("data: ") else { continue };
            if data == "[DONE]" {
                break;
            }
            let now = Instant::now();
            match last.replace(now) {
                None => seen.first.push(now - asked),
                Some(last) => seen.between.push(now - last),
            }
            seen.tokens += 1;
        }
        round += 1;
    }
    Ok(seen)
}
