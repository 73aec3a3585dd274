//! Where outputs go. The place is found out once per process, from the environment:
//!
//! - [`Place::Channel`]: our kernel, which shows and replaces outputs while the cell runs
//!   ([`crate::channel`]).
//! - [`Place::Stock`]: a stock evcxr kernel, which shows one output per MIME type when the cell has
//!   ended, and passes printed text on line by line. Outputs are held back until they are final;
//!   progress becomes a line now and then.
//! - [`Place::Terminal`]: a person, or a log file, at the end of standard output and standard
//!   error.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::bundle::MimeBundle;
use crate::channel::{Frame, Message, NONCE_VAR};
use crate::files::Files;

/// Where outputs go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The display channel of our kernel.
    Channel {
        /// The nonce that marks our frames.
        nonce: String,
    },
    /// A stock evcxr kernel.
    Stock,
    /// A terminal or a file.
    Terminal {
        /// Whether standard error can redraw a line.
        interactive: bool,
    },
}

impl Place {
    /// The place that this process writes to.
    pub fn current() -> Self {
        if let Ok(nonce) = std::env::var(NONCE_VAR)
            && !nonce.is_empty()
        {
            return Place::Channel { nonce };
        }
        if std::env::var_os("EVCXR_IS_RUNTIME").is_some() {
            return Place::Stock;
        }
        Place::Terminal { interactive: io::stderr().is_terminal() }
    }
}

/// Writes outputs in the form that the place wants.
pub(crate) struct Sink {
    place: Place,
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    /// Whether the last text written to `out` did not end in a newline.
    mid_line: bool,
    /// Where outputs are kept, too.
    files: Option<Files>,
}

impl Sink {
    /// A sink for `place` that writes to `out` and `err`.
    pub(crate) fn new(
        place: Place,
        out: Box<dyn Write + Send>,
        err: Box<dyn Write + Send>,
    ) -> Self {
        Self { place, out, err, mid_line: false, files: None }
    }

    /// The place that the sink writes to.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Keeps outputs as files, too, from now on.
    pub(crate) fn keep(&mut self, files: Files) {
        self.files = Some(files);
    }

    /// Where outputs are kept, too.
    pub(crate) fn files(&mut self) -> Option<&mut Files> {
        self.files.as_mut()
    }

    /// Shows a new output. Nothing is reported back: an output that cannot be shown must not stop
    /// the work.
    pub(crate) fn display(&mut self, id: &str, bundle: &MimeBundle) {
        let message = Message::Display {
            id: id.into(),
            data: bundle.data.clone(),
            metadata: bundle.metadata.clone(),
        };
        self.show(message, bundle);
    }

    /// Replaces an output. On a stock kernel, where the last output of a MIME type wins, it is
    /// shown anew.
    pub(crate) fn update(&mut self, id: &str, bundle: &MimeBundle) {
        let message = Message::Update {
            id: id.into(),
            data: bundle.data.clone(),
            metadata: bundle.metadata.clone(),
        };
        self.show(message, bundle);
    }

    /// Shows the value of a cell's last expression.
    pub(crate) fn result(&mut self, bundle: &MimeBundle) {
        let message =
            Message::Result { data: bundle.data.clone(), metadata: bundle.metadata.clone() };
        self.show(message, bundle);
    }

    /// Removes the outputs shown so far, where that can be done.
    pub(crate) fn clear(&mut self, wait: bool) {
        self.frame(&Frame::Message(Message::Clear { wait }));
    }

    /// Writes a frame of the channel; nothing where there is none.
    pub(crate) fn frame(&mut self, frame: &Frame) {
        if let Place::Channel { nonce } = &self.place {
            let frame = frame.encode(nonce);
            self.write(&frame);
        }
    }

    /// Writes text, as it is.
    pub(crate) fn text(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let _ = self.out.write_all(text.as_bytes());
        self.mid_line = !text.ends_with('\n');
        // A stock kernel reads its control words line by line: an unfinished line that had been
        // flushed would swallow the next one. Left in the buffer, it waits for its newline.
        if self.place != Place::Stock {
            let _ = self.out.flush();
        }
    }

    /// Redraws the line of a bar (`last` ends it).
    pub(crate) fn bar_line(&mut self, line: &str, last: bool) {
        match self.place {
            Place::Terminal { interactive: true } => {
                let end = if last { "\n" } else { "" };
                let _ = write!(self.err, "\r\x1b[2K{line}{end}");
                let _ = self.err.flush();
            }
            Place::Terminal { interactive: false } => {
                let _ = writeln!(self.err, "{line}");
            }
            Place::Stock | Place::Channel { .. } => self.text(&format!("{line}\n")),
        }
    }

