//! What a run leaves behind.

use std::fs;

use polars::prelude::*;
use serde_json::Value;
use tunebook_tune::{
    Adapters as _, Callback, Error as TuneError, SaveStrategy, StepRecord, Trainer, TrainingArgs,
};

use crate::common::*;

fn lines(path: &std::path::Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_run_is_written_down_whole() {
    let (_dir, registry) = registry();
    let model = model_with("support");
    let record = registry.record("support v1").with_data(&split()).with_tag("first");
    let run = train(&model, &record, &args());
    let folder = registry.root().join("runs").join(record.id());
    let log = lines(&folder.join("log.jsonl"));
    let kinds: Vec<&str> = log.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    let middle = ["step", "step", "step", "eval", "step", "step", "step", "eval"];
    assert_eq!(kinds, [&["begin"], &middle[..], &["adapter", "end"]].concat());
    assert_eq!(log[0]["data"]["train"]["split"]["seed"], 3);
    assert_eq!(log[0]["parent"], Value::Null);

    // The record comes back as it was, but for the last bits of numbers.
    let found = registry.run("support v1").unwrap();
    assert_eq!((&found.args, &found.strategy, &found.plan), (&run.args, &run.strategy, &run.plan));
    assert_eq!(found.fingerprints, run.fingerprints);
    assert_eq!((found.steps.len(), found.evals.len()), (run.steps.len(), run.evals.len()));
    assert!((found.eval_loss().unwrap() - run.eval_loss().unwrap()).abs() < 1e-12);

    let runs = registry.runs().unwrap();
    assert_eq!(runs.height(), 1);
    for (column, expected) in [
        ("id", record.id().as_str()),
        ("name", "support v1"),
        ("state", "finished"),
        ("tags", "first"),
        ("best_metric", "loss"),
        ("adapter", &record.adapter().unwrap()),
        ("dataset", &split().train.fingerprint()),
        ("base", &run.fingerprints.base),
    ] {
        assert_eq!(text(&runs, column, 0), expected, "{column}");
    }
    let number = |column: &str| runs.column(column).unwrap().f64().unwrap().get(0).unwrap();
    assert!((number("eval_loss") - run.eval_loss().unwrap()).abs() < 1e-12);
    assert!((number("best") - run.best_eval().unwrap().loss).abs() < 1e-12);
    assert_eq!(runs.column("steps").unwrap().i64().unwrap().get(0), Some(6));
    assert!(matches!(runs.column("started").unwrap().dtype(), DataType::Datetime(..)));

    // The adapter answers as the one on the model.
    let saved = registry.adapter_folder("support v1").unwrap();
    let other = crate::common::model();
    other.load_adapter(&saved, "default").unwrap();
    let ask = |model: &tunebook_models::Model| evaluation(model).value("loss").unwrap();
    assert_eq!(ask(&other), ask(&model));
    assert_eq!(registry.verify().unwrap(), []);
}

#[test]
fn a_run_that_is_stopped_or_fails_says_so() {
    struct FailAt(usize);
    impl Callback for FailAt {
        fn on_step(&mut self, record: &StepRecord) -> tunebook_tune::Result<()> {
            match record.step >= self.0 {
                true => Err(TuneError::Callback("the paper is out".into())),
                false => Ok(()),
            }
        }
    }
    let (_dir, registry) = registry();
    let split = split();
    let sets = (&examples(&split.train), &examples(&split.validation));
    let model = model_with("a");
    let record = registry.record("stopped");
    let trainer = Trainer::new(&model, &args()).with_callback(record.clone());
    trainer.observed(StopAt(2, 0), |trainer| trainer.train(sets)).unwrap();
    let stopped = record.id();
    // The same recorder for another run.
    assert!(trainer.observed(FailAt(4), |trainer| trainer.train(sets)).is_err());
    assert_ne!(record.id(), stopped);
    let runs = registry.runs().unwrap();
    let of = |id: &str| (0..2).find(|row| text(&runs, "id", *row) == id).unwrap();
    assert_eq!(text(&runs, "state", of(&stopped)), "stopped");
    assert_ne!(text(&runs, "adapter", of(&stopped)), "-");
    let failed = of(&record.id());
    assert_eq!(text(&runs, "state", failed), "failed");
    assert_eq!(text(&runs, "adapter", failed), "-");
    assert!(registry.why(&record.id()).unwrap().to_string().contains("the paper is out"));
}

#[test]
fn a_run_goes_on_in_its_folder() {
    struct Stop;
    impl Callback for Stop {
        fn should_stop(&self) -> bool {
            true
        }
    }
    let (dir, registry) = registry();
    let split = split();
    let sets = (&examples(&split.train), &examples(&split.validation));
    let model = model_with("a");
    let args = TrainingArgs {
        save_strategy: SaveStrategy::Steps(1),
        output_dir: Some(dir.path().join("out")),
        ..args()
    };
    let record = registry.record("long");
    let trainer = Trainer::new(&model, &args).with_callback(record.clone());
    let run = trainer.observed(Stop, |trainer| trainer.train(sets)).unwrap();
    assert_eq!(run.steps.len(), 1);
    // As if by another process.
    let again = registry.record_on("long").unwrap();
    let trainer = Trainer::new(&model, &args).with_callback(again.clone());
    let run = trainer.resume(&run, sets).unwrap();
    assert_eq!(again.id(), record.id());
    let found = registry.run("long").unwrap();
    let numbers: Vec<usize> = found.steps.iter().map(|step| step.step).collect();
    assert_eq!(numbers, (1..=run.steps.len()).collect::<Vec<_>>());
    let runs = registry.runs().unwrap();
    assert_eq!((runs.height(), text(&runs, "state", 0).as_str()), (1, "finished"));
    assert_eq!(registry.verify().unwrap(), []);
    // No path of this machine, but the one that the arguments name.
    let log = fs::read_to_string(registry.root().join("runs").join(record.id()).join("log.jsonl"));
    for line in log.unwrap().lines().filter(|line| line.starts_with("{\"kind\":\"save\"")) {
        assert!(line.contains("\"checkpoint-") && !line.contains(dir.path().to_str().unwrap()));
    }
}

/// After `continue_from` with other rows the run has seen these, too.
#[test]
fn rows_that_a_run_goes_on_with_are_recorded() {
    struct Stop;
    impl Callback for Stop {
        fn should_stop(&self) -> bool {
            true
        }
    }
    for named in [true, false] {
        let (_dir, registry) = registry();
        let split = split();
        let others = tunebook_data::Dataset::from_rows(&[("Do you ship?", "Yes."); 8]);
        let others = others.concat(&split.train).unwrap();
        let model = model_with("a");
        let record = registry.record("long").with_data(&split);
        let trainer = Trainer::new(&model, &args()).with_callback(record.clone());
        let run = trainer.observed(Stop, |t| t.train(&examples(&split.train))).unwrap();
        let again = match named {
            true => registry.record_on("long").unwrap().with_data(&others),
            false => record.clone(),
        };
        let trainer = Trainer::new(&model, &args()).with_callback(again.clone());
        trainer.continue_from(&run, &examples(&others)).unwrap();
        assert_eq!(again.id(), record.id());
        assert_eq!(again.warnings().is_empty(), named, "{:?}", again.warnings());
        let saw = |prompt: &str, completion: &str| {
            let row = tunebook_data::Row::new(prompt, completion);
            registry.adapters_touched_by(&row).unwrap()
        };
        let (ship, no) = (saw("Do you ship?", "Yes."), saw("Do you?", "No."));
        assert_eq!(ship.adapters.len(), if named { 2 } else { 0 }, "the first, too: {ship}");
        assert_eq!(ship.unknown.is_empty(), named, "{ship}");
        assert_eq!((no.adapters.len(), no.unknown.is_empty()), (0, named), "{no}");
        let row = split.train.row(0).unwrap();
        assert_eq!(saw(&row.prompt, &row.completion).adapters.len(), 2);
    }
}

/// Trained on, and the adapter before is none of the registry's.
#[test]
fn what_was_trained_elsewhere_is_not_known() {
    let (_dir, registry) = registry();
    let model = model_with("a");
    let split = split();
    Trainer::new(&model, &args()).train(&examples(&split.train)).unwrap();
    let record = registry.record("after").with_data(&split);
    train(&model, &record, &args());
    let row = tunebook_data::Row::new("Do you?", "No.");
    let touched = registry.adapters_touched_by(&row).unwrap();
    assert_eq!(touched.unknown, [(record.id(), "after".to_owned())], "{touched}");
}

#[test]
fn no_file_says_where_it_was_written() {
    let (_dir, registry) = registry();
    let place = golden("lora_tiny/model");
    assert!(place.is_absolute());
    let (_, adapter, model) = run(&registry, "one");
    registry.add_evaluation(&evaluation(&model)).unwrap();
    let place = place.parent().unwrap().to_str().unwrap();
    let mut folders = vec![registry.root().to_path_buf()];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("recipe.yaml") {
                let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
                assert!(!text.contains(place), "{}", path.display());
                files += 1;
            }
        }
    }
    assert!(files > 8);
    let config = registry.adapter_folder(&adapter).unwrap().join("adapter_config.json");
    assert!(fs::read_to_string(config).unwrap().contains("\"model\""));
}

