//! Lines of a text that are code, or whose layout carries meaning: no step may touch them.
//!
//! Fences follow CommonMark. Outside fences nothing says that a line is code, so its form has to:
//! a wrong yes leaves a text as it was written, a wrong no would destroy it.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

/// The beginning of a line that is code in some language.
static CODE_START: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = concat!(
        r"^(?:",
        r"(?:async )?(?:def|fn|func|function|sub|proc)\s+[\w.:]+\s*[(<{]",
        r"|(?:pub(?:\([a-z]+\))?|private|public|protected|static|export|abstract|final)\s+\w+[\s(<]\S",
        r"|(?:class|struct|enum|trait|interface|impl|type|namespace|module|package)\s+[\w.<>]+\s*(?:[:{(=].*)?$",
        r"|import\s+[\w.*{}/,]+(?:\s+as\s+\w+|\s+from\s+\S+)?;?$",
        r"|from\s+[\w.]+\s+import\s",
        r"|(?:if|elif|for|while|with|except|match|case|switch|catch|unless|until)\b.*[:{]$",
        r"|(?:if|for|while)\s+\[",
        r"|(?:else|try|finally|do|then|begin)\s*[:{]$",
        r"|(?:let|const|var|val|my|local)\s+(?:mut\s+)?[\w,(){}\[\] ]+(?::[^=]*)?=",
        r"|SELECT\s+(?:.*\sFROM\s|\*|DISTINCT\s|COUNT\(|[\w.`\x22]+,)",
        r"|(?:INSERT INTO|DELETE FROM|ALTER TABLE|UPDATE\s+\S+\s+SET|GROUP BY|ORDER BY)\s+[\w`\x22]",
        r"|(?:CREATE|DROP)\s+(?:OR REPLACE\s+)?(?:TABLE|VIEW|INDEX|DATABASE|FUNCTION)\s",
        r"|WHERE\s+.*(?:[=<>]|\sLIKE\s|\sIN\s*\()",
        r"|return\s+[\w.\[(]+[\w.\[\]()]*;?$",
        r"|[\w.$:]+\(.*\)[;,:]?$",
        r"|[\w.\[\]]+\s*(?:[-+*/%|&^]|:)?=\s",
        r"|\$ |//[/!]? |//[/!]?$|/\*|#include|#define|#!|>>> |\.\.\. |@\w+(?:\(.*\))?$|<\?|\{%|\{\{",
        r"|[\x22'][\w ]+[\x22']\s*:\s",
        r")",
    );
    Regex::new(pattern).expect("the pattern is part of the program")
});

/// Marks that prose has not.
static MARKS: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r"\(\)| = |==|!=|\+=|-=|:=|->|=>|::|</|/>|&&|\|\|| --";
    Regex::new(pattern).expect("the pattern is part of the program")
});

/// The run of backticks or tildes that opens a fence, and the fence's language.
pub(crate) fn opening(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    let mark = line.chars().next().filter(|c| matches!(c, '`' | '~'))?;
    let language = line.trim_start_matches(mark);
    let run = &line[..line.len() - language.len()];
    let language = language.trim();
    // "```code```" is a span, and prose after the marks no language.
    let mut words = language.split(' ');
    let named = words.next().is_some_and(|word| !word.contains('`'))
        && words.all(|word| word.contains(['=', '{', '}', '"']));
    (run.len() >= 3 && (named || language.starts_with('{'))).then_some((run, language))
}

/// Whether a line closes the fence that `run` opened.
pub(crate) fn closes(line: &str, run: &str) -> bool {
    opening(line).is_some_and(|(end, language)| language.is_empty() && end.starts_with(run))
}

/// Whether a text may have fences, code spans or patches: without the signs of these it has none.
pub(crate) fn may_have_code(text: &str) -> bool {
    static SIGNS: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new("[`~]|diff --git |@@ -|--- ").expect("the pattern is part of the program")
    });
    SIGNS.is_match(text)
}

