//! What a comparison of texts ignores.

use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::{python, yes_no};

static ARTICLES: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\b(a|an|the)\b").expect("the pattern is a constant"));

/// What a comparison of texts ignores. By default, white space around the text only.
///
/// The rules are applied in the order of the fields, as the official evaluation of SQuAD does.
///
/// ```
/// use tunebook_evaluate::metric::Normalise;
///
/// assert_eq!(Normalise::default().apply(" The Nile. "), "The Nile.");
/// assert_eq!(Normalise::squad().apply(" The  river Nile. "), "river nile");
/// let caseless = Normalise { ignore_case: true, ..Default::default() };
/// assert_eq!(caseless.apply("Yes"), caseless.apply("YES"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Normalise {
    /// Lower-case both texts. Default: no.
    pub ignore_case: bool,
    /// Remove ASCII punctuation. Default: no.
    pub ignore_punctuation: bool,
    /// Remove the English articles a, an, the, in lower case. Default: no.
    pub ignore_articles: bool,
    /// Make every run of white space one space, and remove it at both ends. Default: no.
    pub ignore_spacing: bool,
    /// Remove white space at both ends. Default: yes.
    pub strip: bool,
}

impl Default for Normalise {
    fn default() -> Self {
        Self {
            ignore_case: false,
            ignore_punctuation: false,
            ignore_articles: false,
            ignore_spacing: false,
            strip: true,
        }
    }
}

impl Normalise {
    /// Nothing is ignored: texts must be equal character by character.
    pub const NOTHING: Self = Self {
        ignore_case: false,
        ignore_punctuation: false,
        ignore_articles: false,
        ignore_spacing: false,
        strip: false,
    };

    /// The normalisation of SQuAD's official evaluation: case, ASCII punctuation, English articles
    /// and spacing are ignored.
    #[must_use]
    pub fn squad() -> Self {
        Self {
            ignore_case: true,
            ignore_punctuation: true,
            ignore_articles: true,
            ignore_spacing: true,
            strip: true,
        }
    }

    /// The text without what is ignored.
    #[must_use]
    pub fn apply(&self, text: &str) -> String {
        let mut text = text.to_owned();
        if self.ignore_case {
            text = text.to_lowercase();
        }
        if self.ignore_punctuation {
            text.retain(|character| !python::is_punctuation(character));
        }
        if self.ignore_articles {
            text = ARTICLES.replace_all(&text, " ").into_owned();
        }
        if self.ignore_spacing {
            text = python::split(&text).collect::<Vec<_>>().join(" ");
        }
        if self.strip {
            text = text.trim_matches(python::is_space).to_owned();
        }
        text
    }

    /// The rules as a signature writes them.
    pub(super) fn settings(&self) -> String {
        format!(
            "case:{}|punct:{}|articles:{}|space:{}|strip:{}",
            if self.ignore_case { "lc" } else { "mixed" },
            yes_no(!self.ignore_punctuation),
            yes_no(!self.ignore_articles),
            yes_no(!self.ignore_spacing),
            yes_no(self.strip),
        )
    }
}
