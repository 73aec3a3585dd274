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
use serde_json::{Map, Value, json};
use tunebook_progress::channel::{self, Damaged, FRAME_START, Frame, Message};

use super::running::Running;
use crate::child::{RUNS, SEEN};

/// Text of one stream and cell beyond this is dropped, with a note: a notebook of 50 MB cannot be
/// opened any more.
const MOST_TEXT_BYTES: usize = 8 * 1024 * 1024;
/// Text waits this long for more of it before it is sent: a loop that prints makes fewer messages
/// so.
const GATHER: Duration = Duration::from_millis(15);
/// The same for text that follows on text: a saved notebook keeps each message apart.
const GATHER_MORE: Duration = Duration::from_millis(120);

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

/// Text that waits to be sent.
#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    since: Option<Instant>,
    sent: Option<Instant>,
}

impl Text {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn push(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.bytes.extend_from_slice(bytes);
            self.since.get_or_insert_with(Instant::now);
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let flowing = self.sent.is_some_and(|sent| now.duration_since(sent) < 2 * GATHER_MORE);
        let pause = if flowing { GATHER_MORE } else { GATHER };
        self.since.is_some_and(|since| now.duration_since(since) >= pause)
    }

    /// The text, except for a character whose last bytes have not come yet.
    fn take(&mut self) -> Option<String> {
        let whole = match std::str::from_utf8(&self.bytes) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.bytes.len(),
        };
        let rest = self.bytes.split_off(whole);
        let bytes = std::mem::replace(&mut self.bytes, rest);
        self.since = if self.bytes.is_empty() { None } else { Some(Instant::now()) };
        if !bytes.is_empty() {
            self.sent = Some(Instant::now());
        }
        (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Something that a child wrote to its standard output.
#[derive(Debug, PartialEq)]
enum Event {
    Text(Vec<u8>),
    Frame(Result<Frame, Damaged>),
    /// `EVCXR_BEGIN_CONTENT mime`, content, `EVCXR_END_CONTENT`: how libraries that know evcxr show
    /// something.
    Block {
        mime: String,
        content: String,
    },
    /// A line by which `evcxr_input` asks for input.
    Input(String),
}

/// Takes standard output apart.
struct Parser {
    /// The start of a frame: its byte and the nonce.
    mark: Vec<u8>,
    /// What cannot be told yet: a frame, or a line that may be a control word.
    held: Vec<u8>,
    /// Whether `held` begins at the start of a line.
    line_start: bool,
    block: Option<(String, String)>,
}

const WORD: &[u8] = b"EVCXR_";
/// A line that begins like a control word and is longer is none.
const LONGEST_WORD_BYTES: usize = 16 * 1024;
/// What a library shows in one block beyond this is text, and cut like text.
const MOST_BLOCK_BYTES: usize = 32 * 1024 * 1024;

impl Parser {
    fn new(nonce: &str) -> Self {
        Self { mark: channel::mark(nonce), held: Vec::new(), line_start: true, block: None }
    }

    fn parse(&mut self, bytes: &[u8]) -> Vec<Event> {
        self.held.extend_from_slice(bytes);
        let mut events = Vec::new();
        let held = std::mem::take(&mut self.held);
        let mut rest = &held[..];
        while !rest.is_empty() {
            let Some(used) = self.step(rest, &mut events) else { break };
            rest = &rest[used..];
        }
        self.held = rest.to_vec();
        events
    }

    /// Takes one piece off the front; None when more has to come first.
    fn step(&mut self, rest: &[u8], events: &mut Vec<Event>) -> Option<usize> {
        let newline = rest.iter().position(|&b| b == b'\n');
        if rest.starts_with(&self.mark) {
            let end = newline?;
            let frame = Frame::parse(&rest[self.mark.len()..end]);
            if frame == Ok(Frame::End) {
                // A block that nothing has ended would swallow the next cell's output.
                events.extend(self.block_as_text());
            }
            events.push(Event::Frame(frame));
            self.line_start = true;
            return Some(end + 1);
        }
        if self.mark.starts_with(rest) {
            return None;
        }
        // Whoever prints a control word without the end of its line must not hide the frame behind
        // it.
        let frame = newline.and_then(|newline| find(&rest[..newline], &self.mark));
        if let Some((_, content)) = &mut self.block {
            if newline.is_none() && content.len() + rest.len() > MOST_BLOCK_BYTES {
                events.extend(self.block_as_text());
                return Some(0);
            }
            let end = frame.or(newline)?;
            let line = String::from_utf8_lossy(&rest[..end]);
            if line == "EVCXR_END_CONTENT" {
                if let Some((mime, content)) = self.block.take() {
                    events.push(Event::Block { mime, content });
                }
            } else {
                if !content.is_empty() {
                    content.push('\n');
                }
                content.push_str(&line);
                if content.len() > MOST_BLOCK_BYTES {
                    events.extend(self.block_as_text());
                }
            }
            return Some(if frame.is_some() { end } else { end + 1 });
        }
        if self.line_start && rest.starts_with(WORD) {
            let text_end = frame.or_else(|| {
                let start = rest.iter().position(|&b| b == FRAME_START).unwrap_or(rest.len());
                (start > LONGEST_WORD_BYTES).then_some(start)
            });
            if let Some(end) = text_end
                && newline.is_none_or(|newline| end < newline)
            {
                events.push(Event::Text(rest[..end].to_vec()));
                self.line_start = false;
                return Some(end);
            }
            let end = newline?;
            let line = String::from_utf8_lossy(&rest[..end]).into_owned();
            if let Some(mime) = line.strip_prefix("EVCXR_BEGIN_CONTENT ") {
                self.block = Some((mime.to_owned(), String::new()));
            } else if line.starts_with("EVCXR_INPUT_REQUEST") {
                events.push(Event::Input(line));
            } else {
                // Whoever prints evcxr's other words sees them.
                events.push(Event::Text(rest[..=end].to_vec()));
            }
            return Some(end + 1);
        }
        if self.line_start && WORD.starts_with(rest) {
            return None;
        }
        // Text, up to the end of the line or to something that may be a frame.
        let frame_start = rest[1..].iter().position(|&b| b == FRAME_START).map(|at| at + 1);
        let end = [newline.map(|at| at + 1), frame_start, Some(rest.len())]
            .into_iter()
            .flatten()
            .min()?;
        self.line_start = rest[end - 1] == b'\n';
        match events.last_mut() {
            Some(Event::Text(text)) => text.extend_from_slice(&rest[..end]),
            _ => events.push(Event::Text(rest[..end].to_vec())),
        }
        Some(end)
    }

    /// A block that was begun, as the text that it is.
    fn block_as_text(&mut self) -> Option<Event> {
        let (mime, content) = self.block.take()?;
        self.line_start = true;
        Some(Event::Text(format!("EVCXR_BEGIN_CONTENT {mime}\n{content}\n").into_bytes()))
    }

    /// All that is held back, when nothing more can come.
    fn rest(&mut self) -> Vec<Event> {
        let held = std::mem::take(&mut self.held);
        self.block_as_text()
            .into_iter()
            .chain((!held.is_empty()).then_some(Event::Text(held)))
            .collect()
    }
}

/// Where `part` begins in `bytes`.
fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    let first = *part.first()?;
    let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == first).map(|(at, _)| at);
    starts.into_iter().find(|at| bytes[*at..].starts_with(part))
}

