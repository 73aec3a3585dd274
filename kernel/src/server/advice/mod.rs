//! The cause of an error and the next step, in a few lines that stand above the compiler's text.
//!
//! A table of [`Kind`]s of mistakes: each looks at one error of the compiler, as rustc's JSON gives it,
//! and says what it means for the cell, or nothing. Wrong advice costs a learner more than none, so a
//! kind takes the names and the types from the compiler and says nothing where they are not as it
//! expects. An error without advice is shown as before.
//!
//! `docs/mistakes.md` has the mistakes with what a cell shows; `tests/kernel/test_mistakes.py` runs
//! them.

mod calls;
mod diagnostic;
mod fields;
mod fold;
mod gone;
mod habits;
mod moves;
mod names;
mod numbers;
mod results;
pub(super) mod runtime;
mod syntax;
mod types;
mod unknown_types;

use evcxr::CompilationError;

use self::diagnostic::Diagnostic;
pub(crate) use self::fold::Fold;
pub(crate) use self::gone::{End, Gone};
pub(crate) use self::unknown_types::{NotKept, not_kept, of_message};

/// Advice for one error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Advice {
    /// The line of the cell, from 1; 0 if it is not known.
    line: usize,
    /// What is wrong, in a sentence.
    cause: String,
    /// What to write or do, in a sentence.
    step: String,
}

/// What advice knows of the notebook.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Notebook<'a> {
    /// The cell.
    pub(crate) code: &'a str,
    /// The kept variables with their types.
    pub(crate) variables: &'a [(String, String)],
    /// The variables that one might expect and that are not there.
    pub(crate) gone: &'a Gone,
}

/// What is wrong, and what to do.
type Said = Option<(String, String)>;

/// A kind of mistakes.
struct Kind {
    /// Its name in the tests.
    name: &'static str,
    /// The compiler's numbers under which it comes; an empty one is that of syntax errors.
    codes: &'static [&'static str],
    advise: fn(&Diagnostic, &Notebook) -> Said,
}

/// The kinds; the first that has something to say counts.
const KINDS: &[&[Kind]] = &[
    names::HIDDEN,
    habits::KINDS,
    syntax::KINDS,
    moves::KINDS,
    results::KINDS,
    names::KINDS,
    fields::KINDS,
    calls::KINDS,
    numbers::KINDS,
    types::KINDS,
    unknown_types::KINDS,
];

/// Errors that are advised upon in one cell.
const MOST: usize = 2;

/// Advice for a cell that does not compile. None when there is none for the first error: the others
/// mostly follow from it.
pub(crate) fn advise(errors: &[CompilationError], notebook: &Notebook) -> Vec<Advice> {
    // evcxr's own, without anything of rustc's.
    if let [error] = errors
        && error.json.is_null()
    {
        return of_message(&error.message(), notebook.code).into_iter().collect();
    }
    let read: Vec<Option<Diagnostic>> =
        errors.iter().map(|error| Diagnostic::read(error, notebook.code)).collect();
    of_diagnostics(&read, notebook)
}

fn of_diagnostics(read: &[Option<Diagnostic>], notebook: &Notebook) -> Vec<Advice> {
    let mut advice: Vec<Advice> = Vec::new();
    for (index, diagnostic) in read.iter().enumerate() {
        let one = diagnostic.as_ref().and_then(|diagnostic| of_one(diagnostic, notebook));
        let Some((_, one)) = one else {
            if index == 0 {
                return Vec::new();
            }
            continue;
        };
        // The same name is missing on many lines.
        if advice.iter().all(|other| other.cause != one.cause && other.line != one.line) {
            advice.push(one);
        }
    }
    // A parser that has lost its way finds errors that are none.
    if read.first().and_then(Option::as_ref).is_some_and(|first| first.code.is_empty()) {
        advice.truncate(1);
    }
    advice.truncate(MOST);
    advice
}

/// The advice for one error, with the name of its kind.
fn of_one(diagnostic: &Diagnostic, notebook: &Notebook) -> Option<(&'static str, Advice)> {
    KINDS
        .iter()
        .flat_map(|kinds| kinds.iter())
        .filter(|kind| kind.codes.contains(&diagnostic.code.as_str()))
        .find_map(|kind| {
            let (cause, step) = (kind.advise)(diagnostic, notebook)?;
            Some((kind.name, Advice { line: diagnostic.line, cause, step }))
        })
}

impl Advice {
    /// The lines that a front end shows: the cause, the learner's own line, the step.
    pub(crate) fn lines(&self, code: &str) -> Vec<String> {
        const RED: &str = "\x1b[31m";
        const PLAIN: &str = "\x1b[0m";
        match own_line(self.line, code) {
            Some(own) => {
                vec![
                    format!("{RED}Line {}{PLAIN}: {}", self.line, self.cause),
                    own,
                    self.step.clone(),
                ]
            }
            None => vec![format!("{RED}Error{PLAIN}: {}", self.cause), self.step.clone()],
        }
    }
}

/// A line of the cell as it is shown under its error.
pub(crate) fn own_line(number: usize, code: &str) -> Option<String> {
    let own = code.lines().nth(number.checked_sub(1)?)?;
    Some(format!("\x1b[1m{number:>5} | {}\x1b[0m", own.trim_end()))
}

/// Code as it is quoted in a sentence: short, on one line.
fn quoted(code: &str) -> String {
    const MOST: usize = 60;
    let words: Vec<&str> = code.split_whitespace().collect();
    let line = words.join(" ");
    if line.chars().count() <= MOST {
        return format!("`{line}`");
    }
    let begin: String = line.chars().take(MOST - 1).collect();
    format!("`{begin}…`")
}

/// With the indefinite article: "a `Dataset`", "an `i32`".
fn a(type_name: &str) -> String {
    let word = type_name.trim_start_matches('&');
    let an = word.starts_with(['a', 'e', 'i', 'o', 'A', 'E', 'I', 'O'])
        || word.starts_with("f32")
        || word.starts_with("f64");
    format!("{} `{type_name}`", if an && !type_name.starts_with('&') { "an" } else { "a" })
}

#[cfg(test)]
mod tests;
