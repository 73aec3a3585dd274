//! The folder of an export. What was not exported is never removed or changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{Error, Exported, Files};

/// The file that lists what an export wrote, with checksums.
const LIST: &str = ".tunebook-export.json";
/// Cargo drops from it what the crate does not need.
const CHANGES: &str = "Cargo.lock";
/// The folder in which another engine leaves what it has made of the files.
const RESULTS: &str = crate::cluster::OUT;

/// Writes the crate to `folder`, in place of an earlier export of the same notebook. Other files stay.
/// `from` says which notebook it is, among others of its name: its path.
///
/// # Errors
/// [`Error::Folder`] when the folder holds the export of another notebook, files that no export wrote,
/// or exported ones that were changed since; nothing is written then. [`Error::Io`].
pub fn write(exported: &Exported, from: &str, folder: &Path) -> Result<(), Error> {
    let bytes = |(name, text): (&String, &String)| (name.clone(), text.clone().into_bytes());
    let files = exported.files.iter().map(bytes).collect();
    write_parts(&Parts { from, files: &files, links: &exported.links, results: None }, folder)
}

/// Writes files to `folder`, in place of an earlier export of the same recipe. Other files stay. `from` says
/// which recipe it is, among others of its name: its path.
///
/// # Errors
/// As [`write`]; [`Error::Folder`] also when an engine has left results beside other files than these: they
/// are those of the export that is there.
pub fn write_files(files: &Files, from: &str, folder: &Path) -> Result<(), Error> {
    write_parts(&Parts { from, files, links: &BTreeMap::new(), results: Some(RESULTS) }, folder)
}

/// What a folder is to hold.
struct Parts<'a> {
    from: &'a str,
    files: &'a Files,
    links: &'a BTreeMap<String, String>,
    /// A folder in it that others write to.
    results: Option<&'static str>,
}

fn write_parts(exported: &Parts<'_>, folder: &Path) -> Result<(), Error> {
    let refuse = |reason| Err(Error::Folder { folder: folder.to_owned(), reason });
    if is_linked(folder, LIST) {
        return refuse(format!(
            "{LIST} is a link; move it away or choose another folder with --out"
        ));
    }
    let Some(old) = List::read(folder)? else {
        if !is_empty(folder)? {
            return refuse(
                "it is not empty and no export; choose another folder with --out".to_owned(),
            );
        }
        return write_all(exported, &List::default(), folder);
    };
    if let Some(other) = &old.from
        && exported.from != other
    {
        return refuse(format!(
            "it is the export of {other}; move it away or choose another folder with --out"
        ));
    }
    for name in old.files.keys().chain(old.before.keys()) {
        let path = folder.join(name);
        let wrote = |bytes: &[u8]| {
            let sum = sum(bytes);
            old.files.get(name) == Some(&sum) || old.before.get(name) == Some(&sum)
        };
        let changed = match fs::read(&path) {
            _ if is_linked(folder, name) => true,
            Ok(bytes) => name != CHANGES && !wrote(&bytes),
            Err(error) if is_missing(&error) => false,
            Err(source) => return Err(Error::Io { path, source }),
        };
        if changed {
            return refuse(format!(
                "{name} was changed since it was exported; move the folder away or choose another \
                 with --out"
            ));
        }
    }
    if let Some(results) = exported.results
        && old.files != sums(exported.files)
        && !is_empty(&folder.join(results))?
    {
        return refuse(format!(
            "`{results}` has what an engine made of the export that is there: bring it back (`tunebook \
             import-run`) and move `{results}` away, or choose another folder with --out"
        ));
    }
    let known = |name: &String| old.files.contains_key(name) || old.before.contains_key(name);
    let new = exported.files.keys().filter(|name| !known(name));
    let new_links = exported.links.keys().filter(|name| !old.links.contains_key(*name));
    for name in new.chain(new_links) {
        if folder.join(name).symlink_metadata().is_ok() || is_linked(folder, name) {
            return refuse(format!(
                "{name} is no exported file; move it away or choose another folder with --out"
            ));
        }
    }
    write_all(exported, &old, folder)
}

