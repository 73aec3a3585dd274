//! Requests to the hub: the list of a repository's files, and a file's transfer into the cache.
//!
//! hf-hub shows the token to every host that a file is redirected to; a large file always is, to a
//! host of bytes. Here the token goes to the endpoint alone: the same scheme, host and port. The
//! folders are those of hf-hub and of Python's `huggingface_hub`.
//!
//! Nothing that a server says is believed: a name is one of a file before it is part of a path, bytes
//! are counted and hashed before they get a file's name.
//!
//! The network is waited for on a thread of its own, so that Stop is answered while a server is
//! silent; one that stays silent counts as a broken connection.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use hf_hub::api::RepoInfo;
use tunebook_progress::{ProgressBar, interrupt, stream};
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use crate::endpoint::{Endpoint, target};
use crate::explain::Failure;
use crate::id;
use crate::place::Place;
use crate::token::Token;
use crate::verify::verify;

const ACCEPT_ENCODING: &str = "accept-encoding";
const AUTHORIZATION: &str = "authorization";
const COMMIT: &str = "x-repo-commit";
const CONTENT_LENGTH: &str = "content-length";
const CONTENT_RANGE: &str = "content-range";
const ETAG: &str = "etag";
const LINKED_ETAG: &str = "x-linked-etag";
const LINKED_SIZE: &str = "x-linked-size";
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
/// The list of the files of a repository is no longer than this.
const LIST_BYTES: u64 = 64 << 20;
const BUFFER_BYTES: usize = 64 << 10;
/// Buffers that may wait to be written.
const BUFFERS: usize = 16;

type Result<T> = std::result::Result<T, Failure>;

/// The endpoint, and who asks.
#[derive(Debug)]
pub(crate) struct Transfer {
    agent: Agent,
    endpoint: Endpoint,
    token: Option<Token>,
}

/// The part of the answers that says what a file is.
struct Described {
    etag: String,
    commit: String,
    size: u64,
}

