//! The tests of the kernel in Python, file by file, two files at a time: most of their time is waiting,
//! for a compiler, a kernel's start or the end of a stop.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::error::{Error, Result};
use crate::process;
use crate::setup::duration;
use crate::tally::Outcome;

/// The `test_*.py` of a folder, those with the longest text first.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn in_folder(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let is_test = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("test_") && name.ends_with(".py")
    };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(is_test).collect();
    let length = |path: &PathBuf| std::fs::metadata(path).map_or(0, |file| file.len());
    files.sort_by_key(|path| (std::cmp::Reverse(length(path)), path.clone()));
    Ok(files)
}

/// Runs the commands of some files, `at_once` at a time, and shows what each wrote when it ends.
pub(crate) fn run(
    files: &[PathBuf],
    at_once: usize,
    command: impl Fn(&Path) -> Command + Sync,
) -> Vec<(String, Result<Outcome>)> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let start = Instant::now();
                    let output = process::output(&mut command(file));
                    let time = duration(start.elapsed());
                    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    // The lock keeps what two files wrote apart, too.
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    let outcome = output.map(|(succeeded, text)| {
                        println!("\n--- {name}: {time}\n{}", text.trim_end());
                        Outcome::of_run(succeeded, &text)
                    });
                    done.push((name, outcome));
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_runs_once_and_a_failure_is_its_own() {
        let files: Vec<PathBuf> = ["a", "b", "c", "d", "e"].map(PathBuf::from).to_vec();
        let ran = run(&files, 2, |file| {
            let mut command = process::command("sh");
            let verdict = if file == Path::new("c") { "FAILED (failures=1)" } else { "OK" };
            let failed = u8::from(file == Path::new("c"));
            command.args([
                "-c",
                &format!("echo 'Ran 2 tests in 1s'; echo '{verdict}'; exit {failed}"),
            ]);
            command
        });
        let mut counts: Vec<_> = ran
            .iter()
            .map(|(name, outcome)| {
                let tally = outcome.as_ref().unwrap().tally;
                (name.as_str(), tally.passed, tally.failed)
            })
            .collect();
        counts.sort_unstable();
        assert_eq!(counts, [("a", 2, 0), ("b", 2, 0), ("c", 1, 1), ("d", 2, 0), ("e", 2, 0)]);
    }

    #[test]
    fn a_file_that_cannot_be_started_is_a_failure() {
        let ran = run(&[PathBuf::from("a")], 2, |_| process::command("no-such-program"));
        assert!(ran[0].1.is_err());
    }
}
