//! The display channel: the frames in which a cell's process tells our kernel's server what to show
//! and how the cell went.
//!
//! Frames travel in-band on standard output, so that they keep their place among the text that the
//! cell prints. A frame is the byte `0x1e`, a nonce that the kernel drew for this process and put
//! into the environment variable [`NONCE_VAR`], the content, and a newline. Printed text cannot be
//! taken for a frame, as it lacks the nonce. The content is one of:
//!
//! ```text
//! {"op":…}        a [`Message`] as JSON, which escapes every control character
//! END             the cell's code is over, and everything it printed came before
//! PANIC           the cell has panicked
//! ERROR<text>     a `?` has left the cell with this error ([`escape`]d)
//! SHOW            the value of the last expression shows itself from here on: a library that knows
//!                 evcxr prints blocks. SHOWTEXT: what follows is its text. SHOWN ends both
//! ASK:<prompt>    a question to the user ([`escape`]d); `ASKPASSWORD:` for a secret
//! CHANGED<name>   the type of this variable was defined anew, so its value is lost
//! KEPT<name>      the cell has failed before it gave this variable a new value: the old one is kept
//! LEFTOUT<name>   the cell has ended (a `return`, an error) before it stored this variable
//! ```
//!
//! Both ends use this module: this crate and the prelude write, the kernel writes and reads.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The environment variable that holds the nonce. Only our kernel sets it.
pub const NONCE_VAR: &str = "TUNEBOOK_DISPLAY_NONCE";

/// The byte that opens a frame (ASCII "record separator").
pub const FRAME_START: u8 = 0x1e;

/// What a cell can ask the kernel to show.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Message {
    /// A new output below the cell, which `Update` can replace by its id.
    Display {
        /// The display id.
        id: String,
        /// The forms by MIME type.
        data: Map<String, Value>,
        /// Jupyter's metadata by MIME type.
        #[serde(default, skip_serializing_if = "Map::is_empty")]
        metadata: Map<String, Value>,
    },
    /// Replaces the output with this id.
    Update {
        /// The display id.
        id: String,
        /// The forms by MIME type.
        data: Map<String, Value>,
        /// Jupyter's metadata by MIME type.
        #[serde(default, skip_serializing_if = "Map::is_empty")]
        metadata: Map<String, Value>,
    },
    /// The value of the cell's last expression.
    Result {
        /// The forms by MIME type.
        data: Map<String, Value>,
        /// Jupyter's metadata by MIME type.
        #[serde(default, skip_serializing_if = "Map::is_empty")]
        metadata: Map<String, Value>,
    },
    /// Removes the cell's outputs.
    Clear {
        /// Waits with the removal until the next output comes, which avoids flicker.
        wait: bool,
    },
}

/// The content of [`Frame::Panic`].
pub const PANIC: &str = "PANIC";
/// The content of [`Frame::Error`] begins so.
pub const ERROR: &str = "ERROR";
/// The content of [`Frame::Changed`] begins so.
pub const CHANGED: &str = "CHANGED";
/// The content of [`Frame::Kept`] begins so.
pub const KEPT: &str = "KEPT";
/// The content of [`Frame::LeftOut`] begins so.
pub const LEFT_OUT: &str = "LEFTOUT";
/// The content of [`Frame::Show`].
pub const SHOW: &str = "SHOW";
/// The content of [`Frame::ShowText`].
pub const SHOW_TEXT: &str = "SHOWTEXT";
/// The content of [`Frame::Shown`].
pub const SHOWN: &str = "SHOWN";
const END: &str = "END";
const ASK_PASSWORD: &str = "ASKPASSWORD:";
const ASK_TEXT: &str = "ASK:";

/// One frame.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// Something to show.
    Message(Message),
    /// The cell's code is over.
    End,
    /// The cell has panicked.
    Panic,
    /// A `?` has left the cell with this error.
    Error(String),
    /// The type of the variable with this name was defined anew.
    Changed(String),
    /// The cell has failed before it gave the variable with this name a new value.
    Kept(String),
    /// The cell has ended before it stored the variable with this name.
    LeftOut(String),
    /// The value of the cell's last expression shows itself from here on.
    Show,
    /// The text of that value follows.
    ShowText,
    /// The value has shown itself.
    Shown,
    /// A question to the user, whose answer comes as a line of [`crate::questions`].
    Ask {
        /// The words before the place of the answer.
        prompt: String,
        /// Whether the answer is hidden while it is typed.
        password: bool,
    },
}

/// A frame whose content is nothing that the channel knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of the display channel is damaged: {0}")]
pub struct Damaged(String);

impl Damaged {
    /// With the reason.
    pub fn new(reason: String) -> Self {
        Self(reason)
    }
}

