//! A golden run of fifty steps, held against ours.

use std::collections::BTreeMap;

use serde::Deserialize;
use tunebook_models::Model;
use tunebook_tune::peft::AdapterFiles;
use tunebook_tune::{
    Adapters, EvalStrategy, Example, LrScheduler, Run, SaveStrategy, Stepper, StopReason, Trainer,
    TrainingArgs,
};

use crate::common::*;

#[derive(Deserialize)]
struct Golden {
    losses: Vec<f64>,
    batches: Vec<Vec<usize>>,
    learning_rate: f64,
}

#[derive(Deserialize)]
struct Rows {
    rows: Vec<Row>,
}

/// A folder of a case of `tests/golden/strategies`.
pub(crate) fn folder(case: &str, which: &str) -> String {
    golden("strategies").join(case).join(which).to_str().unwrap().to_owned()
}

/// Trains what is active and holds every loss against the golden ones, after `prepare` has seen the
/// parameters. Gives the trained parameters.
pub(crate) fn train(
    model: &Model,
    case: &str,
    gradient_checkpointing: bool,
    prepare: impl FnOnce(&Stepper),
) -> BTreeMap<String, Vec<f32>> {
    train_with(model, case, |args| TrainingArgs { gradient_checkpointing, ..args }, prepare)
}

/// The same, with the golden run's arguments changed.
pub(crate) fn train_with(
    model: &Model,
    case: &str,
    change: impl FnOnce(TrainingArgs) -> TrainingArgs,
    prepare: impl FnOnce(&Stepper),
) -> BTreeMap<String, Vec<f32>> {
    let golden: Golden = read_json(&format!("strategies/{case}/run.json"));
    let rows: Rows = read_json("lora_tiny/run.json");
    let args = change(TrainingArgs {
        learning_rate: golden.learning_rate,
        lr_scheduler: LrScheduler::Constant,
        warmup_steps: Some(0),
        weight_decay: 0.01,
        ..Default::default()
    });
    let mut stepper = Stepper::new(model, &args, golden.losses.len()).unwrap();
    prepare(&stepper);
    assert_eq!(golden.losses.len(), 50);
    let mut worst = 0f64;
    for (step, (indices, expected)) in golden.batches.iter().zip(&golden.losses).enumerate() {
        let found = stepper.step(&[batch(&rows.rows, indices)]).unwrap().loss;
        let error = (found - expected).abs() / expected;
        assert!(error < 1e-2, "{case}, step {step}: loss {found}, expected {expected}");
        worst = worst.max(error);
    }
    eprintln!("{case}: largest relative difference of {} losses {worst:.1e}", golden.losses.len());
    stepper.parameters().iter().map(|p| (p.name.clone(), values(p.var.as_tensor()))).collect()
}

/// The norm of the difference over the norm of what is expected.
pub(crate) fn norm_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| {
        values.map(|value| value * value).sum::<f64>().sqrt()
    };
    norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(a - b)))
        / norm(&mut expected.iter().map(|value| f64::from(*value)))
}

/// The adapter `default` as its file holds it.
pub(crate) fn saved(model: &Model) -> AdapterFiles {
    let dir = tempfile::tempdir().unwrap();
    let folder = model.save_adapter("default", dir.path()).unwrap();
    AdapterFiles::read(&folder).unwrap()
}

/// Holds the final tensors and the configuration against the golden ones.
pub(crate) fn check_final(model: &Model, case: &str) {
    let expected = AdapterFiles::read(std::path::Path::new(&folder(case, "final"))).unwrap();
    let found = saved(model);
    assert_eq!(found.config, expected.config);
    check_tensors(case, &found, &expected);
}

/// Holds the tensors of one adapter against those of another.
pub(crate) fn check_tensors(case: &str, found: &AdapterFiles, expected: &AdapterFiles) {
    assert_eq!(
        found.tensors.keys().collect::<Vec<_>>(),
        expected.tensors.keys().collect::<Vec<_>>()
    );
    let mut worst = 0f64;
    for (key, expected) in &expected.tensors {
        let found = &found.tensors[key];
        assert_eq!(found.shape, expected.shape, "{case}: {key}");
        let error = norm_error(&found.values, &expected.values);
        assert!(error < 1e-3, "{case}: {key} differs by {error}");
        worst = worst.max(error);
    }
    eprintln!("{case}: largest relative norm of a final tensor's difference {worst:.1e}");
}

/// A run of the trainer that is resumed at its first checkpoint ends as the one that was not
/// stopped, bit for bit; and one whose validation loss falls no more stops early.
pub(crate) fn resumes_exactly(add: impl Fn(&Model), packing: bool) {
    let pairs: Vec<Example> =
        (0..10).map(|i| Example::new(format!("{i}"), format!("{}", i * 7 % 11))).collect();
    let args = |dir: &std::path::Path| TrainingArgs {
        epochs: 2,
        batch_size: 2,
        learning_rate: 1e-2 / 3.0,
        packing,
        max_length: packing.then_some(56),
        checkpointed_blocks: Some(1),
        eval_strategy: EvalStrategy::Steps(2),
        save_strategy: SaveStrategy::Steps(2),
        output_dir: Some(dir.to_path_buf()),
        ..Default::default()
    };
    let course = |run: &Run, model: &Model| {
        let steps: Vec<[f64; 2]> =
            run.steps.iter().map(|record| [record.loss, record.grad_norm]).collect();
        (
            steps,
            run.evals.iter().map(|record| record.loss).collect::<Vec<_>>(),
            logits(model, &[1, 20, 30, 40]),
        )
    };
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let model = tiny();
    let base = logits(&model, &[1, 20, 30, 40]);
    add(&model);
    let whole = Trainer::new(&model, &args(first.path())).train((&pairs, &pairs[..4])).unwrap();
    let expected = course(&whole, &model);
    assert!(whole.steps.len() > 2 && expected.2 != base);
    let begun = Run::load(first.path().join("checkpoint-2")).unwrap();
    assert_eq!(begun.steps.len(), 2);
    let model = tiny();
    add(&model);
    let resumed =
        Trainer::new(&model, &args(second.path())).resume(&begun, (&pairs, &pairs[..4])).unwrap();
    assert!(course(&resumed, &model) == expected);

    let model = tiny();
    add(&model);
    // Nothing is learned at this rate, so no evaluation is better than the first.
    let args = TrainingArgs {
        learning_rate: 1e-30,
        early_stopping_patience: Some(1),
        load_best_model_at_end: true,
        save_strategy: SaveStrategy::No,
        output_dir: None,
        ..args(first.path())
    };
    let before = logits(&model, &[1, 20, 30, 40]);
    let run = Trainer::new(&model, &args).train((&pairs, &pairs[..4])).unwrap();
    assert_eq!(run.stopped, Some(StopReason::EarlyStopping));
    assert_eq!(logits(&model, &[1, 20, 30, 40]), before);
}
