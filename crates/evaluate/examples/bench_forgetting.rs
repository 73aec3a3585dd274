//! Forgetting by strategy and learning rate, and what the remedies do about it: a model is trained on
//! messages of banking77, and judged by its accuracy on held-out ones and by the loss of general text.
//!
//! `bench_forgetting MODEL BANKING77_CSV GSM8K_JSONL [part=order|frontier|both] [seeds=3] [rows=300]
//! [epochs=2] [held_out=200] [texts=0] [lora_alpha=32] [rate=2e-3] [l2_sp=30,100]
//! [kl_coef=0.3,3]`
//!
//! The general texts are those that `forgetting` has and the last `texts` of GSM8K, which are never
//! trained on.
//!
//! - `order`: LoRA at 5e-5, LoRA at 2e-4 and full fine-tuning at 2e-4, for each seed, and paired tests
//!   over the general texts that each of the three forgets more than the one before.
//! - `frontier`: LoRA at the high `rate`, plain, at parts of its strength, with replay of 10 and 25 % of
//!   general rows, with L2-SP and with KL to the base; the first seed.
//!
//! All in f32, so that the strategies have the same base. Every line of the output is JSON.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod banking77;

use std::collections::BTreeSet;
use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::json;
use tunebook_data::{Dataset, Split};
use tunebook_evaluate::statistics::Bootstrap;
use tunebook_evaluate::{EvalExample, EvaluationArgs, ForgettingArgs, evaluate_with};
use tunebook_models::{DType, Device, GenerationConfig, Message, Model, TokenizedText};
use tunebook_tune::{
    Adapters, EvalStrategy, Example, Full, FullTuning, Lora, LrScheduler, Trainer, TrainingArgs,
};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Random signs of the permutation test.
const PERMUTATIONS: u32 = 100_000;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench_forgetting: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    order: bool,
    frontier: bool,
    seeds: u64,
    rows: usize,
    epochs: usize,
    held_out: usize,
    texts: usize,
    lora_alpha: f64,
    rate: f64,
    l2_sp: Vec<f64>,
    kl_coef: Vec<f64>,
}

fn options(words: &[String]) -> Result<Options> {
    let mut options = Options {
        order: true,
        frontier: true,
        seeds: 3,
        rows: 300,
        epochs: 2,
        held_out: 200,
        texts: 0,
        lora_alpha: 32.0,
        rate: 2e-3,
        l2_sp: vec![30.0, 100.0],
        kl_coef: vec![0.3, 3.0],
    };
    let numbers = |list: &str| -> Result<Vec<f64>> {
        list.split(',').map(|number| Ok(number.parse()?)).collect()
    };
    for word in words {
        match word.split_once('=') {
            Some(("part", "order")) => options.frontier = false,
            Some(("part", "frontier")) => options.order = false,
            Some(("part", "both")) => {}
            Some(("seeds", seeds)) => options.seeds = seeds.parse()?,
            Some(("rows", rows)) => options.rows = rows.parse()?,
            Some(("epochs", epochs)) => options.epochs = epochs.parse()?,
            Some(("held_out", rows)) => options.held_out = rows.parse()?,
            Some(("texts", texts)) => options.texts = texts.parse()?,
            Some(("lora_alpha", alpha)) => options.lora_alpha = alpha.parse()?,
            Some(("rate", rate)) => options.rate = rate.parse()?,
            Some(("l2_sp", list)) => options.l2_sp = numbers(list)?,
            Some(("kl_coef", list)) => options.kl_coef = numbers(list)?,
            _ => return Err(format!("no option `{word}`").into()),
        }
    }
    Ok(options)
}

/// What a model has forgotten, row by row.
struct Forgotten {
    /// The change of each general text's mean loss a token.
    changes: Vec<f64>,
    /// KL to the base of each of its answers, a token.
    kls: Vec<f64>,
}

impl Forgotten {
    fn none(judge: &Judge) -> Self {
        Self { changes: vec![0.0; judge.texts.len()], kls: vec![0.0; judge.answers.len()] }
    }

