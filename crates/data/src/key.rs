//! Keys under which texts count as the same, and stable hashes of them.
//!
//! The hash is XXH3 (64 and 128 bits), whose values are fixed by its specification, so a split made
//! today is the split made by every later version, on every machine.

use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

/// `text` as words: lower case, without punctuation, one space between words. A text without a
/// letter or digit (an emoji, a line of dashes) keeps its symbols.
pub(crate) fn normalized(text: &str) -> String {
    let mut key = String::with_capacity(text.len());
    each_char(text, |c| key.push(c));
    key
}

/// Hands over the characters of [`normalized`], without making the text.
#[inline]
pub(crate) fn each_char(text: &str, mut each: impl FnMut(char)) {
    let bytes = text.as_bytes();
    let (mut at, mut any, mut between) = (0, false, false);
    while let Some(&byte) = bytes.get(at) {
        if byte.is_ascii() {
            at += 1;
            if byte.is_ascii_alphanumeric() {
                if std::mem::take(&mut between) {
                    each(' ');
                }
                any = true;
                each(char::from(byte.to_ascii_lowercase()));
            } else {
                between = any;
            }
            continue;
        }
        let Some(c) = text[at..].chars().next() else { break };
        at += c.len_utf8();
        if c.is_alphanumeric() {
            if std::mem::take(&mut between) {
                each(' ');
            }
            any = true;
            c.to_lowercase().for_each(&mut each);
        } else {
            between = any;
        }
    }
    if !any {
        text.chars().filter(|c| !c.is_whitespace()).for_each(each);
    }
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
        /// The definition, word by word.
        #[test]
        fn words_are_what_stands_between_other_characters(text in "(\\PC|[ aBß.,İ]){0,30}") {
            let words: Vec<String> = text
                .split(|c: char| !c.is_alphanumeric())
                .filter(|word| !word.is_empty())
                .map(|word| word.chars().flat_map(char::to_lowercase).collect())
                .collect();
            let symbols: String = text.chars().filter(|c| !c.is_whitespace()).collect();
            prop_assert_eq!(normalized(&text), if words.is_empty() { symbols } else { words.join(" ") });
        }
    }

    #[test]
    fn case_punctuation_and_spaces_do_not_count() {
        assert_eq!(normalized("  Where's my\nPARCEL?! "), "where s my parcel");
        assert_eq!(normalized("ÜBER-Größe"), "über größe");
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
