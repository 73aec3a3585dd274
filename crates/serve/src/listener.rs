//! Connections: accepted, limited, and closed when the server stops.

use std::sync::Arc;

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

/// Accepts connections until `closing` says so.
pub(crate) async fn accept(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    mut closing: watch::Receiver<bool>,
) {
    let room = Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS)));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = closing.wait_for(|closing| *closing) => return,
        };
        let Ok((stream, _)) = accepted else {
            // No descriptor is left, or the client has gone already.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        let (router, limits, closing) = (router.clone(), limits.clone(), closing.clone());
        tokio::spawn(async move {
            serve(stream, router, &limits, closing).await;
            drop(place);
        });
    }
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
    let stream = WriteLimit::new(TokioIo::new(stream), limits.write_timeout);
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
    let _ = connection.await;
}
