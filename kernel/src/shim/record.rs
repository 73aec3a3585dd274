//! Records rustc's command line for the cell in the first build, and repeats it in later ones.
//!
//! For each cell evcxr calls `cargo build`, of which a third of a second is cargo making sure that
//! some four hundred dependencies have not changed. They cannot have: the clone is the kernel's
//! own, and the user's path dependencies are looked at ([`path_deps`]). So the first build with a given manifest goes through the real cargo, with this program as
//! rustc's wrapper to take the compiler's command line down, and later ones repeat that command
//! line. `cargo check` runs the same command as far as the types.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tunebook_progress::channel::NONCE_VAR;

use super::path_deps::{self, PathDeps};
use super::probe::{probe_answer, with_probes};
use super::rewrite::{
    is_moved_before_storing, keep_primary_spans, moved_before_keeping, rewrite, unused,
    without_definitions_place, without_keeping,
};
use super::{
    COMPILER_FILE, DIR_VAR, MISSED_FILE, NOT_IN_A_KIT, PROBE_FILE, QUICK_FILE, STOP_FILE,
    TYPES_FILE, UNUSED_FILE, has_prelude, only_prelude, var,
};
use crate::layout::{self, RECORDS, TEMPLATE_VAR};

pub(super) const RECORD_VAR: &str = "TUNEBOOK_RECORD";
const RECORD_FILE: &str = "rustc.json";
const NO_TYPES: &str =
    "the place of the types, so a variable without a written type may not be kept";

/// A cell's arithmetic is checked, as in every notebook's, though the libraries' is not: they share
/// the profile that has the checks off.
const CHECKED: [&str; 2] = ["-C", "overflow-checks=on"];

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Build,
    Check,
}

/// rustc's command line for the cell, as cargo gave it.
#[derive(Serialize, Deserialize)]
struct Recorded {
    /// What the command line depends on.
    key: String,
    program: String,
    args: Vec<String>,
    envs: Vec<(String, String)>,
    cwd: PathBuf,
}

/// The manifest and the configuration that evcxr writes decide about the dependencies, and the files
/// of those that the user edits.
fn key(cell: &Path) -> String {
    let read = |name: &str| fs::read_to_string(cell.join(name)).unwrap_or_default();
    let manifest = read("Cargo.toml");
    let edited = path_deps::fingerprint(&manifest, cell);
    format!("{manifest}\n{}{edited}", read(".cargo/config.toml"))
}

/// Command lines that hold for every clone are kept beside the template, with the clone's path left
/// open: the next kernel does not have to ask cargo at all.
mod shared {
    use std::hash::{DefaultHasher, Hash, Hasher};

    use super::*;

    const OPEN: &str = "@KERNEL@";

    fn file(key: &str, dir: &Path) -> Option<PathBuf> {
        if !only_prelude(key) {
            return None;
        }
        let template = PathBuf::from(std::env::var_os(TEMPLATE_VAR)?);
        let mut hasher = DefaultHasher::new();
        key.replace(&*dir.to_string_lossy(), OPEN).hash(&mut hasher);
        Some(template.join(RECORDS).join(format!("{:016x}.json", hasher.finish())))
    }

    pub(super) fn read(key: &str, dir: &Path) -> Option<Recorded> {
        let text = fs::read_to_string(file(key, dir)?).ok()?;
        let recorded: Recorded =
            serde_json::from_str(&text.replace(OPEN, &dir.to_string_lossy())).ok()?;
        (recorded.key == key).then_some(recorded)
    }

    pub(super) fn write(recorded: &Recorded, dir: &Path) -> Result<()> {
        let Some(file) = file(&recorded.key, dir) else { return Ok(()) };
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        let part = file.with_extension(std::process::id().to_string());
        fs::write(&part, serde_json::to_string(recorded)?.replace(&*dir.to_string_lossy(), OPEN))?;
        Ok(fs::rename(part, file)?)
    }
}

