//! `tunebook push`, against a hub that takes everything.

mod adapters;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tunebook_models::{Device, Model};
use tunebook_runs::Registry;
use tunebook_tune::{Adapters as _, Example, Lora, Trainer, TrainingArgs};

use crate::golden;

const TOKEN: &str = "hf_secretSECRETsecret";

fn push(folder: &Path, endpoint: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunebook"));
    for name in ["HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"] {
        command.env_remove(name);
    }
    command.current_dir(folder).env("HF_HOME", folder.join("home")).env("HF_ENDPOINT", endpoint);
    command.arg("push").args(arguments);
    if !endpoint.is_empty() {
        command.env("HF_TOKEN", TOKEN);
    }
    let output = command.output().unwrap();
    for told in [&output.stdout, &output.stderr] {
        assert!(!String::from_utf8_lossy(told).contains(TOKEN));
    }
    output
}

fn told(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

/// A registry with one run.
fn registry(folder: &Path) {
    let model = Model::load(golden("lora_tiny/model"), &Device::Cpu).unwrap();
    model.add_adapter("support", &Lora { r: 4, lora_alpha: 16.0, ..Default::default() }).unwrap();
    let registry = Registry::open(folder.join("registry")).unwrap();
    let args = TrainingArgs { max_steps: Some(1), ..Default::default() };
    let trainer = Trainer::new(&model, &args).with_callback(registry.record("inhouse"));
    trainer.train(&vec![Example::new("Where is it?", "At the depot."); 4]).unwrap();
}

/// A hub of one repository that is made by the upload. Gives its address, and the commits.
fn hub() -> (String, Arc<Mutex<Vec<Vec<Value>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let commits = Arc::new(Mutex::new(Vec::new()));
    let (shared, mut made) = (Arc::clone(&commits), false);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let lines: Vec<String> =
                reader.by_ref().lines().map(Result::unwrap).take_while(|l| !l.is_empty()).collect();
            let header = |name: &str| {
                let found = lines.iter().find(|line| line.to_lowercase().starts_with(name));
                found.map(|line| line.split_once(':').unwrap().1.trim().to_owned())
            };
            assert_eq!(header("authorization"), Some(format!("Bearer {TOKEN}")));
            let length = header("content-length").map_or(0, |length| length.parse().unwrap());
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let path = lines[0].split(' ').nth(1).unwrap().to_owned();
            let (status, answer) = match path.as_str() {
                "/api/models/owner/made/revision/main" if made => (200, json!({ "sha": "0" })),
                "/api/repos/create" => {
                    made = true;
                    (200, json!({}))
                }
                "/api/validate-yaml" => (200, json!({ "errors": [] })),
                "/api/models/owner/made/preupload/main" => {
                    let asked: Value = serde_json::from_slice(&body).unwrap();
                    let files = asked["files"].as_array().unwrap().iter();
                    let file =
                        |file: &Value| json!({ "path": file["path"], "uploadMode": "regular" });
                    (200, json!({ "files": files.map(file).collect::<Vec<_>>() }))
                }
                "/api/models/owner/made/commit/main" => {
                    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
                    let lines = lines.map(|line| serde_json::from_slice(line).unwrap());
                    shared.lock().unwrap().push(lines.collect());
                    (200, json!({ "commitOid": "1", "commitUrl": "https://hub/commit/1" }))
                }
                _ => (404, json!({ "error": "Repository not found" })),
            };
            let answer = answer.to_string();
            let head = format!(
                "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                answer.len()
            );
            let _ = stream.write_all((head + &answer).as_bytes());
        }
    });
    (address, commits)
}

#[test]
fn a_run_is_pushed_with_its_card() {
    let folder = tempfile::tempdir().unwrap();
    registry(folder.path());
    let arguments =
        ["inhouse", "--to", "owner/made", "--base-model", "owner/tiny", "--license", "mit"];
    let shown = push(folder.path(), "", &[&arguments[..], &["--dry-run"]].concat());
    let (out, error) = told(&shown);
    assert!(shown.status.success(), "{error}");
    for expected in [
        "adapter_model.safetensors",
        "nothing was sent",
        "license: \"mit\"",
        "base_model: \"owner/tiny\"",
        "# made",
    ] {
        assert!(out.contains(expected), "no `{expected}`: {out}");
    }

    let (address, commits) = hub();
    let pushed = push(folder.path(), &address, &arguments);
    let (out, error) = told(&pushed);
    assert!(pushed.status.success(), "{error}");
    assert_eq!(out, "https://hub/commit/1\n");
    let commits = commits.lock().unwrap();
    let mut paths: Vec<&str> =
        commits[0][1..].iter().map(|line| line["value"]["path"].as_str().unwrap()).collect();
    paths.sort();
    assert_eq!(
        paths,
        ["README.md", "adapter_config.json", "adapter_model.safetensors", "tunebook.json"]
    );
    assert!(error.contains("is sent with the base's name on the hub, `owner/tiny`"), "{error}");
}

