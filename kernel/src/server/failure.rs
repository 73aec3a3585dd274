//! What went wrong in a cell, in Jupyter's words: ename, evalue, traceback.

use std::ops::Range;

use ariadne::{Color, ColorGenerator, Label, Report, ReportKind, Source};
use evcxr::{CompilationError, Error, Theme};

use super::advice::{self, Advice, Fold, Notebook, runtime};
use super::running::Outcome;

/// What takes less memory.
const LESS: &str = "Less at a time takes less: a smaller `batch_size`, `gradient_checkpointing: true`, fewer rows, \
                    a smaller model.";

/// The title of the compiler's text.
const COMPILER: &str = "What the compiler says";

/// A cell's failure.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) ename: String,
    pub(crate) evalue: String,
    pub(crate) traceback: Vec<String>,
    /// What a front end folds away below the traceback.
    pub(crate) fold: Option<Fold>,
}

impl Failure {
    fn new(ename: &str, evalue: String, more: Vec<String>) -> Self {
        let mut traceback = vec![format!("\x1b[31m{ename}\x1b[0m: {evalue}")];
        traceback.extend(more);
        Self { ename: ename.to_owned(), evalue, traceback, fold: None }
    }

    /// The traceback with all that the fold hides, for whoever sees no displays: the reply to the
    /// request, which nbclient's exception quotes.
    pub(crate) fn whole_traceback(&self) -> Vec<String> {
        let fold = self.fold.iter().flat_map(Fold::lines);
        self.traceback.iter().cloned().chain(fold).collect()
    }

    /// Puts advice above the text, which is folded away.
    fn advised(mut self, advice: &[Advice], code: &str) -> Self {
        if advice.is_empty() {
            return self;
        }
        let mut lines: Vec<String> = Vec::new();
        for one in advice {
            lines.extend(one.lines(code));
        }
        let text = std::mem::replace(&mut self.traceback, lines);
        self.fold = Some(Fold::new(COMPILER, text));
        self
    }

    /// The failure that the cell's `code` reported, though evcxr took it for a success. `source` is the
    /// generated code, of a cell that panicked.
    pub(crate) fn of_outcome(outcome: &Outcome, code: &str, source: &str) -> Option<Self> {
        const KEPT: &str =
            "Variables of earlier cells are kept, except those that this cell had moved.";
        if let Some(text) = &outcome.error {
            let ename = if outcome.interrupted && text.starts_with("interrupted") {
                "Interrupted"
            } else {
                "Error"
            };
            let mut more: Vec<String> = Vec::new();
            more.extend(runtime::of_error(text).map(str::to_owned));
            more.push(KEPT.into());
            return Some(Self::new(ename, text.clone(), more));
        }
        if outcome.panicked {
            let (message, place) = panic_message(&String::from_utf8_lossy(&outcome.stderr));
            let mut more = Vec::new();
            let own = place.as_deref().and_then(|place| {
                advice::own_line(runtime::line_of_panic(place, source, code)?, code)
            });
            more.extend(own.or_else(|| place.map(|place| format!("at {place}"))));
            more.extend(runtime::of_panic(&message));
            more.push(KEPT.into());
            return Some(Self::new("Panic", message, more));
        }
        None
    }

