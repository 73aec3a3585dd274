//! The CUDA toolkit that a build for NVIDIA GPUs needs: the machine's own, or the pinned wheels of
//! PyPI.
//!
//! A CUDA build has a target directory of its own (`target/cuda`): the prelude is a dynamic
//! library, whose file has one name whatever its features are, so a second build in the same place
//! would overwrite the first. Artefacts that both builds share are linked there first.
//!
//! **Nothing that is built here has run on a GPU yet.** Without a driver the libraries are linked
//! against empty ones of the same name: such a build shows that everything compiles, and cannot be
//! started.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::hash;
use crate::process;
use crate::stamp::Stamp;

use super::crates::with_network_remedy;
use super::progress::Progress;
use super::{Setup, Step};

/// The libraries that candle's `cuda` feature links to: the name that the linker looks for, and the
/// one in the file.
const LIBRARIES: [(&str, &str); 6] = [
    ("libcuda.so", "libcuda.so.1"),
    ("libcudart.so", "libcudart.so.13"),
    ("libcublas.so", "libcublas.so.13"),
    ("libcublasLt.so", "libcublasLt.so.13"),
    ("libcurand.so", "libcurand.so.10"),
    ("libnvrtc.so", "libnvrtc.so.13"),
];

/// Compute capability to compile for when there is no GPU to ask: Hopper's.
const CAPABILITY: &str = "90";

/// A CUDA toolkit.
pub(crate) struct Toolkit {
    /// `CUDA_HOME`, when the machine has a toolkit of its own.
    system: Option<PathBuf>,
    /// Where the wheels go otherwise.
    folder: PathBuf,
    /// The wheels.
    requirements: Vec<PathBuf>,
    python: PathBuf,
    gpu: bool,
    target: PathBuf,
    triple: String,
    stamp: Stamp,
}

impl Toolkit {
    pub(super) fn new(setup: &Setup) -> Self {
        let gpu = driver().is_some();
        let list = |name: &str| setup.root.join("crates/xtask/cuda").join(name);
        let mut requirements = vec![list("compiler.txt")];
        if gpu {
            requirements.push(list("libraries.txt"));
        }
        let folder = setup.target.join("tunebook/cuda");
        let pins = requirements.iter().map(|path| std::fs::read(path).unwrap_or_default());
        let pins = pins.chain([folder.as_os_str().as_encoded_bytes().to_vec()]);
        Self {
            system: system(|name| std::env::var_os(name), |path| path.is_file()),
            stamp: Stamp::new(&setup.stamps(), "cuda", hash::of_parts(pins)),
            folder,
            requirements,
            python: setup.python(),
            gpu,
            target: setup.cuda_target(),
            triple: setup.triple.clone(),
        }
    }

    /// The value of `CUDA_HOME`.
    pub(crate) fn home(&self) -> PathBuf {
        self.system.clone().unwrap_or_else(|| self.folder.join("nvidia/cu13"))
    }

    /// Where the linker finds the libraries by the names that it looks for.
    fn link(&self) -> PathBuf {
        self.folder.join("link")
    }

    /// The folders in which this machine may have the real libraries.
    fn library_folders(&self) -> Vec<PathBuf> {
        let home = self.home();
        let mut folders = vec![home.join("lib64"), home.join("lib")];
        folders.extend(driver().and_then(|path| path.parent().map(Path::to_path_buf)));
        folders
    }

    /// The variables that a CUDA build is made with, and that its programs run with.
    pub(crate) fn environment(&self) -> Vec<(&'static str, OsString)> {
        let home = self.home();
        let before = |name: &str, folders: &[PathBuf]| {
            let rest = process::inherited_folders(name);
            std::env::join_paths(folders.iter().chain(&rest)).unwrap_or_default()
        };
        let mut variables = vec![
            ("CUDA_HOME", home.clone().into_os_string()),
            ("CUDA_PATH", home.clone().into_os_string()),
            ("PATH", before("PATH", &[home.join("bin")])),
            ("LIBRARY_PATH", before("LIBRARY_PATH", &[self.link()])),
            ("LD_LIBRARY_PATH", before("LD_LIBRARY_PATH", &self.library_folders()[..2])),
            ("CARGO_TARGET_DIR", self.target.clone().into_os_string()),
            // Read by the kernel: its template and its cells get the feature.
            ("TUNEBOOK_FEATURES", "cuda".into()),
        ];
        if std::env::var_os("NVCC_CCBIN").is_none() {
            variables.push(("NVCC_CCBIN", "g++".into()));
        }
        if !self.gpu && std::env::var_os("CUDA_COMPUTE_CAP").is_none() {
            variables.push(("CUDA_COMPUTE_CAP", CAPABILITY.into()));
        }
        variables
    }

    /// Whether this machine has an NVIDIA driver.
    pub(crate) fn has_gpu(&self) -> bool {
        self.gpu
    }

