//! Every request but the running of cells: answered at once, also while a cell runs.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use jupyter_protocol::JupyterMessage;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;

use super::cell::{self, Completeness};
use super::executor::{Known, Queue, guarded};
use super::index::Index;
use super::running::Running;
use super::{interrupt, message};

/// Answers the requests of one channel.
pub(crate) struct Requests {
    replies: UnboundedSender<JupyterMessage>,
    iopub: UnboundedSender<JupyterMessage>,
    queue: Arc<Queue>,
    known: Arc<Mutex<Known>>,
    running: Arc<Running>,
    dir: PathBuf,
    index: OnceLock<Index>,
}

impl Requests {
    pub(crate) fn new(
        replies: UnboundedSender<JupyterMessage>,
        iopub: UnboundedSender<JupyterMessage>,
        queue: Arc<Queue>,
        known: Arc<Mutex<Known>>,
        running: Arc<Running>,
        dir: PathBuf,
    ) -> Self {
        Self { replies, iopub, queue, known, running, dir, index: OnceLock::new() }
    }

    /// Answers a request, or queues it when it is for a cell.
    pub(crate) fn handle(&self, request: JupyterMessage) {
        let msg_type = request.header.msg_type.clone();
        if msg_type == "execute_request" {
            self.queue.push(request);
            return;
        }
        self.status(&request, "busy");
        let content = message::content(&request);
        // A fault in one answer must not end the answers of the whole channel.
        let answer = guarded(|| self.answer(&msg_type, &content, &request));
        let answer = answer.unwrap_or_else(|panic| {
            let evalue = format!("the kernel has a fault: {panic}");
            Some(json!({"status": "error", "ename": "KernelError", "evalue": evalue, "traceback": []}))
        });
        if let Some(answer) = answer {
            let reply =
                message::child_of(&request, &msg_type.replace("_request", "_reply"), answer);
            let _ = self.replies.send(reply);
        }
        self.status(&request, "idle");
    }

    /// What is replied, if anything is.
    fn answer(&self, msg_type: &str, content: &Value, request: &JupyterMessage) -> Option<Value> {
        match msg_type {
            "kernel_info_request" => Some(kernel_info()),
            "is_complete_request" => {
                Some(is_complete(content["code"].as_str().unwrap_or_default()))
            }
            "history_request" => Some(self.history(content)),
            "comm_info_request" => Some(json!({"status": "ok", "comms": {}})),
            "complete_request" => Some(self.complete(content)),
            "inspect_request" => Some(self.inspect(content)),
            "interrupt_request" => {
                let (running, dir) = (Arc::clone(&self.running), self.dir.clone());
                std::thread::spawn(move || interrupt::interrupt(&running, &dir));
                Some(json!({"status": "ok"}))
            }
            "shutdown_request" => {
                interrupt::stop_compiler(&self.dir);
                if let Some(pid) = self.running.child().and_then(|pid| i32::try_from(pid).ok()) {
                    // SAFETY: the process is our child.
                    unsafe { libc::kill(pid, libc::SIGKILL) };
                }
                Some(json!({"status": "ok", "restart": content["restart"] == true}))
            }
            "comm_open" => {
                // We know no targets, and say so as the protocol wants it.
                let closed = json!({"comm_id": content["comm_id"], "data": {}});
                let _ = self.iopub.send(message::child_of(request, "comm_close", closed));
                None
            }
            "comm_msg" | "comm_close" => None,
            other => {
                eprintln!("[kernel] no answer to {other}");
                None
            }
        }
    }

    fn status(&self, request: &JupyterMessage, state: &str) {
        let _ = self.iopub.send(message::child_of(
            request,
            "status",
            json!({"execution_state": state}),
        ));
    }

    fn history(&self, content: &Value) -> Value {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let with_output = content["output"] == true;
        let entry = |(number, code): &(u32, String)| {
            if with_output { json!([0, number, [code, null]]) } else { json!([0, number, code]) }
        };
        let count =
            content["n"].as_u64().map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let all = &known.history;
        let chosen: Vec<Value> = match content["hist_access_type"].as_str() {
            Some("range") => {
                let start = content["start"].as_i64().unwrap_or(0);
                let stop = content["stop"].as_i64().unwrap_or(i64::MAX);
                all.iter()
                    .filter(|(n, _)| (start..stop).contains(&i64::from(*n)))
                    .map(entry)
                    .collect()
            }
            Some("search") => {
                let pattern = content["pattern"].as_str().unwrap_or("*");
                let mut found: Vec<_> =
                    all.iter().filter(|(_, code)| glob(pattern, code)).collect();
                if content["unique"] == true {
                    let mut seen = std::collections::HashSet::new();
                    found.retain(|(_, code)| seen.insert(code.clone()));
                }
                found[found.len().saturating_sub(count)..].iter().map(|item| entry(item)).collect()
            }
            _ => all[all.len().saturating_sub(count)..].iter().map(entry).collect(),
        };
        json!({"status": "ok", "history": chosen})
    }

