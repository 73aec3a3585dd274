//! Python peers: packages of the field that tests compare with.

use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::skip;

/// The folder of the scripts, `tests/peers` in the repository.
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/peers");

/// A Python interpreter that has the packages of a test.
///
/// `cargo xtask test --long` makes the environments and names them in `TUNEBOOK_PEERS`
/// (`tests/peers/requirements.txt`) and `TUNEBOOK_ADAPTERHUB`.
#[derive(Debug, Clone)]
pub struct Python(PathBuf);

impl Python {
    /// The interpreter of `TUNEBOOK_PEERS`, where it can import these modules (`"torch, peft"`).
    /// Else [`skip`] says why the test skips.
    pub fn peers(modules: &str) -> Option<Self> {
        Self::named("TUNEBOOK_PEERS", modules)
    }

    /// The same of `TUNEBOOK_ADAPTERHUB`. AdapterHub's package demands another version of
    /// `transformers`, hence an environment of its own.
    pub fn adapterhub(modules: &str) -> Option<Self> {
        Self::named("TUNEBOOK_ADAPTERHUB", modules)
    }

    fn named(variable: &str, modules: &str) -> Option<Self> {
        match find(variable, std::env::var_os(variable).map(PathBuf::from), modules) {
            Ok(python) => Some(python),
            Err(reason) => {
                skip(reason);
                None
            }
        }
    }

    /// A command that starts the interpreter.
    pub fn command(&self) -> Command {
        Command::new(&self.0)
    }

    /// Runs a script of `tests/peers`; its standard output.
    ///
    /// # Panics
    /// With the script's standard error, when it fails.
    pub fn run<A: AsRef<std::ffi::OsStr>>(&self, script: &str, arguments: &[A]) -> String {
        let mut command = self.command();
        output(command.arg(Path::new(SCRIPTS).join(script)).args(arguments))
    }

    /// Runs a script of `tests/peers` that answers each line of JSON with one.
    ///
    /// # Panics
    /// With the script's standard error, when it fails, and when it answers with something else
    /// than one line of JSON for each request.
    pub fn ask(&self, script: &str, requests: &[Value]) -> Vec<Value> {
        let mut child = self
            .command()
            .arg(Path::new(SCRIPTS).join(script))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let text: String = requests.iter().map(|request| format!("{request}\n")).collect();
        // On a thread of its own, so that neither side waits for the other to read.
        let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
        let text = checked(child.wait_with_output().unwrap());
        writer.join().unwrap().unwrap();
        let answers: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(answers.len(), requests.len(), "{script} answers every request");
        answers
    }
}

/// Runs a program that must succeed; its standard output.
fn output(command: &mut Command) -> String {
    checked(command.output().unwrap())
}

fn checked(output: Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    // One that a signal has ended says nothing.
    assert!(output.status.success(), "{}: {said}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// The interpreter of an environment's folder, or the reason why there is none.
fn find(variable: &str, folder: Option<PathBuf>, modules: &str) -> Result<Python, impl Display> {
    let Some(folder) = folder else {
        return Err(format!("{variable} is not set, so there is no Python with {modules}"));
    };
    let python = folder.join("bin/python");
    match Command::new(&python).args(["-c", &format!("import {modules}")]).output() {
        Ok(output) if output.status.success() => Ok(Python(python)),
        _ => Err(format!("`{}` cannot import {modules}", python.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(folder: Option<&str>, modules: &str) -> String {
        find("TUNEBOOK_X", folder.map(PathBuf::from), modules).unwrap_err().to_string()
    }

    #[test]
    fn a_missing_environment_has_a_reason() {
        assert_eq!(
            reason(None, "torch, peft"),
            "TUNEBOOK_X is not set, so there is no Python with torch, peft"
        );
        assert_eq!(reason(Some("/none"), "json"), "`/none/bin/python` cannot import json");
    }

    #[test]
    #[should_panic(expected = "no such file")]
    fn a_script_that_fails_fails_the_test() {
        // Any program stands in for the interpreter.
        output(Command::new("sh").args(["-c", "echo no such file >&2; exit 1"]));
    }
}
