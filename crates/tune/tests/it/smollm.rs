//! Against the golden run of `tests/golden/lora_loss`: twenty steps on the course's base model, GGUF weights, f32.

use std::collections::BTreeMap;

use serde::Deserialize;
use tunebook_models::Projection;
use tunebook_tune::peft::{AdapterFiles, LoraMatrices, Matrix};
use tunebook_tune::{Adapters, Lora, Stepper, Trainer, TrainingArgs};

use crate::common::*;

#[derive(Deserialize)]
struct Golden {
    r: usize,
    lora_alpha: f64,
    batch_size: usize,
    warmup_steps: usize,
    learning_rate: f64,
    examples: Vec<(String, String)>,
    rows: Vec<Row>,
    steps: Vec<GoldenStep>,
    first_gradient_norms: BTreeMap<String, f64>,
}

/// The generator's `initial`.
fn initial(rows: usize, columns: usize, bound: f64, phase: f64) -> Matrix {
    let values = (0..rows * columns).map(|i| (bound * (1.3 * i as f64 + phase).sin()) as f32).collect();
    Matrix { rows, columns, values }
}

#[test]
fn twenty_losses_are_pefts() {
    let golden: Golden = read_json("lora_loss/run.json");
    let model = smollm();
    let config = Lora { r: golden.r, lora_alpha: golden.lora_alpha, ..Default::default() };
    let slots = model.slots();
    let paths: Vec<_> = slots.iter().map(|slot| slot.path()).collect();
    let layers = config.resolve(&paths).unwrap().into_iter().map(|index| {
        let base = slots[index].base();
        let layer: f64 = paths[index].split('.').find_map(|part| part.parse().ok()).unwrap();
        let matrices = LoraMatrices {
            lora_a: initial(golden.r, base.in_features(), 0.04, layer),
            lora_b: initial(base.out_features(), golden.r, 0.01, layer + 0.5),
        };
        (paths[index].to_owned(), matrices)
    });
    let files =
        AdapterFiles { config: config.clone(), base_model_name_or_path: None, layers: layers.collect() };
    let dir = tempfile::tempdir().unwrap();
    files.write(dir.path()).unwrap();
    model.load_adapter("default", dir.path().to_str().unwrap()).unwrap();

    let args = TrainingArgs {
        batch_size: golden.batch_size,
        learning_rate: golden.learning_rate,
        warmup_steps: Some(golden.warmup_steps),
        ..Default::default()
    };
    let set = Trainer::new(&model, &args).tokenize(&examples(&golden.examples)).unwrap();
    for (found, expected) in set.examples.iter().zip(&golden.rows) {
        assert_eq!((&found.ids, &found.labels), (&expected.ids, &expected.labels), "row {}", found.row);
    }

    let mut stepper = Stepper::new(&model, &args, golden.steps.len()).unwrap();
    let mut worst = 0f64;
    for (step, expected) in golden.steps.iter().enumerate() {
        let rows: Vec<_> =
            (0..args.batch_size).map(|i| (args.batch_size * step + i) % golden.rows.len()).collect();
        let batches = [batch(&golden.rows, &rows)];
        if step == 0 {
            let (_, gradients) = stepper.gradients(&batches).unwrap();
            for (parameter, gradient) in stepper.parameters().iter().zip(gradients.iter()) {
                let norm = values(gradient.unwrap())
                    .iter()
                    .map(|v| f64::from(*v) * f64::from(*v))
                    .sum::<f64>()
                    .sqrt();
                let expected = golden.first_gradient_norms[&parameter.name];
                assert!(
                    (norm / expected - 1.0).abs() < 5e-3,
                    "gradient of {}: {norm} != {expected}",
                    parameter.name
                );
            }
        }
        let found = stepper.step(&batches).unwrap();
        let error = (found.loss / expected.loss - 1.0).abs();
        worst = worst.max(error);
        assert!(error < 1e-3, "step {step}: loss {} != {} ({error:.1e})", found.loss, expected.loss);
        assert!(
            (found.grad_norm / expected.grad_norm - 1.0).abs() < 5e-3,
            "step {step}: norm {}",
            found.grad_norm
        );
    }
    eprintln!("largest relative difference of a loss: {worst:.1e}");
}
