//! Cleaning: named steps in order, with a report of the changed and dropped rows of each.
//!
//! A second cleaning changes nothing: the steps are repeated over the rows that they changed
//! until none changes any more, so the order in which they stand cannot leave half the work undone.

pub(crate) mod backticks;
mod boilerplate;
pub(crate) mod casing;
pub(crate) mod code;
mod conflicts;
pub(crate) mod control_tokens;
mod duplicates;
mod empty;
pub(crate) mod html;
pub(crate) mod language;
pub(crate) mod markdown;
pub(crate) mod mojibake;
mod near_duplicates;
pub(crate) mod pii;
pub(crate) mod quality;
pub(crate) mod report;
mod rows;
mod run;
pub(crate) mod step;
pub(crate) mod whitespace;

use serde::{Deserialize, Serialize};

use crate::clean::pii::Pii;
use crate::clean::quality::{Quality, Repetition};
use crate::clean::step::{CleaningStep, Survivor};
use crate::error::Result;
use crate::near::shingles::Shingles;

/// The steps, in order. `Cleaning::default()` has none; add them one by one, or start from
/// [`Cleaning::standard`].
///
/// ```
/// use tunebook_data::{Cleaning, Dataset};
///
/// let raw = Dataset::from_rows(&[("<b>Hi</b>  there", "Hello!"), ("Bye", "")]);
/// let clean = raw.clean(&Cleaning::default().strip_html().normalize_whitespace().drop_empty())?;
/// assert_eq!(clean.rows()[0].prompt, "Hi there");
/// assert_eq!(clean.report().steps[2].dropped, 1);
/// assert_eq!(clean.dropped().height(), 1);
/// # Ok::<(), tunebook_data::DataError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cleaning {
    /// The steps, in the order in which they run.
    pub steps: Vec<CleaningStep>,
}

impl Cleaning {
    /// The steps that suit most sets, in that order.
    pub fn standard() -> Self {
        Self::default()
            .repair_mojibake()
            .normalize_unicode()
            .strip_html()
            .repair_backticks()
            .normalize_whitespace()
            .repair_casing()
            .drop_empty()
            .drop_duplicates()
    }

    /// Adds [`CleaningStep::StripHtml`].
    #[must_use]
    pub fn strip_html(self) -> Self {
        self.step(CleaningStep::StripHtml)
    }

    /// Adds [`CleaningStep::NormalizeWhitespace`].
    #[must_use]
    pub fn normalize_whitespace(self) -> Self {
        self.step(CleaningStep::NormalizeWhitespace)
    }

    /// Adds [`CleaningStep::RepairBackticks`].
    #[must_use]
    pub fn repair_backticks(self) -> Self {
        self.step(CleaningStep::RepairBackticks)
    }

    /// Adds [`CleaningStep::StripBackticks`].
    #[must_use]
    pub fn strip_backticks(self) -> Self {
        self.step(CleaningStep::StripBackticks)
    }

    /// Adds [`CleaningStep::RepairCasing`].
    #[must_use]
    pub fn repair_casing(self) -> Self {
        self.step(CleaningStep::RepairCasing)
    }

    /// Adds [`CleaningStep::DropEmpty`].
    #[must_use]
    pub fn drop_empty(self) -> Self {
        self.step(CleaningStep::DropEmpty)
    }

    /// Adds [`CleaningStep::DropDuplicates`].
    #[must_use]
    pub fn drop_duplicates(self) -> Self {
        self.step(CleaningStep::DropDuplicates)
    }

    /// Adds [`CleaningStep::DropNearDuplicates`] at the usual threshold, 0.72; the first of a group
    /// stays.
    #[must_use]
    pub fn drop_near_duplicates(self) -> Self {
        self.step(CleaningStep::near_duplicates())
    }

