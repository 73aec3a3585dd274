//! Our side of `cargo xtask bench judge`: a model is judged on held-out messages of banking77,
//! trained on the others, and judged again, as a user would do it.
//!
//! `bench_judge MODEL TRAIN_CSV slice|full [r=16] [epochs=3] [learning_rate=1e-3] [before=200] [save=DIR] [full_tuning]
//! [all_linear] [clean_labels]`
//!
//! With `clean_labels` the rows whose label looks wrong to the model after its first epoch are left out of
//! the later ones; the held-out rows are judged as they are.
//!
//! Every line of the output is JSON; the last one has the result.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod banking77;

use std::collections::BTreeSet;
use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;
use tunebook_data::{Dataset, Split};
use tunebook_evaluate::{EvalExample, Evaluation, EvaluationArgs, evaluate_with, forgetting};
use tunebook_models::{DType, Device, Model};
use tunebook_tune::{
    Adapters, EvalStrategy, Example, Full, FullTuning, Lora, LrScheduler, StepRecord, Trainer,
    TrainingArgs,
};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// The share of the rows in the case that takes minutes: 1,500 of 10,003.
const SLICE: f64 = 0.15;
/// Rows that the untrained model is judged on at most, unless `before=` says otherwise. To it all labels are equally likely, so each
/// row costs the whole tree of 77 labels: fourteen times the prompt.
const BEFORE: usize = 200;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench_judge: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    r: usize,
    epochs: usize,
    learning_rate: f64,
    before: usize,
    save: Option<String>,
    full_tuning: bool,
    all_linear: bool,
    clean_labels: bool,
}

