//! Data sets and what is said about them.

use tunebook_charts::{Bar, Cell, Figure, Sample, Table, bar_chart, histogram};
use tunebook_data::{
    Audit, CleanReport, Dataset, LengthSummary, OverlapKind, Profile, Splits, WithoutOverlap,
};
use tunebook_progress::MimeBundle;

use super::frame;

/// Rows of a preview.
const ROWS: usize = 5;

pub(super) fn dataset(dataset: &Dataset) -> MimeBundle {
    let caption = format!("{} rows from {}", dataset.len(), dataset.source());
    let mut table = preview(dataset, &caption);
    for report in dataset.read_reports() {
        for line in report.to_string().lines().map(str::to_owned).chain(report.caution()) {
            table = table.note(line);
        }
    }
    let mut html = table.html();
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
    let mut table =
        Table::new(["step", "rows changed", "rows dropped", "row", "example"]).caption(format!(
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
    let total = splits.sides().iter().map(|(_, side)| side.len()).sum::<usize>().max(1) as f64;
    let mut table = Table::new(["side", "rows", "share", "distinct prompts"]);
    for (name, side) in splits.sides() {
        let share = format!("{:.1} %", 100.0 * side.len() as f64 / total);
        table.row([
            Cell::from(name),
            side.len().into(),
            Cell::Right(share),
            side.distinct_prompts().into(),
        ]);
    }
    if let Some(caution) = splits.caution() {
        table = table.note(caution);
    }
    let html = table.html() + &preview(&splits.validation, "Held out, for example").html();
    MimeBundle::text(splits.to_string()).html(html)
}

/// Bars of the languages and of the commonest completions.
const BARS: usize = 10;
/// Lengths of a histogram.
const LENGTHS: usize = 20_000;

pub(super) fn profile(profile: &Profile) -> MimeBundle {
    let mut lengths = Table::new(["", "min", "median", "mean", "p95", "p99", "max"])
        .caption(format!("{} rows: characters and tokens", profile.rows));
    let chars = [
        ("prompt, characters", &profile.prompt_chars),
        ("completion, characters", &profile.completion_chars),
    ];
    for (name, summary) in
        chars.into_iter().chain(profile.tokens.iter().map(|tokens| ("both, tokens", tokens)))
    {
        lengths.row([
            Cell::from(name),
            Cell::from(summary.min as usize),
            Cell::from(summary.median as usize),
            Cell::from(summary.mean.round()),
            Cell::from(summary.p95 as usize),
            Cell::from(summary.p99 as usize),
            Cell::from(summary.max as usize),
        ]);
    }
    if let (Some(tokens), Some(context)) = (&profile.tokens, profile.context_tokens) {
        let over = tokens.over(context);
        let share = 100.0 * over as f64 / profile.rows.max(1) as f64;
        lengths = lengths.note(format!(
            "{over} rows ({share:.1} %) are longer than the context of {context} tokens"
        ));
    }
    let mut findings = Table::new(["found", "rows", "share", "remedy"]).caption("Found");
    let share = |rows: usize| {
        Cell::Right(format!("{:.1} %", 100.0 * rows as f64 / profile.rows.max(1) as f64))
    };
    let mut nothing: Vec<&str> = Vec::new();
    for (finding, rows, remedy) in profile.findings() {
        match rows {
            0 => nothing.push(finding),
            rows => {
                findings.row([Cell::from(finding), rows.into(), share(rows), Cell::from(remedy)])
            }
        }
    }
    for (column, nulls) in &profile.missing {
        let name = format!("missing in \"{column}\"");
        findings.row([Cell::from(name), (*nulls).into(), share(*nulls), Cell::from("")]);
    }
    if !nothing.is_empty() {
        findings = findings.note(format!("not found: {}", nothing.join(", ")));
    }
    let mut html = lengths.html() + &findings.html();
    if !profile.worst.is_empty() {
        let mut worst = Table::new(["row", "flaws", "prompt", "completion"])
            .caption("The rows with the most flaws");
        for row in &profile.worst {
            worst.row([
                Cell::from(row.row),
                Cell::from(row.flaws.join(", ")),
                Cell::from(row.prompt.as_str()),
                Cell::from(row.completion.as_str()),
            ]);
        }
        html.push_str(&worst.html());
    }
    for figure in figures(profile) {
        html.push_str(&image(&figure));
    }
    MimeBundle::text(profile.to_string()).html(html)
}

/// Lengths; languages where there are several; the commonest completions where one stands out.
fn figures(profile: &Profile) -> Vec<Figure> {
    let sample = |name: &str, summary: &LengthSummary| {
        Sample::new(name, summary.spread(LENGTHS).into_iter().map(f64::from))
    };
    let chars =
        [sample("prompt", &profile.prompt_chars), sample("completion", &profile.completion_chars)];
    let mut figures = vec![histogram("Lengths", "characters", &chars)];
    if let Some(tokens) = &profile.tokens {
        figures.push(histogram(
            "Tokens of prompt and completion",
            "tokens",
            &[sample("both", tokens)],
        ));
    }
    let bars = |rows: &[(String, usize)]| -> Vec<Bar> {
        rows.iter().take(BARS).map(|(name, rows)| Bar::new(name.as_str(), *rows as f64)).collect()
    };
    if profile.languages.iter().filter(|(code, _)| code != "?").count() > 1 {
        figures.push(bar_chart(
            "Languages (? is too short to tell)",
            "rows",
            &bars(&profile.languages),
        ));
    }
    if profile.imbalance().is_some_and(|share| share >= 0.01) {
        figures.push(bar_chart(
            "The commonest completions",
            "rows",
            &bars(&profile.top_completions),
        ));
    }
    figures
}

pub(super) fn audit(audit: &Audit) -> MimeBundle {
    let mut table = Table::new(["leak", "validation rows"]).caption(audit.verdict());
    for kind in OverlapKind::ALL {
        table.row([Cell::from(kind.name()), audit.count(kind).into()]);
    }
    table.row([
        Cell::from("completion in the prompt (both sides)"),
        audit.label_leaks().len().into(),
    ]);
    let mut html = table.html();
    if let Ok(pairs) = audit.pairs()
        && pairs.height() > 0
    {
        html.push_str(&frame::table(&pairs).caption("The pairs").html());
    }
    MimeBundle::text(audit.to_string()).html(html)
}

pub(super) fn without_overlap(found: &WithoutOverlap) -> MimeBundle {
    let text = found.to_string();
    let mut table =
        Table::new(["overlap", "rows kept out"]).caption(text.lines().next().unwrap_or_default());
    for kind in OverlapKind::ALL {
        table.row([Cell::from(kind.name()), found.count(kind).into()]);
    }
    let mut html = table.html();
    let dropped = found.dropped();
    if dropped.height() > 0 {
        let shown = frame::table(&dropped.head(Some(ROWS)));
        html.push_str(&shown.caption("Rows that were dropped (dropped())").html());
    }
    MimeBundle::text(text).html(html)
}

/// A figure's HTML form.
pub(super) fn image(figure: &Figure) -> String {
    figure.bundle().get("text/html").and_then(|image| image.as_str()).unwrap_or_default().to_owned()
}
