//! Running other programs: their output goes to the screen as it comes, a failure names what they
//! were for.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::error::{Error, Result};

/// A command with a clean environment: what `cargo run` put there for this program alone is taken
/// out again, so that a cargo further down sees what it would have seen from a shell.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, value) in std::env::vars_os() {
        let Some(key) = name.to_str() else { continue };
        if is_set_by_cargo(key) {
            command.env_remove(key);
        } else if key == "LD_LIBRARY_PATH" {
            match without_cargo_folders(&value) {
                Some(rest) => command.env(key, rest),
                None => command.env_remove(key),
            };
        }
    }
    command
}

/// `cargo`, in the workspace at `root`.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = command("cargo");
    command.current_dir(root);
    command
}

fn is_set_by_cargo(key: &str) -> bool {
    key == "CARGO"
        || ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_"]
            .iter()
            .any(|p| key.starts_with(p))
}

/// The folders of a variable such as PATH, as [`command`] passes it on.
pub(crate) fn inherited_folders(name: &str) -> Vec<PathBuf> {
    let value = std::env::var_os(name);
    let value = if name == "LD_LIBRARY_PATH" {
        value.as_deref().and_then(without_cargo_folders)
    } else {
        value
    };
    let folders = std::env::split_paths(&value.unwrap_or_default()).collect::<Vec<_>>();
    folders.into_iter().filter(|folder| !folder.as_os_str().is_empty()).collect()
}

/// `cargo run` puts the target's folders and the toolchain's libraries in front.
fn without_cargo_folders(value: &OsStr) -> Option<std::ffi::OsString> {
    let ours = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf))?;
    let rest: Vec<_> = std::env::split_paths(value)
        .filter(|folder| {
            !folder.starts_with(&ours) && !folder.components().any(|c| c.as_os_str() == "rustlib")
        })
        .collect();
    if rest.is_empty() { None } else { std::env::join_paths(rest).ok() }
}

/// Runs a command with the terminal as its own.
///
/// # Errors
/// [`Error::Start`] when the program is not there, [`Error::Failed`] (with `what`) when it ends
/// with a failure.
pub(crate) fn run(command: &mut Command, what: &str) -> Result<()> {
    let status = command.status().map_err(|source| start_error(command, source))?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::Failed { what: what.to_owned(), status, remedy: None })
    }
}

/// Runs a command quietly and returns what it wrote to standard output.
///
/// # Errors
/// As [`run`]; the end of what it wrote to standard error is part of the text.
pub(crate) fn capture(command: &mut Command, what: &str) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().map_err(|source| start_error(command, source))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = stderr.trim().lines().collect();
    let tail = lines[lines.len().saturating_sub(12)..].join("\n");
    Err(Error::Other(format!("{what} failed ({}):\n{tail}", output.status)))
}

/// As [`capture`], of a program that may hang: after so long it is ended.
///
/// # Errors
/// As [`capture`].
pub(crate) fn capture_within(command: &mut Command, what: &str, limit: Duration) -> Result<String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| start_error(command, source))?;
    let (send, ended) = mpsc::channel();
    let streams = (child.stdout.take(), child.stderr.take());
    // Ends with the pipes, which may be open for longer than the child lives.
    std::thread::spawn(move || {
        let err =
            streams.1.map(|err| std::thread::spawn(|| forward(err, std::io::sink(), |_| false)));
        let out = streams.0.map(|out| forward(out, std::io::sink(), |_| false)).unwrap_or_default();
        let err = err.and_then(|err| err.join().ok()).unwrap_or_default();
        let _ = send.send((out, err));
    });
    let Ok((out, err)) = ended.recv_timeout(limit) else {
        let _ = child.kill();
        let _ = child.wait();
        return Err(Error::Other(format!("{what} did not answer in {} s", limit.as_secs())));
    };
    let status = child.wait().map_err(|source| start_error(command, source))?;
    if status.success() {
        return Ok(out);
    }
    let last = [err.as_str(), &out].into_iter().find_map(|text| text.trim().lines().last());
    Err(Error::Other(format!("{what} failed ({status}): {}", last.unwrap_or("it said nothing"))))
}

