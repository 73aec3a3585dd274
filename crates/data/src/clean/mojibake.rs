//! Mojibake: UTF-8 that was read as Windows-1252, so that `é` became `Ã©` and `’` became `â€™`.
//!
//! The idea is ftfy's (Speer 2019): a run of characters that would be valid UTF-8 if they were
//! bytes again is hardly ever meant. Where a pair of letters can be meant (`É®`, `Ä“`), it is taken
//! for mojibake only next to another such run.

use std::borrow::Cow;

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use crate::text::to_fixpoint;

/// The text in Unicode's composed form (NFC), in which equal texts are equal bytes.
pub(crate) fn nfc(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        return Cow::Borrowed(text);
    }
    let composed: String = text.nfc().collect();
    if composed == text { Cow::Borrowed(text) } else { Cow::Owned(composed) }
}

/// The text as it was before it was read in the wrong encoding, also when that happened twice.
pub(crate) fn repair(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        return Cow::Borrowed(text);
    }
    to_fixpoint(text, repair_once)
}

fn repair_once(text: &str) -> Option<String> {
    let mut found: Vec<(usize, usize, char, bool)> = Vec::new();
    let mut at = 0;
    while let Some(offset) = text[at..].find(|c: char| byte(c).is_some_and(|byte| byte >= 0xC2)) {
        at += offset;
        match sequence(&text[at..]) {
            Some((length, character, plain)) => {
                found.push((at, length, character, plain));
                at += length;
            }
            None => at += text[at..].chars().next().map_or(1, char::len_utf8),
        }
    }
    // A run that could be meant counts only next to one that could not, or right after another.
    let certain = found.iter().any(|run| run.3);
    let keep = |i: usize| {
        let touches =
            |a: &(usize, usize, char, bool), b: &(usize, usize, char, bool)| a.0 + a.1 == b.0;
        found[i].3
            || certain
            || (i > 0 && touches(&found[i - 1], &found[i]))
            || (i + 1 < found.len() && touches(&found[i], &found[i + 1]))
    };
    let mut out = String::with_capacity(text.len());
    let mut copied = 0;
    for (i, &(start, length, character, _)) in found.iter().enumerate() {
        if keep(i) {
            out.push_str(&text[copied..start]);
            out.push(character);
            copied = start + length;
        }
    }
    out.push_str(&text[copied..]);
    (copied > 0).then_some(out)
}

/// The character whose UTF-8 bytes the text begins with: its length here, and whether nobody writes
/// it so on purpose.
fn sequence(text: &str) -> Option<(usize, char, bool)> {
    let mut chars = text.chars();
    let lead = byte(chars.next()?)?;
    let count = match lead {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => return None,
    };
    let mut bytes = [lead, 0, 0, 0];
    let mut length = text.len() - chars.as_str().len();
    for slot in &mut bytes[1..count] {
        let next = chars.next()?;
        *slot = byte(next).filter(|byte| (0x80..0xC0).contains(byte))?;
        length += next.len_utf8();
    }
    let character = std::str::from_utf8(&bytes[..count]).ok()?.chars().next()?;
    let second = bytes[1];
    // Quotation marks and signs may follow a capital letter; accents and currency signs never
    // follow Â or Ã.
    let plain = match lead {
        // A control character is no text that somebody lost, but half of one that was broken twice.
        0xC2 => second >= 0xA0,
        0xC3 => true,
        0xC4..=0xDF => false,
        _ => true,
    };
    Some((length, character, plain))
}

/// The byte that Windows-1252 (or Latin-1, for its unused places) reads as this character.
fn byte(c: char) -> Option<u8> {
    const HIGH: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž',
        '\u{8f}', '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}',
        'ž', 'Ÿ',
    ];
    match u32::from(c) {
        code @ 0x80..=0xFF => Some(code as u8),
        0x100.. => HIGH.iter().position(|&high| high == c).map(|at| 0x80 + at as u8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `text` read as Windows-1252.
    fn broken(text: &str) -> String {
        text.bytes()
            .map(|byte| match byte {
                0x80..=0x9F => (0x80..=0x2122u32)
                    .filter_map(char::from_u32)
                    .find(|&c| {
                        super::byte(c) == Some(byte)
                            && (c > '\u{ff}' || matches!(byte, 0x81 | 0x8d | 0x8f | 0x90 | 0x9d))
                    })
                    .unwrap_or(' '),
                byte => char::from(byte),
            })
            .collect()
    }

    #[test]
    fn usual_damage_is_undone() {
        for text in
            ["café", "It’s “here” – naïve…", "größer", "10 €", "😀 ok", "Привет", "日本語", "12 °C"]
        {
            assert_eq!(repair(&broken(text)), text, "{}", broken(text));
            assert_eq!(repair(&broken(&broken(text))), text, "twice: {text}");
        }
    }

    #[test]
    fn what_is_meant_stays() {
        for text in [
            "CAFÉ® und „Ä“",
            "São Paulo",
            "Ünïcödé",
            "Größe: 5 €",
            "ÃO",
            "naïve – “so”",
            "Привет",
            "10 °C",
            "Ð is a letter",
        ] {
            assert!(matches!(repair(text), Cow::Borrowed(_)), "{text} became {}", repair(text));
        }
    }

    #[test]
    fn composed_and_decomposed_become_equal() {
        assert_eq!(nfc("e\u{301}"), "é");
        assert!(matches!(nfc("é"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn twice_is_once(text in "[Ââ€™Ã©ðŸ˜€ÐŸ\u{a0}aé“]{0,20}|\\PC*") {
            for step in [repair as fn(&str) -> Cow<'_, str>, nfc] {
                let once = step(&text).into_owned();
                let twice = step(&once);
                prop_assert_eq!(twice.as_ref(), once.as_str());
            }
        }
    }
}
