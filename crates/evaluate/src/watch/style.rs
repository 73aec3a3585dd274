//! The form of answers against that of the training completions: stray markup, role names, answers
//! without an end, another language.
//!
//! Nothing here is wrong by itself. What hardly a training completion has, an answer should not have.

use std::fmt;
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

/// What one training completion in so many may have before it counts as their style.
const SELDOM: f64 = 0.02;
/// Letters below which a text's language is not told.
const TELLING: usize = 40;

/// What is found by its place in a text; the language is told of the whole.
const FORMS: [FormKind; 8] = [
    FormKind::Backticks,
    FormKind::Heading,
    FormKind::Emphasis,
    FormKind::Link,
    FormKind::TableRow,
    FormKind::Html,
    FormKind::RoleName,
    FormKind::Unfinished,
];

/// What can be odd about the form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FormKind {
    /// Code in backticks, or backticks alone.
    Backticks,
    /// A heading of Markdown.
    Heading,
    /// Bold text of Markdown.
    Emphasis,
    /// A link or picture of Markdown.
    Link,
    /// A row of a table of Markdown.
    TableRow,
    /// HTML tags or entities.
    Html,
    /// Names of roles or marks of a chat template: `User:`, `### Response:`, `<|im_end|>`.
    RoleName,
    /// No sign that ends a sentence at its end.
    Unfinished,
    /// Another language than the completions'.
    Language,
}

impl fmt::Display for FormKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backticks => "backticks",
            Self::Heading => "a Markdown heading",
            Self::Emphasis => "Markdown emphasis",
            Self::Link => "a Markdown link",
            Self::TableRow => "a Markdown table",
            Self::Html => "HTML",
            Self::RoleName => "a role's name",
            Self::Unfinished => "no end",
            Self::Language => "another language",
        })
    }
}

/// Something in the form of an answer that training completions do not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormIssue {
    /// What it is.
    pub kind: FormKind,
    /// Its place in the answer, in bytes.
    pub place: Range<usize>,
    /// Its text.
    pub text: String,
}

/// The form of training completions.
///
/// ```
/// use tunebook_evaluate::{AnswerForm, FormKind};
/// let form = AnswerForm::of(&["We have sent it back to you.", "It will arrive tomorrow."]);
/// assert!(form.issues("It is on its way.").is_empty());
/// let [issue] = &form.issues("Run `track 7` to see it.")[..] else { panic!("one") };
/// assert_eq!((issue.kind, issue.text.as_str()), (FormKind::Backticks, "`track 7`"));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnswerForm {
    /// What is usual in the completions.
    usual: Vec<FormKind>,
    /// The languages of one completion in fifty or more, by their ISO 639-3 codes.
    languages: Vec<String>,
}

impl AnswerForm {
    /// The form of these completions.
    pub fn of<S: AsRef<str>>(completions: &[S]) -> Self {
        let rows = completions.len().max(1) as f64;
        let has = |kind: FormKind| {
            let count = completions.iter().filter(|text| find(kind, text.as_ref()).is_some());
            count.count() as f64 / rows > SELDOM
        };
        let mut counts = std::collections::BTreeMap::<String, usize>::new();
        for language in completions.iter().filter_map(|text| language(text.as_ref())) {
            *counts.entry(language).or_default() += 1;
        }
        let told: usize = counts.values().sum();
        let common = |(_, count): &(String, usize)| *count as f64 > SELDOM * told as f64;
        Self {
            usual: FORMS.into_iter().filter(|kind| has(*kind)).collect(),
            languages: counts.into_iter().filter(common).map(|(name, _)| name).collect(),
        }
    }

    /// What this answer has and the completions have not, the first place of each kind.
    pub fn issues(&self, answer: &str) -> Vec<FormIssue> {
        let unusual = FORMS.into_iter().filter(|kind| !self.usual.contains(kind));
        let mut issues: Vec<FormIssue> = unusual
            .filter_map(|kind| {
                let place = find(kind, answer)?;
                Some(FormIssue { kind, text: answer[place.clone()].to_owned(), place })
            })
            .collect();
        let other = |name: &String| !self.languages.is_empty() && !self.languages.contains(name);
        if let Some(name) = language(answer).filter(other) {
            issues.push(FormIssue { kind: FormKind::Language, place: 0..answer.len(), text: name });
        }
        issues
    }
}

fn find(kind: FormKind, text: &str) -> Option<Range<usize>> {
    // The patterns are constants, and a test finds something by each.
    let first = |pattern: &LazyLock<Option<Regex>>| Some(pattern.as_ref()?.find(text)?.range());
    match kind {
        FormKind::Backticks => first(&BACKTICKS),
        FormKind::Heading => first(&HEADING),
        FormKind::Emphasis => first(&EMPHASIS),
        FormKind::Link => first(&LINK),
        FormKind::TableRow => first(&TABLE_ROW),
        FormKind::Html => first(&HTML),
        FormKind::RoleName => first(&ROLE_NAME),
        FormKind::Unfinished => without_end(text),
        FormKind::Language => None,
    }
}

