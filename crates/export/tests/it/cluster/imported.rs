//! A run of another engine comes back into the registry.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tunebook_export::cluster::{Imported, import_run};
use tunebook_export::folder;
use tunebook_models::{Device, Model};
use tunebook_runs::{ModelDtype, Registry, StrategyRecipe};
use tunebook_tune::{Adapters as _, Full, Lora, LrScheduler, Schedule, StopReason};

use super::{export, recipe, results, tiny, trl, written};

/// What an engine leaves in its folder, made here: an adapter of this configuration, and losses.
fn engine_ran(folder: &Path, steps: usize, config: &Lora) {
    let model = Model::load(tiny(), &Device::Cpu).unwrap();
    model.add_adapter("default", config).unwrap();
    let out = results(folder);
    model.save_adapter("default", &out).unwrap();
    // An engine knows nothing of our fingerprints.
    fs::remove_file(out.join("tunebook.json")).unwrap();
    engine_logged(&out, steps);
}

/// The states that an engine leaves in its checkpoints.
fn engine_logged(out: &Path, steps: usize) {
    let schedule = Schedule::new(LrScheduler::Linear, 5e-3, 2, 12);
    let mut history: Vec<_> = (1..=steps)
        .map(|step| {
            json!({
                "epoch": step as f64 / 12.0, "grad_norm": (step > 1).then_some(1.0),
                "learning_rate": schedule.learning_rate(step - 1),
                "loss": 6.0 - 0.1 * step as f64, "step": step,
            })
        })
        .collect();
    history.insert(4, json!({ "epoch": 0.3, "eval_loss": 5.5, "eval_runtime": 0.2, "step": 4 }));
    let state = json!({ "global_step": steps, "max_steps": 12, "log_history": history });
    for (checkpoint, text) in [(4, "{}".to_owned()), (steps, state.to_string())] {
        let folder = out.join(format!("checkpoint-{checkpoint}"));
        fs::create_dir_all(&folder).unwrap();
        // As Python writes it.
        fs::write(folder.join("trainer_state.json"), text.replace(":null", ": NaN")).unwrap();
    }
}

fn lora() -> Lora {
    Lora {
        r: 4,
        lora_alpha: 8.0,
        target_modules: "all-linear".into(),
        init_lora_weights: false,
        init_seed: 7,
        ..Default::default()
    }
}

struct Fixture {
    _folder: tempfile::TempDir,
    out: PathBuf,
    registry: Registry,
}

fn fixture(steps: usize, config: &Lora) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let out = written(&recipe(folder.path()), &trl(), folder.path());
    engine_ran(&out, steps, config);
    let registry = Registry::open(folder.path().join("registry")).unwrap();
    Fixture { _folder: folder, out, registry }
}

#[test]
fn the_run_the_adapter_and_its_origin_are_in_the_registry() {
    let Fixture { _folder, out, registry } = fixture(12, &lora());
    let Imported { run, adapter, record, notes } = import_run(&out, &registry).unwrap();
    assert_eq!(notes, Vec::<String>::new());
    assert_eq!((record.steps.len(), record.evals.len()), (12, 1));
    assert_eq!((record.steps[2].loss, record.evals[0].loss), (5.7, 5.5));
    // The last step of the first epoch has one row.
    assert_eq!(record.steps[3].rows.len(), 1);
    assert_eq!(record.stopped, None);
    assert!(record.steps[0].grad_norm.is_nan() && record.steps[1].grad_norm == 1.0);
    let recipe = tunebook_runs::Recipe::read(out.join("recipe.yaml")).unwrap();
    assert_eq!(registry.recipe(&run).unwrap(), recipe);

    let adapter = adapter.unwrap();
    let why = registry.why(&adapter).unwrap().to_string();
    for expected in ["squares", "13 rows of", "rows.jsonl"] {
        assert!(why.contains(expected), "{expected} is not in\n{why}");
    }
    assert!(why.contains(&run[..8]), "{why}");
    let kept = registry.run(&run).unwrap();
    assert_eq!(kept.steps.len(), 12);
    assert_eq!(registry.verify().unwrap(), []);
    let runs = registry.runs().unwrap();
    assert_eq!(runs.height(), 1);

    // It is the adapter that the engine wrote.
    let model = Model::load(tiny(), &Device::Cpu).unwrap();
    model.add_adapter("engine", lora()).unwrap();
    let ids = tunebook_models::Tensor::new(&[[1u32, 20, 30, 40]], &Device::Cpu).unwrap();
    let logits = |model: &Model| -> Vec<f32> {
        model.forward(&ids).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let engine = logits(&model);
    model.load_adapter(registry.adapter_folder(&adapter).unwrap(), "default").unwrap();
    assert_eq!(logits(&model), engine);
}

#[test]
fn a_run_that_ended_early_is_said_to_have() {
    let Fixture { _folder, out, registry } = fixture(7, &lora());
    let imported = import_run(&out, &registry).unwrap();
    assert_eq!(imported.record.stopped, Some(StopReason::Interrupted));
    assert!(
        imported.notes[0].starts_with("the run ended after 7 of 12 steps"),
        "{:?}",
        imported.notes
    );
}

/// Brings a run back of which something was changed, and expects to be refused with these words.
fn refused(change: &dyn Fn(&Path), expected: &str) {
    let Fixture { _folder, out, registry } = fixture(12, &lora());
    change(&out);
    let error = match import_run(&out, &registry) {
        Err(error) => error.to_string(),
        Ok(imported) => panic!("taken, not refused with `{expected}`: {:?}", imported.notes),
    };
    assert!(error.contains(expected), "{expected} is not in: {error}");
    assert_eq!(registry.runs().unwrap().height(), 0);
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from} is not in {}:\n{text}", path.display());
    fs::write(path, text.replace(from, to)).unwrap();
}

