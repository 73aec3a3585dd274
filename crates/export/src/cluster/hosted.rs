//! Data for a provider that trains its own models: JSON lines in the chat format that OpenAI defined
//! and others read, checked against the published rules and priced by a table of the user's own.

use serde_json::json;
use tunebook_data::Dataset;
use tunebook_models::{Device, Model};
use tunebook_runs::{Recipe, RunData, training_examples};
use tunebook_tune::{Example, TrainingArgs, tokenize_example};

use super::Temporary;
use super::error::{Error, Result};
use super::prices::Prices;
use crate::Files;

/// The files for a provider, and what they cost.
#[derive(Debug, Clone)]
pub struct HostedData {
    /// The files, by their path in the folder.
    pub files: Files,
    /// Training rows.
    pub rows: usize,
    /// Tokens of the training rows in one epoch, by the recipe's tokenizer; a provider's counts a few
    /// per cent differently.
    pub tokens: usize,
    /// Tokens of the longest row.
    pub longest: usize,
    /// How often the rows are gone through.
    pub epochs: usize,
    /// The price on each model of the table that takes the rows, the cheapest first.
    pub prices: Vec<(String, f64)>,
    /// What a provider does not do as the recipe says, and models that do not take the rows.
    pub notes: Vec<String>,
}

/// The rows of a recipe for a provider.
///
/// # Errors
/// Rows that the published rules refuse: fewer than ten, an empty text, an unknown role, no answer at
/// the end; a number of steps that is no whole number of epochs; a model or data that cannot be read.
pub fn hosted(recipe: &Recipe, prices: Option<&Prices>) -> Result<HostedData> {
    let data = recipe.data.load()?;
    let epochs = epochs(&recipe.training, data.train().len())?;
    let mut files = Files::new();
    files.insert("train.jsonl".to_owned(), chat(data.train(), "training")?);
    if let Some(validation) = data.validation().filter(|rows| !rows.is_empty()) {
        files.insert("validation.jsonl".to_owned(), chat(validation, "validation")?);
    }
    let lengths = lengths(recipe, &data)?;
    let (tokens, longest) = (lengths.iter().sum(), lengths.iter().max().copied().unwrap_or(0));
    let mut notes = vec![
        "the provider's model takes the place of the recipe's; of `training` only epochs and seed go \
         there, of `strategy` nothing"
            .to_owned(),
    ];
    notes.extend(super::unread(recipe, &data));
    let mut costs = Vec::new();
    for (name, price) in prices.into_iter().flat_map(|prices| &prices.hosted) {
        let too_long = price
            .max_example_tokens
            .map_or(0, |most| lengths.iter().filter(|length| **length > most).count());
        if too_long > 0 {
            notes.push(format!(
                "`{name}` does not take {too_long} of the rows: they are longer than its \
                 max_example_tokens"
            ));
            continue;
        }
        let cost = tokens as f64 * epochs as f64 / 1e6 * price.per_million_tokens;
        costs.push((name.clone(), cost));
    }
    costs.sort_by(|a, b| a.1.total_cmp(&b.1));
    let job = json!({
        "model": costs.first().map_or("the provider's name of a model", |(name, _)| name),
        "seed": recipe.training.seed,
        "suffix": recipe.name,
        "method": { "type": "supervised", "supervised": { "hyperparameters": { "n_epochs": epochs } } },
    });
    files.insert("job.json".to_owned(), format!("{job:#}\n").into_bytes());
    let rows = data.train().len();
    Ok(HostedData { files, rows, tokens, longest, epochs, prices: costs, notes })
}

/// How often the rows are gone through.
///
/// # Errors
/// Steps that end in the midst of an epoch.
fn epochs(args: &TrainingArgs, rows: usize) -> Result<usize> {
    let Some(max_steps) = args.max_steps else { return Ok(args.epochs) };
    let steps_per_epoch = rows.div_ceil(args.rows_per_step().max(1)).max(1);
    // Packed rows are fewer, and how many a provider does not know.
    if args.packing || !max_steps.is_multiple_of(steps_per_epoch) {
        return Err(Error::HostedSteps { max_steps, steps_per_epoch });
    }
    Ok(max_steps / steps_per_epoch)
}

/// Rows in the chat format, checked.
fn chat(rows: &Dataset, what: &str) -> Result<Vec<u8>> {
    let folder = Temporary::new()?;
    let path = folder.0.join("rows.jsonl");
    rows.write_openai_chat(&path).map_err(|error| match error {
        tunebook_data::DataError::OpenAi { count, line, problem, .. } => {
            let place = match line {
                0 => "the file".to_owned(),
                line => format!("row {line}"),
            };
            let more =
                if count > 1 { format!(" ({count} problems in all)") } else { String::new() };
            Error::Hosted { problem: format!("{place} of the {what} set: {problem}{more}") }
        }
        other => other.into(),
    })?;
    std::fs::read(&path).map_err(|source| Error::Io { path, source })
}

fn lengths(recipe: &Recipe, data: &RunData) -> Result<Vec<usize>> {
    let model: Model = recipe.model.load(&Device::Cpu)?;
    let length = |example: &Example| Ok(tokenize_example(&model, example)?.ids.len());
    training_examples(data.train()).iter().map(length).collect()
}
