//! Dynamic loss scaling, over a model in f16 and, for exactness, over one in f32.

use tunebook_models::{DType, Device, Model};
use tunebook_tune::{
    Adapters, Error, Example, Full, FullTuning, Lora, Run, SaveStrategy, Trainer, TrainingArgs,
};

use crate::common::*;

fn pairs() -> Vec<Example> {
    (0..16).map(|i| Example::new(format!("{i}"), format!("{} {}", i * 7 % 11, i * 3))).collect()
}

fn args() -> TrainingArgs {
    TrainingArgs { max_steps: Some(20), learning_rate: 1e-2, fp16: true, ..Default::default() }
}

fn with_adapter(dtype: DType) -> Model {
    let model = Model::load_as(tiny_path(), Some(dtype), &Device::Cpu).unwrap();
    let lora =
        Lora { r: 4, lora_dropout: 0.1, target_modules: "all-linear".into(), ..Default::default() };
    model.add_adapter("a", &lora).unwrap();
    model
}

/// All of a run that must be the same, bit for bit.
fn course(run: &Run) -> Vec<(u64, u64, u64, Option<u64>, bool)> {
    run.steps
        .iter()
        .map(|s| {
            let scale = s.loss_scale.map(f64::to_bits);
            (s.loss.to_bits(), s.learning_rate.to_bits(), s.grad_norm.to_bits(), scale, s.skipped)
        })
        .collect()
}

#[test]
fn a_power_of_two_changes_no_bit_where_nothing_overflows() {
    let runs = [true, false].map(|fp16| {
        let run = Trainer::new(&with_adapter(DType::F32), &TrainingArgs { fp16, ..args() })
            .train(&pairs())
            .unwrap();
        run.steps.iter().map(|s| (s.loss.to_bits(), s.grad_norm.to_bits())).collect::<Vec<_>>()
    });
    assert_eq!(runs[0], runs[1]);
}

#[test]
fn a_model_in_f16_trains_and_real_overflows_skip_their_step() {
    // So large that a gradient in f16 overflows, and f32 ones would not.
    let args = TrainingArgs {
        fp16_init_scale: 2f64.powi(24),
        lr_scheduler: tunebook_tune::LrScheduler::Linear,
        ..args()
    };
    let model = with_adapter(DType::F16);
    let before = values(&model.forward(&ids()).unwrap().to_dtype(DType::F32).unwrap());
    let run = Trainer::new(&model, &args).train(&pairs()).unwrap();
    let skipped = run.steps.iter().take_while(|step| step.skipped).count();
    assert!((1..12).contains(&skipped), "{skipped} steps were skipped");
    for (index, step) in run.steps.iter().enumerate() {
        let halvings = index.min(skipped);
        assert_eq!(step.loss_scale, Some(2f64.powi(24 - halvings as i32)), "step {}", step.step);
        assert_eq!(step.skipped, index < skipped);
        assert_eq!(step.grad_norm.is_finite(), !step.skipped);
        assert!(step.loss.is_finite());
        // The schedule waits: a skipped step's rate comes again.
        let schedule = tunebook_tune::Schedule::new(
            args.lr_scheduler,
            args.learning_rate,
            args.warmup(20),
            20,
        );
        assert_eq!(step.learning_rate, schedule.learning_rate(index.saturating_sub(skipped)));
    }
    assert!(run.steps[19].loss < 0.9 * run.steps[0].loss);
    assert_ne!(values(&model.forward(&ids()).unwrap().to_dtype(DType::F32).unwrap()), before);

    // The losses are those of f32 to the precision of f16.
    let plain = TrainingArgs { fp16_init_scale: 1024.0, ..args };
    let half = Trainer::new(&with_adapter(DType::F16), &plain).train(&pairs()).unwrap();
    let full = Trainer::new(&with_adapter(DType::F32), &plain).train(&pairs()).unwrap();
    for (half, full) in half.steps.iter().zip(&full.steps) {
        assert!(
            !half.skipped && (half.loss / full.loss - 1.0).abs() < 1e-2,
            "{} {}",
            half.loss,
            full.loss
        );
    }
}

fn ids() -> tunebook_models::Tensor {
    tunebook_models::Tensor::new(&[[1u32, 20, 30, 40]], &Device::Cpu).unwrap()
}

