//! Every kind of file, and every kind of damage: the good rows load, the others are kept aside or
//! the error is clear.

use std::io::Write;
use std::path::{Path, PathBuf};

use polars::prelude::*;
use tunebook_data::{
    DataError, Dataset, ReadOptions, Row, RowShape, TrainingText, validate_openai_chat,
};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, contents).unwrap();
        path
    }
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

/// (line, reason) of what was kept aside; the file is named in each.
fn rejects(dataset: &Dataset) -> Vec<(i64, String)> {
    let frame = dataset.rejected();
    let files = frame.column("file").unwrap().str().unwrap().clone();
    assert!(
        files.iter().all(|file| file.is_some_and(|file| Path::new(file).exists())),
        "{files:?}"
    );
    let lines = frame.column("line").unwrap().i64().unwrap().clone();
    let reasons = frame.column("reason").unwrap().str().unwrap().clone();
    lines.into_no_null_iter().zip(reasons.iter().map(|reason| reason.unwrap().to_owned())).collect()
}

fn expected() -> Vec<Row> {
    vec![Row::new("Where is it?", "Here, \"there\".\nDone"), Row::new("Größe?", "12")]
}

const JSONL: &str = "{\"question\":\"Where is it?\",\"answer\":\"Here, \\\"there\\\".\\nDone\",\"n\":1}\n{\"question\":\"Größe?\",\"answer\":\"12\",\"n\":2}\n";

#[test]
fn every_format_gives_the_same_rows() {
    let folder = Folder::new();
    let array = format!("[{}]", JSONL.trim().replace('\n', ",\n"));
    let csv = "question,answer,n\n\"Where is it?\",\"Here, \"\"there\"\".\nDone\",1\nGröße?,12,2\n";
    let frame = df![
        "question" => ["Where is it?", "Größe?"],
        "answer" => ["Here, \"there\".\nDone", "12"],
        "n" => [1i64, 2],
    ];
    let parquet = folder.path("a.parquet");
    ParquetWriter::new(std::fs::File::create(&parquet).unwrap())
        .finish(&mut frame.unwrap())
        .unwrap();
    let parquet_bytes = std::fs::read(&parquet).unwrap();
    let files = [
        folder.write("a.jsonl", JSONL),
        folder.write("b.jsonl.gz", gz(JSONL.as_bytes())),
        folder.write("c.jsonl.zst", zst(JSONL.as_bytes())),
        // Two gzip members in one file, as `cat` makes them.
        folder.write(
            "d.jsonl",
            [
                gz(JSONL.lines().next().unwrap().as_bytes()),
                gz(b"\n"),
                gz(JSONL.lines().nth(1).unwrap().as_bytes()),
            ]
            .concat(),
        ),
        folder.write("e.json", &array),
        folder.write("f.json", format!("{{\"data\": {array}}}")),
        folder.write("g.json", JSONL),
        folder.write("h.jsonl", &array),
        folder.write("i.csv", csv),
        folder.write("j.tsv.gz", gz(csv.replace(',', "\t").replace("Here\t", "Here,").as_bytes())),
        folder.write(
            "k.csv",
            format!("\u{feff}{}", csv.replace('\n', "\r\n").replace("\".\r\n", "\".\n")),
        ),
        parquet,
        folder.write("m.parquet.gz", gz(&parquet_bytes)),
        folder.write("n.jsonl", &parquet_bytes),
    ];
    for file in files {
        let dataset = Dataset::read(&file).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(dataset.rows(), expected(), "{}", file.display());
        assert_eq!(
            (dataset.shape(), dataset.rejected().height()),
            (&RowShape::QuestionAnswer, 0),
            "{}",
            file.display()
        );
        assert_eq!(
            dataset.frame().column("n").unwrap().i64().unwrap().sum(),
            Some(3),
            "{}",
            file.display()
        );
    }
}

