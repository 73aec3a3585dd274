//! Takes what a child writes, live: text goes to the front end as it comes, frames of the display
//! channel become displays, and evcxr's control words go to evcxr.
//!
//! A child has three connections: its standard output, its standard error, and one on which it says
//! that running code has seen the stop flag. One thread serves the three, so outputs keep their
//! order as far as two streams have one.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tunebook_progress::channel::{Frame, Message};

use super::frames::{Event, GATHER, Parser, Text};
use super::running::Running;
use crate::child::{RUNS, SEEN};

/// Text of one stream and cell beyond this is dropped, with a note: a notebook of 50 MB cannot be
/// opened any more.
const MOST_TEXT_BYTES: usize = 8 * 1024 * 1024;

/// Accepts the connections of the children, one child after the other.
pub(crate) fn accept(listener: &UnixListener, nonce: &str, running: &Arc<Running>) {
    let mut waiting: HashMap<u32, Vec<(String, UnixStream, i32)>> = HashMap::new();
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let Ok((name, pid, real)) = greeting(&stream) else { continue };
        let connections = waiting.entry(pid).or_default();
        connections.push((name, stream, real));
        if connections.len() < 3 {
            continue;
        }
        let connections = waiting.remove(&pid).unwrap_or_default();
        match Child::new(pid, connections, nonce, Arc::clone(running)) {
            Ok(child) => {
                std::thread::spawn(move || child.serve());
            }
            Err(error) => eprintln!("a child did not come up: {error:#}"),
        }
    }
}

/// `out PID FD`, `err PID FD` or `ctl PID`.
fn greeting(stream: &UnixStream) -> Result<(String, u32, i32)> {
    // Byte by byte: what follows the line is the cell's.
    let mut line = Vec::new();
    let (mut stream, mut byte) = (stream, [0]);
    loop {
        stream.read_exact(&mut byte)?;
        match byte[0] {
            b'\n' => break,
            byte => line.push(byte),
        }
        anyhow::ensure!(line.len() < 64, "not a greeting");
    }
    let line = String::from_utf8(line)?;
    let mut words = line.split(' ');
    let name = words.next().unwrap_or_default().to_owned();
    let pid = words.next().context("no process")?.parse()?;
    let real = words.next().map_or(Ok(-1), str::parse)?;
    Ok((name, pid, real))
}

/// One child's connections.
struct Child {
    out: UnixStream,
    err: UnixStream,
    control: UnixStream,
    /// Where evcxr listens to the child. Dropped when the child is gone, so that evcxr learns of
    /// it.
    to_evcxr: File,
    parser: Parser,
    running: Arc<Running>,
    sent_bytes: [usize; 2],
    /// Standard error from a panic's message on, for a moment: a panic that ends the cell is its
    /// error.
    panic_text: Option<PanicText>,
}

impl Child {
    fn new(
        pid: u32,
        connections: Vec<(String, UnixStream, i32)>,
        nonce: &str,
        running: Arc<Running>,
    ) -> Result<Self> {
        let mut by_name = HashMap::new();
        let mut real = -1;
        for (name, stream, fd) in connections {
            stream.set_nonblocking(true)?;
            real = real.max(fd);
            by_name.insert(name, stream);
        }
        let mut take =
            |name: &str| by_name.remove(name).with_context(|| format!("no connection for {name}"));
        let to_evcxr = File::options()
            .write(true)
            .open(format!("/proc/{pid}/fd/{real}"))
            .context("cannot reach evcxr's pipe")?;
        running.child_started(pid);
        Ok(Self {
            out: take("out")?,
            err: take("err")?,
            control: take("ctl")?,
            to_evcxr,
            parser: Parser::new(nonce),
            running,
            sent_bytes: [0; 2],
            panic_text: None,
        })
    }

