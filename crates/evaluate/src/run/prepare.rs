//! From examples to token ids.

use rayon::prelude::*;
use tunebook_models::{Choices, Message, Model, TokenizedText};
use xxhash_rust::xxh3::Xxh3;

use crate::run::args::EvaluationArgs;
use crate::run::example::{EvalExample, EvalPrompt};
use crate::{Error, Result};

/// What one row asks of a model.
#[derive(Default)]
pub(crate) struct Prepared {
    /// The prompt that is continued; `None`: nothing is asked.
    pub(crate) prompt: Option<Vec<u32>>,
    /// Prompt and first reference.
    pub(crate) reference: Option<TokenizedText>,
    /// The answers to choose from.
    pub(crate) choices: Option<Choices>,
    /// Why the row cannot be judged.
    pub(crate) left_out: Option<String>,
}

/// Every row, in order. `numbers` are those that the rows have for whoever gave them.
///
/// # Errors
/// With the row's number: what its tokens cannot be made of. Rows whose references are none of the
/// answers to choose from.
pub(crate) fn prepare(
    model: &Model,
    examples: &[EvalExample],
    numbers: &[usize],
    args: &EvaluationArgs,
) -> Result<Vec<Prepared>> {
    check_references(examples, numbers, args)?;
    let shots = Shots::of(&args.few_shot)?;
    check_shots(examples, numbers, &args.few_shot)?;
    let row = |(example, number): (&EvalExample, &usize)| {
        prepare_row(model, example, &shots, args)
            .map_err(|error| Error::Row { row: *number, problem: error.to_string() })
    };
    examples.par_iter().zip(numbers).map(row).collect()
}

/// The answers that a row's is chosen from, and where they stand.
fn answers<'a>(example: &'a EvalExample, args: &'a EvaluationArgs) -> (&'static str, &'a [String]) {
    match example.choices.is_empty() {
        true => ("`EvaluationArgs.labels`", &args.labels),
        false => ("their `EvalExample.choices`", &example.choices),
    }
}

/// Refuses rows of which no reference is among the answers to choose from.
fn check_references(
    examples: &[EvalExample],
    numbers: &[usize],
    args: &EvaluationArgs,
) -> Result<()> {
    let (mut rows, mut count) = (0, 0);
    let mut first: Option<(usize, &EvalExample)> = None;
    for (example, number) in examples.iter().zip(numbers) {
        let (_, answers) = answers(example, args);
        let is_text = example.prompt == EvalPrompt::Text(String::new());
        if is_text || answers.is_empty() || example.references.is_empty() {
            continue;
        }
        rows += 1;
        if !example.references.iter().any(|reference| answers.contains(reference)) {
            count += 1;
            first.get_or_insert((*number, example));
        }
    }
    let Some((row, example)) = first else { return Ok(()) };
    let (field, answers) = answers(example, args);
    let reference = &example.references[0];
    let folded = |text: &str| text.trim().to_lowercase();
    let same = answers.iter().find(|answer| folded(answer) == folded(reference));
    let advice = match same {
        Some(answer) => format!(
            "{answer:?} is one of them and differs in upper and lower case or in blanks at the \
             ends alone: write both alike"
        ),
        None => {
            let shown: Vec<String> =
                answers.iter().take(4).map(|answer| format!("{answer:?}")).collect();
            let more = if answers.len() > shown.len() { " …" } else { "" };
            format!(
                "Found {}{more}; add what is missing to them, or leave these rows out",
                shown.join(", ")
            )
        }
    };
    Err(Error::NotAChoice { field, count, rows, row, reference: reference.clone(), advice })
}

/// Refuses solved examples that are judged themselves, or of another form than what is judged.
fn check_shots(examples: &[EvalExample], numbers: &[usize], shots: &[EvalExample]) -> Result<()> {
    let refuse =
        |value, expected| Err(Error::Setting { field: "EvaluationArgs.few_shot", value, expected });
    let is_text = |example: &EvalExample| matches!(example.prompt, EvalPrompt::Text(_));
    for (example, number) in examples.iter().zip(numbers).filter(|(example, _)| example.asks()) {
        for (at, shot) in shots.iter().enumerate() {
            if shot.prompt == example.prompt {
                let value = format!("example {at}, which is row {number} of what is judged");
                return refuse(value, "rows that are not judged, such as training rows");
            }
            if is_text(shot) != is_text(example) {
                let kind = |text: bool| if text { "a text" } else { "a conversation" };
                let (shot, row) = (kind(is_text(shot)), kind(is_text(example)));
                let value = format!("{shot} in example {at}, while row {number} is {row}");
                return refuse(value, "examples of the same form as the rows");
            }
        }
    }
    Ok(())
}

/// Solved examples before each prompt.
struct Shots {
    turns: Vec<Message>,
    text: String,
}

impl Shots {
    fn of(examples: &[EvalExample]) -> Result<Self> {
        let mut shots = Self { turns: Vec::new(), text: String::new() };
        for (row, example) in examples.iter().enumerate() {
            let Some(answer) = example.references.first() else {
                let problem = "an example in `EvaluationArgs.few_shot` has no answer".to_owned();
                return Err(Error::Row { row, problem });
            };
            match &example.prompt {
                EvalPrompt::Conversation(turns) => {
                    shots.turns.extend(turns.iter().filter(|turn| turn.role != "system").cloned());
                    shots.turns.push(Message::assistant(answer));
                }
                EvalPrompt::Text(text) => shots.text.push_str(&format!("{text}{answer}\n\n")),
            }
        }
        Ok(shots)
    }

