//! The choice of the next token.

use candle_core::{Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};
use tunebook_ops::cpu::math;

use crate::error::{Error, Result};
use crate::generate::config::GenerationConfig;
use crate::generate::format::{AnswerGrammar, FormatState};

/// Chooses the tokens of one answer, as transformers does: bias, penalty, format, temperature,
/// `top_k`, `top_p`, `min_p`, in this order.
pub(super) struct Sampler {
    /// `None`: the likeliest token each time.
    draw: Option<LogitsProcessor>,
    config: GenerationConfig,
    /// Whether each token of the vocabulary has occurred; empty without a penalty.
    seen: Vec<bool>,
    /// The format that the answer must have.
    format: Option<FormatState>,
}

/// A token that was chosen.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Choice {
    pub(super) id: u32,
    /// What the model gave it, before penalty, bias and temperature.
    pub(super) log_probability: f32,
    /// The likeliest tokens and what the model gave them.
    pub(super) top: Vec<(u32, f32)>,
    /// The answer has its format with this token, and nothing can follow.
    pub(super) whole: bool,
}

impl Sampler {
    pub(super) fn new(
        config: &GenerationConfig,
        answer: usize,
        prompt: &[u32],
        vocab_size: usize,
    ) -> Self {
        let mut seen = Vec::new();
        if config.repetition_penalty != 1.0 {
            seen.resize(vocab_size, false);
            for id in prompt {
                if let Some(seen) = seen.get_mut(*id as usize) {
                    *seen = true;
                }
            }
        }
        let temperature = config.temperature;
        let draw = (!config.is_greedy()).then(|| {
            let seed = config.seed.wrapping_add(answer as u64);
            LogitsProcessor::from_sampling(seed, Sampling::All { temperature })
        });
        Self { draw, config: config.clone(), seen, format: None }
    }

    /// Chooses among the tokens that fit a format.
    pub(super) fn with_format(self, grammar: Option<&AnswerGrammar>) -> Self {
        Self { format: grammar.map(FormatState::new), ..self }
    }

    /// Chooses as another answer to the same prompt does, which has chosen nothing yet.
    pub(super) fn with_format_of(self, other: &Self) -> Self {
        Self { format: other.format.clone(), ..self }
    }

    pub(super) fn next(&mut self, logits: &[f32]) -> Result<Choice> {
        let log_sum = math::log_sum_exp(logits);
        // A logit that is no number, or infinite, makes the sum such.
        if !log_sum.is_finite()
            && let Some(logit) =
                logits.iter().find(|logit| logit.is_nan() || **logit == f32::INFINITY)
        {
            return Err(Error::NotFinite { found: *logit });
        }
        let top = likeliest_of(logits, self.config.top_logprobs)
            .into_iter()
            .map(|(id, logit)| (id, logit - log_sum))
            .collect();
        let changes =
            !self.seen.is_empty() || !self.config.logit_bias.is_empty() || self.format.is_some();
        let id = if changes || self.draw.is_some() {
            let mut changed = logits.to_vec();
            self.process(&mut changed);
            if let Some(format) = &mut self.format {
                format.rule_out(&mut changed)?;
            }
            match &mut self.draw {
                None => likeliest(&changed),
                Some(draw) => {
                    warp(&mut changed, &self.config);
                    draw.sample(&Tensor::new(&*changed, &Device::Cpu)?)?
                }
            }
        } else {
            likeliest(logits)
        };
        if let Some(seen) = self.seen.get_mut(id as usize) {
            *seen = true;
        }
        let whole = self.format.as_mut().map_or(Ok(false), |format| format.take(id))?;
        Ok(Choice { id, log_probability: logits[id as usize] - log_sum, top, whole })
    }

