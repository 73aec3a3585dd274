//! New data beside old: rows that are replayed, and rows that must be kept out.

use std::collections::HashSet;

use polars::df;
use tunebook_data::{DataError, Dataset, Overlap, OverlapKind, Row, Splits};

fn numbered(kind: &str, rows: usize) -> Dataset {
    let rows: Vec<(String, String)> =
        (0..rows).map(|i| (format!("{kind} {i}?"), format!("{kind} {i}"))).collect();
    let rows: Vec<(&str, &str)> = rows.iter().map(|(p, c)| (p.as_str(), c.as_str())).collect();
    Dataset::from_rows(&rows)
}

fn is_old(row: &Row) -> bool {
    row.prompt.starts_with("old")
}

#[test]
fn old_rows_are_the_share_asked_for_and_stand_among_the_new() {
    let (new, old) = (numbered("new", 900), numbered("old", 500));
    for (share, expected) in [(0.1, 100), (0.25, 300), (0.0001, 1)] {
        let rows = new.with_replay(&old, share, 7).unwrap().rows();
        let replayed: HashSet<&Row> = rows.iter().filter(|row| is_old(row)).collect();
        assert_eq!((rows.len(), replayed.len()), (900 + expected, expected), "{share}");
        let fresh: HashSet<Row> = rows.iter().filter(|row| !is_old(row)).cloned().collect();
        assert_eq!(fresh, new.rows().into_iter().collect());
    }
    let rows = new.with_replay(&old, 0.25, 7).unwrap().rows();
    // In each third about a third of them: five standard deviations of the draw are less than 35.
    for third in rows.chunks(rows.len() / 3) {
        let count = third.iter().filter(|row| is_old(row)).count();
        assert!((65..=135).contains(&count), "{count}");
    }
}

#[test]
fn a_seed_gives_the_same_rows_and_a_larger_share_more_of_them() {
    let (new, old) = (numbered("new", 90), numbered("old", 80));
    let of = |share, seed| new.with_replay(&old, share, seed).unwrap().rows();
    assert_eq!(of(0.1, 1), of(0.1, 1));
    assert_ne!(of(0.1, 1), of(0.1, 2));
    let replayed =
        |share, seed| -> HashSet<Row> { of(share, seed).into_iter().filter(is_old).collect() };
    assert!(replayed(0.1, 1).is_subset(&replayed(0.3, 1)));
    assert_ne!(replayed(0.1, 1), replayed(0.1, 2));
}

#[test]
fn columns_of_both_sets_stay_with_their_rows() {
    let frame = |kind: &str, origin: &str, more: &str| {
        df!(
            "prompt" => [format!("{kind} a"), format!("{kind} b")],
            "completion" => ["x", "y"],
            "file" => [origin, origin],
            more => [1i64, 2],
        )
    };
    let new = Dataset::from_frame(frame("new", "new.csv", "ticket").unwrap()).unwrap();
    let old = Dataset::from_frame(frame("old", "old.csv", "month").unwrap()).unwrap();
    let frame = new.with_replay(&old, 0.5, 3).unwrap().frame();
    let text = |name: &str, row| frame.column(name).unwrap().str().unwrap().get(row).unwrap();
    let number = |name: &str, row| frame.column(name).unwrap().i64().unwrap().get(row);
    assert_eq!(frame.height(), 4);
    for row in 0..4 {
        let is_old = text("prompt", row).starts_with("old");
        assert_eq!(text("file", row), if is_old { "old.csv" } else { "new.csv" });
        assert_eq!(number("ticket", row).is_none(), is_old);
        assert_eq!(number("month", row).is_some(), is_old);
    }
}

