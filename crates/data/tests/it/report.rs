//! What is said of the rows, columns and files that are not used.

use std::path::Path;

use tunebook_data::{
    Cleaning, DataError, DataSummary, Dataset, ReadOptions, Role, Split, TrainingText,
};

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// What is said of one file, its place aside.
fn said(name: &str, text: &str) -> (Dataset, String) {
    let folder = tempfile::tempdir().unwrap();
    let dataset = Dataset::read(write(folder.path(), name, text)).unwrap();
    let place = format!("{}/", folder.path().display());
    let said = dataset.read_reports()[0].to_string().replace(&place, "");
    (dataset, said)
}

#[test]
fn unreadable_rows_and_unused_columns_are_counted_and_named() {
    let lines = concat!(
        r#"{"prompt":"a","completion":"b","id":1,"topic":"x"}"#,
        "\n",
        r#"{"prompt":"c"}"#,
        "\n\nno JSON\n",
    );
    let (dataset, said) = said("t.jsonl", lines);
    assert_eq!(
        said,
        "3 rows of t.jsonl: 1 used as prompt/completion, 2 unreadable (first: line 2: expected the \
         keys \"prompt\" and \"completion\": \"completion\" is missing, found only \"prompt\")\n\
         not used: columns id, topic"
    );
    let report = &dataset.read_reports()[0];
    assert_eq!((report.rows, report.unreadable), (1, 2));
    // It stays with the rows, and a notebook shows it.
    let head = dataset.head(0).clean(&Cleaning::standard()).unwrap();
    assert_eq!(head.read_reports(), dataset.read_reports());
    assert!(dataset.to_string().contains("not used: columns id, topic"), "{dataset}");
}

