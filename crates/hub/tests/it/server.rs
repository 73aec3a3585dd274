//! A server that speaks the hub's interface: the list of files, `resolve` with its headers,
//! redirects to where the bytes are, ranges; uploads are in [`crate::uploads`]. It keeps a log, and can
//! break off, lie and refuse.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::uploads::{self, Uploads};

/// How the server behaves; may be changed while it runs.
#[derive(Default)]
pub(crate) struct State {
    /// By commit and name.
    pub files: BTreeMap<(&'static str, &'static str), Vec<u8>>,
    /// Branches and tags.
    pub refs: BTreeMap<&'static str, &'static str>,
    /// Only who shows this gets anything.
    pub token: Option<&'static str>,
    /// Who shows the token is refused all the same.
    pub gated: bool,
    /// Everything is answered with this.
    pub status: Option<u16>,
    /// So many transfers of large files end after this share of the bytes.
    pub breaks: u32,
    /// Large files arrive with one bit changed.
    pub lies: bool,
    /// Large files are redirected to this address, of another server.
    pub bytes_at: Option<String>,
    /// The list of files is redirected to this address, of another server.
    pub list_at: Option<String>,
    /// Names in the list of files that are none.
    pub more_names: Vec<String>,
    /// The list of files is this.
    pub list: Option<String>,
    /// The list of files is redirected so, word by word.
    pub list_location: Option<String>,
    /// Every file has this name.
    pub etag: Option<String>,
    /// Every file is of this commit.
    pub commit: Option<&'static str>,
    /// Small files arrive with their first letter changed.
    pub changes: bool,
    /// How ranges are answered.
    pub ranges: Ranges,
    /// `METHOD path | range`, in order.
    pub log: Vec<String>,
    /// The `Authorization` of each request that had one.
    pub shown: Vec<String>,
    /// The repository that is written to.
    pub uploads: Uploads,
}

/// How a request for a part of a file is answered.
#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) enum Ranges {
    #[default]
    Kept,
    /// By the whole file.
    Whole,
    /// By the part from the first byte on, whichever was asked for.
    FromStart,
    /// By the part, and a hundred times as much behind it.
    Endless,
}

/// What is asked.
pub(crate) struct Request {
    pub method: String,
    pub path: String,
    pub query: String,
    /// With names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

/// Names of large files end so.
const LARGE: &str = ".safetensors";

pub(crate) struct Server {
    pub address: String,
    pub state: Arc<Mutex<State>>,
}

impl Server {
    pub(crate) fn start(state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(state));
        let (shared, own) = (Arc::clone(&state), address.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &mut shared.lock().unwrap(), &own);
            }
        });
        Self { address, state }
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.state.lock().unwrap().log.clone()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }
}

