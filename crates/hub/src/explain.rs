//! What a failed request means, and what to do about it.

use tunebook_progress::Interrupted;

use crate::said::said;
use crate::token::Token;

/// Why a file did not come.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The hub answered with this status.
    Status(u16),
    /// Nobody answered, or the transfer broke off.
    Transport(String),
    /// The answer, or what came, is not what it should be.
    Wrong(String),
    /// The cache cannot be written, such as on a full disk.
    Disk(std::io::Error),
    /// The user has stopped it.
    Stopped,
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Disk(error)
    }
}

impl From<ureq::Error> for Failure {
    fn from(error: ureq::Error) -> Self {
        match error {
            ureq::Error::StatusCode(status) => Self::Status(status),
            ureq::Error::Http(_) | ureq::Error::BadUri(_) => {
                Self::Wrong("the hub named an address that is none".to_owned())
            }
            other => Self::Transport(other.to_string()),
        }
    }
}

impl Failure {
    /// Worth another try, or what was fetched before.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::Transport(_) => true,
            Self::Status(status) => *status == 429 || *status >= 500,
            Self::Stopped | Self::Wrong(_) | Self::Disk(_) => false,
        }
    }

    /// The reason in a user's terms.
    pub(crate) fn explained(&self, token: Option<&Token>) -> String {
        match self {
            Self::Stopped => Interrupted.to_string(),
            Self::Wrong(reason) => said(reason, token),
            Self::Disk(error) => format!("{error}. The file was not kept"),
            Self::Transport(reason) => format!(
                "{}. Without a connection, give a path or what was fetched before. A transfer that \
                 broke off goes on where it stopped: try again",
                said(reason, token)
            ),
            Self::Status(status) => {
                format!("the answer is {status}. {}", advice(*status, token.is_some()))
            }
        }
    }
}

fn advice(status: u16, has_token: bool) -> &'static str {
    match status {
        401 if has_token => {
            "The hub does not accept the token (HF_TOKEN, or that of `hf auth login`); it says the same of a repository that does not exist"
        }
        401 => {
            "It is private or gated and needs a token (set HF_TOKEN, or `hf auth login`), or it does not exist: check the name"
        }
        403 => {
            "Access is refused: a gated repository wants its terms accepted on its page, by the account that the token belongs to"
        }
        404 => "There is no such repository, revision or file: check the name",
        429 => "Too many requests: wait a little, or use a token (HF_TOKEN)",
        500.. => "The hub has a problem: try again later",
        _ => "The hub refuses it: check the name",
    }
}
