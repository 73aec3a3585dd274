//! Personal data and secrets: addresses, account and telephone numbers, keys.
//!
//! Patterns find the form; where a number has a check digit (cards, IBANs), it must be right.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

/// A kind of personal data, or of secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Pii {
    /// Passwords to services: API keys, tokens, private keys.
    Key,
    /// E-mail addresses.
    Email,
    /// International bank account numbers.
    Iban,
    /// Numbers of payment cards.
    Card,
    /// Addresses of computers (IPv4).
    Ip,
    /// Telephone numbers.
    Phone,
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is part of the program")
}

static KEY: LazyLock<Regex> = LazyLock::new(|| {
    regex(concat!(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----",
        r"|\b(?:sk|pk|rk)[-_](?:[a-z]+[-_])*[A-Za-z0-9]{20,}\b",
        r"|\bsk-(?:ant|proj|svcacct|admin|or|lf)-[A-Za-z0-9_-]{16,}",
        r"|\bgithub_pat_[A-Za-z0-9_]{22,}|\bglpat-[A-Za-z0-9_-]{20,}|\bnpm_[A-Za-z0-9]{36}",
        r"|\bpypi-[A-Za-z0-9_-]{32,}|\bgsk_[A-Za-z0-9]{32,}|\bxai-[A-Za-z0-9]{32,}",
        r"|\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}|\bya29\.[A-Za-z0-9_-]{20,}",
        r"|\bA[KS]IA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bhf_[A-Za-z0-9]{30,}\b",
        r"|\bxox[abprs]-[A-Za-z0-9-]{10,}|\bAIza[0-9A-Za-z_-]{35}",
        r"|\bdop_v1_[0-9a-f]{64}\b|\bdapi[0-9a-f]{32}(?:-[0-9])?\b|\br8_[A-Za-z0-9]{37}\b",
        r"|\bpplx-[A-Za-z0-9]{40,}\b|\bnvapi-[A-Za-z0-9_-]{40,}",
        r"|\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    ))
});
/// Keys without a form of their own, where their name or a header says what they are.
static NAMED_KEY: LazyLock<Regex> = LazyLock::new(|| {
    regex(concat!(
        r#"(?i)(?:(?:secret|token|api[_-]?key|access[_-]?key)["']?\s*[:=]\s*["']?|\bbearer\s+)"#,
        r"([a-z0-9/+_=.~-]{20,})",
    ))
});
/// Letters of Latin script, and between characters of other scripts, too, which have no blanks.
static EMAIL: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"(?i)[\p{Latin}0-9][\p{Latin}0-9._%+-]*@[\p{Latin}0-9-]+(?:\.[\p{Latin}0-9-]+)*\.[a-z]{2,}(?-u:\b)",
    )
});
static IBAN: LazyLock<Regex> =
    LazyLock::new(|| regex(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"));
static CARD: LazyLock<Regex> = LazyLock::new(|| regex(r"\b[0-9](?:[ -]?[0-9]){12,18}\b"));
static IP: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"\b(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})\.){3}(?:25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})\b")
});
static PHONE: LazyLock<Regex> = LazyLock::new(|| {
    regex(concat!(
        // Behind the code of a country, an area may have one digit.
        r"(?:\+[0-9]{1,3}[ ./-]?(?:\([0-9]{1,5}\)[ ./-]?)?[0-9]{1,12}",
        r"|(?:\b1[ .-]|\b|\B)(?:\([0-9]{1,5}\)[ ./-]?)?[0-9]{2,12})",
        r"(?:[ ./-][0-9]{2,8}){0,5}(?-u:\b)",
    ))
});
/// Dates with a year of four digits.
static DATE: LazyLock<Regex> = LazyLock::new(|| {
    regex(concat!(
        r"\b(?:",
        r"(?:19|20)[0-9]{2}(?:-(?:0?[1-9]|1[0-2])-|/(?:0?[1-9]|1[0-2])/|\.(?:0?[1-9]|1[0-2])\.)",
        r"(?:0?[1-9]|[12][0-9]|3[01])",
        r"|(?:0?[1-9]|[12][0-9]|3[01])",
        r"(?:-(?:0?[1-9]|[12][0-9]|3[01])-|/(?:0?[1-9]|[12][0-9]|3[01])/|\.(?:0?[1-9]|1[0-2])\.)",
        r"(?:19|20)[0-9]{2}",
        r")\b",
    ))
});
/// Words that a telephone number follows, in the languages of its forms.
static PHONE_WORD: LazyLock<Regex> = LazyLock::new(|| {
    regex(concat!(
        r"(?i)(?:\b(?:",
        r"tel|phone|telephone|mobile?|cell|fax|call|ring|dial|whatsapp|sms",
        r"|telefon|handy|anrufen|ruf|rufen|natel|t[ée]l[ée]phone|portable|appele[rz]|appelle",
        r"|tel[ée]fono|m[óo]vil|llam[ae]|llamar|telefone|celular|telem[óo]vel|ligue",
        r"|cellulare|chiama|chiamami|telefoon|mobiel|bel",
        r"|(?:my|your|his|her|our|their) number",
        r")\b|電話|携帯|电话|手机)[^0-9\n]{0,16}$",
    ))
});
/// Words that numbers of other kinds follow as well: the number has to be in groups.
static NUMBER_WORD: LazyLock<Regex> =
    LazyLock::new(|| regex(r"(?i)\b(?:nummer|number)\b[^0-9\n]{0,16}$"));
