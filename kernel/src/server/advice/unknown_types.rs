//! Types that the compiler cannot find out, and values that a notebook cannot keep.

use std::collections::HashMap;

use evcxr::Error;

use super::super::cell;
use super::diagnostic::{Diagnostic, Place, short_type};
use super::moves::is_name;
use super::{Advice, Kind, Notebook, Said, quoted};

pub(super) const KINDS: &[Kind] = &[
    Kind { name: "type to read", codes: &["E0277", "E0284"], advise: type_to_read },
    Kind { name: "unknown type", codes: &["E0282", "E0283", "E0284"], advise: unknown },
    Kind { name: "number's type", codes: &["E0689"], advise: number },
    Kind { name: "text of its own", codes: &["E0106"], advise: lent_result },
    Kind { name: "kept reference", codes: &["E0505", "E0597", "E0716"], advise: kept_reference },
];

/// `"5".parse()?`, of which nothing says what to read.
fn type_to_read(error: &Diagnostic, _: &Notebook) -> Said {
    let of_parse = error.message == "the trait bound `!: FromStr` is not satisfied"
        || error.notes.iter().any(|note| note.contains("FromStr>::Err == _"));
    of_parse.then(|| {
        (
            "nothing says what `parse` is to read from the text.".into(),
            "Write the type behind the name, `let n: i32 = ….parse()?;`, or `parse::<i32>()?`."
                .into(),
        )
    })
}

fn unknown(error: &Diagnostic, _: &Notebook) -> Said {
    if !error.message.starts_with("type annotations needed") {
        return None;
    }
    if error.help("closure parameter an explicit type").is_some() {
        let name = error.spot.text.trim();
        return is_name(name).then(|| {
            (
                format!("the type of the closure's `{name}` is not known."),
                format!("Write it: `|{name}: f64|`, with the type that you mean."),
            )
        });
    }
    let help = error.help("consider giving `")?;
    let name = help.message.split('`').nth(1)?;
    let (_, write) = help.change.as_ref()?;
    if !is_name(name) {
        return None;
    }
    let made_by = |name: &str| error.others.iter().any(|place| place.text == name);
    if made_by("collect") {
        return Some((
            "what `collect` is to make is not known.".into(),
            format!("Write it behind the name: `let {name}: Vec<_> = …` for a list."),
        ));
    }
    if made_by("sum") || made_by("product") {
        return Some((
            "the type of the sum is not known.".into(),
            format!("Write the type of what is added behind the name: `let {name}: f64 = …`."),
        ));
    }
    // `: Vec<T>`, `: Option<T>`, `: Result<F, _>`, `: /* Type */`; places that are to be filled in.
    let outer = write.trim_start_matches(':').trim().split('<').next().unwrap_or_default();
    let (cause, example) = match outer {
        "Vec" => ("what the list will hold is not known.".to_owned(), "Vec<String>".to_owned()),
        "Option" => {
            ("what the `Option` may hold is not known.".to_owned(), "Option<String>".to_owned())
        }
        "HashMap" => {
            ("what the map will hold is not known.".to_owned(), "HashMap<String, f64>".to_owned())
        }
        _ => (format!("the type of `{name}` is not known from this cell."), "f64".to_owned()),
    };
    Some((
        cause,
        format!("Write the type that you mean behind the name: `let {name}: {example} = …`."),
    ))
}

/// "can't call method `sqrt` on ambiguous numeric type `{float}`".
fn number(error: &Diagnostic, _: &Notebook) -> Said {
    let type_name = error.name(1)?;
    let ours = match type_name {
        "{float}" => "f64",
        "{integer}" => "i32",
        _ => return None,
    };
    let help = error.helps.iter().find(|help| help.message.contains("specify a"))?;
    help.writes.first()?;
    Some((
        "the number's type is not known.".into(),
        format!(
            "Write it behind the number, `2{}_{ours}`, or behind the variable's name, `: {ours}`.",
            if ours == "f64" { ".0" } else { "" }
        ),
    ))
}

/// A function that returns `&str` without saying whose.
fn lent_result(error: &Diagnostic, _: &Notebook) -> Said {
    if error.message != "missing lifetime specifier" || !error.spot.line.contains("-> &str") {
        return None;
    }
    Some((
        "the function returns a text that is lent, and it is not clear by whom.".into(),
        "Return a text of its own: `-> String`, and `.to_owned()` behind the value.".into(),
    ))
}

/// The place that asks for a value which lends from nothing.
fn asks_for_static(error: &Diagnostic) -> Option<&Place> {
    error.others.iter().find(|place| {
        place.label.contains("requires that") && place.label.contains("'static")
            || place.label.contains("cast requires")
    })
}

