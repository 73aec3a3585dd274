//! The files of a kit.
//!
//! A cell is compiled by rustc alone, against `libtunebook.so`. Of a crate that is within that library
//! rustc reads the metadata (`.rmeta`), not its machine code (`.rlib`), its sources, or what cargo
//! keeps of builds. Crates with macros are libraries that rustc loads (`.so`).

use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use crate::error::{Error, Result};

/// Folders that go along with all that lies in them.
const FOLDERS: [&str; 3] = ["notebooks", "datasets", "docs"];
/// The template's own folders that each kernel copies.
const TEMPLATE_FOLDERS: [&str; 2] = ["crates", "cell/src"];

/// The folder that is packed.
pub(super) struct Kit {
    /// Where it is put together.
    pub folder: PathBuf,
}

impl Kit {
    /// An empty one; what an earlier run has left there goes.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", folder)(error));
            }
            _ => {}
        }
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        Ok(Self { folder: folder.to_path_buf() })
    }

    /// The place of a file, with the folders above it.
    fn place(&self, to: &Path) -> Result<PathBuf> {
        let place = self.folder.join(to);
        if let Some(parent) = place.parent() {
            std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        Ok(place)
    }

    pub(super) fn write(&self, to: &Path, text: &str) -> Result<()> {
        let place = self.place(to)?;
        std::fs::write(&place, text).map_err(Error::io("write", &place))
    }

    /// A copy with the time of the file in whole seconds: not every archiver keeps more.
    pub(super) fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        let place = self.place(to)?;
        std::fs::copy(from, &place).map_err(Error::io("copy", from))?;
        let seconds = seconds(from)?;
        std::fs::File::options()
            .append(true)
            .open(&place)
            .and_then(|file| file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds)))
            .map_err(Error::io("write", &place))
    }

    /// The same file, for large ones: a copy only where file systems differ.
    pub(super) fn link(&self, from: &Path, to: &Path) -> Result<()> {
        let place = self.place(to)?;
        if std::fs::hard_link(from, place).is_ok() {
            return Ok(());
        }
        self.copy(from, to)
    }

    /// A folder and all in it but hidden files and Python's byte code.
    fn copy_folder(&self, from: &Path, to: &Path) -> Result<()> {
        for file in files_in(from)? {
            let hidden = |part: &std::ffi::OsStr| {
                let name = part.to_string_lossy();
                name.starts_with('.') || name == "__pycache__"
            };
            if !file.iter().any(hidden) {
                self.copy(&from.join(&file), &to.join(&file))?;
            }
        }
        Ok(())
    }

    pub(super) fn files(&self) -> Result<Vec<PathBuf>> {
        files_in(&self.folder)
    }

    pub(super) fn bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        for file in self.files()? {
            let path = self.folder.join(file);
            bytes += std::fs::metadata(&path).map_err(Error::io("read", &path))?.len();
        }
        Ok(bytes)
    }
}

/// The target directory of a template's cells.
pub(super) fn target(template: &Path) -> PathBuf {
    template.join("cell/target")
}

/// The notebooks, and the sources that the template was made from, with the template's stamp: the
/// kernel compares their sizes and times.
pub(super) fn add_project(kit: &Kit, root: &Path, template: &Path) -> Result<()> {
    for folder in FOLDERS {
        kit.copy_folder(&root.join(folder), Path::new(folder))?;
    }
    kit.copy(&root.join("LICENSE"), Path::new("LICENSE"))?;

    let stamp = template.join("warm.json");
    let text = std::fs::read_to_string(&stamp).map_err(Error::io("read", &stamp))?;
    let (sources, stamp) = kit_stamp(&text)
        .ok_or_else(|| Error::Other(format!("{} is no stamp of the kernel", stamp.display())))?;
    for source in sources {
        kit.copy(&root.join(&source), &source)?;
        // Manifest and lock file are others in the template: it has other members.
        if source.starts_with("crates") && !same(&root.join(&source), &template.join(&source))? {
            return Err(Error::Other(format!(
                "{} has changed while the kit was made; run the same command again",
                source.display()
            )));
        }
    }
    let inside = Path::new("target/notebook/template");
    kit.write(&inside.join("warm.json"), &stamp)?;
    for name in ["Cargo.toml", "Cargo.lock"] {
        kit.copy(&template.join(name), &inside.join(name))?;
    }
    for folder in TEMPLATE_FOLDERS {
        kit.copy_folder(&template.join(folder), &inside.join(folder))?;
    }
    Ok(())
}

/// Whether two files have the same content.
fn same(one: &Path, other: &Path) -> Result<bool> {
    let read = |path: &Path| std::fs::read(path).map_err(Error::io("read", path));
    Ok(read(one)? == read(other)?)
}

