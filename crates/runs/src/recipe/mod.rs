//! A run as one file: data, model, strategy and arguments in YAML, written by a run and read by the
//! trainer.
//!
//! ```yaml
//! version: 1
//! name: support
//! data:
//!   path: datasets/support/tickets_raw.jsonl
//!   steps:
//!   - clean: [strip_html, normalize_whitespace, drop_empty, drop_duplicates]
//!   split: {fraction: 0.12, seed: 42}
//! model: {name_or_path: SmolLM2-135M-Instruct}
//! strategy: {type: lora, r: 8, lora_alpha: 32.0}
//! training: {epochs: 3, learning_rate: 0.0002}
//! ```
//!
//! A field that is left out has its default; a recipe that is written has them all. Paths are relative
//! to the folder in which the program runs, as in a cell.

mod data;
mod destination;
mod file;
mod foreign;
mod model;
mod node;
mod strategy;
#[cfg(test)]
mod tests;
mod train;

use std::path::Path;

use serde::Serialize;
use tunebook_models::Model;
use tunebook_tune::{RunRecord, TrainingArgs, moved_before};

pub use data::DataRecipe;
pub use model::{ModelDtype, ModelRecipe};
pub use strategy::StrategyRecipe;
pub use train::{RecipeArgs, TrainedRecipe};

use crate::data::RunData;
use crate::disk;
use crate::error::Result;
use crate::yaml;

/// The version of the files that this crate writes, and the newest that it reads.
const VERSION: u32 = 1;

/// What a run does, from its data to its arguments.
///
/// ```no_run
/// use tunebook_runs::Recipe;
/// let mut recipe = Recipe::read("recipe.yaml")?;
/// recipe.training.learning_rate = 1e-4;
/// recipe.write("slower.yaml")?;
/// # Ok::<(), tunebook_runs::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recipe {
    /// The version of the format: 1.
    pub version: u32,
    /// What the run is called in a registry. Default none: as the recipe's file.
    pub name: Option<String>,
    /// The rows, their cleaning and their split.
    pub data: DataRecipe,
    /// The base model.
    pub model: ModelRecipe,
    /// What is trained: an adapter, or the model's own weights.
    pub strategy: StrategyRecipe,
    /// The arguments of the run.
    pub training: TrainingArgs,
}

/// The text of a YAML document, by rules that readers of YAML 1.1 (PyYAML) and of YAML 1.2 take for the
/// same.
pub fn to_yaml(value: &serde_json::Value) -> String {
    yaml::text(value)
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// The file cannot be read, is no YAML, or has a key or value that is not known: the error names
    /// the file, the line, the key, what was expected and the nearest key that is known.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        file::read(path.as_ref(), &[])
    }

    /// The same with values put in the place of the file's, each as `training.learning_rate=1e-4`:
    /// the keys on the way and a value in YAML.
    ///
    /// # Errors
    /// As [`Recipe::read`]; an override without `=`.
    pub fn read_with(path: impl AsRef<Path>, overrides: &[String]) -> Result<Self> {
        file::read(path.as_ref(), overrides)
    }

    /// A recipe from the text of its file.
    ///
    /// # Errors
    /// As [`Recipe::read`], without the file's name.
    pub fn from_yaml(text: &str) -> Result<Self> {
        file::parse(Path::new("recipe.yaml"), text, &[])
    }

    /// The text of its file: every field, in the order of the structs, defaults included. Equal
    /// recipes have equal texts, and numbers read back bit by bit.
    ///
    /// # Errors
    /// A number that is not finite, or a path that is not UTF-8.
    pub fn to_yaml(&self) -> Result<String> {
        Ok(yaml::text(&serde_json::to_value(self)?))
    }

    /// Writes the recipe, whole or not at all, in place of a file that is there.
    ///
    /// # Errors
    /// As [`Recipe::to_yaml`]; the file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        disk::write_whole(path.as_ref(), self.to_yaml()?.as_bytes())
    }
}

impl Recipe {
    /// The recipe of a run that begins.
    ///
    /// # Errors
    /// What no recipe can say.
    pub(crate) fn of_run(
        name: &str,
        run: &RunRecord,
        data: Option<&RunData>,
        model: &Model,
    ) -> Result<Self, String> {
        if run.plan.done_steps > 0 {
            return Err(format!("it goes on with another run from step {}", run.plan.done_steps));
        }
        match moved_before(model) {
            Ok(None) => {}
            Ok(Some(what)) => {
                return Err(format!(
                    "it goes on from {what}, trained, loaded or combined before: a recipe begins anew"
                ));
            }
            Err(error) => return Err(error.to_string()),
        }
        let measured =
            |name: &str| name == "loss" || run.args.eval_metrics.iter().any(|m| m == name);
        if let Some(metric) = run.metrics.iter().find(|metric| !measured(&metric.name)) {
            return Err(format!(
                "it measures `{}` by a function of the program (`with_metric`)",
                metric.name
            ));
        }
        let Some(data) = data else {
            return Err("its rows were not named; give them with `Recorder::with_data`".to_owned());
        };
        let rows = data.train().len();
        let left_out = run.plan.without_labels;
        let trained = run.plan.examples;
        let other = trained > rows || trained + left_out < rows;
        let dataset = run.fingerprints.dataset.as_deref();
        if other || dataset.is_some_and(|trained| trained != data.train().fingerprint()) {
            return Err(format!(
                "it trains on {trained} examples, and those named with `Recorder::with_data` are \
                 {rows} other rows"
            ));
        }
        Ok(Self {
            version: VERSION,
            name: Some(name.to_owned()),
            data: DataRecipe::of(data)?,
            model: ModelRecipe::of(model)?,
            strategy: StrategyRecipe::of_run(run),
            training: run.args.clone(),
        })
    }

    /// A hash of all that decides what is trained: not of the name, and not of when the run is evaluated
    /// and saved.
    ///
    /// # Errors
    /// As [`Recipe::to_yaml`].
    pub(crate) fn fingerprint(&self) -> Result<String> {
        let deciding = Self { name: None, training: self.training.course(), ..self.clone() };
        Ok(disk::sha256(deciding.to_yaml()?.as_bytes()))
    }

    /// Whether a run does what this recipe says; `made` is the run's own.
    pub(crate) fn describes(&self, made: &Self, run: &RunRecord) -> bool {
        self.data.pipelines() == made.data.pipelines()
            && self.model == made.model
            && self.strategy == made.strategy
            && self.name.as_ref().is_none_or(|name| made.name.as_ref() == Some(name))
            && self.has_args(run)
    }

    /// Whether a run has the arguments of this recipe, but for those that a budget led to.
    pub(crate) fn has_args(&self, run: &RunRecord) -> bool {
        let args = &run.args;
        let chosen = TrainingArgs {
            batch_size: args.batch_size,
            gradient_accumulation_steps: args.gradient_accumulation_steps,
            eval_batch_size: args.eval_batch_size,
            gradient_checkpointing: args.gradient_checkpointing,
            checkpointed_blocks: args.checkpointed_blocks,
            ..self.training.clone()
        };
        self.training == *args || (run.plan.preflight.is_some() && chosen == *args)
    }
}
