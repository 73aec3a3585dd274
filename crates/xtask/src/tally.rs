//! Counting tests: what passed, failed and was skipped, over several runners.

use std::fmt;

/// Counts of tests.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Ended well.
    pub passed: usize,
    /// Did not.
    pub failed: usize,
    /// Were not run.
    pub skipped: usize,
}

impl Tally {
    /// Reads the counts out of what `cargo nextest run` or `cargo test` wrote. A passed test that
    /// wrote a line `SKIPPED: why` counts as skipped. A run that failed without a failed test (it
    /// did not compile) counts as one failure.
    pub fn of_run(succeeded: bool, text: &str) -> Self {
        let mut tally = Self::default();
        let mut told = 0;
        // nextest shows what each test's own process wrote, a libtest result included.
        let is_nextest = text.lines().any(|line| line.trim_start().starts_with("Summary ["));
        for line in text.lines() {
            // A test that finds out while it runs that something it needs is missing ends well and
            // says so.
            if line.trim_start().starts_with("SKIPPED: ") {
                tally.skipped += 1;
                told += 1;
                continue;
            }
            // nextest: "Summary [   3.4s] 12 tests run: 10 passed (1 slow), 2 failed, 1 skipped"
            // libtest: "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out;
            // ..."
            let counts = match line.trim_start() {
                summary if summary.starts_with("Summary [") => {
                    summary.split_once(" run: ").map(|(_, rest)| rest)
                }
                _ if is_nextest => None,
                result => result
                    .strip_prefix("test result: ")
                    .and_then(|r| r.split_once(". "))
                    .map(|(_, rest)| rest),
            };
            for part in counts.unwrap_or_default().split([',', ';']) {
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
        }
        tally += Self::of_unittest(text);
        tally.passed = tally.passed.saturating_sub(told);
        if !succeeded && tally.failed == 0 {
            tally.failed = 1;
        }
        tally
    }

    /// Python's unittest: "Ran 14 tests in 40.2s", then "OK (skipped=1)" or "FAILED (failures=1,
    /// errors=2)".
    fn of_unittest(text: &str) -> Self {
        let mut tally = Self::default();
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
        for (kind, count) in details.split(", ").filter_map(|detail| detail.split_once('=')) {
            let count = count.parse().unwrap_or(0);
            match kind {
                "failures" | "errors" | "unexpected successes" => tally.failed += count,
                "skipped" => tally.skipped += count,
                _ => {}
            }
        }
        tally.passed = ran.saturating_sub(tally.failed + tally.skipped);
        tally
    }
}

/// Tells which lines of nextest belong on the screen: all but what passing tests wrote, unless it
/// says that they skipped.
#[derive(Debug, Default)]
pub struct NextestScreen {
    in_passed: bool,
}

impl NextestScreen {
    /// Whether this line is shown.
    pub fn is_shown(&mut self, line: &str) -> bool {
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
        !self.in_passed || words.starts_with("SKIPPED: ")
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

    #[test]
    fn nextest_summaries() {
        let text = "    PASS [   0.005s] a b\n------------\n     Summary [   0.055s] 3 tests run: 3 passed, 0 skipped\n";
        assert_eq!(Tally::of_run(true, text), tally(3, 0, 0));
        let text = "     Summary [  61.055s] 9 tests run: 5 passed (1 slow), 3 failed, 1 timed out, 2 skipped\n";
        assert_eq!(Tally::of_run(false, text), tally(5, 4, 2));
        assert_eq!(
            Tally::of_run(true, "     Summary [ 0.1s] 1 test run: 1 passed, 0 skipped"),
            tally(1, 0, 0)
        );
    }

    #[test]
    fn what_nextest_shows_of_a_test_is_not_counted_again() {
        let text = "  stdout ───\n    test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out\n\
                    Summary [   0.055s] 3 tests run: 3 passed, 0 skipped\n";
        assert_eq!(Tally::of_run(true, text), tally(3, 0, 0));
    }

    #[test]
    fn libtest_results_add_up() {
        let text = "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.0s\n\
                    test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 4 filtered out\n";
        assert_eq!(Tally::of_run(false, text), tally(7, 1, 1));
    }

    #[test]
    fn unittest_results() {
        let text =
            "...\n-----\nRan 14 tests in 40.2s\n\nFAILED (failures=1, errors=2, skipped=3)\n";
        assert_eq!(Tally::of_run(false, text), tally(8, 3, 3));
        assert_eq!(Tally::of_run(true, "Ran 1 test in 0.1s\n\nOK\n"), tally(1, 0, 0));
        assert_eq!(Tally::of_run(true, "Ran 5 tests in 0.1s\n\nOK (skipped=2)\n"), tally(3, 0, 2));
    }

    #[test]
    fn a_test_that_says_it_skipped_did_not_pass() {
        let text = "  stderr ───\n    SKIPPED: no torch\n  Summary [ 0.1s] 3 tests run: 3 passed, 0 skipped\n";
        assert_eq!(Tally::of_run(true, text), tally(2, 0, 1));
    }

    #[test]
    fn a_run_that_fails_without_a_failed_test_is_a_failure() {
        assert_eq!(Tally::of_run(false, "error: could not compile `x`"), tally(0, 1, 0));
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
