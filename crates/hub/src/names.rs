//! The names of all files of a commit, kept in the cache: without a connection they tell what was not
//! fetched. Python's cache does not hold them, and leaves a folder that it does not know alone.

use std::path::{Path, PathBuf};

use crate::id;

/// Where they are kept, in the folder of a repository.
fn file(repository: &Path, commit: &str) -> PathBuf {
    repository.join(".tunebook").join(format!("{commit}.txt"))
}

/// Keeps the names. They are a help for later calls, so a cache that cannot be written is no error.
pub(crate) fn keep(repository: &Path, commit: &str, names: &[String]) {
    let file = file(repository, commit);
    if file.exists() {
        return;
    }
    let lines: Vec<String> = names.iter().map(|name| format!("{name}\n")).collect();
    let _ = std::fs::create_dir_all(file.parent().unwrap_or(repository))
        .and_then(|()| tunebook_disk::write(&file, lines.concat().as_bytes()));
}

/// The names, if an earlier call kept them.
pub(crate) fn kept(repository: &Path, commit: &str) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(file(repository, commit)).ok()?;
    Some(text.lines().filter(|name| id::is_file(name)).map(str::to_owned).collect())
}