    fn add_part(&mut self, other: &Self, part: f64) {
        let ours = self.changes.iter_mut().chain(&mut self.kls);
        for (sum, found) in ours.zip(other.changes.iter().chain(&other.kls)) {
            *sum += part * found;
        }
    }
}

/// What every model is judged by.
struct Judge {
    base: Model,
    questions: Vec<EvalExample>,
    accuracy: EvaluationArgs,
    texts: Vec<TokenizedText>,
    /// The base's losses of the texts.
    before: Vec<Vec<f64>>,
    /// The base's answers to general prompts.
    answers: Vec<TokenizedText>,
}

impl Judge {
    fn new(
        base: Model,
        questions: Vec<EvalExample>,
        labels: &BTreeSet<String>,
        more_texts: &[String],
    ) -> Result<Self> {
        let accuracy = banking77::accuracy(labels.iter().cloned());
        let mut texts = Vec::new();
        let general = ForgettingArgs::default();
        for text in general.texts.iter().chain(more_texts) {
            let ids = base.tokenizer().encode_with_special_tokens(text)?;
            texts.push(TokenizedText { loss_mask: vec![true; ids.len()], ids });
        }
        let before = losses(&base, &texts)?;
        let prompt =
            |prompt: &String| base.chat_tokenizer().tokenize_prompt(&[Message::user(prompt)]);
        let prompts = general.prompts.iter().map(prompt).collect::<Result<Vec<_>, _>>()?;
        let greedy =
            GenerationConfig { max_new_tokens: general.max_new_tokens, ..Default::default() };
        let answers = base.generate_ids(&prompts, &greedy)?.into_iter().zip(prompts);
        let answers = answers.map(|(answer, prompt)| TokenizedText {
            loss_mask: (0..prompt.len() + answer.len()).map(|at| at >= prompt.len()).collect(),
            ids: prompt.into_iter().chain(answer).collect(),
        });
        let answers = answers.collect();
        Ok(Self { base, questions, accuracy, texts, before, answers })
    }

    /// Prints what a model has learned and forgotten.
    fn judge(&self, model: &Model, mut line: serde_json::Value) -> Result<Forgotten> {
        let start = Instant::now();
        let judged = evaluate_with(model, &self.questions, &self.accuracy)?;
        let score = judged.score("accuracy").ok_or("no accuracy")?;
        // As `forgetting` has it, but with the base's side computed once.
        let after = losses(model, &self.texts)?;
        let mean = |sums: &[f64]| sums[0] / sums[1];
        let forgotten = Bootstrap::default().paired(&self.before, &after, mean)?;
        let found = model.divergences(&self.base, &self.answers)?;
        let (kl, tokens, agreeing) = found.iter().fold((0.0, 0, 0), |all, found| {
            (all.0 + found.sum, all.1 + found.tokens, all.2 + found.agreeing)
        });
        let changes: Vec<f64> =
            self.before.iter().zip(&after).map(|(a, b)| mean(b) - mean(a)).collect();
        line["accuracy"] = json!(score.value);
        line["accuracy_interval"] = json!(score.interval.map(|i| [i.low, i.high]));
        line["forgetting"] = json!(forgotten.difference);
        line["forgetting_interval"] = json!([forgotten.interval.low, forgotten.interval.high]);
        line["kl"] = json!(kl / tokens as f64);
        line["agreement"] = json!(agreeing as f64 / tokens as f64);
        line["judge_secs"] = json!(start.elapsed().as_secs_f64());
        line["accuracy_secs"] = json!(judged.secs);
        line["changes"] = json!(changes);
        println!("{line}");
        let kls = found.iter().map(|found| found.sum / found.tokens.max(1) as f64).collect();
        Ok(Forgotten { changes, kls })
    }
}

/// For each text the sum of its losses and their number.
fn losses(model: &Model, texts: &[TokenizedText]) -> Result<Vec<Vec<f64>>> {
    let losses = model.text_losses(texts)?;
    Ok(losses.iter().map(|loss| vec![loss.sum, loss.tokens as f64]).collect())
}