    fn serve(mut self) {
        let mut pending = [Text::default(), Text::default()];
        loop {
            let timeout = if pending.iter().any(|text| !text.is_empty()) {
                GATHER
            } else if self.panic_text.is_some() {
                PanicText::MOST_TIME
            } else {
                Duration::from_secs(3600)
            };
            let ready = poll([&self.out, &self.err, &self.control], timeout);
            let before = Instant::now();
            if ready[1] {
                self.read_err(&mut pending[1]);
            }
            if ready[0] {
                self.read_out(&mut pending);
            }
            if self.panic_text.as_ref().is_some_and(|held| held.is_due(before)) {
                self.release_panic(&mut pending[1]);
            }
            for (index, text) in pending.iter_mut().enumerate() {
                if text.is_due(before) {
                    self.send_text(index, text);
                }
            }
            if ready[2] && !self.read_control() {
                // The child is gone. What it wrote before is still in the sockets.
                self.read_err(&mut pending[1]);
                self.read_out(&mut pending);
                for event in self.parser.rest() {
                    self.handle(event, &mut pending);
                }
                self.end_panic(&mut pending[1]);
                for (index, text) in pending.iter_mut().enumerate() {
                    self.send_text(index, text);
                }
                self.running.child_gone();
                return;
            }
        }
    }

    /// Whether the connection is still open.
    fn read_control(&self) -> bool {
        let mut buffer = [0; 256];
        match (&self.control).read(&mut buffer) {
            Ok(0) => false,
            Ok(n) => {
                // Words of one line each, far shorter than what a socket takes in one piece.
                for word in String::from_utf8_lossy(&buffer[..n]).lines() {
                    match word {
                        RUNS => self.running.code_starts(),
                        SEEN => self.running.acknowledge(),
                        _ => {}
                    }
                }
                true
            }
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }

    fn read_err(&mut self, pending: &mut Text) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(n) = self.err.read(&mut buffer) {
            if n == 0 {
                return;
            }
            self.running.note_stderr(&buffer[..n]);
            match &mut self.panic_text {
                Some(held) => held.bytes.extend_from_slice(&buffer[..n]),
                None => {
                    pending.push(&buffer[..n]);
                    if let Some(at) = panic_message(&pending.bytes) {
                        self.panic_text = Some(PanicText::new(pending.bytes.split_off(at)));
                    }
                }
            }
            if self.panic_text.as_ref().is_some_and(|held| held.is_due(Instant::now())) {
                self.release_panic(pending);
            }
            self.send_if_large(1, pending);
        }
    }

