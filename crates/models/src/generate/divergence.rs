//! How far the predictions of two models are apart.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use tunebook_ops::cpu::{Values, math};

use crate::error::{Error, Result};
use crate::generate::sampler::likeliest;
use crate::model::Model;
use crate::pass::Pass;
use crate::text::conversation::TokenizedText;

/// Positions whose logits exist at a time, of both models.
const LOGIT_ROWS: usize = 64;

/// How far two models' predictions of the tokens of a text are apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Divergence {
    /// KL(reference ‖ model), summed over the tokens that bear a loss, in nats.
    pub sum: f64,
    /// How many these are.
    pub tokens: usize,
    /// For how many of them both models find the same token the likeliest.
    pub agreeing: usize,
}

impl Divergence {
    /// Nats a token; not a number where no token bears a loss.
    pub fn mean(&self) -> f64 {
        self.sum / self.tokens as f64
    }
}

/// Comparison of predictions.
impl Model {
    /// For each text the Kullback-Leibler divergence of this model's predictions from those of
    /// `reference`, over the whole vocabulary, where a token that bears a loss is predicted.
    /// `reference` may be a handle on the same weights, such as [`Model::base`].
    ///
    /// # Errors
    /// Another vocabulary; as [`Model::text_losses`].
    pub fn divergences(
        &self,
        reference: &Self,
        texts: &[TokenizedText],
    ) -> Result<Vec<Divergence>> {
        let (own, other) = (self.config().vocab_size, reference.config().vocab_size);
        if own != other {
            return Err(Error::Argument {
                field: "reference",
                value: format!("a model with {other} tokens, while this one has {own}"),
                expected: "a model with the same vocabulary",
            });
        }
        let (this, reference) = (self.pinned(), reference.pinned());
        let of = |(row, text): (usize, &TokenizedText)| {
            this.divergence(&reference, text).map_err(Error::of_item("texts", row))
        };
        texts.iter().enumerate().map(of).collect()
    }

    fn divergence(&self, reference: &Self, text: &TokenizedText) -> Result<Divergence> {
        // The hidden state before a token predicts it.
        let asked = |at: &usize| text.loss_mask.get(at + 1) == Some(&true);
        let rows: Vec<u32> =
            (0..text.ids.len().saturating_sub(1)).filter(asked).map(|at| at as u32).collect();
        let mut all = Divergence { tokens: rows.len(), ..Divergence::default() };
        if rows.is_empty() {
            return Ok(all);
        }
        self.check_ids("ids", &text.ids)?;
        let (p, q) = (reference.hidden_of(text, &rows)?, self.hidden_of(text, &rows)?);
        for from in (0..rows.len()).step_by(LOGIT_ROWS) {
            let rows = LOGIT_ROWS.min(rows.len() - from);
            let p = reference.head_logits(&p.narrow(0, from, rows)?)?;
            let q = self.head_logits(&q.narrow(0, from, rows)?)?;
            let vocab = p.dim(1)?;
            let (p, q) = (Values::of(&p)?, Values::of(&q)?);
            let pairs = p.par_chunks(vocab).zip(q.par_chunks(vocab));
            // In the order of the rows, so that the sum is the same on any number of threads.
            let each: Vec<(f64, bool)> =
                pairs.map(|(p, q)| (kl(p, q), likeliest(p) == likeliest(q))).collect();
            for (kl, agree) in each {
                if !kl.is_finite() {
                    return Err(Error::NotFinite { found: kl as f32 });
                }
                all.sum += kl;
                all.agreeing += usize::from(agree);
            }
        }
        Ok(all)
    }

    /// Hidden states at some positions of one text, `[rows, hid]`.
    fn hidden_of(&self, text: &TokenizedText, rows: &[u32]) -> Result<Tensor> {
        self.snapshot().check_count("texts", 1)?;
        let ids = Tensor::new(&text.ids[..], self.device())?.unsqueeze(0)?;
        let rows = Tensor::new(rows, self.device())?;
        Ok(self.hidden_states(&ids)?.squeeze(0)?.index_select(&rows, 0)?)
    }

    /// Logits of hidden states, `[rows, hid]` -> `[rows, vocab]`, in f32 in this machine's memory.
    fn head_logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let snapshot = self.snapshot();
        let positions = self.positions(1, 1, &snapshot)?;
        let logits = self.logits(&hidden.contiguous()?, &Pass::new(&snapshot, &positions))?;
        Ok(logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.contiguous()?)
    }
}

/// KL(p ‖ q) of two rows of logits.
fn kl(p: &[f32], q: &[f32]) -> f64 {
    let (p_sum, q_sum) = (f64::from(math::log_sum_exp(p)), f64::from(math::log_sum_exp(q)));
    let term = |(p, q): (&f32, &f32)| {
        let (p, q) = (f64::from(*p) - p_sum, f64::from(*q) - q_sum);
        p.exp() * (p - q)
    };
    // Rounding may leave a little less than nothing.
    p.iter().zip(q).map(term).sum::<f64>().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divergence_of_two_coins() {
        // Of 1/2, 1/2 from 3/4, 1/4: ln(2 / 3) / 2 + ln(2) / 2.
        let (p, q) = ([0.0, 0.0], [3.0_f32.ln(), 0.0]);
        let expected = 0.5 * (2.0_f64 / 3.0).ln() + 0.5 * 2.0_f64.ln();
        assert!((kl(&p, &q) - expected).abs() < 1e-6, "{}", kl(&p, &q));
        assert_eq!(kl(&q, &q), 0.0);
    }
}
