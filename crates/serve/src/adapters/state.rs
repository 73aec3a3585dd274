//! The file that keeps the names of adapters and their folders while no server runs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Folders of adapters by name.
pub(crate) type Folders = BTreeMap<String, PathBuf>;

/// A file that is always whole: the former or the new one.
#[derive(Clone, Debug)]
struct StateFile(PathBuf);

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    adapters: Folders,
}

/// The state file of a server, if it has one.
#[derive(Debug, Default)]
pub(crate) struct State {
    file: Option<StateFile>,
    /// Its entries that are not served: they cannot be read now, or there is no room. They stay in it
    /// until their name is given anew.
    pub(crate) unserved: Folders,
}

impl State {
    /// All entries of a file, of which none is served yet.
    ///
    /// # Errors
    /// As [`StateFile::read`].
    pub(crate) fn read(path: Option<&Path>) -> Result<Self> {
        let file = path.map(StateFile::new);
        let unserved = file.as_ref().map(StateFile::read).transpose()?.unwrap_or_default();
        Ok(Self { file, unserved })
    }

    /// Writes what is served; the entry of the name that has `changed` goes.
    ///
    /// # Errors
    /// As [`StateFile::write`]; nothing has changed then.
    pub(crate) fn write(&mut self, served: Folders, changed: Option<&str>) -> Result<()> {
        let mut unserved = self.unserved.clone();
        if let Some(changed) = changed {
            unserved.remove(changed);
        }
        if let Some(file) = &self.file {
            let mut all = unserved.clone();
            all.extend(served);
            file.write(&all)?;
        }
        self.unserved = unserved;
        Ok(())
    }
}

impl StateFile {
    fn new(path: &Path) -> Self {
        Self(path.to_path_buf())
    }

    fn failed(&self, problem: impl ToString) -> Error {
        Error::State { path: self.0.clone(), problem: problem.to_string() }
    }

    /// What it holds; nothing where it does not exist.
    ///
    /// # Errors
    /// It cannot be read, or is not what [`StateFile::write`] writes.
    fn read(&self) -> Result<Folders> {
        match fs::read(&self.0) {
            Ok(bytes) => {
                let state: Content = serde_json::from_slice(&bytes).map_err(|error| {
                    self.failed(format!(
                        "expected `{{\"adapters\": {{name: folder}}}}`, found {error}; repair it or move it away"
                    ))
                })?;
                Ok(state.adapters)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Folders::new()),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// # Errors
    /// It cannot be written. The former one is there still.
    fn write(&self, adapters: &Folders) -> Result<()> {
        let state = Content { adapters: adapters.clone() };
        let text = serde_json::to_string_pretty(&state).map_err(|error| self.failed(error))? + "\n";
        let mut name = self.0.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = self.0.with_file_name(name);
        let written = File::create(&new).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &self.0)?;
            // The rename itself, where the file system can be asked to keep it.
            let folder = self.0.parent().filter(|folder| !folder.as_os_str().is_empty());
            let _ = File::open(folder.unwrap_or(Path::new("."))).and_then(|dir| dir.sync_all());
            Ok(())
        });
        written.map_err(|error| self.failed(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_torn_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateFile::new(&dir.path().join("state.json"));
        assert!(state.read().unwrap().is_empty());
        let folders: Folders = [("a".to_owned(), "/x/a".into())].into();
        state.write(&folders).unwrap();
        assert_eq!(state.read().unwrap(), folders);
        // A kill between the two steps leaves the former file.
        fs::write(dir.path().join("state.json.new"), "{\"adapt").unwrap();
        assert_eq!(state.read().unwrap(), folders);
        state.write(&Folders::new()).unwrap();
        assert!(state.read().unwrap().is_empty());
        fs::write(dir.path().join("state.json"), "{\"adapt").unwrap();
        assert!(state.read().unwrap_err().to_string().contains("repair it or move it away"));
    }
}
