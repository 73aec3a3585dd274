//! One repository at one commit.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::explain::Failure;
use crate::id;
use crate::names;
use crate::place::Place;
use crate::said::said;
use crate::transfer::Transfer;
use crate::{Error, Hub, Kind, Result};

/// How often a transfer is taken up again within one call.
const TRIES: u32 = 4;
const UNUSABLE: &str = "the token (HF_TOKEN, or that of `hf auth login`) is none: it has spaces, line \
    breaks or other letters that no token has";

/// The files of one commit of a repository.
#[derive(Debug)]
pub struct Repository {
    hub: Hub,
    given: String,
    place: Place,
    /// The repository at the commit.
    pinned: Place,
    names: Vec<String>,
    /// None where nobody is asked any more.
    transfer: Option<Transfer>,
}

impl Repository {
    pub(crate) fn open(hub: &Hub, kind: Kind, given: &str) -> Result<Self> {
        let failed = |reason: String| Error {
            repo: said(given, hub.token.as_ref()),
            file: "the list of files".to_owned(),
            reason,
        };
        let (repository, revision) = id::parse(given).map_err(failed)?;
        let place = Place::new(kind, repository, revision);
        let fetched = || {
            let commit = hub.fetched_commit(&place)?;
            let names = names::kept(&hub.folder(&place), &commit).unwrap_or_else(|| {
                let mut names = Vec::new();
                let folder = hub.snapshot(&place, &commit);
                list(&folder, &folder, &mut names);
                names.sort();
                names
            });
            Some(Self {
                hub: hub.clone(),
                given: given.to_owned(),
                pinned: place.at(&commit),
                place: place.clone(),
                names,
                transfer: None,
            })
        };
        if hub.offline {
            return fetched().ok_or_else(|| {
                failed("HF_HUB_OFFLINE is set and it was never fetched".to_owned())
            });
        }
        hub.endpoint.check().map_err(failed)?;
        if hub.token.as_ref().is_some_and(|token| !token.is_usable()) {
            return Err(failed(UNUSABLE.to_owned()));
        }
        let transfer = Transfer::new(&hub.endpoint, hub.token.as_ref());
        let info = match again(|| transfer.info(&place)) {
            Ok(info) => info,
            // No connection: what an earlier call fetched will do.
            Err(failure) => {
                let fallback = if failure.passes() { fetched() } else { None };
                return fallback.ok_or_else(|| failed(failure.explained(hub.token.as_ref())));
            }
        };
        if !id::is_commit(&info.sha) {
            let found = said(&info.sha, hub.token.as_ref());
            return Err(failed(format!("expected the name of a commit, found `{found}`")));
        }
        let is_told = |name: &String| hub.token.as_ref().is_some_and(|token| token.is_in(name));
        let names = info.siblings.into_iter().map(|sibling| sibling.rfilename);
        let names: Vec<String> = names.filter(|name| id::is_file(name) && !is_told(name)).collect();
        names::keep(&hub.folder(&place), &info.sha, &names);
        Ok(Self {
            hub: hub.clone(),
            given: given.to_owned(),
            names,
            transfer: Some(transfer),
            pinned: place.at(&info.sha),
            place,
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
        self.hub.snapshot(&self.place, self.commit())
    }

    /// The commit that it is pinned to.
    pub fn commit(&self) -> &str {
        &self.pinned.revision
    }

    /// A file, fetched if it is not in the cache.
    ///
    /// # Errors
    /// When the hub does not give it, or it arrives damaged.
    pub fn get(&self, name: &str) -> Result<PathBuf> {
        let token = self.hub.token.as_ref();
        let failed = |reason: String| Error {
            repo: said(&self.given, token),
            file: format!("`{}`", said(name, token)),
            reason,
        };
        if !id::is_file(name) {
            return Err(failed("it is no name that a file of a repository can have".to_owned()));
        }
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
        let folder = self.hub.folder(&self.place);
        let path = again(|| transfer.fetch(&folder, &self.pinned, name))
            .map_err(|failure| failed(failure.explained(token)))?;
        self.remember();
        Ok(path)
    }

    /// Notes which commit the revision is, as Python does.
    fn remember(&self) {
        if self.place.revision == self.pinned.revision {
            return;
        }
        let noted = self.hub.noted(&self.place);
        // No more than a help for the next call.
        let _ = noted
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| tunebook_disk::write(&noted, self.commit().as_bytes()));
    }
}

impl Hub {
    fn folder(&self, place: &Place) -> PathBuf {
        self.cache.join(place.folder())
    }

    fn snapshot(&self, place: &Place, commit: &str) -> PathBuf {
        self.folder(place).join("snapshots").join(commit)
    }

    /// Where the commit of a branch or tag is noted.
    fn noted(&self, place: &Place) -> PathBuf {
        self.folder(place).join("refs").join(&place.revision)
    }

    /// The commit that an earlier call fetched, of Python's or of ours. A revision may be a commit.
    fn fetched_commit(&self, place: &Place) -> Option<String> {
        let commit = std::fs::read_to_string(self.noted(place))
            .map_or(place.revision.clone(), |text| text.trim().to_owned());
        let is_there = id::is_commit(&commit) && self.snapshot(place, &commit).is_dir();
        is_there.then_some(commit)
    }
}

/// Takes a request up again while the connection is what fails. A transfer goes on where the last
/// one stopped.
fn again<T>(
    mut request: impl FnMut() -> std::result::Result<T, Failure>,
) -> std::result::Result<T, Failure> {
    let mut tries = 1;
    loop {
        match request() {
            Err(failure) if tries < TRIES && failure.passes() => {
                std::thread::sleep(Duration::from_millis(100 << tries));
                tries += 1;
            }
            result => return result,
        }
    }
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