    /// The failure that evcxr reported.
    pub(crate) fn of_evcxr(
        error: &Error,
        outcome: &Outcome,
        notebook: &Notebook,
        execution_count: u32,
        oom: bool,
    ) -> Self {
        match error {
            Error::CompilationErrors(_) | Error::Message(_) if outcome.compiler_stopped => {
                Self::interrupted()
            }
            Error::CompilationErrors(errors) => {
                Self::of_compiler(errors, notebook, execution_count)
            }
            Error::SubprocessTerminated(text) => {
                let status =
                    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or(text);
                let status = status.trim_start_matches("Subprocess terminated with status: ");
                let refused = refused_allocation(&outcome.stderr);
                // The count of processes that the system has ended is not of ours alone.
                let oom =
                    (oom && status.contains("SIGKILL") && !outcome.killed) || refused.is_some();
                let why = if outcome.killed {
                    "stopped by force, as it did not answer to Stop".to_owned()
                } else if let Some(bytes) = refused {
                    format!(
                        "out of memory: the system refused {bytes} bytes, and the process ended ({status})"
                    )
                } else if oom {
                    format!("out of memory: the system ended the process ({status})")
                } else {
                    format!("the process of the cells ended: {status}")
                };
                let ename = if oom { "OutOfMemory" } else { "ProcessDied" };
                let mut more = tail(&outcome.stderr);
                if oom {
                    more.push(LESS.into());
                }
                more.push(
                    "All variables are lost; functions, types and imports are kept. Run the cells again."
                        .into(),
                );
                Self::new(ename, why, more)
            }
            Error::TypeRedefinedVariablesLost(variables) => Self::new(
                "TypeRedefined",
                format!(
                    "the type of {} was defined anew, so the value is lost",
                    variables.join(", ")
                ),
                vec![],
            ),
            Error::Message(text) => {
                let mut lines = text.lines().map(str::to_owned);
                let first = lines.next().unwrap_or_default();
                let advice: Vec<Advice> =
                    advice::of_message(text, notebook.code).into_iter().collect();
                Self::new("Error", first, lines.collect()).advised(&advice, notebook.code)
            }
        }
    }

    /// The kernel could not get ready.
    pub(crate) fn of_start(error: &str) -> Self {
        Self::new(
            "KernelStartError",
            error.to_owned(),
            vec!["Restart the kernel when the cause is gone.".into()],
        )
    }

    /// The kernel's own code, or evcxr's, has panicked over the cell.
    pub(crate) fn of_kernel(panic: &str) -> Self {
        Self::new(
            "KernelError",
            format!("the kernel has a fault, and this cell may not have run: {panic}"),
            vec![
                "Variables of earlier cells are kept. If the next cells fail as well, restart the kernel."
                    .into(),
            ],
        )
    }

    fn interrupted() -> Self {
        Self::new(
            "Interrupted",
            "stopped while compiling; nothing has run and nothing is lost".into(),
            vec![],
        )
    }

    /// All errors of the compiler as one, in its colours.
    fn of_compiler(errors: &[CompilationError], notebook: &Notebook, execution_count: u32) -> Self {
        let mut traceback = Vec::new();
        for error in errors {
            traceback.extend(report(error, notebook.code, execution_count));
        }
        traceback.extend(way_out(errors.iter().map(CompilationError::message)));
        let evalue = errors.first().map(CompilationError::message).unwrap_or_default();
        let failure = Self { ename: "CompileError".into(), evalue, traceback, fold: None };
        failure.advised(&advice::advise(errors, notebook), notebook.code)
    }
}

/// Notes of the compiler below one error.
const MOST_NOTES: usize = 4;

/// What to do about errors whose cause lies in how a notebook keeps items.
fn way_out(messages: impl Iterator<Item = String>) -> Vec<String> {
    let messages: Vec<String> = messages.collect();
    let mut help = Vec::new();
    let has = |part: &str| messages.iter().any(|message| message.contains(part));
    if has("conflicting implementations of trait") || has("duplicate definitions with name") {
        help.push(
            "help: an earlier cell has this `impl`, too. Run one cell with the type's definition and all its `impl`s: \
             they take the place of the earlier ones. No variable of another type is lost."
                .to_owned(),
        );
    }
    help
}

