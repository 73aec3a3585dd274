//! Reading files: what is good loads, what is not is kept aside with its line and reason, and
//! nothing panics.

use std::path::PathBuf;

use tunebook_data::{DataError, Dataset, Row};

fn file(contents: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("pairs.jsonl");
    std::fs::write(&path, contents).expect("writing to it");
    (folder, path)
}

fn pair(prompt: &str, completion: &str) -> String {
    serde_json::json!({"prompt": prompt, "completion": completion}).to_string()
}

#[test]
fn good_rows_load_and_bad_ones_are_kept_aside() {
    let mut bytes = Vec::new();
    for line in [
        pair("one", "1").into_bytes(),
        b"not json".to_vec(),
        pair("two\nlines", "2").into_bytes(),
        b"".to_vec(),
        b"{\"prompt\": \"no completion\"}".to_vec(),
        b"{\"prompt\": \"caf\xe9\", \"completion\": \"latin-1\"}".to_vec(),
        pair("three", "3").into_bytes(),
    ] {
        bytes.extend(line);
        bytes.push(b'\n');
    }
    let (_folder, path) = file(bytes);
    let dataset = Dataset::read(&path).expect("three rows are good");
    assert_eq!(
        dataset.rows(),
        [Row::new("one", "1"), Row::new("two\nlines", "2"), Row::new("three", "3")]
    );

    let rejected = dataset.rejected();
    let lines: Vec<Option<i64>> = rejected.column("line").unwrap().i64().unwrap().iter().collect();
    assert_eq!(lines, [Some(2), Some(5), Some(6)]);
    let raw = rejected.column("raw").unwrap().str().unwrap();
    assert_eq!(raw.get(0), Some("not json"));
    assert_eq!(raw.get(2), Some("{\"prompt\": \"caf\u{fffd}\", \"completion\": \"latin-1\"}"));

    let shown = dataset.to_string().replace(&path.display().to_string(), "pairs.jsonl");
    insta::assert_snapshot!(shown);
}

#[test]
fn byte_order_mark_crlf_blank_lines_and_no_last_newline() {
    let text = format!("\u{feff}{}\r\n\r\n   \r\n{}", pair("a", "1"), pair("b", "2"));
    let (_folder, path) = file(text);
    let dataset = Dataset::read(&path).unwrap();
    assert_eq!(dataset.rows(), [Row::new("a", "1"), Row::new("b", "2")]);
    assert_eq!(dataset.rejected().height(), 0);
}

#[test]
fn further_keys_become_columns_of_their_type() {
    let text = r#"{"prompt":"a","completion":"1","id":7,"score":1,"ok":true,"topic":"x"}
{"topic":3,"completion":"2","prompt":"b","score":2.5,"tags":["u","v"],"id":8}
{"prompt":"c","completion":"3","id":null}"#;
    let (_folder, path) = file(text);
    let dataset = Dataset::read(&path).unwrap();
    insta::assert_snapshot!(dataset.frame().to_string());
    // Written and read again, it is the same frame.
    let copy = path.with_file_name("copy.jsonl");
    assert_eq!(dataset.write_jsonl(&copy).unwrap(), 3);
    assert!(Dataset::read(&copy).unwrap().frame().equals_missing(&dataset.frame()));
}

#[test]
fn the_two_texts_can_have_other_names() {
    let text = r#"{"question":"a","answer":"1","prompt":"not this"}
{"question":"b"}
"#;
    let (_folder, path) = file(text);
    let dataset = Dataset::read_keys(&path, "question", "answer").unwrap();
    assert_eq!(dataset.rows(), [Row::new("a", "1")]);
    assert_eq!(dataset.frame().get_column_names(), ["prompt", "completion", "original_prompt"]);
    let reason =
        dataset.rejected().column("reason").unwrap().str().unwrap().get(0).unwrap().to_owned();
    assert_eq!(
        reason,
        r#"expected the keys "question" and "answer": "answer" is missing, found only "question""#
    );
}

#[test]
fn a_thousand_distinct_keys_do_not_make_a_thousand_columns() {
    let text: String = (0..1000)
        .map(|i| format!("{{\"prompt\":\"p{i}\",\"completion\":\"c\",\"k{i}\":{i}}}\n"))
        .collect();
    let (_folder, path) = file(text);
    let frame = Dataset::read(&path).unwrap().frame();
    assert_eq!(frame.get_column_names(), ["prompt", "completion", "extra"]);
    assert_eq!(frame.column("extra").unwrap().str().unwrap().get(999), Some("{\"k999\":999}"));
}