pub(super) fn compile(real: &Path, args: &[OsString], kind: Kind) -> Result<ExitCode> {
    let dir = var(DIR_VAR)?;
    let cell = dir.join("cell");
    // A group of its own, which Stop can end without touching the kernel. The file says that it
    // runs.
    // SAFETY: setpgid has no memory effects.
    unsafe { libc::setpgid(0, 0) };
    let pid_file = dir.join(COMPILER_FILE);
    fs::write(&pid_file, std::process::id().to_string())?;
    // After the file above, so that Stop finds one of the two.
    if dir.join(STOP_FILE).exists() {
        bail!("stopped");
    }

    let source = cell.join("src/lib.rs");
    let mut text = fs::read_to_string(&source)?;
    let mut probed = Vec::new();
    if kind == Kind::Build {
        let nonce = std::env::var(NONCE_VAR).unwrap_or_default();
        let manifest = fs::read_to_string(cell.join("Cargo.toml")).unwrap_or_default();
        let edited = PathDeps::read(&manifest, &cell);
        let rewritten = rewrite(&text, &nonce, has_prelude(&manifest), &edited);
        tell_missed(&dir, &rewritten.missed)?;
        text = rewritten.code;
        fs::write(&source, &text)?;
    } else if fs::remove_file(dir.join(PROBE_FILE)).is_ok() {
        let probes = with_probes(&text);
        if !probes.complete {
            tell_missed(&dir, &[NO_TYPES])?;
        }
        (text, probed) = (probes.code, probes.probed);
        fs::write(&source, &text)?;
    }

    let key = key(&cell);
    let record_file = dir.join(RECORD_FILE);
    let read =
        || -> Option<Recorded> { serde_json::from_slice(&fs::read(&record_file).ok()?).ok() };
    let recorded = match read() {
        Some(recorded) if recorded.key == key => Some(recorded),
        _ => shared::read(&key, &dir).inspect(|recorded| {
            if let Ok(text) = serde_json::to_vec(recorded) {
                let _ = fs::write(&record_file, text);
            }
        }),
    };
    let code = match recorded {
        Some(recorded) => again(&recorded, kind, &dir, &probed)?,
        None if layout::kit_toolchain().is_some() => bail!(NOT_IN_A_KIT),
        None => {
            // Cargo's messages are not read here, so a variable that the cell moves would fail it.
            if kind == Kind::Build {
                fs::write(&source, without_keeping(&text, |_| true))?;
            }
            // A check needs the command line as well, and the build that gives it needs code that
            // compiles.
            if kind == Kind::Check {
                fs::write(&source, "")?;
            }
            let mut build: Vec<OsString> = args.to_vec();
            for arg in &mut build {
                if arg == "check" {
                    *arg = "build".into();
                }
            }
            let mut command = Command::new(real);
            command
                .args(&build)
                .env("RUSTC_WRAPPER", std::env::current_exe()?)
                .env(RECORD_VAR, serde_json::to_string(&(&record_file, &key))?);
            if kind == Kind::Check {
                command.stdout(Stdio::null());
            }
            let status = command.status().context("cannot run cargo")?;
            let recorded = read().filter(|recorded| recorded.key == key);
            // Also where the code does not compile, such as evcxr's first of each kernel: the
            // compiler was called, so all that it links to is there.
            if let Some(recorded) = &recorded {
                shared::write(recorded, &dir)?;
            }
            match (kind, recorded) {
                (Kind::Check, Some(recorded)) if status.success() => {
                    fs::write(&source, &text)?;
                    again(&recorded, kind, &dir, &probed)?
                }
                _ => status.code().unwrap_or(1),
            }
        }
    };
    let _ = fs::remove_file(pid_file);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Tells the server which places of the generated code were not found. This program's own standard
/// error is read by evcxr, which drops all but the compiler's errors.
fn tell_missed(dir: &Path, missed: &[&str]) -> Result<()> {
    if missed.is_empty() {
        return Ok(());
    }
    let mut file = fs::File::options().create(true).append(true).open(dir.join(MISSED_FILE))?;
    Ok(file.write_all(format!("{}\n", missed.join("\n")).as_bytes())?)
}

/// The role of rustc's wrapper: takes the command line of the cell down and runs it.
pub(super) fn record(args: &[OsString]) -> Result<ExitCode> {
    let (program, rest) = args.split_first().context("no compiler given")?;
    let words: Vec<String> = rest.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let of_cell = words.windows(2).any(|pair| pair[0] == "--crate-name" && pair[1] == "ctx");
    if of_cell && let Ok(target) = std::env::var(RECORD_VAR) {
        let (file, key): (PathBuf, String) = serde_json::from_str(&target)?;
        let recorded = Recorded {
            key,
            program: program.to_string_lossy().into_owned(),
            args: words,
            // Not the jobserver: its pipes belong to the cargo that is gone then.
            envs: std::env::vars()
                .filter(|(name, _)| name.starts_with("CARGO_") && name != "CARGO_MAKEFLAGS")
                .collect(),
            cwd: std::env::current_dir()?,
        };
        fs::write(file, serde_json::to_vec(&recorded)?)?;
    }
    let mut command = Command::new(program);
    command.args(rest).env_remove(RECORD_VAR);
    if of_cell {
        command.args(CHECKED);
    }
    let error = command.exec();
    Err(error).context("cannot run rustc")
}

/// The recorded command line, as it is repeated, and the folder it writes to.
fn args(
    recorded: &Recorded,
    kind: Kind,
    quick: bool,
    dir: &Path,
) -> Result<(Vec<String>, PathBuf)> {
    let mut args: Vec<String> = Vec::new();
    let mut words = recorded.args.iter();
    let mut out_dir = PathBuf::new();
    while let Some(word) = words.next() {
        if word == "-C" || word == "--out-dir" {
            let value = words.next().context("the recorded command ends early")?;
            // Each cell is new: what the last one left behind helps nobody and has to be read and
            // written.
            if value.starts_with("incremental=") {
                continue;
            }
            // Without optimisation rustc would turn assertions on that the profile has off.
            if quick && value == "opt-level=2" {
                for option in ["opt-level=0", "debug-assertions=off"] {
                    args.extend([word.clone(), option.into()]);
                }
                continue;
            }
            // A cell is small: several units cost more than they save.
            if value.starts_with("codegen-units=") {
                args.extend([word.clone(), "codegen-units=1".into()]);
                continue;
            }
            if word == "--out-dir" {
                out_dir = if kind == Kind::Check { dir.join("check") } else { value.into() };
                args.extend([word.clone(), out_dir.to_string_lossy().into_owned()]);
            } else {
                args.extend([word.clone(), value.clone()]);
            }
        } else if word.starts_with("--emit=") {
            args.push(if kind == Kind::Check { "--emit=metadata" } else { "--emit=link" }.into());
        } else {
            args.push(word.clone());
        }
    }
    args.extend(CHECKED.map(str::to_owned)); // the last of two options counts
    Ok((args, out_dir))
}

/// What the compiler has answered.
struct Answer {
    status: ExitStatus,
    /// What cargo would pass on.
    messages: Vec<Value>,
    /// The types of the probed variables.
    types: serde_json::Map<String, Value>,
    /// There are errors that answer no probe.
    failed_otherwise: bool,
}

/// Runs the compiler.
fn ask(command: &mut Command, probed: &[(usize, String)]) -> Result<Answer> {
    let mut child = command.spawn().context("cannot run rustc")?;
    let stderr = child.stderr.take().context("rustc has no standard error")?;
    let (mut messages, mut types) = (Vec::new(), serde_json::Map::new());
    let mut failed_otherwise = false;
    for line in BufReader::new(stderr).lines() {
        let line = line?;
        let Ok(mut message) = serde_json::from_str::<Value>(&line) else {
            eprintln!("{line}");
            continue;
        };
        if message.get("artifact").is_some() || message["$message_type"] == "artifact" {
            continue;
        }
        if let Some((name, type_name)) = probe_answer(&message, probed) {
            types.insert(name, type_name.into());
            continue;
        }
        failed_otherwise |= message["level"] == "error"
            && message["spans"].as_array().is_some_and(|s| !s.is_empty());
        if is_moved_before_storing(&message) {
            keep_primary_spans(&mut message);
        }
        without_definitions_place(&mut message);
        messages.push(message);
    }
    Ok(Answer { status: child.wait()?, messages, types, failed_otherwise })
}

/// Repeats the recorded command and reports as cargo would.
fn again(recorded: &Recorded, kind: Kind, dir: &Path, probed: &[(usize, String)]) -> Result<i32> {
    let quick = kind == Kind::Build && dir.join(QUICK_FILE).exists();
    let (args, out_dir) = args(recorded, kind, quick, dir)?;
    let mut command = Command::new(&recorded.program);
    command
        .args(args)
        .current_dir(&recorded.cwd)
        .envs(recorded.envs.iter().cloned())
        .stderr(Stdio::piped());
    if !probed.is_empty() {
        // Paths that can be written in a cell, instead of names that read well. The option is not
        // stable: without it the names are short, which mostly does.
        command
            .env("RUSTC_BOOTSTRAP", "1")
            .args(["-Ztrim-diagnostic-paths=no", "--diagnostic-width=1000000"]);
    }
    let source = dir.join("cell/src/lib.rs");
    let mut answer = ask(&mut command, probed)?;
    // An old value that the cell has moved cannot be kept.
    loop {
        let moved: Vec<String> = answer.messages.iter().filter_map(moved_before_keeping).collect();
        if moved.is_empty() {
            break;
        }
        let text = fs::read_to_string(&source)?;
        let without = without_keeping(&text, |name| moved.iter().any(|moved| moved == name));
        if without == text {
            break;
        }
        fs::write(&source, without)?;
        answer = ask(&mut command, probed)?;
    }
    let Answer { status, messages, types, failed_otherwise } = answer;
    if kind == Kind::Build {
        let unused: Vec<_> = messages.iter().filter_map(unused).collect();
        fs::write(dir.join(UNUSED_FILE), serde_json::to_vec(&unused)?)?;
    }
    let stdout = std::io::stdout();
    for message in messages {
        let wrapped = json!({
            "reason": "compiler-message",
            "target": {"name": "ctx"},
            "message": message,
        });
        writeln!(stdout.lock(), "{wrapped}")?;
    }
    if !probed.is_empty() {
        fs::write(dir.join(TYPES_FILE), serde_json::to_vec(&types)?)?;
        return Ok(i32::from(failed_otherwise));
    }
    if status.success() && kind == Kind::Build {
        let artifact = json!({
            "reason": "compiler-artifact",
            "target": {"name": "ctx"},
            "filenames": [out_dir.join("libctx.so")],
        });
        writeln!(stdout.lock(), "{artifact}")?;
    }
    Ok(status.code().unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_is_compiled_with_checked_arithmetic() {
        let words = "--crate-name ctx --emit=dep-info,link -C opt-level=2 -C overflow-checks=off \
                     -C codegen-units=16 -C incremental=/x --out-dir /out";
        let recorded = Recorded {
            key: String::new(),
            program: "rustc".into(),
            args: words.split_whitespace().map(str::to_owned).collect(),
            envs: Vec::new(),
            cwd: PathBuf::new(),
        };
        for (kind, quick) in [(Kind::Build, false), (Kind::Build, true), (Kind::Check, false)] {
            let (args, out_dir) = args(&recorded, kind, quick, Path::new("/kernel")).unwrap();
            let mut options = args.iter().filter(|word| word.starts_with("overflow-checks="));
            assert_eq!(options.next_back().unwrap(), "overflow-checks=on");
            assert!(!args.iter().any(|word| word.starts_with("incremental=")));
            let folder = if kind == Kind::Check { "/kernel/check" } else { "/out" };
            assert_eq!(out_dir, Path::new(folder));
        }
    }

    /// What rustc makes of the option: a cell's overflow panics at every level of optimisation.
    #[test]
    fn the_option_is_obeyed_behind_another() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("a.rs");
        fs::write(
            &source,
            "fn main() { let one = std::env::args().count(); std::process::exit((one - 2 > 9) as i32) }",
        )
        .unwrap();
        for level in ["opt-level=0", "opt-level=2"] {
            let program = dir.path().join("a");
            let mut rustc = Command::new("rustc");
            rustc.args(["-C", level, "-C", "overflow-checks=off"]).args(CHECKED);
            assert!(rustc.arg("-o").arg(&program).arg(&source).status().unwrap().success());
            let ended = Command::new(&program).stderr(Stdio::null()).status().unwrap();
            assert_eq!(ended.code(), Some(101), "{level}");
        }
    }
}
