//! Files that are whole or not there.
//!
//! A file is written under a hidden name beside its own, flushed to the disk, and renamed. A reader,
//! and whoever comes after a killed process or a full disk, finds the old file or the new one.
//!
//! ```
//! # let folder = std::env::temp_dir().join(format!("tunebook-disk-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! tunebook_disk::write(&folder.join("notes.txt"), b"whole")?;
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), std::io::Error>(())
//! ```

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes a file in the place of one of its name, if there is one.
///
/// # Errors
/// There is no folder for it, it cannot be written, or the disk is full. What stood there stands there
/// still.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = WholeFile::create(path)?;
    file.write_all(bytes)?;
    file.put()?;
    sync_folder(folder_of(path))
}

/// A file on its way. Dropped before [`WholeFile::put`] it is gone, and what stands in its place stays.
///
/// Several that belong together are all [flushed](WholeFile::sync_all) first, then put.
#[derive(Debug)]
pub struct WholeFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
}

impl WholeFile {
    /// Begins a file that will stand at `path`.
    ///
    /// # Errors
    /// There is no folder for it, or none that can be written to.
    pub fn create(path: &Path) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let hidden = format!(".{name}.{number}.{}.tmp", std::process::id());
            let temporary = path.with_file_name(hidden);
            match File::create_new(&temporary) {
                Ok(file) => return Ok(Self { file, temporary, path: path.to_owned() }),
                // Of a killed process that had this one's number, or of one on another machine.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until all that was written is on the disk.
    ///
    /// # Errors
    /// A full or failing disk.
    pub fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// The same of the bytes alone, which is all that a file on its way needs.
    ///
    /// # Errors
    /// A full or failing disk.
    pub fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Puts it in its place, flushed. The place itself is on the disk after [`sync_folder`].
    ///
    /// # Errors
    /// A full or failing disk, or a folder stands in its place.
    pub fn put(self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.temporary, &self.path)
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temporary); // of no use, or renamed
    }
}

/// Flushes a folder's list of names, in which renames live. Where the file system does not know that,
/// there is nothing to do.
///
/// # Errors
/// There is no such folder, or a failing disk.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
            Ok(())
        }
        synced => synced,
    }
}

/// The folder that a file is in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A folder that goes with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("tunebook-disk-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn count(&self) -> usize {
            fs::read_dir(&self.0).unwrap().count()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let folder = Folder::new("replaced");
        let path = folder.0.join("a.json");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!((fs::read(&path).unwrap(), folder.count()), (b"two".to_vec(), 1));
    }

    #[test]
    fn what_is_not_put_leaves_nothing() {
        let folder = Folder::new("dropped");
        let path = folder.0.join("a.json");
        write(&path, b"old").unwrap();
        let mut file = WholeFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        assert_eq!((fs::read(&path).unwrap(), folder.count()), (b"old".to_vec(), 2));
        drop(file);
        assert_eq!(folder.count(), 1);
        // A folder in its place.
        fs::create_dir_all(folder.0.join("b/inner")).unwrap();
        write(&folder.0.join("b"), b"x").unwrap_err();
        assert_eq!(folder.count(), 2);
    }

    #[test]
    fn two_at_a_time_do_not_share_a_name() {
        let folder = Folder::new("two");
        let path = folder.0.join("a.json");
        let (mut one, mut two) =
            (WholeFile::create(&path).unwrap(), WholeFile::create(&path).unwrap());
        one.write_all(b"one").unwrap();
        two.write_all(b"two").unwrap();
        one.put().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        two.put().unwrap();
        assert_eq!((fs::read(&path).unwrap(), folder.count()), (b"two".to_vec(), 1));
        assert_eq!(folder_of(Path::new("a.json")), Path::new("."));
    }
}