fn change_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let text = fs::read_to_string(path).unwrap().replace(": NaN", ":null");
    let mut value = serde_json::from_str(&text).unwrap();
    change(&mut value);
    fs::write(path, value.to_string().replace(":null", ": NaN")).unwrap();
}

#[test]
fn what_is_not_the_exports_is_refused() {
    let append = |path: PathBuf| {
        let mut text = fs::read(&path).unwrap();
        text.push(b'\n');
        fs::write(path, text).unwrap();
    };
    refused(
        &|out| append(out.join("data/tokens/train.jsonl")),
        "it was changed since it was exported",
    );
    refused(&|out| append(out.join("recipe.yaml")), "it was changed since it was exported");
    refused(
        &|out| fs::remove_dir_all(out.join("out")).unwrap(),
        "bring the folder that the engine wrote",
    );
    refused(
        &|out| {
            fs::remove_dir_all(results(out).join("checkpoint-4")).unwrap();
            fs::remove_dir_all(results(out).join("checkpoint-12")).unwrap();
        },
        "there is no trainer_state.json",
    );
    refused(&|out| fs::remove_file(out.join("tunebook.json")).unwrap(), "name the folder that");
    // The rows have changed since.
    refused(
        &|out| {
            let rows = out.parent().unwrap().join("rows.jsonl");
            let text = fs::read_to_string(&rows).unwrap().replace("it is 4", "it is 5");
            fs::write(rows, text).unwrap();
        },
        "the training rows: not what the export had",
    );
    // The settings and the beginning of the run.
    let settings = |from: &'static str, to: &'static str| {
        move |out: &Path| replace(&out.join("train.yaml"), from, to)
    };
    refused(
        &settings("learning_rate: 0.005", "learning_rate: 9.0"),
        "`learning_rate` is 9.0, and was 0.005 in the export",
    );
    refused(&settings("seed: 42", "seed: 7"), "`seed` is 7, and was 42 in the export");
    refused(&settings("bf16: false", "tf32: true"), "`bf16` is not there, and was false");
    refused(
        &settings("resume_from_checkpoint: initial", "resume_from_checkpoint: elsewhere"),
        "`resume_from_checkpoint` is elsewhere",
    );
    refused(
        &|out| append(out.join("initial/adapter_model.safetensors")),
        "adapter_model.safetensors: it was changed since it was exported",
    );
    refused(
        &|out| {
            change_json(&out.join("initial/trainer_state.json"), |state| {
                state["global_step"] = json!(3);
            });
        },
        "not the state before the first step",
    );
    refused(
        &|out| fs::remove_file(out.join("initial/adapter_config.json")).unwrap(),
        "it is not there any more: bring it back",
    );
}

#[test]
fn another_adapter_is_refused() {
    let other = |config: Lora, expected: &str| {
        let Fixture { _folder, out, registry } = fixture(12, &config);
        let error = import_run(&out, &registry).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("another run's adapter"), "{error}");
        assert_eq!(registry.runs().unwrap().height(), 0);
    };
    other(Lora { r: 3, ..lora() }, "`r` is 3, and 4 in the recipe");
    other(Lora { lora_dropout: 0.5, ..lora() }, "`lora_dropout` is 0.5, and 0 in the recipe");
    other(
        Lora { target_modules: ["q_proj", "o_proj"].into(), ..lora() },
        "it does not sit on `model.layers.0.",
    );
    other(
        Lora { modules_to_save: vec!["norm".into()], ..lora() },
        " numbers, and the recipe's has ",
    );
    refused(
        &|out| {
            let base = format!("\"base_model_name_or_path\": \"{}\"", tiny());
            let other = "\"base_model_name_or_path\": \"evil/other\"";
            replace(&results(out).join("adapter_config.json"), &base, other);
        },
        "`base_model_name_or_path` is evil/other, and ",
    );
}

