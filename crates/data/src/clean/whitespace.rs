//! Whitespace as one would type it: no runs of spaces, no trailing ones, at most one blank line, no
//! invisible characters.

use std::borrow::Cow;

/// Normalises whitespace. Text between Markdown code fences keeps its spaces and blank lines.
///
/// - carriage returns and Unicode line separators become `\n`; tabs and the Unicode spaces become a
///   space
/// - zero-width spaces, byte-order marks, soft hyphens and control characters go (joiners stay:
///   scripts and emoji need them)
/// - outside fences: runs of spaces become one, spaces at both ends of a line go, more than one
///   blank line becomes one
/// - both ends of the text are trimmed
pub(crate) fn normalize(text: &str) -> Cow<'_, str> {
    let plain = plain_characters(text);
    let lines: Vec<&str> = plain.split('\n').collect();
    let fenced = fenced_lines(&lines);

    let mut out = String::with_capacity(plain.len());
    let mut blank_lines = 0;
    for (line, fenced) in lines.iter().zip(fenced) {
        let start = out.len();
        if fenced {
            out.push_str(line);
        } else {
            for word in line.split(' ').filter(|word| !word.is_empty()) {
                if out.len() > start {
                    out.push(' ');
                }
                out.push_str(word);
            }
            blank_lines = if out.len() == start { blank_lines + 1 } else { 0 };
            if blank_lines > 1 {
                continue;
            }
        }
        out.push('\n');
    }
    let trimmed = out.trim_matches([' ', '\n']);
    if trimmed == text { Cow::Borrowed(text) } else { Cow::Owned(trimmed.to_owned()) }
}

/// Line ends, spaces and invisible characters in one form each.
fn plain_characters(text: &str) -> Cow<'_, str> {
    let plain =
        |c: char| c == '\n' || (' '..='~').contains(&c) || (c > '\u{2bff}' && c < '\u{3000}');
    if text.chars().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\r' => {
                if chars.peek() == Some(&'\n') {
                    chars.next();
                }
                out.push('\n');
            }
            '\n' | '\u{0b}' | '\u{0c}' | '\u{85}' | '\u{2028}' | '\u{2029}' => out.push('\n'),
            '\u{200b}' | '\u{2060}' | '\u{feff}' | '\u{ad}' => {}
            c if c.is_whitespace() => out.push(' '),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// Which lines lie between a pair of fences (the fences included). A fence without its partner is
/// no fence.
fn fenced_lines(lines: &[&str]) -> Vec<bool> {
    let mut fenced = vec![false; lines.len()];
    let mut open: Option<usize> = None;
    for (i, line) in lines.iter().enumerate() {
        if line.trim_start().starts_with("```") {
            match open.take() {
                Some(first) => fenced[first..=i].fill(true),
                None => open = Some(i),
            }
        }
    }
    fenced
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_ends_and_blank_lines() {
        assert_eq!(normalize("  Hello,\t world \r\n\r\n\r\n\r\nBye  "), "Hello, world\n\nBye");
        assert_eq!(normalize("no\u{a0}break\u{200b}ing\u{3000}space"), "no breaking space");
        assert_eq!(normalize("bell\u{7}null\u{0}"), "bellnull");
    }

    #[test]
    fn joined_emoji_and_ordinary_text_stay() {
        for text in ["👩‍👩‍👧 hi", "Guten Tag, wie geht es?\n\n- eins\n- zwei", ""] {
            assert!(matches!(normalize(text), Cow::Borrowed(_)), "{text:?}");
        }
    }

    #[test]
    fn code_between_fences_keeps_its_indentation() {
        let text = "Run:\n```python\nif  a:\n    b()\n\n\n\n    c()\n```\ndone";
        assert_eq!(normalize(text), text);
        assert_eq!(normalize("open\n```\n  a   b"), "open\n```\na b");
    }

    proptest! {
        #[test]
        fn twice_is_once(text in "[ \\t\\r\\n`a\u{a0}\u{200b}\u{2028}é]{0,40}|\\PC*") {
            let once = normalize(&text).into_owned();
            let twice = normalize(&once);
            prop_assert_eq!(twice.as_ref(), once.as_str());
        }
    }
}
