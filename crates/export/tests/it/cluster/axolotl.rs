//! Axolotl's file holds to Axolotl's own schema (`tests/golden/axolotl`).

use std::collections::BTreeMap;

use serde_json::Value;
use tunebook_export::cluster::{Accelerate, ExportOptions};
use tunebook_models::Quantization;
use tunebook_runs::{ModelDtype, StrategyRecipe};
use tunebook_tune::{Full, Lora, LoraInit, LrScheduler, Optim};

use super::{axolotl, export, golden, recipe, text};

fn schema() -> Value {
    serde_json::from_slice(&std::fs::read(golden("axolotl/schema.json")).unwrap()).unwrap()
}

/// The problems of a file: values that the schema refuses, keys that it does not have.
fn problems(yaml: &str, schema: &Value) -> Vec<String> {
    let value: Value = serde_saphyr::from_str(yaml).unwrap();
    let validator = jsonschema::validator_for(schema).unwrap();
    let mut problems: Vec<String> = validator
        .iter_errors(&value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    // Pydantic drops keys that it does not know.
    for key in value.as_object().unwrap().keys() {
        if schema["properties"].get(key).is_none() {
            problems.push(format!("{key}: no option"));
        }
    }
    problems
}

#[test]
fn every_form_of_the_file_is_valid() {
    let schema = schema();
    let folder = tempfile::tempdir().unwrap();
    let base = recipe(folder.path());
    let mut recipes = vec![base.clone()];
    let mut add = |change: fn(&mut tunebook_runs::Recipe)| {
        let mut recipe = base.clone();
        change(&mut recipe);
        recipes.push(recipe);
    };
    add(|recipe| recipe.strategy = StrategyRecipe::new(Full::default()));
    add(|recipe| recipe.model.quantization = Some(Quantization::Nf4));
    add(|recipe| {
        recipe.model.dtype = ModelDtype::Bfloat16;
        recipe.training.lr_scheduler = LrScheduler::CosineWithRestarts { num_cycles: 2 };
        recipe.training.optim = Optim::AdamW8bit;
        recipe.training.neftune_noise_alpha = Some(5.0);
        recipe.training.loraplus_lr_ratio = Some(16.0);
        recipe.training.early_stopping_patience = Some(3);
        recipe.training.save_total_limit = Some(2);
        recipe.training.gradient_checkpointing = true;
        recipe.training.max_steps = Some(5);
    });
    add(|recipe| {
        recipe.data.validation = None;
        recipe.training.lr_scheduler = LrScheduler::WarmupStableDecay { num_decay_steps: 2 };
        recipe.strategy = StrategyRecipe::new(Lora {
            r: 3,
            target_modules: r"model\.layers\.\d\.mlp\.(up|down)_proj".into(),
            use_dora: true,
            use_rslora: true,
            layers_to_transform: Some(vec![1]),
            layers_pattern: vec!["layers".into()],
            modules_to_save: vec!["norm".into()],
            rank_pattern: BTreeMap::from([("up_proj".to_owned(), 2)]),
            alpha_pattern: BTreeMap::from([("up_proj".to_owned(), 4.0)]),
            lora_init: LoraInit::Gaussian,
            ..Default::default()
        });
    });
    let mut keys = std::collections::BTreeSet::new();
    for recipe in &recipes {
        for accelerate in [None, Some(Accelerate::Fsdp2), Some(Accelerate::Zero3)] {
            let quantized = recipe.model.quantization.is_some();
            let eight_bit = recipe.training.optim == Optim::AdamW8bit;
            if accelerate.is_some() && (quantized || eight_bit) {
                continue; // refused
            }
            let yaml =
                text(&export(recipe, &ExportOptions { accelerate, ..axolotl() }), "train.yaml");
            assert_eq!(problems(&yaml, &schema), Vec::<String>::new(), "{yaml}");
            let value: Value = serde_saphyr::from_str(&yaml).unwrap();
            keys.extend(value.as_object().unwrap().keys().cloned());
        }
    }
    assert!(keys.len() > 50, "{} keys", keys.len());
}

#[test]
fn the_schema_refuses_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let yaml = text(&export(&recipe(folder.path()), &axolotl()), "train.yaml");
    let schema = schema();
    for (from, to) in [
        ("lora_r: 4\n", "lora_r: four\n"),
        ("warmup_steps: 2\n", "warmup_steps: often\n"),
        ("learning_rate:", "learning_rat:"),
        ("sample_packing: false", "sample_packing: 7"),
        ("base_model:", "model_base:"),
    ] {
        assert!(yaml.contains(from), "{from} is not in\n{yaml}");
        assert_ne!(problems(&yaml.replace(from, to), &schema), Vec::<String>::new(), "{to}");
    }
}
