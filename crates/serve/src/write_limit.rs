//! A connection whose peer must read: one that takes nothing for too long is closed. Its answer would
//! else hold a place in the queue for as long as it likes. The other way round, a peer that is still
//! saying something when the connection ends is heard for a while: it would else lose the answer, since
//! bytes that meet a closed connection break it off.

use std::io::{ErrorKind, IoSlice, Result};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use tokio::time::{Instant, Sleep, sleep};

/// At the end of a connection, a peer that says nothing for so long is not waited for.
const QUIET: Duration = Duration::from_millis(500);

/// Nor is one that goes on for so long.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// A connection with a limit on the time of a write, and of all writes until the peer has taken
/// everything: one that takes a byte now and then is closed, too.
pub(crate) struct WriteLimit<S> {
    inner: S,
    limit: Duration,
    whole_limit: Duration,
    /// Since the peer has not taken what there was.
    waiting: Option<Pin<Box<Sleep>>>,
    /// Since the peer has not taken everything.
    whole: Option<Pin<Box<Sleep>>>,
    behind: Arc<AtomicBool>,
    last_words: Option<LastWords>,
}

/// What comes after the last answer, which is read and dropped.
struct LastWords {
    whole: Pin<Box<Sleep>>,
    quiet: Pin<Box<Sleep>>,
}

impl LastWords {
    fn new() -> Self {
        Self { whole: Box::pin(sleep(LAST_WORDS)), quiet: Box::pin(sleep(QUIET)) }
    }

    /// Until the peer has closed, too, or takes too long.
    fn poll_end(&mut self, stream: &mut (impl Read + Unpin), cx: &mut Context<'_>) -> Poll<()> {
        let mut space = [MaybeUninit::uninit(); 16 << 10];
        while self.whole.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::uninit(&mut space);
            match Pin::new(&mut *stream).poll_read(cx, buffer.unfilled()) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.quiet.as_mut().reset(Instant::now() + QUIET);
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.quiet.as_mut().poll(cx),
            }
        }
        Poll::Ready(())
    }
}

impl<S> WriteLimit<S> {
    pub(crate) fn new(inner: S, limit: Duration, whole_limit: Duration) -> Self {
        let behind = Arc::default();
        Self { inner, limit, whole_limit, waiting: None, whole: None, behind, last_words: None }
    }

    /// Whether something is written that the peer has not taken.
    pub(crate) fn behind(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.behind)
    }

    fn limited<T>(&mut self, cx: &mut Context<'_>, done: Poll<Result<T>>) -> Poll<Result<T>> {
        if done.is_ready() {
            self.waiting = None;
        } else {
            self.behind.store(true, Ordering::Relaxed);
            let limit = self.limit;
            let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(limit)));
            if waiting.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(ErrorKind::TimedOut.into()));
            }
            let limit = self.whole_limit;
            self.whole.get_or_insert_with(|| Box::pin(sleep(limit)));
        }
        match self.whole.as_mut().map(|whole| whole.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Err(ErrorKind::TimedOut.into())),
            _ => done,
        }
    }
}

impl<S: Read + Unpin> Read for WriteLimit<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<S: Read + Write + Unpin> Write for WriteLimit<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        let done = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.limited(cx, done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let done = Pin::new(&mut self.inner).poll_write_vectored(cx, bytes);
        self.limited(cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let done = Pin::new(&mut self.inner).poll_flush(cx);
        if done.is_ready() {
            // Only asked for when all is written.
            self.whole = None;
            self.behind.store(false, Ordering::Relaxed);
        }
        self.limited(cx, done)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if self.last_words.is_none() {
            let done = Pin::new(&mut self.inner).poll_shutdown(cx);
            ready!(self.limited(cx, done))?;
        }
        let this = &mut *self;
        let last_words = this.last_words.get_or_insert_with(LastWords::new);
        last_words.poll_end(&mut this.inner, cx).map(Ok)
    }
}
