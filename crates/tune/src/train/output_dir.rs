//! The folder of a run's checkpoints: one run at a time has it, and only that run's checkpoints are
//! in it.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::folder;
use crate::files::peft::AdapterFiles;
use crate::train::checkpoint;
use crate::train::run::Run;

/// Held by the run that writes into a folder, and gone when it ends.
const LOCK: &str = ".lock";

/// An `output_dir` while a run goes on.
#[derive(Debug)]
pub(crate) struct OutputDir {
    dir: PathBuf,
    /// The run's number.
    run: String,
    lock: Option<File>,
}

impl OutputDir {
    /// Takes a folder for the checkpoints of a run, and clears away what a killed process left half
    /// written.
    ///
    /// # Errors
    /// Another run is going on in it, or it holds another run's checkpoints.
    pub(crate) fn take(dir: &Path, run: &str) -> Result<Self> {
        fs::create_dir_all(dir).map_err(io("create", dir))?;
        let taken =
            Self { dir: dir.to_path_buf(), run: run.to_owned(), lock: lock(&dir.join(LOCK))? };
        let names: BTreeSet<String> = folder::entries(dir)?
            .iter()
            .filter_map(|entry| folder::name_of_left_over(entry.file_name().to_str()?))
            .filter(|name| name.starts_with(checkpoint::FOLDER))
            .collect();
        for name in names {
            folder::restore(dir, &name, &checkpoint::own_files)?;
        }
        for (step, folder) in checkpoint::checkpoints(dir)? {
            if checkpoint::head(&folder)?.run != run {
                return Err(Error::Occupied {
                    path: dir.to_path_buf(),
                    problem: format!("holds the checkpoints of another run (`checkpoint-{step}`)"),
                    advice: "Go on with that run (`Run::last_checkpoint`, then `resume`), or give this one another `output_dir`",
                });
            }
        }
        Ok(taken)
    }

    /// Where the checkpoint of a step is.
    pub(crate) fn checkpoint(&self, step: usize) -> PathBuf {
        self.dir.join(format!("{}{step}", checkpoint::FOLDER))
    }

    /// Writes `checkpoint-STEP` with the adapter beside the state, then removes the oldest of the
    /// run's checkpoints beyond `limit`. One to which anything was added stays.
    pub(crate) fn write(
        &self,
        run: &Run,
        limit: Option<usize>,
        adapter: Option<&AdapterFiles>,
    ) -> Result<PathBuf> {
        let written = self.checkpoint(run.steps.len());
        run.write(&written, adapter)?;
        if let Some(limit) = limit {
            let others = checkpoint::checkpoints(&self.dir)?;
            let others = others.into_values().rev().filter(|folder| *folder != written);
            for old in others.skip(limit.max(1) - 1) {
                if checkpoint::head(&old).is_ok_and(|head| head.run == self.run) {
                    folder::remove_own(&old, &checkpoint::own_files)?;
                }
            }
        }
        Ok(written)
    }
}

impl Drop for OutputDir {
    fn drop(&mut self) {
        if self.lock.is_some() {
            let _ = fs::remove_file(self.dir.join(LOCK)); // before the lock goes, with the file
        }
    }
}

/// # Errors
/// Checkpoints of this run after `step`, from which a run of other arguments is to go on.
pub(crate) fn check_last(dir: &Path, run: &str, step: usize) -> Result<()> {
    let Some((last, folder)) = checkpoint::checkpoints(dir)?.pop_last() else { return Ok(()) };
    if last <= step || checkpoint::head(&folder).is_ok_and(|head| head.run != run) {
        return Ok(()); // another run's are refused by `take`
    }
    Err(Error::Occupied {
        path: dir.to_path_buf(),
        problem: format!(
            "holds `checkpoint-{last}` of this run, which is to go on from step {step} in another way"
        ),
        advice: "Give another `output_dir`, or move away the later checkpoints",
    })
}

/// Locks a file; `None` where the file system has no locks.
fn lock(path: &Path) -> Result<Option<File>> {
    loop {
        let opened =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = opened.map_err(io("open", path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder); // for the message alone
                let dir = path.parent().unwrap_or(path).to_path_buf();
                let holder = holder.trim();
                return Err(Error::Occupied {
                    path: dir,
                    problem: format!("is the `output_dir` of a run that is going on ({holder})"),
                    advice: "Give this run another `output_dir`, or wait for that run's end",
                });
            }
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                return Ok(None);
            }
            Err(TryLockError::Error(error)) => return Err(io("lock", path)(error)),
        }
        // The run that ended a moment ago may have removed this very file.
        if !is_at(&file, path) {
            continue;
        }
        file.set_len(0).map_err(io("write", path))?;
        writeln!(file, "process {}", std::process::id()).map_err(io("write", path))?;
        return Ok(Some(file));
    }
}

/// Whether the file is the one of this name.
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |found: fs::Metadata| (found.dev(), found.ino());
    file.metadata()
        .ok()
        .map(id)
        .is_some_and(|of_file| fs::metadata(path).ok().map(id) == Some(of_file))
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { action, path, source }
}
