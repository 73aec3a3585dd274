//! Continual learning: an adapter is trained on one half of banking77's intents and then on the other,
//! without replay and with 10 % of the first half's rows among the new ones. What is left of the first
//! half?
//!
//! `bench_continual MODEL BANKING77_CSV [rows=1000] [epochs=2] [seeds=3] [held_out=200] [rate=2e-3]
//! [share=0.1]`
//!
//! `rows` and `held_out` are of each half. A seed divides the intents, draws the rows and orders them.
//! Every model chooses among all 77 intents. Every line of the output is JSON; the last has the means.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod banking77;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::json;
use tunebook_data::{Dataset, Split};
use tunebook_evaluate::{EvalExample, Evaluation, evaluate_with};
use tunebook_models::{DType, Device, Model};
use tunebook_tune::{Adapters, EvalStrategy, Example, Lora, LrScheduler, Trainer, TrainingArgs};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench_continual: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    rows: usize,
    epochs: usize,
    seeds: u64,
    held_out: usize,
    rate: f64,
    share: f64,
}

fn options(words: &[String]) -> Result<Options> {
    let mut options =
        Options { rows: 1000, epochs: 2, seeds: 3, held_out: 200, rate: 2e-3, share: 0.1 };
    for word in words {
        match word.split_once('=') {
            Some(("rows", rows)) => options.rows = rows.parse()?,
            Some(("epochs", epochs)) => options.epochs = epochs.parse()?,
            Some(("seeds", seeds)) => options.seeds = seeds.parse()?,
            Some(("held_out", rows)) => options.held_out = rows.parse()?,
            Some(("rate", rate)) => options.rate = rate.parse()?,
            Some(("share", share)) => options.share = share.parse()?,
            _ => return Err(format!("no option `{word}`").into()),
        }
    }
    Ok(options)
}

fn examples(data: &Dataset) -> Vec<Example> {
    data.rows().into_iter().map(|row| banking77::answered(&row.prompt, &row.completion)).collect()
}

/// The rows of some intents, of both sides of a split.
fn of_intents(data: &Dataset, intents: &BTreeSet<&String>) -> Dataset {
    let rows = data.rows();
    let rows: Vec<(&str, &str)> = rows
        .iter()
        .filter(|row| intents.contains(&row.completion))
        .map(|row| (row.prompt.as_str(), row.completion.as_str()))
        .collect();
    Dataset::from_rows(&rows)
}

/// The intents in the order that a seed gives them (Fisher and Yates).
fn shuffled(labels: &[String], seed: u64) -> Vec<&String> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut shuffled: Vec<&String> = labels.iter().collect();
    for last in (1..shuffled.len()).rev() {
        shuffled.swap(last, (random.next_u64() % (last as u64 + 1)) as usize);
    }
    shuffled
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, banking, rest @ ..] = &arguments[..] else {
        return Err("needs MODEL and BANKING77_CSV".into());
    };
    let options = options(rest)?;
    let data = Dataset::read_keys(banking, "text", "category")?;
    let split = data.split(&Split::holdout(0.13).stratify_by("completion").seed(42))?;
    let labels: BTreeSet<String> = data.completions().into_iter().collect();
    let labels: Vec<String> = labels.into_iter().collect();
    let model = Model::load_as(file, Some(DType::BF16), &Device::Cpu)?;
    let accuracy = banking77::accuracy(labels.clone());
    let judged = |model: &Model, held_out: &Dataset| -> Result<Evaluation> {
        let questions: Vec<EvalExample> = held_out
            .rows()
            .into_iter()
            .map(|row| banking77::question(&row.prompt, &row.completion))
            .collect();
        Ok(evaluate_with(model, &questions, &accuracy)?)
    };
    let folder = tempfile::tempdir()?;
    let mut means: BTreeMap<&str, [f64; 2]> = BTreeMap::new();
    for seed in 1..=options.seeds {
        let order = shuffled(&labels, seed);
        let (first, second) = order.split_at(order.len() / 2);
        let half = |intents: &[&String]| -> Result<(Dataset, Dataset)> {
            let intents: BTreeSet<&String> = intents.iter().copied().collect();
            let train = of_intents(&split.train, &intents).sample(options.rows, seed)?;
            let held_out = of_intents(&split.validation, &intents);
            Ok((train, held_out.sample(options.held_out, seed)?))
        };
        let ((old, old_held_out), (new, new_held_out)) = (half(first)?, half(second)?);
        let apart = new.without_overlap(&old_held_out)?;
        println!(
            "{}",
            json!({"seed": seed, "old": old.len(), "old_held_out": old_held_out.len(),
                   "new": new.len(), "new_held_out": new_held_out.len(),
                   "new_rows_kept_out": apart.overlaps.len()})
        );
        let args = TrainingArgs {
            epochs: options.epochs,
            batch_size: 16,
            learning_rate: options.rate,
            lr_scheduler: LrScheduler::Cosine,
            warmup_ratio: 0.05,
            eval_strategy: EvalStrategy::No,
            seed,
            ..Default::default()
        };
        let mut judge = |stage: &'static str, secs: f64| -> Result<Evaluation> {
            let (on_old, on_new) = (judged(&model, &old_held_out)?, judged(&model, &new_held_out)?);
            let value = |evaluation: &Evaluation| evaluation.value("accuracy").unwrap_or(f64::NAN);
            let found = [value(&on_old), value(&on_new)];
            let mean = means.entry(stage).or_default();
            for (mean, found) in mean.iter_mut().zip(found) {
                *mean += found / options.seeds as f64;
            }
            println!(
                "{}",
                json!({"seed": seed, "stage": stage, "accuracy_old": found[0],
                       "accuracy_new": found[1], "secs": secs})
            );
            Ok(on_old)
        };
        let trained = |data: &Dataset| -> Result<f64> {
            let start = Instant::now();
            Trainer::new(&model, &args).train(&examples(data))?;
            Ok(start.elapsed().as_secs_f64())
        };
        let lora = Lora {
            r: 8,
            lora_alpha: 16.0,
            target_modules: ["q_proj", "v_proj"].into(),
            ..Default::default()
        };
        model.add_adapter("first", &lora)?;
        judge("first half", trained(&old)?)?;
        let saved = model.save_adapter("first", folder.path().join(seed.to_string()))?;
        model.delete_adapter("first")?;

        model.load_adapter(&saved, "plain")?;
        let plain = judge("then the second", trained(&apart.kept)?)?;
        model.delete_adapter("plain")?;

        model.load_adapter(&saved, "replay")?;
        let replayed = apart.kept.with_replay(&old, options.share, seed)?;
        let replay = judge("then the second with replay", trained(&replayed)?)?;
        model.delete_adapter("replay")?;

        let comparison = replay.compare(&plain)?;
        let on_old = comparison.scores.iter().find(|score| score.metric.name == "accuracy");
        println!(
            "{}",
            json!({"seed": seed, "test": "accuracy on the first half, with replay and without",
                   "difference": on_old.map(|score| score.difference),
                   "p": on_old.map(|score| score.p_value),
                   "verdict": on_old.map(|score| score.verdict.to_string())})
        );
    }
    println!("{}", json!({"share": options.share, "means": means}));
    Ok(())
}