    /// The wheels, unpacked into one folder.
    fn install(&self) -> Result<()> {
        self.stamp.clear()?;
        let mut pip = self.pip(&self.folder);
        for list in &self.requirements {
            pip.arg("--requirement").arg(list);
        }
        process::run(&mut pip, "installing the CUDA toolkit").map_err(with_network_remedy)?;
        // Wheels do not keep the bit that says "program".
        for folder in ["bin", "nvvm/bin"] {
            let folder = self.home().join(folder);
            for entry in std::fs::read_dir(&folder).map_err(Error::io("read", &folder))?.flatten() {
                make_executable(&entry.path())?;
            }
        }
        self.stamp.set()
    }

    /// The folders with CUDA's own libraries of the pinned versions, which are fetched where they are
    /// not there: for a look at their symbols, on machines that cannot run them.
    ///
    /// # Errors
    /// When they cannot be fetched.
    pub(crate) fn ensure_library_wheels(&self, setup: &Setup) -> Result<Vec<PathBuf>> {
        let list = setup.root.join("crates/xtask/cuda/libraries.txt");
        let pins = std::fs::read(&list).map_err(Error::io("read", &list))?;
        let folder = setup.target.join("tunebook/cuda-libraries");
        let stamp = Stamp::new(
            &setup.stamps(),
            "cuda-libraries",
            hash::of_parts([pins, folder.as_os_str().as_encoded_bytes().to_vec()]),
        );
        if !stamp.is_valid() {
            println!("fetching CUDA's libraries (about 500 MB)");
            stamp.clear()?;
            let mut pip = self.pip(&folder);
            pip.arg("--requirement").arg(&list);
            process::run(&mut pip, "fetching CUDA's libraries").map_err(with_network_remedy)?;
            stamp.set()?;
        }
        let lib = |home: PathBuf| [home.join("lib"), home.join("lib64")];
        Ok([lib(folder.join("nvidia/cu13")), lib(self.home())].concat())
    }

    /// pip, about to install wheels into a folder.
    fn pip(&self, folder: &Path) -> Command {
        let mut pip = process::command(&self.python);
        pip.args([
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "--no-deps",
            "--require-hashes",
            "--upgrade",
        ])
        .args(["--quiet", "--target"])
        .arg(folder);
        pip
    }

    /// A folder with the libraries under the names that the linker looks for: the real ones where
    /// they are, empty ones elsewhere.
    fn fill_link(&self) -> Result<()> {
        let folder = self.link();
        std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let empty = folder.join("empty.c");
        std::fs::write(&empty, "").map_err(Error::io("write", &empty))?;
        for (name, soname) in LIBRARIES {
            let link = folder.join(name);
            let _ = std::fs::remove_file(&link);
            let places = self.library_folders();
            let real = places
                .iter()
                .flat_map(|place| [place.join(soname), place.join(name)])
                .find(|f| f.is_file());
            match real {
                Some(real) => symlink(&real, &link)?,
                None => process::run(
                    process::command("cc")
                        .args(["-shared", "-o"])
                        .arg(&link)
                        .arg(format!("-Wl,-soname,{soname}"))
                        .arg(&empty),
                    "making an empty library to link to",
                )?,
            }
        }
        Ok(())
    }

