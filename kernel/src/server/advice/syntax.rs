//! Code that does not parse: Python's forms, quotes, brackets, semicolons.

use ra_ap_syntax::{Edition, SourceFile, SyntaxKind};

use super::diagnostic::Diagnostic;
use super::{Kind, Notebook, Said, quoted};

pub(super) const KINDS: &[Kind] = &[
    Kind { name: "quotes", codes: &["", "E0762", "E0763"], advise: quotes },
    Kind { name: "Python's line", codes: &["", "E0425", "E0432", "E0433"], advise: line_of_python },
    Kind { name: "Python's word", codes: &[""], advise: word_of_python },
    Kind { name: "decimal comma", codes: &[""], advise: decimal_comma },
    Kind { name: "= in a literal", codes: &[""], advise: equals_in_literal },
    Kind { name: "bracket", codes: &[""], advise: bracket },
    Kind { name: "semicolon", codes: &[""], advise: semicolon },
    Kind { name: "parameter without type", codes: &[""], advise: parameter },
    Kind { name: "println without text", codes: &[""], advise: print_without_text },
    Kind { name: "{} without a value", codes: &[""], advise: values_of_a_text },
];

fn own_line<'a>(error: &Diagnostic, notebook: &Notebook<'a>) -> Option<&'a str> {
    notebook.code.lines().nth(error.line.checked_sub(1)?)
}

fn quotes(error: &Diagnostic, _: &Notebook) -> Said {
    let message = error.message.as_str();
    let single = message.starts_with("character literal may only contain one codepoint")
        || message == "unterminated character literal";
    if single {
        let text = error.spot.text.trim();
        let within = text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
        let step = match within {
            Some(within) if !within.contains(['"', '\\', '\'']) => {
                format!("Write {}.", quoted(&format!("\"{within}\"")))
            }
            _ => "Write it in double quotes: `\"…\"`.".into(),
        };
        return Some(("single quotes are for one letter, texts have double ones.".into(), step));
    }
    if message.starts_with("unterminated double quote string") {
        return Some((
            "a text begins here and does not end.".into(),
            "Put the closing `\"` where the text ends.".into(),
        ));
    }
    let (before, after) = error.around_spot()?;
    let is_f = before.ends_with('f')
        && !before.trim_end_matches('f').ends_with(|c: char| c.is_alphanumeric() || c == '_')
        && format!("{}{after}", error.spot.text).starts_with('"');
    if is_f && message.starts_with("expected `;`, found `\"") || message == "prefix `f` is unknown"
    {
        return Some((
            "Rust has no f-strings.".into(),
            "Write `format!(\"{name}\")`, or `println!(\"{name}\")` to print.".into(),
        ));
    }
    None
}

fn line_of_python(error: &Diagnostic, notebook: &Notebook) -> Said {
    let own = own_line(error, notebook)?;
    let line = own.trim();
    let line = line.split_once(" #").map_or(line, |(code, _)| code.trim_end());
    let first = line.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    // Of Rust, too: a line that only begins like Python's.
    if line.ends_with([';', '{', ','])
        && !(error.code.is_empty() && (first == "import" || first == "from"))
    {
        return None;
    }
    let python = |ours: &str| Some(("this is Python.".to_owned(), ours.to_owned()));
    match first {
        "import" | "from"
            if line[first.len()..].starts_with(' ')
                && line[first.len() + 1..].starts_with(|c: char| c.is_alphabetic()) =>
        {
            python("In Rust: `use tunebook::prelude::*;`, which brings all that the notebooks use.")
        }
        "def" if error.code.is_empty() => python(
            "In Rust: `fn name(x: f64) -> f64 { … }`, with the types of arguments and value.",
        ),
        "class" if error.code.is_empty() => python("In Rust: `struct Name { field: f64 }`."),
        "elif" if error.code.is_empty() => python("In Rust: `} else if condition { … }`."),
        "try" | "except" if error.code.is_empty() && line.ends_with(':') => {
            python("In Rust `?` hands an error on, and `match` looks at it.")
        }
        "for" | "while" | "if" | "else" | "with"
            if error.code.is_empty() && line.ends_with(':') =>
        {
            let body = line.trim_end_matches(':').trim_end();
            Some((
                "a block stands between braces, not behind `:`.".into(),
                format!("Write {}.", quoted(&format!("{body} {{ … }}"))),
            ))
        }
        "" if line.starts_with('#')
            && !line.starts_with("#[")
            && !line.starts_with("#!")
            && error.code.is_empty() =>
        {
            Some(("a comment begins with `//`.".into(), "Write `//` in place of `#`.".into()))
        }
        _ => None,
    }
}

