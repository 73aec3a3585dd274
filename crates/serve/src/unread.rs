//! Requests that are answered before all of them is read. What is left of one stands where the next
//! request would, so the connection ends with the answer, and says so: a client that is not told
//! sends its next request into nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::Response;
use axum::http::header::{CONNECTION, HeaderValue};
use axum::middleware::Next;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

/// Adds `Connection: close` to the answer to a request that was not read to its end.
pub(crate) async fn close(request: Request, next: Next) -> Response<Body> {
    let unread = Arc::new(AtomicBool::new(!request.body().is_end_stream()));
    let watched = Arc::clone(&unread);
    let request = request.map(|body| Body::new(Watched { body, unread: watched }));
    let mut response = next.run(request).await;
    if unread.load(Ordering::Relaxed) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A body that tells when it has come to its end.
struct Watched {
    body: Body,
    unread: Arc<AtomicBool>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.unread.store(false, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
