//! Regularisation towards the start: L2-SP and KL to the base.

use std::path::Path;

use tunebook_models::{DType, Device, Model, Quantization, TokenizedText};
use tunebook_ops::IGNORE;
use tunebook_tune::{
    AdapterConfig, Adapters, Batch, Error, Example, Full, FullTuning, Gradients, Lora, LrScheduler,
    PrefixTuning, PromptTuning, Run, SaveStrategy, Stepper, TokenizedExample, Trainer,
    TrainingArgs,
};

use crate::common::*;

fn rows(count: usize) -> Vec<Example> {
    (0..count).map(|i| Example::new(format!("{i}"), format!("{} {}", i * 7 % 11, i * 3))).collect()
}

fn with_adapter(config: impl Into<AdapterConfig>) -> Model {
    let model = tiny();
    let config: AdapterConfig = config.into();
    model.add_adapter("a", &config).unwrap();
    model
}

fn penalised(kl_coef: f64) -> TrainingArgs {
    TrainingArgs { kl_coef, ..Default::default() }
}

fn tokenized(model: &Model, count: usize) -> Vec<TokenizedExample> {
    Trainer::new(model, &TrainingArgs::default()).tokenize(&rows(count)).unwrap().examples
}

fn together(examples: &[TokenizedExample]) -> Batch {
    Batch::new(&examples.iter().collect::<Vec<_>>(), 0, &Device::Cpu).unwrap()
}

/// The summed KL(base ‖ model), as `Model::divergences` has it.
fn divergence(model: &Model, base: &Model, examples: &[TokenizedExample]) -> f64 {
    let texts: Vec<TokenizedText> = examples
        .iter()
        .map(|example| TokenizedText {
            ids: example.ids.clone(),
            loss_mask: example.labels.iter().map(|label| *label != IGNORE).collect(),
        })
        .collect();
    model.divergences(base, &texts).unwrap().iter().map(|found| found.sum).sum()
}

fn all(gradients: &Gradients) -> Vec<Vec<f32>> {
    gradients.iter().map(|gradient| values(gradient.unwrap())).collect()
}

/// Moves every trained tensor a little, each number another way.
fn stir(stepper: &Stepper, size: f32) {
    for (number, parameter) in stepper.parameters().iter().enumerate() {
        let mut moved = values(parameter.var.as_tensor());
        for (i, value) in moved.iter_mut().enumerate() {
            *value += size * ((i * 31 + number * 17) as f32).sin();
        }
        put(parameter, &moved);
    }
}

fn put(parameter: &tunebook_tune::Parameter, values: &[f32]) {
    let shape = parameter.var.shape();
    let tensor = tunebook_models::Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
    parameter.var.set(&tensor).unwrap();
}

/// The gradient that the penalty adds, tensor by tensor, along itself against the difference of two
/// divergences, which are computed in another way. Then the step says how large the penalty was.
fn check_gradient(model: &Model, base: &Model, what: &str) {
    let mut stepper = Stepper::new(model, &penalised(2.0), 1).unwrap();
    let plain = Stepper::new(model, &penalised(0.0), 1).unwrap();
    stir(&stepper, 0.02);
    let examples = tokenized(model, 5);
    let batches = [together(&examples[..2]), together(&examples[2..])];
    let tokens: usize = batches.iter().map(|batch| batch.label_tokens).sum();
    let (loss, with) = stepper.gradients(&batches).unwrap();
    let (same, without) = plain.gradients(&batches).unwrap();
    assert_eq!(loss, same, "{what}: the loss that is reported is the cross-entropy");
    let (with, without) = (all(&with), all(&without));
    let mut checked = 0;
    for ((parameter, with), without) in stepper.parameters().iter().zip(&with).zip(&without) {
        let added: Vec<f64> =
            with.iter().zip(without).map(|(a, b)| f64::from(a - b) * tokens as f64 / 2.0).collect();
        let norm = added.iter().map(|value| value * value).sum::<f64>().sqrt();
        // The rounding of f32 logits, over the step.
        if norm < 0.02 {
            continue;
        }
        let before = values(parameter.var.as_tensor());
        let step = 5e-3 / norm;
        let at = |sign: f64| {
            let moved: Vec<f32> = before
                .iter()
                .zip(&added)
                .map(|(value, way)| (f64::from(*value) + sign * step * way) as f32)
                .collect();
            put(parameter, &moved);
            divergence(model, base, &examples)
        };
        let slope = (at(1.0) - at(-1.0)) / 1e-2;
        put(parameter, &before);
        let error = (slope / norm - 1.0).abs();
        assert!(error < 0.02, "{what}, {}: {norm} but a slope of {slope}", parameter.name);
        checked += 1;
    }
    assert!(checked > 0, "{what}: no gradient large enough");
    let expected = divergence(model, base, &examples) / tokens as f64;
    let found = stepper.step(&batches).unwrap().kl.unwrap();
    assert!(found > 1e-4, "{what}: {found}");
    assert!((found / expected - 1.0).abs() < 1e-3, "{what}: {found} != {expected}");
}

