//! One repository at one commit.

use std::cell::Cell;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use hf_hub::api::sync::ApiError;
use hf_hub::{Repo, RepoType};

use crate::bar::Bar;
use crate::explain::{Failure, explained};
use crate::id::split_revision;
use crate::names;
use crate::transfer::Transfer;
use crate::verify::verify;
use crate::{Error, Hub, Kind, Result};

/// How often a transfer is taken up again within one call.
const TRIES: u32 = 4;

/// The files of one commit of a repository.
#[derive(Debug)]
pub struct Repository {
    hub: Hub,
    given: String,
    repo: Repo,
    /// The repository at the commit.
    pinned: Repo,
    commit: String,
    names: Vec<String>,
    /// None where nobody is asked any more.
    transfer: Option<Transfer>,
}

impl Repository {
    pub(crate) fn open(hub: &Hub, kind: Kind, given: &str) -> Result<Self> {
        let (id, revision) = split_revision(given);
        let revision = revision.unwrap_or("main");
        let kind = match kind {
            Kind::Model => RepoType::Model,
            Kind::Dataset => RepoType::Dataset,
        };
        let at = |revision: &str| Repo::with_revision(id.to_owned(), kind, revision.to_owned());
        let repo = at(revision);
        let failed = |reason: String| Error {
            repo: given.to_owned(),
            file: "the list of files".to_owned(),
            reason,
        };
        let fetched = || {
            let commit = hub.fetched_commit(&repo)?;
            let names = names::kept(&hub.folder(&repo), &commit).unwrap_or_else(|| {
                let mut names = Vec::new();
                let folder = hub.snapshot(&repo, &commit);
                list(&folder, &folder, &mut names);
                names.sort();
                names
            });
            Some(Self {
                hub: hub.clone(),
                given: given.to_owned(),
                repo: repo.clone(),
                pinned: at(&commit),
                commit,
                names,
                transfer: None,
            })
        };
        if hub.offline {
            return fetched().ok_or_else(|| {
                failed("HF_HUB_OFFLINE is set and it was never fetched".to_owned())
            });
        }
        let transfer = Transfer::new(hub.endpoint.as_deref(), hub.token.as_ref());
        let info = match again(|| transfer.info(&repo)) {
            Ok(info) => info,
            // No connection: what an earlier call fetched will do.
            Err(error) => {
                let fallback = if Failure::of(&error).passes() { fetched() } else { None };
                return fallback.ok_or_else(|| failed(explained(&error, hub.token.is_some())));
            }
        };
        if info.sha.is_empty() || !info.sha.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            // It becomes the name of a folder.
            return Err(failed(format!("expected the name of a commit, found `{}`", info.sha)));
        }
        let names = info.siblings.into_iter().map(|sibling| sibling.rfilename);
        let names: Vec<String> = names.filter(|name| is_below(name)).collect();
        names::keep(&hub.folder(&repo), &info.sha, &names);
        Ok(Self {
            hub: hub.clone(),
            given: given.to_owned(),
            names,
            transfer: Some(transfer),
            pinned: at(&info.sha),
            commit: info.sha,
            repo,
        })
    }

    /// The names of its files. Without a connection these may be more than were fetched; where
    /// Python fetched them, they are those that it fetched.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether it has a file of that name.
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    /// The folder in the cache where its files stand under their names.
    pub fn folder(&self) -> PathBuf {
        self.hub.snapshot(&self.repo, &self.commit)
    }

    /// The commit that it is pinned to.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// A file, fetched if it is not in the cache.
    ///
    /// # Errors
    /// When the hub does not give it, or it arrives damaged.
    pub fn get(&self, name: &str) -> Result<PathBuf> {
        let failed =
            |reason: String| Error { repo: self.given.clone(), file: format!("`{name}`"), reason };
        let path = self.folder().join(name);
        if path.exists() {
            // Another revision may have fetched it.
            if self.transfer.is_some() {
                self.remember();
            }
            return Ok(path);
        }
        let Some(transfer) = &self.transfer else {
            return Err(failed(
                "it was never fetched, and there is no connection (or HF_HUB_OFFLINE is set)"
                    .to_owned(),
            ));
        };
        let size = Rc::new(Cell::new(None));
        let path = again(|| transfer.fetch(&self.hub.cache, &self.pinned, name, Bar::new(&size)))
            .map_err(|error| failed(explained(&error, self.hub.token.is_some())))?;
        verify(&path, size.get()).map_err(failed)?;
        self.remember();
        Ok(path)
    }

    /// Notes which commit the revision is, as Python does. The transfer noted the commit itself as if it
    /// were a branch.
    fn remember(&self) {
        let refs = self.hub.cache.path().join(self.repo.folder_name()).join("refs");
        if self.repo.revision() != self.commit {
            // Neither is more than a help for the next call.
            let _ = self.hub.cache.repo(self.repo.clone()).create_ref(&self.commit);
        }
        let _ = std::fs::remove_file(refs.join(&self.commit));
    }
}

impl Hub {
    fn folder(&self, repo: &Repo) -> PathBuf {
        self.cache.path().join(repo.folder_name())
    }

    fn snapshot(&self, repo: &Repo, commit: &str) -> PathBuf {
        self.folder(repo).join("snapshots").join(commit)
    }

    /// The commit that an earlier call fetched, of Python's or of ours. A revision may be a commit.
    fn fetched_commit(&self, repo: &Repo) -> Option<String> {
        let noted = self.cache.path().join(repo.folder_name()).join("refs").join(repo.revision());
        let commit = std::fs::read_to_string(noted)
            .map_or(repo.revision().to_owned(), |text| text.trim().to_owned());
        self.snapshot(repo, &commit).is_dir().then_some(commit)
    }
}

/// Takes a request up again while the connection is what fails. A transfer goes on where the last
/// one stopped.
fn again<T>(
    mut request: impl FnMut() -> std::result::Result<T, ApiError>,
) -> std::result::Result<T, ApiError> {
    let mut tries = 1;
    loop {
        match request() {
            Err(error) if tries < TRIES && Failure::of(&error).passes() => {
                std::thread::sleep(Duration::from_millis(100 << tries));
                tries += 1;
            }
            result => return result,
        }
    }
}

/// A name that cannot lead out of the folder.
fn is_below(name: &str) -> bool {
    !name.is_empty()
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

fn list(folder: &Path, root: &Path, names: &mut Vec<String>) {
    for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
    {
        if path.is_dir() {
            list(&path, root, names);
        } else if let Ok(below) = path.strip_prefix(root) {
            names.push(below.to_string_lossy().into_owned());
        }
    }
}
