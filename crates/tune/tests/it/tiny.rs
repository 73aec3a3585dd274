//! Against the golden run of `tests/golden/lora_tiny`: batches, logits, gradients, twenty losses,
//! final tensors, and the parts alone.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use tunebook_models::{Device, Tensor};
use tunebook_tune::peft::AdapterFiles;
use tunebook_tune::{
    AdamW, AdamWConfig, Adapters, Gradients, LrScheduler, Parameter, Parameters, Part, Schedule,
    Stepper, Trainer, TrainingArgs,
};

use crate::common::*;

#[derive(Deserialize)]
struct Golden {
    examples: Vec<(String, String)>,
    rows: Vec<Row>,
    micro_batches: Vec<Vec<Vec<usize>>>,
    warmup_steps: usize,
    learning_rate: f64,
    steps: Vec<GoldenStep>,
    first_gradients: BTreeMap<String, Vec<f32>>,
    initial_logits: Vec<f32>,
    schedules: BTreeMap<String, Vec<f64>>,
    adamw: GoldenAdamW,
}

#[derive(Deserialize)]
struct GoldenAdamW {
    initial: Vec<f32>,
    gradients: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

fn golden_run() -> Golden {
    read_json("lora_tiny/run.json")
}

#[test]
fn examples_become_the_same_ids_and_labels() {
    let golden = golden_run();
    let set = Trainer::new(&tiny(), &TrainingArgs::default())
        .tokenize(&examples(&golden.examples))
        .unwrap();
    for (found, expected) in set.examples.iter().zip(&golden.rows) {
        assert_eq!((&found.ids, &found.labels), (&expected.ids, &expected.labels));
    }
    assert_eq!(set.examples.len(), golden.rows.len());
}

#[test]
fn logits_gradients_losses_and_final_tensors_are_pefts() {
    for gradient_checkpointing in [false, true] {
        let golden = golden_run();
        let model = tiny();
        model.load_adapter(golden_dir("initial").as_str(), "default").unwrap();

        let first = batch(&golden.rows, &golden.micro_batches[0][0][..1]);
        let found =
            logits(&model, &first.ids.flatten_all().unwrap().to_vec1::<u32>().unwrap()[..8]);
        let error = relative_error(&found, &golden.initial_logits);
        assert!(error < 1e-5, "logits differ by {error}");

        let args = TrainingArgs {
            learning_rate: golden.learning_rate,
            warmup_steps: Some(golden.warmup_steps),
            gradient_accumulation_steps: 2,
            gradient_checkpointing,
            ..Default::default()
        };
        let mut stepper = Stepper::new(&model, &args, golden.steps.len()).unwrap();
        for (number, (groups, expected)) in
            golden.micro_batches.iter().zip(&golden.steps).enumerate()
        {
            let batches: Vec<_> = groups.iter().map(|rows| batch(&golden.rows, rows)).collect();
            if number == 0 {
                let (_, gradients) = stepper.gradients(&batches).unwrap();
                for (parameter, gradient) in stepper.parameters().iter().zip(gradients.iter()) {
                    let error = relative_error(
                        &values(gradient.unwrap()),
                        &golden.first_gradients[&parameter.name],
                    );
                    assert!(error < 1e-4, "gradient of {} differs by {error}", parameter.name);
                }
                assert_eq!(stepper.parameters().len(), golden.first_gradients.len());
            }
            let found = stepper.step(&batches).unwrap();
            let near =
                |found: f64, expected: f64| (found - expected).abs() <= 1e-4 * expected.abs();
            assert!(
                near(found.loss, expected.loss),
                "step {number}: loss {} != {}",
                found.loss,
                expected.loss
            );
            assert!(
                near(found.grad_norm, expected.grad_norm),
                "step {number}: norm {} != {}",
                found.grad_norm,
                expected.grad_norm
            );
            assert!(
                near(found.learning_rate, expected.learning_rate),
                "step {number}: rate {}",
                found.learning_rate
            );
        }

        let expected = AdapterFiles::read(Path::new(&golden_dir("final"))).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let folder = model.save_adapter("default", dir.path()).unwrap();
        let found = AdapterFiles::read(&folder).unwrap();
        assert_eq!(found.config, expected.config);
        assert_eq!(found.tensors.len(), expected.tensors.len());
        for (key, expected) in &expected.tensors {
            let error = relative_error(&found.tensors[key].values, &expected.values);
            assert!(error < 1e-3, "{key} differs by {error} after {} steps", golden.steps.len());
        }
    }
}

fn golden_dir(name: &str) -> String {
    golden("lora_tiny").join(name).to_str().unwrap().to_owned()
}

#[test]
fn schedules_are_those_of_transformers() {
    for (name, expected) in golden_run().schedules {
        let scheduler = match name.as_str() {
            "cosine" => LrScheduler::Cosine,
            "linear" => LrScheduler::Linear,
            "constant" => LrScheduler::Constant,
            "cosine_with_restarts" => LrScheduler::CosineWithRestarts { num_cycles: 2 },
            "warmup_stable_decay" => LrScheduler::WarmupStableDecay { num_decay_steps: 5 },
            other => unreachable!("{other}"),
        };
        let schedule = Schedule::new(scheduler, 0.5, 3, expected.len());
        for (step, expected) in expected.iter().enumerate() {
            let found = schedule.learning_rate(step);
            assert!((found - expected).abs() < 1e-12, "{name}, step {step}: {found} != {expected}");
        }
    }
}

#[test]
fn adamw_is_torchs() {
    let golden = golden_run().adamw;
    let var = candle_core::Var::new(golden.initial.as_slice(), &Device::Cpu).unwrap();
    let parameters = Parameters::new(vec![Parameter {
        name: "w".to_owned(),
        var: var.clone(),
        part: Part::Block(0),
    }]);
    let config =
        AdamWConfig { beta1: 0.8, beta2: 0.95, eps: 1e-6, weight_decay: 0.3, ..Default::default() };
    let mut adamw = AdamW::new(config);
    for (gradient, expected) in golden.gradients.iter().zip(&golden.values) {
        let mut gradients = Gradients::new(&parameters);
        gradients.add(0, Tensor::new(gradient.as_slice(), &Device::Cpu).unwrap()).unwrap();
        adamw.step(&parameters, &gradients, 0.05, 1.0).unwrap();
        let error = relative_error(&var.to_vec1().unwrap(), expected);
        assert!(error < 1e-6, "{error}");
    }
}
