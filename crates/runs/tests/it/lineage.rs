//! Where adapters come from, which rows they saw, and which of them nobody needs.

use tunebook_data::{Dataset, Row};
use tunebook_runs::{GarbageArgs, RunData};
use tunebook_tune::{Adapters as _, TrainingArgs};

use crate::common::*;

#[test]
fn an_adapter_knows_its_whole_story() {
    let (_dir, registry) = registry();
    let (first, parent, model) = run(&registry, "support v1");
    // Another notebook loads it and trains on.
    let other = crate::common::model();
    other.load_adapter(registry.adapter_folder(&parent).unwrap(), "default").unwrap();
    let record = registry.record("support v2").with_data(&split());
    train(&other, &record, &args());
    let adapter = record.adapter().unwrap();
    let (better, before) = (evaluation(&other), evaluation(&model));
    registry.add_evaluation(&better).unwrap();
    assert_eq!(
        registry.add_evaluation(&better).unwrap(),
        registry.add_evaluation(&better).unwrap()
    );
    let comparison = before.compare(&evaluation(&model.base())).unwrap();
    registry.promote("support", &parent, &comparison).unwrap();

    let why = registry.why(&adapter[..8]).unwrap();
    assert_eq!(why.links.len(), 2);
    let (child, origin) = (&why.links[0], &why.links[1]);
    assert_eq!(child.parent.as_deref(), Some(parent.as_str()), "found by its answers");
    assert_eq!(child.answering, std::slice::from_ref(&better.fingerprint));
    assert_eq!((child.evaluations.len(), child.promotions.len()), (1, 0));
    assert_eq!((origin.run.as_deref(), origin.parent.as_deref()), (Some(first.as_str()), None));
    assert_eq!((origin.evaluations.len(), origin.promotions.len()), (0, 1));
    let story = why.to_string();
    for word in [
        "rows of",
        "strip_html",
        "fraction 0.3, seed 3",
        "base        model, fingerprint",
        "support v2",
        "which goes on from",
        "support (now), generation 1",
    ] {
        assert!(story.contains(word), "{word}:\n{story}");
    }
    assert_eq!(registry.why("support").unwrap().links[0], *origin, "by its alias");
    assert!(
        registry
            .why("nothing")
            .unwrap_err()
            .to_string()
            .contains("no adapter, alias or run `nothing`")
    );
    let runs = registry.runs().unwrap();
    let row = (0..2).find(|row| text(&runs, "name", *row) == "support v1").unwrap();
    assert_eq!(text(&runs, "served_as", row), "support@1");
}

#[test]
fn a_deletion_request_finds_all_who_saw_the_row() {
    let (_dir, registry) = registry();
    let split = split();
    let data = RunData::from(&split).with_id_column("customer").unwrap();
    assert!(RunData::from(&split).with_id_column("none").is_err());
    let model = model_with("support");
    let record = registry.record("v1").with_data(&data);
    train(&model, &record, &args());
    let parent = record.adapter().unwrap();
    // It goes on without naming its rows, and another run sees other rows.
    let child = registry.record("v2");
    train(&model, &child, &args());
    let others = Dataset::from_rows(&[("Do you ship?", "Yes.")]);
    let stranger = registry.record("other").with_data(&others);
    train(&model_with("other"), &stranger, &TrainingArgs { seed: 1, ..args() });

    // As it was before the cleaning.
    let raw = raw();
    let in_train = |row: &Row| split.train.rows().iter().any(|of| of.completion == row.completion);
    let seen = raw.rows().into_iter().find(in_train).unwrap();
    let held_out = raw.rows().into_iter().find(|row| !in_train(row)).unwrap();
    for row in [seen.clone(), split.train.row(0).unwrap()] {
        let touched = registry.adapters_touched_by(&row).unwrap();
        let adapters: Vec<&str> = touched.adapters.iter().map(|of| of.adapter.as_str()).collect();
        assert_eq!(adapters, [parent.as_str(), &child.adapter().unwrap()], "{touched}");
        assert_eq!(touched.adapters[1].by_parent.as_ref(), Some(&parent));
        assert!(touched.unknown.is_empty(), "{touched}");
    }
    let touched = registry.adapters_touched_by(&held_out).unwrap();
    assert!(touched.adapters.is_empty(), "{touched}");
    assert_eq!(touched.unknown, [(child.id(), "v2".to_owned())], "it does not say");

    let customer =
        split.train.frame().column("customer").unwrap().str().unwrap().get(0).unwrap().to_owned();
    let touched = registry.adapters_touched_by_id("customer", &customer).unwrap();
    assert_eq!(touched.adapters.len(), 2, "{touched}");
    assert_eq!(touched.unknown, [(stranger.id(), "other".to_owned())], "it has no such column");
    assert!(registry.adapters_touched_by_id("customer", "c99").unwrap().adapters.is_empty());
    let ids = std::fs::read_dir(registry.root().join("rows")).unwrap().flatten().next().unwrap();
    let text = std::fs::read_to_string(ids.path()).unwrap();
    let is_hash = |line: &str| line.len() == 32 && line.bytes().all(|b| b.is_ascii_hexdigit());
    assert!(text.lines().all(is_hash), "no text of a row");
}

