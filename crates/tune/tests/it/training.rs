//! What the arguments of a run do: smoothing, noise, packing, order, metrics, callbacks, and what
//! happens when numbers go bad.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde::Deserialize;
use tunebook_models::{Context, Model, Projection, Tensor};
use tunebook_tune::{
    Adapters, Batch, Callback, Error, EvalStrategy, Example, Full, FullTuning, Lora, LrRangeTest,
    LrScheduler, Metric, Optim, Result, Run, SaveStrategy, StepRecord, Stepper, StopReason,
    TensorBoard, Trainer, TrainingArgs,
};

use crate::common::*;

fn pairs(count: usize) -> Vec<Example> {
    let words = ["red", "green", "a blue one", "7", "yes, and no", "é", "what?", "ok"];
    (0..count)
        .map(|i| Example::new(words[i % 8], format!("{} {}", words[(3 * i + 1) % 8], i)))
        .collect()
}

fn with_adapter() -> Model {
    let model = tiny();
    let lora = Lora {
        r: 3,
        lora_alpha: 5.0,
        target_modules: "all-linear".into(),
        init_lora_weights: false,
        ..Default::default()
    };
    model.add_adapter("a", &lora).unwrap();
    model
}

fn losses(run: &Run) -> Vec<f64> {
    run.steps.iter().map(|record| record.loss).collect()
}

#[test]
fn label_smoothing_is_transformers() {
    #[derive(Deserialize)]
    struct Golden {
        batches: Vec<Vec<usize>>,
        label_smoothing: f64,
        smoothed_loss: f64,
        smoothed_gradient_norms: BTreeMap<String, f64>,
    }
    #[derive(Deserialize)]
    struct Rows {
        rows: Vec<Row>,
    }
    let golden: Golden = read_json("full_tiny/run.json");
    let Rows { rows } = read_json("lora_tiny/run.json");
    let model = tiny();
    model.unfreeze(&Full::default()).unwrap();
    let args =
        TrainingArgs { label_smoothing_factor: golden.label_smoothing, ..Default::default() };
    let stepper = Stepper::new(&model, &args, 1).unwrap();
    let batch = batch(&rows, &golden.batches[0]);
    let (sum, gradients) = stepper.gradients(std::slice::from_ref(&batch)).unwrap();
    let loss = sum / batch.label_tokens as f64;
    assert!((loss / golden.smoothed_loss - 1.0).abs() < 1e-5, "{loss} != {}", golden.smoothed_loss);
    for (parameter, gradient) in stepper.parameters().iter().zip(gradients.iter()) {
        let found =
            values(gradient.unwrap()).iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let expected = golden.smoothed_gradient_norms[&parameter.name];
        assert!((found / expected - 1.0).abs() < 1e-4, "{}: {found} != {expected}", parameter.name);
    }
    // The validation loss is the plain one, so that runs compare.
    let evaluate = |factor| {
        let args = TrainingArgs { label_smoothing_factor: factor, ..Default::default() };
        Trainer::new(&model, &args).evaluate(&pairs(4)).unwrap().loss
    };
    assert_eq!(evaluate(0.1), evaluate(0.0));
}

#[test]
fn noise_on_the_embeddings_is_small_seeded_and_not_in_evaluations() {
    let run = |alpha, seed, gradient_checkpointing| {
        let model = with_adapter();
        let args = TrainingArgs {
            max_steps: Some(3),
            neftune_noise_alpha: alpha,
            seed,
            data_seed: Some(1),
            gradient_checkpointing,
            ..Default::default()
        };
        let trainer = Trainer::new(&model, &args);
        let before = trainer.evaluate(&pairs(4)).unwrap().loss;
        (losses(&trainer.train(&pairs(8)).unwrap()), before)
    };
    let (plain, before) = run(None, 1, false);
    let (noisy, same) = run(Some(5.0), 1, false);
    assert_eq!(before, same);
    assert_ne!(noisy[0], plain[0]);
    assert!((noisy[0] / plain[0] - 1.0).abs() < 0.2, "{} {}", noisy[0], plain[0]);
    assert_eq!(noisy, run(Some(5.0), 1, true).0, "a block that is run again sees the same noise");
    assert_ne!(noisy, run(Some(5.0), 2, false).0);
}

