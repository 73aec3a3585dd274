//! Adapters: as models, swapped under load, refused where they do not belong.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tunebook_models::Completion;
use tunebook_serve::{Error, EventLog, Limits, Serve, ServerConfig};
use tunebook_tune::{Adapters, FrozenAdapter, Full, FullTuning, Lora, Stepper, TrainingArgs};

use crate::support::*;

const LOAD: &str = "/v1/load_lora_adapter";
const UNLOAD: &str = "/v1/unload_lora_adapter";

fn load(name: &str, path: &str) -> Value {
    json!({ "lora_name": name, "lora_path": path })
}

fn with(mut body: Value, extra: Value) -> Value {
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// The generation that an adapter's folder is, and its offline handle.
fn frozen(service: &Service, folder: &Path) -> FrozenAdapter {
    FrozenAdapter::read(&service.model, "any", folder).unwrap()
}

#[test]
fn adapters_are_models_loaded_replaced_and_unloaded() {
    let root = adapter_root();
    let service = Service::with_adapters(root.path());
    let ask = |model: &str| service.post("/v1/completions", &request(model, "Hello", 16));
    assert_eq!(ask("support").0, 404, "never the base");
    let loaded = service.answer(LOAD, &load("support", "one"));
    assert!(loaded["message"].as_str().unwrap().starts_with("Success"));
    let one = frozen(&service, &root.path().join("one"));
    let two = frozen(&service, &root.path().join("two"));
    assert_eq!(loaded["generation"], one.fingerprint());
    let expected = |adapter: &FrozenAdapter| {
        greedy(&service.model.with_overlay(adapter.overlay()), "Hello", 16)
    };
    assert_ne!(expected(&one).ids, expected(&two).ids);
    assert_ne!(expected(&one).ids, greedy(&service.model.base(), "Hello", 16).ids);
    let answer = ask("support").1;
    assert_eq!([&answer["model"], &answer["system_fingerprint"]], ["support", one.fingerprint()]);
    assert_is(&answer["choices"][0], &expected(&one));
    // The list of models.
    let models = service.get_json("/v1/models");
    let ids: Vec<&Value> = models["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
    assert_eq!(ids, ["model", "support"]);
    assert_eq!(models["data"][0]["parent"], Value::Null);
    assert_eq!(
        [&models["data"][1]["parent"], &models["data"][1]["generation"]],
        ["model", one.fingerprint()]
    );
    assert_eq!(service.get_json("/v1/models/support"), models["data"][1]);
    assert_eq!(service.get("/v1/models/none").0, 404);
    // The same again changes nothing; another needs the word for it, as with vLLM.
    let again = service.answer(LOAD, &load("support", "one"));
    assert_eq!(again["replaced"], Value::Null);
    let refused = service.refusal(LOAD, &load("support", "two"));
    assert_eq!(refused, (400, "adapter_exists".to_owned(), "lora_name".to_owned()));
    let replaced =
        service.answer(LOAD, &with(load("support", "two"), json!({ "load_inplace": true })));
    assert_eq!(
        [&replaced["replaced"], &replaced["generation"]],
        [one.fingerprint(), two.fingerprint()]
    );
    assert_is(&ask("support").1["choices"][0], &expected(&two));
    // An exact generation can be asked for, by its beginning.
    assert_eq!(ask(&format!("support@{}", &two.fingerprint()[..8])).0, 200);
    assert_eq!(ask(&format!("support@{}", one.fingerprint())).0, 404);
    let gone = service.answer(UNLOAD, &json!({ "lora_name": "support", "lora_int_id": 1 }));
    assert_eq!(gone["deleted"], true);
    assert_eq!(ask("support").0, 404);
    let refused = service.refusal(UNLOAD, &json!({ "lora_name": "support" }));
    assert_eq!(refused, (404, "adapter_not_found".to_owned(), "lora_name".to_owned()));
}

#[test]
fn a_change_meant_for_another_generation_is_409() {
    let root = adapter_root();
    let service = Service::with_adapters(root.path());
    let one = service.answer(LOAD, &load("a", "one"))["generation"].clone();
    let change = |name: &str, path: &str, expected: &Value| {
        service.post(LOAD, &with(load(name, path), json!({ "expected_generation": expected })))
    };
    let conflict = (409, "generation_conflict".to_owned(), "expected_generation".to_owned());
    let (status, answer) = change("a", "two", &json!("0123"));
    assert_eq!(refusal(status, &answer), conflict);
    let (status, answer) = change("new", "two", &one);
    assert_eq!(refusal(status, &answer), conflict, "nothing is of no generation");
    let (status, two) = change("a", "two", &one);
    assert_eq!(status, 200);
    let (status, _) = change("a", "one", &one);
    assert_eq!(status, 409, "somebody was faster");
    let unload = json!({ "lora_name": "a", "expected_generation": one });
    assert_eq!(service.refusal(UNLOAD, &unload), conflict);
    let status = &service.server.adapters()[0];
    assert_eq!(json!(status.generation), two["generation"], "nothing has changed");
    let refused = service.server.swap_from("a", "0123", root.path().join("one")).unwrap_err();
    assert!(matches!(refused, Error::Generation { .. }), "{refused}");
}

#[test]
fn of_many_that_replace_one_generation_one_wins() {
    let root = adapter_root();
    let service = Service::with_adapters(root.path());
    let first = service.answer(LOAD, &load("a", "one"))["generation"].clone();
    let won = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let body = with(load("a", "two"), json!({ "expected_generation": first }));
                match service.post(LOAD, &body).0 {
                    200 => won.fetch_add(1, Ordering::Relaxed),
                    status => usize::from(status != 409) * 100,
                }
            });
        }
    });
    assert_eq!(won.into_inner(), 1);
}

