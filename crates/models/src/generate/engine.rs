//! The engine that answers: requests join and leave at any time.
//!
//! [`GenerationEngine::step`] does one round: a chunk of the prompts that are not computed yet, so that a long
//! one does not keep the others waiting, and the next token of every answer that has begun. Keys and
//! values lie in pages that each answer has for itself, so answers of any length stand side by side
//! without padding; one that ends gives its pages back at once.
//!
//! An answer does not depend on the company: whatever else is computed with it, its greedy tokens
//! are the same, bit for bit (on the CPU).

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use tunebook_ops::cpu::crew::Each;
use tunebook_ops::cpu::{Values, keep_freed_memory};
use tunebook_ops::{PAGE, Rows};
use tunebook_progress::Stop;

use crate::error::{Error, Result};
use crate::generate::GenerationConfig;
use crate::generate::format::AnswerGrammar;
use crate::generate::prefix::{Found, PrefixCache, Walk};
use crate::generate::queue::{Queue, Waiting, in_turns};
use crate::generate::references::{Reference, References};
use crate::generate::sampler::{Choice, Sampler};
use crate::generate::score::TextLoss;
use crate::generate::text_stream::TextStream;
use crate::model::Model;
use crate::model::forward::Tokens;
use crate::pass::kv_cache::{Pages, TextCache};
use crate::pass::overlay::Overlay;
use crate::pass::snapshot::Snapshot;

/// How often pages of overlays that are gone are looked for.
const FORGETS_AFTER_STEPS: usize = 64;

/// How an [`GenerationEngine`] works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// The most answers at a time; more requests wait until one has ended, and overlays take turns.
    /// A request for more than these answers is answered when no other is.
    pub max_batch_size: usize,
    /// The most prompt tokens that one step computes.
    pub prefill_chunk_size: usize,
    /// The most bytes of keys and values to keep for prompts that begin alike; 0 keeps none. What is
    /// freed stays with the process for the next prompts.
    pub prefix_cache_bytes: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { max_batch_size: 32, prefill_chunk_size: 512, prefix_cache_bytes: 256 << 20 }
    }
}

/// A prompt to answer.
#[derive(Clone, Debug)]
pub struct GenerationRequest {
    prompt: Vec<u32>,
    config: GenerationConfig,
    overlay: Option<Arc<Overlay>>,
    stop: Stop,
    /// Added to the seed, so that equal prompts of one call get different samples.
    number: usize,
    grammar: Option<AnswerGrammar>,
    /// Tokens after the prompt whose loss is asked for, beside an answer.
    reference: Arc<[u32]>,
}

impl GenerationRequest {
    /// A prompt as token ids. `batch_size` of the config has no meaning here.
    pub fn new(prompt: impl Into<Vec<u32>>, config: &GenerationConfig) -> Self {
        let (prompt, config) = (prompt.into(), config.clone());
        Self {
            prompt,
            config,
            overlay: None,
            stop: Stop::never(),
            number: 0,
            grammar: None,
            reference: Arc::default(),
        }
    }

    /// Answered by this overlay, not by the one that the engine's model has when it is inserted.
    #[must_use]
    pub fn with_overlay(self, overlay: Arc<Overlay>) -> Self {
        Self { overlay: Some(overlay), ..self }
    }

    /// Ends with [`FinishReason::Interrupted`] when `stop` asks for it.
    #[must_use]
    pub fn with_stop(self, stop: &Stop) -> Self {
        Self { stop: stop.clone(), ..self }
    }

    /// With the `format` of the config, made ready by [`Model::answer_grammar`]: the engine would
    /// else do it when the request comes in, and its other answers would wait.
    #[must_use]
    pub fn with_grammar(self, grammar: Option<AnswerGrammar>) -> Self {
        Self { grammar, ..self }
    }

    /// How many answers it asks for.
    pub(super) fn answers(&self) -> usize {
        self.config.num_return_sequences
    }

    /// With a number that is added to the seed, so that equal prompts get different samples.
    #[must_use]
    pub fn with_number(self, number: usize) -> Self {
        Self { number, ..self }
    }

    /// Asks for the loss of another answer's tokens, too, which costs little beside the prompt:
    /// [`GenerationEngine::take_losses`] has it.
    #[must_use]
    pub fn with_reference(self, reference: impl Into<Arc<[u32]>>) -> Self {
        Self { reference: reference.into(), ..self }
    }
}

