//! Adapters by content: `adapters/ID/` holds PEFT's files, and ID is a hash of them, so that saving
//! twice is saving once. `adapters/ID.jsonl` says where they come from.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tunebook_models::Model;
use tunebook_tune::peft::AdapterFiles;
use tunebook_tune::{Adapters as _, FrozenAdapter, answering_fingerprint};

use crate::card::recorded_name;
use crate::disk;
use crate::error::{Error, Result};
use crate::ids;

/// The folder of all adapters.
pub(crate) const FOLDER: &str = "adapters";

/// A line of `adapters/ID.jsonl`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line {
    /// It was saved, by a run or by hand.
    Saved {
        /// Its type and settings in a few words.
        config: String,
        base_model: Option<String>,
        /// The fingerprint of the base's weights.
        base: Option<String>,
        /// Fingerprints of what answers with it: from memory, and as a server reads the files.
        answering: Vec<String>,
        bytes: u64,
        #[serde(flatten)]
        origin: Origin,
    },
    /// Its files were collected as garbage.
    Removed { at: f64 },
}

/// Where an adapter comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// The run that has trained it.
    #[serde(default)]
    pub(crate) run: Option<String>,
    /// The adapter that the run went on from.
    #[serde(default)]
    pub(crate) parent: Option<String>,
    /// When it was saved, in seconds of Unix time.
    pub(crate) at: f64,
}

/// What is known of an adapter.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept {
    pub(crate) config: String,
    pub(crate) base_model: Option<String>,
    pub(crate) base: Option<String>,
    pub(crate) bytes: u64,
    pub(crate) saved: Option<f64>,
    pub(crate) removed: Option<f64>,
    pub(crate) origins: Vec<Origin>,
    pub(crate) answering: BTreeSet<String>,
    pub(crate) file_bytes: u64,
    /// Lines that cannot be read: a run or a parent may be among them.
    pub(crate) damaged: usize,
}

impl Kept {
    /// # Errors
    /// The file cannot be read. A damaged line is left out, and counted.
    pub(crate) fn read(root: &Path, id: &str) -> Result<Self> {
        let mut kept = Self::default();
        let Some(bytes) = disk::read(&record_path(root, id))? else { return Ok(kept) };
        kept.file_bytes = bytes.len() as u64;
        let (lines, torn) = disk::lines(&bytes);
        kept.damaged = usize::from(torn);
        for line in lines {
            match serde_json::from_slice(line) {
                Ok(Line::Saved { config, base_model, base, answering, bytes, origin }) => {
                    (kept.config, kept.base_model, kept.base) = (config, base_model, base);
                    (kept.bytes, kept.saved, kept.removed) = (bytes, Some(origin.at), None);
                    kept.answering.extend(answering);
                    kept.origins.push(origin);
                }
                Ok(Line::Removed { at }) => kept.removed = Some(at),
                Err(_) => kept.damaged += 1,
            }
        }
        Ok(kept)
    }
}

pub(crate) fn folder(root: &Path, id: &str) -> PathBuf {
    root.join(FOLDER).join(ids::adapter_name(id))
}

fn record_path(root: &Path, id: &str) -> PathBuf {
    root.join(FOLDER).join(format!("{}.jsonl", ids::adapter_name(id)))
}

/// Saves the adapter of this name on the model, unless it is there already, and says where it comes
/// from. Gives its id.
///
/// # Errors
/// No adapter of that name, or files that cannot be written.
pub(crate) fn save(root: &Path, model: &Model, name: &str, origin: Origin) -> Result<String> {
    let all = root.join(FOLDER);
    disk::create_dir(&all)?;
    let temporary = all.join(format!(".{}.tmp", disk::new_id()?));
    let saved = save_from(root, model, name, origin, &temporary);
    let _ = fs::remove_dir_all(&temporary); // of this call alone; gone if all went well
    saved
}

