//! Intervals and tests beside those of scipy and statsmodels.

use serde::Deserialize;
use tunebook_evaluate::statistics::{
    Bootstrap, cluster_sums, holm, mcnemar, smallest_difference, smallest_rate_difference, wilson,
};

use crate::golden::{close, read};

#[derive(Deserialize)]
struct Intervals {
    /// Hits, rows, level; low, high.
    wilson: Vec<(u64, u64, f64, f64, f64)>,
    /// Discordant rows; statistic, p-value, mid-p.
    mcnemar: Vec<(u64, u64, f64, f64, f64)>,
    /// P-values, corrected.
    holm: Vec<(Vec<f64>, Vec<f64>)>,
    /// Hundredths; low, high, standard error of the mean.
    bootstrap: Vec<(Vec<i32>, [f64; 3])>,
    /// Rows, power; the smallest difference in standard deviations.
    smallest: Vec<(u32, f64, f64)>,
}

fn golden() -> Intervals {
    read("intervals.json")
}

#[test]
fn wilson_equals_statsmodels() {
    let cases = golden().wilson;
    assert_eq!(cases.len(), 1000);
    for (hits, rows, level, low, high) in cases {
        let interval = wilson(hits, rows, level).unwrap();
        close(interval.low, low, format!("{hits} of {rows} at {level}"));
        close(interval.high, high, format!("{hits} of {rows} at {level}"));
    }
    assert!(
        wilson(0, 0, 0.95).is_err() && wilson(2, 1, 0.95).is_err() && wilson(0, 1, 1.0).is_err()
    );
}

#[test]
fn mcnemar_equals_statsmodels() {
    let cases = golden().mcnemar;
    assert_eq!(cases.len(), 1000);
    assert!(cases.iter().any(|case| case.0 + case.1 < 25));
    assert!(cases.iter().any(|case| case.0 + case.1 >= 25));
    for (first, second, statistic, p_value, mid_p_value) in cases {
        let test = mcnemar(first, second);
        let what = format!("{first} and {second}");
        close(test.statistic, statistic, &what);
        // Small p-values count by their size.
        close(test.p_value / p_value, 1.0, &what);
        close(test.mid_p_value / mid_p_value, 1.0, &what);
    }
}

#[test]
fn holm_equals_statsmodels() {
    for (p_values, expected) in golden().holm {
        for (found, expected) in holm(&p_values).iter().zip(&expected) {
            close(*found, *expected, format!("{p_values:?}"));
        }
    }
    assert_eq!(holm(&[]), [0.0; 0]);
}

#[test]
fn plain_percentiles_equal_scipys() {
    for (whole, [low, high, standard_error]) in golden().bootstrap {
        let rows: Vec<_> = whole.iter().map(|&whole| vec![f64::from(whole) / 100.0, 1.0]).collect();
        let bootstrap = Bootstrap { resamples: 20_000, expanded: false, ..Default::default() };
        let interval = bootstrap.interval(&rows, |sums| sums[0] / sums[1]).unwrap();
        // Both draw at random: with 20,000 resamples the ends differ by 0.027 standard errors, one
        // in a hundred thousand by 4.4 times that.
        let tolerance = 0.12 * standard_error;
        assert!((interval.low - low).abs() <= tolerance, "{whole:?}: {interval:?}, {low}");
        assert!((interval.high - high).abs() <= tolerance, "{whole:?}: {interval:?}, {high}");

        let nothing = vec![vec![0.0, 1.0]; rows.len()];
        let paired = bootstrap.paired(&nothing, &rows, |sums| sums[0] / sums[1]).unwrap();
        assert_eq!(paired.interval, interval);
        assert!((paired.standard_error / standard_error - 1.0).abs() < 0.03);
    }
}

#[test]
fn smallest_differences_equal_statsmodels() {
    for (rows, power, effect) in golden().smallest {
        let found = smallest_difference(1.0 / f64::from(rows).sqrt(), power).unwrap();
        // statsmodels adds the far tail and solves by iteration.
        assert!((found / effect - 1.0).abs() < 1e-4, "{rows} rows: {found}, {effect}");
    }
    assert!(smallest_difference(f64::NAN, 0.8).is_err() && smallest_difference(1.0, 0.0).is_err());
}

