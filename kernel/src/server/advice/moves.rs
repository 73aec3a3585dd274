//! Values that have moved, and variables that are not mutable.

use super::diagnostic::{Diagnostic, line_of};
use super::{Kind, Notebook, Said, quoted};

pub(super) const KINDS: &[Kind] = &[
    Kind { name: "moved", codes: &["E0382"], advise: moved },
    Kind { name: "not mutable", codes: &["E0384", "E0594", "E0596"], advise: not_mutable },
];

fn moved(error: &Diagnostic, notebook: &Notebook) -> Said {
    if !error.message.contains("moved value: `") {
        return None;
    }
    let name = error.name(0)?;
    let way = error.others.iter().find(|place| {
        place.label.starts_with("value moved")
            || place.label.starts_with(&format!("`{name}` moved due to"))
            || place.label.starts_with("value used here after move")
    })?;
    let cause = if way.label.contains("previous iteration of loop") {
        format!("the loop's first round moves `{name}` away, so the second has none.")
    } else {
        match line_of(&way.line, notebook.code) {
            Some(line) if line != error.line => {
                let own = notebook.code.lines().nth(line - 1).unwrap_or_default();
                format!("`{name}` is gone: line {line}, {}, has moved it away.", quoted(own.trim()))
            }
            _ => format!("`{name}` is gone: it was moved away before."),
        }
    };
    let step = if error.help("iterating over a slice").is_some() {
        format!("Loop over `&{name}`, which leaves it where it is.")
    } else if error.help("cloning the value").is_some() || error.help("`clone` the value").is_some()
    {
        format!("Hand over a copy there, `{name}.clone()`, and it stays here.")
    } else if error.help("consider borrowing").is_some() {
        format!("Lend it there, `&{name}`, and it stays here.")
    } else {
        format!("Use `{name}` before it is moved, or make another one.")
    };
    Some((cause, step))
}

fn not_mutable(error: &Diagnostic, notebook: &Notebook) -> Said {
    let name = error.name(0)?;
    let declared = error.message.starts_with("cannot assign twice to immutable variable")
        || error.message.ends_with("not declared as mutable");
    // Of `point.x` it is `point` that is declared.
    let root = name.split('.').next().unwrap_or(name);
    if !declared || !is_name(root) {
        return None;
    }
    let cause = format!("`{root}` may not change: it was made by `let` without `mut`.");
    let kept = notebook.variables.iter().any(|(kept, _)| kept == root);
    let here = notebook.code.lines().any(|line| line.contains(&format!("let {root}")));
    let step = if kept && !here {
        format!("Write `let mut {root} = {root};` at the top of this cell.")
    } else {
        format!("Write `let mut {root}` where it is made.")
    };
    Some((cause, step))
}

/// Whether it is a plain name.
pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}