impl Transfer {
    pub(crate) fn new(endpoint: &Endpoint, token: Option<&Token>) -> Self {
        let config = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIME))
            .timeout_recv_response(Some(SILENCE))
            .build();
        Self { agent: config.into(), endpoint: endpoint.clone(), token: token.cloned() }
    }

    /// The commit and the files of a repository at a revision.
    ///
    /// # Errors
    /// The request was refused or broke off, or the answer is no such list.
    pub(crate) fn info(&self, place: &Place) -> Result<RepoInfo> {
        let mut response = self.get(&self.endpoint.at(&place.list()), None, &mut |_| ())?;
        let read = move || response.body_mut().with_config().limit(LIST_BYTES).read_to_vec();
        let list = apart(read)??;
        // Not in serde's words, which repeat what stands there.
        serde_json::from_slice(&list).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            Failure::Wrong(format!(
                "the answer is no list of files (line {line}, column {column}): is this a hub?"
            ))
        })
    }

    /// Fetches a file into the repository's folder of the cache, from where an earlier call stopped, and
    /// returns its place. The revision is a commit.
    ///
    /// # Errors
    /// The request was refused or broke off, what came is not what was announced, or the cache cannot be
    /// written.
    pub(crate) fn fetch(&self, folder: &Path, place: &Place, name: &str) -> Result<PathBuf> {
        let url = self.endpoint.at(&place.file(name));
        let Described { etag, commit, size } = self.describe(&url)?;
        if commit != place.revision {
            return Err(Failure::Wrong(format!(
                "asked for commit `{}`, the hub gives one of `{commit}`",
                place.revision
            )));
        }
        let blobs = folder.join("blobs");
        std::fs::create_dir_all(&blobs)?;
        let blob = blobs.join(&etag);
        {
            let _lock = lock(&blobs.join(format!("{etag}.lock")), name)?;
            let bar = ProgressBar::new(format!("Fetching {name}"), Some(size)).unit("B");
            // Another process may have fetched it meanwhile.
            if blob.metadata().map(|found| found.len()).ok() == Some(size) {
                verify(&blob, &etag, size)?;
            } else {
                let part = blobs.join(format!("{etag}.part"));
                self.download(&url, &part, size, &bar)?;
                verify(&part, &etag, size)?;
                std::fs::rename(&part, &blob)?;
            }
            bar.finish();
        }
        let pointer = folder.join("snapshots").join(&commit).join(name);
        pointer.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        point(&pointer, &blob, name)?;
        Ok(pointer)
    }

    /// Asks for one byte: the headers on the way say all of the file.
    fn describe(&self, url: &str) -> Result<Described> {
        let mut found: Option<(String, String)> = None;
        let mut linked_size = None;
        let mut look = |response: &Response<Body>| {
            // The host of the bytes may have another name for them.
            if found.is_none()
                && let (Ok(commit), Ok(etag)) = (
                    header(response, COMMIT),
                    header(response, LINKED_ETAG).or_else(|_| header(response, ETAG)),
                )
            {
                found = Some((commit.to_owned(), etag.to_owned()));
                linked_size = header(response, LINKED_SIZE).ok().and_then(|size| size.parse().ok());
            }
        };
        let mut response = self.get(url, Some("bytes=0-0"), &mut look)?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            // An empty file has no first byte.
            response = self.get(url, None, &mut look)?;
        }
        let Some((commit, etag)) = found else {
            header(&response, COMMIT)?;
            return Err(no_header(ETAG));
        };
        if !id::is_commit(&commit) {
            return Err(no_header(COMMIT));
        }
        let etag = id::of_etag(&etag).ok_or_else(|| no_header(ETAG))?.to_owned();
        let size = match response.status() {
            StatusCode::PARTIAL_CONTENT => content_range(&response)?.1,
            // A server that gives whole files only.
            _ => match linked_size {
                Some(size) => size,
                None => {
                    let size = header(&response, CONTENT_LENGTH)?;
                    size.parse().map_err(|_| no_header(CONTENT_LENGTH))?
                }
            },
        };
        Ok(Described { etag, commit, size })
    }

    /// Brings the part of a file that has arrived to its size, and no further.
    fn download(&self, url: &str, part: &Path, size: u64, bar: &ProgressBar) -> Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(part)?;
        let mut have = file.metadata()?.len();
        if have > size {
            // It is of something else: of a server that has lied, or of another version of this program.
            file.set_len(0)?;
            have = 0;
        }
        bar.set(have);
        if have == size {
            return Ok(());
        }
        let response = self.get(url, Some(&format!("bytes={have}-")), &mut |_| ())?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let (start, all) = content_range(&response)?;
                if (start, all) != (have, size) {
                    file.set_len(0)?;
                    return Err(Failure::Wrong(format!(
                        "asked for the bytes from {have} on of {size}, the server gives those from \
                         {start} on of {all}. Nothing was kept: try again to fetch it anew"
                    )));
                }
            }
            // The whole file comes again.
            StatusCode::OK => {
                file.set_len(0)?;
                have = 0;
                bar.set(0);
            }
            status => return Err(Failure::Status(status.as_u16())),
        }
        let pieces = pieces(response.into_body());
        while have < size {
            let Some(piece) = next(&pieces)? else {
                return Err(Failure::Transport(format!("it ended after {have} of {size} bytes")));
            };
            let piece = piece.map_err(|error| Failure::Transport(error.to_string()))?;
            have += piece.len() as u64;
            if have > size {
                file.set_len(0)?;
                return Err(Failure::Wrong(format!(
                    "more bytes come than the {size} that were announced. Nothing was kept"
                )));
            }
            file.write_all(&piece)?;
            bar.advance(piece.len() as u64);
        }
        Ok(())
    }

    /// The answer at the end of all redirects; `each` sees every one. To a request for a range the answer
    /// may be that there is none.
    fn get(
        &self,
        url: &str,
        range: Option<&str>,
        each: &mut dyn FnMut(&Response<Body>),
    ) -> Result<Response<Body>> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            // Bytes are counted as they are.
            let mut request = self.agent.get(&url).header(ACCEPT_ENCODING, "identity");
            if let Some(range) = range {
                request = request.header(RANGE, range);
            }
            if let Some(token) = &self.token
                && self.endpoint.owns(&url)
            {
                request = request.header(AUTHORIZATION, token.bearer());
            }
            let response = apart(move || request.call())??;
            each(&response);
            let status = response.status();
            let no_range = range.is_some() && status == StatusCode::RANGE_NOT_SATISFIABLE;
            if status.is_success() || no_range {
                return Ok(response);
            }
            if !status.is_redirection() {
                return Err(Failure::Status(status.as_u16()));
            }
            url = target(&url, header(&response, LOCATION)?).ok_or_else(|| no_header(LOCATION))?;
        }
        Err(ureq::Error::TooManyRedirects.into())
    }
}

fn no_header(name: &str) -> Failure {
    Failure::Wrong(format!(
        "the answer's header `{name}` is missing, or none that can be used: is this a hub?"
    ))
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> Result<&'a str> {
    let value = response.headers().get(name).and_then(|value| value.to_str().ok());
    value.ok_or_else(|| no_header(name))
}

/// The first byte of a part, and the size of the whole: `bytes 25-49/50`.
fn content_range(response: &Response<Body>) -> Result<(u64, u64)> {
    let read = |range: &str| -> Option<(u64, u64)> {
        let (part, all) = range.strip_prefix("bytes ")?.split_once('/')?;
        Some((part.split_once('-')?.0.trim().parse().ok()?, all.trim().parse().ok()?))
    };
    read(header(response, CONTENT_RANGE)?).ok_or_else(|| no_header(CONTENT_RANGE))
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

fn check() -> Result<()> {
    interrupt::check().map_err(|_| Failure::Stopped)
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
        None => Err(Failure::Transport("the request ended without an answer".to_owned())),
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
                return Err(Failure::Transport("the server is silent".to_owned()));
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
    if pointer.is_symlink() {
        // Its bytes were damaged, and removed.
        std::fs::remove_file(pointer)?;
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
