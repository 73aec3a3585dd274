//! The files of an export.

use serde_json::{Value, json};
use tunebook_export::cluster::{Accelerate, Engine, ExportOptions};
use tunebook_tune::{ExampleSets, Trainer};

use super::{axolotl, export, recipe, recipe_of, rows, text, trl};

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn token_rows_are_those_of_the_steps_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(folder.path());
    let export = export(&recipe, &trl());
    let tokens = lines(&text(&export, "data/tokens/train.jsonl"));
    let order: Value = serde_json::from_str(&text(&export, "data/order.json")).unwrap();
    let order: Vec<i64> = serde_json::from_value(order["train"].clone()).unwrap();
    // Three epochs of 13 rows in steps of 4: the last step of each is filled up.
    assert_eq!((tokens.len(), order.len()), (48, 48));
    let fills: Vec<usize> = (0..48).filter(|at| order[*at] < 0).collect();
    assert_eq!(fills, [13, 14, 15, 29, 30, 31, 45, 46, 47]);
    for at in fills {
        assert_eq!(tokens[at], json!({ "input_ids": [0, 0], "labels": [-100, -100] }));
    }

    // What a run here takes, step by step.
    let model = tunebook_models::Model::load(super::tiny(), &tunebook_models::Device::Cpu).unwrap();
    use tunebook_tune::Adapters as _;
    let config = super::recipe_of("").strategy.config;
    let tunebook_tune::Strategy::Adapter(config) = config else { panic!() };
    model.add_adapter("default", &*config).unwrap();
    let data = recipe.data.load().unwrap();
    let train = tunebook_runs::training_examples(data.train());
    let run = Trainer::new(&model, &recipe.training)
        .train(ExampleSets::new(train.clone(), train))
        .unwrap();
    let taken: Vec<i64> =
        run.steps.iter().flat_map(|step| step.rows.iter().map(|row| *row as i64)).collect();
    assert_eq!(taken, order.into_iter().filter(|row| *row >= 0).collect::<Vec<_>>());
    let of = |step: usize| -> usize {
        tokens[4 * step..4 * step + 4]
            .iter()
            .filter(|row| row["labels"] != json!([-100, -100]))
            .map(|row| row["input_ids"].as_array().unwrap().len())
            .sum()
    };
    for (at, step) in run.steps.iter().enumerate() {
        assert_eq!(of(at), step.tokens, "step {at}");
    }
}

#[test]
fn masks_leave_out_what_bears_no_loss() {
    let folder = tempfile::tempdir().unwrap();
    let export = export(&recipe(folder.path()), &axolotl());
    let readable = lines(&text(&export, "data/validation.jsonl"));
    let tokens = lines(&text(&export, "data/tokens/validation.jsonl"));
    assert_eq!(
        readable[12]["messages"][1],
        json!({ "role": "assistant", "content": "b", "train": false })
    );
    let ids = tokens[12]["input_ids"].as_array().unwrap();
    let labels = tokens[12]["labels"].as_array().unwrap();
    assert_eq!(tokens[12]["attention_mask"], json!(vec![1; ids.len()]));
    // Of the second answer its byte, the end of the turn and the template's line break after it.
    let trained: Vec<&Value> = labels.iter().filter(|label| **label != -100).collect();
    assert_eq!(trained, [70, 2, 201]);
    assert_eq!(labels[labels.len() - 3..], ids[ids.len() - 3..]);
}

#[test]
fn axolotl_drops_rows_without_labels_and_gets_none() {
    let folder = tempfile::tempdir().unwrap();
    let uneven = export(&recipe(folder.path()), &axolotl());
    assert_eq!(lines(&text(&uneven, "data/tokens/train.jsonl")).len(), 13);
    assert!(text(&uneven, "train.yaml").contains("\nnum_epochs: 3\n"));
    assert!(uneven.notes.iter().any(|note| note.contains("no whole number of steps")));
    let mut even = recipe(folder.path());
    even.training.gradient_accumulation_steps = 1;
    even.training.batch_size = 13;
    let even = export(&even, &axolotl());
    assert_eq!(lines(&text(&even, "data/tokens/train.jsonl")).len(), 39);
    assert!(text(&even, "train.yaml").contains("\nnum_epochs: 1\n"));
    assert_eq!(even.notes.len(), 1, "{:?}", even.notes);
    assert!(even.notes[0].starts_with("the loss of an evaluation"), "{:?}", even.notes);
}

