//! What evcxr finds in place of `cargo`, `rustc` and `rustup`, in the environment of our server.
//!
//! For each cell evcxr calls `cargo build`, of which a third of a second is cargo making sure that
//! some four hundred dependencies have not changed. They cannot have: the clone is the kernel's
//! own. So the first build with a given manifest goes through the real cargo, with this program as
//! rustc's wrapper to take the compiler's command line down, and later ones repeat that command
//! line. `cargo check` runs the same command as far as the types.
//!
//! On the way, the places in evcxr's generated code that print its control words are changed to
//! print frames with the kernel's nonce, so that nothing that a cell prints can be taken for one.
//!
//! rust-analyzer, which evcxr loads with every crate in the graph (2 GB) in order to infer the
//! types of variables, gets an empty graph: the server asks rustc for the types instead (see
//! [`crate::server::types`]).

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tunebook_progress::channel::{CHANGED, ERROR, FRAME_START, NONCE_VAR, PANIC};

use crate::layout::{PRELUDE, RECORDS, TEMPLATE_VAR};

/// The kernel's directory (a clone of the template).
pub(crate) const DIR_VAR: &str = "TUNEBOOK_KERNEL_DIR";
/// The real tools.
pub(crate) const CARGO_VAR: &str = "TUNEBOOK_REAL_CARGO";
pub(crate) const RUSTC_VAR: &str = "TUNEBOOK_REAL_RUSTC";
const RECORD_VAR: &str = "TUNEBOOK_RECORD";

/// Files in the kernel's directory by which server and shim talk.
pub(crate) const PROBE_FILE: &str = "probe.request";
pub(crate) const TYPES_FILE: &str = "probe.types";
pub(crate) const COMPILER_FILE: &str = "compiler.pid";
/// While it is there, nothing is compiled: evcxr would try again what Stop has ended.
pub(crate) const STOP_FILE: &str = "compiler.stop";
/// While it is there, a cell is not worth optimising.
pub(crate) const QUICK_FILE: &str = "cell.quick";
const RECORD_FILE: &str = "rustc.json";

/// Acts as the tool by whose name this program was called, if it was.
pub(crate) fn run_if_called_as_tool() -> Option<ExitCode> {
    let mut args = std::env::args_os();
    let called = PathBuf::from(args.next()?);
    let args: Vec<OsString> = args.collect();
    let result = match called.file_name()?.to_str()? {
        "cargo" => cargo(&args),
        "rustc" => rustc(&args),
        "rustup" => rustup(&args),
        _ if std::env::var_os(RECORD_VAR).is_some() => record(&args),
        _ => return None,
    };
    Some(result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    }))
}

fn var(name: &str) -> Result<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).with_context(|| format!("{name} is not set"))
}