#[test]
fn every_answer_under_swaps_is_of_the_generation_that_it_names() {
    let root = adapter_root();
    let service = Service::with_adapters(root.path());
    // A beginning that all prompts share, so that the prefix cache is at work.
    let system = "You answer briefly, as a careful clerk would, and you never guess. ".repeat(2);
    let prompts: Vec<String> = (0..6).map(|i| format!("{system}Question {i}?")).collect();
    let folders = ["one", "two"].map(|name| root.path().join(name));
    let mut offline: HashMap<String, BTreeMap<&str, Completion>> = HashMap::new();
    for folder in &folders {
        let adapter = frozen(&service, folder);
        let handle = service.model.with_overlay(adapter.overlay());
        let answers = prompts.iter().map(|p| (p.as_str(), greedy(&handle, p, 24))).collect();
        offline.insert(adapter.fingerprint().to_owned(), answers);
    }
    service.server.swap("a", folders[0].as_path()).unwrap();
    let done = AtomicBool::new(false);
    let swaps = AtomicUsize::new(0);
    let seen: Vec<HashMap<String, usize>> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let (service, prompts, offline, done) = (&service, &prompts, &offline, &done);
                scope.spawn(move || {
                    let mut seen = HashMap::new();
                    let mut turn = client;
                    while !done.load(Ordering::Relaxed) {
                        let prompt = &prompts[turn % prompts.len()];
                        let body = request("a", prompt, 24);
                        let (generation, choice) = match turn % 3 {
                            0 => {
                                let chunks = service.stream("/v1/completions", &body);
                                let generations: Vec<&str> = chunks
                                    .iter()
                                    .map(|c| c["system_fingerprint"].as_str().unwrap())
                                    .collect();
                                assert!(generations.iter().all(|g| *g == generations[0]));
                                let text: String = chunks
                                    .iter()
                                    .map(|c| c["choices"][0]["text"].as_str().unwrap())
                                    .collect();
                                let logs: Vec<&Value> = chunks
                                    .iter()
                                    .filter_map(|c| {
                                        c["choices"][0]["logprobs"]["token_logprobs"].as_array()
                                    })
                                    .flatten()
                                    .collect();
                                let choice =
                                    json!({ "text": text, "logprobs": { "token_logprobs": logs } });
                                (generations[0].to_owned(), choice)
                            }
                            _ => {
                                let answer = service.complete(&body);
                                let generation = answer["system_fingerprint"].as_str().unwrap();
                                (generation.to_owned(), answer["choices"][0].clone())
                            }
                        };
                        assert_is(&choice, &offline[&generation][prompt.as_str()]);
                        *seen.entry(generation).or_insert(0) += 1;
                        turn += 1;
                    }
                    seen
                })
            })
            .collect();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(4) {
            let next = 1 + swaps.fetch_add(1, Ordering::Relaxed);
            service.server.swap("a", folders[next % 2].as_path()).unwrap();
            std::thread::sleep(Duration::from_millis(3));
        }
        done.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let mut total: HashMap<&str, usize> = HashMap::new();
    for (generation, count) in seen.iter().flatten() {
        *total.entry(generation).or_insert(0) += count;
    }
    assert_eq!(total.len(), 2, "both generations have answered: {total:?}");
    assert!(total.values().all(|count| *count >= 5) && swaps.into_inner() >= 50, "{total:?}");
    assert!(service.metric("tunebook_prompt_tokens_cached_total") > 0.0, "the cache was at work");
}