/// Data of a result by MIME type.
pub(crate) type Data = Map<String, Value>;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pieces: &[&[u8]]) -> Vec<Event> {
        let mut parser = Parser::new("n0nce");
        let mut events = Vec::new();
        for piece in pieces {
            for event in parser.parse(piece) {
                match (events.last_mut(), event) {
                    (Some(Event::Text(text)), Event::Text(more)) => text.extend_from_slice(&more),
                    (_, event) => events.push(event),
                }
            }
        }
        events
    }

    fn text(text: &str) -> Event {
        Event::Text(text.as_bytes().to_vec())
    }

    #[test]
    fn partial_lines_and_carriage_returns_pass_as_they_come() {
        assert_eq!(parse(&[b"step 1", b"\rstep 2", b"\n"]), [text("step 1\rstep 2\n")]);
    }

    #[test]
    fn a_frame_is_found_in_the_middle_of_a_line_and_across_reads() {
        let frame = Frame::Message(Message::Clear { wait: true });
        let mut bytes = [b"abc", frame.encode("n0nce").as_slice(), b"def"].concat();
        let rest = bytes.split_off(7);
        assert_eq!(parse(&[&bytes, &rest]), [text("abc"), Event::Frame(Ok(frame)), text("def")]);
    }

    #[test]
    fn a_damaged_frame_is_no_text() {
        let events = parse(&[b"abc\x1en0nce{\"op\":1}\ndef"]);
        assert!(
            matches!(&events[..], [Event::Text(_), Event::Frame(Err(_)), Event::Text(_)]),
            "{events:?}"
        );
    }

    #[test]
    fn what_lacks_the_nonce_is_text() {
        assert_eq!(parse(&[b"\x1eother{}\n"]), [text("\x1eother{}\n")]);
        let words = b"EVCXR_PANIC_NOTIFICATION\nEVCXR_EXECUTION_COMPLETE\n";
        assert_eq!(parse(&[words]), [Event::Text(words.to_vec())]);
    }

    #[test]
    fn blocks_of_libraries_become_displays() {
        let events =
            parse(&[b"a\nEVCXR_BEGIN_CONTENT text/html\n<b>\nx</b>\nEVCXR_END_CONTENT\nb\n"]);
        let block = Event::Block { mime: "text/html".into(), content: "<b>\nx</b>".into() };
        assert_eq!(events, [text("a\n"), block, text("b\n")]);
    }

    #[test]
    fn a_control_word_without_the_end_of_its_line_hides_no_frame() {
        let end = || Event::Frame(Ok(Frame::End));
        for word in
            ["EVCXR_", "EVCXR_INPUT_REQUEST", "EVCXR_EXECUTION_COMPLETE", "EVCXR_BEGIN_CONTENT x"]
        {
            let output = format!("{word}\x1en0nceEND\n");
            assert_eq!(parse(&[output.as_bytes()]), [text(word), end()], "{word}");
            let (front, back) = output.split_at(word.len() + 3);
            assert_eq!(parse(&[front.as_bytes(), back.as_bytes()]), [text(word), end()], "{word}");
        }
        let long = "EVCXR_".repeat(10_000);
        assert_eq!(parse(&[format!("{long}\x1en0n").as_bytes(), b"ceEND\n"]), [text(&long), end()]);
    }

    #[test]
    fn a_block_without_an_end_is_text_when_the_cell_ends() {
        let events = parse(&[b"EVCXR_BEGIN_CONTENT text/html\n<b>\nx\x1en0nceEND\nnext\n"]);
        let shown = text("EVCXR_BEGIN_CONTENT text/html\n<b>\nx\n");
        assert_eq!(events, [shown, Event::Frame(Ok(Frame::End)), text("next\n")]);
    }

    #[test]
    fn what_a_dead_child_has_begun_is_shown() {
        let mut parser = Parser::new("n0nce");
        assert_eq!(parser.parse(b"EVCXR_PA"), []);
        assert_eq!(parser.rest(), [text("EVCXR_PA")]);
        assert_eq!(parser.rest(), []);
    }

    #[test]
    fn half_a_character_waits_for_the_other_half() {
        let mut text = Text::default();
        let bytes = "é".as_bytes();
        text.push(&bytes[..1]);
        assert_eq!(text.take(), None);
        text.push(&bytes[1..]);
        assert_eq!(text.take().as_deref(), Some("é"));
        text.push(&[0xff, b'a']);
        assert_eq!(text.take().as_deref(), Some("\u{fffd}a"));
    }

    #[test]
    fn a_panic_message_is_found() {
        assert_eq!(
            panic_message(b"before\n\nthread 'main' (3) panicked at src/lib.rs:1:1:\nno\n"),
            Some(7)
        );
        assert_eq!(panic_message(b"nobody panicked at all, thread 'x'"), None);
    }
}
