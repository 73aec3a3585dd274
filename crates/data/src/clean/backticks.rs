//! Stray Markdown backticks: marks left over from copying, which a model trained on them would
//! learn to print.

use std::borrow::Cow;

use crate::clean::code;
use crate::text::to_fixpoint;

/// Fence languages that mean prose.
const PROSE: [&str; 6] = ["", "text", "txt", "plaintext", "markdown", "md"];

/// Removes stray backticks: single ones without a partner, pairs around ordinary words, fences
/// around prose. Spans that look like code, fenced blocks that are not prose for certain, and lines
/// of code outside fences keep their marks.
pub(crate) fn strip(text: &str) -> Cow<'_, str> {
    if !text.contains('`') {
        return Cow::Borrowed(text);
    }
    to_fixpoint(text, strip_once)
}

/// Removes the backticks of a text that are damage for certain, and leaves marked words as they are:
/// those around all of its sentences, one without a partner at its beginning or end, and those around
/// the first of several labels (`` `Heard`: … `` above `We: …` and `You: …`).
pub(crate) fn repair(text: &str) -> Cow<'_, str> {
    if !text.contains('`') {
        return Cow::Borrowed(text);
    }
    to_fixpoint(text, repair_once)
}

fn repair_once(text: &str) -> Option<String> {
    let whole = text.trim();
    let inner = whole.trim_matches('`');
    let is_marked = |inner: &str| inner.contains('`');
    if whole.starts_with('`') && whole.ends_with('`') && !inner.is_empty() {
        // A fence or a span around everything.
        let stripped = strip(whole);
        if !is_marked(&stripped) && (whole.starts_with("```") || is_sentences(inner)) {
            return Some(stripped.into_owned());
        }
    }
    // Without a partner; a fence that nothing closes is the other step's.
    if whole.matches('`').count() == 1 && is_sentences(inner) {
        let at_start = whole.strip_prefix('`').filter(|rest| rest.starts_with(char::is_alphabetic));
        if let Some(rest) = at_start.or_else(|| whole.strip_suffix('`')) {
            return Some(rest.to_owned());
        }
    }
    let (label, rest) = whole.strip_prefix('`')?.split_once('`')?;
    let is_label = |label: &str| {
        !label.is_empty()
            && label.starts_with(char::is_uppercase)
            && label.chars().all(char::is_alphabetic)
    };
    let others = rest.lines().skip(1).filter_map(|line| line.split_once(": "));
    let others = others.filter(|(label, _)| is_label(label)).count();
    (is_label(label) && rest.starts_with(": ") && others >= 2 && !is_marked(rest))
        .then(|| format!("{label}{rest}"))
}

/// Sentences, as nobody marks them as code.
fn is_sentences(text: &str) -> bool {
    let text = text.trim();
    text.starts_with(char::is_uppercase)
        && text.ends_with(['.', '!', '?', '…', '。', '！', '？'])
        && text.split_whitespace().nth(2).is_some()
        && !is_code_span(text)
}

fn strip_once(text: &str) -> Option<String> {
    let lines: Vec<&str> = text.split('\n').collect();
    let code = code::code(&lines);
    let mut out = String::with_capacity(text.len());
    // Prose collects until a code block ends it: a span may reach over a line break.
    let mut prose = String::new();
    let mut i = 0;
    while i < lines.len() {
        let block = code::opening(lines[i]).filter(|(run, _)| run.starts_with('`')).map(
            |(run, language)| {
                (language, lines[i + 1..].iter().position(|line| code::closes(line, run)))
            },
        );
        match block {
            Some((language, Some(end))) if is_prose(language, &lines[i + 1..=i + end]) => {
                let end = i + 1 + end;
                lines[i + 1..end].iter().for_each(|line| push_line(&mut prose, line));
                i = end + 1;
            }
            // A lone fence line says nothing.
            Some((language, None)) if is_prose(language, &lines[i + 1..]) => i += 1,
            Some((_, end)) => {
                flush(&mut prose, &mut out);
                let end = end.map_or(lines.len(), |end| i + end + 2);
                lines[i..end].iter().for_each(|line| push_line(&mut out, line));
                i = end;
            }
            None if code[i] => {
                flush(&mut prose, &mut out);
                push_line(&mut out, lines[i]);
                i += 1;
            }
            // Nor does a line of backticks.
            None if lines[i].contains('`') && lines[i].chars().all(|c| c == '`' || c == ' ') => {
                i += 1
            }
            None => {
                push_line(&mut prose, lines[i]);
                i += 1;
            }
        }
    }
    flush(&mut prose, &mut out);
    let out = out.strip_suffix('\n').unwrap_or(&out);
    (out.len() < text.len()).then(|| out.to_owned())
}

fn push_line(out: &mut String, line: &str) {
    out.push_str(line);
    out.push('\n');
}

fn flush(prose: &mut String, out: &mut String) {
    out.push_str(&strip_spans(prose));
    prose.clear();
}

