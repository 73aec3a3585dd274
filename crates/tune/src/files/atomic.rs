//! Several files of one folder that are whole or not there ([`tunebook_disk`]), and reading them.

use std::io::Write;
use std::path::Path;

use tunebook_disk::WholeFile;

use crate::error::{Error, Result};

/// Writes files into one folder so that a reader never sees a torn one: all are written and flushed
/// first, then renamed in the given order. On an error the folder is left as it was, but for files
/// already renamed.
pub(crate) fn write_files(dir: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    let io = |action, path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    };
    std::fs::create_dir_all(dir).map_err(io("create", dir))?;
    let mut whole = Vec::new();
    for (name, bytes) in files {
        let path = dir.join(name);
        let mut file = WholeFile::create(&path).map_err(io("create", &path))?;
        file.write_all(bytes).map_err(io("write", &path))?;
        file.sync_all().map_err(io("write", &path))?;
        whole.push((path, file));
    }
    for (path, file) in whole {
        file.put().map_err(io("write", &path))?;
    }
    sync_folder(dir)
}

/// Flushes a folder's list of names, in which renames live.
pub(crate) fn sync_folder(dir: &Path) -> Result<()> {
    tunebook_disk::sync_folder(dir).map_err(|source| Error::Io {
        action: "write",
        path: dir.to_path_buf(),
        source,
    })
}

/// Reads a whole file. Whatever else has a name is refused before it is opened: a pipe would be
/// waited for.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::metadata(path).and_then(|found| match found.is_file() {
        true => std::fs::read(path),
        false => Err(std::io::Error::other("it is a pipe, device or folder, expected a file")),
    });
    bytes.map_err(|source| Error::Io { action: "read", path: path.to_path_buf(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_files_and_leaves_no_temporary_ones() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        write_files(&inner, &[("x", b"1"), ("y", b"2")]).unwrap();
        write_files(&inner, &[("x", b"3"), ("y", b"4")]).unwrap();
        assert_eq!(std::fs::read(inner.join("x")).unwrap(), b"3");
        assert_eq!(std::fs::read_dir(&inner).unwrap().count(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("adapter_model.safetensors");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let (sender, done) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(read(&pipe).unwrap_err().to_string()));
        let error = done.recv_timeout(std::time::Duration::from_secs(10)).expect("it waits");
        assert!(error.contains("adapter_model.safetensors") && error.contains("pipe"), "{error}");
    }

    #[test]
    fn a_failure_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        write_files(dir.path(), &[("x", b"old")]).unwrap();
        std::fs::create_dir(dir.path().join("y")).unwrap(); // a folder stands where the second file should go
        std::fs::create_dir(dir.path().join("y/inner")).unwrap();
        let error = write_files(dir.path(), &[("y", b"new"), ("x", b"new")]).unwrap_err();
        assert!(error.to_string().contains("could not write"), "{error}");
        assert_eq!(std::fs::read(dir.path().join("x")).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
