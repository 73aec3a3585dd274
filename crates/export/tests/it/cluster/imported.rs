//! A run of another engine comes back into the registry.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tunebook_export::cluster::{Imported, import_run};
use tunebook_models::{Device, Model};
use tunebook_runs::Registry;
use tunebook_tune::{Adapters as _, Lora, StopReason};

use super::{recipe, tiny, trl, written};

/// What an engine leaves in `out`, made here: an adapter of this configuration, and losses.
fn engine_ran(folder: &Path, steps: usize, config: &Lora) {
    let model = Model::load(tiny(), &Device::Cpu).unwrap();
    model.add_adapter("default", config).unwrap();
    let out = folder.join("out");
    model.save_adapter("default", &out).unwrap();
    // An engine knows nothing of our fingerprints.
    fs::remove_file(out.join("tunebook.json")).unwrap();
    let mut history: Vec<_> = (1..=steps)
        .map(|step| {
            json!({
                "epoch": step as f64 / 12.0, "grad_norm": (step > 1).then_some(1.0), "learning_rate": 1e-3,
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

#[test]
fn what_is_not_the_exports_is_refused() {
    let refused = |change: &dyn Fn(&Path), expected: &str| {
        let Fixture { _folder, out, registry } = fixture(12, &lora());
        change(&out);
        let error = import_run(&out, &registry).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected} is not in: {error}");
        assert_eq!(registry.runs().unwrap().height(), 0);
    };
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
            fs::remove_dir_all(out.join("out/checkpoint-4")).unwrap();
            fs::remove_dir_all(out.join("out/checkpoint-12")).unwrap();
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
    let Fixture { _folder, out, registry } = fixture(12, &Lora { r: 3, ..lora() });
    let error = import_run(&out, &registry).unwrap_err().to_string();
    assert!(error.contains("`r` is 3, and 4 in the recipe"), "{error}");
}