/// Words that a version or the number of a chapter follows.
static VERSION_WORD: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"(?i)\b(?:version|release|chapter|section|kapitel|abschnitt|chapitre)[ :]{1,2}$")
});
pub(crate) static URL: LazyLock<Regex> =
    LazyLock::new(|| regex(r#"(?i)\b(?:https?://|www\.)[^\s<>"]+"#));

impl Pii {
    /// All kinds, those first whose form could also be taken for another.
    pub const ALL: [Self; 6] =
        [Self::Key, Self::Email, Self::Iban, Self::Card, Self::Ip, Self::Phone];

    /// The mask, such as `[EMAIL]`.
    pub fn mask(self) -> &'static str {
        match self {
            Self::Key => "[KEY]",
            Self::Email => "[EMAIL]",
            Self::Iban => "[IBAN]",
            Self::Card => "[CARD]",
            Self::Ip => "[IP]",
            Self::Phone => "[PHONE]",
        }
    }

    fn pattern(self) -> &'static Regex {
        match self {
            Self::Key => &KEY,
            Self::Email => &EMAIL,
            Self::Iban => &IBAN,
            Self::Card => &CARD,
            Self::Ip => &IP,
            Self::Phone => &PHONE,
        }
    }

    /// The places where the text holds one.
    fn places(self, text: &str) -> Vec<Range<usize>> {
        if !self.is_possible(text) {
            return Vec::new();
        }
        if self == Self::Phone {
            return phones(text);
        }
        let holds = |found: &regex::Match<'_>| match self {
            Self::Iban => is_iban(found.as_str()),
            Self::Card => is_card(found.as_str()),
            // The user of every repository over SSH.
            Self::Email => !found.as_str().starts_with("git@"),
            Self::Ip => is_host(found.as_str(), &text[..found.start()]),
            Self::Key | Self::Phone => true,
        };
        let found = self.pattern().find_iter(text).filter(holds);
        let mut places: Vec<Range<usize>> = found.map(|found| found.range()).collect();
        if self == Self::Key {
            let is_new = |at: &Range<usize>, known: &[Range<usize>]| {
                known.iter().all(|place| place.end <= at.start || at.end <= place.start)
            };
            for key in named_keys(text) {
                if is_new(&key, &places) {
                    places.push(key);
                }
            }
            places.sort_by_key(|place| place.start);
        }
        places
    }

    /// A quick no, for most texts.
    fn is_possible(self, text: &str) -> bool {
        let digits =
            |count: usize| text.bytes().filter(u8::is_ascii_digit).take(count).count() == count;
        match self {
            Self::Key => {
                text.len() >= 16
                    && (text.contains(['-', '_', '.', '=', ':'])
                        || ["AKIA", "ASIA", "AIza", "dapi", "earer "]
                            .iter()
                            .any(|part| text.contains(part)))
            }
            Self::Email => text.contains('@'),
            Self::Iban | Self::Phone => digits(9),
            Self::Card => digits(13),
            Self::Ip => digits(4) && text.contains('.'),
        }
    }

    /// Whether the text holds one.
    pub(crate) fn is_in(self, text: &str) -> bool {
        !self.places(text).is_empty()
    }
}

