//! Data sets and what is said about them.

use tunebook_charts::{Cell, Figure, Sample, Table, histogram};
use tunebook_data::{Audit, CleanReport, Dataset, OverlapKind, Profile, Splits};
use tunebook_progress::MimeBundle;

use super::frame;

/// Rows of a preview.
const ROWS: usize = 5;

pub(super) fn dataset(dataset: &Dataset) -> MimeBundle {
    let mut html = preview(dataset, &format!("{} rows from {}", dataset.len(), dataset.source())).html();
    let rejected = dataset.rejected();
    if rejected.height() > 0 {
        let shown = frame::table(&rejected.head(Some(ROWS)))
            .caption(format!("{} lines kept aside (rejected())", rejected.height()));
        html.push_str(&shown.html());
    }
    MimeBundle::text(dataset.to_string()).html(html)
}

/// The first rows, prompt and completion first.
fn preview(dataset: &Dataset, caption: &str) -> Table {
    let frame = dataset.frame().head(Some(ROWS));
    let mut table = frame::table(&frame).caption(caption);
    if dataset.len() > ROWS {
        table = table.note(format!("… and {} more rows", dataset.len() - ROWS));
    }
    table
}

pub(super) fn report(report: &CleanReport) -> MimeBundle {
    let mut table = Table::new(["step", "rows changed", "rows dropped", "row", "example"]).caption(format!(
        "{} rows before, {} after: {} changed, {} dropped",
        report.rows_before,
        report.rows_after,
        report.rows_changed,
        report.rows_dropped()
    ));
    for step in &report.steps {
        let mut first = [Cell::from(step.step.name()), step.changed.into(), step.dropped.into()];
        if step.examples.is_empty() {
            table.row(first.clone());
        }
        for example in &step.examples {
            let shown = match (&example.after, &example.reason) {
                (Some(after), _) => Cell::Diff(example.before.clone(), after.clone()),
                (None, Some(reason)) => Cell::from(format!("{}\n({reason})", example.before)),
                (None, None) => Cell::from(example.before.clone()),
            };
            let row = Cell::Right(format!("{} {}", example.row, example.column));
            table.row(first.into_iter().chain([row, shown]));
            first = [Cell::from(""), Cell::from(""), Cell::from("")];
        }
    }
    if report.rows_dropped() > 0 {
        table = table.note("The dropped rows are in dropped(), each with its step and reason.");
    }
    MimeBundle::text(report.to_string()).html(table.html())
}

pub(super) fn splits(splits: &Splits) -> MimeBundle {
    let total = (splits.train.len() + splits.validation.len()).max(1) as f64;
    let mut table = Table::new(["side", "rows", "share", "distinct prompts"]);
    for (name, side) in [("train", &splits.train), ("validation", &splits.validation)] {
        let share = format!("{:.1} %", 100.0 * side.len() as f64 / total);
        table.row([Cell::from(name), side.len().into(), Cell::Right(share), side.distinct_prompts().into()]);
    }
    if let Some(caution) = splits.caution() {
        table = table.note(caution);
    }
    let html = table.html() + &preview(&splits.validation, "Held out, for example").html();
    MimeBundle::text(splits.to_string()).html(html)
}

pub(super) fn profile(profile: &Profile) -> MimeBundle {
    let mut lengths = Table::new(["characters", "min", "median", "mean", "95 %", "max"])
        .caption(format!("{} rows", profile.rows));
    for (name, summary) in [("prompt", &profile.prompt_chars), ("completion", &profile.completion_chars)] {
        lengths.row([
            Cell::from(name),
            Cell::from(summary.min as usize),
            Cell::from(summary.median as usize),
            Cell::from(summary.mean.round()),
            Cell::from(summary.p95 as usize),
            Cell::from(summary.max as usize),
        ]);
    }
    let mut findings = Table::new(["found", "rows", "share", "remedy"]);
    for (finding, rows, remedy) in profile.findings() {
        let share = format!("{:.1} %", 100.0 * rows as f64 / profile.rows.max(1) as f64);
        let remedy = if rows > 0 { remedy } else { "" };
        findings.row([Cell::from(finding), rows.into(), Cell::Right(share), Cell::from(remedy)]);
    }
    let html = lengths.html() + &findings.html() + image(&lengths_of(profile)).as_str();
    MimeBundle::text(profile.to_string()).html(html)
}

fn lengths_of(profile: &Profile) -> Figure {
    let sample =
        |name: &str, lengths: &[u32]| Sample::new(name, lengths.iter().map(|&length| f64::from(length)));
    histogram(
        "Lengths",
        "characters",
        &[
            sample("prompt", &profile.prompt_chars.lengths),
            sample("completion", &profile.completion_chars.lengths),
        ],
    )
}

pub(super) fn audit(audit: &Audit) -> MimeBundle {
    let mut table = Table::new(["leak", "validation rows"]).caption(audit.verdict());
    for kind in OverlapKind::ALL {
        table.row([Cell::from(kind.name()), audit.count(kind).into()]);
    }
    let mut html = table.html();
    if let Ok(pairs) = audit.pairs()
        && pairs.height() > 0
    {
        html.push_str(&frame::table(&pairs).caption("The pairs").html());
    }
    MimeBundle::text(audit.to_string()).html(html)
}

/// A figure's HTML form.
pub(super) fn image(figure: &Figure) -> String {
    figure.bundle().get("text/html").and_then(|image| image.as_str()).unwrap_or_default().to_owned()
}
