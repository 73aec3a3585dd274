//! Answers on their way: requests to the engine, and their events as they come.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tunebook_models::{
    AnswerGrammar, FinishReason, GenerationConfig, GenerationEvent, GenerationRequest,
    Result as ModelResult,
};
use tunebook_progress::Stop;

use crate::adapters::Served;
use crate::api_error::{ApiError, ApiResult};
use crate::app::{App, refused};
use crate::drain::stopping;
use crate::metrics::Timing;
use crate::openai::sampling::Sampling;
use crate::shares::Share;

/// Prompts to answer, all of them checked.
#[derive(Debug)]
pub(crate) struct Prompts {
    pub(crate) served: Arc<Served>,
    pub(crate) ids: Vec<Vec<u32>>,
    pub(crate) config: GenerationConfig,
    /// The config's format, ready for the engine.
    grammar: Option<AnswerGrammar>,
    /// The field that asks for it.
    format_field: &'static str,
}

impl Prompts {
    /// # Errors
    /// A format that cannot be kept.
    pub(crate) fn new(
        app: &App,
        served: Arc<Served>,
        ids: Vec<Vec<u32>>,
        sampling: &Sampling,
    ) -> ApiResult<Self> {
        let config = sampling.config.clone();
        let grammar = config.format.as_ref().map(|format| app.model.answer_grammar(format));
        let format_field = sampling.format_field;
        let grammar = grammar.transpose().map_err(|error| refused(format_field, &error))?;
        Ok(Self { served, ids, config, grammar, format_field })
    }

    /// How many answers there will be.
    pub(crate) fn choices(&self) -> usize {
        self.ids.len() * self.config.num_return_sequences
    }
}

/// # Errors
/// More answers than one request may ask for, or than there is ever room for.
pub(crate) fn check_choices(app: &App, choices: usize) -> ApiResult<()> {
    let most = app.config.limits.max_choices.min(app.most_answers());
    if choices <= most {
        return Ok(());
    }
    let message = format!(
        "the request asks for {choices} answers (prompts times `n`), expected at most {most}; divide it"
    );
    Err(ApiError::field("too_many_choices", "prompt", message))
}

/// Places in the queue, one for each answer, until the last of them has ended.
struct Places {
    held: Mutex<Option<(OwnedSemaphorePermit, Share)>>,
    /// Answers that have not ended.
    open: AtomicUsize,
}

impl Places {
    fn free(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// An answer has ended, whether its client has read it or not.
    fn ended(&self) {
        if self.open.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.free();
        }
    }
}

/// A request's places in the queue, and the time until which the answers may take.
pub(crate) struct Place {
    places: Arc<Places>,
    pub(crate) deadline: Instant,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.free();
    }
}

impl Place {
    /// For as many answers as [`check_choices`] lets through.
    ///
    /// # Errors
    /// Too many answers at a time (429).
    pub(crate) fn take(app: &Arc<App>, prompts: &Prompts) -> ApiResult<Self> {
        let choices = prompts.choices();
        let full = |message: String| {
            app.metrics.refused();
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message)
        };
        let label = prompts.served.label();
        let share = Share::take(app, label, choices).map_err(|own| {
            full(format!(
                "{own} answers of `{label}` are on their way or wait, and the places that are left are kept for other models; \
                 try again later"
            ))
        })?;
        let permit = Arc::clone(&app.room).try_acquire_many_owned(choices as u32).map_err(|_| {
            full(format!(
                "{} answers are on their way or wait, the most that there may be; try again later",
                app.most_answers()
            ))
        })?;
        let now = Instant::now();
        // A limit beyond what a clock can say is none.
        let far = Duration::from_secs(365 * 24 * 3600);
        let deadline = now + app.config.limits.deadline.min(far);
        let held = Mutex::new(Some((permit, share)));
        let places = Arc::new(Places { held, open: AtomicUsize::new(choices) });
        Ok(Self { places, deadline })
    }

    /// The deadline has passed.
    pub(crate) fn exceeded(&self, app: &App) -> ApiError {
        let limit = app.config.limits.deadline;
        let message = format!("the answer has taken longer than {limit:?}, the server's limit");
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "deadline_exceeded", message)
    }
}

/// Answers on their way. Dropping them ends them: the engine frees their places before its next step.
pub(crate) struct Answers {
    app: Arc<App>,
    served: Arc<Served>,
    events: UnboundedReceiver<(usize, ModelResult<GenerationEvent>)>,
    stop: Stop,
    /// One for each choice; `None`: it has ended.
    open: Vec<Option<Timing>>,
    each: usize,
    ignore_eos: bool,
    format_field: &'static str,
    place: Place,
}

