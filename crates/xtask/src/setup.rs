//! The set-up: everything between a fresh clone and a running notebook.
//!
//! The order is: look at the machine, fetch what comes over the network, then compile. So a missing
//! prerequisite, the network included, is named before anything long starts. Every step can be run
//! again: it looks at the state and does only the missing part.

mod base_model;
mod crates;
pub(crate) mod cuda;
mod kernel;
mod prelude;
mod progress;
mod python;

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::error::{Error, Result};
use crate::prerequisites::{self, Python};
use crate::process;
use progress::{Build, Progress};

pub(crate) use kernel::LAB_SETTINGS;
pub(crate) use python::Environment;

/// Work, in seconds of one core, from which on a set-up says how long it will take.
const ANNOUNCED: f64 = 60.0;

/// One step of the set-up.
trait Step {
    /// Its result, as a name for the screen.
    fn name(&self) -> &'static str;
    /// Its work, and how long that usually takes the first time.
    fn what(&self) -> String;
    /// Whether there is nothing to do, found out quickly.
    fn is_done(&self) -> bool;
    /// What it compiles; such a step counts its own work in the bar.
    fn build(&self) -> Option<Build> {
        None
    }
    /// What it will take if it compiles nothing: seconds of one core, or of waiting times two.
    fn secs(&self) -> f64 {
        2.0
    }
    /// Does it, showing progress. Safe to call again after it was cut short.
    fn run(&self, progress: &Progress) -> Result<()>;
}

/// A machine on which everything is in place, and where it is.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// The repository.
    pub root: PathBuf,
    /// Cargo's target directory.
    pub target: PathBuf,
    /// The host's target triple, which everything is compiled for.
    pub triple: String,
    /// The cache outside the tree: downloaded models.
    pub cache: PathBuf,
    /// The Python that environments are made from.
    base_python: PathBuf,
}

/// What llama.cpp is compiled with: for this processor, but without AMX, whose products of quantised
/// matrices end its process (0.3.36 of the package).
const LLAMA_CPP: &str = if cfg!(target_arch = "x86_64") {
    "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_CURL=OFF -DCMAKE_C_FLAGS=-mno-amx-int8 -DCMAKE_CXX_FLAGS=-mno-amx-int8"
} else {
    "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_CURL=OFF"
};

impl Setup {
    /// Checks the prerequisites and finds the folders; builds nothing.
    ///
    /// # Errors
    /// [`Error::Prerequisites`] lists what the machine lacks.
    pub(crate) fn locate() -> Result<Self> {
        Self::locate_for(prerequisites::BUILD_BYTES)
    }

    /// The same for the tests, which take more disk.
    ///
    /// # Errors
    /// As [`Setup::locate`].
    pub(crate) fn locate_for_tests() -> Result<Self> {
        Self::locate_for(prerequisites::TEST_BYTES)
    }

    fn locate_for(build_bytes: u64) -> Result<Self> {
        let root = root()?;
        // The target directory as cargo's environment and default have it: cargo itself may be what
        // is missing.
        let guess =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let cache = cache_root()?;
        let found = prerequisites::look(
            (&guess, guess.join("tunebook/stamps/warm").exists()),
            build_bytes,
            (&cache, base_model::path(&cache).exists()),
        );
        let missing = prerequisites::missing(&found);
        if !missing.is_empty() {
            return Err(Error::Prerequisites(missing));
        }
        let triple = found
            .rustc
            .as_deref()
            .and_then(|text| text.lines().find_map(|line| line.strip_prefix("host: ")))
            .unwrap_or_default()
            .to_owned();
        let base_python = found.python.map(|Python { program, .. }| program).unwrap_or_default();
        let target = target_directory(&root)?;
        Ok(Self { root, target, triple, cache, base_python })
    }

    /// Does every step that is not done yet.
    ///
    /// # Errors
    /// The first step that fails; the steps before it stay done.
    pub(crate) fn ensure(&self) -> Result<()> {
        self.run_all(&[
            &self.fetch_crates(),
            &self.notebook_python(),
            &self.base_model(),
            &self.kernel(),
            &self.kernelspecs(),
            &self.prelude(),
        ])
    }

