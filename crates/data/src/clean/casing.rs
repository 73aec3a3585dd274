//! SHOUTED text in sentence case.

use std::borrow::Cow;

use crate::clean::code;

/// Short forms that are written in capitals in a sentence, too; those without a vowel need no list.
const ACRONYMS: [&str; 65] = [
    "AI", "API", "ASCII", "ATM", "BBC", "BIC", "CEO", "CIA", "CIO", "COVID", "CPU", "CSV", "CVC",
    "CVV", "DHL", "DIY", "DVD", "EU", "EUR", "FAQ", "FBI", "FIFA", "GB", "GBP", "GIF", "GPS",
    "GPU", "HDMI", "HIV", "HTML", "HTTP", "IBAN", "IBM", "ID", "IEEE", "IKEA", "IP", "ISO", "JPEG",
    "JSON", "NASA", "NATO", "OECD", "OPEC", "PDF", "PIN", "RSS", "SIM", "SMS", "TV", "UEFA", "UFO",
    "UK", "UN", "UNESCO", "UNICEF", "UPS", "URL", "USA", "USB", "USD", "UTF", "VAT", "VIP", "YAML",
];

/// Words without a vowel that are no acronyms.
const SPOKEN: [&str; 5] = ["HMM", "PLS", "PLZ", "THX", "TKS"];

/// The fewest letters that count as shouting; "OK!" and "USA" do not.
const MIN_LETTERS: usize = 8;
/// The fewest words that count as a sentence: a label has fewer.
const MIN_WORDS: usize = 5;
/// The fewest words before a full stop that do.
const MIN_WORDS_ENDED: usize = 3;

/// Puts a text whose words are (nearly) all in capitals into sentence case; any other text stays as
/// it is, and so do labels (`NEGATIVE`, `NOT ENOUGH INFO`), which are no sentences, and code. Words
/// with a digit or an underscore (order numbers, names in code), acronyms and the pronoun I keep
/// their capitals.
pub(crate) fn sentence_case(text: &str) -> Cow<'_, str> {
    if !is_shouted(text) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut sentence_start = true;
    for piece in pieces(text) {
        if !piece.starts_with(is_word_char) {
            sentence_start |= piece.contains(['.', '!', '?', '\n']);
            out.push_str(piece);
            continue;
        }
        if keeps_capitals(piece)
            || piece == "I"
            || piece.starts_with("I'")
            || piece.starts_with("I’")
        {
            // "I'M" and "I’LL": only what follows the pronoun is lowered.
            let mut chars = piece.chars();
            if let (Some('I'), false) = (piece.chars().next(), keeps_capitals(piece)) {
                chars.next();
                out.push('I');
                out.extend(chars.flat_map(char::to_lowercase));
            } else {
                out.push_str(piece);
            }
        } else {
            let lower = piece.to_lowercase();
            let mut chars = lower.chars();
            match chars.next() {
                Some(first) if sentence_start => {
                    out.push(single_uppercase(first));
                    out.push_str(chars.as_str());
                }
                _ => out.push_str(&lower),
            }
        }
        sentence_start = false;
    }
    if out == text { Cow::Borrowed(text) } else { Cow::Owned(out) }
}

/// Whether at least nine tenths of the letters of its plain words are capitals, and there are
/// enough to tell a sentence from a label.
pub(crate) fn is_shouted(text: &str) -> bool {
    if !text.contains(char::is_uppercase) {
        return false;
    }
    let (mut upper, mut lower, mut words) = (0usize, 0usize, 0usize);
    for word in pieces(text).filter(|piece| piece.starts_with(is_word_char)) {
        words += 1;
        if keeps_capitals(word) {
            continue;
        }
        for c in word.chars() {
            if c.to_lowercase().ne([c]) {
                upper += 1;
            } else if c.is_lowercase() {
                lower += 1;
            }
        }
    }
    let ended = text.trim_end().ends_with(['.', '!', '?', '…']);
    upper + lower >= MIN_LETTERS
        && upper * 10 >= (upper + lower) * 9
        && words >= if ended { MIN_WORDS_ENDED } else { MIN_WORDS }
        && !text.split('\n').any(|line| code::opening(line).is_some() || code::is_code_line(line))
}

