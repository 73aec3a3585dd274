//! Methods that are not there, and wrong numbers of arguments.

use super::diagnostic::{Diagnostic, short_type};
use super::fields::SETTINGS;
use super::names::is_close;
use super::{Kind, Notebook, Said, quoted};

pub(super) const KINDS: &[Kind] = &[
    Kind { name: "missing method", codes: &["E0599"], advise: missing_method },
    Kind { name: "rows are no iterator", codes: &["E0599"], advise: no_iterator },
    Kind { name: "missing constructor", codes: &["E0599"], advise: missing_constructor },
    Kind { name: "len(x)", codes: &["E0061"], advise: len_called },
    Kind { name: "number of arguments", codes: &["E0061"], advise: arguments },
    Kind { name: "value called", codes: &["E0618"], advise: value_called },
    Kind { name: "closure's arguments", codes: &["E0593"], advise: closure_arguments },
    Kind { name: "closure's value", codes: &["E0271"], advise: closure_value },
];

/// Methods of Python's values, and the ones that do the same here: a name, or a whole step.
const METHODS: [(&str, &[&str], &str); 17] = [
    ("Vec", &["append", "add"], "push"),
    ("Vec", &["length", "size", "count"], "len"),
    ("Vec", &["map", "filter", "enumerate", "zip", "sum"], "iter()."),
    ("String", &["length", "size"], "len"),
    ("String", &["upper"], "to_uppercase"),
    ("String", &["lower"], "to_lowercase"),
    ("String", &["strip"], "trim"),
    ("String", &["startswith"], "starts_with"),
    ("Dataset", &["length", "size", "count", "height", "num_rows"], "len"),
    ("Dataset", &["map", "filter", "apply", "select", "with_columns"], FRAME),
    (
        "Dataset",
        &["columns", "column_names", "schema", "tail", "shuffle", "sample", "sort", "column"],
        "Its rows are a frame of polars: `data.frame()` has these methods; `Dataset::from_frame(frame)?` goes back.",
    ),
    (
        "Dataset",
        &["iter", "into_iter"],
        "Its rows are in `data.rows()`: `for row in data.rows() { … }`.",
    ),
    ("Dataset", &["describe", "info"], "Write `data.profile()?`."),
    (
        "Dataset",
        &["unique", "drop_nulls"],
        "Write `data.clean(&Cleaning::default().drop_empty().drop_duplicates())?`.",
    ),
    ("Dataset", &["train_test_split"], "Write `data.split(&Split::holdout(0.1).seed(42))?`."),
    (
        "Dataset",
        &["save", "write", "to_json", "to_jsonl", "to_csv", "save_to_disk"],
        "Write `data.write_jsonl(\"out/data.jsonl\")?`.",
    ),
    (
        "Model",
        &["num_parameters", "print_trainable_parameters", "parameters"],
        "Write `model.summary()`.",
    ),
];

/// How rows are chosen and changed.
const FRAME: &str = "Write `Dataset::from_frame(data.frame().lazy().filter(col(\"topic\").eq(lit(\"returns\"))).collect()?)?`.";

/// "no method named `length` found for struct `Vec<String>` in the current scope".
fn missing_method(error: &Diagnostic, _: &Notebook) -> Said {
    let rest = error.message.strip_prefix("no method named `")?;
    let (name, rest) = rest.split_once("` found for ")?;
    let owner = short_type(rest.split('`').nth(1)?);
    // A `Result` or an `Option` is another mistake.
    if owner.starts_with("Result<") || owner.starts_with("Option<") {
        return None;
    }
    let cause = format!("`{owner}` has no method `{name}`.");
    let plain = owner.trim_start_matches('&');
    let plain = if plain == "str" { "String" } else { plain.split('<').next().unwrap_or(plain) };
    let known = METHODS.iter().find(|(of, names, _)| *of == plain && names.contains(&name));
    if let Some((_, _, ours)) = known {
        if ours.contains(' ') {
            return Some((cause, (*ours).to_owned()));
        }
        let step = match ours.strip_suffix('.') {
            Some(before) => format!("It is one of iterators: `.{before}.{name}( … )`."),
            None => format!("Write `{ours}`."),
        };
        return Some((cause, step));
    }
    let similar = error.helps.iter().find(|help| {
        help.message.contains("with a similar name")
            || help.message.contains("you might have meant to use")
    });
    if let Some((_, similar)) = similar.and_then(|help| help.change.as_ref()) {
        let sure = if is_close(name, similar) { "." } else { " if that is the one." };
        return Some((cause, format!("Write `{similar}`{sure}")));
    }
    let field =
        error.help("field").is_some() || error.spot.label.starts_with("field, not a method");
    if field {
        return Some((cause, format!("`{name}` is a field: leave the `( )` away.")));
    }
    Some((cause, "Press Tab behind the `.`: it lists the methods that there are.".into()))
}

/// "`Dataset` is not an iterator": `map` and `filter` are methods of iterators.
fn no_iterator(error: &Diagnostic, _: &Notebook) -> Said {
    let is_ours =
        error.message.ends_with("is not an iterator") && short_type(error.name(0)?) == "Dataset";
    is_ours.then(|| (format!("`Dataset` has no method `{}`.", error.spot.text), FRAME.to_owned()))
}

