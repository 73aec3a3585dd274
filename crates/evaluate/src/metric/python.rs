//! Texts as Python's `str` methods see them: sacreBLEU and rouge-score define their scores by them.

/// Whether Python counts the character as space: Unicode's white space and four separators.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// `text.split()`.
pub(super) fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// `text.rstrip()`.
pub(super) fn rstrip(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// `string.punctuation`.
pub(super) fn is_punctuation(character: char) -> bool {
    character.is_ascii_punctuation()
}