    fn read_out(&mut self, pending: &mut [Text; 2]) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(n) = self.out.read(&mut buffer) {
            if n == 0 {
                return;
            }
            for event in self.parser.parse(&buffer[..n]) {
                self.handle(event, pending);
            }
        }
    }

    /// The cell goes on behind the panic, so its message is text like any other.
    fn release_panic(&mut self, pending: &mut Text) {
        if let Some(held) = self.panic_text.take() {
            pending.push(&held.bytes);
            // At once, so that it is not taken for a new one.
            self.send_text(1, pending);
        }
    }

    /// At the end of a cell: its own panic is told by the error, all else is shown.
    fn end_panic(&mut self, pending: &mut Text) {
        match self.panic_text.take() {
            Some(held) if self.running.has_panicked() => {
                held.without_last().into_iter().for_each(|part| pending.push(part));
            }
            Some(held) => pending.push(&held.bytes),
            None => {}
        }
    }

    fn send_if_large(&mut self, index: usize, text: &mut Text) {
        if text.bytes.len() >= 256 * 1024 {
            self.send_text(index, text);
        }
    }

    fn handle(&mut self, event: Event, pending: &mut [Text; 2]) {
        if let Event::Text(bytes) = event {
            pending[0].push(&bytes);
            self.send_if_large(0, &mut pending[0]);
            return;
        }
        // What was printed before comes before.
        if matches!(event, Event::Frame(_) | Event::Block { .. }) {
            if event == Event::Frame(Ok(Frame::End)) {
                self.read_err(&mut pending[1]);
                self.end_panic(&mut pending[1]);
            }
            for (index, text) in pending.iter_mut().enumerate() {
                self.send_text(index, text);
            }
        }
        match event {
            Event::Text(_) => {}
            Event::Frame(Ok(frame)) => self.frame(frame),
            Event::Frame(Err(damaged)) => {
                let text =
                    format!("[kernel] something that the cell showed was dropped: {damaged}\n");
                eprint!("{text}");
                self.running.publish("stream", json!({"name": "stderr", "text": text}));
            }
            Event::Block { mime, content } => {
                // A library that knows evcxr (plotly, for one) shows something; a bare value of the
                // cell as well.
                let value = if mime.contains("json") {
                    serde_json::from_str(&content).unwrap_or(Value::from(content))
                } else {
                    content.into()
                };
                self.running.add_to_result(mime, value);
            }
        }
    }

    fn frame(&mut self, frame: Frame) {
        match frame {
            Frame::Message(message) => self.show(message),
            Frame::End => {
                self.sent_bytes = [0; 2];
                // What the child said before this frame comes first.
                self.read_control();
                self.running.code_ends();
                self.running.send_block_result();
                self.tell_evcxr("EVCXR_EXECUTION_COMPLETE");
            }
            Frame::Panic => {
                self.running.note_panic();
                self.tell_evcxr("EVCXR_PANIC_NOTIFICATION");
            }
            Frame::Error(text) => {
                self.running.note_error(&text);
                self.tell_evcxr("EVCXR_ERROR_OCCURRED");
            }
            Frame::Ask { prompt, password } => {
                // evcxr takes the word, and the executor the prompt.
                self.running.ask(prompt);
                let word = if password { "_PASSWORD" } else { "" };
                self.tell_evcxr(&format!("EVCXR_INPUT_REQUEST{word}:"));
            }
            Frame::Show | Frame::ShowText | Frame::Shown => {} // the parser's
            Frame::Kept(name) => self.running.note_kept(name),
            Frame::LeftOut(name) => {
                self.running.note_left_out(name);
                // evcxr drops the variables of the cell then.
                self.tell_evcxr("EVCXR_ERROR_OCCURRED");
            }
            Frame::Changed(name) => self.tell_evcxr(&format!("EVCXR_VARIABLE_CHANGED_TYPE:{name}")),
        }
    }

    fn show(&self, message: Message) {
        let output = |id, data, metadata| {
            let transient = json!({"display_id": Value::String(id)});
            json!({"data": Value::Object(data), "metadata": Value::Object(metadata), "transient": transient})
        };
        match message {
            Message::Display { id, data, metadata } => {
                self.running.publish("display_data", output(id, data, metadata))
            }
            Message::Update { id, data, metadata } => {
                self.running.publish("update_display_data", output(id, data, metadata))
            }
            Message::Result { data, metadata } => {
                self.running.publish_result(Value::Object(data), Value::Object(metadata))
            }
            Message::Clear { wait } => self.running.publish("clear_output", json!({"wait": wait})),
        }
    }

    fn tell_evcxr(&mut self, line: &str) {
        // evcxr closes its end only when it gives the child up.
        let _ = writeln!(self.to_evcxr, "{line}");
    }

    fn send_text(&mut self, index: usize, text: &mut Text) {
        let Some(text) = text.take() else { return };
        let name = ["stdout", "stderr"][index];
        let sent = &mut self.sent_bytes[index];
        if *sent > MOST_TEXT_BYTES {
            return;
        }
        *sent += text.len();
        self.running.publish("stream", json!({"name": name, "text": text}));
        if *sent > MOST_TEXT_BYTES {
            let note = format!(
                "\n[the cell has written more than {} MB to {name}: the rest is not shown. Write it to a file.]\n",
                MOST_TEXT_BYTES / (1024 * 1024)
            );
            self.running.publish("stream", json!({"name": "stderr", "text": note}));
        }
    }
}

