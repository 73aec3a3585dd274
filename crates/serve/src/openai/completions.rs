//! `POST /v1/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use serde::Serialize;
use serde_json::json;
use tunebook_models::GenerationEvent;
use utoipa::ToSchema;

use crate::adapters::mix;
use crate::answers::{Answers, Place, Prompts, check_choices, finish_reason};
use crate::api_error::{ApiError, ApiResult};
use crate::app::App;
use crate::fields::Fields;
use crate::openai::logprobs::{self, CompletionLogprobs, Scored};
use crate::openai::prompts;
use crate::openai::sampling::{self, Sampling};
use crate::reply::{self, Envelope, Head, Part, Reply};
use crate::router::body_of;
use crate::scoring;

/// A choice of a completion, or of a chunk of one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TextChoice {
    index: usize,
    /// With `echo` it begins with the prompt.
    text: String,
    /// `null` unless asked for.
    logprobs: Option<CompletionLogprobs>,
    /// `null` until the last chunk of the choice.
    #[schema(value_type = Option<crate::openapi::FinishWord>)]
    finish_reason: Option<&'static str>,
}

/// The most scores of prompts that an answer may repeat: about 35 MB.
const MOST_ECHOED: usize = 1 << 19;

/// What only this endpoint says.
struct Asked {
    prompts: Prompts,
    sampling: Sampling,
    /// `None`: no log-probabilities.
    logprobs: Option<usize>,
    /// The texts that stand before the answers; empty without `echo`.
    echo: Vec<String>,
}

/// Continues prompts.
#[utoipa::path(
    post, path = "/v1/completions", tag = "OpenAI",
    request_body = crate::openapi::CompletionRequest,
    responses((status = 200, content(
        (Envelope<TextChoice> = "application/json"),
        ("text/event-stream", item_schema = crate::openapi::CompletionEvent),
    ), description = "The answers. With `stream`, one `data:` line for each chunk, then `data: [DONE]`; an error ends the stream in place of it."))
)]
pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    request: Request,
) -> ApiResult<Response<Body>> {
    let fields = body_of(&app, request).await?;
    let Asked { prompts, sampling, logprobs, echo } = app.reading(|app| read(app, fields)).await?;
    let place = Place::take(&app, &prompts)?;
    let mut before = vec![Vec::new(); echo.len()];
    if let (Some(top), false) = (logprobs, echo.is_empty()) {
        let work = scoring::score(&app, &prompts.served, &prompts.ids, top);
        let Ok(scores) = tokio::time::timeout_at(place.deadline.into(), work).await else {
            return Err(place.exceeded(&app));
        };
        for (((before, ids), text), scores) in
            before.iter_mut().zip(&prompts.ids).zip(&echo).zip(scores?)
        {
            let scores = scores.into_iter().map(|score| (Some(score.log_probability), score.top));
            let scores = std::iter::once((None, vec![])).chain(scores);
            let tokens = logprobs::chars_of(app.model.tokenizer(), ids, text);
            let tokens = ids.iter().zip(tokens).zip(scores);
            let scored = |((id, chars), (log_probability, top)): ((&u32, usize), _)| Scored {
                id: *id,
                log_probability,
                top,
                chars,
            };
            *before = tokens.map(scored).collect();
        }
    }
    let each = prompts.config.num_return_sequences;
    let begins = |choice: usize| echo.get(choice / each).map_or(0, |text| text.chars().count());
    let offsets = (0..prompts.choices()).map(begins).collect();
    let kinds = ["cmpl", "text_completion", "text_completion"];
    let head = Head::new(&app, &prompts, sampling.include_usage, kinds);
    let answers = Answers::begin(&app, prompts, place)?;
    let reply = CompletionReply { head, each, logprobs, echo, before, offsets };
    reply::respond(reply, answers, sampling.stream).await
}

