//! The display channel: how code that runs in a cell tells our kernel what to show.
//!
//! Messages travel in-band on standard output, so that they keep their place among the text that
//! the cell prints. Each is one frame: the byte `0x1e`, a nonce that the kernel drew for this
//! process and put into the environment variable [`NONCE_VAR`], the message as JSON, and a newline.
//! JSON escapes every control character, so a frame holds neither `0x1e` nor a newline of its own,
//! and printed text cannot be taken for a frame without the nonce.

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

/// The frame of `message`.
pub fn encode(nonce: &str, message: &Message) -> Vec<u8> {
    // The message is made of strings and JSON values only, whose serialisation cannot fail.
    let json = serde_json::to_string(message).unwrap_or_default();
    let mut frame = Vec::with_capacity(json.len() + nonce.len() + 2);
    frame.push(FRAME_START);
    frame.extend_from_slice(nonce.as_bytes());
    frame.extend_from_slice(json.as_bytes());
    frame.push(b'\n');
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_one_line_whatever_it_carries() {
        let mut data = Map::new();
        data.insert("text/plain".into(), Value::from("two\nlines \u{1e} and a separator"));
        let message = Message::Display { id: "a".into(), data, metadata: Map::new() };
        let frame = encode("n0nce", &message);
        assert_eq!(frame[0], FRAME_START);
        assert_eq!(frame.iter().filter(|&&b| b == FRAME_START).count(), 1);
        assert_eq!(frame.iter().filter(|&&b| b == b'\n').count(), 1);
        let json = &frame[1 + "n0nce".len()..frame.len() - 1];
        assert_eq!(serde_json::from_slice::<Message>(json).expect("valid JSON"), message);
    }
}