#[test]
fn packed_rows_give_the_losses_and_gradients_of_the_examples_alone() {
    let model = with_adapter();
    let set = Trainer::new(&model, &TrainingArgs::default()).tokenize(&pairs(6)).unwrap();
    let stepper = Stepper::new(&model, &TrainingArgs::default(), 1).unwrap();
    let device = tunebook_models::Device::Cpu;
    let all: Vec<_> = set.examples.iter().collect();
    let packed = Batch::packed(&[all[..2].to_vec(), all[2..].to_vec()], 0, &device).unwrap();
    let together = stepper.gradients(&[packed]).unwrap();
    let alone: Vec<_> = all.iter().map(|row| Batch::new(&[row], 0, &device).unwrap()).collect();
    let alone = stepper.gradients(&alone).unwrap();
    assert!((together.0 / alone.0 - 1.0).abs() < 1e-5, "{} {}", together.0, alone.0);
    for (a, b) in together.1.iter().zip(alone.1.iter()) {
        assert!(relative_error(&values(a.unwrap()), &values(b.unwrap())) < 1e-4);
    }
}

#[test]
fn packing_makes_fewer_steps_and_sees_every_token_once() {
    let run = |packing| {
        let args = TrainingArgs {
            epochs: 1,
            batch_size: 2,
            packing,
            max_length: Some(64),
            learning_rate: 1e-3,
            ..Default::default()
        };
        Trainer::new(&with_adapter(), &args).train(&pairs(20)).unwrap()
    };
    let (packed, plain) = (run(true), run(false));
    let tokens = |run: &Run| {
        run.steps
            .iter()
            .map(|r| (r.tokens, r.label_tokens))
            .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    };
    assert_eq!(tokens(&packed), tokens(&plain));
    assert!(packed.steps.len() < plain.steps.len());
    assert_eq!(packed.plan.packed_rows.map(|rows| rows.div_ceil(2)), Some(packed.steps.len()));
}

#[test]
fn grouping_by_length_sees_the_same_examples_in_another_order() {
    let run = |group_by_length, data_seed| {
        let args = TrainingArgs {
            epochs: 1,
            batch_size: 2,
            learning_rate: 1e-9,
            max_grad_norm: 0.0,
            group_by_length,
            data_seed,
            ..Default::default()
        };
        Trainer::new(&with_adapter(), &args).train(&pairs(12)).unwrap()
    };
    let sum = |run: &Run| run.steps.iter().map(|r| r.loss * r.label_tokens as f64).sum::<f64>();
    let (plain, grouped, seeded) = (run(false, None), run(true, None), run(false, Some(7)));
    assert_ne!(losses(&plain), losses(&grouped));
    assert_ne!(losses(&plain), losses(&seeded));
    // At a learning rate of next to nothing the order does not matter.
    assert!((sum(&plain) / sum(&grouped) - 1.0).abs() < 1e-4);
    assert!((sum(&plain) / sum(&seeded) - 1.0).abs() < 1e-4);
    let longest = grouped.steps.iter().map(|r| r.tokens).max();
    assert_eq!(Some(grouped.steps[0].tokens), longest, "the longest batch first");
}

