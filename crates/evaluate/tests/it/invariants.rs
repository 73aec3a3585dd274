//! What must hold for every text.

use proptest::prelude::*;
use tunebook_evaluate::TextMetric;
use tunebook_evaluate::metric::{
    Bleu, BleuTokenizer, Chrf, Contains, DistinctN, EditDistance, ExactMatch, JsonValid,
    NumericAnswer, RegexMatch, Rouge, Smoothing, Ter, TokenF1, metric_fn, sums,
};

/// Metrics, each with the range of its scores and, if it has one, the score of equal texts.
fn metrics() -> Vec<(Box<dyn TextMetric>, f64, Option<f64>)> {
    let bleu = Bleu { effective_order: true, ..Default::default() };
    let floor = Smoothing::Floor(0.1);
    let length = metric_fn("length", false, |answer: &str, _: &str| answer.len() as f64);
    vec![
        (Box::new(ExactMatch::default()), 1.0, Some(1.0)),
        (Box::new(ExactMatch::normalised()), 1.0, Some(1.0)),
        (Box::new(Contains::default()), 1.0, Some(1.0)),
        (Box::new(NumericAnswer::default()), 1.0, Some(1.0)),
        (Box::new(RegexMatch::extract(r"\w+").unwrap()), 1.0, None),
        (Box::new(JsonValid { fenced: true }), 1.0, None),
        (Box::new(TokenF1::default()), 1.0, Some(1.0)),
        (Box::new(bleu), 100.0, Some(100.0)),
        (Box::new(Bleu { tokenizer: BleuTokenizer::Intl, ..bleu }), 100.0, Some(100.0)),
        (Box::new(Bleu { tokenizer: BleuTokenizer::Char, ..bleu }), 100.0, Some(100.0)),
        (Box::new(Bleu { smoothing: floor, ..Default::default() }), 100.0, None),
        (Box::new(Bleu { smoothing: Smoothing::AddK(1.0), ..bleu }), 100.0, Some(100.0)),
        (Box::new(Chrf::default()), 100.0, Some(100.0)),
        (Box::new(Chrf::plus_plus()), 100.0, Some(100.0)),
        (Box::new(Ter::default()), f64::MAX, Some(0.0)),
        // sacreBLEU tokenises references twice, answers once: `x's.1` against itself has 50 there.
        (Box::new(Ter { normalized: true, ..Default::default() }), f64::MAX, None),
        (Box::new(Rouge::n(1)), 1.0, None),
        (Box::new(Rouge::l()), 1.0, None),
        (Box::new(Rouge::lsum()), 1.0, None),
        (Box::new(EditDistance::default()), 1.0, Some(0.0)),
        (Box::new(DistinctN::default()), 1.0, None),
        (Box::new(length), f64::MAX, None),
    ]
}

/// Texts of words of a few letters, with a letter and a digit, and any characters at all.
fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[ab]{1,3}( [ab]{1,3}){0,12} 1", r"\PC{0,40}a1", r"(?s).{0,20}\n1 ก"]
}

proptest! {
    #[test]
    fn scores_are_in_range_and_equal_texts_score_best(
        answer in text(),
        references in prop::collection::vec(text(), 1..4),
    ) {
        for (metric, most, best) in metrics() {
            let name = metric.metric().name;
            let row = metric.statistics(&answer, &references);
            let Ok(row) = row else { panic!("{name}: {row:?}") };
            let equal = metric.statistics(&answer, std::slice::from_ref(&answer)).unwrap();
            prop_assert_eq!(row.len(), equal.len(), "{}", &name);
            prop_assert!(row.iter().all(|value| value.is_finite() && *value >= 0.0));
            let score = metric.score(&row);
            // The exponential of a mean of logarithms may pass 100 by a rounding.
            prop_assert!(score >= 0.0 && score <= most * (1.0 + 1e-12), "{}: {}", name, score);
            if let Some(best) = best {
                let score = metric.score(&equal);
                prop_assert!((score - best).abs() < 1e-9, "{} of equal texts: {}", name, score);
            }
            if metric.is_rate() {
                prop_assert!(row == [0.0, 1.0] || row == [1.0, 1.0], "{}: {:?}", name, row);
            }
            let again = metric.statistics(&answer, &references).unwrap();
            prop_assert_eq!(row, again);
        }
    }

    #[test]
    fn another_reference_never_harms(answer in text(), first in text(), second in text()) {
        for (metric, ..) in metrics() {
            let name = metric.metric().name;
            // TER divides by the mean length of all references, BLEU by none that it can choose.
            if !metric.needs_references() || ["ter", "bleu"].contains(&name.as_str()) {
                continue;
            }
            let one = metric.row_score(&answer, std::slice::from_ref(&first)).unwrap();
            let both = metric.row_score(&answer, &[first.clone(), second.clone()]).unwrap();
            prop_assert!(both == one || metric.metric().improves(both, one), "{}", name);
        }
    }

    #[test]
    fn a_score_of_rows_needs_their_sums_only(texts in prop::collection::vec(text(), 2..8)) {
        for (metric, ..) in metrics() {
            let rows: Vec<_> = texts
                .windows(2)
                .map(|pair| metric.statistics(&pair[0], &pair[1..]).unwrap())
                .collect();
            let (left, right) = rows.split_at(rows.len() / 2);
            let parts = [sums(left), sums(right)];
            let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
            let (whole, joined) = (metric.score(&sums(&rows)), metric.score(&sums(&parts)));
            prop_assert!((whole - joined).abs() <= 1e-9 * whole.abs().max(1.0));
        }
    }
}

#[test]
fn no_rows_score_zero() {
    for (metric, ..) in metrics() {
        assert_eq!(metric.score(&[]), 0.0, "{}", metric.metric().name);
    }
}

#[test]
fn signatures_tell_metrics_apart() {
    let mut signatures: Vec<_> = metrics()
        .iter()
        .map(|(metric, ..)| format!("{}|{}", metric.metric().name, metric.signature(Some(1))))
        .collect();
    assert!(signatures.iter().all(|signature| signature.contains("|version:")));
    signatures.sort();
    signatures.dedup();
    assert_eq!(signatures.len(), metrics().len());
}
