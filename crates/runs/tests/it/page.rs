//! The Python code of docs/registry.md, on a registry of two runs. Its questions are asked of the index
//! in any case; the whole of it runs where `TUNEBOOK_PANDAS` names a Python with pandas and polars.

use std::path::Path;
use std::process::Command;

use crate::common::*;

/// The blocks of Python in the page, as one program.
fn program() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/registry.md");
    let page = std::fs::read_to_string(page).unwrap();
    let blocks = page.split("```python\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap()).collect()
}

#[test]
fn the_page_s_python_reads_the_registry() {
    let (dir, registry) = registry();
    let (_, adapter, model) = run(&registry, "support v1");
    run_with(
        &registry,
        "support v2",
        &tunebook_tune::TrainingArgs { max_steps: Some(3), ..args() },
    );
    registry.add_evaluation(&evaluation(&model)).unwrap();
    let program = program();
    assert!(program.contains("sqlite3") && program.contains("read_ndjson"));
    // Its strings, put together where one follows another.
    let strings: Vec<&str> = program.split('"').skip(1).step_by(2).collect();
    let joined = strings.join("\u{1}").replace(" \u{1}JOIN", " JOIN");
    let questions: Vec<&str> =
        joined.split('\u{1}').filter(|text| text.starts_with("SELECT")).collect();
    assert_eq!(questions.len(), 3, "{strings:?}");
    let index = rusqlite::Connection::open(registry.root().join("index.sqlite")).unwrap();
    for question in questions {
        let mut rows = index.prepare(question).unwrap();
        assert!(rows.query_map([], |_| Ok(())).unwrap().count() >= 2, "{question}");
    }
    let Some(python) = std::env::var_os("TUNEBOOK_PANDAS") else { return };
    let done =
        Command::new(python).current_dir(dir.path()).args(["-c", &program]).output().unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    for word in ["support v1", "support v2", &adapter[..8], "perplexity", "loss_validation"] {
        assert!(told.contains(word), "{word}: {told}");
    }
}