fn report(error: &CompilationError, code: &str, execution_count: u32) -> Vec<String> {
    let name = format!("cell {execution_count}");
    if error.is_from_user_code()
        && let Some(report) = error.build_report(name.clone(), code.to_owned(), Theme::Light)
    {
        let mut text = Vec::new();
        if report.write(ariadne::sources([(name.clone(), code)]), &mut text).is_ok() {
            let text = String::from_utf8_lossy(&text);
            let lines = text.lines().map(|line| with_few_colours(&of_the_theme(line))).collect();
            return with_notes(lines, &error.rendered());
        }
    }
    if error.is_from_user_code()
        && !code.is_ascii()
        && let Some(lines) = unicode_report(error, code, &name)
    {
        return with_notes(lines, &error.rendered());
    }
    let rendered = error.rendered();
    if rendered.trim().is_empty() {
        return vec![format!("\x1b[31merror\x1b[0m: {}", error.message())];
    }
    rendered.lines().map(str::to_owned).collect()
}

/// The report with the notes that the compiler has written below its own, which say what would be
/// right: "available fields are: …".
fn with_notes(mut lines: Vec<String>, rendered: &str) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    let mut open = false;
    for line in without_colours(rendered).lines() {
        let trimmed = line.trim();
        let begins =
            ["= note: ", "= help: "].into_iter().find_map(|begin| trimmed.strip_prefix(begin));
        match begins {
            Some(text) => notes.push(text.to_owned()),
            None if open && line.starts_with("     ") && !trimmed.is_empty() => {
                if let Some(note) = notes.last_mut() {
                    *note += &format!("\n      {trimmed}");
                }
            }
            None => {}
        }
        open = begins.is_some() || open && line.starts_with("     ");
    }
    let shown = lines.join("\n");
    let is_new = |note: &String| {
        !shown.contains(note.as_str()) && !note.contains("evcxr") && !note.contains("`#[warn(")
    };
    lines.extend(notes.into_iter().filter(is_new).take(MOST_NOTES).map(|n| format!("note: {n}")));
    lines
}

/// The report of an error in code that is not ASCII, for which evcxr makes none. Places count
/// characters.
fn unicode_report(error: &CompilationError, code: &str, name: &str) -> Option<Vec<String>> {
    let labels: Vec<(Range<usize>, &str)> = error
        .spanned_messages()
        .iter()
        .chain(error.help_spanned())
        .filter(|spanned| !spanned.label.is_empty())
        .filter_map(|spanned| {
            let span = spanned.span.as_ref()?;
            let start = character(code, span.start_line, span.start_column)?;
            let end = character(code, span.end_line, span.end_column)?;
            Some((start..end.max(start), spanned.label.as_str()))
        })
        .collect();
    let first = labels.first()?.0.clone();
    let mut report = Report::build(ReportKind::Error, (name, first)).with_message(error.message());
    if let Some(code) = error.code() {
        report = report.with_code(code);
    }
    let mut colours = ColorGenerator::new();
    for (place, label) in labels {
        // As evcxr's, made for a light page.
        let colour = match colours.next() {
            Color::Fixed(number) => Color::Fixed(255 - number),
            other => other,
        };
        report = report.with_label(
            Label::new((name, place)).with_message(label).with_color(colour).with_order(10),
        );
    }
    let mut text = Vec::new();
    report.finish().write((name, Source::from(code)), &mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    Some(text.lines().map(|line| with_few_colours(&of_the_theme(line))).collect())
}

/// How many characters stand before a line and a column, both counted from 1.
fn character(code: &str, line: usize, column: usize) -> Option<usize> {
    let before = code.split_inclusive('\n').take(line.checked_sub(1)?);
    let before: usize = before.map(|line| line.chars().count()).sum();
    Some((before + column.checked_sub(1)?).min(code.chars().count()))
}

/// The line in colours that a front end's theme has: the report's are made for one page, a light or a
/// dark one. Its greys become the text's own colour.
fn of_the_theme(line: &str) -> String {
    const BEGIN: &str = "\x1b[38;5;";
    const GREYS: u8 = 232;
    /// Blue, magenta, green: legible on light and on dark pages.
    const COLOURS: [u8; 3] = [34, 35, 32];
    let mut parts = line.split(BEGIN);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let known = part
            .split_once('m')
            .and_then(|(number, rest)| Some((number.parse::<u8>().ok()?, rest)));
        match known {
            Some((number, rest)) if number < GREYS => {
                out += &format!("\x1b[{}m{rest}", COLOURS[usize::from(number) % COLOURS.len()]);
            }
            Some((_, rest)) => out += &format!("\x1b[0m{rest}"),
            None => out += part,
        }
    }
    out
}