#[test]
fn the_penalty_s_gradient_is_the_slope_of_the_divergence() {
    // DoRA is none of them: its norms count as constants, so its gradients are no slopes.
    let with_norms = Lora { modules_to_save: vec!["norm".to_owned()], ..random_lora() };
    for (what, config) in [
        ("lora", AdapterConfig::from(random_lora())),
        ("lora and norms", with_norms.into()),
        ("prompt tuning", PromptTuning { num_virtual_tokens: 3, ..Default::default() }.into()),
        ("prefix tuning", PrefixTuning { num_virtual_tokens: 3, ..Default::default() }.into()),
    ] {
        let model = with_adapter(config);
        check_gradient(&model, &model.base(), what);
    }
}

#[test]
fn of_full_fine_tuning_the_base_is_the_model_as_it_was() {
    let (model, base) = (tiny(), tiny());
    model.unfreeze(&Full::default()).unwrap();
    check_gradient(&model, &base, "full");
}

#[test]
fn a_quantised_base_is_compared_with_as_it_answers() {
    let model = Model::load_quantized(tiny_path(), Quantization::Nf4, &Device::Cpu).unwrap();
    model.add_adapter("a", random_lora()).unwrap();
    check_gradient(&model, &model.base(), "nf4");
}

#[test]
fn however_rows_are_put_together_the_gradient_is_the_same() {
    let model = with_adapter(random_lora());
    let examples = tokenized(&model, 6);
    let gradients = |args: TrainingArgs, batches: &[Batch]| {
        let (loss, gradients) = Stepper::new(&model, &args, 1).unwrap().gradients(batches).unwrap();
        (loss, all(&gradients))
    };
    let padded = gradients(penalised(0.7), &[together(&examples)]);
    let alone: Vec<Batch> = examples.chunks(1).map(together).collect();
    let refs: Vec<_> = examples.iter().collect();
    let packed = [refs[..2].to_vec(), refs[2..].to_vec()];
    let packed = Batch::packed(&packed, 0, &Device::Cpu).unwrap();
    for batches in [alone, vec![packed]] {
        let found = gradients(penalised(0.7), &batches);
        assert!((found.0 / padded.0 - 1.0).abs() < 1e-5);
        for (found, expected) in found.1.iter().zip(&padded.1) {
            assert!(relative_error(found, expected) < 1e-4);
        }
    }
    let again = TrainingArgs { gradient_checkpointing: true, ..penalised(0.7) };
    assert_eq!(gradients(again, &[together(&examples)]), padded, "bit for bit");
    // And it is another one than without.
    let plain = gradients(penalised(0.0), &[together(&examples)]);
    assert_eq!(plain.0, padded.0);
    assert!(relative_error(&plain.1[0], &padded.1[0]) > 1e-3);
}

#[test]
fn bf16_and_f16_come_close_to_f32() {
    let of = |dtype: DType, fp16: bool| {
        let model = Model::load_as(tiny_path(), Some(dtype), &Device::Cpu).unwrap();
        model.add_adapter("a", random_lora()).unwrap();
        // At a scale at which nothing overflows.
        let args = TrainingArgs { fp16, fp16_init_scale: 64.0, ..penalised(3.0) };
        let mut stepper = Stepper::new(&model, &args, 1).unwrap();
        stir(&stepper, 0.02);
        let batch = [together(&tokenized(&model, 4))];
        let gradients = all(&stepper.gradients(&batch).unwrap().1).concat();
        (stepper.step(&batch).unwrap().kl.unwrap(), gradients)
    };
    let expected = of(DType::F32, false);
    for (dtype, fp16) in [(DType::BF16, false), (DType::F16, true)] {
        let found = of(dtype, fp16);
        assert!((found.0 / expected.0 - 1.0).abs() < 0.1, "{dtype:?}: {} {}", found.0, expected.0);
        let error = relative_error(&found.1, &expected.1);
        assert!(error < 0.1, "{dtype:?}: {error}");
    }
}

fn course(run: &Run) -> Vec<(u64, u64, Option<u64>)> {
    let bits = |step: &tunebook_tune::StepRecord| {
        (step.loss.to_bits(), step.grad_norm.to_bits(), step.kl.map(f64::to_bits))
    };
    run.steps.iter().map(bits).collect()
}

#[test]
fn a_penalised_adapter_stays_nearer_to_the_base() {
    let run = |kl_coef: f64| {
        let model = with_adapter(Lora { init_lora_weights: true, ..random_lora() });
        let args = TrainingArgs {
            max_steps: Some(30),
            learning_rate: 1e-2,
            warmup_ratio: 0.0,
            ..penalised(kl_coef)
        };
        let run = Trainer::new(&model, &args).train(&rows(8)).unwrap();
        let moved = divergence(&model, &model.base(), &tokenized(&model, 8));
        (run, moved)
    };
    let (plain, far) = run(0.0);
    let (held, near) = run(10.0);
    assert!(near < 0.5 * far, "{near} {far}");
    // B is zeros: nothing has moved, and the penalty has no gradient.
    let kl = held.steps[0].kl.unwrap();
    assert!(kl.abs() < 1e-6, "{kl}");
    assert_eq!(held.steps[0].loss, plain.steps[0].loss);
    assert!((held.steps[0].grad_norm / plain.steps[0].grad_norm - 1.0).abs() < 1e-4);
    assert!(plain.steps.iter().all(|step| step.kl.is_none()));
    assert!(held.steps[29].kl.unwrap() > 0.0);
}

