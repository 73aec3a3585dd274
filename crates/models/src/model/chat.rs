//! Text in, text out.

use crate::error::{Error, Result};
use crate::generate::{self, Completion, GenerationConfig};
use crate::model::Model;
use crate::text::conversation::Message;

/// Text in, text out.
impl Model {
    /// Continues `prompt` as it stands; no chat template is applied.
    ///
    /// # Errors
    /// When the prompt is empty or leaves no room in the context, or a setting is out of range;
    /// when several answers are asked for (`num_return_sequences`), which [`Model::completions`]
    /// returns.
    pub fn generate(&self, prompt: &str, config: &GenerationConfig) -> Result<String> {
        let one = "1, as `generate` returns one answer; `completions` returns all of them";
        generate::check_one_answer(config, one)?;
        let ids = self.tokenizer().encode_with_special_tokens(prompt)?;
        Ok(first(generate::generate(self, &[ids], None, config, &mut |_, _| ())?))
    }

    /// Continues all prompts at once, each as it stands. Stop returns what there is. Gives
    /// `num_return_sequences` answers to each prompt, in the order of the prompts.
    ///
    /// # Errors
    /// When a prompt is empty or leaves no room in the context, by its place; when a setting is out
    /// of range; another number of prompts than adapter names of this handle.
    pub fn generate_batch(
        &self,
        prompts: &[String],
        config: &GenerationConfig,
    ) -> Result<Vec<String>> {
        let ids =
            each("prompts", prompts, |prompt| self.tokenizer().encode_with_special_tokens(prompt))?;
        Ok(texts(generate::generate(self, &ids, Some("prompts"), config, &mut |_, _| ())?))
    }

    /// Continues all prompts at once, token ids to token ids. The id that ends an answer is not
    /// part of it.
    ///
    /// # Errors
    /// As [`Model::generate_batch`].
    pub fn generate_ids(
        &self,
        prompts: &[Vec<u32>],
        config: &GenerationConfig,
    ) -> Result<Vec<Vec<u32>>> {
        let answers = self.completions(prompts, config)?;
        Ok(answers.into_iter().map(|answer| answer.ids).collect())
    }

    /// Continues all prompts at once, with all that is known of the answers: why each ended, what it
    /// has cost, and how likely the model found its tokens. `num_return_sequences` answers to each
    /// prompt, in the order of the prompts.
    ///
    /// # Errors
    /// As [`Model::generate_batch`].
    pub fn completions(
        &self,
        prompts: &[Vec<u32>],
        config: &GenerationConfig,
    ) -> Result<Vec<Completion>> {
        generate::generate(self, prompts, Some("prompts"), config, &mut |_, _| ())
    }

    /// Answers conversations, as [`Model::completions`] does prompts.
    ///
    /// # Errors
    /// As [`Model::chat_batch`].
    pub fn chat_completions(
        &self,
        conversations: &[Vec<Message>],
        config: &GenerationConfig,
    ) -> Result<Vec<Completion>> {
        let list = "conversations";
        let ids =
            each(list, conversations, |messages| self.chat_tokenizer().tokenize_prompt(messages))?;
        generate::generate(self, &ids, Some(list), config, &mut |_, _| ())
    }

    /// The text of a conversation. With `add_generation_prompt` it ends where the assistant's
    /// answer begins. A system message whose role the template refuses stands before the first
    /// user's, as it does in training.
    ///
    /// # Errors
    /// When the model has no chat template or the template refuses the conversation.
    pub fn apply_chat_template(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String> {
        self.chat_tokenizer().render(messages, add_generation_prompt)
    }

    /// Answers one message of a user, showing the text as it comes. The answer is also returned.
    ///
    /// # Errors
    /// When the model has no chat template or the template refuses the conversation; when it leaves
    /// no room in the context; when a setting is out of range or asks for several answers
    /// (`num_return_sequences`), which [`Model::chat_completions`] returns.
    pub fn chat(&self, user: &str) -> Result<String> {
        self.chat_with(&[Message::user(user)], &GenerationConfig::default())
    }

    /// Answers a conversation, showing the text as it comes. The answer is also returned.
    ///
    /// # Errors
    /// As [`Model::chat`].
    pub fn chat_with(&self, messages: &[Message], config: &GenerationConfig) -> Result<String> {
        let answer = self.chat_to(messages, config, &mut |text| tunebook_progress::stream(text))?;
        tunebook_progress::stream("\n");
        Ok(answer)
    }

    /// Answers a conversation, handing each piece of the text to `on_text` as it comes.
    ///
    /// # Errors
    /// As [`Model::chat`].
    pub fn chat_to(
        &self,
        messages: &[Message],
        config: &GenerationConfig,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<String> {
        let one = "1, as `chat_with` and `chat_to` give one answer; `chat_completions` returns all";
        generate::check_one_answer(config, one)?;
        let ids = self.chat_tokenizer().tokenize_prompt(messages)?;
        let answers = generate::generate(self, &[ids], None, config, &mut |_, text| {
            if !text.is_empty() {
                on_text(text);
            }
        })?;
        Ok(first(answers))
    }

    /// Answers many messages at once, each in a conversation of its own. Stop returns what there
    /// is. Gives `num_return_sequences` answers to each message, in the order of the messages.
    ///
    /// # Errors
    /// When the model has no chat template; when a message leaves no room in the context, by its
    /// place; when a setting is out of range; another number of messages than adapter names of this
    /// handle.
    pub fn chat_batch(&self, users: &[String], config: &GenerationConfig) -> Result<Vec<String>> {
        let ids = each("users", users, |user| {
            self.chat_tokenizer().tokenize_prompt(&[Message::user(user)])
        })?;
        Ok(texts(generate::generate(self, &ids, Some("users"), config, &mut |_, _| ())?))
    }
}

/// The token ids of each item of a list. What a model lacks as a whole is said of no item.
fn each<T>(
    list: &'static str,
    items: &[T],
    ids: impl Fn(&T) -> Result<Vec<u32>>,
) -> Result<Vec<Vec<u32>>> {
    let one = |(index, item)| match ids(item) {
        Err(error @ Error::NoChatTemplate { .. }) => Err(error),
        other => other.map_err(Error::of_item(list, index)),
    };
    items.iter().enumerate().map(one).collect()
}

fn first(answers: Vec<Completion>) -> String {
    answers.into_iter().next().map(|answer| answer.text).unwrap_or_default()
}

fn texts(answers: Vec<Completion>) -> Vec<String> {
    answers.into_iter().map(|answer| answer.text).collect()
}
