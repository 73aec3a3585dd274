//! What is in a data set, before one trusts it: lengths, duplicates, markup.

use std::collections::HashMap;
use std::fmt;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::dataset::Dataset;
use crate::text::{counted, thousands};
use crate::{backticks, casing, html, key, whitespace};

/// The result of [`Dataset::profile`]. Counts are of rows; a row counts when its prompt or its completion has the trait.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Profile {
    /// All rows.
    pub rows: usize,
    /// Lines of the file that could not be used.
    pub rejected: usize,
    /// The prompt or the completion is empty.
    pub empty: usize,
    /// Both texts are the same as an earlier row's, character for character.
    pub exact_duplicates: usize,
    /// The same as an earlier row's, case, punctuation and spaces aside (exact ones included).
    pub duplicates: usize,
    /// Rows whose prompt (case, punctuation and spaces aside) stands with different completions.
    pub conflicting: usize,
    /// HTML tags or comments.
    pub html_tags: usize,
    /// HTML entities such as `&amp;`.
    pub html_entities: usize,
    /// Markdown backticks that enclose no code.
    pub stray_backticks: usize,
    /// Texts all in capitals.
    pub shouting: usize,
    /// Runs of spaces, odd line ends, invisible characters.
    pub untidy_whitespace: usize,
    /// Characters of the prompts.
    pub prompt_chars: LengthSummary,
    /// Characters of the completions.
    pub completion_chars: LengthSummary,
}

/// Lengths of texts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LengthSummary {
    /// The shortest.
    pub min: u32,
    /// Half are no longer than this.
    pub median: u32,
    /// The mean.
    pub mean: f64,
    /// 95 % are no longer than this.
    pub p95: u32,
    /// The longest.
    pub max: u32,
    /// All lengths, in the order of the rows.
    pub lengths: Vec<u32>,
}

impl LengthSummary {
    /// The summary of these lengths; all zero when there are none.
    pub fn of(lengths: Vec<u32>) -> Self {
        let mut sorted = lengths.clone();
        sorted.sort_unstable();
        // Nearest rank: the smallest length that this share of the rows does not exceed.
        let at = |share: f64| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        let total: u64 = lengths.iter().map(|&length| u64::from(length)).sum();
        Self {
            min: sorted.first().copied().unwrap_or_default(),
            median: at(0.5),
            mean: if lengths.is_empty() { 0.0 } else { total as f64 / lengths.len() as f64 },
            p95: at(0.95),
            max: sorted.last().copied().unwrap_or_default(),
            lengths,
        }
    }
}

/// What is found in one row.
struct Found {
    empty: bool,
    exact: u128,
    words: u128,
    prompt_words: u128,
    tags: bool,
    entities: bool,
    backticks: bool,
    shouting: bool,
    whitespace: bool,
    prompt_chars: u32,
    completion_chars: u32,
}

impl Found {
    fn of((prompt, completion): (&str, &str)) -> Self {
        let any = |test: fn(&str) -> bool| test(prompt) || test(completion);
        let (prompt_key, completion_key) = (key::normalized(prompt), key::normalized(completion));
        Self {
            empty: any(|text| text.trim().is_empty()),
            exact: key::pair_hash(prompt, completion),
            words: key::pair_hash(&prompt_key, &completion_key),
            prompt_words: key::text_hash(&prompt_key),
            tags: any(|text| html::markup(text).0),
            entities: any(|text| html::markup(text).1),
            backticks: any(|text| backticks::strip(text) != text),
            shouting: any(casing::is_shouted),
            whitespace: any(|text| whitespace::normalize(text) != text),
            prompt_chars: prompt.chars().count() as u32,
            completion_chars: completion.chars().count() as u32,
        }
    }
}

impl Profile {
    pub(crate) fn of(dataset: &Dataset) -> Self {
        let pairs: Vec<(&str, &str)> = dataset.pairs().collect();
        let found: Vec<Found> = pairs.into_par_iter().map(Found::of).collect();
        let count = |test: fn(&Found) -> bool| found.iter().filter(|row| test(row)).count();
        let repeated = |key: fn(&Found) -> u128| {
            let distinct: std::collections::HashSet<u128> = found.iter().map(key).collect();
            found.len() - distinct.len()
        };
        // Prompt -> its completion, or none once a second one is seen.
        let mut answers: HashMap<u128, (usize, Option<u128>)> = HashMap::new();
        for row in &found {
            let entry = answers.entry(row.prompt_words).or_insert((0, Some(row.words)));
            entry.0 += 1;
            if entry.1 != Some(row.words) {
                entry.1 = None;
            }
        }
        Self {
            rows: found.len(),
            rejected: dataset.rejected().height(),
            empty: count(|row| row.empty),
            exact_duplicates: repeated(|row| row.exact),
            duplicates: repeated(|row| row.words),
            conflicting: answers.values().filter(|answer| answer.1.is_none()).map(|answer| answer.0).sum(),
            html_tags: count(|row| row.tags),
            html_entities: count(|row| row.entities),
            stray_backticks: count(|row| row.backticks),
            shouting: count(|row| row.shouting),
            untidy_whitespace: count(|row| row.whitespace),
            prompt_chars: LengthSummary::of(found.iter().map(|row| row.prompt_chars).collect()),
            completion_chars: LengthSummary::of(found.iter().map(|row| row.completion_chars).collect()),
        }
    }

    /// What was looked for, how many rows have it, and what to do about it, in the order of the fields.
    pub fn findings(&self) -> Vec<(&'static str, usize, &'static str)> {
        vec![
            ("lines that could not be used", self.rejected, "see rejected()"),
            ("empty prompt or completion", self.empty, "drop_empty"),
            ("exact duplicates", self.exact_duplicates, "drop_duplicates"),
            ("duplicates, case and punctuation aside", self.duplicates, "drop_duplicates"),
            ("same prompt, different completions", self.conflicting, "decide by hand"),
            ("HTML tags", self.html_tags, "strip_html"),
            ("HTML entities", self.html_entities, "strip_html"),
            ("stray backticks", self.stray_backticks, "strip_backticks"),
            ("all in capitals", self.shouting, "repair_casing"),
            ("untidy whitespace", self.untidy_whitespace, "normalize_whitespace"),
        ]
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", counted(self.rows, "row"))?;
        writeln!(
            f,
            "{:<12} {:>8} {:>8} {:>8} {:>8} {:>8}",
            "characters", "min", "median", "mean", "p95", "max"
        )?;
        for (name, lengths) in [("prompt", &self.prompt_chars), ("completion", &self.completion_chars)] {
            writeln!(
                f,
                "{name:<12} {:>8} {:>8} {:>8.0} {:>8} {:>8}",
                thousands(lengths.min as usize),
                thousands(lengths.median as usize),
                lengths.mean,
                thousands(lengths.p95 as usize),
                thousands(lengths.max as usize)
            )?;
        }
        for (finding, rows, step) in self.findings() {
            if rows > 0 {
                writeln!(f, "{finding:<40} {:>8}  ({step})", thousands(rows))?;
            }
        }
        Ok(())
    }
}
