//! Data sets from the Hugging Face hub, kept in the cache that Python's `huggingface_hub` uses too.
//!
//! `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean in Python.

use std::path::{Path, PathBuf};

use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use sha2::{Digest, Sha256};
use tunebook_progress::ProgressBar;

use crate::error::{DataError, Result};
use crate::source::{Format, Input, is_below, matcher};

/// What the environment says about the hub.
pub(crate) struct Hub {
    cache: Cache,
    endpoint: Option<String>,
    token: Option<String>,
    offline: bool,
}

impl Hub {
    fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let cache = match set("HF_HUB_CACHE") {
            Some(folder) => Cache::new(folder.into()),
            None => Cache::from_env(),
        };
        let on = |value: String| matches!(value.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true");
        Self {
            token: set("HF_TOKEN").map(|token| token.trim().to_owned()).or_else(|| cache.token()),
            endpoint: set("HF_ENDPOINT").map(|endpoint| endpoint.trim_end_matches('/').to_owned()),
            offline: set("HF_HUB_OFFLINE").is_some_and(on),
            cache,
        }
    }
}

/// The files of `owner/name` or `owner/name@revision` that hold rows; what is in the cache is not fetched again.
pub(crate) fn fetch(id: &str, files: Option<&str>) -> Result<Vec<Input>> {
    Hub::from_env().fetch(id, files)
}

impl Hub {
    pub(crate) fn fetch(&self, given: &str, files: Option<&str>) -> Result<Vec<Input>> {
        let (id, revision) = given.split_once('@').unwrap_or((given, "main"));
        let repo = Repo::with_revision(id.to_owned(), RepoType::Dataset, revision.to_owned());
        let cached = self.cache.repo(repo.clone());
        let failed = |file: &str, reason: String| DataError::Hub {
            repo: given.to_owned(),
            file: file.to_owned(),
            reason,
        };
        if self.offline {
            let snapshot = self.snapshot(&repo).ok_or_else(|| {
                failed("the list of files", "HF_HUB_OFFLINE is set and it was never fetched".to_owned())
            })?;
            return self.in_snapshot(given, &snapshot, files);
        }
        let mut builder =
            ApiBuilder::from_cache(self.cache.clone()).with_progress(false).with_token(self.token.clone());
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let api =
            builder.build().map_err(|error| failed("the repository", error.to_string()))?.repo(repo.clone());
        let names: Vec<String> = match api.info() {
            Ok(info) => info.siblings.into_iter().map(|sibling| sibling.rfilename).collect(),
            // No connection: what an earlier call fetched will do.
            Err(error) => match self.snapshot(&repo) {
                Some(snapshot) => return self.in_snapshot(given, &snapshot, files),
                None => return Err(failed("the list of files", explained(&error))),
            },
        };
        let mut inputs = Vec::new();
        for name in choose(given, names, files)? {
            let path = match cached.get(&name) {
                Some(path) => path,
                None => {
                    let path = api
                        .download_with_progress(&name, Bar(None))
                        .map_err(|error| failed(&name, explained(&error)))?;
                    check(&path).map_err(|reason| failed(&name, reason))?;
                    path
                }
            };
            inputs.extend(input(given, &name, path));
        }
        Ok(inputs)
    }

    /// The folder that an earlier call filled.
    fn snapshot(&self, repo: &Repo) -> Option<PathBuf> {
        let folder = self.cache.path().join(repo.folder_name());
        let commit = std::fs::read_to_string(folder.join("refs").join(repo.revision())).ok()?;
        let snapshot = folder.join("snapshots").join(commit.trim());
        snapshot.is_dir().then_some(snapshot)
    }

    fn in_snapshot(&self, given: &str, snapshot: &Path, files: Option<&str>) -> Result<Vec<Input>> {
        let mut names = Vec::new();
        list(snapshot, snapshot, &mut names);
        let chosen = choose(given, names, files)?;
        Ok(chosen.iter().filter_map(|name| input(given, name, snapshot.join(name))).collect())
    }
}

