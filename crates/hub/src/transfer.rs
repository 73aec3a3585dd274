//! Requests to the hub: the list of a repository's files, and a file's transfer into the cache.
//!
//! hf-hub shows the token to every host that a file is redirected to; a large file always is, to a
//! host of bytes. Here the token goes to the endpoint alone: the same scheme, host and port. The
//! folders are those of hf-hub and of Python's `huggingface_hub`.
//!
//! The network is waited for on a thread of its own, so that Stop is answered while a server is
//! silent; one that stays silent counts as a broken connection.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use hf_hub::api::sync::ApiError;
use hf_hub::api::{Progress, RepoInfo};
use hf_hub::{Cache, Repo};
use tunebook_progress::{interrupt, stream};
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use crate::token::Token;

pub(crate) const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const AUTHORIZATION: &str = "authorization";
const COMMIT: &str = "x-repo-commit";
const CONTENT_RANGE: &str = "content-range";
const ETAG: &str = "etag";
const LINKED_ETAG: &str = "x-linked-etag";
const LOCATION: &str = "location";
const RANGE: &str = "range";
pub(crate) const MAX_REDIRECTS: usize = 10;
pub(crate) const CONNECT_TIME: Duration = Duration::from_secs(30);
/// A server that sends nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(60);
/// How often Stop is looked at.
pub(crate) const LOOK: Duration = Duration::from_millis(50);
/// A transfer by another process is told of when it has been waited for so long.
const TELL_AFTER: Duration = Duration::from_secs(1);
const BUFFER_BYTES: usize = 64 << 10;
/// Buffers that may wait to be written.
const BUFFERS: usize = 16;

type Result<T> = std::result::Result<T, ApiError>;

/// The endpoint, and who asks.
#[derive(Debug)]
pub(crate) struct Transfer {
    agent: Agent,
    endpoint: String,
    token: Option<Token>,
}

/// The part of the answers that says what a file is.
struct Described {
    etag: String,
    commit: String,
    size: u64,
}

