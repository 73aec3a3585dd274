//! How likely a model finds given texts: log-likelihoods of continuations and losses of examples.
//!
//! Texts go through the decoder as prompts do; a context that several continuations share goes once.
//! Logits exist for a few rows at a time.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use tunebook_ops::Rows;
use tunebook_ops::cpu::crew::Each;
use tunebook_ops::cpu::{Values, math};

use crate::error::{Error, Result};
use crate::generate::sampler::likeliest;
use crate::model::Model;
use crate::model::forward::Tokens;
use crate::pass::kv_cache::{Pages, TextCache};
use crate::pass::overlay::Overlay;
use crate::pass::snapshot::Snapshot;
use crate::text::conversation::TokenizedText;

/// Tokens of one pass.
const CHUNK: usize = 512;
/// Rows whose logits exist at a time.
const LOGIT_ROWS: usize = 128;

/// How likely a model finds a continuation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogLikelihood {
    /// The natural logarithm of the continuation's probability: the sum over its tokens.
    pub sum: f64,
    /// For each token its natural logarithm.
    pub tokens: Vec<f32>,
    /// Whether each token is the likeliest one, so that greedy generation would say the
    /// continuation.
    pub is_greedy: bool,
}

/// What is asked about one text.
struct Text {
    overlay: Arc<Overlay>,
    /// Shared with others.
    context: Vec<u32>,
    /// Each is scored, given all before it. The context, or what stands before it, has at least one
    /// position.
    rest: Vec<u32>,
}

impl Text {
    /// How many positions it takes.
    fn end(&self) -> usize {
        self.overlay.positions_before() + self.context.len() + self.rest.len() - 1
    }
}

/// Some tokens of a text, and how many positions the whole text takes.
struct Part<'a> {
    overlay: &'a Arc<Overlay>,
    ids: &'a [u32],
    end: usize,
}

/// The probability of a token: its logarithm, and whether it is the likeliest.
type Scored = (f32, bool);

/// Scoring of given texts.
impl Model {
    /// How likely each continuation is after its context, as lm-evaluation-harness asks it. Blanks
    /// at the end of a context count to its continuation, as they do for tokenizers. Contexts that
    /// occur more than once are computed once.
    ///
    /// # Errors
    /// When a text is longer than the context, or the text of a pair is empty.
    pub fn log_likelihoods<C: AsRef<str>, T: AsRef<str>>(
        &self,
        pairs: &[(C, T)],
    ) -> Result<Vec<LogLikelihood>> {
        let ids = pairs
            .iter()
            .map(|(context, continuation)| self.split(context.as_ref(), continuation.as_ref()))
            .collect::<Result<Vec<_>>>()?;
        self.log_likelihoods_of_ids(&ids)
    }

    /// As [`Model::log_likelihoods`], of token ids. A context that is empty has the token that begins
    /// texts, or ends them.
    ///
    /// # Errors
    /// As [`Model::log_likelihoods`]; when an id is outside the vocabulary.
    pub fn log_likelihoods_of_ids(
        &self,
        pairs: &[(Vec<u32>, Vec<u32>)],
    ) -> Result<Vec<LogLikelihood>> {
        let snapshot = self.snapshot();
        let text = |(row, (context, rest)): (usize, &(Vec<u32>, Vec<u32>))| -> Result<Text> {
            if rest.is_empty() {
                return Err(Error::Argument {
                    field: "continuation",
                    value: "empty".to_owned(),
                    expected: "at least one token",
                });
            }
            let context = match context.is_empty() {
                true => self.first_token().into_iter().collect(),
                false => context.clone(),
            };
            Ok(Text { overlay: Arc::clone(snapshot.row(row)), context, rest: rest.clone() })
        };
        let texts = pairs.iter().enumerate().map(text).collect::<Result<Vec<_>>>()?;
        let likelihood = |scored: Vec<Scored>| LogLikelihood {
            sum: scored.iter().map(|(token, _)| f64::from(*token)).sum(),
            is_greedy: scored.iter().all(|(_, greedy)| *greedy),
            tokens: scored.into_iter().map(|(token, _)| token).collect(),
        };
        Ok(self.score(&texts)?.into_iter().map(likelihood).collect())
    }

    /// The mean loss of each text: the cross-entropy over its tokens that bear one, in nats a token.
    /// `None` where no token does.
    ///
    /// # Errors
    /// When a text is longer than the context or has an id outside the vocabulary.
    pub fn losses(&self, texts: &[TokenizedText]) -> Result<Vec<Option<f64>>> {
        let snapshot = self.snapshot();
        let first = |text: &TokenizedText| {
            // The first token has nothing before it that could foretell it.
            (1..text.ids.len()).find(|at| text.loss_mask.get(*at) == Some(&true))
        };
        let scored: Vec<(usize, usize)> =
            texts.iter().enumerate().filter_map(|(row, text)| Some((row, first(text)?))).collect();
        let asked: Vec<Text> = scored
            .iter()
            .map(|(row, from)| Text {
                overlay: Arc::clone(snapshot.row(*row)),
                context: texts[*row].ids[..*from].to_vec(),
                rest: texts[*row].ids[*from..].to_vec(),
            })
            .collect();
        let mut losses = vec![None; texts.len()];
        for ((row, from), tokens) in scored.iter().zip(self.score(&asked)?) {
            let mask = &texts[*row].loss_mask[*from..];
            let trained = || tokens.iter().zip(mask).filter(|(_, trained)| **trained);
            let sum: f64 = trained().map(|((token, _), _)| f64::from(*token)).sum();
            losses[*row] = Some(-sum / trained().count().max(1) as f64);
        }
        Ok(losses)
    }