fn save_from(
    root: &Path,
    model: &Model,
    name: &str,
    origin: Origin,
    temporary: &Path,
) -> Result<String> {
    let written = model.save_adapter(name, temporary)?;
    let base_model = recorded_name(model.name()).to_owned();
    leave_place_out(&written, model.name(), &base_model)?;
    let (id, bytes) = content(&written)?;
    let config = AdapterFiles::read(&written)?.config.to_string();
    let as_served = FrozenAdapter::read_for_any_base(model, "adapter", &written)?;
    let in_memory = answering_fingerprint(&model.with_adapter(name)?)?;
    let line = Line::Saved {
        config,
        base_model: Some(base_model),
        base: base_of(&written)?,
        answering: BTreeSet::from([as_served.fingerprint().to_owned(), in_memory])
            .into_iter()
            .collect(),
        bytes,
        origin,
    };
    let _store = lock(root)?;
    let folder = folder(root, &id);
    if !folder.exists() {
        fs::rename(&written, &folder).map_err(disk::io("write", &folder))?;
    }
    disk::add_line(&record_path(root, &id), &line)?;
    Ok(id)
}

/// PEFT's configuration names the base as it was loaded, which may be a folder of this machine.
fn leave_place_out(folder: &Path, place: &str, name: &str) -> Result<()> {
    if place == name {
        return Ok(());
    }
    for file in disk::names(folder)?.iter().filter(|file| file.ends_with(".json")) {
        let path = folder.join(file);
        let text = fs::read_to_string(&path).map_err(disk::io("read", &path))?;
        let (place, name) = (serde_json::to_string(place)?, serde_json::to_string(name)?);
        if text.contains(&place) {
            disk::write_whole(&path, text.replace(&place, &name).as_bytes())?;
        }
    }
    Ok(())
}

/// The fingerprint of the base's weights, which stands beside PEFT's files.
fn base_of(folder: &Path) -> Result<Option<String>> {
    let Some(bytes) = disk::read(&folder.join("tunebook.json"))? else { return Ok(None) };
    let json: serde_json::Value = serde_json::from_slice(&bytes)?;
    Ok(json["base"].as_str().map(str::to_owned))
}