#[test]
fn a_run_that_goes_on_is_seen_as_running() {
    struct Look(tunebook_runs::Registry, Vec<String>);
    impl Callback for Look {
        fn on_step(&mut self, _: &StepRecord) -> tunebook_tune::Result<()> {
            self.1.push(text(&self.0.runs().unwrap(), "state", 0));
            assert!(self.1.iter().all(|state| state == "running"));
            Ok(())
        }
    }
    let (_dir, registry) = registry();
    let model = model_with("a");
    let trainer = Trainer::new(&model, &args())
        .with_callback(registry.record("now"))
        .with_callback(Look(registry.clone(), Vec::new()));
    trainer.train(&examples(&split().train)).unwrap();
    assert_eq!(text(&registry.runs().unwrap(), "state", 0), "finished");
}

#[test]
fn notes_and_tags_come_and_go() {
    let (_dir, registry) = registry();
    let (id, ..) = run(&registry, "support v1");
    registry.note("support v1", "the labels of week 12 are wrong").unwrap();
    registry.tag(&id[..6], "keep").unwrap();
    registry.tag(&id, "wrong").unwrap();
    registry.untag(&id, "wrong").unwrap();
    let runs = registry.runs().unwrap();
    assert_eq!(text(&runs, "tags", 0), "keep");
    assert_eq!(runs.column("notes").unwrap().i64().unwrap().get(0), Some(1));
    assert!(registry.why(&id).unwrap().to_string().contains("week 12"));
    let error = registry.note("none", "x").unwrap_err().to_string();
    assert!(error.contains("no run `none`") && error.contains("support v1"), "{error}");
}

