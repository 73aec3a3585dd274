//! Texts of a server, as they may be shown. Whatever a server says passes here before it is in an error
//! or a result: it may repeat the token, steer the terminal, or be of any length.

use tunebook_progress::is_unseen;

use crate::token::Token;

/// No more of a text is shown.
const SHOWN: usize = 300;
/// No more of a text is looked at.
const READ: usize = 10_000;

/// A text in one line, without the token and without names and passwords of addresses, cut to what a
/// person reads.
pub(crate) fn said(text: &str, token: Option<&Token>) -> String {
    // Before the token is looked for: a letter that is not seen may stand within it.
    let seen = |c: char| if is_unseen(c) { ' ' } else { c };
    let text: String = text.chars().take(READ).map(seen).collect();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = match token {
        Some(token) => token.hidden_in(&text),
        None => text,
    };
    let text = without_passwords(&text);
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// `http://me:password@host` as `http://host`.
fn without_passwords(text: &str) -> String {
    let mut parts = text.split("://");
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let ends = |c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\'' | '`');
        let end = part.find(ends).unwrap_or(part.len());
        let host = part[..end].rsplit('@').next().unwrap_or_default();
        clean.push_str("://");
        clean.push_str(host);
        clean.push_str(&part[end..]);
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_one_short_line_without_secrets() {
        let token = Token::new("hf_secret");
        let said = |text: &str| said(text, Some(&token));
        assert_eq!(said("no \u{1b}[2J hf_secret\r\n\u{7}here"), "no [2J [token] here");
        assert_eq!(said("a\u{202e}b\u{2028}c\u{9b}d"), "a b c d");
        assert_eq!(said("http://me:pw@hub/x and ftp://a@b"), "http://hub/x and ftp://b");
        // Not seen, and gone would be worse: the token would stand there whole.
        for within in ["hf_\u{1b}secret", "hf_\u{200b}secret"] {
            assert_eq!(said(within), "hf_ secret");
        }
        // Nor is half of it left where the text is cut.
        let long = format!("{}hf_secret{}", "x".repeat(297), "y".repeat(1_000_000));
        assert_eq!(said(&long), format!("{}[to…", "x".repeat(297)));
    }
}