    /// The token that stands before texts that have nothing before them.
    fn first_token(&self) -> Option<u32> {
        let special = self.tokenizer().encode_with_special_tokens("").ok();
        special.and_then(|ids| ids.first().copied()).or(self.tokenizer().eos_id())
    }

    /// The tokens of a context and of what follows it, of the whole text.
    fn split(&self, context: &str, continuation: &str) -> Result<(Vec<u32>, Vec<u32>)> {
        let kept = context.trim_end();
        let whole = format!("{context}{continuation}");
        let tokenizer = self.tokenizer();
        let before = match kept.is_empty() {
            true => Vec::new(),
            false => tokenizer.encode_with_special_tokens(kept)?,
        };
        let all = match kept.is_empty() {
            true => tokenizer.encode(&whole)?,
            false => tokenizer.encode_with_special_tokens(&whole)?,
        };
        let at = before.len().min(all.len());
        Ok((all[..at].to_vec(), all[at..].to_vec()))
    }

    fn score(&self, texts: &[Text]) -> Result<Vec<Vec<Scored>>> {
        let context = self.config().max_position_embeddings;
        for text in texts {
            let tokens = text.overlay.positions_before() + text.context.len() + text.rest.len() - 1;
            if tokens > context {
                return Err(Error::ContextLength { tokens, context, advice: " or split it" });
            }
            self.check_ids("ids", &text.context)?;
            self.check_ids("ids", &text.rest)?;
            if text.overlay.positions_before() + text.context.len() == 0 {
                return Err(Error::Argument {
                    field: "context",
                    value: "empty".to_owned(),
                    expected: "at least one token, as this tokenizer has none that begins texts",
                });
            }
        }
        let mut groups: Vec<Vec<usize>> = Vec::new();
        // The angles of some families depend on the length of the whole text.
        let most = self.decoder().cache_ends_at();
        let is_long = |text: &Text| most.is_some_and(|most| text.end() > most);
        let mut places: HashMap<(*const Overlay, bool, &[u32]), usize> = HashMap::new();
        for (index, text) in texts.iter().enumerate() {
            let key = (Arc::as_ptr(&text.overlay), is_long(text), text.context.as_slice());
            let group = *places.entry(key).or_insert(groups.len());
            match groups.get_mut(group) {
                Some(group) => group.push(index),
                None => groups.push(vec![index]),
            }
        }
        let pages = self.pages();
        let mut scores = vec![Vec::new(); texts.len()];
        // As many groups at a time as fill a pass.
        let mut from = 0;
        while from < groups.len() {
            let mut to = from;
            let mut tokens = 0;
            while to < groups.len() && (to == from || tokens < CHUNK) {
                tokens += texts[groups[to][0]].context.len();
                to += 1;
            }
            self.score_groups(texts, &groups[from..to], &pages, &mut scores)?;
            from = to;
        }
        Ok(scores)
    }

    fn score_groups(
        &self,
        texts: &[Text],
        groups: &[Vec<usize>],
        pages: &Pages,
        scores: &mut [Vec<Scored>],
    ) -> Result<()> {
        let contexts: Vec<Part<'_>> = groups
            .iter()
            .map(|group| {
                let Text { overlay, context, .. } = &texts[group[0]];
                let end = group.iter().map(|index| texts[*index].end()).max();
                Part { overlay, ids: context, end: end.unwrap_or(0) }
            })
            .collect();
        let empty = contexts.iter().map(|_| pages.text()).collect();
        let (caches, last) = self.prefilled(pages, &contexts, empty, &mut |_, _, _| Ok(()))?;
        // The first token of each continuation follows its context.
        let mut wanted = Vec::new();
        for (group, (context, hidden)) in groups.iter().zip(contexts.iter().zip(&last)) {
            for index in group {
                wanted.push((hidden.clone(), context.overlay, texts[*index].rest[0], *index));
            }
        }
        self.score_rows(&wanted, scores)?;
        drop(wanted);
        let rest: Vec<(usize, TextCache)> = groups
            .iter()
            .zip(&caches)
            .flat_map(|(group, cache)| group.iter().map(move |index| (*index, cache.clone())))
            .filter(|(index, _)| texts[*index].rest.len() > 1)
            .collect();
        drop(caches);
        let mut rest = rest.into_iter().peekable();
        while rest.peek().is_some() {
            let mut tokens = 0;
            let mut chunk = Vec::new();
            while let Some((index, _)) = rest.peek()
                && (chunk.is_empty() || tokens + texts[*index].rest.len() <= CHUNK)
            {
                tokens += texts[*index].rest.len();
                chunk.extend(rest.next());
            }
            let (indices, caches): (Vec<usize>, Vec<TextCache>) = chunk.into_iter().unzip();
            let asked: Vec<Part<'_>> = indices
                .iter()
                .map(|index| {
                    let text = &texts[*index];
                    let ids = &text.rest[..text.rest.len() - 1];
                    Part { overlay: &text.overlay, ids, end: text.end() }
                })
                .collect();
            self.prefilled(pages, &asked, caches, &mut |at, from, hidden| {
                let text = &texts[indices[at]];
                let mut wanted = Vec::new();
                for row in 0..hidden.dim(0)? {
                    let next = text.rest[from + row + 1];
                    wanted.push((hidden.narrow(0, row, 1)?, &text.overlay, next, indices[at]));
                }
                self.score_rows(&wanted, scores)
            })?;
        }
        Ok(())
    }

