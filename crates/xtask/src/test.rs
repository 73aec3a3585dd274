//! `cargo xtask test`: everything that a change must pass.
//!
//! A failed part does not stop the ones after it; the closing line counts them all. The order is
//! cheap before dear, and what compiles polars and candle comes once: the tests, the prelude and
//! the kernel's warm template share what is compiled (same profile, target triple, flags and
//! features).

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::features;
use crate::notebook::{self, Execution};
use crate::process;
use crate::setup::{Setup, cuda, duration};
use crate::tally::{NextestScreen, Tally};

/// Runs the tests and prints the closing line.
///
/// # Errors
/// [`Error::Tests`] when something failed.
pub fn run(long: bool) -> Result<()> {
    let start = Instant::now();
    let mut tests = Tests { long, tally: Tally::default(), failures: Vec::new() };
    if let Err(error) = tests.all() {
        tests.failure("set-up", &error);
    }
    println!("\n{} after {}", if long { "long tests" } else { "tests" }, duration(start.elapsed()));
    for failure in &tests.failures {
        println!("FAILED {failure}");
    }
    println!("{}", tests.tally);
    match tests.tally.failed {
        0 => Ok(()),
        failed => Err(Error::Tests { failed }),
    }
}

struct Tests {
    long: bool,
    tally: Tally,
    failures: Vec<String>,
}

impl Tests {
    /// Every part in order.
    ///
    /// # Errors
    /// Only for what makes the parts after it pointless: the set-up.
    fn all(&mut self) -> Result<()> {
        let setup = Setup::locate()?;
        setup.ensure_fetched()?;
        setup.ensure_test_python()?;
        if self.long {
            setup.ensure_peers()?;
        }
        let crates = crates(&setup.root)?;

        self.formatting(&setup);
        self.one("features of shared dependencies", || features::check(&setup.root));
        self.crates(&setup, &crates);
        self.clippy(&setup, &crates);
        self.kernel(&setup);
        if self.long {
            self.cuda(&setup);
        }

        setup.ensure()?;
        self.protocol(&setup);
        if self.long {
            self.suite(&setup);
        }
        for kernel in self.kernelspecs() {
            self.runner(&setup, kernel)?;
            self.course(&setup, kernel)?;
        }
        Ok(())
    }