/// Whether a block is prose for certain: sentences, without any layout. Whatever could be code,
/// output, a table or verse keeps its fence.
fn is_prose(language: &str, lines: &[&str]) -> bool {
    let language = language.to_ascii_lowercase();
    let markdown = matches!(language.as_str(), "markdown" | "md");
    let filled = || lines.iter().filter(|line| !line.trim().is_empty());
    PROSE.contains(&language.as_str())
        && filled().all(|line| {
            !line.starts_with([' ', '\t'])
                && code::opening(line).is_none()
                && !line.contains("  ")
                && !line
                    .contains(['\t', '|', '<', '>', '{', '}', '[', ']', '=', '$', '\\', '_', '/'])
                && !code::is_code_line(line)
                && (markdown || line.starts_with(|c: char| c.is_alphabetic() && !c.is_lowercase()))
        })
        && filled().next_back().is_none_or(|line| {
            markdown || line.trim_end().ends_with(['.', '!', '?', '…', '。', '！', '？'])
        })
}

/// Removes the backticks that do not enclose code. A span does not reach over a blank line.
fn strip_spans(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('`') {
        out.push_str(&rest[..open]);
        rest = &rest[open..];
        let ticks = rest.len() - rest.trim_start_matches('`').len();
        let (run, after) = rest.split_at(ticks);
        match code::closing_run(after, ticks) {
            Some(end) if is_code_span(&after[..end]) => {
                out.push_str(run);
                out.push_str(&after[..end + ticks]);
                rest = &after[end + ticks..];
            }
            Some(end) => {
                out.push_str(&after[..end]);
                rest = &after[end + ticks..];
            }
            None => rest = after,
        }
    }
    out.push_str(rest);
    out
}

/// Code has marks that prose has not: `git_push()`, `a = b`, `config.toml`, `--all`, `/etc/hosts`.
fn is_code_span(span: &str) -> bool {
    let span = span.trim();
    let strong = ['_', '(', ')', '{', '}', '[', ']', '=', ';', '<', '>', '$', '|', '\\', '`'];
    if span.contains(strong) || span.contains(" -") || span.starts_with('-') {
        return true;
    }
    let inner = span.trim_matches(|c: char| !c.is_alphanumeric() && c != '/');
    !span.contains(char::is_whitespace) && (inner.contains(['.', '/', '@']) || span.contains("::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_repaired_and_marked_words_stay() {
        for (text, repaired) in [
            ("`Open the settings and choose Reset.`", "Open the settings and choose Reset."),
            ("`Heard: It never came.\nWe: It is lost.", "Heard: It never came.\nWe: It is lost."),
            (
                "`Heard`: Dogs?\nWe: They are welcome.\nYou: Keep him near.\nWhen: All day.",
                "Heard: Dogs?\nWe: They are welcome.\nYou: Keep him near.\nWhen: All day.",
            ),
            (
                "```text\nHeard: It is here.\nWe: We have it.\n```",
                "Heard: It is here.\nWe: We have it.",
            ),
        ] {
            assert_eq!(repair(text), repaired, "{text}");
        }
        for text in [
            "`render` of the messages comes first.",
            "Press the ` key.",
            "The `max` of `min` is `x`.",
            "`max`: the largest one.",
            "`Heard`: a label.",
            "`cargo run`",
            "`a && b`",
            "Use `foo`, never `bar`.",
        ] {
            assert!(matches!(repair(text), Cow::Borrowed(_)), "{text} became {}", repair(text));
        }
    }
    use proptest::prelude::*;

    #[test]
    fn stray_marks_go() {
        assert_eq!(strip("`Your parcel is on its way.`"), "Your parcel is on its way.");
        assert_eq!(strip("Your `parcel` is on its way`"), "Your parcel is on its way");
        assert_eq!(strip("```\nYour parcel is on its way.\n```"), "Your parcel is on its way.");
        assert_eq!(strip("```markdown\n# Hello\n```\nBye"), "# Hello\nBye");
        assert_eq!(strip("Your parcel\n```"), "Your parcel");
        assert_eq!(strip("``` Your parcel"), " Your parcel");
        assert_eq!(strip("``"), "");
    }

    #[test]
    fn code_keeps_its_marks() {
        for text in [
            "Call `fit(x)` and set `lora_alpha = 32` in `config.toml`.",
            "Use `cargo build --release` or `https://example.org/a`.",
            "```python\nprint('hi')\n```",
            "Try:\n```\nlet x = f();\nx.run();\n```\nGood?",
            "no ticks at all",
            "```\nfor i in range(3):\n    print(i)\n```",
            "```\nls\n```",
            "```\nnpm install\n```",
            "```\nname: web\nport: 80\n```",
            "```\nSELECT name FROM users\n```",
            "```\na  b\n1  2\n```",
            "```\nfn f() {\n",
            "~~~\nx `y` z\n~~~",
            "const s = `Hello ${name}`;\nlog(s);",
            "x = `date`",
            "````md\n```\ncode\n```\n````",
        ] {
            assert_eq!(strip(text), text);
        }
    }

    proptest! {
        #[test]
        fn twice_is_once(text in "(`|``|```|\n|a|b c|=|;|rust|_| ){0,24}") {
            let once = strip(&text).into_owned();
            let twice = strip(&once);
            prop_assert_eq!(twice.as_ref(), once.as_str());
        }
    }
}
