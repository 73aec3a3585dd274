//! How to generate.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::generate::format::AnswerFormat;

/// The most answers to one prompt.
const MOST_ANSWERS: usize = 65_536;

/// How to generate. Names and meanings are `transformers`'; the default is greedy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
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
    /// Samples from tokens that are at least this likely beside the likeliest; 0 samples from all.
    pub min_p: f64,
    /// Added to the logits of these tokens, by id.
    pub logit_bias: BTreeMap<u32, f64>,
    /// How many answers to give to each prompt. Greedy ones are all the same.
    pub num_return_sequences: usize,
    /// For each token of an answer, the log-probabilities of so many of the likeliest tokens.
    pub top_logprobs: usize,
    /// Lets answers go on after the token that ends them, which is then part of them.
    pub ignore_eos: bool,
    /// Of the sampling. The same seed gives the same text.
    pub seed: u64,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// The format that answers must have: tokens that do not fit are ruled out. An answer is whole
    /// unless it ends by `max_new_tokens`, by the context or by a stop text.
    pub format: Option<AnswerFormat>,
    /// The most answers that are generated at a time; more prompts wait until one has ended.
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
            min_p: 0.0,
            logit_bias: BTreeMap::new(),
            num_return_sequences: 1,
            top_logprobs: 0,
            ignore_eos: false,
            seed: 42,
            stop: Vec::new(),
            format: None,
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
        // What is beyond these is beyond f32 in some step of the choice.
        if !(0.0..=1e6).contains(&self.temperature) {
            return refuse(
                "GenerationConfig.temperature",
                self.temperature.to_string(),
                "a number from 0 to 1000000",
            );
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse(
                "GenerationConfig.top_p",
                self.top_p.to_string(),
                "a number above 0 and at most 1",
            );
        }
        if !(1e-6..=1e6).contains(&self.repetition_penalty) {
            return refuse(
                "GenerationConfig.repetition_penalty",
                self.repetition_penalty.to_string(),
                "a number from 0.000001 to 1000000; 1 changes nothing",
            );
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return refuse(
                "GenerationConfig.min_p",
                self.min_p.to_string(),
                "a number from 0 to 1",
            );
        }
        let usable = |bias: &f64| (-1e20..=1e20).contains(bias);
        if let Some((id, bias)) = self.logit_bias.iter().find(|(_, bias)| !usable(bias)) {
            return refuse(
                "GenerationConfig.logit_bias",
                format!("{bias} for token {id}"),
                "numbers from -1e20 to 1e20; -100 rules a token out",
            );
        }
        if self.batch_size == 0 {
            return refuse("GenerationConfig.batch_size", "0".to_owned(), "at least 1");
        }
        if !(1..=MOST_ANSWERS).contains(&self.num_return_sequences) {
            return refuse(
                "GenerationConfig.num_return_sequences",
                self.num_return_sequences.to_string(),
                "a number from 1 to 65536",
            );
        }
        if self.stop.iter().any(String::is_empty) {
            return refuse(
                "GenerationConfig.stop",
                "an empty text".to_owned(),
                "texts of at least one character",
            );
        }
        if self.ignore_eos && self.format.is_some() {
            return refuse(
                "GenerationConfig.ignore_eos",
                "true".to_owned(),
                "false with a `format`, as nothing can follow an answer that is whole",
            );
        }
        Ok(())
    }

    /// Whether the likeliest token is taken each time.
    pub(super) fn is_greedy(&self) -> bool {
        self.temperature < 1e-7
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
            (GenerationConfig { min_p: 1.5, ..base.clone() }, "`GenerationConfig.min_p` is 1.5"),
            (
                GenerationConfig { logit_bias: [(3, f64::NAN)].into(), ..base.clone() },
                "`GenerationConfig.logit_bias` is NaN for token 3",
            ),
            (
                GenerationConfig { temperature: 1e300, ..base.clone() },
                "`GenerationConfig.temperature` is 1000000000",
            ),
            (
                GenerationConfig { repetition_penalty: 1e-46, ..base.clone() },
                "`GenerationConfig.repetition_penalty` is 0.0000",
            ),
            (
                GenerationConfig { logit_bias: [(3, -1e39)].into(), ..base.clone() },
                "`GenerationConfig.logit_bias` is -1000000000",
            ),
            (
                GenerationConfig { num_return_sequences: usize::MAX, ..base.clone() },
                "`GenerationConfig.num_return_sequences` is 18446744073709551615",
            ),
            (
                GenerationConfig { num_return_sequences: 0, ..base.clone() },
                "`GenerationConfig.num_return_sequences` is 0",
            ),
            (
                GenerationConfig { batch_size: 0, ..base.clone() },
                "`GenerationConfig.batch_size` is 0",
            ),
            (
                GenerationConfig { stop: vec![String::new()], ..base.clone() },
                "`GenerationConfig.stop` is an empty text",
            ),
            (
                GenerationConfig {
                    ignore_eos: true,
                    format: Some(AnswerFormat::JsonObject),
                    ..base.clone()
                },
                "`GenerationConfig.ignore_eos` is true",
            ),
        ] {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.starts_with(says), "{error}");
        }
        base.validate().unwrap();
    }
}
