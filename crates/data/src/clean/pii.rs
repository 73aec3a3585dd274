//! Personal data and secrets: addresses, account and telephone numbers, keys.
//!
//! Patterns find the form; where a number has a check digit (cards, IBANs), it must be right.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};
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
        r"|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bhf_[A-Za-z0-9]{30,}\b",
        r"|\bxox[abprs]-[A-Za-z0-9-]{10,}|\bAIza[0-9A-Za-z_-]{35}",
        r"|\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    ))
});
static EMAIL: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"(?i)\b[a-z0-9][a-z0-9._%+-]*@[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}\b")
});
static IBAN: LazyLock<Regex> =
    LazyLock::new(|| regex(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"));
static CARD: LazyLock<Regex> = LazyLock::new(|| regex(r"\b[0-9](?:[ -]?[0-9]){12,18}\b"));
static IP: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"\b(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})\.){3}(?:25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})\b")
});
static PHONE: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"(?:\+[0-9]{1,3}[ ./-]?|\b|\B)(?:\([0-9]{1,5}\)[ ./-]?)?[0-9]{2,12}(?:[ ./-][0-9]{2,8}){0,5}\b",
    )
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

    /// Whether a text of the right form is one.
    fn holds(self, text: &str) -> bool {
        match self {
            Self::Key | Self::Email | Self::Ip => true,
            Self::Iban => is_iban(text),
            Self::Card => is_card(text),
            Self::Phone => is_phone(text),
        }
    }

    /// A quick no, for most texts.
    fn is_possible(self, text: &str) -> bool {
        let digits =
            |count: usize| text.bytes().filter(u8::is_ascii_digit).take(count).count() == count;
        match self {
            Self::Key => {
                text.len() >= 16
                    && (text.contains(['-', '_', '.'])
                        || text.contains("AKIA")
                        || text.contains("AIza"))
            }
            Self::Email => text.contains('@'),
            Self::Iban | Self::Phone => digits(9),
            Self::Card => digits(13),
            Self::Ip => digits(4) && text.contains('.'),
        }
    }

    /// Whether the text holds one.
    pub(crate) fn is_in(self, text: &str) -> bool {
        self.is_possible(text)
            && self.pattern().find_iter(text).any(|found| self.holds(found.as_str()))
    }
}

/// The text with a mask in the place of each.
pub(crate) fn mask<'a>(text: &'a str, kinds: &[Pii]) -> Cow<'a, str> {
    let mut masked = Cow::Borrowed(text);
    for &kind in kinds {
        if !kind.is_in(&masked) {
            continue;
        }
        let replaced = kind.pattern().replace_all(&masked, |found: &Captures<'_>| {
            let found = &found[0];
            if kind.holds(found) { kind.mask().to_owned() } else { found.to_owned() }
        });
        masked = Cow::Owned(replaced.into_owned());
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
    (13..=19).contains(&digits.len())
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

/// 9 to 15 digits in groups, or with the country in front; dates and plain numbers are none.
fn is_phone(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    let bytes = text.as_bytes();
    let date = bytes.len() >= 10
        && bytes[..4].iter().all(u8::is_ascii_digit)
        && matches!(bytes[4], b'-' | b'/' | b'.')
        && bytes[5..7].iter().all(u8::is_ascii_digit)
        && bytes[7] == bytes[4];
    let groups = text.bytes().filter(|byte| matches!(byte, b' ' | b'.' | b'/' | b'-')).count();
    (9..=15).contains(&digits)
        && !date
        && (text.starts_with('+')
            || text.starts_with('(')
            || (text.starts_with('0') && groups >= 1)
            || groups >= 2)
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
        ] {
            assert_eq!(mask(text, &Pii::ALL), masked);
        }
    }

    #[test]
    fn other_numbers_stay() {
        for text in [
            "on 2024-05-01 12:30",
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
        fn a_masked_text_holds_none(text in "[0-9a-d@.+ ()-]{0,60}|\\PC*") {
            let once = mask(&text, &Pii::ALL).into_owned();
            let twice = mask(&once, &Pii::ALL).into_owned();
            let again = mask(&twice, &Pii::ALL);
            prop_assert_eq!(again.as_ref(), twice.as_str());
        }
    }
}
