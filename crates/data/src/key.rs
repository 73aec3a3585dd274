//! Keys under which texts count as the same, and stable hashes of them.
//!
//! The hash is XXH3 (64 and 128 bits), whose values are fixed by its specification, so a split made
//! today is the split made by every later version, on every machine.

use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

/// `text` as words: lower case, without the punctuation of prose, one space between words. Signs
/// that carry meaning stay, as words of their own: operators (`C++`, `x -= 1`, `|x|`), `C#`, signs
/// of numbers, currencies, emoji. A text without any of these keeps its punctuation.
pub(crate) fn normalized(text: &str) -> String {
    let mut key = String::with_capacity(text.len() + 1);
    push_normalized(text, &mut key);
    key
}

/// Puts [`normalized`] behind what is in `key`.
pub(crate) fn push_normalized(text: &str, key: &mut String) {
    // All at once, which is faster than word by word; it changes no kind.
    each_piece(&text.to_ascii_lowercase(), |piece| match piece {
        Piece::Word(word) => key.push_str(word),
        Piece::Char(c) => key.push(c),
    });
}

/// Hands over the characters of [`normalized`], without making the text.
#[inline]
pub(crate) fn each_char(text: &str, mut each: impl FnMut(char)) {
    each_piece(text, |piece| match piece {
        Piece::Word(word) => {
            word.bytes().for_each(|byte| each(char::from(byte.to_ascii_lowercase())));
        }
        Piece::Char(c) => each(c),
    });
}

/// A piece of a normalised text.
enum Piece<'a> {
    /// ASCII letters and digits, as they were written.
    Word(&'a str),
    Char(char),
}

/// The kind of the last character handed over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Nothing,
    Word,
    Sign,
}

#[inline]
fn each_piece(text: &str, mut each: impl FnMut(Piece<'_>)) {
    let bytes = text.as_bytes();
    let (mut at, mut last, mut between) = (0, Last::Nothing, false);
    while let Some(&byte) = bytes.get(at) {
        let Some(c) =
            (if byte.is_ascii() { Some(char::from(byte)) } else { text[at..].chars().next() })
        else {
            break;
        };
        let start = at;
        at += c.len_utf8();
        let kind = if c.is_alphanumeric() {
            Last::Word
        } else if !is_space(c) && is_meant(c, text, start, at) {
            Last::Sign
        } else {
            between = last != Last::Nothing;
            continue;
        };
        let apart = match (last, kind) {
            (Last::Nothing, _) | (Last::Sign, Last::Sign) => false,
            (before, now) => before != now || between,
        };
        if apart {
            each(Piece::Char(' '));
        }
        (last, between) = (kind, false);
        if byte.is_ascii_alphanumeric() {
            let rest = bytes[at..].iter().take_while(|byte| byte.is_ascii_alphanumeric());
            at += rest.count();
            each(Piece::Word(&text[start..at]));
        } else {
            c.to_lowercase().for_each(|c| each(Piece::Char(c)));
        }
    }
    if last == Last::Nothing {
        text.chars().filter(|c| !c.is_whitespace()).for_each(|c| each(Piece::Char(c)));
    }
}

#[inline]
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\n' | ',' | '.' | '?' | '\t' | '\'' | '"' | ':' | ';' | '`')
}

