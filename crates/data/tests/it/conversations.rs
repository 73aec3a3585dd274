//! The texts for training: roles, system messages, plain texts, and turns without a loss.

use tunebook_data::{Cleaning, Dataset, ReadOptions, Role, RowShape, TrainingText, Turn};

fn read(lines: &str) -> Dataset {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(&path, lines).unwrap();
    Dataset::read(&path).unwrap()
}

/// The turns as (role, content).
fn turns(text: &TrainingText) -> Vec<(&'static str, &str)> {
    match text {
        TrainingText::Conversation(turns) => {
            turns.iter().map(|turn| (turn.role.as_str(), turn.content.as_str())).collect()
        }
        TrainingText::Text(text) => panic!("a text: {text}"),
    }
}

#[test]
fn a_system_message_is_a_turn_of_its_own() {
    let chat = read(concat!(
        r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
        "\n",
        r#"{"messages":[{"role":"user","content":"c"},{"role":"assistant","content":"d"}]}"#,
        "\n",
        r#"{"messages":[{"role":"developer","content":"s"},{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"tool","content":"t"},{"role":"assistant","content":"d"},{"role":"user","content":"cut"}]}"#,
    ));
    let texts = chat.conversations();
    assert_eq!(turns(&texts[0]), [("system", "Be brief."), ("user", "a"), ("assistant", "b")]);
    assert_eq!(turns(&texts[1]), [("user", "c"), ("assistant", "d")]);
    assert_eq!(
        turns(&texts[2]),
        [("system", "s"), ("user", "a"), ("assistant", "b"), ("tool", "t"), ("assistant", "d")]
    );
    assert_eq!(chat.conversation(2).as_ref(), Some(&texts[2]));
    assert_eq!(chat.conversation(3), None);

    let pairs = read(
        "{\"prompt\":\"a\",\"completion\":\"b\",\"system\":\"s\"}\n{\"prompt\":\"c\",\"completion\":\"d\",\"system\":\" \"}\n{\"prompt\":\"\",\"completion\":\"e\",\"system\":\"s\"}",
    );
    let texts = pairs.conversations();
    assert_eq!(turns(&texts[0]), [("system", "s"), ("user", "a"), ("assistant", "b")]);
    assert_eq!(turns(&texts[1]), [("user", "c"), ("assistant", "d")]);
    assert_eq!(turns(&texts[2]), [("system", "s"), ("assistant", "e")]);
}

#[test]
fn plain_texts_are_no_answers_to_an_empty_question() {
    let text = |text: &str| TrainingText::Text(text.to_owned());
    let texts = read("{\"text\":\"one\",\"system\":\"a column\"}\n{\"text\":\"two\"}");
    assert_eq!(texts.shape(), &RowShape::Text);
    assert_eq!(texts.conversations(), [text("one"), text("two")]);
    // As well after writing and reading, and beside pairs.
    assert_eq!(Dataset::from_rows(&[("", "one")]).conversations(), [text("one")]);
    let both = texts.concat(&Dataset::from_rows(&[("a", "b")])).unwrap().conversations();
    assert_eq!(both[0], text("one"));
    assert_eq!(turns(&both[2]), [("user", "a"), ("assistant", "b")]);
}

/// A wrong answer that is marked so, and the correction.
const WEIGHTS: &str = r#"{"messages":[{"role":"user","content":"Capital of Peru?"},{"role":"assistant","content":"It is  Quito.","weight":0},{"role":"user","content":"Sure?"},{"role":"assistant","content":"No: it is Lima.","weight":1}]}"#;

#[test]
fn turns_without_a_loss_are_told() {
    let losses = |text: &TrainingText| match text {
        TrainingText::Conversation(turns) => turns.iter().map(Turn::bears_loss).collect(),
        TrainingText::Text(_) => vec![],
    };
    let lines = [
        WEIGHTS.to_owned(),
        WEIGHTS.replace("\"weight\":0", "\"train\":false").replace("\"weight\":1", "\"weight\":null"),
        // Of a single answer, and of the user's turn.
        r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","weight":0}]}"#.to_owned(),
        r#"{"conversations":[{"from":"human","value":"a","train":true},{"from":"gpt","value":"b"}]}"#.to_owned(),
    ];
    let dataset = read(&lines.join("\n"));
    let texts = dataset.conversations();
    let found: Vec<Vec<bool>> = texts.iter().map(losses).collect();
    assert_eq!(
        found,
        [
            vec![false, false, false, true],
            vec![false, false, false, true],
            vec![false, false],
            vec![true, true]
        ]
    );

    // Cleaning and writing keep them.
    let clean = dataset.clean(&Cleaning::standard()).unwrap();
    let TrainingText::Conversation(turns) = &clean.conversations()[0] else { panic!() };
    assert_eq!(
        turns[1],
        Turn { role: Role::Assistant, content: "It is Quito.".to_owned(), train: Some(false) }
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.jsonl");
    clean.write_jsonl(&path).unwrap();
    assert_eq!(Dataset::read(&path).unwrap().conversations(), clean.conversations());
    let twelve = read(&[WEIGHTS; 12].join("\n"));
    twelve.write_openai_chat(&path).unwrap();
    let written = std::fs::read_to_string(&path).unwrap();
    assert_eq!(written.matches("\"weight\":0").count(), 12, "{written}");
    assert_eq!(Dataset::read(&path).unwrap().conversations(), twelve.conversations());
}

#[test]
fn a_weight_that_is_neither_0_nor_1_is_kept_aside() {
    let dataset = read(&[WEIGHTS, &WEIGHTS.replace("\"weight\":0", "\"weight\":0.5")].join("\n"));
    let reason =
        dataset.rejected().column("reason").unwrap().str().unwrap().get(0).map(str::to_owned);
    assert_eq!(
        (dataset.len(), reason.as_deref()),
        (1, Some("messages[1]: expected a \"weight\" of 0 or 1, found 0.5"))
    );
}

#[test]
fn a_column_of_that_name_that_is_no_conversation_is_none() {
    let dataset = read(r#"{"prompt":"a","completion":"b","messages":"hi","turns":2}"#);
    assert_eq!(turns(&dataset.conversations()[0]), [("user", "a"), ("assistant", "b")]);
    let options = ReadOptions::default().columns("completion", "prompt");
    let swapped = Dataset::from_frame_with(dataset.frame(), &options).unwrap();
    assert_eq!(turns(&swapped.conversations()[0]), [("user", "b"), ("assistant", "a")]);
}

/// Fields that become one column of JSON do not take the conversation with them.
#[test]
fn a_conversation_beside_very_many_fields_stays_one() {
    let lines: Vec<String> = (0..80)
        .map(|n| {
            let line = WEIGHTS.replacen('{', &format!("{{\"id-{n}\":{n},"), 1);
            line.replacen('[', r#"[{"role":"system","content":"s"},"#, 1)
        })
        .collect();
    let dataset = read(&lines.join("\n"));
    assert!(dataset.frame().column("extra").is_ok() && dataset.frame().width() < 10, "{dataset}");
    let texts = dataset.conversations();
    assert_eq!((texts.len(), turns(&texts[79]).len()), (80, 5), "{:?}", texts[79]);
}

#[test]
fn texts_survive_json() {
    for text in read(WEIGHTS).conversations().into_iter().chain([TrainingText::Text("x".into())]) {
        let json = serde_json::to_string(&text).unwrap();
        assert_eq!(serde_json::from_str::<TrainingText>(&json).unwrap(), text, "{json}");
    }
}