#[test]
fn folders_patterns_and_text_files() {
    let folder = Folder::new();
    let row = |n: usize| format!("{{\"prompt\":\"p{n}\",\"completion\":\"c\"}}\n");
    folder.write("set/b.jsonl", row(2));
    folder.write("set/a/x.jsonl.gz", gz(row(1).as_bytes()));
    folder.write("set/c.csv", "completion,prompt\nc,p3\n");
    folder.write("set/README.md", "not data");
    folder.write("set/.hidden.jsonl", row(9));
    assert_eq!(Dataset::read(folder.path("set")).unwrap().prompts(), ["p1", "p2", "p3"]);
    assert_eq!(Dataset::read(folder.path("set/*.jsonl")).unwrap().prompts(), ["p2"]);
    let some = ReadOptions::default().files("*.csv");
    assert_eq!(Dataset::read_with(folder.path("set"), &some).unwrap().prompts(), ["p3"]);

    folder.write("texts/one.txt", "Erster\nText");
    folder.write("texts/deep/two.md", "# Second");
    folder.write("texts/three.txt", b"caf\xe9");
    let texts = Dataset::read(folder.path("texts")).unwrap();
    assert_eq!(texts.completions(), ["# Second", "Erster\nText"]);
    assert_eq!(texts.shape(), &RowShape::Text);
    assert!(
        texts.frame().column("file").unwrap().str().unwrap().get(1).unwrap().ends_with("one.txt")
    );
    assert_eq!(rejects(&texts), [(1, "expected UTF-8, found the byte 0xE9".to_owned())]);
    let named = ReadOptions::default().template("Continue {file}", "{text}");
    assert!(
        Dataset::read_with(folder.path("texts"), &named).unwrap().prompts()[1]
            .starts_with("Continue /")
    );

    for (path, says) in [
        ("empty", "without a file of a known kind"),
        ("set/*.nope", "no file of a known kind matches"),
    ] {
        std::fs::create_dir_all(folder.path("empty")).unwrap();
        let error = Dataset::read(folder.path(path)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn one_bad_file_of_several_costs_no_other() {
    let folder = Folder::new();
    folder.write("a.jsonl", "{\"prompt\":\"a\",\"completion\":\"b\"}\n");
    folder.write("b.parquet", b"PAR1 torn");
    folder.write("c.csv", "prompt,prompt\n1,2\n");
    folder.write("d.jsonl", b"\xff\xfe{\x00");
    let dataset = Dataset::read(folder.0.path()).unwrap();
    assert_eq!(dataset.len(), 1);
    let found = rejects(&dataset);
    assert_eq!(found.iter().map(|reject| reject.0).collect::<Vec<_>>(), [0, 0, 0]);
    assert!(
        found[0].1.contains("cut off")
            && found[1].1.contains("\"prompt\" twice")
            && found[2].1.contains("UTF-16"),
        "{found:?}"
    );
    let files = dataset.rejected().column("file").unwrap().str().unwrap().clone();
    assert!(files.get(0).unwrap().ends_with("b.parquet"));
}

#[test]
fn shapes_with_columns_of_their_own() {
    let folder = Folder::new();
    let chat = r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}
{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"},{"role":"assistant","content":"d"}]}
{"messages":[{"role":"user","content":"no answer"}]}
"#;
    let dataset = Dataset::read(folder.write("a.jsonl", chat)).unwrap();
    assert_eq!(
        dataset.rows(),
        [Row::new("a", "b"), Row::new("User: a\n\nAssistant: b\n\nUser: c", "d")]
    );
    let system = dataset.frame().column("system").unwrap().str().unwrap().clone();
    assert_eq!(system.get(0), Some("Be brief."));
    assert_eq!(dataset.frame().column("turns").unwrap().i64().unwrap().get(1), Some(4));
    assert_eq!(rejects(&dataset)[0].0, 3);
    assert!(dataset.to_string().contains("read as messages (role/content)"));

    // The same conversations as lists of structs in Parquet.
    let json = folder.write("b.json", format!("[{}]", chat.trim().replace('\n', ",")));
    let mut frame = JsonReader::new(std::fs::File::open(&json).unwrap()).finish().unwrap();
    let parquet = folder.path("c.parquet");
    ParquetWriter::new(std::fs::File::create(&parquet).unwrap()).finish(&mut frame).unwrap();
    assert_eq!(Dataset::read(&parquet).unwrap().rows(), dataset.rows());

    // A file of an unknown shape names the known ones.
    let error =
        Dataset::read(folder.write("d.jsonl", "{\"body\":\"x\"}\n")).unwrap_err().to_string();
    assert!(
        error.contains("Known shapes: prompt/completion") && error.contains("Dataset::read_keys("),
        "{error}"
    );
    for (name, text) in [
        ("f.csv", "Titel;Antwort\na;b\n"),
        ("g.tsv", "Titel\tAntwort\na\tb\n"),
        ("h.csv", "body\na\n"),
    ] {
        let error = Dataset::read(folder.write(name, text)).unwrap_err().to_string();
        assert!(
            error.contains("Known shapes: prompt/completion")
                && error.contains("Dataset::read_keys("),
            "{error}"
        );
    }
    for header in ["Question,Answer", " PROMPT , Completion ", "\"Prompt\",\"Response\""] {
        let text = format!("{header}\na,b\n{header}\nc,d\n");
        let dataset = Dataset::read(folder.write("i.csv", text)).unwrap();
        assert_eq!(dataset.rows(), [Row::new("a", "b"), Row::new("c", "d")], "{header}");
        assert!(rejects(&dataset)[0].1.contains("the header again"));
    }
    // A text and its class are read as a plain text, and what reads them as a pair is said.
    let path = folder.write("j.csv", "Text,Label\nhi,greeting\n");
    let hint = r#"`Dataset::read_keys(path, "text", "Label")`"#;
    let plain = Dataset::read(&path).unwrap();
    assert!(plain.to_string().contains(hint), "{plain}");
    let pairs = Dataset::read_keys(&path, "text", "Label").unwrap();
    assert_eq!(pairs.rows(), [Row::new("hi", "greeting")]);
    assert!(!pairs.to_string().contains("read_keys"), "{pairs}");
    let numbers = folder.write("k.jsonl", "{\"text\":\"hi\",\"label\":3}\n");
    let plain = Dataset::read(&numbers).unwrap().to_string();
    assert!(plain.contains(r#"template("{text}", "{label}")"#), "{plain}");
    let options = ReadOptions::default().template("{text}", "{label}");
    assert_eq!(Dataset::read_with(&numbers, &options).unwrap().rows(), [Row::new("hi", "3")]);
    let labels = Dataset::read_keys(
        folder.write("e.csv", "text,category\nhi,greeting\n"),
        "text",
        "category",
    )
    .unwrap();
    assert_eq!(labels.rows(), [Row::new("hi", "greeting")]);
    assert!(Dataset::read_with(&parquet, &ReadOptions::default().template("{a", "b")).is_err());
}

#[test]
fn text_files_of_another_shape_are_refused() {
    let folder = Folder::new();
    let path = folder.write("a.txt", "hello");
    let options = ReadOptions::default().shape(RowShape::Alpaca);
    let error = Dataset::read_with(&path, &options).unwrap_err();
    assert!(matches!(error, DataError::TextFiles { .. }), "{error:?}");
    assert!(error.to_string().contains("the shape Alpaca"), "{error}");
    let options = ReadOptions::default().template("Go on", "{text}");
    assert_eq!(Dataset::read_with(&path, &options).unwrap().rows(), [Row::new("Go on", "hello")]);
}

#[test]
fn damaged_csv_rows_are_kept_aside_with_their_lines() {
    let folder = Folder::new();
    let mut csv = b"prompt,completion,score\n".to_vec();
    csv.extend(b"good one,1,5\n"); // 2
    csv.extend(b"ragged,1\n"); // 3
    csv.extend(b"too,many,4,5\n"); // 4
    csv.extend(b"\"unbalanced,1,2\n"); // 5
    csv.extend(b"good two,2,many\n"); // 6: another type in the column
    csv.extend(b"caf\xe9,1,2\n"); // 7
    csv.extend(b"nu\0ll,1,2\n"); // 8
    csv.extend(b",missing,2\n"); // 9
    csv.extend(b"\"good\nthree\",3,7\n"); // 10, 11
    csv.extend(b"last\",1\"x,3\n"); // 12: quotes within plain fields stand for themselves
    let dataset = Dataset::read(folder.write("a.csv", csv)).unwrap();
    assert_eq!(dataset.prompts(), ["good one", "good two", "good\nthree", "last\""]);
    let found = rejects(&dataset);
    assert_eq!(found.iter().map(|reject| reject.0).collect::<Vec<_>>(), [3, 4, 5, 7, 8, 9]);
    let text: Vec<&str> = found.iter().map(|reject| reject.1.as_str()).collect();
    assert_eq!(
        text,
        [
            "expected 3 fields, as in the header, found 2",
            "expected 3 fields, as in the header, found 4",
            "expected a delimiter after a closing quote, found other text: quotes without a partner",
            "expected UTF-8 in \"prompt\", found the byte 0xE9",
            "expected text in \"prompt\", found a null byte",
            "expected text in \"prompt\", found null",
        ]
    );
    let scores = dataset.frame().column("score").unwrap().str().unwrap().clone();
    assert_eq!(scores.iter().collect::<Vec<_>>(), [Some("5"), Some("many"), Some("7"), Some("3")]);
}

#[test]
fn damaged_json_lines_are_kept_aside_with_their_lines() {
    let folder = Folder::new();
    let good = "{\"prompt\":\"a\",\"completion\":\"b\"}\n";
    let mut text = good.as_bytes().to_vec();
    text.extend(b"{\"prompt\":\"a\",\"prompt\":\"c\",\"completion\":\"b\"}\n"); // duplicate key
    text.extend(b"{\"prompt\":\"a\0\",\"completion\":\"b\"}\n"); // null byte
    text.extend(b"{\"prompt\":\"unbalanced,\"completion\":\"b\"}\n");
    text.extend(b"{\"prompt\":3,\"completion\":\"b\"}\n"); // mixed types
    text.extend(b"{\"prompt\":\"caf\xe9\",\"completion\":\"b\"}\n"); // wrong encoding
    text.extend(good.as_bytes());
    let dataset = Dataset::read(folder.write("a.jsonl", text)).unwrap();
    assert_eq!(dataset.len(), 2);
    assert_eq!(
        rejects(&dataset).iter().map(|reject| reject.0).collect::<Vec<_>>(),
        [2, 3, 4, 5, 6]
    );
}

#[test]
fn a_line_of_100_mb_is_a_row_like_any_other() {
    let folder = Folder::new();
    let good = "{\"prompt\":\"a\",\"completion\":\"b\"}\n";
    let path = folder.path("a.jsonl");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(good.as_bytes()).unwrap();
    file.write_all(b"{\"prompt\":\"").unwrap();
    let filler = vec![b'x'; 1 << 20];
    (0..100).for_each(|_| file.write_all(&filler).unwrap());
    file.write_all(b"\",\"completion\":\"b\"}\n").unwrap();
    file.write_all(good.as_bytes()).unwrap();
    drop(file);
    let dataset = Dataset::read(&path).unwrap();
    assert_eq!((dataset.len(), dataset.row(1).unwrap().prompt.len()), (3, 100 << 20));
}

#[test]
fn a_decompression_bomb_is_refused_and_a_torn_archive_keeps_its_rows() {
    let folder = Folder::new();
    // 600 MB of zeros in 600 kB.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(9));
    let zeros = vec![0u8; 1 << 20];
    (0..600).for_each(|_| encoder.write_all(&zeros).unwrap());
    let bomb = folder.write("bomb.jsonl.gz", encoder.finish().unwrap());
    let error = Dataset::read(&bomb).unwrap_err().to_string();
    assert!(error.contains("a decompression bomb") && error.contains("bomb.jsonl.gz"), "{error}");

    let rows: String = (0..20_000)
        .map(|n| format!("{{\"prompt\":\"p{}\",\"completion\":\"c{n}\"}}\n", n * 7919))
        .collect();
    for (name, bytes) in
        [("torn.jsonl.gz", gz(rows.as_bytes())), ("torn.jsonl.zst", zst(rows.as_bytes()))]
    {
        let torn = folder.write(name, &bytes[..bytes.len() / 2]);
        let dataset = Dataset::read(&torn).unwrap();
        assert!(dataset.len() > 1000, "{}", dataset.len());
        assert_eq!(dataset.row(0).unwrap(), Row::new("p0", "c0"));
        let last = rejects(&dataset).pop().unwrap();
        assert!(
            last.1.contains("damaged or cut off") && last.0 as usize > dataset.len(),
            "{last:?}"
        );
    }
}

#[test]
fn what_is_written_is_read_back() {
    let folder = Folder::new();
    let dataset = Dataset::read(folder.write("a.jsonl", JSONL)).unwrap();
    let (jsonl, parquet) = (folder.path("out.jsonl"), folder.path("out.parquet"));
    assert_eq!(
        (dataset.write_jsonl(&jsonl).unwrap(), dataset.write_parquet(&parquet).unwrap()),
        (2, 2)
    );
    assert!(Dataset::read(&jsonl).unwrap().frame().equals_missing(&dataset.frame()));
    assert!(Dataset::read(&parquet).unwrap().frame().equals_missing(&dataset.frame()));
}

fn chat(folder: &Folder, rows: usize) -> Dataset {
    let lines: String = (0..rows)
        .map(|n| {
            format!(
                "{{\"prompt\":\"p{n}\",\"completion\":\"c\",\"system\":{}}}\n",
                if n == 0 { "\"Be brief.\"" } else { "null" }
            )
        })
        .collect();
    Dataset::read(folder.write("chat-in.jsonl", lines)).unwrap()
}

#[test]
fn openai_s_format_is_written_and_checked() {
    let folder = Folder::new();
    let path = folder.path("chat.jsonl");
    let dataset = chat(&folder, 12);
    assert_eq!(dataset.write_openai_chat(&path).unwrap(), 12);
    assert_eq!(validate_openai_chat(&path).unwrap(), []);
    let first = std::fs::read_to_string(&path).unwrap().lines().next().unwrap().to_owned();
    assert_eq!(
        first,
        r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"p0"},{"role":"assistant","content":"c"}]}"#
    );
    assert_eq!(Dataset::read(&path).unwrap().rows(), dataset.rows());

    let error =
        chat(&folder, 9).write_openai_chat(folder.path("few.jsonl")).unwrap_err().to_string();
    assert!(error.contains("at least 10 examples, found 9"), "{error}");
    assert!(!folder.path("few.jsonl").exists());
}

/// A conversation keeps its turns: cleaned as the texts are, written for OpenAI, and read back.
#[test]
fn a_conversation_of_several_turns_stays_one() {
    let folder = Folder::new();
    let turns = |n: usize, p: &str| {
        serde_json::json!({"messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": format!("{p}Question &amp; {n}")},
            {"role": "assistant", "content": format!("Answer  {n}")},
            {"role": "user", "content": "Assistant: was that all?"},
            {"role": "assistant", "content": format!("<b>Yes</b>, {n}.")},
        ]})
        .to_string()
    };
    let lines: Vec<String> =
        (0..12).map(|n| turns(n, if n == 0 { "<b></b>" } else { "" })).collect();
    let raw = Dataset::read(folder.write("a.jsonl", lines.join("\n"))).unwrap();
    let clean = raw.clean(&tunebook_data::Cleaning::standard()).unwrap();
    assert_eq!(clean.len(), 12);
    let Some(TrainingText::Conversation(turns)) = clean.conversation(0) else {
        panic!("{:?}", clean.conversation(0))
    };
    let said: Vec<&str> = turns.iter().map(|turn| turn.content.as_str()).collect();
    assert_eq!(
        said,
        ["Be brief.", "Question & 0", "Answer 0", "Assistant: was that all?", "Yes, 0."]
    );
    assert_eq!(said[4], clean.row(0).unwrap().completion);
    assert_eq!(clean.clean(&tunebook_data::Cleaning::standard()).unwrap().rows(), clean.rows());
    let out = folder.path("out.jsonl");
    clean.write_openai_chat(&out).unwrap();
    let again = Dataset::read(&out).unwrap();
    assert_eq!(again.rows(), clean.rows());
    assert_eq!(again.conversation(11), clean.conversation(11));
    let system = again.frame().column("system").unwrap().str().unwrap().get(0).unwrap().to_owned();
    assert_eq!(system, "Be brief.");
}