/// The text with a mask in the place of each.
pub(crate) fn mask<'a>(text: &'a str, kinds: &[Pii]) -> Cow<'a, str> {
    let mut masked = Cow::Borrowed(text);
    for &kind in kinds {
        let places = kind.places(&masked);
        if places.is_empty() {
            continue;
        }
        let mut out = String::with_capacity(masked.len());
        let mut copied = 0;
        for place in places {
            out.push_str(&masked[copied..place.start]);
            out.push_str(kind.mask());
            copied = place.end;
        }
        out.push_str(&masked[copied..]);
        masked = Cow::Owned(out);
    }
    masked
}

/// Luhn's check digit.
fn is_card(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(at, &digit)| match (at % 2, digit * 2) {
            (0, _) => digit,
            (_, doubled) => doubled / 10 + doubled % 10,
        })
        .sum();
    is_grouped_as_card(text)
        && (13..=19).contains(&digits.len())
        && sum.is_multiple_of(10)
        && digits.iter().any(|&digit| digit != digits[0])
}

/// The remainder by 97, the first four characters moved to the end.
fn is_iban(text: &str) -> bool {
    let plain: Vec<u8> = text.bytes().filter(u8::is_ascii_alphanumeric).collect();
    if !(15..=34).contains(&plain.len()) {
        return false;
    }
    let rest = plain[4..].iter().chain(&plain[..4]).try_fold(0u32, |rest, &byte| {
        let value = char::from(byte).to_digit(36)?;
        Some(if value < 10 { (rest * 10 + value) % 97 } else { (rest * 100 + value) % 97 })
    });
    rest == Some(1)
}

/// One run of digits, or groups of four, or of 4, 6 and 5 (or 4); other lists of numbers are none.
fn is_grouped_as_card(text: &str) -> bool {
    let groups: Vec<usize> = text.split([' ', '-']).map(str::len).collect();
    match groups.as_slice() {
        [_] | [4, 6, 4 | 5] => true,
        [fours @ .., last] => fours.iter().all(|&digits| digits == 4) && *last <= 4,
        [] => false,
    }
}

/// The values of names such as `secret` that look drawn by lot: capitals, small letters and digits,
/// or 32 hexadecimal digits and more.
fn named_keys(text: &str) -> impl Iterator<Item = Range<usize>> {
    NAMED_KEY.captures_iter(text).filter_map(|found| {
        let value = found.get(1)?;
        let is_call = text[value.end()..].starts_with('(');
        let has = |kind: fn(&u8) -> bool| value.as_str().bytes().any(|byte| kind(&byte));
        let is_hex = value.len() >= 32 && value.as_str().bytes().all(|b| b.is_ascii_hexdigit());
        let is_mixed = has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase);
        (!is_call && has(u8::is_ascii_digit) && (is_mixed || is_hex)).then(|| value.range())
    })
}

/// An address that some computer has: not the one of each for itself, and no version or number of a
/// chapter.
fn is_host(text: &str, before: &str) -> bool {
    let is_own = ["0.", "127.", "255."].iter().any(|start| text.starts_with(start));
    let is_small = text.split('.').all(|part| part.len() == 1);
    !is_own && !is_small && !VERSION_WORD.is_match(before)
}

/// The telephone numbers between the dates of a text.
fn phones(text: &str) -> Vec<Range<usize>> {
    let mut phones = Vec::new();
    let mut between = |from: usize, to: usize| {
        for found in PHONE.find_iter(&text[from..to]) {
            let at = from + found.start()..from + found.end();
            if is_phone(found.as_str(), &text[..at.start]) {
                phones.push(at);
            }
        }
    };
    let mut start = 0;
    for date in DATE.find_iter(text) {
        between(start, date.start());
        start = date.end();
    }
    between(start, text.len());
    phones
}

