//! What holds for every run, on the tiny model.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use tunebook_models::{Device, Model, Projection, Tensor};
use tunebook_progress::interrupt;
use tunebook_tune::{
    Adapters, Batch, Callback, Error, EvalRecord, EvalStrategy, Example, Lora, Result, Run,
    RunRecord, StepRecord, Stepper, StopReason, TokenizedExample, TokenizedSet, Trainer,
    TrainingArgs,
};

use crate::common::*;

fn pairs(count: usize) -> Vec<Example> {
    let words = ["red", "green", "a blue one", "7", "yes, and no", "é", "what?", "ok"];
    (0..count)
        .map(|i| Example::new(words[i % 8], format!("{} {}", words[(3 * i + 1) % 8], i)))
        .collect()
}

fn tokenized(model: &Model, examples: &[Example]) -> TokenizedSet {
    Trainer::new(model, &TrainingArgs::default()).tokenize(examples).unwrap()
}

fn batch_of(examples: &[&TokenizedExample]) -> Batch {
    Batch::new(examples, 0, &Device::Cpu).unwrap()
}

fn tensors(model: &Model) -> Vec<f32> {
    let stepper = Stepper::new(model, &TrainingArgs::default(), 1).unwrap();
    stepper.parameters().iter().flat_map(|parameter| values(parameter.var.as_tensor())).collect()
}

fn base_weights(model: &Model) -> Vec<Vec<f32>> {
    let mut weights: Vec<_> =
        model.slots().iter().map(|slot| values(&slot.base().weight())).collect();
    weights.push(values(&model.head_weight()));
    weights
}

fn losses(run: &Run) -> Vec<f64> {
    run.steps.iter().map(|record| record.loss).collect()
}

