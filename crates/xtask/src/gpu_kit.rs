//! `cargo xtask gpu-kit`: a folder that proves the code for NVIDIA GPUs on a machine that has one
//! and nothing else: a driver, CUDA's libraries (PyTorch brings them), no compiler, no network.
//!
//! It is built where no GPU is. The kit holds one program for all that a GPU has to do
//! (`crates/tune/examples/gpu_kit`: a program with candle's kernels takes most of the kit, so there is
//! one), this program, which runs the parts ([`run`]) under time limits ([`parts`]), and `run.sh`,
//! which finds CUDA's libraries. docs/gpu.md says how to use it.

mod drive;
mod kernels;
mod parts;
mod read;
mod report;
mod run;
mod symbols;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::bench::rows::write;
use crate::dist::files::newest_glibc;
use crate::error::{Error, Result};
use crate::process;
use crate::setup::{Setup, cuda};

/// What a kit may take: with the repository it has to fit into what is carried to such a machine.
const MOST_BYTES: u64 = 55_000_000;
/// The libraries that the program is linked to.
const LIBRARIES: [&str; 6] = ["cuda", "cudart", "cublas", "cublasLt", "curand", "nvrtc"];
/// The program, an example of `tunebook-tune`.
const PROGRAM: &str = "gpu_kit";

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum GpuKit {
    /// Build the kit for GPUs of this architecture (90 is compute capability 9.0).
    Build { arch: String, out: Option<PathBuf> },
    /// Run every part in small on the CPU, from a build without CUDA.
    Try { out: Option<PathBuf> },
    /// All that can be proven of a kit without a GPU, as `cargo xtask test --long` does.
    Check,
    /// Write a result's table into the documentation.
    Read(PathBuf),
    /// In a kit: run these parts of it.
    Run { kit: PathBuf, parts: Vec<String> },
    /// In a kit: one part.
    Part { name: String, kit: PathBuf },
}

impl GpuKit {
    /// # Errors
    /// What does not compile, cannot be written or does not pass.
    pub(crate) fn run(&self) -> Result<()> {
        match self {
            Self::Run { kit, parts } => run::run(kit, parts),
            Self::Part { name, kit } => run::part(kit, name),
            Self::Check => {
                let setup = Setup::locate()?;
                check_kernels(&setup)?;
                check(&setup)
            }
            Self::Read(file) => {
                let setup = Setup::locate()?;
                read::read(&setup.root, file, &plan(&setup)?)
            }
            Self::Build { arch, out } => {
                let setup = Setup::locate()?;
                let kit = build(&setup, arch, out.clone())?;
                println!("carry it to a machine with a GPU and run {}/run.sh", kit.display());
                Ok(())
            }
            Self::Try { out } => {
                let setup = Setup::locate()?;
                crate::bench::build(&setup, "tunebook-tune", PROGRAM)?;
                let folder =
                    out.clone().unwrap_or_else(|| setup.target.join("tunebook/gpu-kit/try"));
                let program = setup.target.join(&setup.triple).join("debug/examples").join(PROGRAM);
                assemble(&setup, &folder, &program, "none: for the CPU")?;
                let mut command = process::command(folder.join("run.sh"));
                command
                    .env("TUNEBOOK_BENCH_TINY", "1")
                    .env("TUNEBOOK_KIT_WORK", folder.join("work"));
                if let Some(python) = setup.peers_python() {
                    command.env("TUNEBOOK_KIT_PYTHON", python);
                }
                process::run(&mut command, "the kit in small on the CPU")
            }
        }
    }
}

/// The comparisons of kernels that a whole run of this checkout's kit has.
fn plan(setup: &Setup) -> Result<Vec<serde_json::Value>> {
    crate::bench::build(setup, "tunebook-tune", PROGRAM)?;
    let text = process::capture(crate::bench::program(setup, PROGRAM).arg("plan"), PROGRAM)?;
    let plan: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap_or_default();
    if plan.is_empty() {
        return Err(Error::Other(format!("{PROGRAM} plan: expected a list of comparisons")));
    }
    Ok(plan)
}

