//! Leaks between training and validation: rows that make the validation curve look better than the
//! model is.

use std::collections::HashMap;
use std::fmt;

use polars::prelude::*;
use serde::{Deserialize, Serialize};
use tunebook_progress::interrupt;
use xxhash_rust::xxh3::xxh3_64;

use crate::columns::{COMPLETION, PROMPT};
use crate::dataset::Dataset;
use crate::error::Result;
use crate::near::Likeness;
use crate::near::shingles::Shingles;
use crate::split::Splits;
use crate::text::{counted, excerpt};
use crate::{key, near};

/// The kinds of overlap between a validation row and the training rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OverlapKind {
    /// The same prompt and completion, character for character.
    ExactRow,
    /// The same prompt, character for character.
    ExactPrompt,
    /// The same prompt, case, spaces and the punctuation of prose aside.
    NormalizedPrompt,
    /// Nearly the same prompt: a Jaccard similarity of 0.72 or more over its character 5-grams.
    NearPrompt,
    /// Thirteen words in a row that stand in training, too (in the prompt or the completion).
    SharedNgram,
}

impl OverlapKind {
    /// The kind in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::ExactRow => "same prompt and completion",
            Self::ExactPrompt => "same prompt",
            Self::NormalizedPrompt => "same words in the prompt",
            Self::NearPrompt => "nearly the same prompt",
            Self::SharedNgram => "13 words in a row",
        }
    }

    /// All kinds, the plainest first.
    pub const ALL: [Self; 5] = [
        Self::ExactRow,
        Self::ExactPrompt,
        Self::NormalizedPrompt,
        Self::NearPrompt,
        Self::SharedNgram,
    ];
}

/// A validation row and the training row that it overlaps with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Overlap {
    /// The kind. Each validation row is counted once, under the first kind that holds.
    pub kind: OverlapKind,
    /// The row's index in the training side.
    pub train_row: usize,
    /// The row's index in the validation side.
    pub validation_row: usize,
    /// Jaccard similarity of the two prompts, from 0 to 1.
    pub similarity: f64,
}

/// Words of a shared run that count as a leak: the length that GPT-3's authors looked for.
const NGRAM_WORDS: usize = 13;

/// The result of [`Splits::audit`].
#[derive(Clone, Debug)]
pub struct Audit {
    overlaps: Vec<Overlap>,
    labels: Vec<LabelLeak>,
    train: Dataset,
    validation: Dataset,
    /// The test of the split, which this audit does not look at.
    test: Option<Dataset>,
    /// The name of the second side in messages.
    held_out: &'static str,
}

/// A row whose prompt holds its completion: the model learns to copy, and is judged by copying.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelLeak {
    /// Whether the row is one of training.
    pub in_train: bool,
    /// Its index in its side.
    pub row: usize,
}

/// A completion of fewer words and fewer characters than these may stand in its prompt by chance
/// ("yes or no?").
const LABEL_WORDS: usize = 2;
const LABEL_CHARS: usize = 10;

impl Dataset {
    /// Searches this set, as training data, for overlaps with the rows of `benchmark`.
    /// [`Audit::repair_train`] takes them out.
    ///
    /// # Errors
    /// The user pressed Stop.
    pub fn audit_against(&self, benchmark: &Dataset) -> Result<Audit> {
        Audit::of(&Splits::new(self.clone(), benchmark.clone()), "the benchmark")
    }
}

impl Splits {
    /// Searches the training rows for overlaps with the validation rows.
    ///
    /// # Errors
    /// The user pressed Stop.
    pub fn audit(&self) -> Result<Audit> {
        Audit::of(self, "validation")
    }

    /// Searches the training and validation rows for overlaps with the test rows. Without a test
    /// nothing is found.
    ///
    /// # Errors
    /// The user pressed Stop; columns that do not fit each other.
    pub fn audit_test(&self) -> Result<Audit> {
        let known = self.train.concat(&self.validation)?;
        let test = self.test.clone().unwrap_or_else(|| known.head(0));
        Audit::of(&Self::new(known, test), "the test")
    }
}