fn word_of_python(error: &Diagnostic, notebook: &Notebook) -> Said {
    let own = own_line(error, notebook)?;
    let spot = error.spot.text.trim();
    let said = |cause: &str, step: &str| Some((cause.to_owned(), step.to_owned()));
    match spot {
        "and" if error.message.contains("not a logical operator") => {
            return said("`and` is written with signs.", "Write `&&`.");
        }
        "or" if error.message.contains("not a logical operator") => {
            return said("`or` is written with signs.", "Write `||`.");
        }
        "is" if own.contains(" is None") => {
            return said("Rust has no `is`.", "Write `.is_none()` behind the name.");
        }
        "is" if own.contains(" is not None") => {
            return said("Rust has no `is`.", "Write `.is_some()` behind the name.");
        }
        "++" | "--" if error.message.contains("postfix") => {
            let sign = &spot[..1];
            return Some((format!("Rust has no `{spot}`."), format!("Write `{sign}= 1`.")));
        }
        _ => {}
    }
    let (before, after) = error.around_spot()?;
    let last = before.split_whitespace().next_back().unwrap_or_default();
    if last == "not" || spot == "not" && after.starts_with(' ') {
        return said("`not` is written with a sign.", "Write `!` before the condition.");
    }
    if last == "lambda" {
        return said(
            "Rust's closures have another form.",
            "Write `|x| x + 1` for `lambda x: x + 1`.",
        );
    }
    if spot == ":" && before.trim_end().ends_with('"') && before.contains('{') {
        return said(
            "Rust has no `{key: value}`.",
            "Write `std::collections::HashMap::from([(\"key\", 1.0)])`.",
        );
    }
    if last == "await" || spot == "await" {
        return said(
            "nothing is awaited in a cell: a call waits by itself.",
            "Leave `await` away.",
        );
    }
    None
}

/// `learning_rate: 0,0002`.
fn decimal_comma(error: &Diagnostic, _: &Notebook) -> Said {
    let spot = error.spot.text.trim();
    let (before, _) = error.around_spot()?;
    let whole = before.strip_suffix(',')?;
    let digits: String = whole.chars().rev().take_while(char::is_ascii_digit).collect();
    let whole: String = digits.chars().rev().collect();
    if whole.is_empty() || spot.is_empty() || !spot.chars().all(|c| c.is_ascii_digit()) {
        return None;
    }
    Some((
        format!("`{whole},{spot}` is two numbers; a fraction has a point."),
        format!("Write `{whole}.{spot}`."),
    ))
}

/// `Lora { r = 8 }`.
fn equals_in_literal(error: &Diagnostic, _: &Notebook) -> Said {
    if error.message != "expected `:`, found `=`" {
        return None;
    }
    error.help("replace equals symbol with a colon")?;
    let (before, after) = error.around_spot()?;
    let field =
        before.trim_end().rsplit(|c: char| !c.is_alphanumeric() && c != '_').next()?.to_owned();
    let value: String = after.trim().chars().take_while(|c| !",}".contains(*c)).collect();
    Some((
        format!("a field is given with a colon: `{field}`."),
        format!("Write {}.", quoted(&format!("{field}: {}", value.trim()))),
    ))
}

fn bracket(error: &Diagnostic, notebook: &Notebook) -> Said {
    let message = error.message.as_str();
    if !["delimiter", "expected one of", "expected", "this file contains"]
        .iter()
        .any(|begin| message.contains(begin))
    {
        return None;
    }
    let (sign, line) = unmatched(notebook.code)?;
    let (cause, step) = match sign {
        '(' => ("is never closed", "Put `)` where its arguments end."),
        '[' => ("is never closed", "Put `]` where the list ends."),
        '{' => ("is never closed", "Put `}` where the block ends."),
        _ => ("closes nothing", "Leave it away, or open it before."),
    };
    Some((format!("the `{sign}` of line {line} {cause}."), step.into()))
}

