//! What the tests share: a model, a server, and a client that shows everything.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tunebook_models::{Completion, Device, GenerationConfig, Model};
use tunebook_serve::{Serve, Server, ServerConfig};

/// `tests/golden/…` of the repository.
pub(crate) fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

/// The 2-layer Llama with a longer context, under the name `model`.
pub(crate) fn model_with_context(context: usize) -> Model {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(golden("lora_tiny/model")).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, folder.join(from.file_name().unwrap())).unwrap();
    }
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = context.into();
    fs::write(&path, config.to_string()).unwrap();
    Model::load(&folder, &Device::Cpu).unwrap()
}

pub(crate) fn model() -> Model {
    model_with_context(2048)
}

/// A folder with copies of the golden adapters `one` and `two`.
pub(crate) fn adapter_root() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        copy_folder(&golden("weighted").join(name), &root.path().join(name));
    }
    root
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let file = entry.unwrap().path();
        fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}

/// A server and who asks it.
pub(crate) struct Service {
    pub(crate) model: Model,
    pub(crate) server: Server,
    agent: ureq::Agent,
}

impl Service {
    pub(crate) fn start() -> Self {
        Self::with(&ServerConfig::default())
    }

    pub(crate) fn with(config: &ServerConfig) -> Self {
        Self::of(model(), config)
    }

    pub(crate) fn of(model: Model, config: &ServerConfig) -> Self {
        let server = model.serve_with("127.0.0.1:0", config).unwrap();
        Self { model, server, agent: agent() }
    }

    /// Whose adapters clients may change.
    pub(crate) fn with_adapters(root: &Path) -> Self {
        Self::with(&ServerConfig {
            allow_adapter_changes: true,
            adapter_root: Some(root.to_path_buf()),
            ..Default::default()
        })
    }

    pub(crate) fn agent(&self) -> &ureq::Agent {
        &self.agent
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.addr())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let mut response = self.agent.post(self.url(path)).send_json(body).unwrap();
        (response.status().as_u16(), response.body_mut().read_json().unwrap())
    }

    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let mut response = self.agent.get(self.url(path)).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    pub(crate) fn get_json(&self, path: &str) -> Value {
        serde_json::from_str(&self.get(path).1).unwrap()
    }

    /// The answer, which must be one.
    pub(crate) fn answer(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.post(path, body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    pub(crate) fn complete(&self, body: &Value) -> Value {
        self.answer("/v1/completions", body)
    }

    /// The refusal: status, code and field.
    pub(crate) fn refusal(&self, path: &str, body: &Value) -> (u16, String, String) {
        let (status, answer) = self.post(path, body);
        refusal(status, &answer)
    }

    /// The chunks of a stream; `[DONE]` is checked and left out.
    pub(crate) fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let mut response = self.agent.post(self.url(path)).send_json(&body).unwrap();
        assert_eq!(response.status(), 200);
        let kind = response.headers()["content-type"].to_str().unwrap();
        assert_eq!(kind, "text/event-stream");
        let text = response.body_mut().read_to_string().unwrap();
        let mut data: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{text}");
        data.into_iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    /// A connection on which this request was sent.
    pub(crate) fn send(&self, path: &str, body: &Value) -> TcpStream {
        let body = body.to_string();
        let mut stream = self.connect();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        stream
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.server.addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// A gauge or counter without regard to labels, summed.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.server.metrics();
        let of_name =
            |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let values = text.lines().filter(of_name).map(|line| line.rsplit(' ').next().unwrap());
        values.map(|value| value.parse::<f64>().unwrap()).sum()
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(Duration::from_secs(120))).build().into()
}

pub(crate) fn refusal(status: u16, answer: &Value) -> (u16, String, String) {
    let error = &answer["error"];
    let keys: Vec<&String> = error.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["message", "type", "param", "code"], "{answer}");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    assert!(!text(&error["message"]).is_empty());
    (status, text(&error["code"]), text(&error["param"]))
}

/// The status line of whatever a raw connection answers; empty: it was closed.
pub(crate) fn status_line(stream: &mut TcpStream) -> String {
    let mut line = String::new();
    let _ = BufReader::new(stream).read_line(&mut line);
    line.trim_end().to_owned()
}

/// Everything until the server closes.
pub(crate) fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for what must happen within a time; the time that it took.
pub(crate) fn wait_for(what: &str, limit: Duration, happened: impl Fn() -> bool) -> Duration {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < limit, "{what} has not happened within {limit:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    begun.elapsed()
}

/// Greedy, `max_tokens` long.
pub(crate) fn greedy(model: &Model, prompt: &str, max_tokens: usize) -> Completion {
    let ids = model.tokenizer().encode_with_special_tokens(prompt).unwrap();
    let config = GenerationConfig { max_new_tokens: max_tokens, ..Default::default() };
    model.completions(&[ids], &config).unwrap().remove(0)
}

/// A greedy request with the log-probabilities of its tokens.
pub(crate) fn request(model: &str, prompt: &str, max_tokens: usize) -> Value {
    json!({
        "model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "logprobs": 1,
    })
}

/// The log-probabilities of an answer, as they are: f32 goes through JSON unharmed.
pub(crate) fn log_probabilities(choice: &Value) -> Vec<f32> {
    let values = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    values.iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

/// Whether an answer is this completion, token for token and bit for bit.
pub(crate) fn assert_is(choice: &Value, expected: &Completion) {
    assert_eq!(choice["text"], expected.text.as_str());
    let found = log_probabilities(choice);
    let own = &found[..expected.log_probabilities.len()];
    assert_eq!(own, expected.log_probabilities, "the tokens are others");
    // The end token is in the list of a completion, and not in `ids`.
    let ends = usize::from(found.len() > own.len());
    assert!(found.len() - own.len() <= ends && ends <= 1);
}
