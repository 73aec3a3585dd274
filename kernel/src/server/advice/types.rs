//! A value of one type where another is expected.

use super::diagnostic::Diagnostic;
use super::{Kind, Notebook, Said, a, quoted};

pub(super) const KINDS: &[Kind] = &[
    Kind { name: "lent", codes: &["E0277", "E0308"], advise: lent },
    Kind { name: "matched text", codes: &["E0308"], advise: matched_text },
    Kind { name: "text", codes: &["E0308"], advise: text },
    Kind { name: "number as text", codes: &["E0308"], advise: number_as_text },
    Kind { name: "condition", codes: &["E0308"], advise: condition },
    Kind { name: "semicolon behind the value", codes: &["E0308"], advise: value_thrown_away },
    Kind { name: "missing return type", codes: &["E0308"], advise: missing_return_type },
    Kind { name: "converted", codes: &["E0308"], advise: converted },
    Kind { name: "Some", codes: &["E0308"], advise: some },
    Kind { name: "value of return", codes: &["E0308"], advise: returned },
    Kind { name: "append", codes: &["E0308"], advise: appended },
    Kind { name: "list", codes: &["E0308"], advise: list },
];

fn lent(error: &Diagnostic, _: &Notebook) -> Said {
    let help = error.helps.iter().find(|help| {
        ["consider borrowing here", "consider mutably borrowing here"]
            .contains(&help.message.as_str())
    })?;
    let mended = error.mended(help)?;
    let cause = match error.mismatch() {
        Some((expected, found)) if expected.starts_with('&') && !found.starts_with('&') => {
            format!(
                "{} is expected, and {} is {}.",
                a(&expected),
                quoted(&error.spot.text),
                a(&found)
            )
        }
        Some(_) => return None,
        None => format!(
            "{} is given away, and a reference (`&`) is expected.",
            quoted(&error.spot.text)
        ),
    };
    Some((cause, format!("Lend it: write {}.", quoted(&mended))))
}

fn text(error: &Diagnostic, _: &Notebook) -> Said {
    let (expected, found) = error.mismatch()?;
    if expected != "String" || !["&str", "&'static str"].contains(&found.as_str()) {
        return None;
    }
    let help = error.help("try using a conversion method")?;
    Some((
        format!("{} is a `&str`, and a `String` of its own is expected.", quoted(&error.spot.text)),
        format!("Write {}.", quoted(&error.mended(help)?)),
    ))
}

fn matched_text(error: &Diagnostic, _: &Notebook) -> Said {
    let matched = error.others.iter().find(|place| {
        place.label.starts_with("this expression has type `") && place.label.ends_with("String`")
    })?;
    let (_, found) = error.mismatch()?;
    (found == "&str").then(|| {
        (
            format!("{} is a `String`, and the arms of `match` are `&str`.", quoted(&matched.text)),
            format!("Write `match {}.as_str()`.", matched.text.trim()),
        )
    })
}

fn number_as_text(error: &Diagnostic, _: &Notebook) -> Said {
    let (expected, found) = error.mismatch()?;
    if !super::numbers::is_number(&expected) || !["&str", "String"].contains(&found.as_str()) {
        return None;
    }
    let spot = error.spot.text.trim();
    let within = spot.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let step = match within {
        Some(number) if number.parse::<f64>().is_ok() => {
            format!("Write it without quotes: `{number}`.")
        }
        Some(_) => return None,
        None => format!("Read the number: `{spot}.parse::<{expected}>()?`."),
    };
    Some((format!("{} is a text, and a number is expected (`{expected}`).", quoted(spot)), step))
}

