//! An engine on a thread of its own, which others send requests to.

use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread;

use crate::error::{Error, Result};
use crate::generate::engine::{GenerationEngine, GenerationEvent, GenerationRequest, RequestId};

/// Sends requests to an [`GenerationEngine`] that has a thread of its own. Clones send to the same engine,
/// which ends when the last of them is dropped and all its requests are answered.
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
}

struct Command {
    request: GenerationRequest,
    events: Sender<GenerationEvent>,
    accepted: Sender<Result<RequestId>>,
}

impl EngineHandle {
    /// Sends a request, and waits until the engine has taken it, a step at most. Its events come
    /// through the receiver, which ends after the last; dropping it drops the request.
    ///
    /// # Errors
    /// As [`GenerationEngine::insert`]; when the engine's thread has ended.
    pub fn submit(&self, request: GenerationRequest) -> Result<Receiver<GenerationEvent>> {
        let (events, receiver) = mpsc::channel();
        let (accepted, answer) = mpsc::channel();
        let gone = || Error::Argument {
            field: "engine",
            value: "ended".to_owned(),
            expected: "an engine whose thread runs",
        };
        self.commands.send(Command { request, events, accepted }).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())??;
        Ok(receiver)
    }
}

impl GenerationEngine {
    /// Gives the engine a thread of its own. Nothing that it does is shown in the notebook, and the
    /// notebook's Stop does not end it.
    pub fn spawn(self) -> EngineHandle {
        let (commands, receiver) = mpsc::channel();
        let engine = self.unstoppable();
        thread::spawn(move || tunebook_progress::quiet(|| serve(engine, &receiver)));
        EngineHandle { commands }
    }
}

fn serve(mut engine: GenerationEngine, commands: &Receiver<Command>) {
    let mut open: HashMap<RequestId, (Sender<GenerationEvent>, usize)> = HashMap::new();
    loop {
        // With nothing to do it sleeps until somebody asks.
        let mut next = match engine.is_empty() {
            true => match commands.recv() {
                Ok(command) => Some(command),
                Err(_) => return,
            },
            false => None,
        };
        loop {
            if let Some(Command { request, events, accepted }) = next.take() {
                let answers = request.answers();
                let inserted = engine.insert(request);
                if let Ok(id) = &inserted {
                    open.insert(*id, (events, answers));
                }
                // Whoever has stopped waiting is found gone when its first event comes.
                let _ = accepted.send(inserted);
            }
            next = match commands.try_recv() {
                Ok(command) => Some(command),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            };
        }
        for event in engine.step() {
            let id = event.id;
            let Some((sender, left)) = open.get_mut(&id) else { continue };
            *left -= usize::from(event.finish.is_some());
            let done = *left == 0;
            let gone = sender.send(event).is_err();
            if done || gone {
                open.remove(&id);
            }
            if gone {
                engine.remove(id);
            }
        }
    }
}
