//! What is going on: the cell that runs, what it has shown, and how it fared. Shared by the threads
//! of the server.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jupyter_protocol::JupyterMessage;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::UnboundedSender;

use super::message;

/// How much of a cell's standard error is kept for its error message.
const KEPT_STDERR_BYTES: usize = 16 * 1024;

/// Data of a result by MIME type.
type Data = Map<String, Value>;

/// Shared state.
pub(crate) struct Running {
    iopub: UnboundedSender<JupyterMessage>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The request whose outputs these are. It stays when the cell is over: threads of a cell may
    /// still print.
    parent: Option<JupyterMessage>,
    execution_count: u32,
    /// Counts the cells, those without a number of their own too.
    cell: u64,
    silent: bool,
    busy: bool,
    block: Data,
    /// The question that the cell asks.
    prompt: String,
    outcome: Outcome,
    child: Option<u32>,
    interrupts: u32,
    acknowledged: bool,
    /// Whether the cell's code runs, rather than the compiler or evcxr.
    in_code: bool,
}

/// How far a cell is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// evcxr prepares it, or the compiler runs.
    Compiling,
    /// Its code runs.
    Code,
    /// It is over.
    Over,
}

/// What a cell's code reported about its end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// It panicked.
    pub(crate) panicked: bool,
    /// A `?` returned this error.
    pub(crate) error: Option<String>,
    /// Variables that it should have defined anew, whose old values are kept.
    pub(crate) kept: Vec<String>,
    /// Variables that it should have stored and has not.
    pub(crate) left_out: Vec<String>,
    /// The end of its standard error.
    pub(crate) stderr: Vec<u8>,
    /// Whether Stop was pressed while it ran.
    pub(crate) interrupted: bool,
    /// Whether Stop has ended the compiler.
    pub(crate) compiler_stopped: bool,
    /// Whether the server ended the process because Stop was not answered.
    pub(crate) killed: bool,
}

