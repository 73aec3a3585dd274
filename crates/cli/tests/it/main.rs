//! The program as a process: arguments, signals, a kill and a restart.

#![allow(clippy::unwrap_used, missing_docs)] // the helpers of tests are tests

mod cluster;
mod export;
mod push;
mod registry;
mod train;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
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
        Self::start_with(arguments, |_| {})
    }

    /// The same, in other surroundings.
    fn start_with(arguments: &[&str], set: impl Fn(&mut Command)) -> Self {
        let mut command = command();
        set(&mut command);
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

/// A folder with the adapters `one` and `two`.
fn adapter_root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        let to = root.path().join(name);
        std::fs::create_dir(&to).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(golden("weighted").join(name).join(file), to.join(file)).unwrap();
        }
    }
    root
}

#[test]
fn a_killed_server_comes_back_with_its_adapters() {
    let root = adapter_root();
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

/// Those of `--adapter` are there as long as the argument is.
#[test]
fn the_state_file_keeps_what_clients_have_loaded() {
    let root = tempfile::tempdir().unwrap();
    let state = root.path().join("state.json");
    let (weighted, state) = (golden("weighted"), state.to_str().unwrap());
    let folder = weighted.to_str().unwrap();
    let arguments = ["--adapter-root", folder, "--allow-adapter-changes", "--state-file", state];
    let given = format!("given={folder}/one");
    let running = Running::start(&[&arguments[..], &["--adapter", &given]].concat());
    running.post("/load_lora_adapter", &json!({ "lora_name": "mine", "lora_path": "two" }));
    assert_eq!(running.models().len(), 3);
    drop(running);
    let ids = |running: Running| -> Vec<Value> {
        running.models().iter().map(|model| model["id"].clone()).collect()
    };
    assert_eq!(ids(Running::start(&arguments)), ["model", "mine"]);
    // A folder that is lost is no reason not to start.
    std::fs::write(state, json!({ "adapters": { "mine": "/none" } }).to_string()).unwrap();
    let mine = format!("mine={folder}/two");
    assert_eq!(
        ids(Running::start(&[&arguments[..], &["--adapter", &mine]].concat())),
        ["model", "mine"]
    );
    assert_eq!(ids(Running::start(&arguments)), ["model"]);
}

/// What a server must have after its end: what it has confirmed, or that and the change that was on its
/// way.
#[derive(Default)]
struct Confirmed {
    names: BTreeMap<String, String>,
    on_its_way: Option<BTreeMap<String, String>>,
}

/// Answers are given, and names change, until the process is killed.
#[test]
fn a_server_killed_under_load_comes_back_with_what_it_has_confirmed() {
    let root = adapter_root();
    let state = root.path().join("state.json");
    let (folder, state) = (root.path().to_str().unwrap(), state.to_str().unwrap());
    let arguments = ["--adapter-root", folder, "--allow-adapter-changes", "--state-file", state];
    let confirmed = Mutex::new(Confirmed::default());
    for round in 0..3 {
        let mut running = Running::start(&arguments);
        let found: BTreeMap<String, String> = running
            .models()
            .iter()
            .skip(1)
            .map(|m| (m["id"].as_str().unwrap().into(), m["generation"].as_str().unwrap().into()))
            .collect();
        let mut known = confirmed.lock().unwrap();
        let may_be = known.on_its_way.take();
        assert!(
            found == known.names || Some(&found) == may_be.as_ref(),
            "{found:?}: round {round}"
        );
        known.names = found;
        drop(known);
        let (answers, changes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let url = running.url.clone();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let body = json!({ "model": "model", "prompt": "Hello", "max_tokens": 20 });
                    while ureq::post(format!("{url}/completions")).send_json(&body).is_ok() {
                        answers.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            scope.spawn(|| {
                for turn in 0.. {
                    let name = ["a", "b", "c"][turn % 3];
                    let unloads =
                        turn % 5 == 4 && confirmed.lock().unwrap().names.contains_key(name);
                    let path = ["one", "two"][turn / 3 % 2];
                    let (route, body) = match unloads {
                        true => ("unload_lora_adapter", json!({ "lora_name": name })),
                        false => (
                            "load_lora_adapter",
                            json!({ "lora_name": name, "lora_path": path, "load_inplace": true }),
                        ),
                    };
                    let answered = ureq::post(format!("{url}/{route}")).send_json(&body);
                    let generation = answered.ok().and_then(|mut answer| {
                        let answer: Value = answer.body_mut().read_json().ok()?;
                        Some(answer["generation"].as_str()?.to_owned())
                    });
                    let mut known = confirmed.lock().unwrap();
                    let mut next = known.names.clone();
                    match (unloads, &generation) {
                        (true, _) => drop(next.remove(name)),
                        (false, Some(generation)) => {
                            drop(next.insert(name.into(), generation.clone()))
                        }
                        // What it would have been is known from the other folder's name alone.
                        (false, None) => drop(next.insert(name.into(), path.into())),
                    }
                    match generation {
                        Some(_) => known.names = next,
                        None => {
                            known.on_its_way = Some(next);
                            return;
                        }
                    }
                    changes.fetch_add(1, Ordering::Relaxed);
                }
            });
            std::thread::sleep(Duration::from_millis(400 + 150 * round));
            running.signal("-KILL");
        });
        assert_eq!(running.wait(), None, "killed");
        assert!(answers.into_inner() > 5 && changes.into_inner() > 3);
        // The generation of the change that was not confirmed, from the folder that it names.
        let mut known = confirmed.lock().unwrap();
        if let Some(next) = &mut known.on_its_way {
            for (name, generation) in next.iter_mut().filter(|(_, g)| *g == "one" || *g == "two") {
                let offline =
                    Running::start(&["--adapter", &format!("{name}={folder}/{generation}")]);
                *generation = offline.models()[1]["generation"].as_str().unwrap().to_owned();
            }
        }
    }
}

#[test]
fn a_watched_folder_is_served() {
    let root = tempfile::tempdir().unwrap();
    let put = |name: &str| {
        let temporary = root.path().join(format!(".{name}.tmp"));
        std::fs::create_dir(&temporary).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(golden("weighted/one").join(file), temporary.join(file)).unwrap();
        }
        std::fs::rename(temporary, root.path().join(name)).unwrap();
    };
    let running = Running::start(&["--watch", root.path().to_str().unwrap()]);
    assert_eq!(running.models().len(), 1);
    put("support");
    let begun = Instant::now();
    while running.models().len() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(20), "it is not loaded");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(running.models()[1]["id"], "support");
}

