//! An alias stands for what has won a paired evaluation, and goes back.

use std::fs;

use tunebook_evaluate::Comparison;
use tunebook_models::Model;
use tunebook_runs::{Error, PromotionKind, Registry};
use tunebook_tune::TrainingArgs;

use crate::common::*;

/// Two adapters, the second trained longer, each with its model.
fn two(registry: &Registry) -> [(String, Model); 2] {
    let (_, short, one) =
        run_with(registry, "short", &TrainingArgs { max_steps: Some(2), ..args() });
    let (_, long, two) =
        run_with(registry, "long", &TrainingArgs { max_steps: Some(40), ..args() });
    [(short, one), (long, two)]
}

fn against(model: &Model, other: &Model) -> Comparison {
    evaluation(model).compare(&evaluation(other)).unwrap()
}

fn refusal(error: &Error) -> &str {
    match error {
        Error::Refused { problem, .. } => problem,
        other => panic!("{other}"),
    }
}

#[test]
fn the_better_one_is_promoted_and_goes_back() {
    let (_dir, registry) = registry();
    let [(short, one), (long, two)] = two(&registry);
    let link = || fs::read_link(registry.serving_folder().join("support")).unwrap();
    assert!(registry.rollback("support").is_err());

    let first = registry.promote("support", &short, &against(&one, &one.base())).unwrap();
    assert_eq!((first.generation, &first.adapter), (1, &short));
    assert!(link().ends_with(&short));
    let error = registry.rollback("support").unwrap_err();
    assert!(matches!(error, Error::NothingBefore { generation: 1, .. }), "{error}");

    // Better than the base is not better than what is served.
    let error = registry.promote("support", &long, &against(&two, &two.base())).unwrap_err();
    assert!(refusal(&error).contains("not with generation 1"), "{error}");
    let comparison = against(&two, &one);
    let second = registry.promote("support", &long, &comparison).unwrap();
    assert_eq!((second.generation, second.previous), (2, Some(1)));
    assert!(link().ends_with(&long));

    let third = registry.rollback("support").unwrap();
    assert_eq!(
        (third.generation, third.restores, third.kind),
        (3, Some(1), PromotionKind::RolledBack)
    );
    assert!(link().ends_with(&short));
    assert!(matches!(registry.rollback("support"), Err(Error::NothingBefore { .. })));
    // And forward again, and back once more.
    registry.promote("support", &long, &comparison).unwrap();
    assert_eq!(registry.rollback("support").unwrap().adapter, short);

    let story = registry.why("long").unwrap().to_string();
    assert!(story.contains("generation 2") && story.contains("better"), "{story}");
    let files = registry.serving_folder().join("support/adapter_model.safetensors");
    assert!(files.is_file(), "the link leads to PEFT's files");
}

#[test]
fn what_is_not_shown_to_be_better_stays_where_it_is() {
    let (_dir, registry) = registry();
    let [(short, one), (long, two)] = two(&registry);
    registry.promote("support", &long, &against(&two, &two.base())).unwrap();
    for (comparison, why) in [
        (against(&one, &two), "worse in"),
        (against(&two, &one), "not of this adapter"),
        (against(&one.base(), &two), "not of this adapter"),
    ] {
        let error = registry.promote("support", &short, &comparison).unwrap_err();
        assert!(refusal(&error).contains(why), "{why}: {error}");
    }
    // An adapter that answers alike.
    let error = registry.promote("support", &long, &against(&two, &one)).unwrap_err();
    assert!(refusal(&error).contains("already"), "{error}");
    let alias = registry.alias("support").unwrap();
    assert_eq!((alias.generation(), alias.adapter()), (1, Some(long.as_str())));

    let error = registry.promote_forced("support", &short, " ").unwrap_err();
    assert!(refusal(&error).contains("no reason"), "{error}");
    let forced = registry.promote_forced("support", &short, "the long one insults people").unwrap();
    assert_eq!((forced.generation, forced.kind), (2, PromotionKind::Forced));
    let story = registry.why("support").unwrap().to_string();
    assert!(story.contains("FORCED") && story.contains("insults people"), "{story}");
    assert!(registry.dump().unwrap().contains("insults people"));
}

#[test]
fn of_two_who_change_an_alias_at_once_one_is_told() {
    let (_dir, registry) = registry();
    let [(short, _), (long, _)] = two(&registry);
    let mine = registry.alias("support").unwrap();
    let yours = registry.alias("support").unwrap();
    mine.promote_forced(&short, "first").unwrap();
    let error = yours.promote_forced(&long, "second").unwrap_err();
    assert!(matches!(error, Error::Conflict { expected: 0, found: 1, .. }), "{error}");
    assert_eq!(registry.alias("support").unwrap().adapter(), Some(short.as_str()));
    assert!(registry.alias("../x").unwrap_err().to_string().contains("alias `../x`"));
}

#[test]
fn many_threads_promote_one_after_the_other() {
    let (_dir, registry) = registry();
    let [(short, _), (long, _)] = two(&registry);
    let done: usize = std::thread::scope(|scope| {
        let work = |adapter: &str| {
            let (registry, adapter) = (registry.clone(), adapter.to_owned());
            move || {
                let promote = || registry.promote_forced("support", &adapter, "drill").is_ok();
                (0..20).filter(|_| promote()).count()
            }
        };
        let threads = [&short, &long, &short, &long].map(|adapter| scope.spawn(work(adapter)));
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let alias = registry.alias("support").unwrap();
    assert_eq!(alias.history().len(), done);
    let numbers: Vec<u64> = alias.history().iter().map(|of| of.generation).collect();
    assert_eq!(numbers, (1..=done as u64).collect::<Vec<_>>());
    let link = fs::read_link(registry.serving_folder().join("support")).unwrap();
    assert!(link.ends_with(alias.adapter().unwrap()));
}

/// A process that is killed between the line and the link.
#[test]
fn the_link_follows_the_lines() {
    let (_dir, registry) = registry();
    let [(short, _), (long, _)] = two(&registry);
    registry.promote_forced("support", &short, "first").unwrap();
    let link = registry.serving_folder().join("support");
    let before = fs::read_link(&link).unwrap();
    registry.promote_forced("support", &long, "second").unwrap();
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(before, &link).unwrap();
    // A question changes nothing, and it is no secret.
    let registry = Registry::open(registry.root()).unwrap();
    registry.why("support").unwrap();
    assert!(fs::read_link(&link).unwrap().ends_with(&short));
    let found = registry.verify().unwrap();
    assert!(found.len() == 1 && found[0].path.ends_with("serving/support"), "{found:?}");
    // The next change of anything does.
    registry.promote_forced("other", &long, "another").unwrap();
    assert!(fs::read_link(&link).unwrap().ends_with(&long));
    assert_eq!(registry.verify().unwrap(), []);
    // A torn line was no promotion, or is one that is lost: somebody has to say.
    let path = registry.root().join("aliases/support.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, &text[..text.len() - 20]).unwrap();
    assert!(registry.promote_forced("support", &short, "again").is_err());
    assert!(fs::read_link(&link).unwrap().ends_with(&long));
    let whole = text.lines().next().unwrap();
    fs::write(&path, format!("{whole}\n")).unwrap();
    assert_eq!(registry.promote_forced("support", &long, "again").unwrap().generation, 2);
}
