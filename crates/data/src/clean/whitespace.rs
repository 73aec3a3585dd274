//! Whitespace as one would type it: no runs of spaces, no trailing ones, at most one blank line, no
//! invisible characters.

use std::borrow::Cow;

use crate::clean::code;

/// Normalises whitespace. Code and layout keep theirs: fenced blocks stay as they are but for their
/// line ends, and so do paragraphs that are indented, set in columns or hold a line of code.
///
/// - carriage returns and Unicode line separators become `\n`
/// - outside fences: Unicode spaces become a space, but for the ones that typesetting puts beside
///   punctuation, signs and digits (`«\u{a0}oui\u{a0}!\u{a0}»`, `3\u{202f}000\u{a0}€`); zero-width spaces, byte-order marks, soft
///   hyphens and control characters go (joiners stay: scripts and emoji need them)
/// - in prose: runs of spaces and tabs become one space, spaces at both ends of a line go, more than
///   one blank line becomes one
/// - blank lines and spaces at both ends of the text go; the indentation of the first line stays
///   where it is part of a layout
pub(crate) fn normalize(text: &str) -> Cow<'_, str> {
    let Cow::Owned(mut current) = once(text) else { return Cow::Borrowed(text) };
    // A character that goes may make a fence of what was none.
    while let Cow::Owned(next) = once(&current) {
        current = next;
    }
    Cow::Owned(current)
}

fn once(text: &str) -> Cow<'_, str> {
    if is_normal(text) { Cow::Borrowed(text) } else { rewritten(text) }
}

/// Whether there is nothing to do, at a glance: printable ASCII without two blanks or three line ends
/// in a row and without blanks at the ends of lines. Most texts are so, or become so at once.
fn is_normal(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return true };
    if !first.is_ascii_graphic() || !last.is_ascii_graphic() {
        return false;
    }
    let blank = |byte: u8| (byte == b' ') | (byte == b'\n');
    let apart = bytes.iter().zip(&bytes[1..]).fold(true, |apart, (&one, &two)| {
        apart & !(blank(one) & blank(two) & !((one == b'\n') & (two == b'\n')))
    });
    let three = bytes.iter().zip(&bytes[1..]).zip(bytes.get(2..).unwrap_or_default());
    let few = three.fold(true, |few, ((&one, &two), &three)| {
        few & !((one == b'\n') & (two == b'\n') & (three == b'\n'))
    });
    is_printable(text, b'\n') && apart && few
}

/// Whether a text is printable ASCII, or `also`. It looks at all bytes without a way out, which takes
/// many at a time.
fn is_printable(text: &str, also: u8) -> bool {
    text.bytes().fold(true, |so_far, byte| {
        so_far & ((byte.wrapping_sub(b' ') <= b'~' - b' ') | (byte == also))
    })
}

fn rewritten(text: &str) -> Cow<'_, str> {
    let ends = line_ends(text);
    let lines: Vec<&str> = ends.split('\n').collect();
    let lines: Vec<Cow<str>> = code::fenced(&lines)
        .into_iter()
        .zip(lines)
        .map(|(fenced, line)| if fenced { Cow::Borrowed(line) } else { plain_characters(line) })
        .collect();
    let lines: Vec<&str> = lines.iter().map(AsRef::as_ref).collect();
    let fenced = code::fenced(&lines);
    let kept = code::laid_out(&lines);
    let is_blank = |at: usize| !fenced[at] && lines[at].trim().is_empty();

    let mut out = String::with_capacity(ends.len());
    let mut at = 0;
    while at < lines.len() {
        if is_blank(at) {
            let next = (at..lines.len()).find(|&next| !is_blank(next)).unwrap_or(lines.len());
            // Blank lines at both ends go.
            if at > 0 && next < lines.len() {
                match (kept[at - 1], kept[next]) {
                    (true, true) => lines[at..next].iter().for_each(|line| {
                        out.push_str(line);
                        out.push('\n');
                    }),
                    (false, false) => out.push('\n'),
                    _ => out.extend(std::iter::repeat_n('\n', next - at)),
                }
            }
            at = next;
            continue;
        }
        if kept[at] {
            out.push_str(lines[at]);
        } else {
            // A code span is one word, with the blanks that it has.
            let spans = code::spans(lines[at]);
            if spans.is_empty() {
                push_words(&mut out, lines[at]);
                out.push('\n');
                at += 1;
                continue;
            }
            let in_span = |place: usize| spans.iter().any(|span| span.contains(&place));
            let (mut place, mut begun) = (0, false);
            let mut blank = false;
            for c in lines[at].chars() {
                if matches!(c, ' ' | '\t') && !in_span(place) {
                    blank = begun;
                } else {
                    if std::mem::take(&mut blank) {
                        out.push(' ');
                    }
                    out.push(c);
                    begun = true;
                }
                place += c.len_utf8();
            }
        }
        out.push('\n');
        at += 1;
    }
    let trimmed = out.trim_end_matches([' ', '\t', '\n']);
    let single = !trimmed.contains('\n');
    let trimmed = if single { trimmed.trim_start_matches([' ', '\t']) } else { trimmed };
    if trimmed == text { Cow::Borrowed(text) } else { Cow::Owned(trimmed.to_owned()) }
}

