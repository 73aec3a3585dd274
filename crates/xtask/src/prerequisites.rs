//! The prerequisites of a machine, checked in a second before anything long starts.
//!
//! Looking ([`look`]) and deciding ([`missing`]) are apart, so that the decisions are tested
//! without a machine that lacks something.

use std::path::{Path, PathBuf};

use crate::process;

/// The oldest Rust that evcxr compiles with.
const RUST: (u32, u32) = (1, 95);
/// The oldest Python that the pinned packages install on.
const PYTHON: (u32, u32) = (3, 10);
/// Disk space of kernel, prelude and the Python environment: 3.8 GB when it was measured.
pub(crate) const BUILD_BYTES: u64 = 5 << 30;
/// Of all that and the compiled tests.
pub(crate) const TEST_BYTES: u64 = 12 << 30;
/// The base model, and its wheel while it is being unpacked.
const MODEL_BYTES: u64 = 300 << 20;

/// The findings on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// `std::env::consts::OS`.
    pub os: String,
    /// `std::env::consts::ARCH`.
    pub arch: String,
    /// `/proc/version`, where there is one.
    pub kernel: String,
    /// `rustc --version --verbose`, when it could be started.
    pub rustc: Option<String>,
    /// Whether a C compiler answers.
    pub c_compiler: bool,
    /// The Python that will be used, when there is one.
    pub python: Option<Python>,
    /// Free space where the build goes and where the base model goes.
    pub free: Vec<Space>,
}

/// A Python interpreter.
#[derive(Debug, Clone)]
pub(crate) struct Python {
    /// The program to start.
    pub program: PathBuf,
    /// Major and minor version.
    pub version: (u32, u32),
    /// Whether `venv` can put pip into an environment (Debian packages that apart).
    pub venv: bool,
}

/// Free space in a folder, and what will still be needed there.
#[derive(Debug, Clone)]
pub(crate) struct Space {
    /// The folder.
    pub folder: PathBuf,
    /// Bytes free, when it could be found out.
    pub free_bytes: Option<u64>,
    /// Bytes that will be needed.
    pub needed_bytes: u64,
}

/// Looks at the machine. `build` and `cache` are where the build, of `build_bytes`, and the base model
/// go; what is there already need not fit again.
pub(crate) fn look(build: (&Path, bool), build_bytes: u64, cache: (&Path, bool)) -> Found {
    let space = |(folder, there): (&Path, bool), needed: u64| Space {
        folder: folder.to_path_buf(),
        free_bytes: free_bytes(folder),
        needed_bytes: if there { 512 << 20 } else { needed },
    };
    Found {
        os: std::env::consts::OS.to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        kernel: std::fs::read_to_string("/proc/version").unwrap_or_default(),
        rustc: process::capture(process::command("rustc").arg("-vV"), "rustc -vV").ok(),
        // rustc links with `cc`, whatever CC says.
        c_compiler: process::capture(process::command("cc").arg("--version"), "cc --version")
            .is_ok(),
        python: find_python(),
        free: vec![space(build, build_bytes), space(cache, MODEL_BYTES)],
    }
}

/// One line per missing thing, with its remedy; nothing when the machine is ready.
pub(crate) fn missing(found: &Found) -> Vec<String> {
    if let Some(refusal) = platform(&found.os, &found.arch, &found.kernel) {
        return vec![refusal];
    }
    let mut lines = Vec::new();
    match &found.rustc {
        None => lines.push(
            "Rust: `rustc` does not start. Install it from https://rustup.rs, then open a new shell."
                .to_owned(),
        ),
        Some(text) => {
            let field =
                |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim();
            let release = field("release:");
            if version(release).is_none_or(|found| found < RUST) {
                lines.push(format!(
                    "Rust {}.{} or newer: found {release}. Run `rustup update stable`.",
                    RUST.0, RUST.1
                ));
            }
            let host = field("host:");
            if !host.ends_with("-gnu") {
                lines.push(format!(
                    "a Rust for glibc: found `{host}`. Cells are loaded as shared libraries, which needs \
                     the `{}-unknown-linux-gnu` toolchain.",
                    found.arch
                ));
            }
        }
    }
    if !found.c_compiler {
        lines.push(
            "a C compiler: `cc` does not start. Debian and Ubuntu: `sudo apt install build-essential`; \
             Fedora: `sudo dnf install gcc`."
                .to_owned(),
        );
    }
    match &found.python {
        None => lines.push(format!(
            "Python {}.{} or newer: no `python3` on the PATH. Debian and Ubuntu: `sudo apt install python3 \
             python3-venv`; Fedora: `sudo dnf install python3`; or set TUNEBOOK_PYTHON.",
            PYTHON.0, PYTHON.1
        )),
        Some(python) if python.version < PYTHON => lines.push(format!(
            "Python {}.{} or newer: {} is {}.{}. Install a newer one and set TUNEBOOK_PYTHON to it.",
            PYTHON.0,
            PYTHON.1,
            python.program.display(),
            python.version.0,
            python.version.1
        )),
        Some(python) if !python.venv => lines.push(format!(
            "Python's venv module: {} cannot make an environment with pip in it. Debian and Ubuntu: \
             `sudo apt install python3-venv`.",
            python.program.display()
        )),
        Some(_) => {}
    }
    for space in &found.free {
        if let Some(free) = space.free_bytes.filter(|free| *free < space.needed_bytes) {
            lines.push(format!(
                "disk: {} has {} free, {} are needed. Make room, or move it with {}.",
                space.folder.display(),
                gigabytes(free),
                gigabytes(space.needed_bytes),
                if space.needed_bytes > (1 << 30) { "CARGO_TARGET_DIR" } else { "TUNEBOOK_CACHE" },
            ));
        }
    }
    lines
}

