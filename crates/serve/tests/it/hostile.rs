//! Clients that ask for much and leave, or read slowly: others are answered, and memory has a bound.

#![allow(clippy::print_stderr)] // what was measured

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tunebook_models::EngineConfig;
use tunebook_serve::{ApiKey, Error, Limits, ServerConfig};

use crate::support::*;

const PATH: &str = "/v1/completions";

/// Each takes a part of a second of a core; clients that have left are not worked for.
#[test]
fn work_for_clients_that_have_left_is_not_begun() {
    let service = Service::of(model_with_context(40_000), &ServerConfig::default());
    // Tokenised, and then too long.
    let long = json!({ "model": "model", "prompt": "a long text ".repeat(200_000) });
    let begun = Instant::now();
    let message = too_long(&service, PATH, &long, "prompt");
    assert!(message.contains("tokens, expected"), "{message}");
    let one = begun.elapsed();
    let left: Vec<_> = (0..60).map(|_| service.send(PATH, &long)).collect();
    drop(left);
    let begun = Instant::now();
    service.complete(&json!({ "model": "model", "prompt": "a", "max_tokens": 1 }));
    let took = begun.elapsed();
    // A few that had begun are ended.
    eprintln!("{took:.1?} after 60 that have left; one alone takes {one:.1?}");
    assert!(took < one * 6, "{took:?}; one alone takes {one:?}");
}

/// The message of a refusal as too long, and of what.
fn too_long(service: &Service, path: &str, body: &Value, param: &str) -> String {
    let (status, answer) = service.post(path, body);
    let expected = (400, "context_length_exceeded".to_owned(), param.to_owned());
    assert_eq!(refusal(status, &answer), expected, "{answer}");
    answer["error"]["message"].as_str().unwrap().to_owned()
}

#[test]
fn a_text_that_cannot_fit_is_refused_before_it_is_tokenised() {
    let service = Service::of(model_with_context(63), &ServerConfig::default());
    let text = "many words ".repeat(300_000);
    let prompt = json!({ "model": "model", "prompt": text, "max_tokens": 1 });
    let tokens = json!({ "prompt": text });
    let messages = json!([{ "role": "user", "content": text }]);
    let chat = json!({ "model": "model", "messages": messages });
    for (path, body, param) in [
        (PATH, &prompt, "prompt"),
        ("/v1/chat/completions", &chat, "messages"),
        ("/tokenize", &tokens, "prompt"),
        ("/tokenize", &json!({ "messages": messages }), "messages"),
    ] {
        let message = too_long(&service, path, body, param);
        assert!(message.contains("bytes"), "it was tokenised: {message}");
    }
    // What could fit is counted.
    let prompt = json!({ "model": "model", "prompt": "a b c ".repeat(50), "max_tokens": 1 });
    assert!(too_long(&service, PATH, &prompt, "prompt").contains(" tokens, expected at most 62"));
    let long = service.answer("/tokenize", &json!({ "prompt": "many words ".repeat(1000) }));
    assert!(long["count"].as_u64().unwrap() > 63, "longer than the context, to be cut to it");
}

#[test]
fn scores_that_are_repeated_have_a_bound() {
    let service = Service::of(model_with_context(3000), &ServerConfig::default());
    let ids = vec![5; 2500];
    let mut body = json!({
        "model": "model", "prompt": ids, "max_tokens": 0, "echo": true, "logprobs": 20, "n": 32,
        "temperature": 1,
    });
    let (status, answer) = service.post(PATH, &body);
    let refused = refusal(status, &answer);
    assert_eq!(refused, (400, "invalid_value".to_owned(), "logprobs".to_owned()));
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("1680000 scores") && message.contains("lower `n`"), "{message}");
    body["n"] = 2.into();
    body["logprobs"] = 2.into();
    let answer = service.complete(&body);
    let lists = &answer["choices"][1]["logprobs"]["tokens"];
    assert_eq!(lists.as_array().unwrap().len(), 2500);
}

