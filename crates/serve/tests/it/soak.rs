//! Adapters of all types, swapped from disk under the load of many clients.

#![allow(clippy::print_stderr)] // what was measured

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tunebook_models::{Completion, DEFAULT_MODEL, Device, GenerationConfig, Model, Quantization};
use tunebook_serve::{Server, ServerConfig};
use tunebook_testing::sse::{self, percentile};
use tunebook_tune::{
    AdaLora, AdapterConfig, Adapters, Batch, Bottleneck, FrozenAdapter, Ia3, Lora, PrefixTuning,
    PromptTuning, Stepper, TokenizedExample, TrainingArgs,
};

use crate::support::*;

/// Questions that all follow the same words of a system, so that the prefix cache is at work.
const PROMPTS: usize = 8;
const TOKENS: usize = 24;

struct Load {
    clients: usize,
    /// Each has a part with swaps and one without.
    rounds: usize,
    with_swaps: Duration,
    without: Duration,
    between_swaps: Duration,
}

/// How long tokens were waited for, and what else was counted.
#[derive(Debug)]
struct Seen {
    answers: usize,
    swaps: usize,
    with_swaps: Vec<Duration>,
    without: Vec<Duration>,
    /// Resident memory in the middle and at the end.
    rss_mb: [f64; 2],
}

impl Seen {
    fn tell(&self) {
        let ms = |times: &[Duration], share| percentile(times, share).as_secs_f64() * 1e3;
        for (what, times) in [("with swaps", &self.with_swaps), ("without", &self.without)] {
            let (p50, p99) = (ms(times, 0.5), ms(times, 0.99));
            eprintln!("between tokens {what}: p50 {p50:.1} ms, p99 {p99:.1} ms, {}", times.len());
        }
        let Self { answers, swaps, rss_mb: [middle, end], .. } = self;
        eprintln!(
            "{answers} answers, {swaps} swaps, {middle:.1} MB halfway, {end:.1} MB at the end"
        );
    }
}

fn types() -> Vec<(&'static str, AdapterConfig)> {
    let r = 4;
    vec![
        ("lora", Lora { r, ..Default::default() }.into()),
        ("dora", Lora { r, use_dora: true, ..Default::default() }.into()),
        ("adalora", AdaLora { init_r: r, target_r: r, ..Default::default() }.into()),
        ("ia3", Ia3::default().into()),
        ("bottleneck", Bottleneck::double_seq_bn().into()),
        ("prompt", PromptTuning { num_virtual_tokens: 8, ..Default::default() }.into()),
        ("prefix", PrefixTuning { num_virtual_tokens: 8, ..Default::default() }.into()),
    ]
}

/// Two states of an adapter, as two steps of training leave them.
fn train(model: &Model, name: &str, config: AdapterConfig, dir: &Path) -> [PathBuf; 2] {
    model.add_adapter(name, config).unwrap();
    let args = TrainingArgs { learning_rate: 0.01, ..Default::default() };
    let handle = model.with_adapter(name).unwrap();
    let mut stepper = Stepper::new(&handle, &args, 2).unwrap();
    let ids: Vec<u32> = (40..60).collect();
    let labels = ids.iter().map(|id| i64::from(*id)).collect();
    let batch =
        Batch::new(&[&TokenizedExample { row: 0, ids, labels }], 0, model.device()).unwrap();
    ["first", "second"].map(|state| {
        stepper.step(std::slice::from_ref(&batch)).unwrap();
        model.save_adapter(name, dir.join(state)).unwrap()
    })
}

/// The greedy answers to all prompts.
fn answers(handle: &Model, prompts: &[String]) -> Vec<Completion> {
    let ids = |prompt: &String| handle.tokenizer().encode_with_special_tokens(prompt).unwrap();
    let ids: Vec<Vec<u32>> = prompts.iter().map(ids).collect();
    let config = GenerationConfig { max_new_tokens: TOKENS, ..Default::default() };
    handle.completions(&ids, &config).unwrap()
}

/// The answer that chunks are together, and the generation that all of them name.
fn joined(chunks: &[String]) -> (String, Value) {
    let chunks: Vec<Value> = chunks.iter().map(|c| serde_json::from_str(c).unwrap()).collect();
    let generation = chunks[0]["system_fingerprint"].as_str().unwrap();
    assert!(chunks.iter().all(|chunk| chunk["system_fingerprint"] == generation));
    let choices = || chunks.iter().map(|chunk| &chunk["choices"][0]);
    let text: String = choices().map(|choice| choice["text"].as_str().unwrap()).collect();
    let logs = choices().filter_map(|choice| choice["logprobs"]["token_logprobs"].as_array());
    let logs: Vec<&Value> = logs.flatten().collect();
    assert!(chunks.last().unwrap()["choices"][0]["finish_reason"].is_string(), "it has ended");
    (generation.to_owned(), json!({ "text": text, "logprobs": { "token_logprobs": logs } }))
}

fn rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kb = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    kb.trim().strip_suffix(" kB").unwrap().parse::<f64>().unwrap() / 1024.
}

const ENDED: usize = 0;
const WITH_SWAPS: usize = 1;
const WITHOUT: usize = 2;

