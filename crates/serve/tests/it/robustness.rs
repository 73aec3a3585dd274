//! What has gone wrong with other servers, and what must never: clients that leave, adapters that do
//! not belong, caches of others.

#![allow(clippy::print_stderr)] // what was measured

use std::fs;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tunebook_models::{DEFAULT_MODEL, Device, EngineConfig, Model};
use tunebook_serve::{Limits, ServerConfig};
use tunebook_tune::{Adapters as _, FrozenAdapter, Lora};

use crate::support::*;

const PATH: &str = "/v1/completions";
const LOAD: &str = "/v1/load_lora_adapter";
const TENSORS: &str = "adapter_model.safetensors";

/// 200 streams, each broken off after its first bytes: the one place is free within 100 ms.
#[test]
fn a_client_killed_mid_stream_frees_its_place_within_100_ms() {
    let service = Service::of(
        model_with_context(40_000),
        &ServerConfig {
            limits: Limits { max_queue: 0, ..Default::default() },
            engine: EngineConfig { max_batch_size: 1, ..Default::default() },
            ..Default::default()
        },
    );
    let endless = json!({
        "model": "model", "prompt": "Go", "max_tokens": 30_000, "temperature": 0, "ignore_eos": true,
        "stream": true,
    });
    let short = json!({ "model": "model", "prompt": "a", "max_tokens": 1 });
    let mut times = Vec::new();
    for _ in 0..200 {
        let mut client = service.send(PATH, &endless);
        assert!(client.read(&mut [0; 512]).unwrap() > 0);
        let begun = Instant::now();
        drop(client);
        // The place itself, which another request takes and is answered in.
        while service.post(PATH, &short).0 == 429 {
            assert!(begun.elapsed() < Duration::from_secs(5), "the place is not free");
            std::thread::sleep(Duration::from_millis(1));
        }
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let (median, longest) = (times[100], times[199]);
    eprintln!("a place is free after {median:.1?} (median of 200), {longest:.1?} at most");
    assert!(longest < Duration::from_millis(100), "{longest:?}");
    assert_eq!(service.metric("tunebook_num_requests_running"), 0.0);
    assert_eq!(service.metric("tunebook_num_requests_waiting"), 0.0);
}

/// Loads are asked for all the while that the files are written, piece by piece.
#[test]
fn a_half_written_adapter_is_never_loaded() {
    let root = adapter_root();
    let service = Service::with_adapters(root.path());
    let folder = root.path().join("slow");
    fs::create_dir(&folder).unwrap();
    let from = golden("weighted/one");
    let expected = FrozenAdapter::read(&service.model, "any", &from).unwrap();
    let bytes = fs::read(from.join(TENSORS)).unwrap();
    let done = AtomicBool::new(false);
    let body = json!({ "lora_name": "slow", "lora_path": "slow", "load_inplace": true });
    std::thread::scope(|scope| {
        let loads = scope.spawn(|| {
            let (mut refused, mut generations) = (0, Vec::new());
            loop {
                let last = done.load(Ordering::SeqCst);
                let (status, answer) = service.post(LOAD, &body);
                match status {
                    200 => generations.push(answer["generation"].as_str().unwrap().to_owned()),
                    status => {
                        assert_eq!(refusal(status, &answer).0, 400, "{answer}");
                        refused += 1;
                    }
                }
                if last {
                    return (refused, generations);
                }
            }
        });
        fs::copy(from.join("adapter_config.json"), folder.join("adapter_config.json")).unwrap();
        let mut file = fs::File::create(folder.join(TENSORS)).unwrap();
        for piece in bytes.chunks(bytes.len() / 20) {
            file.write_all(piece).unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
        done.store(true, Ordering::SeqCst);
        let (refused, generations) = loads.join().unwrap();
        assert!(refused > 5, "the half of it was asked for");
        assert!(!generations.is_empty());
        assert!(generations.iter().all(|found| found == expected.fingerprint()));
    });
}

/// vLLM's issue 34186: an adapter whose keys match nothing was loaded, answered with the base's words,
/// and nobody was told.
#[test]
fn vllm_34186_an_adapter_whose_keys_match_nothing_is_refused() {
    let root = adapter_root();
    let service = Service::with_adapters(root.path());
    let path = root.path().join("one").join(TENSORS);
    let bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for (from, to) in [
        // Another nesting, as of a model that reads pictures, too; other blocks; another prefix.
        ("model.model.layers.", "model.other.layers."),
        ("layers.0.", "layers.7."),
        ("base_model.model.", "base_modul.model."),
        ("self_attn", "self_attm"),
    ] {
        let text = String::from_utf8(bytes[8..8 + header].to_vec()).unwrap();
        assert!(text.contains(from), "{text}");
        let text = text.replace(from, to);
        let changed = [&bytes[..8], text.as_bytes(), &bytes[8 + header..]];
        fs::write(&path, changed.concat()).unwrap();
        let (status, answer) = service.post(LOAD, &json!({ "lora_name": "a", "lora_path": "one" }));
        assert_eq!(refusal(status, &answer).1, "adapter_refused", "{to}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(TENSORS) && message.contains("expected"), "{message}");
    }
    assert!(service.server.adapters().is_empty());
    assert_eq!(service.refusal(PATH, &request("a", "Hello", 4)).0, 404, "never the base");
}

/// vLLM's issue 42125: an adapter that was loaded again under its name was answered with the keys and
/// values that the old one had computed.
#[test]
fn vllm_42125_a_reloaded_adapter_is_not_answered_from_the_old_ones_cache() {
    let root = adapter_root();
    let service = Service::with_adapters(root.path());
    let prompt = "A system prompt that fills several pages of the cache. ".repeat(6);
    let mut expected = Vec::new();
    for name in ["one", "two"] {
        let adapter = FrozenAdapter::read(&service.model, name, root.path().join(name)).unwrap();
        let handle = service.model.with_overlay(adapter.overlay());
        expected.push((name, greedy(&handle, &prompt, 16)));
    }
    assert_ne!(expected[0].1.log_probabilities, expected[1].1.log_probabilities);
    for round in 0..6 {
        let (name, expected) = &expected[round % 2];
        let body = json!({ "lora_name": "a", "lora_path": name, "load_inplace": true });
        service.answer(LOAD, &body);
        let first = service.complete(&request("a", &prompt, 16));
        assert_is(&first["choices"][0], expected);
        let cached = &first["usage"]["prompt_tokens_details"]["cached_tokens"];
        assert_eq!(cached.as_u64(), Some(0), "of another generation");
        let second = service.complete(&request("a", &prompt, 16));
        assert_is(&second["choices"][0], expected);
        let cached = &second["usage"]["prompt_tokens_details"]["cached_tokens"];
        assert!(cached.as_u64().unwrap() > 0, "of its own");
    }
}

/// llama.cpp's issue 26207: a prompt that one adapter had computed was taken over by the next request,
/// which was for another adapter.
#[test]
fn llama_cpp_26207_adapters_with_one_prompt_share_no_cache() {
    let service = Service::with(&ServerConfig::default());
    let prompt = "The same beginning for everybody, over several pages. ".repeat(6);
    let names = ["one", "two"];
    for name in names {
        service.server.swap(name, golden("weighted").join(name)).unwrap();
    }
    let models = ["one", "model", "two", "one:0.5+two:0.5", "one:0.5"];
    let alone = models.map(|model| {
        let fresh = Service::with(&ServerConfig {
            engine: EngineConfig { prefix_cache_bytes: 0, ..Default::default() },
            ..Default::default()
        });
        for name in names {
            fresh.server.swap(name, golden("weighted").join(name)).unwrap();
        }
        fresh.complete(&request(model, &prompt, 16))["choices"].clone()
    });
    for round in 0..3 {
        for turn in 0..models.len() {
            let index = (turn * 2 + round) % models.len();
            let answer = service.complete(&request(models[index], &prompt, 16));
            assert_eq!(answer["choices"], alone[index], "{} in round {round}", models[index]);
        }
    }
    assert!(service.metric("tunebook_prompt_tokens_cached_total") > 0.0);
}

#[test]
fn a_swap_of_an_adapter_in_memory_takes_no_time() {
    let service = Service::with(&ServerConfig::default());
    let server = &service.server;
    let one = server.swap("a", golden("weighted/one")).unwrap();
    let before = server.adapter("a").unwrap();
    let two = server.swap("a", golden("weighted/two")).unwrap();
    let after = server.adapter("a").unwrap();
    let prompt = "A prompt that fills a page of the prefix cache, and more. ".repeat(3);
    service.complete(&request("a", &prompt, 4));
    let mut times: Vec<Duration> = (0..100)
        .map(|turn| {
            let (adapter, generation) =
                if turn % 2 == 0 { (&before, &one) } else { (&after, &two) };
            let begun = Instant::now();
            assert_eq!(&server.swap("a", adapter).unwrap(), generation);
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    eprintln!("a swap in memory takes {:?} (median of 100)", times[50]);
    assert!(times[50] < Duration::from_millis(1), "{times:?}");
    // It is the same overlay, so its prompts are still known.
    let answer = service.complete(&request("a", &prompt, 4));
    let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert!(cached.as_u64().unwrap() > 0);
    assert_eq!(server.swap("b", &before).unwrap(), one, "under any name");
    let other = Service::with(&ServerConfig::default());
    let error = other.server.swap("a", &before).unwrap_err();
    assert!(matches!(error, tunebook_serve::Error::OtherModel), "{error}");
}

/// From disk, over HTTP and by the handle; from the model; and of one that is in memory.
#[test]
fn swaps_of_smollms_adapters_are_quick() {
    let model = Model::load(DEFAULT_MODEL, &Device::Cpu).unwrap();
    let root = tempfile::tempdir().unwrap();
    for (name, init_seed) in [("one", 1), ("two", 2)] {
        let lora = Lora {
            r: 16,
            init_lora_weights: false,
            init_seed,
            target_modules: "all-linear".into(),
            ..Default::default()
        };
        model.add_adapter(name, &lora).unwrap();
        model.save_adapter(name, root.path()).unwrap();
    }
    let config = ServerConfig {
        allow_adapter_changes: true,
        adapter_root: Some(root.path().to_path_buf()),
        ..Default::default()
    };
    let service = Service::of(model, &config);
    let Service { server, .. } = &service;
    let in_memory = ["one", "two"].map(|name| server.adapter(name).unwrap());
    let megabytes = in_memory[0].size_bytes() as f64 / 1e6;
    let time = |what: &str, limit: Duration, swap: &dyn Fn(&str, usize)| {
        let mut times: Vec<Duration> = (0..10)
            .map(|turn| {
                let begun = Instant::now();
                swap(["one", "two"][turn % 2], turn % 2);
                begun.elapsed()
            })
            .collect();
        times.sort_unstable();
        let (median, longest) = (times[5], times[9]);
        eprintln!("{what}, {megabytes:.1} MB: {median:.2?} (median of 10), {longest:.2?} at most");
        assert!(median < limit, "{what}: {times:?}");
    };
    let half = Duration::from_millis(500);
    time("from disk over HTTP", half, &|name, _| {
        let body = json!({ "lora_name": "a", "lora_path": name, "load_inplace": true });
        service.answer(LOAD, &body);
    });
    time("from disk", half, &|name, _| drop(server.swap("a", root.path().join(name)).unwrap()));
    time("from the model", half, &|name, _| drop(server.swap("a", name).unwrap()));
    time("in memory", Duration::from_millis(1), &|_, index| {
        server.swap("a", &in_memory[index]).unwrap();
    });
}
