//! One model and many threads: swaps, answers and a training run at the same time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

use tunebook_models::{GenerationConfig, Model};
use tunebook_tune::peft::AdapterFiles;
use tunebook_tune::{
    Active, Adapters, Callback, CombinationType, Example, Lora, Result, StepRecord, Trainer,
    TrainingArgs,
};

use crate::common::*;

const SWAPS: usize = 10_000;
const NAMES: [&str; 4] = ["__base__", "one", "two", "three"];

fn lora(seed: u64) -> Lora {
    Lora {
        r: 4,
        lora_alpha: 96.0,
        init_lora_weights: false,
        init_seed: seed,
        lora_dropout: 0.1,
        target_modules: "all-linear".into(),
        ..Default::default()
    }
}

fn name_of(active: Active) -> String {
    match active {
        Active::Adapter(name) | Active::Merged(name) => name,
        Active::Base => NAMES[0].to_owned(),
        Active::Full => panic!("nobody trains the model's own weights"),
    }
}

fn pairs(count: usize) -> Vec<Example> {
    (0..count)
        .map(|i| Example::new(format!("{i} and {}", i + 1), format!("makes {}", 2 * i + 1)))
        .collect()
}

/// The losses of a run on the adapter `trained`.
fn train(model: &Model) -> Vec<f64> {
    let args = TrainingArgs { max_steps: Some(40), learning_rate: 1e-3, ..Default::default() };
    let handle = model.with_adapter("trained").unwrap();
    let run = Trainer::new(&handle, &args).train(&pairs(12)).unwrap();
    run.steps.iter().map(|record| record.loss).collect()
}

/// Every answer is that of the one generation it names, token for token, whatever is swapped and
/// trained meanwhile; and the run is as it is alone.
#[test]
fn answers_are_whole_while_others_swap_and_train() {
    let new = || {
        let model = tiny();
        for (seed, name) in (1..).zip(&NAMES[1..]) {
            model.add_adapter(name, lora(seed)).unwrap();
        }
        model.add_adapter("trained", &Lora { init_lora_weights: true, ..lora(9) }).unwrap();
        model
    };
    let model = new();
    let config = GenerationConfig { max_new_tokens: 12, ..Default::default() };
    let prompts: Vec<Vec<u32>> =
        (0..6u32).map(|i| (0..3 + i).map(|t| 7 * i + 3 * t).collect()).collect();
    let answer = |model: &Model, prompt: &Vec<u32>| {
        model.generate_ids(std::slice::from_ref(prompt), &config).unwrap().remove(0)
    };
    let mut expected: HashMap<&str, Vec<Vec<u32>>> = HashMap::new();
    for name in NAMES {
        let handle = model.with_adapter(name).unwrap();
        expected.insert(name, prompts.iter().map(|prompt| answer(&handle, prompt)).collect());
    }
    for (i, a) in NAMES.iter().enumerate() {
        assert!(NAMES[..i].iter().all(|b| expected[a] != expected[b]), "{a} answers as another");
    }
    let alone = train(&new());
    model.disable_adapters();

    let (done, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (ended, end) = mpsc::channel();
    std::thread::scope(|scope| {
        let (model, expected, prompts) = (&model, &expected, &prompts);
        let (done, asked, answer) = (&done, &asked, &answer);
        for thread in 0..4 {
            let ended = ended.clone();
            scope.spawn(move || {
                let mut i = thread;
                while !done.load(Ordering::Relaxed) {
                    let prompt = i % prompts.len();
                    if i % 2 == 0 {
                        // A handle on what is active now says which generation that is.
                        let handle = model.with_overlay(model.overlay());
                        let name = name_of(handle.active());
                        let found = answer(&handle, &prompts[prompt]);
                        assert_eq!(found, expected[name.as_str()][prompt], "{name}");
                    } else {
                        let found = answer(model, &prompts[prompt]);
                        let whole = NAMES.iter().any(|name| expected[name][prompt] == found);
                        assert!(whole, "{found:?} is the answer of no adapter");
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                    i += 1;
                }
                ended.send(()).unwrap();
            });
        }
        let trainer = ended.clone();
        scope.spawn(move || {
            assert_eq!(train(model), alone, "the run is another than alone");
            trainer.send(()).unwrap();
        });
        let swapper = ended.clone();
        scope.spawn(move || {
            for swap in 0.. {
                match NAMES[swap % NAMES.len()] {
                    "__base__" => model.disable_adapters(),
                    name if swap % 1000 == 1 => model.merge_adapter(name).unwrap(),
                    name => model.set_adapter(name).unwrap(),
                }
                let enough = swap >= SWAPS && asked.load(Ordering::Relaxed) >= 200;
                if enough || done.load(Ordering::Relaxed) {
                    break;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            done.store(true, Ordering::Relaxed);
            swapper.send(()).unwrap();
        });
        for _ in 0..6 {
            if end.recv_timeout(Duration::from_secs(60)).is_err() {
                done.store(true, Ordering::Relaxed);
                panic!("a thread failed or waits for ever");
            }
        }
    });
}

/// Replacing is compare-and-swap: of many that add or rename at once one wins, and nobody is lost.
#[test]
fn of_many_that_take_one_name_one_wins() {
    let model = tiny();
    let won = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let (model, won) = (&model, &won);
            scope.spawn(move || {
                if model.add_adapter("same", lora(seed)).is_ok() {
                    won.fetch_add(1, Ordering::Relaxed);
                }
                let own = format!("own{seed}");
                model.add_adapter(&own, lora(seed)).unwrap();
                let renamed = model.rename_adapter(&own, "renamed");
                assert!(renamed.is_ok() || model.with_adapter(&own).is_ok(), "an adapter is lost");
            });
        }
    });
    assert_eq!(won.into_inner(), 1);
    assert_eq!(model.adapters().len(), 1 + 8);
}

/// Who merges an adapter gets the one that had the name, or none.
#[test]
fn an_adapter_that_was_replaced_while_it_was_merged_does_not_answer() {
    let model = tiny();
    for round in 0..300u32 {
        model.add_adapter("a", Lora { r: 16, ..lora(1) }).unwrap();
        model.add_adapter("b", Lora { r: 16, ..lora(2) }).unwrap();
        let barrier = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                let _ = model.merge_adapter("a"); // it may have gone
            });
            scope.spawn(|| {
                barrier.wait();
                (0..round % 100 * 40).for_each(|_| std::hint::spin_loop());
                model.delete_adapter("a").unwrap();
                model.rename_adapter("b", "a").unwrap();
            });
        });
        if model.active() == Active::Merged("a".to_owned()) {
            assert!(model.adapters()[0].active, "what was deleted answers");
        }
        model.delete_adapter("a").unwrap();
        assert_eq!(model.active(), Active::Base);
    }
}