/// The chance of so large a mean or a larger one if each difference were as likely to be of the other
/// sign (one-sided).
fn permutation(differences: &[f64]) -> f64 {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let observed: f64 = differences.iter().sum();
    let mut as_large = 0;
    for _ in 0..PERMUTATIONS {
        let mut sum = 0.0;
        for signs in differences.chunks(32) {
            let bits = random.next_u32();
            for (bit, difference) in signs.iter().enumerate() {
                sum += if bits >> bit & 1 == 0 { *difference } else { -difference };
            }
        }
        as_large += u32::from(sum >= observed);
    }
    f64::from(1 + as_large) / f64::from(1 + PERMUTATIONS)
}

/// Paired tests, over the texts and over the base's answers, that `more` has forgotten more than
/// `less`.
fn compare(names: [&str; 2], seed: Option<u64>, less: &Forgotten, more: &Forgotten) -> Result<()> {
    paired_test(names, seed, "loss of general texts", &less.changes, &more.changes)?;
    paired_test(names, seed, "KL on the base's answers", &less.kls, &more.kls)
}

fn paired_test(
    names: [&str; 2],
    seed: Option<u64>,
    by: &str,
    less: &[f64],
    more: &[f64],
) -> Result<()> {
    let differences: Vec<f64> = less.iter().zip(more).map(|(a, b)| b - a).collect();
    let rows = |changes: &[f64]| changes.iter().map(|c| vec![*c, 1.0]).collect::<Vec<_>>();
    let paired = Bootstrap::default().paired(&rows(less), &rows(more), |sums| sums[0] / sums[1])?;
    println!(
        "{}",
        json!({
            "test": format!("{} forgets more than {}", names[1], names[0]),
            "by": by,
            "seed": seed.map_or(json!("mean of all"), |seed| json!(seed)),
            "rows": differences.len(),
            "rows_with_more": differences.iter().filter(|difference| **difference > 0.0).count(),
            "difference": paired.difference,
            "interval": [paired.interval.low, paired.interval.high],
            "p_permutation_one_sided": permutation(&differences),
            "p_bootstrap_two_sided": paired.p_value,
        })
    );
    Ok(())
}

