//! `Model::load_adapter` by a name on the hub, as a notebook calls it, against hubs of several kinds.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tunebook_models::{Device, Model};
use tunebook_tune::Adapters as _;

use crate::golden;

const CHILD: &str = "TUNEBOOK_TEST_ADAPTER";
const TEST: &str = "push::adapters::an_adapter_comes_from_the_hub_or_the_reason_does";
const TOKEN: &str = "hf_secretSECRETsecret";
const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";

/// A hub with one repository, `me/support`.
#[derive(Default)]
struct Hub {
    files: BTreeMap<String, Vec<u8>>,
    /// More names in its list.
    names: Vec<String>,
    etag: Option<String>,
    /// So many transfers of tensors end in their middle.
    breaks: usize,
    /// The ranges of tensors that were asked for.
    ranges: Vec<String>,
}

fn serve() -> (String, Arc<Mutex<Hub>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let hub = Arc::new(Mutex::new(Hub::default()));
    let shared = Arc::clone(&hub);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            answer(stream.unwrap(), &mut shared.lock().unwrap());
        }
    });
    (address, hub)
}

fn answer(mut stream: TcpStream, hub: &mut Hub) {
    let lines: Vec<String> = BufReader::new(stream.try_clone().unwrap())
        .lines()
        .map_while(|line| line.ok().filter(|line| !line.is_empty()))
        .collect();
    let path = lines[0].split(' ').nth(1).unwrap();
    let mut send = |status: u16, headers: &str, body: &[u8], sent: usize| {
        let head = format!(
            "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[..sent]));
    };
    if path == "/api/models/me/support/revision/main" {
        let names = hub.files.keys().chain(&hub.names);
        let names: Vec<_> = names.map(|name| json!({ "rfilename": name })).collect();
        let list = json!({ "sha": "c0ffee", "siblings": names }).to_string();
        return send(200, "", list.as_bytes(), list.len());
    }
    let name = path.strip_prefix("/me/support/resolve/c0ffee/").unwrap_or_default();
    let Some(body) = hub.files.get(name) else { return send(404, "", b"", 0) };
    let range = lines.iter().find_map(|line| line.split_once("bytes=")).unwrap().1.to_owned();
    let (from, to) = range.split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    let to = to.parse().map_or(body.len(), |to: usize| to + 1);
    let etag = hub.etag.clone().unwrap_or(format!("etag-{}", name.replace('/', "-")));
    let headers = format!(
        "ETag: \"{etag}\"\r\nX-Repo-Commit: c0ffee\r\nContent-Range: bytes {from}-{}/{}\r\n",
        to - 1,
        body.len()
    );
    let part = &body[from..to];
    let is_transfer = name.ends_with(TENSORS) && to - from > 1;
    if is_transfer {
        hub.ranges.push(range);
    }
    let breaks = is_transfer && hub.breaks > 0;
    hub.breaks -= usize::from(breaks);
    send(206, &headers, part, if breaks { part.len() / 2 } else { part.len() });
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(golden("weighted/one").join(name)).unwrap()
}

/// In a process of its own, as the variables are the process's. Gives what was told.
fn load(folder: &Path, endpoint: &str, repository: &str) -> Result<String, String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", TEST, "--nocapture"]).current_dir(folder).env(CHILD, repository);
    command.env_remove("HF_HUB_CACHE").env_remove("HF_HUB_OFFLINE").env("HF_TOKEN", TOKEN);
    command.env("HF_HOME", folder.join("home")).env("HF_ENDPOINT", endpoint);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains(TOKEN) && !errors.contains(TOKEN));
    let told = |kind: &str| Some(text.split_once(kind)?.1.lines().next()?.to_owned());
    match told("loaded: ") {
        Some(loaded) => Ok(loaded),
        None => Err(told("refused: ").ok_or(format!("{text} {errors}")).unwrap()),
    }
}

#[test]
fn an_adapter_comes_from_the_hub_or_the_reason_does() {
    if let Some(repository) = std::env::var_os(CHILD) {
        let model = Model::load(golden("lora_tiny/model"), &Device::Cpu).unwrap();
        match model.load_adapter(&repository, "support") {
            Ok(info) => println!("loaded: {} {}", info.name, info.config),
            Err(error) => println!("refused: {}", error.to_string().replace('\n', "\\n")),
        }
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (address, hub) = serve();
    let load = |repository: &str| load(folder.path(), &address, repository);
    let set = |change: &dyn Fn(&mut Hub)| change(&mut hub.lock().unwrap());
    let forget = || {
        let _ = std::fs::remove_dir_all(folder.path().join("home"));
    };

    // Half of it, and never more: then the rest.
    set(&|hub| {
        hub.files = [CONFIG, TENSORS].map(|name| (name.to_owned(), file(name))).into();
        hub.breaks = 4;
    });
    let told = load("me/support").unwrap_err();
    assert!(told.contains("goes on where it stopped"), "{told}");
    set(&|hub| hub.ranges.clear());
    assert!(load("me/support").unwrap().starts_with("support "));
    let ranges = hub.lock().unwrap().ranges.clone();
    assert!(ranges.len() == 1 && ranges[0] != "0-", "{ranges:?}");
    load("me/support").unwrap();
    assert_eq!(hub.lock().unwrap().ranges.len(), 1, "fetched once");

    // Names that lead elsewhere, in a list and from a user.
    forget();
    set(&|hub| {
        hub.names = ["../../../../evil/adapter_config.json", "/etc/passwd", "x\n/etc/hostname"]
            .map(str::to_owned)
            .to_vec();
    });
    load("me/support").unwrap();
    let victim = folder.path().join("victim.txt");
    std::fs::write(&victim, "precious").unwrap();
    for revision in [victim.to_str().unwrap(), "../../../../victim.txt"] {
        let told = load(&format!("me/support@{revision}")).unwrap_err();
        assert!(told.contains("the revision `"), "{told}");
    }
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    let mut left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["home", "victim.txt"]);

    // A pickle is not read, and other bytes than were announced are not kept.
    forget();
    set(&|hub| {
        hub.files.remove(TENSORS);
        hub.files.insert("adapter_model.bin".to_owned(), b"\x80\x04.".to_vec());
    });
    let told = load("me/support").unwrap_err();
    assert!(told.contains("a pickle (`.bin`) is not read"), "{told}");
    set(&|hub| {
        hub.files.insert(TENSORS.to_owned(), file(TENSORS));
        hub.etag = Some("0".repeat(64));
    });
    let told = load("me/support").unwrap_err();
    assert!(told.contains("wrong checksum"), "{told}");

    // The one in the subfolder comes first; others are named.
    forget();
    set(&|hub| {
        hub.etag = None;
        hub.files = [CONFIG, TENSORS].map(|name| (format!("support/{name}"), file(name))).into();
    });
    load("me/support").unwrap();
    set(&|hub| {
        hub.files = [CONFIG, TENSORS].map(|name| (format!("other/{name}"), file(name))).into();
    });
    forget();
    let told = load("me/support").unwrap_err();
    assert!(told.contains("adapters of these names: other"), "{told}");
}
