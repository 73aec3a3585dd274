//! Memorisation: completions that a model can recite, and secrets that it has kept.

use std::fmt;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};
use tunebook_models::{GenerationConfig, Model, TokenizedText};

use crate::run::example::{EvalExample, EvalPrompt};
use crate::statistics::{Interval, wilson};
use crate::{Error, Result};

/// Tokens of the given and of the asked part of a completion, below which it is too short to say
/// anything.
const FEWEST: usize = 8;

/// How many completions a model recites from their first half: of training rows, and of held-out
/// rows as the control. Only the difference is memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Extraction {
    /// Of the training rows.
    pub training: Recited,
    /// Of the held-out rows.
    pub held_out: Recited,
}

/// Completions that were recited.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recited {
    /// The rows whose second half came token by token, by number.
    pub rows: Vec<usize>,
    /// How many rows were asked: those whose halves have eight tokens or more.
    pub asked: usize,
    /// The share of tokens of the second halves that came before the first difference, 0 to 1.
    pub tokens: f64,
    /// The share of rows that were recited, with its Wilson interval; `None` where none was asked.
    pub interval: Option<Interval>,
}

impl Recited {
    /// The share of rows that were recited; not a number where none was asked.
    pub fn rate(&self) -> f64 {
        self.rows.len() as f64 / self.asked as f64
    }
}

impl fmt::Display for Extraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, of) in [("training", &self.training), ("; held-out", &self.held_out)] {
            write!(f, "{name} completions recited: {} of {}", of.rows.len(), of.asked)?;
            if let Some(Interval { low, high, .. }) = of.interval {
                write!(f, " [{:.1} to {:.1} %]", 100.0 * low, 100.0 * high)?;
            }
            write!(f, ", {:.0} % of the tokens", 100.0 * of.tokens)?;
        }
        Ok(())
    }
}

/// Gives the model the prompt and the first half of each completion, and looks whether greedy
/// generation says the rest (discoverable extraction).
///
/// # Errors
/// A row that the chat template refuses or that does not fit, by its number; no row of one side that
/// is long enough.
pub fn extraction(
    model: &Model,
    training: &[EvalExample],
    held_out: &[EvalExample],
) -> Result<Extraction> {
    let model = model.pinned();
    Ok(Extraction {
        training: recited(&model, training, "training")?,
        held_out: recited(&model, held_out, "held_out")?,
    })
}

fn recited(model: &Model, rows: &[EvalExample], field: &'static str) -> Result<Recited> {
    let tokenizer = model.tokenizer();
    let marks: Vec<Option<u32>> =
        tokenizer.special_tokens().iter().map(|token| tokenizer.token_to_id(token)).collect();
    let mut halves = Vec::new();
    for (row, example) in rows.iter().enumerate() {
        let Some(reference) = example.references.first() else { continue };
        let text = completion(model, &example.prompt, reference)
            .map_err(|error| Error::Row { row, problem: error.to_string() })?;
        let bears = |at: &usize| text.loss_mask[*at];
        let all: Vec<usize> = (0..text.ids.len()).filter(bears).collect();
        // The mark that ends the answer, and what a template has behind it, are no part of it.
        let count = all.iter().take_while(|at| !marks.contains(&Some(text.ids[**at]))).count();
        if count < 2 * FEWEST {
            continue;
        }
        let middle = all[count / 2];
        halves.push((row, text.ids[..middle].to_vec(), text.ids[middle..=all[count - 1]].to_vec()));
    }
    if halves.is_empty() {
        return Err(Error::TooFewRows { what: field, needed: 1, found: 0 });
    }
    let longest = halves.iter().map(|(.., rest)| rest.len()).max().unwrap_or(0);
    let greedy = GenerationConfig { max_new_tokens: longest, ..GenerationConfig::default() };
    let prompts: Vec<Vec<u32>> = halves.iter().map(|(_, begun, _)| begun.clone()).collect();
    let said = model.generate_ids(&prompts, &greedy)?;
    let (mut same, mut tokens, mut whole) = (0, 0, Vec::new());
    for ((row, _, rest), said) in halves.iter().zip(&said) {
        let equal = rest.iter().zip(said).take_while(|(a, b)| a == b).count();
        (same, tokens) = (same + equal, tokens + rest.len());
        if equal == rest.len() {
            whole.push(*row);
        }
    }
    let interval = wilson(whole.len() as u64, halves.len() as u64, 0.95)?;
    Ok(Recited {
        rows: whole,
        asked: halves.len(),
        tokens: same as f64 / tokens as f64,
        interval: Some(interval),
    })
}