    /// The index of the crates, read at the first question. None until the clone is there.
    fn index(&self) -> Option<&Index> {
        if self.index.get().is_none() && self.dir.join("config").exists() {
            let _ = self.index.set(Index::read(&self.dir));
        }
        self.index.get()
    }

    fn complete(&self, content: &Value) -> Value {
        let code = content["code"].as_str().unwrap_or_default();
        let cursor = cursor(code, content);
        let start = code[..cursor]
            .rfind(|c| !is_word(c))
            .map_or(0, |at| at + code[at..].chars().next().map_or(1, char::len_utf8));
        let begun = &code[start..cursor];
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = self
            .index()
            .map(|index| index.complete(&code[..cursor], &known.variables))
            .unwrap_or_default();
        let is_member = code[..start].ends_with('.') || code[..start].ends_with("::");
        if !is_member && !begun.is_empty() {
            // Names of this cell and of earlier ones.
            let texts = std::iter::once(code).chain(known.items.iter().map(String::as_str));
            let words = texts.flat_map(|text| text.split(|c| !is_word(c)));
            let names = known.variables.iter().map(|(name, _)| name.as_str());
            let fitting = |word: &&str| {
                word.starts_with(begun) && *word != begun && !word.starts_with(char::is_numeric)
            };
            found.extend(
                words.chain(names).filter(fitting).map(|word| (word.to_owned(), "instance")),
            );
        }
        found.sort();
        found.dedup_by(|a, b| a.0 == b.0);
        let (cursor_start, cursor_end) =
            (code[..start].chars().count(), code[..cursor].chars().count());
        let types: Vec<Value> = found
            .iter()
            .map(|(name, kind)| json!({"text": name, "type": kind, "start": cursor_start, "end": cursor_end}))
            .collect();
        let matches: Vec<&String> = found.iter().map(|(name, _)| name).collect();
        json!({
            "status": "ok", "matches": matches, "cursor_start": cursor_start, "cursor_end": cursor_end,
            "metadata": {"_jupyter_types_experimental": types},
        })
    }

    fn inspect(&self, content: &Value) -> Value {
        let code = content["code"].as_str().unwrap_or_default();
        let at = cursor(code, content);
        let end = code[at..].find(|c| !is_word(c)).map_or(code.len(), |i| at + i);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match self.index() {
            Some(index) => index.inspect(&code[..end], &known.variables),
            None => Index::default().inspect(&code[..end], &known.variables),
        };
        match answer {
            Some((signature, docs)) => {
                let plain = if docs.is_empty() {
                    signature.clone()
                } else {
                    format!("{signature}\n\n{docs}")
                };
                let markdown = format!("```rust\n{signature}\n```\n\n{docs}");
                json!({
                    "status": "ok", "found": true, "metadata": {},
                    "data": {"text/plain": plain, "text/markdown": markdown},
                })
            }
            None => json!({"status": "ok", "found": false, "metadata": {}, "data": {}}),
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where the cursor is, in bytes. Jupyter counts characters.
fn cursor(code: &str, content: &Value) -> usize {
    let characters = content["cursor_pos"]
        .as_u64()
        .map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    code.char_indices().nth(characters).map_or(code.len(), |(at, _)| at)
}

fn is_complete(code: &str) -> Value {
    match cell::completeness(code) {
        Completeness::Complete => json!({"status": "complete"}),
        Completeness::Incomplete => json!({"status": "incomplete", "indent": "    "}),
        Completeness::Invalid => json!({"status": "invalid"}),
    }
}

/// Whether `text` fits a pattern with `*` and `?`.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let mut fits = vec![false; text.len() + 1];
    fits[0] = true;
    for p in pattern {
        if p == '*' {
            for i in 1..fits.len() {
                fits[i] |= fits[i - 1];
            }
        } else {
            for i in (1..fits.len()).rev() {
                fits[i] = fits[i - 1] && (p == '?' || p == text[i - 1]);
            }
            fits[0] = false;
        }
    }
    fits[text.len()]
}

fn kernel_info() -> Value {
    json!({
        "status": "ok",
        "protocol_version": "5.3",
        "implementation": "tunebook",
        "implementation_version": env!("CARGO_PKG_VERSION"),
        "language_info": {
            "name": "rust", "version": "", "mimetype": "text/rust", "file_extension": ".rs",
            "pygments_lexer": "rust", "codemirror_mode": "rust",
        },
        "banner": concat!("tunebook ", env!("CARGO_PKG_VERSION"), ": Rust cells on evcxr"),
        "debugger": false,
        "help_links": [{"text": "The Rust standard library", "url": "https://doc.rust-lang.org/stable/std/"}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        assert!(glob("*", "anything"));
        assert!(glob("let*;", "let x = 1;"));
        assert!(glob("a?c", "abc"));
        assert!(!glob("a?c", "ac"));
        assert!(!glob("let", "let x"));
    }

    #[test]
    fn the_cursor_counts_characters() {
        assert_eq!(cursor("é.x", &json!({"cursor_pos": 2})), 3);
        assert_eq!(cursor("ab", &json!({"cursor_pos": 9})), 2);
    }
}
