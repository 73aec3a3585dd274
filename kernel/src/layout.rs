//! Where things are.
//!
//! The template is a small workspace of its own: a copy of the project's manifest, lock file and of
//! those crates that the cells link to, and beside them the package `cell`, which evcxr rewrites
//! for each cell. Packages keep their path inside the workspace, profile and features are the
//! project's, so cargo names every artefact as it does in the project, and what `cargo build` has
//! compiled there is fresh here.
//!
//! ```text
//! <project>/target/notebook/
//!   template/            Cargo.toml Cargo.lock crates/ cell/{Cargo.toml,src,target}  warm.json
//!   kernels/<id>/        the same, one for each running kernel: large artefacts are hard links
//! ```
//!
//! The lock file belongs to the workspace and not to the cell: the cell's dependencies come and go,
//! and cargo would prune the lock file of the rest each time.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The environment variables with which the kernelspec passes the layout to a kernel.
pub(crate) const PROJECT_VAR: &str = "TUNEBOOK_PROJECT";
pub(crate) const TEMPLATE_VAR: &str = "TUNEBOOK_TEMPLATE";

/// The features that the prelude is built with, set by `cargo xtask lab --cuda`; none as a rule.
pub(crate) const FEATURES_VAR: &str = "TUNEBOOK_FEATURES";

/// The folder of the toolchain, with `bin/rustc` in it, that the kernelspec of a workshop kit
/// (`cargo xtask dist`) names. A kit has compiled crates and no sources of the dependencies: rustc
/// compiles the cells there, and cargo, which would compile everything anew, is never called.
pub(crate) const KIT_TOOLCHAIN_VAR: &str = "TUNEBOOK_KIT_TOOLCHAIN";

/// The crate that the cells link to.
pub(crate) const PRELUDE: &str = "tunebook";

/// The folder, in the template, of the compiler's command lines.
pub(crate) const RECORDS: &str = "records";

/// The directories of one installation.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// The project: the folder with the workspace's Cargo.toml.
    pub(crate) project: PathBuf,
    /// The warm template.
    pub(crate) template: PathBuf,
}

impl Layout {
    /// The layout of `project`, with its default template directory unless one is given.
    pub(crate) fn new(project: &Path, template: Option<&Path>) -> Result<Self> {
        ensure!(
            project.join("Cargo.toml").is_file(),
            "{} holds no Cargo.toml: give the project's folder",
            project.display()
        );
        let project = project
            .canonicalize()
            .with_context(|| format!("cannot resolve {}", project.display()))?;
        let template = match template {
            Some(template) => std::path::absolute(template)
                .with_context(|| format!("cannot resolve {}", template.display()))?,
            None => project.join("target/notebook/template"),
        };
        // The prelude with other features is another prelude.
        let template = match features() {
            Some(features) => {
                template.with_file_name(format!("template-{}", features.replace(',', "-")))
            }
            None => template,
        };
        Ok(Self { project, template })
    }

    /// The layout that the kernelspec has put into the environment.
    pub(crate) fn from_environment() -> Result<Self> {
        let var = |name: &str| -> Result<OsString> {
            std::env::var_os(name).with_context(|| {
                format!("{name} is not set: start the kernel through its kernelspec (`cargo xtask lab` installs it)")
            })
        };
        Self::new(Path::new(&var(PROJECT_VAR)?), Some(Path::new(&var(TEMPLATE_VAR)?)))
    }

    /// The directory of the running kernels' clones.
    pub(crate) fn kernels(&self) -> PathBuf {
        self.template.with_file_name("kernels")
    }

    /// The file that says what the template was made from.
    pub(crate) fn stamp(&self) -> PathBuf {
        self.template.join("warm.json")
    }

    /// The file whose lock is held while the template is written (exclusively) or cloned (shared).
    pub(crate) fn lock(&self) -> PathBuf {
        self.template.with_extension("lock")
    }
}

/// The package directory that evcxr works in, inside a template or clone.
pub(crate) fn cell(root: &Path) -> PathBuf {
    root.join("cell")
}

/// The target directory of the cells, inside a template or clone.
pub(crate) fn target(root: &Path) -> PathBuf {
    root.join("cell/target")
}

/// The manifest of the cell package while it depends on the prelude, in the words of evcxr. (It
/// adds profile keys, which cargo ignores outside a workspace's root.)
pub(crate) fn cell_manifest(root: &Path) -> String {
    format!(
        "[package]\nname = \"ctx\"\nversion = \"1.0.0\"\nedition = \"2024\"\n\n\
         [lib]\ncrate-type = [\"cdylib\"]\npath = \"src/lib.rs\"\n\n\
         [dependencies]\n{}\n",
        dependency(root)
    )
}

/// The features of [`FEATURES_VAR`].
pub(crate) fn features() -> Option<String> {
    std::env::var(FEATURES_VAR).ok().filter(|features| !features.is_empty())
}

/// The folder of [`KIT_TOOLCHAIN_VAR`]; none outside a kit.
pub(crate) fn kit_toolchain() -> Option<PathBuf> {
    std::env::var_os(KIT_TOOLCHAIN_VAR).filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// The dependency on the prelude, as evcxr's `:dep` takes it.
pub(crate) fn dependency(root: &Path) -> String {
    let path = root.join("crates/prelude");
    let features = match features() {
        Some(features) => {
            let list: Vec<&str> = features.split(',').collect();
            format!(", features = {}", serde_json::Value::from(list))
        }
        None => String::new(),
    };
    // A TOML string and a JSON string escape alike, and so do lists of them.
    format!(
        "{PRELUDE} = {{ path = {}{features} }}",
        serde_json::Value::from(path.to_string_lossy())
    )
}