#[test]
fn every_published_rule_is_checked() {
    let folder = Folder::new();
    let good = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","weight":1}]}"#;
    let cases = [
        ("not json", "expected a JSON object"),
        (r#"{"prompt":"a","completion":"b"}"#, "expected only the keys"),
        (r#"{"messages":[]}"#, "expected a list \"messages\""),
        (
            r#"{"messages":[{"role":"user","content":"a"}]}"#,
            "expected the last message to be the assistant's",
        ),
        (
            r#"{"messages":[{"role":"assistant","content":"a"}]}"#,
            "of the role \"user\", found none",
        ),
        (
            r#"{"messages":[{"role":"human","content":"a"},{"role":"assistant","content":"b"}]}"#,
            "messages[0]: expected a role",
        ),
        (
            r#"{"messages":[{"role":"user","content":""},{"role":"assistant","content":"b"}]}"#,
            "that is not empty",
        ),
        (
            r#"{"messages":[{"role":"user","content":7},{"role":"assistant","content":"b"}]}"#,
            "expected a text \"content\"",
        ),
        (
            r#"{"messages":[{"role":"user","content":"a","from":"x"},{"role":"assistant","content":"b"}]}"#,
            "\"from\" is no key",
        ),
        (
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","weight":2}]}"#,
            "expected a weight of 0 or 1",
        ),
        (
            r#"{"messages":[{"role":"user","content":"a","weight":1},{"role":"assistant","content":"b"}]}"#,
            "only the assistant's",
        ),
    ];
    let mut lines = vec![good; 10];
    lines.extend(cases.iter().map(|case| case.0));
    let path = folder.write("a.jsonl", lines.join("\n"));
    let problems = validate_openai_chat(&path).unwrap();
    assert_eq!(
        problems.iter().map(|problem| problem.line).collect::<Vec<_>>(),
        (11..=21).collect::<Vec<_>>()
    );
    for (problem, (line, says)) in problems.iter().zip(cases) {
        assert!(problem.problem.contains(says), "{line}: {}", problem.problem);
    }
    assert!(validate_openai_chat(Path::new("/nowhere")).is_err());
}

#[test]
fn a_text_of_which_a_part_is_missing_is_no_row() {
    let folder = tempfile::tempdir().unwrap();
    let text: String =
        (0..20_000u32).map(|n| format!("{}\n", n.wrapping_mul(2_654_435_761))).collect();
    let whole = gz(text.as_bytes());
    std::fs::write(folder.path().join("a.txt"), "whole").unwrap();
    std::fs::write(folder.path().join("b.txt.gz"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(folder.path().join("c.txt.gz"), &whole).unwrap();
    let set = Dataset::read(folder.path()).unwrap();
    assert_eq!(set.completions(), ["whole", text.as_str()]);
    let reasons = set.rejected().column("reason").unwrap().clone();
    assert_eq!(reasons.len(), 1);
    assert!(reasons.str().unwrap().get(0).unwrap().contains("damaged or cut off"));
}

#[test]
fn the_last_row_of_a_cut_table_is_kept_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.csv.gz");
    let rows: String = (0..20_000u32)
        .map(|n| format!("p{n},answer {}\n", n.wrapping_mul(2_654_435_761)))
        .collect();
    let whole = gz(format!("prompt,completion\n{rows}").as_bytes());
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let set = Dataset::read(&path).unwrap();
    for row in set.rows() {
        let n: u32 = row.prompt[1..].parse().unwrap();
        assert_eq!(row.completion, format!("answer {}", n.wrapping_mul(2_654_435_761)));
    }
    assert!((1..=2).contains(&set.rejected().height()));
}

#[test]
fn documents_and_objects_over_several_lines() {
    let folder = tempfile::tempdir().unwrap();
    let pretty = "{\n  \"prompt\": \"a\",\n  \"completion\": \"b\"\n}\n{\n  \"prompt\": \"c\",\n  \"completion\": \"d\"\n}\n";
    for (name, text, rows) in [
        ("a.json", "{\"data\":[{\"text\":\"a\"},{\"text\":\"b\"}]}\n", 2),
        ("b.json", pretty, 2),
        ("b.jsonl", pretty, 2),
        ("c.jsonl", "{\"text\": \"a\",\n \"x\": 1}\n{\"text\": \"b\"}\n", 2),
        ("d.json", "{\"text\":\"a\"}\n{\"text\":\"b\"}\n", 2),
        // A broken first line is no object over several lines.
        ("e.jsonl", "{\"text\": \"a\",\n{\"text\": \"b\"}\n{\"text\": \"c\"}\n", 2),
        (
            "f.jsonl",
            "{\"text\": \"a\", \"score\": NaN}\n{\"text\": \"b\", \"score\": -Infinity}\n",
            2,
        ),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        assert_eq!(Dataset::read(&path).unwrap().len(), rows, "{name}");
    }
    // A first row too long to be looked at whole.
    let long = format!("{{\"text\":\"{}\"}}\n{{\"text\":\"b\"}}\n", "x".repeat(100_000));
    let path = folder.path().join("long.json");
    std::fs::write(&path, long).unwrap();
    assert_eq!(Dataset::read(&path).unwrap().len(), 2);
}
