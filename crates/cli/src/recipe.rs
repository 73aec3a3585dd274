//! The recipe of a command: its file, with the values that the command line puts in.

use std::error::Error;
use std::path::{Path, PathBuf};

use clap::Args;
use tunebook_runs::Recipe;

#[derive(Debug, Args)]
pub(crate) struct Overrides {
    /// Values in the place of the recipe's: `training.learning_rate=1e-4`.
    #[arg(value_name = "KEY=VALUE")]
    values: Vec<String>,
}

impl Overrides {
    pub(crate) fn first(&self) -> Option<&str> {
        self.values.first().map(String::as_str)
    }
}

/// Reads a recipe, and says where its rows are if they are not where it looks for them.
pub(crate) fn read(path: &Path, overrides: &Overrides) -> Result<Recipe, Box<dyn Error>> {
    let recipe = Recipe::read_with(path, &overrides.values)?;
    let rows = PathBuf::from(&recipe.data.path);
    let beside = path.parent().unwrap_or(Path::new("")).join(&rows);
    if !rows.exists() && beside.exists() {
        eprintln!(
            "note: paths of a recipe begin in the folder in which the program runs; `{}` lies in the \
             recipe's own, {}",
            rows.display(),
            beside.parent().unwrap_or(Path::new(".")).display()
        );
    }
    Ok(recipe)
}
