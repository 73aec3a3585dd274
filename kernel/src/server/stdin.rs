//! Questions to the user.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jupyter_protocol::JupyterMessage;
use serde_json::json;
use tokio::sync::mpsc::UnboundedSender;

use super::message;

/// Asks through the stdin channel and waits for the answer.
pub(crate) struct Input {
    requests: UnboundedSender<JupyterMessage>,
    answers: Mutex<Receiver<String>>,
    answer: Sender<String>,
}

impl Input {
    pub(crate) fn new(requests: UnboundedSender<JupyterMessage>) -> Self {
        let (answer, answers) = channel();
        Self { requests, answers: Mutex::new(answers), answer }
    }

    /// The answer that has come in.
    pub(crate) fn answered(&self, value: String) {
        let _ = self.answer.send(value);
    }

    /// Asks the front end that sent `request`. Empty where nobody can be asked, and when
    /// `is_stopped` before the answer.
    pub(crate) fn ask(
        &self,
        request: &JupyterMessage,
        prompt: &str,
        password: bool,
        is_stopped: impl Fn() -> bool,
    ) -> String {
        if message::content(request)["allow_stdin"] != true {
            return String::new();
        }
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        // An answer to a question of a cell that was stopped.
        while answers.try_recv().is_ok() {}
        let content = json!({"prompt": prompt, "password": password});
        let _ = self.requests.send(message::child_of(request, "input_request", content));
        loop {
            match answers.recv_timeout(Duration::from_millis(50)) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Timeout) if !is_stopped() => {}
                Err(_) => return String::new(),
            }
        }
    }
}
