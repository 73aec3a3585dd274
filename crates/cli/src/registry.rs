//! `tunebook registry`.

mod compare;
mod show;
mod table;

use std::error::Error;
use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use polars::prelude::DataFrame;
use tunebook_progress::printable;
use tunebook_runs::{GarbageArgs, Registry};

use table::{aligned, cells, short};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The registry's folder.
    #[arg(long, value_name = "DIR", default_value = "registry")]
    registry: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the index again from the files.
    Rebuild,
    /// List all runs, the newest first.
    Runs {
        /// All columns.
        #[arg(long)]
        all: bool,
    },
    /// Show one run: its recipe's name, losses, adapter and files.
    Show {
        /// An id, the beginning of an id, or a name.
        run: String,
        /// All steps, with their gradients' norms, tokens and seconds.
        #[arg(long)]
        all: bool,
    },
    /// Show what differs between runs, and their metrics.
    Compare {
        /// Ids, beginnings of ids, or names.
        #[arg(required = true)]
        runs: Vec<String>,
        /// The run that the others are held against.
        #[arg(long, value_name = "RUN")]
        baseline: Option<String>,
        /// All settings that differ, whole.
        #[arg(long)]
        all: bool,
    },
    /// Print a run's recipe, which `tunebook train` reads.
    Recipe {
        /// An id, the beginning of an id, or a name.
        run: String,
    },
    /// Tell where an adapter comes from.
    Why {
        /// An adapter's id, an alias, or a run's id or name.
        what: String,
    },
    /// Add tags to a run, or take them away. The adapters of a run with the tag `keep` always stay.
    Tag {
        /// An id, the beginning of an id, or a name.
        run: String,
        /// The tags.
        #[arg(required = true, value_parser = NonEmptyStringValueParser::new())]
        tags: Vec<String>,
        /// Takes them away.
        #[arg(long)]
        remove: bool,
    },
    /// Add a note to a run, which `show` and `why` print.
    Note {
        /// An id, the beginning of an id, or a name.
        run: String,
        /// The note.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        text: String,
    },
    /// List the adapters that are no longer needed: earlier states of runs, and those of deleted runs.
    Gc {
        /// Removes them.
        #[arg(long)]
        delete: bool,
        /// Adapters younger than this stay.
        #[arg(long, value_name = "DAYS", default_value_t = 7.0)]
        min_age_days: f64,
        /// Takes results of runs, too, to which no alias, no tag `keep` and no other adapter refers.
        #[arg(long)]
        results: bool,
    },
    /// Let an alias stand for another adapter by your word, without a paired evaluation.
    Promote {
        /// An adapter's id, another alias, or a run's id or name.
        adapter: String,
        /// The alias; it is made where there is none.
        #[arg(long = "to", value_name = "ALIAS")]
        alias: String,
        /// Why: the registry keeps it, and `why` tells it.
        #[arg(long, value_name = "REASON")]
        force: Option<String>,
    },
    /// Bring the generation of an alias before back.
    Rollback {
        /// The alias.
        alias: String,
        /// The generation that must stand now.
        #[arg(long, value_name = "N")]
        from: Option<u64>,
    },
    /// Look for files that are not as they were written.
    Verify,
}

/// The columns of `runs` that fit a terminal.
const SHOWN: [&str; 11] = [
    "id",
    "name",
    "state",
    "started",
    "strategy",
    "steps",
    "loss",
    "eval_loss",
    "adapter",
    "served_as",
    "tags",
];

/// What a promotion lacks here. An evaluation that was read from a file cannot be compared with another:
/// its metrics are code.
const UNFORCED: &str = "a promotion needs a comparison of two evaluations, which are made in Rust \
    (`registry.promote`, docs/registry.md). To do without one, say why: --force REASON";

pub(crate) fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let folder = &arguments.registry;
    // A word that is mistyped makes no folder.
    if !folder.is_dir() {
        return Err(
            format!("there is no folder `{}`; name it (--registry)", folder.display()).into()
        );
    }
    let registry = Registry::open(folder)?;
    if !registry.is_there() {
        let problem = "has no folder `runs`, `adapters`, `evaluations` or `aliases`";
        return Err(format!("`{}` is no registry: it {problem}", folder.display()).into());
    }
    let done = command(&registry, &arguments.command);
    registry.warnings().iter().for_each(|warning| eprintln!("warning: {}", printable(warning)));
    done
}

