//! Our side of `cargo xtask bench generate`.
//!
//! - `bench_generate MODEL prompts FILE` writes the prompts of all cases, for all sides:
//!   `{"plain": [..], "long": [..], "chat": [..]}`, each prompt `{"ids": [..], "text": ".."}`.
//! - `bench_generate MODEL serve FILE --form=stored|bf16|f32` answers lines of JSON:
//!   `{"do": "generate", "prompts": "plain", "rows": 8, "new": 65, "adapters": 0}` continues the
//!   first rows of these prompts, greedily and whatever ends an answer, and tells `secs`,
//!   `cpu_secs`, `rows`, `tokens` (generated ones) and `ids` (those of the first row);
//!   `{"do": "bandwidth"}` tells `bytes_per_s`; `{"do": "end"}` the peak memory and versions.

#![allow(clippy::print_stdout)]

mod bench;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::Instant;

use bench::{Result, cpu_secs, peak_rss_mb};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tunebook_models::{DType, Device, GenerationConfig, Message, Model, Quantization};
use tunebook_tune::{Adapters, Lora};

/// Prompts that may be continued at once, and tokens of each.
const PLAIN: (usize, usize) = (32, 32);
/// Tokens of the long prompt.
const LONG: usize = 1024;
/// Questions of a chat.
const CHAT: usize = 200;
/// Adapters that a batch may mix.
const ADAPTERS: usize = 4;
/// The most rows of one batch.
const BATCH: usize = 32;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error is full of progress bars.
            println!("{}", json!({"reason": format!("bench_generate: {error}")}));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [model, "prompts", file] => {
            let prompts = prompts(&load(model, "stored")?)?;
            Ok(std::fs::write(file, serde_json::to_vec(&prompts)?)?)
        }
        [model, "serve", file, form] => {
            let form = form.strip_prefix("--form=").ok_or("needs --form=")?;
            serve(&load(model, form)?, &serde_json::from_slice(&std::fs::read(file)?)?)
        }
        _ => Err("needs MODEL prompts FILE, or MODEL serve FILE --form=stored|bf16|f32".into()),
    }
}

/// The model in one of its forms in memory.
fn load(path: &str, form: &str) -> Result<Model> {
    Ok(match form {
        "stored" => Model::load_quantized(path, Quantization::Stored, &Device::Cpu)?,
        "bf16" => Model::load_as(path, Some(DType::BF16), &Device::Cpu)?,
        "f32" => Model::load_as(path, Some(DType::F32), &Device::Cpu)?,
        other => return Err(format!("no form `{other}`").into()),
    })
}

/// What is measured: every prompt greedily continued by `new` tokens.
fn generate(model: &Model, prompts: &[Vec<u32>], new: usize) -> Result<Vec<Vec<u32>>> {
    let config = GenerationConfig {
        max_new_tokens: new,
        batch_size: BATCH,
        ignore_eos: true,
        ..Default::default()
    };
    Ok(model.generate_ids(prompts, &config)?)
}

/// A handle that answers these rows with so many adapters in turn; none is the base.
fn with_adapters(model: &Model, adapters: usize, rows: usize) -> Result<Model> {
    Ok(match adapters {
        0 => model.base(),
        1 => model.with_adapter(&name(0))?,
        _ => {
            let names: Vec<String> = (0..rows).map(|row| name(row % adapters)).collect();
            model.with_adapter_names(&names.iter().map(String::as_str).collect::<Vec<_>>())?
        }
    })
}

fn name(adapter: usize) -> String {
    format!("bench-{adapter}")
}

#[derive(Serialize, Deserialize)]
struct Prompt {
    ids: Vec<u32>,
    text: String,
}

type Prompts = BTreeMap<String, Vec<Prompt>>;

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Request {
    Generate { prompts: String, rows: usize, new: usize, adapters: usize },
    Bandwidth,
    End,
}

fn serve(model: &Model, prompts: &Prompts) -> Result<()> {
    let config = model.config();
    // Keys and values of all blocks.
    let per_position = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim;
    let mut answer = std::io::stdout();
    let ready = json!({
        "ready": true,
        // A tied head counts once; each decoding step reads all of it.
        "weights_bytes": model.memory_bytes(),
        "key_value_bytes": per_position * model.activation_dtype().size_in_bytes(),
    });
    writeln!(answer, "{ready}")?;
    let mut has_adapters = false;
    for line in std::io::stdin().lock().lines() {
        let request = serde_json::from_str(&line?)?;
        let reply = match &request {
            Request::Generate { prompts: kind, rows, new, adapters } => {
                if *adapters > 0 && !has_adapters {
                    add_adapters(model)?;
                    has_adapters = true;
                }
                let all = prompts.get(kind).ok_or_else(|| format!("no prompts `{kind}`"))?;
                let ids: Vec<_> = all.iter().take(*rows).map(|prompt| prompt.ids.clone()).collect();
                let model = with_adapters(model, *adapters, ids.len())?;
                let (start, cpu) = (Instant::now(), cpu_secs()?);
                let answers = generate(&model, &ids, *new)?;
                json!({
                    "secs": start.elapsed().as_secs_f64(),
                    "cpu_secs": cpu_secs()? - cpu,
                    "rows": answers.len(),
                    "tokens": answers.iter().map(Vec::len).sum::<usize>(),
                    "ids": answers.first(),
                })
            }
            Request::Bandwidth => json!({"bytes_per_s": bandwidth()}),
            Request::End => json!({
                "peak_rss_mb": peak_rss_mb()?,
                "versions": {"tunebook": env!("CARGO_PKG_VERSION")},
            }),
        };
        writeln!(answer, "{reply}")?;
        answer.flush()?;
        if matches!(request, Request::End) {
            break;
        }
    }
    Ok(())
}

