//! What all handlers share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tunebook_models::{EngineHandle, Error as ModelError, Model};
use tunebook_tune::ServedWeights;

use crate::adapters::loader::Loader;
use crate::adapters::mix::{self, Keep};
use crate::adapters::root::AdapterRoot;
use crate::adapters::{AdapterTable, MIXES, Served};
use crate::api_error::{ApiError, ApiResult};
use crate::config::ServerConfig;
use crate::drain::Drain;
use crate::metrics::Metrics;
use crate::shares::Shares;

/// Requests that are read or tokenised at a time.
const READERS: usize = 4;
/// The fewest requests that may be read or wait for it.
const LEAST_READING: usize = 64;

/// A token for words that a vocabulary lacks stands for as many bytes as there are.
const LEAST_TOKEN_BYTES: usize = 64;

/// A running server, as its handlers see it.
pub(crate) struct App {
    /// The base, which nothing stops.
    pub(crate) model: Model,
    pub(crate) engine: EngineHandle,
    pub(crate) adapters: AdapterTable,
    pub(crate) root: Option<AdapterRoot>,
    pub(crate) metrics: Metrics,
    pub(crate) config: ServerConfig,
    /// No token of a text has more bytes, so that a text's length bounds its tokens from below.
    pub(crate) longest_token_bytes: usize,
    /// The answers that may be on their way or wait.
    pub(crate) room: Arc<Semaphore>,
    /// Who has how much of that room.
    pub(crate) shares: Shares,
    /// The requests that may be read or wait for it.
    reading: Semaphore,
    /// Those that are read now.
    readers: Arc<Semaphore>,
    /// One text to be scored at a time: scoring takes all cores.
    pub(crate) scoring: Semaphore,
    /// Where adapters are read and copied.
    pub(crate) loader: Loader,
    /// Only this machine reaches it.
    pub(crate) loopback: bool,
    pub(crate) drain: Drain,
    /// Held until the server stops.
    weights: Mutex<Option<ServedWeights>>,
    ids: AtomicU64,
}

/// All that an [`App`] is made of.
pub(crate) struct Parts {
    pub(crate) model: Model,
    pub(crate) engine: EngineHandle,
    pub(crate) adapters: AdapterTable,
    pub(crate) loader: Loader,
    pub(crate) root: Option<AdapterRoot>,
    pub(crate) config: ServerConfig,
    pub(crate) loopback: bool,
    pub(crate) weights: ServedWeights,
}