/// vLLM's issue 42125: an adapter that is loaded again under its name was answered with the keys and
/// values of the old one. llama.cpp's 26207 is the same of two adapters with one prompt.
#[test]
fn no_prompt_is_answered_from_another_adapters_cache() {
    let root = adapter_root();
    let service = Service::with_adapters(root.path());
    let prompt = "A long prompt that fills several pages of the cache. ".repeat(4);
    let ask = |model: &str| service.complete(&request(model, &prompt, 16));
    for round in 0..3 {
        for name in ["one", "two"] {
            service.answer(LOAD, &with(load("a", name), json!({ "load_inplace": true })));
            let adapter = frozen(&service, &root.path().join(name));
            let handle = service.model.with_overlay(adapter.overlay());
            let expected = greedy(&handle, &prompt, 16);
            for _ in 0..2 {
                assert_is(&ask("a")["choices"][0], &expected);
            }
            assert_is(&ask("model")["choices"][0], &greedy(&service.model.base(), &prompt, 16));
            assert!(round == 0 || service.metric("tunebook_prompt_tokens_cached_total") > 0.0);
        }
    }
}

#[test]
fn adapters_of_all_types_are_served_together() {
    let service = Service::start();
    let mut expected = Vec::new();
    for case in ["dora", "ia3", "prompt", "prefix", "double-seq-bn", "adalora", "pissa", "tied"] {
        let folder =
            ["final", "initial", ""].map(|part| golden("strategies").join(case).join(part));
        let folder = folder.into_iter().find(|f| f.join("adapter_config.json").is_file()).unwrap();
        let name = case.replace('-', "_");
        let generation = service.server.swap(&name, folder.as_path()).unwrap();
        let adapter = frozen(&service, &folder);
        assert_eq!(generation, adapter.fingerprint());
        expected.push((name, greedy(&service.model.with_overlay(adapter.overlay()), "Hello", 12)));
    }
    std::thread::scope(|scope| {
        for (name, expected) in &expected {
            scope.spawn(|| {
                let answer = service.complete(&request(name, "Hello", 12));
                assert_is(&answer["choices"][0], expected);
            });
        }
    });
}

#[test]
fn nothing_outside_the_root_is_loaded_and_nothing_where_changes_are_off() {
    let root = adapter_root();
    let outside = tempfile::tempdir().unwrap();
    copy_folder(&root.path().join("one"), &outside.path().join("one"));
    symlink(outside.path().join("one"), root.path().join("link")).unwrap();
    copy_folder(&root.path().join("one"), &root.path().join("stolen"));
    fs::remove_file(root.path().join("stolen/adapter_model.safetensors")).unwrap();
    let file = outside.path().join("one/adapter_model.safetensors");
    symlink(file, root.path().join("stolen/adapter_model.safetensors")).unwrap();
    let service = Service::with_adapters(root.path());
    let absolute = outside.path().join("one");
    let parent = format!("../{}/one", outside.path().file_name().unwrap().to_str().unwrap());
    for path in [absolute.to_str().unwrap(), &parent, "link", "stolen", "none", "", "one\0"] {
        let refused = service.refusal(LOAD, &load("a", path));
        let known = ["adapter_path", "adapter_refused"].contains(&refused.1.as_str());
        assert!(refused.0 == 400 && known && refused.2 == "lora_path", "{path:?}: {refused:?}");
    }
    let inside = root.path().canonicalize().unwrap().join("one");
    service.answer(LOAD, &load("a", inside.to_str().unwrap()));

    let closed = Service::start();
    for (path, body) in [(LOAD, load("a", "one")), (UNLOAD, json!({ "lora_name": "a" }))] {
        let refused = closed.refusal(path, &body);
        assert_eq!((refused.0, refused.1.as_str()), (403, "adapter_changes_off"));
    }
}