/// Why this platform is refused, or nothing.
fn platform(os: &str, arch: &str, kernel: &str) -> Option<String> {
    let supported = "tunebook runs on Linux (x86-64 and aarch64) and in WSL2";
    if os != "linux" {
        let remedy = match os {
            "windows" => {
                "In Windows, install WSL2 (`wsl --install`) and clone the repository inside it."
            }
            "macos" => "On a Mac, use a Linux virtual machine or container.",
            _ => "Use a Linux machine, virtual machine or container.",
        };
        return Some(format!("{supported}; this is {os}. {remedy}"));
    }
    if arch != "x86_64" && arch != "aarch64" {
        return Some(format!("{supported}; this machine's processor is {arch}."));
    }
    // WSL1 says "Microsoft", WSL2 "microsoft-standard-WSL2".
    if kernel.contains("Microsoft") && !kernel.contains("WSL2") {
        return Some(format!(
            "{supported}; this is WSL1. In Windows: `wsl --set-version DISTRIBUTION 2`."
        ));
    }
    None
}

/// The first two numbers of a version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().split(['.', '-']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    }
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// What a build of everything needs beside time, in two sentences for who starts it; nothing where
/// nothing is compiled.
pub(crate) fn needs(build: &Path, compiles: bool) -> String {
    if !compiles {
        return String::new();
    }
    let jobs = std::env::var("CARGO_BUILD_JOBS").ok().and_then(|jobs| jobs.parse().ok());
    let cores = || std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    says_needs(jobs.unwrap_or_else(cores), free_bytes(build), free_memory(&meminfo))
}

fn says_needs(jobs: usize, disk: Option<u64>, memory: Option<u64>) -> String {
    let free = |bytes: Option<u64>| match bytes {
        Some(bytes) => format!(" ({} free)", gigabytes(bytes)),
        None => String::new(),
    };
    let needed = memory_bytes(jobs);
    let fewer = match memory {
        Some(free) if free < needed && jobs > 1 => format!(
            "CARGO_BUILD_JOBS=1 makes do with {} and takes longer. ",
            gigabytes(memory_bytes(1))
        ),
        _ => String::new(),
    };
    format!(
        "It needs up to {} of disk{} and {} of memory{}. {fewer}",
        gigabytes(BUILD_BYTES),
        free(disk),
        gigabytes(needed),
        free(memory)
    )
}

/// Memory of this many compilers at work. Measured with two: 2.5 GB, of which polars' largest crate
/// takes 1.7; no more than eight work on large crates at a time.
fn memory_bytes(jobs: usize) -> u64 {
    const FIRST: u64 = 1_800_000_000;
    const OTHER: u64 = 800_000_000;
    FIRST + (jobs.clamp(1, 8) as u64 - 1) * OTHER
}

/// The memory that programs may still take.
fn free_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// The Python to use: `TUNEBOOK_PYTHON`, else the first of `python3` and its versioned names that
/// is new enough, else whatever `python3` is.
fn find_python() -> Option<Python> {
    if let Some(program) = std::env::var_os("TUNEBOOK_PYTHON") {
        return ask_python(Path::new(&program));
    }
    let names =
        ["python3", "python", "python3.14", "python3.13", "python3.12", "python3.11", "python3.10"];
    let mut all = names.iter().filter_map(|name| ask_python(Path::new(name)));
    let first = all.next()?;
    if first.version >= PYTHON && first.venv {
        return Some(first);
    }
    Some(all.find(|python| python.version >= PYTHON && python.venv).unwrap_or(first))
}

fn ask_python(program: &Path) -> Option<Python> {
    let code = "import sys, importlib.util as u\n\
                print(sys.version_info[0], sys.version_info[1], all(map(u.find_spec, ('venv', 'ensurepip'))), sys.executable)";
    let text = process::capture(process::command(program).args(["-c", code]), "python").ok()?;
    let mut fields = text.trim().splitn(4, ' ');
    Some(Python {
        version: (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?),
        venv: fields.next()? == "True",
        program: PathBuf::from(fields.next()?),
    })
}

