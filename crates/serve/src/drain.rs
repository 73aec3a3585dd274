//! Requests that are being answered, for a stop that lets them end.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{Response, StatusCode};
use axum::middleware::Next;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::Notify;

use crate::api_error::{ApiError, ApiResult};
use crate::app::App;

/// Counts the requests that are being answered.
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
struct InFlight(Arc<App>);

impl InFlight {
    /// # Errors
    /// The server is stopping.
    fn begin(app: &Arc<App>) -> ApiResult<Self> {
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

/// Filled when a request has come whole, and kept until the last byte of its answer is handed on.
#[derive(Clone, Default)]
pub(crate) struct Accepted(Arc<OnceLock<InFlight>>);

impl Accepted {
    /// # Errors
    /// The server is stopping.
    pub(crate) fn begin(&self, app: &Arc<App>) -> ApiResult<()> {
        let _ = self.0.set(InFlight::begin(app)?);
        Ok(())
    }
}

/// Gives each request an [`Accepted`], which its answer keeps.
pub(crate) async fn keep(mut request: Request, next: Next) -> Response<Body> {
    let accepted = Accepted::default();
    request.extensions_mut().insert(accepted.clone());
    next.run(request).await.map(|body| Body::new(Kept { body, _accepted: accepted }))
}

/// A body that is a request's answer.
struct Kept {
    body: Body,
    _accepted: Accepted,
}

impl HttpBody for Kept {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
