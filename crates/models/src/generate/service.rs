//! An engine on a thread of its own, which others send requests to.

use std::any::Any;
use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, OnceLock};
use std::thread;

use crate::error::{Error, Result};
use crate::generate::engine::{
    Finish, FinishReason, GenerationEngine, GenerationEvent, GenerationRequest, RequestId,
    TokenUsage, ended,
};

/// Sends requests to an [`GenerationEngine`] that has a thread of its own. Clones send to the same engine,
/// which ends when the last of them is dropped and all its requests are answered. A panic in it ends
/// all its answers as [`FinishReason::Failed`], and it takes no more requests.
///
/// ```no_run
/// use tunebook_models::{BestDevice, Device, GenerationEngine, GenerationConfig, Model, GenerationRequest};
/// let model = Model::load("SmolLM2-135M-Instruct", &Device::best()?)?;
/// let engine = GenerationEngine::new(&model, Default::default()).spawn();
/// let prompt = model.tokenizer().encode_with_special_tokens("The capital of France is")?;
/// for event in engine.submit(GenerationRequest::new(prompt, &GenerationConfig::default()))? {
///     print!("{}", event.text);
/// }
/// # Ok::<(), tunebook_models::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct EngineHandle {
    commands: Sender<Command>,
    /// What the thread panicked with, if it did.
    panicked: Arc<OnceLock<String>>,
}

struct Command {
    request: GenerationRequest,
    listener: Listener,
    /// Told whether the request is taken, in place of the listener.
    accepted: Option<Sender<Result<()>>>,
}

/// Takes the events of a request, or the reason why it is refused. `false`: nobody wants more.
type Listener = Box<dyn FnMut(Result<GenerationEvent>) -> bool + Send>;

impl EngineHandle {
    /// Sends a request, and waits until the engine has taken it, a step at most. Its events come
    /// through the receiver, which ends after the last; dropping it drops the request.
    ///
    /// # Errors
    /// As [`GenerationEngine::insert`]; when the engine's thread has ended by a panic.
    pub fn submit(&self, request: GenerationRequest) -> Result<Receiver<GenerationEvent>> {
        let (events, receiver) = mpsc::channel();
        let (accepted, answer) = mpsc::channel();
        let listener: Listener = Box::new(move |event| match event {
            Ok(event) => events.send(event).is_ok(),
            Err(_) => false,
        });
        self.send(request, listener, Some(accepted))?;
        answer.recv().map_err(|_| self.gone())??;
        Ok(receiver)
    }

    /// Sends a request and waits for nothing, as asynchronous callers must. `on_event` is called on
    /// the engine's thread, so it only hands on: with each event, or once with the error of a
    /// request that [`GenerationEngine::insert`] refuses. It is dropped after the last. Where it
    /// answers `false`, the request is dropped.
    ///
    /// # Errors
    /// When the engine's thread has ended by a panic.
    pub fn submit_to(
        &self,
        request: GenerationRequest,
        on_event: impl FnMut(Result<GenerationEvent>) -> bool + Send + 'static,
    ) -> Result<()> {
        self.send(request, Box::new(on_event), None)
    }

    fn send(
        &self,
        request: GenerationRequest,
        listener: Listener,
        accepted: Option<Sender<Result<()>>>,
    ) -> Result<()> {
        let command = Command { request, listener, accepted };
        self.commands.send(command).map_err(|_| self.gone())
    }

    /// No engine answers any more.
    fn gone(&self) -> Error {
        Error::Argument {
            field: "engine",
            value: match self.panicked.get() {
                Some(message) => format!("ended: {message}"),
                None => "ended".to_owned(),
            },
            expected: "an engine whose thread runs; `spawn` another",
        }
    }
}

impl GenerationEngine {
    /// Gives the engine a thread of its own. Nothing that it does is shown in the notebook, and the
    /// notebook's Stop does not end it.
    pub fn spawn(self) -> EngineHandle {
        let (commands, receiver) = mpsc::channel();
        let engine = self.unstoppable();
        let panicked = Arc::new(OnceLock::new());
        let handle = EngineHandle { commands, panicked: Arc::clone(&panicked) };
        thread::spawn(move || {
            let mut served = Served { engine, open: HashMap::new(), panicked };
            tunebook_progress::quiet(|| served.run(&receiver));
        });
        handle
    }
}

/// An engine and those who wait for its answers.
struct Served {
    engine: GenerationEngine,
    open: HashMap<RequestId, Open>,
    panicked: Arc<OnceLock<String>>,
}

struct Open {
    listener: Listener,
    /// Its answers that have not ended.
    left: BTreeSet<usize>,
}

impl Served {
    /// Until nobody can ask any more, or the engine panics.
    fn run(&mut self, commands: &Receiver<Command>) {
        loop {
            // With nothing to do it sleeps until somebody asks.
            let mut next = match self.engine.is_empty() {
                true => match commands.recv() {
                    Ok(command) => Some(command),
                    Err(_) => return,
                },
                false => None,
            };
            loop {
                if let Some(command) = next.take()
                    && !self.take(command)
                {
                    return;
                }
                next = match commands.try_recv() {
                    Ok(command) => Some(command),
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                };
            }
            match catch_unwind(AssertUnwindSafe(|| self.engine.step())) {
                Ok(events) => events.into_iter().for_each(|event| self.send(event)),
                Err(panic) => return self.fail(&*panic),
            }
        }
    }

    /// Takes a request in. `false`: the engine panicked.
    fn take(&mut self, command: Command) -> bool {
        let Command { request, mut listener, accepted } = command;
        let answers = request.answers();
        let inserted = match catch_unwind(AssertUnwindSafe(|| self.engine.insert(request))) {
            Ok(inserted) => inserted,
            Err(panic) => {
                // Before whoever asked is told that nobody answers.
                self.fail(&*panic);
                return false;
            }
        };
        let taken = match inserted {
            Ok(id) => {
                self.open.insert(id, Open { listener, left: (0..answers).collect() });
                Ok(())
            }
            Err(error) if accepted.is_none() => {
                listener(Err(error));
                return true;
            }
            Err(error) => Err(error),
        };
        // Whoever has stopped waiting is found gone when its first event comes.
        if let Some(accepted) = accepted {
            let _ = accepted.send(taken);
        }
        true
    }

    fn send(&mut self, event: GenerationEvent) {
        let id = event.id;
        let Some(open) = self.open.get_mut(&id) else { return };
        if event.finish.is_some() {
            open.left.remove(&event.answer);
        }
        let done = open.left.is_empty();
        let gone = !(open.listener)(Ok(event));
        if done || gone {
            self.open.remove(&id);
        }
        if gone {
            self.engine.remove(id);
        }
    }

    /// Tells everybody that waits why no more comes.
    fn fail(&mut self, panic: &(dyn Any + Send)) {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or(panic.downcast_ref::<&str>().copied());
        let message = message.unwrap_or("a value that is no text");
        let problem = format!("the engine's thread panicked: {message}");
        let _ = self.panicked.set(problem.clone());
        // The engine knows what its answers have cost, if the panic has left it whole.
        let ends = catch_unwind(AssertUnwindSafe(|| self.engine.fail_all(&problem)));
        ends.unwrap_or_default().into_iter().for_each(|event| self.send(event));
        for (id, mut open) in self.open.drain() {
            for answer in open.left {
                let reason = FinishReason::Failed(problem.clone());
                let finish = Finish { reason, usage: TokenUsage::default() };
                (open.listener)(Ok(ended(id, answer, finish)));
            }
        }
    }
}
