//! A run of the kit, on the machine that it was brought to: part after part, each in processes of
//! its own that are ended when their time is over.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::parts::{By, PARTS, Part};
use super::report::Report;
use crate::bench::machine;
use crate::bench_train::card::Card;
use crate::bench_train::case::{CASES, Gpu, Kind, Packages};
use crate::bench_train::gpu::{self, Place, Programs};
use crate::bench_train::random_model;
use crate::bench_train::shape::{LLAMA_1B, Shape, TINY};
use crate::error::{Error, Result};
use crate::process;

/// How long a GPU may take to be opened for the first time.
const OPENING: Duration = Duration::from_secs(30);
/// `gpu_kit`'s exit code where there is no GPU.
const NO_DEVICE: i32 = 3;

/// A kit where it lies, and how it is to be run.
struct Kit {
    folder: PathBuf,
    out: PathBuf,
    /// Everything in small on the CPU.
    tiny: bool,
    /// Folders with CUDA's libraries, as a variable holds them.
    libraries: String,
    python: Option<PathBuf>,
    /// A GGUF file, if there is one.
    model: Option<PathBuf>,
    work: PathBuf,
}

/// Runs the parts of these names, all of them by default.
///
/// # Errors
/// A name that no part has; results that cannot be written; parts that failed, when all are done.
pub(super) fn run(folder: &Path, names: &[String]) -> Result<()> {
    let kit = Kit::new(folder)?;
    let chosen = choose(names)?;
    std::fs::create_dir_all(&kit.out).map_err(Error::io("create", &kit.out))?;
    let log = kit.out.join("log.txt");
    let log = File::create(&log).map_err(Error::io("create", &log))?;
    let device = kit.device(&log)?;
    let mut report = Report::new(&kit.out, kit.about(&device, names))?;
    match &device {
        Ok(card) => println!("card: {card}"),
        Err(reason) => println!("no device: {reason}"),
    }
    for part in chosen {
        println!("{}  {}", part.name, part.title);
        let start = Instant::now();
        report.begin(part)?;
        let status = match &device {
            Err(reason) => Some(format!("no device: {reason}")),
            Ok(_) => match kit.part(part, &log, &mut report) {
                Ok(status) => status,
                Err(error) => Some(format!("failed: {error}")),
            },
        };
        let said = report.end(status, start.elapsed().as_secs_f64())?;
        println!("   {said}, {:.0} s", start.elapsed().as_secs_f64());
    }
    println!("{}", kit.out.join("summary.txt").display());
    if report.passed() {
        return Ok(());
    }
    Err(Error::Other("not every part passed; summary.txt says which".to_owned()))
}

/// The cases of one part, as a process of its own: a line of JSON for each row.
///
/// # Errors
/// A part without cases.
pub(super) fn bench(folder: &Path, name: &str) -> Result<()> {
    let kit = Kit::new(folder)?;
    let part = choose(&[name.to_owned()])?;
    let Some(Part { by: By::Bench(cases), .. }) = part.first() else {
        return Err(Error::Usage(format!("part `{name}` has no cases")));
    };
    let programs = kit.programs();
    for case in CASES.iter().filter(|case| cases.contains(&case.name)) {
        let Kind::Gpu(what) = &case.kind else { continue };
        let found = match kit.measured(case.name, what, &programs) {
            Ok(findings) => findings,
            Err(error) => {
                vec![json!({"name": case.name, "passed": false, "reason": error.to_string()})]
            }
        };
        for finding in found {
            println!("{finding}");
        }
        // Read line by line at the other end of a pipe.
        let _ = std::io::stdout().flush();
    }
    Ok(())
}

fn choose(names: &[String]) -> Result<Vec<&'static Part>> {
    if names.is_empty() {
        return Ok(PARTS.iter().collect());
    }
    let find = |name: &String| {
        PARTS.iter().find(|part| part.name == name).ok_or_else(|| {
            Error::Usage(format!("there is no part `{name}`; there are: a, b, c, d, e, f"))
        })
    };
    names.iter().map(find).collect()
}

fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Kit {
    fn new(folder: &Path) -> Result<Self> {
        let folder = std::path::absolute(folder).map_err(Error::io("find", folder))?;
        let work = set("TUNEBOOK_KIT_WORK")
            .map_or_else(|| std::env::temp_dir().join("tunebook-gpu-kit"), PathBuf::from);
        Ok(Self {
            out: set("TUNEBOOK_KIT_OUT").map_or_else(|| folder.join("out"), PathBuf::from),
            tiny: set("TUNEBOOK_BENCH_TINY").is_some_and(|value| value == "1"),
            libraries: set("TUNEBOOK_KIT_CUDA").unwrap_or_default(),
            python: set("TUNEBOOK_KIT_PYTHON").map(PathBuf::from),
            model: set("TUNEBOOK_KIT_MODEL").map(PathBuf::from),
            folder,
            work,
        })
    }

    /// The program for the GPU, with the libraries that it needs.
    fn program(&self) -> Command {
        let mut command = process::command(self.folder.join("bin/gpu_kit"));
        command.envs(self.environment());
        command
    }

    fn environment(&self) -> Vec<(&'static str, std::ffi::OsString)> {
        let own = self.folder.join("lib");
        let cuda =
            std::env::split_paths(&self.libraries).filter(|path| !path.as_os_str().is_empty());
        let folders = std::iter::once(own).chain(cuda);
        let folders = folders.chain(process::inherited_folders("LD_LIBRARY_PATH"));
        let mut variables =
            vec![("LD_LIBRARY_PATH", std::env::join_paths(folders).unwrap_or_default())];
        if self.tiny {
            // What a GPU takes by default.
            variables.push(("TUNEBOOK_OPS", "composed".into()));
        }
        variables
    }

    /// The card's name, or why there is none.
    fn device(&self, log: &File) -> Result<std::result::Result<String, String>> {
        if self.tiny {
            return Ok(Ok("none: tried out on the CPU, in small".to_owned()));
        }
        let mut reason = None;
        let mut command = self.program();
        command.arg("card").arg(&self.folder);
        let ended = drive(&mut command, OPENING, log, |line| {
            let said: Value = serde_json::from_str(line).unwrap_or_default();
            reason = said["no_device"].as_str().map(str::to_owned).or(reason.take());
            Ok(())
        })?;
        Ok(match (ended, reason) {
            (_, Some(reason)) => Err(reason),
            (Ended::Exit(status), None) if status.success() => {
                Ok(Card::find()
                    .map_or_else(|_| "unknown".to_owned(), |card| card.name().to_owned()))
            }
            (Ended::Exit(status), None) => {
                let last = last_line(&self.out.join("log.txt"));
                Err(format!("the program does not start ({status}): {last}"))
            }
            (Ended::Late, None) => Err(format!("it did not open in {} s", OPENING.as_secs())),
        })
    }

    /// What the figures of a run belong to.
    fn about(&self, device: &std::result::Result<String, String>, names: &[String]) -> Value {
        let kit = std::fs::read(self.folder.join("kit.json")).unwrap_or_default();
        let versions = "import json, platform\nv = {'python': platform.python_version()}\nfor name in ('torch', 'transformers', 'peft', 'adapters'):\n    try:\n        from importlib.metadata import version\n        v[name] = version(name)\n    except Exception:\n        v[name] = None\nprint(json.dumps(v))";
        let peers: Value = self
            .python
            .as_ref()
            .and_then(|python| {
                process::capture(process::command(python).args(["-c", versions]), "Python").ok()
            })
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default();
        let parts = names.iter().map(|name| format!(" {name}")).collect::<String>();
        json!({
            "kit": serde_json::from_slice::<Value>(&kit).unwrap_or_default(),
            "tiny": self.tiny,
            "card": device.as_ref().map_or_else(|reason| format!("no device: {reason}"), Clone::clone),
            "details": Card::find().ok().map(|card| card.about()),
            "machine": machine::machine(),
            "peers": peers,
            "command": format!("./run.sh{parts}"),
        })
    }

    /// Runs one part. Its status, unless its findings decide.
    fn part(&self, part: &Part, log: &File, report: &mut Report) -> Result<Option<String>> {
        let mut command = match part.by {
            By::Bench(_) => {
                let mut command = process::command(self.folder.join("bin/xtask"));
                command.args(["gpu-kit", "--part", part.name]).arg(&self.folder);
                command
            }
            By::Program(word) => {
                let mut command = self.program();
                command.arg(word).arg(&self.folder).args(self.models(word)?);
                if self.tiny {
                    command.args(["--device=cpu", "--tiny"]);
                }
                command
            }
        };
        let mut found = 0;
        let ended = drive(&mut command, part.limit, log, |line| {
            let finding: Value = serde_json::from_str(line).unwrap_or_default();
            if finding["name"].is_string() {
                found += 1;
                report.add(finding)?;
            }
            Ok(())
        })?;
        Ok(match ended {
            Ended::Late => {
                Some(format!("failed: ended after {} s, {found} findings", part.limit.as_secs()))
            }
            Ended::Exit(status) if status.success() => None,
            Ended::Exit(status) if status.code() == Some(NO_DEVICE) => Some("no device".to_owned()),
            Ended::Exit(status) => Some(format!("failed ({status}): log.txt says why")),
        })
    }

    /// The models of a part, made on the spot where they are not there.
    fn models(&self, word: &str) -> Result<Vec<PathBuf>> {
        let shape: &Shape = match word {
            "trainer" => &TINY,
            "generate" if self.tiny => &TINY,
            "generate" => &LLAMA_1B,
            _ => return Ok(Vec::new()),
        };
        let random = random_model::ensure(&self.work, &self.folder.join("golden"), shape)?;
        Ok(std::iter::once(random).chain(self.model.clone()).collect())
    }

    fn programs(&self) -> Programs {
        let python = self.python.clone();
        Programs {
            ours: (self.folder.join("bin/gpu_kit"), vec!["bench-train"]),
            environment: self.environment(),
            golden: self.folder.join("golden"),
            work: self.work.clone(),
            peers: self.folder.join("peers"),
            python: Box::new(move |packages| with_packages(python.as_deref(), packages)),
        }
    }

    /// The rows of a case as findings.
    fn measured(&self, name: &str, what: &Gpu, programs: &Programs) -> Result<Vec<Value>> {
        let measured = if self.tiny {
            gpu::in_small(name, what, programs)?
        } else {
            let card = Card::find().map_err(Error::Other)?;
            gpu::measure(name, what, &Place::Card(card), programs)?
        };
        let case = measured.about["case"].as_str().unwrap_or(name).to_owned();
        let mut findings: Vec<Value> = measured
            .rows
            .into_iter()
            .map(|mut row| {
                let metric = row["metric"].as_str().unwrap_or_default().to_owned();
                // A limit is the one thing that a row can fail.
                let limited = metric.starts_with("peak_gpu_mb_against_limit");
                let passed = limited.then(|| row["ratio"].as_f64().is_some_and(|part| part <= 1.0));
                if let Some(row) = row.as_object_mut() {
                    row.insert("name".to_owned(), json!(format!("{case}: {metric}")));
                    row.insert("passed".to_owned(), json!(passed));
                }
                row
            })
            .collect();
        for missing in measured.about["missing"].as_array().into_iter().flatten() {
            findings.push(json!({"name": case, "passed": null, "reason": missing}));
        }
        findings.push(
            json!({"name": format!("{case}: whole"), "passed": true, "about": measured.about}),
        );
        Ok(findings)
    }
}

