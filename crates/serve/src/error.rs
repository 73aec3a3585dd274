//! What can go wrong with a server, for those who start and change it.

use std::path::PathBuf;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting that cannot work.
    #[error("`{field}` is {value}, expected {expected}")]
    Config {
        /// The field, with its type.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is accepted.
        expected: &'static str,
    },

    /// Nobody can listen there.
    #[error(
        "cannot listen on `{address}`: {source}. Stop the server that has the address (`stop()`), or take port 0, \
         which is any free one"
    )]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: std::io::Error,
    },

    /// An address that other machines reach.
    #[error(
        "`{address}` is reached from other machines; give an `api_key` and set `public`, or listen on `127.0.0.1`"
    )]
    NotLoopback {
        /// The address.
        address: String,
    },

    /// A thread or a file of the operating system.
    #[error("the server cannot start: {0}")]
    Start(std::io::Error),

    /// An adapter was being read or copied.
    #[error("the thread that loads adapters panicked; what was served is served still")]
    LoaderPanicked,

    /// The server has stopped.
    #[error("this server has stopped; start another with `model.serve(..)`")]
    Stopped,

    /// No adapter of that name.
    #[error("no adapter `{name}` is served; served are: {}", list(served))]
    UnknownAdapter {
        /// What was asked for.
        name: String,
        /// What there is.
        served: Vec<String>,
    },

    /// The name is another adapter's.
    #[error(
        "an adapter `{name}` is served already (generation {generation}); replace it with `load_inplace`"
    )]
    AdapterExists {
        /// The name.
        name: String,
        /// Who has it.
        generation: String,
    },

    /// The name is the base's.
    #[error("`{name}` is the base's name, expected another one for an adapter")]
    BaseName {
        /// The name.
        name: String,
    },

    /// Somebody else has changed the adapter meanwhile.
    #[error(
        "`{name}` is of generation {}, expected {expected}: somebody has changed it. Nothing was changed now",
        found.as_deref().unwrap_or("none")
    )]
    Generation {
        /// The adapter's name.
        name: String,
        /// What the change was meant for.
        expected: String,
        /// What there is.
        found: Option<String>,
    },

    /// No room for another adapter.
    #[error(
        "{limit} adapters are served already, the most that there may be; unload one first (`Limits.max_adapters`)"
    )]
    TooManyAdapters {
        /// The limit.
        limit: usize,
    },

    /// No memory for another adapter.
    #[error(
        "`{name}` takes {size} bytes and the adapters that are served take {resident}, expected at most {limit} together; \
         unload one first (`Limits.max_adapter_bytes`)"
    )]
    AdapterMemory {
        /// The adapter.
        name: String,
        /// What it takes.
        size: usize,
        /// What the others take.
        resident: usize,
        /// The limit.
        limit: usize,
    },

    /// A handle that answers with the base.
    #[error(
        "no adapter answers with this handle, so there is nothing to serve as `{name}`; choose one with `with_adapter`"
    )]
    NoAdapter {
        /// The name it was to have.
        name: String,
    },

    /// An adapter in the memory of another model.
    #[error(
        "this handle is on other weights than the server's; save its adapter, and load it from the folder"
    )]
    OtherModel,

    /// A path that clients may not load from.
    #[error("`{}` {problem}", path.display())]
    AdapterPath {
        /// As it was given.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// The file that keeps the adapters' names.
    #[error("state file `{}`: {problem}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },

    /// An adapter that cannot be served, or weights that are in training.
    #[error(transparent)]
    Tune(#[from] tunebook_tune::Error),

    /// The model failed.
    #[error(transparent)]
    Model(#[from] tunebook_models::Error),
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
