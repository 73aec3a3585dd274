//! The files of an export.

use std::path::Path;

use serde_json::{Value, json};
use tunebook_export::cluster::{Accelerate, Engine, ExportOptions};
use tunebook_models::Quantization;
use tunebook_runs::{ModelDtype, Recipe, StrategyRecipe};
use tunebook_tune::{EvalStrategy, ExampleSets, Full, Lora, SaveStrategy, Trainer};

use super::{axolotl, export, recipe, recipe_of, rows, text, tiny, trl};

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
    assert!(!noted(&even.notes, "no whole number of steps"), "{:?}", even.notes);
    assert!(even.notes[0].starts_with("the loss of an evaluation"), "{:?}", even.notes);
}

#[test]
fn the_rows_of_a_step_are_divided_among_the_cards() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("more.jsonl");
    let row = |i| json!({ "prompt": format!("what is {i}?"), "completion": "it is" }).to_string();
    std::fs::write(&path, (0..24).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let mut recipe = recipe_of(path.to_str().unwrap());
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

/// The settings of the engine's file, and the notes.
fn settings(recipe: &Recipe, options: &ExportOptions) -> (Value, Vec<String>) {
    let export = export(recipe, options);
    let settings = serde_saphyr::from_str(&text(&export, "train.yaml")).unwrap();
    (settings, export.notes)
}

fn noted(notes: &[String], what: &str) -> bool {
    notes.iter().any(|note| note.contains(what))
}

#[test]
fn what_is_trained_is_float32_there_too_or_it_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let of = |dtype, fp16: bool, full: bool| {
        let mut recipe = recipe(folder.path());
        (recipe.model.dtype, recipe.training.fp16) = (dtype, fp16);
        if full {
            recipe.strategy = StrategyRecipe::new(Full::default());
        }
        recipe
    };
    for (dtype, fp16, full, weights, mixed, left_out) in [
        (ModelDtype::Float32, false, false, "float32", "no", false),
        (ModelDtype::Float32, true, false, "float32", "no", true),
        (ModelDtype::Bfloat16, false, false, "bfloat16", "bf16", false),
        (ModelDtype::Bfloat16, true, false, "bfloat16", "bf16", true),
        (ModelDtype::Float16, true, false, "float16", "fp16", false),
        (ModelDtype::Float32, false, true, "float32", "no", false),
        (ModelDtype::Bfloat16, false, true, "float32", "bf16", false),
        (ModelDtype::Float16, true, true, "float32", "fp16", false),
    ] {
        let recipe = of(dtype, fp16, full);
        let (yaml, notes) = settings(&recipe, &trl());
        let found = (yaml["dtype"].as_str(), yaml["bf16"] == true, yaml["fp16"] == true);
        assert_eq!(found, (Some(weights), mixed == "bf16", mixed == "fp16"), "{dtype:?} {full}");
        assert_eq!(noted(&notes, "training.fp16 is left out"), left_out, "{notes:?}");
        let sharded = ExportOptions { accelerate: Some(Accelerate::Zero3), ..trl() };
        let sharded = export(&recipe, &sharded);
        let profile: Value = serde_saphyr::from_str(&text(&sharded, "accelerate.yaml")).unwrap();
        assert_eq!(profile["mixed_precision"], mixed, "{dtype:?}");
        let rounded = !full && mixed != "no";
        assert_eq!(noted(&sharded.notes, "with zero3 TRL trains the adapter in"), rounded);
    }
    let mut quantized = of(ModelDtype::Float32, false, false);
    quantized.model.quantization = Some(Quantization::Nf4);
    assert!(noted(&settings(&quantized, &trl()).1, "over 4 bits in bfloat16"));
    let mut saved = of(ModelDtype::Bfloat16, false, false);
    saved.strategy =
        StrategyRecipe::new(Lora { modules_to_save: vec!["norm".into()], ..Lora::default() });
    assert!(noted(&settings(&saved, &trl()).1, "modules_to_save are trained in bfloat16"));
}

#[test]
fn an_evaluation_before_the_first_step_needs_rows() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path());
    recipe.training.eval_on_start = true;
    assert_eq!(settings(&recipe, &trl()).0["eval_on_start"], true);
    recipe.training.eval_strategy = EvalStrategy::No;
    assert_eq!(settings(&recipe, &trl()).0["eval_on_start"], false);
    recipe.training.eval_strategy = EvalStrategy::Epoch;
    recipe.data.validation = None;
    assert_eq!(settings(&recipe, &trl()).0["eval_on_start"], false);
}

#[test]
fn the_best_is_loaded_from_a_checkpoint_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path());
    recipe.training.eval_strategy = EvalStrategy::Steps(2);
    recipe.training.save_strategy = SaveStrategy::Steps(4);
    recipe.training.output_dir = Some("checkpoints".into());
    assert_eq!(settings(&recipe, &trl()).0["save_steps"], 4);
    recipe.training.load_best_model_at_end = true;
    let (yaml, notes) = settings(&recipe, &trl());
    assert_eq!((&yaml["save_steps"], &yaml["load_best_model_at_end"]), (&json!(2), &json!(true)));
    assert!(noted(&notes, "a checkpoint is written at each evaluation"), "{notes:?}");

    // Axolotl loads the best where it stops early.
    recipe.training.load_best_model_at_end = false;
    assert_eq!(settings(&recipe, &axolotl()).0["load_best_model_at_end"], false);
    recipe.training.early_stopping_patience = Some(2);
    let (yaml, notes) = settings(&recipe, &axolotl());
    assert_eq!((&yaml["save_steps"], &yaml["load_best_model_at_end"]), (&json!(2), &json!(true)));
    assert!(noted(&notes, "with early stopping Axolotl ends with the weights of the best"));
}

