//! Stray Markdown backticks: marks left over from copying, which a model trained on them would
//! learn to print.

use std::borrow::Cow;

use crate::text::to_fixpoint;

/// Fence languages that mean prose.
const PROSE: [&str; 6] = ["", "text", "txt", "plaintext", "markdown", "md"];

/// Removes stray backticks: single ones without a partner, pairs around ordinary words, fences
/// around prose. Spans and fenced blocks that look like code keep their marks.
pub(crate) fn strip(text: &str) -> Cow<'_, str> {
    if !text.contains('`') {
        return Cow::Borrowed(text);
    }
    to_fixpoint(text, strip_once)
}

fn strip_once(text: &str) -> Option<String> {
    let lines: Vec<&str> = text.split('\n').collect();
    let mut out = String::with_capacity(text.len());
    // Prose collects until a code block ends it: a span may reach over a line break.
    let mut prose = String::new();
    let mut i = 0;
    while i < lines.len() {
        let block = fence(lines[i]).and_then(|language| {
            let end = i + 1 + lines[i + 1..].iter().position(|line| fence(line) == Some(""))?;
            Some((language, end))
        });
        match block {
            Some((language, end)) if is_code_block(language, &lines[i + 1..end]) => {
                flush(&mut prose, &mut out);
                for line in &lines[i..=end] {
                    push_line(&mut out, line);
                }
                i = end + 1;
            }
            Some((_, end)) => {
                lines[i + 1..end].iter().for_each(|line| push_line(&mut prose, line));
                i = end + 1;
            }
            // A lone fence line says nothing.
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

/// The language of a line that opens or closes a fenced block (empty when it names none).
fn fence(line: &str) -> Option<&str> {
    let line = line.trim();
    let language = line.trim_start_matches('`');
    let ticks = line.len() - language.len();
    let language = language.trim();
    (ticks >= 3
        && language.chars().all(|c| c.is_alphanumeric() || matches!(c, '+' | '#' | '-' | '_')))
    .then_some(language)
}

fn is_code_block(language: &str, lines: &[&str]) -> bool {
    if !PROSE.contains(&language.to_ascii_lowercase().as_str()) {
        return true;
    }
    let filled = lines.iter().filter(|line| !line.trim().is_empty()).count();
    let code = lines.iter().filter(|line| is_code_line(line)).count();
    code > 0 && code * 3 >= filled
}

fn is_code_line(line: &str) -> bool {
    let line = line.trim();
    line.ends_with([';', '{', '}'])
        || line.starts_with("$ ")
        || line.starts_with("//")
        || line.starts_with("#include")
        || ["()", " = ", "==", "->", "=>", "::", "</", "/>", "&&", "||", " --"]
            .iter()
            .any(|mark| line.contains(mark))
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
        match closing_run(after, ticks) {
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

/// The start of the run of exactly `ticks` backticks that closes a span.
fn closing_run(text: &str, ticks: usize) -> Option<usize> {
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
