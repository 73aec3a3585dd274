//! AdaLoRA and LoRA with as many numbers to train, on banking77: the message of a bank's customer
//! is the prompt, its intent the completion.
//!
//! `cargo run --example adalora_banking77 -- train.csv [STEPS [SEED ..]]`, where `train.csv` is
//! banking77's. Some messages of every intent are trained on, others are held out; LoRA has rank 8
//! everywhere, AdaLoRA starts with rank 12 and ends with rank 8 on average. Each is trained with
//! the same rows in the same order at each of some learning rates, with each seed (of the order and
//! of the initial values; 42 if none is given). A line for each run: held-out loss, and how many
//! held-out intents are answered to the letter.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use tunebook_models::{DType, Device, GenerationConfig, Model, Projection};
use tunebook_tune::{
    AdaLora, AdapterConfig, Adapters, EvalStrategy, Example, Lora, LrScheduler, Trainer,
    TrainingArgs,
};

/// Messages of each intent that are trained on, and that are held out.
const TRAIN: usize = 6;
const HELD_OUT: usize = 2;
const RATES: [f64; 2] = [5e-4, 2e-3];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("adalora_banking77: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = arguments.first().ok_or("needs banking77's train.csv")?;
    let steps = arguments.get(1).map_or(Ok(60), |steps| steps.parse::<usize>())?;
    let seeds: Vec<u64> =
        arguments.iter().skip(2).map(|seed| seed.parse()).collect::<Result<_, _>>()?;
    let seeds = if seeds.is_empty() { vec![42] } else { seeds };
    let (train, held_out) = rows(&std::fs::read_to_string(path)?);
    println!(
        "{} rows to train on, {} held out, {steps} steps of 8 rows",
        train.len(),
        held_out.len()
    );
    let model = Model::load_as("SmolLM2-135M-Instruct", Some(DType::BF16), &Device::Cpu)?;
    let mut lora =
        Lora { r: 8, lora_alpha: 16.0, target_modules: "all-linear".into(), ..Default::default() };
    let mut adalora = AdaLora {
        init_r: 12,
        target_r: 8,
        tinit: steps / 8,
        tfinal: steps / 3,
        delta_t: 2,
        lora_alpha: 24.0, // over init_r, the scaling of the LoRA
        target_modules: "all-linear".into(),
        ..Default::default()
    };
    for seed in seeds {
        (lora.init_seed, adalora.init_seed) = (seed, seed);
        for learning_rate in RATES {
            for config in [AdapterConfig::from(&lora), AdapterConfig::from(&adalora)] {
                one(&model, config, (learning_rate, seed), steps, &train, &held_out)?;
            }
        }
    }
    Ok(())
}

fn one(
    model: &Model,
    config: AdapterConfig,
    (learning_rate, seed): (f64, u64),
    steps: usize,
    train: &[Example],
    held_out: &[Example],
) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let info = model.add_adapter("intents", config)?;
    let args = TrainingArgs {
        max_steps: Some(steps),
        batch_size: 8,
        learning_rate,
        seed,
        lr_scheduler: LrScheduler::Linear,
        warmup_ratio: 0.1,
        eval_strategy: EvalStrategy::Steps(steps),
        ..Default::default()
    };
    let run = Trainer::new(model, &args).train((train, held_out))?;
    let trained_secs = started.elapsed().as_secs_f64();
    let (prompts, intents): (Vec<String>, Vec<&str>) = held_out
        .iter()
        .filter_map(|example| match example {
            Example::Conversation(messages) => match &messages[..] {
                [message, intent] => Some((message.content.clone(), intent.content.as_str())),
                _ => None,
            },
            Example::Text(_) => None,
        })
        .unzip();
    let answers = model.chat_batch(
        &prompts,
        &GenerationConfig { max_new_tokens: 12, batch_size: 64, ..Default::default() },
    )?;
    let right =
        answers.iter().zip(intents).filter(|(answer, intent)| answer.trim() == *intent).count();
    let at_end =
        numbers(model, &run.plan.rank_modules, run.steps.last().map_or(&[], |step| &step.ranks));
    println!(
        "{} at {learning_rate:.0e}, seed {seed}: held-out loss {:.4}, {right} of {} intents right; {} numbers trained, {} at the end; {trained_secs:.0} s",
        info.config,
        run.eval_loss().unwrap_or(f64::NAN),
        held_out.len(),
        info.trainable_parameters,
        at_end.unwrap_or(info.trainable_parameters),
    );
    if let Some(last) = run.steps.last().filter(|last| !last.ranks.is_empty()) {
        println!("  mean rank at the end: {}", by_kind(&run.plan.rank_modules, &last.ranks));
    }
    model.delete_adapter("intents")?;
    Ok(())
}

/// How many numbers modules of these ranks have.
fn numbers(model: &Model, modules: &[String], ranks: &[usize]) -> Option<usize> {
    let sizes: BTreeMap<String, usize> = model
        .slots()
        .iter()
        .map(|slot| {
            (slot.path().to_owned(), slot.base().in_features() + slot.base().out_features())
        })
        .collect();
    let of = |(module, rank): (&String, &usize)| Some(rank * (sizes.get(module)? + 1));
    if ranks.is_empty() { None } else { modules.iter().zip(ranks).map(of).sum() }
}

/// `q_proj 7.1, v_proj 9.4 …`
fn by_kind(modules: &[String], ranks: &[usize]) -> String {
    let mut kinds: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (module, rank) in modules.iter().zip(ranks) {
        kinds.entry(module.rsplit('.').next().unwrap_or(module)).or_default().push(*rank);
    }
    let mean = |ranks: &[usize]| ranks.iter().sum::<usize>() as f64 / ranks.len().max(1) as f64;
    kinds
        .iter()
        .map(|(kind, ranks)| format!("{kind} {:.1}", mean(ranks)))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The first messages of each intent as examples: those to train on, intents mixed, and those held
/// out.
fn rows(csv: &str) -> (Vec<Example>, Vec<Example>) {
    let mut intents: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (text, intent) in records(csv).into_iter().skip(1) {
        intents.entry(intent.replace('_', " ")).or_default().push(text);
    }
    let example = |intent: &String, text: &String| {
        Example::new(
            format!("Name the intent of this message to a bank.\n\n{}", text.trim()),
            intent,
        )
    };
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    for number in 0..TRAIN + HELD_OUT {
        let into = if number < TRAIN { &mut train } else { &mut held_out };
        into.extend(
            intents.iter().filter_map(|(intent, texts)| Some(example(intent, texts.get(number)?))),
        );
    }
    (train, held_out)
}

/// Records of two fields; a field in quotes may hold commas, line ends and doubled quotes.
fn records(csv: &str) -> Vec<(String, String)> {
    let (mut records, mut fields, mut field) = (Vec::new(), Vec::new(), String::new());
    let mut quoted = false;
    let mut characters = csv.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => field.extend(characters.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            '\r' if !quoted => {}
            '\n' if !quoted => {
                fields.push(std::mem::take(&mut field));
                if let [text, intent] = &fields[..] {
                    records.push((text.clone(), intent.clone()));
                }
                fields.clear();
            }
            other => field.push(other),
        }
    }
    records
}
