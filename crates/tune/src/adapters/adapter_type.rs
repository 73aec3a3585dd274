//! The interface of a type of adapter, implemented by its configuration.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tunebook_models::Model;

use crate::adapters::body::Body;
use crate::adapters::target::{Choice, TargetModules};
use crate::error::Result;

/// Which of a model's biases are trained with an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// None of them.
    #[default]
    None,
    /// All of them, those of norms included.
    All,
    /// Those of the projections that the adapter sits on.
    LoraOnly,
}

/// A type of adapter: what [`AdapterConfig`](crate::AdapterConfig) asks of the configuration of each.
pub(crate) trait AdapterType {
    /// PEFT's name of the type; `BOTTLENECK` for AdapterHub's.
    fn peft_type(&self) -> &'static str;

    /// Refuses what cannot work.
    ///
    /// # Errors
    /// A field out of its range: the field, the value and the range.
    fn validate(&self) -> Result<()>;

    /// In a few words: `LoRA r=8, lora_alpha=16`.
    fn description(&self) -> String;

    /// The rows of a table about it: names and values.
    fn fields(&self) -> Vec<(&'static str, String)>;

    /// The keys and shapes of the tensors that such an adapter has on this model, before any is
    /// made.
    ///
    /// # Errors
    /// A target does not exist, or the configuration is for another model.
    fn plan(&self, model: &Model) -> Result<BTreeMap<String, Vec<usize>>>;

    /// The adapter with its initial values.
    ///
    /// # Errors
    /// As [`AdapterType::plan`]; a failing operation.
    fn build(&self, model: &Model) -> Result<Arc<dyn Body>>;

    /// Refuses a new adapter that could not learn what its configuration promises; one that a file
    /// holds may be so.
    ///
    /// # Errors
    /// A rank above the smaller side of its matrix, or a factor that leaves no unit.
    fn check_new(&self, _: &Model) -> Result<()> {
        Ok(())
    }

    /// Which of the model's own tensors are trained with it: biases, modules, and whether a tied
    /// table may be among them.
    fn own_weights(&self) -> (Bias, &[String], bool) {
        (Bias::None, &[], false)
    }

    /// The prefix of each tensor's name in PEFT's file.
    fn key_prefix(&self) -> &'static str {
        ""
    }

    /// Which modules it goes to; `None` for a type that goes to none by name.
    fn choice(&self) -> Option<Choice<'_>> {
        None
    }

    /// Its names of modules, and its numbers of blocks where it has such.
    fn choice_mut(&mut self) -> Option<ChoiceMut<'_>> {
        None
    }
}

/// The names of modules, and the numbers of blocks.
pub(crate) type ChoiceMut<'a> = (&'a mut TargetModules, Option<&'a mut Option<Vec<usize>>>);

/// The [`AdapterType::key_prefix`] of a type that sits in the model's modules.
pub(crate) const IN_MODEL: &str = "base_model.model.";
