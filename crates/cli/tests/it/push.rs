//! `tunebook push`, against a hub that takes everything.

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
    fs::write(model.join("README.md"), "# mine\n").unwrap();
    fs::write(model.join(".env"), "secret").unwrap();
    let (_, error) = told(&push(folder.path(), &address, &["model", "--to", "owner/made"]));
    assert!(error.contains("`.env` stays here"), "{error}");
    assert_eq!(commits.lock().unwrap()[0].len(), 3);

    fs::write(model.join("adapter_config.json"), r#"{"base_model_name_or_path": "/me/x"}"#)
        .unwrap();
    fails(&address, &["model", "--to", "owner/made"], "--base-model");
}