/// As PEFT has LoRA by default, but B is random, so that no adapter is without effect.
fn add_adapters(model: &Model) -> Result<()> {
    for adapter in 0..ADAPTERS {
        let config = Lora {
            r: 8,
            target_modules: ["q_proj", "v_proj"].into(),
            init_lora_weights: false,
            init_seed: adapter as u64,
            ..Default::default()
        };
        model.add_adapter(&name(adapter), &config)?;
    }
    Ok(())
}

/// How fast all threads together read memory that is in no cache: the best of a few sums over a
/// large buffer, in bytes a second.
fn bandwidth() -> f64 {
    const NUMBERS: usize = (512 << 20) / size_of::<u64>();
    let buffer = vec![1u64; NUMBERS];
    let part = NUMBERS.div_ceil(rayon::current_num_threads());
    let sum = || -> u64 {
        let sum_of = |part: &[u64]| part.iter().fold(0u64, |sum, value| sum.wrapping_add(*value));
        buffer.par_chunks(part).map(sum_of).sum()
    };
    let secs = (0..4).map(|_| {
        let start = Instant::now();
        black_box(sum());
        start.elapsed().as_secs_f64()
    });
    size_of_val(buffer.as_slice()) as f64 / secs.fold(f64::INFINITY, f64::min)
}

/// Prompts that differ within their first few words, so that no side may keep what it has computed
/// for another.
fn prompts(model: &Model) -> Result<Prompts> {
    let tokenizer = model.tokenizer();
    let prompt =
        |ids: Vec<u32>| -> Result<Prompt> { Ok(Prompt { text: tokenizer.decode(&ids)?, ids }) };
    let cut = |text: &str, tokens: usize| -> Result<Prompt> {
        let mut ids = tokenizer.encode(text)?;
        if ids.len() < tokens {
            return Err(format!("a text of {} tokens, expected {tokens}", ids.len()).into());
        }
        ids.truncate(tokens);
        prompt(ids)
    };
    let long: Vec<String> = (0..LONG / 16).map(story).collect();
    let chat = |number: usize| -> Result<Prompt> {
        let messages = [Message::user(question(number))];
        prompt(model.chat_tokenizer().tokenize_prompt(&messages)?)
    };
    Ok(BTreeMap::from([
        ("plain".to_owned(), (0..PLAIN.0).map(|n| cut(&story(n), PLAIN.1)).collect::<Result<_>>()?),
        ("long".to_owned(), vec![cut(&long.join(" "), LONG)?]),
        ("chat".to_owned(), (0..CHAT).map(chat).collect::<Result<_>>()?),
    ]))
}

const WHO: [&str; 8] = [
    "A baker",
    "The old captain",
    "My neighbour",
    "Every gardener",
    "One young teacher",
    "No painter",
    "Some travellers",
    "Her brother",
];
const WHERE: [&str; 5] = [
    "in a village by the sea",
    "on the last train to the north",
    "near the market square",
    "behind the library",
    "at the foot of the mountain",
];
const WHAT: [&str; 7] = [
    "found a letter that nobody had opened for a hundred years",
    "heard a song that seemed to come from under the ground",
    "met a dog that could count to ten and a cat that could not",
    "forgot the name of the street where the whole story had begun",
    "sold a clock that ran backwards whenever it rained in the afternoon",
    "built a bridge out of nothing but bread, rope and good intentions",
    "read a book whose pages changed each time that it was closed",
];

/// A sentence of more than [`PLAIN`]'s tokens.
fn story(number: usize) -> String {
    let (who, place) = (WHO[number % WHO.len()], WHERE[number % WHERE.len()]);
    let what = WHAT[number % WHAT.len()];
    format!(
        "{who} {place} {what}, and what happened on the following morning surprised all of the \
         people who lived there, because"
    )
}

/// What a bank's customer may ask.
fn question(number: usize) -> String {
    const ASKED: [&str; 10] = [
        "How long does it take until",
        "Why did you tell me that",
        "What can I do so that",
        "Is it true that",
        "Whom do I have to ask whether",
        "Does it cost anything if",
        "When will I know that",
        "I am abroad: what happens when",
        "My sister wants to know how it comes that",
        "Can I see in the app whether",
    ];
    const OF: [&str; 20] = [
        "my new card arrives",
        "a transfer is refused",
        "the exchange rate changes",
        "my account is closed",
        "a payment is still pending",
        "the cash machine keeps my card",
        "a refund is booked",
        "my PIN is blocked",
        "a top-up fails",
        "the limit is reached",
        "my name is changed",
        "the direct debit is returned",
        "a charge appears twice",
        "the code does not come",
        "my phone is lost",
        "a virtual card expires",
        "the recipient has no account",
        "an address is checked",
        "the salary is late",
        "a cheque is paid in",
    ];
    format!("{} {}?", ASKED[number / OF.len() % ASKED.len()], OF[number % OF.len()])
}