fn options(slice: bool, words: &[String]) -> Result<Options> {
    let (r, epochs, learning_rate) = match slice {
        true => (8, 2, 2e-3),
        false => (16, 3, 1e-3),
    };
    let mut options = Options {
        r,
        epochs,
        learning_rate,
        before: BEFORE,
        save: None,
        full_tuning: false,
        all_linear: !slice,
        clean_labels: false,
    };
    for word in words {
        match word.split_once('=') {
            Some(("r", r)) => options.r = r.parse()?,
            Some(("epochs", epochs)) => options.epochs = epochs.parse()?,
            Some(("learning_rate", rate)) => options.learning_rate = rate.parse()?,
            Some(("before", rows)) => options.before = rows.parse()?,
            Some(("save", dir)) => options.save = Some(dir.to_owned()),
            None if word == "full_tuning" => options.full_tuning = true,
            None if word == "all_linear" => options.all_linear = true,
            None if word == "clean_labels" => options.clean_labels = true,
            _ => return Err(format!("no option `{word}`").into()),
        }
    }
    if options.clean_labels && options.epochs < 2 {
        return Err("clean_labels needs two epochs or more".into());
    }
    Ok(options)
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, csv, size, rest @ ..] = &arguments[..] else {
        return Err("needs MODEL, TRAIN_CSV and slice or full".into());
    };
    let slice = size == "slice";
    let options = options(slice, rest)?;
    let data = Dataset::read_keys(csv, "text", "category")?;
    let data = match slice {
        true => data.split(&Split::holdout(SLICE).stratify_by("completion").seed(7))?.validation,
        false => data,
    };
    let split = data.split(&Split::holdout(0.13).stratify_by("completion").seed(42))?;
    let pairs = |data: &Dataset| -> Vec<(String, String)> {
        data.rows().into_iter().map(|row| (row.prompt, row.completion)).collect()
    };
    let (train, held_out) = (pairs(&split.train), pairs(&split.validation));
    let labels: BTreeSet<&String> = train.iter().map(|(_, label)| label).collect();
    let args = banking77::accuracy(labels.into_iter().cloned());
    let questions = |rows: &[(String, String)]| -> Vec<EvalExample> {
        rows.iter().map(|(text, label)| banking77::question(text, label)).collect()
    };
    let judged = questions(&held_out);
    let mut examples: Vec<Example> =
        train.iter().map(|(text, label)| banking77::answered(text, label)).collect();
    let file = model;
    // Full fine-tuning on a processor takes weights in f32.
    let dtype = if options.full_tuning { DType::F32 } else { DType::BF16 };
    let model = Model::load_as(file, Some(dtype), &Device::Cpu)?;
    println!(
        "{}",
        json!({"train": examples.len(), "held_out": judged.len(), "labels": args.labels.len()})
    );
    let few: Vec<EvalExample> =
        judged.iter().step_by(judged.len().div_ceil(options.before.max(1))).cloned().collect();
    let before = evaluate_with(&model, &few, &args)?;
    println!("{}", json!({"before": before.value("accuracy"), "secs": before.secs}));
    if options.full_tuning {
        model.unfreeze(&Full::default())?;
    } else {
        model.add_adapter(
            "judge",
            &Lora {
                r: options.r,
                lora_alpha: 2.0 * options.r as f64,
                target_modules: match options.all_linear {
                    true => "all-linear".into(),
                    false => ["q_proj", "v_proj"].into(),
                },
                ..Default::default()
            },
        )?;
    }
    let training = TrainingArgs {
        epochs: options.epochs,
        batch_size: 16,
        learning_rate: options.learning_rate,
        lr_scheduler: LrScheduler::Cosine,
        warmup_ratio: 0.05,
        eval_strategy: EvalStrategy::No,
        ..Default::default()
    };
    let start = Instant::now();
    let mut suspected = 0;
    if options.clean_labels {
        let first =
            TrainingArgs { epochs: 1, lr_scheduler: LrScheduler::Constant, ..training.clone() };
        train_on(&model, &first, &examples, start)?;
        let known = EvaluationArgs { label_margin: 4.0, ..args.clone() };
        let issues = evaluate_with(&model, &questions(&train), &known)?.label_issues()?;
        for issue in issues.iter().take(20) {
            let (text, label) = &train[issue.row];
            let suggested = &args.labels[issue.suggested];
            println!("{}", json!({"text": text, "label": label, "suggested": suggested}));
        }
        suspected = issues.len();
        let wrong: BTreeSet<usize> = issues.into_iter().map(|issue| issue.row).collect();
        let mut row = 0;
        examples.retain(|_| {
            row += 1;
            !wrong.contains(&(row - 1))
        });
        println!("{}", json!({"suspected": suspected, "secs": start.elapsed().as_secs_f64()}));
        let rest = TrainingArgs { epochs: options.epochs - 1, warmup_ratio: 0.0, ..training };
        train_on(&model, &rest, &examples, start)?;
    } else {
        train_on(&model, &training, &examples, start)?;
    }
    let training_secs = start.elapsed().as_secs_f64();
    match &options.save {
        Some(dir) if options.full_tuning => model.save_pretrained(dir).map(drop)?,
        Some(dir) => model.save_adapter("judge", dir).map(drop)?,
        None => {}
    }
    let after = evaluate_with(&model, &judged, &args)?;
    let comparison = evaluate_with(&model, &few, &args)?.compare(&before)?;
    let verdict = comparison.scores.iter().find(|score| score.metric.name == "accuracy");
    let base = match options.full_tuning {
        true => Model::load_as(file, Some(dtype), &Device::Cpu)?,
        false => model.base(),
    };
    let forgotten = forgetting(&model, &base)?;
    let interval = |evaluation: &Evaluation| {
        let interval = evaluation.score("accuracy").and_then(|score| score.interval);
        interval.map(|interval| [interval.low, interval.high])
    };
    println!(
        "{}",
        json!({
            "rows": judged.len(),
            "rows_before": few.len(),
            "accuracy_before": before.value("accuracy"),
            "interval_before": interval(&before),
            "accuracy_after": after.value("accuracy"),
            "interval_after": interval(&after),
            "macro_f1": after.classification.as_ref().map(|c| c.report.macro_average.f1),
            "verdict": verdict.map(|score| score.verdict.to_string()),
            "suspected_labels": suspected,
            "forgetting": forgotten,
            "training_secs": training_secs,
            "evaluation_secs": after.secs,
        })
    );
    Ok(())
}

/// Trains, with a line of output every fifty steps.
fn train_on(
    model: &Model,
    args: &TrainingArgs,
    examples: &[Example],
    start: Instant,
) -> Result<()> {
    Trainer::new(model, args)
        .with_callback(move |step: &StepRecord| {
            if step.step.is_multiple_of(50) {
                let secs = start.elapsed().as_secs_f64();
                println!("{}", json!({"step": step.step, "loss": step.loss, "secs": secs}));
            }
        })
        .train(examples)?;
    Ok(())
}
