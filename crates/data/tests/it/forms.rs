//! The forms in which other programs write rows: pandas, Excel, `cat`, `json.dump`, TRL,
//! LLaMA-Factory, OpenAI. Each is read with its values unchanged, or refused with a remedy.

use tunebook_data::{Dataset, Role, TrainingText, Turn};

fn try_read(name: &str, contents: impl AsRef<[u8]>) -> Result<Dataset, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, contents).unwrap();
    Dataset::read(&path).map_err(|error| {
        let error = error.to_string();
        assert!(error.contains(name), "{error}");
        error
    })
}

fn read(name: &str, contents: impl AsRef<[u8]>) -> Dataset {
    try_read(name, contents).unwrap_or_else(|error| panic!("{error}"))
}

/// (prompt, completion) of each row; nothing is kept aside.
fn pairs(name: &str, contents: impl AsRef<[u8]>) -> Vec<(String, String)> {
    let dataset = read(name, contents);
    assert_eq!(dataset.rejected().height(), 0, "{name}: {}", dataset.rejected());
    dataset.rows().into_iter().map(|row| (row.prompt, row.completion)).collect()
}

/// (line, reason) of what is kept aside.
fn rejects(dataset: &Dataset) -> Vec<(i64, String)> {
    let frame = dataset.rejected();
    let lines = frame.column("line").unwrap().i64().unwrap().clone();
    let reasons = frame.column("reason").unwrap().str().unwrap().clone();
    lines.into_no_null_iter().zip(reasons.iter().map(|reason| reason.unwrap().to_owned())).collect()
}

fn texts(dataset: &Dataset, column: &str) -> Vec<String> {
    let column = dataset.frame().column(column).unwrap().clone();
    (0..column.len()).map(|row| column.get(row).unwrap().str_value().into_owned()).collect()
}

fn two() -> Vec<(String, String)> {
    [("a", "b"), ("c", "d")].map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec()
}

