//! Stamps: small files that say "this step ended well, on these inputs".
//!
//! A stamp is written, in one rename, after its step; it is taken away before the step starts. So a
//! step that was cut short has none and is done again, and one whose inputs changed has the wrong
//! one.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The stamp of one step.
pub(crate) struct Stamp {
    path: PathBuf,
    content: String,
}

impl Stamp {
    /// The stamp `name` in `folder`, for inputs whose hash is `content`.
    pub(crate) fn new(folder: &Path, name: &str, content: String) -> Self {
        Self { path: folder.join(name), content }
    }

    /// Whether the step ended well on the same inputs.
    pub(crate) fn is_valid(&self) -> bool {
        std::fs::read_to_string(&self.path).is_ok_and(|found| found == self.content)
    }

    /// Takes the stamp away: from now on the step counts as not done.
    ///
    /// # Errors
    /// When the file is there and cannot be removed.
    pub(crate) fn clear(&self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &self.path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Writes the stamp: the step is done.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(crate) fn set(&self) -> Result<()> {
        write_atomically(&self.path, self.content.as_bytes())
    }
}

/// Writes a file under another name in the same folder, then renames it: nobody ever sees half of
/// it.
///
/// # Errors
/// When the folder cannot be made or written.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    std::fs::write(&part, content).map_err(Error::io("write", &part))?;
    std::fs::rename(&part, path).map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_only_after_set_and_on_the_same_inputs() {
        let folder = std::env::temp_dir().join(format!("xtask-stamp-{}", std::process::id()));
        let stamp = Stamp::new(&folder, "step", "inputs 1".into());
        assert!(!stamp.is_valid());
        stamp.clear().unwrap();
        stamp.set().unwrap();
        assert!(stamp.is_valid());
        assert!(!Stamp::new(&folder, "step", "inputs 2".into()).is_valid(), "changed inputs");
        stamp.clear().unwrap();
        assert!(!stamp.is_valid(), "a step that was cut short is done again");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
