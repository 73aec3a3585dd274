//! What becomes of a recipe's options in another engine: settings of its file, refusals by name, and
//! notes.

use std::fmt;

use serde_json::{Map, Value};

/// An option of a recipe that an engine has nothing for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmapped {
    /// Its name: the keys in the recipe (`training.l2_sp`), or an option of the command (`--gpus`).
    pub option: String,
    /// Its value.
    pub value: String,
    /// Why it has no place, and what to do.
    pub reason: String,
}

impl fmt::Display for Unmapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}: {}`: {}", self.option, self.value, self.reason)
    }
}

/// The settings of an engine's file, with what does not fit in.
#[derive(Debug, Default)]
pub(super) struct Mapped {
    pub(super) settings: Map<String, Value>,
    pub(super) unmapped: Vec<Unmapped>,
    pub(super) notes: Vec<String>,
    /// Whether the blocks are run again in the backward pass.
    pub(super) again: bool,
}

impl Mapped {
    pub(super) fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.settings.insert(key.to_owned(), value.into());
    }

    pub(super) fn refuse(&mut self, option: &str, value: impl fmt::Display, reason: &str) {
        let (option, value, reason) = (option.to_owned(), value.to_string(), reason.to_owned());
        self.unmapped.push(Unmapped { option, value, reason });
    }

    /// Refuses an option where it `stands` at something else than its default.
    pub(super) fn refuse_if(
        &mut self,
        stands: bool,
        option: &str,
        value: impl fmt::Display,
        reason: &str,
    ) {
        if stands {
            self.refuse(option, value, reason);
        }
    }

    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}
