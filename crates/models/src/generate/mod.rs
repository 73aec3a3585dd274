//! Text from a model: greedy or sampled, one prompt or many at once.
//!
//! A batch is padded on the left, so that all rows write their next token into one column; rows
//! that have ended leave the batch. Logits are computed for the last position only.

use candle_core::{DType, Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tunebook_progress::{ProgressBar, interrupt};

use crate::error::{Error, Result};
use crate::model::Model;
use crate::pass::positions::Positions;
use crate::rows as batch_rows;
use crate::text::tokenizer::Tokenizer;

/// How to generate. Names and meanings are `transformers`'; the default is greedy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerationConfig {
    /// The most tokens to add to a prompt.
    pub max_new_tokens: usize,
    /// 0 takes the likeliest token each time; 1 samples as the model says; between, likelier tokens
    /// gain.
    pub temperature: f64,
    /// Samples from the likeliest tokens that together reach this probability; 1 samples from all.
    pub top_p: f64,
    /// Samples from this many of the likeliest tokens; 0 samples from all.
    pub top_k: usize,
    /// Above 1, tokens that occurred before become less likely
    /// (<https://arxiv.org/abs/1909.05858>).
    pub repetition_penalty: f64,
    /// Of the sampling. The same seed gives the same text.
    pub seed: u64,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// The most rows of one batch; more prompts go in several.
    pub batch_size: usize,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            repetition_penalty: 1.0,
            seed: 42,
            stop: Vec::new(),
            batch_size: 32,
        }
    }
}

impl GenerationConfig {
    /// Refuses values out of their range.
    ///
    /// # Errors
    /// With the field, its value and the range.
    pub fn validate(&self) -> Result<()> {
        let refuse =
            |field, value: String, expected| Err(Error::Argument { field, value, expected });
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return refuse(
                "GenerationConfig.temperature",
                self.temperature.to_string(),
                "a finite number of at least 0",
            );
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse(
                "GenerationConfig.top_p",
                self.top_p.to_string(),
                "a number above 0 and at most 1",
            );
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            return refuse(
                "GenerationConfig.repetition_penalty",
                self.repetition_penalty.to_string(),
                "a finite number above 0",
            );
        }
        if self.batch_size == 0 {
            return refuse("GenerationConfig.batch_size", "0".to_owned(), "at least 1");
        }
        if self.stop.iter().any(String::is_empty) {
            return refuse(
                "GenerationConfig.stop",
                "an empty text".to_owned(),
                "texts of at least one character",
            );
        }
        Ok(())
    }

    fn sampling(&self) -> Sampling {
        let temperature = self.temperature;
        match (temperature < 1e-7, self.top_k, self.top_p) {
            (true, ..) => Sampling::ArgMax,
            (_, 0, p) if p >= 1.0 => Sampling::All { temperature },
            (_, 0, p) => Sampling::TopP { p, temperature },
            (_, k, p) if p >= 1.0 => Sampling::TopK { k, temperature },
            (_, k, p) => Sampling::TopKThenTopP { k, p, temperature },
        }
    }
}

/// Chooses the tokens of one row.
struct Sampler {
    processor: LogitsProcessor,
    greedy: bool,
    repetition_penalty: f32,
    /// Whether each token of the vocabulary has occurred; empty without a penalty.
    seen: Vec<bool>,
}

impl Sampler {
    fn new(config: &GenerationConfig, row: usize, prompt: &[u32], vocab_size: usize) -> Self {
        let sampling = config.sampling();
        let mut seen = Vec::new();
        if config.repetition_penalty != 1.0 {
            seen.resize(vocab_size, false);
            for id in prompt {
                if let Some(seen) = seen.get_mut(*id as usize) {
                    *seen = true;
                }
            }
        }
        Self {
            greedy: sampling == Sampling::ArgMax,
            processor: LogitsProcessor::from_sampling(
                config.seed.wrapping_add(row as u64),
                sampling,
            ),
            repetition_penalty: config.repetition_penalty as f32,
            seen,
        }
    }

