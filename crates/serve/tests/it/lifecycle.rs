//! Start, stop and what is seen of a server.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use tunebook_models::EngineConfig;
use tunebook_serve::{Access, AccessLog, Error, Limits, Serve, ServerConfig};

use crate::support::*;

fn long(max_tokens: usize) -> serde_json::Value {
    json!({
        "model": "model", "prompt": "Go", "max_tokens": max_tokens, "temperature": 0,
        "ignore_eos": true,
    })
}

#[test]
fn a_stop_ends_what_runs_and_refuses_what_is_new() {
    let service = Service::of(model_with_context(8_000), &ServerConfig::default());
    let running = || service.metric("tunebook_num_requests_running") > 0.0;
    std::thread::scope(|scope| {
        let whole = scope.spawn(|| service.post("/v1/completions", &long(2_000)));
        let streamed = scope.spawn(|| service.stream("/v1/completions", &long(2_000)));
        wait_for("both answers", Duration::from_secs(20), || {
            service.metric("tunebook_num_requests_running") == 2.0
        });
        let stop = scope.spawn(|| service.server.stop());
        wait_for("the stop", Duration::from_secs(5), || !service.server.is_running());
        if running() {
            let (status, answer) = service.post("/v1/completions", &long(1));
            assert_eq!(refusal(status, &answer), (503, "stopping".to_owned(), String::new()));
            assert_eq!(service.get("/health").0, 503);
        } else {
            panic!("the answers are too short for this test");
        }
        let (status, answer) = whole.join().unwrap();
        assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(2_000)));
        let chunks = streamed.join().unwrap();
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
        assert!(stop.join().unwrap(), "all have ended");
    });
    assert!(std::net::TcpStream::connect(service.server.addr()).is_err());
    assert!(service.server.stop(), "a second time");
    let error = service.server.swap("a", golden("weighted/one")).unwrap_err();
    assert!(matches!(error, Error::Stopped));
    assert!(format!("{:?}", service.server).starts_with("Server(stopped"));
    // The address is free again.
    let again = service.model.serve(&service.server.addr().to_string()).unwrap();
    assert_eq!(again.addr(), service.server.addr());
}

#[test]
fn what_takes_longer_than_the_grace_is_broken_off() {
    let limits = Limits { grace: Duration::from_millis(200), ..Default::default() };
    let config = ServerConfig { limits, ..Default::default() };
    let service = Service::of(model_with_context(60_000), &config);
    let mut client = service.send("/v1/completions", &long(50_000));
    wait_for("the answer", Duration::from_secs(20), || {
        service.metric("tunebook_num_requests_running") == 1.0
    });
    let begun = Instant::now();
    assert!(!service.server.stop());
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(!read_all(&mut client).contains("200 OK"));
}

#[test]
fn a_server_ends_with_its_last_handle() {
    let model = model();
    let server = model.serve("127.0.0.1:0").unwrap();
    let (address, second) = (server.addr(), server.clone());
    drop(server);
    std::net::TcpStream::connect(address).unwrap();
    drop(second);
    wait_for("the end", Duration::from_secs(5), || std::net::TcpStream::connect(address).is_err());
}

#[test]
fn requests_have_names_and_are_logged_without_texts() {
    let seen: Arc<Mutex<Vec<Access>>> = Arc::default();
    let log = Arc::clone(&seen);
    let access_log =
        AccessLog(Arc::new(move |access: &Access| log.lock().unwrap().push(access.clone())));
    let config = ServerConfig {
        access_log: Some(access_log),
        model_name: Some("tiny".to_owned()),
        ..Default::default()
    };
    let service = Service::with(&config);
    service.complete(&json!({ "model": "tiny", "prompt": "a secret", "max_tokens": 2 }));
    service.get("/nothing?secret=1");
    let seen = seen.lock().unwrap();
    let paths: Vec<(&str, u16)> = seen.iter().map(|a| (a.path.as_str(), a.status)).collect();
    assert_eq!(paths, [("/v1/completions", 200), ("/nothing", 404)]);
    assert_ne!(seen[0].request_id, seen[1].request_id);
    assert!(!format!("{seen:?}").contains("secret"));
}

#[test]
fn metrics_count_tokens_and_requests() {
    let service = Service::start();
    let answer = service.complete(&json!({ "model": "model", "prompt": "abc", "max_tokens": 9, "temperature": 0, "ignore_eos": true }));
    let text = service.get("/metrics").1;
    assert_eq!(service.metric("tunebook_generation_tokens_total"), 9.0);
    let prompt = answer["usage"]["prompt_tokens"].as_f64().unwrap();
    assert_eq!(service.metric("tunebook_prompt_tokens_total"), prompt);
    assert_eq!(service.metric("tunebook_time_to_first_token_seconds_count"), 1.0);
    assert_eq!(service.metric("tunebook_inter_token_latency_seconds_count"), 8.0);
    let line = "tunebook_http_requests_total{route=\"/v1/completions\",status=\"200\"} 1";
    assert!(text.lines().any(|found| found == line), "{text}");
}

#[test]
fn answers_do_not_depend_on_the_company() {
    let config = ServerConfig {
        engine: EngineConfig { max_batch_size: 8, ..Default::default() },
        ..Default::default()
    };
    let service = Service::with(&config);
    let prompts: Vec<String> =
        (0..24).map(|i| "word ".repeat(1 + i % 7) + &i.to_string()).collect();
    let expected: Vec<_> =
        prompts.iter().map(|prompt| greedy(&service.model, prompt, 20)).collect();
    std::thread::scope(|scope| {
        for (prompt, expected) in prompts.iter().zip(&expected) {
            let service = &service;
            scope.spawn(move || {
                let answer = service.complete(&request("model", prompt, 20));
                assert_is(&answer["choices"][0], expected);
            });
        }
    });
}
