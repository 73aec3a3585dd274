//! The folder that clients may load adapters from: a path from a request would else read any file
//! of the machine.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A folder below which all files lie that clients may name.
#[derive(Clone, Debug)]
pub(crate) struct AdapterRoot(PathBuf);

impl AdapterRoot {
    /// # Errors
    /// It is no folder.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let refuse = |problem: String| Error::AdapterPath { path: folder.to_path_buf(), problem };
        let canonical = folder
            .canonicalize()
            .map_err(|error| refuse(format!("cannot be the adapter root: {error}")))?;
        match canonical.is_dir() {
            true => Ok(Self(canonical)),
            false => Err(refuse("cannot be the adapter root, as it is no folder".to_owned())),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The folder that a client names, from the root on or as a whole path. Symbolic links count as
    /// what they point to, in the folder as well.
    ///
    /// # Errors
    /// It is none, or it or a file in it lies outside the root.
    pub(crate) fn resolve(&self, path: &str) -> Result<PathBuf> {
        let refuse =
            |problem: &str| Error::AdapterPath { path: path.into(), problem: problem.to_owned() };
        // The same words for a folder outside and for one that does not exist: who asks learns
        // nothing of what lies outside.
        let outside = || refuse("is no folder below the adapter root");
        if path.contains('\0') {
            return Err(outside());
        }
        let folder = self.0.join(path).canonicalize().map_err(|_| outside())?;
        if !folder.starts_with(&self.0) || !folder.is_dir() {
            return Err(outside());
        }
        let entries = folder.read_dir().map_err(|_| refuse("cannot be read"))?;
        for entry in entries {
            let entry = entry.map_err(|_| refuse("cannot be read"))?.path();
            // A link to nothing is as good as no file.
            let Ok(file) = entry.canonicalize() else { continue };
            let name = entry.file_name().unwrap_or_default().to_string_lossy();
            if !file.starts_with(&self.0) {
                return Err(refuse(&format!("holds `{name}`, a link out of the adapter root")));
            }
            // Who reads a pipe waits for its writer.
            if !file.is_file() && !file.is_dir() {
                return Err(refuse(&format!("holds `{name}`, expected files and folders only")));
            }
        }
        Ok(folder)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_outside_the_root_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        for folder in [&root.join("a"), &root.join("linked"), &outside] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(outside.join("secret"), "s").unwrap();
        symlink(&outside, root.join("out")).unwrap();
        symlink(outside.join("secret"), root.join("linked/adapter_config.json")).unwrap();
        symlink(root.join("a"), root.join("b")).unwrap();
        let at = AdapterRoot::new(&root).unwrap();
        let inside = root.canonicalize().unwrap().join("a");
        for path in ["a", "b", "./a", "a/../a", inside.to_str().unwrap()] {
            assert_eq!(at.resolve(path).unwrap(), inside, "{path}");
        }
        let absolute = outside.to_str().unwrap();
        for path in ["out", "../outside", absolute, "none", "a\0b", "/etc", "../outside/secret"] {
            let error = at.resolve(path).unwrap_err().to_string();
            assert!(error.contains("is no folder below the adapter root"), "{path:?}: {error}");
        }
        let error = at.resolve("linked").unwrap_err().to_string();
        assert!(error.contains("`adapter_config.json`, a link out of"), "{error}");
        assert!(AdapterRoot::new(&outside.join("secret")).is_err());
    }

    #[test]
    fn pipes_are_refused() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("a")).unwrap();
        let pipe = root.path().join("a/adapter_model.safetensors");
        assert!(std::process::Command::new("mkfifo").arg(pipe).status().unwrap().success());
        let at = AdapterRoot::new(root.path()).unwrap();
        let error = at.resolve("a").unwrap_err().to_string();
        assert!(error.contains("`adapter_model.safetensors`, expected files"), "{error}");
    }
}