/// What an export wrote: files with their checksums, and links.
#[derive(Default)]
struct List {
    /// The notebook or recipe; `None` in lists of recipes' exports of older versions.
    from: Option<String>,
    files: BTreeMap<String, String>,
    /// The files of the export before, where one has not come to its end.
    before: BTreeMap<String, String>,
    links: BTreeMap<String, String>,
}

impl List {
    /// That of an earlier export; none where there was no export.
    fn read(folder: &Path) -> Result<Option<Self>, Error> {
        let path = folder.join(LIST);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Io { path, source }),
        };
        let list: Value = serde_json::from_str(&text).unwrap_or_default();
        let part = |name: &str| {
            let mut read = BTreeMap::new();
            if name == "before" && list[name].is_null() {
                return Some(read);
            }
            for (name, value) in list[name].as_object()? {
                // A list that was tampered with must not lead out of the folder.
                if name.split('/').any(|part| part.is_empty() || part == "..") {
                    return None;
                }
                read.insert(name.clone(), value.as_str()?.to_owned());
            }
            Some(read)
        };
        let from = list["from"].as_str().map(str::to_owned);
        match (part("files"), part("before"), part("links")) {
            (Some(files), Some(before), Some(links)) => {
                Ok(Some(Self { from, files, before, links }))
            }
            _ => Err(Error::Folder {
                folder: folder.to_owned(),
                reason: format!(
                    "{LIST} is damaged; move the folder away or choose another with --out"
                ),
            }),
        }
    }
}

impl List {
    fn write(&self, folder: &Path) -> Result<(), Error> {
        let mut list = json!({
            "written_by": "tunebook export", "files": self.files, "links": self.links,
        });
        if let Some(from) = &self.from {
            list["from"] = json!(from);
        }
        if !self.before.is_empty() {
            list["before"] = json!(self.before);
        }
        write_file(folder.join(LIST), format!("{list:#}\n").as_bytes())
    }
}

/// Whether a path in the folder is a link, or leads through one: what it names is not ours.
fn is_linked(folder: &Path, name: &str) -> bool {
    let mut path = folder.to_owned();
    Path::new(name).iter().any(|part| {
        path.push(part);
        path.is_symlink()
    })
}

fn is_empty(folder: &Path) -> Result<bool, Error> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(source) => Err(Error::Io { path: folder.to_owned(), source }),
    }
}

/// Writes files and links, and removes those of the earlier export that are no part of this one.
fn write_all(exported: &Parts<'_>, old: &List, folder: &Path) -> Result<(), Error> {
    let mut list = List {
        from: Some(exported.from.to_owned()),
        files: sums(exported.files),
        before: old.before.clone(),
        links: old.links.clone(),
    };
    // First, so that an export that breaks off can be done again.
    list.before.extend(old.files.clone());
    list.links.extend(exported.links.clone());
    let written = old.files == list.files && old.before.is_empty() && old.links == list.links;
    if !written {
        list.write(folder)?;
    }
    for (name, bytes) in exported.files {
        write_file(folder.join(name), bytes)?;
    }
    for (name, target) in exported.links {
        let path = folder.join(name);
        // A copy that someone has put in the link's place stays.
        if path.symlink_metadata().is_ok_and(|meta| !meta.is_symlink())
            || fs::read_link(&path).is_ok_and(|there| there == Path::new(target))
        {
            continue;
        }
        remove(&path)?;
        std::os::unix::fs::symlink(target, &path).map_err(|source| Error::Io { path, source })?;
    }
    let gone = list.before.keys().filter(|name| !exported.files.contains_key(*name));
    let gone_links = old
        .links
        .keys()
        .filter(|name| !exported.links.contains_key(*name) && folder.join(name).is_symlink());
    for name in gone.chain(gone_links) {
        remove(&folder.join(name))?;
    }
    list.before.clear();
    list.links = exported.links.clone();
    list.write(folder)
}

fn sums(files: &Files) -> BTreeMap<String, String> {
    files.iter().map(|(name, bytes)| (name.clone(), sum(bytes))).collect()
}

