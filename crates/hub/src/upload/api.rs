//! Requests that write: one at a time, retried where that can help, with the token for the endpoint
//! alone.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use tunebook_progress::{ProgressBar, interrupt};
use ureq::http::Request;
use ureq::{Agent, SendBody};

use super::content::UploadContent;
use super::fault::{Fault, Refusal};
use crate::Hub;
use crate::endpoint::{Endpoint, target};
use crate::said::said;
use crate::token::Token;
use crate::transfer::{CONNECT_TIME, LOOK, MAX_REDIRECTS};

/// The hub may think about a commit for so long; who is silent longer is gone.
const SILENCE: Duration = Duration::from_secs(120);
/// How often a request is made while the connection or the server is what fails.
pub(crate) const TRIES: u32 = 5;
/// A server that asks for a longer pause is waited for so long.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// An answer of the hub is no longer than this.
const ANSWER_BYTES: u64 = 16 << 20;

type Result<T> = std::result::Result<T, Fault>;

/// The endpoint, and who asks.
pub(crate) struct Api {
    agent: Agent,
    pub(crate) endpoint: Endpoint,
    token: Token,
}

/// What a request sends.
#[derive(Clone)]
pub(crate) enum Payload {
    Nothing,
    Bytes {
        bytes: Arc<[u8]>,
        content_type: &'static str,
    },
    /// A part of a file, shown on a bar, from where it stands in the file.
    Part {
        content: UploadContent,
        start: u64,
        length: u64,
        bar: Arc<ProgressBar>,
    },
}

impl Payload {
    pub(crate) fn json(value: &Value, content_type: &'static str) -> Self {
        Self::Bytes { bytes: value.to_string().into_bytes().into(), content_type }
    }
}

/// A good answer.
pub(crate) struct Answer {
    etag: Option<String>,
    text: String,
}

impl Answer {
    /// # Errors
    /// The answer is no JSON.
    pub(crate) fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.text)
            .map_err(|_| Fault::Other("the answer is no JSON: is this a hub?".to_owned()))
    }

    pub(crate) fn etag(&self) -> Option<&str> {
        self.etag.as_deref().filter(|etag| !etag.is_empty())
    }
}

impl Api {
    /// # Errors
    /// There is no token, or none that can be one.
    pub(crate) fn new(hub: &Hub) -> std::result::Result<Self, String> {
        let endpoint = &hub.endpoint;
        endpoint.check()?;
        let advice = format!(
            "Set HF_TOKEN, or log in (`hf auth login`), with a token that may write: \
             {endpoint}/settings/tokens makes one"
        );
        let Some(token) = hub.token.clone() else {
            return Err(format!("an upload needs a token, and there is none. {advice}"));
        };
        if !token.is_usable() {
            return Err(format!(
                "the token is none: it has spaces, line breaks or other letters that no token \
                 has. {advice}"
            ));
        }
        let config = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIME))
            .timeout_recv_response(Some(SILENCE))
            .build();
        Ok(Self { agent: config.into(), endpoint: endpoint.clone(), token })
    }

    /// A request to the endpoint, of which `path` begins with a slash.
    pub(crate) fn get(&self, path: &str) -> Result<Answer> {
        let url = self.endpoint.at(path);
        again(|| self.once("GET", &url, &[], &Payload::Nothing))
    }

    pub(crate) fn post(&self, path: &str, value: &Value) -> Result<Answer> {
        let url = self.endpoint.at(path);
        again(|| self.once("POST", &url, &[], &Payload::json(value, "application/json")))
    }

    /// One request. The token goes along where the address is one of the endpoint's; a redirect is
    /// followed there, and nowhere else: what is written goes to who was asked for.
    pub(crate) fn once(
        &self,
        method: &'static str,
        url: &str,
        headers: &[(String, String)],
        payload: &Payload,
    ) -> Result<Answer> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let mut all = headers.to_vec();
            if self.endpoint.owns(&url) {
                all.push(("authorization".to_owned(), self.token.bearer()));
            }
            match self.send(method, &url, &all, payload)? {
                Sent::Answer(answer) => return Ok(answer),
                Sent::Moved(to) => {
                    let next = to.and_then(|to| target(&url, &to));
                    url = next.filter(|next| self.endpoint.owns(next)).ok_or_else(|| {
                        Fault::Other(
                            "the hub redirects to another host, where nothing is sent: check \
                             HF_ENDPOINT"
                                .to_owned(),
                        )
                    })?;
                }
            }
        }
        Err(Fault::Other("the hub redirects in a circle".to_owned()))
    }

    /// A request to where large files are kept, which gets the headers that the hub has named for it
    /// and nothing else.
    pub(crate) fn storage(
        &self,
        method: &'static str,
        url: &str,
        headers: &[(String, String)],
        payload: &Payload,
    ) -> Result<Answer> {
        match self.send(method, url, headers, payload)? {
            Sent::Answer(answer) => Ok(answer),
            Sent::Moved(_) => Err(Fault::Other("the storage redirects the upload".to_owned())),
        }
    }

    /// A text of a server, as it may be shown.
    pub(crate) fn said(&self, text: &str) -> String {
        said(text, Some(&self.token))
    }

    fn send(
        &self,
        method: &'static str,
        url: &str,
        headers: &[(String, String)],
        payload: &Payload,
    ) -> Result<Sent> {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let watch = Arc::new(Watch::default());
        let body: Option<Box<dyn Read + Send>> = match payload {
            Payload::Nothing => None,
            Payload::Bytes { bytes, content_type } => {
                request = request.header("content-length", bytes.len());
                if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
                    request = request.header("content-type", *content_type);
                }
                let bytes = UploadContent::Bytes(Arc::clone(bytes));
                Some(Watched::boxed(bytes.open(0, bytes.size()?)?, &watch, None))
            }
            Payload::Part { content, start, length, bar } => {
                request = request.header("content-length", *length);
                bar.set(*start);
                let bar = Some(Arc::clone(bar));
                Some(Watched::boxed(content.open(*start, *length)?, &watch, bar))
            }
        };
        // The address may hold a signature: no error repeats it.
        let unusable = |_| Fault::Other("the hub named an address that is none".to_owned());
        let agent = self.agent.clone();
        let answer = match body {
            None => {
                let request = request.body(()).map_err(unusable)?;
                apart(&watch, move || agent.run(request).map(read))
            }
            Some(body) => {
                let request = request.body(()).map_err(unusable)?;
                apart(&watch, move || {
                    let (parts, ()) = request.into_parts();
                    let body = SendBody::from_owned_reader(body);
                    agent.run(Request::from_parts(parts, body)).map(read)
                })
            }
        }?;
        let answer = answer.map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                Fault::Other("the hub named an address that is none".to_owned())
            }
            other => Fault::Transport(self.said(&other.to_string())),
        })?;
        match answer.status {
            200..300 => {
                let text =
                    answer.text.map_err(|error| Fault::Transport(self.said(&error.to_string())))?;
                Ok(Sent::Answer(Answer { etag: answer.etag, text }))
            }
            300..400 => Ok(Sent::Moved(answer.location)),
            status => Err(Fault::Refused(Refusal {
                status,
                code: answer.code,
                message: self.words(answer.message, &answer.text.unwrap_or_default()),
                pause: answer.pause,
            })),
        }
    }

    /// The hub's own words about a refusal.
    fn words(&self, header: Option<String>, body: &str) -> String {
        let json: Option<Value> = serde_json::from_str(body).ok();
        let error = json.as_ref().and_then(|json| match &json["error"] {
            Value::String(text) => Some(text.as_str()),
            _ => json["message"].as_str(),
        });
        self.said(error.or(header.as_deref()).unwrap_or_default())
    }
}

