//! Full fine-tuning, against the golden run of `tests/golden/full_tiny`, and on the public path.

use std::collections::BTreeMap;

use serde::Deserialize;
use tunebook_models::{Device, Model};
use tunebook_tune::{
    Adapters, Example, Full, FullTuning, Lora, Optim, Run, SaveStrategy, Stepper, Trainer,
    TrainingArgs,
};

use crate::common::*;

#[derive(Deserialize)]
struct Golden {
    batches: Vec<Vec<usize>>,
    warmup_steps: usize,
    learning_rate: f64,
    weight_decay: f64,
    steps: Vec<GoldenStep>,
    first_gradient_norms: BTreeMap<String, f64>,
    first_gradients: BTreeMap<String, Vec<f32>>,
    r#final: BTreeMap<String, Vec<f32>>,
}

#[derive(Deserialize)]
struct Rows {
    rows: Vec<Row>,
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

fn pairs() -> Vec<Example> {
    (0..12).map(|i| Example::new(format!("{i}"), format!("{} {}", i * 7 % 11, i * 3))).collect()
}

#[test]
fn gradients_losses_and_final_weights_are_transformers() {
    let golden: Golden = read_json("full_tiny/run.json");
    let Rows { rows } = read_json("lora_tiny/run.json");
    for gradient_checkpointing in [false, true] {
        let model = tiny();
        let info = model.unfreeze(&Full::default()).unwrap();
        assert_eq!(info.trainable_parameters, model.parameter_count());
        let args = TrainingArgs {
            learning_rate: golden.learning_rate,
            warmup_steps: Some(golden.warmup_steps),
            weight_decay: golden.weight_decay,
            gradient_checkpointing,
            ..Default::default()
        };
        let mut stepper = Stepper::new(&model, &args, golden.steps.len()).unwrap();
        for (number, (indices, expected)) in golden.batches.iter().zip(&golden.steps).enumerate() {
            let batches = [batch(&rows, indices)];
            if number == 0 {
                let (_, gradients) = stepper.gradients(&batches).unwrap();
                assert_eq!(stepper.parameters().len(), golden.first_gradient_norms.len());
                for (parameter, gradient) in stepper.parameters().iter().zip(gradients.iter()) {
                    let found = values(gradient.unwrap());
                    let expected = golden.first_gradient_norms[&parameter.name];
                    assert!(
                        (norm(&found) / expected - 1.0).abs() < 1e-4,
                        "gradient of {}: {} != {expected}",
                        parameter.name,
                        norm(&found)
                    );
                    if let Some(expected) = golden.first_gradients.get(&parameter.name) {
                        let error = relative_error(&found, expected);
                        assert!(error < 1e-4, "gradient of {} differs by {error}", parameter.name);
                    }
                }
            }
            let found = stepper.step(&batches).unwrap();
            let near =
                |found: f64, expected: f64| (found - expected).abs() <= 2e-4 * expected.abs();
            assert!(
                near(found.loss, expected.loss),
                "step {number}: loss {} != {}",
                found.loss,
                expected.loss
            );
            assert!(
                near(found.grad_norm, expected.grad_norm),
                "step {number}: norm {}",
                found.grad_norm
            );
        }
        let weights: BTreeMap<_, _> =
            model.weights().iter().map(|weight| (weight.name().to_owned(), weight.get())).collect();
        for (name, expected) in &golden.r#final {
            let error = relative_error(&values(&weights[name]), expected);
            assert!(error < 1e-3, "{name} differs by {error}");
        }
    }
}

