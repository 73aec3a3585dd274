//! `tunebook registry show`: one run, with its curve and its files.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use tunebook_progress::printable;
use tunebook_runs::Registry;
use tunebook_tune::{EvalRecord, RunRecord, StepRecord};

use super::cell;
use super::table::{Rows, aligned, short};

/// So many steps of the curve, and so many evaluations, are shown without `--all`.
const MOST: usize = 10;

pub(crate) fn text(registry: &Registry, run: &str, all: bool) -> Result<String, Box<dyn Error>> {
    let id = registry.resolve_run(run)?;
    let runs = registry.runs()?;
    let why = registry.why(&id)?;
    let link = why.links.first().ok_or("the run has no story")?;
    let mut lines = vec![("run", format!("{id}, {}", link.run_text))];
    lines.push(("recipe", recipe(registry, &id)));
    lines.push(("strategy", link.strategy.clone()));
    lines.push(("base", link.base_model.clone().unwrap_or_else(|| "not known".to_owned())));
    let adapter = cell(&runs, &id, "adapter");
    let folder = registry.root().join("adapters").join(adapter.as_deref().unwrap_or("-"));
    lines.push((
        "adapter",
        match &adapter {
            None => "none".to_owned(),
            Some(adapter) => {
                let state = match cell(&runs, &id, "adapter_files").as_deref() {
                    Some("present") => "its files are below",
                    Some("collected") => "its files were collected as garbage (registry gc)",
                    _ => "its files are not here",
                };
                let served =
                    cell(&runs, &id, "served_as").map(|served| format!(", served as {served}"));
                format!("{}, {state}{}", short(adapter), served.unwrap_or_default())
            }
        },
    ));
    lines.extend(link.parent.iter().map(|parent| ("parent", short(parent).to_owned())));
    lines.extend(link.notes.iter().map(|note| ("note", note.text.clone())));
    let lines: Vec<String> =
        lines.iter().map(|(what, text)| format!("{what:<11} {}", printable(text))).collect();
    let mut parts = vec![lines.join("\n")];
    // Of a run that nobody can say the beginning of there is no curve.
    match registry.run(&id) {
        Ok(record) if record.steps.is_empty() && record.evals.is_empty() => {}
        Ok(record) => parts.push(curve(&record, all)),
        Err(error) => parts.push(error.to_string()),
    }
    let mut files = files(&registry.root().join("runs").join(&id))?;
    if adapter.is_some() {
        files.extend(self::files(&folder)?);
    }
    parts.push(aligned(&files));
    Ok(parts.join("\n\n"))
}

fn recipe(registry: &Registry, id: &str) -> String {
    match registry.recipe(id) {
        Ok(recipe) => {
            recipe.name.unwrap_or_else(|| "without a name".to_owned()) + " (registry recipe)"
        }
        Err(error) => format!("none: {error}"),
    }
}

/// Losses by steps. Of long runs steps in equal distances, the first and the last among them.
fn curve(record: &RunRecord, all: bool) -> String {
    let mut points: BTreeMap<usize, (Option<&StepRecord>, Option<&EvalRecord>)> = BTreeMap::new();
    for step in some(&record.steps, all) {
        points.entry(step.step).or_default().0 = Some(step);
    }
    // The step of an evaluation has a loss, too.
    for eval in some(&record.evals, all) {
        let step = record.steps.iter().find(|step| step.step == eval.step);
        *points.entry(eval.step).or_default() = (step, Some(eval));
    }
    let metrics: Vec<&str> = record.metrics.iter().map(|metric| metric.name.as_str()).collect();
    let has_kl = record.steps.iter().any(|step| step.kl.is_some());
    let mut names = vec!["step", "loss", "learning_rate"];
    names.extend(has_kl.then_some("kl"));
    if all {
        names.extend(["grad_norm", "tokens", "secs"]);
    }
    let mut names: Vec<String> = names.into_iter().map(str::to_owned).collect();
    if !record.evals.is_empty() {
        names.extend(metrics.iter().map(|name| match *name {
            "loss" => "validation loss".to_owned(),
            name => printable(name).into_owned(),
        }));
    }
    let number = |number: Option<f64>| number.map_or("-".to_owned(), |n| format!("{n:.4}"));
    let mut rows: Rows = vec![names];
    for (at, (step, eval)) in points {
        let of = |of: fn(&StepRecord) -> Option<f64>| number(step.and_then(of));
        let rate = step.map_or("-".to_owned(), |step| format!("{:.2e}", step.learning_rate));
        let mut row = vec![at.to_string(), of(|step| Some(step.loss)), rate];
        if has_kl {
            row.push(of(|step| step.kl));
        }
        if all {
            row.push(of(|step| Some(step.grad_norm)));
            row.push(step.map_or("-".to_owned(), |step| step.tokens.to_string()));
            row.push(step.map_or("-".to_owned(), |step| format!("{:.2}", step.secs)));
        }
        if !record.evals.is_empty() {
            row.extend(metrics.iter().map(|name| number(eval.and_then(|eval| eval.metric(name)))));
        }
        rows.push(row);
    }
    let mut text = aligned(&rows);
    let (shown, steps) = (rows.len() - 1, record.steps.len());
    if shown < steps {
        text.push_str(&format!("\n{shown} lines of {steps} steps (--all)"));
    }
    text
}

/// All, or a few in equal distances.
fn some<T>(items: &[T], all: bool) -> Vec<&T> {
    let count = items.len();
    match all || count <= MOST {
        true => items.iter().collect(),
        false => (0..MOST).map(|at| &items[at * (count - 1) / (MOST - 1)]).collect(),
    }
}

/// Names and sizes of the files in a folder; none if there is no folder.
fn files(folder: &Path) -> Result<Rows, Box<dyn Error>> {
    let mut rows = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(rows) };
    for entry in entries {
        let entry = entry.map_err(|error| format!("`{}`: {error}", folder.display()))?;
        let bytes = entry.metadata().map_or(0, |found| found.len());
        let path = printable(&entry.path().display().to_string()).into_owned();
        rows.push(vec![path, format!("{:.1} kB", bytes as f64 / 1e3)]);
    }
    rows.sort();
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_have_the_first_and_the_last() {
        let items: Vec<usize> = (1..=1000).collect();
        let shown = some(&items, false);
        assert_eq!((shown.len(), *shown[0], *shown[MOST - 1]), (MOST, 1, 1000));
        assert_eq!(some(&items, true).len(), 1000);
        assert_eq!(some(&items[..3], false), [&1, &2, &3]);
    }
}