/// Whether a sign that stands at `start..end` carries meaning there.
fn is_meant(c: char, text: &str, start: usize, end: usize) -> bool {
    let before = text[..start].chars().next_back();
    let after = text[end..].chars().next();
    let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let is_digit = |c: Option<char>| c.is_some_and(char::is_numeric);
    let is_operator = |c: Option<char>| {
        c.is_some_and(|c| matches!(c, '+' | '-' | '*' | '/' | '=' | '<' | '>' | '^' | '%'))
    };
    let blank = |c: Option<char>| c.is_none_or(char::is_whitespace);
    // Of terms, a number or a single letter stands on one side.
    let between_terms = || {
        let left = text[..start].trim_end_matches(' ');
        let right = text[end..].trim_start_matches(' ');
        let single = |mut term: std::str::Chars<'_>, next: Option<char>| {
            is_digit(next) || (is_word(term.next()) && !is_word(term.next()))
        };
        blank(before)
            && blank(after)
            && is_word(left.chars().next_back())
            && is_word(right.chars().next())
            && (is_digit(left.chars().next_back()) || single(right.chars(), right.chars().next()))
    };
    let line_start = || text[..start].trim_end_matches([' ', '\t']).ends_with('\n');
    let begins_line = || line_start() || text[..start].trim().is_empty();
    match c {
        '+' | '=' | '<' | '|' | '^' | '~' | '%' | '&' | '$' | '@' | '\\' => true,
        // A quotation in Markdown.
        '>' => !(begins_line() && blank(after)),
        '#' => is_word(before) || is_word(after),
        '-' if is_word(before) && is_word(after) => is_digit(before) && is_digit(after),
        '-' => {
            is_operator(before)
                || is_operator(after)
                || (is_word(after) && !begins_line())
                || (is_digit(after) && !is_word(before))
                || (!begins_line() && between_terms())
        }
        '*' => (is_word(before) && is_word(after)) || between_terms() || after == Some('='),
        '/' => (is_word(before) && is_word(after)) || between_terms() || is_operator(after),
        '!' => after == Some('=') || (is_word(after) && blank(before)) || is_factorial(text, start),
        '_' => is_word(before) && is_word(after),
        '(' | ')' | '[' | ']' | '{' | '}' => is_operator(before) || is_operator(after),
        c if c.is_ascii() => false,
        c => !is_prose(c),
    }
}

/// `5!` and `n!` are factorials as often as not.
fn is_factorial(text: &str, start: usize) -> bool {
    let mut before = text[..start].chars().rev();
    match before.next() {
        Some(c) if c.is_numeric() => true,
        Some(c) if c.is_alphabetic() => before.next().is_none_or(|c| !c.is_alphanumeric()),
        _ => false,
    }
}

/// Punctuation and invisible characters beyond ASCII.
fn is_prose(c: char) -> bool {
    c.is_whitespace()
        || c.is_control()
        || matches!(
            c,
            '«' | '»' | '¿' | '¡' | '·' | '§' | '¶' | '´' | '¨' | '¸' | '¯' | '\u{ad}' | '\u{feff}'
                // Marks that combine with a letter.
                | '\u{300}'..='\u{36f}' | '\u{483}'..='\u{489}' | '\u{591}'..='\u{5f4}'
                | '\u{600}'..='\u{61f}' | '\u{64b}'..='\u{65f}' | '\u{66a}'..='\u{66d}'
                | '\u{900}'..='\u{dff}' | '\u{e00}'..='\u{fff}' | '\u{1ab0}'..='\u{1aff}'
                // General punctuation, ideographic and full-width.
                | '\u{2000}'..='\u{206f}' | '\u{2e00}'..='\u{2e7f}' | '\u{3000}'..='\u{303f}'
                | '\u{30fb}' | '\u{fe00}'..='\u{fe6f}' | '\u{ff01}'..='\u{ff0f}'
                | '\u{ff1a}'..='\u{ff20}' | '\u{ff3b}'..='\u{ff40}' | '\u{ff5b}'..='\u{ff65}'
                | '\u{e000}'..='\u{f8ff}'
        )
}

/// The hash of a pair of texts, wide enough to stand for the pair itself.
pub(crate) fn pair_hash(prompt: &str, completion: &str) -> u128 {
    let mut joined = Vec::with_capacity(prompt.len() + completion.len() + 8);
    joined.extend_from_slice(&(prompt.len() as u64).to_le_bytes());
    joined.extend_from_slice(prompt.as_bytes());
    joined.extend_from_slice(completion.as_bytes());
    xxh3_128(&joined)
}

/// The hash of one text.
pub(crate) fn text_hash(text: &str) -> u128 {
    xxh3_128(text.as_bytes())
}