/// The number of a request within its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

#[cfg(test)]
impl RequestId {
    pub(super) fn for_tests(number: u64) -> Self {
        Self(number)
    }
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model said the token that ends an answer, or a stop text came.
    Stop,
    /// It has `max_new_tokens`.
    Length,
    /// Prompt and answer fill the model's context.
    Context,
    /// Its work was asked to stop.
    Interrupted,
    /// Its format could not be kept any further, and why.
    Misformed(String),
    /// It could not go on, and why.
    Failed(String),
}

/// What an answer has cost, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenUsage {
    /// Of the prompt.
    pub prompt_tokens: usize,
    /// Of the prompt, those whose keys and values another prompt had computed.
    pub cached_tokens: usize,
    /// Of the answer, the token that ended it included.
    pub completion_tokens: usize,
}

/// The end of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// Why it ended.
    pub reason: FinishReason,
    /// What it has cost.
    pub usage: TokenUsage,
}

/// A token of an answer, or its end, or both.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationEvent {
    /// Whose answer.
    pub id: RequestId,
    /// Which of its answers, below `num_return_sequences`.
    pub answer: usize,
    /// The token, if there is one: the one that ends an answer as well.
    pub token: Option<u32>,
    /// The natural logarithm of the probability that the model gave the token, before penalty, bias
    /// and temperature.
    pub log_probability: f32,
    /// The likeliest tokens, as many as `top_logprobs`, and theirs.
    pub top_logprobs: Vec<(u32, f32)>,
    /// The text that has become certain: without special tokens and stop texts, whole characters.
    pub text: String,
    /// The end of this answer.
    pub finish: Option<Finish>,
}

/// An answer on its way.
struct Answer {
    id: RequestId,
    answer: usize,
    request: Arc<GenerationRequest>,
    overlay: Arc<Overlay>,
    /// The prompt and the answer so far.
    ids: Vec<u32>,
    /// How many of the inputs (virtual tokens, then `ids`) are computed as a prompt is.
    prefill: usize,
    /// The most tokens of the answer, and whether it is the context that says so.
    limit: (usize, bool),
    cache: TextCache,
    walk: Option<Walk>,
    cached: usize,
    sampler: Sampler,
    stream: TextStream,
    completion: usize,
    /// The other answers to the prompt are on their way.
    forked: bool,
}

impl Answer {
    /// How many of the inputs are computed.
    fn computed(&self) -> usize {
        self.cache.len().saturating_sub(self.overlay.past_count())
    }

    fn in_prefill(&self) -> bool {
        self.computed() < self.prefill
    }

    /// How many of the inputs that are computed as a prompt are not yet.
    fn left_to_prefill(&self) -> usize {
        self.prefill.saturating_sub(self.computed())
    }

    /// Inputs `from..from + count`, as a pass takes them.
    fn tokens_from(&self, from: usize, count: usize) -> Tokens<'_> {
        let to = from + count;
        let before = self.overlay.virtual_count();
        let known = self.prefill.max(to);
        Tokens {
            overlay: &self.overlay,
            virtual_tokens: from.min(before)..to.min(before),
            ids: &self.ids[from.max(before) - before..to.max(before) - before],
            end: self.overlay.past_count() + known,
        }
    }

    /// The tokens whose positions lie in a page.
    fn tokens_of_page(&self, page: usize) -> &[u32] {
        let before = self.overlay.positions_before();
        let at = |position: usize| position.saturating_sub(before).min(self.ids.len());
        &self.ids[at(page * PAGE)..at((page + 1) * PAGE)]
    }

    fn usage(&self) -> TokenUsage {
        TokenUsage {
            prompt_tokens: self.request.prompt.len(),
            cached_tokens: self.cached,
            completion_tokens: self.completion,
        }
    }
}

/// Answers many requests at a time with one model.
///
/// One thread owns it; [`GenerationEngine::spawn`] gives it a thread of its own and takes requests from
/// others.
///
/// ```no_run
/// use tunebook_models::{BestDevice, Device, GenerationEngine, GenerationConfig, Model, GenerationRequest};
/// let model = Model::load("SmolLM2-135M-Instruct", &Device::best()?)?;
/// let mut engine = GenerationEngine::new(&model, Default::default());
/// let prompt = model.tokenizer().encode_with_special_tokens("The capital of France is")?;
/// engine.insert(GenerationRequest::new(prompt, &GenerationConfig::default()))?;
/// while !engine.is_empty() {
///     for event in engine.step() {
///         print!("{}", event.text);
///     }
/// }
/// # Ok::<(), tunebook_models::Error>(())
/// ```
pub struct GenerationEngine {
    model: Model,
    config: EngineConfig,
    pages: Pages,
    prefix: PrefixCache,
    waiting: Queue,
    answers: Vec<Answer>,
    next_id: u64,
    cached: usize,
    steps: usize,
    error: Option<Error>,
    base: Arc<Overlay>,
    references: References,
}

