//! The closing report of `cargo xtask test`: time and counts of each part, the slowest tests, the
//! budget, skips and failures.

use std::fmt::Write as _;
use std::time::Duration;

use crate::setup::duration;
use crate::tally::{Skip, Tally};

/// Time that all parts together may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// The time, on a machine with two cores.
    pub time: Duration,
    /// The state of the build directory for which it holds.
    pub state: &'static str,
}

/// With nothing compiled yet.
pub(crate) const COLD: Budget =
    Budget { time: Duration::from_secs(55 * 60), state: "nothing compiled" };
/// With the dependencies compiled.
pub(crate) const COMPILED: Budget =
    Budget { time: Duration::from_secs(20 * 60), state: "compiled" };

/// A part of the run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Part {
    /// Its name.
    pub name: String,
    /// Wall-clock time.
    pub time: Duration,
    /// Its tests.
    pub tally: Tally,
}

/// Everything that the end of a run says.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// The parts in the order in which they ran.
    pub parts: Vec<Part>,
    /// Seconds and names of the slowest tests, the slowest first.
    pub slowest: Vec<(f64, String)>,
    /// Skipped tests, each with its part.
    pub skips: Vec<(String, Skip)>,
    /// Parts that need hardware that is not there. They are neither skips nor failures.
    pub not_run: Vec<String>,
    /// Failures in their own words.
    pub failures: Vec<String>,
}

impl Report {
    /// Counts every skip as a failure with its reason, as `--long` does.
    pub(crate) fn skips_are_failures(&mut self) {
        for part in &mut self.parts {
            let silent = part.tally.skipped
                - self.skips.iter().filter(|(name, _)| *name == part.name).count();
            if silent > 0 {
                self.failures.push(format!("{}: {silent} skipped without a reason", part.name));
            }
            part.tally.failed += std::mem::take(&mut part.tally.skipped);
        }
        for (part, Skip { test, reason }) in std::mem::take(&mut self.skips) {
            self.failures.push(format!("{part}: {test} skipped: {reason}"));
        }
    }

    /// The counts of all parts.
    pub(crate) fn tally(&self) -> Tally {
        let mut sum = Tally::default();
        for part in &self.parts {
            sum += part.tally;
        }
        sum
    }

    /// The report as text; its last line holds the counts.
    pub(crate) fn text(&self, total: Duration, budget: Option<Budget>) -> String {
        let tally = self.tally();
        let mut text = self.table(total, tally);
        if !self.slowest.is_empty() {
            text.push_str("\nslowest tests\n");
            for (seconds, name) in &self.slowest {
                let _ = writeln!(text, "{seconds:>8.1} s  {name}");
            }
        }
        text.push('\n');
        if let Some(budget) = budget {
            text.push_str(&verdict(total, budget));
        }
        for what in &self.not_run {
            let _ = writeln!(text, "not run: {what}");
        }
        for (reason, tests) in self.skip_reasons() {
            let first = tests.first().copied().unwrap_or_default();
            let others = match tests.len() {
                1 => String::new(),
                count => format!(" and {} more", count - 1),
            };
            let _ = writeln!(text, "skipped {first}{others}: {reason}");
        }
        for failure in &self.failures {
            let _ = writeln!(text, "FAILED {failure}");
        }
        let _ = writeln!(text, "{tally}");
        text
    }

    fn table(&self, total: Duration, tally: Tally) -> String {
        let width = self.parts.iter().map(|part| part.name.chars().count()).max().unwrap_or(0);
        let width = width.max("total".len());
        let mut text = format!(
            "{:width$}  {:>11}  {:>6}  {:>6}  {:>7}\n",
            "part", "time", "passed", "failed", "skipped"
        );
        let mut row = |name: &str, time: Duration, tally: Tally| {
            let _ = writeln!(
                text,
                "{name:width$}  {:>11}  {:>6}  {:>6}  {:>7}",
                duration(time),
                tally.passed,
                tally.failed,
                tally.skipped
            );
        };
        for part in &self.parts {
            row(&part.name, part.time, part.tally);
        }
        row("total", total, tally);
        text
    }

    /// Each reason once, in the order of its first test, with its tests.
    fn skip_reasons(&self) -> Vec<(&str, Vec<&str>)> {
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for (_, Skip { test, reason }) in &self.skips {
            match reasons.iter_mut().find(|(known, _)| known == reason) {
                Some((_, tests)) => tests.push(test),
                None => reasons.push((reason, vec![test])),
            }
        }
        reasons
    }
}

fn verdict(total: Duration, Budget { time, state }: Budget) -> String {
    let budget = format!("the budget of {} ({state})", duration(time));
    if total <= time {
        return format!("{} of {budget}\n", duration(total));
    }
    format!("WARNING: {} over {budget}: {}\n", duration(total - time), duration(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn part(name: &str, time: u64, (passed, failed, skipped): (usize, usize, usize)) -> Part {
        Part { name: name.to_owned(), time: secs(time), tally: Tally { passed, failed, skipped } }
    }

    fn skip(part: &str, test: &str, reason: &str) -> (String, Skip) {
        (part.to_owned(), Skip { test: test.to_owned(), reason: reason.to_owned() })
    }

    fn report() -> Report {
        Report {
            parts: vec![part("formatting", 1, (1, 0, 0)), part("tests", 700, (10, 1, 3))],
            slowest: vec![(61.25, "a::it slow".to_owned())],
            skips: vec![skip("tests", "x", "no torch"), skip("tests", "y", "no torch")],
            not_run: vec!["the CUDA tests: no GPU".to_owned()],
            failures: vec!["tests: 10 passed, 1 failed".to_owned()],
        }
    }

    #[test]
    fn the_table_and_the_closing_lines() {
        let expected = "\
part               time  passed  failed  skipped
formatting        1.0 s       1       0        0
tests       11 min 40 s      10       1        3
total       11 min 45 s      11       1        3

slowest tests
    61.2 s  a::it slow

11 min 45 s of the budget of 20 min 0 s (compiled)
not run: the CUDA tests: no GPU
skipped x and 1 more: no torch
FAILED tests: 10 passed, 1 failed
11 passed, 1 failed, 3 skipped
";
        assert_eq!(report().text(secs(705), Some(COMPILED)), expected);
    }

    #[test]
    fn over_the_budget_is_a_warning_and_no_failure() {
        let text = Report::default().text(secs(56 * 60), Some(COLD));
        assert!(
            text.contains(
                "\nWARNING: 1 min 0 s over the budget of 55 min 0 s (nothing compiled): 56 min 0 s\n"
            ),
            "{text}"
        );
        assert!(text.ends_with("\n0 passed, 0 failed\n"), "{text}");
    }

    #[test]
    fn a_skip_can_be_a_failure_but_hardware_that_is_not_there_is_none() {
        let mut report = report();
        report.skips_are_failures();
        assert_eq!(report.tally(), Tally { passed: 11, failed: 4, skipped: 0 });
        let expected = [
            "tests: 10 passed, 1 failed",
            "tests: 1 skipped without a reason",
            "tests: x skipped: no torch",
            "tests: y skipped: no torch",
        ];
        assert_eq!(report.failures, expected);
        assert_eq!(report.not_run.len(), 1);
    }
}