impl App {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { model, engine, adapters, loader, root, config, loopback, weights } = parts;
        let room = most_answers(&config);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // As the vocabulary writes them, which is no shorter than what they stand for.
        let tokens = (0..model.tokenizer().vocab_size() as u32)
            .filter_map(|id| model.tokenizer().id_to_token(id).map(|token| token.len()));
        let longest_token_bytes = tokens.max().unwrap_or(0).max(LEAST_TOKEN_BYTES);
        Self {
            longest_token_bytes,
            model,
            engine,
            adapters,
            root,
            metrics: Metrics::default(),
            room: Arc::new(Semaphore::new(room.min(Semaphore::MAX_PERMITS))),
            shares: Shares::default(),
            reading: Semaphore::new(room.clamp(LEAST_READING, Semaphore::MAX_PERMITS)),
            readers: Arc::new(Semaphore::new(READERS)),
            scoring: Semaphore::new(1),
            loader,
            loopback,
            drain: Drain::default(),
            weights: Mutex::new(Some(weights)),
            // Apart from those of a former server.
            ids: AtomicU64::new(since.as_micros() as u64),
            config,
        }
    }

    /// The most answers that may be on their way or wait.
    pub(crate) fn most_answers(&self) -> usize {
        most_answers(&self.config)
    }

    /// A new name: `chatcmpl-…`.
    pub(crate) fn new_id(&self, kind: &str) -> String {
        format!("{kind}-{:016x}", self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// The weights may be trained again.
    pub(crate) fn release_weights(&self) {
        self.weights.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// What a request's `model` names, to be answered with.
    pub(crate) fn find(&self, model: &str) -> ApiResult<Arc<Served>> {
        self.named(model, Keep::Yes)
    }

    /// The same, to be told of.
    pub(crate) fn describe(&self, model: &str) -> ApiResult<Arc<Served>> {
        self.named(model, Keep::No)
    }

    fn named(&self, model: &str, keep: Keep) -> ApiResult<Arc<Served>> {
        match (self.adapters.find(model), mix::parse(model)) {
            (Some(served), _) => Ok(served),
            (None, Some(parts)) => self.adapters.mix(&self.model, "model", &parts?, keep),
            (None, None) => Err(self.adapters.unknown("model", model)),
        }
    }

    /// Whether a request's `model` names anything; nothing is built for it.
    pub(crate) fn check_model(&self, model: &str) -> ApiResult<()> {
        match (self.adapters.find(model), mix::parse(model)) {
            (Some(_), _) => Ok(()),
            (None, Some(parts)) => self.adapters.parts("model", &parts?).map(drop),
            (None, None) => Err(self.adapters.unknown("model", model)),
        }
    }

    /// Tells the event log.
    pub(crate) fn tell(&self, event: &str) {
        if let Some(log) = &self.config.event_log {
            (log.0)(event);
        }
    }

    /// Keeps no counts of its own for an adapter that is gone.
    pub(crate) fn join_removed(&self) {
        let served = |name: &str| name == MIXES || self.adapters.find(name).is_some();
        // The base, mixes and what was joined before have names, too.
        self.metrics.join_removed(self.adapters.len() + 3, served);
    }

    /// What the server has done, in Prometheus' text format.
    pub(crate) fn metrics_text(&self) -> String {
        self.join_removed();
        self.metrics.text(self.adapters.len())
    }

    /// How many tokens a prompt of `served` may have.
    pub(crate) fn prompt_room(&self, served: &Served) -> usize {
        let context = self.model.config().max_position_embeddings;
        let room = context.saturating_sub(served.overlay.positions_before());
        self.config.limits.max_prompt_tokens.map_or(room, |most| room.min(most))
    }

    /// Runs work that takes long on a thread for it. Work that has not begun when its caller leaves
    /// is never begun.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> ApiResult<T> + Send + 'static,
    ) -> ApiResult<T> {
        let app = Arc::clone(self);
        let mut task = JoinSet::new(); // it takes its tasks back when it is dropped
        task.spawn_blocking(move || tunebook_progress::quiet(|| work(&app)));
        match task.join_next().await {
            Some(Ok(done)) => done,
            Some(Err(error)) => Err(ApiError::engine(error.to_string())),
            None => Err(ApiError::engine("the work has not been done")),
        }
    }

    /// The same for work on a request that has no place yet: a few at a time, so that the others'
    /// work goes on, and the rest wait in their order.
    ///
    /// # Errors
    /// Too many wait (429); what the work says.
    pub(crate) async fn reading<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> ApiResult<T> + Send + 'static,
    ) -> ApiResult<T> {
        let Ok(_waits) = self.reading.try_acquire() else {
            self.metrics.refused();
            let message = "too many requests wait to be read; try again later";
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message));
        };
        let turn = Arc::clone(&self.readers).acquire_owned().await;
        // Held by the work, which ends by itself only.
        let work = move |app: &Self| {
            let _turn = turn;
            work(app)
        };
        self.blocking(work).await
    }
}

fn most_answers(config: &ServerConfig) -> usize {
    config.engine.max_batch_size + config.limits.max_queue
}

/// A prompt or setting that the model refuses.
pub(crate) fn refused(param: &str, error: &ModelError) -> ApiError {
    let code = match error {
        ModelError::ContextLength { .. } => "context_length_exceeded",
        ModelError::NoChatTemplate { .. } => "no_chat_template",
        ModelError::Format { .. } => "format_refused",
        _ => "invalid_value",
    };
    ApiError::field(code, param, error.to_string())
}