#[test]
fn adapters_that_do_not_belong_here_are_refused_with_the_reason() {
    let root = adapter_root();
    let service = Service::with_adapters(root.path());
    let copy = |name: &str| {
        copy_folder(&root.path().join("one"), &root.path().join(name));
        root.path().join(name)
    };
    let edit = |name: &str, field: &str, value: Value| {
        let path = copy(name).join("adapter_config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[field] = value;
        fs::write(path, config.to_string()).unwrap();
    };
    edit("other", "base_model_name_or_path", json!("meta-llama/Llama-3.2-1B"));
    edit("rank", "r", json!(5));
    edit("keys", "target_modules", json!(["k_proj"])); // vLLM's issue 34186
    let torn = copy("torn").join("adapter_model.safetensors");
    let bytes = fs::read(&torn).unwrap();
    fs::write(&torn, &bytes[..bytes.len() / 2]).unwrap();
    let nan = copy("nan").join("adapter_model.safetensors");
    let mut bytes = fs::read(&nan).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&nan, bytes).unwrap();
    for (path, code, says) in [
        ("other", "other_base", "trained on `meta-llama/Llama-3.2-1B`"),
        ("rank", "adapter_refused", "expected"),
        ("keys", "adapter_refused", "k_proj"),
        ("torn", "adapter_refused", "adapter_model.safetensors"),
        ("nan", "adapter_refused", "NaN"),
    ] {
        let (status, answer) = service.post(LOAD, &load("a", path));
        let message = answer["error"]["message"].as_str().unwrap();
        assert_eq!(
            (status, answer["error"]["code"].as_str()),
            (400, Some(code)),
            "{path}: {answer}"
        );
        assert!(message.contains(says), "{path}: {message}");
    }
    for (name, code) in
        [("model", "adapter_name"), ("a/b", "adapter_name"), ("a@b", "adapter_name")]
    {
        assert_eq!(service.refusal(LOAD, &load(name, "one")).1, code, "{name}");
    }
    assert!(service.server.adapters().is_empty());
    // The same weights under another name: the fingerprint of the base says so.
    let trained = service.model.add_adapter("mine", &Lora { r: 2, ..Default::default() }).unwrap();
    let folder = service.model.save_adapter(&trained.name, root.path()).unwrap();
    let path = folder.join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["base_model_name_or_path"] = "renamed".into();
    fs::write(path, config.to_string()).unwrap();
    service.answer(LOAD, &load("mine", "mine"));
    // Whoever starts the server may know better.
    let any = ServerConfig { any_base: true, ..Default::default() };
    let lenient = Service::with(&any);
    lenient.server.swap("a", root.path().join("other")).unwrap();
}

#[test]
fn there_is_a_limit_on_adapters() {
    let root = adapter_root();
    let service = Service::with(&ServerConfig {
        allow_adapter_changes: true,
        adapter_root: Some(root.path().to_path_buf()),
        limits: Limits { max_adapters: 1, ..Default::default() },
        ..Default::default()
    });
    service.answer(LOAD, &load("a", "one"));
    assert_eq!(service.refusal(LOAD, &load("b", "one")).1, "too_many_adapters");
    service.answer(LOAD, &with(load("a", "two"), json!({ "load_inplace": true })));
}