/// The line without the colour changes that change nothing: the report sets the colour for each
/// character of the code, and a saved notebook keeps them all.
fn with_few_colours(line: &str) -> String {
    const RESET: &str = "\x1b[0m";
    let mut out = String::with_capacity(line.len());
    let mut colour = "";
    let mut rest = line;
    while let Some(at) = rest.find('\x1b') {
        out.push_str(&rest[..at]);
        let end = rest[at..].find('m').map_or(rest.len(), |end| at + end + 1);
        let code = &rest[at..end];
        rest = &rest[end..];
        if code == RESET && !colour.is_empty() && rest.starts_with(colour) {
            rest = &rest[colour.len()..];
            continue;
        }
        colour = if code == RESET { "" } else { code };
        out.push_str(code);
    }
    out + rest
}

pub(super) fn without_colours(text: &str) -> String {
    let mut parts = text.split('\x1b');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |out, part| out + part.split_once('m').map_or("", |(_, rest)| rest))
}

/// The message and the place of the last panic in a standard error.
fn panic_message(stderr: &str) -> (String, Option<String>) {
    let Some(at) = stderr.rfind("panicked at ") else { return ("the cell panicked".into(), None) };
    let mut lines = stderr[at + "panicked at ".len()..].lines();
    let place = lines.next().unwrap_or_default().trim_end_matches(':').to_owned();
    let message: Vec<&str> = lines
        .take_while(|line| !line.starts_with("note: ") && !line.starts_with("stack backtrace:"))
        .collect();
    (message.join("\n").trim().to_owned(), Some(place))
}

/// How many bytes the process had asked for when it ended for want of them: Rust's own words.
fn refused_allocation(stderr: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(stderr);
    let (_, rest) = text.rsplit_once("memory allocation of ")?;
    let (bytes, rest) = rest.split_once(' ')?;
    rest.starts_with("bytes failed").then(|| bytes.parse().ok())?
}