/// The words of a line with one space between them.
fn push_words(out: &mut String, line: &str) {
    let bytes = line.as_bytes();
    let (mut at, mut begun) = (0, false);
    while at < line.len() {
        let end = memchr::memchr2(b' ', b'\t', &bytes[at..]).map_or(line.len(), |next| at + next);
        if end > at {
            if std::mem::replace(&mut begun, true) {
                out.push(' ');
            }
            out.push_str(&line[at..end]);
        }
        at = end + 1;
    }
}

/// Line ends in one form.
fn line_ends(text: &str) -> Cow<'_, str> {
    const ENDS: [char; 6] = ['\r', '\u{0b}', '\u{0c}', '\u{85}', '\u{2028}', '\u{2029}'];
    // Two looks at bytes are faster than one at characters.
    let may_have = !text.is_ascii() || text.bytes().any(|byte| (0x0b..=b'\r').contains(&byte));
    if !may_have || !text.contains(ENDS) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace("\r\n", "\n").replace(ENDS, "\n"))
}

/// Spaces in one form and no invisible characters; tabs stay.
fn plain_characters(line: &str) -> Cow<'_, str> {
    let plain =
        |c: char| c == '\t' || (' '..='~').contains(&c) || (c > '\u{2bff}' && c < '\u{3000}');
    if is_printable(line, b'\t') || line.chars().all(plain) {
        return Cow::Borrowed(line);
    }
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    let mut before = ' ';
    while let Some(c) = chars.next() {
        let typeset = matches!(c, '\u{a0}' | '\u{202f}')
            && holds_together(before, chars.peek().copied().unwrap_or(' '));
        before = c;
        match c {
            '\t' => out.push(c),
            c if typeset => out.push(c),
            '\u{200b}' | '\u{2060}' | '\u{feff}' | '\u{ad}' => {}
            c if c.is_whitespace() => out.push(' '),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// Whether a space that does not break is set between these two: before the marks of French, inside
/// its quotes, between a number and its unit, within a number.
fn holds_together(before: char, after: char) -> bool {
    const AFTER: [char; 10] = [';', ':', '!', '?', '»', '›', '%', '€', '–', '—'];
    const BEFORE: [char; 6] = ['«', '‹', '§', '№', '–', '—'];
    let is_set = |c: char| !c.is_whitespace() && !c.is_control();
    is_set(before)
        && is_set(after)
        && (AFTER.contains(&after) || BEFORE.contains(&before) || before.is_ascii_digit())
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
        for text in
            ["open\n```\n  a   b", "~~~\n\ta\u{a0}b\n\n\n~~~", "````md\n```\na  b\n```\n  c\n````"]
        {
            assert_eq!(normalize(text), text);
        }
        assert_eq!(normalize("```\r\n\ta\r\n```"), "```\n\ta\n```");
    }

    #[test]
    fn code_and_layout_outside_fences_stay() {
        for text in [
            "def add(a, b):\n    if a is None:\n        return b\n    return a + b",
            "import os\n\n\ndef f():\n\treturn  1  # one",
            "    def f(self):\n        return 1",
            "build:\n\tcargo build\n\ntest: build\n\tcargo test",
            "a:\n  b: 1\n  c:\n    - x\n    - y  z",
            "Run:\n\n    a  b\n\nDone.",
            "--- a/x\n+++ b/x\n@@ -1,3 +1,3 @@\n a\n \n-b  c\n+b c\n d",
            "| a   | b |\n|-----|---|\n| 1   | 2 |",
            "name    age\nbob     12\nalice    7",
            "id\tname\n1\tbob",
            "1\t2\t3",
            "print(\"a   b\")",
            "x = 1   # one",
            "- a\n  - b\n    - c",
            "if x:\n return 1",
            "def f():\n    x = 1\n    \n\n    return x",
        ] {
            assert_eq!(normalize(text), text);
            let case = format!("\n\n{text} \n");
            assert_eq!(normalize(&case), text);
        }
        assert_eq!(normalize("    print(1)\n"), "print(1)");
        // Slips in prose, in lines after each other.
        assert_eq!(normalize("We: it \t is.\nYou:\tsee\tto it."), "We: it is.\nYou: see to it.");
        assert_eq!(
            normalize("Heard:  a dark  red one.\nWe:  found it on the  hook  there."),
            "Heard: a dark red one.\nWe: found it on the hook there."
        );
        assert_eq!(normalize("One  two.\n\n\n\nthree\tfour. "), "One two.\n\nthree four.");
    }

    proptest! {
        #[test]
        fn what_is_normal_at_a_glance_is_normal(text in "[ab `~|=;.-]{0,6}(\n{1,3}[ab `#{}|-]{1,6}){0,4}") {
            if is_normal(&text) {
                prop_assert_eq!(rewritten(&text), text.as_str());
            }
        }

        /// Bodies of functions, whatever is in them.
        #[test]
        fn indentation_stays(lines in proptest::collection::vec("[ \\t]{0,6}[a-z#\"=(){}:.|-]([ -~]{0,12}[!-_a-~])?", 1..8)) {
            let text = format!("def f():\n{}", lines.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n"));
            prop_assert_eq!(normalize(&text), text.as_str());
        }

        #[test]
        fn twice_is_once(text in "[ \\t\\r\\n`a\u{a0}\u{200b}\u{2028}é]{0,40}|\\PC*") {
            let once = normalize(&text).into_owned();
            let twice = normalize(&once);
            prop_assert_eq!(twice.as_ref(), once.as_str());
        }
    }
}
