//! How to generate.

use candle_transformers::generation::Sampling;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

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

    pub(super) fn sampling(&self) -> Sampling {
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
}
