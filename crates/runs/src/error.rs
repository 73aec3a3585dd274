//! What can go wrong with a registry, each with what was expected, what was found and what to do.

use std::path::{Path, PathBuf};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("could not {action} `{}`: {source}", path.display())]
    Io {
        /// `read`, `write` …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },

    /// The index could not be read or written.
    #[error(
        "the index `{}`: {source}. It holds only what the registry's files say: where it is damaged, \
         delete it", path.display()
    )]
    Index {
        /// Its file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// A file of the registry says something that cannot be used.
    #[error("`{}`: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        problem: String,
    },

    /// A recipe says something that cannot be used.
    #[error("{}: {problem}", place(path, *line, key))]
    Recipe {
        /// Its file.
        path: PathBuf,
        /// The line, counted from 1; `None`: it is not in the file.
        line: Option<u64>,
        /// The key, with those above it: `training.learning_rate`. Empty: the whole file.
        key: String,
        /// What was expected and what was found.
        problem: String,
    },

    /// A setting of a recipe does not go with its model.
    #[error("`{key}`: {problem}")]
    RecipeKey {
        /// The key, with those above it: `strategy.target_modules`.
        key: String,
        /// What was expected and what was found.
        problem: String,
    },

    /// A run has done what a recipe cannot say.
    #[error("the run `{run}` has no recipe: {problem}")]
    NoRecipe {
        /// Its id or name.
        run: String,
        /// What that is.
        problem: String,
    },

    /// Nothing has this name.
    #[error(
        "no {what} `{}` in this registry; {}",
        tunebook_progress::printable(name),
        near_or(near, known)
    )]
    NotFound {
        /// `run`, `alias`, or `adapter, alias or run`.
        what: &'static str,
        /// The name asked for.
        name: String,
        /// Those that may have been meant.
        near: Vec<String>,
        /// Some that there are.
        known: Vec<String>,
    },

    /// A run has trained no adapter, or none that was saved.
    #[error("the run `{}` has no adapter: {problem}", tunebook_progress::printable(run))]
    NoAdapter {
        /// Its name and id.
        run: String,
        /// Why.
        problem: String,
    },

    /// A name or the beginning of an id stands for several.
    #[error(
        "`{}` may be any of these {what}s: {}; give an id, or so much of its beginning that one is left",
        tunebook_progress::printable(name), found.join(", ")
    )]
    Ambiguous {
        /// `run`, `adapter`.
        what: &'static str,
        /// The name asked for.
        name: String,
        /// Their ids.
        found: Vec<String>,
    },

    /// A name cannot be used.
    #[error("the {what} `{name}` {problem}; use letters, digits, `-` and `_`")]
    Name {
        /// `alias`.
        what: &'static str,
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },

    /// An adapter was not promoted. Nothing has changed.
    #[error("`{adapter}` does not become `{alias}`, which stays as it is: {problem}. {advice}")]
    Refused {
        /// The alias.
        alias: String,
        /// The adapter.
        adapter: String,
        /// Why.
        problem: String,
        /// What to do.
        advice: &'static str,
    },

    /// Somebody else has changed an alias. Nothing has changed here.
    #[error(
        "`{alias}` is at generation {found}, and was to be changed from generation {expected}: \
         somebody has changed it meanwhile. Look at it again (`registry.alias(\"{alias}\")`)"
    )]
    Conflict {
        /// The alias.
        alias: String,
        /// The generation that the change was meant for; 0: none.
        expected: u64,
        /// The generation found.
        found: u64,
    },

    /// An alias has another generation, and the server is not told yet.
    #[error(
        "`{alias}` is decided to be generation {generation}, and that is not served yet: {source}. \
         The next change in the registry tries again, as does `registry.rebuild()`"
    )]
    NotServed {
        /// The alias.
        alias: String,
        /// Its generation.
        generation: u64,
        /// Why `serving/` could not be changed.
        source: Box<Error>,
    },

    /// Adapters were not collected, as nobody can say which of them are needed. Nothing has changed.
    #[error("nothing is collected: {problem}")]
    NotCollected {
        /// What cannot be read.
        problem: String,
    },

    /// A setting is out of its range.
    #[error("`{field}` is {value}, expected {expected}")]
    Setting {
        /// Its name.
        field: &'static str,
        /// What was given.
        value: f64,
        /// The range.
        expected: &'static str,
    },

    /// A column cannot identify rows.
    #[error(
        "the column `{column}` cannot identify rows: {problem}. Make it a column of text or of whole \
         numbers"
    )]
    IdColumn {
        /// Its name.
        column: String,
        /// Its type, or a value.
        problem: String,
    },

    /// An alias has no generation before.
    #[error("`{alias}` is at generation {generation}, and there is none before it to go back to")]
    NothingBefore {
        /// The alias.
        alias: String,
        /// Its generation.
        generation: u64,
    },

    /// An adapter, model or run.
    #[error(transparent)]
    Tune(#[from] tunebook_tune::Error),

    /// A data set.
    #[error(transparent)]
    Data(#[from] tunebook_data::DataError),

    /// A frame.
    #[error(transparent)]
    Polars(#[from] polars::error::PolarsError),

    /// A record that is no JSON.
    #[error("a record cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

fn place(path: &Path, line: Option<u64>, key: &str) -> String {
    let mut place = format!("`{}`", path.display());
    if let Some(line) = line {
        place.push_str(&format!(", line {line}"));
    }
    if !key.is_empty() {
        place.push_str(&format!(", `{key}`"));
    }
    place
}

fn near_or(near: &[String], known: &[String]) -> String {
    match (near, known) {
        ([], []) => "there are none yet".to_owned(),
        ([], _) => {
            format!("there are, among others: {}", tunebook_progress::printable(&known.join(", ")))
        }
        _ => format!("did you mean {}?", tunebook_progress::printable(&near.join(" or "))),
    }
}
