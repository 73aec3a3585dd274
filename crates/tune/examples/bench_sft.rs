//! Our side of the case `banking77-sft` of `cargo xtask bench train`: a fine-tune through
//! [`Trainer::fit`], a step whenever a line `step` arrives on standard input, and `end` answered
//! with the validation loss, the peak memory and versions.
//!
//! `bench_sft MODEL DATA`, where DATA is `{"steps": .., "train": [[prompt, completion], ..],
//! "validation": [..]}`

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;

use std::io::Write;
use std::process::ExitCode;

use bench::{Result, cpu_secs, peak_rss_mb};
use serde::Deserialize;
use serde_json::{Value, json};
use tunebook_models::{Device, Model};
use tunebook_tune::{
    Adapters, Callback, EvalRecord, EvalStrategy, Example, Lora, LrScheduler, Plan, StepRecord,
    Trainer, TrainingArgs,
};

#[derive(Deserialize)]
struct Data {
    steps: usize,
    train: Vec<(String, String)>,
    validation: Vec<(String, String)>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench_sft: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let paths: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let [model, data] = paths.as_slice() else { return Err("needs MODEL and DATA".into()) };
    let data: Data = serde_json::from_slice(&std::fs::read(data)?)?;
    let pairs = |pairs: &[(String, String)]| -> Vec<Example> {
        pairs.iter().map(|(prompt, completion)| Example::new(prompt, completion)).collect()
    };
    let (train, validation) = (pairs(&data.train), pairs(&data.validation));
    let model = Model::load(model, &Device::Cpu)?;
    model.add_adapter(
        "sft",
        &Lora {
            r: 8,
            lora_alpha: 16.0,
            target_modules: ["q_proj", "v_proj"].into(),
            ..Default::default()
        },
    )?;
    let args = TrainingArgs {
        max_steps: Some(data.steps),
        batch_size: 8,
        learning_rate: 2e-4,
        lr_scheduler: LrScheduler::Linear,
        warmup_ratio: 0.0,
        weight_decay: 0.0,
        eval_strategy: EvalStrategy::Steps(data.steps),
        ..Default::default()
    };
    Trainer::new(&model, &args).with_callback(Turns::default()).train((&train, &validation))?;
    Ok(())
}

/// Takes turns with the other side.
#[derive(Default)]
struct Turns {
    steps: usize,
    cpu_secs: f64,
}

impl Turns {
    /// Answers, and waits to be asked again.
    fn answer(&mut self, answer: &Value) {
        let mut out = std::io::stdout();
        let _ = writeln!(out, "{answer}").and_then(|()| out.flush());
        let mut line = String::new();
        let _ = std::io::stdin().read_line(&mut line);
        self.cpu_secs = cpu_secs().unwrap_or(f64::NAN);
    }
}

impl Callback for Turns {
    fn on_start(&mut self, plan: &Plan) -> tunebook_tune::Result<()> {
        self.steps = plan.total_steps;
        self.answer(&json!({"ready": true}));
        Ok(())
    }

    fn on_step(&mut self, record: &StepRecord) -> tunebook_tune::Result<()> {
        let cpu_secs = cpu_secs().unwrap_or(f64::NAN) - self.cpu_secs;
        let loss = record.loss;
        // The last line asked for is `end`; its answer is the evaluation's.
        self.answer(
            &json!({"secs": record.secs, "cpu_secs": cpu_secs, "loss": loss, "tokens": record.tokens}),
        );
        Ok(())
    }

    fn on_eval(&mut self, record: &EvalRecord) -> tunebook_tune::Result<()> {
        let last = json!({
            "eval_loss": record.loss,
            "eval_tokens": record.label_tokens,
            "peak_rss_mb": peak_rss_mb().ok(),
            "versions": {"tunebook": env!("CARGO_PKG_VERSION")},
        });
        let mut out = std::io::stdout();
        let _ = writeln!(out, "{last}").and_then(|()| out.flush());
        Ok(())
    }
}
