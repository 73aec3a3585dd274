//! The steps of a cleaning: names, settings, and effects on a text or a row.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::clean::pii::{self, Pii};
use crate::clean::quality::{Quality, Repetition};
use crate::clean::{
    backticks, casing, control_tokens, html, language, markdown, mojibake, whitespace,
};
use crate::error::{DataError, Result};
use crate::near;
use crate::near::shingles::Shingles;

/// One step of a [`Cleaning`](crate::Cleaning).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum CleaningStep {
    /// HTML becomes text: tags and comments go, `br`, `p` and lists become lines, cells of a table
    /// stand apart by a bar, `pre` becomes a fenced block, entities become characters, once. Fenced
    /// blocks, code spans, other code, XML and placeholders such as `<name>` stay as they are.
    StripHtml,
    /// Text that was read in the wrong encoding (`cafÃ©`) becomes what it was; letters with
    /// punctuation behind them (`é »`) are left alone.
    RepairMojibake,
    /// Unicode's composed form (NFC), in which equal texts are equal bytes.
    NormalizeUnicode,
    /// Runs of spaces, trailing spaces, blank lines, odd line ends and invisible characters of
    /// prose. Fenced blocks, code outside fences, and paragraphs that are indented or set in columns
    /// keep their blanks and tabs.
    NormalizeWhitespace,
    /// Markdown backticks that enclose ordinary words, or nothing, and fences around sentences.
    StripBackticks,
    /// Backticks that are damage for certain: around all sentences of a text, without a partner at one
    /// of its ends, around the first of several labels. Marked words stay.
    RepairBackticks,
    /// Markdown headings, emphasis, links, quotes and rules lose their marks; fenced code and list
    /// items stay.
    StripMarkdown,
    /// Markdown in one spelling: `-` for list items, `**` for strong words, a blank after a
    /// heading's marks.
    TidyMarkdown,
    /// Sentences all in capitals become sentences in usual writing. Labels (a few words without a
    /// full stop), code and acronyms stay.
    RepairCasing,
    /// Control tokens of chat templates in the words of a text (`<|im_end|>`, `</s>`, `[INST]`) go: a
    /// tokenizer takes them for the end of a turn. Not for sets of texts that are rendered already.
    StripControlTokens,
    /// First and last lines that many completions share (greetings, signatures) go.
    StripBoilerplate {
        /// The share of rows, from 0 to 1, from which on a line counts as boilerplate.
        min_share: f64,
    },
    /// Addresses, telephone and card numbers, keys and so on become masks such as `[EMAIL]`. Dates
    /// and lists of numbers stay.
    MaskPii {
        /// The kinds that are masked.
        kinds: Vec<Pii>,
    },
    /// Rows whose prompt or completion is empty are dropped (in a set of plain texts: whose text
    /// is).
    DropEmpty,
    /// Rows whose completion has fewer words are dropped.
    DropShort {
        /// The fewest words.
        min_words: usize,
    },
    /// Rows whose prompt and completion together have more characters are dropped.
    DropLong {
        /// The most characters.
        max_chars: usize,
    },
    /// Rows in other languages are dropped; those too short to tell stay.
    KeepLanguages {
        /// Codes of two or three letters (ISO 639), or English names.
        languages: Vec<String>,
    },
    /// Rows whose completion breaks a rule of quality are dropped.
    DropLowQuality(Quality),
    /// Rows whose completion says the same again and again are dropped.
    DropRepetitive(Repetition),
    /// Rows that say the same as an earlier one (case, spaces and the punctuation of prose aside)
    /// are dropped; the first stays.
    DropDuplicates,
    /// Of rows that say nearly the same only one stays.
    DropNearDuplicates {
        /// The least Jaccard similarity of the shingles of prompt and completion that counts as
        /// nearly the same, from 0 to 1.
        threshold: f64,
        /// Which one stays.
        keep: Survivor,
        /// The shingles that are compared. The default is runs of 5 characters.
        #[serde(default)]
        shingles: Shingles,
    },
    /// Of rows with one prompt (case, spaces and the punctuation of prose aside) and different completions only
    /// one stays.
    ResolveConflicts {
        /// Which one stays.
        keep: Survivor,
    },
}

/// Which row of a group stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Survivor {
    /// The first in the set.
    #[default]
    First,
    /// The last in the set: the newest, where rows are appended.
    Last,
    /// The one with the longest completion, in characters; of several, the first.
    Longest,
    /// None: all of them go.
    Nobody,
}

impl Survivor {
    /// The surviving row in words, for the reason of the others.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::First => "the first",
            Self::Last => "the last",
            Self::Longest => "the longest",
            Self::Nobody => "nobody",
        }
    }

    /// The surviving row of a group, whose rows are in the order of the set. `length` gives the
    /// characters of a row's completion.
    pub(crate) fn of(self, rows: &[usize], length: impl Fn(usize) -> usize) -> Option<usize> {
        match self {
            Self::First => rows.first().copied(),
            Self::Last => rows.last().copied(),
            Self::Longest => {
                rows.iter().copied().min_by_key(|&row| (std::cmp::Reverse(length(row)), row))
            }
            Self::Nobody => None,
        }
    }
}