impl GenerationEngine {
    /// An engine without requests. Requests that name no overlay are answered as this handle of the
    /// model answers when they are inserted.
    pub fn new(model: &Model, config: EngineConfig) -> Self {
        // Every step takes and frees what the step before it did.
        keep_freed_memory();
        let pages = model.pages();
        let capacity = config.prefix_cache_bytes / pages.page_bytes().max(1);
        Self {
            model: model.clone(),
            config,
            pages,
            prefix: PrefixCache::new(capacity),
            waiting: Queue::default(),
            answers: Vec::new(),
            next_id: 0,
            cached: 0,
            steps: 0,
            error: None,
            base: Arc::default(),
            references: References::default(),
        }
    }

    /// Takes a request in. It begins with the next step that has room for it.
    ///
    /// # Errors
    /// When the prompt is empty, has an id outside the vocabulary or leaves no room in the context;
    /// when a setting is out of range or the format cannot be kept; when the engine's handle has an
    /// overlay for each text and the request none.
    pub fn insert(&mut self, mut request: GenerationRequest) -> Result<RequestId> {
        let snapshot = self.model.snapshot();
        let overlay = match &request.overlay {
            Some(overlay) => overlay,
            None if snapshot.rows().is_some() => {
                return Err(Error::Argument {
                    field: "request",
                    value: "without an overlay".to_owned(),
                    expected: "one for each request of a handle that has one for each text",
                });
            }
            None => snapshot.row(0),
        };
        // Handles on the base have an overlay each, which all do the same.
        let overlay = Arc::clone(if overlay.is_base() { &self.base } else { overlay });
        check(&self.model, &request.prompt, &overlay)?;
        if !request.reference.is_empty() && self.model.is_quantized() {
            // Prompts are computed less exactly with quantised weights than losses are.
            request.reference = Arc::default();
        } else if !request.reference.is_empty() {
            check(&self.model, &[&request.prompt[..], &request.reference].concat(), &overlay)?;
        }
        request.config.validate()?;
        let biased: Vec<u32> = request.config.logit_bias.keys().copied().collect();
        self.model.check_ids("GenerationConfig.logit_bias", &biased)?;
        if let (None, Some(format)) = (&request.grammar, &request.config.format) {
            request.grammar = Some(self.model.answer_grammar(format)?);
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.waiting.push(Waiting { id, request, overlay });
        Ok(id)
    }

    /// Drops a request and its answers. `false`: it has ended already.
    pub fn remove(&mut self, id: RequestId) -> bool {
        let before = self.waiting.len() + self.answers.len();
        self.waiting.retain(|waiting| waiting.id != id);
        self.answers.retain(|answer| answer.id != id);
        before > self.waiting.len() + self.answers.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.answers.is_empty()
    }

    /// How many requests wait for others to end, and how many answers are on their way.
    pub fn load(&self) -> (usize, usize) {
        (self.waiting.len(), self.answers.len())
    }

    /// How many prompt tokens were taken from the prefix cache so far.
    pub fn cached_tokens(&self) -> usize {
        self.cached
    }

    /// The losses of references ([`GenerationRequest::with_reference`]) since the last call. There is
    /// none for quantised weights, with which prompts are computed less exactly than losses are, nor for
    /// a text that is longer than its family's first angles reach.
    pub fn take_losses(&mut self) -> Vec<(RequestId, TextLoss)> {
        self.references.take_losses()
    }

    /// The error of the last answer that failed by itself.
    pub(super) fn take_error(&mut self) -> Option<Error> {
        self.error.take()
    }

    /// Does one round: a chunk of prompts, and the next token of every answer that has begun.
    ///
    /// An answer that cannot go on ends with [`FinishReason::Failed`]; when a pass fails as a whole,
    /// as when the device has no room, all do.
    pub fn step(&mut self) -> Vec<GenerationEvent> {
        let mut events = Vec::new();
        match self.round(&mut events) {
            Ok(()) => {}
            Err(Error::Interrupted(_)) => self.end_all(&FinishReason::Interrupted, &mut events),
            Err(error) => {
                self.end_all(&FinishReason::Failed(error.to_string()), &mut events);
                self.error = Some(error);
            }
        }
        // An engine that is never empty must forget, too.
        self.steps = self.steps.wrapping_add(1);
        if self.is_empty() || self.steps.is_multiple_of(FORGETS_AFTER_STEPS) {
            self.prefix.forget_gone();
            self.waiting.forget_gone();
        }
        events
    }

    /// Ends all requests as failed, whatever the last step has left undone.
    pub(super) fn fail_all(&mut self, problem: &str) -> Vec<GenerationEvent> {
        let mut events = Vec::new();
        self.end_all(&FinishReason::Failed(problem.to_owned()), &mut events);
        events
    }

    fn round(&mut self, events: &mut Vec<GenerationEvent>) -> Result<()> {
        if self.stop().requested() {
            self.end_all(&FinishReason::Interrupted, events);
            return Ok(());
        }
        self.waiting.retain(|Waiting { id, request, .. }| {
            let stopped = request.stop.requested();
            if stopped {
                never_begun(*id, request, &FinishReason::Interrupted, events);
            }
            !stopped
        });
        let stopped: Vec<usize> = (0..self.answers.len())
            .rev()
            .filter(|index| self.answers[*index].request.stop.requested())
            .collect();
        for index in stopped {
            self.end(index, FinishReason::Interrupted, None, events);
        }
        self.admit(events);
        self.prefill(events)?;
        let more = !self.waiting.is_empty() || self.answers.iter().any(Answer::in_prefill);
        self.references.score(&self.model, &self.pages, more)?;
        self.decode(events)
    }

    /// The same engine, which nothing but its requests' own tokens stops.
    pub(super) fn unstoppable(self) -> Self {
        Self { model: self.model.with_stop(&Stop::never()), ..self }
    }

    fn stop(&self) -> Stop {
        self.model.snapshot().stop().clone()
    }

    /// Ends everything.
    fn end_all(&mut self, reason: &FinishReason, events: &mut Vec<GenerationEvent>) {
        self.references.clear();
        while !self.answers.is_empty() {
            self.end(0, reason.clone(), None, events);
        }
        for Waiting { id, request, .. } in self.waiting.take_all() {
            never_begun(id, &request, reason, events);
        }
    }

    /// Lets requests begin while there is room.
    fn admit(&mut self, events: &mut Vec<GenerationEvent>) {
        loop {
            let coming = |answer: &Answer| if answer.forked { 1 } else { answer.request.answers() };
            let begun: usize = self.answers.iter().map(coming).sum();
            let of = |overlay: &Arc<Overlay>| -> usize {
                let own =
                    self.answers.iter().filter(|answer| Arc::ptr_eq(&answer.overlay, overlay));
                own.map(coming).sum()
            };
            let Some(next) = self.waiting.next(of) else { break };
            let count = begun + self.waiting.get(next).map_or(0, |next| next.request.answers());
            if count > self.config.max_batch_size && !self.answers.is_empty() {
                break;
            }
            let Some(Waiting { id, request, overlay }) = self.waiting.take(next) else { break };
            let room = self.model.config().max_position_embeddings
                - overlay.positions_before()
                - request.prompt.len();
            let most = request.config.max_new_tokens;
            let answer = Answer {
                id,
                answer: 0,
                ids: request.prompt.clone(),
                prefill: overlay.virtual_count() + request.prompt.len(),
                limit: (most.min(room), room < most),
                cache: self.pages.text(),
                walk: None,
                cached: 0,
                sampler: self.sampler(&request, 0).with_format(request.grammar.as_ref()),
                stream: TextStream::new(&request.config.stop),
                completion: 0,
                forked: false,
                request: Arc::new(request),
                overlay,
            };
            self.answers.push(answer);
            if most == 0 {
                self.end(self.answers.len() - 1, FinishReason::Length, None, events);
            }
        }
    }

    fn sampler(&self, request: &GenerationRequest, answer: usize) -> Sampler {
        let config = &request.config;
        let number = request.number.wrapping_mul(config.num_return_sequences).wrapping_add(answer);
        Sampler::new(config, number, &request.prompt, self.model.config().vocab_size)
    }

    /// Computes the next chunk of prompts.
    fn prefill(&mut self, events: &mut Vec<GenerationEvent>) -> Result<()> {
        let mut room = self.config.prefill_chunk_size.max(1);
        self.prefix.check(self.model.weights_version());
        // The places of the answers in this pass, and how many inputs of each.
        let mut chosen: Vec<(usize, usize)> = Vec::new();
        // Long prompts for one overlay do not keep those for another waiting: the first prompt of
        // each overlay has its share of the room, and what is left goes to them, then to others.
        let begun = self.answers.iter().enumerate().filter(|(_, answer)| answer.in_prefill());
        let begun = begun.map(|(index, answer)| (index, Arc::as_ptr(&answer.overlay) as usize));
        let (order, overlays) = in_turns(begun);
        let (first, others) = order.split_at(overlays);
        for (place, index) in first.iter().enumerate() {
            if room == 0 {
                break;
            }
            if self.look_up(*index) {
                let share = room.div_ceil(first.len() - place);
                let count = self.answers[*index].left_to_prefill().min(share);
                chosen.push((*index, count));
                room -= count;
            }
        }
        for (index, count) in &mut chosen {
            let more = (self.answers[*index].left_to_prefill() - *count).min(room);
            *count += more;
            room -= more;
        }
        for index in others {
            if room == 0 {
                break;
            }
            if self.look_up(*index) {
                let count = self.answers[*index].left_to_prefill().min(room);
                chosen.push((*index, count));
                room -= count;
            }
        }
        if chosen.is_empty() {
            return Ok(());
        }
        let hidden = Rows::Prefill.during(|| self.pass(&chosen))?;
        let mut complete = Vec::new();
        let mut row = 0;
        for (index, count) in &chosen {
            row += count;
            self.keep_pages(*index);
            if !self.answers[*index].in_prefill() {
                complete.push((*index, row - 1));
            }
        }
        self.keep_references(&hidden, &complete)?;
        // More answers to the same prompt share its pages.
        let mut all = Vec::new();
        for (index, row) in complete {
            all.push((index, row));
            let more = self.answers[index].request.config.num_return_sequences;
            if std::mem::replace(&mut self.answers[index].forked, true) {
                continue;
            }
            for answer in 1..more {
                let first = &self.answers[index];
                let fork = Answer {
                    id: first.id,
                    answer,
                    request: Arc::clone(&first.request),
                    overlay: Arc::clone(&first.overlay),
                    ids: first.ids.clone(),
                    prefill: first.prefill,
                    limit: first.limit,
                    cache: first.cache.clone(),
                    walk: None,
                    cached: first.cached,
                    sampler: self.sampler(&first.request, answer).with_format_of(&first.sampler),
                    stream: first.stream.clone(),
                    completion: 0,
                    forked: true,
                };
                all.push((self.answers.len(), row));
                self.answers.push(fork);
            }
        }
        all.sort_unstable();
        self.choose(&hidden, &all, events)
    }

    /// Puts the references of prompts that a pass has completed, `(answer, row)`, aside to be scored.
    fn keep_references(&mut self, hidden: &Tensor, complete: &[(usize, usize)]) -> Result<()> {
        let most = self.model.decoder().cache_ends_at().unwrap_or(usize::MAX);
        for (index, row) in complete {
            let answer = &self.answers[*index];
            let (tokens, cache) = (&answer.request.reference, &answer.cache);
            // An answer that has outgrown its first angles is computed anew, and was here before.
            let is_new = answer.completion == 0 && !tokens.is_empty();
            if is_new && cache.len() + tokens.len() <= most {
                self.references.keep(Reference {
                    id: answer.id,
                    tokens: Arc::clone(tokens),
                    overlay: Arc::clone(&answer.overlay),
                    cache: cache.clone(),
                    hidden: hidden.narrow(0, *row, 1)?.copy()?,
                });
            }
        }
        Ok(())
    }

    /// Takes the pages of a prompt's beginning from the prefix cache. `false`: another prompt of
    /// this step computes what it needs next.
    fn look_up(&mut self, index: usize) -> bool {
        let answer = &self.answers[index];
        if answer.walk.is_some() || answer.cache.len() > 0 {
            return true;
        }
        // At least the last input is computed, for its logits.
        let past = answer.overlay.past_count();
        let inputs = past + answer.prefill;
        let pages: Vec<&[u32]> =
            (0..=(inputs - 1) / PAGE).map(|page| answer.tokens_of_page(page)).collect();
        let long = self.model.decoder().cache_ends_at().is_some_and(|most| inputs > most);
        let fills = inputs.is_multiple_of(PAGE);
        match self.prefix.find(&answer.overlay, long, &pages, fills) {
            Found::Soon => false,
            Found::Pages(mut pages, part, mut walk) => {
                let answer = &mut self.answers[index];
                let before = answer.overlay.positions_before();
                let whole = pages.len() - usize::from(part > 0);
                // What stands before the text lies in its first page, before its tokens.
                let first = before.saturating_sub(whole * PAGE).min(PAGE);
                let held = match part {
                    0 => whole * PAGE,
                    part => whole * PAGE + first + part,
                };
                let mut held = held.min(inputs - 1);
                if held < past {
                    // A part of what stands before the text is no beginning of it.
                    (held, pages) = (0, Vec::new());
                    walk.restart();
                }
                if answer.completion == 0 {
                    answer.cached = held.saturating_sub(before);
                    self.cached += answer.cached;
                }
                answer.cache.begin_with(pages, held);
                answer.walk = Some(walk);
                true
            }
        }
    }

    /// Keeps the whole pages of a prompt that the pass has filled.
    fn keep_pages(&mut self, index: usize) {
        let answer = &mut self.answers[index];
        let Some(mut walk) = answer.walk.take() else { return };
        for page in walk.pages()..answer.cache.len() / PAGE {
            let tokens = answer.tokens_of_page(page);
            let shared = &answer.cache.pages()[page];
            self.prefix.keep(&mut walk, &answer.overlay, tokens, shared);
        }
        self.answers[index].walk = Some(walk);
    }

    /// Computes the next token of all answers that have begun.
    fn decode(&mut self, events: &mut Vec<GenerationEvent>) -> Result<()> {
        if let Some(most) = self.model.decoder().cache_ends_at() {
            for answer in &mut self.answers {
                // A text has outgrown the angles that it began with, so its keys are computed anew.
                if !answer.in_prefill() && answer.cache.len() == most {
                    answer.cache = self.pages.text();
                    answer.walk = None;
                    answer.prefill = answer.overlay.virtual_count() + answer.ids.len();
                }
            }
        }
        let chosen: Vec<(usize, usize)> = (0..self.answers.len())
            .filter(|index| {
                let answer = &self.answers[*index];
                let inputs = answer.overlay.virtual_count() + answer.ids.len();
                !answer.in_prefill() && answer.computed() < inputs
            })
            .map(|index| (index, 1))
            .collect();
        if chosen.is_empty() {
            return Ok(());
        }
        let hidden = Rows::Decode.during(|| self.pass(&chosen))?;
        let rows: Vec<_> =
            chosen.iter().enumerate().map(|(row, (index, _))| (*index, row)).collect();
        self.choose(&hidden, &rows, events)
    }

    /// One pass over some inputs of some answers.
    fn pass(&mut self, chosen: &[(usize, usize)]) -> Result<Tensor> {
        let caches: Vec<TextCache> = chosen
            .iter()
            .map(|(index, _)| std::mem::replace(&mut self.answers[*index].cache, self.pages.text()))
            .collect();
        // What is asked of an answer depends on what its cache holds.
        let lengths: Vec<usize> = caches.iter().map(TextCache::len).collect();
        let texts: Vec<Tokens<'_>> = chosen
            .iter()
            .zip(&lengths)
            .map(|((index, count), len)| {
                let answer = &self.answers[*index];
                answer.tokens_from(len.saturating_sub(answer.overlay.past_count()), *count)
            })
            .collect();
        let (caches, hidden) = self.model.pass_over(&self.pages, &self.stop(), &texts, caches)?;
        drop(texts);
        for ((index, _), cache) in chosen.iter().zip(caches) {
            self.answers[*index].cache = cache;
        }
        Ok(hidden)
    }

    /// Chooses the next token of answers from rows of a pass: `(answer, row)`, in the order of the
    /// answers.
    fn choose(
        &mut self,
        hidden: &Tensor,
        chosen: &[(usize, usize)],
        events: &mut Vec<GenerationEvent>,
    ) -> Result<()> {
        if chosen.is_empty() {
            return Ok(());
        }
        let rows: Vec<u32> = chosen.iter().map(|(_, row)| *row as u32).collect();
        let hidden = match rows.len() == hidden.dim(0)? && rows.is_sorted_by(|a, b| a < b) {
            true => hidden.clone(),
            false => hidden.index_select(&Tensor::new(rows.as_slice(), self.model.device())?, 0)?,
        };
        let overlays =
            chosen.iter().map(|(index, _)| Arc::clone(&self.answers[*index].overlay)).collect();
        let snapshot = Snapshot::of(overlays, Stop::never());
        let logits = Rows::Decode.during(|| self.model.logits_of(&hidden, &snapshot))?;
        let logits = logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.contiguous()?;
        let logits = Values::of(&logits)?;
        let vocab = logits.len() / chosen.len();
        let mut samplers: Vec<Option<&mut Sampler>> =
            self.answers.iter_mut().map(|answer| Some(&mut answer.sampler)).collect();
        let ordered: Vec<&mut Sampler> =
            chosen.iter().filter_map(|(index, _)| samplers[*index].take()).collect();
        let mut choices: Vec<Option<Result<Choice>>> = ordered.iter().map(|_| None).collect();
        ordered
            .into_par_iter()
            .zip(logits.par_chunks(vocab))
            .zip(&mut choices)
            .each(|((sampler, logits), choice)| *choice = Some(sampler.next(logits)));
        let choices: Vec<Result<Choice>> = choices.into_iter().flatten().collect();
        // From the last on, as those that end leave the list.
        let mut answered = Vec::with_capacity(choices.len());
        for ((index, _), choice) in chosen.iter().zip(choices).rev() {
            let from = events.len();
            match choice {
                Ok(choice) => self.take(*index, choice, events),
                Err(error) => self.fail(*index, error, events),
            }
            answered.push(events.split_off(from));
        }
        events.extend(answered.into_iter().rev().flatten());
        Ok(())
    }

    /// An answer's next token.
    fn take(&mut self, index: usize, choice: Choice, events: &mut Vec<GenerationEvent>) {
        let answer = &mut self.answers[index];
        answer.completion += 1;
        if self.model.is_end(choice.id) && !answer.request.config.ignore_eos {
            return self.end(index, FinishReason::Stop, Some(choice), events);
        }
        let text = match answer.stream.push(choice.id, self.model.tokenizer()) {
            Ok(text) => text.to_owned(),
            Err(error) => return self.fail(index, error, events),
        };
        answer.ids.push(choice.id);
        let (limit, by_context) = answer.limit;
        let reason = match () {
            () if answer.stream.stopped || choice.whole => Some(FinishReason::Stop),
            () if answer.stream.ids.len() < limit => None,
            () if by_context => Some(FinishReason::Context),
            () => Some(FinishReason::Length),
        };
        let event = GenerationEvent {
            id: answer.id,
            answer: answer.answer,
            token: Some(choice.id),
            log_probability: choice.log_probability,
            top_logprobs: choice.top,
            text,
            finish: None,
        };
        events.push(event);
        if let Some(reason) = reason {
            self.end(index, reason, None, events);
        }
    }

    /// Ends an answer that cannot go on.
    fn fail(&mut self, index: usize, error: Error, events: &mut Vec<GenerationEvent>) {
        let reason = match &error {
            Error::Format { .. } => FinishReason::Misformed(error.to_string()),
            error => FinishReason::Failed(error.to_string()),
        };
        self.error = Some(error);
        self.end(index, reason, None, events);
    }

    /// Ends an answer, whose last event may be there already.
    fn end(
        &mut self,
        index: usize,
        reason: FinishReason,
        last: Option<Choice>,
        events: &mut Vec<GenerationEvent>,
    ) {
        let mut answer = self.answers.remove(index);
        // A tokenizer that cannot give the rest of a text has failed the answer before.
        let text = answer.stream.finish(self.model.tokenizer()).unwrap_or_default().to_owned();
        let reason = match reason {
            // What was waited for has a stop text.
            FinishReason::Length | FinishReason::Context if answer.stream.stopped => {
                FinishReason::Stop
            }
            reason => reason,
        };
        let finish = Finish { reason, usage: answer.usage() };
        let others = if answer.forked { 1..1 } else { 1..answer.request.answers() };
        let others = others.map(|other| ended(answer.id, other, finish.clone()));
        let others: Vec<GenerationEvent> = others.collect();
        match events.last_mut() {
            Some(event)
                if last.is_none()
                    && event.id == answer.id
                    && event.answer == answer.answer
                    && event.finish.is_none() =>
            {
                event.text.push_str(&text);
                event.finish = Some(finish);
            }
            _ => {
                let mut event = ended(answer.id, answer.answer, finish);
                event.text.push_str(&text);
                if let Some(choice) = last {
                    event.token = Some(choice.id);
                    event.log_probability = choice.log_probability;
                    event.top_logprobs = choice.top;
                }
                events.push(event);
            }
        }
        events.extend(others);
    }
}

/// The ends of all answers to a request that has not begun.
fn never_begun(
    id: RequestId,
    request: &GenerationRequest,
    reason: &FinishReason,
    events: &mut Vec<GenerationEvent>,
) {
    let usage = TokenUsage { prompt_tokens: request.prompt.len(), ..TokenUsage::default() };
    let finish = Finish { reason: reason.clone(), usage };
    events.extend((0..request.answers()).map(|answer| ended(id, answer, finish.clone())));
}

pub(super) fn ended(id: RequestId, answer: usize, finish: Finish) -> GenerationEvent {
    GenerationEvent {
        id,
        answer,
        token: None,
        log_probability: 0.0,
        top_logprobs: Vec::new(),
        text: String::new(),
        finish: Some(finish),
    }
}

/// Refuses prompts that no answer can follow.
pub(super) fn check(model: &Model, prompt: &[u32], overlay: &Overlay) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::Argument {
            field: "prompt",
            value: "empty".to_owned(),
            expected: "at least one token",
        });
    }
    model.check_ids("prompt", prompt)?;
    let context = model.config().max_position_embeddings;
    let tokens = overlay.positions_before() + prompt.len();
    if tokens >= context {
        return Err(Error::ContextLength {
            tokens,
            context,
            advice: ", as at least one position must be left for the answer",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::layers::{Linear, Projection as _};

    /// An overlay that is not the base's, though it does the same.
    fn other(model: &Model) -> Arc<Overlay> {
        let mut overlay = Overlay::default();
        let slot = &model.slots()[0];
        let weight = slot.base().weight().clone();
        overlay.put_projection(slot, Arc::new(Linear::new(weight, slot.base().bias()))).unwrap();
        Arc::new(overlay)
    }

    #[test]
    fn a_long_prompt_leaves_a_share_of_the_step_to_other_overlays() {
        let folder = "../../tests/golden/logits/llama3";
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let model = Model::load(folder, &Device::Cpu).unwrap();
        let engine = EngineConfig { prefill_chunk_size: 16, ..EngineConfig::default() };
        let mut engine = GenerationEngine::new(&model, engine);
        let config = GenerationConfig { max_new_tokens: 1, ..GenerationConfig::default() };
        let long = |from: u32| GenerationRequest::new(vec![from; 56], &config);
        let first = engine.insert(long(1)).unwrap();
        engine.insert(long(2)).unwrap();
        let short = GenerationRequest::new([5u32; 6], &config).with_overlay(other(&model));
        let short = engine.insert(short).unwrap();
        // What the short prompt leaves goes to the first of the long ones: 10 tokens, then 16 each.
        let ended: Vec<Vec<RequestId>> =
            (0..4).map(|_| engine.step().iter().map(|event| event.id).collect()).collect();
        assert_eq!(ended, [vec![short], vec![], vec![], vec![first]]);
    }

    #[test]
    fn pages_of_an_overlay_that_is_gone_go_while_others_are_answered() {
        let folder = "../../tests/golden/logits/llama3";
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let model = Model::load(folder, &Device::Cpu).unwrap();
        let mut engine = GenerationEngine::new(&model, EngineConfig::default());
        let config = |max_new_tokens| GenerationConfig {
            max_new_tokens,
            ignore_eos: true,
            ..GenerationConfig::default()
        };
        let long = FORGETS_AFTER_STEPS + 20;
        engine.insert(GenerationRequest::new([5u32, 6], &config(long))).unwrap();
        let prompt: Vec<u32> = (0..2 * PAGE as u32).map(|i| i % 50).collect();
        let request = GenerationRequest::new(prompt, &config(1)).with_overlay(other(&model));
        engine.insert(request).unwrap();
        engine.step();
        assert!(engine.prefix.len() > 0, "its pages are kept");
        for _ in 0..FORGETS_AFTER_STEPS {
            engine.step();
        }
        assert!(!engine.is_empty(), "the other answer goes on");
        assert_eq!(engine.prefix.len(), 0);
    }
}
