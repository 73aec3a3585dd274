//! Runs, adapters and aliases by names that several have, or none.

use serde_json::json;
use tunebook_runs::{CardArgs, Error, Result};

use crate::damage::Hand;

/// Two runs `squares` and one `noc`, each with an adapter of its own.
fn squares() -> Hand {
    let hand = Hand::new();
    for (run, name) in
        [("aaaaaaaaaaa1", "squares"), ("aaaaaaaaaaa2", "squares"), ("aaaaaaaaaaa3", "noc")]
    {
        hand.begin(run, name, None, None);
        let adapter = hand.adapter(run, Some(run), None);
        hand.end(run, Some(&adapter));
    }
    hand
}

#[test]
fn a_name_of_two_runs_is_said_to_be_so_whoever_asks() {
    let hand = squares();
    let registry = hand.open();
    let card = registry.card("squares", &CardArgs::default()).unwrap_err().to_string();
    let of = |done: Result<()>| done.unwrap_err().to_string();
    for told in [
        of(registry.why("squares").map(drop)),
        of(registry.adapter_folder("squares").map(drop)),
        of(registry.promote_forced("support", "squares", "x").map(drop)),
        of(registry.recipe("squares").map(drop)),
        of(registry.compare(&["squares"]).map(drop)),
        of(registry.tag("squares", "keep")),
        card,
    ] {
        let expected = "`squares` may be any of these runs: aaaaaaaaaaa1, aaaaaaaaaaa2";
        assert!(told.contains(expected), "{told}");
    }
    assert!(registry.aliases().unwrap().is_empty());
}

#[test]
fn names_of_runs_and_aliases_are_offered() {
    let hand = squares();
    let registry = hand.open();
    registry.promote_forced("support", "noc", "x").unwrap();
    let told = registry.resolve_adapter("squarez").unwrap_err().to_string();
    assert_eq!(
        told,
        "no adapter, alias or run `squarez` in this registry; did you mean squares (aaaaaaaaaaa2) or \
         squares (aaaaaaaaaaa1)?"
    );
    let told = registry.why("suport").unwrap_err().to_string();
    assert!(told.contains("did you mean support (alias)?"), "{told}");
    let told = registry.recipe("suport").unwrap_err().to_string();
    assert!(told.contains("no run `suport`") && told.contains("noc (aaaaaaaaaaa3)"), "{told}");
    let told = registry.rollback("suport").unwrap_err().to_string();
    assert!(told.contains("no alias `suport`") && told.contains("support (alias)"), "{told}");
    // Of adapters without names the ids.
    let alone = Hand::new();
    let adapter = alone.adapter("one", None, None);
    let told = alone.open().why("poet").unwrap_err().to_string();
    assert!(told.contains(&adapter), "{told}");
}

#[test]
fn what_is_not_there_is_said_to_be_none() {
    let hand = squares();
    let registry = hand.open();
    let error = registry.rollback("support").unwrap_err();
    assert!(matches!(error, Error::NotFound { what: "alias", .. }), "{error}");
    let told = error.to_string();
    assert_eq!(told, "no alias `support` in this registry; there are none yet");
    let told = Hand::new().open().why("support").unwrap_err().to_string();
    assert!(told.contains("there are none yet"), "{told}");
}

#[test]
fn a_run_without_an_adapter_says_why() {
    let hand = Hand::new();
    hand.begin("aaaaaaaaaaa1", "killed", None, None);
    let begin = json!({
        "kind": "begin", "format": 1, "run": "aaaaaaaaaaa2", "name": "whole", "started": 1.0,
        "record": {"strategy": {"full": {
            "target_modules": null, "layers_to_transform": null, "bias_only": false,
        }}},
    });
    hand.log("aaaaaaaaaaa2", &begin);
    hand.end("aaaaaaaaaaa2", None);
    let registry = hand.open();
    let told = registry.adapter_folder("killed").unwrap_err().to_string();
    assert_eq!(told, "the run `killed (aaaaaaaaaaa1)` has no adapter: its state is `unfinished`");
    assert!(registry.why("killed").is_ok(), "it has a story all the same");
    let told = registry.adapter_folder("whole").unwrap_err().to_string();
    assert!(told.contains("the model's own weights"), "{told}");
}

#[test]
fn types_of_numbers_have_one_name() {
    let hand = Hand::new();
    for (run, dtype) in
        [("aaaaaaaaaaa1", "f32"), ("aaaaaaaaaaa2", "float32"), ("aaaaaaaaaaa3", "bf16")]
    {
        let begin = json!({
            "kind": "begin", "format": 1, "run": run, "name": run, "started": 1.0,
            "record": {"dtype": dtype},
        });
        hand.log(run, &begin);
    }
    let registry = hand.open();
    let height = |runs: &[&str]| registry.compare(runs).unwrap().settings().height();
    assert_eq!(height(&["aaaaaaaaaaa1", "aaaaaaaaaaa2"]), 0);
    assert_eq!(height(&["aaaaaaaaaaa1", "aaaaaaaaaaa3"]), 1);
}
