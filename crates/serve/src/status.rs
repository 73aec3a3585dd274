//! What a server does at a moment, for those who look at it.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::app::App;
use crate::metrics::Counts;

/// Whether a server takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerState {
    /// It takes requests.
    Serving,
    /// It ends the answers that it has begun, and takes no more.
    Stopping,
    /// It has ended.
    Stopped,
}

/// A server at a moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ServerStatus {
    /// The address for OpenAI's clients.
    pub url: String,
    /// Whether it takes requests, or has taken its last.
    pub state: ServerState,
    /// Since it was started.
    pub uptime: Duration,
    /// Answers that wait for their first token.
    pub waiting: u64,
    /// Answers that have begun.
    pub on_their_way: u64,
    /// The most answers that wait and are on their way.
    pub room: usize,
    /// Requests that were refused as the queue was full.
    pub refused: u64,
    /// Tokens so far.
    pub tokens: u64,
    /// Tokens per second over the last few seconds.
    pub tokens_per_s: f64,
    /// The base first, then the adapters by name. Mixes are one of these.
    pub models: Vec<ModelStatus>,
}

/// A name that requests were for, or may be for.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ModelStatus {
    /// The `model` of requests.
    pub name: String,
    /// What answers under it; `None`: nothing any more, or mixes.
    pub generation: Option<String>,
    /// The adapter in a few words; empty for the base.
    pub adapter: String,
    /// The memory that the adapter takes.
    pub size_bytes: usize,
    /// Answers that wait for their first token.
    pub waiting: u64,
    /// Answers that have begun.
    pub on_their_way: u64,
    /// Answers that have ended.
    pub answered: u64,
    /// Tokens of its answers so far.
    pub tokens: u64,
}

impl ServerStatus {
    /// `ended`: how long it has run, if it has stopped.
    pub(crate) fn of(app: &App, url: String, begun: Instant, ended: Option<Duration>) -> Self {
        let mut counts = app.metrics.counts();
        let mut models: Vec<ModelStatus> = Vec::new();
        for served in std::iter::once(app.adapters.base()).chain(&app.adapters.all()) {
            let counts = counts.remove(served.label()).unwrap_or_default();
            models.push(ModelStatus {
                generation: Some(served.generation.clone()),
                adapter: served.adapter().map(|a| a.config().to_string()).unwrap_or_default(),
                size_bytes: served.size_bytes(),
                ..ModelStatus::counted(served.name.clone(), counts)
            });
        }
        // Mixes, and names that nothing answers under any more.
        models.extend(counts.into_iter().map(|(name, counts)| ModelStatus::counted(name, counts)));
        let (waiting, on_their_way, tokens) = app.metrics.load();
        Self {
            url,
            state: match (ended, app.drain.is_stopping()) {
                (Some(_), _) => ServerState::Stopped,
                (None, true) => ServerState::Stopping,
                (None, false) => ServerState::Serving,
            },
            uptime: ended.unwrap_or_else(|| begun.elapsed()),
            waiting,
            on_their_way,
            room: app.config.engine.max_batch_size + app.config.limits.max_queue,
            refused: app.metrics.refusals(),
            tokens,
            tokens_per_s: app.metrics.tokens_per_s(),
            models,
        }
    }
}

impl ModelStatus {
    fn counted(name: String, counts: Counts) -> Self {
        let Counts { waiting, running, answered, tokens } = counts;
        Self {
            name,
            generation: None,
            adapter: String::new(),
            size_bytes: 0,
            waiting,
            on_their_way: running,
            answered,
            tokens,
        }
    }
}