/// Keeps what the adapter's file would hold after each step.
struct Steps(Model, Arc<Mutex<Vec<Vec<Vec<f32>>>>>, tempfile::TempDir);

impl Callback for Steps {
    fn on_step(&mut self, _: &StepRecord) -> Result<()> {
        self.1.lock().unwrap().push(saved(&self.0, "trained", self.2.path()));
        Ok(())
    }
}

/// The tensors of an adapter's file.
fn saved(model: &Model, name: &str, dir: &std::path::Path) -> Vec<Vec<f32>> {
    let files = AdapterFiles::read(model.save_adapter(name, dir).unwrap()).unwrap();
    files.tensors.into_values().map(|tensor| tensor.values).collect()
}

/// A run changes its tensors one after the other; nobody sees them in between.
#[test]
fn what_is_saved_or_combined_during_a_run_is_of_one_step() {
    let model = tiny();
    model.add_adapter("trained", Lora { r: 16, ..lora(1) }).unwrap();
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let steps = Arc::new(Mutex::new(vec![saved(&model, "trained", dir.path())]));
    let callback = Steps(model.clone(), Arc::clone(&steps), tempfile::tempdir().unwrap());
    let handle = model.with_adapter("trained").unwrap();
    let done = AtomicBool::new(false);
    let (mut whole, mut sums) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let done = &done;
        scope.spawn(move || {
            let args = TrainingArgs {
                max_steps: Some(400),
                learning_rate: 0.01,
                batch_size: 1,
                gradient_accumulation_steps: 1,
                ..Default::default()
            };
            let run = Trainer::new(&handle, &args).with_callback(callback).train(&pairs(8));
            done.store(true, Ordering::Relaxed);
            run.unwrap();
        });
        while !done.load(Ordering::Relaxed) {
            whole.push(saved(&model, "trained", dir.path()));
            // With a weight and a scaling of 1 the sum is what it is made of.
            let scaling = 96.0 / 16.0;
            model
                .add_weighted_adapter(&[("trained", 1.0 / scaling)], "sum", CombinationType::Cat)
                .unwrap();
            sums.push(saved(&model, "sum", other.path()));
            model.delete_adapter("sum").unwrap();
        }
    });
    let steps = steps.lock().unwrap();
    assert!(steps.len() == 401 && whole.len() > 5, "{} and {}", steps.len(), whole.len());
    for found in &whole {
        assert!(steps.contains(found), "tensors of two steps in one file");
    }
    let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs());
    for found in &sums {
        let is_it =
            |step: &&Vec<Vec<f32>>| found.iter().zip(*step).all(|(found, step)| near(found, step));
        assert!(steps.iter().find(is_it).is_some(), "tensors of two steps in one sum");
    }
}

/// A handle keeps its adapter: what is loaded, merged, renamed or deleted later is not seen in it.
#[test]
fn a_handle_keeps_the_generation_that_it_was_made_with() {
    let model = tiny();
    let ids = [5, 17, 3, 42];
    let base = logits(&model, &ids);
    model.add_adapter("a", lora(1)).unwrap();
    let first = logits(&model, &ids);
    let handle = model.with_adapter("a").unwrap();
    model.rename_adapter("a", "old").unwrap();
    assert_eq!(model.active(), Active::Adapter("old".to_owned()));
    model.delete_adapter("old").unwrap();
    assert_eq!((model.active(), logits(&model, &ids)), (Active::Base, base.clone()));
    model.add_adapter("a", lora(2)).unwrap();
    assert_ne!(logits(&model, &ids), first);
    assert_eq!(logits(&handle, &ids), first);
    assert_eq!(logits(&model.base(), &ids), base);
    model.merge_adapter("a").unwrap();
    assert_eq!(model.active(), Active::Merged("a".to_owned()));
    assert_eq!(model.active_adapter().as_deref(), Some("a"));
    assert!(model.adapters()[0].active);
    assert_eq!(logits(&model.with_adapter("__base__").unwrap(), &ids), base);
    assert!(Trainer::new(&model, &TrainingArgs::default()).train(&pairs(4)).is_err());
}
