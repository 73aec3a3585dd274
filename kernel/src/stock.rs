//! The stock role: `evcxr_jupyter`, unchanged, in a warm clone.

use std::path::Path;

use anyhow::{Context, Result};

use crate::layout::Layout;
use crate::session::Session;
use crate::toolchain::Toolchain;

/// Serves the connection file until Jupyter shuts the kernel down.
pub(crate) fn run(_connection_file: &Path) -> Result<()> {
    let layout = Layout::from_environment()?;
    let toolchain = Toolchain::of(&layout.project)?;
    let session = Session::reserve(&layout)?;
    session.fill(&layout, &toolchain)?;
    for (name, value) in session.environment(&toolchain) {
        // SAFETY: no other thread has been started yet.
        unsafe { std::env::set_var(name, value) };
    }
    // Paths in a notebook start at the repository, wherever the notebook lies.
    std::env::set_current_dir(&layout.project)
        .with_context(|| format!("cannot work in {}", layout.project.display()))?;
    // evcxr_jupyter renews an installation of its own that it finds under this path. There is none.
    // SAFETY: as above.
    unsafe { std::env::set_var("JUPYTER_PATH", session.dir().join("no-installation")) };
    // It reads the connection file's path from the command line itself.
    evcxr_jupyter::main()
}
