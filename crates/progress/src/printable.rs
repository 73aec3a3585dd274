//! Texts that somebody else has written, as one line of a terminal.

use std::borrow::Cow;

/// The text with its control characters, ends of lines and changes of the writing's direction escaped:
/// a name that came with a copied folder says nothing to a terminal.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unseen) {
        return Cow::Borrowed(text);
    }
    let mut printed = String::with_capacity(text.len());
    for char in text.chars() {
        match is_unseen(char) {
            true => printed.extend(char.escape_default()),
            false => printed.push(char),
        }
    }
    Cow::Owned(printed)
}

/// Whether a letter is not seen where it is shown: control characters, and those that turn the
/// direction of a line or stand for nothing.
pub fn is_unseen(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            '\u{ad}'
                | '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_but_text() {
        assert_eq!(printable("Grüße, support v1 → v2"), "Grüße, support v1 → v2");
        assert_eq!(printable("a\nb\x1b[31m\u{9b}x\u{202e}"), "a\\nb\\u{1b}[31m\\u{9b}x\\u{202e}");
    }
}
