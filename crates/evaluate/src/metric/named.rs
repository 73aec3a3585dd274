//! Metrics by their names, with their default settings.

use std::sync::Arc;

use super::{
    Bleu, Chrf, Contains, EditDistance, ExactMatch, JsonValid, NumericAnswer, Rouge, Ter,
    TextMetric, TokenF1,
};

/// The names that [`named`] knows.
pub const NAMES: [&str; 15] = [
    "exact_match",
    "exact_match_normalised",
    "contains",
    "numeric_answer",
    "json_valid",
    "token_f1",
    "bleu",
    "chrf",
    "chrf++",
    "ter",
    "rouge1",
    "rouge2",
    "rougeL",
    "rougeLsum",
    "edit_distance",
];

/// The metric of a name, with its default settings; `None` if there is none.
///
/// ```
/// let metric = tunebook_evaluate::metric::named("rougeL").expect("a known name");
/// assert_eq!(metric.metric().name, "rougeL");
/// ```
#[must_use]
pub fn named(name: &str) -> Option<Arc<dyn TextMetric>> {
    Some(match name {
        "exact_match" => Arc::new(ExactMatch::default()),
        "exact_match_normalised" => Arc::new(ExactMatch::normalised()),
        "contains" => Arc::new(Contains::default()),
        "numeric_answer" => Arc::new(NumericAnswer::default()),
        "json_valid" => Arc::new(JsonValid::default()),
        "token_f1" => Arc::new(TokenF1::default()),
        "bleu" => Arc::new(Bleu::default()),
        "chrf" => Arc::new(Chrf::default()),
        "chrf++" => Arc::new(Chrf::plus_plus()),
        "ter" => Arc::new(Ter::default()),
        "rouge1" => Arc::new(Rouge::n(1)),
        "rouge2" => Arc::new(Rouge::n(2)),
        "rougeL" => Arc::new(Rouge::l()),
        "rougeLsum" => Arc::new(Rouge::lsum()),
        "edit_distance" => Arc::new(EditDistance::default()),
        _ => return None,
    })
}