/// Builds the program and puts the kit together.
///
/// # Errors
/// What does not compile; a kit that is too large, or needs a newer glibc than it may.
fn build(setup: &Setup, arch: &str, out: Option<PathBuf>) -> Result<PathBuf> {
    let toolkit = setup.ensure_cuda_toolkit()?;
    let mut environment = toolkit.environment();
    environment.retain(|(name, _)| *name != "CUDA_COMPUTE_CAP");
    environment.push(("CUDA_COMPUTE_CAP", arch.into()));
    // Half of the program is machine code for the GPU.
    environment.push(("NVCC_APPEND_FLAGS", "--compress-mode=size".into()));
    println!(
        "building the kit's program for sm_{arch} (the first time, half an hour on two cores)"
    );
    let mut command = process::cargo(&setup.root);
    command
        .args(["rustc", "--locked", "--package", "tunebook-tune", "--features", "cuda"])
        .args(["--example", PROGRAM, "--", "-Cstrip=symbols"])
        .args(linked().map(|argument| format!("-Clink-arg={argument}")));
    cuda::set(&mut command, &environment);
    process::run(&mut command, "building the kit's program")?;
    let program = setup.cuda_target().join(&setup.triple).join("debug/examples").join(PROGRAM);
    let folder = out.unwrap_or_else(|| setup.target.join(format!("tunebook/gpu-kit/sm_{arch}")));
    assemble(setup, &folder, &program, arch)?;
    Ok(folder)
}

/// Arguments of the linker. Where the libraries are empty ones, it must neither drop them nor look
/// for symbols in them; [`check`] does the latter.
fn linked() -> impl Iterator<Item = String> {
    let libraries = LIBRARIES.map(|name| format!("-l{name}"));
    std::iter::once("-Wl,--no-as-needed".to_owned())
        .chain(libraries)
        .chain(["-Wl,--unresolved-symbols=ignore-all".to_owned()])
}

/// Puts a kit into `folder`, which is emptied first.
fn assemble(setup: &Setup, folder: &Path, program: &Path, arch: &str) -> Result<()> {
    for inside in ["bin", "lib", "golden", "peers"] {
        let inside = folder.join(inside);
        if inside.exists() {
            std::fs::remove_dir_all(&inside).map_err(Error::io("remove", &inside))?;
        }
    }
    let copy = |from: &Path, to: &str| -> Result<()> {
        let to = folder.join(to);
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        std::fs::copy(from, &to).map(drop).map_err(Error::io("copy", from))
    };
    let own = std::env::current_exe().map_err(|error| Error::Other(error.to_string()))?;
    let standard = standard_library(setup)?;
    let library = format!("lib/{}", standard.file_name().unwrap_or_default().to_string_lossy());
    copy(program, "bin/gpu_kit")?;
    copy(&own, "bin/xtask")?;
    copy(&standard, &library)?;
    for file in ["bin/gpu_kit", "bin/xtask", &library] {
        let mut strip = process::command("strip");
        process::run(strip.arg(folder.join(file)), "strip (Debian's package binutils)")?;
    }
    for (from, to) in [("tests/golden/lora_tiny", "golden/lora_tiny")] {
        for path in files(&setup.root.join(from))? {
            let inside = path.strip_prefix(setup.root.join(from)).unwrap_or(&path);
            copy(&path, &format!("{to}/{}", inside.display()))?;
        }
    }
    copy(&setup.root.join("tests/peers/bench_train.py"), "peers/bench_train.py")?;
    copy(&setup.root.join("crates/xtask/gpu_kit/run.sh"), "run.sh")?;
    let commit = process::capture(
        process::command("git").current_dir(&setup.root).args(["describe", "--always", "--dirty"]),
        "git",
    );
    let about = json!({
        "commit": commit.as_deref().map_or("unknown", str::trim),
        "arch": arch,
        "version": env!("CARGO_PKG_VERSION"),
    });
    write(&folder.join("kit.json"), &about)?;

    let mut glibc = (0, 0);
    for file in ["bin/gpu_kit", "bin/xtask", &library] {
        let file = folder.join(file);
        let bytes = std::fs::read(&file).map_err(Error::io("read", &file))?;
        glibc = glibc.max(newest_glibc(&bytes));
    }
    let size = size(folder)?;
    let (major, minor) = glibc;
    println!(
        "kit: {:.1} MB in {}, needs glibc {major}.{minor}",
        size as f64 / 1e6,
        folder.display()
    );
    if glibc > symbols::NEWEST_GLIBC {
        return Err(Error::Other(format!(
            "the kit needs glibc {major}.{minor}, expected {}.{} at most: build it on a system with an \
             older one, such as Debian 12",
            symbols::NEWEST_GLIBC.0,
            symbols::NEWEST_GLIBC.1
        )));
    }
    if size > MOST_BYTES {
        return Err(Error::Other(format!(
            "the kit takes {size} bytes, expected {MOST_BYTES} at most"
        )));
    }
    Ok(())
}