/// The first bracket of a cell without its partner, and its line from 1.
pub(super) fn unmatched(code: &str) -> Option<(char, usize)> {
    let parsed = SourceFile::parse(code, Edition::Edition2024);
    let mut open: Vec<(char, usize)> = Vec::new();
    let mut line = 1;
    for token in
        parsed.syntax_node().descendants_with_tokens().filter_map(|element| element.into_token())
    {
        let partner = match token.kind() {
            SyntaxKind::L_PAREN => {
                open.push(('(', line));
                None
            }
            SyntaxKind::L_BRACK => {
                open.push(('[', line));
                None
            }
            SyntaxKind::L_CURLY => {
                open.push(('{', line));
                None
            }
            SyntaxKind::R_PAREN => Some(('(', ')')),
            SyntaxKind::R_BRACK => Some(('[', ']')),
            SyntaxKind::R_CURLY => Some(('{', '}')),
            // A text that does not end takes brackets in.
            SyntaxKind::ERROR => return None,
            _ => None,
        };
        if let Some((opening, closing)) = partner {
            match open.pop() {
                None => return Some((closing, line)),
                Some((last, _)) if last == opening => {}
                Some(last) => return Some(last),
            }
        }
        line += token.text().matches('\n').count();
    }
    open.pop()
}

fn semicolon(error: &Diagnostic, notebook: &Notebook) -> Said {
    if !error.message.starts_with("expected `;`, found") {
        return None;
    }
    error.help("add `;` here")?;
    let own = own_line(error, notebook)?.trim_end();
    // Only at the end of a line; within one it is something else.
    let (before, _) = error.around_spot()?;
    let at_end = own.trim().ends_with(before.trim()) && !before.trim().is_empty();
    at_end.then(|| {
        (
            "this line has no `;` at its end.".into(),
            format!("Write {}.", quoted(&format!("{};", own.trim()))),
        )
    })
}

/// `fn add(a, b)`.
fn parameter(error: &Diagnostic, _: &Notebook) -> Said {
    error.help("if this is a parameter name, give it a type")?;
    let (before, _) = error.around_spot()?;
    let name = before.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next()?.to_owned();
    if name.is_empty() || !before.contains("fn ") {
        return None;
    }
    Some((
        format!("the argument `{name}` has no type."),
        format!("Write `{name}: f64`, with the type that you mean, and `-> f64` for the value."),
    ))
}

/// `println!(name)`.
fn print_without_text(error: &Diagnostic, _: &Notebook) -> Said {
    if error.message != "format argument must be a string literal" {
        return None;
    }
    let spot = error.spot.text.trim();
    let step = match super::moves::is_name(spot) {
        true => format!("Write `println!(\"{{{spot}}}\")`."),
        false => format!("Write {}.", quoted(&format!("println!(\"{{}}\", {spot})"))),
    };
    Some(("the first argument is a text with `{}` where values go.".into(), step))
}

/// "2 positional arguments in format string, but there is 1 argument".
fn values_of_a_text(error: &Diagnostic, _: &Notebook) -> Said {
    let (places, rest) = error.message.split_once(" positional argument")?;
    let given = rest.split_once("in format string, but ")?.1;
    let given = given.trim_start_matches("there is ").trim_start_matches("there are ");
    places.parse::<usize>().ok()?;
    let given = given.strip_prefix("no arguments were given").map_or(given, |_| "none");
    let given = given.split_whitespace().next()?;
    Some((
        format!("the text has {places} `{{}}`, and the values behind it are {given}."),
        "Give one value for each `{}`.".into(),
    ))
}

#[cfg(test)]
mod tests {
    use super::unmatched;

    #[test]
    fn a_bracket_without_its_partner_is_found() {
        assert_eq!(unmatched("f(1);\nlet v = vec![1, 2;"), Some(('[', 2)));
        assert_eq!(unmatched("println!(\"a)\""), Some(('(', 1)));
        assert_eq!(unmatched("f(1))"), Some((')', 1)));
        assert_eq!(unmatched("for i in 0..3 {\n  f(i);\n"), Some(('{', 1)));
        assert_eq!(unmatched("f([{ 1 }]) // ("), None);
    }
}
