//! How likely a model finds given texts: log-likelihoods of continuations and losses of examples.
//!
//! Texts go through the decoder as prompts do; a context that several continuations share goes once, and
//! so do tokens that several of them begin with.
//! Logits exist for a few rows at a time.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use tunebook_ops::Rows;
use tunebook_ops::cpu::crew::Each;
use tunebook_ops::cpu::{Values, math};

use crate::error::{Error, Result};
use crate::generate::sampler::{likeliest, likeliest_of};
use crate::generate::trie::{Stretch, Trie};
use crate::model::Model;
use crate::model::forward::Tokens;
use crate::pass::kv_cache::{Pages, TextCache};
use crate::pass::overlay::Overlay;
use crate::pass::snapshot::Snapshot;
use crate::text::conversation::TokenizedText;

/// Tokens of one pass.
pub(super) const CHUNK: usize = 512;
/// Tokens that contexts must have in common to be worth computing apart.
const FEWEST_SHARED: usize = 8;
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

/// How likely a model finds a token of a text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenScore {
    /// The natural logarithm of the token's probability, given all before it.
    pub log_probability: f32,
    /// The likeliest tokens where it stands, the likeliest first, and theirs.
    pub top: Vec<(u32, f32)>,
}

/// The loss of one text.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TextLoss {
    /// The cross-entropy of its tokens that bear a loss, summed, in nats.
    pub sum: f64,
    /// How many these are.
    pub tokens: usize,
    /// How many of them are the likeliest where they stand.
    pub correct: usize,
}

impl TextLoss {
    /// Of these tokens, all of which bear a loss.
    pub(super) fn of(tokens: &[Scored]) -> Self {
        let mut loss = Self::default();
        tokens.iter().for_each(|token| loss.add(token));
        loss
    }

    fn add(&mut self, (token, greedy): &Scored) {
        self.sum -= f64::from(*token);
        self.tokens += 1;
        self.correct += usize::from(*greedy);
    }

    /// Nats a token; not a number where no token bears a loss.
    pub fn mean(&self) -> f64 {
        self.sum / self.tokens as f64
    }
}

/// What is asked about one text.
pub(super) struct Text {
    pub(super) overlay: Arc<Overlay>,
    /// Shared with others; at least one token, whose hidden state foretells what follows. A prefix
    /// has keys and values but none.
    context: Vec<u32>,
    /// Each is scored, given all before it.
    rest: Vec<u32>,
}

impl Text {
    /// # Errors
    /// Nothing is to be scored.
    pub(super) fn new(overlay: &Arc<Overlay>, context: &[u32], rest: &[u32]) -> Result<Self> {
        if rest.is_empty() {
            return Err(Error::Argument {
                field: "continuation",
                value: "empty".to_owned(),
                expected: "at least one token",
            });
        }
        Ok(Self { overlay: Arc::clone(overlay), context: context.to_vec(), rest: rest.to_vec() })
    }

    pub(super) fn context(&self) -> &[u32] {
        &self.context
    }

    pub(super) fn rest(&self) -> &[u32] {
        &self.rest
    }

    /// How many positions it takes.
    fn end(&self) -> usize {
        self.overlay.positions_before() + self.context.len() + self.rest.len() - 1
    }
}

/// Some tokens of a text, and how many positions the whole text takes.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) overlay: &'a Arc<Overlay>,
    pub(super) ids: &'a [u32],
    pub(super) end: usize,
}

/// The probability of a token: its logarithm, and whether it is the likeliest.
pub(super) type Scored = (f32, bool);

/// A position, and the tokens whose probability there is asked for, each with the number of its text.
pub(super) struct Asked<'a> {
    pub(super) hidden: Tensor,
    pub(super) overlay: &'a Arc<Overlay>,
    pub(super) tokens: &'a [(u32, usize)],
}

/// How many tokens the contexts of an overlay have in common, and the keys and values of these.
pub(super) type Beginnings = HashMap<*const Overlay, (usize, TextCache)>;

