//! The chain behind an adapter: rows, their cleaning and split, base, parent adapter, run,
//! evaluations, promotions.

use std::fmt;

use serde_json::Value;
use tunebook_data::{Cleaning, CleaningStep, Split};
use tunebook_progress::printable;

use crate::adapters::Kept;
use crate::aliases::AliasGeneration;
use crate::data::{DataRecord, SetRecord, short};
use crate::error::Result;
use crate::evaluations::EvaluationRecord;
use crate::registry::{Named, Registry, texts};
use crate::summary::{RunNote, Summary};

/// Parents further back are not told.
const DEEPEST: usize = 32;

/// One adapter, or run without one, of the chain.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct WhyLink {
    /// The adapter's id; `None` for a run that has none.
    pub adapter: Option<String>,
    /// Its type and settings, or those of the run.
    pub strategy: String,
    /// Its files are there.
    pub present: bool,
    /// Fingerprints of its answers: of an evaluation on the model that has trained it, and of a
    /// server that has read its files (`system_fingerprint`). As a rule they are one.
    pub answering: Vec<String>,
    /// The rows, with their cleaning and split; `None` where the run does not name them.
    pub data: Option<DataRecord>,
    /// Other rows that the run went on with.
    pub later_data: Vec<DataRecord>,
    /// What the run says of its rows may not be all: it went on with rows that it does not name, or a
    /// line of its log cannot be read.
    pub rows_unknown: bool,
    /// The base's name.
    pub base_model: Option<String>,
    /// The fingerprint of the base's weights.
    pub base: Option<String>,
    /// The adapter that the run went on from.
    pub parent: Option<String>,
    /// The run's id; `None` for an adapter that was saved by hand.
    pub run: Option<String>,
    /// The run in one line.
    pub run_text: String,
    /// Other runs that have trained the same adapter, number by number.
    pub same_of: Vec<String>,
    /// The notes on the run.
    pub notes: Vec<RunNote>,
    /// The evaluations of the adapter's answers, in the order of time.
    pub evaluations: Vec<EvaluationRecord>,
    /// The generations that it was or is: the alias, the generation, whether it stands now.
    pub promotions: Vec<(String, AliasGeneration, bool)>,
}

/// Where an adapter comes from: the adapter, then its parent, and so on.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct Why {
    /// The adapter that was asked for is the first.
    pub links: Vec<WhyLink>,
}

/// See [`Registry::why`].
pub(crate) fn why(registry: &Registry, what: &str) -> Result<Why> {
    registry.touch()?;
    // A run that was killed has no adapter, and a story all the same.
    let (adapter, run) = match registry.named(what)? {
        Named::Adapter(adapter) => (Some(adapter), None),
        Named::Run(run) => (registry.adapter_of(&run)?, Some(run)),
    };
    let mut links = vec![link(registry, adapter, run)?];
    while let Some(parent) = links.last().and_then(|link| link.parent.clone())
        && links.len() < DEEPEST
    {
        links.push(link(registry, Some(parent), None)?);
    }
    Ok(Why { links })
}

fn link(registry: &Registry, adapter: Option<String>, run: Option<String>) -> Result<WhyLink> {
    let root = registry.root();
    let kept = match &adapter {
        Some(id) => Kept::read(root, id)?,
        None => Kept::default(),
    };
    let origin = kept.origins.last();
    let run = run.or_else(|| origin.and_then(|origin| origin.run.clone()));
    let summary = match &run {
        Some(run) => Some(Summary::read(&registry.run_folder(run))?),
        None => None,
    };
    let begin = summary.as_ref().and_then(|run| run.begin.as_ref());
    let known = |text: &String| !text.is_empty();
    let of_run = |of: fn(&Summary) -> &String| summary.as_ref().map(of).filter(|t| known(t));
    let mut evaluations = Vec::new();
    for fingerprint in &kept.answering {
        let ids = registry.index().look(|connection| {
            texts(connection, "SELECT id FROM evaluations WHERE fingerprint = ?1", fingerprint)
        })?;
        for id in ids {
            evaluations.extend(EvaluationRecord::read(root, &id)?.map(|(record, _)| record));
        }
    }
    evaluations.sort_by(|a: &EvaluationRecord, b| a.at.total_cmp(&b.at));
    let mut promotions = Vec::new();
    for alias in registry.aliases()? {
        for generation in alias.history() {
            if Some(&generation.adapter) == adapter.as_ref() {
                let now = generation.generation == alias.generation();
                promotions.push((alias.name().to_owned(), generation.clone(), now));
            }
        }
    }
    Ok(WhyLink {
        strategy: match &adapter {
            Some(_) if known(&kept.config) => kept.config.clone(),
            _ => of_run(|run| &run.strategy).cloned().unwrap_or_default(),
        },
        present: adapter.as_ref().is_some_and(|id| crate::adapters::folder(root, id).is_dir()),
        answering: kept.answering.iter().cloned().collect(),
        data: summary.as_ref().and_then(|run| run.data.clone()),
        later_data: begin.map(|begin| begin.later.clone()).unwrap_or_default(),
        rows_unknown: begin.is_some_and(|begin| begin.rows_unknown),
        base_model: of_run(|run| &run.base_model).cloned().or_else(|| kept.base_model.clone()),
        base: of_run(|run| &run.base).cloned().or_else(|| kept.base.clone()),
        parent: summary
            .as_ref()
            .and_then(|run| run.parent.clone())
            .or_else(|| origin.and_then(|origin| origin.parent.clone())),
        run_text: summary.as_ref().map(run_text).unwrap_or_default(),
        same_of: kept
            .origins
            .iter()
            .filter_map(|origin| origin.run.clone())
            .filter(|other| Some(other) != run.as_ref())
            .collect(),
        notes: summary.map(|run| run.notes).unwrap_or_default(),
        run,
        adapter,
        evaluations,
        promotions,
    })
}