macro_rules! patterns {
    ($($name:ident = $pattern:literal;)*) => {$(
        static $name: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new($pattern).ok());
    )*};
}

patterns! {
    BACKTICKS = r"```[^`]*(?:```)?|`[^`\n]*`?";
    HEADING = r"(?m)^#{1,6} \S.*$";
    EMPHASIS = r"\*\*[^*\s][^*\n]*\*\*|\b__[^_\s][^_\n]*__\b";
    LINK = r"\[[^\]\n]+\]\([^)\s]+\)";
    TABLE_ROW = r"(?m)^\|.+\|\s*$";
    HTML = r"(?i)</?(?:a|b|i|p|br|hr|li|ul|ol|em|div|img|pre|span|code|font|table|tr|td|th|strong|h[1-6])(?:\s[^<>]*)?/?>|&(?:nbsp|amp|lt|gt|quot|#\d+|#x[0-9a-f]+);";
    ROLE_NAME = r"(?m)^\s*(?:User|Human|Assistant|System|AI|Bot|Instruction|Response)\s*:|^#+ ?(?:Instruction|Response|Input|Human|Assistant)\b.*$|<\|[a-z_]+\|>|\[/?INST\]|</?s>|<(?:start|end)_of_turn>";
}

/// The last word of a text that does not end as sentences do.
fn without_end(text: &str) -> Option<Range<usize>> {
    let text = text.trim_end();
    // Quotes and brackets close after the sign that ends a sentence.
    let inner = text.trim_end_matches(['"', '\'', '”', '’', '»', ')', ']', '*', '_', '`']);
    let ends = inner.ends_with(['.', '!', '?', '…', '。', '！', '？', '।', '။', '؟', ':']);
    let empty = inner.is_empty();
    let start = text
        .rfind(char::is_whitespace)
        .map_or(0, |at| at + text[at..].chars().next().map_or(0, char::len_utf8));
    (!ends && !empty).then_some(start..text.len())
}

/// The language of a text, where it is long enough and the detector is sure.
fn language(text: &str) -> Option<String> {
    if text.chars().filter(|sign| sign.is_alphabetic()).count() < TELLING {
        return None;
    }
    let found = whatlang::detect(text).filter(whatlang::Info::is_reliable)?;
    Some(found.lang().code().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: [&str; 3] = [
        "We have sent the parcel back to you, and it will arrive on Tuesday.",
        "Your order is on its way. You can follow it on our page.",
        "Please write to us again when the lamp does not work (with a picture).",
    ];

    fn kinds(answer: &str) -> Vec<FormKind> {
        AnswerForm::of(&PLAIN).issues(answer).into_iter().map(|issue| issue.kind).collect()
    }

    #[test]
    fn what_the_completions_do_not_have_is_found() {
        let one = |answer: &str, kind: FormKind| assert_eq!(kinds(answer), [kind], "{answer}");
        one("Call `stop` now.", FormKind::Backticks);
        one("Do this:\n```\nls\n```\nand wait.", FormKind::Backticks);
        one("It is **very** late.", FormKind::Emphasis);
        one("# Answer\nIt is late.", FormKind::Heading);
        one("See [here](http://a.example/x).", FormKind::Link);
        one("| a | b |\nas said.", FormKind::TableRow);
        one("It is<br>late.", FormKind::Html);
        one("Fish &amp; chips.", FormKind::Html);
        one("It is late.\nUser: and now?", FormKind::RoleName);
        one("It is late.<|im_end|>.", FormKind::RoleName);
        one("We will send it to the", FormKind::Unfinished);
        one(
            "Wir haben Ihnen das Paket zurückgeschickt, und es wird am Dienstag bei Ihnen ankommen.",
            FormKind::Language,
        );
    }

    #[test]
    fn plain_answers_have_nothing() {
        for answer in [
            "It is late.",
            "He said \"stop.\"",
            "Is 3 < 5 and 7 > 2? Yes!",
            "A user: somebody who uses it.",
            "Prices are 5 * 3 * 2 = 30.",
            "ok.",
            "",
        ] {
            assert_eq!(kinds(answer), [], "{answer}");
        }
    }

    #[test]
    fn what_is_usual_is_no_issue() {
        let form = AnswerForm::of(&["Call `a`", "Call `b`", "x"]);
        assert_eq!(form.issues("Call `c` and `d`"), []);
        // No language was told, so none is another.
        assert_eq!(
            form.issues("Wir haben Ihnen das Paket zurückgeschickt, es wird bald ankommen."),
            []
        );
    }

    #[test]
    fn the_place_of_an_unfinished_answer_is_its_last_word() {
        let [issue] = &AnswerForm::of(&PLAIN).issues("sent to Köln")[..] else { panic!("one") };
        assert_eq!((issue.place.clone(), issue.text.as_str()), (8..13, "Köln"));
    }
}