#[test]
fn a_metric_decides_what_is_best_and_when_to_stop() {
    let args = TrainingArgs {
        epochs: 10,
        learning_rate: 1e-3,
        eval_strategy: EvalStrategy::Steps(1),
        early_stopping_patience: Some(3),
        load_best_model_at_end: true,
        metric_for_best_model: "score".to_owned(),
        ..Default::default()
    };
    let scores = [0.1, 0.5, 0.9, 0.9, 0.2, 0.3, 1.0];
    let model = with_adapter();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let score = move |_: &Model| Ok(scores[count.fetch_add(1, Ordering::Relaxed) % scores.len()]);
    let run = Trainer::new(&model, &args)
        .with_metric(Metric::higher_is_better("score"), score)
        .train((&pairs(8), &pairs(2)))
        .unwrap();
    assert_eq!(run.stopped, Some(StopReason::EarlyStopping));
    assert_eq!((run.steps.len(), run.loaded_step), (6, Some(3)));
    assert_eq!(run.best_eval().map(|eval| eval.metric("score")), Some(Some(0.9)));
    assert!(run.to_string().contains("`score` got no better"), "{run}");

    let error = Trainer::new(&model, &args).train((&pairs(8), &pairs(2))).unwrap_err().to_string();
    assert!(error.contains("`score`") && error.contains("loss"), "{error}");
    let failing = Trainer::new(&model, &args)
        .with_metric(Metric::higher_is_better("score"), |_: &Model| Err("no judge".into()));
    assert!(failing.train((&pairs(8), &pairs(2))).unwrap_err().to_string().contains("no judge"));
}

#[test]
fn a_threshold_makes_small_gains_no_gains() {
    let run = |early_stopping_threshold| {
        let args = TrainingArgs {
            epochs: 10,
            learning_rate: 1e-4,
            eval_strategy: EvalStrategy::Steps(1),
            early_stopping_patience: Some(2),
            early_stopping_threshold,
            ..Default::default()
        };
        Trainer::new(&with_adapter(), &args).train((&pairs(8), &pairs(2))).unwrap().steps.len()
    };
    assert_eq!(run(100.0), 3);
    assert!(run(0.0) > 3);
}

struct StopAfter(usize, usize);

impl Callback for StopAfter {
    fn on_step(&mut self, record: &StepRecord) -> Result<()> {
        self.1 = record.step;
        Ok(())
    }

    fn should_stop(&self) -> bool {
        self.1 >= self.0
    }
}

#[test]
fn a_callback_can_end_a_run_and_it_goes_on_as_if_never_stopped() {
    let args = TrainingArgs { epochs: 2, learning_rate: 1e-3, ..Default::default() };
    let model = with_adapter();
    let stopped =
        Trainer::new(&model, &args).with_callback(StopAfter(2, 0)).train(&pairs(12)).unwrap();
    assert_eq!((stopped.stopped, stopped.steps.len()), (Some(StopReason::Callback), 2));
    let resumed = Trainer::new(&model, &args).resume(&stopped, &pairs(12)).unwrap();
    let whole = Trainer::new(&with_adapter(), &args).train(&pairs(12)).unwrap();
    assert_eq!(losses(&resumed), losses(&whole));
}

/// A projection whose output is not a number while its switch is on.
#[derive(Debug)]
struct Poisoned {
    inner: Arc<dyn Projection>,
    on: Arc<AtomicBool>,
}

impl Projection for Poisoned {
    fn forward(&self, x: &Tensor, context: &Context<'_>) -> tunebook_models::Result<Tensor> {
        let y = self.inner.forward(x, context)?;
        Ok(if self.on.load(Ordering::Relaxed) { (y * f64::NAN)? } else { y })
    }

    fn in_features(&self) -> usize {
        self.inner.in_features()
    }

    fn out_features(&self) -> usize {
        self.inner.out_features()
    }

    fn weight(&self) -> Tensor {
        self.inner.weight()
    }
}

struct SwitchOnAfter(usize, Arc<AtomicBool>);

