//! A folder that is written as a whole: filled under another name, flushed to the disk, then
//! renamed. It takes the place of one of its own kind and of nothing else, and nothing is removed
//! but files that were written with it.
//!
//! Names beside `NAME`: `.NAME.PID.tmp` while it is filled, `.NAME.PID.old` for the folder that is
//! replaced, between two renames. The first is locked by its writer, so that nobody takes it for the
//! left-over of a process that was killed.

use std::collections::BTreeSet;
use std::fs::{self, DirEntry, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::atomic;

/// Endings of the names beside a folder's.
const OLD: &str = ".old";
const UNFINISHED: &str = ".tmp";

const ADVICE: &str = "Give a folder of its own, that is new, empty or of a run saved before, or move away what is there";

/// Fills a new folder and puts it in the place of `folder`. `own_files` lists the files that were
/// written with a folder of this kind, relative to it, the one by which it is known last.
///
/// # Errors
/// `folder` holds a file that is not among its own ones, or cannot be written; it is as it was then.
pub(crate) fn replace(
    folder: &Path,
    own_files: &dyn Fn(&Path) -> Result<Vec<String>>,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    // A link stays one.
    let folder = match fs::symlink_metadata(folder) {
        Ok(found) if found.is_symlink() => &fs::canonicalize(folder).map_err(io("read", folder))?,
        _ => folder,
    };
    let Some((parent, name)) = split(folder) else {
        return Err(occupied(folder, "has no name that could be given to a new folder".to_owned()));
    };
    fs::create_dir_all(&parent).map_err(io("create", &parent))?;
    restore(&parent, &name, own_files)?;
    check(folder, own_files)?;
    let temporary = parent.join(format!(".{name}.{}.tmp", std::process::id()));
    let replaced = parent.join(format!(".{name}.{}.old", std::process::id()));
    let written = (|| {
        remove_if_there(&temporary)?; // of this process, by its number
        fs::create_dir(&temporary).map_err(io("create", &temporary))?;
        let lock = File::open(&temporary).map_err(io("create", &temporary))?;
        let _ = lock.try_lock(); // where there are no locks there is nobody who asks for one
        fill(&temporary)?;
        atomic::sync_folder(&temporary)?;
        let old = check(folder, own_files)?;
        if old.is_some() {
            fs::rename(folder, &replaced).map_err(io("replace", folder))?;
        }
        fs::rename(&temporary, folder).map_err(io("write", folder))?;
        atomic::sync_folder(&parent)?;
        old.map_or(Ok(()), |files| remove_files(&replaced, &files))
    })();
    if written.is_err() {
        // Best effort: the error that matters is the one returned.
        let _ = fs::remove_dir_all(&temporary);
        if !folder.exists() && replaced.exists() {
            let _ = fs::rename(&replaced, folder);
        }
    }
    written
}

/// Where the contents of `folder` are, if it is not there itself: a process was killed while it
/// replaced it.
pub(crate) fn standing(folder: &Path) -> Option<PathBuf> {
    if folder.exists() {
        return None;
    }
    let (parent, name) = split(folder)?;
    left_over(&parent, &name, OLD).ok()?.into_iter().next()
}

/// `NAME` of `.NAME.PID.old` or `.NAME.PID.tmp`.
pub(crate) fn name_of_left_over(name: &str) -> Option<String> {
    let found = name_before(name, OLD).or_else(|| name_before(name, UNFINISHED));
    found.map(str::to_owned)
}

/// `NAME` of `.NAME.PID.old`.
pub(crate) fn name_of_replaced(name: &str) -> Option<&str> {
    name_before(name, OLD)
}

fn name_before<'a>(name: &'a str, ending: &str) -> Option<&'a str> {
    let (name, pid) = name.strip_prefix('.')?.strip_suffix(ending)?.rsplit_once('.')?;
    pid.parse::<u32>().ok().map(|_| name)
}

/// `.NAME.PID.old` or `.NAME.PID.tmp`, of any process.
fn left_over(parent: &Path, name: &str, ending: &str) -> Result<Vec<PathBuf>> {
    let is_of = |entry: &DirEntry| {
        entry.file_name().to_str().and_then(|found| name_before(found, ending)) == Some(name)
    };
    Ok(entries(parent)?.iter().filter(|entry| is_of(entry)).map(DirEntry::path).collect())
}