/// Becomes the real tool.
fn exec(program: &Path, args: &[OsString]) -> Result<ExitCode> {
    let error = Command::new(program).args(args).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

fn rustup(args: &[OsString]) -> Result<ExitCode> {
    if args.first().is_some_and(|arg| arg == "which") {
        let path = match args.get(1).and_then(|arg| arg.to_str()) {
            Some("cargo") => var(DIR_VAR)?.join("bin/cargo"),
            Some("rustc") => var(RUSTC_VAR)?,
            _ => bail!("unknown tool"),
        };
        println!("{}", path.display());
        return Ok(ExitCode::SUCCESS);
    }
    let own = var(DIR_VAR)?.join("bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let real = std::env::split_paths(&path)
        .filter(|dir| *dir != own)
        .map(|dir| dir.join("rustup"))
        .find(|path| path.is_file())
        .context("rustup is not installed")?;
    exec(&real, args)
}

/// Only rust-analyzer asks this one.
fn rustc(args: &[OsString]) -> Result<ExitCode> {
    if args.iter().any(|arg| arg == "sysroot") && in_cell() {
        bail!("the cells' rust-analyzer needs no standard library");
    }
    exec(&var(RUSTC_VAR)?, args)
}

/// Whether the tool is called for the cell: in its package, or (as rust-analyzer does) in the
/// workspace around it.
fn in_cell() -> bool {
    let Ok(dir) = var(DIR_VAR) else { return false };
    std::env::current_dir().is_ok_and(|cwd| cwd == dir || cwd == dir.join("cell"))
}

fn cargo(args: &[OsString]) -> Result<ExitCode> {
    let real = var(CARGO_VAR)?;
    let command = args
        .iter()
        .find(|arg| !arg.to_string_lossy().starts_with('-'))
        .and_then(|arg| arg.to_str());
    if !in_cell() {
        return exec(&real, args);
    }
    match command {
        Some("build") => compile(&real, args, Kind::Build),
        Some("check") => compile(&real, args, Kind::Check),
        // rust-analyzer names the manifest, evcxr does not.
        Some("metadata") if args.iter().any(|arg| arg == "--manifest-path") => empty_graph(),
        // evcxr asks whether a dependency can be had. The prelude can.
        Some("metadata") if is_validation_of_prelude() => {
            println!("{{}}");
            Ok(ExitCode::SUCCESS)
        }
        _ => exec(&real, args),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
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

/// The manifest and the configuration that evcxr writes decide about the dependencies.
fn key(cell: &Path) -> String {
    let read = |name: &str| fs::read_to_string(cell.join(name)).unwrap_or_default();
    format!("{}\n{}", read("Cargo.toml"), read(".cargo/config.toml"))
}

fn is_validation_of_prelude() -> bool {
    let manifest =
        var(DIR_VAR).and_then(|dir| Ok(fs::read_to_string(dir.join("cell/Cargo.toml"))?));
    manifest.is_ok_and(|text| text.contains("evcxr_dummy_validate_dep") && only_prelude(&text))
}

/// Whether a manifest depends on nothing but the prelude, which each clone of the template holds.
fn only_prelude(manifest: &str) -> bool {
    let own = format!("{PRELUDE} =");
    manifest.split("[dependencies]").nth(1).is_some_and(|dependencies| {
        dependencies.lines().map(str::trim).all(|line| {
            line.is_empty()
                || line.starts_with(&own)
                || line.starts_with("[net]")
                || line.starts_with("offline")
        })
    })
}

/// Whether a manifest depends on the prelude. (`:clear` takes it out.)
fn has_prelude(manifest: &str) -> bool {
    let own = format!("{PRELUDE} =");
    manifest.lines().any(|line| line.trim_start().starts_with(&own))
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

fn compile(real: &Path, args: &[OsString], kind: Kind) -> Result<ExitCode> {
    let dir = var(DIR_VAR)?;
    let cell = dir.join("cell");
    // A group of its own, which Stop can end without touching the kernel. The file says that it
    // runs. SAFETY: setpgid has no memory effects.
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
        text = with_frames(&text, &nonce);
        if fs::read_to_string(cell.join("Cargo.toml")).is_ok_and(|manifest| has_prelude(&manifest))
        {
            text = with_compiled_store(&text);
        }
        fs::write(&source, &text)?;
    } else if fs::remove_file(dir.join(PROBE_FILE)).is_ok() {
        (text, probed) = with_probes(&text);
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
        _ => {
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
                .env(RECORD_VAR, serde_json::to_string(&(record_file.clone(), key))?);
            if kind == Kind::Check {
                command.stdout(Stdio::null());
            }
            let status = command.status().context("cannot run cargo")?;
            let recorded = read();
            if let Some(recorded) = &recorded
                && status.success()
            {
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

/// The role of rustc's wrapper: takes the command line of the cell down and runs it.
fn record(args: &[OsString]) -> Result<ExitCode> {
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
    let error = Command::new(program).args(rest).env_remove(RECORD_VAR).exec();
    Err(error).context("cannot run rustc")
}

/// Repeats the recorded command and reports as cargo would.
fn again(recorded: &Recorded, kind: Kind, dir: &Path, probed: &[(usize, String)]) -> Result<i32> {
    let quick = kind == Kind::Build && dir.join(QUICK_FILE).exists();
    let mut args = Vec::new();
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
            // Without optimisation rustc would turn checks on that the profile has off.
            if quick && value == "opt-level=2" {
                for option in ["opt-level=0", "debug-assertions=off", "overflow-checks=off"] {
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
    let mut child = command.spawn().context("cannot run rustc")?;
    let stderr = child.stderr.take().context("rustc has no standard error")?;
    let mut types = serde_json::Map::new();
    let mut failed_otherwise = false;
    let stdout = std::io::stdout();
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
        let wrapped = json!({
            "reason": "compiler-message",
            "target": {"name": "ctx"},
            "message": message,
        });
        writeln!(stdout.lock(), "{wrapped}")?;
    }
    let status = child.wait()?;
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

/// Takes the store of the variables from the prelude, where it is compiled, instead of compiling
/// evcxr's source of it in every cell. Line breaks stay.
fn with_compiled_store(code: &str) -> String {
    const BEGIN: &str = "mod evcxr_internal_runtime {\n";
    const END: &str = "Box::into_raw(Box::new(VariableStore::new()))\n}\n";
    let Some(begin) = code.find(BEGIN).map(|at| at + BEGIN.len()) else { return code.to_owned() };
    let Some(end) = code[begin..].find(END).map(|at| begin + at + END.len()) else {
        return code.to_owned();
    };
    let lines = "\n".repeat(code[begin..end].matches('\n').count());
    format!("{}pub use ::{PRELUDE}::variables::*;{lines}{}", &code[..begin], &code[end..])
}

/// Whether the compiler complains that a variable which the cell has moved cannot be stored. evcxr
/// compiles again then, without storing it.
fn is_moved_before_storing(message: &Value) -> bool {
    let stores = |span: &Value| {
        span["is_primary"] == true
            && span["text"].as_array().is_some_and(|lines| {
                lines.iter().any(|line| {
                    line["text"].as_str().is_some_and(|text| {
                        text.trim_start().starts_with("evcxr_variable_store.put_variable::<")
                    })
                })
            })
    };
    message["code"]["code"] == "E0382"
        && message["spans"].as_array().is_some_and(|spans| spans.iter().any(stores))
}

/// Leaves out where the value went. evcxr looks for a remedy at every place that an error names: if
/// the cell's last expression is one of them it gives up showing its value by `evcxr_display`, too,
/// and a table becomes text.
fn keep_primary_spans(message: &mut Value) {
    if let Some(spans) = message["spans"].as_array_mut() {
        spans.retain(|span| span["is_primary"] == true);
    }
    message["children"] = json!([]);
}

/// Makes the generated code print frames where it prints evcxr's control words, and flush what the
/// cell has printed. Line breaks stay where they are, so errors keep their place.
fn with_frames(code: &str, nonce: &str) -> String {
    const NOTIFY: &str = "println!(\"EVCXR_PANIC_NOTIFICATION\");";
    const HANDLERS: [&str; 2] = ["  Err(_) => {\n    ", "}).is_err() {\n    "];
    const SHOW_ERROR: &str = "eprintln!(\"{}\", error);";
    const TELL_ERROR: &str = "println!(\"{}\", evcxr_internal_runtime::USER_ERROR_OCCURRED);";
    const TELL_CHANGED: &str = "println!(\"{VARIABLE_CHANGED_TYPE}{name}\");";
    const RETURN: &str = "evcxr_variable_store\n}";
    // What `channel::escape` does, for a process that need not have it.
    const ESCAPED: &str = r#"format!("{}", error).replace('\\', "\\\\").replace('\n', "\\n")"#;
    // A frame's newline is that of `println!`.
    let mark = format!("\\u{{{FRAME_START:x}}}{nonce}");
    let mut code = code.to_owned();
    for handler in HANDLERS {
        let framed = format!("{handler}println!(\"{mark}{PANIC}\");");
        code = code.replace(&format!("{handler}{NOTIFY}"), &framed);
    }
    code = code.replace(TELL_CHANGED, &format!("println!(\"{mark}{CHANGED}{{name}}\");"));
    if let Some(at) = code.find(TELL_ERROR) {
        code.replace_range(
            at..at + TELL_ERROR.len(),
            &format!("println!(\"{mark}{ERROR}{{}}\", {ESCAPED});"),
        );
        if let Some(shown) = code[..at].rfind(SHOW_ERROR) {
            code.replace_range(shown..shown + SHOW_ERROR.len(), "");
        }
    }
    if let Some(at) = code.rfind(RETURN) {
        code.insert_str(at, "let _ = ::std::io::Write::flush(&mut ::std::io::stdout()); ");
    }
    code
}

/// Makes the compiler name the type of each variable, by demanding a trait that no type has.
/// Returns the code and the variable that each line (counted from 1) asks about.
fn with_probes(code: &str) -> (String, Vec<(usize, String)>) {
    let mut probed = Vec::new();
    let mut out = String::with_capacity(code.len());
    for (index, line) in code.lines().enumerate() {
        let name = line
            .trim()
            .strip_prefix("evcxr_variable_store(")
            .and_then(|rest| rest.strip_suffix(");"));
        match name {
            Some(name) => {
                probed.push((index + 1, name.to_owned()));
                out.push_str(&format!("{{ fn ask<T: TunebookType>(_: &T) {{}} ask(&{name}); }}"));
            }
            // Where the analysis defines what it calls.
            None if line.starts_with("fn evcxr_variable_store<") => {
                out.push_str("trait TunebookType {}")
            }
            None => out.push_str(line),
        }
        out.push('\n');
    }
    (out, probed)
}

/// The variable and its type, if the message is the compiler's answer to a probe.
fn probe_answer(message: &Value, probed: &[(usize, String)]) -> Option<(String, String)> {
    let line = message["spans"]
        .as_array()?
        .iter()
        .find(|span| span["is_primary"] == true)
        .and_then(|span| span["line_start"].as_u64())?;
    let (_, name) = probed.iter().find(|(at, _)| *at as u64 == line)?;
    let text = message["message"].as_str()?;
    let rest = text.strip_prefix("the trait bound `")?.strip_suffix("` is not satisfied")?;
    let (type_name, bound) = rest.rsplit_once(": ")?;
    if bound.rsplit("::").next() != Some("TunebookType") {
        return None;
    }
    Some((name.clone(), type_name.replace("{integer}", "i32").replace("{float}", "f64")))
}

/// What rust-analyzer is told about the cell: a package without dependencies.
fn empty_graph() -> Result<ExitCode> {
    let cell = var(DIR_VAR)?.join("cell");
    let id = format!("path+file://{}#ctx@1.0.0", cell.display());
    let metadata = json!({
        "packages": [{
            "name": "ctx", "version": "1.0.0", "id": id, "license": null, "license_file": null, "description": null,
            "source": null, "dependencies": [], "features": {}, "manifest_path": cell.join("Cargo.toml"),
            "targets": [{
                "kind": ["cdylib"], "crate_types": ["cdylib"], "name": "ctx", "src_path": cell.join("src/lib.rs"),
                "edition": "2024", "doc": true, "doctest": false, "test": true,
            }],
            "metadata": null, "publish": null, "authors": [], "categories": [], "keywords": [], "readme": null,
            "repository": null, "homepage": null, "documentation": null, "edition": "2024", "links": null,
            "default_run": null, "rust_version": null,
        }],
        "workspace_members": [id],
        "workspace_default_members": [id],
        "resolve": {"nodes": [{"id": id, "dependencies": [], "deps": [], "features": []}], "root": id},
        "target_directory": cell.join("target"),
        "version": 1,
        "workspace_root": cell,
        "metadata": null,
    });
    println!("{metadata}");
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_words_become_frames_on_the_same_lines() {
        let code = concat!(
            "fn from(error: T) -> Self {\neprintln!(\"{}\", error);\n",
            "println!(\"{}\", evcxr_internal_runtime::USER_ERROR_OCCURRED);\n}\n",
            "  Err(_) => {\n    println!(\"EVCXR_PANIC_NOTIFICATION\");\n}}\n",
            "evcxr_variable_store\n}\n",
        );
        let framed = with_frames(code, "n0nce");
        assert_eq!(framed.lines().count(), code.lines().count());
        assert!(
            !framed.contains("EVCXR_PANIC")
                && !framed.contains("USER_ERROR")
                && !framed.contains("eprintln")
        );
        assert!(framed.contains("println!(\"\\u{1e}n0ncePANIC\");"), "{framed}");
        assert!(framed.contains("n0nceERROR{}\", format!(\"{}\", error)"), "{framed}");
        assert!(
            framed.contains("flush(&mut ::std::io::stdout()); evcxr_variable_store\n}"),
            "{framed}"
        );
    }

    #[test]
    fn the_generated_code_escapes_as_the_channel_does() {
        // The expression that `with_frames` writes, run here.
        let error = "a\nb \\n \\";
        let escaped = format!("{}", error).replace('\\', "\\\\").replace('\n', "\\n");
        assert_eq!(escaped, tunebook_progress::channel::escape(error));
        let code = "println!(\"{}\", evcxr_internal_runtime::USER_ERROR_OCCURRED);";
        let expression = r#"format!("{}", error).replace('\\', "\\\\").replace('\n', "\\n")"#;
        assert!(with_frames(code, "n0nce").contains(expression));
    }

    #[test]
    fn the_store_is_taken_from_the_prelude_on_the_same_lines() {
        let code = concat!(
            "fn before() {}\nmod evcxr_internal_runtime {\npub struct VariableStore {\n}\n",
            "pub fn create_variable_store() -> *mut VariableStore {\n",
            "    Box::into_raw(Box::new(VariableStore::new()))\n}\n}\nfn after() {}\n",
        );
        let short = with_compiled_store(code);
        assert_eq!(short.lines().count(), code.lines().count());
        assert!(
            short.contains("{\npub use ::tunebook::variables::*;\n") && !short.contains("struct"),
            "{short}"
        );
        assert!(short.ends_with("\n}\nfn after() {}\n"), "{short}");
        assert_eq!(with_compiled_store("fn main() {}"), "fn main() {}");
        assert!(has_prelude("[dependencies]\ntunebook = { path = \"/x\" }\n"));
        assert!(!has_prelude("[dependencies]\nother_tunebook = \"1\"\n"));
    }

    #[test]
    fn where_a_stored_variable_was_moved_is_left_out() {
        let span =
            |text: &str, primary: bool| json!({"is_primary": primary, "text": [{"text": text}]});
        let store = "evcxr_variable_store.put_variable::<DataFrame>(stringify!(frame), frame);";
        let shown = "(frame.lazy().collect()?).evcxr_display();";
        let error = |code: &str, primary: &str, secondary: &str| {
            json!({
                "code": {"code": code}, "children": [{"spans": [span(shown, true)]}],
                "spans": [span(secondary, false), span(primary, true)],
            })
        };
        let mut moved = error("E0382", store, shown);
        assert!(is_moved_before_storing(&moved));
        keep_primary_spans(&mut moved);
        assert_eq!(moved["spans"], json!([span(store, true)]));
        assert_eq!(moved["children"], json!([]));
        // An error of the cell's own keeps all that it says.
        assert!(!is_moved_before_storing(&error("E0382", shown, store)));
        assert!(!is_moved_before_storing(&error("E0308", store, shown)));
    }

    #[test]
    fn answers_are_matched_to_variables_by_line() {
        let (code, probed) = with_probes("let x = 1;\nevcxr_variable_store(x);\nOk(())\n");
        assert_eq!(probed, [(2, "x".to_owned())]);
        assert_eq!(code.lines().count(), 3);
        let message = |text: &str, line: u64| json!({"message": text, "spans": [{"is_primary": true, "line_start": line}]});
        let answer = message("the trait bound `{integer}: TunebookType` is not satisfied", 2);
        assert_eq!(probe_answer(&answer, &probed), Some(("x".into(), "i32".into())));
        let whole = message(
            "the trait bound `std::vec::Vec<f32>: wrapper::TunebookType` is not satisfied",
            2,
        );
        assert_eq!(probe_answer(&whole, &probed), Some(("x".into(), "std::vec::Vec<f32>".into())));
        assert_eq!(probe_answer(&message("mismatched types", 2), &probed), None);
        assert_eq!(probe_answer(&answer, &[(3, "x".into())]), None);
    }
}