    /// Texts through the decoder, in passes of a chunk of each. Gives the caches back, and the hidden
    /// state of each text's last token; `each` sees the hidden states of some tokens of one text,
    /// from the given one on.
    fn prefilled(
        &self,
        pages: &Pages,
        parts: &[Part<'_>],
        mut caches: Vec<TextCache>,
        each: &mut dyn FnMut(usize, usize, &Tensor) -> Result<()>,
    ) -> Result<(Vec<TextCache>, Vec<Tensor>)> {
        let stop = self.snapshot().stop().clone();
        let mut done = vec![0; parts.len()];
        let mut last: Vec<Option<Tensor>> = vec![None; parts.len()];
        loop {
            let mut room = CHUNK;
            let mut chosen = Vec::new();
            for (at, part) in parts.iter().enumerate() {
                // A text without tokens has its virtual ones.
                let begins = caches[at].len() == 0;
                let more = (part.ids.len() - done[at]).min(room);
                if more > 0 || (begins && last[at].is_none()) {
                    let before = if begins { part.overlay.virtual_count() } else { 0 };
                    chosen.push((at, &part.ids[done[at]..done[at] + more], before));
                    room -= more;
                }
            }
            if chosen.is_empty() {
                break;
            }
            let tokens: Vec<Tokens<'_>> = chosen
                .iter()
                .map(|(at, ids, before)| Tokens {
                    overlay: parts[*at].overlay,
                    virtual_tokens: 0..*before,
                    ids,
                    end: parts[*at].end,
                })
                .collect();
            let given = chosen
                .iter()
                .map(|(at, ..)| std::mem::replace(&mut caches[*at], pages.text()))
                .collect();
            let (filled, hidden) =
                Rows::Prefill.during(|| self.pass_over(pages, &stop, &tokens, given))?;
            let mut row = 0;
            for ((at, ids, before), cache) in chosen.iter().zip(filled) {
                caches[*at] = cache;
                row += before;
                if !ids.is_empty() {
                    each(*at, done[*at], &hidden.narrow(0, row, ids.len())?)?;
                }
                row += ids.len();
                done[*at] += ids.len();
                last[*at] = Some(hidden.narrow(0, row - 1, 1)?);
            }
        }
        Ok((caches, last.into_iter().flatten().collect()))
    }

    /// Scores tokens, each by the hidden state before it, and adds them to their texts'.
    fn score_rows(
        &self,
        rows: &[(Tensor, &Arc<Overlay>, u32, usize)],
        scores: &mut [Vec<Scored>],
    ) -> Result<()> {
        for rows in rows.chunks(LOGIT_ROWS) {
            let hidden: Vec<&Tensor> = rows.iter().map(|(hidden, ..)| hidden).collect();
            let overlays = rows.iter().map(|(_, overlay, ..)| Arc::clone(overlay)).collect();
            let snapshot = Snapshot::of(overlays, self.snapshot().stop().clone());
            let hidden = Tensor::cat(&hidden, 0)?;
            let logits = Rows::Prefill.during(|| self.logits_of(&hidden, &snapshot))?;
            let logits = logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.contiguous()?;
            let logits = Values::of(&logits)?;
            let vocab = logits.len() / rows.len();
            let mut scored = vec![(0.0, false); rows.len()];
            logits.par_chunks(vocab).zip(rows).zip(&mut scored).each(
                |((logits, (_, _, id, _)), scored)| {
                    let own = logits[*id as usize] - math::log_sum_exp(logits);
                    *scored = (own, likeliest(logits) == *id);
                },
            );
            for ((.., index), scored) in rows.iter().zip(scored) {
                if !scored.0.is_finite() {
                    return Err(Error::NotFinite { found: scored.0 });
                }
                scores[*index].push(scored);
            }
        }
        Ok(())
    }
}
