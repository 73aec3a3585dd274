//! Conversations as token ids and loss masks, against transformers' `apply_chat_template` with
//! templates of published models on small tokenizers of their kinds.

use serde::Deserialize;
use tunebook_models::{ChatTemplate, ChatTokenizer, Message, TokenizedText, Tokenizer};

use crate::support::golden;

#[derive(Deserialize)]
struct Golden {
    families: Vec<Family>,
}

#[derive(Deserialize)]
struct Family {
    name: String,
    tokenizer: String,
    template: String,
    /// The same with `{% generation %}` tags, where it has none.
    twin: Option<String>,
    bos_token: Option<String>,
    eos_token: String,
    end_ids: Vec<u32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    messages: Vec<Message>,
    ids: Vec<u32>,
    mask: Vec<u8>,
    /// All but the last message, with the generation prompt.
    asked: Vec<u32>,
    asked_is_prefix: bool,
    folded: bool,
    appended: bool,
}

impl Family {
    fn tokenizer(&self) -> Tokenizer {
        let config = serde_json::json!({"bos_token": self.bos_token, "eos_token": self.eos_token});
        let path = golden(&format!("chat_templates/tokenizers/{}.json", self.tokenizer));
        Tokenizer::from_file(&path, &config).unwrap()
    }
}

fn families() -> Vec<Family> {
    let text = std::fs::read_to_string(golden("chat_templates/cases.json")).unwrap();
    serde_json::from_str::<Golden>(&text).unwrap().families
}

fn shown(tokenizer: &Tokenizer, tokenized: &TokenizedText) -> String {
    let token = |(id, trained): (&u32, &bool)| {
        let text = tokenizer.id_to_token(*id).unwrap_or_default();
        if *trained { format!("[{text}]") } else { text }
    };
    tokenized.ids.iter().zip(&tokenized.loss_mask).map(token).collect::<Vec<_>>().join(" ")
}

#[test]
fn ids_and_masks_are_those_of_transformers() {
    let families = families();
    assert!(families.len() >= 12);
    let (mut cases, mut folded, mut appended, mut begun, mut wrong) = (0, 0, 0, 0, Vec::new());
    for family in &families {
        let tokenizer = family.tokenizer();
        for source in std::iter::once(&family.template).chain(&family.twin) {
            let template = ChatTemplate::for_tokenizer(source, &tokenizer).unwrap();
            let chat =
                ChatTokenizer::new(&family.name, &tokenizer, Some(&template), &family.end_ids);
            for case in &family.cases {
                let place = format!("{} {}", family.name, case.name);
                let expected = TokenizedText {
                    ids: case.ids.clone(),
                    loss_mask: case.mask.iter().map(|bit| *bit == 1).collect(),
                };
                match chat.tokenize_conversation(&case.messages) {
                    Ok(tokenized) if tokenized == expected => {}
                    Ok(tokenized) => wrong.push(format!(
                        "{place}\n  transformers {}\n  here         {}",
                        shown(&tokenizer, &expected),
                        shown(&tokenizer, &tokenized)
                    )),
                    Err(error) => wrong.push(format!("{place}: {error}")),
                }
                let (_, question) = case.messages.split_last().unwrap();
                let asked = chat.tokenize_prompt(question).unwrap();
                assert_eq!(asked, case.asked, "{place}");
                assert_eq!(case.ids.starts_with(&asked), case.asked_is_prefix, "{place}");
                cases += 1;
                folded += usize::from(case.folded);
                appended += usize::from(case.appended);
                begun += usize::from(case.asked_is_prefix);
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {cases} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(cases >= 250 && folded >= 8 && appended >= 20 && begun * 10 >= cases * 8);
}

fn family(name: &str) -> Family {
    families().into_iter().find(|family| family.name == name).unwrap()
}

#[test]
fn without_a_template_a_question_and_its_answer_are_one_text() {
    for name in ["smollm2", "llama2", "llama3", "gemma"] {
        let family = family(name);
        let tokenizer = family.tokenizer();
        let chat = ChatTokenizer::new(name, &tokenizer, None, &family.end_ids);
        let pair = [Message::user("Where is it?\n"), Message::assistant("At the depot")];
        let tokenized = chat.tokenize_conversation(&pair).unwrap();
        let mut whole = tokenizer.encode_with_special_tokens("Where is it?\nAt the depot").unwrap();
        whole.extend(tokenizer.eos_id());
        assert_eq!(tokenized.ids, whole, "{name}");
        let asked = tokenizer.encode_with_special_tokens("Where is it?\n").unwrap();
        let first = tokenized.loss_mask.iter().position(|trained| *trained).unwrap();
        assert_eq!((first, &whole[..first]), (asked.len(), &asked[..]), "{name}");
        assert!(tokenized.loss_mask[first..].iter().all(|trained| *trained), "{name}");

        let system = [Message::system("Be brief."), pair[0].clone(), pair[1].clone()];
        let with_system = chat.tokenize_conversation(&system).unwrap();
        let text = tokenizer.decode_text(&with_system.ids).unwrap();
        assert_eq!(text, "Be brief.\n\nWhere is it?\nAt the depot", "{name}");

        let longer = [&pair[..], &pair[..]].concat();
        let error = chat.tokenize_conversation(&longer).unwrap_err().to_string();
        assert!(error.starts_with(&format!("`{name}` has no chat template")), "{error}");
    }
}

#[test]
fn texts_are_trained_as_they_stand_with_one_end_and_one_beginning() {
    for name in ["smollm2", "llama2", "llama3", "gemma"] {
        let family = family(name);
        let tokenizer = family.tokenizer();
        let template = ChatTemplate::for_tokenizer(&family.template, &tokenizer).unwrap();
        let chat = ChatTokenizer::new(name, &tokenizer, Some(&template), &family.end_ids);
        let plain = chat.tokenize_text("Once upon a time").unwrap();
        assert!(plain.loss_mask.iter().all(|trained| *trained));
        let mut expected = tokenizer.encode_with_special_tokens("Once upon a time").unwrap();
        expected.extend(tokenizer.eos_id());
        assert_eq!(plain.ids, expected, "{name}");
        // As text, these tokens are the same ones.
        let (bos, eos) = (family.bos_token.as_deref().unwrap_or_default(), &family.eos_token);
        let begins = tokenizer.encode_with_special_tokens("a").unwrap().first().copied()
            == tokenizer.bos_id();
        let written = format!("{}Once upon a time{eos}", if begins { bos } else { "" });
        assert_eq!(chat.tokenize_text(&written).unwrap().ids, expected, "{name}");
    }
}

#[test]
fn the_models_end_token_does_where_the_tokenizer_names_none() {
    let path = golden("chat_templates/tokenizers/chatml.json");
    let tokenizer = Tokenizer::from_file(&path, &serde_json::Value::Null).unwrap();
    let chat = ChatTokenizer::new("model", &tokenizer, None, &[0]);
    let pair = [Message::user("a"), Message::assistant("b")];
    let tokenized = chat.tokenize_conversation(&pair).unwrap();
    assert_eq!((tokenized.ids.last(), tokenized.loss_mask.last()), (Some(&0), Some(&true)));
    assert_eq!(chat.tokenize_text("a").unwrap().ids.last(), Some(&0));
}
