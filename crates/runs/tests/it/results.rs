//! What runs and people have saved as results stays, and a table says what is gone.

use std::fs;

use serde_json::json;
use tunebook_runs::{Garbage, GarbageArgs};

use crate::common::text;
use crate::damage::{Hand, month_ago};

fn collected(garbage: &Garbage) -> Vec<&str> {
    garbage.items.iter().map(|item| item.adapter.as_str()).collect()
}

#[test]
fn results_stay_unless_they_are_asked_for() {
    let hand = Hand::new();
    let finished = hand.run("aaaaaaaaaaa1", None, None);
    let by_hand = hand.adapter("by hand", None, None);
    // Stopped, saved, and gone on.
    let (first, second) = hand.twice("aaaaaaaaaaa2", None);
    // Killed between the adapter and its line; of another no line could be written at all.
    hand.begin("aaaaaaaaaaa3", "killed", None, None);
    let killed = hand.adapter("killed", Some("aaaaaaaaaaa3"), None);
    fs::create_dir_all(hand.path("runs/aaaaaaaaaaa4")).unwrap();
    let full_disk = hand.adapter("full disk", Some("aaaaaaaaaaa4"), None);
    // Somebody has deleted the run, and another went on from its adapter.
    let deleted = hand.run("aaaaaaaaaaa5", None, None);
    let parent = hand.run("aaaaaaaaaaa6", None, None);
    let child = hand.run("aaaaaaaaaaa7", Some(&parent), None);
    for run in ["aaaaaaaaaaa5", "aaaaaaaaaaa6"] {
        fs::remove_dir_all(hand.path(&format!("runs/{run}"))).unwrap();
    }

    let args = GarbageArgs { min_age_secs: 0.0, ..GarbageArgs::default() };
    let dry = hand.open().gc(&args).unwrap();
    let mut expected = [first.as_str(), &deleted];
    expected.sort_unstable();
    assert_eq!((collected(&dry), dry.kept), (expected.to_vec(), 7), "{dry}");
    let told = dry.to_string();
    assert!(told.contains("an earlier state of `twice` (aaaaaaaaaaa2)"), "{told}");
    assert!(told.contains("of the run aaaaaaaaaaa5, whose folder is gone"), "{told}");
    assert!(told.ends_with("2 adapters, 0.0 MB, would be removed (dry run); 7 stay"), "{told}");

    let done = hand.open().gc(&GarbageArgs { dry_run: false, ..args.clone() }).unwrap();
    assert_eq!(collected(&done), expected);
    for adapter in [&finished, &by_hand, &second, &killed, &full_disk, &parent, &child] {
        assert!(hand.is_there(adapter), "{adapter}");
    }
    assert!(!hand.is_there(&first) && !hand.is_there(&deleted));

    hand.open().tag("twice", "keep").unwrap();
    let all = GarbageArgs { dry_run: false, results: true, ..args };
    let done = hand.open().gc(&all).unwrap();
    assert_eq!((done.items.len(), done.kept), (6, 1), "{done}");
    assert!(done.to_string().contains("the result of `killed` (aaaaaaaaaaa3)"), "{done}");
    assert!(hand.is_there(&second) && !hand.is_there(&by_hand));
}

/// By a clock that went back, the adapter that was saved last has the older time.
#[test]
fn the_adapter_that_the_log_names_last_is_a_result_by_any_clock() {
    let hand = Hand::new();
    let (_, second) = hand.twice("aaaaaaaaaaa1", None);
    let record = hand.path(&format!("adapters/{second}.jsonl"));
    let line = json!({
        "kind": "saved", "config": "LoRA", "answering": [], "bytes": 100, "run": "aaaaaaaaaaa1",
        "at": month_ago() - 1e6,
    });
    fs::write(record, format!("{line}\n")).unwrap();
    let args = GarbageArgs { dry_run: false, min_age_secs: 0.0, results: false };
    let done = hand.open().gc(&args).unwrap();
    assert!(done.items.is_empty() && hand.is_there(&second), "{done}");
}

#[test]
fn counts_are_of_what_was_done() {
    let hand = Hand::new();
    let adapter = hand.run("aaaaaaaaaaa1", None, None);
    fs::write(hand.path(&format!("adapters/{adapter}/mine.txt")), "mine").unwrap();
    hand.run("aaaaaaaaaaa2", None, None);
    let args = GarbageArgs { dry_run: false, min_age_secs: 0.0, results: true };
    let done = hand.open().gc(&args).unwrap();
    assert_eq!((done.items.len(), done.kept, done.bytes()), (2, 1, 100), "{done}");
    let told = done.to_string();
    assert!(told.ends_with("1 adapter, 0.0 MB, was removed; 1 stays, 1 of them left"), "{told}");
    assert!(told.contains("holds other files than were saved"), "{told}");
    // What is known of an adapter whose files were never here is no adapter that stays.
    fs::remove_dir_all(hand.path(&format!("adapters/{adapter}"))).unwrap();
    assert_eq!(hand.open().gc(&args).unwrap().kept, 0);
}

#[test]
fn a_table_says_which_files_are_gone() {
    let hand = Hand::new();
    for run in ["aaaaaaaaaaa1", "aaaaaaaaaaa2", "aaaaaaaaaaa3"] {
        let adapter = hand.run(run, None, None);
        match run {
            "aaaaaaaaaaa2" => {
                fs::remove_dir_all(hand.path(&format!("adapters/{adapter}"))).unwrap();
            }
            "aaaaaaaaaaa3" => hand.open().tag(run, "keep").unwrap(),
            _ => {}
        }
    }
    hand.begin("aaaaaaaaaaa4", "none", None, None);
    let args = GarbageArgs { dry_run: false, min_age_secs: 0.0, results: true };
    hand.open().gc(&args).unwrap();
    let runs = hand.open().runs().unwrap();
    let mut found: Vec<(String, String)> =
        (0..4).map(|row| (text(&runs, "id", row), text(&runs, "adapter_files", row))).collect();
    found.sort();
    let states: Vec<&str> = found.iter().map(|(_, state)| state.as_str()).collect();
    assert_eq!(states, ["collected", "missing", "present", "-"]);
}
