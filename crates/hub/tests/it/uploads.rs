//! The half of the server that is written to: repositories are made, files announced, large ones put
//! into a storage on another host, commits made. As Python's client has it (`peers.rs` asks that).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::server::Request;
use crate::sha256;

/// The repository `owner/made`.
#[derive(Default)]
pub(crate) struct Uploads {
    /// Requests with another token are refused; without one here there is no such half.
    pub token: Option<&'static str>,
    /// The token may only read.
    pub read_only: bool,
    pub exists: bool,
    pub private: bool,
    /// How many commits there are; the last one's name is this number.
    pub commits: u64,
    /// By name: git's name or the SHA-256.
    pub files: BTreeMap<String, String>,
    /// The storage, by SHA-256.
    pub stored: BTreeMap<String, Vec<u8>>,
    /// Files go in parts of this size.
    pub part_bytes: Option<usize>,
    /// The last file came with the header that it was to have.
    pub signed: bool,
    /// Parts that have arrived.
    pub parts: BTreeMap<usize, Vec<u8>>,
    /// So many transfers break in their middle.
    pub cuts: u32,
    /// The next requests whose path holds this are answered so.
    pub refusals: Vec<(&'static str, u16)>,
    /// The words of a refusal.
    pub words: String,
    /// Somebody commits before our next commit.
    pub somebody: bool,
    /// The next commit is made, and its answer lost.
    pub lost: bool,
    /// Where large files go, if not here.
    pub storage_at: Option<String>,
    /// A repository that is to be private is made public.
    pub makes_public: bool,
    /// The storage refuses with these words.
    pub storage_words: Option<String>,
    /// The name and the page of a commit, and the branch's last commit, are these.
    pub told: Option<String>,
    pub told_head: Option<String>,
    /// The next request is redirected to this host.
    pub moved_to: Option<String>,
    /// `METHOD path token|-`, in order.
    pub log: Vec<String>,
    /// The bodies of what makes repositories and commits.
    pub made: Vec<Value>,
    pub lines: Vec<Vec<Value>>,
}

pub(crate) enum Reply {
    Answer(u16, Vec<(&'static str, String)>, String),
    /// The connection ends.
    Nothing,
}

const REPO: &str = "/api/models/owner/made";

pub(crate) fn commit_name(number: u64) -> String {
    format!("{number:040x}")
}

fn answer_json(value: &Value) -> Option<Reply> {
    let headers = vec![("Content-Type", "application/json".to_owned())];
    Some(Reply::Answer(200, headers, value.to_string()))
}

fn refuse(status: u16, code: &str, words: &str) -> Option<Reply> {
    let headers =
        vec![("Content-Type", "application/json".to_owned()), ("X-Error-Code", code.to_owned())];
    Some(Reply::Answer(status, headers, json!({ "error": words }).to_string()))
}

pub(crate) fn answer(request: &Request, uploads: &mut Uploads, address: &str) -> Option<Reply> {
    let token = uploads.token?;
    let shown = request.headers.get("authorization");
    let who = if shown.is_some() { "token" } else { "-" };
    uploads.log.push(format!("{} {} {who}", request.method, request.path));
    if let Some(at) = uploads.refusals.iter().position(|(part, _)| request.path.contains(part)) {
        let (_, status) = uploads.refusals.remove(at);
        return refuse(status, "", &uploads.words);
    }
    if let Some(rest) = request.path.strip_prefix("/storage/") {
        return storage(rest, request, uploads);
    }
    if shown != Some(&format!("Bearer {token}")) {
        return refuse(401, "", &format!("Invalid credentials {}", uploads.words));
    }
    if let Some(to) = uploads.moved_to.take() {
        return Some(Reply::Answer(307, vec![("Location", to + &request.path)], String::new()));
    }
    let body = || serde_json::from_slice::<Value>(&request.body).unwrap();
    if request.path == "/api/validate-yaml" {
        let text = body()["content"].as_str().unwrap().to_owned();
        return match text.contains("license: none-such") {
            true => refuse(400, "", "\"license\" must be one of these"),
            false => answer_json(&json!({ "errors": [], "warnings": [] })),
        };
    }
    if request.method == "POST" && uploads.read_only {
        return refuse(403, "", "you need write access");
    }
    if request.path == "/api/repos/create" {
        uploads.made.push(body());
        if uploads.exists {
            return refuse(409, "", "You already created this model repo");
        }
        let private = body()["visibility"] == "private" && !uploads.makes_public;
        (uploads.exists, uploads.private) = (true, private);
        return answer_json(&json!({ "url": format!("{address}/owner/made") }));
    }
    if !uploads.exists {
        return refuse(404, "RepoNotFound", "Repository not found");
    }
    let head = uploads.told_head.clone().unwrap_or(commit_name(uploads.commits));
    match request.path.strip_prefix(REPO).unwrap_or(&request.path) {
        "" | "/revision/main" => {
            answer_json(&json!({ "id": "owner/made", "sha": head, "private": uploads.private }))
        }
        "/preupload/main" => {
            let files: Vec<Value> = body()["files"]
                .as_array()
                .unwrap()
                .iter()
                .map(|file| {
                    let path = file["path"].as_str().unwrap();
                    let mode = if path.ends_with(".safetensors") { "lfs" } else { "regular" };
                    let ignored = path.ends_with(".log");
                    let oid = uploads.files.get(path);
                    json!({ "path": path, "uploadMode": mode, "shouldIgnore": ignored, "oid": oid })
                })
                .collect();
            answer_json(&json!({ "files": files }))
        }
        "/owner/made.git/info/lfs/objects/batch" => {
            let object = body()["objects"][0].clone();
            let oid = object["oid"].as_str().unwrap();
            let mut found = json!({ "oid": oid, "size": object["size"] });
            if let Some(words) = &uploads.storage_words {
                found["error"] = json!({ "code": 422, "message": words });
            }
            if !uploads.stored.contains_key(oid) {
                // Another name of this host is another host.
                let other = address.replace("127.0.0.1", "localhost");
                let other = uploads.storage_at.clone().unwrap_or(other);
                let size = object["size"].as_u64().unwrap() as usize;
                let mut header = json!({ "x-signature": "named" });
                if let Some(bytes) = uploads.part_bytes {
                    header = json!({ "chunk_size": bytes.to_string() });
                    for part in 1..=size.div_ceil(bytes) {
                        header[format!("{part:05}")] =
                            json!(format!("{other}/storage/part/{part}?signature=secret"));
                    }
                }
                let href = format!("{other}/storage/{oid}?signature=secret");
                found["actions"] = json!({
                    "upload": { "href": href, "header": header },
                    "verify": { "href": format!("{address}/verify/{oid}") },
                });
            }
            answer_json(&json!({ "transfer": "basic", "objects": [found] }))
        }
        "/commit/main" => commit(request, uploads, address),
        other => match other.strip_prefix("/verify/") {
            Some(oid) if uploads.stored.contains_key(oid) => answer_json(&json!({})),
            Some(_) => refuse(404, "", "not arrived"),
            None => None,
        },
    }
}

fn storage(rest: &str, request: &Request, uploads: &mut Uploads) -> Option<Reply> {
    if let Some(part) = rest.strip_prefix("part/") {
        let number: usize = part.parse().unwrap();
        uploads.parts.insert(number, request.body.clone());
        let etag = vec![("ETag", format!("\"etag-{number}\""))];
        return Some(Reply::Answer(200, etag, String::new()));
    }
    let bytes = match request.method.as_str() {
        "PUT" => {
            assert_eq!(uploads.part_bytes, None);
            // Python's client leaves it out.
            uploads.signed = request.headers.get("x-signature").is_some_and(|it| it == "named");
            assert!(!request.headers.contains_key("transfer-encoding"), "it knows the length");
            request.body.clone()
        }
        _ => {
            let done: Value = serde_json::from_slice(&request.body).unwrap();
            assert_eq!(done["oid"], rest);
            for (at, part) in done["parts"].as_array().unwrap().iter().enumerate() {
                assert_eq!(part["partNumber"], at + 1);
                assert_eq!(part["etag"], format!("\"etag-{}\"", at + 1));
            }
            std::mem::take(&mut uploads.parts).into_values().flatten().collect()
        }
    };
    if sha256(&bytes) != rest {
        return refuse(400, "", "other bytes than were announced");
    }
    uploads.stored.insert(rest.to_owned(), bytes);
    answer_json(&json!({}))
}

fn commit(request: &Request, uploads: &mut Uploads, address: &str) -> Option<Reply> {
    let lines: Vec<Value> = request
        .body
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    if std::mem::take(&mut uploads.somebody) {
        uploads.commits += 1;
    }
    let parent = &lines[0]["value"]["parentCommit"];
    if parent.as_str().is_some_and(|parent| parent != commit_name(uploads.commits)) {
        return refuse(412, "", "A commit has happened since. Please refresh and try again.");
    }
    let pull_request = request.query.contains("create_pr=1");
    for line in lines.iter().skip(1).filter(|_| !pull_request) {
        let value = &line["value"];
        let path = value["path"].as_str().unwrap().to_owned();
        let oid = match (line["key"].as_str(), value["content"].as_str()) {
            (Some("lfsFile"), _) => value["oid"].as_str().unwrap(),
            // git's name of `hello\n`.
            (_, Some("aGVsbG8K")) => "ce013625030ba8dba906f756967f9e9ca394464a",
            _ => "not known",
        };
        uploads.files.insert(path, oid.to_owned());
    }
    uploads.lines.push(lines);
    uploads.commits += u64::from(!pull_request);
    if std::mem::take(&mut uploads.lost) {
        return Some(Reply::Nothing);
    }
    if uploads.told.as_deref() == Some("") {
        return answer_json(&json!([]));
    }
    let name = uploads.told.clone().unwrap_or(commit_name(uploads.commits));
    answer_json(&json!({
        "success": true,
        "commitOid": name,
        "commitUrl": format!("{address}/owner/made/commit/{name}"),
        "pullRequestUrl": pull_request.then(|| format!("{address}/owner/made/discussions/1")),
    }))
}