/// Rust's standard library, which the programs load (`-Cprefer-dynamic`).
fn standard_library(setup: &Setup) -> Result<PathBuf> {
    let mut rustc = process::command("rustc");
    rustc.args(["--print", "sysroot"]).current_dir(&setup.root);
    let sysroot = PathBuf::from(process::capture(&mut rustc, "rustc")?.trim());
    let folder = sysroot.join("lib/rustlib").join(&setup.triple).join("lib");
    let is_it = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with("libstd-") && name.ends_with(".so")
    };
    let mut found = files(&folder)?.into_iter().filter(is_it);
    found.next().ok_or_else(|| {
        Error::Other(format!("{}: expected libstd-….so, Rust's standard library", folder.display()))
    })
}

/// All files below a folder, but what a run of the kit writes.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io("read", folder))?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn size(folder: &Path) -> Result<u64> {
    let own = |path: &&PathBuf| {
        let inside = path.strip_prefix(folder).unwrap_or(path);
        let first = inside.components().next().map(|part| part.as_os_str().to_string_lossy());
        !first.is_some_and(|first| ["out", "work"].contains(&&*first) || first.starts_with("out-"))
    };
    let bytes = |path: &PathBuf| {
        std::fs::metadata(path).map(|found| found.len()).map_err(Error::io("read", path))
    };
    files(folder)?.iter().filter(own).map(bytes).sum()
}

/// For `cargo xtask test --long`: the kernels' tables against ptxas.
///
/// # Errors
/// Where they differ.
pub(crate) fn check_kernels(setup: &Setup) -> Result<()> {
    let toolkit = setup.ensure_cuda_toolkit()?;
    let scratch = setup.target.join("tunebook/gpu-kit");
    std::fs::create_dir_all(&scratch).map_err(Error::io("create", &scratch))?;
    kernels::check(&setup.root, &toolkit.home().join("bin/nvcc"), &scratch)
}

/// For `cargo xtask test --long`: every part in small on the CPU; a kit, the symbols that it needs;
/// and that every part passes on this machine's GPU or, where there is none, says so.
///
/// # Errors
/// The first of these that is not so.
pub(crate) fn check(setup: &Setup) -> Result<()> {
    GpuKit::Try { out: None }.run()?;
    let kit = build(setup, "90", None)?;
    let needs = symbols::needs(&kit.join("bin/gpu_kit"))?;
    check_symbols(setup, &needs)?;
    let toolkit = setup.ensure_cuda_toolkit()?;
    if !toolkit.has_gpu() {
        return check_without_device(&kit, &needs);
    }
    let libraries = toolkit.ensure_library_wheels(setup)?;
    let mut command = process::command(kit.join("run.sh"));
    command.env("TUNEBOOK_KIT_LIBRARIES", std::env::join_paths(libraries).unwrap_or_default());
    if let Some(python) = setup.peers_python() {
        command.env("TUNEBOOK_KIT_PYTHON", python);
    }
    process::run(&mut command, "the kit on this machine's GPU")
}

/// Every symbol is in a library of CUDA 13.0, of the C and C++ runtime or of Rust.
fn check_symbols(setup: &Setup, needs: &symbols::Needs) -> Result<()> {
    let toolkit = setup.ensure_cuda_toolkit()?;
    let mut there = symbols::defined(&standard_library(setup)?)?;
    let wheels = toolkit.ensure_library_wheels(setup)?;
    for library in &needs.libraries {
        let path = match library.as_str() {
            "libcuda.so.1" => continue, // the driver's: see below
            name if name.starts_with("libstd-") => continue,
            name => {
                let of_cuda = wheels.iter().map(|folder| folder.join(name)).find(|p| p.is_file());
                match of_cuda {
                    Some(path) => path,
                    None => of_the_system(name)?,
                }
            }
        };
        there.extend(symbols::defined(&path)?);
    }
    for name in LIBRARIES {
        if !needs.libraries.iter().any(|library| library.starts_with(&format!("lib{name}.so"))) {
            return Err(Error::Other(format!("the program does not name lib{name}")));
        }
    }
    let header = toolkit.home().join("include/cuda.h");
    let header = std::fs::read_to_string(&header).map_err(Error::io("read", &header))?;
    let missing = symbols::missing(&needs.symbols, &there, &symbols::driver(&header));
    if missing.is_empty() {
        println!(
            "{} symbols of {} libraries are there",
            needs.symbols.len(),
            needs.libraries.len()
        );
        return Ok(());
    }
    Err(Error::Other(format!("symbols that no library of CUDA 13.0 has: {}", missing.join(", "))))
}

