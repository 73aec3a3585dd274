//! Forgetting: how much of what the base could do a tuned model has lost.
//!
//! Two numbers, both against the base: the mean loss a token of general text, as PEFT's method
//! comparison takes it, and the divergence of the model's predictions from the base's on the base's
//! own answers to general prompts, which sees lost manners that the loss of a text does not.

use std::fmt;

use serde::{Deserialize, Serialize};
use tunebook_models::{GenerationConfig, Message, Model, TokenizedText};
use tunebook_progress::ProgressBar;

use crate::metric::{mean, sums};
use crate::statistics::{Bootstrap, Interval};
use crate::{Error, Result};

/// Texts of one pass.
const BATCH: usize = 4;

/// What forgetting is measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ForgettingArgs {
    /// General texts, none of them about what was trained. Default: forty short texts that come with
    /// this crate, written for it.
    pub texts: Vec<String>,
    /// Tokens of a text, beyond which it is cut. Default: 768, as in PEFT's method comparison.
    pub max_length: usize,
    /// General prompts, which the base answers. Default: twenty that come with this crate. None: no
    /// divergence is measured.
    pub prompts: Vec<String>,
    /// The most tokens of an answer. Default: 32.
    pub max_new_tokens: usize,
}

impl Default for ForgettingArgs {
    fn default() -> Self {
        let lines = |text: &str| -> Vec<String> {
            text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
        };
        Self {
            texts: lines(include_str!("general_texts.txt")),
            max_length: 768,
            prompts: lines(include_str!("general_prompts.txt")),
            max_new_tokens: 32,
        }
    }
}

/// How much a model has forgotten.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forgetting {
    /// The base's mean loss of general text, in nats a token.
    pub base_loss: f64,
    /// The model's.
    pub loss: f64,
    /// The second less the first: what PEFT calls forgetting.
    pub forgetting: f64,
    /// Where it would lie with other texts of the kind (paired bootstrap over texts); `None` with
    /// fewer than two.
    pub interval: Option<Interval>,
    /// The chance of a change at least as large of a model that is as good as the base on such texts.
    pub p_value: f64,
    /// The number of texts.
    pub texts: usize,
    /// Their tokens, without the first of each, which nothing foretells.
    pub tokens: usize,
    /// On the base's own answers; `None` where no prompts were given.
    pub drift: Option<Drift>,
}

/// How far a model's predictions are from the base's, on the base's own answers to general prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// KL(base ‖ model) in nats a token.
    pub kl: f64,
    /// Where it would lie with other prompts of the kind; `None` with fewer than two.
    pub interval: Option<Interval>,
    /// The share of tokens that both would have said, 0 to 1.
    pub agreement: f64,
    /// The number of answers.
    pub answers: usize,
    /// Their tokens.
    pub tokens: usize,
}

impl fmt::Display for Forgetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "forgetting {:+.4} nats a token", self.forgetting)?;
        if let Some(Interval { low, high, .. }) = self.interval {
            write!(f, " [{low:+.4}, {high:+.4}]")?;
        }
        write!(
            f,
            " on {} general texts (loss {:.4}, the base's {:.4}, p = {})",
            self.texts,
            self.loss,
            self.base_loss,
            Significant(self.p_value)
        )?;
        let Some(drift) = &self.drift else { return Ok(()) };
        write!(f, "; KL to the base {:.4}", drift.kl)?;
        if let Some(Interval { low, high, .. }) = drift.interval {
            write!(f, " [{low:.4}, {high:.4}]")?;
        }
        let (share, answers) = (100.0 * drift.agreement, drift.answers);
        write!(f, " on its own {answers} answers, {share:.0} % of the tokens the same")
    }
}

/// A p-value, small ones by their power of ten.
struct Significant(f64);

impl fmt::Display for Significant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 < 0.01 {
            true => write!(f, "{:.0e}", self.0),
            false => write!(f, "{:.2}", self.0),
        }
    }
}

/// What `model` has forgotten of what `base` could do, on the texts and prompts that come with this
/// crate.
///
/// For an adapter the base is a handle on the same weights; after full fine-tuning it is loaded once
/// more.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tunebook_evaluate::forgetting;
/// use tunebook_models::{Device, Model};
/// let model = Model::load("SmolLM2-135M-Instruct", &Device::Cpu)?;
/// // … train an adapter …
/// println!("{}", forgetting(&model, &model.base())?);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`forgetting_with`].
pub fn forgetting(model: &Model, base: &Model) -> Result<Forgetting> {
    forgetting_with(model, base, &ForgettingArgs::default())
}