/// Scoring of given texts.
impl Model {
    /// How likely each continuation is after its context, as lm-evaluation-harness asks it. Blanks
    /// at the end of a context count to its continuation, as they do for tokenizers. Contexts that
    /// occur more than once are computed once.
    ///
    /// # Errors
    /// When a text is longer than the context, or the continuation of a pair is empty, by the pair's
    /// place; another number of pairs than adapter names of this handle.
    pub fn log_likelihoods<C: AsRef<str>, T: AsRef<str>>(
        &self,
        pairs: &[(C, T)],
    ) -> Result<Vec<LogLikelihood>> {
        let ids = |(index, (context, continuation)): (usize, &(C, T))| {
            self.tokenize_continuation(context.as_ref(), continuation.as_ref())
                .map_err(Error::of_item("pairs", index))
        };
        let ids = pairs.iter().enumerate().map(ids).collect::<Result<Vec<_>>>()?;
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
        snapshot.check_count("pairs", pairs.len())?;
        let text = |(row, (context, rest)): (usize, &(Vec<u32>, Vec<u32>))| -> Result<Text> {
            let first: Vec<u32> = self.first_token().into_iter().collect();
            let context = if context.is_empty() { &first } else { context };
            let text = Text::new(snapshot.row(row), context, rest);
            let text = text.and_then(|text| self.check(&text).map(|()| text));
            text.map_err(Error::of_item("pairs", row))
        };
        let texts = pairs.iter().enumerate().map(text).collect::<Result<Vec<_>>>()?;
        let likelihood = |scored: Vec<Scored>| LogLikelihood {
            sum: scored.iter().map(|(token, _)| f64::from(*token)).sum(),
            is_greedy: scored.iter().all(|(_, greedy)| *greedy),
            tokens: scored.into_iter().map(|(token, _)| token).collect(),
        };
        Ok(self.score(&texts)?.into_iter().map(likelihood).collect())
    }

    /// How likely each token of each text is after those before it, from the second token on, and the
    /// `top` likeliest tokens there. The numbers are those of [`Model::log_likelihoods_of_ids`].
    ///
    /// # Errors
    /// When a text is longer than the context or has an id outside the vocabulary, by its place;
    /// another number of texts than adapter names of this handle.
    pub fn token_scores(&self, texts: &[Vec<u32>], top: usize) -> Result<Vec<Vec<TokenScore>>> {
        let snapshot = self.snapshot();
        snapshot.check_count("texts", texts.len())?;
        let mut scores = vec![Vec::new(); texts.len()];
        let mut rows = Vec::new();
        for (row, ids) in texts.iter().enumerate() {
            let [context, rest @ ..] = ids.as_slice() else { continue };
            if rest.is_empty() {
                self.check_ids("ids", ids).map_err(Error::of_item("texts", row))?;
                continue;
            }
            let text = Text {
                overlay: Arc::clone(snapshot.row(row)),
                context: vec![*context],
                rest: rest.to_vec(),
            };
            self.check(&text).map_err(Error::of_item("texts", row))?;
            rows.push((row, text));
        }
        // Keys and values stay for as many texts as one pass takes.
        let pages = self.pages();
        let mut rows = rows.as_slice();
        while !rows.is_empty() {
            let mut tokens = 0;
            let fit = rows.iter().take_while(|(_, text)| {
                tokens += text.rest.len();
                tokens <= CHUNK
            });
            let (group, later) = rows.split_at(fit.count().max(1));
            rows = later;
            self.score_tokens(texts, group, top, &pages, &mut scores)?;
        }
        Ok(scores)
    }

