//! Files of the Hugging Face hub, in the cache that Python's `huggingface_hub` uses too: what one
//! has fetched, the other finds.
//!
//! `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean in
//! Python.
//!
//! ```no_run
//! use tunebook_hub::{Hub, Kind};
//! let repository = Hub::from_env().open(Kind::Model, "owner/name@v1.0")?;
//! let config = repository.get("config.json")?; // fetched once
//! # Ok::<(), tunebook_hub::Error>(())
//! ```
//!
//! A repository is pinned to one commit when it is opened, so that all files are of one state of
//! it. A transfer that breaks is resumed where it stopped, also by a later call; a file whose
//! checksum is wrong does not stay in the cache. Another process that fetches the same file is waited
//! for. Stop ends a transfer.
//!
//! [`Hub::upload`] makes a commit of a folder's files.
//!
//! Without a connection, what an earlier call fetched will do: the names of all files of a commit are
//! kept beside it (`.tunebook/COMMIT.txt` in the repository's folder of the cache), so that a part of
//! them is not taken for the whole.

mod endpoint;
mod explain;
mod git_oid;
mod id;
mod names;
mod place;
mod repository;
mod said;
mod token;
mod transfer;
mod upload;
mod verify;

use std::path::{Path, PathBuf};

use hf_hub::Cache;

pub use id::is_repository;
pub use repository::Repository;
pub use upload::{
    UploadArgs, UploadContent, UploadError, UploadFile, UploadState, Uploaded, UploadedFile,
    folder_files,
};

use endpoint::Endpoint;
use token::Token;

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The hub did not give a file.
#[derive(Debug, thiserror::Error)]
#[error("cannot get {file} of `{repo}` from the hub: {reason}")]
pub struct Error {
    /// The repository as given.
    pub repo: String,
    /// The file, or what else was asked for.
    pub file: String,
    /// Why not, and what to do.
    pub reason: String,
}

impl Error {
    /// Whether the user has stopped it. What has arrived is kept, and a later call goes on from there.
    pub fn is_interruption(&self) -> bool {
        self.reason == tunebook_progress::Interrupted.to_string()
    }
}

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Weights, config and tokenizer.
    Model,
    /// Rows.
    Dataset,
}

/// Where to fetch from, where to keep it, and who asks.
#[derive(Clone, Debug)]
pub struct Hub {
    cache: PathBuf,
    endpoint: Endpoint,
    token: Option<Token>,
    offline: bool,
}

impl Hub {
    /// What the environment says.
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let on = |value: String| {
            matches!(value.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true")
        };
        // Kept beside the folder of the cache, unless that was moved by itself.
        let home = Cache::from_env();
        Self {
            token: set("HF_TOKEN").or_else(|| home.token()).map(Token::new),
            endpoint: set("HF_ENDPOINT").map(Endpoint::new).unwrap_or_default(),
            offline: set("HF_HUB_OFFLINE").is_some_and(on),
            cache: set("HF_HUB_CACHE").map_or_else(|| home.path().clone(), PathBuf::from),
        }
    }

    /// A cache of its own, the folder that Python calls `HF_HUB_CACHE`, with nothing taken from the
    /// environment.
    pub fn new(cache: impl AsRef<Path>) -> Self {
        let cache = cache.as_ref().to_owned();
        Self { cache, endpoint: Endpoint::default(), token: None, offline: false }
    }

    /// Asks another server.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Endpoint::new(endpoint.into());
        self
    }

    /// Says who asks. The token is shown to the endpoint alone, not to hosts that it redirects to.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(Token::new(token));
        self
    }

    /// Asks nobody: what is in the cache must do.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// The address of a repository's page, without the name and password that an endpoint may have.
    pub fn page(&self, repo: &str) -> String {
        format!("{}/{repo}", self.endpoint)
    }

    /// Opens `owner/name` or `owner/name@revision`.
    ///
    /// # Errors
    /// When there is no such repository or revision, it wants a token, or nobody answers and it was
    /// never fetched.
    pub fn open(&self, kind: Kind, id: &str) -> Result<Repository> {
        Repository::open(self, kind, id)
    }
}