#[test]
fn a_log_that_is_not_this_runs_is_refused() {
    let state = |out: &Path| results(out).join("checkpoint-12/trainer_state.json");
    // A line of the log (step 4 is at 3, its evaluation at 4), a field and its value.
    let line = |at: usize, key: &'static str, value: Value, expected: &str| {
        let change = |out: &Path| {
            change_json(&state(out), |state| state["log_history"][at][key] = value.clone());
        };
        refused(&change, expected);
    };
    line(0, "step", json!(999_999_999_999_u64), "of step 999999999999, expected 1 to 12");
    line(0, "step", json!(-5), "of step -5, expected 1 to 12");
    line(0, "step", json!(1.5), "of step 1.5, expected 1 to 12");
    line(0, "step", json!(0), "of step 0, expected 1 to 12");
    line(2, "step", json!(2), "step 2 after step 2");
    line(4, "step", json!(13), "of step 13, expected 0 to 12");
    line(3, "learning_rate", json!(9.0), "the learning rate of step 4 is 9, and ");
    line(3, "loss", Value::Null, "the loss is NaN in step 4: the run diverged");
    line(3, "loss", json!("low"), "`loss` of step 4 is \"low\"");
    refused(
        &|out| {
            change_json(&state(out), |state| {
                state["log_history"][5]["loss"] = json!(0.0);
                state["log_history"][5]["grad_norm"] = Value::Null;
            });
        },
        "the loss is logged as 0 in step 5: the run diverged",
    );
    let whole = |key: &'static str, value: Value, expected: &str| {
        refused(&|out| change_json(&state(out), |state| state[key] = value.clone()), expected);
    };
    whole("global_step", json!(300), "it is of step 300 of 12, and the run has 12 steps");
    whole("max_steps", json!(300), "it is of step 12 of 300");
    whole("global_step", json!(0), "no step was taken");
    whole("global_step", json!(11), "it is of step 11, which its folder is not");
    // Checkpoints of other runs.
    refused(
        &|out| {
            let stale = results(out).join("checkpoint-999");
            fs::create_dir(&stale).unwrap();
            fs::copy(state(out), stale.join("trainer_state.json")).unwrap();
        },
        "checkpoint-999: it is of step 999, and the run has 12",
    );
    refused(
        &|out| {
            let early = results(out).join("trainer_state.json");
            fs::copy(state(out), &early).unwrap();
            change_json(&early, |state| state["global_step"] = json!(5));
        },
        "it is of step 5, and there is a checkpoint of step 12",
    );
}

#[test]
fn an_evaluation_that_overflowed_is_told() {
    let Fixture { _folder, out, registry } = fixture(12, &lora());
    let state = results(&out).join("checkpoint-12/trainer_state.json");
    change_json(&state, |state| state["log_history"][4]["eval_loss"] = Value::Null);
    let imported = import_run(&out, &registry).unwrap();
    assert_eq!(imported.notes, ["the loss of the evaluation after step 4 is NaN"]);
    assert!(registry.run(&imported.run).unwrap().evals[0].loss.is_nan());
}

#[test]
fn results_of_one_export_are_not_anothers() {
    let Fixture { _folder: folder, out, registry } = fixture(12, &lora());
    let write = |files: &_| folder::write_files(files, "recipe.yaml", &out);
    let mut other = recipe(folder.path());
    // The same export again changes nothing, and another one would leave results without their recipe.
    write(&export(&other, &trl()).files).unwrap();
    other.training.learning_rate = 5e-2;
    let other = export(&other, &trl()).files;
    let error = write(&other).unwrap_err().to_string();
    assert!(error.contains("`out` has what an engine made"), "{error}");
    let manifest = fs::read(out.join("tunebook.json")).unwrap();
    assert!(other["tunebook.json"] != manifest);

    let (mine, away) = (results(&out), folder.path().join("away"));
    fs::rename(out.join("out"), &away).unwrap();
    write(&other).unwrap();
    fs::rename(away, out.join("out")).unwrap();
    assert_ne!(results(&out), mine);
    let error = import_run(&out, &registry).unwrap_err().to_string();
    let name = mine.file_name().unwrap().to_str().unwrap();
    assert!(error.contains(&format!("`out` has {name}, of which nothing says")), "{error}");
    assert_eq!(registry.runs().unwrap().height(), 0);
}