/// Standard error from a panic's message on.
struct PanicText {
    bytes: Vec<u8>,
    since: Instant,
}

impl PanicText {
    /// A cell that is not over so long after a panic has caught it, or unwinds slowly.
    const MOST_TIME: Duration = Duration::from_millis(250);
    /// No panic's message is longer.
    const MOST_BYTES: usize = 64 * 1024;

    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, since: Instant::now() }
    }

    /// Whether it has been held back long enough.
    fn is_due(&self, now: Instant) -> bool {
        now.duration_since(self.since) >= Self::MOST_TIME || self.bytes.len() > Self::MOST_BYTES
    }

    /// The text before and behind the last panic's message, which ends with the note that Rust
    /// writes behind the first one of a process.
    fn without_last(&self) -> [&[u8]; 2] {
        let mut start = 0;
        // Behind the newline and the first letter of the message found.
        while let Some(next) = self.bytes.get(start + 2..).and_then(panic_message) {
            start += 2 + next;
        }
        let message = &self.bytes[start..];
        let find =
            |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).position(|window| window == part);
        let end = find(message, b"\nnote: ")
            .and_then(|note| find(&message[note + 1..], b"\n").map(|end| note + 1 + end + 1));
        [&self.bytes[..start], &message[end.unwrap_or(message.len())..]]
    }
}

/// Where the first panic's message starts: `\nthread '<name>' (id) panicked at …`.
fn panic_message(bytes: &[u8]) -> Option<usize> {
    const BEGIN: &[u8] = b"thread '";
    const PANICKED: &[u8] = b" panicked at ";
    let mut line_start = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let has_panicked = line.windows(PANICKED.len()).any(|window| window == PANICKED);
        if line.starts_with(BEGIN) && has_panicked {
            // With the newline that Rust writes before it.
            return Some(line_start.max(1) - 1);
        }
        line_start += line.len();
    }
    None
}

