//! What a server refuses, and whom: no request brings it down, and none is answered with 5xx.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tunebook_models::EngineConfig;
use tunebook_serve::{ApiKey, Error, Limits, Serve, ServerConfig};

use crate::support::*;

/// An answer that takes long.
fn endless() -> Value {
    json!({
        "model": "model", "prompt": "Go", "max_tokens": 30_000, "temperature": 0, "ignore_eos": true,
        "stream": true,
    })
}

/// A server with one place and a queue.
fn narrow(max_queue: usize, deadline: Duration) -> Service {
    Service::of(
        model_with_context(40_000),
        &ServerConfig {
            limits: Limits { max_queue, deadline, ..Default::default() },
            engine: EngineConfig { max_batch_size: 1, ..Default::default() },
            ..Default::default()
        },
    )
}

fn running(service: &Service) -> f64 {
    service.metric("tunebook_num_requests_running")
}

fn waiting(service: &Service) -> f64 {
    service.metric("tunebook_num_requests_waiting")
}

#[test]
fn a_full_queue_is_429_with_retry_after() {
    let service = narrow(1, Duration::from_secs(60));
    let mut first = service.send("/v1/completions", &endless());
    wait_for("the first answer", Duration::from_secs(10), || running(&service) == 1.0);
    let second = service.send("/v1/completions", &endless());
    wait_for("the queue", Duration::from_secs(10), || waiting(&service) == 1.0);
    let mut third = service.send("/v1/completions", &endless());
    let mut head = vec![0; 4096];
    let len = third.read(&mut head).unwrap();
    let head = String::from_utf8_lossy(&head[..len]).to_lowercase();
    assert!(head.starts_with("http/1.1 429") && head.contains("retry-after: 1"), "{head}");
    assert!(head.contains("queue_full"), "{head}");
    assert_eq!(service.metric("tunebook_queue_full_total"), 1.0);
    // What can never be answered is no matter of time.
    let body = json!({ "model": "model", "prompt": ["a", "b", "c"] });
    assert_eq!(service.refusal("/v1/completions", &body).1, "too_many_choices");
    // The first goes on.
    assert!(first.read(&mut [0; 1024]).unwrap() > 0);
    drop((first, second));
    wait_for("room", Duration::from_secs(10), || running(&service) + waiting(&service) == 0.0);
    service.complete(&json!({ "model": "model", "prompt": "a", "max_tokens": 2 }));
}

#[test]
fn a_client_that_leaves_frees_its_place() {
    let service = narrow(0, Duration::from_secs(60));
    let mut longest = Duration::ZERO;
    for round in 0..20 {
        let mut body = endless();
        body["stream"] = (round % 2 == 0).into();
        let mut client = service.send("/v1/completions", &body);
        wait_for("the answer", Duration::from_secs(10), || running(&service) == 1.0);
        if round % 2 == 0 {
            assert!(client.read(&mut [0; 256]).unwrap() > 0);
        }
        drop(client);
        let took = wait_for("a free place", Duration::from_secs(5), || running(&service) == 0.0);
        longest = longest.max(took);
        // The place itself, not the counter alone.
        let begun = Instant::now();
        let body = json!({ "model": "model", "prompt": "a", "max_tokens": 1 });
        let mut status = service.post("/v1/completions", &body).0;
        while status == 429 && begun.elapsed() < Duration::from_secs(1) {
            status = service.post("/v1/completions", &body).0;
        }
        assert_eq!(status, 200);
        longest = longest.max(begun.elapsed()); // the engine is free, too, and not only its counter
    }
    assert!(longest < Duration::from_secs(1), "{longest:?}");
}