/// The lines of fenced blocks, the fences included, and of patches. A fence that is not closed
/// reaches to the end.
pub(crate) fn fenced(lines: &[&str]) -> Vec<bool> {
    let mut fenced = vec![false; lines.len()];
    let mut at = 0;
    while at < lines.len() {
        let end = if is_patch_start(lines, at) {
            Some(lines.len())
        } else {
            opening(lines[at]).map(|(run, _)| {
                lines[at + 1..]
                    .iter()
                    .position(|line| closes(line, run))
                    .map_or(lines.len(), |end| at + end + 2)
            })
        };
        match end {
            Some(end) => {
                fenced[at..end].fill(true);
                at = end;
            }
            None => at += 1,
        }
    }
    fenced
}

/// Blank lines of a patch hold one space, so there is no telling where it ends.
fn is_patch_start(lines: &[&str], at: usize) -> bool {
    let line = lines[at];
    line.starts_with("diff --git ")
        || line.starts_with("@@ -")
        || (line.starts_with("--- ")
            && lines.get(at + 1).is_some_and(|next| next.starts_with("+++ ")))
}

/// Whether a line outside fences looks like code; code spans in it say nothing.
pub(crate) fn is_code_line(line: &str) -> bool {
    let line = without_spans(line.trim());
    let line = line.trim();
    if line.is_empty() {
        return false;
    }
    MARKS.is_match(line) || is_bare_statement(line)
}

/// Whether a line outside fences is a statement of a programming language, by its beginning or end.
pub(crate) fn is_statement(line: &str) -> bool {
    is_bare_statement(without_spans(line.trim()).trim())
}

fn is_bare_statement(line: &str) -> bool {
    line.ends_with([';', '{', '}']) || CODE_START.is_match(line)
}

/// The line without what stands between backticks.
fn without_spans(line: &str) -> Cow<'_, str> {
    if memchr::memchr(b'`', line.as_bytes()).is_none() {
        return Cow::Borrowed(line);
    }
    let mut out = String::with_capacity(line.len());
    let mut at = 0;
    for span in spans(line) {
        out.push_str(&line[at..span.start]);
        // A word stands for it.
        out.push('x');
        at = span.end;
    }
    out.push_str(&line[at..]);
    Cow::Owned(out)
}

/// The code spans of a text, their backticks included. A span does not reach over a blank line.
pub(crate) fn spans(text: &str) -> Vec<std::ops::Range<usize>> {
    let mut spans = Vec::new();
    let mut at = 0;
    let next = |at: usize| memchr::memchr(b'`', &text.as_bytes()[at..]).map(|next| at + next);
    while let Some(open) = next(at) {
        let rest = &text[open..];
        let ticks = rest.len() - rest.trim_start_matches('`').len();
        at = open + ticks;
        if let Some(end) = closing_run(&text[at..], ticks) {
            at += end + ticks;
            spans.push(open..at);
        }
    }
    spans
}

/// The start of the run of exactly `ticks` backticks that closes a span.
pub(crate) fn closing_run(text: &str, ticks: usize) -> Option<usize> {
    let text = &text[..text.find("\n\n").unwrap_or(text.len())];
    let mut at = 0;
    while let Some(next) = text[at..].find('`') {
        let start = at + next;
        let run = text[start..].len() - text[start..].trim_start_matches('`').len();
        if run == ticks {
            return Some(start);
        }
        at = start + run;
    }
    None
}

/// The lines of fenced blocks, and of paragraphs that hold a line of code or are indented as
/// Markdown's code blocks are.
pub(crate) fn code(lines: &[&str]) -> Vec<bool> {
    paragraphs(lines, |lines| {
        lines.iter().any(|line| is_code_line(line))
            || lines.iter().all(|line| line.starts_with("    ") || line.starts_with('\t'))
    })
}

/// The lines whose blanks stay as they are: code, and paragraphs that are indented or set in
/// columns.
pub(crate) fn laid_out(lines: &[&str]) -> Vec<bool> {
    let several = lines.iter().filter(|line| !line.trim().is_empty()).nth(1).is_some();
    let first = lines.iter().position(|line| !line.trim().is_empty());
    let first = first.map(|at| lines[at].as_ptr());
    paragraphs(lines, |paragraph| {
        // The beginning of a text says nothing of its layout.
        let indented = paragraph.iter().filter(|line| Some(line.as_ptr()) != first).any(|line| {
            line.starts_with("  ") || line.starts_with('\t') || line.starts_with(" \t")
        });
        indented || (several && in_columns(paragraph)) || is_code(paragraph, several)
    })
}

