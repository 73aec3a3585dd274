//! A `Result` or an `Option` in place of the value within, and `?` where it cannot be.

use super::diagnostic::{Diagnostic, short_type};
use super::{Kind, Notebook, Said, a, quoted};

pub(super) const KINDS: &[Kind] = &[
    Kind { name: "value of a Result", codes: &["E0308"], advise: value_wanted },
    Kind { name: "method of a Result", codes: &["E0599", "E0609", "E0624"], advise: method_wanted },
    Kind { name: "? in a function", codes: &["E0277"], advise: no_result_returned },
    Kind { name: "? without a Result", codes: &["E0277"], advise: nothing_to_open },
];

/// What a type holds, if it is `Result<T, E>` or `Option<T>`.
fn held(type_name: &str) -> Option<(&'static str, &str)> {
    let (outer, rest) = if let Some(rest) = type_name.strip_prefix("Result<") {
        ("Result", rest)
    } else {
        ("Option", type_name.strip_prefix("Option<")?)
    };
    let mut depth = 0;
    for (at, letter) in rest.char_indices() {
        match letter {
            '<' | '(' | '[' => depth += 1,
            ',' | '>' if depth == 0 => return Some((outer, &rest[..at])),
            '>' | ')' | ']' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn value_wanted(error: &Diagnostic, _: &Notebook) -> Said {
    let (expected, found) = error.mismatch()?;
    let (outer, within) = held(&found)?;
    // `_` is a type that follows from elsewhere.
    if within != expected && !(within == "_" && error.help("use the `?` operator").is_some()) {
        return None;
    }
    let spot = quoted(&error.spot.text);
    if outer == "Option" {
        return Some((
            format!("{spot} is an `Option`: there may be no {expected} in it."),
            format!("Say what happens then: {}", opened(&error.spot.text)),
        ));
    }
    Some((
        format!("{spot} gives a `Result`: the `{expected}`, or an error."),
        "Write `?` behind it, before the `;`: it takes the value, and an error ends the cell."
            .into(),
    ))
}

/// How the value is taken out of an `Option`.
fn opened(value: &str) -> String {
    let value = if value.len() > 30 || value.contains('\n') { "…" } else { value };
    format!("`{value}.ok_or(\"there is none\")?`, or `.unwrap_or_default()`.")
}

fn method_wanted(error: &Diagnostic, _: &Notebook) -> Said {
    // "method not found in `std::result::Result<Dataset, DataError>`", or the message of a field.
    let type_name = match error.code.as_str() {
        "E0609" => short_type(error.name(1)?),
        // A private method of the same name hides that there is none.
        "E0624" => {
            let help = error.help("consider using `Option::expect` to unwrap the `")?;
            format!("Option<{}>", short_type(help.message.split('`').nth(3)?))
        }
        _ => {
            let label = error.spot.label.strip_prefix("method not found in ")?;
            short_type(label.trim_matches('`'))
        }
    };
    let (outer, within) = held(&type_name)?;
    let wanted = match error.code.as_str() {
        "E0609" => format!("`.{}`", error.name(0)?),
        _ => format!("`.{}( )`", error.spot.text),
    };
    let receiver = error.receiver();
    let what = receiver
        .as_deref()
        .map_or_else(|| format!("what stands before {wanted}"), |name| format!("`{name}`"));
    if outer == "Option" {
        let step = match &receiver {
            Some(name) => format!(
                "Say what happens then: `{name}.as_ref().ok_or(\"there is none\")?` before {wanted}."
            ),
            None => format!("Write `.ok_or(\"there is none\")?` before {wanted}."),
        };
        return Some((
            format!(
                "{what} is an `Option`: there may be no {} in it.",
                a(within).split_once(' ')?.1
            ),
            step,
        ));
    }
    let step = match &receiver {
        Some(name) if super::moves::is_name(name) => format!(
            "Write `?` at the end of the `let` that makes `{name}`, before the `;` (or `{name}?` here)."
        ),
        _ => format!("Write `?` before {wanted}: it takes the value, and an error ends the cell."),
    };
    Some((format!("{what} is a `Result`: {}, or an error.", a(within)), step))
}

/// "cannot use the `?` operator in a function that returns `i32`".
fn no_result_returned(error: &Diagnostic, _: &Notebook) -> Said {
    let rest =
        error.spot.label.strip_prefix("cannot use the `?` operator in a function that returns ")?;
    let returned = short_type(rest.trim_matches('`'));
    Some((
        format!(
            "this `?` may end the function with an error, but the function returns {}.",
            a(&returned)
        ),
        format!(
            "Write `-> Result<{returned}, Box<dyn std::error::Error>>` and `Ok(…)` around its last value."
        ),
    ))
}

/// "the `?` operator cannot be applied to type `Dataset`".
fn nothing_to_open(error: &Diagnostic, _: &Notebook) -> Said {
    let rest = error.spot.label.strip_prefix("the `?` operator cannot be applied to type ")?;
    let type_name = short_type(rest.trim_matches('`'));
    // A future wants `.await`.
    if type_name.contains("impl ") || error.help("await").is_some() {
        return None;
    }
    Some((
        format!("this is {} already, not a `Result`: nothing can fail here.", a(&type_name)),
        "Leave the `?` away.".into(),
    ))
}