#[test]
fn the_rows_of_a_step_are_divided_among_the_cards() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path());
    (recipe.training.batch_size, recipe.training.gradient_accumulation_steps) = (6, 4);
    for (gpus, micro, accumulation) in [(1, 6, 4), (2, 6, 2), (4, 6, 1), (8, 3, 1), (12, 2, 1)] {
        let export = export(&recipe, &ExportOptions { gpus, ..trl() });
        let yaml = text(&export, "train.yaml");
        assert!(
            yaml.contains(&format!("per_device_train_batch_size: {micro}\n")),
            "{gpus}: {yaml}"
        );
        assert!(yaml.contains(&format!("gradient_accumulation_steps: {accumulation}\n")), "{yaml}");
    }
}

#[test]
fn profiles_and_tasks_stand_around_the_engines_file() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe_of(&rows(folder.path()));
    let of = |engine, profile| {
        let options = ExportOptions {
            accelerate: Some(profile),
            gpus: 4,
            base: Some("owner/tiny".to_owned()),
            sky: true,
            ..ExportOptions::new(engine)
        };
        export(&recipe, &options)
    };
    let fsdp = of(Engine::Trl, Accelerate::Fsdp2);
    let profile = text(&fsdp, "accelerate.yaml");
    for line in [
        "distributed_type: FSDP\n",
        "  fsdp_version: 2\n",
        "num_processes: 4\n",
        "mixed_precision: \"no\"\n",
    ] {
        assert!(profile.contains(line), "{profile}");
    }
    assert_eq!(fsdp.command, "trl sft --config train.yaml --accelerate_config accelerate.yaml");
    let sky = text(&fsdp, "sky.yaml");
    assert!(
        sky.contains("accelerators: \"H100:4\"\n") && sky.contains("name: tune-squares\n"),
        "{sky}"
    );
    assert!(sky.contains("python verify.py\\ntrl sft"), "{sky}");
    assert!(text(&fsdp, "train.yaml").contains("model_name_or_path: owner/tiny\n"));
    // No checkpoint of shards can be written, so that the adapter begins anew.
    assert!(!fsdp.files.contains_key("initial/adapter_model.safetensors"));
    assert!(fsdp.notes.iter().any(|note| note.contains("own random weights")), "{:?}", fsdp.notes);

    let zero = of(Engine::Trl, Accelerate::Zero3);
    assert!(text(&zero, "accelerate.yaml").contains("  zero_stage: 3\n"));
    assert!(text(&zero, "requirements.txt").contains("deepspeed=="));
    let zero = of(Engine::Axolotl, Accelerate::Zero3);
    assert!(text(&zero, "train.yaml").contains("deepspeed: deepspeed_zero3.json\n"));
    let config: Value = serde_json::from_str(&text(&zero, "deepspeed_zero3.json")).unwrap();
    assert_eq!(config["zero_optimization"]["stage"], 3);
    let fsdp = of(Engine::Axolotl, Accelerate::Fsdp2);
    assert!(text(&fsdp, "train.yaml").contains("fsdp_version: 2\n"));
}

#[test]
fn rows_that_cannot_be_read_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mixed.jsonl");
    let mut lines: Vec<String> = (0..12)
        .map(|i| json!({ "prompt": format!("what is {i}?"), "completion": "it is" }).to_string())
        .collect();
    lines.push(json!({ "messages": [] }).to_string());
    std::fs::write(&path, lines.join("\n")).unwrap();
    let mut recipe = recipe_of(path.to_str().unwrap());
    let hosted = |recipe| tunebook_export::cluster::hosted(recipe, None).unwrap().notes;
    for notes in [export(&recipe, &trl()).notes, hosted(&recipe)] {
        let note = notes.iter().find(|note| note.contains("cannot be read")).unwrap();
        assert!(note.contains("mixed.jsonl") && note.ends_with(": 1"), "{note}");
    }
    // Of the two sides of a split once.
    recipe.data.split = Some(tunebook_data::Split { fraction: 0.3, ..Default::default() });
    let notes = export(&recipe, &trl()).notes;
    assert_eq!(notes.iter().filter(|note| note.contains("cannot be read")).count(), 1, "{notes:?}");
}

#[test]
fn the_same_recipe_gives_the_same_files() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(folder.path());
    for options in [trl(), axolotl()] {
        assert_eq!(export(&recipe, &options).files, export(&recipe, &options).files);
    }
}
