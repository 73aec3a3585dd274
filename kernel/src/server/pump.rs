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
    /// Standard error from a panic's message on, until the cell ends: a panic that ends the cell is
    /// its error.
    panic_text: Option<Vec<u8>>,
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
                self.release_panic(&mut pending[1]);
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
                Some(text) => text.extend_from_slice(&buffer[..n]),
                None => pending.push(&buffer[..n]),
            }
            if let Some(at) = panic_message(&pending.bytes) {
                self.panic_text = Some(pending.bytes.split_off(at));
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

    /// At the end of a cell: its panic is told by the error; the message of one that was caught is
    /// text like any other.
    fn release_panic(&mut self, pending: &mut Text) {
        if let Some(text) = self.panic_text.take()
            && !self.running.has_panicked()
        {
            pending.push(&text);
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
        if matches!(event, Event::Frame(_) | Event::Block { .. } | Event::Input(_)) {
            if event == Event::Frame(Ok(Frame::End)) {
                self.read_err(&mut pending[1]);
                self.release_panic(&mut pending[1]);
            }
            for (index, text) in pending.iter_mut().enumerate() {
                self.send_text(index, text);
            }
        }
        match event {
            Event::Text(_) => {}
            Event::Frame(Ok(frame)) => self.frame(frame),
            Event::Frame(Err(damaged)) => eprintln!("{damaged}"),
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
            Event::Input(line) => self.tell_evcxr(&line),
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

/// Where a panic's message starts: `\nthread '<name>' (id) panicked at …`.
fn panic_message(bytes: &[u8]) -> Option<usize> {
    let find = |part: &[u8]| bytes.windows(part.len()).position(|window| window == part);
    find(b" panicked at ")?;
    find(b"\nthread '").or_else(|| bytes.starts_with(b"thread '").then_some(0))
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
    use super::*;

    #[test]
    fn a_panic_message_is_found() {
        assert_eq!(
            panic_message(b"before\n\nthread 'main' (3) panicked at src/lib.rs:1:1:\nno\n"),
            Some(7)
        );
        assert_eq!(panic_message(b"nobody panicked at all, thread 'x'"), None);
    }
}