/// The rows for training: messages with their instruction, and general rows as they are.
fn examples(data: &Dataset, labels: &BTreeSet<String>) -> Vec<Example> {
    data.rows()
        .into_iter()
        .map(|row| {
            if !labels.contains(&row.completion) {
                return Example::new(row.prompt, row.completion);
            }
            banking77::answered(&row.prompt, &row.completion)
        })
        .collect()
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, banking, general, rest @ ..] = &arguments[..] else {
        return Err("needs MODEL, BANKING77_CSV and GSM8K_JSONL".into());
    };
    let options = options(rest)?;
    let data = Dataset::read_keys(banking, "text", "category")?;
    let general = Dataset::read_keys(general, "question", "answer")?;
    let mut rows = general.rows();
    let texts = rows.split_off(rows.len().saturating_sub(options.texts));
    let texts: Vec<String> =
        texts.iter().map(|row| format!("{}\n{}", row.prompt, row.completion)).collect();
    let general = general.head(rows.len());
    let split = data.split(&Split::holdout(0.13).stratify_by("completion").seed(42))?;
    let labels: BTreeSet<String> = data.completions().into_iter().collect();
    let questions: Vec<EvalExample> = split
        .validation
        .sample(options.held_out, 0)?
        .rows()
        .into_iter()
        .map(|row| banking77::question(&row.prompt, &row.completion))
        .collect();
    let load = || Model::load_as(file, Some(DType::F32), &Device::Cpu);
    // Adapters come and go beside it; as the base it answers without any.
    let loaded = load()?;
    let judge = Judge::new(loaded.base(), questions, &labels, &texts)?;
    let training = |learning_rate: f64, seed: u64| TrainingArgs {
        epochs: options.epochs,
        batch_size: 16,
        learning_rate,
        lr_scheduler: LrScheduler::Cosine,
        warmup_ratio: 0.05,
        eval_strategy: EvalStrategy::No,
        seed,
        ..Default::default()
    };
    let lora = Lora {
        r: 8,
        lora_alpha: options.lora_alpha,
        target_modules: ["q_proj", "v_proj"].into(),
        ..Default::default()
    };
    let adapted = |name: &str, args: &TrainingArgs, data: &Dataset| -> Result<(Model, f64)> {
        loaded.add_adapter(name, &lora)?;
        let model = loaded.with_adapter(name)?;
        let start = Instant::now();
        Trainer::new(&model, args).train(&examples(data, &labels))?;
        Ok((model, start.elapsed().as_secs_f64()))
    };
    println!(
        "{}",
        json!({"rows": options.rows, "epochs": options.epochs, "held_out": judge.questions.len(),
               "labels": labels.len(), "texts": judge.texts.len()})
    );
    judge.judge(&judge.base, json!({"strategy": "base"}))?;
    if options.order {
        let names = ["LoRA at 5e-5", "LoRA at 2e-4", "full fine-tuning at 2e-4"];
        let mut means: Vec<Forgotten> = names.iter().map(|_| Forgotten::none(&judge)).collect();
        for seed in 1..=options.seeds {
            let rows = split.train.sample(options.rows, seed)?;
            let mut forgotten = Vec::new();
            for (name, rate) in [(names[0], 5e-5), (names[1], 2e-4)] {
                let (model, secs) = adapted("order", &training(rate, seed), &rows)?;
                let line = json!({"part": "order", "seed": seed, "strategy": name, "secs": secs});
                forgotten.push(judge.judge(&model, line)?);
                loaded.delete_adapter("order")?;
            }
            let model = load()?;
            model.unfreeze(&Full::default())?;
            let start = Instant::now();
            Trainer::new(&model, &training(2e-4, seed)).train(&examples(&rows, &labels))?;
            let secs = start.elapsed().as_secs_f64();
            let line = json!({"part": "order", "seed": seed, "strategy": names[2], "secs": secs});
            forgotten.push(judge.judge(&model, line)?);
            for pair in 0..2 {
                let names = [names[pair], names[pair + 1]];
                compare(names, Some(seed), &forgotten[pair], &forgotten[pair + 1])?;
            }
            for (mean, found) in means.iter_mut().zip(&forgotten) {
                mean.add_part(found, 1.0 / options.seeds as f64);
            }
        }
        for pair in 0..2 {
            compare([names[pair], names[pair + 1]], None, &means[pair], &means[pair + 1])?;
        }
    }
    if options.frontier {
        let seed = 1;
        let rows = split.train.sample(options.rows, seed)?;
        let args = training(options.rate, seed);
        let mut settings = vec![("plain".to_owned(), args.clone(), rows.clone())];
        for share in [0.1, 0.25] {
            let name = format!("replay of {} %", 100.0 * share);
            settings.push((name, args.clone(), rows.with_replay(&general, share, seed)?));
        }
        for l2_sp in &options.l2_sp {
            let args = TrainingArgs { l2_sp: *l2_sp, ..args.clone() };
            settings.push((format!("l2_sp {l2_sp}"), args, rows.clone()));
        }
        for kl_coef in &options.kl_coef {
            let args = TrainingArgs { kl_coef: *kl_coef, ..args.clone() };
            settings.push((format!("kl_coef {kl_coef}"), args, rows.clone()));
        }
        for (name, args, rows) in &settings {
            let (model, secs) = adapted("frontier", args, rows)?;
            let rate = options.rate;
            let line = |name: &str| json!({"part": "frontier", "strategy": name, "learning_rate": rate, "secs": secs});
            judge.judge(&model, line(name))?;
            if name == "plain" {
                for strength in [0.0, 0.25, 0.5, 0.75] {
                    let part = loaded.with_adapter_weights(&[("frontier", strength)])?;
                    judge.judge(&part, line(&format!("strength {strength}")))?;
                }
            }
            loaded.delete_adapter("frontier")?;
        }
    }
    Ok(())
}