impl Transfer {
    pub(crate) fn new(endpoint: Option<&str>, token: Option<&Token>) -> Self {
        let config = Agent::config_builder()
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_TIME))
            .timeout_recv_response(Some(SILENCE))
            .build();
        Self {
            agent: config.into(),
            endpoint: endpoint.unwrap_or(DEFAULT_ENDPOINT).trim_end_matches('/').to_owned(),
            token: token.cloned(),
        }
    }

    /// The commit and the files of a repository at a revision.
    ///
    /// # Errors
    /// The request was refused or broke off, or the answer is no such list.
    pub(crate) fn info(&self, repo: &Repo) -> Result<RepoInfo> {
        let url = format!("{}/api/{}", self.endpoint, repo.api_url());
        let mut response = self.get(&url, None, &mut |_| ())?;
        let list = apart(move || response.body_mut().read_json::<RepoInfo>())?;
        Ok(list.map_err(Box::new)?)
    }

    /// Fetches a file, from where an earlier call stopped, and returns its place in the cache.
    ///
    /// # Errors
    /// The request was refused or broke off, or the cache cannot be written.
    pub(crate) fn fetch(
        &self,
        cache: &Cache,
        repo: &Repo,
        name: &str,
        mut progress: impl Progress,
    ) -> Result<PathBuf> {
        let url =
            format!("{}/{}/resolve/{}/{name}", self.endpoint, repo.url(), repo.url_revision());
        let described = self.describe(&url)?;
        let own = cache.repo(repo.clone());
        let blob = own.blob_path(&described.etag);
        make_parent(&blob)?;
        {
            let _lock = lock(&blob.with_extension("lock"), name)?;
            progress.init(usize::try_from(described.size).unwrap_or(usize::MAX), name);
            // Another process may have fetched it meanwhile.
            if blob.metadata().map(|found| found.len()).ok() != Some(described.size) {
                let part = blob.with_extension("part");
                self.download(&url, &part, described.size, &mut progress)?;
                std::fs::rename(&part, &blob)?;
            }
            progress.finish();
        }
        let pointer = own.pointer_path(&described.commit).join(name);
        make_parent(&pointer)?;
        point(&pointer, &blob, name)?;
        own.create_ref(&described.commit)?;
        Ok(pointer)
    }

    /// Asks for one byte: the headers on the way say all of the file.
    fn describe(&self, url: &str) -> Result<Described> {
        let mut found: Option<(String, String)> = None;
        let response = self.get(url, Some("bytes=0-0"), &mut |response| {
            // The host of the bytes may have another name for them.
            if found.is_none()
                && let (Ok(commit), Ok(etag)) = (
                    header(response, COMMIT),
                    header(response, LINKED_ETAG).or_else(|_| header(response, ETAG)),
                )
            {
                found = Some((commit.to_owned(), etag.replace('"', "")));
            }
        })?;
        let (commit, etag) = match found {
            Some(found) => found,
            None => {
                header(&response, COMMIT)?;
                return Err(ApiError::MissingHeader(ETAG));
            }
        };
        for (name, value) in [(ETAG, &etag), (COMMIT, &commit)] {
            if !is_name(value) {
                return Err(ApiError::InvalidHeader(name));
            }
        }
        let range = header(&response, CONTENT_RANGE)?;
        let size =
            range.rsplit('/').next().ok_or(ApiError::InvalidHeader(CONTENT_RANGE))?.parse()?;
        Ok(Described { etag, commit, size })
    }

    fn download(
        &self,
        url: &str,
        part: &Path,
        size: u64,
        progress: &mut impl Progress,
    ) -> Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(part)?;
        let start = file.metadata()?.len();
        if start > size {
            return Err(ApiError::InvalidResume);
        }
        if start == size && size > 0 {
            progress.update(usize::try_from(size).unwrap_or(usize::MAX));
            return Ok(());
        }
        let response = self.get(url, Some(&format!("bytes={start}-")), &mut |_| ())?;
        if response.status() == StatusCode::OK && start > 0 {
            // The whole file comes again.
            file.set_len(0)?;
        } else {
            progress.update(usize::try_from(start).unwrap_or(usize::MAX));
        }
        let pieces = pieces(response.into_body());
        while let Some(piece) = next(&pieces)? {
            let piece = piece?;
            file.write_all(&piece)?;
            progress.update(piece.len());
        }
        Ok(())
    }

    /// The answer at the end of all redirects; `each` sees every one.
    fn get(
        &self,
        url: &str,
        range: Option<&str>,
        each: &mut dyn FnMut(&Response<Body>),
    ) -> Result<Response<Body>> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(&url);
            if let Some(range) = range {
                request = request.header(RANGE, range);
            }
            if let Some(token) = &self.token
                && origin(&url).is_some_and(|to| Some(to) == origin(&self.endpoint))
            {
                request = request.header(AUTHORIZATION, token.bearer());
            }
            let response = apart(move || request.call())?.map_err(Box::new)?;
            each(&response);
            if !response.status().is_redirection() {
                return Ok(response);
            }
            url = target(&url, header(&response, LOCATION)?)
                .ok_or(ApiError::InvalidHeader(LOCATION))?;
        }
        Err(ApiError::RequestError(Box::new(ureq::Error::TooManyRedirects)))
    }
}

fn header<'a>(response: &'a Response<Body>, name: &'static str) -> Result<&'a str> {
    match response.headers().get(name) {
        None => Err(ApiError::MissingHeader(name)),
        Some(value) => value.to_str().map_err(|_| ApiError::InvalidHeader(name)),
    }
}

/// Scheme, host and port: `https://example.org:443`.
pub(crate) fn origin(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#', '\\']).next()?;
    // A name and a password before the host.
    let host = authority.rsplit('@').next()?.to_ascii_lowercase();
    let scheme = scheme.to_ascii_lowercase();
    let port = match scheme.as_str() {
        "https" => 443,
        "http" => 80,
        _ => return None,
    };
    let has_port = host.rsplit(':').next().is_some_and(|port| {
        port.len() < host.len() && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
    });
    (!host.is_empty()).then(|| {
        if has_port { format!("{scheme}://{host}") } else { format!("{scheme}://{host}:{port}") }
    })
}

/// The address that a redirect leads to.
pub(crate) fn target(from: &str, location: &str) -> Option<String> {
    let (scheme, rest) = from.split_once("://")?;
    if location.starts_with("//") {
        return Some(format!("{scheme}:{location}"));
    }
    if location.starts_with('/') {
        let authority = rest.split(['/', '?', '#']).next()?;
        return Some(format!("{scheme}://{authority}{location}"));
    }
    origin(location).map(|_| location.to_owned())
}

