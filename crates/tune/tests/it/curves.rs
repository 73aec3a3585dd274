//! A hundred steps of the fused operations beside a hundred of the naive composition, which candle
//! differentiates: rounding may differ from operation to operation, the loss curve may not.

use tunebook_models::Model;
use tunebook_ops as ops;
use tunebook_tune::{
    Adapters, Example, Full, FullTuning, Lora, LrScheduler, Trainer, TrainingArgs,
};

use crate::common::*;

fn pairs(count: usize) -> Vec<Example> {
    let words = ["late", "why", "old", "card", "new", "thank", "it", "hi", "box", "ask"];
    let text = |seed: usize, length: usize| {
        (0..length)
            .map(|i| words[(seed * 7 + i * (seed + 3)) % words.len()])
            .collect::<Vec<_>>()
            .join(" ")
    };
    (0..count).map(|i| Example::new(text(i, 1 + i % 4), text(i + 31, 1 + i % 3))).collect()
}

/// The largest relative difference of two curves of the same run, fused and naive.
fn difference(
    what: &str,
    args: &TrainingArgs,
    examples: &[Example],
    start: impl Fn() -> Model,
) -> f64 {
    let curve = |naive: bool| {
        ops::compose(naive);
        let run = Trainer::new(&start(), args).train(examples).unwrap();
        ops::compose(false);
        run.steps.iter().map(|step| step.loss).collect::<Vec<_>>()
    };
    let (fused, naive) = (curve(false), curve(true));
    assert_eq!((fused.len(), naive.len()), (100, 100));
    assert_ne!(fused, naive, "{what}: the same operations twice");
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    assert!(mean(&fused[90..]) < 0.9 * mean(&fused[..10]), "{what}: it learns");
    let worst = fused.iter().zip(&naive).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
    eprintln!("{what}: largest relative difference over 100 steps {worst:.1e}");
    worst
}

fn args() -> TrainingArgs {
    TrainingArgs {
        max_steps: Some(100),
        batch_size: 4,
        learning_rate: 2e-3,
        lr_scheduler: LrScheduler::Cosine,
        ..Default::default()
    }
}

#[test]
fn fused_and_naive_curves_agree() {
    let lora = || {
        let model = tiny();
        let config = Lora {
            r: 4,
            lora_dropout: 0.1,
            target_modules: "all-linear".into(),
            ..Default::default()
        };
        model.add_adapter("a", &config).unwrap();
        model
    };
    let full = || {
        let model = tiny();
        model.unfreeze(&Full::default()).unwrap();
        model
    };
    let fast = TrainingArgs { learning_rate: 1e-2, ..args() };
    assert!(difference("LoRA, tiny", &fast, &pairs(40), lora) < 1e-4);
    assert!(difference("full, tiny", &args(), &pairs(40), full) < 1e-4);
}

#[test]
#[ignore = "a hundred naive steps of the base model; minutes"]
fn fused_and_naive_curves_of_the_base_model_agree() {
    let lora = || {
        let model = smollm();
        model.add_adapter("a", Lora::default()).unwrap();
        model
    };
    let args = TrainingArgs { batch_size: 2, learning_rate: 5e-4, ..args() };
    assert!(difference("LoRA, SmolLM2-135M", &args, &pairs(24), lora) < 1e-4);
}