/// A stream that is read a byte at a time, so that no write waits for long.
#[test]
fn a_client_that_reads_slowly_loses_its_place_at_the_deadline() {
    let limits = Limits { deadline: Duration::from_secs(2), max_queue: 0, ..Default::default() };
    let engine = EngineConfig { max_batch_size: 1, ..Default::default() };
    let config = ServerConfig { limits, engine, ..Default::default() };
    let service = Service::of(model_with_context(200_000), &config);
    let body = json!({
        "model": "model", "prompt": "Go", "max_tokens": 190_000, "temperature": 0,
        "ignore_eos": true, "stream": true, "logprobs": 20,
    });
    let mut client = service.send(PATH, &body);
    let short = json!({ "model": "model", "prompt": "a", "max_tokens": 1 });
    let begun = Instant::now();
    let mut byte = [0; 1];
    let mut free = None;
    while free.is_none() && begun.elapsed() < Duration::from_secs(8) {
        assert!(client.read(&mut byte).unwrap() > 0);
        std::thread::sleep(Duration::from_millis(50));
        free = (service.post(PATH, &short).0 == 200).then(|| begun.elapsed());
    }
    let free = free.expect("the place is never free");
    assert!(free < Duration::from_secs(5), "{free:?}");
}

#[test]
fn an_answer_that_its_client_has_not_read_takes_no_place() {
    let limits =
        Limits { max_queue: 0, write_timeout: Duration::from_secs(200), ..Default::default() };
    let engine = EngineConfig { max_batch_size: 1, ..Default::default() };
    let config = ServerConfig { limits, engine, ..Default::default() };
    let service = Service::of(model_with_context(30_000), &config);
    let body = json!({
        "model": "model", "prompt": "Go", "max_tokens": 12_000, "temperature": 0,
        "ignore_eos": true, "stream": true, "logprobs": 20,
    });
    let client = service.send(PATH, &body);
    let short = json!({ "model": "model", "prompt": "a", "max_tokens": 1 });
    wait_for("the answer", Duration::from_secs(10), || {
        service.metric("tunebook_num_requests_running") == 1.0
    });
    // It is written down for its client, who reads nothing.
    wait_for("a free place", Duration::from_secs(90), || service.post(PATH, &short).0 == 200);
    drop(client);
}

/// A large answer is made, and its client reads it when the stop has begun.
#[test]
fn a_stop_waits_for_the_last_byte() {
    let service = Service::of(model_with_context(30_000), &ServerConfig::default());
    let body = json!({
        "model": "model", "prompt": "Go", "max_tokens": 2_500, "n": 8, "temperature": 1,
        "ignore_eos": true, "logprobs": 20,
    });
    let mut client = service.send(PATH, &body);
    wait_for("the answer", Duration::from_secs(90), || {
        service.metric("tunebook_request_success_total") == 8.0
    });
    // Both ends' buffers are full by then.
    std::thread::sleep(Duration::from_millis(500));
    let (text, all) = std::thread::scope(|scope| {
        let stop = scope.spawn(|| service.server.stop());
        std::thread::sleep(Duration::from_secs(1));
        (read_all(&mut client), stop.join().unwrap())
    });
    let (head, answer) = text.split_once("\r\n\r\n").unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    assert!(answer.len() > 10 << 20, "the buffers hold {} bytes", answer.len());
    assert_eq!(answer.len(), length.parse::<usize>().unwrap(), "the answer is cut");
    assert!(all);
}

#[test]
fn a_stop_does_not_wait_for_who_says_nothing() {
    let service = Service::start();
    let silent = service.connect();
    let mut half = service.connect();
    half.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: local").unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let begun = Instant::now();
    assert!(service.server.stop());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    drop(silent.shutdown(Shutdown::Both));
}

#[test]
fn nothing_changes_after_a_stop() {
    let root = adapter_root();
    let state = root.path().join("state.json");
    let config = ServerConfig {
        allow_adapter_changes: true,
        adapter_root: Some(root.path().to_path_buf()),
        state_file: Some(state.clone()),
        limits: Limits { grace: Duration::from_secs(20), ..Default::default() },
        ..Default::default()
    };
    let service = Service::of(model_with_context(30_000), &config);
    service.server.swap("one", root.path().join("one").as_path()).unwrap();
    let before = std::fs::read(&state).unwrap();
    let long = json!({
        "model": "model", "prompt": "Go", "max_tokens": 3_000, "temperature": 0, "ignore_eos": true,
    });
    let client = service.send(PATH, &long);
    wait_for("the answer", Duration::from_secs(10), || {
        service.metric("tunebook_num_requests_running") == 1.0
    });
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| service.server.stop());
        wait_for("the stop", Duration::from_secs(5), || !service.server.is_running());
        for (path, body) in [
            ("/v1/load_lora_adapter", json!({ "lora_name": "two", "lora_path": "two" })),
            ("/v1/unload_lora_adapter", json!({ "lora_name": "one" })),
            ("/tokenize", json!({ "prompt": "a" })),
            ("/detokenize", json!({ "tokens": [5] })),
        ] {
            let (status, answer) = service.post(path, &body);
            assert_eq!(refusal(status, &answer).1, "stopping", "{path}: {status}");
        }
        assert!(stop.join().unwrap());
    });
    drop(client);
    let error = service.server.remove("one").unwrap_err();
    assert!(matches!(error, Error::Stopped), "{error}");
    assert_eq!(std::fs::read(&state).unwrap(), before);
}