    /// The bias, then the penalty.
    fn process(&self, logits: &mut [f32]) {
        for (id, bias) in &self.config.logit_bias {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit += *bias as f32;
            }
        }
        let penalty = self.config.repetition_penalty as f32;
        for (logit, _) in logits.iter_mut().zip(&self.seen).filter(|(_, seen)| **seen) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

/// Rules tokens out by `top_k`, `top_p` and `min_p`: their logits become −∞.
fn warp(logits: &mut [f32], config: &GenerationConfig) {
    let scale = 1.0 / config.temperature as f32;
    if config.top_k > 0 && config.top_k < logits.len() {
        let mut sorted = logits.to_vec();
        let (_, least, _) = sorted.select_nth_unstable_by(config.top_k - 1, |a, b| b.total_cmp(a));
        let least = *least;
        rule_out(logits, |logit| logit < least);
    }
    let most = math::max(logits);
    if config.top_p < 1.0 {
        let sum: f64 = logits.iter().map(|logit| f64::from(((logit - most) * scale).exp())).sum();
        // Tokens of no more than this cannot reach what is left out, all of them together.
        let negligible = (1.0 - config.top_p) * sum / logits.len() as f64;
        let mut likely: Vec<(f32, f64)> = logits
            .iter()
            .map(|logit| (*logit, f64::from(((logit - most) * scale).exp())))
            .filter(|(_, weight)| *weight > negligible)
            .collect();
        likely.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let mut so_far = 0.0;
        let mut least = most;
        for (logit, weight) in likely {
            if so_far >= config.top_p * sum {
                break;
            }
            so_far += weight;
            least = logit;
        }
        rule_out(logits, |logit| logit < least);
    }
    if config.min_p > 0.0 {
        let least = most + config.min_p.ln() as f32 / scale;
        rule_out(logits, |logit| logit < least);
    }
}

fn rule_out(logits: &mut [f32], unlikely: impl Fn(f32) -> bool) {
    for logit in logits {
        if unlikely(*logit) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// The first of the largest.
pub(super) fn likeliest(logits: &[f32]) -> u32 {
    let most = math::max(logits);
    logits.iter().position(|logit| *logit == most).unwrap_or(0) as u32
}

/// The `n` largest with their places, the largest first, the first of equal ones first.
pub(super) fn likeliest_of(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let n = n.min(logits.len());
    if n == 0 {
        return Vec::new();
    }
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let order =
        |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if n < ids.len() {
        ids.select_nth_unstable_by(n - 1, order);
        ids.truncate(n);
    }
    ids.sort_by(order);
    ids.into_iter().map(|id| (id, logits[id as usize])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(config: &GenerationConfig, prompt: &[u32]) -> Sampler {
        Sampler::new(config, 0, prompt, 4)
    }

    #[test]
    fn the_penalty_is_transformers() {
        let config = GenerationConfig { repetition_penalty: 2.0, ..Default::default() };
        let mut sampler = sampler(&config, &[0, 1]);
        let mut changed = [3.0, -1.0, 2.0, 1.0];
        sampler.process(&mut changed);
        assert_eq!(changed, [1.5, -2.0, 2.0, 1.0]);
        assert_eq!(sampler.next(&[3.0, -1.0, 2.0, 1.0]).unwrap().id, 2);
        let choice = sampler.next(&[0.0, 0.0, 1.5, 1.0]).unwrap();
        assert_eq!(choice.id, 3, "token 2 has occurred by now");
    }

    #[test]
    fn a_bias_changes_the_choice_and_not_what_the_model_gave() {
        let config = GenerationConfig {
            logit_bias: [(1, 10.0), (3, -100.0)].into(),
            top_logprobs: 2,
            ..Default::default()
        };
        let choice = sampler(&config, &[]).next(&[0.0, 0.0, 0.0, 1.0]).unwrap();
        assert_eq!(choice.id, 1);
        let sum = (3.0f32 + 1f32.exp()).ln();
        assert!((choice.log_probability + sum).abs() < 1e-6);
        assert_eq!(choice.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [3, 0]);
        assert!((choice.top[0].1 - (1.0 - sum)).abs() < 1e-6);
    }

    #[test]
    fn unlikely_tokens_are_ruled_out_in_transformers_order() {
        let ruled = |config: GenerationConfig| {
            // 0.5, 0.25, 0.15, 0.1
            let mut logits = [0.5f32, 0.25, 0.15, 0.1].map(f32::ln);
            warp(&mut logits, &config);
            logits.map(|logit| logit > f32::NEG_INFINITY)
        };
        let base = GenerationConfig { temperature: 1.0, ..Default::default() };
        assert_eq!(ruled(base.clone()), [true; 4]);
        let top_k = GenerationConfig { top_k: 3, ..base.clone() };
        assert_eq!(ruled(top_k), [true, true, true, false]);
        // The smallest set that reaches 0.7 has 0.75.
        let top_p = GenerationConfig { top_p: 0.7, ..base.clone() };
        assert_eq!(ruled(top_p), [true, true, false, false]);
        let tiny = GenerationConfig { top_p: 0.01, ..base.clone() };
        assert_eq!(ruled(tiny), [true, false, false, false]);
        // At least 0.28 · 0.5 = 0.14.
        let min_p = GenerationConfig { min_p: 0.28, ..base.clone() };
        assert_eq!(ruled(min_p), [true, true, true, false]);
        // At temperature 2 the shares are 0.37, 0.26, 0.20, 0.17.
        let warm = GenerationConfig { min_p: 0.28, temperature: 2.0, ..base.clone() };
        assert_eq!(ruled(warm), [true; 4]);
        let both = GenerationConfig { top_k: 2, top_p: 0.9, ..base };
        assert_eq!(ruled(both), [true, true, false, false]);
    }

    #[test]
    fn the_first_of_equal_logits_wins() {
        assert_eq!(likeliest(&[1.0, 5.0, 5.0]), 1);
        assert_eq!(likeliest_of(&[1.0, 5.0, 5.0], 2), [(1, 5.0), (2, 5.0)]);
    }

    #[test]
    fn a_model_that_diverged_is_an_error() {
        for temperature in [0.0, 1.0] {
            let config = GenerationConfig { temperature, ..Default::default() };
            let mut sampler = Sampler::new(&config, 0, &[], 2);
            let error = sampler.next(&[0.0, f32::NAN]).unwrap_err().to_string();
            assert!(error.contains("NaN") && error.contains("learning rate"), "{error}");
            assert!(sampler.next(&[f32::NEG_INFINITY, 0.0]).is_ok(), "an impossible token is none");
        }
    }
}
