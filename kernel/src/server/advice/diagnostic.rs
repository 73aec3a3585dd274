//! One error of the compiler as advice reads it: rustc's JSON, and where the learner wrote it.

use evcxr::CompilationError;
use serde_json::Value;

use super::syntax::unmatched;

/// A piece of the source that the compiler points at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// The piece itself. Several lines are joined by line breaks.
    pub(super) text: String,
    /// The whole line on which it begins.
    pub(super) line: String,
    /// What the compiler says about it.
    pub(super) label: String,
    /// Where it begins and ends in the file: lines and columns, from 1.
    begin: (u64, u64),
    end: (u64, u64),
}

/// What the compiler proposes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Help {
    pub(super) message: String,
    /// The piece that would be replaced, and by what, if it is one.
    pub(super) change: Option<(Place, String)>,
    /// All that it proposes to write.
    pub(super) writes: Vec<String>,
}

/// An error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Diagnostic {
    /// rustc's number (`E0308`); empty where it has none, as for syntax.
    pub(super) code: String,
    pub(super) message: String,
    /// What it is about.
    pub(super) spot: Place,
    /// Other pieces that explain it.
    pub(super) others: Vec<Place>,
    pub(super) helps: Vec<Help>,
    pub(super) notes: Vec<String>,
    /// The line of the cell, from 1, on which `spot` begins.
    pub(super) line: usize,
    /// That line, and how many characters of it stand before `spot`.
    own_line: String,
    own_column: usize,
}

impl Diagnostic {
    /// The error as it stands in the cell's `code`. None for one that is elsewhere: in an item of an
    /// earlier cell, or in what evcxr has written.
    pub(super) fn read(error: &CompilationError, code: &str) -> Option<Self> {
        let mut messages = error.spanned_messages().iter().filter(|message| message.is_primary);
        let place = messages.find_map(|message| message.span);
        Self::of_json(&error.json, code, place.map(|span| (span.start_line, span.start_column)))
    }

    /// `known` is the place in the cell, line and column from 1, if evcxr has found it.
    pub(super) fn of_json(json: &Value, code: &str, known: Option<(usize, usize)>) -> Option<Self> {
        if json["level"] != "error" {
            return None;
        }
        let spans = || json["spans"].as_array().into_iter().flatten();
        let spot = spans().find(|span| span["is_primary"] == true).and_then(place)?;
        let message = json["message"].as_str()?;
        // The end that the parser points at may be in what evcxr has written.
        let bracket = message.contains("delimiter").then(|| unmatched(code)).flatten();
        let line = bracket.map(|(_, line)| line).or(known.map(|(line, _)| line));
        let line = line.or_else(|| line_of(&spot.line, code))?;
        // evcxr may have put the pieces of a line on several ones.
        let own = known.and_then(|(line, column)| {
            Some((code.lines().nth(line.checked_sub(1)?)?.to_owned(), column.checked_sub(1)?))
        });
        let (own_line, own_column) = match own {
            Some(own) => own,
            None => (spot.line.clone(), usize::try_from(spot.begin.1).ok()?.checked_sub(1)?),
        };
        let others = spans().filter(|span| span["is_primary"] != true).filter_map(place).collect();
        let mut found = Self {
            code: json["code"]["code"].as_str().unwrap_or_default().to_owned(),
            message: message.to_owned(),
            spot,
            others,
            line,
            own_line,
            own_column,
            ..Self::default()
        };
        for child in json["children"].as_array().into_iter().flatten() {
            let Some(message) = child["message"].as_str() else { continue };
            match child["level"].as_str() {
                Some("help") => {
                    let mut changes: Vec<(Place, String)> = Vec::new();
                    for span in child["spans"].as_array().into_iter().flatten() {
                        let new = span["suggested_replacement"].as_str();
                        changes.extend(place(span).zip(new.map(str::to_owned)));
                    }
                    let writes = changes.iter().map(|(_, new)| new.trim().to_owned()).collect();
                    // A proposal in several places is not told in a line.
                    let change = if changes.len() == 1 { changes.pop() } else { None };
                    found.helps.push(Help { message: message.to_owned(), change, writes });
                }
                _ => found.notes.push(message.to_owned()),
            }
        }
        Some(found)
    }

    /// The proposal whose message has these words.
    pub(super) fn help(&self, words: &str) -> Option<&Help> {
        self.helps.iter().find(|help| help.message.contains(words))
    }

    /// The name in the n-th pair of backticks of the message.
    pub(super) fn name(&self, n: usize) -> Option<&str> {
        self.message.split('`').nth(2 * n + 1)
    }

