//! The folder of an exported crate. What was not exported is never removed or changed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{Error, Exported};

/// The file that lists what an export wrote, with checksums.
const LIST: &str = ".tunebook-export.json";
/// Cargo drops from it what the crate does not need.
const CHANGES: &str = "Cargo.lock";

/// Writes the crate to `folder`, in place of an earlier export. Other files stay.
///
/// # Errors
/// [`Error::Folder`] when the folder holds files that no export wrote, or exported ones that were
/// changed since; nothing is written then. [`Error::Io`].
pub fn write(exported: &Exported, folder: &Path) -> Result<(), Error> {
    let old = earlier(folder)?;
    let refuse = |reason| Error::Folder { folder: folder.to_owned(), reason };
    let Some(old) = old else {
        if !is_empty(folder)? {
            return Err(refuse(
                "it is not empty and no export; choose another folder with --out".to_owned(),
            ));
        }
        return write_files(exported, folder);
    };
    for (name, checksum) in &old {
        let path = folder.join(name);
        let changed = match fs::read(&path) {
            Ok(bytes) => sum(&bytes) != *checksum && name != CHANGES,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(source) => return Err(Error::Io { path, source }),
        };
        if changed {
            return Err(refuse(format!(
                "{name} was changed since it was exported; move the folder away or choose another \
                 with --out"
            )));
        }
    }
    for name in exported.files.keys() {
        if !old.contains_key(name) && folder.join(name).exists() {
            return Err(refuse(format!(
                "{name} is no exported file; move it away or choose another folder with --out"
            )));
        }
    }
    let gone: BTreeSet<_> = old.keys().filter(|name| !exported.files.contains_key(*name)).collect();
    write_files(exported, folder)?;
    for name in gone {
        let path = folder.join(name);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Io { path, source }),
        }
    }
    Ok(())
}

/// The files of an earlier export with their checksums; none where there was no export.
fn earlier(folder: &Path) -> Result<Option<BTreeMap<String, String>>, Error> {
    let path = folder.join(LIST);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Io { path, source }),
    };
    let damaged = || Error::Folder {
        folder: folder.to_owned(),
        reason: format!("{LIST} is damaged; move the folder away or choose another with --out"),
    };
    let list: Value = serde_json::from_str(&text).map_err(|_| damaged())?;
    let files = list["files"].as_object().ok_or_else(damaged)?;
    let mut read = BTreeMap::new();
    for (name, checksum) in files {
        // A list that was tampered with must not lead out of the folder.
        if name.split('/').any(|part| part.is_empty() || part == "..") {
            return Err(damaged());
        }
        read.insert(name.clone(), checksum.as_str().ok_or_else(damaged)?.to_owned());
    }
    Ok(Some(read))
}

fn is_empty(folder: &Path) -> Result<bool, Error> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(source) => Err(Error::Io { path: folder.to_owned(), source }),
    }
}

fn write_files(exported: &Exported, folder: &Path) -> Result<(), Error> {
    for (name, text) in &exported.files {
        write_file(folder.join(name), text)?;
    }
    let sums: BTreeMap<_, _> =
        exported.files.iter().map(|(name, text)| (name, sum(text.as_bytes()))).collect();
    let list = json!({ "written_by": "tunebook export", "files": sums });
    write_file(folder.join(LIST), &format!("{list:#}\n"))
}

/// Writes a file, unless it holds the text: cargo would compile it again.
fn write_file(path: PathBuf, text: &str) -> Result<(), Error> {
    if fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let written = match path.parent() {
        Some(parent) => fs::create_dir_all(parent).and_then(|()| fs::write(&path, text)),
        None => fs::write(&path, text),
    };
    written.map_err(|source| Error::Io { path, source })
}

fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exported(files: &[(&str, &str)]) -> Exported {
        Exported {
            package: "notebook-a".into(),
            files: files.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn only_what_was_exported_is_replaced() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("crate");
        let first = exported(&[("Cargo.toml", "a"), ("Cargo.lock", "l"), ("src/old.rs", "o")]);
        write(&first, &folder).unwrap();
        fs::write(folder.join("mine.txt"), "mine").unwrap();
        fs::write(folder.join("Cargo.lock"), "shorter").unwrap();
        let second = exported(&[("Cargo.toml", "b"), ("Cargo.lock", "l"), ("src/new.rs", "n")]);
        write(&second, &folder).unwrap();
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(
            (read("Cargo.toml"), read("Cargo.lock"), read("mine.txt")),
            ("b".into(), "l".into(), "mine".into())
        );
        assert!(folder.join("src/new.rs").exists() && !folder.join("src/old.rs").exists());

        fs::write(folder.join("src/new.rs"), "changed").unwrap();
        let told = write(&first, &folder).unwrap_err().to_string();
        assert!(told.contains("src/new.rs was changed since it was exported"), "{told}");
        assert_eq!(read("Cargo.toml"), "b");
        fs::write(folder.join("src/new.rs"), "n").unwrap();
        let third = exported(&[("Cargo.toml", "c"), ("mine.txt", "ours")]);
        let told = write(&third, &folder).unwrap_err().to_string();
        assert!(told.contains("mine.txt is no exported file"), "{told}");
        assert_eq!((read("Cargo.toml"), read("mine.txt")), ("b".into(), "mine".into()));
    }

    #[test]
    fn a_folder_that_is_no_export_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("notes.txt"), "mine").unwrap();
        let told = write(&exported(&[("Cargo.toml", "a")]), folder.path()).unwrap_err().to_string();
        assert!(told.contains("not empty and no export"), "{told}");
        assert!(!folder.path().join("Cargo.toml").exists());
        fs::write(folder.path().join(LIST), "{\"files\": {\"../other\": \"0\"}}").unwrap();
        let told = write(&exported(&[]), folder.path()).unwrap_err().to_string();
        assert!(told.contains("damaged"), "{told}");
    }
}