impl Audit {
    fn of(splits: &Splits, held_out: &'static str) -> Result<Self> {
        let mut rows: HashMap<u128, usize> = HashMap::new();
        let mut prompts: HashMap<u128, usize> = HashMap::new();
        let mut normalized: HashMap<u128, usize> = HashMap::new();
        let mut runs: HashMap<u64, usize> = HashMap::new();
        for (row, (prompt, completion)) in splits.train.pairs().enumerate() {
            if row.is_multiple_of(4096) {
                interrupt::check()?;
            }
            rows.entry(key::pair_hash(prompt, completion)).or_insert(row);
            if !prompt.is_empty() {
                prompts.entry(key::text_hash(prompt)).or_insert(row);
                normalized.entry(key::text_hash(&key::normalized(prompt))).or_insert(row);
            }
            for text in [prompt, completion] {
                for ngram in ngrams(text) {
                    runs.entry(ngram).or_insert(row);
                }
            }
        }
        let near = Self::near(splits)?;
        let mut overlaps = Vec::new();
        for (validation_row, (prompt, completion)) in splits.validation.pairs().enumerate() {
            if validation_row.is_multiple_of(4096) {
                interrupt::check()?;
            }
            let found = rows
                .get(&key::pair_hash(prompt, completion))
                .map(|&row| (OverlapKind::ExactRow, row))
                .or_else(|| {
                    prompts.get(&key::text_hash(prompt)).map(|&row| (OverlapKind::ExactPrompt, row))
                })
                .or_else(|| {
                    let key = key::text_hash(&key::normalized(prompt));
                    normalized.get(&key).map(|&row| (OverlapKind::NormalizedPrompt, row))
                })
                .or_else(|| near.get(&validation_row).map(|&row| (OverlapKind::NearPrompt, row)))
                .or_else(|| {
                    let mut ngrams = ngrams(prompt).chain(ngrams(completion));
                    ngrams
                        .find_map(|ngram| runs.get(&ngram))
                        .map(|&row| (OverlapKind::SharedNgram, row))
                });
            let Some((kind, train_row)) = found else { continue };
            let like = |a: &str, b: &str| near::similarity(a, b, Shingles::default());
            let similarity = match prompt.is_empty() {
                true => like(
                    splits.train.text(COMPLETION).get(train_row).unwrap_or_default(),
                    completion,
                ),
                false => like(splits.train.text(PROMPT).get(train_row).unwrap_or_default(), prompt),
            };
            overlaps.push(Overlap { kind, train_row, validation_row, similarity });
        }
        let mut labels = label_leaks(&splits.train, true);
        labels.extend(label_leaks(&splits.validation, false));
        Ok(Self {
            overlaps,
            labels,
            train: splits.train.clone(),
            validation: splits.validation.clone(),
            test: splits.test.clone(),
            held_out,
        })
    }

    /// The training row most like each validation row that has a near one.
    fn near(splits: &Splits) -> Result<HashMap<usize, usize>> {
        let train = splits.train.len();
        let prompts: Vec<&str> =
            splits.train.id_texts().chain(splits.validation.id_texts()).collect();
        let pairs = near::pairs(&prompts, Likeness::default(), &|first, second| {
            first < train && second >= train
        })?;
        let mut best: HashMap<usize, (f64, usize)> = HashMap::new();
        for pair in pairs {
            let entry = best.entry(pair.second - train).or_insert((pair.similarity, pair.first));
            if pair.similarity > entry.0 {
                *entry = (pair.similarity, pair.first);
            }
        }
        Ok(best.into_iter().map(|(row, (_, like))| (row, like)).collect())
    }

    /// Whether no leak was found, neither between the sides nor within a row.
    pub fn is_clean(&self) -> bool {
        self.overlaps.is_empty() && self.labels.is_empty()
    }

    /// Rows whose prompt holds their completion (two words or ten characters of it at least).
    pub fn label_leaks(&self) -> &[LabelLeak] {
        &self.labels
    }

    /// The leaks, in the order of the validation rows.
    pub fn overlaps(&self) -> &[Overlap] {
        &self.overlaps
    }

    /// The number of validation rows with this kind of overlap.
    pub fn count(&self, kind: OverlapKind) -> usize {
        self.overlaps.iter().filter(|overlap| overlap.kind == kind).count()
    }

    /// The validation side's number of rows.
    pub fn validation_rows(&self) -> usize {
        self.validation.len()
    }

    /// The verdict in a sentence or two.
    pub fn verdict(&self) -> String {
        let rows = self.validation.len();
        let held_out = self.held_out;
        let mut verdict = match self.overlaps.len() {
            0 => format!(
                "No leak found: none of the {} of {held_out} is known from training.",
                counted(rows, "row")
            ),
            leaks => format!(
                "{} of {} of {held_out} ({:.1} %) are known from training: the loss on them is too good to be true.",
                leaks,
                counted(rows, "row"),
                100.0 * leaks as f64 / rows as f64
            ),
        };
        if !self.labels.is_empty() {
            let rows = counted(self.labels.len(), "row");
            verdict.push_str(&format!(
                " {rows} give their completion away in the prompt: see label_leaks()."
            ));
        }
        verdict
    }

    /// The pairs themselves: columns `kind`, `similarity`, `train_row`, `validation_row`,
    /// `train_prompt`, `validation_prompt`.
    pub fn pairs(&self) -> Result<DataFrame> {
        let rows = |get: fn(&Overlap) -> usize| {
            self.overlaps.iter().map(|overlap| get(overlap) as i64).collect::<Vec<_>>()
        };
        let prompts = |side: &Dataset, get: fn(&Overlap) -> usize| -> Vec<Option<String>> {
            self.overlaps
                .iter()
                .map(|overlap| side.text(PROMPT).get(get(overlap)).map(str::to_owned))
                .collect()
        };
        let kinds: Vec<&str> = self.overlaps.iter().map(|overlap| overlap.kind.name()).collect();
        Ok(DataFrame::new(
            self.overlaps.len(),
            vec![
                Column::new("kind".into(), kinds),
                Column::new(
                    "similarity".into(),
                    self.overlaps.iter().map(|overlap| overlap.similarity).collect::<Vec<_>>(),
                ),
                Column::new("train_row".into(), rows(|overlap| overlap.train_row)),
                Column::new("validation_row".into(), rows(|overlap| overlap.validation_row)),
                Column::new(
                    "train_prompt".into(),
                    prompts(&self.train, |overlap| overlap.train_row),
                ),
                Column::new(
                    "validation_prompt".into(),
                    prompts(&self.validation, |overlap| overlap.validation_row),
                ),
            ],
        )?)
    }