/// All that a commit has of small files, by name.
fn contents(commit: &[Value]) -> std::collections::BTreeMap<String, String> {
    let letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let decoded = |text: &str| -> Vec<u8> {
        let sixes: Vec<u32> =
            text.chars().filter_map(|c| letters.find(c)).map(|at| at as u32).collect();
        let bytes = sixes.chunks(4).flat_map(|four| {
            let all = four.iter().fold(0, |all, six| all << 6 | six) << (6 * (4 - four.len()));
            all.to_be_bytes()[1..four.len()].to_vec()
        });
        bytes.collect()
    };
    let file = |line: &Value| {
        let value = &line["value"];
        let text = decoded(value["content"].as_str()?);
        let path = value["path"].as_str()?.to_owned();
        Some((path, String::from_utf8_lossy(&text).into_owned()))
    };
    commit.iter().filter_map(file).collect()
}

#[test]
fn no_file_names_a_place_on_this_computer() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    let write = |name: &str, text: &str| {
        let path = model.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("README.md", "# mine\n");
    write("adapter_config.json", r#"{"base_model_name_or_path": "./model", "r": 8}"#);
    write(
        "sub/adapter_config.json",
        r#"{"base_model_name_or_path": "/home/alice/secret-project/model",
            "tokenizer_name_or_path": "/home/alice/secret-project/model"}"#,
    );
    write("mlx/adapter_config.json", r#"{"model": "/home/alice/secret-project/model"}"#);
    write("merged/config.json", r#"{"_name_or_path": "/home/alice/secret-project", "x": 1}"#);
    write("merged/tokenizer_config.json", r#"{"name_or_path": "../secret-project"}"#);
    let (address, commits) = hub();
    let to = ["model", "--to", "owner/made"];
    let (_, error) = told(&push(folder.path(), &address, &to));
    assert!(error.contains("`adapter_config.json` names the base as `./model`"), "{error}");
    assert!(error.contains("--base-model"), "{error}");

    let base = [&to[..], &["--base-model", "owner/tiny"]].concat();
    let pushed = push(folder.path(), &address, &base);
    let (_, error) = told(&pushed);
    assert!(pushed.status.success(), "{error}");
    assert!(error.contains("6 files, ") && error.contains("go to http://127.0.0.1"), "{error}");
    let sent = contents(&commits.lock().unwrap()[0]);
    assert_eq!(sent.len(), 6);
    for (name, text) in &sent {
        assert!(!text.contains("alice") && !text.contains("secret-project"), "{name}: {text}");
    }
    for name in ["adapter_config.json", "sub/adapter_config.json", "mlx/adapter_config.json"] {
        assert!(sent[name].contains("\"owner/tiny\"") && !sent[name].contains("./model"));
    }
    assert!(sent["merged/config.json"].contains("\"x\": 1"));

    // What is no name of the base cannot be replaced.
    write("state.json", r#"{"log": {"best_model_checkpoint": "/home/alice/run"}}"#);
    let (_, error) = told(&push(folder.path(), &address, &base));
    assert!(error.contains("`state.json` (`best_model_checkpoint` is a place"), "{error}");
    let without = [&base[..], &["--exclude", "state.json"]].concat();
    assert!(push(folder.path(), &address, &without).status.success());
    let (_, error) =
        told(&push(folder.path(), &address, &[&to[..], &["--base-model", "../x"]].concat()));
    assert!(error.contains("--base-model `../x`: expected OWNER/NAME"), "{error}");
}

/// `models/tiny` is a folder, or a stranger's repository: the letters do not say.
#[test]
fn a_base_that_was_a_folder_is_asked_for() {
    const CHILD: &str = "TUNEBOOK_TEST_RELATIVE";
    if std::env::var_os(CHILD).is_some() {
        let model = Model::load("models/tiny", &Device::Cpu).unwrap();
        let lora = Lora { r: 4, lora_alpha: 16.0, ..Default::default() };
        model.add_adapter("support", &lora).unwrap();
        let registry = Registry::open("registry").unwrap();
        let args = TrainingArgs { max_steps: Some(1), ..Default::default() };
        let trainer = Trainer::new(&model, &args).with_callback(registry.record("inhouse"));
        trainer.train(&vec![Example::new("Where is it?", "At the depot."); 4]).unwrap();
        model.save_adapter("support", "saved").unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("here/models")).unwrap();
    fs::create_dir_all(at("elsewhere")).unwrap();
    let from = golden("lora_tiny/model");
    let copied = Command::new("cp").arg("-a").arg(&from).arg(at("here/models/tiny")).status();
    assert!(copied.unwrap().success());
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "push::a_base_that_was_a_folder_is_asked_for"]).env(CHILD, "1");
    let trained = child.current_dir(at("here")).output().unwrap();
    assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stdout));
    // On another computer.
    for name in ["registry", "saved"] {
        fs::rename(at("here").join(name), at("elsewhere").join(name)).unwrap();
    }
    let fails = |arguments: &[&str]| {
        let output = push(&at("elsewhere"), "", arguments);
        let (out, error) = told(&output);
        assert_eq!(output.status.code(), Some(1), "{out}");
        assert!(error.contains("--base-model") && !out.contains("models/tiny"), "{error} {out}");
        error
    };
    let usual = ["--to", "owner/made", "--license", "mit", "--dry-run"];
    fails(&[&["inhouse"], &usual[..]].concat());
    let error =
        fails(&[&["saved/support", "--no-card"], &usual[..3], &["mit", "--dry-run"]].concat());
    assert!(error.contains("`models/tiny`") && error.contains("is not known"), "{error}");
    // It is known where the hub's cache has it.
    let fetched = at("elsewhere/home/hub/models--models--tiny");
    fs::create_dir_all(fetched.join("snapshots/c0ffee")).unwrap();
    fs::create_dir_all(fetched.join("refs")).unwrap();
    fs::write(fetched.join("refs/main"), "c0ffee").unwrap();
    let known = [&["saved/support", "--no-card"], &usual[..3], &["mit", "--dry-run"]].concat();
    let shown = push(&at("elsewhere"), "", &known);
    assert!(shown.status.success(), "{}", told(&shown).1);
    // And is a folder where it lies above.
    fs::create_dir_all(at("elsewhere/models/tiny")).unwrap();
    fails(&known);
}

