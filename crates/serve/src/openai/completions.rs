//! `POST /v1/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use serde_json::{Value, json};
use tunebook_models::GenerationEvent;

use crate::adapters::{mix, now};
use crate::answers::{Answers, Place, Prompts, finish_reason};
use crate::api_error::{ApiError, ApiResult};
use crate::app::{App, refused};
use crate::fields::Fields;
use crate::openai::chat::{Usage, check_length};
use crate::openai::logprobs::{self, Scored};
use crate::openai::prompts::{self, Prompt};
use crate::openai::sampling::{self, Sampling};
use crate::router::{body_of, json_response};
use crate::scoring;
use crate::stream::{self, Chunks};

/// What only this endpoint says.
struct Asked {
    prompts: Prompts,
    sampling: Sampling,
    /// `None`: no log-probabilities.
    logprobs: Option<usize>,
    /// The texts that stand before the answers; empty without `echo`.
    echo: Vec<String>,
}

pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    request: Request,
) -> ApiResult<Response<Body>> {
    let fields = body_of(&app, request).await?;
    let Asked { prompts, sampling, logprobs, echo } = app.blocking(|app| read(app, fields)).await?;
    let place = Place::take(&app, &prompts)?;
    let mut before = vec![Vec::new(); echo.len()];
    if let (Some(top), false) = (logprobs, echo.is_empty()) {
        let work = scoring::score(&app, &prompts.served, &prompts.ids, top);
        let Ok(scores) = tokio::time::timeout_at(place.deadline.into(), work).await else {
            return Err(place.exceeded(&app));
        };
        for ((before, ids), scores) in before.iter_mut().zip(&prompts.ids).zip(scores?) {
            let first =
                ids.first().map(|id| Scored { id: *id, log_probability: None, top: vec![] });
            let rest = ids.iter().skip(1).zip(scores).map(|(id, score)| Scored {
                id: *id,
                log_probability: Some(score.log_probability),
                top: score.top,
            });
            *before = first.into_iter().chain(rest).collect();
        }
    }
    let each = prompts.config.num_return_sequences;
    let reply = Reply {
        id: app.new_id("cmpl"),
        created: now(),
        model: prompts.served.name.clone(),
        generation: prompts.served.generation.clone(),
        choices: prompts.choices(),
        each,
        logprobs,
        echo,
        before,
        offsets: vec![0; prompts.choices()],
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
    if given.len() * n > app.config.limits.max_choices {
        let most = app.config.limits.max_choices;
        let message = format!(
            "the request asks for {} answers (prompts times `n`), expected at most {most}; divide it",
            given.len() * n
        );
        return Err(ApiError::field("too_many_choices", "prompt", message));
    }
    let several = given.len() > 1;
    let tokenizer = app.model.tokenizer();
    let (mut ids, mut texts) = (Vec::new(), Vec::new());
    for (number, prompt) in given.into_iter().enumerate() {
        let at = if several { format!("prompt[{number}]") } else { "prompt".to_owned() };
        let (tokens, text) = match prompt {
            Prompt::Text(text) => {
                let tokens = match special {
                    true => tokenizer.encode_with_special_tokens(&text),
                    false => tokenizer.encode(&text),
                };
                (tokens.map_err(|error| refused(&at, &error))?, text)
            }
            Prompt::Ids(ids) => {
                app.model.check_ids("prompt", &ids).map_err(|error| refused(&at, &error))?;
                let text = if echo { tokenizer.decode(&ids) } else { Ok(String::new()) };
                (ids, text.map_err(|error| refused(&at, &error))?)
            }
        };
        if tokens.is_empty() {
            return Err(ApiError::value(&at, "empty", "at least one token"));
        }
        check_length(app, &served, &at, tokens.len())?;
        ids.push(tokens);
        if echo {
            texts.push(text);
        }
    }
    let room = app.config.limits.max_completion_tokens.unwrap_or(usize::MAX);
    sampling.config.max_new_tokens = most.min(room);
    sampling.config.top_logprobs = logprobs.unwrap_or(0);
    let config = sampling.config.clone();
    Ok(Asked { prompts: Prompts { served, ids, config }, sampling, logprobs, echo: texts })
}

/// What all chunks of an answer have in common.
struct Reply {
    id: String,
    created: u64,
    model: String,
    generation: String,
    choices: usize,
    /// Answers to each prompt.
    each: usize,
    logprobs: Option<usize>,
    /// Each prompt's text, with `echo`.
    echo: Vec<String>,
    /// Each prompt's log-probabilities, with `echo`.
    before: Vec<Vec<Scored>>,
    /// Where each choice's next token begins.
    offsets: Vec<usize>,
    include_usage: bool,
    usage: Usage,
    app: Arc<App>,
}

impl Reply {
    fn object(&self, choices: Value) -> Value {
        json!({
            "id": self.id, "object": "text_completion", "created": self.created,
            "model": self.model, "system_fingerprint": self.generation, "choices": choices,
        })
    }

    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = self.object(choices);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// The token of an event. The one that ends an answer is among them, as with vLLM: who asks for
    /// one token gets the log-probability of one.
    fn scored(&self, event: &GenerationEvent) -> Option<Scored> {
        let id = event.token.filter(|_| self.logprobs.is_some())?;
        let (log_probability, top) = (Some(event.log_probability), event.top_logprobs.clone());
        Some(Scored { id, log_probability, top })
    }

    fn lists(&mut self, choice: usize, tokens: &[Scored]) -> Option<Value> {
        let (top, app) = (self.logprobs?, Arc::clone(&self.app));
        let offset = self.offsets.get_mut(choice)?;
        Some(logprobs::of_completion(app.model.tokenizer(), tokens, top, offset))
    }

    /// The whole answer at once.
    async fn whole(mut self, mut answers: Answers) -> ApiResult<Value> {
        let prompt = |choice: usize| choice / self.each;
        let text = |choice| self.echo.get(prompt(choice)).cloned().unwrap_or_default();
        let before = |choice| self.before.get(prompt(choice)).cloned().unwrap_or_default();
        let mut texts: Vec<String> = (0..self.choices).map(text).collect();
        let mut scores: Vec<Vec<Scored>> = (0..self.choices).map(before).collect();
        let mut ends = vec!["stop"; self.choices];
        while let Some((choice, event)) = answers.next().await? {
            texts[choice].push_str(&event.text);
            scores[choice].extend(self.scored(&event));
            if let Some(finish) = &event.finish {
                ends[choice] = finish_reason(&finish.reason);
                self.usage.add(&finish.usage, event.answer == 0);
            }
        }
        let mut choices = Vec::new();
        for (index, ((text, scores), end)) in texts.iter().zip(&scores).zip(ends).enumerate() {
            let lists = self.lists(index, scores);
            choices.push(json!({
                "index": index, "text": text, "logprobs": lists, "finish_reason": end,
            }));
        }
        let mut object = self.object(choices.into());
        object["usage"] = self.usage.value();
        Ok(object)
    }
}

impl Chunks for Reply {
    fn begin(&mut self) -> Vec<Value> {
        if self.echo.is_empty() {
            return Vec::new();
        }
        let mut chunks = Vec::new();
        for choice in 0..self.choices {
            let prompt = choice / self.each;
            let before = self.before.get(prompt).cloned().unwrap_or_default();
            let lists = self.lists(choice, &before);
            let text = self.echo.get(prompt).cloned().unwrap_or_default();
            chunks.push(self.chunk(json!([{
                "index": choice, "text": text, "logprobs": lists, "finish_reason": null,
            }])));
        }
        chunks
    }

    fn event(&mut self, choice: usize, event: &GenerationEvent, _end: bool) -> Vec<Value> {
        let score = self.scored(event);
        let finish = event.finish.as_ref();
        if let Some(finish) = finish {
            self.usage.add(&finish.usage, event.answer == 0);
        }
        if event.text.is_empty() && score.is_none() && finish.is_none() {
            return Vec::new();
        }
        let lists = score.and_then(|score| self.lists(choice, &[score]));
        vec![self.chunk(json!([{
            "index": choice, "text": event.text, "logprobs": lists,
            "finish_reason": finish.map(|finish| finish_reason(&finish.reason)),
        }]))]
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
