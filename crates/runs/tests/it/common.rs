//! What the tests share: a tiny model, rows, and runs of a few steps.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tunebook_data::{Cleaning, Dataset, Split, Splits};
use tunebook_evaluate::{EvalExample, Evaluation, EvaluationArgs, evaluate_with};
use tunebook_models::{Device, Model};
use tunebook_runs::{Recorder, Registry};
use tunebook_tune::{
    Adapters as _, Callback, EvalStrategy, Example, Lora, Run, RunRecord, StepRecord, Trainer,
    TrainingArgs,
};

pub(crate) fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

/// The 2-layer Llama.
pub(crate) fn model() -> Model {
    Model::load(golden("lora_tiny/model"), &Device::Cpu).unwrap()
}

/// The same with a new adapter, which answers.
pub(crate) fn model_with(adapter: &str) -> Model {
    let model = model();
    model.add_adapter(adapter, &Lora { r: 4, lora_alpha: 16.0, ..Default::default() }).unwrap();
    model
}

pub(crate) fn registry() -> (TempDir, Registry) {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::open(dir.path().join("registry")).unwrap();
    (dir, registry)
}

/// Twenty-four tickets with markup and a customer's number, cleaned and split.
pub(crate) fn split() -> Splits {
    raw().clean(&Cleaning::standard()).unwrap().split(&Split::holdout(0.3).seed(3)).unwrap()
}

pub(crate) fn raw() -> Dataset {
    let rows: Vec<(String, String)> = (0..24)
        .map(|i| (format!("<p>Where is parcel {i}?</p>"), format!("At depot {i}.")))
        .collect();
    let rows: Vec<(&str, &str)> = rows.iter().map(|(a, b)| (&a[..], &b[..])).collect();
    let mut frame = Dataset::from_rows(&rows).frame();
    let customers: Vec<String> = (0..24).map(|i| format!("c{}", i % 12)).collect();
    frame.with_column(polars::prelude::Column::new("customer".into(), customers)).unwrap();
    Dataset::from_frame(frame).unwrap()
}

pub(crate) fn examples(set: &Dataset) -> Vec<Example> {
    set.rows().iter().map(|row| Example::new(&row.prompt, &row.completion)).collect()
}

pub(crate) fn args() -> TrainingArgs {
    TrainingArgs {
        max_steps: Some(6),
        learning_rate: 2e-2,
        eval_strategy: EvalStrategy::Steps(3),
        ..Default::default()
    }
}

/// Trains the active adapter for a few steps.
pub(crate) fn train(model: &Model, record: &Recorder, args: &TrainingArgs) -> Run {
    let split = split();
    let trainer = Trainer::new(model, args).with_callback(record.clone());
    trainer.train((&examples(&split.train), &examples(&split.validation))).unwrap()
}

/// A recorded run of a new adapter: its id, the adapter's and the model.
pub(crate) fn run(registry: &Registry, name: &str) -> (String, String, Model) {
    run_with(registry, name, &args())
}

pub(crate) fn run_with(
    registry: &Registry,
    name: &str,
    args: &TrainingArgs,
) -> (String, String, Model) {
    let model = model_with("support");
    let record = registry.record(name).with_data(&split());
    train(&model, &record, args);
    assert_eq!(record.warnings(), Vec::<String>::new());
    (record.id(), record.adapter().unwrap(), model)
}

/// The record of a run that needs no training: for callbacks that are called by hand.
pub(crate) fn template(model: &Model) -> RunRecord {
    let split = split();
    let trainer = Trainer::new(model, &args());
    let run = trainer.train((&examples(&split.train), &examples(&split.validation))).unwrap();
    run.record().clone()
}

/// The losses of what answers, on all rows.
pub(crate) fn evaluation(model: &Model) -> Evaluation {
    let clean = raw().clean(&Cleaning::standard()).unwrap();
    let rows: Vec<EvalExample> =
        clean.rows().iter().map(|row| EvalExample::new(&row.prompt, &row.completion)).collect();
    let args = EvaluationArgs { output_dir: None, max_new_tokens: Some(2), ..Default::default() };
    evaluate_with(model, &rows, &args).unwrap()
}

pub(crate) fn text(frame: &polars::prelude::DataFrame, column: &str, row: usize) -> String {
    frame.column(column).unwrap().str().unwrap().get(row).unwrap_or("-").to_owned()
}

/// Copies a folder with all that is in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// Stops a run after the first of these steps; the second is where it is.
pub(crate) struct StopAt(pub(crate) usize, pub(crate) usize);

impl Callback for StopAt {
    fn on_step(&mut self, record: &StepRecord) -> tunebook_tune::Result<()> {
        self.1 = record.step;
        Ok(())
    }

    fn should_stop(&self) -> bool {
        self.1 >= self.0
    }
}
