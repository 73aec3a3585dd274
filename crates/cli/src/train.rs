//! `tunebook train`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use tunebook_models::{BestDevice as _, Device, Model};
use tunebook_progress::interrupt;
use tunebook_runs::{Recipe, RecipeArgs, Registry};
use tunebook_tune::{Callback, EvalRecord, RunRecord, StepRecord};

/// A line of progress at most so often.
const SHOWN_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The recipe: a YAML file, as a run of a registry writes it.
    recipe: PathBuf,
    /// The folder that gets the model, or the adapter: one called `default` (one without a name) in
    /// the folder itself, any other in a folder of its name below.
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Replaces what another recipe, or a notebook, has put there.
    #[arg(long)]
    overwrite: bool,
    /// The registry that records the run; it is made where there is none.
    #[arg(long, value_name = "DIR")]
    registry: Option<PathBuf>,
    /// Values in the place of the recipe's: `training.learning_rate=1e-4`.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let recipe = Recipe::read_with(&arguments.recipe, &arguments.overrides)?;
    let stem = arguments.recipe.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let args = RecipeArgs {
        out: arguments.out.clone(),
        overwrite: arguments.overwrite,
        registry: arguments.registry.as_ref().map(Registry::open).transpose()?,
        name: stem,
        device: Device::best()?,
        on_data: Some(|data| eprintln!("{}", data.summary())),
    };
    // The first Ctrl-C, and what ends a process on a machine that is taken back, ends the run after a
    // whole step, and what is trained by then is saved.
    interrupt::catch_ctrl_c();
    interrupt::catch_termination();
    let trained = recipe.train_watched(&args, Progress::new())?;
    println!("{}", trained.run);
    println!("written to {}", trained.folder.display());
    if let Some((run, adapter)) = &trained.recorded {
        let registry = arguments.registry.as_deref().unwrap_or(Path::new("registry"));
        match adapter {
            Some(adapter) => println!("run {run}, adapter {adapter} in {}", registry.display()),
            None => println!("run {run} in {}", registry.display()),
        }
    }
    Ok(())
}

/// Lines on standard error while a run trains.
struct Progress {
    started: Instant,
    shown: Option<Instant>,
    total_steps: usize,
}

impl Progress {
    fn new() -> Self {
        Self { started: Instant::now(), shown: None, total_steps: 0 }
    }
}

impl Callback for Progress {
    fn on_begin(&mut self, run: &RunRecord, model: &Model) -> tunebook_tune::Result<()> {
        let plan = &run.plan;
        self.total_steps = plan.total_steps;
        eprintln!("{model:?}");
        eprintln!(
            "{}: {} rows to train on, {} to validate, {} steps, {} numbers trained",
            run.adapter,
            plan.examples,
            plan.validation_examples,
            plan.total_steps,
            plan.trainable_parameters
        );
        if plan.done_steps > 0 {
            eprintln!("goes on after step {}", plan.done_steps);
        }
        if let Some(preflight) = &plan.preflight {
            eprintln!("{preflight}");
        }
        Ok(())
    }

    fn on_step(&mut self, record: &StepRecord) -> tunebook_tune::Result<()> {
        let last = record.step >= self.total_steps;
        if last || self.shown.is_none_or(|shown| shown.elapsed() >= SHOWN_EVERY) {
            self.shown = Some(Instant::now());
            eprintln!(
                "step {}/{}, loss {:.4}, learning rate {:.2e}, {:.0} s",
                record.step,
                self.total_steps,
                record.loss,
                record.learning_rate,
                self.started.elapsed().as_secs_f64()
            );
        }
        Ok(())
    }

    fn on_eval(&mut self, record: &EvalRecord) -> tunebook_tune::Result<()> {
        let metrics = record.metrics.iter().map(|(name, value)| format!(", {name} {value:.4}"));
        eprintln!(
            "step {}: validation loss {:.4}{}",
            record.step,
            record.loss,
            metrics.collect::<String>()
        );
        Ok(())
    }

    fn on_save(&mut self, step: usize, folder: &Path) -> tunebook_tune::Result<()> {
        eprintln!("step {step}: saved to {}", folder.display());
        Ok(())
    }
}
