//! Numbers of different types, positions, and what `{}` and `+` do with values.

use super::diagnostic::{Diagnostic, short_type};
use super::moves::is_name;
use super::{Kind, Notebook, Said, a, quoted};

pub(super) const KINDS: &[Kind] = &[
    Kind { name: "number of another type", codes: &["E0308"], advise: other_number },
    Kind { name: "arithmetic of two types", codes: &["E0277"], advise: mixed },
    Kind { name: "position", codes: &["E0277"], advise: position },
    Kind { name: "negative position", codes: &[""], advise: negative },
    Kind { name: "+ of texts", codes: &["E0369"], advise: texts_added },
    Kind { name: "number behind a text", codes: &["E0308"], advise: number_added },
    Kind { name: "not printable", codes: &["E0277"], advise: not_printable },
    Kind { name: "loop over a number", codes: &["E0277"], advise: loop_over_number },
];

const WHOLE: [&str; 12] =
    ["usize", "isize", "u8", "u16", "u32", "u64", "u128", "i8", "i16", "i32", "i64", "i128"];

fn is_whole(type_name: &str) -> bool {
    WHOLE.contains(&type_name) || type_name == "integer" || type_name == "{integer}"
}

fn is_float(type_name: &str) -> bool {
    ["f32", "f64", "floating-point number", "{float}", "float"].contains(&type_name)
}

/// Whether it is a type of numbers.
pub(super) fn is_number(type_name: &str) -> bool {
    is_whole(type_name) || is_float(type_name)
}

fn other_number(error: &Diagnostic, _: &Notebook) -> Said {
    let (expected, found) = error.mismatch()?;
    let spot = &error.spot.text;
    if is_float(&expected) && found == "integer" {
        let help = error.help("use a float literal")?;
        return Some((
            format!("{} is a whole number, and a number with a point is expected.", quoted(spot)),
            format!("Write `{}`.", error.mended(help)?),
        ));
    }
    if is_whole(&expected) && found == "floating-point number" {
        let value: f64 = spot.replace('_', "").parse().ok()?;
        let step = if value.fract() == 0.0 && value.abs() < 1e15 {
            format!("Write `{value:.0}`.")
        } else {
            "Write a number without a point.".into()
        };
        return Some((
            format!("{} has a point, and a whole number is expected (`{expected}`).", quoted(spot)),
            step,
        ));
    }
    let both =
        (is_whole(&expected) || is_float(&expected)) && (is_whole(&found) || is_float(&found));
    // A literal is a number of any type; those are other mistakes.
    if !both
        || [&expected, &found].iter().any(|name| name.contains(['{', ' ']) || *name == "integer")
    {
        return None;
    }
    let dropped = if is_float(&found) && is_whole(&expected) {
        " (what stands behind the point is dropped)"
    } else {
        ""
    };
    Some((
        format!("{} is {}, and {} is expected.", quoted(spot), a(&found), a(&expected)),
        format!("Convert it: `{} as {expected}`{dropped}.", operand(spot)),
    ))
}

/// With parentheses if `as` would bind to a part of it only.
fn operand(code: &str) -> String {
    let code = code.trim();
    let mut depth = 0;
    let splits = code.chars().any(|letter| {
        match letter {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            _ => {}
        }
        depth == 0 && (letter.is_whitespace() || "+-*/%&|<>=!".contains(letter))
    });
    if splits { format!("({code})") } else { code.to_owned() }
}

/// "cannot multiply `i32` by `f64`", "cannot add `f64` to `i32`" and the like.
fn mixed(error: &Diagnostic, _: &Notebook) -> Said {
    let verbs = ["add", "subtract", "multiply", "divide", "calculate"];
    let rest = error.message.strip_prefix("cannot ")?;
    if !verbs.iter().any(|verb| rest.starts_with(verb)) {
        return None;
    }
    // The label has them in their order: "no implementation for `i32 * f64`".
    let types = error.spot.label.strip_prefix("no implementation for `")?.strip_suffix('`')?;
    let sign = error.spot.text.as_str();
    let (left, right) = types.split_once(&format!(" {sign} "))?;
    let [left, right] = [left, right].map(short_type);
    if !is_number(&left) || !is_number(&right) {
        return None;
    }
    let said = |name: &str| match name {
        "{integer}" => "a whole number".to_owned(),
        "{float}" => "a number with a point".to_owned(),
        name => a(name),
    };
    let step = match (left.as_str(), right.as_str()) {
        (_, "{integer}") => "Write the number behind it with a point: `2.0` for `2`.".to_owned(),
        ("{integer}", _) => "Write the number before it with a point: `2.0` for `2`.".to_owned(),
        (left, right) if is_whole(left) && is_float(right) => {
            let right = if right == "{float}" { "f64" } else { right };
            format!("Convert the one before it: `… as {right}`.")
        }
        (left, _) => {
            let left = if left == "{float}" { "f64" } else { left };
            format!("Convert the one behind it: `… as {left}`.")
        }
    };
    Some((
        format!(
            "`{sign}` takes two numbers of one type; here are {} and {}.",
            said(&left),
            said(&right)
        ),
        step,
    ))
}

