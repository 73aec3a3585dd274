//! Examples as tokens and labels: what is trained is what is asked.

use std::path::Path;

use tempfile::TempDir;
use tunebook_models::{Device, Message, Model};
use tunebook_tune::{Example, Trainer, TrainingArgs};

use crate::common::*;

/// The tiny Llama with another chat template; its tokens are bytes.
fn with_template(template: &str) -> (TempDir, Model) {
    with_file("chat_template.jinja", Some(template))
}

/// The tiny Llama with one file changed or taken away.
fn with_file(name: &str, content: Option<&str>) -> (TempDir, Model) {
    let folder = tempfile::tempdir().unwrap();
    for file in Path::new(&tiny_path()).read_dir().unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let path = folder.path().join(name);
    match content {
        Some(content) => std::fs::write(path, content).unwrap(),
        None => std::fs::remove_file(path).unwrap(),
    }
    let model = Model::load(folder.path(), &Device::Cpu).unwrap();
    (folder, model)
}

/// The text of an example, and the part of it that bears a loss.
fn seen(model: &Model, example: Example) -> (String, String) {
    let set = Trainer::new(model, &TrainingArgs::default()).tokenize(&[example]).unwrap();
    let row = &set.examples[0];
    let decode = |ids: Vec<u32>| model.tokenizer().decode(&ids).unwrap();
    let trained = row.labels.iter().filter_map(|label| u32::try_from(*label).ok()).collect();
    (decode(row.ids.clone()), decode(trained))
}

const REFUSES: &str = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}";

#[test]
fn a_system_message_is_trained_as_it_is_asked() {
    let messages = [Message::system("Yo."), Message::user("a"), Message::assistant("b")];
    let refuses = with_template(REFUSES);
    let accepts = with_template(&REFUSES.replace("== 'system'", "== 'none'"));
    for ((_folder, model), begins) in [(&refuses, "<u>Yo.\n\na<"), (&accepts, "<s>Yo.<")] {
        let (text, trained) = seen(model, Example::conversation(messages.to_vec()));
        let asked = model.apply_chat_template(&messages[..2], true).unwrap();
        assert!(asked.starts_with(begins), "{asked}");
        assert_eq!((text, trained), (format!("{asked}b<|im_end|>"), "b<|im_end|>".to_owned()));
    }
}

#[test]
fn a_turn_of_weight_zero_is_context() {
    let (_folder, model) = with_template(REFUSES);
    let messages = vec![
        Message::user("a"),
        Message::assistant("wrong").untrained(),
        Message::user("c"),
        Message::assistant("right"),
    ];
    let (text, trained) = seen(&model, Example::conversation(messages));
    assert_eq!(text, "<u>a<|im_end|><a>wrong<|im_end|><u>c<|im_end|><a>right<|im_end|>");
    assert_eq!(trained, "right<|im_end|>");
}

#[test]
fn a_text_is_trained_whole_and_as_it_stands() {
    let text = "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\nB.<|im_end|>\n";
    let model = tiny();
    let (found, trained) = seen(&model, Example::text(text));
    assert_eq!(found, format!("{text}<|im_end|>"));
    assert_eq!(trained, found);
}

#[test]
fn an_answer_ends_with_the_end_token_that_the_config_alone_names() {
    let (_folder, model) = with_file("tokenizer_config.json", Some(r#"{"model_max_length": 64}"#));
    assert_eq!(model.tokenizer().eos_id(), None);
    let (_, trained) = seen(&model, Example::text("prose"));
    assert!(trained.ends_with("prose<|im_end|>"), "{trained}");
    let (_folder, model) = with_template(&REFUSES.replace("<|im_end|>", "\n"));
    let (text, trained) = seen(&model, Example::new("a", "b"));
    assert_eq!((text.as_str(), trained.as_str()), ("<u>a\n<a>b\n<|im_end|>", "b\n<|im_end|>"));
    let (_folder, model) = with_file("chat_template.jinja", None);
    assert_eq!(
        seen(&model, Example::new("a ", "b")),
        ("a b<|im_end|>".to_owned(), "b<|im_end|>".to_owned())
    );
}

#[test]
fn errors_name_the_row() {
    let trainer = |model| Trainer::new(model, &TrainingArgs::default());
    let (_folder, model) = with_template(REFUSES);
    let late = Example::conversation(vec![Message::system("no"), Message::assistant("b")]);
    let error = trainer(&model).tokenize(&[Example::new("a", "b"), late]).unwrap_err().to_string();
    assert_eq!(error, "row 1 of the training set: chat template: System role not supported");
    let (_folder, model) = with_file("chat_template.jinja", None);
    let pair = [Message::user("a"), Message::assistant("b")];
    let longer = [&pair[..], &pair[..]].concat();
    let error = trainer(&model).tokenize(&[Example::conversation(longer)]).unwrap_err();
    let error = error.to_string();
    assert!(error.starts_with("row 0 of the training set: `"), "{error}");
    assert!(error.contains("has no chat template"), "{error}");
}