/// 9 to 15 digits: after a plus or in brackets, or in groups such as people write. Lists of numbers
/// and thousands apart by spaces are none, unless the words before them say so.
fn is_phone(text: &str, before: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    if !(9..=15).contains(&digits) {
        return false;
    }
    if text.starts_with('+') || text.starts_with('(') {
        return true;
    }
    let groups: Vec<usize> = text.split([' ', '.', '/', '-']).map(str::len).collect();
    let usual = match groups.as_slice() {
        [_] => false,
        // North America, also with its prefix; a social security number.
        [3, 3, 4] | [3, 2, 4] => true,
        [1, 3, 3, 4] => text.starts_with('1'),
        // An area code, or five pairs as in France.
        [area, rest @ ..] => {
            text.starts_with('0')
                && (*area >= 3 || rest.len() <= 3 || (*area == 2 && rest == [2, 2, 2, 2]))
        }
        [] => false,
    };
    usual || PHONE_WORD.is_match(before) || (groups.len() > 1 && NUMBER_WORD.is_match(before))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_kind_is_masked() {
        for (text, masked) in [
            ("write to jo.doe+x@mail.example.org!", "write to [EMAIL]!"),
            ("call +44 20 7946 0958 or (030) 123 456 78.", "call [PHONE] or [PHONE]."),
            ("0170-1234567", "[PHONE]"),
            ("555-123-4567", "[PHONE]"),
            ("card 4111 1111 1111 1111 please", "card [CARD] please"),
            ("IBAN DE89 3704 0044 0532 0130 00", "IBAN [IBAN]"),
            ("host 192.168.0.1 is down", "host [IP] is down"),
            ("key AKIAIOSFODNN7EXAMPLE", "key [KEY]"),
            ("token ghp_0123456789abcdefghijABCDEFGHIJ012345", "token [KEY]"),
            ("key sk-ant-api03-AbC_d-9fGhIjKlMnOpQrStUv-AA.", "key [KEY]."),
            ("OPENAI_API_KEY=sk-proj-a_B-c1D2e3F4g5H6i7J8", "OPENAI_API_KEY=[KEY]"),
            ("github_pat_11ABCDEFG0abcdefghij_KLMNOPQRSTUV", "[KEY]"),
            ("call 501 234 567 on 12/05/2023 14:30", "call [PHONE] on 12/05/2023 14:30"),
            ("06 12 34 56 78, 1-800-555-0199", "[PHONE], [PHONE]"),
            ("0170 1234567 01.05.2024 030 123 456 78", "[PHONE] 01.05.2024 [PHONE]"),
        ] {
            assert_eq!(mask(text, &Pii::ALL), masked);
        }
    }

    #[test]
    fn other_numbers_stay() {
        for text in [
            "on 2024-05-01 12:30",
            "12/05/2023 14:30",
            "01.05.2024 10:00",
            "5/31/2023 09:15, 2024/05/01 10",
            "13 21 34 55 89 144",
            "2021 2022 2023",
            "2019-2020-2021",
            "1 425 671 352",
            "12 345 678.90",
            "3 14 15 92 65 35",
            "10-20-30-40-50",
            "1111 2222 33 44 55 66 77",
            "order ORD-4411 of 12.05.2024",
            "1,234,567.89 EUR",
            "version 1.2.3",
            "4111 1111 1111 1112",
            "pi is 3.14159265358979",
            "id 1234567890123",
            "@handle",
            "task-list_item-name",
        ] {
            assert!(
                matches!(mask(text, &Pii::ALL), Cow::Borrowed(_)),
                "{text} became {}",
                mask(text, &Pii::ALL)
            );
        }
    }

    proptest! {
        #[test]
        fn dates_and_lists_stay(
            (day, month, year) in (1u32..=28, 1u32..=12, 1950u32..2050),
            list in proptest::collection::vec(10u32..100, 6..9),
            space in "[ ,]",
        ) {
            let list = list.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
            for text in [
                format!("{day:02}/{month:02}/{year}{space}10:30"),
                format!("{day:02}.{month:02}.{year}{space}10:30 - 11:30"),
                format!("{year}-{month:02}-{day:02}{space}10:30"),
                format!("the numbers {list}"),
            ] {
                prop_assert_eq!(mask(&text, &[Pii::Phone, Pii::Card]), text.as_str());
            }
        }

        #[test]
        fn a_masked_text_holds_none(text in "[0-9a-d@.+ ()-]{0,60}|\\PC*") {
            let once = mask(&text, &Pii::ALL).into_owned();
            let twice = mask(&once, &Pii::ALL).into_owned();
            let again = mask(&twice, &Pii::ALL);
            prop_assert_eq!(again.as_ref(), twice.as_str());
        }
    }
}