/// "the type `[String]` cannot be indexed by `i32`".
fn position(error: &Diagnostic, _: &Notebook) -> Said {
    let rest = error.message.strip_prefix("the type `")?;
    let (of, by) = rest.split_once("` cannot be indexed by `")?;
    let (of, by) = (short_type(of), short_type(by.strip_suffix('`')?));
    let spot = error.spot.text.trim();
    if of == "str" && is_whole(&by) {
        return Some((
            "a text has no positions to take letters from.".into(),
            format!("Write `.chars().nth({spot})` in place of `[{spot}]`."),
        ));
    }
    if !of.starts_with('[') {
        return None;
    }
    if is_whole(&by) {
        return Some((
            format!("{} is {}; a position is a `usize`.", quoted(spot), a(&by)),
            format!("Convert it: `[{} as usize]`.", operand(spot)),
        ));
    }
    (by == "&str").then(|| {
        (
            "the elements of a list have positions, not names.".into(),
            "Write a number in the brackets, `[0]`; named values are kept in a `HashMap`.".into(),
        )
    })
}

fn negative(error: &Diagnostic, _: &Notebook) -> Said {
    if !error.message.starts_with("negative integers cannot be used to index on a") {
        return None;
    }
    let list = error.receiver_of_index()?;
    let back = error.spot.text.trim_start_matches('-').trim();
    Some((
        "positions begin at 0; there are none below.".into(),
        format!("From the end: `{list}[{list}.len() - {back}]`."),
    ))
}

fn texts_added(error: &Diagnostic, _: &Notebook) -> Said {
    if !error.message.starts_with("cannot add `&str` to `&str`")
        && !error.message.starts_with("cannot add `String` to `&str`")
    {
        return None;
    }
    let [left, right] = error.others.iter().take(2).collect::<Vec<_>>()[..] else { return None };
    Some((
        "`+` does not join two texts.".into(),
        format!("Write `format!(\"{{}}{{}}\", {}, {})`.", left.text, right.text),
    ))
}

/// `name + 5`.
fn number_added(error: &Diagnostic, _: &Notebook) -> Said {
    let (expected, found) = error.mismatch()?;
    let (before, _) = error.around_spot()?;
    let before = before.trim_end().strip_suffix('+')?.trim_end();
    let left = before.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    if expected != "&str" || !is_number(&found) || !is_name(left) {
        return None;
    }
    let spot = error.spot.text.trim();
    Some((
        format!("`+` joins a text with a text, and {} is a number.", quoted(spot)),
        format!("Write `format!(\"{{{left}}}{{}}\", {spot})`."),
    ))
}

/// "`Vec<String>` doesn't implement `std::fmt::Display`".
fn not_printable(error: &Diagnostic, _: &Notebook) -> Said {
    let (type_name, form) = error.message.split_once(" doesn't implement `")?;
    let type_name = short_type(type_name.trim_matches('`'));
    let printed = error.around_spot().is_some_and(|(before, _)| before.contains("!("));
    match short_type(form.trim_end_matches('`')).as_str() {
        // Not the error of a `?`, which must have a text, too.
        "Display" if printed => {
            let spot = error.spot.text.trim_matches(['{', '}']);
            let step = if is_name(spot) && error.spot.text.starts_with('{') {
                format!("Write `{{{spot}:?}}`, or put `{spot}` alone on the cell's last line.")
            } else {
                format!("Write `{{:?}}`, or put {} alone on the cell's last line.", quoted(spot))
            };
            Some((format!("`{{}}` cannot print {}.", a(&type_name)), step))
        }
        "Debug" => {
            error.help("#[derive(Debug)]")?;
            Some((
                format!("{} cannot be printed or shown yet.", a(&type_name)),
                format!(
                    "Write `#[derive(Debug)]` above `struct {type_name}` (or `enum`), and run that cell again."
                ),
            ))
        }
        _ => None,
    }
}

/// "`{integer}` is not an iterator".
fn loop_over_number(error: &Diagnostic, _: &Notebook) -> Said {
    let type_name = short_type(error.name(0)?);
    if !error.message.ends_with("is not an iterator") || !is_whole(&type_name) {
        return None;
    }
    let spot = operand(&error.spot.text);
    Some((
        "a number is nothing to loop over.".into(),
        format!("Write `0..{spot}`: all numbers from 0 to the one before it."),
    ))
}