/// Whether a name from elsewhere is one file's name.
fn is_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}

fn make_parent(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all)
}

/// The lock of a file that is fetched, until it is dropped. Another process that fetches it is waited
/// for: its lock goes with it, however it ends.
fn lock(path: &Path, name: &str) -> Result<File> {
    let file = File::create(path)?;
    let begun = Instant::now();
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(error.into()),
            Err(TryLockError::WouldBlock) => {}
        }
        check()?;
        if !told && begun.elapsed() >= TELL_AFTER {
            stream(&format!("note: another process fetches `{name}`: waiting for it\n"));
            told = true;
        }
        std::thread::sleep(LOOK);
    }
}

/// The error of a request that the user has stopped.
pub(crate) fn stopped() -> ApiError {
    ApiError::IoError(std::io::Error::other(interrupt::Interrupted))
}

fn check() -> Result<()> {
    interrupt::check().map_err(|_| stopped())
}

/// Does `work` on a thread of its own, and looks at Stop meanwhile. After Stop the thread is left to
/// itself: it ends with its connection.
fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let (send, done) = sync_channel(1);
    std::thread::spawn(move || {
        let _ = send.send(work()); // nobody waits for it after Stop
    });
    match next(&done)? {
        Some(result) => Ok(result),
        None => Err(std::io::Error::other("the request ended without an answer").into()),
    }
}

/// The pieces of a body, as they come.
fn pieces(body: Body) -> Receiver<std::io::Result<Vec<u8>>> {
    let (send, pieces) = sync_channel(BUFFERS);
    std::thread::spawn(move || {
        let mut body = body.into_reader();
        loop {
            let mut buffer = vec![0; BUFFER_BYTES];
            let piece = match body.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    buffer.truncate(count);
                    Ok(buffer)
                }
                Err(error) => Err(error),
            };
            let is_last = piece.is_err();
            if send.send(piece).is_err() || is_last {
                return;
            }
        }
    });
    pieces
}

/// What a thread sends next; none when it has ended.
fn next<T>(from: &Receiver<T>) -> Result<Option<T>> {
    let begun = Instant::now();
    loop {
        check()?;
        match from.recv_timeout(LOOK) {
            Ok(sent) => return Ok(Some(sent)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            // The list of a large repository may take its time; longer is no answer.
            Err(RecvTimeoutError::Timeout) if begun.elapsed() > SILENCE + CONNECT_TIME => {
                return Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Makes a file's name in a commit stand for its bytes.
fn point(pointer: &Path, blob: &Path, name: &str) -> std::io::Result<()> {
    if pointer.exists() {
        return Ok(());
    }
    #[cfg(unix)]
    {
        // snapshots/COMMIT/a/b -> ../../../blobs/ETAG
        let up = "../".repeat(1 + Path::new(name).components().count());
        let blob = blob.file_name().unwrap_or_default();
        std::os::unix::fs::symlink(Path::new(&up).join("blobs").join(blob), pointer)
    }
    #[cfg(not(unix))]
    {
        let _ = name;
        std::fs::rename(blob, pointer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| origin(a).is_some() && origin(a) == origin(b);
        assert!(same("https://hub.example", "https://HUB.example:443/x?y"));
        assert!(same("http://127.0.0.1:80/", "http://127.0.0.1"));
        for other in [
            "http://hub.example/x",
            "https://hub.example:8443/x",
            "https://hub.example.evil/x",
            "https://hub.example@evil/x",
            "https://evil/hub.example",
            "https://evil\\@hub.example/",
            "ftp://hub.example/",
            "hub.example",
        ] {
            assert!(!same("https://hub.example", other), "{other}");
        }
    }

    #[test]
    fn redirects_lead_to_a_path_or_an_address() {
        let from = "https://hub.example/a/b?c";
        assert_eq!(target(from, "/x").as_deref(), Some("https://hub.example/x"));
        assert_eq!(target(from, "//cdn/x").as_deref(), Some("https://cdn/x"));
        assert_eq!(target(from, "http://cdn/x").as_deref(), Some("http://cdn/x"));
        assert_eq!(target(from, "file:///x"), None);
    }
}
