//! The sections of a card.

use serde_json::Value;
use tunebook_data::Split;
use tunebook_tune::{EvalRecord, StopReason, TrainingArgs};

use super::front_matter::found;
use super::markdown::{count, escaped, table};
use super::{Facts, Measured};
use crate::data::{SetRecord, short};

/// Arguments that are shown whatever they are.
const ALWAYS: [&str; 6] = [
    "epochs",
    "batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler",
    "seed",
];
/// Arguments whose text is one of ours; others may be a folder or a name.
const WORDS: [&str; 4] = ["lr_scheduler", "optim", "eval_strategy", "save_strategy"];
/// Arguments of how a run is kept and watched, which change nothing that is trained.
const KEPT_OUT: [&str; 4] =
    ["memory_budget", "save_total_limit", "save_strategy", "eval_metrics_rows"];
/// What no evaluation of ours says.
const NEVER_MEASURED: &str = "Safety, bias, other languages and other kinds of question than those of \
    the rows above, what it has lost of the base's abilities, and how much of its training rows it \
    repeats word for word are not on record. Look at these before it answers people.";

pub(crate) fn write(facts: &Facts<'_>) -> String {
    let name = facts.args.repo.split('/').next_back().unwrap_or_default();
    let sections = [
        format!("# {}\n\n{}", escaped(name), introduction(facts)),
        section("Use", &usage(facts)),
        section("Intended use", &intended_use(facts)),
        section("Data", &data(facts)),
        section("Training", &training(facts)),
        section("Evaluation", &evaluation(facts)),
        section("Limits", &limits(facts)),
        section("Where it comes from", &origin(facts)),
    ];
    sections.join("\n") + "\n"
}

fn section(title: &str, text: &str) -> String {
    format!("\n## {title}\n\n{}", text.trim_end())
}

fn base_link(facts: &Facts<'_>) -> String {
    let base = facts.base_model;
    format!("[{}](https://huggingface.co/{base})", escaped(base))
}

fn introduction(facts: &Facts<'_>) -> String {
    let what = match facts.is_whole() {
        true if facts.kind() == "full" => "All weights".to_owned(),
        true => format!("A whole model: {}, merged into the weights", facts.link.strategy),
        false => format!("An adapter ({})", facts.link.strategy),
    };
    let rows = facts.link.data.as_ref().map_or(facts.run.plan.examples, |data| data.train.rows);
    let (of, rows) = (base_link(facts), count(rows));
    let with = match facts.engine() {
        Some(engine) => format!("{engine}, on what tunebook has prepared"),
        None => "tunebook".to_owned(),
    };
    format!("{} of {of}, trained on {rows} rows with {with}.", escaped(&what))
}