fn turns(dataset: &Dataset) -> Vec<Turn> {
    match dataset.conversation(0) {
        Some(TrainingText::Conversation(turns)) => turns,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_orients_of_pandas_are_tables() {
    for (name, text) in [
        ("records", r#"[{"prompt":"a","completion":"b"},{"prompt":"c","completion":"d"}]"#),
        (
            "split",
            r#"{"columns":["prompt","completion"],"index":[0,1],"data":[["a","b"],["c","d"]]}"#,
        ),
        ("index", r#"{"0":{"prompt":"a","completion":"b"},"1":{"prompt":"c","completion":"d"}}"#),
        ("columns", r#"{"prompt":{"0":"a","1":"c"},"completion":{"0":"b","1":"d"}}"#),
        ("lists", r#"{"prompt":["a","c"],"completion":["b","d"]}"#),
        (
            "table",
            r#"{"schema":{"fields":[{"name":"index","type":"integer"},{"name":"prompt","type":"string"}],"primaryKey":["index"]},"data":[{"index":0,"prompt":"a","completion":"b"},{"index":1,"prompt":"c","completion":"d"}]}"#,
        ),
    ] {
        assert_eq!(pairs(&format!("{name}.json"), text), two(), "{name}");
        assert_eq!(pairs(&format!("{name}.jsonl"), text), two(), "{name}");
    }
    // An index that says more than the place of the row stays, and values keep their types.
    for text in [
        r#"{"columns":["prompt","completion","n"],"index":["x","y"],"data":[["a","b",18446744073709551615],["c","d",7]]}"#,
        r#"{"x":{"prompt":"a","completion":"b","n":18446744073709551615},"y":{"prompt":"c","completion":"d","n":7}}"#,
        r#"{"prompt":{"x":"a","y":"c"},"completion":{"x":"b","y":"d"},"n":{"x":18446744073709551615,"y":7}}"#,
    ] {
        let dataset = read("a.json", text);
        assert_eq!(texts(&dataset, "index"), ["x", "y"], "{text}");
        assert_eq!(
            dataset.frame().column("n").unwrap().u64().unwrap().get(0),
            Some(u64::MAX),
            "{text}"
        );
    }
    // Values have no names.
    for (name, text) in
        [("a.json", "[[\"a\",\"b\"],\n[\"c\",\"d\"]]"), ("a.jsonl", "[\"a\",\"b\"]\n")]
    {
        let error = try_read(name, text).unwrap_err();
        assert!(error.contains("a list has no names of fields, write each row as"), "{error}");
    }
    // A batch of rows on each line.
    let error = try_read("a.jsonl", "{\"prompt\":[\"a\"],\"completion\":[\"b\"]}\n".repeat(2));
    assert!(error.unwrap_err().contains("make it a text, or each of its values a row"));
}

#[test]
fn a_list_within_a_document_keeps_lines_keys_and_numbers() {
    for (key, more) in [
        ("instances", "\"type\":\"text2text\","),
        ("data", ""),
        // Only one of the lists has rows.
        ("data", "\"authors\":[{\"name\":\"x, }]\"}],"),
    ] {
        let text = format!(
            "{{{more}\n\"{key}\":[\n{{\"input\":\"a\",\"output\":\"b\",\"id\":18446744073709551615}},\n{{\"input\":\"x\"}},\n{{\"input\":\"x\",\"input\":\"y\",\"output\":\"z\"}},\n{{\"input\":\"c\",\"output\":\"d\",\"id\":1}}]}}"
        );
        let dataset = read("a.json", &text);
        let rows: Vec<_> = dataset.rows().into_iter().map(|r| (r.prompt, r.completion)).collect();
        assert_eq!(rows, two());
        let found = rejects(&dataset);
        assert_eq!(found.iter().map(|reject| reject.0).collect::<Vec<_>>(), [4, 5], "{found:?}");
        assert!(found[1].1.contains("found \"input\" twice"), "{found:?}");
        assert_eq!(texts(&dataset, "id"), ["18446744073709551615", "1"]);
    }
    let two = r#"{"train":[{"input":"a","output":"b"}],"test":[{"input":"c","output":"d"}]}"#;
    let error = try_read("a.json", two).unwrap_err();
    assert!(error.contains("found 2 in \"train\", \"test\": write each to a file"), "{error}");
}

#[test]
fn objects_of_json_lines_need_no_line_of_their_own() {
    let pretty = |p: &str, c: &str| {
        format!("{{\n  \"prompt\": \"{p}\",\n  \"completion\": \"{c}\",\n  \"x\": NaN\n}}\n")
    };
    let line = |p: &str, c: &str| format!("{{\"prompt\":\"{p}\",\"completion\":\"{c}\"}}\n");
    for text in [
        pretty("a", "b") + &pretty("c", "d"),
        line("a", "b") + &pretty("c", "d"),
        pretty("a", "b") + &line("c", "d"),
        line("a", "b").replace('\n', "") + &line("c", "d"),
        line("a", "b").replace('\n', ", ") + &line("c", "d"),
        line("a", "b").replace('\n', ",\n") + &line("c", "d"),
        (line("a", "b") + &line("c", "d")).replace('\n', "\r"),
        format!("\u{feff}{}\u{feff}{}", line("a", "b"), line("c", "d")),
        format!("\u{feff}{}\u{feff}{}", line("a", "b").trim(), line("c", "d")),
        format!("\u{feff}{}\u{feff}{}", line("a", "b"), pretty("c", "d")),
    ] {
        assert_eq!(pairs("a.jsonl", &text), two(), "{text:?}");
    }
    // Lines are counted, and a broken object costs no other.
    let broken = "{\n \"prompt\": \"x\",\n}\n";
    let text = line("a", "b") + &pretty("c", "d") + broken + &line("e", "f") + "bad\n";
    let dataset = read("a.jsonl", text);
    assert_eq!(dataset.prompts(), ["a", "c", "e"]);
    let lines: Vec<i64> = rejects(&dataset).into_iter().map(|reject| reject.0).collect();
    assert_eq!(lines, [7, 8, 9, 11]);
    // Wherever threads and blocks are cut.
    let filler = "x".repeat(3000);
    let text: String =
        (0..7000).map(|n| line("a", "b") + &pretty(&n.to_string(), &filler)).collect();
    assert!(text.len() > 20 << 20);
    let dataset = read("a.jsonl", text);
    assert_eq!((dataset.len(), dataset.rejected().height()), (14_000, 0));
    assert_eq!(dataset.prompts()[13_999], "6999");
}

#[test]
fn tables_of_old_macs_and_of_excel() {
    for text in [
        "prompt,completion\ra,b\rc,d\r",
        "\"prompt\",\"completion\"\r\"a\",\"b\"\r\"c\",\"d\"",
        "\u{feff}prompt,completion\na,b\n\u{feff}c,d\n",
        "sep=;\nprompt;completion\na;b\nc;d\n",
        "\u{feff}\"SEP=;\"\r\nprompt;completion\r\na;b\r\nc;d\r\n",
        "sep=^\nprompt^completion\na^b\nc^d\n",
        "sep=\t\nprompt\tcompletion\na\tb\nc\td\n",
    ] {
        assert_eq!(pairs("a.csv", text), two(), "{text:?}");
    }
    // Line ends within quotes, and a carriage return within a field, are text.
    let dataset = read("a.csv", "prompt,completion\r\"a\nx\",b\rbad\r\"c\r\",d\r");
    assert_eq!((dataset.prompts(), rejects(&dataset)[0].0), (vec!["a\nx".into(), "c\r".into()], 3));
    assert_eq!(read("a.csv", "prompt,completion\na\rx,b\n").prompts(), ["a\rx"]);
    assert_eq!(rejects(&read("a.csv", "sep=;\nprompt;completion\na;b\nbad\n"))[0].0, 4);
    // Joined files have the header twice.
    let joined = "\u{feff}prompt,completion\na,b\n\u{feff}prompt,completion\nc,d\n";
    for text in [joined.to_owned(), joined.replace('\u{feff}', "")] {
        let dataset = read("a.csv", &text);
        assert_eq!(dataset.prompts(), ["a", "c"]);
        let found = rejects(&dataset);
        assert!(found[0].0 == 3 && found[0].1.contains("found the header again"), "{found:?}");
    }
}

#[test]
fn values_stand_as_they_were_written() {
    let dataset = read(
        "a.csv",
        "prompt,completion,zip,id,long,price,x\na,b,00123,12345678901234567890,99999999999999999999,1.10,NaN\nc,d,98101,12345678901234567891,1,2.5,inf\n",
    );
    for (column, expected) in [
        ("zip", ["00123", "98101"]),
        ("id", ["12345678901234567890", "12345678901234567891"]),
        ("long", ["99999999999999999999", "1"]),
        ("price", ["1.10", "2.5"]),
        ("x", ["NaN", "inf"]),
    ] {
        assert_eq!(texts(&dataset, column), expected, "{column}");
    }
    let dataset = read(
        "a.jsonl",
        "{\"prompt\":\"a\",\"completion\":\"b\",\"id\":18446744073709551615,\"x\":NaN}\n{\"prompt\":\"c\",\"completion\":\"d\",\"id\":-1,\"x\":-Infinity}\n",
    );
    assert_eq!(texts(&dataset, "id"), ["18446744073709551615", "-1"]);
    assert_eq!(dataset.rejected().height(), 0);
}

#[test]
fn other_encodings_are_named_with_their_remedy() {
    let text = "{\"prompt\":\"häß\",\"completion\":\"b\"}\n";
    let units = |mark: bool, big: bool| -> Vec<u8> {
        let text = if mark { format!("\u{feff}{text}") } else { text.to_owned() };
        text.encode_utf16()
            .flat_map(|u| if big { u.to_be_bytes() } else { u.to_le_bytes() })
            .collect()
    };
    let wide: Vec<u8> =
        format!("\u{feff}{text}").chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
    for (bytes, remedy) in [
        (units(true, false), "found text in UTF-16. Save it as UTF-8: iconv -f UTF-16 -t"),
        (units(true, true), "found text in UTF-16. Save it as UTF-8: iconv -f UTF-16 -t"),
        (units(false, false), "iconv -f UTF-16LE -t"),
        (units(false, true), "iconv -f UTF-16BE -t"),
        (wide, "found text in UTF-32. Save it as UTF-8: iconv -f UTF-32 -t"),
    ] {
        let error = try_read("a.txt", &bytes).unwrap_err();
        assert!(error.contains(remedy), "{error}");
        let remedy = remedy.rsplit(": ").next().unwrap();
        for name in ["a.jsonl", "a.json", "a.csv"] {
            let error = try_read(name, &bytes).unwrap_err();
            assert!(error.contains(remedy), "{error}");
        }
    }
}

#[test]
fn earlier_turns_make_a_conversation_of_any_pair() {
    for (prompt, completion) in [
        ("prompt", "completion"),
        ("prompt", "response"),
        ("query", "response"),
        ("question", "answer"),
    ] {
        for history in [
            r#"[["a","b"]]"#,
            r#"[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]"#,
        ] {
            let text = format!(
                "{{\"{prompt}\":\"c\",\"{completion}\":\"d\",\"history\":{history},\"system\":\"s\"}}"
            );
            let found: Vec<(Role, String)> =
                turns(&read("a.jsonl", &text)).into_iter().map(|t| (t.role, t.content)).collect();
            let expected = [
                (Role::System, "s"),
                (Role::User, "a"),
                (Role::Assistant, "b"),
                (Role::User, "c"),
                (Role::Assistant, "d"),
            ];
            assert_eq!(found, expected.map(|(role, text)| (role, text.to_owned())), "{text}");
        }
    }
    let rows = pairs("a.jsonl", r#"{"prompt":"c","response":"d","history":[]}"#);
    assert_eq!(rows, [("c".to_owned(), "d".to_owned())]);
    let error = try_read("a.jsonl", r#"{"prompt":"c","response":"d","history":["a"]}"#);
    assert!(error.unwrap_err().contains("rename \"history\" if it is no earlier conversation"));
    // Columns of other names are all that is asked for.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(&path, r#"{"q":"c","a":"d","history":["a"]}"#).unwrap();
    let dataset = Dataset::read_keys(&path, "q", "a").unwrap();
    assert_eq!(texts(&dataset, "history"), [r#"["a"]"#]);
}

#[test]
fn prompts_and_completions_may_be_messages() {
    let user = r#"[{"role":"user","content":"a"}]"#;
    let assistant = r#"[{"role":"assistant","content":"b"}]"#;
    for (prompt, completion) in [(user, assistant), (user, "\"b\""), ("\"a\"", assistant)] {
        for name in ["a.jsonl", "a.json"] {
            let text = format!("{{\"prompt\":{prompt},\"completion\":{completion}}}");
            assert_eq!(pairs(name, &text), [("a".to_owned(), "b".to_owned())], "{text}");
        }
    }
    // The completion bears the loss.
    let text = r#"{"prompt":[{"role":"system","content":"s"},{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}],"completion":[{"role":"assistant","content":"d"}]}"#;
    let said = turns(&read("a.jsonl", text));
    let losses: Vec<bool> = said.iter().map(Turn::bears_loss).collect();
    assert_eq!((said[0].content.as_str(), losses), ("s", vec![false, false, false, false, true]));
    for (text, says) in [
        (format!("{{\"prompt\":{user},\"completion\":{user}}}"), "an assistant's as the last"),
        (format!("{{\"prompt\":[],\"completion\":{assistant}}}"), "expected text in \"prompt\""),
        (
            format!("{{\"prompt\":{user},\"completion\":\"b\",\"history\":[[\"x\",\"y\"]]}}"),
            "put all turns into one list",
        ),
    ] {
        let error = try_read("a.jsonl", &text).unwrap_err();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn an_answer_that_is_more_than_its_text_is_kept_aside() {
    let chat = |keys: &str| {
        format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"a\"}},{{\"role\":\"assistant\",{keys}}}]}}"
        )
    };
    for (keys, says) in [
        (
            r#""content":null,"tool_calls":[{"id":"1","function":{"name":"f"}}]"#,
            "found \"tool_calls\" beside it: write the calls into \"content\"",
        ),
        (r#""content":"","tool_calls":[{"id":"1"}]"#, "found \"tool_calls\""),
        (r#""tool_calls":[{"id":"1"}]"#, "found \"tool_calls\""),
        (r#""content":null,"function_call":{"name":"f"}"#, "found \"function_call\""),
        (r#""content":"b","reasoning_content":"hm""#, "write the reasoning into \"content\""),
        (
            r#""content":[{"type":"text","text":"b"},{"type":"image_url","image_url":{}}]"#,
            "found a list with a part that is no text: image_url",
        ),
    ] {
        let error = try_read("a.jsonl", chat(keys)).unwrap_err();
        assert!(error.contains(says) && error.contains("messages[1]"), "{error}");
    }
    let empty = chat(r#""content":"b","tool_calls":null,"function_call":null,"thinking":"""#);
    assert_eq!(pairs("a.jsonl", empty), [("a".to_owned(), "b".to_owned())]);
    let system = r#"{"messages":[{"role":"system","content":"s","train":true},{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;
    let error = try_read("a.jsonl", system).unwrap_err();
    assert!(error.contains("expected no loss on the system message"), "{error}");
}
