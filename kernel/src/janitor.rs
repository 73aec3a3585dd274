//! Removes a kernel's directory when the kernel is gone, however it went: Jupyter ends a kernel
//! with SIGKILL when it is in a hurry, and then nothing in the kernel itself can clean up.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};

use anyhow::{Context, Result};

use crate::tree;

/// Starts a janitor for `dir`. It acts when the returned pipe is closed, by a drop or by the end of
/// this process.
pub(crate) fn start(dir: &Path) -> Result<ChildStdin> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("janitor")
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: setsid is async-signal-safe. Signals to the kernel's process group must not reach the
    // janitor.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            Ok(())
        });
    }
    let mut child = command.spawn().context("cannot start the janitor")?;
    child.stdin.take().context("the janitor has no standard input")
}

/// The janitor itself.
pub(crate) fn wait(dir: &Path) -> Result<()> {
    let mut ignored = Vec::new();
    // An error means that the pipe is broken, which tells the same as its end.
    let _ = std::io::stdin().read_to_end(&mut ignored);
    // The kernel's child and its compilers may still be writing for a moment.
    for _ in 0..50 {
        if tree::remove_tree(dir).is_ok() && !dir.exists() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    tree::remove_tree(dir)
}