    /// The kernelspecs that notebooks are executed on.
    fn kernelspecs(&self) -> &'static [&'static str] {
        if self.long { &["tunebook", "tunebook-stock"] } else { &["tunebook"] }
    }

    fn formatting(&mut self, setup: &Setup) {
        if !has_component(&setup.root, "fmt") {
            return self
                .skip("formatting: rustfmt is not installed (`rustup component add rustfmt`)");
        }
        self.one("formatting", || {
            process::run(
                process::cargo(&setup.root).args(["fmt", "--all", "--check"]),
                "cargo fmt --check",
            )
        });
    }

    /// All crates in one command each, so that their dependencies are resolved and compiled once.
    fn crates(&mut self, setup: &Setup, crates: &[String]) {
        // What passing tests write is shown: some say that they skipped, and why.
        let nextest = has_component(&setup.root, "nextest");
        let mut command = if nextest {
            let words =
                ["nextest", "run", "--no-fail-fast", "--color=never", "--success-output=immediate"];
            self.cargo(setup, &words, crates)
        } else {
            let words = ["test", "--no-fail-fast", "--lib", "--bins", "--tests", "--color=never"];
            self.cargo(setup, &words, crates)
        };
        match (nextest, self.long) {
            (true, true) => command.arg("--run-ignored=all"),
            (true, false) => &mut command,
            (false, true) => command.args(["--", "--show-output", "--include-ignored"]),
            (false, false) => command.args(["--", "--show-output"]),
        };
        self.runs("unit and integration tests", &mut command);

        // rustdoc tests no programs.
        let is_library = |name: &&String| name.as_str() != "xtask";
        let libraries: Vec<_> = crates.iter().filter(is_library).cloned().collect();
        let mut command =
            self.cargo(setup, &["test", "--no-fail-fast", "--doc", "--color=never"], &libraries);
        self.runs("examples in the documentation", &mut command);
    }

    fn clippy(&mut self, setup: &Setup, crates: &[String]) {
        if !has_component(&setup.root, "clippy") {
            return self.skip("clippy is not installed (`rustup component add clippy`)");
        }
        let deny = ["--", "--deny", "warnings"];
        let mut command = self.cargo(setup, &["clippy", "--all-targets"], crates);
        command.args(deny);
        self.one("clippy", || process::run(&mut command, "cargo clippy"));
        if !self.long {
            // It would analyse rust-analyzer's sources a second time: minutes for few lines of
            // ours.
            return;
        }
        let mut command =
            self.cargo(setup, &["clippy", "--all-targets"], &["tunebook-kernel".to_owned()]);
        command.arg("--target-dir").arg(setup.kernel_target()).env("RUSTFLAGS", "").args(deny);
        self.one("clippy on the kernel", || process::run(&mut command, "cargo clippy"));
    }

    /// The code for NVIDIA GPUs: compiled everywhere, run where there is one.
    fn cuda(&mut self, setup: &Setup) {
        let toolkit = match setup.ensure_cuda_toolkit() {
            Ok(toolkit) => toolkit,
            Err(error) => return self.failure("CUDA toolkit", &error),
        };
        let with_gpu = |mut command: Command| {
            cuda::set(&mut command, &toolkit.environment());
            command
        };
        self.one("the CUDA code compiles", || {
            let command =
                Self::cargo_of(setup, &["build", "--package", "tunebook", "--features", "cuda"]);
            process::run(&mut with_gpu(command), "cargo build --features cuda")
        });
        if !toolkit.has_gpu() {
            return self.skip("the tests of the CUDA code: no NVIDIA GPU here");
        }
        let words = [
            "test",
            "--no-fail-fast",
            "--color=never",
            "--package",
            "tunebook-models",
            "--package",
            "tunebook-tune",
        ];
        let mut command = Self::cargo_of(setup, &words);
        command.args([
            "--features",
            "tunebook-models/cuda,tunebook-tune/cuda",
            "--",
            "--include-ignored",
            "gpu_",
        ]);
        self.runs("on the GPU", &mut with_gpu(command));
    }

    fn kernel(&mut self, setup: &Setup) {
        let mut command = self.cargo(
            setup,
            &["test", "--no-fail-fast", "--color=never"],
            &["tunebook-kernel".to_owned()],
        );
        command.arg("--target-dir").arg(setup.kernel_target()).env("RUSTFLAGS", "");
        if self.long {
            command.args(["--", "--include-ignored"]);
        }
        self.runs("kernel", &mut command);
    }

    /// The installed kernel, spoken to as a Jupyter client does: the `test_*.py` of `tests/kernel`.
    fn protocol(&mut self, setup: &Setup) {
        let mut command = process::command(setup.python());
        command
            .args([
                "-m",
                "unittest",
                "discover",
                "--start-directory",
                "tests/kernel",
                "--pattern",
                "test_*.py",
            ])
            .arg("--verbose")
            .env("TUNEBOOK_TEST_OUT", setup.target.join("tunebook/kernel-tests"))
            .current_dir(&setup.root);
        if self.long {
            command.env("TUNEBOOK_LONG", "1").env("RESTARTS", "20");
        }
        self.runs("the kernel as a Jupyter client sees it", &mut command);
    }

    /// jupyter_kernel_test's suite, test by test, on our kernel and on the stock one.
    fn suite(&mut self, setup: &Setup) {
        let mut command = process::command(setup.python());
        command.arg(setup.root.join("tests/kernel/report_suite.py")).current_dir(&setup.root);
        self.one("jupyter_kernel_test beside the stock kernel", || {
            process::run(&mut command, "jupyter_kernel_test's suite")
        });
    }

    /// The notebook runner itself, on small notebooks that say what has to come of them.
    fn runner(&mut self, setup: &Setup, kernel: &str) -> Result<()> {
        let folder = setup.root.join("tests/notebooks");
        for path in notebook::in_folder(&folder)? {
            let expected = Expected::read(&path)?;
            self.one(&format!("{} on {kernel}", name(&setup.root, &path)), || {
                let out = setup.target.join("tunebook/test-notebooks").join(kernel);
                expected.judge(Execution { notebook: &path, kernel, out: &out }.run(setup))
            });
        }
        Ok(())
    }

    fn course(&mut self, setup: &Setup, kernel: &str) -> Result<()> {
        for path in notebook::in_folder(&setup.root.join("notebooks"))? {
            let out = setup.root.join("out").join(if kernel == "tunebook" { "" } else { kernel });
            self.one(&format!("{} on {kernel}", name(&setup.root, &path)), || {
                Execution { notebook: &path, kernel, out: &out }.run(setup)
            });
        }
        Ok(())
    }

    fn cargo_of(setup: &Setup, words: &[&str]) -> Command {
        let mut command = process::cargo(&setup.root);
        command.args(words).arg("--locked");
        command
    }

    fn cargo(&self, setup: &Setup, words: &[&str], packages: &[String]) -> Command {
        let mut command = Self::cargo_of(setup, words);
        for package in packages {
            command.args(["--package", package]);
        }
        command.env("TUNEBOOK_NOTEBOOK_PYTHON", setup.python());
        if setup.peers_python().is_some() {
            command.env("TUNEBOOK_PEERS", setup.peers_folder());
        }
        command
    }

    /// A part that is one test.
    fn one(&mut self, name: &str, test: impl FnOnce() -> Result<()>) {
        println!("\n=== {name}");
        match test() {
            Ok(()) => self.tally.passed += 1,
            Err(error) => {
                println!("{error}");
                self.failure(name, &error);
            }
        }
    }

    /// A part that counts its own tests.
    fn runs(&mut self, name: &str, command: &mut Command) {
        println!("\n=== {name}");
        let mut screen = NextestScreen::default();
        match process::show_and_keep(command, move |line| screen.is_shown(line)) {
            Ok((succeeded, text)) => {
                let tally = Tally::of_run(succeeded, &text);
                if tally.failed > 0 {
                    self.failures.push(format!("{name}: {tally}"));
                }
                self.tally += tally;
            }
            Err(error) => self.failure(name, &error),
        }
    }

    fn skip(&mut self, what: &str) {
        println!("\n=== skipped: {what}");
        self.tally.skipped += 1;
    }

    fn failure(&mut self, name: &str, error: &Error) {
        self.tally.failed += 1;
        self.failures.push(format!("{name}: {error}"));
    }
}

