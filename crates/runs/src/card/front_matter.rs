//! The front matter of a card, and the file of a benchmark's score.

use std::fmt::Write as _;

use super::yaml::{list, number};
use super::{Benchmark, CardError, Facts, Measured};
use crate::yaml::quoted;

/// The lines between `---` and `---`, with both.
pub(crate) fn write(facts: &Facts<'_>) -> String {
    let args = facts.args;
    let mut yaml = String::from("---\n");
    list(&mut yaml, "language", &args.languages);
    let field = |yaml: &mut String, key: &str, value: &str| {
        let _ = writeln!(yaml, "{key}: {}", quoted(value)); // a string takes all
    };
    field(&mut yaml, "license", &facts.license.license);
    for (key, value) in [
        ("license_name", &facts.license.license_name),
        ("license_link", &facts.license.license_link),
    ] {
        if let Some(value) = value {
            field(&mut yaml, key, value);
        }
    }
    field(&mut yaml, "base_model", facts.base_model);
    let relation = if facts.is_whole() { "finetune" } else { "adapter" };
    field(&mut yaml, "base_model_relation", relation);
    field(&mut yaml, "library_name", facts.library());
    field(&mut yaml, "pipeline_tag", "text-generation");
    list(&mut yaml, "datasets", &args.datasets);
    let mut tags = vec!["tunebook".to_owned()];
    tags.extend((facts.kind() != "full").then(|| facts.kind().to_owned()));
    tags.extend(facts.engine().map(str::to_lowercase));
    tags.extend(args.tags.iter().filter(|tag| !tags.contains(tag)).cloned().collect::<Vec<_>>());
    list(&mut yaml, "tags", &tags);
    model_index(&mut yaml, facts);
    yaml.push_str("---\n");
    yaml
}

/// Scores on rows of the user's own: a benchmark of the hub has a file of its own.
fn model_index(yaml: &mut String, facts: &Facts<'_>) {
    if facts.scores.is_empty() {
        return;
    }
    let name = facts.args.repo.split('/').next_back().unwrap_or_default();
    let _ = writeln!(yaml, "model-index:\n- name: {}\n  results:", quoted(name));
    let mut rows: Vec<&str> = Vec::new();
    for measured in &facts.scores {
        if !rows.contains(&measured.rows) {
            rows.push(measured.rows);
        }
    }
    for rows in rows {
        let dataset = format!("rows {rows}");
        let _ = writeln!(
            yaml,
            "  - task:\n      type: text-generation\n      name: Text generation\n    dataset:\n      \
             type: custom\n      name: {}\n    metrics:",
            quoted(dataset.trim())
        );
        for measured in facts.scores.iter().filter(|measured| measured.rows == rows) {
            let score = measured.score;
            let name = format!("{} ({})", score.metric.name, found(measured));
            let _ = writeln!(
                yaml,
                "    - type: {}\n      value: {}\n      name: {}",
                quoted(&score.metric.name),
                number(score.value),
                quoted(&name)
            );
        }
    }
}

/// Interval and count: `95 % interval 0.8800 to 0.9300, 300 rows`.
pub(crate) fn found(measured: &Measured<'_>) -> String {
    let score = measured.score;
    let interval = score.interval.map(|interval| {
        let percent = 100.0 * interval.level;
        format!("{percent} % interval {:.4} to {:.4}, ", interval.low, interval.high)
    });
    format!("{}{} rows", interval.unwrap_or_default(), score.rows)
}

/// The file of a score on a benchmark: its name and its text.
///
/// # Errors
/// The adapter has no score of the metric, or several of different rows.
pub(crate) fn eval_results(
    facts: &Facts<'_>,
    benchmark: &Benchmark,
) -> Result<(String, String), CardError> {
    super::check_repository("the benchmark", &benchmark.dataset)?;
    let of_metric: Vec<&Measured<'_>> =
        facts.scores.iter().filter(|found| found.score.metric.name == benchmark.metric).collect();
    let [measured] = of_metric[..] else {
        let problem = match of_metric.len() {
            0 => format!("is not there: no recorded evaluation has `{}`", benchmark.metric),
            several => format!("may be any of {several}: `{}` on other rows", benchmark.metric),
        };
        let advice = "Evaluate the adapter on the benchmark, and add that to the registry";
        return Err(CardError::Lacks { field: "the benchmark's score", problem, advice });
    };
    let yaml = format!(
        "- dataset:\n    id: {}\n    task_id: {}\n  value: {}\n  notes: {}\n",
        quoted(&benchmark.dataset),
        quoted(&benchmark.task),
        number(measured.score.value),
        quoted(&format!("{}, {}, by tunebook", benchmark.metric, found(measured))),
    );
    let clean = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let name = benchmark.dataset.split('/').next_back().unwrap_or_default();
    let name: String = format!("{name}_{}", benchmark.task).chars().map(clean).collect();
    Ok((format!(".eval_results/{name}.yaml"), yaml))
}
