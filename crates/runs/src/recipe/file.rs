//! A recipe's file: what it says, checked, with the place of what is wrong.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_saphyr::{Spanned, UserMessageFormatter};
use tunebook_evaluate::metric::{NAMES, named};
use tunebook_tune::{Strategy, TrainingArgs};

use super::node::{KEY, Kind, Node, NodeError, unknown};
use super::{Recipe, StrategyRecipe, VERSION, foreign};
use crate::disk;
use crate::error::{Error, Result};

/// Metrics beside those with a name of their own: of labels by their likelihood, and the one that is
/// always measured.
const ACCURACY: &str = "accuracy";
const LOSS: &str = "loss";

const KEYS: [&str; 6] = ["version", "name", "data", "model", "strategy", "training"];

pub(super) fn read(path: &Path, overrides: &[String]) -> Result<Recipe> {
    let text = std::fs::read_to_string(path).map_err(disk::io("read", path))?;
    parse(path, &text, overrides)
}

/// # Errors
/// As [`Recipe::read_with`].
pub(super) fn parse(path: &Path, text: &str, overrides: &[String]) -> Result<Recipe> {
    let refuse = |error: NodeError| Error::Recipe {
        path: path.to_path_buf(),
        line: error.line.filter(|line| *line > 0),
        key: error.keys.join("."),
        problem: error.problem,
    };
    let mut root = document(text).map_err(refuse)?;
    for given in overrides {
        put(&mut root, given).map_err(refuse)?;
    }
    let recipe = recipe(&root).map_err(refuse)?;
    check(&recipe).map_err(|error| refuse(found_at(error, &root)))?;
    Ok(recipe)
}

pub(super) fn document(text: &str) -> Result<Node, NodeError> {
    // The words that only YAML 1.1 takes for true and false (`no`, `on`) are texts.
    // So is `010`, which is eight to one reader and ten to the other.
    let options =
        serde_saphyr::options! { strict_booleans: true, leading_zero_numbers_as_strings: true };
    let read = serde_saphyr::from_str_with_options::<Spanned<Kind>>(text, options);
    let found = read.map_err(|error| {
        let line = error.location().map(|at| at.line());
        // In words for who writes YAML, not for who calls the parser.
        let said = error.without_snippet().render_with_formatter(&UserMessageFormatter);
        let problem = format!("no YAML that can be read: {said}");
        NodeError { line, ..NodeError::new(problem) }
    })?;
    Ok(Node { line: found.referenced.line(), kind: found.value })
}

/// Puts `training.learning_rate=1e-4` in.
fn put(root: &mut Node, given: &str) -> Result<(), NodeError> {
    let Some((key, value)) = given.split_once('=') else {
        let problem =
            format!("expected a key, `=` and a value such as training.epochs=1, found `{given}`");
        return Err(NodeError::new(problem));
    };
    let keys: Vec<&str> = key.trim().split('.').collect();
    let at = |problem: String| NodeError {
        line: None,
        keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        problem,
    };
    let text = value;
    let mut value = document(text).map_err(|error| at(error.problem))?;
    // A letter more at the end changes nothing: the end is in a comment.
    if document(&format!("{text}x")).is_ok_and(|longer| longer.kind == value.kind) {
        let problem = format!(
            "`{}` has a `#`, behind which YAML reads nothing: put the value in quotes, as in \
             {key}='\"a #b\"'",
            text.trim()
        );
        return Err(at(problem));
    }
    forget_lines(&mut value);
    root.put(&keys, value).map_err(|until| at(format!("`{until}` is no map that has keys")))
}

/// What is not in the file has no line.
fn forget_lines(node: &mut Node) {
    node.line = 0;
    match &mut node.kind {
        Kind::List(items) => items.iter_mut().for_each(forget_lines),
        Kind::Map(entries) => entries.iter_mut().for_each(|(_, value)| forget_lines(value)),
        _ => {}
    }
}

/// A recipe whose values are of the right types.
pub(super) fn recipe(root: &Node) -> Result<Recipe, NodeError> {
    let Kind::Map(entries) = &root.kind else {
        let problem = format!("expected a map with the keys {}", KEYS.join(", "));
        return Err(NodeError::new(problem));
    };
    // First, as another version may have other keys.
    let version = section::<Option<u32>>(root, "version")?.flatten().unwrap_or(VERSION);
    if version != VERSION {
        let problem = format!("the version is {version}, and this program reads {VERSION}");
        return Err(NodeError::new(problem).below("version", line(root, "version")));
    }
    if let Some((key, node)) = entries.iter().find(|(key, _)| !KEYS.contains(&key.as_str())) {
        return Err(NodeError::new(not_ours(key, entries)).below(key, node.line));
    }
    let strategy = root.entry("strategy").ok_or_else(|| missing("strategy"))?;
    let strategy = StrategyRecipe::read(strategy.clone())
        .map_err(|error| error.below("strategy", strategy.line))?;
    Ok(Recipe {
        version,
        name: section::<Option<String>>(root, "name")?.flatten(),
        data: needed(root, "data")?,
        model: needed(root, "model")?,
        strategy,
        training: section::<Option<TrainingArgs>>(root, "training")?.flatten().unwrap_or_default(),
    })
}

