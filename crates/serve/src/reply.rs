//! Answers of both endpoints as clients get them: whole, or as a stream of chunks.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use serde::Serialize;
use tunebook_models::{GenerationEvent, TokenUsage};
use utoipa::ToSchema;

use crate::adapters::now;
use crate::answers::{Answers, Prompts, finish_reason};
use crate::api_error::ApiResult;
use crate::app::App;
use crate::router::json_response;
use crate::stream;

/// What a request has cost, in tokens.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptTokensDetails,
}

#[derive(Clone, Debug, Default, Serialize, ToSchema)]
struct PromptTokensDetails {
    /// Taken from the prefix cache.
    cached_tokens: usize,
}

impl Usage {
    /// Of one answer. A prompt counts once, with the first answer to it.
    fn add(&mut self, usage: &TokenUsage, first: bool) {
        if first {
            self.prompt_tokens += usage.prompt_tokens;
            self.prompt_tokens_details.cached_tokens += usage.cached_tokens;
        }
        self.completion_tokens += usage.completion_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// A whole answer or a chunk of one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Envelope<C> {
    /// `chatcmpl-…` or `cmpl-…`
    id: String,
    /// `chat.completion`, `chat.completion.chunk` or `text_completion`
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    /// As `/v1/models` names it.
    model: String,
    /// The generation of the adapter that made all of the answer.
    system_fingerprint: String,
    choices: Vec<C>,
    /// Of the whole request. Of chunks, the last one has it, and only where
    /// `stream_options.include_usage` asks for it; the others have `null` then.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    usage: Option<Option<Usage>>,
}

/// What all parts of an answer have in common.
pub(crate) struct Head {
    id: String,
    object: &'static str,
    chunk_object: &'static str,
    created: u64,
    model: String,
    generation: String,
    pub(crate) choices: usize,
    include_usage: bool,
    usage: Usage,
    pub(crate) app: Arc<App>,
}

impl Head {
    /// Of answers to these prompts. `kinds`: the words that ids, whole answers and chunks begin with.
    pub(crate) fn new(
        app: &Arc<App>,
        prompts: &Prompts,
        include_usage: bool,
        kinds: [&'static str; 3],
    ) -> Self {
        let [id, object, chunk_object] = kinds;
        Self {
            id: app.new_id(id),
            object,
            chunk_object,
            created: now(),
            model: prompts.served.name.clone(),
            generation: prompts.served.generation.clone(),
            choices: prompts.choices(),
            include_usage,
            usage: Usage::default(),
            app: Arc::clone(app),
        }
    }

    /// Counts what an event says of the cost.
    fn count(&mut self, event: &GenerationEvent) {
        if let Some(finish) = &event.finish {
            self.usage.add(&finish.usage, event.answer == 0);
        }
    }

    fn envelope<C>(
        &self,
        object: &'static str,
        choices: Vec<C>,
        usage: Option<Option<Usage>>,
    ) -> Envelope<C> {
        Envelope {
            id: self.id.clone(),
            object,
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: self.generation.clone(),
            choices,
            usage,
        }
    }

    pub(crate) fn chunk<C>(&self, choice: C) -> Envelope<C> {
        self.envelope(self.chunk_object, vec![choice], self.include_usage.then_some(None))
    }

    /// The chunk after the last token, for those who ask for the usage.
    fn usage_chunk<C>(&self) -> Option<Envelope<C>> {
        let usage = Some(Some(self.usage.clone()));
        self.include_usage.then(|| self.envelope(self.chunk_object, Vec::new(), usage))
    }
}

/// One choice while its parts are put together.
pub(crate) struct Part<S> {
    pub(crate) text: String,
    pub(crate) scores: Vec<S>,
    pub(crate) finish_reason: &'static str,
}

impl<S> Default for Part<S> {
    fn default() -> Self {
        Self { text: String::new(), scores: Vec::new(), finish_reason: "stop" }
    }
}

/// How one endpoint writes its answers.
pub(crate) trait Reply: Send + Sized + 'static {
    /// A choice of a whole answer.
    type Choice: Serialize + Send;
    /// A choice of a chunk.
    type ChunkChoice: Serialize + Send;
    /// A token with its log-probability.
    type Score: Send;

    fn head(&mut self) -> &mut Head;

    /// The log-probability of an event's token, where it is asked for. `end`: the token is the one
    /// that has ended the answer.
    fn scored(&self, event: &GenerationEvent, end: bool) -> Option<Self::Score>;

    /// A whole answer's choice.
    fn choice(&mut self, index: usize, part: Part<Self::Score>) -> Self::Choice;

    /// The chunks before the first token.
    fn begin(&mut self) -> Vec<Envelope<Self::ChunkChoice>>;

    /// The chunks for one event of a choice.
    fn event(
        &mut self,
        choice: usize,
        event: &GenerationEvent,
        end: bool,
    ) -> Vec<Envelope<Self::ChunkChoice>>;
}

/// Answers as a stream, or whole.
///
/// # Errors
/// Of a whole answer, what keeps it from its end.
pub(crate) async fn respond<R: Reply>(
    mut reply: R,
    mut answers: Answers,
    stream: bool,
) -> ApiResult<Response<Body>> {
    if stream {
        return stream::respond(answers, Chunks(reply)).await;
    }
    let choices = reply.head().choices;
    let mut parts: Vec<_> = (0..choices).map(|_| Part::default()).collect();
    while let Some((choice, event)) = answers.next().await? {
        let part = &mut parts[choice];
        part.text.push_str(&event.text);
        part.scores.extend(reply.scored(&event, answers.is_end(&event)));
        if let Some(finish) = &event.finish {
            part.finish_reason = finish_reason(&finish.reason);
        }
        reply.head().count(&event);
    }
    let app = Arc::clone(&reply.head().app);
    // With log-probabilities it may be large.
    app.blocking(move |_| {
        let numbered = parts.into_iter().enumerate();
        let choices = numbered.map(|(index, part)| reply.choice(index, part)).collect();
        let head = reply.head();
        Ok(json_response(&head.envelope(head.object, choices, Some(Some(head.usage.clone())))))
    })
    .await
}

/// The chunks of a reply, as texts.
pub(crate) struct Chunks<R>(R);

fn texts<C: Serialize>(chunks: impl IntoIterator<Item = Envelope<C>>) -> Vec<String> {
    chunks.into_iter().map(|chunk| text_of(&chunk)).collect()
}

/// As JSON. What is written here has text keys only, which is all that JSON asks for.
pub(crate) fn text_of(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

impl<R: Reply> Chunks<R> {
    pub(crate) fn begin(&mut self) -> Vec<String> {
        texts(self.0.begin())
    }

    pub(crate) fn event(
        &mut self,
        choice: usize,
        event: &GenerationEvent,
        end: bool,
    ) -> Vec<String> {
        self.0.head().count(event);
        texts(self.0.event(choice, event, end))
    }

    pub(crate) fn finish(&mut self) -> Vec<String> {
        texts(self.0.head().usage_chunk::<R::ChunkChoice>())
    }
}
