//! The thread on which adapters are read, copied and built.
//!
//! There is one, so that memory holds one copy more than is served; and the allocator keeps freed memory
//! for each thread, so what was replaced is what the next adapter is written into. Sixteen threads
//! that load by turns would each keep the memory of an adapter.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Sender};

use crate::error::{Error, Result};

type Job = Box<dyn FnOnce() + Send>;

/// Hands work to the thread, which ends with this.
#[derive(Debug)]
pub(crate) struct Loader(Sender<Job>);

impl Loader {
    /// # Errors
    /// The system has no thread left.
    pub(crate) fn start() -> Result<Self> {
        let (jobs, receiver) = mpsc::channel::<Job>();
        let work = move || {
            tunebook_progress::quiet(|| {
                for job in receiver {
                    // Whoever waits finds that no answer comes.
                    let _ = catch_unwind(AssertUnwindSafe(job));
                }
            });
        };
        let thread = std::thread::Builder::new().name("tunebook-load".to_owned()).spawn(work);
        thread.map(|_| Self(jobs)).map_err(Error::Start)
    }

    /// Waits for the work on this thread.
    ///
    /// # Errors
    /// The work's own; it panicked.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, done) = mpsc::channel();
        self.send(Box::new(move || drop(sender.send(work()))))?;
        done.recv().map_err(|_| Error::LoaderPanicked)?
    }

    /// The same where no thread may wait. The work is done, too, where nobody waits any more.
    ///
    /// # Errors
    /// As [`Loader::run`].
    pub(crate) async fn run_async<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, done) = tokio::sync::oneshot::channel();
        self.send(Box::new(move || drop(sender.send(work()))))?;
        done.await.map_err(|_| Error::LoaderPanicked)?
    }

    fn send(&self, job: Job) -> Result<()> {
        self.0.send(job).map_err(|_| Error::LoaderPanicked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_panics_is_told_and_the_next_is_done() {
        let loader = Loader::start().unwrap();
        let panics = loader.run(|| -> Result<()> { std::panic::resume_unwind(Box::new("no")) });
        assert!(matches!(panics, Err(Error::LoaderPanicked)));
        let name = loader.run(|| Ok(std::thread::current().name().map(str::to_owned)));
        assert_eq!(name.unwrap().as_deref(), Some("tunebook-load"));
    }
}