fn read(app: &App, mut fields: Fields) -> ApiResult<Asked> {
    let served = mix::asked(app, &mut fields)?;
    let prompt = fields.take("prompt").ok_or_else(|| fields.missing("prompt", "a text or ids"))?;
    let given = prompts::read(prompt)?;
    let mut sampling = sampling::read(app, &mut fields)?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    let logprobs = fields.integer("logprobs", 0..=20)?.map(|top| top as usize);
    // Nothing to add is nothing to ask for, but for a prompt that is to be judged.
    let most = fields.count("max_tokens", if echo { 0 } else { 1 })?.unwrap_or(16);
    let special = fields.flag("add_special_tokens")?.unwrap_or(true);
    let n = sampling.config.num_return_sequences;
    fields.neutral("best_of", &[json!(n)])?;
    fields.neutral("suffix", &[json!("")])?;
    fields.end()?;
    // Before they are tokenised, as each of them takes memory.
    check_choices(app, given.len() * n)?;
    let (ids, texts) = prompts::tokenize(app, &served, given, special, echo)?;
    if let (Some(top), true) = (logprobs, echo) {
        check_echo(ids.iter().map(Vec::len).sum(), n, top)?;
    }
    let room = app.config.limits.max_completion_tokens.unwrap_or(usize::MAX);
    sampling.config.max_new_tokens = most.min(room);
    sampling.config.top_logprobs = logprobs.unwrap_or(0);
    let prompts = Prompts::new(app, served, ids, &sampling)?;
    Ok(Asked { prompts, sampling, logprobs, echo: texts })
}

/// # Errors
/// More scores than an answer may repeat.
fn check_echo(tokens: usize, n: usize, top: usize) -> ApiResult<()> {
    let scores = tokens.saturating_mul(n).saturating_mul(top + 1);
    if scores <= MOST_ECHOED {
        return Ok(());
    }
    let message = format!(
        "the answer would repeat {scores} scores of the prompt ({tokens} tokens, times `n` {n}, times `logprobs` {top} and 1), \
         expected at most {MOST_ECHOED}; divide the request or lower `n` or `logprobs`"
    );
    Err(ApiError::field("invalid_value", "logprobs", message))
}

struct CompletionReply {
    head: Head,
    /// Answers to each prompt.
    each: usize,
    logprobs: Option<usize>,
    /// Each prompt's text, with `echo`.
    echo: Vec<String>,
    /// Each prompt's log-probabilities, with `echo`.
    before: Vec<Vec<Scored>>,
    /// Where each choice's next token begins.
    offsets: Vec<usize>,
}

impl CompletionReply {
    fn lists(&mut self, choice: usize, tokens: &[Scored]) -> Option<CompletionLogprobs> {
        let (top, app) = (self.logprobs?, &self.head.app);
        let offset = self.offsets.get_mut(choice)?;
        Some(logprobs::of_completion(app.model.tokenizer(), tokens, top, offset))
    }

    /// The prompt of a choice, with `echo`.
    fn before(&self, choice: usize) -> Option<(&str, Option<CompletionLogprobs>)> {
        let prompt = choice / self.each;
        let (text, tokens) = (self.echo.get(prompt)?, self.before.get(prompt)?);
        let tokenizer = self.head.app.model.tokenizer();
        let lists = |top| logprobs::of_completion(tokenizer, tokens, top, &mut 0);
        Some((text, self.logprobs.map(lists)))
    }
}

impl Reply for CompletionReply {
    type Choice = TextChoice;
    type ChunkChoice = TextChoice;
    type Score = Scored;

    fn head(&mut self) -> &mut Head {
        &mut self.head
    }

    fn scored(&self, event: &GenerationEvent, _end: bool) -> Option<Scored> {
        // The token that ends an answer is among them, as with vLLM: who asks for one token gets the
        // log-probability of one.
        Scored::of(event).filter(|_| self.logprobs.is_some())
    }

    fn choice(&mut self, index: usize, part: Part<Scored>) -> TextChoice {
        let after = self.lists(index, &part.scores);
        let (text, logprobs) = match self.before(index) {
            Some((text, before)) => {
                (text.to_owned() + &part.text, before.zip(after).map(|(b, after)| b.and(after)))
            }
            None => (part.text, after),
        };
        TextChoice { index, text, logprobs, finish_reason: Some(part.finish_reason) }
    }

    fn begin(&mut self) -> Vec<Envelope<TextChoice>> {
        let first = |index| {
            let (text, logprobs) = self.before(index)?;
            let text = text.to_owned();
            Some(self.head.chunk(TextChoice { index, text, logprobs, finish_reason: None }))
        };
        (0..self.head.choices).filter_map(first).collect()
    }

    fn event(
        &mut self,
        index: usize,
        event: &GenerationEvent,
        end: bool,
    ) -> Vec<Envelope<TextChoice>> {
        let score = self.scored(event, end);
        let finish = event.finish.as_ref();
        if event.text.is_empty() && score.is_none() && finish.is_none() {
            return Vec::new();
        }
        let logprobs = score.and_then(|score| self.lists(index, &[score]));
        let finish_reason = finish.map(|finish| finish_reason(&finish.reason));
        let text = event.text.clone();
        vec![self.head.chunk(TextChoice { index, text, logprobs, finish_reason })]
    }
}
