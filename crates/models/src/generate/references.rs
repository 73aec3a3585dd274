//! Losses of given answers to prompts that the engine computes for answers of its own: what follows a
//! prompt costs little beside it.

use std::sync::Arc;

use candle_core::Tensor;

use crate::error::Result;
use crate::generate::engine::RequestId;
use crate::generate::score::{Asked, Part, TextLoss};
use crate::model::Model;
use crate::pass::kv_cache::{Pages, TextCache};
use crate::pass::overlay::Overlay;

/// Tokens that go through the model together.
const TOKENS: usize = 256;
/// The most positions whose keys and values are kept for them.
const POSITIONS: usize = 8192;

/// A given answer whose prompt has gone through the model.
pub(super) struct Reference {
    pub(super) id: RequestId,
    pub(super) tokens: Arc<[u32]>,
    pub(super) overlay: Arc<Overlay>,
    /// The prompt's keys and values, and the hidden state of its last token.
    pub(super) cache: TextCache,
    pub(super) hidden: Tensor,
}

/// Those that are to be scored, and the losses that nobody has taken yet.
#[derive(Default)]
pub(super) struct References {
    kept: Vec<Reference>,
    losses: Vec<(RequestId, TextLoss)>,
}

impl References {
    pub(super) fn keep(&mut self, reference: Reference) {
        self.kept.push(reference);
    }

    /// Forgets those that are to be scored.
    pub(super) fn clear(&mut self) {
        self.kept.clear();
    }

    pub(super) fn take_losses(&mut self) -> Vec<(RequestId, TextLoss)> {
        std::mem::take(&mut self.losses)
    }

    /// Scores them when there are enough for a pass, or no `more` will come.
    pub(super) fn score(&mut self, model: &Model, pages: &Pages, more: bool) -> Result<()> {
        if self.kept.is_empty() {
            return Ok(());
        }
        let sum = |of: fn(&Reference) -> usize| self.kept.iter().map(of).sum::<usize>();
        let few =
            sum(|kept| kept.tokens.len()) < TOKENS && sum(|kept| kept.cache.len()) < POSITIONS;
        if more && few {
            return Ok(());
        }
        let kept = std::mem::take(&mut self.kept);
        let of_text = |(text, kept): (usize, &Reference)| -> Vec<(u32, usize)> {
            kept.tokens.iter().map(|token| (*token, text)).collect()
        };
        let tokens: Vec<Vec<(u32, usize)>> = kept.iter().enumerate().map(of_text).collect();
        let mut rows: Vec<Asked<'_>> = Vec::new();
        for (kept, tokens) in kept.iter().zip(&tokens) {
            let (hidden, overlay) = (kept.hidden.clone(), &kept.overlay);
            rows.push(Asked { hidden, overlay, tokens: &tokens[..1] });
        }
        // The last token of an answer foretells nothing.
        let longer: Vec<usize> = (0..kept.len()).filter(|text| tokens[*text].len() > 1).collect();
        let part = |text: &usize| {
            let Reference { tokens, overlay, cache, .. } = &kept[*text];
            let before = tokens.len() - 1;
            Part { overlay, ids: &tokens[..before], end: cache.len() + before }
        };
        let parts: Vec<Part<'_>> = longer.iter().map(part).collect();
        let caches = longer.iter().map(|text| kept[*text].cache.clone()).collect();
        model.prefilled(pages, &parts, caches, &mut |at, from, hidden| {
            for row in 0..hidden.dim(0)? {
                let token = from + row + 1;
                rows.push(Asked {
                    hidden: hidden.narrow(0, row, 1)?,
                    overlay: parts[at].overlay,
                    tokens: &tokens[longer[at]][token..=token],
                });
            }
            Ok(())
        })?;
        let mut scores = vec![Vec::new(); kept.len()];
        model.score_rows(&rows, &mut scores)?;
        let ids = kept.iter().map(|kept| kept.id);
        self.losses.extend(ids.zip(scores.iter().map(|scores| TextLoss::of(scores))));
        Ok(())
    }
}
