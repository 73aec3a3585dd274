//! What all handlers share.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use tokio::sync::{Notify, Semaphore};
use tunebook_models::{EngineHandle, Error as ModelError, Model};
use tunebook_tune::ServedWeights;

use crate::adapters::loader::Loader;
use crate::adapters::root::AdapterRoot;
use crate::adapters::{AdapterTable, Served, mix};
use crate::api_error::{ApiError, ApiResult};
use crate::config::ServerConfig;
use crate::metrics::Metrics;
use crate::shares::Shares;

/// A running server, as its handlers see it.
pub(crate) struct App {
    /// The base, which nothing stops.
    pub(crate) model: Model,
    pub(crate) engine: EngineHandle,
    pub(crate) adapters: AdapterTable,
    pub(crate) root: Option<AdapterRoot>,
    pub(crate) metrics: Metrics,
    pub(crate) config: ServerConfig,
    /// The answers that may be on their way or wait.
    pub(crate) room: Arc<Semaphore>,
    /// Who has how much of that room.
    pub(crate) shares: Shares,
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
        Self {
            model,
            engine,
            adapters,
            root,
            metrics: Metrics::default(),
            room: Arc::new(Semaphore::new(room.min(Semaphore::MAX_PERMITS))),
            shares: Shares::default(),
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

    /// What a request's `model` names.
    pub(crate) fn find(&self, model: &str) -> ApiResult<Arc<Served>> {
        if let Some(served) = self.adapters.find(model) {
            return Ok(served);
        }
        match mix::parse(model) {
            Some(parts) => self.adapters.mix(&self.model, "model", &parts?),
            None => Err(self.adapters.unknown("model", model)),
        }
    }

    /// Tells the event log.
    pub(crate) fn tell(&self, event: &str) {
        if let Some(log) = &self.config.event_log {
            (log.0)(event);
        }
    }

    /// How many tokens a prompt of `served` may have.
    pub(crate) fn prompt_room(&self, served: &Served) -> usize {
        let context = self.model.config().max_position_embeddings;
        let room = context.saturating_sub(served.overlay.positions_before());
        self.config.limits.max_prompt_tokens.map_or(room, |most| room.min(most))
    }

    /// Runs work that takes long on a thread for it.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> ApiResult<T> + Send + 'static,
    ) -> ApiResult<T> {
        let app = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || tunebook_progress::quiet(|| work(&app)));
        done.await.map_err(|error| ApiError::engine(error.to_string()))?
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

/// Counts the requests that are being answered, for a stop that lets them end.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    stopping: AtomicBool,
    in_flight: AtomicUsize,
    ended: Notify,
}

impl Drain {
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// From now on, new requests are refused.
    pub(crate) fn begin(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Until no request is being answered.
    pub(crate) async fn done(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.in_flight.load(Ordering::SeqCst) == 0 {
                return;
            }
            ended.await;
        }
    }
}

/// A request that is being answered.
pub(crate) struct InFlight(Arc<App>);

impl InFlight {
    /// # Errors
    /// The server is stopping.
    pub(crate) fn begin(app: &Arc<App>) -> ApiResult<Self> {
        // Counted before the look, so that a stop between the two waits for it.
        app.drain.in_flight.fetch_add(1, Ordering::SeqCst);
        let this = Self(Arc::clone(app));
        match app.drain.is_stopping() {
            true => Err(stopping()),
            false => Ok(this),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.drain.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.drain.ended.notify_waiters();
        }
    }
}

pub(crate) fn stopping() -> ApiError {
    let message =
        "this server is stopping: it ends the answers that it has begun and takes no more";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", message)
}
