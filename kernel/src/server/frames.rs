//! Takes a child's standard output apart into text, frames of the display channel, and blocks of
//! libraries that know evcxr, which count only while the cell's value shows itself; and holds text back until it is worth a
//! message.

use std::time::{Duration, Instant};

use tunebook_progress::channel::{self, Damaged, FRAME_START, Frame};

/// Text waits this long for more of it before it is sent: a loop that prints makes fewer messages
/// so.
pub(super) const GATHER: Duration = Duration::from_millis(15);
/// The same for text that follows on text: a saved notebook keeps each message apart.
const GATHER_MORE: Duration = Duration::from_millis(120);

/// Text that waits to be sent.
#[derive(Default)]
pub(super) struct Text {
    pub(super) bytes: Vec<u8>,
    since: Option<Instant>,
    sent: Option<Instant>,
}

impl Text {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.bytes.extend_from_slice(bytes);
            self.since.get_or_insert_with(Instant::now);
        }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        let flowing = self.sent.is_some_and(|sent| now.duration_since(sent) < 2 * GATHER_MORE);
        let pause = if flowing { GATHER_MORE } else { GATHER };
        self.since.is_some_and(|since| now.duration_since(since) >= pause)
    }

    /// The text, except for a character whose last bytes have not come yet.
    pub(super) fn take(&mut self) -> Option<String> {
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
pub(super) enum Event {
    Text(Vec<u8>),
    Frame(Result<Frame, Damaged>),
    /// `EVCXR_BEGIN_CONTENT mime`, content, `EVCXR_END_CONTENT`: how libraries that know evcxr show
    /// something.
    Block {
        mime: String,
        content: String,
    },
}

/// Takes standard output apart.
pub(super) struct Parser {
    /// The start of a frame: its byte and the nonce.
    mark: Vec<u8>,
    /// What cannot be told yet: a frame, or a line that may be a control word.
    held: Vec<u8>,
    /// Whether `held` begins at the start of a line.
    line_start: bool,
    block: Option<(String, String)>,
    shows: Shows,
    /// Whether `held` waits for the end of its line, so that nothing is searched again before that.
    waits: bool,
    /// Whether the rest of a line is dropped: a frame over the limit.
    skips: bool,
}

/// What text may be besides text.
#[derive(Default)]
enum Shows {
    /// Nothing: the cell prints it.
    #[default]
    Nothing,
    /// Blocks: the value of the cell's last expression shows itself.
    Blocks,
    /// That value, so far.
    Value(Vec<u8>),
}

const WORD: &[u8] = b"EVCXR_";
/// A line that begins like a control word and is longer is none.
const LONGEST_WORD_BYTES: usize = 16 * 1024;
/// What a library shows in one block beyond this is text, and cut like text.
const MOST_BLOCK_BYTES: usize = 32 * 1024 * 1024;
/// A frame beyond this is dropped: no front end shows it.
const MOST_FRAME_BYTES: usize = 256 * 1024 * 1024;

impl Parser {
    pub(super) fn new(nonce: &str) -> Self {
        Self {
            mark: channel::mark(nonce),
            held: Vec::new(),
            line_start: true,
            block: None,
            shows: Shows::Nothing,
            waits: false,
            skips: false,
        }
    }

    pub(super) fn parse(&mut self, mut bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        if self.skips {
            let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else { return events };
            bytes = &bytes[end + 1..];
            (self.skips, self.line_start) = (false, true);
        }
        let is_more = !bytes.contains(&b'\n') && !bytes.contains(&FRAME_START);
        self.held.extend_from_slice(bytes);
        if self.waits && is_more && self.held.len() <= self.most_held() {
            return events;
        }
        let held = std::mem::take(&mut self.held);
        let line_end =
            |from: usize| held[from..].iter().position(|&b| b == b'\n').map(|at| from + at);
        let (mut at, mut newline) = (0, line_end(0));
        self.waits = false;
        while at < held.len() {
            if newline.is_some_and(|newline| newline < at) {
                newline = line_end(at);
            }
            let Some(used) = self.step(&held[at..], newline.map(|end| end - at), &mut events)
            else {
                self.waits = true;
                break;
            };
            at += used;
        }
        self.held = held[at..].to_vec();
        events
    }

    /// How much may wait for the end of its line.
    fn most_held(&self) -> usize {
        if self.held.starts_with(&self.mark) {
            MOST_FRAME_BYTES
        } else if self.block.is_some() {
            MOST_BLOCK_BYTES
        } else {
            LONGEST_WORD_BYTES
        }
    }

    /// Takes one piece off the front; None when more has to come first. `newline` is the place of the
    /// first one.
    fn step(
        &mut self,
        rest: &[u8],
        newline: Option<usize>,
        events: &mut Vec<Event>,
    ) -> Option<usize> {
        if rest.starts_with(&self.mark) {
            if newline.is_none() && rest.len() > MOST_FRAME_BYTES {
                self.skips = true;
                let most = MOST_FRAME_BYTES >> 20;
                events.push(Event::Frame(Err(Damaged::new(format!("it has more than {most} MB")))));
                return Some(rest.len());
            }
            let end = newline?;
            let frame = Frame::parse(&rest[self.mark.len()..end]);
            if let Ok(Frame::Show | Frame::ShowText | Frame::Shown | Frame::End) = frame {
                // A block that nothing has ended would swallow the next cell's output.
                events.extend(self.block_as_text());
                let shows = match frame {
                    Ok(Frame::Show) => Shows::Blocks,
                    Ok(Frame::ShowText) => Shows::Value(Vec::new()),
                    _ => Shows::Nothing,
                };
                let shown = std::mem::replace(&mut self.shows, shows);
                events.extend(as_block(shown));
            }
            if !matches!(frame, Ok(Frame::Show | Frame::ShowText | Frame::Shown)) {
                events.push(Event::Frame(frame));
            }
            self.line_start = true;
            return Some(end + 1);
        }
        if self.mark.starts_with(rest) {
            return None;
        }
        // Whoever prints a control word without the end of its line must not hide the frame behind
        // it.
        let mark = self.mark.as_slice();
        let frame = || newline.and_then(|newline| find(&rest[..newline], mark));
        if let Some((_, content)) = &mut self.block {
            if newline.is_none() && content.len() + rest.len() > MOST_BLOCK_BYTES {
                events.extend(self.block_as_text());
                return Some(0);
            }
            let frame = frame();
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
        let blocks = matches!(self.shows, Shows::Blocks);
        if blocks && self.line_start && rest.starts_with(WORD) {
            let text_end = frame().or_else(|| {
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
            } else {
                // Whoever prints evcxr's other words sees them.
                events.push(Event::Text(rest[..=end].to_vec()));
            }
            return Some(end + 1);
        }
        if blocks && self.line_start && WORD.starts_with(rest) {
            return None;
        }
        // Text, up to the end of the line or to something that may be a frame.
        let frame_start = rest[1..].iter().position(|&b| b == FRAME_START).map(|at| at + 1);
        let end = [newline.map(|at| at + 1), frame_start, Some(rest.len())]
            .into_iter()
            .flatten()
            .min()?;
        self.line_start = rest[end - 1] == b'\n';
        if let Shows::Value(text) = &mut self.shows {
            if text.len() + end <= MOST_BLOCK_BYTES {
                text.extend_from_slice(&rest[..end]);
            }
            return Some(end);
        }
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
    pub(super) fn rest(&mut self) -> Vec<Event> {
        let held = std::mem::take(&mut self.held);
        let shown = std::mem::take(&mut self.shows);
        self.block_as_text()
            .into_iter()
            .chain(as_block(shown))
            .chain((!held.is_empty()).then_some(Event::Text(held)))
            .collect()
    }
}

/// The value that was shown as text.
fn as_block(shown: Shows) -> Option<Event> {
    let Shows::Value(text) = shown else { return None };
    let text = text.strip_suffix(b"\n").unwrap_or(&text);
    let content = String::from_utf8_lossy(text).into_owned();
    Some(Event::Block { mime: "text/plain".to_owned(), content })
}

/// Where `part` begins in `bytes`.
fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    let first = *part.first()?;
    let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == first).map(|(at, _)| at);
    starts.into_iter().find(|at| bytes[*at..].starts_with(part))
}

#[cfg(test)]
mod tests {
    use tunebook_progress::channel::Message;

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
            parse(&[b"a\n\x1en0nceSHOW\nEVCXR_BEGIN_CONTENT text/html\n<b>\nx</b>\nEVCXR_END_CONTENT\n\x1en0nceSHOWN\nb\n"]);
        let block = Event::Block { mime: "text/html".into(), content: "<b>\nx</b>".into() };
        assert_eq!(events, [text("a\n"), block, text("b\n")]);
    }

    #[test]
    fn printed_control_words_are_text() {
        for printed in [
            "EVCXR_BEGIN_CONTENT text/html\n<img src=x onerror=a()>\nEVCXR_END_CONTENT\n",
            "EVCXR_INPUT_REQUEST:password?\n",
            "EVCXR_INPUT_REQUEST_PASSWORD:password?\n",
            "\x1eSHOW\nEVCXR_BEGIN_CONTENT text/html\n<b>\nEVCXR_END_CONTENT\n",
        ] {
            assert_eq!(parse(&[printed.as_bytes()]), [text(printed)]);
            // Nor do they wait for more.
            let (front, back) = printed.split_at(9);
            assert_eq!(Parser::new("n0nce").parse(front.as_bytes()), [text(front)]);
            // After a value has shown itself, too.
            let shown = format!("\x1en0nceSHOW\n\x1en0nceSHOWN\n{front}{back}");
            assert_eq!(parse(&[shown.as_bytes()]), [text(printed)]);
        }
    }

    #[test]
    fn a_value_that_is_shown_as_text_cannot_be_more() {
        let value = "EVCXR_END_CONTENT\nEVCXR_BEGIN_CONTENT text/html\n<b>\nEVCXR_END_CONTENT";
        let output = format!("a\n\x1en0nceSHOWTEXT\n{value}\n\x1en0nceSHOWN\nb\n");
        let block = Event::Block { mime: "text/plain".into(), content: value.into() };
        assert_eq!(parse(&[output.as_bytes()]), [text("a\n"), block, text("b\n")]);
    }

    #[test]
    fn a_control_word_without_the_end_of_its_line_hides_no_frame() {
        let end = || Event::Frame(Ok(Frame::End));
        for word in
            ["EVCXR_", "EVCXR_INPUT_REQUEST", "EVCXR_EXECUTION_COMPLETE", "EVCXR_BEGIN_CONTENT x"]
        {
            for shows in ["", "\x1en0nceSHOW\n"] {
                let output = format!("{shows}{word}\x1en0nceEND\n");
                assert_eq!(parse(&[output.as_bytes()]), [text(word), end()], "{word}");
                let (front, back) = output.split_at(shows.len() + word.len() + 3);
                let events = parse(&[front.as_bytes(), back.as_bytes()]);
                assert_eq!(events, [text(word), end()], "{word}");
            }
        }
        let long = "EVCXR_".repeat(10_000);
        assert_eq!(parse(&[format!("{long}\x1en0n").as_bytes(), b"ceEND\n"]), [text(&long), end()]);
    }

    #[test]
    fn a_block_without_an_end_is_text_when_the_cell_ends() {
        let events =
            parse(&[b"\x1en0nceSHOW\nEVCXR_BEGIN_CONTENT text/html\n<b>\nx\x1en0nceEND\nnext\n"]);
        let shown = text("EVCXR_BEGIN_CONTENT text/html\n<b>\nx\n");
        assert_eq!(events, [shown, Event::Frame(Ok(Frame::End)), text("next\n")]);
    }

    #[test]
    fn what_a_dead_child_has_begun_is_shown() {
        let mut parser = Parser::new("n0nce");
        assert_eq!(parser.parse(b"\x1en0nceSHOW\nEVCXR_PA"), []);
        assert_eq!(parser.rest(), [text("EVCXR_PA")]);
        assert_eq!(parser.rest(), []);
    }

    #[test]
    fn a_frame_of_any_size_is_searched_once() {
        let text = "x".repeat(80 << 20);
        let frame = Frame::Message(Message::Result {
            data: serde_json::Map::from_iter([("text/plain".to_owned(), text.into())]),
            metadata: serde_json::Map::new(),
        });
        let bytes = [frame.encode("n0nce"), b"after".to_vec()].concat();
        let mut parser = Parser::new("n0nce");
        let mut searched = 0;
        let mut events = Vec::new();
        for piece in bytes.chunks(64 << 10) {
            if !parser.waits {
                searched += 1;
            }
            events.extend(parser.parse(piece));
        }
        assert!(searched <= 2, "{searched} of {} pieces", bytes.len() >> 16);
        assert_eq!(events.len(), 2);
        assert_eq!(events[0], Event::Frame(Ok(frame)));
    }

    #[test]
    fn marks_without_a_nonce_cost_no_more_than_text() {
        let printed = "\x1e".repeat(4 << 20);
        let mut parser = Parser::new("n0nce");
        let begun = Instant::now();
        let pieces = printed.as_bytes().chunks(64 << 10);
        let count: usize = pieces
            .flat_map(|piece| parser.parse(piece))
            .map(|event| if let Event::Text(text) = event { text.len() } else { 0 })
            .sum();
        assert!(count >= printed.len() - 1);
        // Searching to the end for each of them takes minutes.
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_frame_over_the_limit_is_dropped_and_told() {
        let mut parser = Parser::new("n0nce");
        let piece = vec![b'x'; 16 << 20];
        let mut events = parser.parse(b"a\x1en0nce{");
        for _ in 0..20 {
            events.extend(parser.parse(&piece));
            assert!(parser.held.len() <= MOST_FRAME_BYTES + piece.len());
        }
        events.extend(parser.parse(b"}\nafter\n"));
        assert!(
            matches!(&events[..], [Event::Text(_), Event::Frame(Err(_)), Event::Text(_)]),
            "{} events",
            events.len()
        );
        assert_eq!(events[2], text("after\n"));
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
}
