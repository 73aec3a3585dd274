//! Records of runs: they go through JSON whole, and name what the run read.

use tunebook_models::{Device, GenerationConfig, Model};
use tunebook_tune::{
    AdaLora, AdapterConfig, Adapters, Bottleneck, Callback, EvalStrategy, Example, ExampleSets,
    Full, FullTuning, Ia3, Lora, LoraInit, Metric, PrefixTuning, PromptTuning, Result, Run,
    RunRecord, SaveStrategy, StepRecord, Strategy, Trainer, TrainingArgs,
};

use crate::common::*;

fn pairs(count: usize) -> Vec<Example> {
    (0..count).map(|i| Example::new(format!("{i}"), format!("{} {}", i * 7 % 11, i * 3))).collect()
}

fn args() -> TrainingArgs {
    TrainingArgs {
        epochs: 1,
        learning_rate: 1e-3,
        eval_strategy: EvalStrategy::Steps(2),
        ..Default::default()
    }
}

/// The same but for the last bit that a number may lose in JSON.
fn assert_same(found: &RunRecord, expected: &RunRecord) {
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-15 * b.abs() || a.is_nan() && b.is_nan();
    for (a, b) in found.steps.iter().zip(&expected.steps) {
        assert!(close(a.loss, b.loss) && close(a.grad_norm, b.grad_norm) && close(a.secs, b.secs));
        assert_eq!((a.step, a.tokens, &a.ranks), (b.step, b.tokens, &b.ranks));
        assert_eq!((a.memory_bytes, &a.rows), (b.memory_bytes, &b.rows));
    }
    for (a, b) in found.evals.iter().zip(&expected.evals) {
        assert!(close(a.loss, b.loss) && a.metrics.keys().eq(b.metrics.keys()));
    }
    assert_eq!(
        (found.steps.len(), found.evals.len()),
        (expected.steps.len(), expected.evals.len())
    );
    let bare = |record: &RunRecord| RunRecord {
        steps: Vec::new(),
        evals: Vec::new(),
        secs: 0.0,
        ..record.clone()
    };
    assert_eq!(bare(found), bare(expected));
}

#[test]
fn a_record_goes_through_json_whole_and_stands_in_every_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let lora = Lora { r: 3, lora_init: LoraInit::Pissa, init_seed: 7, ..Default::default() };
    model.add_adapter("support", &lora).unwrap();
    let args = TrainingArgs {
        save_strategy: SaveStrategy::Epoch,
        output_dir: Some(dir.path().join("run")),
        metric_for_best_model: "odd".to_owned(),
        ..args()
    };
    let trainer = Trainer::new(&model, &args)
        .with_metric(Metric::lower_is_better("odd").unit("%"), |_| Ok(f64::NAN));
    trainer.set_dataset_fingerprint(Some("abc".to_owned()));
    let run = trainer.train((&pairs(12), &pairs(3))).unwrap();

    let record = run.record();
    assert_eq!(record.strategy, Strategy::Adapter(Box::new(AdapterConfig::Lora(lora))));
    assert_eq!((record.device.as_str(), record.dtype.as_str()), ("cpu", "f32"));
    assert_eq!(record.fingerprints.dataset.as_deref(), Some("abc"));
    assert!(record.fingerprints.validation.is_some());
    let names: Vec<&str> = record.metrics.iter().map(|metric| metric.name.as_str()).collect();
    assert_eq!(names, ["loss", "odd"]);

    let json = serde_json::to_string(record).unwrap();
    let read: RunRecord = serde_json::from_str(&json).unwrap();
    assert_same(&read, record);

    let folder = dir.path().join("run/checkpoint-3");
    let state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("trainer_state.json")).unwrap()).unwrap();
    let written: RunRecord = serde_json::from_value(state["record"].clone()).unwrap();
    assert_eq!((written.steps.len(), &written.strategy), (3, &record.strategy));
    let loaded = Run::load(&folder).unwrap();
    assert_eq!(loaded.steps, run.steps, "exact");
    assert_eq!(loaded.fingerprints, run.fingerprints);
}