#[test]
fn a_very_long_line_loads() {
    let long = "word ".repeat(5_000_000); // 25 MB
    let (_folder, path) =
        file(format!("{}\n{}\n{}\n", pair("a", "1"), pair(&long, "2"), pair("c", "3")));
    let dataset = Dataset::read(&path).unwrap();
    assert_eq!(dataset.len(), 3);
    assert_eq!(dataset.row(1).unwrap().prompt.len(), long.len());
}

#[test]
fn a_large_file_keeps_its_order_and_line_numbers() {
    // More than one block and many chunks.
    let filler = "x".repeat(700);
    let text: String = (0..60_000)
        .map(|i| {
            if i % 10_000 == 9_999 {
                format!("broken {i}\n")
            } else {
                pair(&format!("{i}"), &filler) + "\n"
            }
        })
        .collect();
    assert!(text.len() > 32 << 20);
    let (_folder, path) = file(text);
    let dataset = Dataset::read(&path).unwrap();
    assert_eq!(dataset.len(), 59_994);
    let expected: Vec<String> =
        (0..60_000).filter(|i| i % 10_000 != 9_999).map(|i| i.to_string()).collect();
    assert_eq!(dataset.prompts(), expected);
    let lines: Vec<i64> =
        dataset.rejected().column("line").unwrap().i64().unwrap().into_no_null_iter().collect();
    assert_eq!(lines, [10_000, 20_000, 30_000, 40_000, 50_000, 60_000]);
}

#[test]
fn deep_nesting_and_null_bytes_are_reasons_not_panics() {
    let deep = format!(
        "{{\"prompt\":\"a\",\"completion\":{}1{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let (_folder, path) =
        file(format!("{}\n{deep}\n{{\"prompt\":\"a\0b\",\"completion\":\"c\"}}\n", pair("a", "1")));
    let dataset = Dataset::read(&path).unwrap();
    assert_eq!((dataset.len(), dataset.rejected().height()), (1, 2));
}

/// The texts of the errors, with the folder's path taken out.
#[test]
fn files_that_cannot_be_used_say_why() {
    let (folder, path) = file("");
    let mut errors = Vec::new();
    let mut note = |path: &std::path::Path| {
        let error = Dataset::read(path).expect_err("no rows");
        let here = std::env::current_dir().unwrap_or_default();
        errors.push(
            error
                .to_string()
                .replace(&folder.path().display().to_string(), "FOLDER")
                .replace(&here.display().to_string(), "HERE"),
        );
    };
    note(&path);
    note(folder.path());
    note(&folder.path().join("missing.jsonl"));
    for contents in [
        &b"\n\n  \n"[..],
        b"prompt,completion\na,b\n",
        b"[\n  {\"prompt\": \"a\"},\n  {\"prompt\": \"c\", \"completion\": 1}\n]\n",
        b"PK\x03\x04rest",
        b"\xff\xfe{\x00",
        b"\x1f\x8b\x08\x00",
        b"PAR1rest",
        b"{\"body\": \"one column\"}\n",
    ] {
        std::fs::write(&path, contents).expect("writing to it");
        note(&path);
    }
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn the_stop_flag_ends_a_read_with_an_error() {
    // The flag is shared by all tests of a process; nextest gives each test its own.
    if std::env::var_os("NEXTEST").is_none() {
        return;
    }
    let (_folder, path) = file(pair("a", "1"));
    tunebook_progress::interrupt::request();
    let result = Dataset::read(&path);
    tunebook_progress::interrupt::reset();
    assert!(matches!(result, Err(DataError::Interrupted(_))));
    assert_eq!(Dataset::read(&path).unwrap().len(), 1);
}

#[test]
fn a_written_file_appears_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deeper").join("out.jsonl");
    let dataset = Dataset::from_rows(&[("a \"quoted\" 🙂", "line\nbreak"), ("b", "")]);
    assert_eq!(dataset.write_jsonl(&path).unwrap(), 2);
    assert_eq!(Dataset::read(&path).unwrap().rows(), dataset.rows());
    assert_eq!(
        std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
        1,
        "no temporary file is left"
    );
    let error =
        dataset.write_jsonl(path.join("below-a-file.jsonl")).expect_err("a file is no folder");
    assert!(matches!(error, DataError::Io { action: "write", .. }), "{error}");
}
