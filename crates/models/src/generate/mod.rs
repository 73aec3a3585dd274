//! Text from a model: greedy or sampled, one prompt or many at once.
//!
//! [`GenerationEngine`] does the work; what is here gives it prompts and collects the answers. Who answers is
//! fixed when a call begins.

pub(crate) mod choices;
pub(crate) mod config;
pub(crate) mod divergence;
pub(crate) mod engine;
pub(crate) mod format;
mod prefix;
mod queue;
mod references;
mod sampler;
pub(crate) mod score;
pub(crate) mod service;
mod text_stream;
mod trie;

use std::sync::Arc;

use tunebook_progress::ProgressBar;

use crate::error::{Error, Result};
use crate::model::Model;
pub use config::GenerationConfig;
use engine::{EngineConfig, FinishReason, GenerationEngine, GenerationRequest, TokenUsage};

/// Shows text as it comes: the number of the prompt, and the next piece of its text.
pub(crate) type OnText<'a> = &'a mut dyn FnMut(usize, &str);

/// One answer to a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Its tokens, without the one that ended it.
    pub ids: Vec<u32>,
    /// Its text, without special tokens and without the stop text.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// What it has cost, in tokens.
    pub usage: TokenUsage,
    /// For each token of `ids` the natural logarithm of the probability that the model gave it,
    /// before penalty, bias and temperature.
    pub log_probabilities: Vec<f32>,
    /// For each token of `ids` the likeliest tokens, as many as `top_logprobs`, and theirs.
    pub top_logprobs: Vec<Vec<(u32, f32)>>,
}

/// The name of a list of texts, for errors; `None`: there is only one text.
pub(crate) type ListName = Option<&'static str>;

/// Refuses a configuration that asks for several answers where one is returned.
///
/// # Errors
/// More than one, with the method that returns all.
pub(crate) fn check_one_answer(config: &GenerationConfig, expected: &'static str) -> Result<()> {
    match config.num_return_sequences {
        0 | 1 => Ok(()),
        several => Err(Error::Argument {
            field: "GenerationConfig.num_return_sequences",
            value: several.to_string(),
            expected,
        }),
    }
}

/// Continues each prompt. Returns the answers in the order of the prompts, each prompt's
/// `num_return_sequences` together; a request to stop returns the answers so far.
pub(crate) fn generate(
    model: &Model,
    prompts: &[Vec<u32>],
    list: ListName,
    config: &GenerationConfig,
    on_text: OnText<'_>,
) -> Result<Vec<Completion>> {
    config.validate()?;
    let grammar = config.format.as_ref().map(|format| model.answer_grammar(format)).transpose()?;
    let snapshot = model.snapshot();
    snapshot.check_count(list.unwrap_or("prompt"), prompts.len())?;
    let mut engine = GenerationEngine::new(
        model,
        EngineConfig { max_batch_size: config.batch_size, ..EngineConfig::default() },
    );
    let empty = Completion {
        ids: Vec::new(),
        text: String::new(),
        finish_reason: FinishReason::Interrupted,
        usage: TokenUsage::default(),
        log_probabilities: Vec::new(),
        top_logprobs: Vec::new(),
    };
    let each = config.num_return_sequences;
    let mut answers = vec![empty; prompts.len() * each];
    let mut numbers = std::collections::HashMap::new();
    for (number, prompt) in prompts.iter().enumerate() {
        let request = GenerationRequest::new(prompt.as_slice(), config)
            .with_overlay(Arc::clone(snapshot.row(number)))
            .with_number(number)
            .with_grammar(grammar.clone());
        let id = engine.insert(request).map_err(|error| match list {
            Some(list) => Error::of_item(list, number)(error),
            None => error,
        })?;
        numbers.insert(id, number);
    }
    // A single answer is shown as it comes, by those who want to see it.
    let bar = (answers.len() > 1)
        .then(|| ProgressBar::new("Generating", Some(answers.len() as u64)).unit("answer"));
    let mut written = 0;
    while !engine.is_empty() {
        let mut ended = 0;
        for event in engine.step() {
            let Some(number) = numbers.get(&event.id) else { continue };
            let answer = &mut answers[number * each + event.answer];
            on_text(*number, &event.text);
            answer.text.push_str(&event.text);
            let ends = matches!(&event.finish, Some(end) if end.reason == FinishReason::Stop)
                && !config.ignore_eos
                && event.token.is_some_and(|token| model.is_end(token));
            if let Some(token) = event.token.filter(|_| !ends) {
                answer.ids.push(token);
                answer.log_probabilities.push(event.log_probability);
                answer.top_logprobs.push(event.top_logprobs);
            }
            if let Some(finish) = event.finish {
                if let (FinishReason::Failed(_) | FinishReason::Misformed(_), Some(error)) =
                    (&finish.reason, engine.take_error())
                {
                    return Err(error);
                }
                answer.finish_reason = finish.reason;
                answer.usage = finish.usage;
                ended += 1;
            }
            written += usize::from(event.token.is_some());
        }
        if let Some(bar) = &bar {
            bar.message(format!("{written} tokens"));
            bar.advance(ended);
        }
    }
    if let Some(bar) = &bar {
        bar.message("");
    }
    Ok(answers)
}
