//! The program as a process: arguments, signals, a kill and a restart.

#![allow(clippy::unwrap_used, missing_docs)] // the helpers of tests are tests

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunebook"));
    command.args(["serve", "--bind", "127.0.0.1:0", "--base"]).arg(golden("lora_tiny/model"));
    command
}

struct Running {
    child: Child,
    url: String,
}

impl Running {
    /// Started, and its address read.
    fn start(arguments: &[&str]) -> Self {
        let mut command = command();
        let mut child =
            command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        assert!(url.starts_with("http://127.0.0.1:"), "{url}");
        Self { child, url: url.trim_end().to_owned() }
    }

    fn get(&self, path: &str) -> Value {
        let url = format!("{}{path}", self.url);
        ureq::get(url).call().unwrap().body_mut().read_json().unwrap()
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", self.url);
        ureq::post(url).send_json(body).unwrap().body_mut().read_json().unwrap()
    }

    fn models(&self) -> Vec<Value> {
        self.get("/models")["data"].as_array().unwrap().clone()
    }

    fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    fn wait(&mut self) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn adapters_are_served_and_signals_end_it() {
    let one = format!("support={}", golden("weighted/one").display());
    for signal in ["-TERM", "-INT"] {
        let mut running = Running::start(&["--adapter", &one, "--model-name", "tiny"]);
        let ids: Vec<Value> = running.models().iter().map(|model| model["id"].clone()).collect();
        assert_eq!(ids, ["tiny", "support"]);
        let body =
            json!({ "model": "support", "prompt": "Hello", "max_tokens": 4, "temperature": 0 });
        let answer = running.post("/completions", &body);
        assert_eq!(answer["system_fingerprint"], running.models()[1]["generation"]);
        running.signal(signal);
        assert_eq!(running.wait(), Some(0), "{signal}");
    }
}

#[test]
fn a_killed_server_comes_back_with_its_adapters() {
    let root = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        let to = root.path().join(name);
        std::fs::create_dir(&to).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(golden("weighted").join(name).join(file), to.join(file)).unwrap();
        }
    }
    let state = root.path().join("state.json");
    let (folder, state) = (root.path().to_str().unwrap(), state.to_str().unwrap());
    let arguments = ["--adapter-root", folder, "--allow-adapter-changes", "--state-file", state];
    let mut running = Running::start(&arguments);
    for (name, path) in [("a", "one"), ("b", "two")] {
        running.post("/load_lora_adapter", &json!({ "lora_name": name, "lora_path": path }));
    }
    let generations = |running: &Running| -> Vec<(Value, Value)> {
        running.models().iter().map(|m| (m["id"].clone(), m["generation"].clone())).collect()
    };
    let before = generations(&running);
    assert_eq!(before.len(), 3);
    running.signal("-KILL");
    assert_eq!(running.wait(), None);
    assert_eq!(generations(&Running::start(&arguments)), before);
}

#[test]
fn wrong_arguments_are_said() {
    let fails = |arguments: &[&str]| {
        let output = command().args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (arguments, code, says) in [
        (vec!["--adapter", "support"], 2, "expected NAME=PATH"),
        (vec!["--public"], 2, "--api-key-file"),
        (vec!["--allow-adapter-changes"], 2, "--adapter-root"),
        (vec!["--adapter", "a=x", "--adapter", "a=y"], 1, "given twice"),
        (vec!["--adapter", "a=/none"], 1, "/none"),
        (vec!["--api-key-file", "/none"], 1, "cannot read the key file `/none`"),
        (vec!["--max-batch-size", "0"], 1, "`EngineConfig.max_batch_size` is 0"),
    ] {
        let (found, text) = fails(&arguments);
        assert_eq!(found, Some(code), "{arguments:?}: {text}");
        assert!(text.contains(says), "{arguments:?}: {text}");
    }
}