/// A number in [0, 1) that depends on the prompt's words and the seed only.
pub(crate) fn unit_interval(prompt: &str, seed: u64) -> f64 {
    let hash = xxh3_64_with_seed(normalized(prompt).as_bytes(), seed);
    // The 53 high bits: every value is a float exactly.
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

/// A hasher for keys that are hashes already.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Identity;

/// Takes the last word written as the hash.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Word(u64);

impl std::hash::BuildHasher for Identity {
    type Hasher = Word;

    fn build_hasher(&self) -> Word {
        Word(0)
    }
}

impl std::hash::Hasher for Word {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }

    fn write_u128(&mut self, word: u128) {
        self.0 = word as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Of prose, words are what stands between other characters.
        #[test]
        fn prose_is_words(text in "([a-zßé,.;:?\"'`()…«»„“”’\n]| |İ|\u{a0}|– ){0,30}") {
            let words: Vec<String> = text
                .split(|c: char| !c.is_alphanumeric())
                .filter(|word| !word.is_empty())
                .map(|word| word.chars().flat_map(char::to_lowercase).collect())
                .collect();
            let symbols: String = text.chars().filter(|c| !c.is_whitespace()).collect();
            prop_assert_eq!(normalized(&text), if words.is_empty() { symbols } else { words.join(" ") });
        }

        /// Spaces around the whole and doubled between words do not count.
        #[test]
        fn spaces_do_not_count(text in "(\\PC|[ aB1.,+-]){0,30}") {
            let once = normalized(&text);
            prop_assert_eq!(normalized(&format!("  {text} \n")), once.as_str());
        }
    }

    #[test]
    fn case_punctuation_and_spaces_do_not_count() {
        assert_eq!(normalized("  Where's my\nPARCEL?! "), "where s my parcel");
        assert_eq!(normalized("ÜBER-Größe"), "über größe");
        assert_eq!(normalized("n!"), normalized("  n! \n"));
        for (a, b) in [
            ("- one\n- two", "one two"),
            ("**Well** – yes, _very_ well!", "well yes very well"),
            ("# Title\n> said", "Title: said"),
            ("yes - no", "yes no"),
        ] {
            assert_eq!(normalized(a), normalized(b));
        }
    }

    #[test]
    fn signs_that_carry_meaning_count() {
        for texts in [
            &[
                "How do I sort a list in C?",
                "How do I sort a list in C++?",
                "How do I sort a list in C#?",
            ][..],
            &["|5|?", "|-5|?", "5?", "-5?"],
            &["x += 1", "x -= 1", "x = 1", "x *= 1", "x /= 1"],
            &["5 + 3", "5 - 3", "5 * 3", "5 / 3", "5 ^ 3", "5 3"],
            &["a < b", "a > b", "a <= b", "a == b", "a != b"],
            &["(a+b)*c", "a+b*c"],
            &["!done", "done"],
            &["Great 👍", "Great 👎", "Great"],
            &["5 €", "5 $", "5 %"],
            &["ls -l", "ls l"],
            &["A and B", "A & B", "A | B"],
            &["3!", "3"],
            &["∀x", "∃x"],
        ] {
            let keys: std::collections::HashSet<String> =
                texts.iter().map(|text| normalized(text)).collect();
            assert_eq!(keys.len(), texts.len(), "{texts:?}: {keys:?}");
        }
        assert_eq!(normalized("x+=1"), normalized("X += 1."));
    }

    #[test]
    fn texts_without_words_keep_their_symbols() {
        assert_ne!(normalized("🙂"), normalized("🙁"));
        assert_eq!(normalized(" 🙂 "), "🙂");
    }

    #[test]
    fn pairs_with_a_shifted_boundary_differ() {
        assert_ne!(pair_hash("ab", "c"), pair_hash("a", "bc"));
    }

    /// The values are part of the interface: a change here would reshuffle everybody's splits.
    #[test]
    fn the_hash_is_fixed_for_all_time() {
        let values: Vec<String> = ["", "Where is my parcel?", "Ünïcödé"]
            .iter()
            .map(|t| format!("{:.12}", unit_interval(t, 42)))
            .collect();
        insta::assert_debug_snapshot!(values);
    }
}