/// Every answer is checked against the one that its generation gives alone.
fn soak(model: &Model, load: &Load) -> Seen {
    let dir = tempfile::tempdir().unwrap();
    let system = "You answer briefly, as a careful clerk would, and you never guess. ".repeat(3);
    let prompts: Vec<String> = (0..PROMPTS).map(|i| format!("{system}Question {i}?")).collect();
    let server = Server::start(model, "127.0.0.1:0", &ServerConfig::default()).unwrap();
    let base = server.model_name().to_owned();
    let mut offline: HashMap<String, Vec<Completion>> = HashMap::new();
    let mut states = Vec::new();
    for (name, config) in types() {
        let folders = train(model, name, config, dir.path());
        let [first, second] = folders.each_ref().map(|folder| {
            let adapter = FrozenAdapter::read(model, name, folder).unwrap();
            let answers = answers(&model.with_overlay(adapter.overlay()), &prompts);
            let log_probabilities = answers[0].log_probabilities.clone();
            offline.insert(adapter.fingerprint().to_owned(), answers);
            log_probabilities
        });
        assert_ne!(first, second, "{name}: a step changes the answers");
        server.swap(name, folders[0].as_path()).unwrap();
        states.push((name, folders));
    }
    let of_base = answers(&model.base(), &prompts);
    let mut names = vec![base.as_str()];
    names.extend(states.iter().map(|(name, _)| *name));

    let phase = AtomicUsize::new(WITHOUT);
    let client = |client: usize| {
        let mut waited = [Vec::new(), Vec::new(), Vec::new()];
        let mut answered = HashMap::new();
        let mut turn = client;
        while phase.load(Ordering::Relaxed) != ENDED {
            let (name, prompt) = (names[turn % names.len()], turn / names.len() % PROMPTS);
            let mut body = request(name, &prompts[prompt], TOKENS);
            body["stream"] = true.into();
            let (mut chunks, mut last) = (Vec::new(), None);
            sse::post(server.addr(), "/v1/completions", &body.to_string(), |data, at| {
                chunks.push(data.to_owned());
                let now = phase.load(Ordering::Relaxed);
                // What spans two parts belongs to neither.
                if let Some((before, phase)) = last.replace((at, now))
                    && phase == now
                {
                    waited[now].push(at - before);
                }
                true
            })
            .unwrap();
            let (generation, choice) = joined(&chunks);
            let expected = if name == base { &of_base } else { &offline[&generation] };
            assert_is(&choice, &expected[prompt]);
            *answered.entry(generation).or_insert(0) += 1;
            turn += 1;
        }
        (waited, answered)
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..load.clients).map(|n| scope.spawn(move || client(n))).collect();
        let mut swaps = 0;
        let mut rss = Vec::new();
        for _ in 0..load.rounds {
            std::thread::sleep(load.without);
            phase.store(WITH_SWAPS, Ordering::Relaxed);
            let begun = Instant::now();
            while begun.elapsed() < load.with_swaps {
                let (name, folders) = &states[swaps % states.len()];
                let state = 1 - swaps / states.len() % 2;
                server.swap(name, folders[state].as_path()).unwrap();
                swaps += 1;
                std::thread::sleep(load.between_swaps);
            }
            phase.store(WITHOUT, Ordering::Relaxed);
            rss.push(rss_mb());
        }
        phase.store(ENDED, Ordering::Relaxed);
        let (mut with_swaps, mut without) = (Vec::new(), Vec::new());
        let mut answered: HashMap<String, usize> = HashMap::new();
        for client in clients {
            let ([_, with, still], counts) = client.join().unwrap();
            with_swaps.extend(with);
            without.extend(still);
            for (generation, count) in counts {
                *answered.entry(generation).or_insert(0) += count;
            }
        }
        let unseen = offline.keys().filter(|generation| !answered.contains_key(*generation));
        assert_eq!(unseen.count(), 0, "every generation has answered");
        let metrics = server.metrics();
        let cached =
            metrics.lines().filter(|l| l.starts_with("tunebook_prompt_tokens_cached_total"));
        assert!(cached.into_iter().any(|line| !line.ends_with(" 0")), "the cache was at work");
        let failed = ["abort", "error"].map(|reason| format!("finished_reason=\"{reason}\""));
        assert!(!failed.iter().any(|reason| metrics.contains(reason)), "{metrics}");
        let rss_mb = [rss[rss.len() / 2], rss[rss.len() - 1]];
        Seen { answers: answered.values().sum(), swaps, with_swaps, without, rss_mb }
    })
}

#[test]
fn adapters_of_all_types_are_swapped_under_load_and_no_answer_is_wrong() {
    let seen = soak(
        &model(),
        &Load {
            clients: 32,
            rounds: 2,
            with_swaps: Duration::from_secs(4),
            without: Duration::from_secs(1),
            between_swaps: Duration::from_millis(100),
        },
    );
    seen.tell();
    assert!(seen.swaps >= 20 && seen.answers >= 64, "{} {}", seen.swaps, seen.answers);
}

/// Five minutes of swaps, in parts, with as much time without swaps between them.
#[test]
#[ignore = "long"]
fn five_minutes_of_swaps_leave_no_answer_wrong_and_no_token_late() {
    let model = Model::load_quantized(DEFAULT_MODEL, Quantization::Stored, &Device::Cpu).unwrap();
    let seen = soak(
        &model,
        &Load {
            clients: 32,
            rounds: 10,
            with_swaps: Duration::from_secs(30),
            without: Duration::from_secs(30),
            between_swaps: Duration::from_secs(1),
        },
    );
    seen.tell();
    let late = percentile(&seen.with_swaps, 0.99).as_secs_f64();
    let usual = percentile(&seen.without, 0.99).as_secs_f64();
    assert!(late <= 1.2 * usual, "p99 with swaps {late:.3} s, without {usual:.3} s");
}
