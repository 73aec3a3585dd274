//! How far the set-up is, and how long it will still take.
//!
//! Cargo counts crates, and of 700 one alone takes a fifth of the time. Here every package weighs what
//! it took when it was measured (`weights.txt`), and the time left comes from how fast this machine has
//! been so far. One bar goes over all steps. Where standard error is no terminal, a line now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::process;

const WEIGHTS: &str = include_str!("weights.txt");
/// Characters of the bar.
const WIDTH: usize = 24;
/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);
/// Work done before the machine's own speed is believed, in seconds of one core.
const BELIEVED_AFTER: f64 = 60.0;

/// What the packages of one compiling step weigh, in seconds of one core.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Weights {
    named: BTreeMap<String, f64>,
    /// All others together, and each.
    others: f64,
    other: f64,
}

impl Weights {
    /// Those of the step with this name in the measured list.
    pub(super) fn of(step: &str) -> Self {
        Self::read(WEIGHTS, step)
    }

    fn read(text: &str, step: &str) -> Self {
        let mut weights = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.split_whitespace();
            if words.next() != Some(step) {
                continue;
            }
            let (Some(name), Some(secs)) = (words.next(), words.next()) else { continue };
            let secs: f64 = secs.parse().unwrap_or(1.0);
            if name == "*" {
                let count: f64 = words.next().and_then(|n| n.parse().ok()).unwrap_or(1.0);
                (weights.others, weights.other) = (secs, secs / f64::max(count, 1.0));
            } else {
                weights.named.insert(name.to_owned(), secs);
            }
        }
        weights
    }

    fn get(&self, package: &str) -> f64 {
        self.named.get(package).copied().unwrap_or(self.other)
    }

    /// What is still to do with the packages that a stopped build left, named in cargo's
    /// fingerprints.
    fn left(&self, done: &BTreeSet<String>) -> f64 {
        let named = self.named.iter().filter(|(name, _)| !done.contains(*name));
        let named: f64 = named.map(|(_, secs)| secs).sum();
        named + if done.is_empty() { self.others } else { 0.0 }
    }
}

/// The packages whose library has been compiled to its end in a target folder.
fn compiled(target: &Path) -> BTreeSet<String> {
    let folders = fs::read_dir(target.join(".fingerprint")).into_iter().flatten().flatten();
    let finished = folders.filter_map(|folder| {
        let name = folder.file_name().into_string().ok()?;
        let package = name.rsplit_once('-')?.0.to_owned();
        let library = format!("lib-{}", package.replace('-', "_"));
        folder.path().join(library).exists().then_some(package)
    });
    finished.collect()
}

/// Work that is counted in seconds of one core.
#[derive(Debug)]
struct Work {
    cores: f64,
    begun: Instant,
    /// Everything, also what turns out on the way.
    total: f64,
    /// What is over.
    done: f64,
    /// The packages under way: name, weight, since when.
    running: Vec<(String, f64, Instant)>,
    /// What is being done, for the screen.
    what: String,
}

impl Work {
    /// Seconds of one core that the machine gives in a second.
    fn speed(&self, now: Instant) -> f64 {
        let secs = now.duration_since(self.begun).as_secs_f64();
        let so_far = self.done_at(now, self.cores);
        // Two cores' worth is what was measured; a part of the work has no use for more than four.
        let expected = self.cores.min(4.0);
        (so_far + BELIEVED_AFTER) / (secs + BELIEVED_AFTER / expected)
    }

    fn done_at(&self, now: Instant, speed: f64) -> f64 {
        let each = speed / self.running.len().max(1) as f64;
        let running = self.running.iter().map(|(_, weight, since)| {
            // A package under way is never counted as whole.
            (now.duration_since(*since).as_secs_f64() * each).min(0.9 * weight)
        });
        self.done + running.sum::<f64>()
    }

    /// A package has begun: so has an earlier one ended, for each core has one.
    fn start(&mut self, package: &str, weight: f64, expected: bool, now: Instant) {
        if !expected {
            self.total += weight;
        }
        while self.running.len() >= self.cores.max(1.0) as usize {
            // The one that is furthest, for its weight, is the likeliest to be over.
            let share = |(_, weight, since): &(String, f64, Instant)| {
                now.duration_since(*since).as_secs_f64() / weight.max(0.1)
            };
            let furthest = (0..self.running.len())
                .max_by(|&a, &b| share(&self.running[a]).total_cmp(&share(&self.running[b])))
                .unwrap_or(0);
            self.done += self.running.remove(furthest).1;
        }
        self.running.push((package.to_owned(), weight, now));
    }