    /// The split without its leaks: the held-out rows found here are left out, and on both sides
    /// those that give their completion away. The new split is looked at again until nothing is
    /// found.
    ///
    /// # Errors
    /// The user pressed Stop; polars refuses a frame.
    pub fn repair(&self) -> Result<Splits> {
        self.repaired(false)
    }

    /// As [`Audit::repair`], but it is the rows of training that go: for a benchmark, which must
    /// stay what it is.
    ///
    /// # Errors
    /// As [`Audit::repair`].
    pub fn repair_train(&self) -> Result<Splits> {
        self.repaired(true)
    }

    fn repaired(&self, from_train: bool) -> Result<Splits> {
        let mut audit = self.clone();
        loop {
            let mut keep = [vec![true; audit.train.len()], vec![true; audit.validation.len()]];
            for overlap in &audit.overlaps {
                match from_train {
                    true => keep[0][overlap.train_row] = false,
                    false => keep[1][overlap.validation_row] = false,
                }
            }
            if from_train {
                // Each held-out row names one row that gives it away; from the other side all of
                // them are found at once.
                let turned = Splits::new(audit.validation.clone(), audit.train.clone());
                for overlap in Self::of(&turned, audit.held_out)?.overlaps {
                    keep[0][overlap.validation_row] = false;
                }
            }
            for leak in audit.labels.iter().filter(|leak| leak.in_train || !from_train) {
                keep[usize::from(!leak.in_train)][leak.row] = false;
            }
            if !keep.iter().flatten().any(|keep| !keep) {
                return Ok(Splits {
                    train: audit.train,
                    validation: audit.validation,
                    test: audit.test,
                });
            }
            let filtered = |side: &Dataset, keep: &[bool]| -> Result<Dataset> {
                Ok(side.with_frame(
                    side.frame().filter(&BooleanChunked::from_slice("keep".into(), keep))?,
                ))
            };
            let splits = Splits {
                train: filtered(&audit.train, &keep[0])?,
                validation: filtered(&audit.validation, &keep[1])?,
                test: audit.test,
            };
            audit = Self::of(&splits, audit.held_out)?;
        }
    }
}

/// The rows whose prompt holds the words of their completion.
fn label_leaks(side: &Dataset, in_train: bool) -> Vec<LabelLeak> {
    let found = side.pairs().enumerate().filter(|(_, (prompt, completion))| {
        if completion.len() > prompt.len() || prompt.is_empty() {
            return false;
        }
        let label = key::normalized(completion);
        let enough =
            label.split(' ').count() >= LABEL_WORDS || label.chars().count() >= LABEL_CHARS;
        enough && label.contains(char::is_alphanumeric) && {
            let prompt = key::normalized(prompt);
            format!(" {prompt} ").contains(&format!(" {label} "))
        }
    });
    found.map(|(row, _)| LabelLeak { in_train, row }).collect()
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.verdict())?;
        for kind in OverlapKind::ALL {
            write!(f, "\n{:<28} {:>6}", kind.name(), self.count(kind))?;
        }
        write!(f, "\n{:<28} {:>6}", "completion in the prompt", self.labels.len())?;
        for overlap in self.overlaps.iter().take(3) {
            let row = |side: &Dataset, row: usize| match overlap.kind {
                OverlapKind::ExactRow => format!(
                    "{} → {}",
                    excerpt(side.text(PROMPT).get(row).unwrap_or_default(), 50),
                    excerpt(side.text(COMPLETION).get(row).unwrap_or_default(), 30)
                ),
                _ => excerpt(side.text(PROMPT).get(row).unwrap_or_default(), 80),
            };
            write!(
                f,
                "\n  validation {:>5}: {}",
                overlap.validation_row,
                row(&self.validation, overlap.validation_row)
            )?;
            write!(
                f,
                "\n  train      {:>5}: {}",
                overlap.train_row,
                row(&self.train, overlap.train_row)
            )?;
        }
        Ok(())
    }
}

/// The hashes of all runs of [`NGRAM_WORDS`] words, case and punctuation aside.
fn ngrams(text: &str) -> impl Iterator<Item = u64> {
    let key = key::normalized(text);
    let mut words: Vec<(usize, usize)> = Vec::new();
    let mut start = 0;
    for word in key.split(' ') {
        words.push((start, start + word.len()));
        start += word.len() + 1;
    }
    let hashes: Vec<u64> = words
        .windows(NGRAM_WORDS)
        .map(|run| xxh3_64(&key.as_bytes()[run[0].0..run[NGRAM_WORDS - 1].1]))
        .collect();
    hashes.into_iter()
}
