//! Reports, confusion tables and calibration beside scikit-learn's.

use serde::Deserialize;
use tunebook_evaluate::Error;
use tunebook_evaluate::classes::{
    brier_score, class_report, confusion, label_issues, log_loss, reliability,
};

use crate::golden::{close, read};

/// Accuracy; precision, recall and F1 of each label, macro, weighted; support of each label.
type Report = (f64, Vec<[f64; 3]>, Vec<u64>);
/// True labels, predicted labels, labels given, the report, the confusion table.
type Case = (String, String, Option<Vec<String>>, Report, Vec<Vec<u64>>);

#[test]
fn reports_equal_scikit_learns() {
    let cases: Vec<Case> = read("classes.json");
    assert_eq!(cases.len(), 1000);
    for (truth, predicted, labels, (accuracy, scores, support), table) in cases {
        let what = format!("{truth} {predicted} {labels:?}");
        let split = |text: &str| text.chars().map(String::from).collect::<Vec<_>>();
        let (truth, predicted) = (split(&truth), split(&predicted));
        let report = class_report(&truth, &predicted, labels.as_deref()).unwrap();
        close(report.accuracy, accuracy, &what);
        let averages = [report.macro_average, report.weighted_average];
        let rows = report.classes.iter().map(|class| [class.precision, class.recall, class.f1]);
        let averages = averages.iter().map(|mean| [mean.precision, mean.recall, mean.f1]);
        let found: Vec<_> = rows.chain(averages).collect();
        assert_eq!(found.len(), scores.len(), "{what}");
        for (found, expected) in found.iter().flatten().zip(scores.iter().flatten()) {
            close(*found, *expected, &what);
        }
        let found: Vec<_> = report.classes.iter().map(|class| class.support).collect();
        assert_eq!(found, support, "{what}");
        let confusion = confusion(&truth, &predicted, labels.as_deref()).unwrap();
        assert_eq!(confusion.counts, table, "{what}");
        let counted: u64 = confusion.counts.iter().flatten().chain(&confusion.other).sum();
        assert_eq!(counted, support.iter().sum::<u64>(), "{what}");
    }
}

/// Divisor and dividends of the confidences, whether right, bins; ECE, Brier score, log loss.
type Confidences = (u32, Vec<u32>, String, usize, [f64; 3]);
/// Hundredths, the true classes, Brier score, log loss.
type Probabilities = (Vec<Vec<u32>>, Vec<usize>, f64, f64);

#[derive(Deserialize)]
struct Calibration {
    confidences: Vec<Confidences>,
    probabilities: Vec<Probabilities>,
}

#[test]
fn calibration_equals_scikit_learns() {
    let cases: Calibration = read("calibration.json");
    assert_eq!(cases.confidences.len(), 1000);
    for (scale, whole, right, bins, [ece, brier, loss]) in cases.confidences {
        let what = format!("{whole:?} / {scale}, {right}, {bins} bins");
        let confidences: Vec<_> =
            whole.iter().map(|&whole| f64::from(whole) / f64::from(scale)).collect();
        let right: Vec<_> = right.chars().map(|right| right == '1').collect();
        let table = reliability(&confidences, &right, bins).unwrap();
        close(table.ece, ece, &what);
        close(table.brier, brier, &what);
        assert_eq!(table.bins.len(), bins);
        assert_eq!(table.bins.iter().map(|bin| bin.rows).sum::<u64>(), right.len() as u64);
        let columns: Vec<_> = confidences.iter().map(|&of| vec![1.0 - of, of]).collect();
        let truth: Vec<_> = right.iter().map(|&right| usize::from(right)).collect();
        close(log_loss(&columns, &truth).unwrap(), loss, &what);
    }
    for (hundredths, truth, brier, loss) in cases.probabilities {
        let what = format!("{hundredths:?}, {truth:?}");
        let probabilities: Vec<Vec<f64>> = hundredths
            .iter()
            .map(|row| row.iter().map(|&whole| f64::from(whole) / 100.0).collect())
            .collect();
        close(brier_score(&probabilities, &truth).unwrap(), brier, &what);
        close(log_loss(&probabilities, &truth).unwrap(), loss, &what);
    }
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let error = class_report::<&str>(&[], &[], None).unwrap_err();
    assert!(matches!(error, Error::TooFewRows { .. }), "{error}");
    let error = confusion(&["a"], &["a", "b"], None).unwrap_err();
    assert_eq!(error.to_string(), "truth has 1 rows and predicted has 2; each row needs both");
    let error = reliability(&[0.5, 1.5], &[true, true], 10).unwrap_err();
    assert_eq!(error.to_string(), "the confidence of row 1 is 1.5, expected 0 to 1");
    assert!(reliability(&[f64::NAN], &[true], 10).is_err());
    assert!(reliability(&[0.5], &[true], 0).is_err());
    assert!(brier_score(&[vec![0.5, 0.5]], &[2]).is_err());
    let error = log_loss(&[vec![0.5, 0.4]], &[0]).unwrap_err();
    assert_eq!(error.to_string(), "the sum of the probabilities of row 0 is 0.9, expected 1");
}

/// Hundredths, the given classes, the rows that are issues, the hundredths of their classes by rank.
type LabelIssues = (Vec<Vec<u32>>, Vec<usize>, Vec<usize>, Vec<u32>);

#[test]
fn label_issues_equal_cleanlabs() {
    let cases: Vec<LabelIssues> = read("label_issues.json");
    assert_eq!(cases.len(), 1000);
    let mut all = 0;
    for (hundredths, given, rows, ranked) in cases {
        let probabilities: Vec<Vec<f64>> = hundredths
            .iter()
            .map(|row| row.iter().map(|&whole| f64::from(whole) / 100.0).collect())
            .collect();
        let issues = label_issues(&probabilities, &given).unwrap();
        let confidences: Vec<u32> =
            issues.iter().map(|issue| (100.0 * issue.confidence).round() as u32).collect();
        let mut found: Vec<usize> = issues.iter().map(|issue| issue.row).collect();
        found.sort_unstable();
        assert_eq!((&found, &confidences), (&rows, &ranked), "{hundredths:?} {given:?}");
        all += rows.len();
    }
    assert!(all > 1000, "{all} issues in all sets");
}

#[test]
fn labels_out_of_range_are_refused() {
    let error = label_issues(&[vec![0.5, 0.5]], &[2]).unwrap_err().to_string();
    assert!(error.contains('2'), "{error}");
    assert!(matches!(label_issues(&[], &[]), Err(Error::TooFewRows { .. })));
}