/// Bytes free where `folder` is, or will be made.
fn free_bytes(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|ancestor| ancestor.exists())?;
    let text = process::capture(process::command("df").arg("-Pk").arg(there), "df").ok()?;
    let kilobytes: u64 = text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> Found {
        Found {
            os: "linux".into(),
            arch: "x86_64".into(),
            kernel: "Linux version 6.1.0".into(),
            rustc: Some("rustc 1.95.0\nhost: x86_64-unknown-linux-gnu\nrelease: 1.95.0\n".into()),
            c_compiler: true,
            python: Some(Python {
                program: "/usr/bin/python3".into(),
                version: (3, 11),
                venv: true,
            }),
            free: vec![Space {
                folder: "/x".into(),
                free_bytes: Some(50 << 30),
                needed_bytes: BUILD_BYTES,
            }],
        }
    }

    /// Changes one thing and returns the lines.
    fn without(change: impl FnOnce(&mut Found)) -> Vec<String> {
        let mut found = ready();
        change(&mut found);
        missing(&found)
    }

    #[test]
    fn a_ready_machine_lacks_nothing() {
        assert_eq!(missing(&ready()), Vec::<String>::new());
        let wsl2 = "Linux version 5.15.90.1-microsoft-standard-WSL2";
        assert_eq!(without(|f| f.kernel = wsl2.into()), Vec::<String>::new());
        assert_eq!(without(|f| f.arch = "aarch64".into()), Vec::<String>::new());
    }

    #[test]
    fn other_platforms_are_refused_alone() {
        for (os, arch, kernel, says) in [
            ("macos", "aarch64", "", "this is macos"),
            ("windows", "x86_64", "", "wsl --install"),
            ("linux", "x86", "", "processor is x86"),
            ("linux", "x86_64", "Linux version 4.4.0-19041-Microsoft", "this is WSL1"),
        ] {
            let lines = without(|f| {
                (f.os, f.arch, f.kernel) = (os.into(), arch.into(), kernel.into());
                f.c_compiler = false;
            });
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(lines[0].contains(says), "{lines:?}");
        }
    }

    #[test]
    fn each_lack_is_named_with_its_remedy() {
        let one = |lines: Vec<String>, name: &str, remedy: &str| {
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(lines[0].contains(name) && lines[0].contains(remedy), "{lines:?}");
        };
        let old = "rustc 1.94.1\nhost: x86_64-unknown-linux-gnu\nrelease: 1.94.1\n";
        one(without(|f| f.rustc = Some(old.into())), "found 1.94.1", "rustup update stable");
        let musl = "host: x86_64-unknown-linux-musl\nrelease: 1.96.0-nightly\n";
        one(without(|f| f.rustc = Some(musl.into())), "musl", "linux-gnu");
        one(without(|f| f.rustc = None), "`rustc` does not start", "rustup.rs");
        one(without(|f| f.c_compiler = false), "a C compiler", "build-essential");
        one(without(|f| f.python = None), "no `python3`", "apt install python3");
        let python = |version, venv| Some(Python { program: "python3".into(), version, venv });
        one(without(|f| f.python = python((3, 9), true)), "python3 is 3.9", "TUNEBOOK_PYTHON");
        one(without(|f| f.python = python((3, 12), false)), "venv", "apt install python3-venv");
        one(
            without(|f| f.free[0].free_bytes = Some(1 << 30)),
            "/x has 1.1 GB free",
            "CARGO_TARGET_DIR",
        );
    }

    #[test]
    fn several_lacks_are_named_together() {
        let lines = without(|f| (f.rustc, f.python) = (None, None));
        assert_eq!(lines.len(), 2, "{lines:?}");
    }

    #[test]
    fn what_a_build_needs_is_said_beside_what_is_free() {
        let meminfo = "MemTotal: 24105600 kB\nMemAvailable:   13515300 kB\n";
        let memory = free_memory(meminfo);
        assert_eq!(memory, Some(13_839_667_200));
        let says = says_needs(2, Some(28_000_000_000), memory);
        assert_eq!(
            says,
            "It needs up to 5.4 GB of disk (28.0 GB free) and 2.6 GB of memory (13.8 GB free). "
        );
        let says = says_needs(4, None, Some(3_000_000_000));
        assert!(says.contains("4.2 GB of memory (3.0 GB free)"), "{says}");
        assert!(says.contains("CARGO_BUILD_JOBS=1 makes do with 1.8 GB"), "{says}");
        assert!(needs(Path::new("/"), false).is_empty());
    }

    #[test]
    fn unknown_free_space_is_no_obstacle() {
        assert!(without(|f| f.free[0].free_bytes = None).is_empty());
    }
}