    /// The same for NVIDIA GPUs: the toolkit as well, and the prelude built with it.
    ///
    /// # Errors
    /// As [`Setup::ensure`]; without an NVIDIA driver, since what would be built could not start.
    pub(crate) fn ensure_cuda(&self) -> Result<cuda::Toolkit> {
        let toolkit = self.cuda();
        if !toolkit.has_gpu() {
            return Err(Error::Other(
                "--cuda needs an NVIDIA GPU with its driver: there is no libcuda.so.1 on \
                 this machine. Leave --cuda out to compute on the CPU; `cargo xtask test --long` compiles the CUDA code without a GPU."
                    .to_owned(),
            ));
        }
        self.run_all(&[
            &self.fetch_crates(),
            &self.notebook_python(),
            &self.base_model(),
            &toolkit,
            &self.kernel(),
            &self.kernelspecs(),
            &self.prelude().with(toolkit.environment()),
        ])?;
        Ok(toolkit)
    }

    /// The CUDA toolkit alone, for compiling.
    ///
    /// # Errors
    /// As [`Setup::ensure`].
    pub(crate) fn ensure_cuda_toolkit(&self) -> Result<cuda::Toolkit> {
        let toolkit = self.cuda();
        self.run_all(&[&toolkit])?;
        Ok(toolkit)
    }

    /// The CUDA toolkit as it would be used here.
    pub(crate) fn cuda(&self) -> cuda::Toolkit {
        cuda::Toolkit::new(self)
    }

    /// The steps that need the network, and those that take a minute at most.
    ///
    /// # Errors
    /// As [`Setup::ensure`].
    pub(crate) fn ensure_fetched(&self) -> Result<()> {
        self.run_all(&[&self.fetch_crates(), &self.notebook_python(), &self.base_model()])
    }

    /// The Python packages that the kernel's tests need besides.
    ///
    /// # Errors
    /// As [`Setup::ensure`].
    pub(crate) fn ensure_test_python(&self) -> Result<()> {
        self.run_all(&[&self.notebook_python(), &self.test_python()])
    }

    /// The environment of the Python peers, made when it is not there.
    ///
    /// # Errors
    /// As [`Setup::ensure`].
    pub(crate) fn ensure_peers(&self) -> Result<()> {
        if std::env::var_os("TUNEBOOK_PEERS").is_some() {
            return Ok(()); // the caller's own
        }
        self.run_all(&[&self.peers()])
    }

    /// llama.cpp's Python package in the environment of the peers, compiled when it is not there.
    ///
    /// # Errors
    /// As [`Setup::ensure`].
    pub(crate) fn ensure_llama_cpp(&self) -> Result<()> {
        if std::env::var_os("TUNEBOOK_PEERS").is_some() {
            return Ok(()); // the caller's own
        }
        self.run_all(&[&self.llama_cpp()])
    }

    /// mistral.rs' Python package in the environment of the peers, when it is not there.
    ///
    /// # Errors
    /// As [`Setup::ensure`].
    pub(crate) fn ensure_mistral_rs(&self) -> Result<()> {
        if std::env::var_os("TUNEBOOK_PEERS").is_some() {
            return Ok(()); // the caller's own
        }
        self.run_all(&[&self.mistral_rs()])
    }

    /// The Python of an environment with AdapterHub's package: the one of `TUNEBOOK_ADAPTERHUB`,
    /// else made when it is not there.
    ///
    /// # Errors
    /// As [`Setup::ensure`].
    pub(crate) fn ensure_adapterhub(&self) -> Result<PathBuf> {
        let folder = self.adapterhub_folder();
        if std::env::var_os("TUNEBOOK_ADAPTERHUB").is_some() {
            return Ok(folder.join("bin/python")); // the caller's own
        }
        let environment = Environment::new(
            self,
            "AdapterHub",
            &folder,
            "tests/golden/strategies/bottleneck-requirements.txt",
            "PyTorch and the package `adapters` to compare with, into target/tunebook/adapterhub \
             (several minutes, some gigabytes)",
        );
        self.run_all(&[&environment])?;
        Ok(environment.python())
    }

    fn fetch_crates(&self) -> crates::Fetch {
        crates::Fetch::new(self)
    }

    fn notebook_python(&self) -> Environment {
        Environment::new(
            self,
            "Python environment",
            &self.target.join("tunebook/python"),
            "notebooks/requirements.txt",
            "JupyterLab and what it needs, into target/tunebook/python (about a minute)",
        )
    }

    /// Into the notebooks' environment: the kernelspecs and JupyterLab are there.
    fn test_python(&self) -> Environment {
        Environment::new(
            self,
            "Python packages of the tests",
            &self.target.join("tunebook/python"),
            "tests/kernel/requirements.txt",
            "papermill, nbmake, selenium and others, into target/tunebook/python",
        )
        .with_module("jupyter_kernel_test, nbmake, papermill, selenium")
    }