/// As [`forgetting`], on texts and prompts of one's own.
///
/// # Errors
/// No text has two tokens; models with different tokenizers; a text or prompt that does not fit.
pub fn forgetting_with(model: &Model, base: &Model, args: &ForgettingArgs) -> Result<Forgetting> {
    args.validate()?;
    if model.tokenizer().fingerprint()? != base.tokenizer().fingerprint()? {
        return Err(Error::NotComparable {
            field: "tokenizer".to_owned(),
            problem: format!("of {} and {} differ", model.name(), base.name()),
        });
    }
    // Whatever is switched meanwhile.
    let (model, base) = (model.pinned(), base.pinned());
    let texts = general(&model, args)?;
    let bar = ProgressBar::new("Measuring forgetting", Some(2 * texts.len() as u64)).unit("text");
    let losses = |of: &Model| losses(of, &texts, &bar);
    let (before, after) = (losses(&base)?, losses(&model)?);
    let tokens = sums(&before)[1] as usize;
    let (base_loss, loss) = (mean(&sums(&before)), mean(&sums(&after)));
    let mut found = Forgetting {
        base_loss,
        loss,
        forgetting: loss - base_loss,
        interval: None,
        p_value: 1.0,
        texts: texts.len(),
        tokens,
        drift: None,
    };
    if texts.len() > 1 {
        let paired = Bootstrap::default().paired(&before, &after, mean)?;
        (found.interval, found.p_value) = (Some(paired.interval), paired.p_value);
    }
    found.drift = drift(&model, &base, args)?;
    Ok(found)
}

impl ForgettingArgs {
    fn validate(&self) -> Result<()> {
        let refuse = |field, value: &str, expected| {
            Err(Error::Setting { field, value: value.to_owned(), expected })
        };
        if self.texts.is_empty() {
            return refuse("ForgettingArgs.texts", "empty", "at least one text");
        }
        if self.max_length < 2 {
            let (value, expected) = (self.max_length.to_string(), "at least 2");
            return refuse("ForgettingArgs.max_length", &value, expected);
        }
        if self.max_new_tokens == 0 {
            return refuse("ForgettingArgs.max_new_tokens", "0", "at least 1");
        }
        Ok(())
    }
}

/// The texts as tokens, cut to what fits.
fn general(model: &Model, args: &ForgettingArgs) -> Result<Vec<TokenizedText>> {
    let context = model.config().max_position_embeddings;
    let room = context.saturating_sub(model.positions_before()).min(args.max_length);
    let mut texts = Vec::with_capacity(args.texts.len());
    for text in &args.texts {
        let mut ids = model.tokenizer().encode_with_special_tokens(text)?;
        ids.truncate(room);
        if ids.len() > 1 {
            texts.push(TokenizedText { loss_mask: vec![true; ids.len()], ids });
        }
    }
    match texts.is_empty() {
        true => Err(Error::Setting {
            field: "ForgettingArgs.texts",
            value: format!("{} texts without two tokens", args.texts.len()),
            expected: "texts of some sentences",
        }),
        false => Ok(texts),
    }
}

/// For each text the sum of its losses and their number.
fn losses(model: &Model, texts: &[TokenizedText], bar: &ProgressBar) -> Result<Vec<Vec<f64>>> {
    let mut all = Vec::with_capacity(texts.len());
    for batch in texts.chunks(BATCH) {
        let losses = model.text_losses(batch)?;
        all.extend(losses.iter().map(|loss| vec![loss.sum, loss.tokens as f64]));
        bar.advance(batch.len() as u64);
    }
    Ok(all)
}

fn drift(model: &Model, base: &Model, args: &ForgettingArgs) -> Result<Option<Drift>> {
    if args.prompts.is_empty() {
        return Ok(None);
    }
    let prompt = |prompt: &String| match base.chat_template() {
        Some(_) => base.chat_tokenizer().tokenize_prompt(&[Message::user(prompt)]),
        None => base.tokenizer().encode_with_special_tokens(prompt),
    };
    let prompts = args.prompts.iter().map(prompt).collect::<Result<Vec<_>, _>>()?;
    let greedy =
        GenerationConfig { max_new_tokens: args.max_new_tokens, ..GenerationConfig::default() };
    let answers = base.generate_ids(&prompts, &greedy)?;
    let text = |(prompt, answer): (Vec<u32>, Vec<u32>)| TokenizedText {
        loss_mask: (0..prompt.len() + answer.len()).map(|at| at >= prompt.len()).collect(),
        ids: prompt.into_iter().chain(answer).collect(),
    };
    let texts: Vec<TokenizedText> = prompts
        .into_iter()
        .zip(answers)
        .filter(|(_, answer)| !answer.is_empty())
        .map(text)
        .collect();
    if texts.is_empty() {
        return Ok(None);
    }
    let divergences = model.divergences(base, &texts)?;
    let rows: Vec<Vec<f64>> =
        divergences.iter().map(|found| vec![found.sum, found.tokens as f64]).collect();
    let tokens: usize = divergences.iter().map(|found| found.tokens).sum();
    let agreeing: usize = divergences.iter().map(|found| found.agreeing).sum();
    let interval = match rows.len() > 1 {
        true => Some(Bootstrap::default().interval(&rows, mean)?),
        false => None,
    };
    Ok(Some(Drift {
        kl: mean(&sums(&rows)),
        interval,
        agreement: agreeing as f64 / tokens as f64,
        answers: rows.len(),
        tokens,
    }))
}
