//! Passages of an answer that stand word for word in the training rows, and in nothing that the answer
//! was given.
//!
//! Words are compared, in any case and without what stands between them. Every language repeats itself:
//! a passage of six words is nothing, one of thirty is learned by heart. Ask the same of held-out rows
//! ([`PassageIndex::longest_copy`] of their references): only what answers have more than these is memory.

use std::collections::HashMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Words that a passage has at least.
const SHORTEST: usize = 6;
/// Places that are kept of a phrase.
const MOST_PLACES: usize = 64;

/// A passage that stands in the training rows, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    /// Its place in the answer, in bytes.
    pub place: Range<usize>,
    /// Its text in the answer.
    pub text: String,
    /// Its length in words.
    pub words: usize,
    /// The training row that has it, the first of several.
    pub row: usize,
}

/// The completions that a model was trained on, to look for passages of them.
///
/// ```
/// use tunebook_evaluate::PassageIndex;
/// let rows = ["Our depot in Leeds is open on every working day from nine to five."];
/// let index = PassageIndex::new(&rows);
/// let answer = "Yes: our depot in Leeds is open on every working day from nine to noon.";
/// let copy = index.longest_copy(answer, &["When is the depot open?"]).ok_or("none")?;
/// assert_eq!((copy.row, copy.words), (0, 13));
/// // What the prompt says may be said again.
/// let prompt = "Our depot in Leeds is open on every working day from nine to five, it says. Is that so?";
/// assert!(index.longest_copy(answer, &[prompt]).is_none());
/// # Ok::<(), &str>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct PassageIndex {
    /// The words of each completion, by number.
    rows: Vec<Vec<u32>>,
    numbers: HashMap<String, u32>,
    /// Where passages of the shortest length stand: row and first word.
    places: HashMap<[u32; SHORTEST], Vec<(u32, u32)>>,
}

impl PassageIndex {
    /// The completions, in the order of their rows.
    pub fn new<S: AsRef<str>>(completions: &[S]) -> Self {
        let mut index = Self::default();
        for completion in completions {
            let row = index.rows.len() as u32;
            let mut words = Vec::new();
            for (_, word) in words_of(completion.as_ref()) {
                let next = index.numbers.len() as u32;
                words.push(*index.numbers.entry(word).or_insert(next));
            }
            for (at, passage) in words.array_windows::<SHORTEST>().enumerate() {
                let places = index.places.entry(*passage).or_default();
                // A phrase of thousands of rows is known by its first places, so that a search ends; what is
                // copied beyond them is found from its next words on.
                if places.len() < MOST_PLACES {
                    places.push((row, at as u32));
                }
            }
            index.rows.push(words);
        }
        index
    }

    /// The longest passage of `answer` that stands in a training completion and in none of
    /// `sources`: its prompt and its references. `None`: there is none of six words or more.
    pub fn longest_copy(&self, answer: &str, sources: &[&str]) -> Option<Passage> {
        let words = words_of(answer);
        // Words that no training row has are equal to none.
        let number = |word: &String| self.numbers.get(word).copied().unwrap_or(u32::MAX);
        let numbers: Vec<u32> = words.iter().map(|(_, word)| number(word)).collect();
        let sources: Vec<Vec<u32>> = sources
            .iter()
            .map(|source| words_of(source).iter().map(|(_, word)| number(word)).collect())
            .collect();
        let known = |passage: &[u32]| {
            sources.iter().any(|source| source.windows(passage.len()).any(|found| found == passage))
        };
        let mut best: Option<(Range<usize>, usize)> = None;
        for (at, passage) in numbers.array_windows::<SHORTEST>().enumerate() {
            for (row, place) in self.places.get(passage).into_iter().flatten() {
                let there = &self.rows[*row as usize][*place as usize..];
                let pairs = numbers[at..].iter().zip(there);
                let same = pairs.take_while(|(a, b)| a == b && **a != u32::MAX).count();
                let longer = best.as_ref().is_none_or(|(range, _)| same > range.len());
                if longer && !known(&numbers[at..at + same]) {
                    best = Some((at..at + same, *row as usize));
                }
            }
        }
        let (range, row) = best?;
        let place = words[range.start].0.start..words[range.end - 1].0.end;
        Some(Passage { text: answer[place.clone()].to_owned(), place, words: range.len(), row })
    }
}

/// The words of a text in lower case, with their places. A sign of a script without blanks is a word.
fn words_of(text: &str) -> Vec<(Range<usize>, String)> {
    let mut words: Vec<(Range<usize>, String)> = Vec::new();
    for (at, sign) in text.char_indices() {
        let end = at + sign.len_utf8();
        if !sign.is_alphanumeric() {
            continue;
        }
        match words.last_mut() {
            Some((place, word))
                if place.end == at && !stands_alone(sign) && !word.ends_with(stands_alone) =>
            {
                place.end = end;
                word.extend(sign.to_lowercase());
            }
            _ => words.push((at..end, sign.to_lowercase().collect())),
        }
    }
    words
}

/// Signs of scripts that write words without blanks between them.
fn stands_alone(sign: char) -> bool {
    matches!(sign as u32, 0x0E00..=0x0EFF | 0x1000..=0x109F | 0x1780..=0x17FF | 0x3040..=0x30FF | 0x3400..=0x9FFF | 0xF900..=0xFAFF | 0x20000..=0x3FFFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passages_are_found_in_any_case_and_punctuation() {
        let index =
            PassageIndex::new(&["one", "the quick brown fox jumps over the lazy dog, he said"]);
        let answer = "So: The QUICK, brown fox jumps over the lazy cat.";
        let copy = index.longest_copy(answer, &[]).unwrap();
        assert_eq!(
            (copy.text.as_str(), copy.words, copy.row),
            ("The QUICK, brown fox jumps over the lazy", 8, 1)
        );
        assert_eq!(&answer[copy.place.clone()], copy.text);
        assert!(index.longest_copy("the quick brown fox jumps", &[]).is_none());
    }

    #[test]
    fn a_reference_that_has_the_passage_clears_it() {
        let index = PassageIndex::new(&["a b c d e f g h"]);
        assert!(index.longest_copy("a b c d e f g h", &["x", "a b c d e f g h i"]).is_none());
        // A part of it does not.
        let copy = index.longest_copy("a b c d e f g h", &["a b c d e f"]).unwrap();
        assert_eq!(copy.words, 8);
    }

    #[test]
    fn words_that_no_row_has_are_equal_to_none() {
        let index = PassageIndex::new(&["a b c"]);
        assert!(index.longest_copy("x x x x x x x x", &[]).is_none());
        assert!(PassageIndex::new::<&str>(&[]).longest_copy("a b c d e f g", &[]).is_none());
    }

    #[test]
    fn scripts_without_blanks_are_compared_by_sign() {
        let index = PassageIndex::new(&["今天天气很好我们去公园散步"]);
        let copy = index.longest_copy("他说今天天气很好我们去", &[]).unwrap();
        assert_eq!((copy.text.as_str(), copy.words), ("今天天气很好我们去", 9));
    }
}
