//! What is uploaded: files, or bytes under a name.

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tunebook_progress::{ProgressBar, interrupt};

use super::fault::Fault;
use crate::git_oid;

/// The bytes of a file to be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UploadContent {
    /// Those of a file on this computer.
    File(PathBuf),
    /// These.
    Bytes(Arc<[u8]>),
}

/// One file of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadFile {
    /// Its name in the repository, with slashes.
    pub path: String,
    /// What it holds.
    pub content: UploadContent,
}

impl UploadFile {
    /// A file that holds this text.
    pub fn text(path: &str, text: &str) -> Self {
        let bytes = text.as_bytes().into();
        Self { path: path.to_owned(), content: UploadContent::Bytes(bytes) }
    }
}

impl UploadContent {
    /// The number of its bytes.
    ///
    /// # Errors
    /// A file that cannot be read, or a folder.
    pub fn size(&self) -> std::io::Result<u64> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.len() as u64),
            Self::File(path) => match std::fs::metadata(path)? {
                found if found.is_file() => Ok(found.len()),
                _ => Err(std::io::Error::other("it is a pipe, device or folder")),
            },
        }
    }

    /// Reads a part.
    pub(crate) fn open(&self, start: u64, length: u64) -> std::io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::Bytes(bytes) => {
                let mut all = Cursor::new(Arc::clone(bytes));
                all.set_position(start);
                Box::new(all.take(length))
            }
            Self::File(path) => {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(start))?;
                Box::new(file.take(length))
            }
        })
    }

    /// Its first bytes, by which the hub knows a text.
    pub(crate) fn sample(&self) -> std::io::Result<Vec<u8>> {
        let mut sample = Vec::new();
        self.open(0, 512)?.read_to_end(&mut sample)?;
        Ok(sample)
    }

    /// All of it: for small files.
    pub(crate) fn bytes(&self) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.to_vec()),
            Self::File(path) => std::fs::read(path),
        }
    }

    pub(crate) fn git_oid(&self) -> std::io::Result<String> {
        Ok(git_oid::of_blob(&self.bytes()?))
    }

    /// The name of a large file.
    pub(crate) fn sha256(&self, name: &str) -> Result<String, Fault> {
        let size = self.size()?;
        let bar = ProgressBar::new(format!("Hashing {name}"), Some(size)).unit("B");
        let mut reader = self.open(0, size)?;
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            interrupt::check().map_err(|_| Fault::Stopped)?;
            match reader.read(&mut buffer)? {
                0 => break,
                count => {
                    hash.update(&buffer[..count]);
                    bar.advance(count as u64);
                }
            }
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Hidden names that belong to a repository.
const WANTED: [&str; 2] = [".eval_results", ".gitattributes"];

/// Folders of a run on its way, which the hub's own `Trainer` leaves out, too: `checkpoint-500`.
const CHECKPOINT: &str = "checkpoint-";

/// The files of a folder, for [`Hub::upload`](crate::Hub::upload), and the names of what is left out:
/// hidden files and folders but `.eval_results` and `.gitattributes`, links to folders, and folders of
/// checkpoints. A link to a file is a file here; [`Hub::upload`](crate::Hub::upload) looks where it leads.
///
/// # Errors
/// A folder that cannot be read, or a name that is no text.
pub fn folder_files(folder: &Path) -> std::io::Result<(Vec<UploadFile>, Vec<String>)> {
    let (mut files, mut left_out) = (Vec::new(), Vec::new());
    walk(folder, "", &mut files, &mut left_out)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    left_out.sort();
    Ok((files, left_out))
}

fn walk(
    folder: &Path,
    above: &str,
    files: &mut Vec<UploadFile>,
    left_out: &mut Vec<String>,
) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            let problem = format!("the name of `{}` is no text in UTF-8", path.display());
            return Err(std::io::Error::other(problem));
        };
        let below = format!("{above}{name}");
        let step = name.strip_prefix(CHECKPOINT);
        let is_checkpoint = step.is_some_and(|step| step.parse::<u64>().is_ok());
        let is_left_out = path.is_dir() && (path.is_symlink() || is_checkpoint);
        if name.starts_with('.') && !WANTED.contains(&name) || is_left_out {
            left_out.push(below);
        } else if path.is_dir() {
            walk(&path, &format!("{below}/"), files, left_out)?;
        } else {
            files.push(UploadFile { path: below, content: UploadContent::File(path) });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_files_stay_here() {
        let root = tempfile::tempdir().unwrap();
        for name in [
            "b/c.json",
            "a.txt",
            ".env",
            ".git/config",
            ".eval_results/x.yaml",
            "checkpoint-5/state.json",
            "b/checkpoint-final/x.json",
        ] {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink("/", root.path().join("root")).unwrap();
        let (files, left_out) = folder_files(root.path()).unwrap();
        let names: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(
            names,
            [".eval_results/x.yaml", "a.txt", "b/c.json", "b/checkpoint-final/x.json"]
        );
        #[cfg(unix)]
        assert_eq!(left_out, [".env", ".git", "checkpoint-5", "root"]);
    }

    #[test]
    fn a_part_is_read() {
        let content = UploadContent::Bytes(b"0123456789"[..].into());
        let mut text = String::new();
        content.open(3, 4).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), content.size().unwrap()), ("3456", 10));
    }
}