    fn next(&mut self, logits: &mut [f32]) -> Result<u32> {
        if let Some(logit) = logits.iter().find(|logit| logit.is_nan() || **logit == f32::INFINITY)
        {
            return Err(Error::NotFinite { found: *logit });
        }
        for (logit, _) in logits.iter_mut().zip(&self.seen).filter(|(_, seen)| **seen) {
            *logit = if *logit > 0.0 {
                *logit / self.repetition_penalty
            } else {
                *logit * self.repetition_penalty
            };
        }
        let id = match self.greedy {
            true => likeliest(logits),
            false => self.processor.sample(&Tensor::new(&*logits, &Device::Cpu)?)?,
        };
        if let Some(seen) = self.seen.get_mut(id as usize) {
            *seen = true;
        }
        Ok(id)
    }
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, logit) in logits.iter().enumerate() {
        if *logit > best.1 {
            best = (id, *logit);
        }
    }
    best.0 as u32
}

/// The text of one row as its tokens come: only whole characters, and nothing that may turn out to
/// be a stop text.
struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    stop: &'a [String],
    ids: Vec<u32>,
    /// Ids before it are already in `text`.
    decoded: usize,
    /// Where the piece before `decoded` begins. A piece is decoded together with the one before it,
    /// since some tokenizers drop a blank at the beginning of what they decode.
    before: usize,
    text: String,
    /// Bytes of `text` that have been handed out.
    shown: usize,
    stopped: bool,
}

impl<'a> TextStream<'a> {
    fn new(tokenizer: &'a Tokenizer, stop: &'a [String]) -> Self {
        Self {
            tokenizer,
            stop,
            ids: Vec::new(),
            decoded: 0,
            before: 0,
            text: String::new(),
            shown: 0,
            stopped: false,
        }
    }

    /// Takes a token and returns the text that has become certain.
    fn push(&mut self, id: u32) -> Result<&str> {
        self.ids.push(id);
        self.decode(false)?;
        Ok(self.release(false))
    }

    /// The rest of the text.
    fn finish(&mut self) -> Result<&str> {
        if !self.stopped {
            self.decode(true)?;
        }
        Ok(self.release(true))
    }

    fn decode(&mut self, all: bool) -> Result<()> {
        // No character has more bytes, and no token less than one of them.
        const LONGEST_CHARACTER: usize = 4;
        let known = self.tokenizer.decode_text(&self.ids[self.before..self.decoded])?;
        let text = self.tokenizer.decode_text(&self.ids[self.before..])?;
        // An incomplete character decodes to the replacement character: wait for the rest of its
        // bytes.
        let waits = text.ends_with('\u{fffd}') && self.ids.len() - self.decoded < LONGEST_CHARACTER;
        if all || !waits {
            self.text.push_str(text.get(known.len()..).unwrap_or_default());
            self.before = self.decoded;
            self.decoded = self.ids.len();
        }
        Ok(())
    }

    fn release(&mut self, all: bool) -> &str {
        let from = self.shown;
        if let Some(at) = self.stop.iter().filter_map(|stop| self.text.find(stop.as_str())).min() {
            self.text.truncate(at);
            self.stopped = true;
        }
        let mut held = 0;
        if !all && !self.stopped {
            // The longest end of the text that is the beginning of a stop text.
            held = self
                .stop
                .iter()
                .flat_map(|stop| stop.char_indices().skip(1).map(move |(n, _)| &stop[..n]))
                .filter(|begin| self.text.ends_with(begin))
                .map(str::len)
                .max()
                .unwrap_or(0);
        }
        self.shown = (self.text.len() - held).max(from.min(self.text.len()));
        self.text.get(from..self.shown).unwrap_or("")
    }
}

/// One row while it is being generated.
struct Row<'a> {
    /// Its place among the prompts.
    index: usize,
    sampler: Sampler,
    stream: TextStream<'a>,
}

/// Shows text as it comes: the number of the prompt, and the next piece of its text.
pub(crate) type OnText<'a> = &'a mut dyn FnMut(usize, &str);

/// What was generated for one prompt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Generated {
    /// Without the token that ended it.
    pub(crate) ids: Vec<u32>,
    /// Without special tokens and without the stop text.
    pub(crate) text: String,
}