/// Runs a command quietly, and returns whether it succeeded together with all that it wrote.
///
/// # Errors
/// [`Error::Start`] when the program is not there. A failure is no error here.
pub(crate) fn output(command: &mut Command) -> Result<(bool, String)> {
    let output =
        command.stdin(Stdio::null()).output().map_err(|source| start_error(command, source))?;
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok((output.status.success(), text.concat()))
}

/// Runs a command, shows both of its streams line by line as they come (of standard error the lines
/// that `is_shown` wants), and returns whether it succeeded together with all that it wrote.
///
/// # Errors
/// [`Error::Start`] when the program is not there. A failure is no error here.
pub(crate) fn show_and_keep(
    command: &mut Command,
    is_shown: impl FnMut(&str) -> bool + Send,
) -> Result<(bool, String)> {
    keep(command.stdout(Stdio::piped()), is_shown)
}

/// The same for standard error alone; standard output stays the terminal's, with its progress
/// lines.
///
/// # Errors
/// As [`show_and_keep`].
pub(crate) fn show_and_keep_errors(command: &mut Command) -> Result<(bool, String)> {
    keep(command, |_| true)
}

fn keep(
    command: &mut Command,
    is_shown: impl FnMut(&str) -> bool + Send,
) -> Result<(bool, String)> {
    let mut child = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| start_error(command, source))?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let kept = std::thread::scope(|scope| {
        let out = scope.spawn(|| {
            out.map(|stream| forward(stream, std::io::stdout(), |_| true)).unwrap_or_default()
        });
        let err = scope.spawn(|| {
            err.map(|stream| forward(stream, std::io::stderr(), is_shown)).unwrap_or_default()
        });
        let mut kept = out.join().unwrap_or_default();
        kept.push_str(&err.join().unwrap_or_default());
        kept
    });
    let status = child.wait().map_err(|source| start_error(command, source))?;
    Ok((status.success(), kept))
}

/// Passes a stream on line by line, those that `is_shown` wants, and returns all of it.
pub(crate) fn forward(
    stream: impl std::io::Read,
    mut screen: impl Write,
    mut is_shown: impl FnMut(&str) -> bool,
) -> String {
    let mut kept = String::new();
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line), Ok(n) if n > 0) {
        let text = String::from_utf8_lossy(&line);
        if is_shown(&text) {
            // The screen may be a closed pipe; what was kept still counts.
            let _ = screen.write_all(text.as_bytes()).and_then(|()| screen.flush());
        }
        kept.push_str(&text);
        line.clear();
    }
    kept
}

/// That a program could not be started.
pub(crate) fn start_error(command: &Command, source: std::io::Error) -> Error {
    Error::Start { program: command.get_program().to_string_lossy().into_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_it_was_for() {
        let error = run(command("sh").args(["-c", "exit 3"]), "the thing").unwrap_err().to_string();
        assert!(error.starts_with("the thing failed (exit status: 3)"), "{error}");
        let error = capture(command("sh").args(["-c", "echo why >&2; exit 1"]), "it")
            .unwrap_err()
            .to_string();
        assert!(error.contains("why"), "{error}");
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let second = Duration::from_secs(1);
        let ask = |script: &str| capture_within(command("sh").args(["-c", script]), "it", second);
        let start = std::time::Instant::now();
        let error = ask("sleep 30").unwrap_err().to_string();
        assert_eq!(error, "it did not answer in 1 s");
        assert!(start.elapsed().as_secs() < 20);
        assert_eq!(ask("echo a").unwrap(), "a\n");
        let error = ask("echo why >&2; exit 3").unwrap_err().to_string();
        assert!(error.ends_with("(exit status: 3): why"), "{error}");
    }

    #[test]
    fn both_streams_are_kept() {
        let (ok, text) =
            show_and_keep(command("sh").args(["-c", "echo a; echo b >&2; exit 1"]), |_| true)
                .unwrap();
        assert!(!ok);
        assert_eq!(text, "a\nb\n");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = run(&mut command("no-such-program"), "x").unwrap_err().to_string();
        assert!(error.starts_with("cannot start `no-such-program`"), "{error}");
    }

    #[test]
    fn what_cargo_run_sets_does_not_leak() {
        assert!(is_set_by_cargo("CARGO_PKG_NAME") && is_set_by_cargo("CARGO_MANIFEST_DIR"));
        assert!(!is_set_by_cargo("CARGO_HOME") && !is_set_by_cargo("CARGO_TERM_COLOR"));
    }
}
