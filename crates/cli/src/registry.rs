//! `tunebook registry`.

use std::error::Error;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use polars::prelude::{AnyValue, DataFrame};
use tunebook_runs::{GarbageArgs, Registry, printable};

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
    /// Show what differs between runs, and their metrics.
    Compare {
        /// Ids, beginnings of ids, or names.
        #[arg(required = true)]
        runs: Vec<String>,
        /// The run that the others are held against.
        #[arg(long, value_name = "RUN")]
        baseline: Option<String>,
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
    /// List the adapters that nothing refers to.
    Gc {
        /// Removes them.
        #[arg(long)]
        delete: bool,
        /// Adapters younger than this stay.
        #[arg(long, value_name = "DAYS", default_value_t = 7.0)]
        min_age_days: f64,
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
            let runs = if *all { runs } else { runs.select(SHOWN)? };
            println!("{}", text(&runs)?);
        }
        Command::Compare { runs, baseline } => {
            let runs: Vec<&str> = runs.iter().map(String::as_str).collect();
            let compared = match baseline {
                Some(baseline) => registry.compare_with(baseline, &runs)?,
                None => registry.compare(&runs)?,
            };
            println!("{}\n\n{}", text(&compared.settings())?, text(&compared.metrics())?);
            println!("\n{} settings are the same", compared.same_settings());
        }
        Command::Recipe { run } => print!("{}", registry.recipe(run)?.to_yaml()?),
        Command::Why { what } => println!("{}", registry.why(what)?),
        Command::Gc { delete, min_age_days } => {
            let min_age_secs = min_age_days * 24.0 * 3600.0;
            println!("{}", registry.gc(&GarbageArgs { dry_run: !delete, min_age_secs })?);
        }
        Command::Rollback { alias, from } => {
            let alias = registry.alias(alias)?;
            if let Some(from) = from.filter(|from| *from != alias.generation()) {
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

/// A frame as aligned columns, whole.
fn text(frame: &DataFrame) -> Result<String, Box<dyn Error>> {
    let mut columns: Vec<Vec<String>> = Vec::new();
    for column in frame.columns() {
        let mut cells = vec![printable(column.name()).into_owned()];
        for row in 0..column.len() {
            cells.push(match column.get(row)? {
                AnyValue::Null => "-".to_owned(),
                AnyValue::String(text) => printable(text).into_owned(),
                AnyValue::Float64(number) => format!("{number:.4}"),
                other => other.to_string(),
            });
        }
        let width = cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
        columns.push(cells.into_iter().map(|cell| format!("{cell:width$}")).collect());
    }
    let line = |row: usize| {
        let cells: Vec<&str> = columns.iter().map(|column| column[row].as_str()).collect();
        cells.join("  ").trim_end().to_owned()
    };
    Ok((0..=frame.height()).map(line).collect::<Vec<_>>().join("\n"))
}