#[test]
fn a_new_adapter_changes_nothing() {
    let model = tiny();
    let before = logits(&model, &[1, 20, 30, 40, 50]);
    model.add_adapter("new", &Lora { init_lora_weights: true, ..random_lora() }).unwrap();
    assert_eq!(logits(&model, &[1, 20, 30, 40, 50]), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn merged_is_unmerged(r in 1usize..6, alpha in 0.5f64..20.0, use_rslora: bool, seed: u64, ids in prop::collection::vec(0u32..259, 1..20)) {
        let model = tiny();
        let base = logits(&model, &ids);
        let config = Lora { r, lora_alpha: alpha, use_rslora, init_seed: seed, ..random_lora() };
        model.add_adapter("a", &config).unwrap();
        let unmerged = logits(&model, &ids);
        model.merge_adapter("a").unwrap();
        let merged = logits(&model, &ids);
        // Where the adapter does next to nothing, nothing is shown.
        prop_assume!(relative_error(&unmerged, &base) > 1e-3);
        // A large update saturates the tiny model's attention, which magnifies the rounding of the
        // merged weight.
        let scaling = alpha / if use_rslora { (r as f64).sqrt() } else { r as f64 };
        let error = relative_error(&merged, &unmerged);
        prop_assert!(error < 1e-4 * scaling.max(1.0), "{error}");
        model.set_adapter("a").unwrap();
        prop_assert_eq!(logits(&model, &ids), unmerged, "unmerging is exact");
        model.disable_adapters();
        prop_assert_eq!(logits(&model, &ids), base, "so is switching off");
    }

    #[test]
    fn padding_and_neighbours_change_neither_loss_nor_gradient(seed: u64, count in 2usize..5) {
        let model = tiny();
        model.add_adapter("a", &Lora { init_seed: seed, ..random_lora() }).unwrap();
        let set = tokenized(&model, &pairs(count));
        let stepper = Stepper::new(&model, &TrainingArgs::default(), 1).unwrap();
        let rows: Vec<_> = set.examples.iter().collect();
        let together = stepper.gradients(&[batch_of(&rows)]).unwrap();
        // The same rows one by one: no padding, no neighbour.
        let alone: Vec<_> = rows.iter().map(|row| batch_of(&[row])).collect();
        let alone = stepper.gradients(&alone).unwrap();
        // And end to end: one row without padding, of which each sees itself.
        let joined = Batch::packed(std::slice::from_ref(&rows), 0, &Device::Cpu).unwrap();
        prop_assert_eq!(joined.ids.dims(), [1, joined.tokens]);
        let joined = stepper.gradients(&[joined]).unwrap();
        for other in [&together, &joined] {
            prop_assert!((other.0 / alone.0 - 1.0).abs() < 1e-5, "{} {}", other.0, alone.0);
            for (a, b) in other.1.iter().zip(alone.1.iter()) {
                prop_assert!(relative_error(&values(a.unwrap()), &values(b.unwrap())) < 1e-4);
            }
        }
    }
}

#[test]
fn micro_batches_are_one_large_batch() {
    let run = |batch_size, gradient_accumulation_steps| {
        let model = tiny();
        model.add_adapter("a", random_lora()).unwrap();
        let args = TrainingArgs {
            epochs: 2,
            batch_size,
            gradient_accumulation_steps,
            learning_rate: 1e-2,
            ..Default::default()
        };
        let run = Trainer::new(&model, &args).train(&pairs(12)).unwrap();
        // The norms too: AdamW and clipping would hide a gradient that is off by a factor.
        let numbers: Vec<_> =
            run.steps.iter().flat_map(|record| [record.loss, record.grad_norm]).collect();
        (numbers, tensors(&model))
    };
    let (one_losses, one) = run(6, 1);
    for (batch_size, accumulation) in [(3, 2), (2, 3), (1, 6)] {
        let (losses, tensors) = run(batch_size, accumulation);
        assert_eq!(losses.len(), one_losses.len());
        for (a, b) in losses.iter().zip(&one_losses) {
            assert!((a / b - 1.0).abs() < 1e-5, "{batch_size} x {accumulation}: {a} {b}");
        }
        assert!(relative_error(&tensors, &one) < 1e-3);
    }
}

#[test]
fn every_trainable_tensor_gets_a_gradient_and_no_frozen_one_changes() {
    let model = tiny();
    let before = base_weights(&model);
    model.add_adapter("a", random_lora()).unwrap();
    let set = tokenized(&model, &pairs(4));
    let rows: Vec<_> = set.examples.iter().collect();
    let stepper = Stepper::new(&model, &TrainingArgs::default(), 1).unwrap();
    let (_, gradients) = stepper.gradients(&[batch_of(&rows)]).unwrap();
    assert_eq!(stepper.parameters().len(), 2 * 7 * 2);
    for (parameter, gradient) in stepper.parameters().iter().zip(gradients.iter()) {
        let gradient = gradient.unwrap_or_else(|| panic!("{} has none", parameter.name));
        assert_eq!(gradient.dims(), parameter.var.dims());
        assert!(
            values(gradient).iter().any(|value| *value != 0.0),
            "{} is all zero",
            parameter.name
        );
    }
    let first = tensors(&model);
    Trainer::new(&model, &TrainingArgs { learning_rate: 1e-2, ..Default::default() })
        .train(&pairs(8))
        .unwrap();
    assert_ne!(tensors(&model), first);
    assert_eq!(base_weights(&model), before);
    assert!(model.slots().iter().all(|slot| !slot.base().weight().is_variable()));
}

#[test]
fn blocks_without_an_adapter_pass_gradients_on_or_need_none() {
    // An adapter in one block alone: the same gradients as that block gets within an adapter of
    // both.
    let rows = |model: &Model| tokenized(model, &pairs(3));
    let gradients = |config: &Lora| {
        let model = tiny();
        model.add_adapter("a", config).unwrap();
        let set = rows(&model);
        let stepper = Stepper::new(&model, &TrainingArgs::default(), 1).unwrap();
        let (_, gradients) =
            stepper.gradients(&[batch_of(&set.examples.iter().collect::<Vec<_>>())]).unwrap();
        let names: Vec<_> =
            stepper.parameters().iter().map(|parameter| parameter.name.clone()).collect();
        names
            .into_iter()
            .zip(gradients.iter().map(|g| values(g.unwrap())))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    // B is zero, so that one block's adapter changes nothing for the other.
    let config = Lora { init_lora_weights: true, ..random_lora() };
    let both = gradients(&config);
    for block in [0, 1] {
        let one = gradients(&Lora { layers_to_transform: Some(vec![block]), ..config.clone() });
        assert_eq!(one.len() * 2, both.len());
        for (name, gradient) in one {
            assert_eq!(gradient, both[&name], "{name}");
        }
    }
}

#[test]
fn a_new_adapter_starts_as_pefts_does() {
    let model = tiny();
    model.add_adapter("a", &Lora { r: 16, init_lora_weights: true, ..random_lora() }).unwrap();
    let stepper = Stepper::new(&model, &TrainingArgs::default(), 1).unwrap();
    let mut seen = Vec::new();
    for parameter in stepper.parameters().iter() {
        let found = values(parameter.var.as_tensor());
        if parameter.name.ends_with("lora_B") {
            assert!(found.iter().all(|value| *value == 0.0), "{}", parameter.name);
            continue;
        }
        // Kaiming uniform with a = sqrt(5): uniform in +-1/sqrt(in), whose variance is bound^2 / 3.
        let bound = 1.0 / (parameter.var.dims()[1] as f32).sqrt();
        let variance = found.iter().map(|value| value * value).sum::<f32>() / found.len() as f32;
        assert!(found.iter().all(|value| value.abs() <= bound), "{}", parameter.name);
        assert!(
            (variance / (bound * bound / 3.0) - 1.0).abs() < 0.2,
            "{}: {variance}",
            parameter.name
        );
        assert!(!seen.contains(&found), "{} is another's twin", parameter.name);
        seen.push(found);
    }
    assert_eq!(seen.len(), 14);
}

#[test]
fn one_seed_is_one_run() {
    let run = |seed, gradient_checkpointing| {
        let model = tiny();
        model.add_adapter("a", &Lora { lora_dropout: 0.2, ..random_lora() }).unwrap();
        let args = TrainingArgs {
            seed,
            gradient_checkpointing,
            learning_rate: 1e-2,
            ..Default::default()
        };
        let run = Trainer::new(&model, &args).train((&pairs(10), &pairs(3))).unwrap();
        let evals: Vec<_> = run.evals.iter().map(|record| record.loss).collect();
        (losses(&run), evals, tensors(&model))
    };
    let first = run(1, false);
    assert_eq!(run(1, false), first, "bit for bit");
    assert_eq!(run(1, true), first, "recomputed blocks draw the same dropout");
    assert_ne!(run(2, false).0, first.0);
}

#[test]
fn dropout_is_for_training_only() {
    let model = tiny();
    model.add_adapter("a", &Lora { lora_dropout: 0.5, ..random_lora() }).unwrap();
    let loss = |trainer: &Trainer| trainer.evaluate(&pairs(4)).unwrap().loss;
    let trainer = Trainer::new(&model, &TrainingArgs::default());
    let before = (loss(&trainer), logits(&model, &[1, 2, 3]));
    let set = tokenized(&model, &pairs(4));
    let stepper = Stepper::new(&model, &TrainingArgs::default(), 1).unwrap();
    let (sum, _) =
        stepper.gradients(&[batch_of(&set.examples.iter().collect::<Vec<_>>())]).unwrap();
    let tokens: usize = set.examples.iter().map(TokenizedExample::label_tokens).sum();
    assert!((sum / tokens as f64 - before.0).abs() > 1e-4, "training drops");
    assert_eq!((loss(&trainer), logits(&model, &[1, 2, 3])), before, "nothing else does");
}

#[test]
fn inference_builds_no_graph() {
    let model = tiny();
    model.add_adapter("a", random_lora()).unwrap();
    let ids = Tensor::new(&[[1u32, 2, 3]], &Device::Cpu).unwrap();
    assert!(!model.forward(&ids).unwrap().track_op());
    Trainer::new(&model, &TrainingArgs { max_steps: Some(1), ..Default::default() })
        .train(&pairs(4))
        .unwrap();
    assert!(!model.forward(&ids).unwrap().track_op(), "nor after training");
}

/// Presses Stop after a step.
struct StopAfter(usize);

impl Callback for StopAfter {
    fn on_step(&mut self, record: &StepRecord) -> Result<()> {
        if record.step == self.0 {
            interrupt::request();
        }
        Ok(())
    }
}

#[test]
fn stopped_and_resumed_is_never_stopped() {
    let args = TrainingArgs {
        batch_size: 2,
        learning_rate: 1e-2,
        eval_strategy: EvalStrategy::Steps(4),
        gradient_accumulation_steps: 2,
        ..Default::default()
    };
    let model = || {
        let model = tiny();
        model.add_adapter("a", &Lora { lora_dropout: 0.1, ..random_lora() }).unwrap();
        model
    };
    let (train, validation) = (pairs(13), pairs(3));
    let whole_model = model();
    let whole = Trainer::new(&whole_model, &args).train((&train, &validation)).unwrap();
    assert_eq!((whole.steps.len(), whole.stopped), (12, None));

    for stop in [1, 5, 11] {
        interrupt::reset();
        let model = model();
        let stopped = Trainer::new(&model, &args)
            .with_callback(StopAfter(stop))
            .train((&train, &validation))
            .unwrap();
        assert_eq!((stopped.steps.len(), stopped.stopped), (stop, Some(StopReason::Interrupted)));
        assert!(stopped.to_string().contains("stopped on request"), "{stopped}");
        let at_stop = tensors(&model);
        interrupt::reset();
        // Something else happens to the weights in between.
        Trainer::new(&model, &args).train(&pairs(4)).unwrap();
        assert_ne!(tensors(&model), at_stop);
        let resumed = Trainer::new(&model, &args).resume(&stopped, (&train, &validation)).unwrap();
        assert_eq!(resumed.stopped, None);
        assert_eq!(losses(&resumed), losses(&whole), "stopped after {stop}");
        let evals =
            |run: &Run| run.evals.iter().map(|eval| (eval.step, eval.loss)).collect::<Vec<_>>();
        assert_eq!(evals(&resumed), evals(&whole));
        assert_eq!(tensors(&model), tensors(&whole_model));
    }
}

#[test]
fn a_run_goes_on_only_as_itself() {
    let args = TrainingArgs::default();
    let model = tiny();
    model.add_adapter("a", random_lora()).unwrap();
    let stopped = Trainer::new(&model, &args).with_callback(StopAfter(1)).train(&pairs(9)).unwrap();
    interrupt::reset();
    let resume = |args: TrainingArgs, rows| {
        Trainer::new(&model, &args).resume(&stopped, &pairs(rows)).unwrap_err().to_string()
    };
    let error = resume(TrainingArgs { learning_rate: 1e-3, seed: 1, ..args.clone() }, 9);
    let expected = "`TrainingArgs.learning_rate` is 0.001, and was 0.0002; `TrainingArgs.seed` is 1, and was 42.";
    assert!(error.contains(expected), "{error}");
    assert!(resume(args.clone(), 8).contains("training set"));
    model.add_adapter("b", random_lora()).unwrap();
    assert!(resume(args, 9).contains("`a`, and `b` is active"));
}

/// Keeps what it sees.
#[derive(Default, Clone)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Callback for Seen {
    fn on_start(&mut self, plan: &tunebook_tune::Plan) -> Result<()> {
        self.0.lock().unwrap().push(format!("start {}", plan.total_steps));
        Ok(())
    }

    fn on_step(&mut self, record: &StepRecord) -> Result<()> {
        self.0.lock().unwrap().push(format!("step {} {:.2}", record.step, record.epoch));
        Ok(())
    }

    fn on_eval(&mut self, record: &EvalRecord) -> Result<()> {
        self.0.lock().unwrap().push(format!("eval {} {:.2}", record.step, record.epoch));
        Ok(())
    }

    fn on_end(&mut self, run: &RunRecord) -> Result<()> {
        self.0.lock().unwrap().push(format!("end {}", run.steps.len()));
        Ok(())
    }
}

#[test]
fn records_come_in_order() {
    let model = tiny();
    model.add_adapter("a", random_lora()).unwrap();
    let seen = |args: TrainingArgs| {
        let seen = Seen::default();
        Trainer::new(&model, &args)
            .with_callback(seen.clone())
            .train((&pairs(6), &pairs(2)))
            .unwrap();
        seen.0.lock().unwrap().join(", ")
    };
    assert_eq!(
        seen(TrainingArgs { epochs: 2, ..Default::default() }),
        "start 4, step 1 0.50, step 2 1.00, eval 2 1.00, step 3 1.50, step 4 2.00, eval 4 2.00, end 4"
    );
    let args = TrainingArgs {
        max_steps: Some(3),
        eval_strategy: EvalStrategy::Steps(2),
        eval_on_start: true,
        ..Default::default()
    };
    assert_eq!(
        seen(args),
        "start 3, eval 0 0.00, step 1 0.50, step 2 1.00, eval 2 1.00, step 3 1.50, eval 3 1.50, end 3"
    );
    assert!(
        !seen(TrainingArgs { eval_strategy: EvalStrategy::No, ..Default::default() })
            .contains("eval")
    );
}

#[test]
fn evaluation_is_the_mean_over_label_tokens_whatever_the_batches() {
    let model = tiny();
    model.add_adapter("a", random_lora()).unwrap();
    let loss = |eval_batch_size| {
        let args = TrainingArgs { eval_batch_size, ..Default::default() };
        let record = Trainer::new(&model, &args).evaluate(&pairs(7)).unwrap();
        (record.loss, record.label_tokens)
    };
    let one = loss(1);
    for eval_batch_size in [2, 3, 7, 100] {
        let other = loss(eval_batch_size);
        assert!((other.0 / one.0 - 1.0).abs() < 1e-6 && other.1 == one.1, "{other:?} {one:?}");
    }
}

#[test]
fn training_learns() {
    let model = tiny();
    model.add_adapter("a", &Lora { r: 8, init_lora_weights: true, ..random_lora() }).unwrap();
    let args = TrainingArgs { epochs: 30, learning_rate: 2e-2, ..Default::default() };
    let run = Trainer::new(&model, &args).train((&pairs(8), &pairs(8))).unwrap();
    let (first, last) = (run.steps[0].loss, run.recent_loss(2).unwrap());
    assert!(last < 0.7 * first, "{first} -> {last}");
    let record = run.evals.last().unwrap();
    assert!((record.loss / last - 1.0).abs() < 0.2, "the set is the same: {} {last}", record.loss);
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_names_the_rows() {
    let model = tiny();
    model.add_adapter("a", random_lora()).unwrap();
    let before = tensors(&model);
    let parameters = Stepper::new(&model, &TrainingArgs::default(), 1).unwrap();
    let poisoned = parameters.parameters().iter().next().unwrap().var.clone();
    let good = poisoned.as_tensor().copy().unwrap();
    poisoned.set(&(&good * f64::NAN).unwrap()).unwrap();
    let error = Trainer::new(&model, &TrainingArgs::default()).train(&pairs(3)).unwrap_err();
    let Error::NotFinite { step: 1, mut rows, .. } = error else { panic!("{error}") };
    rows.sort_unstable();
    assert_eq!(rows, [0, 1, 2]);
    poisoned.set(&good).unwrap();
    assert_eq!(tensors(&model), before);
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let model = tiny();
    let fit = |args: &TrainingArgs, train: &[Example]| {
        Trainer::new(&model, args).train(train).unwrap_err().to_string()
    };
    let args = TrainingArgs::default();
    assert!(fit(&args, &pairs(2)).contains("add_adapter"));
    model.add_adapter("a", random_lora()).unwrap();
    assert!(fit(&args, &[]).contains("training set is empty"));
    assert!(
        fit(&TrainingArgs { epochs: 0, ..args.clone() }, &pairs(2))
            .contains("`TrainingArgs.epochs` is 0")
    );
    let long = [Example::new("x", "y"), Example::new("x", "too long ".repeat(20))];
    let error = fit(&args, &long);
    assert!(
        error.contains("1 of 2 examples") && error.contains("64 tokens") && error.contains("row 1"),
        "{error}"
    );
    let error = fit(&TrainingArgs { max_length: Some(65), ..args.clone() }, &pairs(2));
    let says = "`TrainingArgs.max_length` is 65, expected at most 64";
    assert!(error.contains(says), "{error}");
    let no_rows = TrainingArgs { eval_metrics_rows: Some(0), ..args.clone() };
    assert!(fit(&no_rows, &pairs(2)).contains("`TrainingArgs.eval_metrics_rows` is 0"));
    let run =
        Trainer::new(&model, &TrainingArgs { max_length: Some(64), ..args }).train(&long).unwrap();
    assert_eq!(run.plan.truncated, 1);
    assert!(run.to_string().contains("1 examples were cut off"), "{run}");
    model.disable_adapters();
    assert!(fit(&TrainingArgs::default(), &pairs(2)).contains("resident but not active: a"));
}

/// Presses Stop while a checkpoint's step is being recorded, that is before the evaluation and the
/// checkpoint that are due.
#[test]
fn what_was_due_when_stopped_is_done_on_resuming() {
    let args =
        TrainingArgs { batch_size: 2, eval_strategy: EvalStrategy::Steps(2), ..Default::default() };
    let model = tiny();
    model.add_adapter("a", random_lora()).unwrap();
    let trainer = || Trainer::new(&model, &args);
    let stopped = trainer().with_callback(StopAfter(2)).train((&pairs(4), &pairs(2))).unwrap();
    interrupt::reset();
    assert_eq!((stopped.steps.len(), stopped.evals.len()), (2, 0));
    let resumed = trainer().resume(&stopped, (&pairs(4), &pairs(2))).unwrap();
    assert_eq!(resumed.evals.iter().map(|eval| eval.step).collect::<Vec<_>>(), [2, 4, 6]);
    assert_eq!(resumed.plan.done_steps, 2);
}

#[test]
fn early_stopping_stops_and_the_best_weights_come_back() {
    // Learning by heart ten times too fast: the validation loss falls, then rises.
    let args = TrainingArgs {
        epochs: 60,
        learning_rate: 5e-2,
        early_stopping_patience: Some(2),
        load_best_model_at_end: true,
        ..Default::default()
    };
    let model = tiny();
    model.add_adapter("a", random_lora()).unwrap();
    let trainer = Trainer::new(&model, &args);
    let (train, validation) = (pairs(4), &pairs(16)[8..]);
    let run = trainer.train((&train, validation)).unwrap();
    let best = run.best_eval().unwrap();
    assert_eq!(run.stopped, Some(StopReason::EarlyStopping), "{run}");
    assert_eq!(run.loaded_step, Some(best.step));
    assert_eq!(run.evals[run.evals.len() - 3].step, best.step, "two evaluations came after it");
    assert!(run.eval_loss().unwrap() > best.loss);
    assert_eq!(trainer.evaluate(validation).unwrap().loss, best.loss, "its weights are loaded");
    assert!(run.to_string().contains(&format!("the weights of step {}", best.step)), "{run}");

    // The same through a saved run.
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("run");
    run.save(&dir).unwrap();
    let loaded = Run::load(&dir).unwrap();
    assert_eq!((loaded.stopped, loaded.loaded_step), (run.stopped, run.loaded_step));

    let refused = Trainer::new(&model, &args).train(&train).unwrap_err().to_string();
    assert!(refused.contains("validation set is empty"), "{refused}");
}

#[test]
fn a_log_holds_every_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("logs/run.jsonl");
    let model = tiny();
    model.add_adapter("a", random_lora()).unwrap();
    let log = tunebook_tune::RunLog::append(&path).unwrap();
    let args = TrainingArgs { epochs: 1, ..Default::default() };
    let run = Trainer::new(&model, &args).with_callback(log).train((&pairs(8), &pairs(2))).unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<_> = lines.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["start", "step", "step", "eval", "end"]);
    assert_eq!(lines[2]["loss"].as_f64().unwrap() as f32, run.steps[1].loss as f32);
    assert_eq!(lines[3]["step"], 2);
}
