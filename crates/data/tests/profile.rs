//! The profile counts what is there.

#![allow(clippy::unwrap_used)]

use tunebook_data::{Dataset, LengthSummary};

#[test]
fn a_profile_counts_every_flaw() {
    let dataset = Dataset::from_rows(&[
        ("<b>Hi</b>", "a &amp; b"),
        ("WHERE IS MY PARCEL", "here"),
        ("where is my parcel?", "there"),
        ("Same", "same"),
        ("Same", "same"),
        ("same!", "Same"),
        ("`odd`", "  spaced  out "),
        ("nothing", ""),
    ]);
    insta::assert_debug_snapshot!(dataset.profile());
    insta::assert_snapshot!(dataset.profile());
}

#[test]
fn percentiles_are_nearest_rank() {
    let summary = LengthSummary::of((1..=100).rev().collect());
    assert_eq!((summary.min, summary.median, summary.p95, summary.max), (1, 50, 95, 100));
    assert_eq!(summary.mean, 50.5);
    assert_eq!(LengthSummary::of(vec![]).max, 0);
    assert_eq!(LengthSummary::of(vec![7]).p95, 7);
}

#[test]
fn a_sample_grows_without_losing_rows() {
    let rows: Vec<String> = (0..100).map(|i| i.to_string()).collect();
    let rows: Vec<(&str, &str)> = rows.iter().map(|row| (row.as_str(), "x")).collect();
    let dataset = Dataset::from_rows(&rows);
    let (small, large) = (dataset.sample(10, 1).unwrap().prompts(), dataset.sample(20, 1).unwrap().prompts());
    assert_eq!((small.len(), large.len()), (10, 20));
    assert!(small.iter().all(|row| large.contains(row)));
    assert!(small.windows(2).all(|pair| pair[0].parse::<u32>().unwrap() < pair[1].parse::<u32>().unwrap()));
    assert_eq!(dataset.sample(1000, 1).unwrap().len(), 100);
    assert_eq!(dataset.concat(&dataset.head(3)).unwrap().len(), 103);
}
