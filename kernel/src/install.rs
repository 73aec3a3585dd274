//! Writes the kernelspecs into a Jupyter environment.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use crate::layout::{Layout, PROJECT_VAR, TEMPLATE_VAR};

const LOGO: &str = include_str!("../assets/logo.svg");

/// Writes the kernelspecs `tunebook` and `tunebook-stock` into `prefix/share/jupyter/kernels`.
pub(crate) fn install(prefix: &Path, layout: &Layout) -> Result<()> {
    let exe = std::env::current_exe().context("cannot tell where this program is")?;
    for (name, display_name, role) in [
        ("tunebook", "Rust (tunebook)", "run"),
        ("tunebook-stock", "Rust (evcxr)", "--control_file"),
    ] {
        let dir = prefix.join("share/jupyter/kernels").join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let spec = json!({
            "argv": [exe, role, "{connection_file}"],
            "display_name": display_name,
            "language": "rust",
            "interrupt_mode": "message",
            "env": { PROJECT_VAR: layout.project, TEMPLATE_VAR: layout.template },
        });
        let path = dir.join("kernel.json");
        fs::write(&path, serde_json::to_string_pretty(&spec)?)
            .and_then(|()| fs::write(dir.join("logo-svg.svg"), LOGO))
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("kernelspec {name}: {}", dir.display());
    }
    Ok(())
}
