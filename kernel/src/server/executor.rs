//! Runs the cells, one after the other, on a thread of its own.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use evcxr::{CommandContext, EvalCallbacks};
use jupyter_protocol::JupyterMessage;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;
use tunebook_progress::channel::escape;

use super::advice::{self, End, Gone, NotKept, Notebook};
use super::cell::{self, LooseImpl};
use super::failure::Failure;
use super::message;
use super::running::{Outcome, Running};
use super::stdin::Input;
use crate::shim;

/// The requests that wait, and what has been run.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<VecDeque<JupyterMessage>>,
    arrived: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<JupyterMessage>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, request: JupyterMessage) {
        self.lock().push_back(request);
        self.arrived.notify_one();
    }

    fn pop(&self) -> JupyterMessage {
        let mut waiting = self.lock();
        loop {
            match waiting.pop_front() {
                Some(request) => return request,
                None => {
                    waiting = self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner)
                }
            }
        }
    }

    fn drain(&self) -> Vec<JupyterMessage> {
        self.lock().drain(..).collect()
    }
}

/// What the session knows that others ask for.
#[derive(Default)]
pub(crate) struct Known {
    /// The cells that were run with history, with their numbers.
    pub(crate) history: Vec<(u32, String)>,
    /// Items that cells have defined: the code of cells that ended well, without what runs.
    pub(crate) items: Vec<String>,
    /// Variables and their types.
    pub(crate) variables: Vec<(String, String)>,
    /// The `impl`s that were run apart from their types.
    pub(crate) impls: Vec<LooseImpl>,
    /// Variables that are not there, though a cell seems to define them.
    pub(crate) gone: Gone,
}

/// Everything that running a cell takes.
pub(crate) struct Executor {
    pub(crate) running: Arc<Running>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) known: Arc<Mutex<Known>>,
    pub(crate) shell: UnboundedSender<JupyterMessage>,
    pub(crate) iopub: UnboundedSender<JupyterMessage>,
    pub(crate) input: Arc<Input>,
    pub(crate) dir: PathBuf,
    /// The places missed in evcxr's generated code that the user knows of.
    pub(crate) told: Mutex<HashSet<String>>,
}

/// evcxr's evaluator, or why there is none.
pub(crate) type Context = Result<CommandContext, String>;

impl Executor {
    /// Runs cells until the process ends. `warm_up` makes the evaluator; cells that arrive earlier
    /// wait for it.
    pub(crate) fn run(self, warm_up: impl FnOnce() -> Context) {
        let mut context = guarded(warm_up)
            .unwrap_or_else(|panic| Err(format!("the kernel has a fault: {panic}")));
        let mut execution_count = 0;
        loop {
            let request = self.queue.pop();
            let content = message::content(&request);
            let silent = content["silent"] == true;
            let store_history = !silent && content["store_history"] != false;
            let code = content["code"].as_str().unwrap_or_default().to_owned();
            if store_history && !code.trim().is_empty() {
                execution_count += 1;
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                known.history.push((execution_count, code.clone()));
            }
            let cell = || self.cell(&request, &mut context, &code, execution_count, silent);
            let failure = guarded(cell).unwrap_or_else(|panic| {
                self.running.end();
                self.running.notify();
                Some(Failure::of_kernel(&panic))
            });
            // Taken before the reply: what the front end sends after it has seen the error is meant
            // to run. A cell that was stopped may have ended well with half of its work, such as an
            // adapter that is trained half: what was to go on with it does not, either.
            let stopped = self.running.is_interrupted();
            let aborted = match &failure {
                None if !stopped => Vec::new(),
                _ if content["stop_on_error"] == false => Vec::new(),
                _ => self.queue.drain(),
            };
            if failure.is_none() && !aborted.is_empty() {
                self.tell_aborted(aborted.len());
            }
            self.answer(&request, failure, execution_count);
            for request in aborted {
                self.status(&request, "busy");
                self.reply(
                    &request,
                    json!({"status": "aborted", "execution_count": execution_count}),
                );
                self.status(&request, "idle");
            }
        }
    }

