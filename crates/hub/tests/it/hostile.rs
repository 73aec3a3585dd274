//! Names that lead elsewhere, and servers that say or send what they should not.

use std::path::Path;

use tunebook_hub::{Hub, Kind};

use crate::server::{Ranges, Server};
use crate::{NEW, OLD, blob_of_weights, read, serve, weights};

const TOKEN: &str = "hf_SECRETTOKEN123";

fn hub(server: &Server, folder: &Path) -> Hub {
    Hub::new(folder.join("hub")).endpoint(&server.address).token(TOKEN)
}

fn error(hub: &Hub, id: &str, file: &str) -> String {
    let error = crate::error(hub, id, file);
    assert!(!error.contains("SECRET"), "{error}");
    assert!(!error.contains(|c: char| c.is_control()), "{error:?}");
    assert!(error.len() < 1000, "{error}");
    error
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => names.extend(files(&path)),
            false => names.push(path.display().to_string()),
        }
    }
    names
}

#[test]
fn a_revision_writes_nowhere_else() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    let victim = folder.path().join("victim.txt");
    std::fs::write(&victim, "precious").unwrap();
    let hub = hub(&server, folder.path());
    for revision in [victim.to_str().unwrap(), "../../../victim.txt", "a/../../x", "..", "x\\y"] {
        let error = error(&hub, &format!("owner/tiny@{revision}"), "config.json");
        assert!(error.contains("the revision `"), "{error}");
        let error = hub.clone().offline(true).open(Kind::Model, &format!("owner/tiny@{revision}"));
        assert!(error.unwrap_err().to_string().contains("the revision `"));
    }
    for name in ["../tiny", "owner/..", "owner/tiny/../x", "owner--tiny/x"] {
        let error = error(&hub, name, "config.json");
        assert!(error.contains("no name of a repository"), "{error}");
    }
    assert!(server.log().is_empty(), "nobody is asked");
    assert_eq!(files(folder.path()), [victim.display().to_string()]);
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    // A branch's name may have a slash.
    assert_eq!(read(&hub, "owner/tiny@refs/pr/1", "config.json"), br#"{"version": 1}"#);
}

#[test]
fn a_cache_that_was_changed_leads_nowhere_else() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    let hub = hub(&server, folder.path());
    read(&hub, "owner/tiny", "config.json");
    let repository = folder.path().join("hub/models--owner--tiny");
    let names = repository.join(".tunebook").join(format!("{NEW}.txt"));
    std::fs::write(names, "config.json\n../../../../x\n/etc/hostname\n").unwrap();
    let offline = hub.offline(true);
    assert_eq!(offline.open(Kind::Model, "owner/tiny").unwrap().names(), ["config.json"]);
    std::fs::write(repository.join("refs/main"), "../../..").unwrap();
    let error = error(&offline, "owner/tiny", "config.json");
    assert!(error.contains("never fetched"), "{error}");
}

#[test]
fn names_of_a_list_are_names_of_files() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    let none =
        ["/etc/passwd", "../../x", "a/../../b", "evil\nadapter.bin", "a\u{1b}[2J", "a\\b", ""];
    server.change(|state| {
        state.more_names = none.map(str::to_owned).to_vec();
        state.more_names.extend([format!("{TOKEN}.json"), "x".repeat(100_000)]);
    });
    let hub = hub(&server, folder.path());
    let repository = hub.open(Kind::Model, "owner/tiny").unwrap();
    let names = ["config.json", "model.safetensors", "sub/folder.json"];
    assert_eq!(repository.names(), names);
    // What is kept for later is read line by line.
    repository.get("config.json").unwrap();
    let offline = hub.clone().offline(true).open(Kind::Model, "owner/tiny").unwrap();
    assert_eq!(offline.names(), names);
    for name in none.iter().chain(&[".."]) {
        let error = repository.get(name).unwrap_err().to_string();
        assert!(error.contains("no name that a file") && !error.contains('\u{1b}'), "{error}");
    }
}

#[test]
fn a_server_does_not_steer_the_screen_nor_show_the_token() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    let hub = hub(&server, folder.path());
    let list = |value: serde_json::Value| {
        server.change(|state| state.list = Some(value.to_string()));
        error(&hub, "owner/tiny", "config.json")
    };
    let told = list(serde_json::json!({ "sha": NEW, "siblings": TOKEN }));
    assert!(told.contains("no list of files (line 1"), "{told}");
    let told = list(serde_json::json!({
        "sha": format!("bad {TOKEN}\u{1b}[31m\u{202e}\r\n{}", "x".repeat(1_000_000)),
        "siblings": [],
    }));
    assert!(told.contains("found `bad [token] [31m xxx"), "{told}");
    for sha in ["a".repeat(400), "../../evil".to_owned(), String::new()] {
        let told = list(serde_json::json!({ "sha": sha, "siblings": [] }));
        assert!(told.contains("expected the name of a commit"), "{told}");
    }
    server.change(|state| (state.list, state.list_location) = (None, Some(format!("{TOKEN} bad"))));
    error(&hub, "owner/tiny", "config.json");
    server.change(|state| state.list_location = Some(format!("http://{TOKEN} bad/\u{9b}")));
    error(&hub, "owner/tiny", "config.json");
    // Nor does a token that can be none.
    let told = error(&hub.clone().token("hf_SECRET\nx"), "owner/tiny", "config.json");
    assert!(told.contains("line breaks"), "{told}");
    // Nor is an endpoint's password shown.
    let endpoint = server.address.replace("http://", "http://me:SECRET@");
    let told = error(&hub.clone().endpoint(&endpoint), "owner/none", "x");
    assert!(!format!("{:?}", hub.clone().endpoint(&endpoint)).contains("SECRET"));
    assert!(told.contains("404") || told.contains("answer"), "{told}");
    let told = error(&hub.endpoint("not a SECR ET"), "owner/tiny", "x");
    assert!(told.contains("HF_ENDPOINT"), "{told}");
}