/// The source files of a stamp, and the stamp of a kit with them: times in whole seconds, and no
/// `rust-toolchain.toml`, since the installer chooses the compiler.
fn kit_stamp(text: &str) -> Option<(Vec<PathBuf>, String)> {
    const NANOSECONDS: i64 = 1_000_000_000;
    let mut stamp: Value = serde_json::from_str(text).ok()?;
    let entries = stamp["sources"].as_array_mut()?;
    entries.retain(|entry| entry[0] != "rust-toolchain.toml");
    let mut sources = Vec::new();
    for entry in entries {
        sources.push(PathBuf::from(entry[0].as_str()?));
        entry[2] = (entry[2].as_i64()? / NANOSECONDS * NANOSECONDS).into();
    }
    Some((sources, stamp.to_string()))
}

/// The compiled crates that rustc reads for a cell.
pub(super) fn add_artefacts(kit: &Kit, template: &Path, triple: &str) -> Result<()> {
    let from = target(template);
    let to = Path::new("target/notebook/template/cell/target");
    let of_cells = PathBuf::from(triple).join("debug/deps");
    // What runs within the compiler: of that, only the libraries with macros.
    let of_compiler = PathBuf::from("debug/deps");
    for folder in [of_cells, of_compiler] {
        let files = files_in(&from.join(&folder))?;
        for file in &files {
            let macros = file.extension().is_some_and(|extension| extension == "so");
            if macros || (folder.starts_with(triple) && is_read(file, &files)) {
                kit.link(&from.join(&folder).join(file), &to.join(&folder).join(file))?;
            }
        }
    }
    Ok(())
}

/// Whether rustc reads the artefact, among these, of a crate that is within the prelude's library:
/// its metadata, which stand in the `.rlib` where cargo asks for no file of their own.
fn is_read(file: &Path, among: &[PathBuf]) -> bool {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("rmeta") => true,
        Some("rlib") => !among.contains(&file.with_extension("rmeta")),
        _ => false,
    }
}

/// What compiles cells: rustc, its libraries, the standard library and the linker. Cargo does not.
pub(super) fn add_toolchain(kit: &Kit, sysroot: &Path, triple: &str) -> Result<()> {
    for file in files_in(sysroot)? {
        if is_of_compiler(&file.to_string_lossy(), triple) {
            kit.link(&sysroot.join(&file), &Path::new("toolchain").join(&file))?;
        }
    }
    Ok(())
}

fn is_of_compiler(file: &str, triple: &str) -> bool {
    let own = format!("lib/rustlib/{triple}/");
    if let Some(inside) = file.strip_prefix(&own) {
        return match inside.split_once('/') {
            // The libraries of sanitizers need flags of a nightly compiler.
            Some(("lib", name)) => !name.starts_with("librustc-"),
            Some(("bin", name)) => name == "rust-lld" || name.starts_with("gcc-ld/"),
            _ => false,
        };
    }
    file == "bin/rustc"
        || (file.starts_with("lib/lib") && !file["lib/".len()..].contains('/'))
        || file.starts_with("share/doc/rust/COPYRIGHT")
        || file.starts_with("share/doc/rust/LICENSE")
        || file.starts_with("share/doc/rust/licenses/")
}

/// The newest version of glibc, as (major, minor), whose symbols a program or library asks for.
pub(crate) fn newest_glibc(bytes: &[u8]) -> (u32, u32) {
    const MARK: &[u8] = b"GLIBC_";
    let mut newest = (0, 0);
    let mut at = 0;
    while let Some(found) = memchr_of(&bytes[at..], MARK) {
        at += found + MARK.len();
        let end = bytes[at..].iter().position(|byte| !byte.is_ascii_digit() && *byte != b'.');
        let version = String::from_utf8_lossy(&bytes[at..at + end.unwrap_or(0)]);
        let mut numbers = version.split('.').map(str::parse);
        if let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) {
            newest = newest.max((major, minor));
        }
    }
    newest
}

