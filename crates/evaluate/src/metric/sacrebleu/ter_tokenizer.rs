//! The tokenizer of TER: Tercom's, as sacreBLEU has it, with its oddities.

use super::ter::Ter;
use super::tokenizer::{NUMBERS, WESTERN_PUNCTUATION, unescape};
use crate::metric::python;

/// The words of a text.
pub(super) fn words(ter: &Ter, text: &str) -> Vec<String> {
    let mut text = python::rstrip(text).to_owned();
    if !ter.case_sensitive {
        text = text.to_lowercase();
    }
    if ter.normalized && !text.is_empty() {
        text = western(&text);
        if ter.asian_support {
            text = spaced(&text, |character| is_asian(character) || is_asian_mark(character));
        }
    }
    if ter.no_punct {
        text.retain(|character| !r#".,?:;!"()"#.contains(character));
        if ter.asian_support {
            text.retain(|character| !is_asian_mark(character));
        }
    }
    python::split(&text).map(str::to_owned).collect()
}

/// Joins lines and separates punctuation and possessives.
fn western(text: &str) -> String {
    let text = text.replace("\n-", "").replace('\n', " ");
    let text = format!(" {} ", unescape(&text));
    let text = WESTERN_PUNCTUATION.apply(&text).replace("'s ", " 's ");
    NUMBERS.apply(&text)
}

/// The text with spaces around the characters that the predicate picks.
fn spaced(text: &str, picks: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if picks(character) {
            out.extend([' ', character, ' ']);
        } else {
            out.push(character);
        }
    }
    out
}

/// Ideographs, strokes, radicals, and the enclosed letters and months, whose block sacreBLEU ends
/// at U+3F22 in place of U+32FF. Kana stay together: its patterns for them never match.
fn is_asian(character: char) -> bool {
    matches!(character,
        '\u{4e00}'..='\u{9fff}'
        | '\u{3400}'..='\u{4dbf}'
        | '\u{31c0}'..='\u{31ef}'
        | '\u{2e80}'..='\u{2eff}'
        | '\u{3300}'..='\u{33ff}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe4f}'
        | '\u{3200}'..='\u{3f22}')
}

/// Ideographic and full-width punctuation.
fn is_asian_mark(character: char) -> bool {
    matches!(character,
        '\u{3001}' | '\u{3002}' | '\u{30fb}'
        | '\u{3008}'..='\u{3011}'
        | '\u{3014}'..='\u{301f}'
        | '\u{ff61}'..='\u{ff65}'
        | '\u{ff0e}' | '\u{ff0c}' | '\u{ff1f}' | '\u{ff1a}' | '\u{ff1b}' | '\u{ff01}' | '\u{ff02}'
        | '\u{ff08}' | '\u{ff09}')
}
