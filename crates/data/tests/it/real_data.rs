//! Real data: banking77 and gsm8k, read, profiled, cleaned, split and audited.
//!
//! The files are not part of the repository: `TUNEBOOK_DATA` names the folder that holds
//! `banking77/train.csv` and `gsm8k/train.jsonl`. Without it these tests are skipped.

use std::path::PathBuf;

use tunebook_data::{Cleaning, Dataset, OverlapKind, RowShape, Split};

fn real(file: &str) -> Option<PathBuf> {
    let path = std::env::var_os("TUNEBOOK_DATA").map(|folder| PathBuf::from(folder).join(file));
    let path = path.filter(|path| path.exists());
    if path.is_none() {
        eprintln!("SKIPPED: no {file} in TUNEBOOK_DATA");
    }
    path
}

/// What holds for every set: nothing is lost, cleaning is idempotent, the split is complete and has
/// no plain leak.
fn check(dataset: &Dataset) -> Dataset {
    let clean = dataset.clean(&Cleaning::standard()).unwrap();
    assert_eq!(clean.len() + clean.dropped().height(), dataset.len());
    let again = clean.clean(&Cleaning::standard()).unwrap();
    assert_eq!((again.rows(), again.report().rows_changed), (clean.rows(), 0));
    let profile = clean.profile();
    assert_eq!(
        (profile.html_tags, profile.html_entities, profile.empty, profile.duplicates),
        (0, 0, 0, 0),
        "{profile}"
    );

    let split = Split::holdout(0.12).seed(42);
    let plain = clean.split(&split).unwrap();
    assert_eq!(plain.train.len() + plain.validation.len(), clean.len());
    let share = plain.validation.len() as f64 / clean.len() as f64;
    assert!((0.10..=0.14).contains(&share), "{share}");
    let audit = plain.audit().unwrap();
    for kind in [OverlapKind::ExactRow, OverlapKind::ExactPrompt, OverlapKind::NormalizedPrompt] {
        assert_eq!(audit.count(kind), 0, "{audit}");
    }
    let together = clean.split(&split.near_duplicates_together()).unwrap();
    assert_eq!(together.audit().unwrap().count(OverlapKind::NearPrompt), 0);
    assert!(audit.repair().unwrap().audit().unwrap().is_clean());
    clean
}

#[test]
fn gsm8k() {
    let Some(path) = real("gsm8k/train.jsonl") else { return };
    let dataset = Dataset::read(&path).unwrap();
    assert_eq!(
        (dataset.len(), dataset.rejected().height(), dataset.shape()),
        (7473, 0, &RowShape::QuestionAnswer)
    );
    // As a stream it has the same profile and gives the same sides.
    let scan = Dataset::scan(&path).unwrap();
    assert_eq!(scan.profile().unwrap(), dataset.profile());
    let folder = tempfile::tempdir().unwrap();
    let done = scan
        .clean(&Cleaning::standard())
        .unwrap()
        .split_into(&Split::holdout(0.12), folder.path())
        .unwrap();
    let split = dataset.clean(&Cleaning::standard()).unwrap().split(&Split::holdout(0.12)).unwrap();
    assert_eq!(
        (done.train_rows, done.validation_rows),
        (split.train.len(), split.validation.len())
    );
    let train = Dataset::read(folder.path().join("train.jsonl")).unwrap();
    assert_eq!(train.rows(), split.train.rows());
    let clean = check(&dataset);
    // Word problems are clean text: hardly a row goes.
    assert!(clean.len() > 7400, "{}", clean.report());
}

#[test]
fn banking77() {
    let Some(path) = real("banking77/train.csv") else { return };
    let dataset = Dataset::read_keys(path, "text", "category").unwrap();
    assert_eq!((dataset.len(), dataset.rejected().height()), (10_003, 0));
    let profile = dataset.profile();
    let english =
        profile.languages.iter().find(|(code, _)| code == "eng").map_or(0, |found| found.1);
    let told: usize =
        profile.languages.iter().filter(|(code, _)| code != "?").map(|found| found.1).sum();
    assert!(english as f64 > 0.99 * told as f64 && told > 4000, "{profile}");
    // 77 intents, none of which has much more than its share.
    assert!(
        profile.imbalance().unwrap() < 0.03 && profile.top_completions.len() == 10,
        "{profile}"
    );
    let clean = check(&dataset);
    // Customers repeat themselves: near-duplicates abound.
    let near = clean.clean(&Cleaning::default().drop_near_duplicates()).unwrap();
    assert!(near.report().rows_dropped() > 100, "{}", near.report());
    assert_eq!(near.clean(&Cleaning::default().drop_near_duplicates()).unwrap().len(), near.len());
}