#[test]
fn the_smallest_rate_difference_solves_its_equation() {
    for discordant in [0.05, 0.12, 0.5, 1.0] {
        for rows in [100_u64, 200, 5000] {
            for (power, z) in [(0.8, 0.841_621_233_572_914), (0.3, -0.524_400_512_708_041)] {
                let smallest = smallest_rate_difference(discordant, rows, power).unwrap();
                let Some(smallest) = smallest else { continue };
                let left = smallest * (rows as f64).sqrt();
                let spread = (discordant - smallest * smallest).sqrt();
                let right = 1.959_963_984_540_054 * discordant.sqrt() + z * spread;
                close(left, right, format!("{discordant}, {rows}, {power}"));
            }
        }
    }
    assert_eq!(smallest_rate_difference(0.0, 100, 0.8).unwrap(), None);
    assert!(smallest_rate_difference(1.5, 100, 0.8).is_err());
}

#[test]
fn an_expanded_interval_and_its_p_value_agree() {
    let score = |sums: &[f64]| sums[0] / sums[1];
    let first = vec![vec![0.0, 1.0]; 12];
    for shift in 0..40 {
        let value = |row: u32| f64::from(row * 7 % 12) - 5.5 + f64::from(shift) / 8.0;
        let second: Vec<_> = (0..12).map(|row| vec![value(row), 1.0]).collect();
        let paired = Bootstrap::default().paired(&first, &second, score).unwrap();
        let apart = paired.interval.low > 0.0;
        assert!(apart == (paired.p_value < 0.05) || (paired.p_value - 0.05).abs() < 2e-3);
        let plain = Bootstrap { expanded: false, ..Default::default() };
        let plain = plain.paired(&first, &second, score).unwrap();
        assert!(plain.interval.low > paired.interval.low);
        assert!(plain.interval.high < paired.interval.high);
    }
}

#[test]
fn a_bootstrap_repeats_itself() {
    let rows: Vec<_> = (0..30).map(|row| vec![f64::from(row * row % 7), 1.0]).collect();
    let score = |sums: &[f64]| sums[0] / sums[1];
    let once = Bootstrap::default().interval(&rows, score).unwrap();
    assert_eq!(once, Bootstrap::default().interval(&rows, score).unwrap());
    let other = Bootstrap { seed: 1, ..Default::default() }.interval(&rows, score).unwrap();
    assert_ne!(once, other);
    assert!((once.low - other.low).abs() < 0.05);
}

#[test]
fn doubled_rows_are_no_evidence() {
    let rows: Vec<_> = (0..40).map(|row| vec![f64::from(row % 3), 1.0]).collect();
    let doubled: Vec<_> = rows.iter().flat_map(|row| vec![row.clone(); 4]).collect();
    let clusters: Vec<_> = (0..doubled.len()).map(|row| row / 4).collect();
    let score = |sums: &[f64]| sums[0] / sums[1];
    let bootstrap = Bootstrap::default();
    let sums = cluster_sums(&doubled, &clusters).unwrap();
    assert_eq!(sums.len(), rows.len());
    let (honest, clustered) =
        (bootstrap.interval(&rows, score).unwrap(), bootstrap.interval(&sums, score).unwrap());
    close(clustered.low, honest.low, "low");
    close(clustered.high, honest.high, "high");
    let naive = bootstrap.interval(&doubled, score).unwrap();
    assert!(naive.high - naive.low < 0.6 * (honest.high - honest.low));
    assert!(cluster_sums(&rows, &[1]).is_err());
}

#[test]
fn a_bootstrap_refuses_what_it_cannot_use() {
    let score = |sums: &[f64]| sums[0] / sums[1];
    let bootstrap = Bootstrap::default();
    let error = bootstrap.interval(&[vec![1.0, 1.0]], score).unwrap_err();
    assert_eq!(error.to_string(), "a bootstrap interval needs at least 2 rows, and there are 1");
    let ragged = [vec![1.0, 1.0], vec![1.0]];
    assert!(bootstrap.interval(&ragged, score).is_err());
    let rows = vec![vec![1.0, 0.0]; 3];
    assert!(bootstrap.interval(&rows, score).unwrap_err().to_string().contains("inf"));
    assert!(bootstrap.paired(&rows, &rows[..2], score).is_err());
    assert!(Bootstrap { resamples: 0, ..bootstrap }.interval(&rows, |_| 0.0).is_err());
    assert!(Bootstrap { level: 1.5, ..bootstrap }.interval(&rows, |_| 0.0).is_err());
}
