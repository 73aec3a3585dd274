//! The right file, or an error that says what to do.

use std::path::Path;

use tunebook_hub::{Hub, Kind};

use crate::server::Server;
use crate::{NEW, OLD, blob_of_weights, error, read, serve, weights};

const NOBODY: &str = "http://127.0.0.1:9";

fn hub(server: &Server, folder: &Path) -> Hub {
    Hub::new(folder.join("hub")).endpoint(&server.address)
}

#[test]
fn redirects_are_followed_and_a_file_is_fetched_once() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    let hub = hub(&server, folder.path());
    let repository = hub.open(Kind::Model, "owner/tiny").unwrap();
    assert_eq!(
        repository.names(),
        ["config.json", "model.safetensors", "sub/folder.json"],
        "none leads out"
    );
    let path = repository.get("model.safetensors").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), weights(2));
    assert_eq!(
        path,
        folder.path().join("hub/models--owner--tiny/snapshots").join(NEW).join("model.safetensors")
    );
    assert_eq!(path.canonicalize().unwrap().file_name().unwrap().len(), 64, "named by its sha256");
    assert_eq!(std::fs::read(repository.get("sub/folder.json").unwrap()).unwrap(), b"{}");
    let refs = folder.path().join("hub/models--owner--tiny/refs");
    assert_eq!(std::fs::read_to_string(refs.join("main")).unwrap(), NEW);
    assert_eq!(std::fs::read_dir(refs).unwrap().count(), 1, "the commit is no branch");
    let before = server.log().len();
    assert_eq!(read(&hub, "owner/tiny", "model.safetensors"), weights(2));
    assert_eq!(server.log().len(), before + 1, "the list of files alone: {:#?}", server.log());
}

#[test]
fn a_renamed_repository_is_found() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    assert_eq!(
        read(&hub(&server, folder.path()), "owner/old", "config.json"),
        br#"{"version": 2}"#
    );
    assert_eq!(read(&hub(&server, folder.path()), "owner/old", "model.safetensors"), weights(2));
}

#[test]
fn a_broken_transfer_goes_on_where_it_stopped() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    server.change(|state| state.breaks = 2);
    assert_eq!(read(&hub(&server, folder.path()), "owner/tiny", "model.safetensors"), weights(2));
    let ranges: Vec<String> = server
        .log()
        .iter()
        .filter(|line| line.starts_with("GET /cdn/"))
        .filter_map(|line| Some(line.split_once("| bytes=")?.1.to_owned()))
        .filter(|range| range != "0-0")
        .collect();
    assert_eq!(ranges, ["0-", "25000-", "37500-"]);
}

#[test]
fn a_later_call_goes_on_where_an_earlier_one_gave_up() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    server.change(|state| state.breaks = 4);
    let hub = hub(&server, folder.path());
    let error = error(&hub, "owner/tiny", "model.safetensors");
    assert!(
        error.contains("`model.safetensors` of `owner/tiny`")
            && error.contains("goes on where it stopped"),
        "{error}"
    );
    assert_eq!(read(&hub, "owner/tiny", "model.safetensors"), weights(2));
    assert!(server.log().last().unwrap().ends_with("| bytes=46875-"), "{:?}", server.log().last());
}

#[test]
fn a_wrong_checksum_is_named_and_does_not_stay() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    server.change(|state| state.lies = true);
    let hub = hub(&server, folder.path());
    let error = error(&hub, "owner/tiny", "model.safetensors");
    assert!(
        error.contains("wrong checksum: expected sha256 ") && error.contains("It was removed"),
        "{error}"
    );
    server.change(|state| state.lies = false);
    assert_eq!(read(&hub, "owner/tiny", "model.safetensors"), weights(2));
}

#[test]
fn refusals_say_what_to_do() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    let hub = hub(&server, folder.path());
    let missing = error(&hub, "owner/tiny", "other.json");
    assert!(missing.contains("404") && missing.contains("`other.json`"), "{missing}");
    let unknown = error(&hub, "owner/other", "x");
    assert!(unknown.contains("404") && unknown.contains("check the name"), "{unknown}");
    let revision = error(&hub, "owner/tiny@v9", "x");
    assert!(revision.contains("owner/tiny@v9") && revision.contains("revision"), "{revision}");
    server.change(|state| state.token = Some("secret"));
    let private = error(&hub, "owner/tiny", "x");
    assert!(private.contains("401") && private.contains("HF_TOKEN"), "{private}");
    let wrong = error(&hub.clone().token("guess"), "owner/tiny", "x");
    assert!(wrong.contains("401") && wrong.contains("does not accept the token"), "{wrong}");
    assert_eq!(
        read(&hub.clone().token("secret"), "owner/tiny", "config.json"),
        br#"{"version": 2}"#
    );
    server.change(|state| state.gated = true);
    let gated = error(&hub.clone().token("secret"), "owner/tiny@v1", "x");
    assert!(gated.contains("403") && gated.contains("accepted on its page"), "{gated}");
    // A refusal is no lack of connection: what is in the cache does not hide it.
    let gated = error(&hub.token("secret"), "owner/tiny", "x");
    assert!(gated.contains("403"), "{gated}");
}

#[test]
fn revisions_are_branches_tags_and_commits() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    let hub = hub(&server, folder.path());
    for (id, commit) in [("owner/tiny@v1", OLD), ("owner/tiny@refs/pr/1", OLD), ("owner/tiny", NEW)]
    {
        let repository = hub.open(Kind::Model, id).unwrap();
        assert_eq!(repository.commit(), commit, "{id}");
        repository.get("config.json").unwrap();
    }
    let by_commit = format!("owner/tiny@{OLD}");
    assert_eq!(read(&hub, &by_commit, "config.json"), br#"{"version": 1}"#);
    let offline = hub.offline(true);
    for (id, version) in
        [("owner/tiny@v1", 1), ("owner/tiny@refs/pr/1", 1), (&by_commit, 1), ("owner/tiny", 2)]
    {
        assert_eq!(
            read(&offline, id, "config.json"),
            format!("{{\"version\": {version}}}").as_bytes(),
            "{id}"
        );
    }
}