/// Words and what lies between them, in turn.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let word = is_word_char(first);
        let end = rest.find(|c| is_word_char(c) != word).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        rest = after;
        Some(piece)
    })
}

/// Order numbers are one word, with their dashes; so are contractions.
fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '\'' | '’' | '-' | '_' | '#')
}

fn keeps_capitals(word: &str) -> bool {
    let letters = || word.chars().filter(|c| c.is_alphabetic());
    word.contains(|c: char| c.is_numeric() || matches!(c, '_' | '#'))
        || ACRONYMS.contains(&word)
        // Nobody speaks a word without a vowel.
        || (!SPOKEN.contains(&word)
            && letters().nth(1).is_some()
            && letters().all(|c| c.is_ascii_uppercase() && !"AEIOUY".contains(c)))
}

/// The capital of `c` if it is one character that lowers to `c` again (not so for ß).
fn single_uppercase(c: char) -> char {
    let mut upper = c.to_uppercase();
    match (upper.next(), upper.next()) {
        (Some(capital), None) if capital.to_lowercase().eq([c]) => capital,
        _ => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shouting_becomes_sentences() {
        assert_eq!(
            sentence_case("WHERE IS MY PARCEL? I'M WAITING!"),
            "Where is my parcel? I'm waiting!"
        );
        assert_eq!(
            sentence_case("MY ORDER ORD-12AB HAS NO PDF INVOICE"),
            "My order ORD-12AB has no PDF invoice"
        );
        assert_eq!(sentence_case("STOP TEXTING ME AT 6AM"), "Stop texting me at 6AM");
        assert_eq!(sentence_case("SEND THE XL HOODIE PLS"), "Send the XL hoodie pls");
        assert_eq!(
            sentence_case("NASA WILL SEND THE SQL FILE BY FTP."),
            "NASA will send the SQL file by FTP."
        );
        assert_eq!(
            sentence_case("WO BLEIBT MEINE GRÖSSE ÜBERHAUPT"),
            "Wo bleibt meine grösse überhaupt"
        );
    }

    #[test]
    fn ordinary_text_and_short_capitals_stay() {
        for text in [
            "Where is my Parcel?",
            "OK!",
            "USA",
            "the FAQ says NO",
            "FAQ PDF URL VAT USB",
            "POSITIVE",
            "NEGATIVE",
            "NEUTRAL",
            "CHANGE_PASSWORD",
            "ENTAILMENT.",
            "NOT ENOUGH INFO",
            "CUSTOMER SERVICE REQUEST",
            "SELECT NAME FROM PEOPLE",
            "SELECT NAME, STREET FROM ALL PEOPLE WHERE AGE = 3",
            "INSERT INTO PEOPLE VALUES (NAME, STREET, TOWN)",
            "MAX_VALUE MIN_VALUE OTHER_VALUE LAST_VALUE",
            "```\nTHIS IS SOME OUTPUT OF A PROGRAM\n```",
            "你好世界你好世界",
        ] {
            assert_eq!(sentence_case(text), text);
        }
    }

    proptest! {
        /// No label of a set is changed while another is not.
        #[test]
        fn labels_stay(text in "[A-Z]{2,14}([ _/-][A-Z]{2,12}){0,3}") {
            prop_assert_eq!(sentence_case(&text), text.as_str());
        }

        #[test]
        fn twice_is_once(text in "[A-ZÄßİ .!?'#0-9a-c\\n-]{0,60}|\\PC*") {
            let once = sentence_case(&text).into_owned();
            let twice = sentence_case(&once);
            prop_assert_eq!(twice.as_ref(), once.as_str());
        }
    }
}
