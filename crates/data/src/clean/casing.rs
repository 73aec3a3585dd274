//! SHOUTED text in sentence case.

use std::borrow::Cow;

/// Short forms that are written in capitals in a sentence, too.
const ACRONYMS: [&str; 36] = [
    "API", "ATM", "BIC", "CEO", "CPU", "CSV", "CVC", "CVV", "DHL", "DIY", "DVD", "EU", "EUR",
    "FAQ", "GB", "GBP", "GPS", "GPU", "HDMI", "HTML", "HTTP", "IBAN", "ID", "IP", "PDF", "PIN",
    "RSS", "SIM", "SMS", "TV", "UK", "UPS", "URL", "USB", "USD", "VAT",
];

/// The fewest letters that count as shouting; "OK!" and "USA" do not.
const MIN_LETTERS: usize = 8;

/// Puts a text whose words are (nearly) all in capitals into sentence case; any other text stays as
/// it is. Words with a digit (order numbers), common acronyms and the pronoun I keep their
/// capitals.
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
/// enough to tell.
pub(crate) fn is_shouted(text: &str) -> bool {
    if !text.contains(char::is_uppercase) {
        return false;
    }
    let (mut upper, mut lower) = (0usize, 0usize);
    for word in
        pieces(text).filter(|piece| piece.starts_with(is_word_char) && !keeps_capitals(piece))
    {
        for c in word.chars() {
            if c.to_lowercase().ne([c]) {
                upper += 1;
            } else if c.is_lowercase() {
                lower += 1;
            }
        }
    }
    upper + lower >= MIN_LETTERS && upper * 10 >= (upper + lower) * 9
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
    word.contains(char::is_numeric) || ACRONYMS.contains(&word)
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
            "你好世界你好世界",
        ] {
            assert_eq!(sentence_case(text), text);
        }
    }

    proptest! {
        #[test]
        fn twice_is_once(text in "[A-ZÄßİ .!?'#0-9a-c\\n-]{0,60}|\\PC*") {
            let once = sentence_case(&text).into_owned();
            let twice = sentence_case(&once);
            prop_assert_eq!(twice.as_ref(), once.as_str());
        }
    }
}