/// Each step says which examples it took, an epoch takes each once, and records of versions that did
/// not say it are still read.
#[test]
fn steps_name_their_rows_and_their_memory() {
    let model = tiny();
    model.add_adapter("a", Lora::default()).unwrap();
    let args = TrainingArgs { epochs: 2, gradient_accumulation_steps: 2, ..args() };
    let run = Trainer::new(&model, &args).train(&pairs(12)).unwrap();
    let (first, second) = run.steps.split_at(run.plan.steps_per_epoch);
    for epoch in [first, second] {
        let mut rows: Vec<usize> = epoch.iter().flat_map(|step| step.rows.clone()).collect();
        rows.sort_unstable();
        assert_eq!(rows, (0..12).collect::<Vec<_>>());
    }
    assert!(run.steps.iter().any(|step| step.rows != run.steps[0].rows));
    if cfg!(target_os = "linux") {
        let memory = |step: &StepRecord| step.memory_bytes.is_some_and(|bytes| bytes > 1 << 20);
        assert!(run.steps.iter().all(memory), "{:?}", run.steps[0]);
    }
    let mut old = serde_json::to_value(&run.steps[0]).unwrap();
    let fields = old.as_object_mut().unwrap();
    assert!(fields.remove("memory_bytes").is_some() && fields.remove("rows").is_some());
    let old: StepRecord = serde_json::from_value(old).unwrap();
    assert_eq!((old.memory_bytes, old.rows.len(), old.loss), (None, 0, run.steps[0].loss));
}

#[test]
fn fingerprints_follow_what_was_read() {
    let run = |model: &Model, train: &[Example]| {
        Trainer::new(model, &args()).train(train).unwrap().record().fingerprints.clone()
    };
    let with_lora = || {
        let model = tiny();
        model.add_adapter("a", Lora::default()).unwrap();
        model
    };
    let model = with_lora();
    let first = run(&model, &pairs(8));
    assert_eq!(run(&model, &pairs(8)), first, "training an adapter leaves the base as it is");
    assert_eq!(run(&with_lora(), &pairs(8)), first, "the same files have the same fingerprint");
    let other = run(&model, &pairs(9));
    assert_ne!(other.train, first.train);
    assert_eq!(other.base, first.base);

    // The model's own weights, and what they are kept as.
    let half =
        Model::load_as(tiny_path(), Some(tunebook_models::DType::BF16), &Device::Cpu).unwrap();
    half.add_adapter("a", Lora::default()).unwrap();
    assert_ne!(run(&half, &pairs(8)).base, first.base);
    let whole = tiny();
    whole.unfreeze(&Full::default()).unwrap();
    assert_eq!(run(&whole, &pairs(8)).base, first.base, "before the first step");
    assert_ne!(run(&whole, &pairs(8)).base, first.base, "after a run");
    whole.add_adapter("a", Lora::default()).unwrap();
    assert_ne!(run(&whole, &pairs(8)).base, first.base);
}

#[test]
fn the_direction_of_a_metric_is_stated_and_never_guessed() {
    // A perplexity falls, then rises: the lowest is the best.
    let values = [9.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];
    let best = |metric: Metric| {
        let model = tiny();
        model.add_adapter("a", Lora::default()).unwrap();
        let args = TrainingArgs {
            epochs: 3,
            eval_strategy: EvalStrategy::Steps(1),
            load_best_model_at_end: true,
            metric_for_best_model: metric.name.clone(),
            ..args()
        };
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let measure = move |_: &Model| {
            Ok(values[asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % values.len()])
        };
        let trainer = Trainer::new(&model, &args).with_metric(metric, measure);
        trainer.train((&pairs(8), &pairs(2))).unwrap().loaded_step
    };
    assert_eq!(best(Metric::lower_is_better("perplexity")), Some(2));
    assert_eq!(best(Metric::higher_is_better("perplexity")), Some(1));

    let model = tiny();
    model.add_adapter("a", Lora::default()).unwrap();
    let twice = Trainer::new(&model, &args())
        .with_metric(Metric::higher_is_better("loss"), |_| Ok(1.0))
        .train((&pairs(8), &pairs(2)));
    assert!(twice.unwrap_err().to_string().contains("`loss`, which another metric has"));
}

#[derive(Default)]
struct Seen(std::sync::Arc<std::sync::Mutex<Option<RunRecord>>>);

impl Callback for Seen {
    fn on_end(&mut self, run: &RunRecord) -> Result<()> {
        *self.0.lock().unwrap() = Some(run.clone());
        Ok(())
    }
}

