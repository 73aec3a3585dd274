//! How the registry's files are read and written: a file as a whole, or line by line behind what is
//! there.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { action, path, source }
}

/// Seconds of Unix time. For people: nothing is ordered or named by it.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

pub(crate) fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(io("create", path))
}

/// A random number as 12 hexadecimal digits: two machines draw none twice.
pub(crate) fn new_id() -> Result<String> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; 6];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(io("read", path))?;
    Ok(hex(&bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Reads a file of which there may be none. What else may have its name, as a pipe, is not opened.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    if length(path)? == 0 {
        return Ok(path.exists().then(Vec::new));
    }
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if missing(&error) => Ok(None),
        Err(error) => Err(io("read", path)(error)),
    }
}

/// The length of a file; 0 where there is none.
///
/// # Errors
/// It is no file, or cannot be looked at.
pub(crate) fn length(path: &Path) -> Result<u64> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(found.len()),
        Ok(_) => {
            let problem = "is no file: expected one that the registry has written".to_owned();
            Err(Error::File { path: path.to_path_buf(), problem })
        }
        Err(error) if missing(&error) => Ok(0),
        Err(error) => Err(io("read", path)(error)),
    }
}

fn missing(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// The names in a folder that are no hidden ones, in order; none if there is no folder.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if missing(&error) => return Ok(Vec::new()),
        Err(error) => return Err(io("read", folder)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(io("read", folder))?.file_name();
        names.extend(name.into_string().ok().filter(|name| !name.starts_with('.')));
    }
    names.sort();
    Ok(names)
}

/// Writes a file so that it is there whole or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    tunebook_disk::write(path, bytes).map_err(io("write", path))
}

/// Held by one process at a time, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock. Where the file system has none it is held by everybody.
    pub(crate) fn take(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.create(true).append(true).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(path).map_err(io("open", path))?;
        match file.lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(Self { _file: file }),
            Err(error) => Err(io("lock", path)(error)),
        }
    }
}

/// Whether a process holds the lock of this file. Any number may ask at once.
pub(crate) fn is_locked(path: &Path) -> bool {
    if !path.is_file() {
        return false;
    }
    let Ok(file) = File::open(path) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Who asks whether a file is locked holds it for a moment: so often and so long that is waited for.
const MOMENTS: u32 = 20;
const MOMENT: Duration = Duration::from_millis(10);

/// A file that lines are written to, behind what is there. Others may write to it, too: a line is
/// written under the file's lock.
#[derive(Debug)]
pub(crate) struct LineFile {
    file: File,
    shared: bool,
}

impl LineFile {
    /// A file with one writer, who holds its lock for as long as it writes.
    ///
    /// # Errors
    /// The file cannot be opened, or somebody else holds it.
    pub(crate) fn own(path: &Path) -> Result<Self> {
        let file = Self::open(path)?;
        let mut locked = file.try_lock();
        for _ in 0..MOMENTS {
            if !matches!(locked, Err(TryLockError::WouldBlock)) {
                break;
            }
            std::thread::sleep(MOMENT);
            locked = file.try_lock();
        }
        match locked {
            Ok(()) => {}
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(io("lock", path)(error)),
            Err(TryLockError::WouldBlock) => {
                let problem = "is written to by another process".to_owned();
                return Err(Error::File { path: path.to_path_buf(), problem });
            }
        }
        Ok(Self { file, shared: false })
    }

    /// A file that any process may add lines to.
    pub(crate) fn shared(path: &Path) -> Result<Self> {
        Ok(Self { file: Self::open(path)?, shared: true })
    }

    /// A link is not followed: it may lead out of the registry.
    fn open(path: &Path) -> Result<File> {
        let mut options = OpenOptions::new();
        options.create(true).read(true).append(true).custom_flags(libc::O_NOFOLLOW);
        options.open(path).map_err(io("open", path))
    }

    /// Adds a line by one write, and waits until it is on the disk if `sync` says so. A line that
    /// could not be written whole is taken back.
    ///
    /// # Errors
    /// A full or failing disk.
    pub(crate) fn add(&mut self, line: &[u8], sync: bool) -> std::io::Result<()> {
        if self.shared {
            match self.file.lock() {
                Err(error) if error.kind() != ErrorKind::Unsupported => return Err(error),
                _ => {}
            }
        }
        let added = self.add_locked(line, sync);
        if self.shared {
            let _ = self.file.unlock(); // goes with the file
        }
        added
    }

    fn add_locked(&mut self, line: &[u8], sync: bool) -> std::io::Result<()> {
        let before = self.file.seek(SeekFrom::End(0))?;
        let mut bytes = Vec::with_capacity(line.len() + 2);
        if before > 0 && !self.ends_line(before)? {
            bytes.push(b'\n'); // whoever wrote last was killed in the middle of a line
        }
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
        let written = self.file.write_all(&bytes);
        if written.is_err() {
            let _ = self.file.set_len(before); // else it is a damaged line, which readers leave out
        }
        written?;
        if sync { self.file.sync_data() } else { Ok(()) }
    }

    fn ends_line(&mut self, length: u64) -> std::io::Result<bool> {
        let mut last = [0];
        self.file.seek(SeekFrom::Start(length - 1))?;
        self.file.read_exact(&mut last)?;
        Ok(last[0] == b'\n')
    }
}

/// Adds one line to a file that others write to.
pub(crate) fn add_line(path: &Path, line: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec(line)?;
    LineFile::shared(path)?.add(&bytes, true).map_err(io("write", path))
}

/// The lines of a file, without the line that a killed process has not ended: `.1` says whether there
/// is one.
pub(crate) fn lines(bytes: &[u8]) -> (impl Iterator<Item = &[u8]>, bool) {
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let whole = bytes[..end].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    (whole, end < bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_costs_itself_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        add_line(&path, &1).unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"kind\":\"st").unwrap();
        let bytes = fs::read(&path).unwrap();
        let (whole, torn) = lines(&bytes);
        assert_eq!((whole.collect::<Vec<_>>(), torn), (vec![&b"1"[..]], true));
        add_line(&path, &2).unwrap();
        let bytes = fs::read(&path).unwrap();
        let (whole, torn) = lines(&bytes);
        assert_eq!(whole.collect::<Vec<_>>(), [&b"1"[..], b"{\"kind\":\"st", b"2"]);
        assert!(!torn);
    }

    #[test]
    fn the_only_writer_is_seen_by_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let own = LineFile::own(&path).unwrap();
        assert!(is_locked(&path));
        assert!(LineFile::own(&path).unwrap_err().to_string().contains("another process"));
        drop(own);
        assert!(!is_locked(&path));
    }

    #[test]
    fn who_asks_is_no_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        fs::write(&path, "").unwrap();
        let asking = File::open(&path).unwrap();
        asking.try_lock_shared().unwrap();
        assert!(!is_locked(&path), "another who asks");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| LineFile::own(&path));
            std::thread::sleep(MOMENT * 3);
            drop(asking);
            waits.join().unwrap().unwrap();
        });
    }

    #[test]
    fn links_and_what_is_no_file_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, link) = (dir.path().join("outside"), dir.path().join("log.jsonl"));
        fs::write(&outside, "mine").unwrap();
        std::os::unix::fs::symlink(&outside, &link).unwrap();
        assert!(add_line(&link, &1).is_err() && Lock::take(&link).is_err());
        assert_eq!(fs::read(&outside).unwrap(), b"mine");
        assert!(read(dir.path()).unwrap_err().to_string().contains("is no file"));
        assert_eq!(read(&dir.path().join("none")).unwrap(), None);
        assert!(!is_locked(dir.path()));
    }
}
