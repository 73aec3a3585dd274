//! Counts of tests over several runners: passed, failed, skipped and why, and how long they took.

use std::fmt;

/// Counts of tests.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Ended well.
    pub passed: usize,
    /// Did not.
    pub failed: usize,
    /// Were not run.
    pub skipped: usize,
}

/// A run as a test runner's output describes it.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Outcome {
    /// The counts.
    pub tally: Tally,
    /// Skipped tests that gave a reason; the runner may have left out others without one.
    pub skips: Vec<Skip>,
    /// Tests with their times in seconds, as nextest reports them, in the order in which they
    /// ended.
    pub times: Vec<(f64, String)>,
}

/// A test that did not run, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skip {
    /// The test's name, as the runner prints it.
    pub test: String,
    /// Its own words.
    pub reason: String,
}

impl Outcome {
    /// Reads the output of `cargo nextest run`, `cargo test` or Python's `unittest --verbose`.
    ///
    /// A passed test that wrote a line `SKIPPED: why` (in capitals or not) counts as skipped. A run
    /// that failed without a failed test, because it did not compile, counts as one failure.
    pub(crate) fn of_run(succeeded: bool, text: &str) -> Self {
        let mut outcome = Self::default();
        let mut test = String::new();
        // nextest shows what each test's own process wrote, a libtest result included.
        let is_nextest = text.lines().any(|line| line.trim_start().starts_with("Summary ["));
        // Below its summary nextest names the failed tests again.
        let mut is_over = false;
        for line in text.lines() {
            let words = line.trim_start();
            is_over |= words.starts_with("Summary [");
            if let Some((seconds, name)) = nextest_test(line).filter(|_| !is_over) {
                outcome.times.push((seconds, name.to_owned()));
                test = name.to_owned();
            } else if !is_nextest && let Some(name) = libtest_heading(line) {
                test = name.to_owned();
            }
            if let Some(reason) = said_skipped(words) {
                outcome.skips.push(Skip { test: test.clone(), reason: reason.to_owned() });
                continue;
            }
            // nextest: "Summary [   3.4s] 12 tests run: 10 passed (1 slow), 2 failed, 1 skipped"
            // libtest: "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; ..."
            let counts = match words {
                summary if summary.starts_with("Summary [") => {
                    summary.split_once(" run: ").map(|(_, rest)| rest)
                }
                _ if is_nextest => None,
                result => result
                    .strip_prefix("test result: ")
                    .and_then(|r| r.split_once(". "))
                    .map(|(_, rest)| rest),
            };
            outcome.tally += Tally::of_counts(counts.unwrap_or_default());
        }
        let skipped = outcome.skips.len();
        outcome.tally.skipped += skipped;
        outcome.tally.passed = outcome.tally.passed.saturating_sub(skipped);
        outcome.read_unittest(text);
        if !succeeded && outcome.tally.failed == 0 {
            outcome.tally.failed = 1;
        }
        outcome
    }

    /// Python's unittest: a line `test_x (module.Class.test_x) ... skipped 'why'` for each skipped
    /// test, then "Ran 14 tests in 40.2s", then "OK (skipped=1)" or "FAILED (failures=1)".
    fn read_unittest(&mut self, text: &str) {
        let skips = text.lines().filter_map(|line| {
            let (test, reason) = line.split_once(" ... skipped ")?;
            let reason = reason.trim().trim_matches(['\'', '"']).to_owned();
            Some(Skip { test: test.to_owned(), reason })
        });
        self.skips.extend(skips);
        let mut lines =
            text.lines().skip_while(|line| !(line.starts_with("Ran ") && line.contains(" in ")));
        let ran = lines
            .next()
            .and_then(|line| line.split(' ').nth(1)?.parse::<usize>().ok())
            .unwrap_or(0);
        let verdict = lines
            .find(|line| line.starts_with("OK") || line.starts_with("FAILED"))
            .unwrap_or_default();
        let details =
            verdict.split_once('(').map_or("", |(_, rest)| rest.trim_end().trim_end_matches(')'));
        let mut tally = Tally::default();
        for (kind, count) in details.split(", ").filter_map(|detail| detail.split_once('=')) {
            let count = count.parse().unwrap_or(0);
            match kind {
                "failures" | "errors" | "unexpected successes" => tally.failed += count,
                "skipped" => tally.skipped += count,
                _ => {}
            }
        }
        tally.passed = ran.saturating_sub(tally.failed + tally.skipped);
        self.tally += tally;
    }

    /// The slowest tests, the slowest first.
    pub(crate) fn slowest(&self, count: usize) -> Vec<&(f64, String)> {
        let mut times: Vec<_> = self.times.iter().collect();
        times.sort_by(|a, b| b.0.total_cmp(&a.0));
        times.truncate(count);
        times
    }
}

