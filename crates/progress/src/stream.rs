//! Text shown as it comes: generated tokens, for one.

use crate::sink::sink;

/// Shows `text` at once, without adding a newline. End the last piece with one: a stock kernel
/// shows whole lines only.
pub fn stream(text: &str) {
    sink().text(text);
}
