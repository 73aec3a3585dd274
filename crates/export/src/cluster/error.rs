//! Why a recipe does not go to a cluster, or come back.

use std::path::{Path, PathBuf};

use super::{Engine, Unmapped};

/// The result of everything in this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine has no option for some of what the recipe says.
    #[error("{engine} has nothing for {} of this recipe:\n{}", count(.unmapped), list(.unmapped))]
    Unmapped {
        /// The engine.
        engine: Engine,
        /// All of them.
        unmapped: Vec<Unmapped>,
    },
    /// Data that a provider would refuse.
    #[error("a provider would refuse the data: {problem}")]
    Hosted {
        /// Which rule, and where it is broken.
        problem: String,
    },
    /// A provider counts whole epochs.
    #[error(
        "`training.max_steps: {max_steps}`: a provider counts whole epochs, and an epoch has \
         {steps_per_epoch} steps here: leave it out and set training.epochs"
    )]
    HostedSteps {
        /// The steps of the recipe.
        max_steps: usize,
        /// The steps of one epoch.
        steps_per_epoch: usize,
    },
    /// A file says something that cannot be used.
    #[error("{}: {problem}", .path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What was expected, what was found, and what to do.
        problem: String,
    },
    /// No card has this name.
    #[error("no card `{name}` is known, expected one of {}", known.join(", "))]
    Card {
        /// The name.
        name: String,
        /// Those that are.
        known: Vec<&'static str>,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The recipe or the registry.
    #[error(transparent)]
    Runs(Box<tunebook_runs::Error>),
    /// The data.
    #[error(transparent)]
    Data(Box<tunebook_data::DataError>),
    /// The base model.
    #[error(transparent)]
    Model(Box<tunebook_models::Error>),
    /// What is trained.
    #[error(transparent)]
    Tune(Box<tunebook_tune::Error>),
    /// JSON that cannot be read or written.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// Boxed: they are larger than all others.
macro_rules! boxed {
    ($($variant:ident: $error:ty),*) => {
        $(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::$variant(Box::new(error))
            }
        })*
    };
}
boxed!(
    Runs: tunebook_runs::Error,
    Data: tunebook_data::DataError,
    Model: tunebook_models::Error,
    Tune: tunebook_tune::Error
);

pub(super) fn refuse(path: &Path, problem: impl Into<String>) -> Error {
    Error::File { path: path.to_owned(), problem: problem.into() }
}

fn count(unmapped: &[Unmapped]) -> String {
    match unmapped.len() {
        1 => "one option".to_owned(),
        more => format!("{more} options"),
    }
}

fn list(unmapped: &[Unmapped]) -> String {
    unmapped.iter().map(|option| format!("  {option}")).collect::<Vec<_>>().join("\n")
}
