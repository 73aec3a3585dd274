//! A process under a time limit: its lines as they come, and an end to all that it started, whether
//! its time is over or this program is ended itself.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::process::start_error;

/// The longest line that is read in one piece.
const LONGEST_LINE: u64 = 1 << 20;
/// What lines may take of the log.
const LOG_BYTES: usize = 50_000_000;
/// How long lines are waited for when the process has ended and something that it started still
/// holds its output.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The log of a run. A full disk ends nothing.
pub(super) struct Log {
    file: File,
    left: usize,
}

impl Log {
    pub(super) fn new(file: File) -> Self {
        Self { file, left: LOG_BYTES }
    }

    fn line(&mut self, line: &str) {
        if line.len() < self.left {
            self.left -= line.len() + 1;
            let _ = writeln!(self.file, "{line}");
        }
    }
}

/// How a process ended.
pub(super) enum Ended {
    Exit(ExitStatus),
    /// It was ended when its time was over.
    Late,
}

/// Runs a command for so long at most; its lines go to the log and to `on_line` as they come. All
/// that it started ends with it.
///
/// # Errors
/// A command that does not start; the first error of `on_line`, which ends it.
pub(super) fn drive(
    command: &mut Command,
    limit: Duration,
    log: &mut Log,
    mut on_line: impl FnMut(&str) -> Result<()>,
) -> Result<Ended> {
    let errors = log.file.try_clone().map_or_else(|_| Stdio::null(), Stdio::from);
    own_group(command);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).spawn();
    let mut group = Group::of(child.map_err(|source| start_error(command, source))?);
    let deadline = Instant::now() + limit;
    // Bounded: who prints without end waits.
    let (send, lines) = mpsc::sync_channel(64);
    let out = group.child.stdout.take();
    // Ends with the pipe, which may be open for longer than the child lives.
    std::thread::spawn(move || {
        let Some(mut out) = out.map(BufReader::new) else { return };
        let mut line = Vec::new();
        while matches!(out.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line), Ok(n) if n > 0)
        {
            let text = String::from_utf8_lossy(&line);
            if send.send(text.trim_end_matches('\n').to_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    let mut ended: Option<(ExitStatus, Instant)> = None;
    let mut open = true;
    loop {
        let now = Instant::now();
        if ended.is_none()
            && let Ok(Some(status)) = group.child.try_wait()
        {
            ended = Some((status, now));
        }
        match ended {
            Some((status, at)) if !open || now > at + LAST_LINES => return Ok(Ended::Exit(status)),
            _ if now >= deadline => return Ok(Ended::Late),
            _ if !open => std::thread::sleep(Duration::from_millis(20)),
            _ => {}
        }
        match lines.recv_timeout(Duration::from_millis(50)) {
            Ok(line) => {
                let line: String = line;
                log.line(&line);
                on_line(&line)?;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => open = false,
        }
    }
}

/// A child with all that it starts, which ends when this is dropped, or when this program ends in
/// any way: a shell waits for the end of a pipe that only this program holds.
struct Group {
    child: Child,
    watcher: Option<Child>,
    held: Option<ChildStdin>,
}

impl Group {
    fn of(child: Child) -> Self {
        let mut watch = Command::new("sh");
        // `kill` without `--`, which dash takes for a number.
        let script = format!("trap '' INT TERM HUP; read -r x; kill -9 -{}", child.id());
        watch.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::null());
        own_group(watch.stderr(Stdio::null()));
        let mut watcher = watch.spawn().ok();
        let held = watcher.as_mut().and_then(|watcher| watcher.stdin.take());
        Self { child, watcher, held }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        drop(self.held.take());
        if let Some(watcher) = &mut self.watcher {
            let _ = watcher.wait();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// So that what it started ends with it.
#[cfg(unix)]
fn own_group(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
}

/// Never reached: other platforms are refused by the prerequisites.
#[cfg(not(unix))]
fn own_group(_: &mut Command) {}

#[cfg(test)]
mod tests {
    use super::*;

    fn temporary(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("xtask-drive-{}-{name}", std::process::id()))
    }

    fn shell(name: &str, script: &str, limit: Duration) -> (Ended, Vec<String>) {
        let path = temporary(name);
        let mut log = Log::new(File::create(&path).unwrap());
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        let ended = drive(command.args(["-c", script]), limit, &mut log, |line| {
            lines.push(line.to_owned());
            Ok(())
        });
        std::fs::remove_file(path).unwrap();
        (ended.unwrap(), lines)
    }

    #[test]
    fn a_part_that_takes_too_long_keeps_what_it_found() {
        let start = Instant::now();
        let left = temporary("left");
        // A child of the shell, which holds the pipe open and must end with it.
        let script = format!("echo one; (sleep 2; touch {}) & sleep 60; echo two", left.display());
        let (ended, lines) = shell("late", &script, Duration::from_millis(400));
        assert!(matches!(ended, Ended::Late));
        assert_eq!(lines, ["one"]);
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_secs(3).saturating_sub(start.elapsed()));
        assert!(!left.exists(), "what the part started went on");
    }

    #[test]
    fn a_part_that_fails_says_how() {
        let (ended, lines) = shell("fails", "echo found; exit 3", Duration::from_secs(20));
        assert!(matches!(ended, Ended::Exit(status) if status.code() == Some(3)));
        assert_eq!(lines, ["found"]);
    }

    #[test]
    fn a_part_that_prints_without_end_is_ended() {
        let start = Instant::now();
        let (ended, _) = shell("flood", "while :; do echo x; done", Duration::from_secs(1));
        assert!(matches!(ended, Ended::Late));
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }

    #[test]
    fn a_part_that_ended_is_not_waited_for_because_of_what_it_left() {
        let start = Instant::now();
        let (ended, lines) = shell("leaves", "sleep 60 & echo one", Duration::from_secs(40));
        assert!(matches!(ended, Ended::Exit(status) if status.success()));
        assert_eq!(lines, ["one"]);
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }

    /// As when this program is ended by Ctrl-C, by a signal or by a closed screen: the pipe that it
    /// holds is closed.
    #[test]
    fn what_was_started_ends_with_this_program() {
        let mut command = Command::new("sh");
        own_group(command.args(["-c", "sleep 60"]));
        let mut group = Group::of(command.spawn().unwrap());
        drop(group.held.take());
        let start = Instant::now();
        while group.child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < Duration::from_secs(20), "it goes on");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
