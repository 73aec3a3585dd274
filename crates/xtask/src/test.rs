//! `cargo xtask test`: everything that a change must pass.
//!
//! A failed part does not stop the parts after it. The report at the end has a table of times and
//! counts, and the closing line counts all tests ([`crate::report`]). The order is cheap before
//! expensive. Dependencies are compiled once: the tests, the prelude and the kernel's warm template
//! share them (same profile, target triple, flags and features).

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::features;
use crate::gpu_kit;
use crate::notebook::{self, Execution};
use crate::process;
use crate::report::{self, Part, Report};
use crate::setup::{Setup, cuda};
use crate::tally::{NextestScreen, Outcome, Skip, Tally};
use crate::test_files;
use crate::unused;

/// Tests named in the report for their time.
const SLOWEST: usize = 10;
/// Files of the kernel's tests that run at a time.
const TEST_FILES_AT_ONCE: usize = 2;

/// Runs the tests and prints the report.
///
/// # Errors
/// [`Error::Tests`] when something failed; with `long`, when something was skipped, too.
pub(crate) fn run(long: bool) -> Result<()> {
    let start = Instant::now();
    let setup = Setup::locate_for_tests()?;
    let budget = if setup.has_compiled() { report::COMPILED } else { report::COLD };
    let mut tests = Tests { long, setup: &setup, open: None, report: Report::default() };
    if let Err(error) = tests.all() {
        tests.failure(&error);
    }
    tests.close();
    let mut report = tests.report;
    if long {
        report.skips_are_failures();
    }
    let budget = (!long).then_some(budget);
    println!("\n=== {}", if long { "long tests" } else { "tests" });
    print!("{}", report.text(start.elapsed(), budget));
    match report.tally().failed {
        0 => Ok(()),
        failed => Err(Error::Tests { failed }),
    }
}

struct Tests<'a> {
    long: bool,
    setup: &'a Setup,
    /// The part that runs, and when it began.
    open: Option<(Part, Instant)>,
    report: Report,
}