#[test]
fn names_survive_a_restart() {
    let root = adapter_root();
    let state = root.path().join("state.json");
    let config = ServerConfig {
        allow_adapter_changes: true,
        adapter_root: Some(root.path().to_path_buf()),
        state_file: Some(state.clone()),
        ..Default::default()
    };
    let service = Service::with(&config);
    service.answer(LOAD, &load("a", "one"));
    service.answer(LOAD, &load("b", "two"));
    service.answer(LOAD, &load("c", "two"));
    service.answer(UNLOAD, &json!({ "lora_name": "c" }));
    let before = service.server.adapters();
    drop(service); // as a kill would
    let service = Service::with(&config);
    assert_eq!(service.server.adapters(), before);
    assert_eq!(before.len(), 2);
    drop(service);
    fs::write(&state, "{").unwrap();
    let error = model().serve_with("127.0.0.1:0", &config).unwrap_err().to_string();
    assert!(error.contains("state.json") && error.contains("repair it"), "{error}");
}

#[test]
fn adapters_are_swapped_in_from_memory_and_trained_on_beside_the_server() {
    let model = model();
    model.load_adapter(golden("weighted/one"), "support").unwrap();
    let service = Service::of(model, &ServerConfig::default());
    let Service { model, server, .. } = &service;
    let served = || server.adapters()[0].generation.clone();
    let ask = || service.complete(&request("support", "Hello", 12));
    // What the model had when it was served.
    let first = served();
    let expected = greedy(&model.with_adapter("support").unwrap(), "Hello", 12);
    assert_is(&ask()["choices"][0], &expected);
    // Training goes on with the model's own copy.
    let args = TrainingArgs { learning_rate: 0.05, ..Default::default() };
    let mut stepper = Stepper::new(&model.with_adapter("support").unwrap(), &args, 4).unwrap();
    let example = tunebook_tune::TokenizedExample {
        row: 0,
        ids: vec![40, 41, 42, 43, 44],
        labels: vec![-100, 41, 42, 43, 44],
    };
    let batch = tunebook_tune::Batch::new(&[&example], 0, model.device()).unwrap();
    for _ in 0..4 {
        stepper.step(std::slice::from_ref(&batch)).unwrap();
    }
    let trained = greedy(&model.with_adapter("support").unwrap(), "Hello", 12);
    assert_ne!(trained.log_probabilities, expected.log_probabilities);
    let answer = ask();
    assert_is(&answer["choices"][0], &expected);
    assert_eq!(answer["system_fingerprint"], first.as_str());
    // Until it is swapped in.
    let second = server.swap("support", "support").unwrap();
    assert_ne!(second, first);
    assert_is(&ask()["choices"][0], &trained);
    let third = server.swap_from("support", &second, &model.with_adapter("support").unwrap());
    assert_eq!(third.unwrap(), second, "the same numbers are the same generation");
    // And its files are, too.
    let dir = tempfile::tempdir().unwrap();
    let folder = model.save_adapter("support", dir.path()).unwrap();
    assert_eq!(server.swap("support", folder).unwrap(), second);
    let error = server.swap("support", &model.base()).unwrap_err();
    assert!(matches!(error, Error::NoAdapter { .. }), "{error}");
    let error = server.swap("support", &crate::support::model()).unwrap_err();
    assert!(matches!(error, Error::OtherModel), "{error}");
}

#[test]
fn weights_that_are_served_are_not_trained() {
    let service = Service::start();
    let Service { model, server, .. } = &service;
    let error = model.unfreeze(&Full::default()).unwrap_err().to_string();
    let address = format!("http://{}", server.addr());
    assert!(error.contains(&address) && error.contains("Stop the server first"), "{error}");
    model.add_adapter("other", &Lora { r: 2, ..Default::default() }).unwrap();
    Stepper::new(model, &TrainingArgs::default(), 1).unwrap();
    assert!(server.stop());
    model.unfreeze(&Full::default()).unwrap();
    let stepper = Stepper::new(model, &TrainingArgs::default(), 1).unwrap();
    let error = model.serve("127.0.0.1:0").unwrap_err().to_string();
    assert!(error.contains("in training"), "{error}");
    drop(stepper);
    model.serve("127.0.0.1:0").unwrap();
}

/// A read of a pipe waits for a writer, and adapters are read one by one.
#[test]
fn a_pipe_in_an_adapters_folder_stops_nothing() {
    let root = adapter_root();
    let service = Service::with_adapters(root.path());
    copy_folder(&root.path().join("one"), &root.path().join("pipe"));
    let pipe = root.path().join("pipe/adapter_model.safetensors");
    fs::remove_file(&pipe).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert_eq!(service.refusal(LOAD, &load("a", "pipe")).1, "adapter_path");
    let error = service.server.swap("a", root.path().join("pipe")).unwrap_err().to_string();
    assert!(error.contains("adapter_model.safetensors"), "{error}");
    service.answer(LOAD, &load("a", "one"));
}

