//! Rendered conversations against transformers' `apply_chat_template`.

use serde::Deserialize;
use tunebook_models::{ChatTemplate, Message, Model};

use crate::support::{default_file, golden};

#[derive(Deserialize)]
struct Golden {
    chats: Vec<Chat>,
}

#[derive(Deserialize)]
struct Chat {
    /// `None`: the default model's own.
    template: Option<String>,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    text: String,
}

#[test]
fn conversations_render_as_in_transformers() {
    let text = std::fs::read_to_string(golden("tokenizer/chat_template.json")).unwrap();
    let golden: Golden = serde_json::from_str(&text).unwrap();
    assert!(golden.chats.len() > 100);
    let model = Model::load(default_file().to_str().unwrap(), &tunebook_models::Device::Cpu).unwrap();
    for chat in golden.chats {
        let ours = match &chat.template {
            None => model.apply_chat_template(&chat.messages, chat.add_generation_prompt),
            Some(template) => ChatTemplate::for_tokenizer(template, model.tokenizer())
                .and_then(|template| template.render(&chat.messages, chat.add_generation_prompt)),
        };
        let ours = ours.unwrap_or_else(|e| panic!("{e}\n{:?}", chat.template));
        assert_eq!(ours, chat.text, "{:?} {:?}", chat.template, chat.messages);
    }
}
