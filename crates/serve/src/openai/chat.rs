//! `POST /v1/chat/completions`.

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
use crate::app::{App, refused};
use crate::fields::Fields;
use crate::openai::logprobs::{self, Scored, TokenLogprob};
use crate::openai::messages;
use crate::openai::prompts::{check_length, check_size, room};
use crate::openai::sampling::{self, Sampling};
use crate::reply::{self, Envelope, Head, Part, Reply};
use crate::router::body_of;

/// A choice of a whole chat answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatChoice {
    index: usize,
    message: ChatMessage,
    /// `null` unless asked for.
    logprobs: Option<ChatLogprobs>,
    #[schema(value_type = crate::openapi::FinishWord)]
    finish_reason: &'static str,
}

#[derive(Debug, Serialize, ToSchema)]
struct ChatMessage {
    /// `assistant`
    role: &'static str,
    content: String,
    /// Always `null`.
    refusal: Option<String>,
}

/// A choice of a chunk of a chat answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatChunkChoice {
    index: usize,
    delta: ChatDelta,
    logprobs: Option<ChatLogprobs>,
    /// `null` until the last chunk of the choice.
    #[schema(value_type = Option<crate::openapi::FinishWord>)]
    finish_reason: Option<&'static str>,
}

#[derive(Debug, Default, Serialize, ToSchema)]
struct ChatDelta {
    /// `assistant`, in the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

/// The log-probabilities of an answer's tokens, without the one that ended it.
#[derive(Debug, Serialize, ToSchema)]
struct ChatLogprobs {
    content: Vec<TokenLogprob>,
    /// Always `null`.
    refusal: Option<Vec<TokenLogprob>>,
}

impl ChatLogprobs {
    fn new(content: Vec<TokenLogprob>) -> Self {
        Self { content, refusal: None }
    }
}

/// Answers a conversation.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "OpenAI",
    request_body = crate::openapi::ChatRequest,
    responses((status = 200, content(
        (Envelope<ChatChoice> = "application/json"),
        ("text/event-stream", item_schema = crate::openapi::ChatEvent),
    ), description = "The answer. With `stream`, one `data:` line for each chunk, then `data: [DONE]`; an error ends the stream in place of it."))
)]
pub(crate) async fn chat_completions(
    State(app): State<Arc<App>>,
    request: Request,
) -> ApiResult<Response<Body>> {
    let fields = body_of(&app, request).await?;
    let (prompts, sampling, with_logprobs) = app.reading(|app| read(app, fields)).await?;
    let place = Place::take(&app, &prompts)?;
    let kinds = ["chatcmpl", "chat.completion", "chat.completion.chunk"];
    let head = Head::new(&app, &prompts, sampling.include_usage, kinds);
    let answers = Answers::begin(&app, prompts, place)?;
    reply::respond(ChatReply { head, with_logprobs }, answers, sampling.stream).await
}

fn read(app: &App, mut fields: Fields) -> ApiResult<(Prompts, Sampling, bool)> {
    let served = mix::asked(app, &mut fields)?;
    let messages = fields.take("messages");
    let messages = messages.ok_or_else(|| fields.missing("messages", "a list of messages"))?;
    let messages = messages::read(messages)?;
    let mut sampling = sampling::read(app, &mut fields)?;
    let with_logprobs = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=20)?.unwrap_or(0) as usize;
    if top > 0 && !with_logprobs {
        let message = "`top_logprobs` is given, expected it with `logprobs: true` only";
        return Err(ApiError::field("invalid_value", "top_logprobs", message));
    }
    sampling.config.top_logprobs = top;
    let most = fields.count("max_completion_tokens", 1)?;
    let most = most.or(fields.count("max_tokens", 1)?);
    fields.neutral("tools", &[json!([])])?;
    fields.neutral("tool_choice", &[json!("none"), json!("auto")])?;
    fields.neutral("parallel_tool_calls", &[json!(true), json!(false)])?;
    fields.neutral("modalities", &[json!(["text"])])?;
    fields.neutral("store", &[json!(false)])?;
    fields.neutral("service_tier", &[json!("auto"), json!("default")])?;
    fields.end()?;
    check_choices(app, sampling.config.num_return_sequences)?;
    let text = app.model.chat_tokenizer().render(&messages, true);
    let text = text.map_err(|error| refused("messages", &error))?;
    check_size(app, room(app, &served), "messages", &text)?;
    // The template itself writes the token that begins a text.
    let ids = app.model.tokenizer().encode(&text);
    let ids = ids.map_err(|error| refused("messages", &error))?;
    check_length(app, &served, "messages", ids.len())?;
    let room = app.config.limits.max_completion_tokens.unwrap_or(usize::MAX);
    // The engine ends an answer with the context.
    sampling.config.max_new_tokens = most.unwrap_or(usize::MAX).min(room);
    let prompts = Prompts::new(app, served, vec![ids], &sampling)?;
    Ok((prompts, sampling, with_logprobs))
}

struct ChatReply {
    head: Head,
    with_logprobs: bool,
}

impl Reply for ChatReply {
    type Choice = ChatChoice;
    type ChunkChoice = ChatChunkChoice;
    type Score = TokenLogprob;

    fn head(&mut self) -> &mut Head {
        &mut self.head
    }

    fn scored(&self, event: &GenerationEvent, end: bool) -> Option<TokenLogprob> {
        // The token that ends an answer is no part of it.
        let scored = Scored::of(event).filter(|_| self.with_logprobs && !end)?;
        Some(logprobs::of_chat(self.head.app.model.tokenizer(), &scored))
    }

    fn choice(&mut self, index: usize, part: Part<TokenLogprob>) -> ChatChoice {
        ChatChoice {
            index,
            message: ChatMessage { role: "assistant", content: part.text, refusal: None },
            logprobs: self.with_logprobs.then(|| ChatLogprobs::new(part.scores)),
            finish_reason: part.finish_reason,
        }
    }

    fn begin(&mut self) -> Vec<Envelope<ChatChunkChoice>> {
        let first = |index| {
            let delta = ChatDelta { role: Some("assistant"), content: Some(String::new()) };
            self.head.chunk(ChatChunkChoice { index, delta, logprobs: None, finish_reason: None })
        };
        (0..self.head.choices).map(first).collect()
    }

    fn event(
        &mut self,
        index: usize,
        event: &GenerationEvent,
        end: bool,
    ) -> Vec<Envelope<ChatChunkChoice>> {
        let mut chunks = Vec::new();
        let score = self.scored(event, end);
        if !event.text.is_empty() || score.is_some() {
            chunks.push(self.head.chunk(ChatChunkChoice {
                index,
                delta: ChatDelta { role: None, content: Some(event.text.clone()) },
                logprobs: score.map(|score| ChatLogprobs::new(vec![score])),
                finish_reason: None,
            }));
        }
        if let Some(finish) = &event.finish {
            chunks.push(self.head.chunk(ChatChunkChoice {
                index,
                delta: ChatDelta::default(),
                logprobs: None,
                finish_reason: Some(finish_reason(&finish.reason)),
            }));
        }
        chunks
    }
}
