//! The profile of a data set: lengths, languages, duplicates, markup and personal data.
//!
//! Rows are counted as they come, so a file larger than memory has a profile, too
//! ([`Dataset::scan`]).

pub(crate) mod lengths;
mod spill;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::clean::pii::{self, Pii};
use crate::clean::{
    backticks, casing, control_tokens, html, language, markdown, mojibake, whitespace,
};
use crate::dataset::Dataset;
use crate::error::{DataError, Result};
use crate::key;
use crate::profile::lengths::LengthSummary;
use crate::profile::spill::Spill;
use crate::read::shape::RowShape;
use crate::text::{counted, excerpt, thousands};

/// The language of every row is detected up to this many rows, then of one in [`LANGUAGE_STEP`].
const LANGUAGE_ROWS: usize = 20_000;
const LANGUAGE_STEP: usize = 32;
/// Completions that are counted at a time; beyond, those seen once are forgotten.
const MAX_COMPLETIONS: usize = 200_000;
/// The commonest completions that a profile keeps.
const TOP: usize = 10;
/// The worst rows that a profile keeps.
const WORST: usize = 10;
const WORST_CHARS: usize = 160;

/// Counts the tokens of a text.
pub type TokenCount<'a> = dyn Fn(&str) -> usize + Sync + 'a;

/// The result of [`Dataset::profile`]. Counts are of rows; a row counts when its prompt or its
/// completion has the trait.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Profile {
    /// All rows.
    pub rows: usize,
    /// Rows of the file that could not be used.
    pub rejected: usize,
    /// Further columns with nulls, and how many.
    pub missing: Vec<(String, usize)>,
    /// The prompt or the completion is empty (of plain texts: the text).
    pub empty: usize,
    /// Both texts are the same as an earlier row's, character for character.
    pub exact_duplicates: usize,
    /// The same as an earlier row's, case, spaces and the punctuation of prose aside (exact ones included).
    pub duplicates: usize,
    /// Rows whose prompt (case, spaces and the punctuation of prose aside) stands with different completions.
    pub conflicting: usize,
    /// Languages by their ISO 639-3 code with their number of rows, the commonest first; "?" stands
    /// for texts that are too short. Beyond 20,000 rows one row in 32 counts.
    pub languages: Vec<(String, usize)>,
    /// HTML tags or comments.
    pub html_tags: usize,
    /// HTML entities such as `&amp;`.
    pub html_entities: usize,
    /// Markdown: headings, emphasis, links, quotes.
    pub markdown: usize,
    /// Markdown backticks that enclose no code.
    pub stray_backticks: usize,
    /// Texts all in capitals.
    pub shouting: usize,
    /// Texts of several words without a capital, in a script that has them.
    pub lower_case: usize,
    /// Texts read in the wrong encoding.
    pub mojibake: usize,
    /// Texts that are not in Unicode's composed form.
    pub decomposed: usize,
    /// Control tokens of chat templates in the words of a row, such as `<|im_end|>` (texts that are
    /// rendered already do not count).
    #[serde(default)]
    pub control_tokens: usize,
    /// Control characters other than line ends and tabs, or the mark of a lost character (U+FFFD).
    pub control_characters: usize,
    /// Runs of spaces, odd line ends, invisible characters.
    pub untidy_whitespace: usize,
    /// Web addresses.
    pub urls: usize,
    /// E-mail addresses.
    pub emails: usize,
    /// Telephone numbers.
    pub phones: usize,
    /// API keys, tokens, private keys.
    pub keys: usize,
    /// Card numbers and IBANs.
    pub accounts: usize,
    /// The commonest completions (case, spaces and the punctuation of prose aside), with their rows; only those
    /// that stand there twice.
    pub top_completions: Vec<(String, usize)>,
    /// Characters of the prompts.
    pub prompt_chars: LengthSummary,
    /// Characters of the completions.
    pub completion_chars: LengthSummary,
    /// Tokens of prompt and completion together, if they were counted.
    pub tokens: Option<LengthSummary>,
    /// Tokens that the model can see, if it was said.
    pub context_tokens: Option<usize>,
    /// The rows with the most flaws.
    pub worst: Vec<WorstRow>,
}

/// A row with flaws.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorstRow {
    /// Its index.
    pub row: usize,
    /// The flaws, in words.
    pub flaws: Vec<String>,
    /// The beginning of its prompt.
    pub prompt: String,
    /// The beginning of its completion.
    pub completion: String,
}

impl Dataset {
    /// The profile: lengths, languages, duplicates, markup, personal data, and the worst rows.
    pub fn profile(&self) -> Profile {
        // It can fail only where keys of very many rows do not fit on the disk.
        Profile::of(self, None, None).unwrap_or_default()
    }