    fn cell(
        &self,
        request: &JupyterMessage,
        context: &mut Context,
        code: &str,
        execution_count: u32,
        silent: bool,
    ) -> Option<Failure> {
        self.status(request, "busy");
        self.running.begin(request, execution_count, silent);
        if !silent {
            self.running.publish(
                "execute_input",
                json!({"code": code, "execution_count": execution_count}),
            );
        }
        let context = match context {
            Ok(context) => context,
            Err(error) => {
                self.running.end();
                return Some(Failure::of_start(error));
            }
        };
        let _ = fs::remove_file(self.dir.join(shim::STOP_FILE));
        let _ = fs::remove_file(self.dir.join(shim::MISSED_FILE));
        let _ = fs::remove_file(self.dir.join(shim::UNUSED_FILE));
        let killed_before = killed_for_memory();
        let result = self.evaluate(context, request, code, execution_count);
        let outcome = self.running.end();
        self.running.notify();
        let oom = killed_for_memory() > killed_before;
        let does_not_compile = matches!(&result, Err(evcxr::Error::CompilationErrors(_)));
        let failure = match &result {
            Ok(_) => {
                // The place of a panic is one of the generated code.
                let source = match outcome.panicked {
                    true => {
                        fs::read_to_string(self.dir.join("cell/src/lib.rs")).unwrap_or_default()
                    }
                    false => String::new(),
                };
                Failure::of_outcome(&outcome, code, &source)
            }
            Err(error) => {
                let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                let notebook = Notebook { code, variables: &known.variables, gone: &known.gone };
                Some(Failure::of_evcxr(error, &outcome, &notebook, execution_count, oom))
            }
        };
        let end = match &result {
            Err(evcxr::Error::SubprocessTerminated(_)) => End::Died,
            _ if failure.is_some() => End::Failed,
            _ => End::Worked,
        };
        if let Ok(outputs) = result
            && !outputs.content_by_mime_type.is_empty()
        {
            // Answers of evcxr's own commands (`:vars`).
            let data = outputs
                .content_by_mime_type
                .into_iter()
                .map(|(mime, text)| (mime, Value::from(text)))
                .collect();
            self.running.publish_result(Value::Object(data), json!({}));
        }
        // After an error evcxr compiles once more in another form, which does not run.
        if !does_not_compile {
            self.tell_missed();
            self.tell_statics(code);
            self.tell_unused(code, execution_count);
            if failure.is_none() {
                self.tell_left_out(&outcome);
                self.tell_not_shown(code);
            }
        }
        self.remember(context, code, execution_count, end);
        failure
    }

    /// Says, once for each, which places of evcxr's generated code the shim has not found.
    fn tell_missed(&self) {
        let Ok(missed) = fs::read_to_string(self.dir.join(shim::MISSED_FILE)) else { return };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for place in missed.lines() {
            if told.insert(place.to_owned()) {
                let text = format!(
                    "[kernel] evcxr's code for this cell is not as expected. Not found: {place}.\n"
                );
                eprint!("{text}");
                self.running.publish("stream", json!({"name": "stderr", "text": text}));
            }
        }
    }

    /// Says which results the cell has not looked at: the error in one would be lost without a word.
    fn tell_unused(&self, code: &str, execution_count: u32) {
        let Ok(unused) = fs::read(self.dir.join(shim::UNUSED_FILE)) else { return };
        let unused: Vec<(String, String)> = serde_json::from_slice(&unused).unwrap_or_default();
        for text in cell::told_unused(code, execution_count, &unused) {
            self.running.publish("stream", json!({"name": "stderr", "text": text}));
        }
    }

    /// Says that a `;` keeps a value from being shown.
    fn tell_not_shown(&self, code: &str) {
        if let Some(text) = cell::not_shown(code) {
            self.running.publish("stream", json!({"name": "stderr", "text": text}));
        }
    }