/// What a test notebook says must come of it, in its metadata: `"expected": "success"`, or
/// `"expected": {"cell": 2, "starts_with": "…"}` for the cell that must fail.
#[derive(Debug, PartialEq, Eq)]
enum Expected {
    Success,
    Failure { summary: String },
}

impl Expected {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let wrong = |what: &str| Error::Other(format!("{}: {what}", path.display()));
        let notebook: Value =
            serde_json::from_str(&text).map_err(|error| wrong(&error.to_string()))?;
        let expected = &notebook["metadata"]["expected"];
        if expected == "success" {
            return Ok(Self::Success);
        }
        match (expected["cell"].as_u64(), expected["starts_with"].as_str()) {
            (Some(cell), Some(line)) => {
                Ok(Self::Failure { summary: format!("cell {cell} failed: {line}") })
            }
            _ => Err(wrong(
                "metadata.expected must be \"success\" or {\"cell\": N, \"starts_with\": LINE}",
            )),
        }
    }

    fn judge(&self, result: Result<()>) -> Result<()> {
        match (self, result) {
            (Self::Success, result) => result,
            (Self::Failure { summary }, Err(Error::Notebook { summary: found, .. }))
                if found.starts_with(summary) =>
            {
                println!("(as it must)");
                Ok(())
            }
            (Self::Failure { summary }, Ok(())) => {
                Err(Error::Other(format!("it ended well, but had to end with: {summary}")))
            }
            (Self::Failure { summary }, Err(error)) => {
                Err(Error::Other(format!("it had to end with: {summary}\nbut ended with: {error}")))
            }
        }
    }
}

/// The workspace's crates but the kernel, which is built apart.
fn crates(root: &Path) -> Result<Vec<String>> {
    let text = process::capture(
        process::cargo(root).args(["metadata", "--no-deps", "--format-version=1", "--offline"]),
        "cargo metadata",
    )?;
    let metadata: Value = serde_json::from_str(&text).unwrap_or_default();
    let names =
        metadata["packages"].as_array().into_iter().flatten().filter_map(|p| p["name"].as_str());
    Ok(names
        .filter(|name| !["tunebook-kernel", "workspace-hack"].contains(name))
        .map(str::to_owned)
        .collect())
}

fn has_component(root: &Path, name: &str) -> bool {
    process::capture(process::cargo(root).args([name, "--version"]), name).is_ok()
}

fn name(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notebook_that_must_fail_may_not_end_well_nor_fail_elsewhere() {
        let failure = |summary: &str| {
            Err(Error::Notebook { notebook: "n.ipynb".into(), summary: summary.to_owned() })
        };
        let expected = Expected::Failure { summary: "cell 2 failed: panic!".to_owned() };
        assert!(expected.judge(failure("cell 2 failed: panic!(\"x\")")).is_ok());
        assert!(expected.judge(failure("cell 1 failed: panic!(\"x\")")).is_err());
        assert!(expected.judge(Ok(())).is_err());
        assert!(Expected::Success.judge(failure("cell 1 failed: x")).is_err());
        assert!(Expected::Success.judge(Ok(())).is_ok());
    }
}