impl Tests<'_> {
    /// Every part in order.
    ///
    /// # Errors
    /// Only for a failed set-up, which makes the parts after it pointless.
    fn all(&mut self) -> Result<()> {
        let setup = self.setup;
        self.begin("set-up: downloads");
        setup.ensure_fetched()?;
        setup.ensure_test_python()?;
        if self.long {
            self.peers()?;
        }
        let crates = crates(&setup.root)?;

        self.formatting();
        self.begin("unused dependencies");
        self.one(|| unused::check(&setup.root));
        self.begin("features of shared dependencies");
        self.one(|| features::check(&setup.root));
        self.clippy(&crates);
        self.crates(&crates);
        self.examples(&crates);
        self.kernel();
        if self.long {
            self.kernel_clippy();
            self.cuda();
        }

        self.begin("set-up: kernel and prelude");
        setup.ensure()?;
        self.protocol()?;
        if self.long {
            self.suite();
        }
        for kernel in self.kernelspecs() {
            self.runner(kernel)?;
            self.course(kernel)?;
        }
        Ok(())
    }

    /// The Python packages that the long tests compare with.
    ///
    /// # Errors
    /// As [`Setup::ensure_peers`]. The packages of a few tests may fail alone.
    fn peers(&mut self) -> Result<()> {
        self.setup.ensure_peers()?;
        for result in [self.setup.ensure_llama_cpp(), self.setup.ensure_adapterhub().map(drop)] {
            if let Err(error) = result {
                self.failure(&error);
            }
        }
        Ok(())
    }

    /// The kernelspecs that notebooks are executed on.
    fn kernelspecs(&self) -> &'static [&'static str] {
        if self.long { &["tunebook", "tunebook-stock"] } else { &["tunebook"] }
    }

    fn formatting(&mut self) {
        self.begin("formatting");
        if !self.has_component("fmt") {
            return self.skip("rustfmt is not installed (`rustup component add rustfmt`)");
        }
        let mut command = process::cargo(&self.setup.root);
        self.one(|| process::run(command.args(["fmt", "--all", "--check"]), "cargo fmt --check"));
    }

    /// Unit and integration tests of all crates in one command, so that their dependencies are
    /// resolved and compiled once.
    fn crates(&mut self, crates: &[String]) {
        // The output of passing tests is needed: a test says there that it skips, and why.
        let nextest: &[&str] = &["nextest", "run", "--color=never"];
        let libtest: &[&str] = &["test", "--lib", "--bins", "--tests", "--color=never"];
        let has_nextest = self.has_component("nextest");
        let words = if has_nextest { nextest } else { libtest };

        self.begin("compiling the tests");
        let mut command = self.cargo(words, crates);
        if let Err(error) = process::run(command.arg("--no-run"), "compiling the tests") {
            return self.failure(&error);
        }

        self.begin("unit and integration tests");
        let mut command = self.cargo(words, crates);
        command.arg("--no-fail-fast");
        match (has_nextest, self.long) {
            (true, true) => command.args(["--success-output=immediate", "--run-ignored=all"]),
            (true, false) => command.arg("--success-output=immediate"),
            (false, true) => command.args(["--", "--show-output", "--include-ignored"]),
            (false, false) => command.args(["--", "--show-output"]),
        };
        self.runs(&mut command);
    }

    fn examples(&mut self, crates: &[String]) {
        self.begin("examples in the documentation");
        // rustdoc tests no programs.
        let is_library = |name: &&String| name.as_str() != "xtask";
        let libraries: Vec<_> = crates.iter().filter(is_library).cloned().collect();
        let mut command =
            self.cargo(&["test", "--no-fail-fast", "--doc", "--color=never"], &libraries);
        self.runs(&mut command);
    }

    /// Lints of all crates but the kernel. `cargo check`, hence clippy, shares no artefacts of
    /// third-party crates with a build; docs/measurements.md has the cost.
    fn clippy(&mut self, crates: &[String]) {
        self.begin("clippy");
        if !self.has_component("clippy") {
            return self.skip("clippy is not installed (`rustup component add clippy`)");
        }
        let mut command = self.cargo(&["clippy", "--all-targets"], crates);
        command.args(["--", "--deny", "warnings"]);
        self.one(|| process::run(&mut command, "cargo clippy"));
    }

    /// Lints of the kernel: with `--long` only, since `cargo clippy` checks rust-analyzer's sources
    /// for the few lines of the kernel.
    fn kernel_clippy(&mut self) {
        self.begin("clippy on the kernel");
        if !self.has_component("clippy") {
            return self.skip("clippy is not installed (`rustup component add clippy`)");
        }
        let mut command = self.cargo(&["clippy", "--all-targets"], &["tunebook-kernel".to_owned()]);
        command.arg("--target-dir").arg(self.setup.kernel_target()).env("RUSTFLAGS", "");
        command.args(["--", "--deny", "warnings"]);
        self.one(|| process::run(&mut command, "cargo clippy"));
    }

    /// The code for NVIDIA GPUs: compiled everywhere, run where there is one.
    fn cuda(&mut self) {
        self.begin("CUDA");
        let setup = self.setup;
        let toolkit = match setup.ensure_cuda_toolkit() {
            Ok(toolkit) => toolkit,
            Err(error) => return self.failure(&error),
        };
        let with_gpu = |mut command: Command| {
            cuda::set(&mut command, &toolkit.environment());
            command
        };
        let words = ["build", "--package", "tunebook", "--features", "cuda"];
        let mut command = with_gpu(cargo(setup, &words));
        self.one(|| process::run(&mut command, "cargo build --features cuda"));
        self.named("the kernels' registers and shared memory", || gpu_kit::check_kernels(setup));
        self.named("the GPU kit", || gpu_kit::check(setup));
        if !toolkit.has_gpu() {
            self.report.not_run.push("the tests of the CUDA code: no GPU".to_owned());
            return;
        }
        let words = [
            "test",
            "--no-fail-fast",
            "--color=never",
            "--package",
            "tunebook-ops",
            "--package",
            "tunebook-models",
            "--package",
            "tunebook-tune",
        ];
        let mut command = cargo(setup, &words);
        command.args([
            "--features",
            "tunebook-ops/cuda,tunebook-models/cuda,tunebook-tune/cuda",
            "--",
            "--include-ignored",
            "gpu_",
        ]);
        self.runs(&mut with_gpu(command));
    }

    fn kernel(&mut self) {
        self.begin("kernel");
        let mut command = self
            .cargo(&["test", "--no-fail-fast", "--color=never"], &["tunebook-kernel".to_owned()]);
        command.arg("--target-dir").arg(self.setup.kernel_target()).env("RUSTFLAGS", "");
        if self.long {
            command.args(["--", "--include-ignored"]);
        }
        self.runs(&mut command);
    }

    /// The installed kernel, spoken to as a Jupyter client does: the `test_*.py` of `tests/kernel`.
    fn protocol(&mut self) -> Result<()> {
        self.begin("the kernel as a Jupyter client sees it");
        let (setup, long) = (self.setup, self.long);
        let command = |file: &Path| {
            let mut command = process::command(setup.python());
            command
                .args([
                    "-m",
                    "unittest",
                    "discover",
                    "--verbose",
                    "--start-directory",
                    "tests/kernel",
                ])
                .arg("--pattern")
                .arg(file.file_name().unwrap_or_default())
                .env("TUNEBOOK_TEST_OUT", setup.target.join("tunebook/kernel-tests"))
                .current_dir(&setup.root);
            if long {
                command.env("TUNEBOOK_LONG", "1").env("RESTARTS", "20");
            }
            command
        };
        let files = test_files::in_folder(&setup.root.join("tests/kernel"))?;
        for (_, outcome) in test_files::run(&files, TEST_FILES_AT_ONCE, command) {
            match outcome {
                Ok(outcome) => self.count(outcome),
                Err(error) => self.failure(&error),
            }
        }
        Ok(())
    }

    /// jupyter_kernel_test's suite, test by test, on our kernel and on the stock one.
    fn suite(&mut self) {
        self.begin("jupyter_kernel_test on both kernels");
        let mut command = process::command(self.setup.python());
        command
            .arg(self.setup.root.join("tests/kernel/report_suite.py"))
            .current_dir(&self.setup.root);
        self.one(|| process::run(&mut command, "jupyter_kernel_test's suite"));
    }

    /// The notebook runner itself, on small notebooks that state their expected end.
    fn runner(&mut self, kernel: &str) -> Result<()> {
        self.begin(&format!("test notebooks on {kernel}"));
        let setup = self.setup;
        for path in notebook::in_folder(&setup.root.join("tests/notebooks"))? {
            let expected = Expected::read(&path)?;
            self.named(&name(&setup.root, &path), || {
                let out = setup.target.join("tunebook/test-notebooks").join(kernel);
                expected.judge(
                    Execution { notebook: &path, kernel, out: &out, parameters: &[] }.run(setup),
                )
            });
        }
        Ok(())
    }

    /// The notebooks of the course, every cell. Without `--long` they train on a sixth of the rows
    /// and steps.
    fn course(&mut self, kernel: &str) -> Result<()> {
        let scale = if self.long { "small" } else { "check" };
        self.begin(&format!("course on {kernel}, {scale}"));
        let setup = self.setup;
        for path in notebook::in_folder(&setup.root.join("notebooks"))? {
            let out = setup.root.join("out").join(if kernel == "tunebook" { "" } else { kernel });
            self.named(&name(&setup.root, &path), || {
                Execution { notebook: &path, kernel, out: &out, parameters: &[] }
                    .run_with(setup, &[("TUNEBOOK_SCALE", scale.into())])
            });
        }
        Ok(())
    }

    /// `cargo` for these packages, with the variables that their tests read.
    fn cargo(&self, words: &[&str], packages: &[String]) -> Command {
        let mut command = cargo(self.setup, words);
        for package in packages {
            command.args(["--package", package]);
        }
        command.env("TUNEBOOK_NOTEBOOK_PYTHON", self.setup.python());
        if self.setup.peers_python().is_some() {
            command.env("TUNEBOOK_PEERS", self.setup.peers_folder());
        }
        if self.long && self.setup.adapterhub_folder().exists() {
            command.env("TUNEBOOK_ADAPTERHUB", self.setup.adapterhub_folder());
        }
        command
    }

    fn has_component(&self, name: &str) -> bool {
        let mut command = process::cargo(&self.setup.root);
        process::capture(command.args([name, "--version"]), name).is_ok()
    }

    /// Begins a part; the one before it ends.
    fn begin(&mut self, name: &str) {
        self.close();
        println!("\n=== {name}");
        let part = Part { name: name.to_owned(), time: Duration::ZERO, tally: Tally::default() };
        self.open = Some((part, Instant::now()));
    }

    fn close(&mut self) {
        if let Some((part, start)) = self.open.take() {
            self.report.parts.push(Part { time: start.elapsed(), ..part });
        }
    }

    fn part(&mut self) -> &mut Part {
        &mut self.open.get_or_insert_with(|| (Part::default(), Instant::now())).0
    }

    /// One test.
    fn one(&mut self, test: impl FnOnce() -> Result<()>) {
        match test() {
            Ok(()) => self.part().tally.passed += 1,
            Err(error) => self.failure(&error),
        }
    }

    /// One test of several in a part.
    fn named(&mut self, name: &str, test: impl FnOnce() -> Result<()>) {
        println!("\n--- {name}");
        self.one(|| test().map_err(|error| Error::Other(format!("{name}: {error}"))));
    }

    /// A command that counts its own tests.
    fn runs(&mut self, command: &mut Command) {
        let mut screen = NextestScreen::default();
        match process::show_and_keep(command, move |line| screen.is_shown(line)) {
            Ok((succeeded, text)) => self.count(Outcome::of_run(succeeded, &text)),
            Err(error) => self.failure(&error),
        }
    }

    fn count(&mut self, outcome: Outcome) {
        let slowest = outcome.slowest(SLOWEST).into_iter().cloned();
        self.report.slowest.extend(slowest);
        let name = self.part().name.clone();
        self.part().tally += outcome.tally;
        if outcome.tally.failed > 0 {
            self.report.failures.push(format!("{name}: {}", outcome.tally));
        }
        let skips = outcome.skips.into_iter().map(|skip| (name.clone(), skip));
        self.report.skips.extend(skips);
    }

    /// The whole part skips.
    fn skip(&mut self, reason: &str) {
        println!("skipped: {reason}");
        self.part().tally.skipped += 1;
        let name = self.part().name.clone();
        let skip = Skip { test: name.clone(), reason: reason.to_owned() };
        self.report.skips.push((name, skip));
    }

    fn failure(&mut self, error: &Error) {
        println!("{error}");
        self.part().tally.failed += 1;
        let name = self.part().name.clone();
        self.report.failures.push(format!("{name}: {error}"));
    }
}

/// The end that a test notebook must have, from its metadata: `"expected": "success"`, or
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

fn cargo(setup: &Setup, words: &[&str]) -> Command {
    let mut command = process::cargo(&setup.root);
    command.args(words).arg("--locked");
    command
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

    #[test]
    fn every_test_of_the_features_page_is_there() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let page = std::fs::read_to_string(root.join("docs/features.md")).unwrap();
        let mut tests = 0;
        for line in page.lines().filter(|line| line.contains("[`")) {
            let (_, link) = line.split_once("[`").unwrap();
            let (test, path) = link.split_once("`](../").unwrap();
            let path = path.split(')').next().unwrap();
            let text = std::fs::read_to_string(root.join(path)).unwrap_or_default();
            let is_there =
                ["fn", "def"].iter().any(|word| text.contains(&format!("{word} {test}(")));
            assert!(is_there, "no test `{test}` in {path}");
            tests += 1;
        }
        assert!(tests > 50, "{tests}");
    }
}