enum Sent {
    Answer(Answer),
    Moved(Option<String>),
}

/// What is read of an answer.
struct Heard {
    status: u16,
    code: Option<String>,
    message: Option<String>,
    etag: Option<String>,
    location: Option<String>,
    pause: Option<Duration>,
    text: std::result::Result<String, ureq::Error>,
}

fn read(mut response: ureq::http::Response<ureq::Body>) -> Heard {
    let header = |name: &str| {
        response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    Heard {
        status: response.status().as_u16(),
        code: header("x-error-code"),
        message: header("x-error-message"),
        etag: header("etag"),
        location: header("location"),
        pause: header("retry-after")
            .and_then(|secs| secs.parse().ok())
            .map(|secs| Duration::from_secs(secs).min(LONGEST_PAUSE)),
        text: response.body_mut().with_config().limit(ANSWER_BYTES).read_to_string(),
    }
}

/// How far a body is sent, and whether anybody waits for it still.
#[derive(Default)]
struct Watch {
    bytes: AtomicU64,
    left: AtomicBool,
}

/// A body that is watched while it is sent.
struct Watched {
    body: Box<dyn Read + Send>,
    watch: Arc<Watch>,
    bar: Option<Arc<ProgressBar>>,
}

impl Watched {
    fn boxed(
        body: Box<dyn Read + Send>,
        watch: &Arc<Watch>,
        bar: Option<Arc<ProgressBar>>,
    ) -> Box<dyn Read + Send> {
        Box::new(Self { body, watch: Arc::clone(watch), bar })
    }
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.watch.left.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("the upload was stopped"));
        }
        let count = self.body.read(buffer)?;
        self.watch.bytes.fetch_add(count as u64, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.advance(count as u64);
        }
        Ok(count)
    }
}

/// Does `work` on a thread of its own, and looks at Stop meanwhile. After Stop the thread ends with
/// the next bytes that it would send.
fn apart<T: Send + 'static>(watch: &Watch, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let (send, done) = sync_channel(1);
    std::thread::spawn(move || {
        let _ = send.send(work()); // nobody waits for it after Stop
    });
    let (mut begun, mut bytes) = (Instant::now(), 0);
    loop {
        if interrupt::check().is_err() {
            watch.left.store(true, Ordering::Relaxed);
            return Err(Fault::Stopped);
        }
        match done.recv_timeout(LOOK) {
            Ok(answer) => return Ok(answer),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Fault::Transport("the request ended without an answer".to_owned()));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let now = watch.bytes.load(Ordering::Relaxed);
        if now != bytes {
            (begun, bytes) = (Instant::now(), now);
        } else if begun.elapsed() > SILENCE + CONNECT_TIME {
            watch.left.store(true, Ordering::Relaxed);
            return Err(Fault::Transport("the server is silent".to_owned()));
        }
    }
}

/// Makes a request again while the connection or the server is what fails.
pub(crate) fn again<T>(mut request: impl FnMut() -> Result<T>) -> Result<T> {
    let mut tries = 1;
    loop {
        match request() {
            Err(fault) if tries < TRIES && fault.passes() => {
                pause(tries, &fault)?;
                tries += 1;
            }
            result => return result,
        }
    }
}

/// The time before the next try, with an eye on Stop.
pub(crate) fn pause(tries: u32, fault: &Fault) -> Result<()> {
    let pause = fault.pause().unwrap_or(Duration::from_millis(100 << tries));
    let begun = Instant::now();
    while begun.elapsed() < pause {
        interrupt::check().map_err(|_| Fault::Stopped)?;
        std::thread::sleep(LOOK.min(pause));
    }
    Ok(())
}
