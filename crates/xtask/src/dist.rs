//! `cargo xtask dist`: a workshop kit. One archive, for one processor and compiler, with all that a
//! second machine needs to be ready in under a minute without a network.
//!
//! The archive unpacks to a folder that is laid out like the repository, so that the kernel finds
//! what it looks for. Cells are compiled there as in the repository, by repeating the compiler's
//! command line ([`files`] says what that reads, [`paths`] which paths stand in it); cargo, which
//! knows its artefacts by absolute paths, has no part in it. `kit/install.sh` makes the Python
//! environment and writes the paths of the machine that it runs on.

pub(crate) mod files;
mod paths;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::hash;
use crate::process;
use crate::setup::{self, Setup, duration};

use self::files::Kit;
use self::paths::Opened;

/// Installers, copied into the kit.
const SCRIPTS: [(&str, &str); 5] = [
    ("install.sh", "install.sh"),
    ("start.sh", "start.sh"),
    ("README.md", "README.md"),
    ("configure.py", "kit/configure.py"),
    ("first_cell.py", "kit/first_cell.py"),
];
/// The versions of Python for which the kit has packages.
const PYTHONS: [&str; 5] = ["3.10", "3.11", "3.12", "3.13", "3.14"];
/// Disk that the installation takes beside the unpacked archive, with room for a kernel, in MB.
const DISK_MB: u32 = 700;

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dist {
    /// Where the archive goes; the target directory's `tunebook/dist` by default.
    pub out: Option<PathBuf>,
    /// Whether the compiler is part of the kit.
    pub with_toolchain: bool,
}

impl Dist {
    /// Sets everything up, puts the kit together and packs it.
    ///
    /// # Errors
    /// When a step of the set-up fails, a file cannot be copied, or a path of this machine would
    /// go along that the installer does not know.
    pub(crate) fn run(&self) -> Result<()> {
        let setup = Setup::locate()?;
        setup.ensure()?;
        let start = Instant::now();
        let rust = Rust::ask(&setup.root)?;
        let name = name(&rust, self.with_toolchain);
        let folder = setup.target.join("tunebook/dist");
        let kit = Kit::new(&folder.join(&name))?;

        println!("kit: the compiler's command line of a cell");
        let template = setup.root.join("target/notebook/template");
        let records = self.records(&setup, &template)?;
        println!("kit: compiled crates, sources, notebooks, base model");
        files::add_project(&kit, &setup.root, &template)?;
        files::add_artefacts(&kit, &template, &setup.triple)?;
        self.add_records(&kit, &setup, &rust, &records)?;
        kit.link(&setup.kernel_binary(), Path::new("kit/bin/tunebook-kernel"))?;
        let model = setup.base_model_file();
        let inside = model.strip_prefix(&setup.cache).unwrap_or(&model);
        kit.link(&model, &Path::new("kit/cache").join(inside))?;
        if self.with_toolchain {
            println!("kit: toolchain");
            files::add_toolchain(&kit, &rust.sysroot, &setup.triple)?;
        }
        println!("kit: Python packages for {}", PYTHONS.join(", "));
        let glibc = glibc(&setup, &template)?;
        wheels(&setup, &kit.folder.join("kit/wheels"), glibc)?;
        for (from, to) in SCRIPTS {
            kit.copy(&setup.root.join("crates/xtask/kit").join(from), Path::new(to))?;
        }
        for name in ["execute_notebook.py", "parameters.py"] {
            kit.copy(
                &setup.root.join("crates/xtask/python").join(name),
                &Path::new("kit").join(name),
            )?;
        }
        kit.write(Path::new("kit/lab_settings.json"), setup::LAB_SETTINGS)?;
        kit.write(Path::new("kit/rustc.txt"), &rust.version)?;
        kit.write(Path::new("kit/needs"), &needs(&rust, glibc))?;
        println!(
            "kit: {} MB in {} files, in {}",
            kit.bytes()? / 1_000_000,
            kit.files()?.len(),
            kit.folder.display()
        );

        let out = self.out.clone().unwrap_or(folder);
        let archive = pack(&kit, &name, &out)?;
        println!(
            "{}: {} MB, after {}",
            archive.display(),
            size(&archive)? / 1_000_000,
            duration(start.elapsed())
        );
        Ok(())
    }

