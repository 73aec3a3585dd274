//! Names that are not there: variables, functions, types, crates.

use super::diagnostic::Diagnostic;
use super::gone::Why;
use super::habits::instead_of;
use super::moves::is_name;
use super::{Kind, Notebook, Said};

pub(super) const KINDS: &[Kind] = &[
    Kind { name: "named argument", codes: &["E0425"], advise: named_argument },
    Kind { name: "Python's value", codes: &["E0425"], advise: value_of_python },
    Kind { name: "missing variable", codes: &["E0425"], advise: missing_variable },
    Kind { name: "Python's function", codes: &["E0425"], advise: function_of_python },
    Kind { name: "missing function", codes: &["E0425"], advise: missing_function },
    Kind {
        name: "missing type",
        codes: &["E0412", "E0422", "E0425", "E0433"],
        advise: missing_type,
    },
    Kind { name: "missing crate", codes: &["E0432", "E0433"], advise: missing_crate },
    Kind { name: "missing item", codes: &["E0432"], advise: missing_item },
    Kind { name: "macro without !", codes: &["E0423"], advise: macro_called },
];

/// Before all others: what the prelude has under the name of a variable that was not kept.
pub(super) const HIDDEN: &[Kind] = &[Kind {
    name: "another of that name",
    codes: &["E0277", "E0369", "E0423", "E0599"],
    advise: another_of_that_name,
}];

/// `first`, which is a function of the prelude where no variable is.
fn another_of_that_name(error: &Diagnostic, notebook: &Notebook) -> Said {
    let names = error.message.split(|c: char| !c.is_alphanumeric() && c != '_');
    let mut found = names.filter_map(|name| match notebook.gone.why(name)? {
        (Why::Within, cell) => Some((name, cell)),
        _ => None,
    });
    let (name, cell) = found.find(|(name, _)| {
        let message = &error.message;
        message.contains(&format!("::{name}}}"))
            || message.contains(&format!("{{{name}}}"))
            || error.code == "E0423" && message.contains(&format!("`{name}`"))
    })?;
    Some(within(name, cell))
}

fn named_argument(error: &Diagnostic, _: &Notebook) -> Said {
    let name = error.message.strip_prefix("cannot find value `")?.split('`').next()?;
    let (before, after) = error.around_spot()?;
    let rest = after.trim_start().strip_prefix('=')?;
    // Neither `==` nor `=>`, and within the parentheses of a call.
    let open = before.rfind('(')?;
    let called = before[..open].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    if rest.starts_with(['=', '>']) || !called || before[open..].contains(')') {
        return None;
    }
    let function = before[..open].rsplit(|c: char| !c.is_alphanumeric() && c != '_').next();
    let function = function.unwrap_or_default();
    if let Some(said) = instead_of(function) {
        return Some(said);
    }
    let example = match function {
        "read" => "`&ReadOptions::default()`",
        "split" => "`&Split::holdout(0.1).seed(42)`",
        "train" | "Trainer" => "`&TrainingArgs { epochs: 3, ..Default::default() }`",
        "add_adapter" => "`&Lora { r: 8, ..Default::default() }`",
        _ => "`&GenerationConfig { max_new_tokens: 60, ..Default::default() }`",
    };
    Some((
        format!("Rust's functions have no named arguments, so `{name} = …` sets a variable."),
        format!("Give the values in their order; settings have a struct: {example}."),
    ))
}

fn value_of_python(error: &Diagnostic, _: &Notebook) -> Said {
    let name = error.message.strip_prefix("cannot find value `")?.split('`').next()?;
    let ours = match name {
        "True" => "`true`",
        "False" => "`false`",
        "null" | "nil" | "undefined" => "`None`",
        _ => return None,
    };
    Some((format!("Rust has no `{name}`."), format!("Write {ours}.")))
}

/// A variable that was not kept.
fn within(name: &str, cell: u32) -> (String, String) {
    (
        format!("there is no `{name}`: it lived in cell [{cell}] only."),
        "Use it in that cell, or make a value of its own there: `words[0].clone()` for `&words[0]`, \
         `.collect::<Vec<_>>()` for an iterator."
            .into(),
    )
}

