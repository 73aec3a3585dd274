//! Connections: accepted, limited, and closed when the server stops.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::config::Limits;
use crate::write_limit::WriteLimit;

/// More header fields than any client sends.
const MAX_HEADERS: usize = 100;

/// After `closing`, a connection that has had nothing to write for so long is closed.
const QUIET: Duration = Duration::from_millis(100);

/// Accepts connections until `closing` says so, and ends with the last of them.
pub(crate) async fn accept(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    mut closing: watch::Receiver<bool>,
) {
    let most = u32::try_from(limits.max_connections).unwrap_or(u32::MAX);
    let most = most.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
    let room = Arc::new(Semaphore::new(most as usize));
    loop {
        let next = async {
            let place = Arc::clone(&room).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            _ = closing.wait_for(|closing| *closing) => break,
        };
        let Ok((stream, _)) = accepted else {
            // No descriptor is left, or the client has gone already.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let (router, limits, closing) = (router.clone(), limits.clone(), closing.clone());
        tokio::spawn(async move {
            serve(stream, router, &limits, closing).await;
            drop(place);
        });
    }
    drop(listener);
    let _ = room.acquire_many(most).await;
}

/// Serves one connection until it closes.
async fn serve(
    stream: TcpStream,
    router: Router,
    limits: &Limits,
    mut closing: watch::Receiver<bool>,
) {
    // Tokens are small, and each is waited for.
    let _ = stream.set_nodelay(true);
    let stream = WriteLimit::new(TokioIo::new(stream), limits.write_timeout, limits.deadline);
    let behind = stream.behind();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.read_timeout)
        .max_buf_size(limits.max_header_bytes)
        .max_headers(MAX_HEADERS)
        .serve_connection(stream, TowerToHyperService::new(router));
    tokio::pin!(connection);
    tokio::select! {
        // A client that breaks off is none of our concern.
        _ = connection.as_mut() => return,
        _ = closing.wait_for(|closing| *closing) => {}
    }
    connection.as_mut().graceful_shutdown();
    // All that was answered is written; who says nothing, or has not said all, is not waited for.
    while tokio::time::timeout(QUIET, connection.as_mut()).await.is_err()
        && behind.load(Ordering::Relaxed)
    {}
}