impl Running {
    pub(crate) fn new(iopub: UnboundedSender<JupyterMessage>) -> Self {
        Self { iopub, state: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A cell begins.
    pub(crate) fn begin(&self, parent: &JupyterMessage, execution_count: u32, silent: bool) {
        let mut state = self.lock();
        state.parent = Some(parent.clone());
        state.execution_count = execution_count;
        state.cell += 1;
        state.silent = silent;
        state.busy = true;
        state.block = Data::new();
        state.outcome = Outcome::default();
        state.interrupts = 0;
        state.acknowledged = false;
    }

    /// The cell is over.
    pub(crate) fn end(&self) -> Outcome {
        let mut state = self.lock();
        state.busy = false;
        state.outcome.interrupted = state.interrupts > 0;
        state.outcome.clone()
    }

    /// Sends an output of the current cell.
    pub(crate) fn publish(&self, msg_type: &str, content: Value) {
        let state = self.lock();
        if state.silent && msg_type != "stream" {
            return;
        }
        if let Some(parent) = &state.parent {
            // The receiver lives as long as the server.
            let _ = self.iopub.send(message::child_of(parent, msg_type, content));
        }
    }

    /// Sends the value of the current cell.
    pub(crate) fn publish_result(&self, data: Value, metadata: Value) {
        let execution_count = self.lock().execution_count;
        self.publish(
            "execute_result",
            json!({"execution_count": execution_count, "data": data, "metadata": metadata}),
        );
    }

    /// Adds one form of the value, as libraries that know evcxr send it: one after the other.
    pub(crate) fn add_to_result(&self, mime: String, value: Value) {
        self.lock().block.insert(mime, value);
    }

    /// Sends the value made up of these forms.
    pub(crate) fn send_block_result(&self) {
        let block = std::mem::take(&mut self.lock().block);
        if !block.is_empty() {
            self.publish_result(Value::Object(block), json!({}));
        }
    }

    /// The cell asks the user something.
    pub(crate) fn ask(&self, prompt: String) {
        self.lock().prompt = prompt;
    }

    /// The question that the cell asks.
    pub(crate) fn prompt(&self) -> String {
        self.lock().prompt.clone()
    }

    pub(crate) fn note_panic(&self) {
        self.lock().outcome.panicked = true;
    }

    pub(crate) fn has_panicked(&self) -> bool {
        self.lock().outcome.panicked
    }

    pub(crate) fn note_error(&self, text: &str) {
        self.lock().outcome.error = Some(text.to_owned());
    }

    pub(crate) fn note_kept(&self, name: String) {
        self.lock().outcome.kept.push(name);
    }

    pub(crate) fn note_left_out(&self, name: String) {
        self.lock().outcome.left_out.push(name);
    }

    /// The variables whose old values are kept.
    pub(crate) fn kept(&self) -> Vec<String> {
        self.lock().outcome.kept.clone()
    }

    pub(crate) fn note_stderr(&self, bytes: &[u8]) {
        let kept = &mut self.lock().outcome.stderr;
        kept.extend_from_slice(bytes);
        let excess = kept.len().saturating_sub(KEPT_STDERR_BYTES);
        kept.drain(..excess);
    }

    pub(crate) fn child_started(&self, pid: u32) {
        self.lock().child = Some(pid);
    }

    pub(crate) fn child_gone(&self) {
        let mut state = self.lock();
        state.child = None;
        state.in_code = false;
        drop(state);
        self.changed.notify_all();
    }

    /// The cell's code starts.
    pub(crate) fn code_starts(&self) {
        self.lock().in_code = true;
        self.changed.notify_all();
    }

    /// The cell's code is done.
    pub(crate) fn code_ends(&self) {
        self.lock().in_code = false;
        self.changed.notify_all();
    }

    /// How far `cell` is. While it is being compiled, `stop` ends that; no other cell can begin
    /// meanwhile.
    pub(crate) fn stop_compiling(&self, cell: u64, stop: impl FnOnce()) -> Phase {
        let mut state = self.lock();
        if !state.busy || state.cell != cell {
            return Phase::Over;
        }
        if state.in_code {
            return Phase::Code;
        }
        state.outcome.compiler_stopped = true;
        stop();
        Phase::Compiling
    }

    /// The running code has seen the stop flag.
    pub(crate) fn acknowledge(&self) {
        self.lock().acknowledged = true;
        self.changed.notify_all();
    }

    /// The process of the cells, if there is one.
    pub(crate) fn child(&self) -> Option<u32> {
        self.lock().child
    }

    /// Counts a press of Stop: the cell that it is for, and how often it was pressed. None when
    /// nothing runs.
    pub(crate) fn count_interrupt(&self) -> Option<(u64, u32)> {
        let mut state = self.lock();
        if !state.busy {
            return None;
        }
        state.interrupts += 1;
        Some((state.cell, state.interrupts))
    }

    /// Waits until the running code has seen the stop flag or the cell is over. Whether one of them
    /// came.
    pub(crate) fn wait_for_acknowledgement(&self, cell: u64, timeout: Duration) -> bool {
        let state = self.lock();
        let (state, result) = self
            .changed
            .wait_timeout_while(state, timeout, |state| {
                state.in_code && !state.acknowledged && state.cell == cell
            })
            .unwrap_or_else(PoisonError::into_inner);
        drop(state);
        !result.timed_out()
    }

    /// Wakes those who wait for the end of the cell.
    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Whether Stop was pressed since the cell began.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.lock().interrupts > 0
    }

    pub(crate) fn note_killed(&self) {
        self.lock().outcome.killed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_is_for_the_cell_that_ran_when_it_was_pressed() {
        let (iopub, _outputs) = tokio::sync::mpsc::unbounded_channel();
        let running = Running::new(iopub);
        let request: JupyterMessage =
            JupyterMessage::new(jupyter_protocol::ExecuteRequest::new("1".to_owned()), None);
        assert_eq!(running.count_interrupt(), None);
        running.begin(&request, 1, false);
        let (cell, presses) = running.count_interrupt().expect("a cell runs");
        assert_eq!(presses, 1);
        let mut stops = 0;
        assert_eq!(running.stop_compiling(cell, || stops += 1), Phase::Compiling);
        assert!(running.end().compiler_stopped);
        assert_eq!(running.stop_compiling(cell, || stops += 1), Phase::Over);
        // The next cell is left alone, although it is being compiled.
        running.begin(&request, 2, false);
        assert_eq!(running.stop_compiling(cell, || stops += 1), Phase::Over);
        assert!(!running.end().compiler_stopped);
        assert_eq!(stops, 1);
    }
}