fn missing_variable(error: &Diagnostic, notebook: &Notebook) -> Said {
    let name = error.message.strip_prefix("cannot find value `")?.split('`').next()?;
    if !is_name(name) {
        return None;
    }
    match notebook.gone.why(name) {
        Some((Why::NotMade, cell)) => {
            return Some((
                format!("there is no `{name}`: cell [{cell}], which makes it, has failed."),
                "Mend that cell and run it, then this one.".into(),
            ));
        }
        Some((Why::Moved, cell)) => {
            return Some((
                format!("there is no `{name}` any more: cell [{cell}] has moved it away."),
                format!(
                    "Run the cell that makes `{name}` again. To keep it, hand over `{name}.clone()` or `&{name}` \
                     in cell [{cell}]."
                ),
            ));
        }
        Some((Why::Lost, cell)) => {
            return Some((
                format!(
                    "`{name}` was lost with all variables when cell [{cell}] ended the process."
                ),
                "Run the cells above again (Run > Run All Above Selected Cell).".into(),
            ));
        }
        Some((Why::Within, cell)) => return Some(within(name, cell)),
        None => {}
    }
    if let Some(help) = error.help("you might have meant to introduce a new binding") {
        help.change.as_ref()?;
        return Some((
            format!("there is no variable `{name}` yet, and a new one is made by `let`."),
            format!("Write `let {name} = …;`."),
        ));
    }
    // A constant of the standard library: `PI`.
    let imports = error.helps.iter().filter(|help| help.message.starts_with("consider importing"));
    let mut imports = imports.flat_map(|help| &help.writes);
    let is_constant = name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    let import = imports.find(|write| write.starts_with("use std::f64::"));
    if let Some(import) = import.filter(|_| is_constant) {
        return Some((
            format!("`{name}` is there, but not under its short name."),
            format!("Write `{import}` at the top of the cell."),
        ));
    }
    let similar =
        error.helps.iter().find(|help| help.message.contains("with a similar name exists"));
    let similar = similar.and_then(|help| help.change.as_ref()).map(|(_, name)| name.as_str());
    // Of what libraries define thousands of names are similar to any.
    if let Some(similar) = similar.filter(|similar| notebook.has_variable(similar)) {
        return Some((
            format!("there is no variable `{name}`, but a `{similar}`."),
            format!("Write `{similar}` if that is the one."),
        ));
    }
    Some((
        format!("there is no variable `{name}` in this session."),
        format!(
            "Run the cell that makes `{name}` first (Run > Run All Above Selected Cell), or correct the name."
        ),
    ))
}

impl Notebook<'_> {
    /// Whether it is a kept variable, or one that the cell makes.
    fn has_variable(&self, name: &str) -> bool {
        self.variables.iter().any(|(kept, _)| kept == name)
            || ["let ", "let mut "]
                .iter()
                .any(|begin| self.code.contains(&format!("{begin}{name}")))
    }
}

fn function_of_python(error: &Diagnostic, _: &Notebook) -> Said {
    let name = error.message.strip_prefix("cannot find function `")?.split('`').next()?;
    let ours = match name {
        "range" => "Write `0..10` for the numbers 0 to 9.",
        "len" => "Write `x.len()`.",
        "str" => "Write `x.to_string()`, or `format!(\"{x}\")`.",
        "int" => "A text is read by `x.parse::<i64>()?`, a number converted by `x as i64`.",
        "float" => "A text is read by `x.parse::<f64>()?`, a number converted by `x as f64`.",
        "list" => "Write `vec![1, 2, 3]`, or `.collect::<Vec<_>>()` behind an iterator.",
        "dict" => "Write `std::collections::HashMap::from([(\"a\", 1)])`.",
        "enumerate" | "zip" | "map" | "filter" | "sum" | "sorted" | "reversed" | "any" | "all" => {
            "These are methods of iterators: `x.iter().enumerate()`, `x.iter().sum::<f64>()`, …"
        }
        "open" => {
            "Write `std::fs::read_to_string(\"file.txt\")?`, or `Dataset::read(\"file.jsonl\")?`."
        }
        "type" | "isinstance" => "A variable's type is shown by `:vars` in a cell of its own.",
        "help" | "dir" => "Put the cursor on a name and press Shift+Tab.",
        "display" => "Put the value alone on the cell's last line, without `;`.",
        _ => return None,
    };
    Some((format!("there is no function `{name}` as in Python."), ours.into()))
}