fn run_text(run: &Summary) -> String {
    let mut text = format!(
        "\"{}\", {}, {} of {} steps in {:.0} s",
        run.name, run.state, run.steps, run.total_steps, run.secs
    );
    if let Some(loss) = run.loss {
        text.push_str(&format!(", training loss {loss:.4}"));
    }
    for (name, values) in run.metrics() {
        let name = if name == "loss" { "validation loss" } else { &name };
        text.push_str(&format!(", {name} {:.4}", values.last));
    }
    if let Some(error) = &run.error {
        text.push_str(&format!(": {error}"));
    }
    if run.missing + run.damaged > 0 {
        text.push_str(&format!("; {} lines of its log are missing", run.missing + run.damaged));
    }
    if !run.tags.is_empty() {
        let tags: Vec<&str> = run.tags.iter().map(String::as_str).collect();
        text.push_str(&format!("; tags: {}", tags.join(", ")));
    }
    text
}

/// The cleaning of a set, and of its parts where they were cleaned in several ways.
fn cleaning_text(set: &SetRecord) -> String {
    match set.cleanings.as_deref() {
        Some(parts) if parts.len() > 1 || parts.iter().any(|part| part.len() > 1) => {
            let part = |cleanings: &Vec<Cleaning>| {
                let steps = |of: &Cleaning| {
                    of.steps.iter().map(CleaningStep::name).collect::<Vec<_>>().join(", ")
                };
                let text = cleanings.iter().map(steps).collect::<Vec<_>>().join(", then ");
                if text.is_empty() { "none".to_owned() } else { text }
            };
            parts.iter().map(part).collect::<Vec<_>>().join("; of another part: ")
        }
        _ if set.cleaning.is_empty() => "none known".to_owned(),
        _ => format!("{} ({} rows before it)", set.cleaning_names(), set.rows_before_cleaning),
    }
}

/// The settings that a split has: `fraction 0.12, seed 42, group "customer"`.
fn split_text(split: &Split) -> String {
    let settings = serde_json::to_value(split).unwrap_or_default();
    let set = |value: &&Value| !matches!(value, Value::Null | Value::Bool(false));
    let fields = settings.as_object().into_iter().flatten();
    let texts: Vec<String> = fields
        .filter(|(_, value)| set(value) && value.as_f64() != Some(0.0))
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    texts.join(", ")
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, link) in self.links.iter().enumerate() {
            if at > 0 {
                f.write_str("\n\nwhich goes on from\n\n")?;
            }
            link.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for WhyLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines: Vec<(&str, String)> = Vec::new();
        match &self.adapter {
            Some(adapter) => {
                let gone = if self.present { "" } else { "; its files are gone" };
                lines.push(("adapter", format!("{}, {}{gone}", short(adapter), self.strategy)));
            }
            None => lines.push(("adapter", format!("none: {}", self.strategy))),
        }
        match &self.data {
            None => lines.push(("rows", "not named".to_owned())),
            Some(data) => {
                let validation = data.validation.as_ref();
                let held = validation.map(|set| format!("; {} for validation", set.rows));
                lines.push(("rows", format!("{}{}", data.train, held.unwrap_or_default())));
                lines.push(("cleaning", cleaning_text(&data.train)));
                let split = match &data.train.split {
                    None => "none known".to_owned(),
                    Some(split) => split_text(split),
                };
                lines.push(("split", split));
            }
        }
        for data in &self.later_data {
            lines.push(("later rows", data.train.to_string()));
        }
        if self.rows_unknown {
            lines.push(("rows", "others may have been trained, too: not all is named".to_owned()));
        }
        let base = self.base_model.as_deref().unwrap_or("not known");
        let hash = self.base.as_deref().map(|base| format!(", fingerprint {}", short(base)));
        lines.push(("base", format!("{base}{}", hash.unwrap_or_default())));
        let parent = self.parent.as_deref().map(short).unwrap_or("none");
        lines.push(("parent", parent.to_owned()));
        match &self.run {
            Some(run) => lines.push(("run", format!("{run}, {}", self.run_text))),
            None => lines.push(("run", "none: saved by hand".to_owned())),
        }
        if !self.same_of.is_empty() {
            lines.push(("", format!("the same adapter: {}", self.same_of.join(", "))));
        }
        for note in &self.notes {
            lines.push(("note", note.text.clone()));
        }
        if self.evaluations.is_empty() {
            lines.push(("evaluation", "none".to_owned()));
        }
        for evaluation in &self.evaluations {
            lines.push(("evaluation", format!("{}: {}", evaluation.id, evaluation.scores_text())));
        }
        if self.promotions.is_empty() {
            lines.push(("promotion", "none".to_owned()));
        }
        for (alias, generation, now) in &self.promotions {
            let now = if *now { " (now)" } else { "" };
            lines.push(("promotion", format!("{alias}{now}, {generation}")));
        }
        let lines: Vec<String> =
            lines.iter().map(|(what, text)| format!("{what:<11} {}", printable(text))).collect();
        f.write_str(&lines.join("\n"))
    }
}