#[test]
fn a_host_that_is_no_text_is_refused_and_the_scheme_of_a_key_is_of_either_case() {
    let service = Service::start();
    let mut stream = service.connect();
    stream.write_all(b"GET /v1/models HTTP/1.1\r\nHost: ev\xc3\xa4l.example\r\n\r\n").unwrap();
    assert_eq!(status_line(&mut stream), "HTTP/1.1 403 Forbidden");
    let key = Some(ApiKey::new("a-key-of-some-length").unwrap());
    let service = Service::with(&ServerConfig { api_key: key, ..Default::default() });
    for (scheme, status) in
        [("bearer", "200 OK"), ("BEARER", "200 OK"), ("Basic!", "401 Unauthorized")]
    {
        let mut stream = service.connect();
        let header = format!("Authorization: {scheme} a-key-of-some-length");
        write!(stream, "GET /v1/models HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n").unwrap();
        assert_eq!(status_line(&mut stream), format!("HTTP/1.1 {status}"), "{scheme}");
    }
}

/// `text[text_offset]` is where a token's own text is, whatever its bytes are.
#[test]
fn offsets_are_those_of_the_text() {
    let service = Service::start();
    let tokenizer = service.model.tokenizer();
    for prompt in ["The naïve 🦀 café — 東京.", "plain"] {
        let ids = tokenizer.encode_with_special_tokens(prompt).unwrap();
        for given in [json!(prompt), json!(ids)] {
            let body = json!({
                "model": "model", "prompt": given, "max_tokens": 40, "temperature": 1.5, "seed": 3,
                "echo": true, "logprobs": 0, "ignore_eos": true,
            });
            let answer = service.complete(&body);
            let choice = &answer["choices"][0];
            let text: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
            let lists = &choice["logprobs"];
            let offsets = lists["text_offset"].as_array().unwrap();
            let offsets: Vec<usize> =
                offsets.iter().map(|at| at.as_u64().unwrap() as usize).collect();
            assert!(
                offsets.is_sorted() && offsets.iter().all(|at| *at <= text.len()),
                "{offsets:?}"
            );
            // The ids' text has the special tokens, which the text that was given lacks.
            let echoed = match given.as_str() {
                Some(text) => text.to_owned(),
                None => tokenizer.decode(&ids).unwrap(),
            };
            assert_eq!(offsets[ids.len()], echoed.chars().count(), "where the answer begins");
            let tokens = lists["tokens"].as_array().unwrap().iter().zip(&offsets);
            let mut checked = 0;
            for (token, at) in tokens.take(ids.len()) {
                let token: Vec<char> = token.as_str().unwrap().chars().collect();
                let special = token.first() == Some(&'<') && given.is_string();
                if token.iter().all(char::is_ascii)
                    && !token.starts_with(&['b', 'y', 't'])
                    && !special
                {
                    assert_eq!(text[*at..*at + token.len()], token, "{token:?} at {at}");
                    checked += 1;
                }
            }
            assert!(checked > 1);
        }
    }
}

/// Names that clients make up are counted together once they are gone.
#[test]
fn the_counts_of_removed_adapters_are_one() {
    let root = adapter_root();
    let service = Service::with_adapters(root.path());
    let begun = service.server.metrics().lines().count();
    for number in 0..20 {
        let name = format!("made-up-{number}");
        let load = json!({ "lora_name": name, "lora_path": "one" });
        service.answer("/v1/load_lora_adapter", &load);
        service.complete(
            &json!({ "model": name, "prompt": "a", "max_tokens": 3, "ignore_eos": true }),
        );
        service.answer("/v1/unload_lora_adapter", &json!({ "lora_name": name }));
    }
    service.complete(&json!({ "model": "model", "prompt": "a", "max_tokens": 1 }));
    let text = service.get("/metrics").1;
    // The last few may wait to be joined.
    let made_up = (0..20).filter(|number| text.contains(&format!("made-up-{number}\"")));
    assert!(made_up.count() <= 2, "{text}");
    assert!(text.contains("tunebook_generation_tokens_total{model=\"removed adapters\"}"));
    assert_eq!(service.metric("tunebook_generation_tokens_total"), 61.0);
    assert_eq!(service.metric("tunebook_time_to_first_token_seconds_count"), 21.0);
    assert!(text.lines().count() < begun + 200);
}