fn input(repo: &str, name: &str, path: PathBuf) -> Option<Input> {
    let format = Format::of(Path::new(name))?;
    Some(Input { path, name: format!("{repo}/{name}"), format })
}

fn list(folder: &Path, root: &Path, names: &mut Vec<String>) {
    for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            list(&path, root, names);
        } else if let Ok(below) = path.strip_prefix(root) {
            names.push(below.to_string_lossy().into_owned());
        }
    }
}

/// The files that hold rows for training: those that the pattern names; else those with "train" in their path, of one
/// configuration; else all.
fn choose(repo: &str, mut names: Vec<String>, files: Option<&str>) -> Result<Vec<String>> {
    let problem =
        |reason: String| DataError::Hub { repo: repo.to_owned(), file: "the data".to_owned(), reason };
    names.retain(|name| {
        is_below(name) && Format::of(Path::new(name)).is_some_and(|format| format != Format::Text)
    });
    names.sort();
    let all = names.clone();
    if files.is_some() {
        let wanted = matcher(files).map_err(problem)?;
        names.retain(|name| wanted(Path::new(name)));
    } else {
        if names.iter().any(|name| name.contains("train")) {
            names.retain(|name| name.contains("train"));
        }
        let folder =
            |name: &str| name.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_owned());
        let mut folders: Vec<String> = names.iter().map(|name| folder(name)).collect();
        folders.dedup();
        if folders.len() > 1 {
            let usual = ["", "data", "main", "default", "plain_text"];
            let Some(one) = usual.iter().find(|one| folders.iter().any(|folder| folder == *one)) else {
                return Err(problem(format!(
                    "it has several configurations ({}): name one with ReadOptions::files, such as \"{}/*\"",
                    folders.join(", "),
                    folders[0]
                )));
            };
            names.retain(|name| folder(name) == *one);
        }
    }
    if names.is_empty() {
        let shown: Vec<&str> = all.iter().take(8).map(String::as_str).collect();
        return Err(problem(match files {
            Some(files) => format!("no data file matches \"{files}\"; there are: {}", shown.join(", ")),
            None => format!("it has no data file ({})", crate::source::KINDS),
        }));
    }
    Ok(names)
}

fn explained(error: &ApiError) -> String {
    format!(
        "{error}. Without a connection, give a path or a data set that was fetched before; a private or gated one needs a token (HF_TOKEN)"
    )
}

/// The hub names a large file by its sha256, and the cache keeps it under that name. A file that has another one is
/// taken out of the cache, so that the next call fetches it again.
fn check(path: &Path) -> Result<(), String> {
    let blob = path.canonicalize().map_err(|error| error.to_string())?;
    let name = blob.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.len() != 64 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    let mut hash = Sha256::new();
    let mut file = std::fs::File::open(&blob).map_err(|error| error.to_string())?;
    std::io::copy(&mut file, &mut hash).map_err(|error| error.to_string())?;
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found == name.to_ascii_lowercase() {
        return Ok(());
    }
    for file in [path, &blob] {
        // It is damaged anyway; the error that is returned says so.
        let _ = std::fs::remove_file(file);
    }
    Err(format!(
        "wrong checksum: expected {name}, found {found}. It was removed; read again to fetch it anew"
    ))
}

/// Our progress bar in the shape that hf-hub asks for.
struct Bar(Option<ProgressBar>);

impl Progress for Bar {
    fn init(&mut self, size: usize, filename: &str) {
        // Called again when the transfer itself begins.
        self.0
            .get_or_insert_with(|| ProgressBar::new(format!("Fetching {filename}"), None).unit("B"))
            .set_total(Some(size as u64));
    }

