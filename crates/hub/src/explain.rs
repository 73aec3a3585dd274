//! What an answer of the hub means, and what to do about it.

use hf_hub::api::sync::ApiError;
use tunebook_progress::Interrupted;

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The hub answered with this status.
    Status(u16),
    /// Nobody answered, or the transfer broke off.
    Transport,
    /// The user has stopped it.
    Stopped,
    /// Anything else, such as a full disk.
    Other,
}

impl Failure {
    pub(crate) fn of(error: &ApiError) -> Self {
        match error {
            ApiError::RequestError(inner) => {
                // ureq's own words for a status; its other errors are about the connection.
                let text = inner.to_string();
                let status =
                    text.strip_prefix("http status: ").and_then(|status| status.parse().ok());
                match status {
                    Some(status) => Self::Status(status),
                    // An answer that is no list of files will be none the next time.
                    None if text.starts_with("json") => Self::Other,
                    None => Self::Transport,
                }
            }
            ApiError::TooManyRetries(inner) => Self::of(inner),
            ApiError::IoError(error)
                if error.get_ref().is_some_and(|error| error.is::<Interrupted>()) =>
            {
                Self::Stopped
            }
            // A body that ends early arrives as an error of the reader.
            ApiError::IoError(error) if error.raw_os_error().is_none() => Self::Transport,
            ApiError::IoError(error) => match error.kind() {
                std::io::ErrorKind::ConnectionReset
                | std::io::ErrorKind::ConnectionAborted
                | std::io::ErrorKind::BrokenPipe
                | std::io::ErrorKind::TimedOut => Self::Transport,
                _ => Self::Other,
            },
            _ => Self::Other,
        }
    }

    /// Worth another try, or what was fetched before.
    pub(crate) fn passes(self) -> bool {
        match self {
            Self::Transport => true,
            Self::Status(status) => status == 429 || status >= 500,
            Self::Stopped | Self::Other => false,
        }
    }
}

/// The error in a user's terms.
pub(crate) fn explained(error: &ApiError, has_token: bool) -> String {
    let advice = match Failure::of(error) {
        Failure::Status(401) if has_token => {
            "The hub does not accept the token (HF_TOKEN, or that of `hf auth login`); it says the same of a repository that does not exist"
        }
        Failure::Status(401) => {
            "It is private or gated and needs a token (set HF_TOKEN, or `hf auth login`), or it does not exist: check the name"
        }
        Failure::Status(403) => {
            "Access is refused: a gated repository wants its terms accepted on its page, by the account that the token belongs to"
        }
        Failure::Status(404) => "There is no such repository, revision or file: check the name",
        Failure::Status(429) => "Too many requests: wait a little, or use a token (HF_TOKEN)",
        Failure::Status(_) => "The hub has a problem: try again later",
        Failure::Transport => {
            "Without a connection, give a path or what was fetched before. A transfer that broke off goes on where it stopped: try again"
        }
        Failure::Stopped => return Interrupted.to_string(),
        Failure::Other => "The file was not kept",
    };
    format!("{error}. {advice}")
}