#[test]
fn another_recipe_of_the_same_name_does_not_take_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let files = export(&recipe(folder.path()), &trl()).files;
    let out = folder.path().join("cluster");
    folder::write_files(&files, "/a/recipe.yaml", &out).unwrap();
    let error = folder::write_files(&files, "/b/recipe.yaml", &out).unwrap_err().to_string();
    assert!(error.contains("it is the export of /a/recipe.yaml"), "{error}");
    folder::write_files(&files, "/a/recipe.yaml", &out).unwrap();
}

#[test]
fn settings_that_do_not_matter_may_change_and_are_told() {
    let Fixture { _folder, out, registry } = fixture(12, &lora());
    let settings = out.join("train.yaml");
    replace(&settings, "report_to: none", "report_to: wandb");
    replace(&settings, "save_steps: 12", "save_steps: 4");
    let own = format!("out/{}/checkpoint-4", results(&out).file_name().unwrap().to_str().unwrap());
    replace(&settings, "checkpoint: initial", &format!("checkpoint: {own}"));
    fs::write(out.join("requirements.txt"), "trl\n").unwrap();
    let notes = import_run(&out, &registry).unwrap().notes;
    assert_eq!(
        notes,
        [
            "train.yaml: `report_to` is wandb, and was none in the export",
            &format!(
                "train.yaml: `resume_from_checkpoint` is {own}, and was initial in the export"
            ),
            "train.yaml: `save_steps` is 4, and was 12 in the export",
        ]
    );
}

#[test]
fn what_is_the_best_depends_on_when_it_is_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path());
    recipe.training.load_best_model_at_end = true;
    let out = written(&recipe, &trl(), folder.path());
    engine_ran(&out, 12, &lora());
    let state = results(&out).join("checkpoint-12/trainer_state.json");
    change_json(&state, |state| state["best_global_step"] = json!(4));
    let registry = Registry::open(folder.path().join("registry")).unwrap();
    let settings = out.join("train.yaml");
    replace(&settings, "eval_steps: 4", "eval_steps: 2");
    let error = import_run(&out, &registry).unwrap_err().to_string();
    assert!(error.contains("`eval_steps` is 2, and was 4 in the export"), "{error}");
    replace(&settings, "eval_steps: 2", "eval_steps: 4");
    assert_eq!(import_run(&out, &registry).unwrap().record.loaded_step, Some(4));
}

#[test]
fn a_killed_run_comes_back_from_its_last_checkpoint() {
    let Fixture { _folder, out, registry } = fixture(7, &lora());
    let run = results(&out);
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::rename(run.join(file), run.join("checkpoint-7").join(file)).unwrap();
    }
    // A checkpoint that was not written to its end.
    fs::create_dir(run.join("checkpoint-8")).unwrap();
    let imported = import_run(&out, &registry);
    let error = imported.unwrap_err().to_string();
    assert!(error.contains("there is a checkpoint of step 8"), "{error}");
    fs::remove_dir(run.join("checkpoint-8")).unwrap();
    let imported = import_run(&out, &registry).unwrap();
    assert!(imported.adapter.is_some());
    assert_eq!(imported.record.steps.len(), 7);
    let note = imported.notes.last().unwrap();
    assert!(note.contains("the last checkpoint's") && note.contains("checkpoint-7"), "{note}");

    fs::remove_file(run.join("checkpoint-7/adapter_model.safetensors")).unwrap();
    let error = import_run(&out, &registry).unwrap_err().to_string();
    assert!(error.contains("there is no adapter_model.safetensors"), "{error}");
}

#[test]
fn a_run_is_brought_back_once() {
    let Fixture { _folder, out, registry } = fixture(7, &lora());
    let first = import_run(&out, &registry).unwrap().run;
    let error = import_run(&out, &registry).unwrap_err().to_string();
    assert!(error.contains(&format!("as run {first}")), "{error}");
    assert_eq!(registry.runs().unwrap().height(), 1);
    // The same run, gone on: another one.
    fs::remove_dir_all(results(&out).join("checkpoint-7")).unwrap();
    engine_logged(&results(&out), 12);
    import_run(&out, &registry).unwrap();
    assert_eq!(registry.runs().unwrap().height(), 2);
}

#[test]
fn all_weights_in_bfloat16_are_exported_and_come_back_as_they_were_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path());
    recipe.strategy = StrategyRecipe::new(Full::default());
    recipe.model.dtype = ModelDtype::Bfloat16;
    let out = written(&recipe, &trl(), folder.path());
    fs::create_dir_all(results(&out)).unwrap();
    engine_logged(&results(&out), 12);
    let registry = Registry::open(folder.path().join("registry")).unwrap();
    let imported = import_run(&out, &registry).unwrap();
    assert_eq!(imported.adapter, None);
    let kept = registry.recipe(&imported.run).unwrap();
    assert_eq!((kept.model, kept.training), (recipe.model, recipe.training));
}