/// Where the linker finds a library of the C or C++ runtime.
fn of_the_system(name: &str) -> Result<PathBuf> {
    let mut cc = process::command("cc");
    let path = process::capture(cc.arg(format!("-print-file-name={name}")), "cc")?;
    Ok(PathBuf::from(path.trim()))
}

/// With libraries in which no function finds a GPU, every part says within a minute that there is
/// none; with libraries that seem to work and compute nothing, no comparison passes.
fn check_without_device(kit: &Path, needs: &symbols::Needs) -> Result<()> {
    let start = std::time::Instant::now();
    let parts = run_with_stubs(kit, needs, 100, &[])?;
    let has = |status: &&serde_json::Value, begin: &str| {
        status["status"].as_str().is_some_and(|status| status.starts_with(begin))
    };
    let said = parts.iter().filter(|part| has(part, "no device")).count();
    if said != parts::PARTS.len() || start.elapsed().as_secs() >= 60 {
        return Err(Error::Other(format!(
            "expected every part to say `no device` within a minute, found {} after {} s",
            parts.iter().map(|part| part["status"].to_string()).collect::<Vec<_>>().join(", "),
            start.elapsed().as_secs()
        )));
    }
    let parts = run_with_stubs(kit, needs, 0, &["a", "b", "c"])?;
    // Losses of c may fall by chance: memory that nothing was written to holds anything.
    let passed: Vec<String> = parts
        .iter()
        .filter(|part| part["part"] != "c")
        .flat_map(report::findings)
        .filter(|finding| finding["passed"] != false)
        .map(|finding| finding["name"].to_string())
        .collect();
    if passed.is_empty() && parts.iter().filter(|part| has(part, "failed: ")).count() == 3 {
        return Ok(());
    }
    Err(Error::Other(format!(
        "expected a, b and c to fail where nothing is computed, and every comparison of a and b; passed: {}",
        passed.join(", ")
    )))
}

/// The parts of a run with stand-ins for CUDA's libraries whose functions answer `code`.
fn run_with_stubs(
    kit: &Path,
    needs: &symbols::Needs,
    code: u8,
    names: &[&str],
) -> Result<Vec<serde_json::Value>> {
    let stubs = stubs(kit, needs, code)?;
    // Not `out`, which may hold the results of a run.
    let out = kit.join("out-stubs");
    let mut command = process::command(kit.join("run.sh"));
    command.args(names).env("TUNEBOOK_KIT_LIBRARIES", &stubs).env("TUNEBOOK_KIT_PYTHON", "");
    command.env("TUNEBOOK_KIT_OUT", &out).env("TUNEBOOK_KIT_WORK", kit.join("work"));
    if out.exists() {
        std::fs::remove_dir_all(&out).map_err(Error::io("remove", &out))?;
    }
    // It ends with a failure: not every part passed.
    process::show_and_keep(&mut command, |_| true)?;
    let path = out.join("result.json");
    let text = std::fs::read(&path).map_err(Error::io("read", &path))?;
    Ok(report::parts(&serde_json::from_slice(&text).unwrap_or_default()))
}

/// A folder beside the kit with such stand-ins.
fn stubs(kit: &Path, needs: &symbols::Needs, code: u8) -> Result<OsString> {
    let folder = kit.with_extension(format!("stubs-{code}"));
    std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    let is_cuda = |name: &&String| {
        name.starts_with("cu") || name.starts_with("nvrtc") || name.starts_with("__cuda")
    };
    let functions: BTreeSet<String> = needs.symbols.iter().filter(is_cuda).cloned().collect();
    let source = folder.join("stub.c");
    std::fs::write(&source, symbols::stub(&functions, code))
        .map_err(Error::io("write", &source))?;
    for library in &needs.libraries {
        if !LIBRARIES.iter().any(|name| library.starts_with(&format!("lib{name}.so"))) {
            continue;
        }
        let mut cc: Command = process::command("cc");
        cc.args(["-shared", "-fPIC", "-w", "-o"])
            .arg(folder.join(library))
            .arg(format!("-Wl,-soname,{library}"))
            .arg(&source);
        process::run(&mut cc, "making a stand-in for a library of CUDA")?;
    }
    Ok(folder.into_os_string())
}
