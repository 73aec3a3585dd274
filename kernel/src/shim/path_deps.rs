//! Whether a dependency that is a folder of the user's was edited: a record of the compiler's command
//! line holds only as long as it was not.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::layout::PRELUDE;

/// The path dependencies of a cell.
#[derive(Debug, Default)]
pub(super) struct PathDeps {
    /// As code calls them.
    pub(super) names: Vec<String>,
    /// See [`fingerprint`].
    pub(super) fingerprint: String,
}

impl PathDeps {
    pub(super) fn read(manifest: &str, folder: &Path) -> Self {
        let table = manifest.parse::<toml::Table>().unwrap_or_default();
        let dependencies = table.get("dependencies").and_then(toml::Value::as_table);
        let names = dependencies.into_iter().flatten().filter_map(|(name, value)| {
            let is_path = value.as_table().is_some_and(|table| table.contains_key("path"));
            (is_path && name != PRELUDE).then(|| name.replace('-', "_"))
        });
        Self { names: names.collect(), fingerprint: fingerprint(manifest, folder) }
    }
}

/// A number that changes when a file of a path dependency does, or of one of that one's; empty
/// without such dependencies. The prelude does not count: the kernel has its own copy.
pub(super) fn fingerprint(manifest: &str, folder: &Path) -> String {
    let Ok(toml::Value::Table(mut table)) = manifest.parse::<toml::Table>().map(toml::Value::Table)
    else {
        return String::new(); // cargo says what is wrong
    };
    if let Some(toml::Value::Table(dependencies)) = table.get_mut("dependencies") {
        dependencies.remove(PRELUDE);
    }
    let mut packages = BTreeSet::new();
    paths(&toml::Value::Table(table), folder, &mut packages);
    if packages.is_empty() {
        return String::new();
    }
    let mut todo: Vec<PathBuf> = packages.iter().cloned().collect();
    while let Some(package) = todo.pop() {
        let mut more = BTreeSet::new();
        let mut manifests = vec![package.clone()];
        // Its dependencies may be written down in its workspace.
        manifests.extend(package.ancestors().skip(1).map(Path::to_path_buf));
        for folder in manifests {
            let text = fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
            if let Ok(table) = text.parse::<toml::Table>()
                && (folder == package || table.contains_key("workspace"))
            {
                paths(&toml::Value::Table(table), &folder, &mut more);
            }
        }
        todo.extend(more.into_iter().filter(|package| packages.insert(package.clone())));
    }
    let mut hasher = DefaultHasher::new();
    for package in &packages {
        hash_files(package, &mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

/// The folders that a manifest's `path`s name, as far as they are packages.
fn paths(value: &toml::Value, folder: &Path, found: &mut BTreeSet<PathBuf>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                match value {
                    toml::Value::String(path) if key == "path" => {
                        let package = folder.join(path);
                        if package.join("Cargo.toml").is_file() {
                            found.insert(fs::canonicalize(&package).unwrap_or(package));
                        }
                    }
                    value => paths(value, folder, found),
                }
            }
        }
        toml::Value::Array(values) => {
            values.iter().for_each(|value| paths(value, folder, found));
        }
        _ => {}
    }
}

/// Names, sizes and times of the files of a package, but for what cargo and git keep there.
fn hash_files(folder: &Path, hasher: &mut DefaultHasher) {
    let mut entries: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        if name == "target" || name.to_string_lossy().starts_with('.') {
            continue;
        }
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            hash_files(&entry.path(), hasher);
            continue;
        }
        let changed = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        (entry.path(), meta.len(), changed).hash(hasher);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_of_a_path_dependency_or_of_one_behind_it_changes_the_number() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "mine/Cargo.toml",
            "[package]\nname = \"mine\"\n[dependencies]\nb = { workspace = true }\n",
        );
        write("mine/src/lib.rs", "pub fn one() -> u8 { 1 }");
        write("Cargo.toml", "[workspace.dependencies]\nb = { path = \"other/b\" }\n");
        write("other/b/Cargo.toml", "[package]\nname = \"b\"\n");
        write("other/b/src/lib.rs", "");
        let manifest = format!(
            "[dependencies]\nmine = {{ path = \"{}\" }}\ntunebook = {{ path = \"/x\" }}\n",
            dir.path().join("mine").display()
        );
        let number = || fingerprint(&manifest, dir.path());
        let mut before = number();
        assert_eq!(number(), before);
        for (file, text) in [
            ("mine/src/lib.rs", "pub fn one() -> u8 { 12 }"),
            ("mine/src/new.rs", ""),
            ("other/b/src/lib.rs", "// b"),
        ] {
            write(file, text);
            assert_ne!(number(), before, "{file}");
            before = number();
        }
        write("mine/target/debug/x", "built");
        write("mine/.git/index", "");
        assert_eq!(number(), before);
        assert_eq!(fingerprint("[dependencies]\ntunebook = { path = \"/x\" }\n", dir.path()), "");
        assert_eq!(fingerprint("not = [", dir.path()), "");
        assert_eq!(PathDeps::read(&manifest, dir.path()).names, ["mine"]);
    }
}
