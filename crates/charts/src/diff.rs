//! What changed between two short texts, word by word.

use tunebook_progress::escape_html;

/// Texts of more words than this are not compared, but shown one after the other: the comparison is
/// quadratic.
const MAX_WORDS: usize = 600;

#[derive(Clone, Copy, PartialEq)]
enum Change {
    Same,
    Removed,
    Added,
}

/// The change as HTML, with `del` and `ins`. Both texts are escaped. Whitespace that was removed or
/// added is made visible.
pub fn diff_html(before: &str, after: &str) -> String {
    let mut html = String::new();
    for (change, text) in changes(before, after) {
        match change {
            Change::Same => html.push_str(&escape_html(&text)),
            Change::Removed => {
                html.push_str("<del style=\"background:#fde0d2;color:#7a2e00\">");
                html.push_str(&escape_html(&visible(&text)));
                html.push_str("</del>");
            }
            Change::Added => {
                html.push_str(
                    "<ins style=\"background:#d2ecfd;color:#003f63;text-decoration:none\">",
                );
                html.push_str(&escape_html(&visible(&text)));
                html.push_str("</ins>");
            }
        }
    }
    html
}

/// The change as text: `[-removed-]` and `{+added+}`, as in `git diff --word-diff`.
pub fn diff_text(before: &str, after: &str) -> String {
    let mut out = String::new();
    for (change, text) in changes(before, after) {
        match change {
            Change::Same => out.push_str(&text),
            Change::Removed => out.push_str(&format!("[-{text}-]")),
            Change::Added => out.push_str(&format!("{{+{text}+}}")),
        }
    }
    out
}

/// Spaces and line ends as symbols where nothing else is left to see.
fn visible(text: &str) -> String {
    if !text.chars().all(char::is_whitespace) {
        return text.to_owned();
    }
    text.chars()
        .map(|c| match c {
            '\n' => "⏎\n".to_owned(),
            '\r' => "\\r".to_owned(),
            '\t' => "⇥".to_owned(),
            _ => "␣".to_owned(),
        })
        .collect()
}

/// Runs of equal, removed and added text, by the longest common subsequence of words.
fn changes(before: &str, after: &str) -> Vec<(Change, String)> {
    let (a, b) = (words(before), words(after));
    if a.len() > MAX_WORDS || b.len() > MAX_WORDS {
        return vec![(Change::Removed, before.to_owned()), (Change::Added, after.to_owned())];
    }
    // common[i][j]: length of the longest common subsequence of a[i..] and b[j..].
    let mut common = vec![vec![0u32; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] = if a[i] == b[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let mut runs: Vec<(Change, String)> = Vec::new();
    let mut push = |change: Change, word: &str| match runs.last_mut() {
        Some((last, text)) if *last == change => text.push_str(word),
        _ => runs.push((change, word.to_owned())),
    };
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            push(Change::Same, a[i]);
            i += 1;
            j += 1;
        } else if j == b.len() || (i < a.len() && common[i + 1][j] >= common[i][j + 1]) {
            push(Change::Removed, a[i]);
            i += 1;
        } else {
            push(Change::Added, b[j]);
            j += 1;
        }
    }
    runs
}

/// Words, runs of spaces, and single marks.
fn words(text: &str) -> Vec<&str> {
    #[derive(PartialEq)]
    enum Kind {
        Word,
        Space,
        Mark,
    }
    let kind = |c: char| {
        if c.is_alphanumeric() {
            Kind::Word
        } else if c == ' ' {
            Kind::Space
        } else {
            Kind::Mark
        }
    };
    let mut words = Vec::new();
    let mut start = 0;
    let mut last: Option<Kind> = None;
    for (at, c) in text.char_indices() {
        let kind = kind(c);
        if let Some(last) = &last
            && (*last != kind || *last == Kind::Mark)
        {
            words.push(&text[start..at]);
            start = at;
        }
        last = Some(kind);
    }
    if start < text.len() {
        words.push(&text[start..]);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_and_marks_are_told_apart() {
        assert_eq!(diff_text("<b>Hi</b> there", "Hi there"), "[-<b>-]Hi[-</b>-] there");
        assert_eq!(diff_text("WHERE is it", "Where is it"), "[-WHERE-]{+Where+} is it");
        assert_eq!(diff_text("a  b", "a b"), "a[-  -]{+ +}b");
        assert_eq!(diff_text("same", "same"), "same");
        assert_eq!(diff_text("", "new"), "{+new+}");
    }

    #[test]
    fn markup_in_the_texts_stays_text() {
        let html = diff_html("<script>alert(1)</script>", "safe & sound");
        assert!(!html.contains("<script"));
        assert!(html.contains("&lt;") && html.contains("&amp;"));
    }

    proptest! {
        #[test]
        fn both_texts_can_be_read_off(before in "[ab <>\n\u{e9}]{0,30}", after in "[ab <>\n\u{e9}]{0,30}") {
            let side = |left: Change| -> String {
                changes(&before, &after).into_iter().filter(|(c, _)| *c == Change::Same || *c == left).map(|run| run.1).collect()
            };
            prop_assert_eq!(side(Change::Removed), before.clone());
            prop_assert_eq!(side(Change::Added), after.clone());
        }
    }
}
