//! Uploads: a folder's files become one commit of a repository, by the hub's interface for commits
//! (<https://huggingface.co/docs/huggingface_hub/package_reference/hf_api>, `create_commit`).
//!
//! 1. The repository is looked at, and made if need be. Its last commit is the parent of ours, so that
//!    a commit of somebody else in between is an error, and not lost.
//! 2. `preupload`: which files are large, and which are there already.
//! 3. Large files go to the storage that the hub names, one after the other ([`lfs`]).
//! 4. `commit`: one request with small files in it and large ones by their names.
//!
//! Before the last request nothing of the repository has changed.

mod api;
mod base64;
mod content;
mod doubts;
mod fault;
mod lfs;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use self::api::{Api, Payload, TRIES, pause};
pub use self::content::{UploadContent, UploadFile, folder_files};
use self::fault::Fault;
use crate::Hub;
use crate::endpoint::quoted;
use crate::id::{check_revision, is_commit, is_file, is_repository};
use crate::said::said;

/// Files that one request asks about.
const ASKED: usize = 256;
/// Folders that belong to git and to the cache.
const FORBIDDEN: [&str; 2] = [".git", ".cache"];
const MAIN: &str = "main";
/// So many files that are in doubt are named.
const SHOWN_DOUBTS: usize = 10;

/// How files are uploaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadArgs {
    /// The first line of the commit's message.
    pub message: String,
    /// The rest of it.
    pub description: String,
    /// The branch. The default is `main`.
    pub revision: String,
    /// Makes the repository if there is none. The default is true.
    pub create_repo: bool,
    /// A repository that is made is private; one that is there must be.
    pub private: bool,
    /// Opens a pull request, and leaves the branch as it is.
    pub create_pr: bool,
    /// The commit that must be the last one of the branch. `None`: the one that is when the upload
    /// begins.
    pub parent_commit: Option<String>,
    /// Files that are sent although they are links to elsewhere or look like secrets or rows, by their names.
    pub allowed: Vec<String>,
}

impl Default for UploadArgs {
    fn default() -> Self {
        Self {
            message: "Upload with tunebook".to_owned(),
            description: String::new(),
            revision: MAIN.to_owned(),
            create_repo: true,
            private: false,
            create_pr: false,
            parent_commit: None,
            allowed: Vec::new(),
        }
    }
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UploadState {
    /// Its bytes were sent.
    Sent,
    /// The hub had its bytes, from an earlier upload.
    Stored,
    /// The branch has it as it is.
    Unchanged,
    /// The repository's `.gitignore` leaves it out.
    Ignored,
}

/// One file of an upload that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadedFile {
    /// Its name in the repository.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// What became of it.
    pub state: UploadState,
}

/// An upload that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Uploaded {
    /// The commit; the branch's last one if nothing has changed.
    pub commit: String,
    /// Its page.
    pub url: String,
    /// The page of the pull request.
    pub pull_request: Option<String>,
    /// The repository was made.
    pub created: bool,
    /// The files, in the order that they were given in.
    pub files: Vec<UploadedFile>,
}

/// The hub did not take an upload.
#[derive(Debug, thiserror::Error)]
#[error("cannot upload {what} to `{repo}`: {reason}")]
pub struct UploadError {
    /// The repository.
    pub repo: String,
    /// The file, or what else was to be done.
    pub what: String,
    /// Why not, and what to do.
    pub reason: String,
}

impl UploadError {
    /// Whether the user has stopped it. Large files that have arrived are not sent again.
    pub fn is_interruption(&self) -> bool {
        self.reason == tunebook_progress::Interrupted.to_string()
    }
}

/// What the hub says of a file before it is sent, and what we know of it.
struct Planned<'a> {
    file: &'a UploadFile,
    size: u64,
    large: bool,
    state: UploadState,
    /// Of a large file its SHA-256, of a small one git's name.
    oid: String,
}

/// The branch as it is.
struct Head {
    commit: String,
    private: bool,
}

impl Hub {
    /// Uploads files to `owner/name`, as one commit. What the repository has besides stays there.
    ///
    /// # Errors
    /// There is no token or none that may write, somebody has committed meanwhile, a file cannot be
    /// read or is too large, or the connection stays away. The branch is as it was then; a large
    /// file that has arrived is not sent again by a later call.
    pub fn upload(
        &self,
        repo: &str,
        files: &[UploadFile],
        args: &UploadArgs,
    ) -> std::result::Result<Uploaded, UploadError> {
        self.check_upload(repo, files, args)?;
        let failed = |what: &str, reason: String| self.upload_error(repo, what, reason);
        if self.offline {
            return Err(failed("files", "HF_HUB_OFFLINE is set".to_owned()));
        }
        let api = Api::new(self).map_err(|reason| failed("files", reason))?;
        let upload = Upload { api: &api, repo, args };
        upload.run(files).map_err(|(what, fault)| failed(&what, fault.explained(&api.endpoint)))
    }