#[test]
fn of_results_only_what_nothing_refers_to_is_garbage() {
    let (_dir, registry) = registry();
    let all = GarbageArgs { dry_run: false, min_age_secs: 0.0, results: true };
    assert!(registry.gc(&all).unwrap().items.is_empty(), "of nothing");
    let steps = |steps: usize| TrainingArgs { max_steps: Some(steps), ..args() };
    let (_, served, _) = run_with(&registry, "served", &steps(2));
    let (_, before, model) = run_with(&registry, "before", &steps(3));
    let (_, lost, _) = run_with(&registry, "lost", &steps(4));
    let (_, changed, _) = run_with(&registry, "changed", &steps(5));
    let (kept, ..) = run_with(&registry, "kept", &steps(6));
    registry.tag(&kept, "keep").unwrap();
    registry.promote_forced("support", &served, "x").unwrap();
    // A child of `before` is served now: the parent stays.
    let child = registry.record("child");
    train(&model, &child, &steps(7));
    assert_eq!(registry.why("child").unwrap().links[0].parent.as_ref(), Some(&before));
    registry.promote_forced("support", "child", "y").unwrap();
    let added = registry.root().join("adapters").join(&changed).join("mine.txt");
    std::fs::write(&added, "mine").unwrap();

    let young = registry.gc(&GarbageArgs::default()).unwrap();
    assert!(young.items.is_empty() && young.kept == 6, "{young}");
    let args = GarbageArgs { min_age_secs: 0.0, results: true, ..Default::default() };
    let results = registry.gc(&GarbageArgs { results: false, ..args.clone() }).unwrap();
    assert!(results.items.is_empty() && results.kept == 6, "{results}");
    let dry = registry.gc(&args).unwrap();
    let names = |garbage: &tunebook_runs::Garbage| {
        let mut names: Vec<String> =
            garbage.items.iter().map(|item| item.adapter.clone()).collect();
        names.sort();
        names
    };
    let mut expected = vec![lost.clone(), changed.clone()];
    expected.sort();
    assert_eq!((names(&dry), dry.removed), (expected.clone(), false));
    assert!(registry.adapter_folder(&lost).is_ok(), "a dry run removes nothing");

    let done = registry.gc(&GarbageArgs { dry_run: false, ..args }).unwrap();
    assert_eq!(names(&done), expected);
    assert!(registry.adapter_folder(&lost).unwrap_err().to_string().contains("garbage"));
    assert!(added.exists(), "what a user has put there is never removed");
    assert!(done.to_string().contains("was removed; 5 stay, 1 of them left"), "{done}");
    let folders = std::fs::read_dir(registry.serving_folder().join(".adapters")).unwrap();
    assert_eq!(folders.count(), 1, "what is no longer served is not kept twice");
    // Its story is still there, and it comes back when it is saved again.
    assert!(registry.why("lost").unwrap().to_string().contains("files are gone"));
    assert_eq!(run_with(&registry, "again", &steps(4)).1, lost);
    assert!(registry.adapter_folder(&lost).is_ok());
    assert_eq!(registry.rollback("support").unwrap().adapter, served);
}
