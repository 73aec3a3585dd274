//! What an adapter remembers of the tokenizer and chat template that it was trained with, in a file
//! of our own beside PEFT's two (which PEFT does not look at).
//!
//! The same weights under another tokenizer or template answer gibberish, or worse, almost well. So
//! an adapter that has the file is loaded only where both are the same; one without it (from PEFT)
//! is loaded as before.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tunebook_models::Model;

use crate::error::{Error, Result};
use crate::files::atomic;

/// The name of the file.
pub(crate) const FILE: &str = "tunebook.json";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Fingerprint {
    tokenizer: String,
    chat_template: Option<String>,
}

impl Fingerprint {
    fn of(model: &Model) -> Result<Self> {
        Ok(Self {
            tokenizer: model.tokenizer().fingerprint()?,
            chat_template: model.chat_template().map(|template| template.fingerprint()),
        })
    }
}

/// Writes the file of this model into an adapter's folder.
///
/// # Errors
/// It cannot be written.
pub(crate) fn write(model: &Model, folder: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(&Fingerprint::of(model)?)? + "\n";
    atomic::write_files(folder, &[(FILE, text.as_bytes())])
}

/// Compares the file with this model, if there is one.
///
/// # Errors
/// The tokenizer or the chat template is another one, or the file is not what it should be.
pub(crate) fn check(model: &Model, folder: &Path) -> Result<()> {
    let path = folder.join(FILE);
    if !path.exists() {
        return Ok(());
    }
    let problem = |problem: String| Error::AdapterFile { path: path.clone(), problem };
    let saved: Fingerprint = serde_json::from_slice(&atomic::read(&path)?).map_err(|error| {
        problem(format!("expected the fingerprints of tokenizer and chat template, found {error}"))
    })?;
    let here = Fingerprint::of(model)?;
    if saved.tokenizer != here.tokenizer {
        return Err(problem(format!(
            "the adapter was trained with another tokenizer (fingerprint {}, this model's is {}): it would read other texts than it is given. Load it on \
             the base model that it was trained on",
            saved.tokenizer, here.tokenizer
        )));
    }
    if saved.chat_template != here.chat_template {
        let shown =
            |template: &Option<String>| template.clone().unwrap_or_else(|| "none".to_owned());
        return Err(problem(format!(
            "the adapter was trained with another chat template (fingerprint {}, this model's is {}): its questions would look unlike those it has \
             learned to answer. Load it on the base model that it was trained on",
            shown(&saved.chat_template),
            shown(&here.chat_template)
        )));
    }
    Ok(())
}