/// The variable that the place keeps for the next cell, if that is what it does.
fn kept_by(place: &Place) -> Option<&str> {
    let (_, rest) = place.line.split_once("stringify!(")?;
    Some(rest.split_once(')')?.0)
}

/// A variable that borrows from another one. One that a call of the cell asks for, such as a thread's,
/// is another matter.
fn kept_reference(error: &Diagnostic, notebook: &Notebook) -> Said {
    let place = asks_for_static(error)?;
    if place.label.contains("argument requires") && kept_by(place).is_none() {
        return None;
    }
    let line = notebook.code.lines().nth(error.line.checked_sub(1)?)?;
    let name = line.trim().strip_prefix("let ")?.trim_start_matches("mut ");
    let name: String = name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    is_name(&name).then(|| borrowed(&name))
}

/// Why a variable cannot be kept for the next cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotKept {
    /// It lends from another value.
    Lent,
    /// Nobody can write its type.
    Unnamed,
}

/// The variables that a cell defines and that nothing but the keeping of them keeps from compiling.
/// `types` are those that the compiler has told.
pub(crate) fn not_kept(
    error: &Error,
    code: &str,
    types: &HashMap<String, String>,
) -> Vec<(String, NotKept)> {
    let of_text = |text: &str| {
        if let Some(rest) = text.strip_prefix("Couldn't automatically determine type of variable `")
        {
            // Of a pattern that evcxr does not look into.
            let name = rest.split('`').next()?;
            return types.contains_key(name).then(|| (name.to_owned(), NotKept::Unnamed));
        }
        let (name, rest) = text.strip_prefix("The variable `")?.split_once("` ")?;
        let why = match rest {
            _ if rest.starts_with("contains a reference with a non-static") => NotKept::Lent,
            _ if rest.contains("which cannot be persisted") => NotKept::Unnamed,
            _ => return None,
        };
        Some((name.to_owned(), why))
    };
    let errors = match error {
        Error::Message(text) => return of_text(text).into_iter().collect(),
        Error::CompilationErrors(errors) => errors,
        _ => return Vec::new(),
    };
    let mut found = Vec::new();
    for error in errors {
        if error.json.is_null() {
            found.extend(of_text(&error.message()));
            continue;
        }
        let Some(error) = Diagnostic::read(error, code) else { continue };
        if !["E0505", "E0597", "E0716"].contains(&error.code.as_str()) {
            continue;
        }
        let Some(place) = asks_for_static(&error) else { continue };
        // Where a call of the cell asks for it, too, the compiler names that.
        let names = match kept_by(place) {
            Some(name) => vec![name.to_owned()],
            None => cell::variables_on_line(code, error.line),
        };
        found.extend(names.into_iter().map(|name| (name, NotKept::Lent)));
    }
    found
}

/// Advice for what evcxr itself says, which is not the compiler's.
pub(crate) fn of_message(text: &str, code: &str) -> Option<Advice> {
    if let Some((_, rest)) = text.split_once("no matching package named `")
        && let Some(name) = rest.split('`').next()
    {
        return Some(Advice {
            line: line_of(code, &[&format!(":dep {name}")]),
            cause: format!("crates.io has no crate `{name}`."),
            step: "Correct its name in the `:dep` line.".into(),
        });
    }
    let (name, rest) = text.strip_prefix("The variable `")?.split_once("` ")?;
    let line = line_of(code, &[&format!("let {name}"), &format!("let mut {name}")]);
    if rest.starts_with("contains a reference with a non-static lifetime") {
        let (cause, step) = borrowed(name);
        return Some(Advice { line, cause, step });
    }
    let type_name = rest.strip_prefix("has type `")?.split_once("` which cannot be persisted")?.0;
    Some(Advice {
        line,
        cause: format!(
            "`{name}` cannot be kept for the next cell: nobody can write its type, {}.",
            quoted(&short_type(type_name))
        ),
        step: "Make a value of it here (an iterator: `.collect::<Vec<_>>()`), or put the lines into `{ }`.".into(),
    })
}

/// A variable that borrows from another one.
fn borrowed(name: &str) -> (String, String) {
    (
        format!(
            "`{name}` lends from another variable, and nothing lent is kept for the next cell."
        ),
        "Keep a copy, such as `words[0].clone()` for `&words[0]`, or put the lines into `{ }`."
            .into(),
    )
}

/// The line, from 1, of the cell that begins with one of these; 0 if none does.
fn line_of(code: &str, begins: &[&str]) -> usize {
    let fits = |line: &str| {
        let rest = begins.iter().find_map(|begin| line.trim().strip_prefix(begin));
        rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    };
    code.lines().position(fits).map_or(0, |index| index + 1)
}