#[test]
fn chosen_modules_alone_change_and_the_saved_model_is_the_trained_one() {
    let model = tiny();
    let before: BTreeMap<_, _> =
        model.weights().iter().map(|w| (w.name().to_owned(), values(&w.get()))).collect();
    let targets =
        Full { target_modules: Some(["down_proj", "model.norm"].into()), ..Default::default() };
    model.unfreeze(&targets).unwrap();
    let args = TrainingArgs { learning_rate: 1e-2, epochs: 2, ..Default::default() };
    let run = Trainer::new(&model, &args).train(&pairs()).unwrap();
    assert!(run.steps.last().unwrap().loss < run.steps[0].loss);
    for weight in model.weights() {
        let trained = weight.name().contains("down_proj") || weight.name() == "model.norm.weight";
        assert_eq!(values(&weight.get()) != before[weight.name()], trained, "{}", weight.name());
        assert!(!weight.get().track_op(), "no graph outside training");
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = model.save_pretrained(dir.path()).unwrap();
    let again = Model::load(&folder, &Device::Cpu).unwrap();
    assert_eq!(logits(&again, &[1, 20, 30, 40]), logits(&model, &[1, 20, 30, 40]));
    assert_eq!(again.config(), model.config());
    assert_eq!(
        again.apply_chat_template(&[], true).unwrap(),
        model.apply_chat_template(&[], true).unwrap()
    );
    let text = "Hello, 12  or so?";
    assert_eq!(again.tokenizer().encode(text).unwrap(), model.tokenizer().encode(text).unwrap());
    let error = model
        .unfreeze(&Full { target_modules: Some(["query"].into()), ..Default::default() })
        .unwrap_err()
        .to_string();
    assert!(error.contains("`query`") && error.contains("embed_tokens"), "{error}");
}

#[test]
fn an_adapter_added_later_is_what_is_trained() {
    let model = tiny();
    model.unfreeze(&Full::default()).unwrap();
    model.add_adapter("a", Lora::default()).unwrap();
    let before = values(&model.head_weight());
    let run = Trainer::new(&model, &TrainingArgs { max_steps: Some(2), ..Default::default() });
    assert_eq!(run.train(&pairs()).unwrap().adapter, "a");
    assert_eq!(values(&model.head_weight()), before);
    model.unfreeze(&Full::default()).unwrap();
    assert_eq!(model.active_adapter(), None);
}

#[test]
fn a_full_run_resumes_exactly_from_memory_and_from_disk() {
    for optim in [Optim::AdamW, Optim::AdamW8bit] {
        let dir = tempfile::tempdir().unwrap();
        let args = |steps| TrainingArgs {
            epochs: 3,
            learning_rate: 1e-3,
            lr_scheduler: tunebook_tune::LrScheduler::Constant,
            max_steps: Some(steps),
            optim,
            save_strategy: SaveStrategy::Steps(3),
            output_dir: Some(dir.path().join("run")),
            ..Default::default()
        };
        let start = || {
            let model = tiny();
            model.unfreeze(&Full::default()).unwrap();
            model
        };
        let model = start();
        let whole = Trainer::new(&model, &args(6)).train(&pairs()).unwrap();
        let expected = logits(&model, &[1, 20, 30, 40]);
        let losses = |run: &Run| run.steps.iter().map(|record| record.loss).collect::<Vec<_>>();

        let checkpoint = dir.path().join("run/checkpoint-3");
        let half = Run::load(&checkpoint).unwrap();
        let model = start();
        let resumed = Trainer::new(&model, &args(6)).resume(&half, &pairs()).unwrap();
        assert_eq!(losses(&resumed), losses(&whole));
        assert_eq!(logits(&model, &[1, 20, 30, 40]), expected);

        // In memory the run has no copy of the weights: it goes on while they are its own, and says
        // so when they are not.
        let again = Trainer::new(&model, &args(6)).resume(&resumed, &pairs()).unwrap();
        assert_eq!(losses(&again), losses(&whole));
        let elsewhere =
            TrainingArgs { output_dir: Some(dir.path().join("another run")), ..args(6) };
        Trainer::new(&model, &elsewhere).train(&pairs()).unwrap();
        let error =
            Trainer::new(&model, &args(6)).resume(&resumed, &pairs()).unwrap_err().to_string();
        assert!(error.contains("trained on since"), "{error}");
    }
}
