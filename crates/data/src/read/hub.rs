//! Data sets from the Hugging Face hub: which files of a repository hold rows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tunebook_hub::{Hub, Kind};

use crate::error::{DataError, Result};
use crate::read::input::{Format, Input, KINDS, is_below, matcher};
use crate::read::source::Source;

/// The files of `owner/name` or `owner/name@revision` that hold rows; files in the cache are not
/// fetched again.
pub(crate) fn fetch(id: &str, files: Option<&str>) -> Result<Source> {
    fetch_from(&Hub::from_env(), id, files)
}

pub(crate) fn fetch_from(hub: &Hub, given: &str, files: Option<&str>) -> Result<Source> {
    let failed = |error: tunebook_hub::Error| match error.is_interruption() {
        true => DataError::Interrupted(tunebook_progress::Interrupted),
        false => DataError::Hub { repo: error.repo, file: error.file, reason: error.reason },
    };
    let repository = hub.open(Kind::Dataset, given).map_err(failed)?;
    let names = choose(given, repository.names().to_vec(), files)?;
    let mut source = Source::default();
    for name in &names {
        source.inputs.extend(input(given, name, repository.get(name).map_err(failed)?));
    }
    // The files that a pattern leaves out are left out by the user.
    if files.is_none() {
        let other = repository.names().iter().filter(|name| holds_rows(name));
        source.skipped = other.filter(|name| !names.contains(name)).cloned().collect();
        source.skipped.sort();
    }
    Ok(source)
}

fn input(repo: &str, name: &str, path: PathBuf) -> Option<Input> {
    let format = Format::of(Path::new(name))?;
    Some(Input { path, name: format!("{repo}/{name}"), format })
}

fn holds_rows(name: &str) -> bool {
    is_below(name) && Format::of(Path::new(name)).is_some_and(|format| format != Format::Text)
}

/// The files that hold rows for training: the files that match the pattern; without a pattern the
/// files with "train" in their path, of one configuration; without such files all.
fn choose(repo: &str, mut names: Vec<String>, files: Option<&str>) -> Result<Vec<String>> {
    let problem = |reason: String| DataError::Hub {
        repo: repo.to_owned(),
        file: "the data".to_owned(),
        reason,
    };
    names.retain(|name| holds_rows(name));
    names.sort();
    let all = names.clone();
    if files.is_some() {
        let wanted = matcher(files).map_err(problem)?;
        names.retain(|name| wanted(Path::new(name)));
    } else {
        if names.iter().any(|name| name.contains("train")) {
            names.retain(|name| name.contains("train"));
        }
        let folder = |name: &str| {
            name.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_owned())
        };
        let mut folders: Vec<String> = names.iter().map(|name| folder(name)).collect();
        folders.dedup();
        if folders.len() > 1 {
            let usual = ["", "data", "main", "default", "plain_text"];
            let Some(one) = usual.iter().find(|one| folders.iter().any(|folder| folder == *one))
            else {
                return Err(problem(format!(
                    "it has several configurations ({}): name one with `ReadOptions::files`, in a recipe \
                     `data.files`, such as \"{}/*\"",
                    folders.join(", "),
                    folders[0]
                )));
            };
            names.retain(|name| folder(name) == *one);
        }
    }
    if files.is_none() {
        whole_shards(&names).map_err(problem)?;
    }
    if names.is_empty() {
        let shown: Vec<&str> = all.iter().take(8).map(String::as_str).collect();
        return Err(problem(match files {
            Some(files) => {
                format!("no data file matches \"{files}\"; there are: {}", shown.join(", "))
            }
            None => format!("it has no data file ({})", KINDS),
        }));
    }
    Ok(names)
}

