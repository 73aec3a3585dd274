//! Why an upload failed, and what to do about it.

use std::time::Duration;

use tunebook_progress::Interrupted;

use crate::endpoint::Endpoint;

/// Why a request failed.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The server answered, and refused.
    Refused(Refusal),
    /// Nobody answered, or the connection broke.
    Transport(String),
    /// The user has stopped it.
    Stopped,
    /// Anything else, such as a file that cannot be read.
    Other(String),
}

/// An answer that is no success.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    /// The hub's name for it: `RepoNotFound`.
    pub(crate) code: Option<String>,
    /// The hub's own words, as they may be shown.
    pub(crate) message: String,
    /// The pause that the server asks for.
    pub(crate) pause: Option<Duration>,
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Other(format!("it cannot be read: {error}"))
    }
}

impl Fault {
    /// Somebody else has committed.
    pub(crate) fn conflict() -> Self {
        let message = "the branch has moved".to_owned();
        Self::Refused(Refusal { status: 412, code: None, message, pause: None })
    }

    /// Worth another try.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::Transport(_) => true,
            Self::Refused(refusal) => matches!(refusal.status, 408 | 429 | 500..600),
            Self::Stopped | Self::Other(_) => false,
        }
    }

    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Refused(refusal) => Some(refusal.status),
            _ => None,
        }
    }

    pub(crate) fn is_code(&self, code: &str) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.code.as_deref() == Some(code))
    }

    pub(crate) fn pause(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.pause,
            _ => None,
        }
    }

    /// The reason in a user's terms, and what to do.
    pub(crate) fn explained(&self, endpoint: &Endpoint) -> String {
        const GOES_ON: &str = "Push again: large files that have arrived are not sent again";
        let refusal = match self {
            Self::Stopped => return Interrupted.to_string(),
            Self::Other(reason) => return reason.clone(),
            Self::Transport(reason) => {
                return format!("the connection failed ({reason}). {GOES_ON}");
            }
            Self::Refused(refusal) => refusal,
        };
        let tokens = format!("{endpoint}/settings/tokens");
        let advice = match refusal.status {
            400 | 422 => "The hub does not take it as it is: see its words".to_owned(),
            401 => format!(
                "The hub does not accept the token (HF_TOKEN, or that of `hf auth login`): it is \
                 mistyped, expired or revoked. {tokens} makes one that may write"
            ),
            403 => format!(
                "The token may not write there: it only reads, or belongs to an account that does \
                 not own the repository. {tokens} makes one that may write; a fine-grained one must \
                 name the repository or its owner"
            ),
            404 => "There is no such repository or branch, or the token may not see it: check the \
                    name"
                .to_owned(),
            409 | 412 => "Somebody has committed to it since this upload began. Nothing was \
                          changed: look at what is there, and push again"
                .to_owned(),
            413 => "It is too large for one request: save the weights in smaller shards, or leave \
                    files out. Nothing was committed"
                .to_owned(),
            429 => "Too many requests: wait a little, and push again".to_owned(),
            500.. => format!("The hub has a problem: try again later. {GOES_ON}"),
            _ => "The hub refuses it: see its words".to_owned(),
        };
        let said = match refusal.message.as_str() {
            "" => String::new(),
            message => format!(" (`{message}`)"),
        };
        format!("the answer is {}{said}. {advice}", refusal.status)
    }
}
