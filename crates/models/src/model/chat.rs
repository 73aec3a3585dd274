//! Text in, text out.

use crate::error::Result;
use crate::generate::{self, Completion, GenerationConfig};
use crate::model::Model;
use crate::text::conversation::Message;

/// Text in, text out.
impl Model {
    /// Continues `prompt` as it stands; no chat template is applied.
    ///
    /// # Errors
    /// When the prompt is empty or leaves no room in the context, or a setting is out of range.
    pub fn generate(&self, prompt: &str, config: &GenerationConfig) -> Result<String> {
        let answers = self.generate_batch(&[prompt.to_owned()], config)?;
        Ok(answers.into_iter().next().unwrap_or_default())
    }

    /// Continues all prompts at once, each as it stands. Stop returns what there is.
    ///
    /// # Errors
    /// As [`Model::generate`].
    pub fn generate_batch(
        &self,
        prompts: &[String],
        config: &GenerationConfig,
    ) -> Result<Vec<String>> {
        let ids = prompts
            .iter()
            .map(|p| self.tokenizer().encode_with_special_tokens(p))
            .collect::<Result<Vec<_>>>()?;
        Ok(texts(generate::generate(self, &ids, config, &mut |_, _| ())?))
    }

    /// Continues all prompts at once, token ids to token ids. The id that ends an answer is not
    /// part of it.
    ///
    /// # Errors
    /// As [`Model::generate`].
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
    /// As [`Model::generate`].
    pub fn completions(
        &self,
        prompts: &[Vec<u32>],
        config: &GenerationConfig,
    ) -> Result<Vec<Completion>> {
        generate::generate(self, prompts, config, &mut |_, _| ())
    }

    /// Answers conversations, as [`Model::completions`] does prompts.
    ///
    /// # Errors
    /// As [`Model::chat`].
    pub fn chat_completions(
        &self,
        conversations: &[Vec<Message>],
        config: &GenerationConfig,
    ) -> Result<Vec<Completion>> {
        let ids = conversations
            .iter()
            .map(|messages| self.chat_tokenizer().tokenize_prompt(messages))
            .collect::<Result<Vec<_>>>()?;
        self.completions(&ids, config)
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
    /// As [`Model::generate`]; when the model has no chat template.
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
        let ids = self.chat_tokenizer().tokenize_prompt(messages)?;
        let answers = generate::generate(self, &[ids], config, &mut |_, text| {
            if !text.is_empty() {
                on_text(text);
            }
        })?;
        Ok(answers.into_iter().next().map(|answer| answer.text).unwrap_or_default())
    }

    /// Answers many messages at once, each in a conversation of its own. Stop returns what there
    /// is.
    ///
    /// # Errors
    /// As [`Model::chat`].
    pub fn chat_batch(&self, users: &[String], config: &GenerationConfig) -> Result<Vec<String>> {
        let ids = users
            .iter()
            .map(|user| self.chat_tokenizer().tokenize_prompt(&[Message::user(user)]))
            .collect::<Result<Vec<_>>>()?;
        Ok(texts(generate::generate(self, &ids, config, &mut |_, _| ())?))
    }
}

fn texts(answers: Vec<Completion>) -> Vec<String> {
    answers.into_iter().map(|answer| answer.text).collect()
}