    fn update(&mut self, size: usize) {
        if let Some(bar) = &self.0 {
            bar.advance(size as u64);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use std::collections::BTreeMap;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::{Dataset, ReadOptions};

    type Files = BTreeMap<&'static str, Vec<u8>>;

    /// Speaks as much of the hub's interface as is asked for here, until the process ends. With a token, it wants that.
    fn serve(files: Files, token: Option<&'static str>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &files, token);
            }
        });
        address
    }

    fn answer(mut stream: TcpStream, files: &Files, token: Option<&str>) {
        let lines: Vec<String> = BufReader::new(stream.try_clone().unwrap())
            .lines()
            .map_while(|line| line.ok().filter(|line| !line.is_empty()))
            .collect();
        let path = lines[0].split(' ').nth(1).unwrap();
        let header = |name: &str| {
            lines.iter().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let mut send = |status: &str, headers: String, body: &[u8]| {
            let head = format!(
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).unwrap();
        };
        if token.is_some_and(|token| header("authorization") != Some(format!("Bearer {token}"))) {
            return send("401 Unauthorized", String::new(), b"");
        }
        if path == "/api/datasets/owner/set/revision/main" {
            let siblings: Vec<_> =
                files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
            let info = serde_json::json!({ "siblings": siblings, "sha": "c0ffee" }).to_string();
            return send("200 OK", "Content-Type: application/json\r\n".to_owned(), info.as_bytes());
        }
        let file = path
            .strip_prefix("/datasets/owner/set/resolve/main/")
            .and_then(|file| Some((file, files.get(file)?)));
        let Some((name, body)) = file else { return send("404 Not Found", String::new(), b"") };
        let range = header("range").unwrap();
        let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap();
        let from: usize = from.parse().unwrap();
        let to = to.parse().map_or(body.len(), |to: usize| body.len().min(to + 1));
        let etag = match name.ends_with("wrong.jsonl") {
            true => "0".repeat(64),
            false => format!("etag-{}", name.replace('/', "-")),
        };
        let headers = format!(
            "ETag: \"{etag}\"\r\nX-Repo-Commit: c0ffee\r\nContent-Range: bytes {from}-{}/{}\r\n",
            to - 1,
            body.len()
        );
        send("206 Partial Content", headers, &body[from..to]);
    }

    fn files() -> Files {
        let line = |n: usize| format!("{{\"question\":\"q{n}\",\"answer\":\"a{n}\"}}\n").into_bytes();
        BTreeMap::from([
            ("README.md", b"a card".to_vec()),
            ("data/train-00000-of-00002.jsonl", line(1)),
            ("data/train-00001-of-00002.jsonl", line(2)),
            ("data/test-00000-of-00001.jsonl", line(3)),
            ("../../evil.jsonl", line(4)),
        ])
    }

    /// Speaks as [`serve`] does, with an index that changes, and a line of JSON for every file.
    pub(crate) fn serve_index(index: Arc<Mutex<Vec<u8>>>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let lines: Vec<String> = BufReader::new(&stream)
                    .lines()
                    .map_while(|line| line.ok().filter(|line| !line.is_empty()))
                    .collect();
                let path = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
                let (body, headers) = match path.starts_with("/api/") {
                    true => (index.lock().unwrap().clone(), "Content-Type: application/json\r\n".to_owned()),
                    false => {
                        let body = b"{\"prompt\":\"a\",\"completion\":\"b\"}\n".to_vec();
                        let range = format!("Content-Range: bytes 0-{}/{}\r\n", body.len() - 1, body.len());
                        (body, format!("ETag: \"e\"\r\nX-Repo-Commit: c0ffee\r\n{range}"))
                    }
                };
                let status = if path.starts_with("/api/") { "200 OK" } else { "206 Partial Content" };
                let head = format!(
                    "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
                    body.len()
                );
                // Whoever has hung up does not want the answer.
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            }
        });
        address
    }

    pub(crate) fn hub(endpoint: &str, folder: &Path) -> Hub {
        Hub {
            cache: Cache::new(folder.join("hub")),
            endpoint: Some(endpoint.to_owned()),
            token: None,
            offline: false,
        }
    }

    fn names(inputs: &[Input]) -> Vec<&str> {
        inputs.iter().map(|input| input.name.strip_prefix("owner/set/").unwrap()).collect()
    }

    const TRAIN: [&str; 2] = ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"];

    #[test]
    fn the_training_files_are_fetched_once_and_read_offline() {
        let (folder, endpoint) = (tempfile::tempdir().unwrap(), serve(files(), None));
        let mut hub = hub(&endpoint, folder.path());
        assert_eq!(names(&hub.fetch("owner/set", None).unwrap()), TRAIN);
        assert_eq!(
            names(&hub.fetch("owner/set", Some("data/test-*")).unwrap()),
            ["data/test-00000-of-00001.jsonl"]
        );
        // Nobody answers there; then nobody is asked.
        hub.endpoint = Some("http://127.0.0.1:9".to_owned());
        assert_eq!(names(&hub.fetch("owner/set", None).unwrap()), TRAIN);
        hub.offline = true;
        let inputs = hub.fetch("owner/set", None).unwrap();
        assert_eq!(names(&inputs), TRAIN);
        let rows = Dataset::read(&inputs[1].path).unwrap().rows();
        assert_eq!((rows[0].prompt.as_str(), rows[0].completion.as_str()), ("q2", "a2"));
        let error = hub.fetch("owner/other", None).unwrap_err().to_string();
        assert!(error.contains("HF_HUB_OFFLINE is set"), "{error}");
        assert!(!folder.path().join("evil.jsonl").exists());
    }

    #[test]
    fn a_token_is_sent_and_its_lack_explained() {
        let (folder, endpoint) = (tempfile::tempdir().unwrap(), serve(files(), Some("secret")));
        let mut hub = hub(&endpoint, folder.path());
        let error = hub.fetch("owner/set", None).unwrap_err().to_string();
        assert!(error.contains("401") && error.contains("HF_TOKEN"), "{error}");
        hub.token = Some("secret".to_owned());
        assert_eq!(hub.fetch("owner/set", None).unwrap().len(), 2);
    }

    #[test]
    fn a_file_with_a_wrong_checksum_does_not_stay_in_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let endpoint = serve(BTreeMap::from([("wrong.jsonl", b"{}".to_vec())]), None);
        let error = hub(&endpoint, folder.path()).fetch("owner/set", None).unwrap_err().to_string();
        assert!(error.contains("wrong checksum"), "{error}");
    }

    #[test]
    fn several_configurations_must_be_told_apart() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let two = names(&["en/train.jsonl", "de/train.jsonl"]);
        let error = choose("a/b", two.clone(), None).unwrap_err().to_string();
        assert!(error.contains("de, en") && error.contains("\"de/*\""), "{error}");
        assert_eq!(choose("a/b", two, Some("en/*")).unwrap(), ["en/train.jsonl"]);
        assert_eq!(
            choose("a/b", names(&["socratic/train.parquet", "main/train.parquet"]), None).unwrap(),
            ["main/train.parquet"]
        );
        let error = choose("a/b", names(&["a.png"]), None).unwrap_err().to_string();
        assert!(error.contains("no data file"), "{error}");
    }

    /// The variables as Python has them, in a process of its own: they are read where the call is made.
    #[test]
    fn the_environment_is_respected() {
        const CHILD: &str = "TUNEBOOK_TEST_HUB";
        if std::env::var_os(CHILD).is_some() {
            let rows = Dataset::read_with("owner/set", &ReadOptions::default()).unwrap();
            assert_eq!((rows.len(), rows.source()), (2, "owner/set"));
            return;
        }
        let (folder, endpoint) = (tempfile::tempdir().unwrap(), serve(files(), Some("secret")));
        let child = |more: &[(&str, &str)]| {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "hub::tests::the_environment_is_respected"]).env(CHILD, "1");
            command
                .env("HF_HOME", folder.path())
                .env("HF_ENDPOINT", &endpoint)
                .env_remove("HF_HUB_OFFLINE")
                .env_remove("HF_HUB_CACHE");
            command.env_remove("HF_TOKEN").envs(more.iter().copied());
            command.output().unwrap().status.success()
        };
        assert!(!child(&[]), "the server wants a token");
        assert!(child(&[("HF_TOKEN", "secret")]));
        assert!(child(&[("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", "http://127.0.0.1:9")]));
    }
}