fn tail(stderr: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains("RUST_BACKTRACE")).collect();
    lines[lines.len().saturating_sub(5)..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::advice::Gone;
    use super::*;

    #[test]
    fn a_panic_says_what_and_where() {
        let stderr = b"before\n\nthread '<unnamed>' (17) panicked at cell/src/lib.rs:9:1:\nrank is 0\nnote: run with\n";
        let outcome = Outcome { panicked: true, stderr: stderr.to_vec(), ..Outcome::default() };
        let failure = Failure::of_outcome(&outcome, "", "").expect("a failure");
        assert_eq!((failure.ename.as_str(), failure.evalue.as_str()), ("Panic", "rank is 0"));
        assert!(
            failure.traceback.iter().any(|line| line == "at cell/src/lib.rs:9:1"),
            "{failure:?}"
        );
    }

    #[test]
    fn errors_of_items_that_a_notebook_keeps_name_a_way_out() {
        let help = |message: &str| way_out([message.to_owned()].into_iter());
        let twice = "conflicting implementations of trait `Sound` for type `Cat`";
        assert!(help(twice)[0].contains("one cell"));
        assert!(help("cannot find value `HERE` in this scope").is_empty());
    }

    #[test]
    fn the_compilers_notes_stand_below_a_report() {
        let rendered = "error[E0560]: struct `Args` has no field named `rank`\n --> src/lib.rs:1:1\n  |\n\
            1 | Args { rank: 1 }\n  |        ^^^^ no such field\n  |\n  \
            \x1b[0m\x1b[38;5;12m= \x1b[0m\x1b[1mnote\x1b[0m: available fields are: `r`,\n            `alpha`\n  = help: known\n";
        assert_eq!(
            with_notes(vec!["known".into()], rendered),
            ["known", "note: available fields are: `r`,\n      `alpha`"]
        );
    }

    #[test]
    fn places_count_characters() {
        let code = "let é = \"猫🦀\";\nlet x: u8 = é;\r\nx";
        let at = |line, column| character(code, line, column).unwrap();
        assert_eq!(code.chars().nth(at(1, 5)), Some('é'));
        assert_eq!(code.chars().nth(at(2, 13)), Some('é'));
        assert_eq!(code.chars().nth(at(3, 1)), Some('x'));
        assert_eq!(at(3, 99), code.chars().count());
        assert_eq!(character(code, 0, 1), None);
    }

    #[test]
    fn a_failed_question_mark_is_an_error() {
        let outcome = Outcome { error: Some("no such file".into()), ..Outcome::default() };
        assert_eq!(
            Failure::of_outcome(&outcome, "", "").expect("a failure").evalue,
            "no such file"
        );
        assert_eq!(Failure::of_outcome(&Outcome::default(), "", ""), None);
    }

    #[test]
    fn a_colour_is_set_once_for_its_text() {
        let line =
            "\x1b[38;5;9ma\x1b[0m\x1b[38;5;9mb\x1b[0m \x1b[38;5;9mc\x1b[0m\x1b[38;5;1md\x1b[0m.";
        assert_eq!(
            with_few_colours(line),
            "\x1b[38;5;9mab\x1b[0m \x1b[38;5;9mc\x1b[0m\x1b[38;5;1md\x1b[0m."
        );
        assert_eq!(with_few_colours("plain"), "plain");
        assert_eq!(with_few_colours("\x1b[1"), "\x1b[1");
    }

    #[test]
    fn colours_are_the_themes() {
        assert_eq!(
            of_the_theme("\x1b[31mE\x1b[0m \x1b[38;5;246m│\x1b[0m \x1b[38;5;201mx\x1b[0m"),
            "\x1b[31mE\x1b[0m \x1b[0m│\x1b[0m \x1b[34mx\x1b[0m"
        );
        assert_eq!(of_the_theme("plain"), "plain");
    }

    #[test]
    fn a_dead_process_is_told_from_a_killed_one() {
        let gone = Gone::default();
        let empty = Notebook { code: "", variables: &[], gone: &gone };
        let error = Error::SubprocessTerminated(
            "Subprocess terminated with status: signal: 6 (SIGABRT)".into(),
        );
        let failure = Failure::of_evcxr(&error, &Outcome::default(), &empty, 1, false);
        assert_eq!(failure.evalue, "the process of the cells ended: signal: 6 (SIGABRT)");
        let aborted = Failure::of_evcxr(&error, &Outcome::default(), &empty, 1, true);
        assert_eq!(aborted.ename, "ProcessDied", "another process was ended for want of memory");
        let killed = Error::SubprocessTerminated(
            "Subprocess terminated with status: signal: 9 (SIGKILL)".into(),
        );
        assert_eq!(
            Failure::of_evcxr(&killed, &Outcome::default(), &empty, 1, true).ename,
            "OutOfMemory"
        );
        assert_eq!(
            Failure::of_evcxr(&killed, &Outcome::default(), &empty, 1, false).ename,
            "ProcessDied"
        );
        let refused = Outcome {
            stderr: b"memory allocation of 99 bytes failed\n".to_vec(),
            ..Outcome::default()
        };
        let failure = Failure::of_evcxr(&error, &refused, &empty, 1, false);
        assert_eq!(failure.ename, "OutOfMemory");
        assert!(failure.evalue.contains("refused 99 bytes"), "{failure:?}");
    }
}