    /// [`Dataset::profile`] with the tokens of a model, counted by `tokens`, and how many of them
    /// it can see.
    ///
    /// # Errors
    /// A temporary file cannot be written (only for very large sets).
    pub fn profile_with_tokens(
        &self,
        tokens: &TokenCount<'_>,
        context_tokens: usize,
    ) -> Result<Profile> {
        Profile::of(self, Some(tokens), Some(context_tokens))
    }
}

/// The findings of one row.
struct Found {
    exact: u64,
    words: u64,
    prompt_words: u64,
    completion_words: u64,
    flaws: [bool; FLAWS.len()],
    prompt_chars: u32,
    completion_chars: u32,
    tokens: u32,
    language: Option<&'static str>,
}

/// The names of the flaws, in the order of [`Found::flaws`]. The first ones
/// weigh as flaws; what stands after them may be meant.
const FLAWS: [&str; 17] = [
    "empty",
    "HTML tags",
    "HTML entities",
    "stray backticks",
    "all in capitals",
    "mojibake",
    "control characters",
    "a control token",
    "a key or token",
    "a card or account number",
    "an e-mail address",
    "a telephone number",
    "untidy whitespace",
    "not composed",
    "Markdown",
    "no capitals",
    "a web address",
];
/// The flaws that make a row one of the worst.
const WEIGHTY: usize = 13;

fn is_lower_case(text: &str) -> bool {
    text.split_whitespace().nth(2).is_some()
        && !text.contains(char::is_uppercase)
        && text.chars().any(|c| c.is_lowercase() && c.to_uppercase().ne([c]))
}

fn has_control(text: &str) -> bool {
    text.chars().any(|c| (c.is_control() && !matches!(c, '\n' | '\r' | '\t')) || c == '\u{fffd}')
}

impl Found {
    fn of(
        prompt: &str,
        completion: &str,
        row: usize,
        plain_text: bool,
        tokens: Option<&TokenCount<'_>>,
    ) -> Self {
        let any = |test: &dyn Fn(&str) -> bool| test(prompt) || test(completion);
        let (prompt_key, completion_key) = (key::normalized(prompt), key::normalized(completion));
        let empty = |text: &str| text.trim().is_empty();
        let judged = row < LANGUAGE_ROWS || row.is_multiple_of(LANGUAGE_STEP);
        Self {
            exact: key::pair_hash(prompt, completion) as u64,
            words: key::pair_hash(&prompt_key, &completion_key) as u64,
            prompt_words: xxh3_64(prompt_key.as_bytes()),
            completion_words: xxh3_64(completion_key.as_bytes()),
            flaws: [
                empty(completion) || (!plain_text && empty(prompt)),
                any(&|text| html::markup(text).0),
                any(&|text| html::markup(text).1),
                any(&|text| text.contains('`') && backticks::strip(text) != text),
                any(&casing::is_shouted),
                any(&|text| mojibake::repair(text) != text),
                any(&has_control),
                !plain_text && any(&control_tokens::is_in),
                any(&|text| Pii::Key.is_in(text)),
                any(&|text| Pii::Card.is_in(text) || Pii::Iban.is_in(text)),
                any(&|text| Pii::Email.is_in(text)),
                any(&|text| Pii::Phone.is_in(text)),
                any(&|text| whitespace::normalize(text) != text),
                any(&|text| mojibake::nfc(text) != text),
                any(&markdown::is_marked),
                any(&is_lower_case),
                any(&|text| {
                    (text.contains("://") || text.contains("www.")) && pii::URL.is_match(text)
                }),
            ],
            prompt_chars: prompt.chars().count() as u32,
            completion_chars: completion.chars().count() as u32,
            tokens: tokens.map_or(0, |tokens| {
                let whole = tokens(completion) + if prompt.is_empty() { 0 } else { tokens(prompt) };
                u32::try_from(whole).unwrap_or(u32::MAX)
            }),
            language: judged
                .then(|| language::of(&format!("{prompt}\n{completion}")).unwrap_or("?")),
        }
    }
}

/// A profile in the making.
#[derive(Default)]
pub(crate) struct Tally {
    profile: Profile,
    flaws: [usize; FLAWS.len()],
    keys: Spill,
    missing: BTreeMap<String, usize>,
    languages: HashMap<&'static str, usize>,
    completions: HashMap<u64, (usize, Box<str>)>,
    prompt_chars: BTreeMap<u32, u64>,
    completion_chars: BTreeMap<u32, u64>,
    tokens: BTreeMap<u32, u64>,
}