#[test]
fn a_files_name_is_believed_if_it_is_one() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    let hub = hub(&server, folder.path());
    for etag in ["\"../../evil\"", "\"a/b\"", "\"x.part\"", "\"x.lock\"", "\"..\"", "\"\""] {
        server.change(|state| state.etag = Some(etag.to_owned()));
        let told = error(&hub, "owner/tiny", "config.json");
        assert!(told.contains("header `etag`"), "{etag}: {told}");
    }
    // A weak one has the same name, as in Python.
    let own = "W/\"cdb829c33827a8c3f94748575609b4cf153dd3da\"";
    server.change(|state| state.etag = Some(own.to_owned()));
    assert_eq!(read(&hub, "owner/tiny", "config.json"), br#"{"version": 2}"#);
    // Two that differ behind a dot only do not meet on their way.
    server.change(|state| state.etag = Some("\"same.a\"".to_owned()));
    read(&hub, "owner/tiny@v1", "config.json");
    let blobs = folder.path().join("hub/models--owner--tiny/blobs");
    assert!(blobs.join("same.a.lock").exists() && !blobs.join("same.lock").exists());
}

#[test]
fn a_file_of_another_commit_is_none() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    let hub = hub(&server, folder.path());
    for (commit, says) in [("../../evil", "header `x-repo-commit`"), (OLD, "the hub gives one of")]
    {
        server.change(|state| state.commit = Some(commit));
        let told = error(&hub, "owner/tiny", "config.json");
        assert!(told.contains(says), "{told}");
    }
    let snapshots = folder.path().join("hub/models--owner--tiny/snapshots");
    assert_eq!(files(&snapshots), Vec::<String>::new());
}

#[test]
fn a_small_file_that_was_changed_is_not_kept() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    let hub = hub(&server, folder.path());
    server.change(|state| state.changes = true);
    let told = error(&hub, "owner/tiny", "config.json");
    assert!(told.contains("wrong checksum: expected git's sha1"), "{told}");
    // Not even for a moment under its name.
    assert_eq!(files(&folder.path().join("hub/models--owner--tiny/snapshots")), [""; 0]);
    server.change(|state| state.changes = false);
    assert_eq!(read(&hub, "owner/tiny", "config.json"), br#"{"version": 2}"#);
}

#[test]
fn no_more_bytes_are_taken_than_were_announced() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    let hub = hub(&server, folder.path());
    server.change(|state| state.ranges = Ranges::Endless);
    let told = error(&hub, "owner/tiny", "model.safetensors");
    assert!(told.contains("more bytes come than the 50000 that were announced"), "{told}");
    let blobs = files(&folder.path().join("hub/models--owner--tiny/blobs"));
    let sizes = blobs.iter().map(|file| std::fs::metadata(file).unwrap().len());
    assert_eq!(sizes.max(), Some(0), "{blobs:?}");
    server.change(|state| state.ranges = Ranges::Kept);
    assert_eq!(read(&hub, "owner/tiny", "model.safetensors"), weights(2));
}

#[test]
fn a_part_that_is_too_long_does_not_stay_in_the_way() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    let hub = hub(&server, folder.path());
    let (blobs, sha256) = blob_of_weights(folder.path());
    let part = blobs.join(format!("{sha256}.part"));
    std::fs::write(&part, vec![0; 60_000]).unwrap();
    assert_eq!(read(&hub, "owner/tiny", "model.safetensors"), weights(2));
    // One with other bytes is told, and gone with the first call.
    std::fs::remove_dir_all(folder.path().join("hub")).unwrap();
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(&part, vec![0; 100]).unwrap();
    let told = error(&hub, "owner/tiny", "model.safetensors");
    assert!(told.contains("wrong checksum") && !part.exists(), "{told}");
    assert_eq!(read(&hub, "owner/tiny", "model.safetensors"), weights(2));
}

#[test]
fn a_server_without_ranges_will_do() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    let hub = hub(&server, folder.path());
    server.change(|state| {
        state.ranges = Ranges::Whole;
        state.files.insert((NEW, "empty.txt"), Vec::new());
        state.files.insert((NEW, "a b.json"), b"{}".to_vec());
    });
    assert_eq!(read(&hub, "owner/tiny", "model.safetensors"), weights(2));
    assert_eq!(read(&hub, "owner/tiny", "config.json"), br#"{"version": 2}"#);
    // An empty file has no range, on any server.
    assert_eq!(read(&hub, "owner/tiny", "empty.txt"), b"");
    std::fs::remove_dir_all(folder.path().join("hub")).unwrap();
    server.change(|state| state.ranges = Ranges::Kept);
    assert_eq!(read(&hub, "owner/tiny", "empty.txt"), b"");
    // A name with a space is a part of an address, too.
    assert_eq!(read(&hub, "owner/tiny", "a b.json"), b"{}");
}

#[test]
fn a_part_from_elsewhere_is_not_appended() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    let hub = hub(&server, folder.path());
    // Half of it arrives, four times over.
    server.change(|state| state.breaks = 4);
    error(&hub, "owner/tiny", "model.safetensors");
    server.change(|state| state.ranges = Ranges::FromStart);
    let told = error(&hub, "owner/tiny", "model.safetensors");
    assert!(told.contains("the server gives those from 0 on of 50000"), "{told}");
    // The next call begins anew, which such a server can answer.
    assert_eq!(read(&hub, "owner/tiny", "model.safetensors"), weights(2));
}