    fn finish_running(&mut self) {
        self.done += self.running.drain(..).map(|(_, weight, _)| weight).sum::<f64>();
    }

    /// `[#####...] 34 %, about 11 min left: compiling polars-core`
    fn text(&self, now: Instant) -> String {
        let speed = self.speed(now);
        let done = self.done_at(now, speed.min(self.cores));
        let share = if self.total > 0.0 { (done / self.total).clamp(0.0, 1.0) } else { 1.0 };
        let full = (share * WIDTH as f64) as usize;
        let left = Duration::from_secs_f64(((self.total - done) / speed).max(0.0));
        let bar = "#".repeat(full) + &".".repeat(WIDTH - full);
        let heaviest = self.running.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        let what = match heaviest {
            Some((package, ..)) => format!("{}, {package}", self.what),
            None => self.what.clone(),
        };
        format!("[{bar}] {:.0} %, about {} left: {what}", 100.0 * share, about(left))
    }
}

/// `under a minute`, `11 min`.
pub(super) fn about(time: Duration) -> String {
    match (time.as_secs_f64() / 60.0).round() as u64 {
        0 => "under a minute".to_owned(),
        minutes => format!("{minutes} min"),
    }
}

/// The one bar of a set-up.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    work: Arc<Mutex<Work>>,
}

impl Progress {
    /// A set-up of so many seconds of one core.
    pub(super) fn new(total: f64) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let work = Work {
            cores: cores as f64,
            begun: Instant::now(),
            total,
            done: 0.0,
            running: Vec::new(),
            what: String::new(),
        };
        Self { work: Arc::new(Mutex::new(work)) }
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long all of it is expected to take here.
    pub(super) fn expected(&self) -> Duration {
        let work = self.work();
        Duration::from_secs_f64(work.total / work.cores.min(4.0))
    }

    /// A step that shows its own output, of so many seconds of one core, is over.
    pub(super) fn add(&self, secs: f64) {
        self.work().done += secs;
    }

    /// Runs a command that compiles, its standard error in the place of cargo's own progress.
    ///
    /// # Errors
    /// [`Error::Start`] when the program is not there; [`Error::Failed`] with a remedy for what its
    /// output names.
    pub(super) fn compile(
        &self,
        command: &mut Command,
        build: &Build,
        what: &'static str,
    ) -> Result<()> {
        let before = compiled(&build.target);
        let at_start = {
            let mut work = self.work();
            work.what = what.to_owned();
            work.done
        };
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| process::start_error(command, source))?;
        let (over, is_over) = std::sync::mpsc::channel::<()>();
        let kept = std::thread::scope(|scope| {
            let terminal = std::io::stderr().is_terminal();
            scope.spawn(move || {
                let every = if terminal { Duration::from_millis(500) } else { LINE_EVERY };
                while is_over
                    .recv_timeout(every)
                    .is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout)
                {
                    self.show(terminal);
                }
            });
            let kept =
                child.stderr.take().map(|stream| self.read(stream, build, &before, terminal));
            drop(over);
            kept.unwrap_or_default()
        });
        let status = child.wait().map_err(|source| process::start_error(command, source))?;
        let mut work = self.work();
        work.running.clear();
        if !status.success() {
            return Err(Error::Failed { what: what.to_owned(), status, remedy: remedy(&kept) });
        }
        // Whatever was estimated, the step is over.
        work.done = at_start + build.weights.left(&before);
        work.total = work.total.max(work.done);
        Ok(())
    }

    fn show(&self, terminal: bool) {
        let text = self.work().text(Instant::now());
        // The screen may be a closed pipe.
        let _ = match terminal {
            true => write!(std::io::stderr(), "\r\x1b[2K{text}"),
            false => writeln!(std::io::stderr(), "{text}"),
        };
    }

    /// Passes on what is no progress, and returns all that was written.
    fn read(
        &self,
        stream: impl std::io::Read,
        build: &Build,
        before: &BTreeSet<String>,
        terminal: bool,
    ) -> String {
        // The place of the bar is where the next line goes.
        let clear = || {
            let _ = terminal.then(|| write!(std::io::stderr(), "\r\x1b[2K"));
        };
        let kept = process::forward(stream, std::io::stderr(), |text| match progress_line(text) {
            Line::Compiling(package) => {
                let weight = build.weights.get(&package);
                let named = build.weights.named.contains_key(&package);
                let expected = if named { !before.contains(&package) } else { before.is_empty() };
                self.work().start(&package, weight, expected, Instant::now());
                false
            }
            Line::Finished => {
                self.work().finish_running();
                false
            }
            Line::Quiet => false,
            Line::Other => {
                clear();
                true
            }
        });
        clear();
        kept
    }
}

