//! A watched folder: what appears whole is served, what is broken never is.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tunebook_serve::{EventLog, Limits, ServerConfig, Watch};
use tunebook_tune::FrozenAdapter;

use crate::support::*;

const LOOK: Duration = Duration::from_millis(30);
const TENSORS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";

/// A server that watches a folder, and what it tells.
struct Watched {
    service: Service,
    root: TempDir,
    events: Arc<Mutex<Vec<String>>>,
}

impl Watched {
    fn start(fill: impl FnOnce(&Path)) -> Self {
        let root = tempfile::tempdir().unwrap();
        fill(root.path());
        let events: Arc<Mutex<Vec<String>>> = Arc::default();
        let config = config(root.path(), &events);
        Self { service: Service::with(&config), root, events }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// What is served under a name.
    fn generation(&self, name: &str) -> Option<String> {
        let all = self.service.server.adapters();
        all.into_iter().find(|adapter| adapter.name == name).map(|adapter| adapter.generation)
    }

    fn wait_for(&self, name: &str, generation: Option<&str>) {
        wait_for(name, Duration::from_secs(20), || self.generation(name).as_deref() == generation);
    }

    /// The events that name an adapter.
    fn told(&self, name: &str) -> Vec<String> {
        let word = format!("`{name}`");
        let events = self.events.lock().unwrap();
        events.iter().filter(|event| event.contains(&word)).cloned().collect()
    }

    /// As many looks as any change needs.
    fn several_looks(&self) {
        std::thread::sleep(8 * LOOK);
    }
}

fn config(root: &Path, events: &Arc<Mutex<Vec<String>>>) -> ServerConfig {
    let events = Arc::clone(events);
    let log = move |event: &str| events.lock().unwrap().push(event.to_owned());
    ServerConfig {
        watch: Some(Watch { interval: LOOK, ..Watch::new(root) }),
        event_log: Some(EventLog(Arc::new(log))),
        ..Default::default()
    }
}

fn one() -> PathBuf {
    golden("weighted/one")
}

fn two() -> PathBuf {
    golden("weighted/two")
}

fn fingerprint(service: &Service, folder: &Path) -> String {
    FrozenAdapter::read(&service.model, "any", folder).unwrap().fingerprint().to_owned()
}

/// Puts a folder in place at once, as our own writer does.
fn rename_into(root: &Path, from: &Path, name: &str) {
    let temporary = root.join(format!(".{name}.1.tmp"));
    copy_folder(from, &temporary);
    if root.join(name).exists() {
        fs::rename(root.join(name), root.join(format!(".{name}.1.old"))).unwrap();
    }
    fs::rename(temporary, root.join(name)).unwrap();
    let _ = fs::remove_dir_all(root.join(format!(".{name}.1.old")));
}

#[test]
fn adapters_come_change_and_go_with_their_folders() {
    let watched = Watched::start(|root| copy_folder(&one(), &root.join("there")));
    let service = &watched.service;
    let [first, second] = [one(), two()].map(|folder| fingerprint(service, &folder));
    wait_for("the first look", LOOK * 20, || watched.generation("there").is_some());
    rename_into(watched.root.path(), &one(), "renamed");
    watched.wait_for("renamed", Some(&first));
    let answer = service.complete(&request("renamed", "Hello", 8));
    assert_eq!(answer["system_fingerprint"], first.as_str());
    rename_into(watched.root.path(), &two(), "renamed");
    watched.wait_for("renamed", Some(&second));
    let handle = FrozenAdapter::read(&service.model, "any", two()).unwrap().overlay();
    let answer = service.complete(&request("renamed", "Hello", 8));
    assert_is(&answer["choices"][0], &greedy(&service.model.with_overlay(handle), "Hello", 8));
    // The same again is the same generation.
    rename_into(watched.root.path(), &two(), "renamed");
    watched.several_looks();
    watched.wait_for("renamed", Some(&second));
    fs::remove_dir_all(watched.path("renamed")).unwrap();
    watched.wait_for("renamed", None);
    assert_eq!(service.refusal("/v1/completions", &request("renamed", "Hello", 8)).0, 404);
    watched.wait_for("there", Some(&first));
    let told = watched.told("renamed");
    for (event, word) in told.iter().zip(["loaded", "replaced", "unloaded"]) {
        assert!(event.contains(word), "{told:?}");
    }
    assert_eq!(told.len(), 3, "{told:?}");
}

/// Each piece of the file stands for longer than a look and half: whatever is read meanwhile is
/// half of it.
#[test]
fn a_slow_writer_is_waited_for() {
    let watched = Watched::start(|_| ());
    let folder = watched.path("slow");
    fs::create_dir(&folder).unwrap();
    fs::copy(one().join(CONFIG), folder.join(CONFIG)).unwrap();
    let bytes = fs::read(one().join(TENSORS)).unwrap();
    let mut file = fs::File::create(folder.join(TENSORS)).unwrap();
    for piece in bytes.chunks(bytes.len() / 8) {
        assert_eq!(watched.generation("slow"), None, "half of it");
        file.write_all(piece).unwrap();
        std::thread::sleep(LOOK * 3);
    }
    drop(file);
    watched.wait_for("slow", Some(&fingerprint(&watched.service, &one())));
    let told = watched.told("slow");
    let refused = told.iter().filter(|event| event.contains("is not served")).count();
    assert!(refused <= 1 && told.last().unwrap().contains("loaded"), "{told:?}");
    // In the other order, and over one that is served: that one stays until the new one is whole.
    let bytes = fs::read(two().join(TENSORS)).unwrap();
    let mut file = fs::File::create(folder.join(TENSORS)).unwrap();
    let served = watched.generation("slow").unwrap();
    for piece in bytes.chunks(bytes.len() / 4) {
        assert_eq!(watched.generation("slow").as_ref(), Some(&served), "half of it");
        file.write_all(piece).unwrap();
        std::thread::sleep(LOOK * 3);
    }
    fs::copy(two().join(CONFIG), folder.join(CONFIG)).unwrap();
    watched.wait_for("slow", Some(&fingerprint(&watched.service, &two())));
}

#[test]
fn a_broken_adapter_is_never_served_and_reported_once() {
    let watched = Watched::start(|root| {
        for name in ["torn", "json", "shape", "nan", "missing"] {
            copy_folder(&one(), &root.join(name));
        }
        let torn = root.join("torn").join(TENSORS);
        let bytes = fs::read(&torn).unwrap();
        fs::write(&torn, &bytes[..bytes.len() - 1]).unwrap();
        fs::write(root.join("json").join(CONFIG), "{\"peft_type\": \"LORA\"").unwrap();
        let path = root.join("shape").join(CONFIG);
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["r"] = json!(5);
        fs::write(path, config.to_string()).unwrap();
        let mut bytes = bytes;
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(root.join("nan").join(TENSORS), bytes).unwrap();
        fs::remove_file(root.join("missing").join(TENSORS)).unwrap();
        // No adapters at all.
        fs::create_dir(root.join("empty")).unwrap();
        fs::write(root.join("file"), "x").unwrap();
    });
    watched.several_looks();
    for name in ["torn", "json", "shape", "nan", "missing"] {
        wait_for(name, Duration::from_secs(10), || !watched.told(name).is_empty());
    }
    watched.several_looks();
    assert!(watched.service.server.adapters().is_empty());
    for name in ["torn", "json", "shape", "nan", "missing"] {
        let told = watched.told(name);
        assert!(told.len() == 1 && told[0].contains("is not served"), "{told:?}");
    }
    assert!(watched.told("empty").is_empty() && watched.told("file").is_empty());
    // Once it is repaired it is served.
    copy_folder(&one(), &watched.path("torn"));
    watched.wait_for("torn", Some(&fingerprint(&watched.service, &one())));
}

#[test]
fn links_out_of_the_folder_are_refused() {
    let outside = tempfile::tempdir().unwrap();
    copy_folder(&one(), &outside.path().join("one"));
    let watched = Watched::start(|root| {
        symlink(outside.path().join("one"), root.join("linked")).unwrap();
        copy_folder(&one(), &root.join("stolen"));
        fs::remove_file(root.join("stolen").join(TENSORS)).unwrap();
        let file = outside.path().join("one").join(TENSORS);
        symlink(file, root.join("stolen").join(TENSORS)).unwrap();
        copy_folder(&two(), &root.join(".v1"));
        symlink(root.join(".v1"), root.join("current")).unwrap();
    });
    // A link within is what it points to.
    watched.wait_for("current", Some(&fingerprint(&watched.service, &two())));
    for name in ["linked", "stolen"] {
        wait_for(name, Duration::from_secs(10), || !watched.told(name).is_empty());
        let told = watched.told(name);
        assert!(told.len() == 1 && told[0].contains("adapter root"), "{told:?}");
        assert_eq!(watched.generation(name), None);
    }
}

#[test]
fn what_did_not_come_from_the_folder_is_left_alone() {
    let watched = Watched::start(|_| ());
    let server = &watched.service.server;
    let mine = server.swap("mine", two()).unwrap();
    rename_into(watched.root.path(), &one(), "mine");
    wait_for("the word", Duration::from_secs(10), || !watched.told("mine").is_empty());
    assert_eq!(watched.generation("mine").as_ref(), Some(&mine));
    fs::remove_dir_all(watched.path("mine")).unwrap();
    watched.several_looks();
    assert_eq!(watched.generation("mine").as_ref(), Some(&mine));
    // What was replaced by hand is no longer the folder's, either.
    rename_into(watched.root.path(), &one(), "other");
    watched.wait_for("other", Some(&fingerprint(&watched.service, &one())));
    let by_hand = server.swap("other", two()).unwrap();
    fs::remove_dir_all(watched.path("other")).unwrap();
    watched.several_looks();
    assert_eq!(watched.generation("other"), Some(by_hand));
    // What was unloaded by hand comes back when it changes.
    rename_into(watched.root.path(), &one(), "again");
    watched.wait_for("again", Some(&fingerprint(&watched.service, &one())));
    server.remove("again").unwrap();
    watched.several_looks();
    assert_eq!(watched.generation("again"), None);
    rename_into(watched.root.path(), &two(), "again");
    watched.wait_for("again", Some(&fingerprint(&watched.service, &two())));
}

#[test]
fn a_restart_finds_what_is_there_then() {
    let root = tempfile::tempdir().unwrap();
    let state = root.path().join("state.json");
    let folder = root.path().join("adapters");
    copy_folder(&one(), &folder.join("a"));
    copy_folder(&one(), &folder.join("b"));
    let events = Arc::default();
    let config = ServerConfig { state_file: Some(state.clone()), ..config(&folder, &events) };
    // Files that were quiet for a while are served from the first request on.
    std::thread::sleep(LOOK * 3);
    let service = Service::with(&config);
    assert_eq!(service.server.adapters().len(), 2);
    service.server.swap("mine", two()).unwrap();
    drop(service);
    fs::remove_dir_all(folder.join("a")).unwrap();
    let service = Service::with(&config);
    let names: Vec<String> = service.server.adapters().into_iter().map(|a| a.name).collect();
    assert_eq!(names, ["b", "mine"]);
    let none = ServerConfig { watch: Some(Watch::new(root.path().join("none"))), ..config };
    let error = model_server_error(&none);
    assert!(error.contains("none"), "{error}");
}

fn model_server_error(config: &ServerConfig) -> String {
    use tunebook_serve::Serve as _;
    model().serve_with("127.0.0.1:0", config).unwrap_err().to_string()
}

#[test]
fn what_had_no_room_or_no_name_comes_once_it_has() {
    let root = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        copy_folder(&one(), &root.path().join(name));
    }
    let events = Arc::default();
    let limits = Limits { max_adapters: 1, ..Default::default() };
    let service = Service::with(&ServerConfig { limits, ..config(root.path(), &events) });
    let watched = Watched { service, root, events };
    let first = fingerprint(&watched.service, &one());
    wait_for("the word", Duration::from_secs(10), || !watched.told("b").is_empty());
    watched.several_looks();
    assert_eq!((watched.generation("b"), watched.told("b").len()), (None, 1));
    fs::remove_dir_all(watched.path("a")).unwrap();
    watched.wait_for("b", Some(&first));
    // The name is somebody else's, who gives it up.
    fs::remove_dir_all(watched.path("b")).unwrap();
    watched.wait_for("b", None);
    watched.service.server.swap("mine", two()).unwrap();
    rename_into(watched.root.path(), &one(), "mine");
    wait_for("the word", Duration::from_secs(10), || !watched.told("mine").is_empty());
    watched.several_looks();
    assert_eq!(watched.told("mine").len(), 1);
    watched.service.server.remove("mine").unwrap();
    watched.wait_for("mine", Some(&first));
}

#[test]
fn a_request_takes_no_name_from_the_watch() {
    let root = tempfile::tempdir().unwrap();
    copy_folder(&one(), &root.path().join("a"));
    let events = Arc::default();
    let service = Service::with(&ServerConfig {
        allow_adapter_changes: true,
        adapter_root: Some(root.path().to_path_buf()),
        ..config(root.path(), &events)
    });
    let watched = Watched { service, root, events };
    let first = fingerprint(&watched.service, &one());
    watched.wait_for("a", Some(&first));
    let load = json!({ "lora_name": "a", "lora_path": "a" });
    let refused = watched.service.refusal("/v1/load_lora_adapter", &load);
    assert_eq!(refused.1, "adapter_exists");
    fs::remove_dir_all(watched.path("a")).unwrap();
    watched.wait_for("a", None);
}