/// What a key at the top is, that no recipe has.
fn not_ours(key: &str, entries: &[(String, Node)]) -> String {
    let keys: Vec<&str> = entries.iter().map(|(key, _)| key.as_str()).collect();
    match foreign::program(&keys) {
        Some((program, signs)) => format!(
            "this is a file for {program} (it has {}); a recipe has the keys {}, and docs/recipe.md shows \
             a whole one",
            signs.join(", "),
            KEYS.join(", ")
        ),
        None => unknown(KEY, key, &KEYS),
    }
}

fn missing(key: &str) -> NodeError {
    NodeError::new(format!("the key `{key}` is missing"))
}

fn needed<T: DeserializeOwned>(root: &Node, key: &str) -> Result<T, NodeError> {
    section(root, key)?.ok_or_else(|| missing(key))
}

fn section<T: DeserializeOwned>(root: &Node, key: &str) -> Result<Option<T>, NodeError> {
    let read = |node: &Node| T::deserialize(node).map_err(|error| error.below(key, node.line));
    root.entry(key).map(read).transpose()
}

fn line(root: &Node, key: &str) -> u64 {
    root.entry(key).map_or(0, |node| node.line)
}

/// What the types alone do not say.
fn check(recipe: &Recipe) -> Result<(), NodeError> {
    let at = |keys: &[&str], problem: String| NodeError {
        line: None,
        keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        problem,
    };
    let of = |section: &'static str| {
        move |error: tunebook_tune::Error| match error {
            tunebook_tune::Error::Config { field, value, expected } => {
                let key = field.rsplit('.').next().unwrap_or(field);
                at(&[section, key], format!("is {value}, expected {expected}"))
            }
            other => at(&[section], other.to_string()),
        }
    };
    recipe.training.validate().map_err(of("training"))?;
    if let Some((key, problem)) = metrics_problem(recipe) {
        return Err(at(&["training", key], problem));
    }
    if let Strategy::Adapter(config) = &recipe.strategy.config {
        config.validate().map_err(of("strategy"))?;
    }
    if let Some((keys, problem)) = recipe.data.problem() {
        let keys: Vec<&str> = std::iter::once("data").chain(keys).collect();
        return Err(at(&keys, problem));
    }
    if let Some((key, problem)) = recipe.model.problem() {
        return Err(at(&["model", key], problem.to_owned()));
    }
    Ok(())
}

/// A key whose value asks for a metric that no run of the recipe measures, and why.
fn metrics_problem(recipe: &Recipe) -> Option<(&'static str, String)> {
    let args = &recipe.training;
    let known = |name: &str| name == ACCURACY || named(name).is_some();
    if let Some(name) = args.eval_metrics.iter().find(|name| !known(name)) {
        let known: Vec<&str> = std::iter::once(ACCURACY).chain(NAMES.iter().copied()).collect();
        return Some(("eval_metrics", unknown("metric", name, &known)));
    }
    let best = &args.metric_for_best_model;
    if best != LOSS && !args.eval_metrics.contains(best) {
        let measured: Vec<&str> =
            std::iter::once(LOSS).chain(args.eval_metrics.iter().map(String::as_str)).collect();
        let problem =
            format!("is `{best}`, expected one that is measured: {}", measured.join(", "));
        return Some(("metric_for_best_model", problem));
    }
    if recipe.data.split.is_some() || recipe.data.validation.is_some() {
        return None;
    }
    let needs = "needs validation rows: give `data.split` or `data.validation`".to_owned();
    let asks = [
        ("eval_metrics", !args.eval_metrics.is_empty()),
        ("early_stopping_patience", args.early_stopping_patience.is_some()),
        ("load_best_model_at_end", args.load_best_model_at_end),
    ];
    asks.into_iter().find(|(_, asks)| *asks).map(|(key, _)| (key, needs))
}

/// The error with the line of its last key that the file has.
fn found_at(mut error: NodeError, root: &Node) -> NodeError {
    let mut node = root;
    for key in &error.keys {
        let Some(below) = node.entry(key) else { break };
        (error.line, node) = (Some(below.line), below);
    }
    error
}