#[test]
fn labels_beside_plain_texts_are_not_dropped_in_silence() {
    for (name, text, column) in [
        ("a.csv", "text,label\na,b\n", "label"),
        ("b.csv", "Text,Category\na,b\n", "Category"),
        ("c.jsonl", r#"{"text":"a","summary":"b"}"#, "summary"),
        ("d.jsonl", r#"{"text":"a","completion":"b"}"#, "completion"),
    ] {
        let (dataset, said) = said(name, text);
        assert!(said.contains("used as text (no prompt)") && said.contains("not used:"), "{said}");
        let caution = dataset.read_reports()[0].caution().unwrap();
        let recipe =
            format!("data.shape: {{columns: {{prompt: \"text\", completion: \"{column}\"}}}}");
        assert!(caution.contains(&recipe), "{caution}");
        assert!(dataset.to_string().contains(&caution), "{dataset}");
        assert_eq!(DataSummary::of(&dataset, None, None).cautions, [caution]);
    }
    let (dataset, _) = said("e.jsonl", r#"{"text":"a","label":1}"#);
    let caution = dataset.read_reports()[0].caution().unwrap();
    assert!(
        caution.contains(r#"`data.shape: {template: {prompt: "{text}", completion: "{label}"}}`"#),
        "{caution}"
    );
    // No answer, and nothing left out.
    let (dataset, _) = said("f.jsonl", r#"{"text":"a","url":"b"}"#);
    assert_eq!(dataset.read_reports()[0].caution(), None);
    let (dataset, said) = said("g.txt", "A text.");
    assert_eq!(said, "1 row of g.txt: 1 used as text (no prompt)");
    assert!(dataset.read_reports()[0].unused_columns.is_empty());
}

#[test]
fn columns_that_a_shape_takes_are_used() {
    let chat = r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"},{"role":"assistant","content":"d"}],"tools":[{"name":"f"}]}"#;
    let (dataset, _) = said("a.jsonl", chat);
    assert_eq!(dataset.read_reports()[0].unused_columns, ["tools"]);
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "b.csv", "question,context,answer\na,b,c\n");
    let options = ReadOptions::default().template("{context}\n{question}", "{answer}");
    let dataset = Dataset::read_with(&path, &options).unwrap();
    assert!(dataset.read_reports()[0].unused_columns.is_empty());
    assert_eq!(Dataset::read(&path).unwrap().read_reports()[0].unused_columns, ["context"]);
}

#[test]
fn the_files_of_a_folder_are_named_read_and_not_read() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "clean.jsonl", r#"{"prompt":"a","completion":"b"}"#);
    write(folder.path(), "raw.jsonl", "{\"prompt\":\"c\",\"completion\":\"d\"}\nbroken\n");
    write(folder.path(), "README.md", "About.");
    write(folder.path(), "make.py", "pass");
    let dataset = Dataset::read(folder.path()).unwrap();
    let place = format!("{}/", folder.path().display());
    let said = dataset.read_reports()[0].to_string().replace(&place, "");
    assert!(
        said.starts_with(
            "3 rows of 2 files (clean.jsonl, raw.jsonl): 2 used as prompt/completion, 1 unreadable \
             (first: raw.jsonl, line 2: expected a JSON object"
        ),
        "{said}"
    );
    assert!(said.ends_with("\nnot read: README.md, make.py"), "{said}");
    let shown = dataset.to_string().replace(&place, "");
    assert!(shown.contains("2 files (clean.jsonl, raw.jsonl)\nnot read: README.md"), "{shown}");
}

#[test]
fn a_summary_says_what_became_of_the_rows() {
    let folder = tempfile::tempdir().unwrap();
    let line =
        |n: usize| format!("{{\"prompt\":\"Question {n}\",\"completion\":\"Answer {n}\"}}\n");
    let rows = write(folder.path(), "rows.jsonl", &(0..100).map(line).collect::<String>());
    let all = Dataset::read(&rows).unwrap();
    let split = all.head(40).split(&Split::holdout(0.5).test(0.2)).unwrap();
    let summary = DataSummary::of(&split.train, Some(&split.validation), split.test.as_ref());
    assert_eq!(summary.lines.len(), 2, "{summary}");
    assert!(summary.lines[0].contains("100 used as prompt/completion"), "{summary}");
    assert_eq!(
        summary.lines[1],
        format!(
            "{} rows to train, {} to validate, {} to test, 60 left out by the recipe's steps",
            split.train.len(),
            split.validation.len(),
            split.test.as_ref().unwrap().len()
        )
    );
    let alone = DataSummary::of(&all, None, None);
    assert_eq!(alone.lines[1], "100 rows to train, none to validate");
    assert!(alone.cautions.is_empty());
}

/// A file of its own that holds the same rows measures nothing.
#[test]
fn validation_rows_of_the_training_file_are_a_caution() {
    let train = Dataset::from_rows(&[("Where is it?", "Here."), ("Who?", "We."), ("Why?", "So.")]);
    let validation =
        Dataset::from_rows(&[("where is IT", "Here."), ("Who?", "You."), ("When?", "Now.")]);
    let cautions = DataSummary::of(&train, Some(&validation), None).cautions;
    assert!(
        cautions.iter().any(|caution| caution.starts_with(
            "2 of 3 validation rows have the words of a training row's prompt, 1 of its answer, too"
        )),
        "{cautions:?}"
    );
    let texts = |text: &str| Dataset::from_rows(&[("", text)]);
    let leak = |validation: &Dataset| {
        let cautions = DataSummary::of(&texts("One text."), Some(validation), None).cautions;
        cautions.iter().any(|caution| caution.contains("training row"))
    };
    assert!(leak(&texts("One text.")) && !leak(&texts("Another text.")));
}

#[test]
fn a_share_that_is_far_from_the_fraction_is_pointed_out() {
    let rows: Vec<String> = (0..24).map(|n| format!("Question {n}")).collect();
    let rows: Vec<(&str, &str)> = rows.iter().map(|row| (row.as_str(), "Yes.")).collect();
    let rows = Dataset::from_rows(&rows);
    let (mut far, mut near) = (0, 0);
    for seed in 0..40 {
        let Ok(split) = rows.split(&Split::holdout(0.25).seed(seed)) else { continue };
        let (held_out, caution) = (split.validation.len(), split.caution().unwrap());
        let is_far = held_out.abs_diff(6) >= 2;
        if is_far {
            far += 1;
            let said = format!("{held_out} of 24 rows (");
            assert!(caution.contains(&said) && caution.contains("hash of its prompt"), "{caution}");
        } else {
            near += 1;
            assert!(!caution.contains("was asked"), "{caution}");
        }
        // Whatever becomes of the side afterwards.
        let head = DataSummary::of(&split.train, Some(&split.validation.head(1)), None);
        assert_eq!(head.to_string().contains("was asked"), is_far);
    }
    assert!(far > 0 && near > 0, "{far} far, {near} near");
    for fold in rows.folds(4, &Split::holdout(0.9)).unwrap() {
        assert!(!fold.to_string().contains("was asked"), "{fold}");
    }
}

#[test]
fn settings_of_a_split_are_refused_by_their_names() {
    let rows = Dataset::from_rows(&[("a", "b"), ("c", "d")]);
    for split in [
        Split::holdout(0.5).stratify_by("cat"),
        Split::holdout(0.5).group_by("cat"),
        Split::holdout(0.5).by_time("cat"),
    ] {
        let error = rows.split(&split).unwrap_err();
        assert!(
            matches!(&error, DataError::SplitColumn { column, .. } if column == "cat"),
            "{error}"
        );
    }
    let error = rows.split(&Split::holdout(0.5).stratify_by("cat")).unwrap_err().to_string();
    assert_eq!(
        error,
        "the split's `stratify` names the column \"cat\", which is not in rows: use one of \
         [\"prompt\", \"completion\"]"
    );
    assert!(rows.folds(2, &Split::default().group_by("cat")).is_err());
    let error = Split::holdout(2.0).validate().unwrap_err();
    assert!(matches!(error, DataError::Setting { field: "fraction", .. }), "{error}");
    assert!(
        Split::holdout(0.5).test(0.5).validate().is_err() && Split::default().validate().is_ok()
    );
}

/// Where rows are missing as they could not be read, an empty side says so.
#[test]
fn an_empty_side_names_the_rows_that_could_not_be_read() {
    let tool = r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"","tool_calls":[{"id":"1"}]}]}"#;
    let chat = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;
    let (dataset, said) = said("t.jsonl", &format!("{tool}\n{chat}\n"));
    assert!(said.contains("1 unreadable (first: line 1: expected all of the answer in"), "{said}");
    let error = dataset.split(&Split::holdout(0.25)).unwrap_err().to_string();
    assert!(
        error.contains("unreadable: 1, of which the first is line 1: expected all of"),
        "{error}"
    );
}