    /// Scores all tokens of some texts but their first ones, each text by its number.
    fn score_tokens(
        &self,
        texts: &[Vec<u32>],
        rows: &[(usize, Text)],
        top: usize,
        pages: &Pages,
        scores: &mut [Vec<TokenScore>],
    ) -> Result<()> {
        let stop = self.snapshot().stop().clone();
        let parts: Vec<Part<'_>> = rows
            .iter()
            .map(|(row, text)| {
                let ids = &texts[*row][..texts[*row].len() - 1];
                Part { overlay: &text.overlay, ids, end: text.end() }
            })
            .collect();
        let empty = parts.iter().map(|_| pages.text()).collect();
        self.prefilled(pages, &parts, empty, &mut |at, from, hidden| {
            let (row, text) = &rows[at];
            let snapshot = Snapshot::one(Arc::clone(&text.overlay), stop.clone());
            let mut done = 0;
            while done < hidden.dim(0)? {
                let count = (hidden.dim(0)? - done).min(LOGIT_ROWS);
                let chunk = hidden.narrow(0, done, count)?;
                let next = &text.rest[from + done..from + done + count];
                let logits = Rows::Score.during(|| self.logits_of(&chunk, &snapshot))?;
                let logits = logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.contiguous()?;
                let logits = Values::of(&logits)?;
                let mut found = vec![TokenScore::default(); count];
                logits.par_chunks(logits.len() / count).zip(&mut found).zip(next).each(
                    |((logits, score), token)| {
                        let sum = math::log_sum_exp(logits);
                        let likeliest = likeliest_of(logits, top).into_iter();
                        score.top = likeliest.map(|(id, logit)| (id, logit - sum)).collect();
                        score.log_probability = logits[*token as usize] - sum;
                    },
                );
                if let Some(odd) = found.iter().find(|score| !score.log_probability.is_finite()) {
                    return Err(Error::NotFinite { found: odd.log_probability });
                }
                scores[*row].extend(found);
                done += count;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// The mean loss of each text: the cross-entropy over its tokens that bear one, in nats a token.
    /// `None` where no token does.
    ///
    /// # Errors
    /// As [`Model::text_losses`].
    pub fn losses(&self, texts: &[TokenizedText]) -> Result<Vec<Option<f64>>> {
        let losses = self.text_losses(texts)?;
        Ok(losses.into_iter().map(|loss| (loss.tokens > 0).then(|| loss.mean())).collect())
    }

    /// The loss of each text, and how many of its tokens greedy generation would have said.
    ///
    /// # Errors
    /// When a text is longer than the context or has an id outside the vocabulary, by its place;
    /// another number of texts than adapter names of this handle.
    pub fn text_losses(&self, texts: &[TokenizedText]) -> Result<Vec<TextLoss>> {
        let snapshot = self.snapshot();
        snapshot.check_count("texts", texts.len())?;
        let first = |text: &TokenizedText| {
            // The first token has nothing before it that could foretell it.
            (1..text.ids.len()).find(|at| text.loss_mask.get(*at) == Some(&true))
        };
        let scored: Vec<(usize, usize)> =
            texts.iter().enumerate().filter_map(|(row, text)| Some((row, first(text)?))).collect();
        let text = |(row, from): &(usize, usize)| -> Result<Text> {
            let text = Text {
                overlay: Arc::clone(snapshot.row(*row)),
                context: texts[*row].ids[..*from].to_vec(),
                rest: texts[*row].ids[*from..].to_vec(),
            };
            self.check(&text).map_err(Error::of_item("texts", *row))?;
            Ok(text)
        };
        let asked: Vec<Text> = scored.iter().map(text).collect::<Result<_>>()?;
        let mut losses = vec![TextLoss::default(); texts.len()];
        for ((row, from), tokens) in scored.iter().zip(self.score(&asked)?) {
            let mask = &texts[*row].loss_mask[*from..];
            let bearing = tokens.iter().zip(mask).filter(|(_, bears)| **bears);
            bearing.for_each(|(token, _)| losses[*row].add(token));
        }
        Ok(losses)
    }

    /// The token that stands before texts that have nothing before them.
    fn first_token(&self) -> Option<u32> {
        let special = self.tokenizer().encode_with_special_tokens("").ok();
        special.and_then(|ids| ids.first().copied()).or(self.tokenizer().eos_id())
    }

    /// The tokens of a context and of what follows it: those of the whole text, divided behind the
    /// context. Blanks at the end of a context count to what follows.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn tokenize_continuation(
        &self,
        context: &str,
        continuation: &str,
    ) -> Result<(Vec<u32>, Vec<u32>)> {
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

    /// # Errors
    /// The text does not fit into the context, has no token before those that are scored, or an id
    /// outside the vocabulary.
    pub(super) fn check(&self, text: &Text) -> Result<()> {
        let context = self.config().max_position_embeddings;
        let tokens = text.end();
        if tokens > context {
            return Err(Error::ContextLength { tokens, context, advice: " or split it" });
        }
        self.check_ids("ids", &text.context)?;
        self.check_ids("ids", &text.rest)?;
        if text.context.is_empty() {
            return Err(Error::Argument {
                field: "context",
                value: "empty".to_owned(),
                expected: "at least one token, as this tokenizer has none that begins texts",
            });
        }
        Ok(())
    }

    /// Whether a text has the second angles of its family: in some they depend on the length of the
    /// whole text.
    pub(super) fn is_long(&self, text: &Text) -> bool {
        self.decoder().cache_ends_at().is_some_and(|most| text.end() > most)
    }

    fn score(&self, texts: &[Text]) -> Result<Vec<Vec<Scored>>> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut places: HashMap<(*const Overlay, bool, &[u32]), usize> = HashMap::new();
        for (index, text) in texts.iter().enumerate() {
            let key = (Arc::as_ptr(&text.overlay), self.is_long(text), text.context.as_slice());
            let group = *places.entry(key).or_insert(groups.len());
            match groups.get_mut(group) {
                Some(group) => group.push(index),
                None => groups.push(vec![index]),
            }
        }
        let pages = self.pages();
        let begun = self.beginnings(texts, &groups, &pages)?;
        let mut scores = vec![Vec::new(); texts.len()];
        // As many groups at a time as fill a pass.
        let mut from = 0;
        while from < groups.len() {
            let mut to = from;
            let mut tokens = 0;
            while to < groups.len() && (to == from || tokens < CHUNK) {
                let first = &texts[groups[to][0]];
                let shared = begun.get(&Arc::as_ptr(&first.overlay)).map_or(0, |(len, _)| *len);
                tokens += first.context.len() - shared;
                to += 1;
            }
            self.score_groups(texts, &groups[from..to], &begun, &pages, &mut scores)?;
            from = to;
        }
        Ok(scores)
    }

    /// What the contexts of each overlay have in common, a system prompt or worked examples, goes
    /// through the model once.
    pub(super) fn beginnings(
        &self,
        texts: &[Text],
        groups: &[Vec<usize>],
        pages: &Pages,
    ) -> Result<Beginnings> {
        let mut common: Vec<(&Arc<Overlay>, &[u32], usize)> = Vec::new();
        if self.decoder().cache_ends_at().is_some() {
            return Ok(Beginnings::new());
        }
        for group in groups {
            let Text { overlay, context, .. } = &texts[group[0]];
            // The hidden state of the last token is asked for.
            let own = &context[..context.len().saturating_sub(1)];
            match common.iter_mut().find(|(other, ..)| Arc::ptr_eq(other, overlay)) {
                Some((_, shared, count)) => {
                    let len = shared.iter().zip(own).take_while(|(a, b)| a == b).count();
                    *shared = &shared[..len];
                    *count += 1;
                }
                None => common.push((overlay, own, 1)),
            }
        }
        common.retain(|(_, shared, count)| *count > 1 && shared.len() >= FEWEST_SHARED);
        let parts: Vec<Part<'_>> = common
            .iter()
            .map(|(overlay, ids, _)| {
                let end = overlay.positions_before() + ids.len();
                Part { overlay, ids, end }
            })
            .collect();
        let empty = parts.iter().map(|_| pages.text()).collect();
        let (caches, _) = self.prefilled(pages, &parts, empty, &mut |_, _, _| Ok(()))?;
        let begun = parts.iter().zip(caches);
        Ok(begun
            .map(|(part, cache)| (Arc::as_ptr(part.overlay), (part.ids.len(), cache)))
            .collect())
    }

    /// What is left of the contexts of some groups, and the keys and values before it.
    pub(super) fn contexts<'a>(
        &self,
        texts: &'a [Text],
        groups: &[Vec<usize>],
        begun: &Beginnings,
        pages: &Pages,
    ) -> (Vec<Part<'a>>, Vec<TextCache>) {
        let context = |group: &Vec<usize>| {
            let Text { overlay, context, .. } = &texts[group[0]];
            let end = group.iter().map(|index| texts[*index].end()).max().unwrap_or(0);
            let (shared, cache) = match begun.get(&Arc::as_ptr(overlay)) {
                Some((shared, cache)) => (*shared, cache.clone()),
                None => (0, pages.text()),
            };
            (Part { overlay, ids: &context[shared..], end }, cache)
        };
        groups.iter().map(context).unzip()
    }

    fn score_groups(
        &self,
        texts: &[Text],
        groups: &[Vec<usize>],
        begun: &Beginnings,
        pages: &Pages,
        scores: &mut [Vec<Scored>],
    ) -> Result<()> {
        let (contexts, caches) = self.contexts(texts, groups, begun, pages);
        let tries: Vec<Trie> = groups
            .iter()
            .map(|group| Trie::of(group.iter().map(|index| (*index, &texts[*index].rest[..]))))
            .collect();
        let (caches, last) = self.prefilled(pages, &contexts, caches, &mut |_, _, _| Ok(()))?;
        let begins = tries.iter().zip(&contexts).zip(last).map(|((trie, context), hidden)| Asked {
            hidden,
            overlay: context.overlay,
            tokens: trie.asked(Trie::ROOT),
        });
        self.score_rows(&begins.collect::<Vec<_>>(), scores)?;
        // The keys and values of what stands before each stretch.
        let below = |group: usize, node: usize, cache: TextCache| {
            let stretches = tries[group].stretches(node);
            stretches.into_iter().map(move |nodes| (group, nodes, cache.clone()))
        };
        let mut waiting: VecDeque<(usize, Stretch, TextCache)> = VecDeque::new();
        for (group, cache) in caches.into_iter().enumerate() {
            waiting.extend(below(group, Trie::ROOT, cache));
        }
        while !waiting.is_empty() {
            let mut tokens = 0;
            let mut chunk = Vec::new();
            while let Some((_, nodes, _)) = waiting.front()
                && (chunk.is_empty() || tokens + nodes.len() <= CHUNK)
            {
                tokens += nodes.len();
                chunk.extend(waiting.pop_front());
            }
            let mut ids = Vec::new();
            let mut before = Vec::new();
            for (group, nodes, cache) in &mut chunk {
                ids.push(tries[*group].tokens(nodes));
                before.push(std::mem::replace(cache, pages.text()));
            }
            let parts: Vec<Part<'_>> = chunk
                .iter()
                .zip(&ids)
                .map(|((group, ..), ids)| Part { ids, ..contexts[*group] })
                .collect();
            // The output head meets the tokens of all stretches at once.
            let mut asked = Vec::new();
            let (caches, _) = self.prefilled(pages, &parts, before, &mut |at, from, hidden| {
                let (group, nodes, _) = &chunk[at];
                for row in 0..hidden.dim(0)? {
                    asked.push(Asked {
                        hidden: hidden.narrow(0, row, 1)?,
                        overlay: contexts[*group].overlay,
                        tokens: tries[*group].asked(nodes[from + row]),
                    });
                }
                Ok(())
            })?;
            self.score_rows(&asked, scores)?;
            for ((group, nodes, _), cache) in chunk.iter().zip(caches) {
                if let Some(last) = nodes.last() {
                    waiting.extend(below(*group, *last, cache));
                }
            }
        }
        Ok(())
    }

    /// Texts, none of them empty, through the decoder, in passes of a chunk of each. Gives the caches
    /// back, and the hidden state of each text's last token; `each` sees the hidden states of some
    /// tokens of one text, from the given one on.
    pub(super) fn prefilled(
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
                let more = (part.ids.len() - done[at]).min(room);
                if more > 0 {
                    let begins = caches[at].len() == 0;
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
                Rows::Score.during(|| self.pass_over(pages, &stop, &tokens, given))?;
            let mut row = 0;
            for ((at, ids, before), cache) in chosen.iter().zip(filled) {
                caches[*at] = cache;
                row += before;
                each(*at, done[*at], &hidden.narrow(0, row, ids.len())?)?;
                row += ids.len();
                done[*at] += ids.len();
                last[*at] = Some(hidden.narrow(0, row - 1, 1)?);
            }
        }
        Ok((caches, last.into_iter().flatten().collect()))
    }

    /// Scores tokens, each by the hidden state before it, and adds them to their texts'.
    pub(super) fn score_rows(&self, rows: &[Asked<'_>], scores: &mut [Vec<Scored>]) -> Result<()> {
        for rows in rows.chunks(LOGIT_ROWS) {
            let hidden: Vec<&Tensor> = rows.iter().map(|row| &row.hidden).collect();
            let overlays = rows.iter().map(|row| Arc::clone(row.overlay)).collect();
            let snapshot = Snapshot::of(overlays, self.snapshot().stop().clone());
            let hidden = Tensor::cat(&hidden, 0)?;
            let logits = Rows::Score.during(|| self.logits_of(&hidden, &snapshot))?;
            let logits = logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.contiguous()?;
            let logits = Values::of(&logits)?;
            let vocab = logits.len() / rows.len();
            let mut sums = vec![(0.0, 0); rows.len()];
            logits.par_chunks(vocab).zip(&mut sums).each(|(logits, sum)| {
                *sum = (math::log_sum_exp(logits), likeliest(logits));
            });
            for ((logits, row), (sum, best)) in logits.chunks(vocab).zip(rows).zip(sums) {
                for (token, text) in row.tokens {
                    let own = logits[*token as usize] - sum;
                    if !own.is_finite() {
                        return Err(Error::NotFinite { found: own });
                    }
                    scores[*text].push((own, best == *token));
                }
            }
        }
        Ok(())
    }
}