#[test]
fn a_name_is_taken_by_the_same_adapter_elsewhere_only_in_place() {
    let root = adapter_root();
    copy_folder(&root.path().join("one"), &root.path().join("copy"));
    let service = Service::with_adapters(root.path());
    let prompt = "A prompt of more than a page of the prefix cache, for all. ".repeat(2);
    let ask = || service.complete(&request("a", &prompt, 4));
    let loaded = service.answer(LOAD, &load("a", "one"));
    ask();
    assert_eq!(service.answer(LOAD, &load("a", "one"))["generation"], loaded["generation"]);
    assert_eq!(service.refusal(LOAD, &load("a", "copy")).1, "adapter_exists");
    assert!(service.server.adapters()[0].folder.as_ref().unwrap().ends_with("one"));
    service.answer(LOAD, &with(load("a", "copy"), json!({ "load_inplace": true })));
    assert!(service.server.adapters()[0].folder.as_ref().unwrap().ends_with("copy"));
    let cached = &ask()["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert!(cached.as_u64().unwrap() > 0, "the generation is the same");
}

#[test]
fn a_start_does_not_depend_on_the_folders_of_the_state_file() {
    let root = adapter_root();
    copy_folder(&root.path().join("two"), &root.path().join("three"));
    let state = root.path().join("state.json");
    let events: Arc<Mutex<Vec<String>>> = Arc::default();
    let told = Arc::clone(&events);
    let log = move |event: &str| told.lock().unwrap().push(event.to_owned());
    let config = ServerConfig {
        allow_adapter_changes: true,
        adapter_root: Some(root.path().to_path_buf()),
        state_file: Some(state.clone()),
        event_log: Some(EventLog(Arc::new(log))),
        limits: Limits { max_adapters: 3, ..Default::default() },
        ..Default::default()
    };
    let names = |service: &Service| -> Vec<String> {
        service.server.adapters().into_iter().map(|adapter| adapter.name).collect()
    };
    let stated = || -> Vec<String> {
        let state: Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
        state["adapters"].as_object().unwrap().keys().cloned().collect()
    };
    let service = Service::with(&config);
    for (name, path) in [("a", "three"), ("b", "three"), ("c", "two")] {
        service.answer(LOAD, &load(name, path));
    }
    drop(service);
    fs::rename(root.path().join("three"), root.path().join("away")).unwrap();
    // `a` is given anew, `b` has lost its folder, and `c` has no room.
    let one = root.path().join("one");
    let given = ["a", "x", "y"].map(|name| (name.to_owned(), one.clone())).into();
    let starting = ServerConfig { adapters: given, ..config.clone() };
    let service = Service::with(&starting);
    assert_eq!(names(&service), ["a", "x", "y"]);
    assert_eq!(service.server.adapters()[0].folder.as_ref(), Some(&one));
    let events = events.lock().unwrap();
    let [b, c] = &events[..] else { panic!("{events:?}") };
    assert!(b.contains("state file: `b` is not served") && b.contains("three"), "{b}");
    assert!(c.contains("state file: `c` is not served") && c.contains("3 adapters"), "{c}");
    assert_eq!(stated(), ["b", "c"], "what is given at the start is not in it");
    drop((service, events));
    // Without `--adapter`, and once the folder is back.
    fs::rename(root.path().join("away"), root.path().join("three")).unwrap();
    let service = Service::with(&config);
    assert_eq!(names(&service), ["b", "c"]);
    service.answer(UNLOAD, &json!({ "lora_name": "b" }));
    assert_eq!(stated(), ["c"]);
    // What is given must be there.
    let none = BTreeMap::from([("a".to_owned(), root.path().join("none"))]);
    let broken = ServerConfig { adapters: none, ..config };
    assert!(model().serve_with("127.0.0.1:0", &broken).unwrap_err().to_string().contains("none"));
}
