//! Errors of a task, worded for the person at the terminal.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// The result of a task.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Why a task ended.
#[derive(Debug)]
pub(crate) enum Error {
    /// The command line makes no sense; holds what to write instead.
    Usage(String),
    /// The machine lacks something; holds one line per missing thing, each with its remedy.
    Prerequisites(Vec<String>),
    /// A program could not be started.
    Start { program: String, source: std::io::Error },
    /// A program ended with a failure; what it was for, and how it ended.
    Failed { what: String, status: ExitStatus, remedy: Option<String> },
    /// A file or folder could not be read or written.
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    /// A file is not the one that was published.
    Checksum { file: PathBuf, expected: String, found: String, remedy: String },
    /// A cell of a notebook failed; the runner has already shown which and why.
    Notebook { notebook: PathBuf, summary: String },
    /// Tests failed; the closing line has been printed.
    Tests { failed: usize },
    /// Anything else, worded in full.
    Other(String),
}

impl Error {
    /// Wraps an I/O error with what was being done to which path.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { doing, path, source }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) => f.write_str(text),
            Self::Prerequisites(missing) => {
                writeln!(
                    f,
                    "this machine is not ready; nothing has been built or downloaded yet:"
                )?;
                for line in missing {
                    writeln!(f, "  - {line}")?;
                }
                f.write_str("Then run the same command again.")
            }
            Self::Start { program, source } => write!(f, "cannot start `{program}`: {source}"),
            Self::Failed { what, status, remedy } => {
                write!(f, "{what} failed ({status}); the output above says why.")?;
                match remedy {
                    Some(remedy) => write!(f, " {remedy}"),
                    None => Ok(()),
                }
            }
            Self::Io { doing, path, source } => {
                write!(f, "cannot {doing} {}: {source}", path.display())
            }
            Self::Checksum { file, expected, found, remedy } => write!(
                f,
                "{} is not the published file.\n  expected sha256 {expected}\n  found    sha256 {found}\n  {remedy}",
                file.display()
            ),
            Self::Notebook { notebook, summary } => write!(f, "{}: {summary}", notebook.display()),
            Self::Tests { failed } => write!(f, "{failed} failed; see above"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}
