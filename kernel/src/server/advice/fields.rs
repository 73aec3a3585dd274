//! Fields of structs: wrong names, missing ones, methods without parentheses.

use super::diagnostic::{Diagnostic, short_type};
use super::names::is_close;
use super::{Kind, Notebook, Said};

pub(super) const KINDS: &[Kind] = &[
    Kind { name: "unknown field of a literal", codes: &["E0560"], advise: unknown_in_literal },
    Kind { name: "unknown field", codes: &["E0609"], advise: unknown },
    Kind { name: "missing fields", codes: &["E0063"], advise: missing },
    Kind { name: "method as a field", codes: &["E0615", "E0616"], advise: method },
];

/// Names that other libraries have for a field of ours.
const ALIASES: [(&str, &[&str], &str); 11] = [
    ("Lora", &["rank", "lora_r"], "r"),
    ("Lora", &["alpha"], "lora_alpha"),
    ("Lora", &["dropout"], "lora_dropout"),
    ("Lora", &["targets", "modules", "target_module"], "target_modules"),
    ("TrainingArgs", &["lr"], "learning_rate"),
    ("TrainingArgs", &["num_train_epochs", "num_epochs"], "epochs"),
    ("TrainingArgs", &["batch", "per_device_train_batch_size", "train_batch_size"], "batch_size"),
    ("TrainingArgs", &["steps"], "max_steps"),
    ("GenerationConfig", &["max_tokens", "max_length"], "max_new_tokens"),
    ("Run", &["losses", "loss", "log_history", "history"], "steps"),
    ("Evaluation", &["accuracy", "perplexity", "loss", "metrics"], "scores"),
];

/// Settings of ours that have a default, so that a literal may leave fields out.
pub(super) const SETTINGS: [&str; 14] = [
    "AdaLora",
    "Bottleneck",
    "Cleaning",
    "EvaluationArgs",
    "ForgettingArgs",
    "Full",
    "GenerationConfig",
    "Ia3",
    "Lora",
    "LrRangeTest",
    "PrefixTuning",
    "PromptTuning",
    "ServerConfig",
    "TrainingArgs",
];

fn unknown_in_literal(error: &Diagnostic, _: &Notebook) -> Said {
    let (owner, field) = (short_type(error.name(0)?), error.name(1)?);
    wrong_name(error, &owner, field)
}

fn unknown(error: &Diagnostic, _: &Notebook) -> Said {
    let (field, owner) = (error.name(0)?, short_type(error.name(1)?));
    wrong_name(error, &owner, field)
}

fn wrong_name(error: &Diagnostic, owner: &str, field: &str) -> Said {
    let cause = format!("`{owner}` has no field `{field}`.");
    let alias = ALIASES.iter().find(|(of, names, _)| *of == owner && names.contains(&field));
    if let Some((_, _, ours)) = alias {
        return Some((cause, format!("It is called `{ours}` here.")));
    }
    let similar = error.helps.iter().find(|help| help.message.contains("similar name exists"));
    if let Some((_, similar)) = similar.and_then(|help| help.change.as_ref()) {
        let sure = if is_close(field, similar) { "." } else { " if that is the one." };
        return Some((cause, format!("Write `{similar}`{sure}")));
    }
    let available = error.notes.iter().chain(error.helps.iter().map(|help| &help.message));
    let list = available.filter_map(|note| note.strip_prefix("available fields are: ")).next()?;
    Some((cause, format!("Its fields are {}.", list.replace(" ... and ", " and "))))
}

/// "missing fields `a`, `b` and 12 other fields in initializer of `tunebook::prelude::Lora`".
fn missing(error: &Diagnostic, _: &Notebook) -> Said {
    let (fields, owner) = error.message.split_once(" in initializer of ")?;
    let owner = short_type(owner.trim_matches('`'));
    let fields = fields.trim_start_matches("missing fields ").trim_start_matches("missing field ");
    if SETTINGS.contains(&owner.as_str()) {
        return Some((
            format!("`{owner} {{ … }}` gives some of its fields only."),
            "Write `..Default::default()` before the `}`: the other fields get their defaults."
                .into(),
        ));
    }
    Some((format!("`{owner} {{ … }}` lacks {fields}."), "Give a value to each field.".into()))
}

fn method(error: &Diagnostic, _: &Notebook) -> Said {
    let name = error.name(0)?;
    let is_method = error.message.starts_with("attempted to take value of method")
        || error.help("a method").is_some_and(|help| help.message.contains("also exists, call it"));
    is_method.then(|| {
        (format!("`{name}` is a method, and is called with `( )`."), format!("Write `{name}()`."))
    })
}
