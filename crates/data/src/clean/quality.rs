//! Quality rules for texts: the filters of Gopher and of FineWeb.
//!
//! Rae et al. 2021, *Scaling Language Models: Methods, Analysis & Insights from Training Gopher*,
//! table A1; Penedo et al. 2024, *The FineWeb Datasets*. They were made for web pages:
//! [`Quality::pairs`] leaves out the rules that a short answer cannot keep.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Bounds that a text must keep; `None` leaves a rule out. Ratios are between 0 and 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quality {
    /// The fewest words.
    pub min_words: Option<usize>,
    /// The most words.
    pub max_words: Option<usize>,
    /// The shortest mean word, in characters.
    pub min_mean_word_chars: Option<f64>,
    /// The longest mean word, in characters.
    pub max_mean_word_chars: Option<f64>,
    /// The most symbols (`#` and ellipses) for each word.
    pub max_symbol_ratio: Option<f64>,
    /// The largest share of lines that start with a bullet.
    pub max_bullet_lines: Option<f64>,
    /// The largest share of lines that end with an ellipsis.
    pub max_ellipsis_lines: Option<f64>,
    /// The smallest share of words with a letter.
    pub min_alphabetic_words: Option<f64>,
    /// The fewest of the words *the, be, to, of, and, that, have, with* (for English only).
    pub min_stop_words: Option<usize>,
    /// The smallest share of lines that end with a punctuation mark.
    pub min_punctuated_lines: Option<f64>,
    /// The largest share of lines of 30 characters or fewer.
    pub max_short_lines: Option<f64>,
    /// The largest share of characters in lines that stand there twice.
    pub max_duplicate_line_chars: Option<f64>,
    /// The most line breaks for each word.
    pub max_line_breaks: Option<f64>,
}

impl Quality {
    /// Gopher's rules.
    pub fn gopher() -> Self {
        Self {
            min_words: Some(50),
            max_words: Some(100_000),
            min_mean_word_chars: Some(3.0),
            max_mean_word_chars: Some(10.0),
            max_symbol_ratio: Some(0.1),
            max_bullet_lines: Some(0.9),
            max_ellipsis_lines: Some(0.3),
            min_alphabetic_words: Some(0.8),
            min_stop_words: Some(2),
            ..Self::default()
        }
    }

    /// FineWeb's own rules, which it adds to Gopher's.
    pub fn fineweb() -> Self {
        Self {
            min_punctuated_lines: Some(0.12),
            max_short_lines: Some(0.67),
            max_duplicate_line_chars: Some(0.1),
            max_line_breaks: Some(0.3),
            ..Self::default()
        }
    }

    /// The rules of both that a good short answer keeps in any language.
    pub fn pairs() -> Self {
        Self {
            max_words: Some(100_000),
            max_mean_word_chars: Some(20.0),
            max_symbol_ratio: Some(0.1),
            max_ellipsis_lines: Some(0.5),
            min_alphabetic_words: Some(0.5),
            max_duplicate_line_chars: Some(0.3),
            ..Self::default()
        }
    }