#[test]
fn no_role_is_changed() {
    let roles = |text: &TrainingText| match text {
        TrainingText::Conversation(turns) => turns.iter().map(|turn| turn.role).collect(),
        TrainingText::Text(_) => Vec::new(),
    };
    let (dataset, _) = said(
        "t.jsonl",
        concat!(
            r#"{"messages":[{"role":"tool","content":"x"},{"role":"assistant","content":"y"}]}"#,
            "\n",
            r#"{"messages":[{"role":"assistant","content":"Hi!"},{"role":"assistant","content":"y"}]}"#,
            "\n",
            r#"{"messages":[{"role":"ipython","content":"x"},{"role":"assistant","content":"y"}]}"#,
        ),
    );
    let texts = dataset.conversations();
    assert_eq!(roles(&texts[0]), [Role::Tool, Role::Assistant]);
    assert_eq!(roles(&texts[1]), [Role::Assistant, Role::Assistant]);
    assert_eq!(dataset.rows()[0].prompt, "Tool: x");
    // After cleaning and writing, too.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clean.jsonl");
    dataset.clean(&Cleaning::standard()).unwrap().write_jsonl(&path).unwrap();
    assert_eq!(Dataset::read(&path).unwrap().conversations(), texts);
    let first = dataset.read_reports()[0].first_unreadable.clone().unwrap();
    assert!(
        first.starts_with("line 3: expected one of the roles system, developer, user, human,")
            && first.ends_with("in messages[0], found \"ipython\""),
        "{first}"
    );
}
