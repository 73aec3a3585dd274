//! Markdown: removed where plain text is wanted, or brought into one spelling.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

use crate::clean::code;
use crate::text::to_fixpoint;

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is part of the program")
}

static HEADING: LazyLock<Regex> = LazyLock::new(|| regex(r"^ {0,3}#{1,6}[ \t]+"));
static QUOTE: LazyLock<Regex> = LazyLock::new(|| regex(r"^ {0,3}>[ \t]?"));
static RULE: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$"));
static TABLE_RULE: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"^[ \t]*\|?[ \t]*:?-{3,}:?[ \t]*(?:\|[ \t]*:?-{3,}:?[ \t]*)+\|?[ \t]*$")
});
static LINK: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"!?\[([^\[\]\n]*)\]\([^()\s]*(?:[ \t]+&quot;[^)]*|[ \t]+\x22[^\x22)]*\x22)?\)")
});
static STRONG: LazyLock<Regex> = LazyLock::new(|| regex(r"\*\*([^\s*](?:[^*\n]*[^\s*])?)\*\*"));
static STRONG_LINES: LazyLock<Regex> =
    LazyLock::new(|| regex(r"(^|[^\w_])__([^\s_](?:[^_\n]*[^\s_])?)__($|[^\w_])"));
static EMPHASIS: LazyLock<Regex> =
    LazyLock::new(|| regex(r"(^|[^\w*])\*([^\s*](?:[^*\n]*[^\s*])?)\*($|[^\w*])"));
static EMPHASIS_LINES: LazyLock<Regex> =
    LazyLock::new(|| regex(r"(^|[^\w_])_([^\s_](?:[^_\n]*[^\s_])?)_($|[^\w_])"));
static STRUCK: LazyLock<Regex> = LazyLock::new(|| regex(r"~~([^~\n]+)~~"));
static BULLET: LazyLock<Regex> = LazyLock::new(|| regex(r"^([ \t]*)[*+•‣◦][ \t]+"));
static TIGHT_HEADING: LazyLock<Regex> = LazyLock::new(|| regex(r"^(#{1,6})([^\s#])"));

/// The markup of this kind.
const MARKS: [char; 8] = ['#', '>', '*', '_', '[', '~', '-', '|'];

/// Plain text: headings, quotes, rules, emphasis and links lose their marks; list items keep their
/// dash; fenced code stays as it is.
pub(crate) fn strip(text: &str) -> Cow<'_, str> {
    if !text.contains(MARKS) {
        return Cow::Borrowed(text);
    }
    to_fixpoint(text, |text| {
        let stripped = by_line(text, |line| {
            if RULE.is_match(line) || TABLE_RULE.is_match(line) {
                return None;
            }
            let mut line = Cow::Borrowed(line);
            for (pattern, replacement) in [
                (&HEADING, ""),
                (&QUOTE, ""),
                (&LINK, "$1"),
                (&STRONG, "$1"),
                (&STRONG_LINES, "$1$2$3"),
                (&EMPHASIS, "$1$2$3"),
                (&EMPHASIS_LINES, "$1$2$3"),
                (&STRUCK, "$1"),
            ] {
                if let Cow::Owned(replaced) = pattern.replace_all(&line, replacement) {
                    line = Cow::Owned(replaced);
                }
            }
            Some(line)
        });
        (stripped.len() < text.len()).then_some(stripped)
    })
}

/// One spelling: `-` for list items, `**` for strong words, a blank after a heading's marks.
pub(crate) fn tidy(text: &str) -> Cow<'_, str> {
    if !text.contains(['#', '*', '+', '•', '‣', '◦', '_']) {
        return Cow::Borrowed(text);
    }
    let tidied = by_line(text, |line| {
        if RULE.is_match(line) {
            return Some(Cow::Borrowed(line));
        }
        let mut line = Cow::Borrowed(line);
        for (pattern, replacement) in
            [(&BULLET, "$1- "), (&TIGHT_HEADING, "$1 $2"), (&STRONG_LINES, "$1**$2**$3")]
        {
            if let Cow::Owned(replaced) = pattern.replace_all(&line, replacement) {
                line = Cow::Owned(replaced);
            }
        }
        Some(line)
    });
    if tidied == text { Cow::Borrowed(text) } else { Cow::Owned(tidied) }
}

/// Whether a text has marks that [`strip`] would take out.
pub(crate) fn is_marked(text: &str) -> bool {
    matches!(strip(text), Cow::Owned(_))
}

/// Changes the lines outside code; `None` leaves a line out.
fn by_line<'a>(text: &'a str, change: impl Fn(&'a str) -> Option<Cow<'a, str>>) -> String {
    let lines: Vec<&str> = text.split('\n').collect();
    let code = code::code(&lines);
    let mut out = String::with_capacity(text.len());
    let changed = lines
        .into_iter()
        .zip(code)
        .filter_map(|(line, code)| if code { Some(Cow::Borrowed(line)) } else { change(line) });
    for (nth, line) in changed.enumerate() {
        if nth > 0 {
            out.push('\n');
        }
        out.push_str(&line);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn marks_go_and_words_stay() {
        assert_eq!(
            strip(
                "# Title\n\n> said **she**, *softly*\n\n* * *\n- a [link](http://x.y \"t\") and ![img](a.png)\n~~no~~ __yes__ _so_"
            ),
            "Title\n\nsaid she, softly\n\n- a link and img\nno yes so"
        );
        assert_eq!(strip("| a | b |\n|---|---|\n| 1 | 2 |"), "| a | b |\n| 1 | 2 |");
    }

    #[test]
    fn what_only_looks_like_markup_stays() {
        for text in [
            "2*3*4 = 24",
            "snake_case_name",
            "#1 in sales",
            "a - b",
            "5 > 3",
            "[sic]",
            "f(x)[0](y",
            "* item",
        ] {
            assert!(matches!(strip(text), Cow::Borrowed(_)), "{text} became {}", strip(text));
        }
        let code = "```python\n# comment\na = b*c*d\n```";
        assert_eq!(strip(code), code);
        for code in [
            "# sum\ntotal = a*b*c\n",
            "def f():\n    # _x_\n    return a**b**c",
            "diff --git a/x b/x\n+ a\n* b",
            "~~~\n# x\n~~~",
        ] {
            assert_eq!(strip(code), code);
            assert_eq!(tidy(code), code);
        }
    }

    #[test]
    fn one_spelling() {
        assert_eq!(
            tidy("* a\n+ b\n• c\n##Title\n__yes__ #tag"),
            "- a\n- b\n- c\n## Title\n**yes** #tag"
        );
    }

    proptest! {
        #[test]
        fn twice_is_once(text in "(\\*|\\*\\*|_|__|#|# |> |\\[|\\]|\\(|\\)|a|b c|\n|```|- |~~|\\||---){0,24}") {
            let once = strip(&text).into_owned();
            let twice = strip(&once);
            prop_assert_eq!(twice.as_ref(), once.as_str());
        }
    }
}