#[test]
fn a_branch_that_moved_brings_its_new_files() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    server.change(|state| _ = state.refs.insert("main", OLD));
    let hub = hub(&server, folder.path());
    assert_eq!(read(&hub, "owner/tiny", "model.safetensors"), weights(1));
    server.change(|state| _ = state.refs.insert("main", NEW));
    assert_eq!(read(&hub, "owner/tiny", "model.safetensors"), weights(2));
}

#[test]
fn without_a_connection_what_was_fetched_will_do() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    let hub = hub(&server, folder.path());
    hub.open(Kind::Model, "owner/tiny").unwrap().get("config.json").unwrap();
    let alone = hub.clone().endpoint(NOBODY);
    assert_eq!(read(&alone, "owner/tiny", "config.json"), br#"{"version": 2}"#);
    let never = error(&alone, "owner/tiny", "model.safetensors");
    assert!(never.contains("never fetched"), "{never}");
    let other = error(&alone, "owner/other", "x");
    assert!(other.contains("Without a connection"), "{other}");
    // A hub that is down is as good as none.
    server.change(|state| state.status = Some(503));
    assert_eq!(read(&hub, "owner/tiny", "config.json"), br#"{"version": 2}"#);
    let down = error(&hub, "owner/other", "x");
    assert!(down.contains("503") && down.contains("try again later"), "{down}");
    let offline = error(&hub.offline(true), "owner/other", "x");
    assert!(offline.contains("HF_HUB_OFFLINE is set"), "{offline}");
}

#[test]
fn the_token_is_shown_to_the_endpoint_alone() {
    let (folder, server, other) = (tempfile::tempdir().unwrap(), serve(), serve());
    // By another name, and by another port.
    for host in ["localhost", "127.0.0.1"] {
        let elsewhere = other.address.replace("127.0.0.1", host);
        server.change(|state| {
            state.token = Some("secret");
            state.bytes_at = Some(elsewhere.clone());
            state.list_at = None;
        });
        let hub = hub(&server, &folder.path().join(host)).token("secret");
        assert_eq!(read(&hub, "owner/tiny", "model.safetensors"), weights(2));
        assert_eq!(read(&hub, "owner/old", "config.json"), br#"{"version": 2}"#);
        server.change(|state| state.list_at = Some(elsewhere));
        assert_eq!(hub.open(Kind::Model, "owner/tiny").unwrap().names().len(), 3);
    }
    let asked = other.log();
    assert!(asked.iter().any(|line| line.starts_with("GET /cdn/")), "{asked:?}");
    assert!(asked.iter().any(|line| line.starts_with("GET /api/")), "{asked:?}");
    assert_eq!(other.state.lock().unwrap().shown, Vec::<String>::new());
    assert_eq!(server.log().len(), server.state.lock().unwrap().shown.len(), "shown each time");
}

#[test]
fn another_process_that_fetches_a_file_is_waited_for() {
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    let hub = hub(&server, folder.path());
    let (blobs, sha256) = blob_of_weights(folder.path());
    let lock = std::fs::File::create(blobs.join(format!("{sha256}.lock"))).unwrap();
    lock.try_lock().unwrap();
    let reader = std::thread::spawn(move || read(&hub, "owner/tiny", "model.safetensors"));
    // Longer than the five seconds after which it gave up once.
    std::thread::sleep(std::time::Duration::from_secs(6));
    assert!(!reader.is_finished(), "it waits");
    // The other one has fetched it: nothing comes over the network twice.
    std::fs::write(blobs.join(&sha256), weights(2)).unwrap();
    drop(lock);
    assert_eq!(reader.join().unwrap(), weights(2));
    let transfers = server.log().iter().filter(|line| line.ends_with("| bytes=0-")).count();
    assert_eq!(transfers, 0, "{:#?}", server.log());
}

/// In a process of its own: the request to stop is the process's.
#[test]
fn stop_ends_what_waits_for_the_network() {
    const CHILD: &str = "TUNEBOOK_TEST_STOP";
    let Ok(which) = std::env::var(CHILD) else {
        for which in ["no answer", "no more bytes", "a lock"] {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "fetching::stop_ends_what_waits_for_the_network"]);
            let output = command.env(CHILD, which).output().unwrap();
            assert!(
                output.status.success(),
                "{which}: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        return;
    };
    let (folder, server) = (tempfile::tempdir().unwrap(), serve());
    let hub = hub(&server, folder.path());
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = (format!("http://{}", silent.local_addr().unwrap()), silent);
    let (blobs, sha256) = blob_of_weights(folder.path());
    let lock = std::fs::File::create(blobs.join(format!("{sha256}.lock"))).unwrap();
    let hub = match which.as_str() {
        "no answer" => hub.endpoint(&silent.0),
        "no more bytes" => {
            server.change(|state| state.bytes_at = Some(silent.0.clone()));
            hub
        }
        _ => {
            lock.try_lock().unwrap();
            hub
        }
    };
    let reader =
        std::thread::spawn(move || hub.open(Kind::Model, "owner/tiny")?.get("model.safetensors"));
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(!reader.is_finished());
    tunebook_progress::interrupt::request();
    let pressed = std::time::Instant::now();
    let error = reader.join().unwrap().unwrap_err();
    assert!(pressed.elapsed() < std::time::Duration::from_secs(1), "{:?}", pressed.elapsed());
    assert!(error.is_interruption(), "{error}");
}