fn is_code(paragraph: &[&str], several: bool) -> bool {
    paragraph.iter().any(|line| is_code_line(line) || line.matches('|').nth(1).is_some())
        || (!several && paragraph.iter().any(|line| line.trim().matches('\t').nth(1).is_some()))
}

/// Whether two lines after each other have as many tabs between words, or gaps that end in the same
/// columns, or wide gaps before a last column that is set to the right.
fn in_columns(paragraph: &[&str]) -> bool {
    paragraph.windows(2).any(|pair| {
        let [above, below] = [pair[0].trim(), pair[1].trim()];
        // A tab with a space beside it is a slip.
        let cells = |line: &str| {
            let cells = line.split('\t');
            let clean = cells.clone().all(|cell| cell.trim_matches(' ').len() == cell.len());
            if clean { cells.count() } else { 1 }
        };
        let [gaps_above, gaps_below] = [gaps(pair[0].trim_end()), gaps(pair[1].trim_end())];
        (cells(above) > 1 && cells(above) == cells(below))
            || (!gaps_above.is_empty() && gaps_above == gaps_below)
            || (pair.iter().all(|line| line.trim_end().contains("    "))
                && pair[0].trim_end().chars().count() == pair[1].trim_end().chars().count())
    })
}

/// The columns in which the gaps of at least two spaces within a line end.
fn gaps(line: &str) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut blanks = 0;
    for (column, c) in line.chars().enumerate() {
        if c == ' ' {
            blanks += 1;
        } else {
            if blanks >= 2 && blanks < column {
                ends.push(column);
            }
            blanks = 0;
        }
    }
    ends
}

/// The lines of fenced blocks, and of the paragraphs between blank lines that `holds` is true of.
fn paragraphs(lines: &[&str], holds: impl Fn(&[&str]) -> bool) -> Vec<bool> {
    let mut kept = fenced(lines);
    let mut at = 0;
    while at < lines.len() {
        if kept[at] || lines[at].trim().is_empty() {
            at += 1;
            continue;
        }
        let start = at;
        while at < lines.len() && !kept[at] && !lines[at].trim().is_empty() {
            at += 1;
        }
        if holds(&lines[start..at]) {
            kept[start..at].fill(true);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_told_from_prose() {
        for line in [
            "def add(a, b):",
            "for i in range(3):",
            "import numpy as np",
            "from a import b",
            "x = 1",
            "let y: u8 = 3;",
            "print(\"a   b\")",
            "SELECT name FROM users",
            "$ ls",
            "@property",
            "return x",
            "#include <stdio.h>",
            "if (a) {",
            "}",
            "class A:",
            "\"key\": 1,",
            "//!   an aside of a module's documentation",
            "/// The sum.",
            "///",
        ] {
            assert!(is_code_line(line), "{line}");
        }
        for line in [
            "Let me know if it fits.",
            "Import duties are paid by the customer.",
            "For returns: see below",
            "The class starts at nine.",
            "Return the parcel (within 30 days).",
            "From Monday on we import goods.",
            "Call `fit(x)` and set `a = 32`.",
            "if you like, write to us",
            "With kind regards,",
            "WHERE IS MY PARCEL?",
            "SELECT A SIZE PLEASE",
            "UPDATE MY ADDRESS NOW",
            "Update your address:",
            "- first",
            "1. second",
        ] {
            assert!(!is_code_line(line), "{line}");
        }
    }

    #[test]
    fn fences_are_those_of_markdown() {
        let kept = |text: &str| fenced(&text.split('\n').collect::<Vec<_>>());
        assert_eq!(kept("a\n```\nb\n```\nc"), [false, true, true, true, false]);
        assert_eq!(kept("````\n```\n````\nc"), [true, true, true, false]);
        assert_eq!(kept("~~~ x\n```\n~~~\nc"), [true, true, true, false]);
        assert_eq!(kept("```code```\nb"), [false, false]);
        assert_eq!(kept("a\n```\nb"), [false, true, true]);
        assert_eq!(kept("--- a\n+++ b\n \n"), [true, true, true, true]);
    }
}