    /// What is expected and what is found, by the label of the place: "expected `f64`, found integer".
    /// A type keeps no path before its name.
    pub(super) fn mismatch(&self) -> Option<(String, String)> {
        let rest = self.spot.label.strip_prefix("expected ")?;
        let (expected, found) = rest.split_once(", found ")?;
        let name = |text: &str| short_type(text.trim().trim_matches('`'));
        Some((name(expected), name(found)))
    }

    /// What the proposal makes of the place that the error is about; None if it changes another one.
    pub(super) fn mended(&self, help: &Help) -> Option<String> {
        let (at, new) = help.change.as_ref()?;
        let spot = &self.spot;
        if spot.text.contains('\n') {
            return None;
        }
        if at.begin == at.end && at.begin == spot.begin {
            return Some(format!("{new}{}", spot.text));
        }
        if at.begin == at.end && at.begin == spot.end {
            return Some(format!("{}{new}", spot.text));
        }
        // A `&` that is taken away stands before the place or at its beginning.
        if at.begin == spot.begin && new.is_empty() {
            return spot.text.strip_prefix(&at.text).map(str::to_owned);
        }
        (at.begin == spot.begin && at.end == spot.end).then(|| new.clone())
    }

    /// What stands before and behind the place on its line.
    pub(super) fn around_spot(&self) -> Option<(String, String)> {
        if self.spot.text.contains('\n') {
            return None;
        }
        let behind = self.own_column + self.spot.text.chars().count();
        let before = self.own_line.chars().take(self.own_column).collect();
        Some((before, self.own_line.chars().skip(behind).collect()))
    }

    /// The name before the brackets that the place stands in: `words` of `words[-1]`.
    pub(super) fn receiver_of_index(&self) -> Option<String> {
        let (before, _) = self.around_spot()?;
        last_name(before.trim_end().strip_suffix('[')?)
    }

    /// The words before the place on its line that belong to the same value: `split.test` of
    /// `let n = split.test.height()` where the place is `height`.
    pub(super) fn receiver(&self) -> Option<String> {
        let (before, _) = self.around_spot()?;
        let before = before.trim_end().strip_suffix('.')?;
        last_name(before)
    }
}

/// A type without the paths before its names: `std::option::Option<data::Dataset>` is
/// `Option<Dataset>`.
pub(super) fn short_type(text: &str) -> String {
    let mut out = String::new();
    let mut word = String::new();
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter.is_alphanumeric() || letter == '_' {
            word.push(letter);
        } else if letter == ':' && letters.peek() == Some(&':') && !word.is_empty() {
            letters.next();
            word.clear();
        } else {
            out.push_str(&word);
            word.clear();
            out.push(letter);
        }
    }
    out + &word
}

/// The name that a piece of code ends with, with the fields before it.
fn last_name(code: &str) -> Option<String> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    let name = code.rsplit(|c: char| !is_part(c)).next()?;
    name.starts_with(|c: char| c.is_alphabetic() || c == '_').then(|| name.to_owned())
}

fn place(span: &Value) -> Option<Place> {
    let number = |name: &str| span[name].as_u64();
    let lines = span["text"].as_array()?;
    let piece = |line: &Value| -> Option<String> {
        let [from, to] =
            ["highlight_start", "highlight_end"].map(|name| line[name].as_u64().unwrap_or(1));
        let [from, to] = [from, to].map(|column| usize::try_from(column).unwrap_or(1));
        let text = line["text"].as_str()?.chars();
        Some(text.skip(from.saturating_sub(1)).take(to.saturating_sub(from)).collect())
    };
    let mut begin = (number("line_start")?, number("column_start")?);
    // The value of the last expression stands in a call on the line before it.
    let shows = |line: &Value| line["text"].as_str().is_some_and(|text| text.starts_with("evcxr_"));
    let skipped = lines.iter().take_while(|line| lines.len() > 1 && shows(line)).count();
    let lines = &lines[skipped..];
    if skipped > 0 {
        begin = (begin.0 + skipped as u64, 1);
    }
    let text: Vec<String> = lines.iter().filter_map(piece).collect();
    Some(Place {
        text: text.join("\n"),
        line: lines.first().and_then(|line| line["text"].as_str()).unwrap_or_default().to_owned(),
        label: span["label"].as_str().unwrap_or_default().to_owned(),
        begin,
        end: (number("line_end")?, number("column_end")?),
    })
}

/// The line of the cell, from 1, that is `line` of the file; the kernel may have put something
/// around it. None where none or several fit.
pub(super) fn line_of(line: &str, code: &str) -> Option<usize> {
    let fits = |(_, own): &(usize, &str)| {
        let own = own.trim();
        own.len() > 2 && line.contains(own)
    };
    let mut fitting = code.lines().enumerate().filter(fits);
    let (number, _) = fitting.next()?;
    fitting.next().is_none().then_some(number + 1)
}
