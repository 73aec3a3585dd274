//! Copying directory trees: large immutable files as hard links, small ones as copies that keep
//! their modification time.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};

/// Files of at least this size are shared. Cargo, rustc and evcxr write such artefacts to a new
/// file and rename it, but they write small ones (fingerprints, manifests) in place.
const SHARED_BYTES: u64 = 32 * 1024;

/// How a file is brought over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Large files as hard links.
    Share,
    /// Every file as a copy.
    Copy,
}

/// Copies the tree `from` to `to`. Symbolic links are not followed and not copied.
pub(crate) fn copy_tree(from: &Path, to: &Path, mode: Mode) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            copy_tree(&entry.path(), &target, mode)?;
        } else if kind.is_file() {
            copy_file(&entry.path(), &target, mode)?;
        }
    }
    Ok(())
}

/// Copies one file over whatever is at `to`.
pub(crate) fn copy_file(from: &Path, to: &Path, mode: Mode) -> Result<()> {
    let context = || format!("cannot copy {} to {}", from.display(), to.display());
    let metadata = fs::metadata(from).with_context(context)?;
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(context);
        }
        _ => {}
    }
    // On another file system the link fails, and the copy takes its place.
    if mode == Mode::Share && metadata.len() >= SHARED_BYTES && fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    fs::copy(from, to).with_context(context)?;
    // Cargo compares modification times: a copy that looked newer than its source would count as
    // changed.
    let times = fs::FileTimes::new().set_modified(metadata.modified().with_context(context)?);
    fs::File::options()
        .append(true)
        .open(to)
        .and_then(|file| file.set_times(times))
        .with_context(context)
}

/// Removes a tree. One that is not there is as good.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn large_files_are_shared_and_small_ones_keep_their_time() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let from = dir.path().join("from");
        fs::create_dir_all(from.join("deep")).expect("created");
        fs::write(from.join("deep/large"), vec![7; SHARED_BYTES as usize]).expect("written");
        fs::write(from.join("small"), "text").expect("written");
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        let file = fs::File::options().append(true).open(from.join("small")).expect("opened");
        file.set_times(fs::FileTimes::new().set_modified(old)).expect("set");

        let to = dir.path().join("to");
        copy_tree(&from, &to, Mode::Share).expect("copied");
        let inode = |path: &Path| fs::metadata(path).expect("exists").ino();
        assert_eq!(inode(&from.join("deep/large")), inode(&to.join("deep/large")));
        assert_ne!(inode(&from.join("small")), inode(&to.join("small")));
        assert_eq!(fs::metadata(to.join("small")).expect("exists").modified().expect("known"), old);

        // A second copy replaces what is there, and never writes through a link.
        fs::write(from.join("small"), "other").expect("written");
        copy_tree(&from, &to, Mode::Copy).expect("copied");
        assert_eq!(fs::read_to_string(to.join("small")).expect("read"), "other");
        assert_ne!(inode(&from.join("deep/large")), inode(&to.join("deep/large")));
    }
}