/// What a step compiles, and where.
#[derive(Debug)]
pub(super) struct Build {
    /// What its packages weigh.
    pub weights: Weights,
    /// The profile's folder in the target folder.
    pub target: PathBuf,
}

impl Build {
    /// What is still to be compiled, in seconds of one core.
    pub(super) fn left(&self) -> f64 {
        self.weights.left(&compiled(&self.target))
    }
}

#[derive(Debug, PartialEq)]
enum Line {
    Compiling(String),
    Finished,
    /// Progress of another kind.
    Quiet,
    Other,
}

/// Cargo's words about a package stand at the right of a column of twelve characters.
fn progress_line(text: &str) -> Line {
    let Some(rest) = text.strip_prefix("   ") else { return Line::Other };
    let mut words = rest.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some("Compiling"), Some(package), Some(version)) if version.starts_with('v') => {
            Line::Compiling(package.to_owned())
        }
        (Some("Finished"), ..) => Line::Finished,
        (Some("Downloading" | "Downloaded" | "Blocking" | "Updating" | "Locking"), ..) => {
            Line::Quiet
        }
        _ => Line::Other,
    }
}

/// What to do about a build that failed, for the causes that are the machine's.
fn remedy(text: &str) -> Option<String> {
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let advice = if has(&["No space left on device", "os error 28"]) {
        "The disk is full: make room, or set CARGO_TARGET_DIR to a folder with 12 GB. Then run the same command \
         again; what has been compiled is kept."
    } else if has(&["signal: 9", "SIGKILL", "Cannot allocate memory", "out of memory"]) {
        "The compiler was killed, as a rule for lack of memory: close other programs, or compile one crate at a time \
         with CARGO_BUILD_JOBS=1. Then run the same command again; what has been compiled is kept."
    } else if has(&["Could not resolve host", "failed to download", "spurious network error"]) {
        "This needs the network: check the connection (behind a proxy, set HTTPS_PROXY), then run the same command \
         again; what has been fetched is kept."
    } else if has(&["linker `cc` not found", "linking with `cc` failed"]) {
        "The linker failed: install a C compiler (Debian and Ubuntu: `sudo apt install build-essential`), then run \
         the same command again."
    } else {
        return None;
    };
    Some(advice.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str =
        "# a comment\nkernel big 100\nkernel small 10\nkernel * 20 40\nprelude big 1\n";

    fn work(total: f64, cores: f64) -> (Work, Instant) {
        let now = Instant::now();
        let running = Vec::new();
        (Work { cores, begun: now, total, done: 0.0, running, what: "kernel".to_owned() }, now)
    }

    #[test]
    fn weights_are_those_of_the_step() {
        let weights = Weights::read(LIST, "kernel");
        assert_eq!(
            (weights.get("big"), weights.get("small"), weights.get("other")),
            (100.0, 10.0, 0.5)
        );
        assert_eq!(weights.left(&BTreeSet::new()), 130.0);
        assert_eq!(weights.left(&BTreeSet::from(["big".to_owned()])), 10.0);
        assert_eq!(Weights::read(LIST, "prelude").left(&BTreeSet::new()), 1.0);
    }

    #[test]
    fn the_measured_list_is_whole() {
        for (step, package) in [("kernel", "ra_ap_hir_ty"), ("prelude", "polars-core")] {
            let weights = Weights::of(step);
            assert!(weights.get(package) > 10.0 && weights.other > 0.0, "{step}: {weights:?}");
        }
        let bad = WEIGHTS.lines().filter(|line| !line.starts_with('#')).find(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            !matches!(words[0], "kernel" | "prelude") || words[2].parse::<f64>().is_err()
        });
        assert_eq!(bad, None);
    }

    #[test]
    fn the_bar_never_goes_back_and_ends_full() {
        let weights = Weights::read(LIST, "kernel");
        let (mut work, begin) = work(weights.left(&BTreeSet::new()), 2.0);
        let share = |work: &Work, secs: u64| {
            let now = begin + Duration::from_secs(secs);
            work.done_at(now, work.speed(now)) / work.total
        };
        let mut last = 0.0;
        for (secs, package) in [(0, "big"), (0, "a"), (1, "b"), (2, "small"), (40, "c")] {
            let now = begin + Duration::from_secs(secs);
            work.start(package, weights.get(package), true, now);
            let share = share(&work, secs);
            assert!(share >= last && share < 1.0, "{package}: {share} after {last}");
            last = share;
        }
        work.finish_running();
        work.done = work.total;
        assert!(
            work.text(begin + Duration::from_secs(60))
                .contains("] 100 %, about under a minute left")
        );
    }

    #[test]
    fn a_heavy_package_ends_when_its_time_is_over() {
        let (mut work, begin) = work(200.0, 2.0);
        let at = |secs: u64| begin + Duration::from_secs(secs);
        work.start("heavy", 40.0, true, at(0));
        for step in 0..20 {
            work.start("light", 5.0, true, at(5 * step));
        }
        assert!(work.text(at(100)).ends_with("light"), "{}", work.text(at(100)));
    }

    #[test]
    fn a_slow_machine_is_believed_after_a_while() {
        let (mut work, begin) = work(600.0, 2.0);
        let left = |work: &Work, secs: u64| {
            let now = begin + Duration::from_secs(secs);
            (work.total - work.done_at(now, work.speed(now))) / work.speed(now)
        };
        assert!((280.0..=300.0).contains(&left(&work, 0)), "{}", left(&work, 0));
        work.done = 100.0; // in 200 s: a quarter of the speed that was expected
        let slow = left(&work, 200);
        assert!((550.0..=1000.0).contains(&slow), "{slow}");
    }

    #[test]
    fn what_was_not_expected_makes_the_work_more() {
        let (mut work, now) = work(10.0, 1.0);
        work.start("new", 5.0, false, now);
        assert_eq!(work.total, 15.0);
    }

    #[test]
    fn cargos_lines_are_told_from_messages() {
        let compiling = Line::Compiling("polars-core".to_owned());
        assert_eq!(progress_line("   Compiling polars-core v0.55.2\n"), compiling);
        assert_eq!(progress_line("    Finished `dev` profile [optimized] in 3s\n"), Line::Finished);
        assert_eq!(progress_line("    Blocking waiting for file lock\n"), Line::Quiet);
        for text in
            ["error[E0308]: mismatched types\n", "   --> src/lib.rs:1:1\n", "Warming the kernel\n"]
        {
            assert_eq!(progress_line(text), Line::Other, "{text}");
        }
    }

    #[test]
    fn causes_of_the_machine_have_a_remedy() {
        for (text, word) in [
            ("error: No space left on device (os error 28)", "CARGO_TARGET_DIR"),
            ("process didn't exit successfully: (signal: 9, SIGKILL: kill)", "CARGO_BUILD_JOBS=1"),
            ("error: failed to download `x`", "HTTPS_PROXY"),
            ("error: linking with `cc` failed: exit status: 1", "build-essential"),
        ] {
            assert!(remedy(text).is_some_and(|remedy| remedy.contains(word)), "{text}");
        }
        assert_eq!(remedy("error[E0308]: mismatched types"), None);
    }

    #[test]
    fn a_command_is_followed_to_its_end() {
        let target = PathBuf::from("no-such-folder");
        let build = Build { weights: Weights::read(LIST, "kernel"), target };
        let progress = Progress::new(build.left() + 10.0);
        let lines = "echo '   Compiling big v1' >&2; echo '    Finished x' >&2";
        progress.compile(process::command("sh").args(["-c", lines]), &build, "kernel").unwrap();
        let counted = {
            let work = progress.work();
            (work.done, work.total)
        };
        assert_eq!(counted, (130.0, 140.0));
        let full = "echo 'No space left on device' >&2; exit 1";
        let error = progress.compile(process::command("sh").args(["-c", full]), &build, "kernel");
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("kernel failed") && error.contains("make room"), "{error}");
    }
}