    /// Whether files may be uploaded, as far as that is known without asking the hub.
    ///
    /// # Errors
    /// The repository, the branch or a file has a name that is none, or a file is not sent unless it is
    /// [allowed](UploadArgs::allowed): a link to what is not among the files, what looks like a secret or like rows, a
    /// JSON file with a place on a computer in it.
    pub fn check_upload(
        &self,
        repo: &str,
        files: &[UploadFile],
        args: &UploadArgs,
    ) -> std::result::Result<(), UploadError> {
        let failed = |reason: String| self.upload_error(repo, "files", reason);
        if !is_repository(repo) || repo.contains('@') {
            let reason = "it is no name of a repository; expected `owner/name`".to_owned();
            return Err(failed(reason));
        }
        check_revision(&args.revision).map_err(failed)?;
        check_names(files).map_err(failed)?;
        let mut doubts = doubts::doubts(files, &self.cache, self.token.as_ref())
            .map_err(|fault| failed(fault.explained(&self.endpoint)))?;
        doubts.retain(|(name, _)| !args.allowed.contains(name));
        match doubts.len() {
            0 => Ok(()),
            count => {
                let shown = doubts.iter().take(SHOWN_DOUBTS);
                let shown: Vec<String> =
                    shown.map(|(name, why)| format!("`{name}` ({why})")).collect();
                let more = match count - shown.len() {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                Err(failed(format!(
                    "nothing is sent, for these are seldom meant to be: {}{more}. Leave them out \
                     (`--exclude NAME`), or allow each by its name (`allowed`, `--allow NAME`)",
                    shown.join(", ")
                )))
            }
        }
    }

    fn upload_error(&self, repo: &str, what: &str, reason: String) -> UploadError {
        let token = self.token.as_ref();
        UploadError { repo: said(repo, token), what: said(what, token), reason }
    }
}

/// # Errors
/// There is no file, two have one name, or a name leads elsewhere.
fn check_names(files: &[UploadFile]) -> std::result::Result<(), String> {
    if files.is_empty() {
        return Err("there is no file".to_owned());
    }
    let mut names = BTreeSet::new();
    for file in files {
        let name = &file.path;
        if !is_file(name) || name.split('/').any(|part| FORBIDDEN.contains(&part)) {
            let name = said(name, None);
            return Err(format!("`{name}` is no name that a file of a repository can have"));
        }
        if !names.insert(name) {
            return Err(format!("two files have the name `{name}`"));
        }
    }
    Ok(())
}

/// One upload on its way.
struct Upload<'a> {
    api: &'a Api,
    repo: &'a str,
    args: &'a UploadArgs,
}

/// What failed, and why.
type Failed = (String, Fault);

/// Names what failed.
fn at(what: &str) -> impl FnOnce(Fault) -> Failed + use<> {
    let what = what.to_owned();
    move |fault| (what, fault)
}