    /// Adds [`CleaningStep::DropNearDuplicates`] with a threshold between 0 and 1, and the row of a
    /// group that stays.
    #[must_use]
    pub fn drop_near_duplicates_at(self, threshold: f64, keep: Survivor) -> Self {
        self.step(CleaningStep::DropNearDuplicates {
            threshold,
            keep,
            shingles: Shingles::default(),
        })
    }

    /// Adds [`CleaningStep::DropNearDuplicates`] with the shingles that are compared:
    /// `Shingles::Words(5)` for long documents.
    #[must_use]
    pub fn drop_near_duplicates_by(
        self,
        shingles: Shingles,
        threshold: f64,
        keep: Survivor,
    ) -> Self {
        self.step(CleaningStep::DropNearDuplicates { threshold, keep, shingles })
    }

    /// Adds [`CleaningStep::RepairMojibake`].
    #[must_use]
    pub fn repair_mojibake(self) -> Self {
        self.step(CleaningStep::RepairMojibake)
    }

    /// Adds [`CleaningStep::NormalizeUnicode`].
    #[must_use]
    pub fn normalize_unicode(self) -> Self {
        self.step(CleaningStep::NormalizeUnicode)
    }

    /// Adds [`CleaningStep::StripMarkdown`].
    #[must_use]
    pub fn strip_markdown(self) -> Self {
        self.step(CleaningStep::StripMarkdown)
    }

    /// Adds [`CleaningStep::TidyMarkdown`].
    #[must_use]
    pub fn tidy_markdown(self) -> Self {
        self.step(CleaningStep::TidyMarkdown)
    }

    /// Adds [`CleaningStep::StripControlTokens`].
    #[must_use]
    pub fn strip_control_tokens(self) -> Self {
        self.step(CleaningStep::StripControlTokens)
    }

    /// Adds [`CleaningStep::StripBoilerplate`] for lines that this share of the rows has.
    #[must_use]
    pub fn strip_boilerplate(self, min_share: f64) -> Self {
        self.step(CleaningStep::StripBoilerplate { min_share })
    }

    /// Adds [`CleaningStep::MaskPii`] for all kinds.
    #[must_use]
    pub fn mask_pii(self) -> Self {
        self.step(CleaningStep::MaskPii { kinds: Pii::ALL.to_vec() })
    }

    /// Adds [`CleaningStep::DropShort`].
    #[must_use]
    pub fn drop_short(self, min_words: usize) -> Self {
        self.step(CleaningStep::DropShort { min_words })
    }

    /// Adds [`CleaningStep::DropLong`].
    #[must_use]
    pub fn drop_long(self, max_chars: usize) -> Self {
        self.step(CleaningStep::DropLong { max_chars })
    }

    /// Adds [`CleaningStep::KeepLanguages`], by codes such as `"en"` or `"deu"`.
    #[must_use]
    pub fn keep_languages(self, languages: &[&str]) -> Self {
        self.step(CleaningStep::KeepLanguages {
            languages: languages.iter().map(|name| (*name).to_owned()).collect(),
        })
    }

    /// Adds [`CleaningStep::DropLowQuality`]: [`Quality::gopher`], [`Quality::fineweb`],
    /// [`Quality::pairs`] or bounds of your own.
    #[must_use]
    pub fn drop_low_quality(self, rules: Quality) -> Self {
        self.step(CleaningStep::DropLowQuality(rules))
    }

    /// Adds [`CleaningStep::DropRepetitive`] with Gopher's bounds.
    #[must_use]
    pub fn drop_repetitive(self) -> Self {
        self.step(CleaningStep::DropRepetitive(Repetition::default()))
    }

    /// Adds [`CleaningStep::ResolveConflicts`].
    #[must_use]
    pub fn resolve_conflicts(self, keep: Survivor) -> Self {
        self.step(CleaningStep::ResolveConflicts { keep })
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.steps.iter().try_for_each(CleaningStep::check)
    }

    /// Adds any step.
    #[must_use]
    pub fn step(mut self, step: CleaningStep) -> Self {
        self.steps.push(step);
        self
    }
}
