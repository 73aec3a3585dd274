//! Answers as server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::Response;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream;

use crate::answers::Answers;
use crate::api_error::ApiResult;
use crate::app::App;
use crate::reply::{Chunks, Reply, text_of};

/// A comment keeps a connection open on which no token comes for so long.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

struct State<R> {
    /// `None`: the end is written, or the answers have failed.
    answers: Option<Answers>,
    chunks: Chunks<R>,
    ready: VecDeque<String>,
}

/// Sends chunks as they come, then `[DONE]`; an error ends the stream in place of it.
///
/// # Errors
/// The first chunks cannot be made.
pub(crate) async fn respond<R: Reply>(
    answers: Answers,
    mut chunks: Chunks<R>,
) -> ApiResult<Response<Body>> {
    // With a prompt's log-probabilities they may be large.
    let begin = move |_: &App| Ok((chunks.begin().into(), chunks));
    let (ready, chunks) = answers.app().blocking(begin).await?;
    let state = State { answers: Some(answers), chunks, ready };
    let events = stream::unfold(state, |mut state| async move {
        loop {
            if let Some(data) = state.ready.pop_front() {
                return Some((Ok::<_, Infallible>(Event::default().data(data)), state));
            }
            let answers = state.answers.as_mut()?;
            match answers.next().await {
                Ok(Some((choice, event))) => {
                    let end = answers.is_end(&event);
                    state.ready.extend(state.chunks.event(choice, &event, end));
                }
                Ok(None) => {
                    state.answers = None;
                    state.ready.extend(state.chunks.finish());
                    state.ready.push_back("[DONE]".to_owned());
                }
                Err(error) => {
                    state.answers = None;
                    state.ready.push_back(text_of(&error.body()));
                }
            }
        }
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}