#[test]
fn equal_adapters_are_saved_once() {
    let (_dir, registry) = registry();
    let (one, first, _) = run(&registry, "one");
    let (two, second, model) = run(&registry, "two");
    assert_ne!(one, two);
    assert_eq!(first, second, "the same seed trains the same adapter");
    assert_eq!(registry.add_adapter(&model, "support").unwrap(), first);
    let folders = fs::read_dir(registry.root().join("adapters")).unwrap().flatten();
    assert_eq!(folders.filter(|entry| entry.path().is_dir()).count(), 1);
}

#[test]
fn a_changed_file_is_found() {
    let (_dir, registry) = registry();
    let (id, adapter, _) = run(&registry, "one");
    let log = registry.root().join("runs").join(&id).join("log.jsonl");
    let text = fs::read_to_string(&log).unwrap();
    fs::write(&log, text.replacen("\"loss\":", "\"loss\":1", 1)).unwrap();
    fs::write(registry.root().join("adapters").join(&adapter).join("README.md"), "x").unwrap();
    let found: Vec<String> = registry.verify().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("manifest") && found[1].contains("other files"), "{found:?}");
    assert!(registry.adapter_folder(&adapter).unwrap_err().to_string().contains("by hand"));
}

#[test]
fn only_what_differs_is_compared() {
    let (_dir, registry) = registry();
    run(&registry, "one");
    let other = TrainingArgs { learning_rate: 1e-3, ..args() };
    run_with(&registry, "two", &other);
    let compared = registry.compare_with("one", &["two"]).unwrap();
    let settings = compared.settings();
    let names: Vec<String> =
        (0..settings.height()).map(|row| text(&settings, "setting", row)).collect();
    assert_eq!(names, ["args.learning_rate"], "{settings}");
    assert!(compared.same_settings() > 30);
    let metrics = compared.metrics();
    let delta = metrics.column("Δ loss").unwrap().f64().unwrap();
    let loss = metrics.column("loss").unwrap().f64().unwrap();
    assert_eq!(delta.get(0), Some(0.0));
    assert_eq!(delta.get(1), Some(loss.get(1).unwrap() - loss.get(0).unwrap()));
    assert!(registry.compare(&["one", "three"]).is_err());
}
