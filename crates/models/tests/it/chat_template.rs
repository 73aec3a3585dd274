//! Rendered conversations against transformers' `apply_chat_template`.

use serde::Deserialize;
use tunebook_models::{ChatTemplate, Message, Model};
use tunebook_testing::Python;

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
    let model = Model::load(default_file(), &tunebook_models::Device::Cpu).unwrap();
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

/// A conversation under a template of the peers' environment.
#[derive(Deserialize)]
struct Rendered {
    name: String,
    source: String,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    text: Option<String>,
    error: Option<String>,
    /// The assistant's words, where the template or TRL's variant for training marks them.
    said: Option<Vec<String>>,
}

/// The templates of real models that TRL carries, against `transformers`' own renderer. They are
/// not copied here: where there is no environment with them (`TUNEBOOK_PEERS`), the test says so.
#[test]
fn real_models_templates_render_as_in_transformers() {
    let Some(python) = Python::peers("trl, transformers") else { return };
    let mut equal = std::collections::BTreeSet::new();
    let mut different = Vec::new();
    let (mut marked, mut found, mut equal_turns) = (0, 0, 0);
    for line in python.run("chat_templates.py", &[] as &[&str]).lines() {
        let case: Rendered = serde_json::from_str(line).unwrap();
        let template = ChatTemplate::with_tokens(
            &case.source,
            Some("<s>"),
            Some("</s>"),
            Some("<pad>"),
            Some("<unk>"),
        )
        .unwrap();
        let ours = template.render(&case.messages, case.add_generation_prompt);
        if let Some(theirs) = &case.said {
            let pieces = template.render_turns(&case.messages).unwrap();
            let whole: String = pieces.iter().map(|(text, _)| text.as_str()).collect();
            assert_eq!(Some(&whole), case.text.as_ref(), "{}", case.name);
            let ours: Vec<&str> = pieces
                .iter()
                .filter(|(_, trained)| *trained)
                .map(|(text, _)| text.as_str())
                .collect();
            let place = format!("{}: {:?}\n{theirs:?}\n{ours:?}", case.name, case.messages);
            if case.name.ends_with("_training") {
                assert_eq!(ours.concat(), theirs.concat(), "{place}");
                marked += usize::from(!ours.is_empty());
            } else {
                // Without tags a turn begins after what is asked; some of TRL's begin a little
                // earlier, within the generation prompt.
                assert_eq!(ours.len(), theirs.len(), "{place}");
                for (ours, theirs) in ours.iter().zip(theirs) {
                    // gpt-oss ends earlier turns with another token than the last.
                    let ends = theirs.ends_with(ours) || case.name == "gptoss";
                    assert!(ends && theirs.contains(ours) && !ours.trim().is_empty(), "{place}");
                    found += 1;
                    equal_turns += usize::from(ours == theirs);
                }
            }
        }
        match (&case.text, ours) {
            (Some(text), Ok(ours)) if *text == ours => drop(equal.insert(case.name)),
            // Both refuse the conversation.
            (None, Err(_)) => {}
            (text, ours) => different.push(format!(
                "{}: {:?}\n  theirs {:?} {:?}\n  ours   {ours:?}",
                case.name, case.messages, text, case.error
            )),
        }
    }
    let names: Vec<&String> = equal
        .iter()
        .filter(|name| !different.iter().any(|text| text.starts_with(&format!("{name}:"))))
        .collect();
    eprintln!("{} templates render byte for byte as in transformers: {names:?}", names.len());
    assert!(
        different.is_empty(),
        "{} differ:\n{}",
        different.len(),
        different[..different.len().min(5)].join("\n")
    );
    assert!(names.len() >= 12, "{names:?}");
    eprintln!("{marked} conversations have the words that tags mark");
    eprintln!(
        "{found} turns found without tags, {equal_turns} of them as in TRL's templates with tags"
    );
    assert!(marked >= 80 && found >= 100 && equal_turns >= 70);
}