fn condition(error: &Diagnostic, _: &Notebook) -> Said {
    let (expected, found) = error.mismatch()?;
    if expected != "bool" {
        return None;
    }
    let spot = error.spot.text.trim();
    if error.help("compare for equality").is_some() {
        let (left, right) = spot.split_once(" = ")?;
        return Some((
            "one `=` sets a variable; two compare.".into(),
            format!("Write {}.", quoted(&format!("{left} == {right}"))),
        ));
    }
    let (before, _) = error.around_spot()?;
    let before = before.trim_start();
    let asks = ["if ", "while ", "} else if ", "!"].iter().any(|begin| before.starts_with(begin));
    if !asks {
        let ours = match spot {
            "1" => "`true`",
            "0" => "`false`",
            _ => return None,
        };
        return Some((
            format!("`{spot}` is a number, and `true` or `false` is expected."),
            format!("Write {ours}."),
        ));
    }
    let step = match found.as_str() {
        "integer" => "Compare it: `… > 0`.".to_owned(),
        found if super::numbers::is_number(found) => {
            format!("Compare it: {}.", quoted(&format!("{spot} > 0")))
        }
        "String" | "&str" => {
            format!("Ask for what you mean: {}.", quoted(&format!("!{spot}.is_empty()")))
        }
        found if found.starts_with("Vec<") => {
            format!("Ask for what you mean: {}.", quoted(&format!("!{spot}.is_empty()")))
        }
        found if found.starts_with("Option<") => {
            format!("Ask for what you mean: {}.", quoted(&format!("{spot}.is_some()")))
        }
        _ => return None,
    };
    Some((
        format!("{} is {}, and a condition is `true` or `false`.", quoted(spot), kind_of(&found)),
        step,
    ))
}

fn kind_of(type_name: &str) -> String {
    match type_name {
        "integer" => "a whole number".to_owned(),
        "floating-point number" => "a number".to_owned(),
        name => a(name),
    }
}

fn value_thrown_away(error: &Diagnostic, _: &Notebook) -> Said {
    error.help("remove this semicolon to return this value")?;
    let (expected, _) = error.mismatch()?;
    Some((
        format!(
            "the function gives {}, but the `;` behind its last value throws it away.",
            a(&expected)
        ),
        "Leave that last `;` away.".into(),
    ))
}

fn missing_return_type(error: &Diagnostic, _: &Notebook) -> Said {
    let help = error.help("try adding a return type")?;
    let write = help.writes.first()?;
    Some((
        format!("the function gives {} and does not say so.", quoted(&error.spot.text)),
        format!("Write `{write}` behind the parentheses of its arguments."),
    ))
}

fn converted(error: &Diagnostic, _: &Notebook) -> Said {
    let help = error.help("call `Into::into` on this expression")?;
    let (expected, _) = error.mismatch()?;
    Some((
        format!("{} must become {}.", quoted(&error.spot.text), a(&expected)),
        format!("Write {}.", quoted(&error.mended(help)?)),
    ))
}

fn some(error: &Diagnostic, _: &Notebook) -> Said {
    error.help("try wrapping the expression in `Some`")?;
    let spot = error.spot.text.trim();
    Some((
        format!("an `Option` is expected, a value or none, and {} is a value.", quoted(spot)),
        format!("Write {}, or `None`.", quoted(&format!("Some({spot})"))),
    ))
}

fn list(error: &Diagnostic, _: &Notebook) -> Said {
    let (expected, found) = error.mismatch()?;
    let spot = error.spot.text.trim();
    let element = expected.strip_prefix("Vec<")?.strip_suffix('>')?;
    let same = found.strip_prefix('[')?.strip_suffix(']')?.split(';').next()? == element;
    (same && spot.starts_with('[')).then(|| {
        (
            format!("{} is an array, and a `{expected}` is expected.", quoted(spot)),
            format!("Write {}.", quoted(&format!("vec!{spot}"))),
        )
    })
}

/// `return 5` at the end of a cell.
fn returned(error: &Diagnostic, _: &Notebook) -> Said {
    let (expected, _) = error.mismatch()?;
    let (before, _) = error.around_spot()?;
    if !expected.contains("EvcxrUserCodeError") || !before.trim_end().ends_with("return") {
        return None;
    }
    let spot = quoted(&error.spot.text);
    Some((
        "a cell gives its value without `return`.".into(),
        format!("Put {spot} alone on the last line, without `;`."),
    ))
}

/// `words.append("c")`.
fn appended(error: &Diagnostic, _: &Notebook) -> Said {
    let is_append = error.others.iter().any(|place| place.text == "append");
    let is_element = error.spot.label == "types differ in mutability"
        || error.help("you might have meant to use `push`").is_some();
    (is_append && is_element).then(|| {
        (
            "`append` takes all elements of another list.".into(),
            "One element is added by `push( … )`.".into(),
        )
    })
}