/// There is no such file, or a file stands where its folder would.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if !is_missing(&source) => Err(Error::Io { path: path.to_owned(), source }),
        _ => Ok(()),
    }
}

/// Writes a file, unless it holds this already: cargo would compile it again.
fn write_file(path: PathBuf, bytes: &[u8]) -> Result<(), Error> {
    if fs::read(&path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let written = fs::create_dir_all(tunebook_disk::folder_of(&path))
        .and_then(|()| tunebook_disk::write(&path, bytes));
    written.map_err(|source| Error::Io { path, source })
}

/// The checksum (SHA-256) in hexadecimal.
pub(crate) fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exported(files: &[(&str, &str)]) -> Exported {
        Exported {
            package: "notebook-a".into(),
            files: files.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect(),
            links: BTreeMap::new(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn only_what_was_exported_is_replaced() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("crate");
        let first = exported(&[("Cargo.toml", "a"), ("Cargo.lock", "l"), ("src/old.rs", "o")]);
        write(&first, "a.ipynb", &folder).unwrap();
        fs::write(folder.join("mine.txt"), "mine").unwrap();
        fs::write(folder.join("Cargo.lock"), "shorter").unwrap();
        let second = exported(&[("Cargo.toml", "b"), ("Cargo.lock", "l"), ("src/new.rs", "n")]);
        write(&second, "a.ipynb", &folder).unwrap();
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(
            (read("Cargo.toml"), read("Cargo.lock"), read("mine.txt")),
            ("b".into(), "l".into(), "mine".into())
        );
        assert!(folder.join("src/new.rs").exists() && !folder.join("src/old.rs").exists());

        fs::write(folder.join("src/new.rs"), "changed").unwrap();
        let told = write(&first, "a.ipynb", &folder).unwrap_err().to_string();
        assert!(told.contains("src/new.rs was changed since it was exported"), "{told}");
        assert_eq!(read("Cargo.toml"), "b");
        fs::write(folder.join("src/new.rs"), "n").unwrap();
        let third = exported(&[("Cargo.toml", "c"), ("mine.txt", "ours")]);
        let told = write(&third, "a.ipynb", &folder).unwrap_err().to_string();
        assert!(told.contains("mine.txt is no exported file"), "{told}");
        assert_eq!((read("Cargo.toml"), read("mine.txt")), ("b".into(), "mine".into()));
    }

    #[test]
    fn a_link_is_made_and_nothing_behind_it_is_touched() {
        let temporary = tempfile::tempdir().unwrap();
        let (folder, checkout) = (temporary.path().join("crate"), temporary.path().join("crates"));
        fs::create_dir_all(checkout.join("a")).unwrap();
        fs::write(checkout.join("a/lib.rs"), "a").unwrap();
        let mut first = exported(&[("Cargo.toml", "a")]);
        first.links.insert("crates".into(), "../crates".into());
        write(&first, "a.ipynb", &folder).unwrap();
        assert!(folder.join("crates/a/lib.rs").exists());
        write(&first, "a.ipynb", &folder).unwrap();

        // Neither a list nor an export reaches through the link.
        let list = fs::read_to_string(folder.join(LIST)).unwrap();
        let with = format!("\"files\": {{ \"crates/a/lib.rs\": \"{}\",", sum(b"a"));
        fs::write(folder.join(LIST), list.replace("\"files\": {", &with)).unwrap();
        assert!(
            write(&first, "a.ipynb", &folder)
                .unwrap_err()
                .to_string()
                .contains("crates/a/lib.rs was changed")
        );
        fs::write(folder.join(LIST), list).unwrap();
        let through = exported(&[("Cargo.toml", "a"), ("crates/new.rs", "n")]);
        assert!(
            write(&through, "a.ipynb", &folder)
                .unwrap_err()
                .to_string()
                .contains("no exported file")
        );

        // A copy in its place stays.
        fs::remove_file(folder.join("crates")).unwrap();
        fs::create_dir(folder.join("crates")).unwrap();
        write(&first, "a.ipynb", &folder).unwrap();
        assert!(!folder.join("crates").is_symlink());
        fs::remove_dir(folder.join("crates")).unwrap();
        write(&first, "a.ipynb", &folder).unwrap();
        write(&exported(&[("Cargo.toml", "a")]), "a.ipynb", &folder).unwrap();
        assert!(!folder.join("crates").is_symlink() && checkout.join("a/lib.rs").exists());
    }

    #[test]
    fn a_folder_that_is_no_export_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("notes.txt"), "mine").unwrap();
        let told = write(&exported(&[("Cargo.toml", "a")]), "a.ipynb", folder.path())
            .unwrap_err()
            .to_string();
        assert!(told.contains("not empty and no export"), "{told}");
        assert!(!folder.path().join("Cargo.toml").exists());
        fs::write(folder.path().join(LIST), "{\"files\": {\"../other\": \"0\"}}").unwrap();
        let told = write(&exported(&[]), "a.ipynb", folder.path()).unwrap_err().to_string();
        assert!(told.contains("damaged"), "{told}");
    }

    #[test]
    fn another_notebooks_export_stays() {
        let folder = tempfile::tempdir().unwrap();
        write(&exported(&[("Cargo.toml", "a")]), "p/train.ipynb", folder.path()).unwrap();
        let told = write(&exported(&[("Cargo.toml", "b")]), "q/train.ipynb", folder.path());
        let told = told.unwrap_err().to_string();
        assert!(told.contains("it is the export of p/train.ipynb"), "{told}");
        assert_eq!(fs::read_to_string(folder.path().join("Cargo.toml")).unwrap(), "a");
        write(&exported(&[("Cargo.toml", "c")]), "p/train.ipynb", folder.path()).unwrap();
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let temporary = tempfile::tempdir().unwrap();
        let (folder, outside) = (temporary.path().join("crate"), temporary.path().join("outside"));
        let crate_ = exported(&[("Cargo.toml", "a"), ("src/main.rs", "m")]);
        write(&crate_, "a.ipynb", &folder).unwrap();
        let place = |name: &str| {
            fs::rename(folder.join(name), temporary.path().join("away")).unwrap();
            std::os::unix::fs::symlink(&outside, folder.join(name)).unwrap();
            let told = write(&crate_, "a.ipynb", &folder).unwrap_err().to_string();
            assert!(!outside.exists(), "{name}");
            fs::remove_file(folder.join(name)).unwrap();
            fs::rename(temporary.path().join("away"), folder.join(name)).unwrap();
            told
        };
        assert!(place("src/main.rs").contains("src/main.rs was changed"));
        assert!(place(LIST).contains(".tunebook-export.json is a link"));
        write(&crate_, "a.ipynb", &folder).unwrap();
    }

    #[test]
    fn an_export_that_broke_off_is_done_again() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("crate");
        let first = exported(&[("Cargo.toml", "a"), ("src/main.rs", "m"), ("src/old.rs", "o")]);
        let second =
            exported(&[("Cargo.toml", "b"), ("src/main.rs/in.rs", "n"), ("src/z.rs", "z")]);
        write(&first, "a.ipynb", &folder).unwrap();
        // `src/main.rs` is no folder.
        write(&second, "a.ipynb", &folder).unwrap_err();
        assert_eq!(fs::read_to_string(folder.join("Cargo.toml")).unwrap(), "b");
        write(&first, "a.ipynb", &folder).unwrap();
        assert_eq!(fs::read_to_string(folder.join("Cargo.toml")).unwrap(), "a");
        assert!(!fs::read_to_string(folder.join(LIST)).unwrap().contains("before"));

        // The first one, too.
        let folder = temporary.path().join("other");
        let odd = exported(&[("Cargo.toml", "b"), ("z", "a file"), ("z/in.rs", "no folder")]);
        write(&odd, "a.ipynb", &folder).unwrap_err();
        write(&first, "a.ipynb", &folder).unwrap();
        assert!(folder.join("src/main.rs").exists() && !folder.join("z").exists());
    }
}