/// Where `mark` stands first.
fn memchr_of(bytes: &[u8], mark: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|byte| *byte == mark[0]) {
        if bytes[from + at..].starts_with(mark) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

/// The files in a folder with this ending, in order; none where there is no folder.
pub(super) fn with_ending(folder: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let files = files_in(folder)?.into_iter();
    Ok(files
        .filter(|file| file.to_string_lossy().ends_with(ending))
        .map(|file| folder.join(file))
        .collect())
}

/// The files in a folder and below, relative to it and in order; links to files count as files.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(inside) = pending.pop() {
        let path = folder.join(&inside);
        for entry in std::fs::read_dir(&path).map_err(Error::io("read", &path))? {
            let entry = entry.map_err(Error::io("read", &path))?;
            let name = inside.join(entry.file_name());
            if entry.path().is_dir() {
                pending.push(name);
            } else if entry.path().is_file() {
                files.push(name);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn seconds(file: &Path) -> Result<u64> {
    let metadata = std::fs::metadata(file).map_err(Error::io("read", file))?;
    let modified = metadata.modified().map_err(Error::io("read", file))?;
    Ok(modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kit_has_each_crates_metadata_once() {
        let files = ["liba-01.rlib", "liba-01.rmeta", "libb-02.rlib", "libb-02.a", "a-01.d"]
            .map(PathBuf::from);
        let read: Vec<_> = files.iter().filter(|file| is_read(file, &files)).collect();
        assert_eq!(read, [Path::new("liba-01.rmeta"), Path::new("libb-02.rlib")]);
    }

    #[test]
    fn a_toolchain_has_compiler_library_and_linker() {
        let is = |file: &str| is_of_compiler(file, "x86_64-unknown-linux-gnu");
        for file in [
            "bin/rustc",
            "lib/librustc_driver-01.so",
            "lib/libLLVM.so.22.1",
            "lib/rustlib/x86_64-unknown-linux-gnu/lib/libstd-01.so",
            "lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld",
            "lib/rustlib/x86_64-unknown-linux-gnu/bin/gcc-ld/ld.lld",
            "share/doc/rust/COPYRIGHT.html",
        ] {
            assert!(is(file), "{file}");
        }
        for file in [
            "bin/cargo",
            "bin/rustfmt",
            "lib/rustlib/wasm32-wasip1/lib/libstd-01.rlib",
            "lib/rustlib/x86_64-unknown-linux-gnu/lib/librustc-stable_rt.asan.a",
            "lib/rustlib/src/rust/library/std/src/lib.rs",
            "share/doc/rust/html/index.html",
        ] {
            assert!(!is(file), "{file}");
        }
    }

    #[test]
    fn a_kits_stamp_has_whole_seconds_and_no_toolchain_file() {
        let stamp = r#"{"kernel":"0.1.0","rustc":"rustc 1.95.0\n","crates":["crates/data"],
            "sources":[["Cargo.toml",12,1700000000123456789],["rust-toolchain.toml",31,5],
            ["crates/data/src/lib.rs",34,1700000001999999999]]}"#;
        let (sources, stamp) = kit_stamp(stamp).unwrap();
        assert_eq!(sources, [Path::new("Cargo.toml"), Path::new("crates/data/src/lib.rs")]);
        let stamp: Value = serde_json::from_str(&stamp).unwrap();
        assert_eq!(stamp["kernel"], "0.1.0");
        assert_eq!(stamp["sources"][0][2], 1_700_000_000_000_000_000_i64);
        assert_eq!(stamp["sources"][1][2], 1_700_000_001_000_000_000_i64);
        assert!(kit_stamp("{}").is_none());
    }

    #[test]
    fn the_newest_glibc_is_found_by_number() {
        let symbols = b"\0GLIBC_2.9\0GLIBC_2.34\0GLIBC_PRIVATE\0GLIBC_2.2.5\0GGLIBC_2.17";
        assert_eq!(newest_glibc(symbols), (2, 34));
        assert_eq!(newest_glibc(b"GLIB"), (0, 0));
        assert_eq!(newest_glibc(b"GLIBC_2.36"), (0, 0), "cut off");
    }

    #[test]
    fn copies_have_whole_seconds_and_hidden_files_stay() {
        let folder = std::env::temp_dir().join(format!("xtask-kit-{}", std::process::id()));
        let from = folder.join("from");
        std::fs::create_dir_all(from.join(".ipynb_checkpoints")).unwrap();
        std::fs::write(from.join(".ipynb_checkpoints/a.ipynb"), "old").unwrap();
        std::fs::write(from.join("a.ipynb"), "new").unwrap();
        let time = UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
        let file = std::fs::File::options().append(true).open(from.join("a.ipynb")).unwrap();
        file.set_modified(time).unwrap();

        let kit = Kit::new(&folder.join("kit")).unwrap();
        kit.write(Path::new("left/over"), "").unwrap();
        let kit = Kit::new(&kit.folder).unwrap();
        kit.copy_folder(&from, Path::new("notebooks")).unwrap();
        assert_eq!(kit.files().unwrap(), [Path::new("notebooks/a.ipynb")]);
        let copy = std::fs::metadata(kit.folder.join("notebooks/a.ipynb")).unwrap();
        assert_eq!(copy.modified().unwrap(), UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        assert_eq!(kit.bytes().unwrap(), 3);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