    /// Turns with the solved ones before them, behind the system's.
    fn before(&self, turns: &[Message]) -> Vec<Message> {
        let systems = turns.iter().take_while(|turn| turn.role == "system").count();
        let (system, rest) = turns.split_at(systems);
        let all = system.iter().chain(&self.turns).chain(rest);
        all.map(|turn| turn.clone().untrained()).collect()
    }
}

fn prepare_row(
    model: &Model,
    example: &EvalExample,
    shots: &Shots,
    args: &EvaluationArgs,
) -> Result<Prepared> {
    let (_, answers) = answers(example, args);
    if example.choices.len() == 1 {
        return Err(Error::Setting {
            field: "EvalExample.choices",
            value: "one answer".to_owned(),
            expected: "at least two to choose from, or none",
        });
    }
    let reference = example.references.first();
    let mut prepared = Prepared::default();
    match &example.prompt {
        EvalPrompt::Conversation(turns) => {
            let turns = shots.before(turns);
            let chat = model.chat_tokenizer();
            let whole = |answer: &String| {
                let mut turns = turns.clone();
                turns.push(Message::assistant(answer));
                chat.tokenize_conversation(&turns)
            };
            prepared.reference = reference.map(whole).transpose()?;
            prepared.prompt = Some(match (&turns[..], model.chat_template()) {
                ([only], None) => model.tokenizer().encode_with_special_tokens(&only.content)?,
                _ => chat.tokenize_prompt(&turns)?,
            });
            if !answers.is_empty() {
                let texts = answers.iter().map(whole).collect::<Result<Vec<_>, _>>()?;
                prepared.choices = Some(choices(texts)?);
            }
        }
        EvalPrompt::Text(text) if text.is_empty() => {
            let reference = reference.map(|text| model.chat_tokenizer().tokenize_text(text));
            prepared.reference = reference.transpose()?;
        }
        EvalPrompt::Text(text) => {
            let text = format!("{}{text}", shots.text);
            let whole = |answer: &String| -> Result<TokenizedText> {
                let (before, after) = model.tokenize_continuation(&text, answer)?;
                let loss_mask = (0..before.len() + after.len()).map(|at| at >= before.len());
                let loss_mask = loss_mask.collect();
                Ok(TokenizedText { ids: before.into_iter().chain(after).collect(), loss_mask })
            };
            prepared.reference = reference.map(whole).transpose()?;
            prepared.prompt = Some(model.tokenizer().encode_with_special_tokens(&text)?);
            if !answers.is_empty() {
                let texts = answers.iter().map(whole).collect::<Result<Vec<_>>>()?;
                prepared.choices = Some(choices(texts)?);
            }
        }
    }
    let most = model.config().max_position_embeddings;
    let room = most.saturating_sub(model.positions_before());
    let longest = |prepared: &Prepared| {
        let choices = prepared.choices.iter().flat_map(|choices| {
            choices.answers.iter().map(|answer| choices.prompt.len() + answer.len())
        });
        let whole = prepared.reference.iter().map(|text| text.ids.len());
        let prompt = prepared.prompt.iter().map(|ids| ids.len() + 1);
        choices.chain(whole).chain(prompt).max().unwrap_or(0)
    };
    let tokens = longest(&prepared);
    if tokens > room {
        let problem = format!("{tokens} tokens, more than the context of {room}");
        return Ok(Prepared { left_out: Some(problem), ..Prepared::default() });
    }
    Ok(prepared)
}

/// Whole texts as what they begin with and the answers that follow. An answer ends with its last
/// token that bears a loss: the one that ends an answer, which tells apart two of which one begins
/// with the other.
fn choices(texts: Vec<TokenizedText>) -> Result<Choices> {
    let first = |text: &TokenizedText| text.loss_mask.iter().position(|bears| *bears);
    let last = |text: &TokenizedText| text.loss_mask.iter().rposition(|bears| *bears);
    let shared = texts.iter().map(|text| first(text).unwrap_or(text.ids.len())).min();
    let Some(shared) = shared else { return Ok(Choices::default()) };
    let prompt: Vec<u32> = texts.first().map_or(&[][..], |text| &text.ids[..shared]).to_vec();
    let mut answers = Vec::new();
    for text in &texts {
        let end = last(text).map_or(shared, |at| at + 1);
        if end <= shared || !text.ids.starts_with(&prompt) {
            return Err(Error::Setting {
                field: "labels",
                value: "texts whose prompts have different tokens".to_owned(),
                expected: "answers that the template puts behind the same prompt",
            });
        }
        answers.push(text.ids[shared..end].to_vec());
    }
    Ok(Choices { prompt, answers })
}

/// The key of a question: a hash of all that is asked.
pub(crate) fn key(parts: &[&[u8]]) -> String {
    let mut hash = Xxh3::new();
    for part in parts {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    format!("{:032x}", hash.digest128())
}

/// Ids as the bytes of a key.
pub(crate) fn bytes(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}