    /// The recorded command lines of the template. A kernel writes two with its first cell: evcxr
    /// compiles a line of its own before the prelude is there.
    fn records(&self, setup: &Setup, template: &Path) -> Result<Vec<PathBuf>> {
        let folder = template.join("records");
        process::run(
            process::command(setup.python())
                .arg(setup.root.join("crates/xtask/kit/first_cell.py"))
                .args([&setup.root, &setup.target.join("tunebook/python")])
                .env("TUNEBOOK_CACHE", &setup.cache),
            "running a first cell",
        )?;
        let records = files::with_ending(&folder, ".json")?;
        if records.is_empty() {
            return Err(Error::Other(format!(
                "the kernel has kept no command line of the compiler in {}",
                folder.display()
            )));
        }
        Ok(records)
    }

    /// The command lines and the cell's manifest, with places in the stead of paths.
    fn add_records(
        &self,
        kit: &Kit,
        setup: &Setup,
        rust: &Rust,
        records: &[PathBuf],
    ) -> Result<()> {
        let template = Path::new("target/notebook/template");
        let opened = Opened::new(&setup.root, &setup.target, &rust.sysroot);
        for record in records {
            let text = read(record)?;
            let text = opened
                .record(&text)
                .map_err(|why| Error::Other(format!("{}: {why}", record.display())))?;
            let name = format!("{}.in", record.file_name().unwrap_or_default().to_string_lossy());
            kit.write(&template.join("records").join(name), &text)?;
        }
        let manifest = setup.root.join(template).join("cell/Cargo.toml");
        kit.write(&template.join("cell/Cargo.toml.in"), &opened.text(&read(&manifest)?))
    }
}

/// The compiler of this machine.
struct Rust {
    /// `rustc -vV`.
    version: String,
    /// The folder with `bin` and `lib`.
    sysroot: PathBuf,
}

impl Rust {
    /// The one that compiles in `folder`.
    fn ask(folder: &Path) -> Result<Self> {
        let ask = |args: &[&str]| {
            let mut rustc = process::command("rustc");
            process::capture(rustc.args(args).current_dir(folder), "rustc")
        };
        Ok(Self { version: ask(&["-vV"])?, sysroot: ask(&["--print", "sysroot"])?.trim().into() })
    }

    fn field(&self, name: &str) -> &str {
        self.version.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim()
    }

    fn arch(&self) -> &str {
        self.field("host:").split('-').next().unwrap_or_default()
    }
}

/// The name of archive and folder.
fn name(rust: &Rust, with_toolchain: bool) -> String {
    let toolchain = if with_toolchain { "-with-toolchain" } else { "" };
    format!("tunebook-kit-{}-rust{}{toolchain}", rust.arch(), rust.field("release:"))
}

/// The oldest glibc, as (major, minor), with which kernel and cells start.
fn glibc(setup: &Setup, template: &Path) -> Result<(u32, u32)> {
    let library = files::target(template).join(&setup.triple).join("debug/deps/libtunebook.so");
    let mut newest = (0, 0);
    for file in [&setup.kernel_binary(), &library] {
        let bytes = std::fs::read(file).map_err(Error::io("read", file))?;
        newest = newest.max(files::newest_glibc(&bytes));
    }
    Ok(newest)
}

/// What the installer asks of a machine, as variables of a shell.
fn needs(rust: &Rust, (major, minor): (u32, u32)) -> String {
    format!(
        "kit_arch={}\nkit_glibc={major}.{minor}\nkit_rust={}\nkit_pythons='{}'\nkit_disk_mb={DISK_MB}\n",
        rust.arch(),
        rust.field("release:"),
        PYTHONS.join(" "),
    )
}