    /// Hard links to what the CPU's build has compiled: cargo finds everything there that does not
    /// depend on the feature. Without them the first CUDA build would compile polars again.
    fn share_artefacts(&self, from: &Path) -> Result<()> {
        for side in [Path::new(&self.triple).join("debug"), PathBuf::from("debug")] {
            for folder in ["deps", ".fingerprint", "build"] {
                let (from, to) =
                    (from.join(&side).join(folder), self.target.join(&side).join(folder));
                if to.exists() || !from.is_dir() {
                    continue;
                }
                std::fs::create_dir_all(&to).map_err(Error::io("create", &to))?;
                for entry in std::fs::read_dir(&from).map_err(Error::io("read", &from))?.flatten() {
                    if !is_ours(&entry.file_name().to_string_lossy()) {
                        link_tree(&entry.path(), &to.join(entry.file_name()))?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether an artefact is of one of our crates, which cargo and the kernel write in place.
fn is_ours(name: &str) -> bool {
    let name = name.strip_prefix("lib").unwrap_or(name);
    ["tunebook", "workspace-hack", "workspace_hack", "xtask"]
        .iter()
        .any(|ours| name.starts_with(ours))
}

fn link_tree(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        return std::fs::hard_link(from, to).map_err(Error::io("link", to));
    }
    std::fs::create_dir_all(to).map_err(Error::io("create", to))?;
    for entry in std::fs::read_dir(from).map_err(Error::io("read", from))?.flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        // Small files that cargo may write in place are copied.
        let small = entry.metadata().is_ok_and(|m| m.is_file() && m.len() < 64 << 10);
        if small {
            copy_with_time(&from, &to)?;
        } else {
            link_tree(&from, &to)?;
        }
    }
    Ok(())
}

/// A copy with the original's modification time, by which cargo tells fresh artefacts.
fn copy_with_time(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).map_err(Error::io("copy", to))?;
    let modified =
        std::fs::metadata(from).and_then(|m| m.modified()).map_err(Error::io("read", from))?;
    let file = std::fs::File::options().write(true).open(to).map_err(Error::io("open", to))?;
    file.set_modified(modified).map_err(Error::io("write", to))
}

impl Step for Toolkit {
    fn name(&self) -> &'static str {
        "CUDA toolkit"
    }

    fn what(&self) -> String {
        match &self.system {
            Some(home) => format!("the machine's own in {}", home.display()),
            None if self.gpu => {
                "fetching NVIDIA's compiler and libraries into target/tunebook/cuda (about 600 MB)"
                    .to_owned()
            }
            None => {
                "fetching NVIDIA's compiler into target/tunebook/cuda (about 100 MB)".to_owned()
            }
        }
    }

    fn is_done(&self) -> bool {
        let there = self.system.is_some()
            || (self.stamp.is_valid() && self.home().join("bin/nvcc").is_file());
        there
            && LIBRARIES.iter().all(|(name, _)| self.link().join(name).exists())
            && self.target.exists()
    }

    fn secs(&self) -> f64 {
        240.0
    }

    fn run(&self, _: &Progress) -> Result<()> {
        if self.system.is_none() {
            self.install()?;
        }
        self.fill_link()?;
        if let Some(cpu) = self.target.parent() {
            self.share_artefacts(cpu)?;
        }
        std::fs::create_dir_all(&self.target).map_err(Error::io("create", &self.target))
    }
}

/// Puts the variables of a CUDA build into a command.
pub(crate) fn set(command: &mut Command, environment: &[(&'static str, OsString)]) {
    for (name, value) in environment {
        command.env(name, value);
    }
}

/// The machine's own toolkit: where `CUDA_HOME` or `CUDA_PATH` says, else around the `nvcc` on the
/// PATH, else in the usual place.
fn system(
    variable: impl Fn(&str) -> Option<OsString>,
    is_file: impl Fn(&Path) -> bool,
) -> Option<PathBuf> {
    let named = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(&variable).map(PathBuf::from);
    let on_path = variable("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&on_path)
        .filter(|folder| folder.ends_with("bin"))
        .filter_map(|folder| folder.parent().map(Path::to_path_buf))
        .collect::<Vec<_>>();
    named
        .chain(on_path)
        .chain([PathBuf::from("/usr/local/cuda")])
        .find(|home| is_file(&home.join("bin/nvcc")))
}

/// The driver's library.
fn driver() -> Option<PathBuf> {
    let usual = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/lib/wsl/lib",
    ];
    let usual = usual
        .iter()
        .map(|folder| Path::new(folder).join("libcuda.so.1"))
        .find(|file| file.exists());
    usual.or_else(|| {
        let cache = process::capture(process::command("ldconfig").arg("-p"), "ldconfig").ok()?;
        let line = cache.lines().find(|line| line.trim_start().starts_with("libcuda.so.1 "))?;
        line.split("=> ").nth(1).map(|path| PathBuf::from(path.trim()))
    })
}

#[cfg(unix)]
fn symlink(from: &Path, to: &Path) -> Result<()> {
    std::os::unix::fs::symlink(from, to).map_err(Error::io("link", to))
}

#[cfg(unix)]
fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if !path.is_file() {
        return Ok(());
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
        .map_err(Error::io("change", path))
}

/// Never reached: other platforms are refused by the prerequisites.
#[cfg(not(unix))]
fn symlink(_: &Path, to: &Path) -> Result<()> {
    Err(Error::Other(format!("cannot link {}: not on this platform", to.display())))
}

/// Never reached: other platforms are refused by the prerequisites.
#[cfg(not(unix))]
fn make_executable(_: &Path) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toolkit_is_found_where_the_machine_says() {
        let found = |variables: &[(&str, &str)], there: &str| {
            let variable = |name: &str| {
                variables
                    .iter()
                    .find(|(other, _)| *other == name)
                    .map(|(_, value)| OsString::from(value))
            };
            system(variable, |path| path == Path::new(there))
        };
        let home = |path: &str| Some(PathBuf::from(path));
        assert_eq!(found(&[("CUDA_HOME", "/opt/cuda")], "/opt/cuda/bin/nvcc"), home("/opt/cuda"));
        assert_eq!(found(&[("PATH", "/bin:/x/cuda/bin")], "/x/cuda/bin/nvcc"), home("/x/cuda"));
        assert_eq!(
            found(&[("CUDA_HOME", "/gone")], "/usr/local/cuda/bin/nvcc"),
            home("/usr/local/cuda")
        );
        assert_eq!(found(&[("PATH", "/bin")], "/elsewhere/nvcc"), None);
    }

    #[test]
    fn our_own_artefacts_are_not_shared() {
        for name in [
            "libtunebook.so",
            "tunebook-models-0123456789abcdef",
            "libtunebook_tune-01.rlib",
            "xtask-1",
        ] {
            assert!(is_ours(name), "{name}");
        }
        assert!(
            !is_ours("libpolars_core-0123456789abcdef.rlib")
                && !is_ours("candle-core-0123456789abcdef")
        );
    }
}