/// Continues each prompt. Returns the answers in the order of the prompts; an interrupt returns
/// what there is.
pub(crate) fn generate(
    model: &Model,
    prompts: &[Vec<u32>],
    config: &GenerationConfig,
    on_text: OnText<'_>,
) -> Result<Vec<Generated>> {
    config.validate()?;
    let (context, before) = (model.config().max_position_embeddings, model.positions_before());
    for prompt in prompts {
        if prompt.is_empty() {
            return Err(Error::Argument {
                field: "prompt",
                value: "empty".to_owned(),
                expected: "at least one token",
            });
        }
        if before + prompt.len() >= context {
            return Err(Error::ContextLength {
                tokens: before + prompt.len(),
                context,
                advice: ", as at least one position must be left for the answer",
            });
        }
    }
    // Prompts of similar length together: the least padding.
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(prompts[*index].len()));
    let mut answers = vec![Generated::default(); prompts.len()];
    // A single answer is shown as it comes, by those who want to see it.
    let bar = (prompts.len() > 1)
        .then(|| ProgressBar::new("Generating", Some(prompts.len() as u64)).unit("answer"));
    for group in order.chunks(config.batch_size) {
        if interrupt::requested() {
            break;
        }
        generate_group(model, prompts, group, config, on_text, bar.as_ref(), &mut answers)?;
    }
    if let Some(bar) = &bar {
        bar.message("");
    }
    Ok(answers)
}

