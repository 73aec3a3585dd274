//! A recipe at work: data, model and strategy are made as it says, and trained.

use std::path::PathBuf;

use tunebook_models::{Device, Model};
use tunebook_progress::interrupt;
use tunebook_tune::{
    Adapters as _, Callback, ExampleSets, Run, SaveStrategy, StopReason, Strategy, Trainer,
};

use super::Recipe;
use super::destination::Destination;
use crate::data::RunData;
use crate::error::{Error, Result};
use crate::examples::training_examples;
use crate::judge::{Samples, answer_measures};
use crate::recorder::Recorder;
use crate::registry::Registry;

/// What a run is called that has no name.
const UNNAMED: &str = "recipe";

/// Where a recipe is trained, and where the results go.
#[derive(Debug, Clone)]
pub struct RecipeArgs {
    /// The folder that gets the model, or the adapter: one called `default` itself, any other in a
    /// folder of its name below. Default `out`.
    pub out: PathBuf,
    /// Replaces what another recipe, or something else than a recipe, has put there. Default false.
    pub overwrite: bool,
    /// The registry that records the run. Default none.
    pub registry: Option<Registry>,
    /// What the run is called in the registry where the recipe has no name. Default `recipe`.
    pub name: Option<String>,
    /// The device. Default the CPU.
    pub device: Device,
    /// Called with the rows before anything is trained, to show [`RunData::summary`]. Default none.
    pub on_data: Option<fn(&RunData)>,
}

impl Default for RecipeArgs {
    fn default() -> Self {
        Self {
            out: PathBuf::from("out"),
            overwrite: false,
            registry: None,
            name: None,
            device: Device::Cpu,
            on_data: None,
        }
    }
}

/// A recipe that was trained.
#[derive(Debug, Clone)]
pub struct TrainedRecipe {
    /// The run, stopped or whole.
    pub run: Run,
    /// The model with what was trained on it.
    pub model: Model,
    /// Where the adapter or the model was written. What a run was stopped at does not replace a whole
    /// result: where `out` holds one, that is a folder beside it, `out-stopped`.
    pub folder: PathBuf,
    /// The run's id in the registry, and its adapter's.
    pub recorded: Option<(String, Option<String>)>,
}

impl Recipe {
    /// Loads the data and the model, and trains what the recipe says. If the recipe saves checkpoints
    /// and its `output_dir` has those of a run of this recipe that did not come to its end, that run goes
    /// on, bit for bit as if it had not been interrupted.
    ///
    /// ```no_run
    /// use tunebook_runs::{Recipe, RecipeArgs};
    /// let trained = Recipe::read("recipe.yaml")?.train(&RecipeArgs::default())?;
    /// println!("{}\n{}", trained.run, trained.folder.display());
    /// # Ok::<(), tunebook_runs::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of reading, cleaning, splitting, loading and training; an `output_dir` with the checkpoints
    /// of another recipe, or of this one when it is at its end. Before anything is trained: an `out` that
    /// cannot be written to, that gets what another training makes at this moment, or that holds what
    /// another recipe has trained (see [`RecipeArgs::overwrite`]). A run that is stopped before its
    /// first step; nothing is written then.
    pub fn train(&self, args: &RecipeArgs) -> Result<TrainedRecipe> {
        self.train_watched(args, Unwatched)
    }

    /// [`Recipe::train`] with a callback that sees the run.
    ///
    /// # Errors
    /// As [`Recipe::train`]; what the callback returns.
    pub fn train_watched(
        &self,
        args: &RecipeArgs,
        callback: impl Callback + 'static,
    ) -> Result<TrainedRecipe> {
        let destination = Destination::take(self, &args.out, args.overwrite)?;
        let before = self.unfinished()?;
        let data = self.data.load()?;
        if let Some(show) = args.on_data {
            show(&data);
        }
        let model = self.model.load(&args.device)?;
        destination.check_base(&model)?;
        self.strategy.add_to(&model)?;
        let name = self.name.clone().or_else(|| args.name.clone());
        let name = name.unwrap_or_else(|| UNNAMED.to_owned());
        let mut trainer = Trainer::new(&model, &self.training).with_callback(callback);
        trainer.set_dataset_fingerprint(Some(data.train().fingerprint()));
        let recorder = self.recorder(args, &name, before.as_ref(), &data)?;
        if let Some(recorder) = &recorder {
            trainer = trainer.with_callback(recorder.clone());
        }
        let run = match &before {
            Some(before) => trainer.resume(before, sets(&data))?,
            None => trainer.train(sets(&data))?,
        };
        if run.stopped == Some(StopReason::Interrupted) {
            // The wish to stop is met. What is trained is saved; a second wish ends that, too.
            interrupt::reset();
            if run.steps.is_empty() {
                return Err(Error::File {
                    path: args.out.clone(),
                    problem: "stays as it was: the run was stopped before its first step"
                        .to_owned(),
                });
            }
        }
        let out = destination.of(&run, &args.out);
        let folder = match &self.strategy.config {
            Strategy::Adapter(_) => model.save_adapter(&self.strategy.adapter_name, &out)?,
            Strategy::Full(_) => model.save_pretrained(&out).map_err(tunebook_tune::Error::from)?,
        };
        destination.mark(&folder, &run)?;
        let recorded = recorder.map(|recorder| (recorder.id(), recorder.adapter()));
        Ok(TrainedRecipe { run, model, folder, recorded })
    }

    /// The run of this recipe's `output_dir` that goes on; `None`: a new one begins.
    ///
    /// # Errors
    /// The run there has come to its end.
    fn unfinished(&self) -> Result<Option<Run>> {
        let (SaveStrategy::Epoch | SaveStrategy::Steps(_), Some(dir)) =
            (self.training.save_strategy, &self.training.output_dir)
        else {
            return Ok(None);
        };
        let Some(run) = Run::last_checkpoint(dir)? else { return Ok(None) };
        let at_its_end = run.steps.len() >= run.plan.total_steps
            || run.stopped == Some(StopReason::EarlyStopping);
        if at_its_end {
            return Err(Error::File {
                path: dir.clone(),
                problem: format!(
                    "holds the checkpoints of a run that came to its end after step {}: give another \
                     `training.output_dir`, or move the folder away",
                    run.steps.len()
                ),
            });
        }
        Ok(Some(run))
    }

    /// What records the run: in a new folder, or in that of the run that goes on.
    fn recorder(
        &self,
        args: &RecipeArgs,
        name: &str,
        before: Option<&Run>,
        data: &RunData,
    ) -> Result<Option<Recorder>> {
        let Some(registry) = &args.registry else { return Ok(None) };
        let going_on = match before {
            Some(_) => registry.unfinished_of(self)?,
            None => None,
        };
        let recorder = match going_on {
            Some(id) => registry.record_on(&id)?,
            None => registry.record(name),
        };
        Ok(Some(recorder.with_data(data).with_recipe(self)))
    }
}

/// A callback that looks at nothing.
struct Unwatched;

impl Callback for Unwatched {}

fn sets(data: &RunData) -> ExampleSets {
    let train = data.train().clone();
    let Some(validation) = data.validation().filter(|rows| !rows.is_empty()).cloned() else {
        return ExampleSets::new(training_examples(&train), Vec::new());
    };
    ExampleSets::new(training_examples(&train), training_examples(&validation)).judged_by(Box::new(
        move |args| answer_measures(args, &train, &validation, Samples::default()),
    ))
}
