//! Rust tokens as one line of text, spaced as people write them.

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

/// The tokens as text.
pub(crate) fn text(tokens: TokenStream) -> String {
    let mut out = String::new();
    write(tokens, &mut out);
    out
}

fn write(tokens: TokenStream, out: &mut String) {
    // A sign whose next sign belongs to it: `::`, `->`, `'a`.
    let mut joined = false;
    for token in tokens {
        match token {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::Brace => (" { ", " }"),
                    Delimiter::None => ("", ""),
                };
                out.push_str(open);
                write(group.stream(), out);
                // A list over several lines ends in a comma.
                out.truncate(out.trim_end_matches([',', ' ']).len());
                out.push_str(close);
                joined = false;
            }
            TokenTree::Punct(sign) => {
                let spaced = match sign.as_char() {
                    '=' | '+' => !joined,
                    '-' => sign.spacing() == Spacing::Joint,
                    _ => false,
                };
                if spaced && !out.ends_with(' ') {
                    out.push(' ');
                }
                if matches!(sign.as_char(), '\'') && out.ends_with(is_word) {
                    out.push(' ');
                }
                out.push(sign.as_char());
                let alone = sign.spacing() == Spacing::Alone;
                match sign.as_char() {
                    ',' | ';' | '=' | '+' => out.push(' '),
                    ':' if alone && !joined => out.push(' '),
                    '>' if joined && out.ends_with("->") => out.push(' '),
                    _ => {}
                }
                joined = !alone;
            }
            word => {
                if !joined && out.ends_with(|c| is_word(c) || matches!(c, ')' | ']' | '>' | '}')) {
                    out.push(' ');
                }
                out.push_str(&word.to_string());
                joined = false;
            }
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[test]
fn signatures_read_as_they_are_written() {
    for code in [
        "fn find<'a, T: Into<String> + 'a>(&'a mut self, at: &[(f64, f64)]) -> Option<&'a T>",
        "fn each(visit: impl Fn(&str, usize) -> Result<(), Error> + Send, all: [u8; 4])",
        "fn next(self) -> Box<dyn Iterator<Item = std::path::PathBuf> + '_>",
        "fn of<T>() -> T where T: Clone",
    ] {
        let tokens: TokenStream = code.parse().expect("Rust");
        assert_eq!(text(tokens), code);
    }
    let over_lines: TokenStream = "fn f(\n    a: A,\n    b: B,\n) -> C".parse().expect("Rust");
    assert_eq!(text(over_lines), "fn f(a: A, b: B) -> C");
}