/// The reason on a line with which a test says that it skips.
fn said_skipped(line: &str) -> Option<&str> {
    const WORD: &str = "skipped:";
    let reason = line.get(WORD.len()..)?;
    line[..WORD.len()].eq_ignore_ascii_case(WORD).then(|| reason.trim())
}

/// Seconds and name on nextest's line about a test that has ended:
/// `        PASS [   0.006s] ( 1/24) crate::it module::test`.
fn nextest_test(line: &str) -> Option<(f64, &str)> {
    let (status, rest) = line.trim_start().split_once(" [")?;
    // The output of a test stands further to the left. SLOW and TERMINATING are said of tests that
    // still run.
    let has_ended = line.len() - line.trim_start().len() >= 5
        && ["PASS", "FAIL", "ABORT", "TIMEOUT", "LEAK", "SIG"]
            .iter()
            .any(|s| status.starts_with(s));
    let (seconds, rest) = rest.split_once(']')?;
    let seconds = seconds.trim().trim_end_matches('s').parse().ok()?;
    let rest = rest.trim_start();
    let name = match rest.strip_prefix('(') {
        Some(numbered) => numbered.split_once(')')?.1.trim_start(),
        None => rest,
    };
    has_ended.then_some((seconds, name))
}

/// The name on the heading of what a test wrote, in `cargo test -- --show-output`:
/// `---- module::test stdout ----`.
fn libtest_heading(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

impl Tally {
    /// Adds up counts such as `10 passed (1 slow), 2 failed, 1 skipped`.
    fn of_counts(text: &str) -> Self {
        let mut tally = Self::default();
        for part in text.split([',', ';']) {
            let mut words = part.split_whitespace();
            let (Some(Ok(count)), Some(kind)) =
                (words.next().map(str::parse::<usize>), words.next())
            else {
                continue;
            };
            match kind {
                "passed" => tally.passed += count,
                "failed" | "timed" | "exec" => tally.failed += count,
                "skipped" | "ignored" => tally.skipped += count,
                _ => {}
            }
        }
        tally
    }
}

/// Tells which lines of nextest belong on the screen: all but what passing tests wrote, unless it
/// says that they skipped.
#[derive(Debug, Default)]
pub(crate) struct NextestScreen {
    in_passed: bool,
}

impl NextestScreen {
    /// Whether this line is shown.
    pub(crate) fn is_shown(&mut self, line: &str) -> bool {
        let words = line.trim_start();
        // "        PASS [   0.006s] ( 1/24) crate test"; what a test wrote stands below, further
        // left.
        let indent = line.len() - words.len();
        if indent >= 5
            && words
                .split_once(" [")
                .is_some_and(|(status, _)| status.chars().all(|c| c.is_ascii_uppercase()))
        {
            self.in_passed = words.starts_with("PASS");
            return true;
        }
        if line.starts_with('─') {
            self.in_passed = false;
        }
        !self.in_passed || said_skipped(words).is_some()
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// The closing line of `cargo xtask test`: `12 passed, 0 failed`, with `, 1 skipped` when there are
/// any.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        match self.skipped {
            0 => Ok(()),
            skipped => write!(f, ", {skipped} skipped"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(passed: usize, failed: usize, skipped: usize) -> Tally {
        Tally { passed, failed, skipped }
    }

    fn counts(succeeded: bool, text: &str) -> Tally {
        Outcome::of_run(succeeded, text).tally
    }

    #[test]
    fn nextest_summaries() {
        let text = "    PASS [   0.005s] a b\n------------\n     Summary [   0.055s] 3 tests run: 3 passed, 0 skipped\n";
        assert_eq!(counts(true, text), tally(3, 0, 0));
        let text = "     Summary [  61.055s] 9 tests run: 5 passed (1 slow), 3 failed, 1 timed out, 2 skipped\n";
        assert_eq!(counts(false, text), tally(5, 4, 2));
        assert_eq!(
            counts(true, "     Summary [ 0.1s] 1 test run: 1 passed, 0 skipped"),
            tally(1, 0, 0)
        );
    }

    #[test]
    fn what_nextest_shows_of_a_test_is_not_counted_again() {
        let text = "  stdout ───\n    test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out\n\
                    Summary [   0.055s] 3 tests run: 3 passed, 0 skipped\n";
        assert_eq!(counts(true, text), tally(3, 0, 0));
    }

    #[test]
    fn libtest_results_add_up() {
        let text = "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.0s\n\
                    test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 4 filtered out\n";
        assert_eq!(counts(false, text), tally(7, 1, 1));
    }

    #[test]
    fn unittest_results() {
        let text =
            "...\n-----\nRan 14 tests in 40.2s\n\nFAILED (failures=1, errors=2, skipped=3)\n";
        assert_eq!(counts(false, text), tally(8, 3, 3));
        assert_eq!(counts(true, "Ran 1 test in 0.1s\n\nOK\n"), tally(1, 0, 0));
        assert_eq!(counts(true, "Ran 5 tests in 0.1s\n\nOK (skipped=2)\n"), tally(3, 0, 2));
    }

    #[test]
    fn a_test_that_says_it_skipped_did_not_pass() {
        let text = "  stderr ───\n    SKIPPED: no torch\n  Summary [ 0.1s] 3 tests run: 3 passed, 0 skipped\n";
        assert_eq!(counts(true, text), tally(2, 0, 1));
    }

    #[test]
    fn a_skip_counts_however_it_is_written_and_keeps_its_reason() {
        let text = "        PASS [   0.008s] ( 1/44) tunebook-tune::it checkpoints::full_disk\n\
                    \u{20} stderr ───\n    skipped: this user may not mount a tmpfs\n\
                    \u{20}       PASS [  12.500s] (44/44) tunebook-tune::it peers::peft\n\
                    \u{20} stderr ───\n    SKIPPED: no torch\n     Summary [ 0.1s] 44 tests run: 44 passed, 0 skipped\n";
        let outcome = Outcome::of_run(true, text);
        assert_eq!(outcome.tally, tally(42, 0, 2));
        let skip = |test: &str, reason: &str| Skip { test: test.into(), reason: reason.into() };
        let expected = [
            skip("tunebook-tune::it checkpoints::full_disk", "this user may not mount a tmpfs"),
            skip("tunebook-tune::it peers::peft", "no torch"),
        ];
        assert_eq!(outcome.skips, expected);
        let text = "---- peers::peft stdout ----\nSKIPPED: no torch\n\n\
                    test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured\n";
        let outcome = Outcome::of_run(true, text);
        assert_eq!(
            (outcome.tally, outcome.skips),
            (tally(4, 0, 1), vec![skip("peers::peft", "no torch")])
        );
        let text =
            "test_x (m.C.test_x) ... skipped 'no browser'\nRan 2 tests in 0.1s\n\nOK (skipped=1)\n";
        let outcome = Outcome::of_run(true, text);
        let expected = vec![skip("test_x (m.C.test_x)", "no browser")];
        assert_eq!((outcome.tally, outcome.skips), (tally(1, 0, 1), expected));
    }

    #[test]
    fn the_slowest_tests_come_first() {
        let text = "        PASS [   0.008s] ( 1/4) a::it quick\n\
                    \u{20}       SLOW [> 60.000s] ( 2/4) a::it slow\n\
                    \u{20}       FAIL [  61.250s] ( 2/4) a::it slow\n\
                    \u{20} FLAKY [ 99.0s] of a test's own\n\
                    \u{20}       PASS [   2.000s] ( 3/4) a other\n\
                    \u{20}    Summary [  63.0s] 3 tests run: 2 passed, 1 failed, 0 skipped\n\
                    \u{20}       FAIL [  61.250s] ( 2/4) a::it slow\n";
        let outcome = Outcome::of_run(false, text);
        let slowest = outcome.slowest(2);
        assert_eq!(slowest, [&(61.25, "a::it slow".to_owned()), &(2.0, "a other".to_owned())]);
    }

    #[test]
    fn a_run_that_fails_without_a_failed_test_is_a_failure() {
        assert_eq!(counts(false, "error: could not compile `x`"), tally(0, 1, 0));
    }

    #[test]
    fn the_screen_leaves_out_what_passing_tests_wrote() {
        let text = "    Starting 3 tests\n\
                    \u{20}       PASS [   0.006s] (1/3) a b\n  stdout ───\n\n    running 1 test\n    SKIPPED: no torch\n\n\
                    \u{20}       FAIL [   0.006s] (2/3) a c\n  stderr ───\n    assertion failed\n\
                    \u{20}       PASS [   0.006s] (3/3) a d\n  stdout ───\n────────────\n     Summary [ 0.1s] 3 tests run\n";
        let mut screen = NextestScreen::default();
        let shown: Vec<_> =
            text.lines().filter(|line| screen.is_shown(line)).map(str::trim).collect();
        let expected = [
            "Starting 3 tests",
            "PASS [   0.006s] (1/3) a b",
            "SKIPPED: no torch",
            "FAIL [   0.006s] (2/3) a c",
            "stderr ───",
            "assertion failed",
            "PASS [   0.006s] (3/3) a d",
            "────────────",
            "Summary [ 0.1s] 3 tests run",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn the_closing_line() {
        assert_eq!(tally(12, 0, 0).to_string(), "12 passed, 0 failed");
        assert_eq!(tally(12, 1, 2).to_string(), "12 passed, 1 failed, 2 skipped");
    }
}