/// Waits until one of the streams can be read.
fn poll(streams: [&UnixStream; 3], timeout: Duration) -> [bool; 3] {
    let mut fds = streams.map(|stream| libc::pollfd {
        fd: stream.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `fds` is an array of three, alive during the call.
    unsafe { libc::poll(fds.as_mut_ptr(), 3, timeout) };
    fds.map(|fd| fd.revents != 0)
}

#[cfg(test)]
mod tests {
    use jupyter_protocol::JupyterMessage;

    use super::*;

    #[test]
    fn a_panic_message_is_found() {
        assert_eq!(
            panic_message(b"before\n\nthread 'main' (3) panicked at src/lib.rs:1:1:\nno\n"),
            Some(7)
        );
        assert_eq!(panic_message(b"nobody panicked at all, thread 'x'"), None);
        assert_eq!(panic_message(b"a\nthread 'x' works\nnobody panicked at all\n"), None);
        assert_eq!(panic_message(b"thread 'x' (1) panicked at b.rs:1:1:\n"), Some(0));
    }

    #[test]
    fn of_a_cells_panic_only_its_message_is_left_out() {
        let text = |bytes: &[u8]| {
            let held = PanicText::new(bytes.to_vec());
            held.without_last().map(|part| String::from_utf8_lossy(part).into_owned())
        };
        let worker = "\nthread '<unnamed>' (7) panicked at cell/src/lib.rs:1:1:\nworker gave up\n\
                      note: run with `RUST_BACKTRACE=1`\nstep 0\nstep 1\n";
        let own = "\nthread 'main' (3) panicked at cell/src/lib.rs:9:1:\nthe end\n";
        assert_eq!(text(format!("{worker}{own}").as_bytes()), [worker, ""]);
        assert_eq!(text(own.as_bytes()), ["", ""]);
        let first = format!("{own}note: run with `RUST_BACKTRACE=1`\ndropped\n");
        assert_eq!(text(first.as_bytes()), ["", "dropped\n"]);
    }

    #[test]
    fn text_behind_a_caught_panic_waits_a_moment_only() {
        let mut held = PanicText::new(b"\nthread 'x' (1) panicked at a.rs:1:1:\nx\n".to_vec());
        assert!(!held.is_due(held.since));
        assert!(held.is_due(held.since + PanicText::MOST_TIME));
        held.bytes.resize(PanicText::MOST_BYTES + 1, b'x');
        assert!(held.is_due(held.since));
    }

    /// A child made of sockets, as [`accept`] makes one of a process.
    fn child() -> (Child, [UnixStream; 3], tokio::sync::mpsc::UnboundedReceiver<JupyterMessage>) {
        let pairs = [(); 3].map(|()| UnixStream::pair().unwrap());
        let (iopub, outputs) = tokio::sync::mpsc::unbounded_channel();
        let running = Arc::new(Running::new(iopub));
        let request = JupyterMessage::new(jupyter_protocol::ExecuteRequest::new("1".into()), None);
        running.begin(&request, 1, false);
        let [out, err, control] = pairs;
        for stream in [&out.0, &err.0, &control.0] {
            stream.set_nonblocking(true).unwrap();
        }
        let child = Child {
            out: out.0,
            err: err.0,
            control: control.0,
            to_evcxr: tempfile::tempfile().unwrap(),
            parser: Parser::new("n0nce"),
            running,
            sent_bytes: [0; 2],
            panic_text: None,
        };
        (child, [out.1, err.1, control.1], outputs)
    }

    /// The text of standard error that arrives within `time`.
    fn stderr(
        outputs: &mut tokio::sync::mpsc::UnboundedReceiver<JupyterMessage>,
        time: Duration,
    ) -> String {
        std::thread::sleep(time);
        let mut text = String::new();
        while let Ok(message) = outputs.try_recv() {
            let content = crate::server::message::content(&message);
            if content["name"] == "stderr" {
                text.push_str(content["text"].as_str().unwrap());
            }
        }
        text
    }

    const WORKER: &str =
        "\nthread '<unnamed>' (7) panicked at cell/src/lib.rs:1:1:\nworker gave up\n";

    #[test]
    fn standard_error_goes_on_after_a_caught_panic() {
        let (child, [_out, mut err, _control], mut outputs) = child();
        std::thread::spawn(move || child.serve());
        write!(err, "{WORKER}").unwrap();
        writeln!(err, "step 0").unwrap();
        assert_eq!(stderr(&mut outputs, Duration::from_secs(1)), format!("{WORKER}step 0\n"));
        writeln!(err, "step 1").unwrap();
        assert_eq!(stderr(&mut outputs, Duration::from_millis(500)), "step 1\n");
    }

    #[test]
    fn standard_error_is_cut_behind_a_panic_as_before_one() {
        let (child, [_out, mut err, _control], mut outputs) = child();
        std::thread::spawn(move || child.serve());
        write!(err, "{WORKER}").unwrap();
        let line = "x".repeat(1023) + "\n";
        for _ in 0..12 * 1024 {
            err.write_all(line.as_bytes()).unwrap();
        }
        let text = stderr(&mut outputs, Duration::from_secs(1));
        assert!(text.len() < MOST_TEXT_BYTES + 512 * 1024, "{}", text.len());
        assert!(text.contains("more than 8 MB to stderr"));
    }

    #[test]
    fn the_end_of_a_cell_that_panicked_shows_all_but_its_own_message() {
        let (child, [mut out, mut err, _control], mut outputs) = child();
        write!(err, "{WORKER}step 0\n\nthread 'main' (1) panicked at a.rs:1:1:\nthe end\n")
            .unwrap();
        out.write_all(&Frame::Panic.encode("n0nce")).unwrap();
        out.write_all(&Frame::End.encode("n0nce")).unwrap();
        std::thread::spawn(move || child.serve());
        assert_eq!(stderr(&mut outputs, Duration::from_secs(1)), format!("{WORKER}step 0\n"));
    }
}