fn answer(mut stream: TcpStream, state: &mut State, address: &str) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let lines: Vec<String> = reader
        .by_ref()
        .lines()
        .map_while(|line| line.ok().filter(|line| !line.is_empty()))
        .collect();
    let Some(first) = lines.first() else { return };
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let path = target.split('?').next().unwrap();
    let header = |name: &str| {
        lines.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let range = header("range");
    state.log.push(format!("{method} {path} | {}", range.as_deref().unwrap_or("whole")));
    state.shown.extend(header("authorization"));
    let mut send = |status: u16, headers: &[(&str, String)], body: &[u8], sent: usize| {
        let mut head = format!(
            "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        let body = if method == "HEAD" { &[] } else { &body[..sent] };
        // Whoever asked may be gone.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    };
    let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    if method == "PUT" && state.uploads.cuts > 0 {
        state.uploads.cuts -= 1;
        // The rest is never read.
        let _ = reader.read_exact(&mut vec![0; length / 2]);
        return;
    }
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let headers = lines[1..].iter().filter_map(|line| line.split_once(':'));
    let request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: target.split_once('?').map(|(_, query)| query.to_owned()).unwrap_or_default(),
        headers: headers.map(|(k, v)| (k.to_ascii_lowercase(), v.trim().to_owned())).collect(),
        body,
    };
    match uploads::answer(&request, &mut state.uploads, address) {
        Some(uploads::Reply::Answer(status, headers, body)) => {
            return send(status, &headers, body.as_bytes(), body.len());
        }
        Some(uploads::Reply::Nothing) => return,
        None => {}
    }
    let mut refuse = |status: u16| send(status, &[], b"", 0);
    if let Some(status) = state.status {
        return refuse(status);
    }
    let cdn = path.strip_prefix("/cdn/");
    if let Some(token) = state.token.filter(|_| cdn.is_none()) {
        let shown = header("authorization") == Some(format!("Bearer {token}"));
        if !shown || state.gated {
            return refuse(if shown { 403 } else { 401 });
        }
    }
    let commit_of = |revision: &str| {
        let revision = revision.replace("%2F", "/");
        let commits = state.files.keys().map(|(commit, _)| *commit);
        state
            .refs
            .get(revision.as_str())
            .copied()
            .or_else(|| commits.into_iter().find(|commit| *commit == revision))
    };
    if let (true, Some(other)) = (path.starts_with("/api/"), &state.list_at) {
        return send(307, &[("Location", format!("{other}{path}"))], b"", 0);
    }
    if let (true, Some(location)) = (path.starts_with("/api/"), &state.list_location) {
        return send(302, &[("Location", location.clone())], b"", 0);
    }
    if let (true, Some(list)) = (path.starts_with("/api/"), &state.list) {
        return send(200, &[], list.as_bytes(), list.len());
    }
    if let Some(revision) = path.strip_prefix("/api/models/owner/tiny/revision/") {
        let Some(commit) = commit_of(revision) else { return refuse(404) };
        let siblings: Vec<_> = state
            .files
            .keys()
            .filter(|(of, _)| *of == commit)
            .map(|(_, name)| (*name).to_owned())
            .chain(state.more_names.iter().cloned())
            .map(|name| serde_json::json!({ "rfilename": name }))
            .collect();
        let info = serde_json::json!({ "id": "owner/tiny", "siblings": siblings, "sha": commit })
            .to_string();
        return send(
            200,
            &[("Content-Type", "application/json".to_owned())],
            info.as_bytes(),
            info.len(),
        );
    }
    let address = state.bytes_at.as_deref().unwrap_or(address);
    // A repository that was renamed.
    if let Some(rest) = path.strip_prefix("/api/models/owner/old/") {
        return send(307, &[("Location", format!("/api/models/owner/tiny/{rest}"))], b"", 0);
    }
    if let Some(rest) = path.strip_prefix("/owner/old/") {
        return send(307, &[("Location", format!("/owner/tiny/{rest}"))], b"", 0);
    }
    let file = path.strip_prefix("/owner/tiny/resolve/").or(cdn).and_then(|rest| {
        let (revision, name) = rest.split_once('/')?;
        let commit = commit_of(revision)?;
        let name = name.replace("%20", " ");
        let body = state.files.iter().find(|((of, known), _)| *of == commit && *known == name)?.1;
        Some((commit, name, body.clone()))
    });
    let Some((commit, name, mut body)) = file else { return refuse(404) };
    let sha256 = crate::sha256(&body);
    let large = name.ends_with(LARGE);
    if large && cdn.is_none() {
        let headers = [
            ("X-Repo-Commit", commit.to_owned()),
            ("ETag", "\"the-pointer\"".to_owned()),
            ("X-Linked-ETag", format!("\"{sha256}\"")),
            ("X-Linked-Size", body.len().to_string()),
            ("Location", format!("{address}/cdn/{commit}/{name}?signature=x")),
        ];
        return send(302, &headers, b"", 0);
    }
    if large && state.lies {
        body[100] ^= 1;
    }
    // The name of a small file is git's own.
    let etag = if large { sha256 } else { git_name(&body) };
    let etag = state.etag.clone().unwrap_or(format!("\"{etag}\""));
    if state.changes && !large {
        body[0] ^= 1;
    }
    let mut headers = vec![
        ("X-Repo-Commit", state.commit.unwrap_or(commit).to_owned()),
        ("ETag", etag),
        ("Accept-Ranges", "bytes".to_owned()),
    ];
    let range = range.filter(|_| state.ranges != Ranges::Whole);
    let Some(range) = range else { return send(200, &headers, &body, body.len()) };
    let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap();
    let from: usize = if state.ranges == Ranges::FromStart { 0 } else { from.parse().unwrap() };
    if from >= body.len() {
        headers.push(("Content-Range", format!("bytes */{}", body.len())));
        return send(416, &headers, b"", 0);
    }
    let to = to.parse().map_or(body.len(), |to: usize| body.len().min(to + 1));
    headers.push(("Content-Range", format!("bytes {from}-{}/{}", to - 1, body.len())));
    if state.ranges == Ranges::Endless && to - from > 1 {
        let endless = body.repeat(100);
        return send(206, &headers, &endless, endless.len());
    }
    let part = &body[from..to];
    // The question for the size, of one byte, is always answered.
    let breaks = large && state.breaks > 0 && part.len() > 1;
    if breaks {
        state.breaks -= 1;
    }
    send(206, &headers, part, if breaks { part.len() / 2 } else { part.len() });
}

/// What `git hash-object` says of the small files here.
fn git_name(body: &[u8]) -> String {
    let name = match body {
        b"{\"version\": 1}" => "915d838ec059ebfcc4fb15decb53f1d5a1a55e19",
        b"{\"version\": 2}" => "cdb829c33827a8c3f94748575609b4cf153dd3da",
        b"{}" => "9e26dfeeb6e641a33dae4961196235bdb965b21b",
        b"" => "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
        _ => panic!("{body:?}"),
    };
    name.to_owned()
}