#[test]
fn shares_and_sets_that_cannot_be_replayed_are_refused() {
    let (new, old, none) = (numbered("new", 90), numbered("old", 8), numbered("none", 0));
    for share in [0.0, 1.0, -0.1, 10.0, f64::NAN] {
        let error = new.with_replay(&old, share, 1).expect_err("not a share");
        assert!(matches!(error, DataError::Setting { .. }), "{error}");
    }
    let error = new.with_replay(&none, 0.1, 1).unwrap_err().to_string();
    assert!(error.starts_with("the number of old rows is 0"), "{error}");
    let error = none.with_replay(&old, 0.1, 1).unwrap_err().to_string();
    assert!(error.starts_with("the number of new rows is 0"), "{error}");
    let error = new.with_replay(&old, 0.1, 1).unwrap_err();
    insta::assert_snapshot!(error, @"a share of 0.1 of replayed rows takes 10 old rows beside 90 new ones, and there are 8: use a share of at most 0.0816, or more old rows");
    // What it proposes works, and takes all of them.
    let DataError::Replay { most, .. } = error else { panic!("{error}") };
    assert_eq!(new.with_replay(&old, most, 1).unwrap().len(), 98);
}

#[test]
fn rows_that_overlap_with_held_out_ones_are_dropped_with_their_reason() {
    let held_out = Dataset::from_rows(&[
        ("Where is the parcel that I ordered on Monday?", "On its way."),
        ("Can I change my delivery address?", "Yes."),
        ("Nobody asks this", "No."),
    ]);
    let new = Dataset::from_rows(&[
        ("Do you ship to Norway?", "We do."),
        ("can i change my DELIVERY address", "Until it has left."),
        ("Where is the parcel that I ordered on Tuesday?", "Here."),
        ("Where is the parcel that I ordered on Monday?", "On its way."),
        ("Where is the parcel that I ordered on Monday?", "Somewhere else."),
        ("My invoice is wrong", "Sorry."),
    ]);
    let found = new.without_overlap(&held_out).unwrap();
    let prompts: Vec<String> = found.kept.rows().into_iter().map(|row| row.prompt).collect();
    assert_eq!(prompts, ["Do you ship to Norway?", "My invoice is wrong"]);
    let pairs: Vec<_> = found
        .overlaps
        .iter()
        .map(|Overlap { kind, train_row, validation_row, .. }| (*kind, *train_row, *validation_row))
        .collect();
    assert_eq!(
        pairs,
        [
            (OverlapKind::NormalizedPrompt, 1, 1),
            (OverlapKind::NearPrompt, 2, 0),
            (OverlapKind::ExactRow, 3, 0),
            (OverlapKind::ExactPrompt, 4, 0),
        ]
    );
    let dropped = found.dropped();
    let rows: Vec<_> = dropped.column("row").unwrap().i64().unwrap().iter().flatten().collect();
    assert_eq!(rows, [1, 2, 3, 4]);
    let reason = dropped.column("reason").unwrap().str().unwrap().get(0).unwrap().to_owned();
    insta::assert_snapshot!(format!("{found}\n{reason}"), @r"
    4 of 6 rows overlap with the 3 rows held out and are kept out
    same prompt and completion         1
    same prompt                        1
    same words in the prompt           1
    nearly the same prompt             1
    same words in the prompt as in held-out row 1: Can I change my delivery address?
    ");
    assert!(Splits::new(found.kept.clone(), held_out.clone()).audit().unwrap().is_clean());

    let apart = new.without_overlap(&numbered("other", 3)).unwrap();
    assert_eq!((apart.kept.rows(), apart.overlaps.len()), (new.rows(), 0));
    assert_eq!(apart.dropped().height(), 0);
}

/// Of rows that are all alike the search for near-duplicates compares some only; what is left must be
/// clean all the same.
#[test]
fn what_is_kept_is_clean_where_very_many_rows_are_alike() {
    let alike = |kind: &str, rows: usize| {
        let rows: Vec<String> = (0..rows)
            .map(|i| format!("Please tell me the present state of order number {kind}{i}"))
            .collect();
        let rows: Vec<(&str, &str)> = rows.iter().map(|row| (row.as_str(), "ok")).collect();
        Dataset::from_rows(&rows)
    };
    let (new, held_out) = (alike("n", 400), alike("h", 5));
    let found = new.without_overlap(&held_out).unwrap();
    assert_eq!(found.kept.len() + found.overlaps.len(), 400);
    assert!(Splits::new(found.kept.clone(), held_out).audit().unwrap().overlaps().is_empty());
}
