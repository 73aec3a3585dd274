//! The index is made of the files, whatever becomes of it.

use std::fs;

use tunebook_runs::Registry;

use crate::common::*;

/// A registry with two runs, an evaluation, a promotion and notes.
fn filled() -> (tempfile::TempDir, Registry) {
    let (dir, registry) = registry();
    let (id, adapter, model) = run(&registry, "one");
    let better = evaluation(&model);
    let comparison = better.compare(&evaluation(&model.base())).unwrap();
    registry.add_evaluation(&better).unwrap();
    registry.promote("support", &adapter, &comparison).unwrap();
    registry.note(&id, "first").unwrap();
    registry.tag(&id, "keep").unwrap();
    let more = tunebook_tune::TrainingArgs { max_steps: Some(3), ..args() };
    run_with(&registry, "two", &more);
    registry.promote_forced("support", "two", "a drill").unwrap();
    registry.rollback("support").unwrap();
    (dir, registry)
}

#[test]
fn a_deleted_index_is_made_again_equal() {
    let (_dir, registry) = filled();
    let before = registry.dump().unwrap();
    for word in ["one", "keep", "a drill", "rolled_back", "loss"] {
        assert!(before.contains(word), "{word}: {before}");
    }
    for name in ["index.sqlite", "index.sqlite-wal", "index.sqlite-shm"] {
        let _ = fs::remove_file(registry.root().join(name));
    }
    // The open registry, and one that is opened anew.
    assert_eq!(registry.dump().unwrap(), before);
    fs::remove_file(registry.root().join("index.sqlite")).unwrap();
    assert_eq!(Registry::open(registry.root()).unwrap().dump().unwrap(), before);
    registry.rebuild().unwrap();
    assert_eq!(registry.dump().unwrap(), before);
    assert_eq!(registry.warnings(), Vec::<String>::new());
}

#[test]
fn a_damaged_index_is_made_again_with_a_word() {
    let (_dir, registry) = filled();
    let before = registry.dump().unwrap();
    let root = registry.root().to_path_buf();
    drop(registry);
    for (what, bytes) in [("text", b"no database".repeat(1000)), ("zeros", vec![0; 8192])] {
        fs::write(root.join("index.sqlite"), bytes).unwrap();
        let registry = Registry::open(&root).unwrap();
        assert_eq!(registry.dump().unwrap(), before, "{what}");
        let warnings = registry.warnings();
        assert!(warnings.len() == 1 && warnings[0].contains("made again"), "{what}: {warnings:?}");
    }
    // Pages in the middle: whatever SQLite makes of it, no run is lost.
    let mut bytes = fs::read(root.join("index.sqlite")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0xa5);
    fs::write(root.join("index.sqlite"), bytes).unwrap();
    let registry = Registry::open(&root).unwrap();
    registry.rebuild().unwrap();
    assert_eq!(registry.dump().unwrap(), before);
}

#[test]
fn a_folder_that_is_copied_here_is_in_the_table() {
    let (_one, here) = filled();
    let (_two, there) = registry();
    let (id, adapter, _) = run(&there, "on the cluster");
    copy(&there.root().join("runs").join(&id), &here.root().join("runs").join(&id));
    for name in [adapter.clone(), format!("{adapter}.jsonl")] {
        let to = here.root().join("adapters").join(&name);
        if !to.exists() {
            copy(&there.root().join("adapters").join(&name), &to);
        }
    }
    assert_eq!(here.runs().unwrap().height(), 3);
    assert!(here.why(&id).unwrap().to_string().contains("on the cluster"));
    fs::remove_dir_all(here.root().join("runs").join(&id)).unwrap();
    assert_eq!(here.runs().unwrap().height(), 2);
}

#[test]
fn wal_is_taken_where_it_is_safe() {
    let (_dir, registry) = registry();
    registry.runs().unwrap();
    let connection = rusqlite::Connection::open(registry.root().join("index.sqlite")).unwrap();
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
}