/// The Python, when it has the packages of a peer.
fn with_packages(
    python: Option<&Path>,
    packages: Packages,
) -> std::result::Result<PathBuf, String> {
    let python = python.ok_or("no Python on this machine")?;
    let import = match packages {
        Packages::Peft => "import torch, transformers, peft",
        Packages::AdapterHub => "import torch, transformers, adapters",
    };
    match process::capture(process::command(python).args(["-c", import]), import) {
        Ok(_) => Ok(python.to_path_buf()),
        Err(error) => {
            Err(error.to_string().lines().last().unwrap_or("it cannot be started").to_owned())
        }
    }
}

/// How a process ended.
enum Ended {
    Exit(ExitStatus),
    /// It was ended when its time was over.
    Late,
}

/// Runs a command for so long at most; its lines go to the log and to `on_line` as they come.
fn drive(
    command: &mut Command,
    limit: Duration,
    log: &File,
    mut on_line: impl FnMut(&str) -> Result<()>,
) -> Result<Ended> {
    let log_error = |error| Error::Other(format!("the log cannot be written: {error}"));
    let errors = log.try_clone().map_err(log_error)?;
    own_group(command);
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .map_err(|source| Error::Start { program, source })?;
    let deadline = Instant::now() + limit;
    let (send, lines) = mpsc::channel();
    let out = child.stdout.take();
    // Ends with the pipe, which may be open for longer than the child lives.
    std::thread::spawn(move || {
        for line in out.map(BufReader::new).into_iter().flat_map(BufRead::lines) {
            if line.is_err() || line.is_ok_and(|line| send.send(line).is_err()) {
                return;
            }
        }
    });
    let mut log = log;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => {
                writeln!(log, "{line}").map_err(log_error)?;
                if let Err(error) = on_line(&line) {
                    end_group(&mut child);
                    return Err(error);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                end_group(&mut child);
                return Ok(Ended::Late);
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let wait = |error| Error::Other(format!("a process cannot be waited for: {error}"));
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().map_err(wait)? {
            return Ok(Ended::Exit(status));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    end_group(&mut child);
    Ok(Ended::Late)
}

/// So that what it started ends with it.
#[cfg(unix)]
fn own_group(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
}

/// Never reached: other platforms are refused by the prerequisites.
#[cfg(not(unix))]
fn own_group(_: &mut Command) {}

fn end_group(child: &mut Child) {
    // Without `--`, which dash takes for a number.
    let kill = format!("kill -9 -{}", child.id());
    let _ = Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status();
    let _ = child.kill();
    let _ = child.wait();
}

fn last_line(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().lines().last().unwrap_or("it said nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> (Ended, Vec<String>) {
        let folder = std::env::temp_dir().join(format!(
            "xtask-drive-{}-{}",
            std::process::id(),
            script.len()
        ));
        let log = File::create(&folder).unwrap();
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        let ended = drive(command.args(["-c", script]), limit, &log, |line| {
            lines.push(line.to_owned());
            Ok(())
        });
        std::fs::remove_file(folder).unwrap();
        (ended.unwrap(), lines)
    }

    #[test]
    fn a_part_that_takes_too_long_keeps_what_it_found() {
        let start = Instant::now();
        let left = std::env::temp_dir().join(format!("xtask-left-{}", std::process::id()));
        // A child of the shell, which holds the pipe open and must end with it.
        let script = format!("echo one; (sleep 2; touch {}) & sleep 60; echo two", left.display());
        let (ended, lines) = shell(&script, Duration::from_millis(400));
        assert!(matches!(ended, Ended::Late));
        assert_eq!(lines, ["one"]);
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_secs(3).saturating_sub(start.elapsed()));
        assert!(!left.exists(), "what the part started went on");
    }

    #[test]
    fn a_part_that_fails_says_how() {
        let (ended, lines) = shell("echo found; exit 3", Duration::from_secs(20));
        assert!(matches!(ended, Ended::Exit(status) if status.code() == Some(3)));
        assert_eq!(lines, ["found"]);
    }

    #[test]
    fn a_wrong_part_is_named() {
        let error = choose(&["g".to_owned()]).unwrap_err().to_string();
        assert_eq!(error, "there is no part `g`; there are: a, b, c, d, e, f");
        let chosen: Vec<_> =
            choose(&["b".into(), "a".into()]).unwrap().iter().map(|part| part.name).collect();
        assert_eq!(chosen, ["b", "a"]);
    }
}
