//! A run of the kit, on the machine that it was brought to: part after part, each in processes of
//! its own that are ended when their time is over.

use std::cell::OnceCell;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::drive::{Ended, Log, drive};
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
/// How long a Python may take to name the versions of its packages.
const ASKING: Duration = Duration::from_secs(20);
/// More findings of a part than any has.
const MOST_FINDINGS: usize = 1000;
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
    keep_earlier(&kit.out)?;
    std::fs::create_dir_all(&kit.out).map_err(Error::io("create", &kit.out))?;
    let path = kit.out.join("log.txt");
    let mut log = Log::new(File::create(&path).map_err(Error::io("write", &path))?);
    let card = kit.card();
    let device = kit.device(&mut log, card.as_ref());
    let mut report = Report::new(&kit.out, kit.about(&device, card.as_ref(), names));
    match &device {
        Ok(card) => say(&format!("card: {card}")),
        Err(reason) => say(reason),
    }
    for part in chosen {
        say(&format!("{}  {}", part.name, part.title));
        let start = Instant::now();
        report.begin(part);
        let status = match &device {
            Err(reason) => Some(reason.clone()),
            Ok(_) => match kit.part(part, &mut log, &mut report) {
                Ok(status) => status,
                Err(error) => Some(format!("failed: {error}")),
            },
        };
        let said = report.end(status, start.elapsed().as_secs_f64());
        say(&format!("   {said}, {:.0} s", start.elapsed().as_secs_f64()));
    }
    say(&kit.out.join("summary.txt").display().to_string());
    if let Some(error) = report.unwritten {
        return Err(Error::Other(format!("the results are not written: {error}")));
    }
    if report.passed() {
        return Ok(());
    }
    Err(Error::Other("not every part passed; summary.txt says which".to_owned()))
}

/// On the screen, which may be a closed pipe: what is found is in files.
fn say(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// The results of an earlier run stay: `out` becomes `out-1`, `out-2` and so on.
fn keep_earlier(out: &Path) -> Result<()> {
    if !out.join("log.txt").exists() && !out.join("result.json").exists() {
        return Ok(());
    }
    let name = out.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let free = (1..).map(|n| out.with_file_name(format!("{name}-{n}"))).find(|to| !to.exists());
    let to = free.unwrap_or_default();
    std::fs::rename(out, &to).map_err(Error::io("rename", out))
}

/// One part, as a process of its own: a line of JSON for each finding. Models are made here, so that
/// the part's time limit is theirs, too.
///
/// # Errors
/// A model that cannot be made, a program that does not start.
pub(super) fn part(folder: &Path, name: &str) -> Result<()> {
    let kit = Kit::new(folder)?;
    let chosen = choose(&[name.to_owned()])?;
    let Some(part) = chosen.first() else { return Ok(()) };
    let cases = match part.by {
        By::Bench(cases) => cases,
        By::Program(word) => {
            let mut command = kit.program();
            command.arg(word).arg(&kit.folder).args(kit.models(word)?);
            if kit.tiny {
                command.args(["--device=cpu", "--tiny"]);
            }
            return become_of(&mut command);
        }
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
            say(&finding.to_string());
        }
    }
    Ok(())
}

/// Becomes this program.
#[cfg(unix)]
fn become_of(command: &mut Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let source = command.exec();
    Err(process::start_error(command, source))
}