    fn peers(&self) -> Environment {
        Environment::new(
            self,
            "Python peers",
            &self.peers_folder(),
            "tests/peers/requirements.txt",
            "PyTorch, transformers and PEFT to compare with, into target/tunebook/peers \
             (several minutes, some gigabytes)",
        )
    }

    /// Into the peers' environment. There are no wheels: pip compiles it, hence the arguments.
    fn llama_cpp(&self) -> Environment {
        Environment::new(
            self,
            "llama.cpp",
            &self.peers_folder(),
            "tests/peers/llama_cpp.txt",
            "compiling llama.cpp's Python package (about eight minutes)",
        )
        .with_module("llama_cpp")
        .compiled(LLAMA_CPP)
    }

    fn mistral_rs(&self) -> Environment {
        Environment::new(
            self,
            "mistral.rs",
            &self.peers_folder(),
            "tests/peers/mistralrs.txt",
            "mistral.rs' Python package to compare with (26 MB)",
        )
        .with_module("mistralrs")
    }

    fn base_model(&self) -> base_model::BaseModel {
        base_model::BaseModel::new(self)
    }

    fn kernel(&self) -> kernel::Kernel {
        kernel::Kernel::new(self)
    }

    fn kernelspecs(&self) -> kernel::Kernelspecs {
        kernel::Kernelspecs::new(self)
    }

    fn prelude(&self) -> prelude::Warm {
        prelude::Warm::new(self)
    }

    /// The Python that JupyterLab runs in.
    pub(crate) fn python(&self) -> PathBuf {
        self.notebook_python().python()
    }

    /// The base model's file in the cache.
    pub(crate) fn base_model_file(&self) -> PathBuf {
        base_model::path(&self.cache)
    }

    /// The Python of the peers, when there is one.
    pub(crate) fn peers_python(&self) -> Option<PathBuf> {
        Some(self.peers_folder().join("bin/python")).filter(|python| python.exists())
    }

    /// The folder of the peers' environment: `TUNEBOOK_PEERS`, else in the target directory.
    pub(crate) fn peers_folder(&self) -> PathBuf {
        std::env::var_os("TUNEBOOK_PEERS")
            .map_or_else(|| self.target.join("tunebook/peers"), PathBuf::from)
    }

    /// The folder of AdapterHub's environment: `TUNEBOOK_ADAPTERHUB`, else in the target directory.
    pub(crate) fn adapterhub_folder(&self) -> PathBuf {
        std::env::var_os("TUNEBOOK_ADAPTERHUB")
            .map_or_else(|| self.target.join("tunebook/adapterhub"), PathBuf::from)
    }

    /// Whether kernel and prelude, with all that they depend on, have been compiled before.
    pub(crate) fn has_compiled(&self) -> bool {
        self.kernel_binary().exists() && self.prelude().has_compiled()
    }

    /// The kernel's executable.
    pub(crate) fn kernel_binary(&self) -> PathBuf {
        self.kernel_target().join(&self.triple).join("debug/tunebook-kernel")
    }

    /// The target directory of builds for NVIDIA GPUs.
    pub(crate) fn cuda_target(&self) -> PathBuf {
        self.target.join("cuda")
    }

    /// The kernel's own target directory.
    pub(crate) fn kernel_target(&self) -> PathBuf {
        self.target.join("kernel")
    }

    /// Does every step that is not done yet.
    ///
    /// # Errors
    /// The first step that fails.
    fn run_all(&self, steps: &[&dyn Step]) -> Result<()> {
        run_all(steps, || {
            prerequisites::needs(&self.target, steps.iter().any(|s| s.build().is_some()))
        })
    }

    fn stamps(&self) -> PathBuf {
        self.target.join("tunebook/stamps")
    }
}

/// Does every step that is not done yet; `needs` is said before those that take long.
///
/// # Errors
/// The first step that fails.
fn run_all(steps: &[&dyn Step], needs: impl Fn() -> String) -> Result<()> {
    let all = steps.len();
    let secs: Vec<Option<f64>> = steps
        .iter()
        .map(|step| {
            let secs = || step.build().map_or(step.secs(), |build| build.left());
            (!step.is_done()).then(secs)
        })
        .collect();
    let total = secs.iter().flatten().sum();
    let progress = Progress::new(total);
    if total >= ANNOUNCED {
        println!(
            "This takes about {} on this machine. {}Stopped, it goes on where it was when you start it again.",
            progress::about(progress.expected()),
            needs()
        );
    }
    let mut changed = false;
    for (number, (step, secs)) in (1..).zip(steps.iter().zip(secs)) {
        let start = Instant::now();
        // A step that ran may have undone one after it: a Python environment that is made anew.
        if secs.is_none() && (!changed || step.is_done()) {
            println!("[{number}/{all}] {}: there", step.name());
            continue;
        }
        changed = true;
        println!("[{number}/{all}] {}: {}", step.name(), step.what());
        step.run(&progress)?;
        if step.build().is_none() {
            progress.add(secs.unwrap_or_default());
        }
        println!("[{number}/{all}] {}: done in {}", step.name(), duration(start.elapsed()));
    }
    Ok(())
}

