//! The tokenizers of BLEU.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

/// The tokenizer of [`Bleu`](crate::metric::Bleu), by sacreBLEU's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BleuTokenizer {
    /// WMT's `mteval-v13a`, for languages in Latin script.
    #[default]
    #[serde(rename = "13a")]
    V13a,
    /// `mteval-v14` international: separates all of Unicode's punctuation and symbols.
    #[serde(rename = "intl")]
    Intl,
    /// Each character is a token: for scripts without spaces between words, such as Thai.
    #[serde(rename = "char")]
    Char,
    /// The text is tokenized already: tokens are separated by white space.
    #[serde(rename = "none")]
    None,
}

impl BleuTokenizer {
    /// sacreBLEU's name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V13a => "13a",
            Self::Intl => "intl",
            Self::Char => "char",
            Self::None => "none",
        }
    }

    /// The text with white space between all tokens.
    pub(super) fn apply(self, text: &str) -> Cow<'_, str> {
        match self {
            Self::V13a => Cow::Owned(v13a(text)),
            Self::Intl => Cow::Owned(INTL.apply(text)),
            Self::Char => Cow::Owned(text.chars().flat_map(|character| [character, ' ']).collect()),
            Self::None => Cow::Borrowed(text),
        }
    }
}

/// Replacements, each over the whole text, in order.
pub(super) struct Rules(Vec<(Regex, &'static str)>);

impl Rules {
    fn new(rules: &[(&str, &'static str)]) -> Self {
        let compile = |(pattern, replacement): &(&str, &'static str)| {
            (Regex::new(pattern).expect("the pattern is a constant"), *replacement)
        };
        Self(rules.iter().map(compile).collect())
    }

    pub(super) fn apply(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (pattern, replacement) in &self.0 {
            if let Cow::Owned(replaced) = pattern.replace_all(&text, *replacement) {
                text = replaced;
            }
        }
        text
    }
}

/// Punctuation of Western languages, which 13a and TER separate alike.
pub(super) static WESTERN_PUNCTUATION: LazyLock<Rules> =
    LazyLock::new(|| Rules::new(&[(r"([{-~\[-` -&(-+:-@/])", " $1 ")]));

/// Periods and commas that belong to no number, and dashes after a digit.
pub(super) static NUMBERS: LazyLock<Rules> = LazyLock::new(|| {
    Rules::new(&[
        (r"([^0-9])([.,])", "$1 $2 "),
        (r"([.,])([^0-9])", " $1 $2"),
        (r"([0-9])(-)", "$1 $2 "),
    ])
});

static INTL: LazyLock<Rules> = LazyLock::new(|| {
    Rules::new(&[
        (r"(\P{N})(\p{P})", "$1 $2 "),
        (r"(\p{P})(\P{N})", " $1 $2"),
        (r"(\p{S})", " $1 "),
    ])
});

fn v13a(text: &str) -> String {
    let text = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    let text = format!(" {} ", unescape(&text));
    NUMBERS.apply(&WESTERN_PUNCTUATION.apply(&text))
}

/// The text with the four escapes of XML that mteval knows resolved, `&amp;` before `&lt;`.
pub(super) fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let text = text.replace("&quot;", "\"").replace("&amp;", "&");
    Cow::Owned(text.replace("&lt;", "<").replace("&gt;", ">"))
}
