//! YAML of a card: strings in double quotes, so that none is read as something else (`no`, `1e3`, a
//! date), whichever version of YAML the reader has.

use std::fmt::Write as _;

use crate::yaml::quoted;

/// A number, as text where it is none that YAML has.
pub(crate) fn number(value: f64) -> String {
    if value.is_finite() { format!("{value:?}") } else { quoted(&value.to_string()) }
}

/// `key:` with a list of strings below; nothing if there are none.
pub(crate) fn list(yaml: &mut String, key: &str, values: &[String]) {
    if values.is_empty() {
        return;
    }
    let _ = writeln!(yaml, "{key}:");
    for value in values {
        let _ = writeln!(yaml, "- {}", quoted(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_is_one_line() {
        assert_eq!(quoted("a\"b\\c\n--- #x: y"), "\"a\\\"b\\\\c\\n--- #x: y\"");
        assert_eq!(quoted("\u{7}\u{85}\u{2028}é🦀"), "\"\\x07\\x85\\u2028é🦀\"");
        assert_eq!(
            (number(0.5), number(1.0), number(f64::NAN)),
            ("0.5".into(), "1.0".into(), "\"NaN\"".into())
        );
    }
}