fn usage(facts: &Facts<'_>) -> String {
    let (repo, base) = (&facts.args.repo, facts.base_model);
    let rust = match facts.is_whole() {
        true => format!("let model = Model::load(\"{repo}\", &Device::best()?)?;\n"),
        false => format!(
            "let model = Model::load(\"{base}\", &Device::best()?)?;\n\
             model.load_adapter(\"{repo}\", \"default\")?;\n"
        ),
    };
    let python = match facts.library() {
        "peft" => format!(
            "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n\
             model = AutoPeftModelForCausalLM.from_pretrained(\"{repo}\")\n\
             tokenizer = AutoTokenizer.from_pretrained(\"{base}\")\n"
        ),
        "adapters" => format!(
            "from adapters import AutoAdapterModel\n\n\
             model = AutoAdapterModel.from_pretrained(\"{base}\")\n\
             model.set_active_adapters(model.load_adapter(\"{repo}\"))\n"
        ),
        _ => format!(
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
             model = AutoModelForCausalLM.from_pretrained(\"{repo}\")\n\
             tokenizer = AutoTokenizer.from_pretrained(\"{repo}\")\n"
        ),
    };
    format!(
        "In Python:\n\n```python\n{python}```\n\nIn a tunebook:\n\n```rust\n{rust}```\n\nAsk it through \
         the base's chat template, as it was trained."
    )
}

fn intended_use(facts: &Facts<'_>) -> String {
    match &facts.args.intended_use {
        Some(text) => text.trim().to_owned(),
        None => {
            "For prompts of the kind that it was trained on, and for trials. Who published it has \
                 named no other use, and nothing was measured for one."
                .to_owned()
        }
    }
}

fn data(facts: &Facts<'_>) -> String {
    let mut text = String::new();
    if let Some(given) = &facts.args.data {
        text.push_str(&format!("{}\n\n", given.trim()));
    }
    for dataset in &facts.args.datasets {
        let name = escaped(dataset);
        text.push_str(&format!("- [{name}](https://huggingface.co/datasets/{dataset})\n"));
    }
    if !facts.args.datasets.is_empty() {
        text.push('\n');
    }
    let Some(data) = &facts.link.data else {
        let plan = &facts.run.plan;
        text.push_str(&format!(
            "The run does not name its rows: {} for training and {} for validation, with the \
             fingerprint {} as tokens.",
            count(plan.examples),
            count(plan.validation_examples),
            escaped(short(&facts.run.fingerprints.train))
        ));
        return text;
    };
    let row = |name: &str, set: &SetRecord| {
        vec![name.to_owned(), count(set.rows), format!("`{}`", short(&set.fingerprint))]
    };
    let mut rows = vec![row("training", &data.train)];
    rows.extend(data.validation.as_ref().map(|set| row("validation", set)));
    rows.extend(data.test.as_ref().map(|set| row("test, not read in training", set)));
    text.push_str(&table(&["rows for", "count", "fingerprint"], &rows));
    text.push_str(&match data.train.cleaning.is_empty() {
        true => "\nNo cleaning is on record.".to_owned(),
        false => format!(
            "\nCleaning, of {} rows: {}.",
            count(data.train.rows_before_cleaning),
            escaped(&data.train.cleaning_names())
        ),
    });
    text.push_str(&match &data.train.split {
        Some(split) => format!("\nSplit: {}.", split_text(split)),
        None => "\nHow the rows were split is not on record.".to_owned(),
    });
    text
}

/// The settings of a split, without the names of columns.
fn split_text(split: &Split) -> String {
    let mut text =
        format!("{} % of the prompts for validation", (1000.0 * split.fraction).round() / 10.0);
    if split.test > 0.0 {
        text.push_str(&format!(", {} % for a test", (1000.0 * split.test).round() / 10.0));
    }
    for (set, words) in [
        (split.group.is_some(), "rows of one group on one side"),
        (split.stratify.is_some(), "the same share of each kind"),
        (split.time.is_some(), "the latest rows"),
        (split.near_duplicates_together, "prompts that are nearly the same on one side"),
    ] {
        if set {
            text.push_str(&format!(", {words}"));
        }
    }
    format!("{text}; seed {}", split.seed)
}

fn training(facts: &Facts<'_>) -> String {
    let run = facts.run;
    let mut rows = vec![
        vec!["what".to_owned(), escaped(&facts.link.strategy)],
        vec!["trained numbers".to_owned(), count(run.plan.trainable_parameters)],
    ];
    let set = serde_json::to_value(&run.args).unwrap_or_default();
    let usual = serde_json::to_value(TrainingArgs::default()).unwrap_or_default();
    for (name, value) in set.as_object().into_iter().flatten() {
        let told = ALWAYS.contains(&name.as_str()) || usual.get(name) != Some(value);
        let plain = matches!(value, Value::Bool(_) | Value::Number(_));
        let known = WORDS.contains(&name.as_str()) && !value.is_null();
        if told && (plain || known) && !KEPT_OUT.contains(&name.as_str()) {
            let value = value.as_str().map_or(value.to_string(), str::to_owned);
            rows.push(vec![format!("`{name}`"), escaped(&value)]);
        }
    }
    let mut text = table(&["argument", "value"], &rows);
    text.push_str("\nOther arguments that bear on the numbers are tunebook's defaults.\n\n");
    let (done, all) = (count(facts.summary.steps), count(run.plan.total_steps));
    let (secs, version) = (facts.summary.secs, escaped(&run.version));
    text.push_str(&match facts.engine() {
        // It says how long it took, and neither what of that were steps nor on which device.
        Some(engine) => {
            let took = if secs > 0.0 { format!(" in {secs:.0} s") } else { String::new() };
            format!(
                "{done} of {all} steps{took} with {engine}, in {}; exported to it and recorded from its \
                 log by tunebook {version}.",
                escaped(&run.dtype)
            )
        }
        None => format!(
            "{done} of {all} steps in {secs:.0} s ({:.0} tokens/s) on {} in {}, with tunebook {version}.",
            run.tokens_per_sec(),
            escaped(&run.device),
            escaped(&run.dtype)
        ),
    });
    if let Some(loss) = run.recent_loss(run.plan.steps_per_epoch.max(1)) {
        text.push_str(&format!(" Training loss of the last epoch: {loss:.4} nats for each token."));
    }
    text
}

fn evaluation(facts: &Facts<'_>) -> String {
    let mut text = String::new();
    if facts.scores.is_empty() {
        text.push_str("No evaluation of its answers is on record.\n");
    } else {
        let rows: Vec<Vec<String>> = facts.scores.iter().map(score_row).collect();
        text.push_str(&table(
            &["metric", "value", "interval", "rows", "better", "rows' hash"],
            &rows,
        ));
        text.push_str(
            "\nThe interval is where the value would lie with other rows of the same kind; its level \
             stands with it.\n",
        );
    }
    let evals = &facts.run.evals;
    if let (Some(first), Some(last)) = (evals.first(), evals.last()) {
        let mut at: Vec<(String, &EvalRecord)> = Vec::new();
        for (which, eval) in
            [("first", Some(first)), ("best", facts.run.best_eval()), ("last", Some(last))]
        {
            let Some(eval) = eval else { continue };
            match at.iter_mut().find(|(_, other)| other.step == eval.step) {
                Some((named, _)) => *named = format!("{named}, {which}"),
                None => at.push((which.to_owned(), eval)),
            }
        }
        let rows: Vec<Vec<String>> =
            at.into_iter().map(|(which, eval)| eval_row(&which, eval)).collect();
        text.push_str("\nDuring training, on the validation rows:\n\n");
        text.push_str(&table(&["evaluation", "step", "loss, nats for each token", "other"], &rows));
    }
    text
}

fn score_row(measured: &Measured<'_>) -> Vec<String> {
    let score = measured.score;
    let unit = score.metric.unit.as_deref().map(|unit| format!(" {}", escaped(unit)));
    let interval = score.interval.map(|interval| {
        format!("{:.4} to {:.4} ({} %)", interval.low, interval.high, 100.0 * interval.level)
    });
    vec![
        escaped(&score.metric.name),
        format!("{:.4}{}", score.value, unit.unwrap_or_default()),
        interval.unwrap_or_else(|| "none".to_owned()),
        count(score.rows),
        if score.metric.higher_is_better { "higher" } else { "lower" }.to_owned(),
        format!("`{}`", if measured.rows.is_empty() { "none" } else { measured.rows }),
    ]
}

fn eval_row(which: &str, eval: &EvalRecord) -> Vec<String> {
    let others: Vec<String> =
        eval.metrics.iter().map(|(name, value)| format!("{} {value:.4}", escaped(name))).collect();
    let others = if others.is_empty() { "none".to_owned() } else { others.join(", ") };
    vec![which.to_owned(), count(eval.step), format!("{:.4}", eval.loss), others]
}

fn limits(facts: &Facts<'_>) -> String {
    let mut lines = Vec::new();
    if let Some(given) = &facts.args.limits {
        lines.push(format!("{}\n", given.trim()));
    }
    let mut say = |text: String| lines.push(format!("- {text}"));
    if facts.scores.is_empty() {
        say("Its answers were not evaluated: how often they are right is not known. The loss above \
             says how well it predicts the validation rows, and no more."
            .to_owned());
    }
    for measured in &facts.scores {
        if measured.score.interval.is_none() {
            let name = escaped(&measured.score.metric.name);
            say(format!("{name} has no interval on record: how far it is chance is not known."));
        }
    }
    let stopped = facts.scores.iter().find(|measured| measured.judged < measured.planned);
    if let Some(Measured { judged, planned, .. }) = stopped {
        say(format!(
            "An evaluation was ended early: {} of {} rows were judged.",
            count(*judged),
            count(*planned)
        ));
    }
    if let Some(best) =
        facts.scores.iter().filter(|m| m.score.interval.is_some()).max_by_key(|m| m.score.rows)
    {
        say(format!(
            "The scores hold for rows like the {} that were judged ({}: {}). A difference within the \
             interval may be chance. That they are none of the training rows is not on record.",
            count(best.score.rows),
            escaped(&best.score.metric.name),
            found(best)
        ));
    }
    let plan = &facts.run.plan;
    if plan.validation_examples == 0 {
        say("No rows were held out for validation.".to_owned());
    }
    if plan.truncated > 0 {
        let length = facts.run.args.max_length;
        let length = length.map_or_else(String::new, |length| format!(" of {length} tokens"));
        say(format!("{} examples were cut off at the length{length}.", count(plan.truncated)));
    }
    if plan.without_labels > 0 {
        let left_out = count(plan.without_labels);
        say(format!("{left_out} examples were left out, with no answer left after the cut."));
    }
    if let Some(text) = ended_early(facts) {
        say(text);
    }
    if facts.summary.missing + facts.summary.damaged > 0 {
        say("The run's record has gaps: what this card says of it may be incomplete.".to_owned());
    }
    say(NEVER_MEASURED.to_owned());
    say(format!(
        "It is bound to {}: to its licence, its tokenizer and its chat template. What the base gets \
         wrong, it may get wrong, too.",
        base_link(facts)
    ));
    lines.join("\n")
}

fn ended_early(facts: &Facts<'_>) -> Option<String> {
    let why = match (facts.run.stopped, facts.summary.state.as_str()) {
        // An engine's log ends, and says no more.
        (Some(_), _) if facts.engine().is_some() => {
            "ended before its last step, why is not on record"
        }
        (Some(StopReason::Interrupted), _) => "was stopped by hand",
        (Some(StopReason::EarlyStopping), _) => "stopped when the validation got no better",
        (Some(StopReason::Callback), _) => "was stopped by a program",
        (Some(StopReason::Failed), _) | (None, "failed") => "failed",
        (None, "unfinished") => "has no recorded end",
        _ => return None,
    };
    let (done, all) = (count(facts.summary.steps), count(facts.run.plan.total_steps));
    Some(format!("The run {why}, after {done} of {all} steps."))
}

fn origin(facts: &Facts<'_>) -> String {
    let fingerprints = &facts.run.fingerprints;
    let hash = |hash: &str| format!("`{}`", short(hash));
    let mut rows = vec![
        vec!["run".to_owned(), format!("`{}`", facts.summary.id)],
        vec!["base's weights".to_owned(), hash(&fingerprints.base)],
        vec!["tokenizer".to_owned(), hash(&fingerprints.tokenizer)],
        vec!["training rows as tokens".to_owned(), hash(&fingerprints.train)],
    ];
    if let Some(template) = &fingerprints.chat_template {
        rows.push(vec!["chat template".to_owned(), hash(template)]);
    }
    if let Some(adapter) = &facts.link.adapter {
        rows.insert(1, vec!["adapter".to_owned(), hash(adapter)]);
    }
    if let Some(parent) = &facts.link.parent {
        rows.push(vec!["goes on from the adapter".to_owned(), hash(parent)]);
    }
    format!(
        "{}\nEqual inputs have equal fingerprints. This card was written from the run's record.",
        table(&["what", "id or fingerprint"], &rows)
    )
}