/// Downloads the wheels of the notebooks' packages, checked by their hashes.
fn wheels(setup: &Setup, folder: &Path, (_, glibc): (u32, u32)) -> Result<()> {
    process::run(
        process::command(setup.python())
            .arg(setup.root.join("crates/xtask/python/download_wheels.py"))
            .arg(setup.root.join("notebooks/requirements.txt"))
            .arg(folder)
            .args([std::env::consts::ARCH, &glibc.to_string()])
            .args(PYTHONS),
        "downloading the Python packages",
    )
}

/// Packs the kit's folder, in the order of names and owned by nobody in particular, and writes the
/// archive's checksum beside it.
fn pack(kit: &Kit, name: &str, out: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(out).map_err(Error::io("create", out))?;
    let archive = out.join(format!("{name}.tar.xz"));
    println!("kit: packing {} (minutes)", archive.display());
    let part = out.join(format!("{name}.part"));
    // A tenth larger than `-6`, in a tenth of its time (docs/workshop.md).
    let mut tar = Command::new("tar");
    tar.args(["--create", "--format=gnu"])
        .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
        .args(["--use-compress-program", "xz -1 -T0", "--file"])
        .arg(&part)
        .arg("--directory")
        .arg(kit.folder.parent().unwrap_or(&kit.folder))
        .arg(name);
    process::run(&mut tar, "packing the kit")?;
    let line = format!("{}  {name}.tar.xz\n", hash::of_file(&part)?);
    std::fs::rename(&part, &archive).map_err(Error::io("write", &archive))?;
    let checksum = out.join(format!("{name}.tar.xz.sha256"));
    std::fs::write(&checksum, line).map_err(Error::io("write", &checksum))?;
    Ok(archive)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(Error::io("read", path))
}

fn size(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).map_err(Error::io("read", path))?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with the installer and what it reads first.
    fn bare_kit(name: &str, needs: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("kit")).unwrap();
        std::fs::write(folder.join("kit/needs"), needs).unwrap();
        std::fs::write(folder.join("kit/rustc.txt"), "rustc 0.0.0\nrelease: 0.0.0\n").unwrap();
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("kit");
        std::fs::copy(scripts.join("install.sh"), folder.join("install.sh")).unwrap();
        folder
    }

    fn refusal(folder: &Path) -> String {
        let output = process::command("sh")
            .arg(folder.join("install.sh"))
            .env_remove("TUNEBOOK_RUST")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(std::fs::read_dir(folder.join("kit")).unwrap().count(), 2, "nothing is written");
        assert!(!folder.join("target").exists());
        std::fs::remove_dir_all(folder).unwrap();
        String::from_utf8(output.stderr).unwrap()
    }

    #[test]
    fn the_installer_names_all_that_a_machine_lacks() {
        let needs = format!(
            "kit_arch={}\nkit_glibc=99.1\nkit_rust=0.0.0\nkit_pythons='9.9'\nkit_disk_mb=999999999\n",
            std::env::consts::ARCH
        );
        let said = refusal(&bare_kit("lacks", &needs));
        for part in [
            "nothing has been installed yet",
            "glibc 99.1 or newer: found 2.",
            "MB are free in",
            "Python, one of 9.9",
            "rustup toolchain install 0.0.0 --profile minimal",
            "Then run ./install.sh again.",
        ] {
            assert!(said.contains(part), "{part} is not in: {said}");
        }
    }

    #[test]
    fn the_installer_refuses_another_processor_at_once() {
        let needs =
            "kit_arch=s390x\nkit_glibc=2.1\nkit_rust=0.0.0\nkit_pythons=3.11\nkit_disk_mb=1\n";
        let said = refusal(&bare_kit("processor", needs));
        assert!(
            said.starts_with("error: this kit is for Linux on s390x; this is Linux on "),
            "{said}"
        );
    }

    #[test]
    fn the_name_has_processor_and_compiler() {
        let rust = Rust {
            version: "rustc 1.95.0\nhost: aarch64-unknown-linux-gnu\nrelease: 1.95.0\n".into(),
            sysroot: PathBuf::new(),
        };
        assert_eq!(name(&rust, false), "tunebook-kit-aarch64-rust1.95.0");
        assert_eq!(name(&rust, true), "tunebook-kit-aarch64-rust1.95.0-with-toolchain");
    }
}
