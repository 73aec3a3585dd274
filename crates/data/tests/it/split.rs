//! Splits are disjoint, complete, and stay put when rows are appended; the audit finds what leaks.

use polars::df;
use proptest::prelude::*;
use tunebook_data::{DataError, Dataset, OverlapKind, Row, Split, Splits};

fn numbered(rows: usize) -> Dataset {
    let rows: Vec<(String, String)> =
        (0..rows).map(|i| (format!("Question number {i}?"), format!("Answer {i}"))).collect();
    let rows: Vec<(&str, &str)> = rows.iter().map(|(p, c)| (p.as_str(), c.as_str())).collect();
    Dataset::from_rows(&rows)
}

#[test]
fn the_share_comes_out_about_right_and_the_seed_matters() {
    let dataset = numbered(5000);
    let split = dataset.split(&Split::holdout(0.12).seed(42)).unwrap();
    // Five standard deviations of a binomial with n = 5000, p = 0.12.
    assert!((485..=715).contains(&split.validation.len()), "{}", split.validation.len());
    let other = dataset.split(&Split::holdout(0.12).seed(43)).unwrap();
    assert_ne!(split.validation.rows(), other.validation.rows());
    let again = dataset.split(&Split::holdout(0.12).seed(42)).unwrap();
    assert_eq!(split.validation.rows(), again.validation.rows());
}

#[test]
fn settings_and_sets_that_cannot_be_split_are_refused() {
    let dataset = numbered(100);
    for fraction in [0.0, 1.0, -0.1, 12.0, f64::NAN] {
        let error = dataset.split(&Split::holdout(fraction)).expect_err("not a fraction");
        assert!(matches!(error, DataError::Setting { .. }), "{error}");
    }
    let error = Dataset::from_rows(&[("only", "one")])
        .split(&Split::holdout(0.12))
        .expect_err("one row has no two sides");
    insta::assert_snapshot!(error);
}

