//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use serde_json::{Value, json};
use tunebook_models::{GenerationEvent, TokenUsage};

use crate::adapters::{mix, now};
use crate::answers::{Answers, Place, Prompts, finish_reason};
use crate::api_error::{ApiError, ApiResult};
use crate::app::{App, refused};
use crate::fields::Fields;
use crate::openai::logprobs::{self, Scored};
use crate::openai::messages;
use crate::openai::sampling::{self, Sampling};
use crate::router::{body_of, json_response};
use crate::stream::{self, Chunks};

pub(crate) async fn chat_completions(
    State(app): State<Arc<App>>,
    request: Request,
) -> ApiResult<Response<Body>> {
    let fields = body_of(&app, request).await?;
    let (prompts, sampling, with_logprobs) = app.blocking(|app| read(app, fields)).await?;
    let place = Place::take(&app, &prompts)?;
    let reply = Reply {
        id: app.new_id("chatcmpl"),
        created: now(),
        model: prompts.served.name.clone(),
        generation: prompts.served.generation.clone(),
        choices: prompts.choices(),
        with_logprobs,
        include_usage: sampling.include_usage,
        usage: Usage::default(),
        app: Arc::clone(&app),
    };
    let answers = Answers::begin(&app, prompts, place)?;
    match sampling.stream {
        true => Ok(stream::respond(answers, reply)),
        false => Ok(json_response(&reply.whole(answers).await?)),
    }
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
    fields.neutral("response_format", &[json!({ "type": "text" })])?;
    fields.neutral("tools", &[json!([])])?;
    fields.neutral("tool_choice", &[json!("none"), json!("auto")])?;
    fields.neutral("parallel_tool_calls", &[json!(true), json!(false)])?;
    fields.neutral("modalities", &[json!(["text"])])?;
    fields.neutral("store", &[json!(false)])?;
    fields.neutral("service_tier", &[json!("auto"), json!("default")])?;
    fields.end()?;
    let ids = app.model.chat_tokenizer().tokenize_prompt(&messages);
    let ids = ids.map_err(|error| refused("messages", &error))?;
    check_length(app, &served, "messages", ids.len())?;
    let room = app.config.limits.max_completion_tokens.unwrap_or(usize::MAX);
    // The engine ends an answer with the context.
    sampling.config.max_new_tokens = most.unwrap_or(usize::MAX).min(room);
    let config = sampling.config.clone();
    Ok((Prompts { served, ids: vec![ids], config }, sampling, with_logprobs))
}

/// # Errors
/// A prompt that leaves no room for a token, or is longer than the server's limit.
pub(super) fn check_length(
    app: &App,
    served: &crate::adapters::Served,
    param: &str,
    tokens: usize,
) -> ApiResult<()> {
    let limit = app.config.limits.max_prompt_tokens.unwrap_or(usize::MAX);
    let context = app.model.config().max_position_embeddings;
    let room = context.saturating_sub(served.overlay.positions_before() + 1).min(limit);
    if tokens > room {
        let message =
            format!("the prompt has {tokens} tokens, expected at most {room}; shorten it");
        return Err(ApiError::field("context_length_exceeded", param, message));
    }
    Ok(())
}

/// What a request has cost.
#[derive(Debug, Default)]
pub(super) struct Usage {
    prompt: usize,
    cached: usize,
    completion: usize,
}

impl Usage {
    /// Of one answer. A prompt counts once, with the first answer to it.
    pub(super) fn add(&mut self, usage: &TokenUsage, first: bool) {
        if first {
            self.prompt += usage.prompt_tokens;
            self.cached += usage.cached_tokens;
        }
        self.completion += usage.completion_tokens;
    }

    pub(super) fn value(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": { "cached_tokens": self.cached },
        })
    }
}

/// What all chunks of an answer have in common.
struct Reply {
    id: String,
    created: u64,
    model: String,
    generation: String,
    choices: usize,
    with_logprobs: bool,
    include_usage: bool,
    usage: Usage,
    app: Arc<App>,
}

impl Reply {
    /// The log-probability of an event's token; the one that ends an answer is no part of it.
    fn scored(&self, event: &GenerationEvent, end: bool) -> Option<Value> {
        let id = event.token.filter(|_| self.with_logprobs && !end)?;
        let (log_probability, top) = (Some(event.log_probability), event.top_logprobs.clone());
        let scored = Scored { id, log_probability, top };
        Some(logprobs::of_chat(self.app.model.tokenizer(), &scored))
    }

    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created,
            "model": self.model, "system_fingerprint": self.generation, "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// The whole answer at once.
    async fn whole(mut self, mut answers: Answers) -> ApiResult<Value> {
        let mut texts = vec![String::new(); self.choices];
        let mut scores: Vec<Vec<Value>> = vec![Vec::new(); self.choices];
        let mut ends = vec!["stop"; self.choices];
        while let Some((choice, event)) = answers.next().await? {
            texts[choice].push_str(&event.text);
            scores[choice].extend(self.scored(&event, answers.is_end(&event)));
            if let Some(finish) = &event.finish {
                ends[choice] = finish_reason(&finish.reason);
                self.usage.add(&finish.usage, event.answer == 0);
            }
        }
        let choice = |(index, ((text, scores), end)): (usize, ((String, Vec<Value>), &str))| {
            let scores = self.with_logprobs.then(|| json!({ "content": scores, "refusal": null }));
            json!({
                "index": index,
                "message": { "role": "assistant", "content": text, "refusal": null },
                "logprobs": scores,
                "finish_reason": end,
            })
        };
        let all = texts.into_iter().zip(scores).zip(ends).enumerate();
        let choices: Vec<Value> = all.map(choice).collect();
        Ok(json!({
            "id": self.id, "object": "chat.completion", "created": self.created,
            "model": self.model, "system_fingerprint": self.generation, "choices": choices,
            "usage": self.usage.value(),
        }))
    }
}

impl Chunks for Reply {
    fn begin(&mut self) -> Vec<Value> {
        let first = |index| {
            let delta = json!({ "role": "assistant", "content": "" });
            let choice =
                json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null });
            self.chunk(json!([choice]))
        };
        (0..self.choices).map(first).collect()
    }

    fn event(&mut self, choice: usize, event: &GenerationEvent, end: bool) -> Vec<Value> {
        let mut chunks = Vec::new();
        let score = self.scored(event, end);
        if !event.text.is_empty() || score.is_some() {
            let score = score.map(|score| json!({ "content": [score], "refusal": null }));
            chunks.push(self.chunk(json!([{
                "index": choice, "delta": { "content": event.text },
                "logprobs": score, "finish_reason": null,
            }])));
        }
        if let Some(finish) = &event.finish {
            self.usage.add(&finish.usage, event.answer == 0);
            chunks.push(self.chunk(json!([{
                "index": choice, "delta": {}, "logprobs": null,
                "finish_reason": finish_reason(&finish.reason),
            }])));
        }
        chunks
    }

    fn finish(&mut self) -> Vec<Value> {
        if !self.include_usage {
            return Vec::new();
        }
        let mut chunk = self.chunk(json!([]));
        chunk["usage"] = self.usage.value();
        vec![chunk]
    }
}