/// Never reached: other platforms are refused by the prerequisites.
#[cfg(not(unix))]
fn become_of(command: &mut Command) -> Result<()> {
    process::run(command, "a part of the kit")
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
        let tiny = match set("TUNEBOOK_BENCH_TINY").as_deref() {
            None | Some("0") => false,
            Some("1") => true,
            Some(other) => {
                return Err(Error::Usage(format!(
                    "TUNEBOOK_BENCH_TINY is `{other}`, expected 1 or 0"
                )));
            }
        };
        let work = set("TUNEBOOK_KIT_WORK")
            .map_or_else(|| std::env::temp_dir().join("tunebook-gpu-kit"), PathBuf::from);
        Ok(Self {
            out: set("TUNEBOOK_KIT_OUT").map_or_else(|| folder.join("out"), PathBuf::from),
            tiny,
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

    /// The card, as nvidia-smi has it.
    fn card(&self) -> Option<Card> {
        if self.tiny { None } else { Card::find().ok() }
    }

    /// What `kit.json` says.
    fn built(&self) -> Value {
        let kit = std::fs::read(self.folder.join("kit.json")).unwrap_or_default();
        serde_json::from_slice(&kit).unwrap_or_default()
    }

    /// The card's name, or why no part can run.
    fn device(&self, log: &mut Log, card: Option<&Card>) -> std::result::Result<String, String> {
        if self.tiny {
            return Ok("none: tried out on the CPU, in small".to_owned());
        }
        let (arch, found) =
            (self.built()["arch"].as_str().map(str::to_owned), card.map(Card::capability));
        if let (Some(arch), Some(found)) = (arch, found)
            && arch != found.replace('.', "")
        {
            return Err(format!(
                "failed: the kit is for the compute capability {arch}, the card has {found}: build one with --arch {}",
                found.replace('.', "")
            ));
        }
        let mut reason = None;
        let mut command = self.program();
        command.arg("card").arg(&self.folder);
        let ended = drive(&mut command, OPENING, log, |line| {
            let said: Value = serde_json::from_str(line).unwrap_or_default();
            reason = said["no_device"].as_str().map(str::to_owned).or(reason.take());
            Ok(())
        })
        .map_err(|error| format!("failed: {error}"))?;
        match (ended, reason) {
            (_, Some(reason)) => Err(format!("no device: {reason}")),
            (Ended::Exit(status), None) if status.success() => {
                Ok(card.map_or_else(|| "unknown".to_owned(), |card| card.name().to_owned()))
            }
            (Ended::Exit(status), None) => {
                let last = last_line(&self.out.join("log.txt"));
                Err(format!(
                    "failed: the program does not start ({status}): {last}. Where CUDA's libraries are not found, \
                     TUNEBOOK_KIT_LIBRARIES names their folders, or TUNEBOOK_KIT_PYTHON a Python with PyTorch"
                ))
            }
            (Ended::Late, None) => {
                Err(format!("no device: it did not open in {} s", OPENING.as_secs()))
            }
        }
    }

    /// What the figures of a run belong to.
    fn about(
        &self,
        device: &std::result::Result<String, String>,
        card: Option<&Card>,
        names: &[String],
    ) -> Value {
        let versions = "import json, platform\nv = {'python': platform.python_version()}\nfor name in ('torch', 'transformers', 'peft', 'adapters'):\n    try:\n        from importlib.metadata import version\n        v[name] = version(name)\n    except Exception:\n        v[name] = None\nprint(json.dumps(v))";
        let ask = |python: &PathBuf| {
            let mut command = process::command(python);
            process::capture_within(command.args(["-c", versions]), "Python", ASKING).ok()
        };
        let peers = self.python.as_ref().and_then(ask);
        let peers: Value =
            peers.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let parts = names.iter().map(|name| format!(" {name}")).collect::<String>();
        json!({
            "kit": self.built(),
            "tiny": self.tiny,
            "card": device.clone().unwrap_or_else(|reason| reason),
            "details": card.map(Card::about),
            // Parts a and b choose by themselves; c runs both.
            "kernels": set("TUNEBOOK_CUDA_KERNELS").unwrap_or_else(|| "proven".to_owned()),
            "machine": machine::machine(),
            "peers": peers,
            "command": format!("./run.sh{parts}"),
        })
    }

    /// Runs one part. Its status, unless its findings decide.
    fn part(&self, part: &Part, log: &mut Log, report: &mut Report) -> Result<Option<String>> {
        let mut command = process::command(self.folder.join("bin/xtask"));
        command.args(["gpu-kit", "--part", part.name]).arg(&self.folder);
        let (mut found, mut broken) = (0, 0);
        let ended = drive(&mut command, part.limit, log, |line| {
            // Other lines are for the log.
            if !line.starts_with('{') {
                return Ok(());
            }
            let finding: Value = serde_json::from_str(line).unwrap_or_default();
            let passed = finding.get("passed");
            if finding["name"].is_string() && passed.is_some_and(|p| p.is_boolean() || p.is_null())
            {
                report.add(finding);
                found += 1;
            } else {
                broken += 1;
            }
            match found + broken > MOST_FINDINGS {
                true => Err(Error::Other(format!("more than {MOST_FINDINGS} findings"))),
                false => Ok(()),
            }
        })?;
        Ok(match ended {
            Ended::Late => {
                Some(format!("failed: ended after {} s, {found} findings", part.limit.as_secs()))
            }
            Ended::Exit(status) if status.code() == Some(NO_DEVICE) => Some("no device".to_owned()),
            Ended::Exit(status) if !status.success() => {
                Some(format!("failed ({status}): log.txt says why"))
            }
            Ended::Exit(_) if broken > 0 => {
                Some(format!("failed: {broken} lines of log.txt are no findings"))
            }
            Ended::Exit(_) => None,
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
        let (peft, hub) = (OnceCell::new(), OnceCell::new());
        Programs {
            ours: (self.folder.join("bin/gpu_kit"), vec!["bench-train"]),
            environment: self.environment(),
            golden: self.folder.join("golden"),
            work: self.work.clone(),
            peers: self.folder.join("peers"),
            python: Box::new(move |packages| {
                let cell = match packages {
                    Packages::Peft => &peft,
                    Packages::AdapterHub => &hub,
                };
                cell.get_or_init(|| with_packages(python.as_deref(), packages)).clone()
            }),
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
            let reason = missing
                .as_str()
                .unwrap_or_default()
                .replace("what it wrote is above", "log.txt has what it wrote");
            findings.push(json!({"name": case, "passed": null, "reason": reason}));
        }
        for different in measured.about["different"].as_array().into_iter().flatten() {
            findings.push(json!({"name": case, "passed": false, "reason": different}));
        }
        findings.push(
            json!({"name": format!("{case}: whole"), "passed": true, "about": measured.about}),
        );
        Ok(findings)
    }
}

/// The Python, when it has the packages of a peer. They are not imported: that takes a part's time,
/// and a peer that does not start says so.
fn with_packages(
    python: Option<&Path>,
    packages: Packages,
) -> std::result::Result<PathBuf, String> {
    let python = python.ok_or("no Python on this machine")?;
    let names = match packages {
        Packages::Peft => "torch transformers peft",
        Packages::AdapterHub => "torch transformers adapters",
    };
    let find = format!(
        "import importlib.util as i, sys\nm = [n for n in '{names}'.split() if i.find_spec(n) is None]\nsys.exit('it has no ' + ', '.join(m) if m else 0)"
    );
    let mut command = process::command(python);
    process::capture_within(command.args(["-c", &find]), "Python", ASKING)
        .map(|_| python.to_path_buf())
        .map_err(|error| error.to_string())
}

fn last_line(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().lines().last().unwrap_or("it said nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_part_is_named() {
        let error = choose(&["g".to_owned()]).unwrap_err().to_string();
        assert_eq!(error, "there is no part `g`; there are: a, b, c, d, e, f");
        let chosen: Vec<_> =
            choose(&["b".into(), "a".into()]).unwrap().iter().map(|part| part.name).collect();
        assert_eq!(chosen, ["b", "a"]);
    }

    #[test]
    fn the_results_of_an_earlier_run_stay() {
        let folder = std::env::temp_dir().join(format!("xtask-earlier-{}", std::process::id()));
        let out = folder.join("out");
        for n in 0..2 {
            keep_earlier(&out).unwrap();
            std::fs::create_dir_all(&out).unwrap();
            std::fs::write(out.join("log.txt"), n.to_string()).unwrap();
        }
        keep_earlier(&out).unwrap();
        assert!(!out.exists());
        assert_eq!(std::fs::read_to_string(folder.join("out-1/log.txt")).unwrap(), "0");
        assert_eq!(std::fs::read_to_string(folder.join("out-2/log.txt")).unwrap(), "1");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// A kit whose program is this script.
    #[cfg(unix)]
    fn part_of(script: &str) -> (String, Value) {
        use std::os::unix::fs::PermissionsExt;
        static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("xtask-part-{}-{number}", std::process::id()));
        std::fs::create_dir_all(folder.join("bin")).unwrap();
        let program = folder.join("bin/xtask");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let kit = Kit::new(&folder).unwrap();
        let mut log = Log::new(File::create(folder.join("log.txt")).unwrap());
        let mut report = Report::new(&folder, json!({}));
        report.begin(&PARTS[0]);
        let status = kit.part(&PARTS[0], &mut log, &mut report);
        let said = report.end(status.unwrap_or_else(|e| Some(format!("failed: {e}"))), 1.0);
        let text = std::fs::read(folder.join("result.json")).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        (said, serde_json::from_slice(&text).unwrap())
    }

    #[cfg(unix)]
    #[test]
    fn a_broken_line_or_nothing_proven_is_a_failure() {
        let good = r#"echo '{"name":"x","passed":true}'"#;
        let status = |script: &str| part_of(script).0;
        assert_eq!(status(&format!("echo text; {good}")), "passed");
        assert_eq!(status(r#"echo '{"name":"only","passed":null}'"#), "failed: nothing was proven");
        let broken = "failed: 1 lines of log.txt are no findings";
        for line in [r#"{"name":"y","pas"#, r#"{"name":"y"}"#, r#"{"name":"y","passed":"true"}"#] {
            assert_eq!(status(&format!("{good}; echo '{line}'")), broken, "{line}");
        }
        assert!(status(&format!("{good}; exit 4")).starts_with("failed (exit status: 4)"));
        let many = r#"while :; do echo '{"name":"x","passed":true}'; done"#;
        assert_eq!(status(many), "failed: more than 1000 findings");
        // Bytes that are no text lose no later finding.
        let (said, result) = part_of(&format!("printf '\\377\\n'; {good}"));
        assert_eq!(said, "passed");
        assert_eq!(result["parts"][0]["findings"][0]["name"], "x");
    }
}