impl Answers {
    /// Hands the prompts to the engine.
    ///
    /// # Errors
    /// The engine has ended.
    pub(crate) fn begin(app: &Arc<App>, prompts: Prompts, place: Place) -> ApiResult<Self> {
        let (sender, events) = mpsc::unbounded_channel();
        let stop = Stop::new();
        let each = prompts.config.num_return_sequences;
        let open = (0..prompts.choices()).map(|_| Some(Timing::begin())).collect();
        app.join_removed();
        app.metrics.begin(prompts.served.label(), prompts.choices());
        let served = Arc::clone(&prompts.served);
        let ignore_eos = prompts.config.ignore_eos;
        let format_field = prompts.format_field;
        let app = Arc::clone(app);
        // From here on dropping it counts them out again.
        let this = Self { app, served, events, stop, open, each, ignore_eos, format_field, place };
        for (number, ids) in prompts.ids.into_iter().enumerate() {
            let request = GenerationRequest::new(ids, &prompts.config)
                .with_overlay(Arc::clone(&prompts.served.overlay))
                .with_stop(&this.stop)
                .with_grammar(prompts.grammar.clone())
                .with_number(number);
            let sender = sender.clone();
            let (places, deadline) = (Arc::clone(&this.place.places), this.place.deadline);
            // A client that does not read keeps neither the places nor the engine.
            let hand_on = move |event: ModelResult<GenerationEvent>| {
                if event.as_ref().is_ok_and(|event| event.finish.is_some()) {
                    places.ended();
                } else if Instant::now() >= deadline {
                    places.free();
                    return false;
                }
                sender.send((number, event)).is_ok()
            };
            let engine = &this.app.engine;
            engine
                .submit_to(request, hand_on)
                .map_err(|error| ApiError::engine(error.to_string()))?;
        }
        Ok(this)
    }

    pub(crate) fn app(&self) -> Arc<App> {
        Arc::clone(&self.app)
    }

    /// The next event and the number of its choice; `None` after the last.
    ///
    /// # Errors
    /// The deadline has passed, the engine has failed, or the server stops.
    pub(crate) async fn next(&mut self) -> ApiResult<Option<(usize, GenerationEvent)>> {
        if self.open.iter().all(Option::is_none) {
            return Ok(None);
        }
        let deadline = self.place.deadline;
        let next = tokio::time::timeout_at(deadline.into(), self.events.recv()).await;
        // What is there already comes before a deadline that has passed.
        let Some(next) = next.ok().filter(|_| Instant::now() < deadline) else {
            return Err(self.place.exceeded(&self.app));
        };
        let Some((prompt, event)) = next else {
            return Err(ApiError::engine("the engine has ended, and this server with it"));
        };
        let event = event.map_err(|error| refused("prompt", &error))?;
        let choice = prompt * self.each + event.answer;
        let Some(timing) = self.open.get_mut(choice) else { return Ok(None) };
        if let (Some(timing), true) = (timing.as_mut(), event.token.is_some()) {
            self.app.metrics.token(self.served.label(), timing);
        }
        if let Some(finish) = &event.finish {
            if let Some(timing) = timing.take() {
                self.app.metrics.end(self.served.label(), &timing, finish, event.answer == 0);
            }
            match &finish.reason {
                FinishReason::Failed(problem) => return Err(ApiError::engine(problem)),
                FinishReason::Misformed(problem) => {
                    return Err(ApiError::field("format_refused", self.format_field, problem));
                }
                FinishReason::Interrupted => return Err(stopping()),
                _ => {}
            }
        }
        Ok(Some((choice, event)))
    }

    /// Whether an event's token is the one that has ended the answer, which is no part of its text.
    pub(crate) fn is_end(&self, event: &GenerationEvent) -> bool {
        let stopped = event.finish.as_ref().is_some_and(|end| end.reason == FinishReason::Stop);
        stopped && !self.ignore_eos && event.token.is_some_and(|token| self.app.model.is_end(token))
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.stop.stop();
        for timing in self.open.iter().flatten() {
            self.app.metrics.cancel(self.served.label(), timing);
        }
    }
}

/// OpenAI's word for the end of an answer.
pub(crate) fn finish_reason(reason: &FinishReason) -> &'static str {
    match reason {
        FinishReason::Length | FinishReason::Context => "length",
        _ => "stop",
    }
}
