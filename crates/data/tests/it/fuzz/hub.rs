//! A repository of the hub whose index changes from read to read.
//!
//! Where the hub is, the environment says, so the tests run in a process of their own that has it.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tunebook_data::Dataset;

/// Names the folder to the process of a test.
const FOLDER: &str = "TUNEBOOK_TEST_HUB_FOLDER";
/// The index that the server sends, as a file of the folder.
const INDEX: &str = "index.json";
/// The parent of the hub's cache: nothing else may appear in it.
const OUTER: &str = "outer";
/// The hub's cache in it.
const CACHE: &str = "outer/cache";

/// The folder that a process of a test shares with the hub's server.
pub(super) struct HubFolder(PathBuf);

/// The folder, in the process of the test; elsewhere that process is run, and there is `None`.
pub(super) fn in_child(test: &str) -> Option<HubFolder> {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return Some(HubFolder(folder.into()));
    }
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(FOLDER, folder.path())
        .env("HF_ENDPOINT", serve(folder.path().join(INDEX)))
        .env("HF_HOME", folder.path().join("home"))
        .env("HF_HUB_CACHE", folder.path().join(CACHE))
        .env_remove("HF_HUB_OFFLINE")
        .env_remove("HF_TOKEN")
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{test}: {status}");
    None
}

impl HubFolder {
    /// Reads the repository with these bytes as its index; the answer in short.
    pub(super) fn answer(&self, index: &[u8]) -> Vec<String> {
        std::fs::write(self.0.join(INDEX), index).unwrap();
        let (outer, cache) = (self.0.join(OUTER), self.0.join(CACHE));
        std::fs::create_dir_all(&cache).unwrap();
        let answer = match Dataset::read("owner/set") {
            Ok(dataset) => format!("{} rows", dataset.len()),
            Err(error) => super::gist(&error.to_string(), &outer),
        };
        let outside: Vec<_> =
            std::fs::read_dir(&outer).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert!(
            outside.iter().all(|name| name == "cache"),
            "something was written beside the cache: {outside:?}"
        );
        std::fs::remove_dir_all(&cache).unwrap();
        vec![answer]
    }
}

/// Speaks as much of the hub's interface as is asked for here, until the process ends: the index of
/// the file `index`, and a row for every file of the repository. Gives the address.
fn serve(index: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            respond(stream, &index);
        }
    });
    address
}

fn respond(mut stream: TcpStream, index: &Path) {
    let lines: Vec<String> = BufReader::new(&stream)
        .lines()
        .map_while(|line| line.ok().filter(|line| !line.is_empty()))
        .collect();
    let path = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let (status, body, headers) = if path.starts_with("/api/") {
        let body = std::fs::read(index).unwrap_or_default();
        ("200 OK", body, "Content-Type: application/json\r\n".to_owned())
    } else {
        let body = b"{\"prompt\":\"a\",\"completion\":\"b\"}\n".to_vec();
        let range = format!("Content-Range: bytes 0-{}/{}\r\n", body.len() - 1, body.len());
        let headers = format!("ETag: \"e\"\r\nX-Repo-Commit: c0ffee\r\n{range}");
        ("206 Partial Content", body, headers)
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    // Whoever has hung up does not want the answer.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}