/// Removes what processes have left half written that were killed, if nobody has touched it for so long.
pub(crate) fn tidy(root: &Path, for_so_long: Duration) -> Result<()> {
    let all = root.join(FOLDER);
    let entries = fs::read_dir(&all).into_iter().flatten().flatten(); // there may be none yet
    for path in entries.map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let id = name.strip_prefix('.').and_then(|name| name.split_once('.'));
        let ours = match id {
            Some((id, "tmp")) => id.len() == 12 && ids::is_hex(id),
            Some((id, "gone")) => ids::is_adapter(id),
            _ => false,
        };
        let changed = fs::metadata(&path).and_then(|found| found.modified());
        let old = changed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > for_so_long));
        if ours && old {
            fs::remove_dir_all(&path).map_err(disk::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Held while adapters come and go and aliases change.
pub(crate) fn lock(root: &Path) -> Result<disk::Lock> {
    disk::Lock::take(&root.join(".lock"))
}

/// The hash of all files of a folder, as 32 hexadecimal digits, and their length.
///
/// # Errors
/// A file cannot be read, or a folder is among them.
pub(crate) fn content(folder: &Path) -> Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut all = 0;
    for name in disk::names(folder)? {
        let path = folder.join(&name);
        // Not what a link leads to: it is no part of the adapter.
        if !fs::symlink_metadata(&path).map_err(disk::io("read", &path))?.is_file() {
            return Err(Error::File { path, problem: "is no file of an adapter".to_owned() });
        }
        let bytes = fs::read(&path).map_err(disk::io("read", &path))?;
        for part in [name.as_bytes(), bytes.as_slice()] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        all += bytes.len() as u64;
    }
    Ok((disk::hex(&hash.finalize())[..32].to_owned(), all))
}

/// # Errors
/// The files of an adapter are gone, or are not those that were saved.
pub(crate) fn check(root: &Path, id: &str) -> Result<()> {
    let folder = folder(root, id);
    let problem = |problem: String| Err(Error::File { path: folder.clone(), problem });
    if !ids::is_adapter(id) {
        return problem(format!("`{}` is no adapter's id", tunebook_progress::printable(id)));
    }
    if !folder.is_dir() {
        return problem("is gone: the adapter was collected as garbage, or removed by hand".into());
    }
    match content(&folder)?.0 {
        found if found == id => Ok(()),
        found => problem(format!(
            "holds other files than were saved (their hash is {found}): it was changed by hand"
        )),
    }
}

/// # Errors
/// The folder of an adapter cannot be removed: [`check`] has something against it, or it holds what
/// its id says nothing of, as hidden files that somebody has put there.
pub(crate) fn check_removable(root: &Path, id: &str) -> Result<()> {
    check(root, id)?;
    let path = folder(root, id);
    match unhashed(&path)? {
        None => Ok(()),
        Some(name) => {
            let name = tunebook_progress::printable(&name).into_owned();
            let problem = format!("holds `{name}` besides the adapter's files: move it elsewhere");
            Err(Error::File { path, problem })
        }
    }
}

/// Something in a folder that is no part of its [`content`].
pub(crate) fn unhashed(folder: &Path) -> Result<Option<String>> {
    if fs::symlink_metadata(folder).map_err(disk::io("read", folder))?.is_symlink() {
        return Ok(Some("a link to elsewhere".to_owned()));
    }
    let hashed = disk::names(folder)?;
    for entry in fs::read_dir(folder).map_err(disk::io("read", folder))? {
        let name = entry.map_err(disk::io("read", folder))?.file_name();
        let name = name.to_string_lossy().into_owned();
        if hashed.binary_search(&name).is_err() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Removes the files of an adapter; what is known of it stays. The store's lock must be held.
///
/// # Errors
/// As [`check_removable`]; or they cannot be removed.
pub(crate) fn remove(root: &Path, id: &str) -> Result<()> {
    check_removable(root, id)?;
    let folder = folder(root, id);
    // Not half of it under its own name, if this process is killed.
    let going = root.join(FOLDER).join(format!(".{id}.gone"));
    fs::rename(&folder, &going).map_err(disk::io("remove", &folder))?;
    fs::remove_dir_all(&going).map_err(disk::io("remove", &going))?;
    disk::add_line(&record_path(root, id), &Line::Removed { at: disk::now() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_has_left_goes_when_it_is_old() {
        let root = tempfile::tempdir().unwrap();
        let folder = |name: &str| root.path().join(FOLDER).join(name);
        let (half, gone) = (".0a1b2c3d4e5f.tmp", format!(".{}.gone", "0a".repeat(16)));
        for name in [half, &gone, "0a1b", ".mine", ".mine.tmp", ".my.notes.gone"] {
            fs::create_dir_all(folder(name)).unwrap();
        }
        tidy(root.path(), Duration::from_secs(60)).unwrap();
        assert!(folder(half).exists(), "somebody may be writing it");
        std::thread::sleep(Duration::from_millis(20));
        tidy(root.path(), Duration::from_millis(1)).unwrap();
        assert!(!folder(half).exists() && !folder(&gone).exists());
        for name in ["0a1b", ".mine", ".mine.tmp", ".my.notes.gone"] {
            assert!(folder(name).exists(), "{name} is no folder of the registry's");
        }
    }

    #[test]
    fn what_somebody_has_put_beside_an_adapter_is_not_removed() {
        let root = tempfile::tempdir().unwrap();
        let temporary = root.path().join(FOLDER).join("new");
        fs::create_dir_all(&temporary).unwrap();
        fs::write(temporary.join("adapter_model.safetensors"), "weights").unwrap();
        let id = content(&temporary).unwrap().0;
        let adapter = folder(root.path(), &id);
        fs::rename(&temporary, &adapter).unwrap();
        fs::create_dir_all(adapter.join(".git")).unwrap();
        let error = remove(root.path(), &id).unwrap_err().to_string();
        assert!(error.contains("`.git`") && adapter.join(".git").exists(), "{error}");
        fs::remove_dir(adapter.join(".git")).unwrap();
        remove(root.path(), &id).unwrap();
        assert!(!adapter.exists());
        // A link in the place of a folder.
        let outside = root.path().join("outside");
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("adapter_model.safetensors"), "weights").unwrap();
        std::os::unix::fs::symlink(&outside, &adapter).unwrap();
        assert!(remove(root.path(), &id).unwrap_err().to_string().contains("link"));
        assert!(check(root.path(), "/etc").unwrap_err().to_string().contains("no adapter's id"));
    }
}