/// Puts back what a process that was killed had renamed, and removes what it had replaced or half
/// written.
pub(crate) fn restore(
    parent: &Path,
    name: &str,
    own_files: &dyn Fn(&Path) -> Result<Vec<String>>,
) -> Result<()> {
    for old in left_over(parent, name, OLD)? {
        let folder = parent.join(name);
        if !folder.exists() {
            fs::rename(&old, &folder).map_err(io("restore", &folder))?;
        } else if let Ok(Some(files)) = check(&old, own_files) {
            remove_files(&old, &files)?;
        }
    }
    left_over(parent, name, UNFINISHED)?.iter().try_for_each(|path| remove_unfinished(path))
}

/// Removes a folder that was half written, unless the process that writes it lives.
fn remove_unfinished(temporary: &Path) -> Result<()> {
    let lock = match File::open(temporary) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(io("read", temporary))?,
    };
    match lock.try_lock() {
        Ok(()) => remove_if_there(temporary),
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => Ok(()),
    }
}

/// Removes a folder of which all is its own; any other stays.
pub(crate) fn remove_own(
    folder: &Path,
    own_files: &dyn Fn(&Path) -> Result<Vec<String>>,
) -> Result<()> {
    let files = match check(folder, own_files) {
        Ok(Some(files)) => files,
        Ok(None) | Err(Error::Occupied { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let Some((parent, name)) = split(folder) else { return Ok(()) };
    // Not half of it under its own name, if this process is killed.
    let going = parent.join(format!(".{name}.{}.tmp", std::process::id()));
    fs::rename(folder, &going).map_err(io("remove", folder))?;
    remove_files(&going, &files)
}

/// The files in a folder and below it, relative to it. A link is a file.
pub(crate) fn files(folder: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in entries(folder)? {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().map_err(io("read", folder))?.is_dir() {
            let below = self::files(&entry.path())?;
            if below.is_empty() {
                files.push(format!("{name}/"));
            }
            files.extend(below.into_iter().map(|file| format!("{name}/{file}")));
        } else {
            files.push(name);
        }
    }
    files.sort();
    Ok(files)
}

/// What is in a folder; nothing if there is no such folder.
pub(crate) fn entries(folder: &Path) -> Result<Vec<DirEntry>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.collect::<std::io::Result<_>>().map_err(io("read", folder)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(io("read", folder)(error)),
    }
}

/// The files of a folder that may be replaced, `None` if there is no folder.
fn check(
    folder: &Path,
    own_files: &dyn Fn(&Path) -> Result<Vec<String>>,
) -> Result<Option<Vec<String>>> {
    match fs::symlink_metadata(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("read", folder)(error)),
        Ok(found) if !found.is_dir() => {
            return Err(occupied(folder, "is a file, expected a folder".to_owned()));
        }
        Ok(_) => {}
    }
    let found = files(folder)?;
    if found.is_empty() {
        return Ok(Some(found));
    }
    let own = own_files(folder).unwrap_or_default();
    let mut others = found.iter().filter(|file| !own.contains(file));
    let Some(first) = others.next() else {
        // In their order, whose last says whose folder it is.
        let found = |file: &String| found.contains(file);
        return Ok(Some(own.into_iter().filter(found).collect()));
    };
    let more = match others.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let problem = if own.is_empty() {
        format!("holds `{first}`{more} and is no folder of a saved run")
    } else {
        format!("holds `{first}`{more} besides the files of a saved run")
    };
    Err(occupied(folder, problem))
}

fn occupied(folder: &Path, problem: String) -> Error {
    Error::Occupied { path: folder.to_path_buf(), problem, advice: ADVICE }
}

/// Removes these files of a folder, and the folder and those in it if nothing else is there.
fn remove_files(folder: &Path, files: &[String]) -> Result<()> {
    let mut folders: BTreeSet<&Path> = BTreeSet::from([Path::new("")]);
    for file in files {
        let path = folder.join(file);
        fs::remove_file(&path).map_err(io("remove", &path))?;
        folders.extend(Path::new(file).ancestors().skip(1));
    }
    for inner in folders.into_iter().rev() {
        let path = folder.join(inner);
        fs::remove_dir(&path).map_err(io("remove", &path))?;
    }
    Ok(())
}

/// The folder's parent and name.
fn split(folder: &Path) -> Option<(PathBuf, String)> {
    let name = folder.file_name()?.to_string_lossy().into_owned();
    let parent = folder.parent().filter(|parent| *parent != Path::new(""));
    Some((parent.unwrap_or(Path::new(".")).to_path_buf(), name))
}

fn remove_if_there(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io("remove", folder)(error)),
        _ => Ok(()),
    }
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { action, path, source }
}
