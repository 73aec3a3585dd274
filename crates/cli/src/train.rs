//! `tunebook train`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use tunebook_evaluate::Diagnosis;
use tunebook_models::{BestDevice as _, Device, Model};
use tunebook_progress::interrupt;
use tunebook_runs::{RecipeArgs, Registry};
use tunebook_tune::{Callback, EvalRecord, RunRecord, SaveStrategy, StepRecord, StopReason};

use crate::recipe::{self, Overrides};

/// The exit code of a run that was stopped on request: as of a program that Ctrl-C ends.
const STOPPED: u8 = 130;
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
    #[command(flatten)]
    overrides: Overrides,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let recipe = recipe::read(&arguments.recipe, &arguments.overrides)?;
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
    let run: &RunRecord = &trained.run;
    println!("{run}");
    println!("{}", Diagnosis::of(&run.steps, &run.evals));
    println!("written to {}", trained.folder.display());
    if let Some((run, adapter)) = &trained.recorded {
        let registry = arguments.registry.as_deref().unwrap_or(Path::new("registry"));
        match adapter {
            Some(adapter) => println!("run {run}, adapter {adapter} in {}", registry.display()),
            None => println!("run {run} in {}", registry.display()),
        }
    }
    if trained.run.stopped != Some(StopReason::Interrupted) {
        return Ok(ExitCode::SUCCESS);
    }
    match recipe.training.save_strategy {
        SaveStrategy::No => eprintln!(
            "stopped; the recipe wants no checkpoints (`training.save_strategy`), so the same command \
             begins anew"
        ),
        _ => eprintln!("stopped; the same command goes on after step {}", trained.run.steps.len()),
    }
    Ok(ExitCode::from(STOPPED))
}

/// Lines on standard error while a run trains.
struct Progress {
    started: Instant,
    shown: Option<Instant>,
    /// Steps of the whole run, and those of them that were taken before.
    total_steps: usize,
    done_steps: usize,
}

impl Progress {
    fn new() -> Self {
        Self { started: Instant::now(), shown: None, total_steps: 0, done_steps: 0 }
    }
}

impl Callback for Progress {
    fn on_begin(&mut self, run: &RunRecord, model: &Model) -> tunebook_tune::Result<()> {
        let plan = &run.plan;
        (self.total_steps, self.done_steps) = (plan.total_steps, plan.done_steps);
        self.started = Instant::now();
        eprintln!("{model:?}");
        eprintln!(
            "{}: {} rows to train on, {} to validate, {} steps, {} trainable parameters",
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
            let secs = self.started.elapsed().as_secs_f64();
            let taken = record.step.saturating_sub(self.done_steps).max(1);
            let left = self.total_steps.saturating_sub(record.step);
            eprintln!(
                "step {}/{}, loss {:.4}, learning rate {:.2e}, {secs:.0} s, {:.0} s left",
                record.step,
                self.total_steps,
                record.loss,
                record.learning_rate,
                secs / taken as f64 * left as f64
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