    fn show(&mut self, message: Message, bundle: &MimeBundle) {
        if let Some(files) = &mut self.files {
            let id = match &message {
                Message::Display { id, .. } | Message::Update { id, .. } => Some(id.as_str()),
                Message::Result { .. } | Message::Clear { .. } => None,
            };
            if let Err(error) = files.write(id, bundle) {
                let _ = writeln!(self.err, "note: an output is not kept: {error}");
            }
        }
        match &self.place {
            Place::Channel { nonce } => {
                let frame = Frame::Message(message).encode(nonce);
                self.write(&frame);
            }
            Place::Stock => {
                let mut block = String::new();
                if self.mid_line {
                    block.push('\n');
                    self.mid_line = false;
                }
                for (mime, value) in &bundle.data {
                    let content = match value {
                        serde_json::Value::String(text) => text.clone(),
                        value => value.to_string(),
                    };
                    // A line of the content that equals a control word would end the block early.
                    let content = content.replace("EVCXR_", "EVCXR\u{200b}_");
                    block.push_str(&format!(
                        "EVCXR_BEGIN_CONTENT {mime}\n{content}\nEVCXR_END_CONTENT\n"
                    ));
                }
                self.write(block.as_bytes());
            }
            Place::Terminal { .. } => {
                let text = bundle.plain();
                if !text.is_empty() {
                    self.text(&format!("{text}\n"));
                }
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        let _ = self.out.write_all(bytes);
        let _ = self.out.flush();
    }
}

/// The process's sink.
pub(crate) fn sink() -> MutexGuard<'static, Sink> {
    static SINK: OnceLock<Mutex<Sink>> = OnceLock::new();
    SINK.get_or_init(|| {
        Mutex::new(Sink::new(Place::current(), Box::new(io::stdout()), Box::new(io::stderr())))
    })
    .lock()
    .unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;

    /// A writer whose content the test can read.
    #[derive(Clone, Default)]
    pub(crate) struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Shared {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("no panic while writing").clone())
                .expect("UTF-8")
        }
    }

    impl Write for Shared {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic while writing").extend_from_slice(buf);
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    pub(crate) fn captured(place: Place) -> (Sink, Shared, Shared) {
        let (out, err) = (Shared::default(), Shared::default());
        (Sink::new(place, Box::new(out.clone()), Box::new(err.clone())), out, err)
    }

    #[test]
    fn a_stock_kernel_gets_one_block_per_mime_type() {
        let (mut sink, out, _) = captured(Place::Stock);
        sink.display("x", &MimeBundle::text("plain").html("<b>rich</b>"));
        assert_eq!(
            out.text(),
            "EVCXR_BEGIN_CONTENT text/plain\nplain\nEVCXR_END_CONTENT\n\
             EVCXR_BEGIN_CONTENT text/html\n<b>rich</b>\nEVCXR_END_CONTENT\n"
        );
    }

    #[test]
    fn a_block_starts_on_its_own_line_and_cannot_be_ended_by_its_content() {
        let (mut sink, out, _) = captured(Place::Stock);
        sink.text("unfinished");
        sink.display("x", &MimeBundle::text("EVCXR_END_CONTENT\nEVCXR_PANIC_NOTIFICATION"));
        let text = out.text();
        assert!(text.starts_with("unfinished\nEVCXR_BEGIN_CONTENT text/plain\n"), "{text}");
        assert_eq!(text.lines().filter(|l| *l == "EVCXR_END_CONTENT").count(), 1);
        assert!(!text.lines().any(|l| l == "EVCXR_PANIC_NOTIFICATION"));
    }

    #[test]
    fn the_channel_gets_a_frame_with_the_nonce() {
        let (mut sink, out, _) = captured(Place::Channel { nonce: "abc".into() });
        sink.update("chart-1", &MimeBundle::text("now"));
        assert_eq!(
            out.text(),
            "\u{1e}abc{\"op\":\"update\",\"id\":\"chart-1\",\"data\":{\"text/plain\":\"now\"}}\n"
        );
        sink.clear(true);
        assert!(out.text().ends_with("\u{1e}abc{\"op\":\"clear\",\"wait\":true}\n"));
    }

    #[test]
    fn a_terminal_gets_the_plain_text() {
        let (mut sink, out, err) = captured(Place::Terminal { interactive: false });
        sink.result(&MimeBundle::text("plain").html("<b>rich</b>"));
        assert_eq!(out.text(), "plain\n");
        assert_eq!(err.text(), "");
    }

    #[test]
    fn an_interactive_terminal_redraws_its_line() {
        let (mut sink, out, err) = captured(Place::Terminal { interactive: true });
        sink.bar_line("1/2", false);
        sink.bar_line("2/2", true);
        assert_eq!(err.text(), "\r\u{1b}[2K1/2\r\u{1b}[2K2/2\n");
        assert_eq!(out.text(), "");
    }
}