    /// Says which variables are not kept, as the cell has left by `return` before its end.
    fn tell_left_out(&self, outcome: &Outcome) {
        let (old, new): (Vec<&str>, Vec<&str>) = outcome
            .left_out
            .iter()
            .map(String::as_str)
            .partition(|name| outcome.kept.iter().any(|kept| kept == name));
        let mut what = Vec::new();
        if !new.is_empty() {
            what.push(format!("not kept: {}", new.join(", ")));
        }
        if !old.is_empty() {
            what.push(format!("as before the cell: {}", old.join(", ")));
        }
        if !what.is_empty() {
            let text = format!(
                "[kernel] the cell returned before its end. Of its variables, {}\n",
                what.join("; ")
            );
            self.running.publish("stream", json!({"name": "stderr", "text": text}));
        }
    }

    /// Says that cells behind a stopped one do not run, which nothing else would.
    fn tell_aborted(&self, count: usize) {
        let cells = if count == 1 {
            "the cell that waits".to_owned()
        } else {
            format!("the {count} cells that wait")
        };
        let text = format!(
            "[kernel] stopped: {cells} behind this one will not run. Run them when what they need is there \
             (a cell with the tag `raises-exception` lets them run).\n"
        );
        self.running.publish("stream", json!({"name": "stderr", "text": text}));
    }