#[test]
fn too_few_groups_are_named_as_the_cause() {
    let teams = |teams: usize| {
        let prompts: Vec<String> = (0..40).map(|row| format!("Question {row}")).collect();
        let team: Vec<String> = (0..40).map(|row| format!("team {}", row % teams)).collect();
        let frame = df!("prompt" => &prompts, "completion" => &prompts, "Team" => &team).unwrap();
        Dataset::from_frame(frame).unwrap()
    };
    let of = |split: Split| {
        let error = (0..100).find_map(|seed| teams(2).split(&split.clone().seed(seed)).err());
        error.expect("two groups often come to one side").to_string()
    };
    let error = of(Split::holdout(0.2).group_by("Team"));
    for part in ["column \"Team\"", "only 2 groups", "rows: 40", "more values"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let error = teams(1).split(&Split::holdout(0.2).by_time("Team")).unwrap_err().to_string();
    for part in ["one time in the column \"Team\"", "only 1 group to"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let same = Dataset::from_rows(&[("Where is my parcel?", "Here."); 5]);
    let error = same.split(&Split::holdout(0.2).near_duplicates_together()).unwrap_err();
    assert!(error.to_string().contains("nearly the same"), "{error}");
}

#[test]
fn a_small_validation_side_is_pointed_out() {
    let small = numbered(100).split(&Split::holdout(0.12)).unwrap();
    assert!(small.caution().is_some());
    assert!(small.to_string().contains("mostly chance"));
    assert!(numbered(1000).split(&Split::holdout(0.12)).unwrap().caution().is_none());
}

#[test]
fn the_audit_finds_what_was_leaked_on_purpose() {
    let train = Dataset::from_rows(&[
        ("Where is it?", "Here."),
        ("Who are you?", "A desk."),
        ("What time?", "Noon."),
    ]);
    let validation = Dataset::from_rows(&[
        ("Where is it?", "Here."),
        ("Who are you?", "Somebody else."),
        ("WHAT  TIME", "Noon."),
        ("Something new?", "Yes."),
    ]);
    let splits = Splits::new(train, validation);
    let audit = splits.audit().unwrap();
    assert!(!audit.is_clean());
    for kind in [OverlapKind::ExactRow, OverlapKind::ExactPrompt, OverlapKind::NormalizedPrompt] {
        assert_eq!(audit.count(kind), 1, "{}", kind.name());
    }
    insta::assert_snapshot!(audit);
    insta::assert_snapshot!(audit.pairs().unwrap().to_string());
    let repaired = audit.repair().unwrap();
    assert_eq!(repaired.validation.rows(), [Row::new("Something new?", "Yes.")]);
    assert!(repaired.audit().unwrap().is_clean());
}

#[test]
fn near_duplicates_leak_unless_they_are_kept_together() {
    // Questions of random words, each a second time with one letter more: a plain split tears many
    // of the pairs apart.
    let questions: Vec<String> = (0..300u64)
        .flat_map(|i| {
            let word =
                |j: u64| format!("{:x}", (i * 8 + j + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 30);
            let question = (0..8).map(word).collect::<Vec<_>>().join(" ");
            [format!("{question}s"), question]
        })
        .collect();
    let rows: Vec<(&str, &str)> =
        questions.iter().map(|question| (question.as_str(), "Yes.")).collect();
    let dataset = Dataset::from_rows(&rows);
    let torn = dataset.split(&Split::holdout(0.2)).unwrap().audit().unwrap();
    assert!(torn.count(OverlapKind::NearPrompt) > 30, "{torn}");

    let split = Split::holdout(0.2).near_duplicates_together();
    let splits = dataset.split(&split).unwrap();
    assert!(splits.audit().unwrap().is_clean());
    assert_eq!(splits.train.len() + splits.validation.len(), dataset.len());
    assert!((60..=180).contains(&splits.validation.len()), "{splits}");

    // A new row joins the side of the one that it is like, and moves none.
    let new = format!("{} please", questions[1]);
    let grown = dataset
        .concat(&Dataset::from_rows(&[(new.as_str(), "Yes.")]))
        .unwrap()
        .split(&split)
        .unwrap();
    let side = |splits: &Splits, prompt: &String| splits.train.prompts().contains(prompt);
    assert_eq!(side(&grown, &new), side(&splits, &questions[1]));
    assert!(questions.iter().all(|question| side(&grown, question) == side(&splits, question)));
}

#[test]
fn a_passage_copied_into_another_row_is_found() {
    let passage = "the tent must be dry before it is folded or the coating will come off within a year of use";
    let train = Dataset::from_rows(&[("How do I store a tent?", passage)]);
    let answer = format!("As we told another customer, {passage}!");
    let validation =
        Dataset::from_rows(&[("My tent smells. What now?", &answer), ("Do you ship?", "We do.")]);
    let audit = Splits::new(train, validation).audit().unwrap();
    assert_eq!((audit.overlaps().len(), audit.count(OverlapKind::SharedNgram)), (1, 1), "{audit}");
}

proptest! {
    #[test]
    fn disjoint_complete_stable_and_clean(
        words in proptest::collection::vec("[a-c]{1,2}[ ?!]{0,2}", 2..60),
        more in proptest::collection::vec("[a-c]{1,2}", 0..20),
        fraction in 0.05f64..0.95,
        seed in any::<u64>(),
    ) {
        let split = Split::holdout(fraction).seed(seed);
        let rows: Vec<(&str, &str)> = words.iter().map(|word| (word.as_str(), "x")).collect();
        let Ok(first) = Dataset::from_rows(&rows).split(&split) else { return Ok(()) };

        // Complete, in order, and each row on one side.
        prop_assert_eq!(first.train.len() + first.validation.len(), rows.len());
        let mut train = first.train.prompts().into_iter().peekable();
        let mut validation = first.validation.prompts().into_iter().peekable();
        for word in &words {
            let side = if split.holds_out(word) { &mut validation } else { &mut train };
            let next = side.next();
            prop_assert_eq!(next.as_ref(), Some(word));
        }

        // No prompt is on both sides, in whatever case or punctuation.
        let audit = first.audit().unwrap();
        for kind in [OverlapKind::ExactRow, OverlapKind::ExactPrompt, OverlapKind::NormalizedPrompt] {
            prop_assert_eq!(audit.count(kind), 0, "{}", kind.name());
        }

        // Appended rows move no old one.
        let grown: Vec<(&str, &str)> = rows.iter().copied().chain(more.iter().map(|word| (word.as_str(), "y"))).collect();
        let second = Dataset::from_rows(&grown).split(&split).unwrap();
        prop_assert_eq!(&second.train.rows()[..first.train.len()], &first.train.rows()[..]);
        prop_assert_eq!(&second.validation.rows()[..first.validation.len()], &first.validation.rows()[..]);
    }
}

/// Numbered rows with a customer, a kind and a day.
fn table(rows: usize) -> Dataset {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    let text: String = (0..rows)
        .map(|i| {
            let (customer, kind) = (i % 37, if i % 10 == 0 { "rare" } else { "usual" });
            let day = format!("2024-{:02}-{:02}", 1 + i * 7 % 12, 1 + i % 28);
            format!("{{\"prompt\":\"Question {i}?\",\"completion\":\"a\",\"customer\":\"c{customer}\",\"kind\":\"{kind}\",\"day\":\"{day}\"}}\n")
        })
        .collect();
    std::fs::write(&path, text).unwrap();
    Dataset::read(&path).unwrap()
}

fn values(dataset: &Dataset, column: &str) -> Vec<String> {
    let frame = dataset.frame();
    frame
        .column(column)
        .unwrap()
        .str()
        .unwrap()
        .iter()
        .map(|value| value.unwrap().to_owned())
        .collect()
}

#[test]
fn groups_stay_together() {
    let splits = table(1000).split(&Split::holdout(0.2).group_by("customer")).unwrap();
    let held: std::collections::HashSet<String> =
        values(&splits.validation, "customer").into_iter().collect();
    assert!(
        !held.is_empty()
            && values(&splits.train, "customer").iter().all(|customer| !held.contains(customer))
    );
    let error = table(10).split(&Split::holdout(0.2).group_by("nobody")).unwrap_err().to_string();
    assert!(error.contains("\"nobody\"") && error.contains("customer"), "{error}");
}

#[test]
fn strata_are_held_out_in_equal_shares_and_stay_put() {
    let split = Split::holdout(0.15).stratify_by("kind");
    let splits = table(1000).split(&split).unwrap();
    let rare =
        |dataset: &Dataset| values(dataset, "kind").iter().filter(|kind| *kind == "rare").count();
    assert!((14..=16).contains(&rare(&splits.validation)), "{}", rare(&splits.validation));
    assert!((148..=152).contains(&splits.validation.len()), "{splits}");
    let grown = table(1400).split(&split).unwrap();
    assert_eq!(grown.validation.prompts()[..splits.validation.len()], splits.validation.prompts());
}

#[test]
fn the_latest_rows_are_held_out() {
    let splits = table(1000).split(&Split::holdout(0.15).test(0.1).by_time("day")).unwrap();
    let (before, after) = (values(&splits.train, "day"), values(&splits.validation, "day"));
    assert!(before.iter().max() < after.iter().min());
    let test = splits.test.as_ref().unwrap();
    assert!(after.iter().max() < values(test, "day").iter().min());
    assert!(
        (80..=130).contains(&test.len()) && (120..=190).contains(&splits.validation.len()),
        "{splits}"
    );
}

#[test]
fn a_test_is_held_out_beside_the_same_validation() {
    let dataset = numbered(3000);
    let plain = dataset.split(&Split::holdout(0.12)).unwrap();
    let parts = dataset.split(&Split::holdout(0.12).test(0.1)).unwrap();
    assert_eq!(parts.validation.rows(), plain.validation.rows());
    let test = parts.test.as_ref().unwrap();
    assert_eq!(parts.train.len() + parts.validation.len() + test.len(), 3000);
    assert!((230..=370).contains(&test.len()), "{parts}");
    assert_eq!(parts.audit_test().unwrap().count(OverlapKind::NormalizedPrompt), 0);
    let leaked = Splits { test: Some(plain.train.head(3)), ..plain.clone() };
    assert_eq!(leaked.audit_test().unwrap().overlaps().len(), 3);
    assert_eq!(leaked.audit().unwrap().repair().unwrap().test.unwrap().len(), 3);
    assert!(plain.test.is_none() && plain.audit_test().unwrap().is_clean());
}

#[test]
fn every_row_is_held_out_by_one_fold() {
    let dataset = numbered(1000);
    let folds = dataset.folds(5, &Split::default()).unwrap();
    let mut held: Vec<String> = folds.iter().flat_map(|fold| fold.validation.prompts()).collect();
    let mut all = dataset.prompts();
    held.sort();
    all.sort();
    assert_eq!(held, all);
    assert!(folds.iter().all(|fold| fold.train.len() + fold.validation.len() == 1000));
    assert!(dataset.folds(1, &Split::default()).is_err());
}

#[test]
fn a_completion_in_its_prompt_is_a_leak() {
    let train = Dataset::from_rows(&[
        ("Category: late parcel. Where is it?", "late parcel"),
        ("Yes or no?", "yes"),
    ]);
    let validation = Dataset::from_rows(&[
        ("Answer me: The Eiffel Tower!", "the eiffel tower"),
        ("New?", "Nothing of it"),
    ]);
    let audit = Splits::new(train, validation).audit().unwrap();
    let found: Vec<(bool, usize)> =
        audit.label_leaks().iter().map(|leak| (leak.in_train, leak.row)).collect();
    assert_eq!(found, [(true, 0), (false, 0)]);
    assert!(
        !audit.is_clean() && audit.verdict().contains("2 rows give their completion away"),
        "{audit}"
    );
    let repaired = audit.repair().unwrap();
    assert_eq!(
        (repaired.train.prompts(), repaired.validation.prompts()),
        (vec!["Yes or no?".to_owned()], vec!["New?".to_owned()])
    );
}

#[test]
fn a_benchmark_is_kept_and_training_is_cleaned_of_it() {
    let train = Dataset::from_rows(&[
        ("What is 2 + 2?", "4"),
        ("How far is the moon?", "Far."),
        ("Where do owls sleep at noon?", "In trees."),
    ]);
    let benchmark = Dataset::from_rows(&[
        ("what is 2 + 2", "4"),
        ("Where do owls sleep at noons?", "In trees, mostly."),
    ]);
    let audit = train.audit_against(&benchmark).unwrap();
    assert_eq!(
        (audit.count(OverlapKind::NormalizedPrompt), audit.count(OverlapKind::NearPrompt)),
        (1, 1),
        "{audit}"
    );
    assert!(audit.verdict().contains("the benchmark"), "{audit}");
    let repaired = audit.repair_train().unwrap();
    assert_eq!((repaired.train.len(), repaired.validation.len()), (1, 2));
}

/// Not only the first row of training that is like a benchmark's goes, but all of them, whatever
/// the likeness.
#[test]
fn everything_that_gives_a_benchmark_away_goes_from_training() {
    let passage =
        "the first owl of the year is heard in the old oak behind the mill on a clear night";
    let owls: Vec<String> = (0..300)
        .map(|i| match i % 3 {
            0 => format!("{}here do owls sleep at noon?", if i % 2 == 0 { "W" } else { "w" }),
            1 => format!("Where do owls sleep at noon{}", "!".repeat(i % 7)),
            _ => format!("Where do owls sleep at noon, {}?", i % 10),
        })
        .collect();
    let mut rows: Vec<(&str, &str)> = owls.iter().map(|owl| (owl.as_str(), "In trees.")).collect();
    let told = format!("As they say, {passage}, or so it was told.");
    rows.extend([
        ("Tell me a story.", told.as_str()),
        ("Do you ship?", "We do."),
        ("What is 2 + 2?", "4"),
    ]);
    let benchmark = Dataset::from_rows(&[
        ("Where do owls sleep at noon?", "In trees."),
        ("Tell me about owls.", passage),
    ]);
    let audit = Dataset::from_rows(&rows).audit_against(&benchmark).unwrap();
    assert_eq!(audit.overlaps().len(), 2, "{audit}");
    let repaired = audit.repair_train().unwrap();
    assert_eq!(repaired.train.prompts(), ["Do you ship?", "What is 2 + 2?"]);
    assert_eq!(repaired.validation.rows(), benchmark.rows());
    assert!(repaired.audit().unwrap().overlaps().is_empty());
}

#[test]
fn plain_texts_are_told_apart_by_their_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(
        &path,
        (0..500).map(|i| format!("{{\"text\":\"Text number {i} of many\"}}\n")).collect::<String>(),
    )
    .unwrap();
    let dataset =
        Dataset::read(&path).unwrap().clean(&tunebook_data::Cleaning::standard()).unwrap();
    assert_eq!(dataset.len(), 500);
    let splits = dataset.split(&Split::holdout(0.12)).unwrap();
    assert!((30..=95).contains(&splits.validation.len()), "{splits}");
    assert_eq!(splits.audit().unwrap().count(OverlapKind::ExactPrompt), 0);
}
