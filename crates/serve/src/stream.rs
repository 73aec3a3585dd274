//! Answers as server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::Response;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream;
use serde_json::Value;
use tunebook_models::GenerationEvent;

use crate::answers::Answers;

/// A comment keeps a connection open on which no token comes for so long.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Writes the chunks of one kind of answer.
pub(crate) trait Chunks: Send + 'static {
    /// Before the first token.
    fn begin(&mut self) -> Vec<Value>;
    /// For one event of a choice. `end`: its token is the one that has ended the answer.
    fn event(&mut self, choice: usize, event: &GenerationEvent, end: bool) -> Vec<Value>;
    /// After the last token.
    fn finish(&mut self) -> Vec<Value>;
}

struct State<C> {
    /// `None`: the end is written, or the answers have failed.
    answers: Option<Answers>,
    chunks: C,
    ready: VecDeque<String>,
}

/// Sends chunks as they come, then `[DONE]`; an error ends the stream in place of it.
pub(crate) fn respond<C: Chunks>(answers: Answers, mut chunks: C) -> Response<Body> {
    let ready = chunks.begin().iter().map(Value::to_string).collect();
    let state = State { answers: Some(answers), chunks, ready };
    let events = stream::unfold(state, |mut state| async move {
        loop {
            if let Some(data) = state.ready.pop_front() {
                return Some((Ok::<_, Infallible>(Event::default().data(data)), state));
            }
            let answers = state.answers.as_mut()?;
            let values = match answers.next().await {
                Ok(Some((choice, event))) => {
                    let end = answers.is_end(&event);
                    state.chunks.event(choice, &event, end)
                }
                Ok(None) => {
                    state.answers = None;
                    let last = state.chunks.finish();
                    state.ready.extend(last.iter().map(Value::to_string));
                    state.ready.push_back("[DONE]".to_owned());
                    continue;
                }
                Err(error) => {
                    state.answers = None;
                    vec![error.body()]
                }
            };
            state.ready.extend(values.iter().map(Value::to_string));
        }
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}