impl Tally {
    /// Adds the rows of a block.
    pub(crate) fn add(&mut self, block: &Dataset, tokens: Option<&TokenCount<'_>>) -> Result<()> {
        let first = self.profile.rows;
        let plain_text = *block.shape() == RowShape::Text;
        let pairs: Vec<(&str, &str)> = block.pairs().collect();
        let found: Vec<Found> = pairs
            .par_iter()
            .enumerate()
            .map(|(at, (prompt, completion))| {
                Found::of(prompt, completion, first + at, plain_text, tokens)
            })
            .collect();
        for (at, row) in found.into_iter().enumerate() {
            self.keys.push([row.prompt_words, row.words, row.exact]).map_err(spilled)?;
            *self.prompt_chars.entry(row.prompt_chars).or_default() += 1;
            *self.completion_chars.entry(row.completion_chars).or_default() += 1;
            if tokens.is_some() {
                *self.tokens.entry(row.tokens).or_default() += 1;
            }
            if let Some(language) = row.language {
                *self.languages.entry(language).or_default() += 1;
            }
            for (count, found) in self.flaws.iter_mut().zip(row.flaws) {
                *count += usize::from(found);
            }
            let entry = self
                .completions
                .entry(row.completion_words)
                .or_insert_with(|| (0, excerpt(pairs[at].1, 60).into_boxed_str()));
            entry.0 += 1;
            self.consider(first + at, &row, pairs[at]);
        }
        if self.completions.len() > MAX_COMPLETIONS {
            self.completions.retain(|_, (count, _)| *count > 1);
        }
        for column in block.frame_ref().columns() {
            let nulls = column.null_count();
            if nulls > 0 {
                *self.missing.entry(column.name().to_string()).or_default() += nulls;
            }
        }
        self.profile.rows += pairs.len();
        self.profile.rejected += block.rejected().height();
        Ok(())
    }

    /// Keeps the row if it is one of the worst.
    fn consider(&mut self, row: usize, found: &Found, (prompt, completion): (&str, &str)) {
        let weight = found.flaws[..WEIGHTY].iter().filter(|flaw| **flaw).count();
        let worst = &mut self.profile.worst;
        if weight == 0 || (worst.len() == WORST && worst[WORST - 1].flaws.len() >= weight) {
            return;
        }
        let flaws = FLAWS
            .iter()
            .zip(found.flaws)
            .take(WEIGHTY)
            .filter(|(_, found)| *found)
            .map(|(flaw, _)| (*flaw).to_owned());
        let new = WorstRow {
            row,
            flaws: flaws.collect(),
            prompt: excerpt(prompt, WORST_CHARS),
            completion: excerpt(completion, WORST_CHARS),
        };
        let at = worst.iter().position(|other| other.flaws.len() < weight).unwrap_or(worst.len());
        worst.insert(at, new);
        worst.truncate(WORST);
    }

    pub(crate) fn finish(
        self,
        counted_tokens: bool,
        context_tokens: Option<usize>,
    ) -> Result<Profile> {
        let Self { mut profile, flaws, keys, missing, languages, completions, .. } = self;
        keys.finish(&mut |keys| {
            for rows in keys.chunk_by(|a, b| a[0] == b[0]) {
                // Sorted: by the prompt's words, then by the pair's, then by the pair itself.
                let words = rows.chunk_by(|a, b| a[1] == b[1]).count();
                let exact = rows.chunk_by(|a, b| a[1..] == b[1..]).count();
                profile.duplicates += rows.len() - words;
                profile.exact_duplicates += rows.len() - exact;
                if words > 1 {
                    profile.conflicting += rows.len();
                }
            }
        })
        .map_err(spilled)?;
        let [
            empty,
            tags,
            entities,
            ticks,
            shouting,
            mojibake,
            control,
            control_tokens,
            secrets,
            accounts,
            emails,
            phones,
            whitespace,
            decomposed,
            markdown,
            lower,
            urls,
        ] = flaws;
        let mut languages: Vec<(String, usize)> =
            languages.into_iter().map(|(code, rows)| (code.to_owned(), rows)).collect();
        languages.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut top: Vec<(String, usize)> = completions
            .into_values()
            .filter(|(rows, _)| *rows > 1)
            .map(|(rows, text)| (text.into_string(), rows))
            .collect();
        top.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        top.truncate(TOP);
        Ok(Profile {
            missing: missing.into_iter().collect(),
            empty,
            languages,
            html_tags: tags,
            html_entities: entities,
            markdown,
            stray_backticks: ticks,
            shouting,
            lower_case: lower,
            mojibake,
            decomposed,
            control_characters: control,
            control_tokens,
            untidy_whitespace: whitespace,
            urls,
            emails,
            phones,
            keys: secrets,
            accounts,
            top_completions: top,
            prompt_chars: LengthSummary::of_counts(self.prompt_chars),
            completion_chars: LengthSummary::of_counts(self.completion_chars),
            tokens: counted_tokens.then(|| LengthSummary::of_counts(self.tokens)),
            context_tokens,
            ..profile
        })
    }
}