#[test]
fn an_overflowed_step_changes_nothing() {
    let model = with_adapter(DType::F32);
    let before = logits(&model, &[1, 20, 30, 40]);
    // Beyond f32 itself, with weight decay that would show.
    let args = TrainingArgs {
        max_steps: Some(4),
        fp16_init_scale: 2f64.powi(150),
        weight_decay: 0.5,
        warmup_ratio: 0.0,
        ..args()
    };
    let run = Trainer::new(&model, &args).train(&pairs()).unwrap();
    assert!(run.steps.iter().all(|step| step.skipped));
    assert_eq!(logits(&model, &[1, 20, 30, 40]), before);
}

#[test]
fn the_scale_survives_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let args = TrainingArgs {
        fp16_init_scale: 2f64.powi(24),
        save_strategy: SaveStrategy::Steps(3),
        output_dir: Some(dir.path().to_owned()),
        ..args()
    };
    let model = with_adapter(DType::F16);
    let whole = Trainer::new(&model, &args).train(&pairs()).unwrap();
    let expected = values(&model.forward(&ids()).unwrap().to_dtype(DType::F32).unwrap());
    assert!(whole.steps[2].skipped || whole.steps[0].skipped);
    for step in [3, 9, 18] {
        let path = dir.path().join(format!("checkpoint-{step}"));
        let from = Run::load(&path).unwrap();
        assert_eq!(course(&from), course(&whole)[..step]);
        let model = with_adapter(DType::F16);
        let resumed = Trainer::new(&model, &args).resume(&from, &pairs()).unwrap();
        assert_eq!(course(&resumed), course(&whole), "from step {step}");
        assert_eq!(values(&model.forward(&ids()).unwrap().to_dtype(DType::F32).unwrap()), expected);
    }
}

#[test]
fn what_no_scale_cures_ends_the_run() {
    // A gradient that is not a number at any scale: infinite B beside A = 0 gives a finite loss
    // only where nothing flows, so the adapter itself is made of it.
    let model = with_adapter(DType::F32);
    let args = TrainingArgs { max_steps: Some(40), fp16_init_scale: 4.0, ..args() };
    let mut stepper = tunebook_tune::Stepper::new(&model, &args, 40).unwrap();
    for parameter in
        stepper.parameters().iter().filter(|p| p.name.ends_with("0.mlp.down_proj.lora_A"))
    {
        // Finite as it is used (B is zero), infinite in B's gradient.
        parameter.var.set(&(parameter.var.ones_like().unwrap() * 3e38).unwrap()).unwrap();
    }
    let set = Trainer::new(&model, &args).tokenize(&pairs()[..2]).unwrap();
    let batch =
        tunebook_tune::Batch::new(&set.examples.iter().collect::<Vec<_>>(), 0, &Device::Cpu)
            .unwrap();
    let mut outcomes = Vec::new();
    let error = loop {
        match stepper.step(std::slice::from_ref(&batch)) {
            Ok(outcome) => outcomes.push(outcome),
            Err(error) => break error,
        }
        assert!(outcomes.len() < 10);
    };
    match error {
        // 4, 2, and at 1 it is the gradient's own.
        Error::GradientNotFinite { .. } => assert!(outcomes.len() == 2 && outcomes[1].skipped),
        Error::NotFinite { .. } => assert!(outcomes.is_empty()),
        other => panic!("{other}"),
    }
}

#[test]
fn full_fine_tuning_keeps_masters_in_f32() {
    let model = Model::load_as(tiny_path(), Some(DType::F16), &Device::Cpu).unwrap();
    let info = model.unfreeze(&Full::default()).unwrap();
    assert_eq!(info.trainable_parameters, model.parameter_count());
    // Steps that f16 could not add: 1e-5 beside weights of about 0.1.
    let args =
        TrainingArgs { learning_rate: 1e-5, fp16_init_scale: 1024.0, warmup_ratio: 0.0, ..args() };
    let run = Trainer::new(&model, &args).train(&pairs()).unwrap();
    assert!(run.steps.iter().all(|step| !step.skipped));
    assert!(model.weights().iter().all(|weight| weight.get().dtype() == DType::F32));
    let plain = tiny();
    plain.unfreeze(&Full::default()).unwrap();
    let exact = Trainer::new(&plain, &args).train(&pairs()).unwrap();
    assert!(exact.steps[19].loss < exact.steps[0].loss);
    for (half, full) in run.steps.iter().zip(&exact.steps) {
        assert!((half.loss / full.loss - 1.0).abs() < 5e-3, "{} {}", half.loss, full.loss);
    }
}