#[test]
fn a_callback_gets_the_record_of_the_end() {
    let model = tiny();
    model.add_adapter("a", &AdaLora { init_r: 4, target_r: 2, ..Default::default() }).unwrap();
    let seen = Seen::default();
    let kept = seen.0.clone();
    let run = Trainer::new(&model, &args()).with_callback(seen).train(&pairs(8)).unwrap();
    assert_eq!(kept.lock().unwrap().as_ref(), Some(run.record()));
    assert_eq!(run.steps[0].ranks.len(), run.plan.rank_modules.len());
    assert!(!run.plan.rank_modules.is_empty());
}

/// A closure is a callback that sees each step; sets that bring an observer have it for one run, and
/// it is told which run goes on.
#[test]
fn closures_and_observers_see_the_steps() {
    let model = tiny();
    model.add_adapter("a", Lora::default()).unwrap();
    let steps = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = steps.clone();
    let trainer = Trainer::new(&model, &args())
        .with_callback(move |step: &StepRecord| seen.lock().unwrap().push(step.step));
    let watched = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let sets = || {
        let watched = watched.clone();
        ExampleSets::new(pairs(8), Vec::new()).observed_by(Box::new(move |from| {
            watched.lock().unwrap().push(from.map(|run| run.steps.len()));
            Box::new(|_: &StepRecord| ())
        }))
    };
    let run = trainer.train(sets()).unwrap();
    let numbers: Vec<usize> = run.steps.iter().map(|step| step.step).collect();
    assert_eq!(*steps.lock().unwrap(), numbers);
    trainer.resume(&run, sets()).unwrap();
    trainer.preflight(sets()).unwrap();
    assert_eq!(*watched.lock().unwrap(), [None, Some(run.steps.len())]);
}

/// Every configuration goes through JSON with nothing left out, and a field that does not exist is
/// named.
#[test]
fn configurations_go_through_json_whole_and_refuse_unknown_fields() {
    let adapters: [AdapterConfig; 6] = [
        Lora {
            r: 5,
            lora_init: LoraInit::Pissa,
            init_seed: 9,
            lora_dropout: 0.25,
            target_modules: "all-linear".into(),
            ..Default::default()
        }
        .into(),
        AdaLora { init_r: 7, init_seed: 9, ..Default::default() }.into(),
        Ia3::default().into(),
        PromptTuning { num_virtual_tokens: 3, init_seed: 9, ..Default::default() }.into(),
        PrefixTuning { num_virtual_tokens: 3, init_seed: 9, ..Default::default() }.into(),
        Bottleneck { init_seed: 9, ..Bottleneck::par_bn() }.into(),
    ];
    for config in adapters {
        let json = serde_json::to_value(&config).unwrap();
        let back: AdapterConfig = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(back, config);
        let mut odd = json;
        odd["lora_alhpa"] = 3.into();
        let error = serde_json::from_value::<AdapterConfig>(odd).unwrap_err().to_string();
        assert!(error.contains("`lora_alhpa`"), "{error}");
    }
    let args = TrainingArgs { seed: 11, max_steps: Some(4), ..args() };
    let back: TrainingArgs = serde_json::from_value(serde_json::to_value(&args).unwrap()).unwrap();
    assert_eq!(back, args);
    let full = Full::last_blocks(2, 1);
    let back: Full = serde_json::from_value(serde_json::to_value(&full).unwrap()).unwrap();
    assert_eq!(back, full);
    let config = GenerationConfig { top_k: 7, seed: 3, ..Default::default() };
    let back: GenerationConfig =
        serde_json::from_value(serde_json::to_value(&config).unwrap()).unwrap();
    assert_eq!(back, config);
    let few: GenerationConfig = serde_json::from_str(r#"{"max_new_tokens": 9}"#).unwrap();
    assert_eq!(few, GenerationConfig { max_new_tokens: 9, ..Default::default() });
    for error in [
        serde_json::from_str::<TrainingArgs>(r#"{"epochz": 9}"#).unwrap_err(),
        serde_json::from_str::<Full>(r#"{"epochz": 9}"#).unwrap_err(),
        serde_json::from_str::<GenerationConfig>(r#"{"epochz": 9}"#).unwrap_err(),
    ] {
        assert!(error.to_string().contains("`epochz`"), "{error}");
    }
}