fn missing_function(error: &Diagnostic, notebook: &Notebook) -> Said {
    let name = error.message.strip_prefix("cannot find function `")?.split('`').next()?;
    if !is_name(name) {
        return None;
    }
    match notebook.gone.why(name) {
        Some((Why::NotMade, cell)) => {
            return Some((
                format!("there is no `{name}`: cell [{cell}], which makes it, has failed."),
                "Mend that cell and run it, then this one.".into(),
            ));
        }
        Some((Why::Within, cell)) => return Some(within(name, cell)),
        _ => {}
    }
    Some((
        format!("there is no function `{name}` in this session."),
        format!(
            "Run the cell that defines `fn {name}` first, or correct the name: Tab completes it. \
             (A method stands behind its value: `x.{name}()`.)"
        ),
    ))
}

fn missing_type(error: &Diagnostic, _: &Notebook) -> Said {
    let rest = error.message.strip_prefix("cannot find ")?;
    let kinds = ["type `", "struct, variant or union type `", "trait `"];
    let name = kinds.iter().find_map(|kind| rest.strip_prefix(kind))?.split('`').next()?;
    let ours = match name {
        "string" | "str_" | "text" => "Write `String`.",
        "float" | "double" | "number" => "Write `f64`.",
        "int" | "integer" | "long" => "Write `i64`, or `usize` for counts and positions.",
        "boolean" => "Write `bool`.",
        "list" | "array" | "List" | "Array" => "Write `Vec<String>`, with what is in it.",
        "dict" | "Dict" | "map" => "Write `std::collections::HashMap<String, f64>`.",
        _ => "",
    };
    if !ours.is_empty() {
        return Some((format!("Rust has no type `{name}`."), ours.into()));
    }
    let imports = error.helps.iter().find(|help| help.message.starts_with("consider importing"));
    if let Some(help) = imports {
        // Of several, only where it is clear which one is meant.
        let uses = |begin: &str| help.writes.iter().find(|write| write.starts_with(begin));
        let import = match name {
            "HashMap" | "HashSet" | "BTreeMap" | "BTreeSet" | "VecDeque" => {
                uses("use std::collections::")
            }
            "Arc" | "Mutex" | "RwLock" => uses("use std::sync::"),
            "Duration" | "Instant" => uses("use std::time::"),
            "Path" | "PathBuf" => uses("use std::path::"),
            _ => help.writes.first().filter(|_| help.writes.len() == 1),
        }?;
        return Some((
            format!("`{name}` is there, but not under its short name."),
            format!("Write `{import}` at the top of the cell."),
        ));
    }
    let similar =
        error.helps.iter().find(|help| help.message.contains("with a similar name exists"));
    let (_, similar) = similar.and_then(|help| help.change.as_ref())?;
    // `Loras` for `Lora`; not `Splitter` for any of polars' thousand types.
    if !is_close(name, similar) {
        return None;
    }
    Some((format!("there is no type `{name}`."), format!("Write `{similar}` if that is the one.")))
}

/// Whether one name is the other with a letter more, less or else, or with another case.
pub(super) fn is_close(a: &str, b: &str) -> bool {
    if a.replace('_', "").eq_ignore_ascii_case(&b.replace('_', "")) {
        return true;
    }
    let (short, long) = if a.chars().count() <= b.chars().count() { (a, b) } else { (b, a) };
    let (short, long): (Vec<char>, Vec<char>) = (short.chars().collect(), long.chars().collect());
    if short.len() < 3 || long.len() - short.len() > 1 {
        return false;
    }
    let same = short.iter().zip(&long).take_while(|(x, y)| x == y).count();
    let skip = usize::from(short.len() == long.len());
    short.get(same + skip..).unwrap_or_default() == long.get(same + 1..).unwrap_or_default()
}

