//! Helpers for functions from text to text.

use std::borrow::Cow;

/// Applies `step` until the text stays the same. `step` must shorten what it changes, so this ends.
pub(crate) fn to_fixpoint<'a>(
    text: &'a str,
    step: impl Fn(&str) -> Option<String>,
) -> Cow<'a, str> {
    let Some(mut current) = step(text) else { return Cow::Borrowed(text) };
    while let Some(next) = step(&current) {
        current = next;
    }
    if current == text { Cow::Borrowed(text) } else { Cow::Owned(current) }
}

/// At most `max_chars` characters of `text` on one line, with an ellipsis when something is cut.
pub(crate) fn excerpt(text: &str, max_chars: usize) -> String {
    let mut line = String::with_capacity(text.len().min(4 * max_chars));
    for (count, c) in text.chars().enumerate() {
        if count == max_chars {
            line.push('…');
            break;
        }
        match c {
            '\n' => line.push('⏎'),
            c if c.is_control() => line.push('\u{fffd}'),
            c => line.push(c),
        }
    }
    line
}

/// `1234567` as `1,234,567`.
pub(crate) fn thousands(count: usize) -> String {
    let digits = count.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1 row`, `2 rows`.
pub(crate) fn counted(count: usize, noun: &str) -> String {
    format!("{} {noun}{}", thousands(count), if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1000), "1,000");
        assert_eq!(thousands(1234567), "1,234,567");
        assert_eq!(counted(1, "row"), "1 row");
    }

    #[test]
    fn an_excerpt_is_one_line() {
        assert_eq!(excerpt("a\nb\u{7}c", 10), "a⏎b\u{fffd}c");
        assert_eq!(excerpt("abcdef", 3), "abc…");
        assert_eq!(excerpt("abc", 3), "abc");
    }
}