    /// The first bound that a text breaks, with what was found; `None` for a text that keeps them
    /// all.
    pub fn reason(&self, text: &str) -> Option<String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let count = words.len();
        let of = |part: usize, all: usize| part as f64 / all.max(1) as f64;
        if let Some(min) = self.min_words.filter(|&min| count < min) {
            return Some(format!("{count} words, expected at least {min}"));
        }
        if let Some(max) = self.max_words.filter(|&max| count > max) {
            return Some(format!("{count} words, expected at most {max}"));
        }
        // What is said of shares means nothing for no words.
        if count == 0 {
            return None;
        }
        let mean = of(words.iter().map(|word| word.chars().count()).sum(), count);
        if let Some(min) = self.min_mean_word_chars.filter(|&min| mean < min) {
            return Some(format!(
                "words of {mean:.1} characters on average, expected at least {min}"
            ));
        }
        if let Some(max) = self.max_mean_word_chars.filter(|&max| mean > max) {
            return Some(format!(
                "words of {mean:.1} characters on average, expected at most {max}"
            ));
        }
        let most = |what: &str, found: f64, bound: Option<f64>| {
            bound.filter(|&max| found > max).map(|max| {
                format!("{:.0} % {what}, expected at most {:.0} %", 100.0 * found, 100.0 * max)
            })
        };
        let least = |what: &str, found: f64, bound: Option<f64>| {
            bound.filter(|&min| found < min).map(|min| {
                format!("{:.0} % {what}, expected at least {:.0} %", 100.0 * found, 100.0 * min)
            })
        };
        let symbols =
            text.matches('#').count() + text.matches("...").count() + text.matches('…').count();
        let lines: Vec<&str> =
            text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let share = |test: &dyn Fn(&str) -> bool| {
            of(lines.iter().filter(|line| test(line)).count(), lines.len())
        };
        let alphabetic = words.iter().filter(|word| word.contains(char::is_alphabetic)).count();
        most("symbols for each word", of(symbols, count), self.max_symbol_ratio)
            .or_else(|| {
                let bullets = share(&|line| line.starts_with(['•', '-', '*', '‣', '◦']));
                most("of lines start with a bullet", bullets, self.max_bullet_lines)
            })
            .or_else(|| {
                let ellipses = share(&|line| line.ends_with("...") || line.ends_with('…'));
                most("of lines end with an ellipsis", ellipses, self.max_ellipsis_lines)
            })
            .or_else(|| {
                least("of words have a letter", of(alphabetic, count), self.min_alphabetic_words)
            })
            .or_else(|| {
                let stop = ["the", "be", "to", "of", "and", "that", "have", "with"];
                let found = stop
                    .iter()
                    .filter(|stop| words.iter().any(|word| word.eq_ignore_ascii_case(stop)))
                    .count();
                let min = self.min_stop_words.filter(|&min| found < min)?;
                Some(format!("{found} of the commonest English words, expected at least {min}"))
            })
            .or_else(|| {
                let ended = share(&|line| {
                    line.ends_with(['.', '!', '?', '"', '\'', '”', '’', '。', '！', '？', ':', ';'])
                });
                least("of lines end with a punctuation mark", ended, self.min_punctuated_lines)
            })
            .or_else(|| {
                most(
                    "of lines are short",
                    share(&|line| line.chars().count() <= 30),
                    self.max_short_lines,
                )
            })
            .or_else(|| {
                let chars: usize = lines.iter().map(|line| line.chars().count()).sum();
                most(
                    "of characters are in repeated lines",
                    of(repeated(&lines).1, chars),
                    self.max_duplicate_line_chars,
                )
            })
            .or_else(|| {
                let breaks = text.matches('\n').count();
                most("line breaks for each word", of(breaks, count), self.max_line_breaks)
            })
    }
}

/// Gopher's bounds on repetition within a text (table A1). Ratios are between 0 and 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Repetition {
    /// The largest share of lines that stand there before.
    pub max_duplicate_lines: f64,
    /// The largest share of paragraphs that stand there before.
    pub max_duplicate_paragraphs: f64,
    /// The largest share of characters in the commonest run of 2, 3 and 4 words.
    pub max_top_ngram: [f64; 3],
    /// The largest share of characters in runs of 5 to 10 words that stand there more than once.
    pub max_duplicate_ngrams: [f64; 6],
    /// Texts of fewer words are not judged: in a short one every run is common.
    pub min_words: usize,
}

impl Default for Repetition {
    fn default() -> Self {
        Self {
            max_duplicate_lines: 0.3,
            max_duplicate_paragraphs: 0.3,
            max_top_ngram: [0.20, 0.18, 0.16],
            max_duplicate_ngrams: [0.15, 0.14, 0.13, 0.12, 0.11, 0.10],
            min_words: 20,
        }
    }
}

impl Repetition {
    /// The first bound that a text breaks, with what was found.
    pub fn reason(&self, text: &str) -> Option<String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.len() < self.min_words {
            return None;
        }
        let over = |what: String, found: f64, max: f64| {
            (found > max).then(|| {
                format!("{:.0} % of {what}, expected at most {:.0} %", 100.0 * found, 100.0 * max)
            })
        };
        let lines: Vec<&str> =
            text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let paragraphs: Vec<&str> =
            text.split("\n\n").map(str::trim).filter(|part| !part.is_empty()).collect();
        let share = |parts: &[&str]| repeated(parts).0 as f64 / parts.len().max(1) as f64;
        let chars: usize = words.iter().map(|word| word.chars().count()).sum();
        over("lines are repeated".to_owned(), share(&lines), self.max_duplicate_lines)
            .or_else(|| {
                over(
                    "paragraphs are repeated".to_owned(),
                    share(&paragraphs),
                    self.max_duplicate_paragraphs,
                )
            })
            .or_else(|| {
                (2..).zip(self.max_top_ngram).find_map(|(n, max)| {
                    let found = top_ngram(&words, n) as f64 / chars.max(1) as f64;
                    over(format!("characters are one run of {n} words"), found, max)
                })
            })
            .or_else(|| {
                (5..).zip(self.max_duplicate_ngrams).find_map(|(n, max)| {
                    let found = duplicate_ngrams(&words, n) as f64 / chars.max(1) as f64;
                    over(format!("characters are in repeated runs of {n} words"), found, max)
                })
            })
    }
}

