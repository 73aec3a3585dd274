//! Evaluations and comparisons.

use tunebook_evaluate::{Comparison, Evaluation};
use tunebook_progress::MimeBundle;

use super::data::image;
use crate::StrategyComparison;
use crate::evaluate::{ComparisonViews as _, EvaluationViews as _};

/// Scores, and for labels the pictures of confusion and reliability.
pub(super) fn evaluation(found: &Evaluation) -> MimeBundle {
    let table = found.score_table();
    let (mut html, mut text) = (table.html(), table.text());
    if !found.slices.is_empty() {
        let slices = found.slice_table();
        html.push_str(&slices.html());
        text.push_str(&slices.text());
    }
    for figure in [found.confusion_chart(), found.reliability_chart()].into_iter().flatten() {
        html.push_str(&image(&figure));
        text = format!("{text}\n{}", figure.text());
    }
    MimeBundle::text(text).html(html)
}

/// The table of scores, and how many rows are newly right and newly wrong.
pub(super) fn comparison(found: &Comparison) -> MimeBundle {
    let mut table = found.table();
    for (metric, right) in &found.newly_right {
        let wrong = found.newly_wrong.get(metric).map_or(0, Vec::len);
        table =
            table.note(format!("{metric}: {} rows newly right, {wrong} newly wrong", right.len()));
    }
    table.bundle()
}

/// The table of strategies, and four charts that take as much width as there is.
pub(super) fn strategies(found: &StrategyComparison) -> MimeBundle {
    let table = found.table();
    let (mut html, mut text) = (table.html(), table.text());
    html.push_str(
        "<div style=\"display:grid;gap:8px;\
                   grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr))\">",
    );
    for figure in found.charts() {
        html.push_str(&image(&figure));
        text = format!("{text}\n{}", figure.text());
    }
    html.push_str("</div>");
    MimeBundle::text(text).html(html)
}
