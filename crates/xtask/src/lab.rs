//! JupyterLab, opened on notebook 00.

use std::ffi::OsString;

use crate::error::{Error, Result};
use crate::notebook;
use crate::process;
use crate::setup::{Setup, cuda};

/// Becomes JupyterLab: Ctrl-C then goes to it alone, with its own question before it stops.
///
/// # Errors
/// Returns only when JupyterLab cannot be started.
pub(crate) fn open(
    setup: &Setup,
    browser: bool,
    port: Option<u16>,
    environment: &[(&'static str, OsString)],
) -> Result<()> {
    let mut command = process::command(setup.python());
    cuda::set(&mut command, environment);
    command
        .args(["-m", "jupyterlab"])
        .arg(format!("--ServerApp.root_dir={}", setup.root.display()));
    command.arg("--MultiKernelManager.default_kernel_name=tunebook");
    if !browser {
        command.arg("--no-browser");
    }
    if let Some(port) = port {
        command.arg(format!("--port={port}"));
    }
    if process::capture(process::command("id").arg("-u"), "id").is_ok_and(|uid| uid.trim() == "0") {
        // A container; JupyterLab would refuse without it.
        command.arg("--allow-root");
    }
    if let Some(first) = notebook::in_folder(&setup.root.join("notebooks"))?.first() {
        let path = first.strip_prefix(&setup.root).unwrap_or(first).display().to_string();
        command.arg(format!("--LabApp.default_url=/lab/tree/{}", path.replace(' ', "%20")));
    }
    become_program(command.current_dir(&setup.root))
}

#[cfg(unix)]
fn become_program(command: &mut std::process::Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let source = command.exec();
    Err(Error::Start { program: "JupyterLab".to_owned(), source })
}

/// Never reached: other platforms are refused by the prerequisites, which this lets them read.
#[cfg(not(unix))]
fn become_program(command: &mut std::process::Command) -> Result<()> {
    process::run(command, "JupyterLab")
}