fn missing_crate(error: &Diagnostic, notebook: &Notebook) -> Said {
    let rest = error.spot.label.strip_prefix("use of unresolved module or unlinked crate `")?;
    let name = rest.split('`').next()?;
    if notebook.has_variable(name) {
        return Some((
            format!("`{name}` is a variable: what it has stands behind a point."),
            format!("Write `{name}.` in place of `{name}::`."),
        ));
    }
    if let Some(help) = error.help("consider importing this module") {
        let import = help.writes.first()?;
        return Some((
            format!("`{name}` is there, but not under its short name."),
            format!("Write `{import}` at the top of the cell."),
        ));
    }
    let ours = match name {
        "torch" | "np" | "numpy" => "Here are candle's `Tensor` and Rust's own `Vec<f64>`.",
        "pd" | "pandas" | "pl" => "Here are polars' `DataFrame`, `df!`, `col`, `lit`.",
        "datasets" => "Here is `Dataset::read(\"file.jsonl\")?`.",
        "transformers" => "Here is `Model::load(\"SmolLM2-135M-Instruct\", &Device::best()?)?`.",
        "peft" => "Here is `model.add_adapter(\"name\", &Lora::default())?`.",
        "plt" | "matplotlib" => "Here are `line_chart`, `bar_chart` and `histogram`.",
        "os" | "sys" => "Here are `std::fs` and `std::env`.",
        _ => {
            return Some((
                format!("there is no crate or module `{name}` in this session."),
                format!(
                    "Correct the name, or fetch the crate from crates.io with `:dep {name}` in a line of its own."
                ),
            ));
        }
    };
    Some((format!("there is no `{name}` as in Python."), ours.into()))
}

/// "unresolved import `tunebook::preludes`", of a crate that is there.
fn missing_item(error: &Diagnostic, _: &Notebook) -> Said {
    let path = error.message.strip_prefix("unresolved import `")?.split('`').next()?;
    if !path.starts_with("tunebook::") && path != "tunebook" {
        return None;
    }
    Some((
        format!("`tunebook` has no `{}`.", path.trim_start_matches("tunebook::")),
        "Write `use tunebook::prelude::*;`, which brings all that the notebooks use.".into(),
    ))
}

/// "expected function, found macro `println`".
fn macro_called(error: &Diagnostic, _: &Notebook) -> Said {
    let name = error.message.strip_prefix("expected function, found macro `")?.split('`').next()?;
    let step = match (name, error.around_spot()) {
        ("print" | "println", Some((_, after))) => {
            let inside = after.trim_start().strip_prefix('(').and_then(|rest| {
                let end = rest.find(')')?;
                Some(rest[..end].trim().to_owned())
            });
            match inside {
                Some(name) if is_name(&name) => {
                    format!("Write `println!(\"{{{name}}}\")`, or `{name}` alone on the last line.")
                }
                Some(text)
                    if text.starts_with('"')
                        && text.len() < 50
                        && text.matches('"').count() == 2 =>
                {
                    format!("Write `println!({text})`.")
                }
                _ => "Write `println!(\"{}\", …)`: a text with `{}` for each value.".into(),
            }
        }
        _ => format!("Write `{name}!( … )`."),
    };
    Some((format!("`{name}!` is a macro and is called with `!`."), step))
}

#[cfg(test)]
mod tests {
    use super::is_close;

    #[test]
    fn close_names_differ_in_a_letter_or_in_case() {
        for (a, b) in
            [("Loras", "Lora"), ("Modell", "Model"), ("dataSet", "Dataset"), ("tests", "test")]
        {
            assert!(is_close(a, b) && is_close(b, a), "{a} {b}");
        }
        for (a, b) in [("Split", "Splat1"), ("x", "y"), ("Foo", "Foobar"), ("abc", "bca")] {
            assert!(!is_close(a, b) && !is_close(b, a), "{a} {b}");
        }
        assert!(is_close("learningrate", "learning_rate"));
    }
}