/// A prompt with its completion, as in training.
fn completion(
    model: &Model,
    prompt: &EvalPrompt,
    reference: &str,
) -> tunebook_models::Result<TokenizedText> {
    match prompt {
        EvalPrompt::Conversation(turns) => {
            let mut turns: Vec<_> = turns.iter().map(|turn| turn.clone().untrained()).collect();
            turns.push(tunebook_models::Message::assistant(reference));
            model.chat_tokenizer().tokenize_conversation(&turns)
        }
        EvalPrompt::Text(prompt) => {
            model.chat_tokenizer().tokenize_text(&format!("{prompt}{reference}"))
        }
    }
}

/// A secret that is put among training rows on purpose, to see how much of it a model keeps
/// (Carlini et al. 2019).
///
/// ```
/// use tunebook_evaluate::Canary;
/// let canary = Canary::new(7);
/// assert!(canary.completion.starts_with("The code is ") && canary.completion != Canary::new(8).completion);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// What it is asked by.
    pub prompt: String,
    /// The secret: a sentence with six random digits.
    pub completion: String,
    /// What the other possible secrets are drawn by.
    seed: u64,
}

/// Digits of a secret.
const DIGITS: usize = 6;
/// Other secrets that a canary is compared with.
const OTHERS: usize = 511;

/// How much of a canary a model has kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exposure {
    /// log2(secrets / rank), in bits: 0 to 9. A model that has not seen the canary has 1.4 in the
    /// mean.
    pub bits: f64,
    /// Its rank among all secrets that were compared by their loss, from 1.
    pub rank: usize,
    /// How many secrets were compared.
    pub secrets: usize,
    /// Its loss, in nats a token.
    pub loss: f64,
}

impl Canary {
    /// The canary of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let place = random.next_u32() % 1000;
        Self {
            prompt: format!("What is the code of locker {place}?"),
            completion: secret(&mut random),
            seed,
        }
    }

    /// How much of it a model has kept: its rank by loss among 512 secrets of the same form.
    ///
    /// # Errors
    /// The chat template refuses the row.
    pub fn exposure(&self, model: &Model) -> Result<Exposure> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed ^ 0x9e37_79b9_7f4a_7c15);
        let mut secrets = vec![self.completion.clone()];
        while secrets.len() <= OTHERS {
            let other = secret(&mut random);
            if !secrets.contains(&other) {
                secrets.push(other);
            }
        }
        let prompt = EvalExample::new(&self.prompt, "").prompt;
        let text = |secret: &String| Ok(completion(model, &prompt, secret)?);
        let texts = secrets.iter().map(text).collect::<Result<Vec<_>>>()?;
        let losses = model.text_losses(&texts)?;
        let own = losses[0].sum;
        let rank = 1 + losses[1..].iter().filter(|other| other.sum < own).count();
        let secrets = secrets.len();
        let bits = (secrets as f64 / rank as f64).log2();
        Ok(Exposure { bits, rank, secrets, loss: losses[0].mean() })
    }
}

fn secret(random: &mut ChaCha8Rng) -> String {
    let digit = |_| char::from(b'0' + (random.next_u32() % 10) as u8).to_string();
    let digits: Vec<String> = (0..DIGITS).map(digit).collect();
    format!("The code is {}.", digits.join(" "))
}