fn command(registry: &Registry, command: &Command) -> Result<(), Box<dyn Error>> {
    match command {
        Command::Rebuild => {
            registry.rebuild()?;
            println!("{} runs", registry.runs()?.height());
        }
        Command::Runs { all } => {
            let runs = registry.runs()?;
            let rows = if *all { cells(&runs)? } else { overview(&runs)? };
            println!("{}", aligned(&rows));
        }
        Command::Show { run, all } => println!("{}", show::text(registry, run, *all)?),
        Command::Compare { runs, baseline, all } => {
            let runs: Vec<&str> = runs.iter().map(String::as_str).collect();
            let compared = match baseline {
                Some(baseline) => registry.compare_with(baseline, &runs)?,
                None => registry.compare(&runs)?,
            };
            println!("{}", compare::text(&compared, *all)?);
        }
        Command::Recipe { run } => print!("{}", registry.recipe(run)?.to_yaml()?),
        Command::Why { what } => println!("{}", registry.why(what)?),
        Command::Tag { run, tags, remove } => {
            let id = registry.resolve_run(run)?;
            for tag in tags {
                if *remove { registry.untag(&id, tag)? } else { registry.tag(&id, tag)? }
            }
            let tags = cell(&registry.runs()?, &id, "tags").unwrap_or_default();
            let tags = if tags.is_empty() { "none" } else { &*tags };
            println!("{id}, tags: {}", printable(tags));
        }
        Command::Note { run, text } => {
            let id = registry.resolve_run(run)?;
            registry.note(&id, text)?;
            println!("{id}, noted");
        }
        Command::Gc { delete, min_age_days, results } => {
            let min_age_secs = min_age_days * 24.0 * 3600.0;
            let args = GarbageArgs { dry_run: !delete, min_age_secs, results: *results };
            println!("{}", registry.gc(&args)?);
        }
        Command::Promote { adapter, alias, force } => {
            let Some(reason) = force else { return Err(UNFORCED.into()) };
            println!("{alias}, {}", registry.promote_forced(alias, adapter, reason)?);
        }
        Command::Rollback { alias, from } => {
            let alias = registry.alias(alias)?;
            let is_there = !alias.history().is_empty();
            if let Some(from) = from.filter(|from| is_there && *from != alias.generation()) {
                let now = alias.generation();
                return Err(format!(
                    "`{}` is at generation {now}, expected {from} (--from)",
                    alias.name()
                )
                .into());
            }
            println!("{}, {}", alias.name(), alias.rollback()?);
        }
        Command::Verify => {
            let damages = registry.verify()?;
            damages.iter().for_each(|damage| println!("{damage}"));
            if !damages.is_empty() {
                return Err(format!("{} files are damaged", damages.len()).into());
            }
            println!("all files are as they were written");
        }
    }
    Ok(())
}

/// The columns of the table of runs that fit a terminal: adapters by the beginnings of their ids, with a
/// word where their files are gone.
fn overview(runs: &DataFrame) -> Result<table::Rows, Box<dyn Error>> {
    let mut rows = cells(&runs.select(SHOWN)?)?;
    let files = cells(&runs.select(["adapter_files"])?)?;
    let at = SHOWN.iter().position(|name| *name == "adapter").unwrap_or_default();
    for (row, files) in rows.iter_mut().zip(files).skip(1) {
        row[at] = match files[0].as_str() {
            "present" | "-" => short(&row[at]).to_owned(),
            gone => format!("{} ({gone})", short(&row[at])),
        };
    }
    Ok(rows)
}

/// A text of the table of runs.
fn cell(runs: &DataFrame, id: &str, column: &str) -> Option<String> {
    let ids = runs.column("id").ok()?.str().ok()?;
    let row = ids.iter().position(|found| found == Some(id))?;
    runs.column(column).ok()?.str().ok()?.get(row).map(str::to_owned)
}