/// From a cache as a download leaves it.
#[test]
fn an_adapter_is_served_by_its_name_on_the_hub() {
    let home = tempfile::tempdir().unwrap();
    let repository = home.path().join("models--me--support");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = repository.join("snapshots").join(commit);
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(repository.join("refs/main"), commit).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(golden("weighted/one").join(file), snapshot.join(file)).unwrap();
    }
    let offline = |command: &mut Command| {
        command
            .current_dir(home.path())
            .env("HF_HUB_CACHE", home.path())
            .env("HF_HUB_OFFLINE", "1");
    };
    let running = Running::start_with(&["--adapter", "sup=me/support"], offline);
    let models = running.models();
    assert_eq!((models.len(), &models[1]["id"]), (2, &json!("sup")));
    // The same files in a folder are the same generation, and a folder of that name comes first.
    let folder = format!("sup={}", golden("weighted/one").display());
    let by_folder = Running::start(&["--adapter", &folder]);
    assert_eq!(models[1]["generation"], by_folder.models()[1]["generation"]);
    let here = home.path().join("me/support");
    std::fs::create_dir_all(&here).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(golden("weighted/two").join(file), here.join(file)).unwrap();
    }
    let here = Running::start_with(&["--adapter", "sup=me/support"], offline);
    assert_ne!(models[1]["generation"], here.models()[1]["generation"]);
    // What is neither says both.
    let mut command = command();
    offline(&mut command);
    let output = command.args(["--adapter", "sup=me/other"]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1), "{error}");
    assert!(error.contains("me/other") && error.contains("no folder of this name"), "{error}");
}

#[test]
fn wrong_arguments_are_said() {
    let fails = |arguments: &[&str]| {
        let output = command().args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (arguments, code, says) in [
        (vec!["--adapter", "support"], 2, "expected NAME=PATH_OR_ID"),
        (vec!["--public"], 2, "--api-key-file"),
        (vec!["--allow-adapter-changes"], 2, "--adapter-root"),
        (vec!["--adapter", "a=x", "--adapter", "a=y"], 1, "given twice"),
        (vec!["--adapter", "a=/none"], 1, "/none"),
        (vec!["--api-key-file", "/none"], 1, "cannot read the key file `/none`"),
        (vec!["--watch", "/none"], 1, "/none"),
        (vec!["--max-batch-size", "0"], 1, "`EngineConfig.max_batch_size` is 0"),
    ] {
        let (found, text) = fails(&arguments);
        assert_eq!(found, Some(code), "{arguments:?}: {text}");
        assert!(text.contains(says), "{arguments:?}: {text}");
    }
}