#[test]
fn an_answer_has_a_deadline() {
    let service = narrow(4, Duration::from_millis(300));
    let mut body = endless();
    let chunks = {
        let mut stream = service.send("/v1/completions", &body);
        let mut text = String::new();
        let mut buffer = [0; 4096];
        while !text.contains("deadline_exceeded") {
            let len = stream.read(&mut buffer).unwrap();
            assert!(len > 0, "{text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..len]));
        }
        text
    };
    assert!(chunks.contains("text_completion") && !chunks.contains("[DONE]"));
    body["stream"] = false.into();
    let (status, answer) = service.post("/v1/completions", &body);
    assert_eq!(refusal(status, &answer), (408, "deadline_exceeded".to_owned(), String::new()));
    wait_for("a free place", Duration::from_secs(5), || running(&service) == 0.0);
}

#[test]
fn a_key_is_asked_for_everywhere_but_at_health() {
    let config = ServerConfig {
        api_key: Some(ApiKey::new("a-key-of-some-length").unwrap()),
        ..Default::default()
    };
    let service = Service::with(&config);
    assert_eq!(service.get("/health").0, 200);
    for path in ["/v1/models", "/metrics", "/tokenizer_info", "/nothing"] {
        let (status, text) = service.get(path);
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(refusal(status, &answer), (401, "invalid_api_key".to_owned(), String::new()));
    }
    let (status, answer) = service.post("/v1/completions", &json!({}));
    assert_eq!((status, answer["error"]["type"].as_str()), (401, Some("authentication_error")));
    let with = |header: &str| {
        let mut stream = service.connect();
        write!(stream, "GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: {header}\r\n\r\n")
            .unwrap();
        status_line(&mut stream)
    };
    assert_eq!(with("Bearer a-key-of-some-length"), "HTTP/1.1 200 OK");
    for wrong in ["Bearer a-key-of-some-lengti", "Bearer ", "a-key-of-some-length", "Basic x"] {
        assert_eq!(with(wrong), "HTTP/1.1 401 Unauthorized", "{wrong}");
    }
}

#[test]
fn other_machines_are_let_in_with_a_key_and_on_purpose_only() {
    let model = model();
    let error = model.serve("0.0.0.0:0").unwrap_err();
    assert!(matches!(error, Error::NotLoopback { .. }), "{error}");
    let config = ServerConfig { public: true, ..Default::default() };
    let error = model.serve_with("0.0.0.0:0", &config).unwrap_err();
    assert!(matches!(error, Error::Config { field: "ServerConfig.api_key", .. }), "{error}");
    let key = ApiKey::new("a-key-of-some-length").unwrap();
    model.serve_with("0.0.0.0:0", &ServerConfig { api_key: Some(key), ..config }).unwrap();
    let taken = model.serve("127.0.0.1:0").unwrap();
    let error = model.serve(&taken.addr().to_string()).unwrap_err().to_string();
    assert!(error.contains("port 0"), "{error}");
}

#[test]
fn a_web_page_cannot_ask_in_its_visitors_name() {
    let service = Service::start();
    let get = |host: &str| {
        let mut stream = service.connect();
        write!(stream, "GET /v1/models HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
        status_line(&mut stream)
    };
    for host in ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "[::1]"] {
        assert_eq!(get(host), "HTTP/1.1 200 OK", "{host}");
    }
    for host in ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil"] {
        assert_eq!(get(host), "HTTP/1.1 403 Forbidden", "{host}");
    }
    // A form, which needs no permission, has another type.
    let mut stream = service.connect();
    write!(stream, "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{{}}").unwrap();
    assert_eq!(status_line(&mut stream), "HTTP/1.1 415 Unsupported Media Type");
}

/// Sends bytes as they are; the status line.
fn raw(service: &Service, bytes: &[u8]) -> String {
    let mut stream = service.connect();
    // A server that has seen enough closes before all is written.
    let _ = stream.write_all(bytes);
    status_line(&mut stream)
}