/// "no function or associated item named `open` found for struct `Dataset` in the current scope".
fn missing_constructor(error: &Diagnostic, _: &Notebook) -> Said {
    let kinds = [
        "no function or associated item named `",
        "no associated function or constant named `",
        "no variant or associated item named `",
        "no variant, associated function, or constant named `",
    ];
    let rest = kinds.iter().find_map(|kind| error.message.strip_prefix(kind))?;
    let (name, rest) = rest.split_once("` found for ")?;
    let owner = short_type(rest.split('`').nth(1)?);
    let cause = format!("`{owner}` has no `{owner}::{name}`.");
    if name == "new" && SETTINGS.contains(&owner.as_str()) {
        return Some((
            cause,
            format!("Write `{owner} {{ …, ..Default::default() }}`, with the fields that you set."),
        ));
    }
    let mut similar =
        error.helps.iter().filter_map(|help| help.change.as_ref()).map(|(_, write)| write);
    if let Some(similar) = similar.find(|similar| is_close(name, similar)) {
        return Some((cause, format!("Write `{owner}::{similar}` if that is the one.")));
    }
    let list = error.notes.iter().find(|note| note.starts_with("if you're trying to build a new"));
    let there: Vec<String> = list
        .iter()
        .flat_map(|note| note.lines().skip(1))
        .filter_map(|path| path.rsplit_once("::"))
        .map(|(_, name)| format!("`{owner}::{}`", name.split('(').next().unwrap_or(name)))
        .collect();
    if !there.is_empty() {
        return Some((cause, format!("There is {}, among others.", there.join(", "))));
    }
    Some((cause, format!("Press Tab behind `{owner}::`: it lists what there is.")))
}

/// `len(x)`, which finds polars' function.
fn len_called(error: &Diagnostic, _: &Notebook) -> Said {
    if error.spot.text != "len" {
        return None;
    }
    let given = error.others.iter().find(|place| place.label.starts_with("unexpected argument"))?;
    Some(("`len` is a method here.".into(), format!("Write `{}.len()`.", given.text.trim())))
}

/// "this method takes 2 arguments but 1 argument was supplied".
fn arguments(error: &Diagnostic, _: &Notebook) -> Said {
    let (_, numbers) = error.message.split_once(" takes ")?;
    let (takes, given) = numbers.split_once(" but ")?;
    let given = given.split_whitespace().next()?;
    let is = if given == "1" { "is" } else { "are" };
    let cause = format!("`{}` takes {takes}, and {given} {is} given.", error.spot.text.trim());
    if let Some(write) = error.helps.iter().find_map(|help| {
        help.message.starts_with("provide the argument").then(|| help.writes.first()).flatten()
    }) {
        let call = format!("{}{write}", error.spot.text.trim());
        return Some((
            cause,
            format!("Write {}, with a value in place of each `/* … */`.", quoted(&call)),
        ));
    }
    let extra: Vec<String> = error
        .others
        .iter()
        .filter(|place| place.label.starts_with("unexpected argument"))
        .map(|place| quoted(&place.text))
        .collect();
    if !extra.is_empty() {
        return Some((cause, format!("Leave {} away.", extra.join(", "))));
    }
    Some((cause, "Put the cursor on its name and press Shift+Tab: it shows the arguments.".into()))
}

/// "expected function, found `Vec<String>`": `words(0)`.
fn value_called(error: &Diagnostic, _: &Notebook) -> Said {
    let type_name =
        short_type(error.message.strip_prefix("expected function, found `")?.trim_end_matches('`'));
    let is_list =
        type_name.starts_with("Vec<") || type_name.starts_with('[') || type_name.starts_with("&[");
    let name = error.spot.text.split('(').next()?.trim();
    is_list.then(|| {
        (
            format!("`{name}` is a `{type_name}`, not a function."),
            format!("An element is taken with brackets: `{name}[0]`."),
        )
    })
}

/// "closure is expected to take 2 arguments, but it takes 1 argument".
fn closure_arguments(error: &Diagnostic, _: &Notebook) -> Said {
    let rest = error.message.strip_prefix("closure is expected to take ")?;
    let (expected, given) = rest.split_once(", but it takes ")?;
    let count: usize = expected.split_whitespace().next()?.parse().ok()?;
    let names = ["a", "b", "c", "d"].get(..count)?.join(", ");
    Some((
        format!("the closure takes {given}, and {expected} are handed to it."),
        format!("Write `|{names}|`; one that is not needed is called `_`."),
    ))
}

/// "expected `{closure@…}` to return `f64`, but it returns `usize`".
fn closure_value(error: &Diagnostic, _: &Notebook) -> Said {
    let (_, rest) = error.message.split_once("to return `")?;
    let (expected, rest) = rest.split_once("`, but it returns `")?;
    let found = rest.strip_suffix('`')?;
    let [expected, found] = [expected, found].map(short_type);
    if !super::numbers::is_number(&expected) || !super::numbers::is_number(&found) {
        return None;
    }
    Some((
        format!("the closure gives a `{found}`, and a `{expected}` is expected."),
        format!("Convert its last value: write ` as {expected}` behind it."),
    ))
}