#[test]
fn what_is_seldom_meant_is_sent_if_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir_all(model.join("checkpoint-5")).unwrap();
    for (name, text) in [
        ("README.md", "# mine\n"),
        ("config.json", "{}"),
        ("prod.env", "API_KEY=1"),
        ("id_rsa", "x"),
        ("log.txt", TOKEN),
        (".env", "API_KEY=1"),
        ("checkpoint-5/trainer_state.json", "{}"),
    ] {
        fs::write(model.join(name), text).unwrap();
    }
    std::os::unix::fs::symlink("/etc/hostname", model.join("link.txt")).unwrap();
    let (address, commits) = hub();
    let to = ["model", "--to", "owner/made"];
    for dry in [&[][..], &["--dry-run"]] {
        let (out, error) = told(&push(folder.path(), &address, &[&to[..], dry].concat()));
        for name in ["prod.env", "id_rsa", "log.txt", "link.txt"] {
            assert!(error.contains(&format!("`{name}` (")), "{name}: {error} {out}");
        }
        assert!(error.contains("--exclude") && error.contains("--allow"), "{error}");
    }
    assert!(commits.lock().unwrap().is_empty());
    let some = ["--exclude", "prod.env", "--exclude", "log.txt", "--allow", "link.txt"];
    let all = [&to[..], &some, &["--allow", "id_rsa"]].concat();
    let pushed = push(folder.path(), &address, &all);
    let (_, error) = told(&pushed);
    assert!(pushed.status.success(), "{error}");
    for name in [".env", "checkpoint-5", "prod.env", "log.txt"] {
        assert!(error.contains(&format!("`{name}` stays here")), "{name}: {error}");
    }
    let sent: Vec<String> = contents(&commits.lock().unwrap()[0]).into_keys().collect();
    assert_eq!(sent, ["README.md", "config.json", "id_rsa", "link.txt"]);
    for (wrong, says) in [("--exclude", "no such file or folder"), ("--allow", "no such file")] {
        let (_, error) = told(&push(folder.path(), &address, &[&to[..], &[wrong, "x"]].concat()));
        assert!(error.contains(says), "{error}");
    }
    for wrong in ["me/..", "../me", "owner/made@../x", "owner/made@/etc/x"] {
        let (_, error) =
            told(&push(folder.path(), &address, &["model", "--to", wrong, "--dry-run"]));
        assert!(error.contains("expected"), "{wrong}: {error}");
    }
}

#[test]
fn a_folder_is_pushed_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("config.json"), "{}").unwrap();
    let (address, commits) = hub();
    let fails = |endpoint: &str, arguments: &[&str], says: &str| {
        let output = push(folder.path(), endpoint, arguments);
        let (_, error) = told(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(says), "{error}");
    };
    fails(&address, &["model", "--to", "owner/made"], "has no README.md");
    fails("", &["model", "--to", "owner/made", "--no-card"], "needs a token");
    fails(&address, &["model", "--to", "made"], "expected OWNER/NAME");
    fails(&address, &["other", "--to", "owner/made"], "no folder `other`");
    fs::create_dir(folder.path().join("data")).unwrap();
    fs::write(folder.path().join("data/rows.jsonl"), "{}").unwrap();
    fs::write(folder.path().join("data/README.md"), "# rows\n").unwrap();
    fails(&address, &["data", "--to", "owner/made"], "has neither an adapter");
    fs::write(model.join("README.md"), "# mine\n").unwrap();
    fs::write(model.join(".env"), "secret").unwrap();
    let (_, error) = told(&push(folder.path(), &address, &["model", "--to", "owner/made"]));
    assert!(error.contains("`.env` stays here"), "{error}");
    assert_eq!(commits.lock().unwrap()[0].len(), 3);

    fs::write(model.join("adapter_config.json"), r#"{"base_model_name_or_path": "/me/x"}"#)
        .unwrap();
    fails(&address, &["model", "--to", "owner/made"], "--base-model");
}