/// A function from text to text; an unchanged text is borrowed.
pub(crate) type Transform<'s> = Box<dyn for<'t> Fn(&'t str) -> Cow<'t, str> + Send + Sync + 's>;
/// A function from prompt and completion to the reason for dropping the row, if there is one.
pub(crate) type Verdict<'s> = Box<dyn Fn(&str, &str) -> Option<String> + Send + Sync + 's>;

/// The kinds of steps.
pub(crate) enum StepKind<'s> {
    /// On each text.
    Text(Transform<'s>),
    /// On each row.
    Row(Verdict<'s>),
    /// On all rows together.
    Set,
}

impl CleaningStep {
    /// The step's name, as in the builder's method.
    pub fn name(&self) -> &'static str {
        match self {
            Self::StripHtml => "strip_html",
            Self::RepairMojibake => "repair_mojibake",
            Self::NormalizeUnicode => "normalize_unicode",
            Self::NormalizeWhitespace => "normalize_whitespace",
            Self::StripBackticks => "strip_backticks",
            Self::RepairBackticks => "repair_backticks",
            Self::StripMarkdown => "strip_markdown",
            Self::TidyMarkdown => "tidy_markdown",
            Self::RepairCasing => "repair_casing",
            Self::StripControlTokens => "strip_control_tokens",
            Self::StripBoilerplate { .. } => "strip_boilerplate",
            Self::MaskPii { .. } => "mask_pii",
            Self::DropEmpty => "drop_empty",
            Self::DropShort { .. } => "drop_short",
            Self::DropLong { .. } => "drop_long",
            Self::KeepLanguages { .. } => "keep_languages",
            Self::DropLowQuality(_) => "drop_low_quality",
            Self::DropRepetitive(_) => "drop_repetitive",
            Self::DropDuplicates => "drop_duplicates",
            Self::DropNearDuplicates { .. } => "drop_near_duplicates",
            Self::ResolveConflicts { .. } => "resolve_conflicts",
        }
    }

    /// Near-duplicates at the usual threshold, the first of a group stays.
    pub fn near_duplicates() -> Self {
        Self::DropNearDuplicates {
            threshold: near::THRESHOLD,
            keep: Survivor::First,
            shingles: Shingles::default(),
        }
    }

    pub(crate) fn kind(&self) -> StepKind<'_> {
        let text = |step: fn(&str) -> Cow<'_, str>| StepKind::Text(Box::new(step));
        match self {
            Self::StripHtml => text(html::to_text),
            Self::RepairMojibake => text(mojibake::repair),
            Self::NormalizeUnicode => text(mojibake::nfc),
            Self::NormalizeWhitespace => text(whitespace::normalize),
            Self::StripBackticks => text(backticks::strip),
            Self::RepairBackticks => text(backticks::repair),
            Self::StripMarkdown => text(markdown::strip),
            Self::TidyMarkdown => text(markdown::tidy),
            Self::RepairCasing => text(casing::sentence_case),
            Self::StripControlTokens => text(control_tokens::strip),
            Self::MaskPii { kinds } => StepKind::Text(Box::new(|text| pii::mask(text, kinds))),
            Self::DropShort { min_words } => StepKind::Row(Box::new(move |_, completion| {
                let words = completion.split_whitespace().take(*min_words).count();
                (words < *min_words).then(|| {
                    format!("the completion has {words} words, expected at least {min_words}")
                })
            })),
            Self::DropLong { max_chars } => StepKind::Row(Box::new(move |prompt, completion| {
                // No text has more characters than bytes.
                if prompt.len() + completion.len() <= *max_chars {
                    return None;
                }
                let chars = prompt.chars().count() + completion.chars().count();
                (chars > *max_chars)
                    .then(|| format!("{chars} characters, expected at most {max_chars}"))
            })),
            Self::KeepLanguages { languages } => {
                let wanted: Vec<&str> =
                    languages.iter().filter_map(|name| language::code(name)).collect();
                StepKind::Row(Box::new(move |prompt, completion| {
                    let found = language::of(&format!("{prompt}\n{completion}"))?;
                    (!wanted.contains(&found)).then(|| {
                        format!("the language is {found}, expected {}", wanted.join(" or "))
                    })
                }))
            }
            Self::DropLowQuality(rules) => {
                StepKind::Row(Box::new(|_, completion| rules.reason(completion)))
            }
            Self::DropRepetitive(rules) => {
                StepKind::Row(Box::new(|_, completion| rules.reason(completion)))
            }
            Self::DropEmpty
            | Self::StripBoilerplate { .. }
            | Self::DropDuplicates
            | Self::DropNearDuplicates { .. }
            | Self::ResolveConflicts { .. } => StepKind::Set,
        }
    }

    /// # Errors
    /// A setting out of its range.
    pub(crate) fn check(&self) -> Result<()> {
        let problem = |problem: String| Err(DataError::Step { step: self.name(), problem });
        match self {
            Self::StripBoilerplate { min_share: share }
            | Self::DropNearDuplicates { threshold: share, .. }
                if !(*share > 0.0 && *share <= 1.0) =>
            {
                problem(format!("expected a number above 0 and up to 1, found {share}"))
            }
            Self::DropNearDuplicates { shingles, .. } => match shingles.problem() {
                Some(wrong) => problem(wrong),
                None => Ok(()),
            },
            Self::KeepLanguages { languages } => {
                match languages.iter().find(|name| language::code(name).is_none()) {
                    Some(unknown) => problem(format!(
                        "expected codes such as \"en\" or \"deu\", found \"{unknown}\""
                    )),
                    None if languages.is_empty() => {
                        problem("expected at least one language".to_owned())
                    }
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}
