//! What an adapter remembers of the base, tokenizer and chat template that it was trained with, in a file
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
use crate::record;

/// The name of the file.
pub(crate) const FILE: &str = "tunebook.json";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Fingerprint {
    /// The base's weights as they were in memory. The same base in other numbers has another one.
    #[serde(default)]
    base: Option<String>,
    tokenizer: String,
    chat_template: Option<String>,
}

impl Fingerprint {
    fn of(model: &Model) -> Result<Self> {
        Ok(Self { base: Some(record::fingerprint::base(model)?), ..Self::of_text(model)? })
    }

    /// Without the base's weights.
    fn of_text(model: &Model) -> Result<Self> {
        Ok(Self {
            base: None,
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

fn read(path: &Path) -> Result<Option<Fingerprint>> {
    if !path.exists() {
        return Ok(None);
    }
    serde_json::from_slice(&atomic::read(path)?).map(Some).map_err(|error| Error::AdapterFile {
        path: path.to_path_buf(),
        problem: format!("expected the fingerprints of tokenizer and chat template, found {error}"),
    })
}

/// Whether the file says that the adapter was trained on exactly these weights.
///
/// # Errors
/// The file is not what it should be.
pub(crate) fn is_of_base(model: &Model, folder: &Path) -> Result<bool> {
    let saved = read(&folder.join(FILE))?.and_then(|saved| saved.base);
    Ok(match saved {
        Some(saved) => saved == record::fingerprint::base(model)?,
        None => false,
    })
}

/// Compares the file with this model, if there is one.
///
/// # Errors
/// The tokenizer or the chat template is another one, or the file is not what it should be.
pub(crate) fn check(model: &Model, folder: &Path) -> Result<()> {
    let path = folder.join(FILE);
    let Some(saved) = read(&path)? else { return Ok(()) };
    let problem = |problem: String| Error::AdapterFile { path: path.clone(), problem };
    let here = Fingerprint::of_text(model)?;
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