/// Refuses a part of files that count themselves (`train-00000-of-00002`): without a connection there
/// may be fewer of them than the set has.
fn whole_shards(names: &[String]) -> std::result::Result<(), String> {
    let mut counted: BTreeMap<(&str, usize), Vec<&str>> = BTreeMap::new();
    for name in names {
        let count = name.rsplit_once("-of-").and_then(|(front, rest)| {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (front, _) = front.rsplit_once('-')?;
            Some((front, rest[..digits].parse::<usize>().ok()?))
        });
        if let Some(count) = count {
            counted.entry(count).or_default().push(name);
        }
    }
    match counted.iter().find(|((_, count), found)| found.len() < *count) {
        None => Ok(()),
        Some(((front, count), found)) => Err(format!(
            "expected {count} files `{front}-…-of-…`, found {}: the rest was never fetched. Read it once with a \
             connection, or name the files with `ReadOptions::files`, in a recipe `data.files`",
            found.len()
        )),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::{Dataset, ReadOptions};

    type Files = BTreeMap<&'static str, Vec<u8>>;

    /// Speaks as much of the hub's interface as is asked for here, until the process ends. With a
    /// token, it wants that.
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
            return send(
                "200 OK",
                "Content-Type: application/json\r\n".to_owned(),
                info.as_bytes(),
            );
        }
        let file = path
            .strip_prefix("/datasets/owner/set/resolve/c0ffee/")
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
        let line =
            |n: usize| format!("{{\"question\":\"q{n}\",\"answer\":\"a{n}\"}}\n").into_bytes();
        BTreeMap::from([
            ("README.md", b"a card".to_vec()),
            ("data/train-00000-of-00002.jsonl", line(1)),
            ("data/train-00001-of-00002.jsonl", line(2)),
            ("data/test-00000-of-00001.jsonl", line(3)),
            ("../../evil.jsonl", line(4)),
        ])
    }

    fn hub(endpoint: &str, folder: &Path) -> Hub {
        Hub::new(folder.join("hub")).endpoint(endpoint)
    }

    fn names(inputs: &[Input]) -> Vec<&str> {
        inputs.iter().map(|input| input.name.strip_prefix("owner/set/").unwrap()).collect()
    }

    const TRAIN: [&str; 2] = ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"];

    #[test]
    fn the_training_files_are_fetched_once_and_read_offline() {
        let (folder, endpoint) = (tempfile::tempdir().unwrap(), serve(files(), None));
        let hub = hub(&endpoint, folder.path());
        assert_eq!(names(&fetch_from(&hub, "owner/set", None).unwrap().inputs), TRAIN);
        assert_eq!(
            names(&fetch_from(&hub, "owner/set", Some("data/test-*")).unwrap().inputs),
            ["data/test-00000-of-00001.jsonl"]
        );
        // Nobody answers there; then nobody is asked.
        let hub = hub.endpoint("http://127.0.0.1:9");
        assert_eq!(names(&fetch_from(&hub, "owner/set", None).unwrap().inputs), TRAIN);
        let hub = hub.offline(true);
        let Source { inputs, skipped } = fetch_from(&hub, "owner/set", None).unwrap();
        assert_eq!(names(&inputs), TRAIN);
        assert_eq!(skipped, ["data/test-00000-of-00001.jsonl"]);
        let rows = Dataset::read(&inputs[1].path).unwrap().rows();
        assert_eq!((rows[0].prompt.as_str(), rows[0].completion.as_str()), ("q2", "a2"));
        let error = fetch_from(&hub, "owner/other", None).unwrap_err().to_string();
        assert!(error.contains("HF_HUB_OFFLINE is set"), "{error}");
        assert!(!folder.path().join("evil.jsonl").exists());
    }

    #[test]
    fn without_a_connection_a_set_is_whole_or_refused() {
        let (folder, endpoint) = (tempfile::tempdir().unwrap(), serve(files(), None));
        let hub = hub(&endpoint, folder.path());
        // Nothing but the test's rows was fetched.
        fetch_from(&hub, "owner/set", Some("data/test-*")).unwrap();
        let offline = hub.clone().offline(true);
        let error = fetch_from(&offline, "owner/set", None).unwrap_err().to_string();
        assert!(error.contains(TRAIN[0]) && error.contains("never fetched"), "{error}");
        assert_eq!(
            names(&fetch_from(&offline, "owner/set", Some("data/test-*")).unwrap().inputs),
            ["data/test-00000-of-00001.jsonl"]
        );
        // One of two shards.
        fetch_from(&hub, "owner/set", Some(TRAIN[0])).unwrap();
        let error = fetch_from(&offline, "owner/set", None).unwrap_err().to_string();
        assert!(error.contains(TRAIN[1]) && error.contains("never fetched"), "{error}");
        // As Python fetched it: the names of the others are not known.
        std::fs::remove_dir_all(folder.path().join("hub/datasets--owner--set/.tunebook")).unwrap();
        let error = fetch_from(&offline, "owner/set", None).unwrap_err().to_string();
        assert!(error.contains("expected 2 files `data/train-…-of-…`, found 1"), "{error}");
        fetch_from(&hub, "owner/set", None).unwrap();
        assert_eq!(names(&fetch_from(&offline, "owner/set", None).unwrap().inputs), TRAIN);
    }

    #[test]
    fn a_token_is_sent_and_its_lack_explained() {
        let (folder, endpoint) = (tempfile::tempdir().unwrap(), serve(files(), Some("secret")));
        let hub = hub(&endpoint, folder.path());
        let error = fetch_from(&hub, "owner/set", None).unwrap_err().to_string();
        assert!(error.contains("401") && error.contains("HF_TOKEN"), "{error}");
        let hub = hub.token("secret");
        assert_eq!(fetch_from(&hub, "owner/set", None).unwrap().inputs.len(), 2);
    }

    #[test]
    fn a_file_with_a_wrong_checksum_does_not_stay_in_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let endpoint = serve(BTreeMap::from([("wrong.jsonl", b"{}".to_vec())]), None);
        let error =
            fetch_from(&hub(&endpoint, folder.path()), "owner/set", None).unwrap_err().to_string();
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

    /// The variables as Python has them, in a process of its own: they are read where the call is
    /// made.
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
            command
                .args(["--exact", "read::hub::tests::the_environment_is_respected"])
                .env(CHILD, "1");
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
