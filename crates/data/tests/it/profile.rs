//! The profile counts what is there.

use tunebook_data::{Dataset, LengthSummary};

#[test]
fn a_profile_counts_every_flaw() {
    let dataset = Dataset::from_rows(&[
        ("<b>Hi</b>", "a &amp; b"),
        ("WHERE IS MY PARCEL?", "here"),
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
    let (small, large) =
        (dataset.sample(10, 1).unwrap().prompts(), dataset.sample(20, 1).unwrap().prompts());
    assert_eq!((small.len(), large.len()), (10, 20));
    assert!(small.iter().all(|row| large.contains(row)));
    assert!(
        small
            .windows(2)
            .all(|pair| pair[0].parse::<u32>().unwrap() < pair[1].parse::<u32>().unwrap())
    );
    assert_eq!(dataset.sample(1000, 1).unwrap().len(), 100);
    assert_eq!(dataset.concat(&dataset.head(3)).unwrap().len(), 103);
}

#[test]
fn tokens_are_counted_by_the_function_given() {
    let dataset = Dataset::from_rows(&[("one two", "three"), ("a b c d", "e f g h"), ("x", "y")]);
    let words = |text: &str| text.split_whitespace().count();
    let profile = dataset.profile_with_tokens(&words, 4).unwrap();
    let tokens = profile.tokens.as_ref().unwrap();
    assert_eq!((tokens.min, tokens.max, tokens.over(4)), (2, 8, 1));
    assert!(profile.to_string().contains("longer than the context"), "{profile}");
}

#[test]
fn further_traits_are_found() {
    let dataset = Dataset::from_rows(&[
        ("# Title **strong**", "cafÃ© \u{7} e\u{301}"),
        ("all in small letters here", "see https://example.org/x"),
        ("mail a.b@example.org", "Call +44 20 7946 0958"),
        ("AKIAIOSFODNN7EXAMPLE", "4111 1111 1111 1111"),
        ("Fine.", "yes"),
        ("Also fine.", "Yes!"),
    ]);
    let p = dataset.profile();
    let counts = [
        p.markdown,
        p.mojibake,
        p.control_characters,
        p.decomposed,
        p.lower_case,
        p.urls,
        p.emails,
        p.phones,
        p.keys,
        p.accounts,
    ];
    assert_eq!(counts, [1; 10], "{p}");
    assert_eq!(p.top_completions, [("yes".to_owned(), 2)]);
    assert_eq!((p.worst[0].row, p.worst.len()), (0, 3), "{:?}", p.worst);
}

#[test]
fn lengths_keep_their_ends_when_they_are_thinned() {
    let summary = LengthSummary::of((1..=10_000).collect());
    let spread = summary.spread(100);
    assert!(spread.len() <= 101 && spread[0] == 1 && spread.last() == Some(&10_000), "{spread:?}");
    assert_eq!(LengthSummary::of(vec![3, 3, 5]).spread(100), [3, 3, 5]);
}
