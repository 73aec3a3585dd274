//! Mojibake: UTF-8 that was read as Windows-1252, so that `é` became `Ã©` and `’` became `â€™`.
//!
//! The idea is ftfy's (Speer 2019): a run of characters that would be valid UTF-8 if they were
//! bytes again is taken for mojibake if nobody would write it: a letter with a sign behind it that
//! follows no letter (`Ã©`, `æ¥`). A letter with punctuation behind it can be meant (`É®`, `é »`,
//! `é”…`): it is taken for mojibake only next to another such run, or where the text has one that is
//! sure and every character that is not ASCII belongs to some run.

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

/// A run of characters that are the bytes of one.
struct Run {
    start: usize,
    length: usize,
    character: char,
    /// Nobody writes it so on purpose.
    certain: bool,
}

fn repair_once(text: &str) -> Option<String> {
    let mut found: Vec<Run> = Vec::new();
    let mut at = 0;
    while let Some(offset) = text[at..].find(|c: char| byte(c).is_some_and(|byte| byte >= 0xC2)) {
        at += offset;
        match run(text, at) {
            Some(run) => {
                at += run.length;
                found.push(run);
            }
            None => at += text[at..].chars().next().map_or(1, char::len_utf8),
        }
    }
    let touches = |a: &Run, b: &Run| a.start + a.length == b.start;
    let wide = |text: &str| text.chars().filter(|c| !c.is_ascii()).count();
    let sure = |i: usize| {
        found[i].certain
            || (i > 0 && touches(&found[i - 1], &found[i]))
            || (i + 1 < found.len() && touches(&found[i], &found[i + 1]))
    };
    // Nothing in the text says that it was read rightly.
    let all = (0..found.len()).any(sure)
        && found.iter().map(|run| wide(&text[run.start..run.start + run.length])).sum::<usize>()
            == wide(text);
    let keep = |i: usize| all || sure(i);
    let mut out = String::with_capacity(text.len());
    let mut copied = 0;
    for (i, run) in found.iter().enumerate() {
        if keep(i) {
            out.push_str(&text[copied..run.start]);
            out.push(run.character);
            copied = run.start + run.length;
        }
    }
    out.push_str(&text[copied..]);
    (copied > 0).then_some(out)
}

/// The character whose UTF-8 bytes stand at `start`.
fn run(text: &str, start: usize) -> Option<Run> {
    let mut chars = text[start..].chars();
    let first = chars.next()?;
    let lead = byte(first)?;
    let count = match lead {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => return None,
    };
    let mut bytes = [lead, 0, 0, 0];
    let mut signs = ['\0'; 3];
    let mut length = first.len_utf8();
    for at in 1..count {
        let next = chars.next()?;
        bytes[at] = byte(next).filter(|byte| (0x80..0xC0).contains(byte))?;
        signs[at - 1] = next;
        length += next.len_utf8();
    }
    let character = std::str::from_utf8(&bytes[..count]).ok()?.chars().next()?;
    let signs = &signs[..count - 1];
    // `MAÇÃ»` and `«Â»` end a quotation; `GRÃ–SSE` and `(Ã©tat` do not.
    let before = text[..start].trim_end_matches([' ', '\u{a0}']).chars().next_back();
    let opened = matches!(before, Some('«' | '“' | '„' | '‘' | '‚' | '(' | '"'));
    let follows_capital = text[..start].chars().next_back().is_some_and(char::is_uppercase);
    let ends_word = follows_word(signs[0])
        && (opened || follows_capital)
        && !chars.next().is_some_and(char::is_alphabetic);
    let certain = match lead {
        // A control character is no text that somebody lost, but half of one that was broken twice.
        0xC2 => bytes[1] >= 0xA0 && !ends_word,
        0xC3 => !ends_word,
        // A pair of letters, or a letter and a sign.
        0xC4..=0xDF => false,
        0xE2 | 0xE3 if signs[0] == '€' => true,
        0xF0 if signs[0] == 'Ÿ' => true,
        // Anything may follow a letter and a space.
        _ if signs[0] == '\u{a0}' => signs[1..].iter().any(|&sign| never_written(sign)),
        _ => signs.iter().any(|&sign| !follows_word(sign)),
    };
    Some(Run { start, length, character, certain })
}

/// Signs and letters that may stand behind a letter.
fn follows_word(c: char) -> bool {
    matches!(
        c,
        '\u{a0}'
            | '»'
            | '«'
            | '›'
            | '‹'
            | '”'
            | '“'
            | '’'
            | '‘'
            | '…'
            | '–'
            | '—'
            | '•'
            | '·'
            | '™'
            | '®'
            | '©'
            | '°'
            | '²'
            | '³'
            | '¹'
            | 'º'
            | 'ª'
            | '€'
            | '‰'
            | '†'
            | '‡'
            | 'š'
            | 'Š'
            | 'ž'
            | 'Ž'
            | 'Ÿ'
            | '¡'
            | '¿'
            | '§'
    )
}

/// Signs that hardly any text has.
fn never_written(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '¤' | '¦' | '¨' | '¬' | '¯' | '´' | '¸' | 'ƒ' | 'ˆ' | '˜')
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
        for text in [
            "café",
            "It’s “here” – naïve…",
            "größer",
            "10 €",
            "😀 ok",
            "Привет",
            "日本語",
            "12 °C",
            "gęślą jaźń. Proszę, tu",
        ] {
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
            "« Liberté\u{a0}»",
            "voilà\u{a0}» et «\u{a0}ça ira\u{a0}»",
            "“café”…",
            "„Café“–",
            "il a dit “né”… puis",
            "à\u{a0}½ heure",
            "«\u{a0}Â\u{a0}» et “Ô”",
            "«MAÇÃ»",
            "AMANHÃ…",
            "café®™",
            "„káš“",
        ] {
            assert!(matches!(repair(text), Cow::Borrowed(_)), "{text} became {}", repair(text));
        }
    }

    #[test]
    fn what_is_meant_stays_next_to_damage() {
        assert_eq!(repair("Itâ€™s « Liberté\u{a0}»"), "It’s « Liberté\u{a0}»");
        assert_eq!(repair("GRÃ–SSE, Ã–l – (Ã©tat)"), "GRÖSSE, Öl – (état)");
    }

    #[test]
    fn composed_and_decomposed_become_equal() {
        assert_eq!(nfc("e\u{301}"), "é");
        assert!(matches!(nfc("é"), Cow::Borrowed(_)));
    }

    proptest! {
        /// Words of Western languages with the punctuation that is set behind them.
        #[test]
        fn typeset_text_stays(text in "((« |“|„|‘|\\(|)[A-Za-z]{0,4}[éèêàâäöüçëïîôûñáíóú](\u{a0}»|”|“|’|…|”…|…”|\u{a0}!|\u{a0}»…|\u{a0}–|–|—|,|®|°|\\)) ){1,6}") {
            prop_assert_eq!(repair(&text), text.as_str());
        }

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