    /// Says, once for each, that a closure lives in its cell alone.
    fn tell_closures<'a>(&self, closures: impl Iterator<Item = &'a str>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for name in closures {
            if told.insert(format!("closure {name}")) {
                let text = format!(
                    "[kernel] the closure `{name}` lives in this cell only, as its type has no name. A function does \
                     not: `fn {name}(..) {{ .. }}`, or `let {name}: Box<dyn Fn(..) -> ..> = Box::new(..);`\n"
                );
                self.running.publish("stream", json!({"name": "stderr", "text": text}));
            }
        }
    }

    /// Says which variables live in this cell alone.
    fn tell_within(&self, within: &[String], unkept: &[(String, NotKept)]) {
        for name in within {
            let why = match unkept.iter().find(|(other, _)| other == name).map(|(_, why)| why) {
                Some(NotKept::Lent) => "as it lends from another value",
                Some(NotKept::Unnamed) => "as nobody can write its type",
                None => "as what stands beside it in its `let`",
            };
            let text = format!(
                "[kernel] `{name}` lives in this cell only, {why}. To keep it, make a value of its own: \
                 `.clone()` in place of `&`, `.collect::<Vec<_>>()` behind an iterator.\n"
            );
            self.running.publish("stream", json!({"name": "stderr", "text": text}));
        }
    }

    /// Says, once for each, that a static starts anew in every cell.
    fn tell_statics(&self, code: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for name in cell::statics(code) {
            if told.insert(format!("static {name}")) {
                let text = format!(
                    "[kernel] the static `{name}` starts anew in every cell, as each cell is a library of its own. \
                     A variable keeps its value: `let {} = std::sync::Arc::new(..);`\n",
                    name.to_lowercase()
                );
                self.running.publish("stream", json!({"name": "stderr", "text": text}));
            }
        }
    }

    fn evaluate(
        &self,
        context: &mut CommandContext,
        request: &JupyterMessage,
        code: &str,
        execution_count: u32,
    ) -> Result<evcxr::EvalOutputs, evcxr::Error> {
        if let Some(wrong) = cell::refused_commands(code) {
            return Err(evcxr::Error::Message(wrong));
        }
        let quick = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            cell::only_calls(code, &known.items)
        };
        let quick_file = self.dir.join(shim::QUICK_FILE);
        let _ = if quick { fs::write(quick_file, "") } else { fs::remove_file(quick_file) };
        let impls = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            cell::loose_impls(code, &known.impls)
        };
        // Compiled more than once, a cell runs its shell commands once.
        let (apart, commands) = cell::without_shell_commands(code);
        let code = apart.as_str();
        let mut outputs = match commands.is_empty() {
            true => evcxr::EvalOutputs::new(),
            false => context.execute(&commands)?,
        };
        let named = cell::with_modules_of_statics(&cell::with_named_impls(code, &impls));
        let kept: HashSet<String> = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.variables.iter().map(|(name, _)| name.clone()).collect()
        };
        let mut types = match cell::untyped_lets(&named).is_empty() {
            true => HashMap::new(),
            false => self.types(context, &named),
        };
        // The old value would be kept in place of a closure, which cannot be: an error says so.
        types.retain(|name, ty| !ty.starts_with("{closure") || !kept.contains(name));
        let mut callbacks = EvalCallbacks {
            input_reader: &|asked| {
                let prompt = self.running.prompt();
                let answer = self
                    .input
                    .ask(request, &prompt, asked.is_password, || self.running.is_interrupted());
                escape(&answer) // on one line, as evcxr passes it on
            },
        };
        let unnamed = cell::unnamed(&named, &types).into_iter();
        let unnamed = unnamed.filter(|name| !kept.contains(name));
        let mut unkept: Vec<(String, NotKept)> =
            unnamed.map(|name| (name, NotKept::Unnamed)).collect();
        let mut first_error = None;
        let names = |unkept: &[(String, NotKept)]| -> Vec<String> {
            unkept.iter().map(|(name, _)| name.clone()).collect()
        };
        let (result, typed, lets, within) = loop {
            let (apart, within) = cell::within_cell(&named, &names(&unkept), &types);
            let lets = cell::untyped_lets(&apart);
            let typed = cell::with_types(&apart, &lets, &types);
            let result = context.execute_with_callbacks(&typed, &mut callbacks);
            let Err(error) = &result else { break (result, typed, lets, within) };
            let mut all = unkept.clone();
            let is_new =
                |(name, _): &(String, NotKept)| unkept.iter().all(|(other, _)| other != name);
            all.extend(advice::not_kept(error, code, &types).into_iter().filter(is_new));
            // A name that is kept already is left to the error: its old value would stay in place of the
            // new one.
            let hidden = cell::within_cell(&named, &names(&all), &types).1;
            let is_worse =
                all.len() == unkept.len() || hidden.iter().any(|name| kept.contains(name));
            if is_worse || self.running.is_interrupted() {
                break (result, typed, lets, within);
            }
            unkept = all;
            first_error = first_error.or(result.err());
        };
        // Such as a lock's guard, which stands until the lock is stored: it cannot live in the cell.
        let unsaid =
            matches!(&result, Err(evcxr::Error::CompilationErrors(errors)) if errors.is_empty());
        if unsaid && let Some(first) = first_error {
            return Err(first);
        }
        match result {
            Ok(found) => {
                outputs.merge(found);
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                known.impls.retain(|old| !impls.iter().any(|new| new.is_of(old)));
                known.impls.extend(impls);
                let closures = cell::local_closures(&lets, &types).map(str::to_owned);
                known.gone.note_within(execution_count, closures.chain(within.iter().cloned()));
                let kept = self.running.kept();
                let kept = known.variables.iter().filter(|(name, _)| kept.contains(name));
                let again = cell::taken_again(kept);
                drop(known);
                self.take_again(context, &again);
                self.tell_closures(cell::local_closures(&lets, &types));
                self.tell_within(&within, &unkept);
                Ok(outputs)
            }
            // The error may lie in a type that was written in, and its place is that of the changed
            // text. Nothing has run yet: the cell as it was written tells what is wrong with it.
            Err(error @ evcxr::Error::CompilationErrors(_))
                if typed != code && !self.running.is_interrupted() =>
            {
                let (apart, _) = cell::within_cell(code, &names(&unkept), &types);
                let apart = cell::with_local_closures(&apart, &types);
                match context.execute_with_callbacks(&apart, &mut callbacks) {
                    // What evcxr cannot find out by itself says less.
                    Err(evcxr::Error::Message(_)) => Err(first_error.unwrap_or(error)),
                    Ok(found) => {
                        outputs.merge(found);
                        Ok(outputs)
                    }
                    plain => plain,
                }
            }
            result => result,
        }
    }

    /// Tells evcxr, which has forgotten the variables that a failed cell had begun to define anew,
    /// of their old values.
    fn take_again(&self, context: &mut CommandContext, code: &str) {
        if code.is_empty() {
            return;
        }
        // A Stop that came while the cell was compiled is over.
        let _ = fs::remove_file(self.dir.join(shim::STOP_FILE));
        if let Err(error) = context.execute(code) {
            eprintln!("variables of before a failed cell are lost: {error}");
        }
    }

    /// Asks the compiler for the types of the cell's variables.
    fn types(&self, context: &mut CommandContext, code: &str) -> HashMap<String, String> {
        let answer = self.dir.join(shim::TYPES_FILE);
        let _ = fs::remove_file(&answer);
        if fs::write(self.dir.join(shim::PROBE_FILE), "").is_err() {
            return HashMap::new();
        }
        // Its errors are the cell's own: evcxr finds them again, and says more about them.
        let _ = context.check(code);
        let _ = fs::remove_file(self.dir.join(shim::PROBE_FILE));
        fs::read(answer)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    fn remember(&self, context: &CommandContext, code: &str, execution_count: u32, end: End) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = &mut *known;
        let before = std::mem::take(&mut known.variables);
        known.variables = context
            .variables_and_types()
            .map(|(name, ty)| (name.to_owned(), ty.to_owned()))
            .collect();
        let defined = cell::defined(code);
        known.gone.note(execution_count, &before, &known.variables, &defined, end);
        if end == End::Worked {
            known.items.extend(cell::items(code));
        }
    }

    fn answer(&self, request: &JupyterMessage, failure: Option<Failure>, execution_count: u32) {
        let content = match failure {
            None => json!({
                "status": "ok", "execution_count": execution_count, "payload": [], "user_expressions": {},
            }),
            Some(failure) => {
                let mut content = json!({
                    "ename": failure.ename, "evalue": failure.evalue, "traceback": failure.traceback,
                });
                self.running.publish("error", content.clone());
                if let Some(fold) = &failure.fold {
                    let display = json!({"data": fold.bundle(), "metadata": {}, "transient": {}});
                    self.running.publish("display_data", display);
                }
                content["traceback"] = failure.whole_traceback().into();
                content["status"] = "error".into();
                content["execution_count"] = execution_count.into();
                content
            }
        };
        self.reply(request, content);
        self.status(request, "idle");
    }

    fn reply(&self, request: &JupyterMessage, content: Value) {
        let _ = self.shell.send(message::child_of(request, "execute_reply", content));
    }

    fn status(&self, request: &JupyterMessage, state: &str) {
        let _ = self.iopub.send(message::child_of(
            request,
            "status",
            json!({"execution_state": state}),
        ));
    }
}

/// Does `work`; the message of its panic, if it has one. A fault of ours or of evcxr's costs a cell,
/// and not the thread that runs all cells.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "it panicked".to_owned())
    })
}

/// How many processes the system has ended for want of memory.
fn killed_for_memory() -> u64 {
    fs::read_to_string("/proc/vmstat")
        .ok()
        .and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_told_and_ends_nothing() {
        assert_eq!(guarded(|| 3), Ok(3));
        assert_eq!(
            guarded(|| -> u8 { panic!("no {}", "boundary") }),
            Err("no boundary".to_owned())
        );
        let text = String::from("ééé");
        let fault = guarded(|| text.split_at(1).0.len()).unwrap_err();
        assert!(fault.contains("boundary"), "{fault}");
        assert_eq!(guarded(|| std::panic::panic_any(1)), Err::<(), _>("it panicked".to_owned()));
    }
}