fn with_body(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[test]
fn whatever_comes_is_answered_or_closed_and_the_others_go_on() {
    let service = Service::start();
    let deep = [b"{\"prompt\":".as_slice(), "[".repeat(500_000).as_bytes()].concat();
    let invalid = b"{\"model\":\"model\",\"prompt\":\"\xff\xfe\"}";
    let many: String = (0..5000).map(|i| format!("X-Header-{i}: {i}\r\n")).collect();
    let long = "x".repeat(200_000);
    for (what, bytes, status) in [
        ("deep JSON", with_body(&deep), "400"),
        ("invalid UTF-8", with_body(invalid), "400"),
        ("no JSON", with_body(b"prompt=a"), "400"),
        ("a body of 10 MB", with_body(&vec![b' '; 10 << 20]), "413"),
        ("many headers", format!("GET /health HTTP/1.1\r\n{many}\r\n").into_bytes(), "431"),
        ("a long header", format!("GET /health HTTP/1.1\r\nX: {long}\r\n\r\n").into_bytes(), "431"),
        ("a long path", format!("GET /{long} HTTP/1.1\r\n\r\n").into_bytes(), "4"),
        ("another protocol", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), "400"),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), ""),
        ("another method", b"DELETE /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), "405"),
        ("another path", b"GET /admin HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), "404"),
        ("a strange path", b"GET /v1/models/%ff%fe HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), "4"),
        ("two lengths", b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 5\r\n\r\n{}".to_vec(), "4"),
    ] {
        let line = raw(&service, &bytes);
        let code = line.strip_prefix("HTTP/1.1 ").unwrap_or(&line);
        assert!(line.is_empty() || code.starts_with(status), "{what}: {line}");
        assert!(!code.starts_with('5'), "{what}: {line}");
        assert_eq!(service.get("/health").0, 200, "{what}");
    }
    service.complete(&json!({ "model": "model", "prompt": "a", "max_tokens": 2 }));
}

/// The head of an answer, whose body is read, too.
fn head_of_answer(stream: &mut TcpStream) -> String {
    let mut answer = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(answer.read_line(&mut head).unwrap(), 0, "{head}");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    answer.read_exact(&mut vec![0; length.parse().unwrap()]).unwrap();
    head
}

/// A client would else send its next request down a connection that is being closed.
#[test]
fn a_refusal_of_an_unread_request_says_that_it_closes() {
    let key = ApiKey::new("0123456789abcdef").unwrap();
    let closed = Service::with(&ServerConfig { api_key: Some(key), ..Default::default() });
    let open = Service::start();
    for (service, path, kind, status) in [
        (&closed, "/v1/completions", "application/json", "401"),
        (&open, "/v1/load_lora_adapter", "application/json", "403"),
        (&open, "/nothing", "application/json", "404"),
        (&open, "/v1/models", "application/json", "405"),
        (&open, "/v1/completions", "text/plain", "415"),
    ] {
        let mut stream = service.connect();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 2\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let head = head_of_answer(&mut stream);
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
        assert!(head.contains("connection: close\r\n"), "{head}");
    }
    // One that was read keeps its connection.
    let mut stream = open.connect();
    for _ in 0..2 {
        stream.write_all(&with_body(b"[]")).unwrap();
        let head = head_of_answer(&mut stream);
        assert!(head.starts_with("HTTP/1.1 400") && !head.contains("connection"), "{head}");
    }
}

#[test]
fn a_client_that_says_all_before_it_listens_gets_the_refusal() {
    let service = Service::start();
    let mut stream = service.connect();
    stream.write_all(&with_body(&vec![b' '; 64 << 20])).unwrap();
    let answer = read_all(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("body_too_large"), "{answer}");
}

#[test]
fn slow_clients_are_given_up() {
    let limits = Limits { read_timeout: Duration::from_millis(300), ..Default::default() };
    let service = Service::with(&ServerConfig { limits, ..Default::default() });
    let mut slow: Vec<TcpStream> = (0..50).map(|_| service.connect()).collect();
    for stream in &mut slow {
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: local").unwrap();
    }
    let mut body = service.connect();
    body.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{").unwrap();
    assert_eq!(service.get("/health").0, 200, "the others go on");
    assert_eq!(status_line(&mut body), "HTTP/1.1 408 Request Timeout");
    for mut stream in slow {
        let begun = Instant::now();
        let answer = read_all(&mut stream);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn a_client_that_does_not_read_loses_its_place() {
    let limits = Limits { write_timeout: Duration::from_millis(300), ..Default::default() };
    let config = ServerConfig { limits, ..Default::default() };
    let service = Service::of(model_with_context(200_000), &config);
    let mut body = endless();
    // More than the buffers of both ends hold.
    body["max_tokens"] = 190_000.into();
    body["logprobs"] = 20.into();
    let client = service.send("/v1/completions", &body);
    wait_for("the answer", Duration::from_secs(10), || running(&service) == 1.0);
    wait_for("a free place", Duration::from_secs(40), || running(&service) == 0.0);
    let ended = service.server.metrics();
    assert!(ended.contains("finished_reason=\"abort\""), "it was broken off: {ended}");
    drop(client);
}