fn spilled(source: std::io::Error) -> DataError {
    DataError::Io { action: "write", path: std::env::temp_dir(), source }
}

impl Profile {
    fn of(
        dataset: &Dataset,
        tokens: Option<&TokenCount<'_>>,
        context_tokens: Option<usize>,
    ) -> Result<Self> {
        let mut tally = Tally::default();
        tally.add(dataset, tokens)?;
        tally.finish(tokens.is_some(), context_tokens)
    }

    /// Every finding as (name, rows that have it, remedy).
    pub fn findings(&self) -> Vec<(&'static str, usize, &'static str)> {
        let long = match (&self.tokens, self.context_tokens) {
            (Some(tokens), Some(context)) => tokens.over(context) as usize,
            _ => 0,
        };
        vec![
            ("rows that could not be used", self.rejected, "see rejected()"),
            ("empty prompt or completion", self.empty, "drop_empty"),
            ("longer than the context", long, "drop_long, or a larger context"),
            ("exact duplicates", self.exact_duplicates, "drop_duplicates"),
            ("duplicates, by words and signs alone", self.duplicates, "drop_duplicates"),
            (
                "same prompt, different completions",
                self.conflicting,
                "see conflicts(), resolve_conflicts",
            ),
            ("HTML tags", self.html_tags, "strip_html"),
            ("HTML entities", self.html_entities, "strip_html"),
            ("Markdown", self.markdown, "strip_markdown or tidy_markdown"),
            ("stray backticks", self.stray_backticks, "strip_backticks"),
            ("all in capitals", self.shouting, "repair_casing"),
            ("without a capital", self.lower_case, "look at them"),
            ("mojibake", self.mojibake, "repair_mojibake"),
            ("not in composed form", self.decomposed, "normalize_unicode"),
            ("control characters", self.control_characters, "normalize_whitespace"),
            ("control tokens of chat templates", self.control_tokens, "strip_control_tokens"),
            ("untidy whitespace", self.untidy_whitespace, "normalize_whitespace"),
            ("web addresses", self.urls, "look at them"),
            ("e-mail addresses", self.emails, "mask_pii"),
            ("telephone numbers", self.phones, "mask_pii"),
            ("keys and tokens", self.keys, "mask_pii, and revoke them"),
            ("card and account numbers", self.accounts, "mask_pii"),
        ]
    }

    /// The commonest completion's share of the rows, if one stands there twice.
    pub fn imbalance(&self) -> Option<f64> {
        self.top_completions.first().map(|(_, rows)| *rows as f64 / self.rows.max(1) as f64)
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", counted(self.rows, "row"))?;
        writeln!(
            f,
            "{:<12} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
            "characters", "min", "median", "mean", "p95", "p99", "max"
        )?;
        let chars = [("prompt", &self.prompt_chars), ("completion", &self.completion_chars)];
        for (name, lengths) in
            chars.into_iter().chain(self.tokens.iter().map(|tokens| ("tokens", tokens)))
        {
            writeln!(
                f,
                "{name:<12} {:>8} {:>8} {:>8.0} {:>8} {:>8} {:>8}",
                thousands(lengths.min as usize),
                thousands(lengths.median as usize),
                lengths.mean,
                thousands(lengths.p95 as usize),
                thousands(lengths.p99 as usize),
                thousands(lengths.max as usize)
            )?;
        }
        if !self.languages.is_empty() {
            let shown: Vec<String> = self
                .languages
                .iter()
                .take(5)
                .map(|(code, rows)| format!("{code} {}", thousands(*rows)))
                .collect();
            writeln!(f, "languages    {}", shown.join(", "))?;
        }
        for (column, nulls) in &self.missing {
            writeln!(
                f,
                "{:<40} {:>8}",
                format!("missing in \"{}\"", excerpt(column, 24)),
                thousands(*nulls)
            )?;
        }
        for (finding, rows, step) in self.findings() {
            if rows > 0 {
                writeln!(f, "{finding:<40} {:>8}  ({step})", thousands(rows))?;
            }
        }
        if let (Some((text, rows)), Some(share)) = (self.top_completions.first(), self.imbalance())
        {
            writeln!(
                f,
                "{:<40} {:>8}  ({:.1} %)",
                format!("commonest: {}", excerpt(text, 28)),
                thousands(*rows),
                100.0 * share
            )?;
        }
        for worst in self.worst.iter().take(3) {
            writeln!(f, "worst: row {}: {}", worst.row, worst.flaws.join(", "))?;
        }
        Ok(())
    }
}