/// The repository: two folders above this crate.
fn root() -> Result<PathBuf> {
    let crate_folder = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    match crate_folder.ancestors().nth(2) {
        Some(root) if root.join("Cargo.toml").is_file() => Ok(root.to_path_buf()),
        _ => Err(Error::Other(format!(
            "{} is not inside the repository; start this program with `cargo xtask` from there",
            crate_folder.display()
        ))),
    }
}

/// Where models are kept: `TUNEBOOK_CACHE`, else `tunebook` in the user's cache folder.
fn cache_root() -> Result<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    cache_root_from(folder("TUNEBOOK_CACHE"), folder("XDG_CACHE_HOME"), folder("HOME")).ok_or_else(|| {
        Error::Other(
            "neither TUNEBOOK_CACHE, XDG_CACHE_HOME nor HOME says where to keep models; set one".to_owned(),
        )
    })
}

fn cache_root_from(
    own: Option<PathBuf>,
    xdg: Option<PathBuf>,
    home: Option<PathBuf>,
) -> Option<PathBuf> {
    // The XDG specification: a relative path is invalid and has to be ignored.
    let xdg = xdg.filter(|path| path.is_absolute());
    own.or_else(|| xdg.map(|path| path.join("tunebook")))
        .or_else(|| home.map(|path| path.join(".cache/tunebook")))
}

fn target_directory(root: &Path) -> Result<PathBuf> {
    let text = process::capture(
        process::cargo(root).args(["metadata", "--no-deps", "--format-version=1", "--offline"]),
        "cargo metadata",
    )?;
    let metadata: serde_json::Value = serde_json::from_str(&text).map_err(|error| {
        Error::Other(format!("cargo metadata wrote something that is not JSON: {error}"))
    })?;
    metadata["target_directory"]
        .as_str()
        .map(PathBuf::from)
        .ok_or_else(|| Error::Other("cargo metadata names no target directory".to_owned()))
}

/// A duration for the screen: `0.4 s`, `31 s`, `7 min 20 s`.
pub(crate) fn duration(elapsed: std::time::Duration) -> String {
    let secs = elapsed.as_secs();
    match secs {
        0..10 => format!("{:.1} s", elapsed.as_secs_f64()),
        10..60 => format!("{secs} s"),
        _ => format!("{} min {} s", secs / 60, secs % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_environment_says() {
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(cache_root_from(path("/own"), path("/xdg"), path("/home/me")), path("/own"));
        assert_eq!(cache_root_from(None, path("/xdg"), path("/home/me")), path("/xdg/tunebook"));
        assert_eq!(
            cache_root_from(None, path("relative"), path("/home/me")),
            path("/home/me/.cache/tunebook")
        );
        assert_eq!(cache_root_from(None, None, None), None);
    }

    /// Done when the folder has its file; what it does may take another's away.
    struct Touch<'a> {
        file: &'a Path,
        removes: Option<&'a Path>,
    }

    impl Step for Touch<'_> {
        fn name(&self) -> &'static str {
            "touch"
        }

        fn what(&self) -> String {
            "a file".to_owned()
        }

        fn is_done(&self) -> bool {
            self.file.exists()
        }

        fn run(&self, _: &Progress) -> Result<()> {
            if let Some(other) = self.removes {
                std::fs::remove_file(other).map_err(Error::io("remove", other))?;
            }
            std::fs::write(self.file, "").map_err(Error::io("write", self.file))
        }
    }

    #[test]
    fn a_step_that_an_earlier_one_has_undone_is_done_again() {
        let folder = std::env::temp_dir().join(format!("xtask-steps-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (first, second) = (folder.join("first"), folder.join("second"));
        std::fs::write(&second, "").unwrap();
        let remaking = Touch { file: &first, removes: Some(&second) };
        run_all(&[&remaking, &Touch { file: &second, removes: None }], String::new).unwrap();
        assert!(first.exists() && second.exists());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn durations_read_well() {
        let of = |secs: f64| duration(std::time::Duration::from_secs_f64(secs));
        assert_eq!(
            (of(0.44).as_str(), of(31.9).as_str(), of(440.2).as_str()),
            ("0.4 s", "31 s", "7 min 20 s")
        );
    }
}
