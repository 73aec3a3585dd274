//! The choice of the next token.

use candle_core::{Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};

use crate::error::{Error, Result};
use crate::generate::config::GenerationConfig;

/// Chooses the tokens of one row.
pub(super) struct Sampler {
    processor: LogitsProcessor,
    greedy: bool,
    repetition_penalty: f32,
    /// Whether each token of the vocabulary has occurred; empty without a penalty.
    seen: Vec<bool>,
}

impl Sampler {
    pub(super) fn new(
        config: &GenerationConfig,
        row: usize,
        prompt: &[u32],
        vocab_size: usize,
    ) -> Self {
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

    pub(super) fn next(&mut self, logits: &mut [f32]) -> Result<u32> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