/// Parts that stood there before: how many, and their characters.
fn repeated(parts: &[&str]) -> (usize, usize) {
    let mut seen = std::collections::HashSet::with_capacity(parts.len());
    parts
        .iter()
        .filter(|part| !seen.insert(**part))
        .fold((0, 0), |(count, chars), part| (count + 1, chars + part.chars().count()))
}

fn hash(words: &[&str]) -> u64 {
    xxh3_64(words.join(" ").as_bytes())
}

/// Characters in the commonest run of `n` words, if it stands there more than once.
fn top_ngram(words: &[&str], n: usize) -> usize {
    let mut counts: HashMap<u64, (usize, usize)> = HashMap::new();
    for run in words.windows(n) {
        let entry = counts
            .entry(hash(run))
            .or_insert((0, run.iter().map(|word| word.chars().count()).sum()));
        entry.0 += 1;
    }
    counts
        .values()
        .filter(|(count, _)| *count > 1)
        .map(|(count, chars)| count * chars)
        .max()
        .unwrap_or(0)
}

/// Characters in runs of `n` words that stood there before.
fn duplicate_ngrams(words: &[&str], n: usize) -> usize {
    let mut seen = std::collections::HashSet::new();
    let (mut at, mut chars) = (0, 0);
    while at + n <= words.len() {
        if seen.insert(hash(&words[at..at + n])) {
            at += 1;
        } else {
            chars += words[at..at + n].iter().map(|word| word.chars().count()).sum::<usize>();
            at += n;
        }
    }
    chars
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "The tent must be dry before it is folded, or the coating will come off within a year of use. \
        Hang it over a line for a day, brush off what sand there is, and store it loosely in a bag that lets the air pass. \
        That is all there is to it, and your tent will serve you well for many summers to come.";

    #[test]
    fn good_text_keeps_every_rule() {
        for rules in [Quality::gopher(), Quality::fineweb(), Quality::pairs()] {
            assert_eq!(rules.reason(GOOD), None);
        }
        assert_eq!(Repetition::default().reason(GOOD), None);
        assert_eq!(Quality::pairs().reason("Yes."), None);
        assert_eq!(Quality::pairs().reason(""), None);
    }

    #[test]
    fn each_rule_names_itself() {
        let with = |change: &dyn Fn(&mut Quality), text: &str| {
            let mut rules = Quality::default();
            change(&mut rules);
            rules.reason(text).unwrap_or_default()
        };
        assert_eq!(
            Quality::gopher().reason("too short").unwrap_or_default(),
            "2 words, expected at least 50"
        );
        assert!(with(&|q| q.max_words = Some(1), "a b").contains("at most 1"));
        assert!(with(&|q| q.min_mean_word_chars = Some(3.0), "a b c").contains("1.0 characters"));
        assert!(
            with(&|q| q.max_mean_word_chars = Some(10.0), "Donaudampfschifffahrt")
                .contains("at most 10")
        );
        assert!(with(&|q| q.max_symbol_ratio = Some(0.1), "# # wow").contains("67 % symbols"));
        assert!(with(&|q| q.max_bullet_lines = Some(0.9), "- a\n- b").contains("bullet"));
        assert!(with(&|q| q.max_ellipsis_lines = Some(0.3), "a...\nb…").contains("ellipsis"));
        assert!(
            with(&|q| q.min_alphabetic_words = Some(0.8), "1 2 3 a")
                .contains("25 % of words have a letter")
        );
        assert!(with(&|q| q.min_stop_words = Some(2), "the cat").contains("1 of the commonest"));
        assert!(with(&|q| q.min_punctuated_lines = Some(0.12), "a\nb").contains("punctuation"));
        assert!(with(&|q| q.max_short_lines = Some(0.67), "a\nb").contains("short"));
        assert!(
            with(&|q| q.max_duplicate_line_chars = Some(0.1), "same\nsame")
                .contains("repeated lines")
        );
        assert!(with(&|q| q.max_line_breaks = Some(0.3), "a\nb\nc").contains("line breaks"));
    }

    #[test]
    fn a_text_that_repeats_itself_is_found() {
        let rules = Repetition::default();
        let says = |text: &str| rules.reason(text).unwrap_or_default();
        assert!(
            says(&"I can help you with that today, dear friend.\n".repeat(10))
                .contains("lines are repeated")
        );
        assert!(says(&"buy now ".repeat(20)).contains("run of 2 words"));
        let run = "one two three four five six seven eight nine ten";
        let text =
            format!("{GOOD} {run} and then more of it: {run} again, {run} for the last time.");
        assert!(says(&text).contains("repeated runs"), "{}", says(&text));
        assert_eq!(rules.reason("no no no"), None);
    }
}
