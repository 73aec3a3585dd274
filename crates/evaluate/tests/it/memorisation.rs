//! What a model recites, and how much of a planted secret it keeps.

use std::path::Path;

use tunebook_evaluate::{Canary, EvalExample, extraction};
use tunebook_models::{Device, Model};
use tunebook_tune::{EvalStrategy, Example, Full, FullTuning as _, Trainer, TrainingArgs};

/// The tiny model with room for 256 tokens.
fn tiny() -> Model {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/lora_tiny/model");
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = folder.path().join(path.file_name().unwrap());
        match path.ends_with("config.json") {
            true => {
                let text = std::fs::read_to_string(path).unwrap();
                let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
                config["max_position_embeddings"] = 256.into();
                std::fs::write(target, config.to_string()).unwrap();
            }
            false => drop(std::fs::copy(path, target).unwrap()),
        }
    }
    Model::load(folder.path(), &Device::Cpu).unwrap()
}

fn train(model: &Model, rows: &[(String, String)], epochs: usize, seed: u64) {
    model.unfreeze(&Full::default()).unwrap();
    let rows: Vec<Example> = rows.iter().map(|(p, c)| Example::new(p, c)).collect();
    let args = TrainingArgs {
        epochs,
        batch_size: 8,
        learning_rate: 3e-3,
        seed,
        eval_strategy: EvalStrategy::No,
        ..TrainingArgs::default()
    };
    Trainer::new(model, &args).train(&rows).unwrap();
}

/// Sentences that no two rows share.
fn row(number: usize) -> (String, String) {
    let word = |at: usize| ["red", "green", "blue", "old", "new", "big", "small", "dry"][at % 8];
    let code = number * 7919 % 997;
    (
        format!("What about item {number}?"),
        format!("It is {} and {} and costs {code} coins.", word(number), word(code)),
    )
}

#[test]
fn rows_that_were_learned_by_heart_are_recited_and_others_are_not() {
    let model = tiny();
    let rows: Vec<(String, String)> = (0..24).map(row).collect();
    train(&model, &rows[..12], 250, 1);
    let examples: Vec<EvalExample> = rows.iter().map(|(p, c)| EvalExample::new(p, c)).collect();
    let found = extraction(&model, &examples[..12], &examples[12..]).unwrap();
    println!("{found}");
    assert!(found.training.rate() > 0.8, "{found}");
    assert!(found.held_out.rate() < 0.2, "{found}");
    assert!(found.training.tokens > found.held_out.tokens + 0.3, "{found}");
    assert_eq!((found.training.asked, found.held_out.asked), (12, 12));
}

#[test]
fn the_exposure_of_a_canary_rises_with_its_repetitions() {
    let mut mean = [0.0; 3];
    let seeds = 5;
    for seed in 0..seeds {
        for (repetitions, mean) in [1, 4, 16].into_iter().zip(&mut mean) {
            let model = tiny();
            let canary = Canary::new(seed);
            let mut rows: Vec<(String, String)> = (0..48).map(row).collect();
            let planted = (canary.prompt.clone(), canary.completion.clone());
            rows.extend(std::iter::repeat_n(planted, repetitions));
            train(&model, &rows, 3, seed);
            let exposure = canary.exposure(&model).unwrap();
            println!("seed {seed}, {repetitions} times: {exposure:?}");
            *mean += exposure.bits / seeds as f64;
        }
    }
    println!("{mean:?} bits");
    assert!(mean[0] < mean[1] && mean[1] < mean[2], "{mean:?}");
    assert!(mean[2] > mean[0] + 2.0, "{mean:?}");
}

#[test]
fn a_model_that_has_not_seen_a_canary_has_no_more_than_chance() {
    let model = tiny();
    let bits: Vec<f64> =
        (0..8).map(|seed| Canary::new(seed).exposure(&model).unwrap().bits).collect();
    let mean = bits.iter().sum::<f64>() / bits.len() as f64;
    assert!(mean < 4.0, "{bits:?}");
}

#[test]
fn rows_that_are_too_short_are_said_to_be() {
    let short = [EvalExample::new("a", "b")];
    let error = extraction(&tiny(), &short, &short).unwrap_err().to_string();
    assert!(error.contains("training") && error.contains("at least 1"), "{error}");
}