#[test]
fn l2_sp_draws_each_tensor_towards_its_first_value_beside_adams_step() {
    let three_steps = |l2_sp: f64| {
        let model = with_adapter(random_lora());
        let args = TrainingArgs {
            l2_sp,
            learning_rate: 1e-2,
            weight_decay: 0.0,
            lr_scheduler: LrScheduler::Constant,
            warmup_ratio: 0.0,
            ..Default::default()
        };
        let mut stepper = Stepper::new(&model, &args, 3).unwrap();
        let batch = [together(&tokenized(&model, 4))];
        let now = |stepper: &Stepper| -> Vec<f32> {
            stepper.parameters().iter().flat_map(|p| values(p.var.as_tensor())).collect()
        };
        let mut after = vec![now(&stepper)];
        for _ in 0..2 {
            stepper.step(&batch).unwrap();
            after.push(now(&stepper));
        }
        after
    };
    let (plain, drawn) = (three_steps(0.0), three_steps(20.0));
    assert_eq!(plain[..2], drawn[..2], "at the start there is nowhere to be drawn to");
    let part = 1e-2 * 20.0;
    let mut largest = 0f32;
    for i in 0..plain[0].len() {
        let expected = plain[2][i] - part * (plain[1][i] - plain[0][i]);
        assert!((drawn[2][i] - expected).abs() < 1e-6, "{} {expected}", drawn[2][i]);
        largest = largest.max((drawn[2][i] - plain[2][i]).abs());
    }
    assert!(largest > 1e-3, "{largest}");
}

fn saved(dir: &Path) -> TrainingArgs {
    TrainingArgs {
        epochs: 2,
        batch_size: 2,
        learning_rate: 1e-2 / 3.0,
        l2_sp: 30.0,
        kl_coef: 0.5,
        save_strategy: SaveStrategy::Steps(2),
        output_dir: Some(dir.join("run")),
        ..Default::default()
    }
}

/// The start and the base of full fine-tuning come back from the checkpoint: a run that goes on is
/// drawn to where the whole run began.
#[test]
fn a_run_that_goes_on_is_drawn_to_where_it_began() {
    for full in [false, true] {
        let model = || match full {
            false => with_adapter(random_lora()),
            true => {
                let model = tiny();
                model.unfreeze(&Full::default()).unwrap();
                model
            }
        };
        let dir = tempfile::tempdir().unwrap();
        let args = saved(dir.path());
        let whole = Trainer::new(&model(), &args).train(&rows(8)).unwrap();
        assert_eq!(whole.steps.len(), 8);
        assert!(whole.steps[7].kl.unwrap() > 0.0);
        let half = Run::load(dir.path().join("run/checkpoint-4")).unwrap();
        assert_eq!(course(&half), course(&whole)[..4]);
        let there = tempfile::tempdir().unwrap();
        let args = TrainingArgs { output_dir: Some(there.path().join("run")), ..args };
        let resumed = Trainer::new(&model(), &args).resume(&half, &rows(8)).unwrap();
        assert_eq!(course(&resumed), course(&whole), "full: {full}");
        // Another coefficient is another run.
        let other = TrainingArgs { l2_sp: 0.0, ..args };
        let error = Trainer::new(&model(), &other).resume(&half, &rows(8)).unwrap_err();
        assert!(matches!(error, Error::Continue { .. }) && error.to_string().contains("l2_sp"));
    }
}

#[test]
fn the_table_before_a_run_counts_the_copy_and_the_compared_logits() {
    let summary = |model: &Model, args: &TrainingArgs| {
        let found = Trainer::new(model, args).summary(&rows(4)).unwrap();
        let numbers = found.trainable_parameters as u64;
        (found.optimizer_bytes / numbers, found.logits_bytes)
    };
    let (adapter, full) = (with_adapter(random_lora()), tiny());
    full.unfreeze(&Full::default()).unwrap();
    let drawn = TrainingArgs { l2_sp: 1.0, ..Default::default() };
    let plain = summary(&adapter, &penalised(0.0));
    assert_eq!(plain.0, 8);
    assert_eq!(summary(&adapter, &drawn), (12, plain.1));
    let compared = summary(&adapter, &penalised(1.0));
    assert!(compared.0 == 8 && compared.1 > plain.1, "{compared:?} {plain:?}");
    assert_eq!(summary(&full, &penalised(1.0)).0, 12);
    assert_eq!(summary(&full, &penalised(0.0)).0, 8);
}