#[test]
fn blocks_are_run_again_by_one_of_two() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe_of(&rows(folder.path()));
    for again in [false, true] {
        recipe.training.gradient_checkpointing = again;
        let fsdp = ExportOptions { accelerate: Some(Accelerate::Fsdp2), ..trl() };
        let (yaml, notes) = settings(&recipe, &fsdp);
        assert_eq!(yaml["gradient_checkpointing"], false);
        assert_eq!(noted(&notes, "by FSDP's own checkpointing"), again);
        let profile = text(&export(&recipe, &fsdp), "accelerate.yaml");
        assert!(
            profile.contains(&format!("fsdp_activation_checkpointing: {again}\n")),
            "{profile}"
        );
        assert_eq!(settings(&recipe, &trl()).0["gradient_checkpointing"], again);
        let fsdp = ExportOptions { accelerate: Some(Accelerate::Fsdp2), ..axolotl() };
        let (yaml, _) = settings(&recipe, &fsdp);
        assert_eq!(yaml["gradient_checkpointing"], false);
        assert_eq!(yaml["fsdp_config"]["activation_checkpointing"], again);
    }
}

#[test]
fn a_step_of_more_rows_than_there_are_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path());
    (recipe.training.batch_size, recipe.training.gradient_accumulation_steps) = (100_000_000, 1);
    let error = tunebook_export::cluster::export(&recipe, &trl()).unwrap_err().to_string();
    assert!(
        error.contains("`training.batch_size: 100000000`: a step would have 100000000 rows"),
        "{error}"
    );
    recipe.training.batch_size = 13;
    assert_eq!(lines(&text(&export(&recipe, &trl()), "data/tokens/train.jsonl")).len(), 39);
}

#[test]
fn each_export_has_a_place_of_its_own_for_results() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path());
    let out = |recipe: &Recipe, options: &ExportOptions| {
        let (yaml, _) = settings(recipe, options);
        yaml["output_dir"].as_str().unwrap().to_owned()
    };
    let first = out(&recipe, &trl());
    assert!(first.starts_with("out/") && first.len() == 16, "{first}");
    assert_eq!(out(&recipe, &trl()), first);
    let yaml = settings(&recipe, &axolotl()).0;
    let (theirs, prepared) = (&yaml["output_dir"], &yaml["dataset_prepared_path"]);
    let number = |path: &Value| path.as_str().unwrap().split('/').next_back().unwrap().to_owned();
    assert_eq!((number(theirs), prepared.as_str().unwrap().len()), (number(prepared), 21));
    assert_ne!(*theirs, json!(first));
    recipe.training.seed = 7;
    assert_ne!(out(&recipe, &trl()), first);
}

#[test]
fn a_task_has_a_name_that_skypilot_takes() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe_of(&rows(folder.path()));
    let options = ExportOptions { sky: true, base: Some("owner/tiny".to_owned()), ..trl() };
    for (name, expected) in [("日本", "tune"), ("-a b-", "tune-a-b"), ("squares", "tune-squares")]
    {
        recipe.name = Some(name.to_owned());
        let sky = text(&export(&recipe, &options), "sky.yaml");
        assert!(sky.contains(&format!("name: {expected}\n")), "{sky}");
    }
}

#[test]
fn a_base_is_a_model_of_the_recipe_s_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe_of(&rows(folder.path()));
    let of = |base: &Path| {
        let base = Some(base.to_str().unwrap().to_owned());
        tunebook_export::cluster::export(&recipe, &ExportOptions { base, ..trl() })
    };
    let adapter = folder.path().join("adapter");
    std::fs::create_dir(&adapter).unwrap();
    for (base, expected) in [
        (Path::new("./nowhere"), "there is no such folder"),
        (adapter.as_path(), "`config.json` is missing"),
    ] {
        let error = of(base).unwrap_err().to_string();
        assert!(error.contains("`--base: ") && error.contains(expected), "{error}");
    }
    std::fs::write(adapter.join("adapter_config.json"), "{}").unwrap();
    assert!(of(&adapter).unwrap_err().to_string().contains("holds an adapter"));
    let other = folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let config = std::fs::read_to_string(Path::new(&tiny()).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["num_hidden_layers"] = 7.into();
    std::fs::write(other.join("config.json"), config.to_string()).unwrap();
    let error = of(&other).unwrap_err().to_string();
    assert!(
        error.contains("another model than the recipe's: num_hidden_layers is 7, and "),
        "{error}"
    );
    let notes = of(Path::new(&tiny())).unwrap().notes;
    assert!(notes.iter().any(|note| note.contains("is taken for the same model")), "{notes:?}");
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