/// Continues the prompts of one batch, whose places among all are `group`, the longest first.
fn generate_group(
    model: &Model,
    prompts: &[Vec<u32>],
    group: &[usize],
    config: &GenerationConfig,
    on_text: OnText<'_>,
    bar: Option<&ProgressBar>,
    answers: &mut [Generated],
) -> Result<()> {
    let Some(longest) = group.first().map(|index| prompts[*index].len()) else { return Ok(()) };
    let device = model.device();
    // Columns of the cache before those of the tokens, in every row.
    let (front, past) = (model.front().count(), model.past_count());
    let before = front + past;
    let room = model.config().max_position_embeddings - before - longest;
    let max_new_tokens = config.max_new_tokens.min(room);
    if max_new_tokens == 0 {
        return Ok(());
    }
    let capacity = before + longest + max_new_tokens;
    let mut cache = model.cache(group.len(), capacity)?;
    let cache_ends_at = model.decoder().cache_ends_at();
    let pad = model.pad_id();
    let mut starts: Vec<usize> =
        group.iter().map(|index| longest - prompts[*index].len()).collect();
    let mut ids: Vec<u32> = Vec::with_capacity(group.len() * longest);
    for (index, start) in group.iter().zip(&starts) {
        ids.extend(std::iter::repeat_n(pad, *start));
        ids.extend(&prompts[*index]);
    }
    let vocab_size = model.config().vocab_size;
    let mut rows: Vec<Row<'_>> = group
        .iter()
        .map(|index| Row {
            index: *index,
            sampler: Sampler::new(config, *index, &prompts[*index], vocab_size),
            stream: TextStream::new(model.tokenizer(), &config.stop),
        })
        .collect();
    let (mut from, mut t) = (0, longest);
    let mut written = 0;
    loop {
        if let Some(most) = cache_ends_at
            && from > 0
            && starts.iter().any(|start| before + from - start == most)
        {
            // A text has outgrown the angles that it began with, so its keys are computed anew.
            ids.clear();
            for (row, start) in rows.iter().zip(&starts) {
                ids.extend(std::iter::repeat_n(pad, *start));
                ids.extend(prompts[row.index].iter().chain(&row.stream.ids));
            }
            cache = model.cache(rows.len(), capacity)?;
            (from, t) = (0, from + 1);
        }
        let input = Tensor::from_vec(std::mem::take(&mut ids), (rows.len(), t), device)?;
        // The first call takes what stands before the tokens along; columns count with it from then
        // on.
        let positions = match from {
            0 => Positions::padded(past, front + t, &starts, device)?,
            _ => Positions::padded(before + from, t, &starts, device)?,
        };
        let texts: Vec<usize> = rows.iter().map(|row| row.index).collect();
        // [b, t] -> [b, vocab] -> [b·vocab]
        let logits =
            batch_rows::with(&texts, || model.next_logits(&input, &positions, &mut cache))?;
        // The next token is chosen on the host: the one copy of a step.
        let mut logits = logits.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        (from, t) = (from + t, 1);
        let stop_now = interrupt::requested();
        let mut going = Vec::with_capacity(rows.len());
        // Sampling sorts the vocabulary for each row, which would take longer than the decoder.
        let next = rows
            .par_iter_mut()
            .zip(logits.par_chunks_mut(vocab_size))
            .map(|(row, logits)| row.sampler.next(logits))
            .collect::<Result<Vec<_>>>()?;
        for (row, id) in rows.iter_mut().zip(next) {
            let ended = model.is_end(id);
            if !ended {
                on_text(row.index, row.stream.push(id)?);
            }
            let go_on =
                !ended && !stop_now && !row.stream.stopped && row.stream.ids.len() < max_new_tokens;
            if go_on {
                ids.push(id);
            } else {
                on_text(row.index, row.stream.finish()?);
                answers[row.index] = Generated {
                    ids: std::mem::take(&mut row.stream.ids),
                    text: std::mem::take(&mut row.stream.text),
                };
            }
            going.push(go_on);
        }
        if let Some(bar) = bar {
            written += 1;
            bar.message(format!("token {written} of at most {max_new_tokens}"));
            bar.advance(going.iter().filter(|go_on| !**go_on).count() as u64);
        }
        if ids.is_empty() {
            return Ok(());
        }
        if ids.len() < rows.len() {
            let kept: Vec<u32> =
                (0..).zip(&going).filter(|(_, go_on)| **go_on).map(|(row, _)| row).collect();
            cache.keep(&Tensor::new(kept.as_slice(), device)?)?;
            let mut of = going.iter();
            rows.retain(|_| of.next() == Some(&true));
            let mut of = going.iter();
            starts.retain(|_| of.next() == Some(&true));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_values_are_refused_with_field_value_and_range() {
        let base = GenerationConfig::default();
        for (config, says) in [
            (
                GenerationConfig { temperature: -1.0, ..base.clone() },
                "`GenerationConfig.temperature` is -1",
            ),
            (GenerationConfig { top_p: 0.0, ..base.clone() }, "`GenerationConfig.top_p` is 0"),
            (
                GenerationConfig { repetition_penalty: f64::NAN, ..base.clone() },
                "`GenerationConfig.repetition_penalty` is NaN",
            ),
            (
                GenerationConfig { batch_size: 0, ..base.clone() },
                "`GenerationConfig.batch_size` is 0",
            ),
            (
                GenerationConfig { stop: vec![String::new()], ..base.clone() },
                "`GenerationConfig.stop` is an empty text",
            ),
        ] {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.starts_with(says), "{error}");
        }
        base.validate().unwrap();
    }

    #[test]
    fn the_penalty_is_transformers() {
        let config = GenerationConfig { repetition_penalty: 2.0, ..Default::default() };
        let mut sampler = Sampler::new(&config, 0, &[0, 1], 4);
        let mut logits = [3.0, -1.0, 2.0, 1.0];
        assert_eq!(sampler.next(&mut logits).unwrap(), 2);
        assert_eq!(logits, [1.5, -2.0, 2.0, 1.0]);
        let mut logits = [0.0, 0.0, 1.5, 1.0];
        assert_eq!(sampler.next(&mut logits).unwrap(), 3, "token 2 has occurred by now");
    }

    #[test]
    fn the_first_of_equal_logits_wins() {
        assert_eq!(likeliest(&[1.0, 5.0, 5.0]), 1);
    }

    #[test]
    fn a_model_that_diverged_is_an_error() {
        for temperature in [0.0, 1.0] {
            let config = GenerationConfig { temperature, ..Default::default() };
            let mut sampler = Sampler::new(&config, 0, &[], 2);
            let error = sampler.next(&mut [0.0, f32::NAN]).unwrap_err().to_string();
            assert!(error.contains("NaN") && error.contains("learning rate"), "{error}");
            assert!(
                sampler.next(&mut [f32::NEG_INFINITY, 0.0]).is_ok(),
                "an impossible token is none"
            );
        }
    }
}