impl Callback for SwitchOnAfter {
    fn on_step(&mut self, record: &StepRecord) -> Result<()> {
        if record.step == self.0 {
            self.1.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_names_its_rows_and_can_be_gone_on_from() {
    let dir = tempfile::tempdir().unwrap();
    let args = TrainingArgs {
        epochs: 2,
        batch_size: 2,
        gradient_accumulation_steps: 2,
        learning_rate: 1e-3,
        save_strategy: SaveStrategy::Steps(100),
        output_dir: Some(dir.path().join("run")),
        ..Default::default()
    };
    let whole = Trainer::new(&with_adapter(), &args).train(&pairs(12)).unwrap();
    std::fs::remove_dir_all(dir.path().join("run")).unwrap();

    let model = with_adapter();
    let on = Arc::new(AtomicBool::new(false));
    let slot =
        model.slots().into_iter().find(|slot| slot.path().ends_with("1.mlp.down_proj")).unwrap();
    let mut overlay = (*model.overlay()).clone();
    let inner = Arc::clone(overlay.projection(&slot).unwrap());
    let poisoned = Poisoned { inner, on: Arc::clone(&on) };
    overlay.put_projection(&slot, Arc::new(poisoned)).unwrap();
    model.set_overlay(Arc::new(overlay));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let trainer = Trainer::new(&model, &args).with_callback(SwitchOnAfter(3, Arc::clone(&on)));
    let error = trainer.train(&pairs(12)).unwrap_err();
    let Error::NotFinite { step: 4, rows, .. } = &error else { panic!("{error}") };
    assert_eq!(rows.len(), 2, "the rows of the micro-batch");
    seen.lock().unwrap().extend(rows.clone());
    let text = error.to_string();
    assert!(text.contains("step 4") && text.contains(&rows[0].to_string()), "{text}");
    assert!(text.contains("last_run") && text.contains("learning_rate"), "{text}");

    // The last good state is kept in memory and on disk; the run goes on from either as if nothing
    // had happened.
    let kept = trainer.last_run().unwrap();
    assert_eq!((kept.steps.len(), kept.stopped), (3, Some(StopReason::Failed)));
    let written = Run::last_checkpoint(dir.path().join("run")).unwrap().unwrap();
    assert_eq!(written.steps, kept.steps);
    on.store(false, Ordering::Relaxed);
    for kept in [kept.clone(), written] {
        let resumed = Trainer::new(&model, &args).resume(&kept, &pairs(12)).unwrap();
        assert_eq!(losses(&resumed), losses(&whole));
    }

    // Or without the rows, at a lower rate.
    let fewer: Vec<_> = pairs(12)
        .into_iter()
        .enumerate()
        .filter(|(row, _)| !rows.contains(row))
        .map(|(_, pair)| pair)
        .collect();
    let lower =
        TrainingArgs { learning_rate: 1e-4, save_strategy: SaveStrategy::No, ..args.clone() };
    let trainer = Trainer::new(&model, &lower);
    assert!(matches!(trainer.resume(&kept, &fewer), Err(Error::Continue { .. })));
    let amended = trainer.continue_from(&kept, &fewer).unwrap();
    assert_eq!(losses(&amended)[..3], losses(&whole)[..3]);
    assert_eq!(amended.steps.len(), 2 * 10usize.div_ceil(4));
    assert!(
        amended.steps[3..].iter().all(|step| step.loss.is_finite() && step.learning_rate <= 1e-4)
    );
}

#[test]
fn a_range_test_finds_a_rate_and_leaves_the_model_as_it_was() {
    let model = with_adapter();
    let args = TrainingArgs { batch_size: 4, max_grad_norm: 0.0, ..Default::default() };
    let before = logits(&model, &[1, 20, 30, 40]);
    let trainer = Trainer::new(&model, &args);
    let test = LrRangeTest { start: 1e-5, end: 10.0, ..Default::default() };
    let range = trainer.lr_range_test(&pairs(32), &test).unwrap();
    assert_eq!(logits(&model, &[1, 20, 30, 40]), before);
    let rate = range.suggestion.unwrap();
    assert!((1e-4..1.0).contains(&rate), "{range}");
    assert!(range.points.windows(2).all(|pair| pair[0].learning_rate < pair[1].learning_rate));
    // The rate it names trains better than one far below.
    let trained = |learning_rate| {
        let args = TrainingArgs { learning_rate, epochs: 2, ..args.clone() };
        Trainer::new(&with_adapter(), &args).train(&pairs(32)).unwrap().recent_loss(4).unwrap()
    };
    assert!(trained(rate) < 0.9 * trained(test.start), "{range}");
}

#[test]
fn eight_bit_states_keep_the_loss_curve() {
    let run = |optim| {
        let model = tiny();
        model.unfreeze(&Full::default()).unwrap();
        let args = TrainingArgs {
            epochs: 10,
            learning_rate: 2e-3,
            lr_scheduler: LrScheduler::Linear,
            optim,
            ..Default::default()
        };
        losses(&Trainer::new(&model, &args).train(&pairs(16)).unwrap())
    };
    let (exact, eight) = (run(Optim::AdamW), run(Optim::AdamW8bit));
    assert_ne!(exact, eight);
    assert!(exact[39] < 0.6 * exact[0]);
    for (a, b) in exact.iter().zip(&eight) {
        assert!((a - b).abs() < 0.03 * exact[0], "{a} {b}");
    }
}

#[test]
fn a_budget_changes_the_settings_and_not_the_run() {
    let args = TrainingArgs { epochs: 2, batch_size: 4, learning_rate: 1e-3, ..Default::default() };
    let plain = Trainer::new(&with_adapter(), &args).train(&pairs(12)).unwrap();
    assert_eq!(plain.plan.preflight, None);
    let model = with_adapter();
    let before = logits(&model, &[1, 20, 30, 40]);
    let roomy = TrainingArgs { memory_budget: Some(64_000_000_000), ..args };
    let trainer = Trainer::new(&model, &roomy);
    let preflight = trainer.preflight((&pairs(12), &pairs(3))).unwrap();
    assert_eq!(logits(&model, &[1, 20, 30, 40]), before, "a preflight trains nothing");
    assert_eq!(
        (preflight.batch_size, preflight.checkpointed_blocks, preflight.total_steps),
        (4, 0, 6)
    );
    assert!(preflight.secs > 0.0 && preflight.secs_per_step > 0.0, "{preflight}");
    let run = trainer.train(&pairs(12)).unwrap();
    assert_eq!(losses(&run), losses(&plain));
    assert!(run.to_string().contains("micro-batches of 4 rows, 1 to a step"), "{run}");
    let again = trainer.resume(&run, &pairs(12)).unwrap();
    assert_eq!(losses(&again), losses(&plain));

    let tight = TrainingArgs { memory_budget: Some(100_000_000), ..roomy };
    let chosen = Trainer::new(&with_adapter(), &tight).train(&pairs(12));
    // What this process has already depends on the tests beside it: either nothing fits, and the
    // error says so, or something does.
    if let Err(error) = chosen {
        assert!(matches!(error, Error::Budget { .. }), "{error}");
    }
}

#[test]
fn a_run_is_written_for_tensorboard() {
    let dir = tempfile::tempdir().unwrap();
    // Kept where the peers' check looks, if it is asked for.
    let folder = std::env::var("TUNEBOOK_TEST_TENSORBOARD")
        .unwrap_or(dir.path().to_str().unwrap().to_owned());
    let args = TrainingArgs { epochs: 2, ..Default::default() };
    let trainer =
        Trainer::new(&with_adapter(), &args).with_callback(TensorBoard::create(&folder).unwrap());
    let run = trainer.train((&pairs(12), &pairs(2))).unwrap();
    let files: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let bytes = std::fs::read(&files[0]).unwrap();
    let count =
        |tag: &str| bytes.windows(tag.len()).filter(|window| *window == tag.as_bytes()).count();
    assert_eq!((count("train/loss"), count("eval/loss")), (run.steps.len(), run.evals.len()));
}
