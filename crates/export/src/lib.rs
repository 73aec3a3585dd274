//! A notebook as a Cargo crate that does the same outside Jupyter; a recipe as the files of an engine
//! that trains on many cards ([`cluster`]).
//!
//! Text in, files out: [`export`] reads the text of a notebook and writes nothing; [`folder::write`]
//! puts the files where they belong. The cells' own text is kept, comments included, so that a person
//! recognises the notebook; `syn` only says where statements begin and end and which names they use.
//!
//! The cells mean what they mean in the kernel (evcxr, see `HOW_IT_WORKS.md`):
//!
//! - Statements stand one after the other in one function, so that variables live from cell to cell.
//!   The value of a last expression without semicolon is shown, a `?` ends the program with the
//!   cell's number.
//! - Items stand at module level. A cell that defines a name anew opens a scope for itself and all
//!   later cells ([`scopes`]), in which the functions that use the name are defined anew, too.
//! - What a Rust program cannot say is refused with the cell's number ([`Refusal`]).

mod cell;
pub mod cluster;
pub mod folder;
mod later;
mod macros;
mod manifest;
mod names;
mod notebook;
mod parameters;
mod program;
mod scopes;
mod support;

use std::collections::BTreeMap;
use std::fmt;

/// Files by their path in a folder.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What an export needs to know beside the notebook.
#[derive(Clone, Debug)]
pub struct Options {
    /// The file name of the notebook, by which messages and files call it.
    pub notebook: String,
    /// Whether cells tagged `exercise` or `solution` are part of the crate.
    pub with_exercises: bool,
    /// The checkout whose prelude the crate uses.
    pub checkout: Checkout,
}

/// A checkout of the repository.
#[derive(Clone, Debug, Default)]
pub struct Checkout {
    /// Its folder `crates`, to which the exported crate has a link.
    pub crates: String,
    /// The text of the workspace's `Cargo.toml`.
    pub manifest: String,
    /// The text of its `Cargo.lock`.
    pub lock: String,
    /// The text of its `.cargo/config.toml`, for the target and the flags.
    pub config: String,
    /// The folder of its artefacts, which the crate shares; none to build apart.
    pub target_dir: Option<String>,
}

/// The files of a crate, and what was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The package's name.
    pub package: String,
    /// The files' texts, by their path in the crate.
    pub files: BTreeMap<String, String>,
    /// Links to folders, by their path in the crate.
    pub links: BTreeMap<String, String>,
    /// What the crate does not do, each with its cell.
    pub notes: Vec<String>,
}

/// A cell that cannot be exported, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The number of the cell: the first cell with code is 1, as in a run from top to bottom.
    pub cell: usize,
    /// The line in the cell, from 1.
    pub line: Option<usize>,
    /// Why, and what to do.
    pub reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "cell {}, line {line}: {}", self.cell, self.reason),
            None => write!(f, "cell {}: {}", self.cell, self.reason),
        }
    }
}

/// Why there is no crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is no notebook of Rust.
    #[error("{notebook} is no Rust notebook: {reason}")]
    NotANotebook {
        /// Its file name.
        notebook: String,
        /// What was found.
        reason: String,
    },
    /// Cells that cannot be expressed.
    #[error("{notebook} cannot be exported:\n{}", list(.refusals))]
    Refused {
        /// The notebook's file name.
        notebook: String,
        /// All of them, in the order of the cells.
        refusals: Vec<Refusal>,
    },
    /// The checkout's `Cargo.toml` or configuration is not as expected.
    #[error("{file} of the checkout: {reason}")]
    Checkout {
        /// The file.
        file: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The folder holds what was not exported.
    #[error("{}: {reason}", .folder.display())]
    Folder {
        /// The folder.
        folder: std::path::PathBuf,
        /// What is there, and what to do.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

fn list(refusals: &[Refusal]) -> String {
    refusals.iter().map(|refusal| format!("  {refusal}")).collect::<Vec<_>>().join("\n")
}

/// The crate of a notebook. The same text and options give the same files.
///
/// # Errors
/// [`Error::NotANotebook`], and [`Error::Refused`] with all cells that cannot be exported.
pub fn export(text: &str, options: &Options) -> Result<Exported, Error> {
    let no_notebook = |reason| Error::NotANotebook { notebook: options.notebook.clone(), reason };
    // Deep expressions are deep calls, and the stack of whoever calls is not known.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let thread = thread
            .spawn_scoped(scope, || export_here(text, options))
            .map_err(|error| no_notebook(format!("no thread to read it: {error}")))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Enough for the deepest code that is read ([`cell`]).
const STACK_BYTES: usize = 256 << 20;

/// A file's name for a comment.
fn one_line(name: &str) -> String {
    name.replace(|c: char| c.is_control() || ['\u{2028}', '\u{2029}'].contains(&c), " ")
}

fn export_here(text: &str, options: &Options) -> Result<Exported, Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let cells = notebook::read(text)
        .map_err(|reason| Error::NotANotebook { notebook: options.notebook.clone(), reason })?;
    let mut notes = Vec::new();
    let refused = |refusals| Error::Refused { notebook: options.notebook.clone(), refusals };
    let program = program::Program::new(cells, options, &mut notes).map_err(refused)?;
    let package = manifest::package_name(&options.notebook);
    let uses = program.uses();
    let mut files = BTreeMap::from([
        ("Cargo.toml".to_owned(), manifest::manifest(&package, &uses, options)?),
        ("src/main.rs".to_owned(), program.main(options)),
        (
            format!("src/{}.rs", support::MODULE),
            support::module(&options.notebook, &package, program.parameters(), &uses),
        ),
    ]);
    let mut links = BTreeMap::new();
    if uses.tunebook {
        links.insert(manifest::CRATES.to_owned(), options.checkout.crates.clone());
        files.insert(".cargo/config.toml".to_owned(), manifest::config(&options.checkout)?);
        files.insert("Cargo.lock".to_owned(), options.checkout.lock.clone());
    }
    Ok(Exported { package, files, links, notes })
}
