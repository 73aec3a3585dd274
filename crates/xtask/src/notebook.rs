//! Executing a notebook headless, through nbclient in the notebooks' Python environment.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::process;
use crate::setup::{Setup, cuda};

/// A notebook to execute.
pub(crate) struct Execution<'a> {
    /// The notebook's file.
    pub notebook: &'a Path,
    /// The kernelspec's name.
    pub kernel: &'a str,
    /// Where the executed notebook and the HTML page go.
    pub out: &'a Path,
    /// Values for the cell tagged `parameters`, each `name=value`.
    pub parameters: &'a [String],
}

impl Execution<'_> {
    /// Executes the notebook with the repository's root as working directory, showing each cell
    /// with its time.
    ///
    /// # Errors
    /// [`Error::Notebook`] names the cell that failed by its number and first line; both files are
    /// written all the same.
    pub(crate) fn run(&self, setup: &Setup) -> Result<()> {
        self.run_with(setup, &[])
    }

    /// The same with more variables in the kernel's environment.
    ///
    /// # Errors
    /// As [`Execution::run`].
    pub(crate) fn run_with(
        &self,
        setup: &Setup,
        environment: &[(&'static str, OsString)],
    ) -> Result<()> {
        self.check()?;
        let mut command = self.command(setup)?;
        cuda::set(&mut command, environment);
        let (succeeded, text) = process::show_and_keep_errors(&mut command)?;
        if succeeded {
            return Ok(());
        }
        let summary = text
            .lines()
            .rev()
            .find(|line| {
                line.starts_with("cell ") && line.contains(" failed: ") || line.starts_with("-p ")
            })
            .unwrap_or("could not be executed; the output above says why")
            .to_owned();
        Err(Error::Notebook { notebook: self.notebook.to_path_buf(), summary })
    }

    /// Refuses a notebook that is not there, before the set-up takes its time.
    ///
    /// # Errors
    /// [`Error::Other`] names the file.
    pub(crate) fn check(&self) -> Result<()> {
        if self.notebook.extension().is_none_or(|extension| extension != "ipynb") {
            return Err(Error::Other(format!(
                "{} is not a notebook: its name must end in .ipynb",
                self.notebook.display()
            )));
        }
        if self.notebook.is_file() {
            return Ok(());
        }
        Err(Error::Other(format!(
            "there is no notebook {}; the course is in notebooks/",
            absolute(self.notebook)?.display()
        )))
    }

    fn command(&self, setup: &Setup) -> Result<std::process::Command> {
        let notebook = absolute(self.notebook)?;
        let mut command = process::command(setup.python());
        command
            .arg("-u")
            .arg(setup.root.join("crates/xtask/python/execute_notebook.py"))
            .arg(&notebook)
            .args(["--kernel", self.kernel, "--out"])
            .arg(absolute(self.out)?)
            .arg("--root")
            .arg(&setup.root)
            // Joined, as a value may begin with a dash.
            .args(self.parameters.iter().map(|pair| format!("--parameter={pair}")))
            .current_dir(&setup.root);
        Ok(command)
    }
}

/// The notebooks in a folder, in order.
///
/// # Errors
/// When the folder cannot be read.
pub(crate) fn in_folder(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let mut notebooks: Vec<_> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "ipynb"))
        .collect();
    notebooks.sort();
    Ok(notebooks)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::io("find", path))
}