impl Upload<'_> {
    fn run(&self, files: &[UploadFile]) -> std::result::Result<Uploaded, Failed> {
        let (head, created) = self.repository().map_err(at("files"))?;
        self.check_card(files)?;
        let mut planned = self.plan(files)?;
        for planned in planned.iter_mut().filter(|planned| planned.state == UploadState::Sent) {
            let file = planned.file;
            if !planned.large {
                continue;
            }
            let object = lfs::Object {
                name: &file.path,
                content: &file.content,
                size: planned.size,
                sha256: &planned.oid,
            };
            let sent = lfs::send(self.api, self.repo, &self.args.revision, &object);
            if !sent.map_err(at(&format!("`{}`", file.path)))? {
                planned.state = UploadState::Stored;
            }
        }
        let done = |commit: String, url: String, pull_request| Uploaded {
            commit,
            url,
            pull_request,
            created,
            files: planned
                .iter()
                .map(|planned| UploadedFile {
                    path: planned.file.path.clone(),
                    bytes: planned.size,
                    state: planned.state,
                })
                .collect(),
        };
        let is_new = |planned: &&Planned<'_>| {
            !matches!(planned.state, UploadState::Unchanged | UploadState::Ignored)
        };
        let new: Vec<&Planned<'_>> = planned.iter().filter(is_new).collect();
        if new.is_empty() {
            let url = self.page(&head.commit);
            return Ok(done(head.commit, url, None));
        }
        let made = self.commit(&new, &head).map_err(at("the commit"))?;
        Ok(done(made.0, made.1, made.2))
    }

    /// The page of a commit; of the repository where the hub does not name the commit.
    fn page(&self, commit: &str) -> String {
        let repository = format!("{}/{}", self.api.endpoint, self.repo);
        if is_commit(commit) { format!("{repository}/commit/{commit}") } else { repository }
    }

    /// An address of the repository, for this branch.
    fn path(&self, what: &str) -> String {
        format!("/api/models/{}/{what}/{}", self.repo, quoted(&self.args.revision))
    }

    fn head(&self) -> Result<Head, Fault> {
        let found = self.api.get(&self.path("revision"))?.json()?;
        let commit = found["sha"].as_str().unwrap_or_default().to_owned();
        if !commit.is_empty() && !is_commit(&commit) {
            let found = self.api.said(&commit);
            return Err(Fault::Other(format!("expected the name of a commit, found `{found}`")));
        }
        let private = found["private"].as_bool().unwrap_or(false);
        Ok(Head { commit, private })
    }

    /// The repository as it is, made if there is none; `.1` says whether it was.
    fn repository(&self) -> Result<(Head, bool), Fault> {
        match self.head() {
            Ok(head) if self.args.private && !head.private => Err(Fault::Other(
                "it is there and public, and this upload is to be private. Nothing was sent: make \
                 it private on its page, choose another name, or leave `private` out"
                    .to_owned(),
            )),
            Ok(head) => Ok((head, false)),
            Err(fault) if fault.is_code("RevisionNotFound") => Err(Fault::Other(format!(
                "it has no branch `{}`: make it on the repository's page, or open a pull request",
                self.args.revision
            ))),
            Err(fault)
                if fault.status() == Some(404)
                    && self.args.create_repo
                    && self.args.revision == MAIN =>
            {
                self.create()?;
                let head = self.head()?;
                // What was asked for may not be what was done, and somebody else may have made it.
                match self.args.private && !head.private {
                    true => Err(Fault::Other(
                        "it was to be made private, and it is public. Nothing was sent: make it \
                         private on its page, or remove it there"
                            .to_owned(),
                    )),
                    false => Ok((head, true)),
                }
            }
            Err(fault) => Err(fault),
        }
    }

    fn create(&self) -> Result<(), Fault> {
        let (owner, name) = self.repo.split_once('/').unwrap_or_default();
        let mut asked = json!({ "name": name, "organization": owner });
        if self.args.private {
            asked["visibility"] = json!("private");
        }
        match self.api.post("/api/repos/create", &asked) {
            // Somebody has made it meanwhile, or the answer to us was lost: the look that follows
            // tells.
            Err(fault) if fault.status() == Some(409) => Ok(()),
            made => made.map(drop),
        }
    }

    /// Asks whether the hub takes the front matter of the card, before anything is sent.
    fn check_card(&self, files: &[UploadFile]) -> std::result::Result<(), Failed> {
        let Some(card) = files.iter().find(|file| file.path == "README.md") else { return Ok(()) };
        let text = card.content.bytes().map_err(Fault::from).map_err(at("`README.md`"))?;
        let content = String::from_utf8_lossy(&text);
        let asked = json!({ "content": content, "repoType": "model" });
        match self.api.post("/api/validate-yaml", &asked) {
            Err(fault) if matches!(fault.status(), Some(400 | 422)) => {
                Err(at("`README.md`")(fault))
            }
            Err(Fault::Stopped) => Err(at("`README.md`")(Fault::Stopped)),
            // A hub without this service looks at it when it is committed.
            _ => Ok(()),
        }
    }

    /// What is to be done with each file.
    fn plan<'a>(&self, files: &'a [UploadFile]) -> std::result::Result<Vec<Planned<'a>>, Failed> {
        let mut planned = Vec::new();
        let pr = if self.args.create_pr { "?create_pr=1" } else { "" };
        for files in files.chunks(ASKED) {
            let mut asked = Vec::new();
            for file in files {
                let read = || -> std::io::Result<Value> {
                    let sample = base64::encode(&file.content.sample()?);
                    let size = file.content.size()?;
                    Ok(json!({ "path": file.path, "sample": sample, "size": size }))
                };
                let named = at(&format!("`{}`", file.path));
                asked.push(read().map_err(Fault::from).map_err(named)?);
            }
            let path = self.path("preupload") + pr;
            let answer = self.api.post(&path, &json!({ "files": asked }));
            let answer = answer.and_then(|answer| answer.json()).map_err(at("files"))?;
            let answers = answer["files"].as_array().into_iter().flatten();
            let by_name: BTreeMap<&str, &Value> =
                answers.filter_map(|file| Some((file["path"].as_str()?, file))).collect();
            for (file, asked) in files.iter().zip(&asked) {
                let size = asked["size"].as_u64().unwrap_or_default();
                let named = at(&format!("`{}`", file.path));
                planned.push(plan_file(file, size, by_name.get(&*file.path)).map_err(named)?);
            }
        }
        Ok(planned)
    }

    /// Makes the commit. An answer that is lost does not make it twice: the branch is looked at first.
    /// Returns the commit, its page and that of the pull request.
    fn commit(
        &self,
        new: &[&Planned<'_>],
        head: &Head,
    ) -> Result<(String, String, Option<String>), Fault> {
        let given = self.args.parent_commit.as_deref();
        // A pull request is made from what the branch is, whatever that is.
        let parent = given.or((!self.args.create_pr).then_some(head.commit.as_str()));
        let mut header =
            json!({ "summary": self.args.message, "description": self.args.description });
        if let Some(parent) = parent.filter(|parent| !parent.is_empty()) {
            header["parentCommit"] = json!(parent);
        }
        let mut lines = format!("{}\n", json!({ "key": "header", "value": header }));
        for planned in new {
            let path = &planned.file.path;
            let line = match planned.large {
                true => json!({ "key": "lfsFile", "value": {
                    "path": path, "algo": "sha256", "oid": planned.oid, "size": planned.size,
                }}),
                false => json!({ "key": "file", "value": {
                    "content": base64::encode(&planned.file.content.bytes()?),
                    "path": path,
                    "encoding": "base64",
                }}),
            };
            lines += &format!("{line}\n");
        }
        let payload = Payload::Bytes {
            bytes: lines.into_bytes().into(),
            content_type: "application/x-ndjson",
        };
        let pr = if self.args.create_pr { "?create_pr=1" } else { "" };
        let url = self.api.endpoint.at(&format!("{}{pr}", self.path("commit")));
        let mut tries = 1;
        loop {
            let fault = match self.api.once("POST", &url, &[], &payload) {
                Ok(answer) => {
                    let made = answer.json()?;
                    let text = |name: &str| made[name].as_str().map(|text| self.api.said(text));
                    let commit = text("commitOid").unwrap_or_default();
                    let url = text("commitUrl").unwrap_or_else(|| self.page(&commit));
                    return Ok((commit, url, text("pullRequestUrl")));
                }
                Err(fault) => fault,
            };
            // Who asks too often was not heard; otherwise the commit may have been made.
            let may_be_made = fault.passes() && fault.status() != Some(429);
            if may_be_made && self.args.create_pr {
                return Err(Fault::Other(format!(
                    "the answer was lost: look whether the pull request was made ({}/{}/discussions) \
                     before you push again",
                    self.api.endpoint, self.repo
                )));
            }
            if tries == TRIES || !fault.passes() {
                return Err(fault);
            }
            pause(tries, &fault)?;
            tries += 1;
            if may_be_made {
                let now = self.head()?;
                if now.commit != head.commit {
                    return match self.is_there(new)? {
                        true => {
                            let url = self.page(&now.commit);
                            Ok((now.commit, url, None))
                        }
                        false => Err(Fault::conflict()),
                    };
                }
            }
        }
    }

    /// Whether the branch has all these files as they are.
    fn is_there(&self, new: &[&Planned<'_>]) -> Result<bool, Fault> {
        let files: Vec<UploadFile> = new.iter().map(|planned| planned.file.clone()).collect();
        let planned = self.plan(&files).map_err(|(_, fault)| fault)?;
        Ok(planned.iter().all(|planned| planned.state == UploadState::Unchanged))
    }
}

fn plan_file<'a>(
    file: &'a UploadFile,
    size: u64,
    answer: Option<&&Value>,
) -> Result<Planned<'a>, Fault> {
    let answer = answer
        .ok_or_else(|| Fault::Other("the hub does not say how it wants this file".to_owned()))?;
    // The storage takes no empty file.
    let large = answer["uploadMode"].as_str() == Some("lfs") && size > 0;
    if answer["shouldIgnore"].as_bool() == Some(true) {
        let state = UploadState::Ignored;
        return Ok(Planned { file, size, large, state, oid: String::new() });
    }
    let oid = match large {
        true => file.content.sha256(&file.path)?,
        false => file.content.git_oid()?,
    };
    let state = match answer["oid"].as_str() == Some(&oid) {
        true => UploadState::Unchanged,
        false => UploadState::Sent,
    };
    Ok(Planned { file, size, large, state, oid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        let check = |names: &[&str]| {
            let files: Vec<UploadFile> =
                names.iter().map(|name| UploadFile::text(name, "x")).collect();
            check_names(&files)
        };
        check(&["README.md", "a/b.json", ".eval_results/x.yaml"]).unwrap();
        for names in [
            &[][..],
            &["../x"],
            &["/x"],
            &["a//b"],
            &[".git/config"],
            &["a/.cache/x"],
            &["a\\b"],
            &["a\u{1b}[2Jb"],
            &["x", "x"],
        ] {
            assert!(check(names).is_err(), "{names:?}");
        }
    }
}
