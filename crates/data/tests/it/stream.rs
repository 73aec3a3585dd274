//! A stream of blocks gives what the whole set gives.

use proptest::prelude::*;
use tunebook_data::{Cleaning, DataError, Dataset, Split, Survivor};

fn jsonl(rows: &[(String, String)]) -> String {
    rows.iter()
        .map(|(p, c)| serde_json::json!({"prompt": p, "completion": c}).to_string() + "\n")
        .collect()
}

fn prompts(path: std::path::PathBuf) -> Vec<String> {
    if std::fs::metadata(&path).unwrap().len() == 0 {
        Vec::new()
    } else {
        Dataset::read(path).unwrap().prompts()
    }
}

/// More than one block, with duplicates far apart.
#[test]
fn a_large_file_is_cleaned_and_split_as_the_whole_set_is() {
    let folder = tempfile::tempdir().unwrap();
    let filler = "word ".repeat(150);
    let rows: Vec<(String, String)> = (0..100_000)
        .map(|i| {
            (
                format!("<p>Question {} &amp; more?</p>", i % 70_000),
                if i % 100 == 0 { String::new() } else { filler.clone() },
            )
        })
        .collect();
    let mut text = jsonl(&rows);
    text.push_str("broken\n");
    assert!(text.len() > 64 << 20);
    let path = folder.path().join("a.jsonl");
    std::fs::write(&path, text).unwrap();
    let split = Split::holdout(0.12).test(0.05);
    let scan = Dataset::scan(&path).unwrap();
    let done = scan
        .clean(&Cleaning::standard())
        .unwrap()
        .split_into(&split, folder.path().join("out"))
        .unwrap();
    let whole = Dataset::read(&path).unwrap();
    let clean = whole.clean(&Cleaning::standard()).unwrap();
    let parts = clean.split(&split).unwrap();
    assert_eq!(
        (done.train_rows, done.validation_rows, done.test_rows, done.rejected),
        (parts.train.len(), parts.validation.len(), parts.test.as_ref().unwrap().len(), 1)
    );
    let (ours, theirs) = (done.report, clean.report());
    assert_eq!((ours.rows_before, ours.rows_after), (theirs.rows_before, theirs.rows_after));
    let counts = |report: &tunebook_data::CleanReport| {
        report.steps.iter().map(|step| (step.changed, step.dropped)).collect::<Vec<_>>()
    };
    assert_eq!(counts(&ours), counts(&theirs));
    for (name, side) in parts.sides() {
        assert_eq!(prompts(folder.path().join(format!("out/{name}.jsonl"))), side.prompts());
    }
    let quarantine = std::fs::read_to_string(folder.path().join("out/quarantine.jsonl")).unwrap();
    assert_eq!(quarantine.lines().count(), 1 + clean.dropped().height());
    assert_eq!(scan.profile().unwrap(), whole.profile());
}

#[test]
fn what_needs_all_rows_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(&path, jsonl(&[("a".into(), "b".into())])).unwrap();
    let scan = Dataset::scan(&path).unwrap();
    for cleaning in [
        Cleaning::default().drop_near_duplicates(),
        Cleaning::default().resolve_conflicts(Survivor::First),
        Cleaning::default().strip_boilerplate(0.1),
        Cleaning::default().drop_duplicates().strip_html(),
    ] {
        assert!(scan.clean(&cleaning).is_err(), "{cleaning:?}");
    }
    let holdout = || Split::holdout(0.1);
    for (split, named) in [
        (holdout().group_by("x"), "group"),
        (holdout().stratify_by("x"), "stratify"),
        (holdout().by_time("x"), "time"),
        (holdout().near_duplicates_together(), "near_duplicates_together"),
    ] {
        let error = scan.split_into(&split, folder.path()).unwrap_err();
        assert!(
            matches!(error, DataError::ScanSplit { setting } if setting == named),
            "{named}: {error:?}"
        );
    }
    assert!(Dataset::scan(folder.path().join("nothing.jsonl")).is_err());
}

proptest! {
    #[test]
    fn any_rows_are_cleaned_as_the_whole_set_is(
        rows in proptest::collection::vec(("(<b>|A|a|!|&amp;| |`){0,6}", "(x|X|y|\n| ){0,4}"), 1..30),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, jsonl(&rows)).unwrap();
        let cleaning = Cleaning::standard();
        let done = Dataset::scan(&path).unwrap().clean(&cleaning).unwrap().split_into(&Split::holdout(0.3), folder.path()).unwrap();
        let clean = Dataset::read(&path).unwrap().clean(&cleaning).unwrap();
        prop_assert_eq!(done.train_rows + done.validation_rows, clean.len());
        let mut ours = prompts(folder.path().join("train.jsonl"));
        ours.extend(prompts(folder.path().join("validation.jsonl")));
        let mut theirs = clean.prompts();
        ours.sort();
        theirs.sort();
        prop_assert_eq!(ours, theirs);
    }
}