impl Frame {
    /// The bytes of the frame, its newline included.
    pub fn encode(&self, nonce: &str) -> Vec<u8> {
        let content = match self {
            // A message is made of strings and JSON values only, whose serialisation cannot fail.
            Self::Message(message) => serde_json::to_string(message).unwrap_or_default(),
            Self::End => END.to_owned(),
            Self::Panic => PANIC.to_owned(),
            Self::Error(text) => format!("{ERROR}{}", escape(text)),
            Self::Changed(name) => format!("{CHANGED}{name}"),
            Self::Kept(name) => format!("{KEPT}{name}"),
            Self::LeftOut(name) => format!("{LEFT_OUT}{name}"),
            Self::Show => SHOW.to_owned(),
            Self::ShowText => SHOW_TEXT.to_owned(),
            Self::Shown => SHOWN.to_owned(),
            Self::Ask { prompt, password } => {
                let word = if *password { ASK_PASSWORD } else { ASK_TEXT };
                format!("{word}{}", escape(prompt))
            }
        };
        let mut frame = mark(nonce);
        frame.extend_from_slice(content.as_bytes());
        frame.push(b'\n');
        frame
    }

    /// The frame with this content: the bytes between the [`mark`] and the newline.
    ///
    /// # Errors
    /// [`Damaged`] when it is neither a word of the channel nor the JSON of a message.
    pub fn parse(content: &[u8]) -> Result<Self, Damaged> {
        let text = String::from_utf8_lossy(content);
        if text == END {
            return Ok(Self::End);
        }
        let words = [
            (PANIC, Self::Panic),
            (SHOW, Self::Show),
            (SHOW_TEXT, Self::ShowText),
            (SHOWN, Self::Shown),
        ];
        for (word, frame) in words {
            if text == word {
                return Ok(frame);
            }
        }
        if let Some(error) = text.strip_prefix(ERROR) {
            return Ok(Self::Error(unescape(error)));
        }
        if let Some(name) = text.strip_prefix(CHANGED) {
            return Ok(Self::Changed(name.to_owned()));
        }
        if let Some(name) = text.strip_prefix(KEPT) {
            return Ok(Self::Kept(name.to_owned()));
        }
        if let Some(name) = text.strip_prefix(LEFT_OUT) {
            return Ok(Self::LeftOut(name.to_owned()));
        }
        for (word, password) in [(ASK_TEXT, false), (ASK_PASSWORD, true)] {
            if let Some(prompt) = text.strip_prefix(word) {
                return Ok(Self::Ask { prompt: unescape(prompt), password });
            }
        }
        serde_json::from_str(&text).map(Self::Message).map_err(|error| Damaged(error.to_string()))
    }
}

/// The bytes that open a frame: [`FRAME_START`] and the nonce.
pub fn mark(nonce: &str) -> Vec<u8> {
    let mut mark = vec![FRAME_START];
    mark.extend_from_slice(nonce.as_bytes());
    mark
}

/// Text on one line: a backslash becomes two, a newline a backslash and an `n`.
pub fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n")
}

/// Undoes [`escape`].
pub fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some(other) => out.push(other),
            None => out.push('\\'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forms(text: &str) -> Map<String, Value> {
        Map::from_iter([("text/plain".to_owned(), Value::from(text))])
    }

    #[test]
    fn every_frame_is_one_line_and_is_parsed_back() {
        let nasty = "two\nlines, \\n, \u{1e} and a \\";
        let (id, data) = ("a".to_owned(), forms(nasty));
        let metadata = forms("wide");
        for frame in [
            Frame::Message(Message::Display { id: id.clone(), data: data.clone(), metadata }),
            Frame::Message(Message::Update { id, data: data.clone(), metadata: Map::new() }),
            Frame::Message(Message::Result { data, metadata: Map::new() }),
            Frame::Message(Message::Clear { wait: true }),
            Frame::End,
            Frame::Panic,
            Frame::Error("a\nb \\n c\\".into()),
            Frame::Changed("model".into()),
            Frame::Kept("kept".to_owned()),
            Frame::LeftOut("left".to_owned()),
            Frame::Show,
            Frame::ShowText,
            Frame::Shown,
            Frame::Ask { prompt: "name:\nfirst?".into(), password: false },
            Frame::Ask { prompt: "token?".into(), password: true },
        ] {
            let bytes = frame.encode("n0nce");
            let content = bytes
                .strip_prefix(mark("n0nce").as_slice())
                .and_then(|rest| rest.strip_suffix(b"\n"))
                .expect("a mark and a newline");
            assert!(!content.contains(&b'\n') && !content.contains(&FRAME_START), "{frame:?}");
            assert_eq!(Frame::parse(content), Ok(frame));
        }
    }

    #[test]
    fn the_words_are_those_that_the_generated_code_prints() {
        assert_eq!(Frame::End.encode("x"), b"\x1exEND\n");
        assert_eq!(Frame::Panic.encode("x"), b"\x1exPANIC\n");
        assert_eq!(Frame::Error("a\nb".into()).encode("x"), b"\x1exERRORa\\nb\n");
        assert_eq!(Frame::Changed("y".into()).encode("x"), b"\x1exCHANGEDy\n");
    }

    #[test]
    fn anything_else_is_damaged() {
        for content in ["", "ENDS", "{\"op\":\"dance\"}", "{\"op\":\"clear\""] {
            assert!(Frame::parse(content.as_bytes()).is_err(), "{content}");
        }
    }
}
