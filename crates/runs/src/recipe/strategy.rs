//! The strategy of a recipe: the fields of an adapter under PEFT's names, beside its type.

use serde::de::DeserializeOwned;
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};
use tunebook_models::Model;
use tunebook_tune::{AdapterConfig, Adapters as _, Full, FullTuning as _, RunRecord, Strategy};

use super::foreign;
use super::node::{Kind, Node, NodeError, nearest, unknown};
use crate::error::{Error, Result};

/// PEFT's name of an adapter that was given none.
const DEFAULT_NAME: &str = "default";
/// The types; those of adapters are PEFT's in small letters.
const TYPES: [&str; 7] =
    ["lora", "adalora", "ia3", "prompt_tuning", "prefix_tuning", "bottleneck", FULL];
const FULL: &str = "full";

/// What a run trains. In YAML the type, the adapter's name and the fields of the configuration stand
/// together: `{type: lora, adapter_name: default, r: 8, …}`.
#[derive(Debug, Clone, PartialEq)]
pub struct StrategyRecipe {
    /// What the adapter is called on the model; empty for full fine-tuning. Default `default`.
    pub adapter_name: String,
    /// The configuration.
    pub config: Strategy,
}

impl StrategyRecipe {
    /// A strategy under the adapter's usual name.
    pub fn new(config: impl Into<Strategy>) -> Self {
        let config = config.into();
        let adapter_name = match config {
            Strategy::Adapter(_) => DEFAULT_NAME.to_owned(),
            Strategy::Full(_) => String::new(),
        };
        Self { adapter_name, config }
    }

    pub(super) fn of_run(run: &RunRecord) -> Self {
        let config = run.strategy.clone();
        let adapter_name = match config {
            Strategy::Adapter(_) => run.adapter.clone(),
            Strategy::Full(_) => String::new(),
        };
        Self { adapter_name, config }
    }

    /// Puts the adapter on a model, or unfreezes the weights.
    ///
    /// # Errors
    /// As [`Adapters::add_adapter`] and [`FullTuning::unfreeze`](tunebook_tune::FullTuning); a setting
    /// that does not go with this model has its key.
    pub fn add_to(&self, model: &Model) -> Result<()> {
        match &self.config {
            Strategy::Adapter(config) => {
                model.add_adapter_of(&self.adapter_name, (**config).clone()).map_err(setting)?;
            }
            Strategy::Full(config) => {
                model.unfreeze(config).map_err(setting)?;
            }
        }
        Ok(())
    }

    /// `lora`, `full` …: the type as the file names it.
    pub fn type_name(&self) -> String {
        match &self.config {
            Strategy::Adapter(config) => config.peft_type().to_lowercase(),
            Strategy::Full(_) => FULL.to_owned(),
        }
    }

    pub(super) fn read(mut node: Node) -> Result<Self, NodeError> {
        let line = node.line;
        let Some(type_node) = node.take("type") else {
            let found =
                node.take("peft_type").map(|_| "; `peft_type` is `type` here, in small letters");
            let all = TYPES.join(", ");
            let problem =
                format!("the key `type` is missing: one of {all}{}", found.unwrap_or_default());
            return Err(NodeError::new(problem));
        };
        let name =
            String::deserialize(&type_node).map_err(|error| error.below("type", type_node.line))?;
        let adapter_name = match node.take("adapter_name") {
            Some(name) => String::deserialize(&name)
                .map_err(|error| error.below("adapter_name", name.line))?,
            None if name == FULL => String::new(),
            None => DEFAULT_NAME.to_owned(),
        };
        // PEFT has the ways to begin and the wish for one in the same key.
        if let Some((init, line)) = text_of(&node, "init_lora_weights") {
            let problem = format!("is true or false here; how LoRA begins is `lora_init: {init}`");
            return Err(NodeError::new(problem).below("init_lora_weights", line));
        }
        if matches!(node.kind, Kind::Null) {
            node.kind = Kind::Map(Vec::new());
        }
        fn config<T: DeserializeOwned>(node: &Node) -> Result<T, NodeError> {
            T::deserialize(node)
        }
        let config: Strategy = match name.as_str() {
            "lora" => Strategy::from(AdapterConfig::Lora(config(&node)?)),
            "adalora" => Strategy::from(AdapterConfig::AdaLora(config(&node)?)),
            "ia3" => Strategy::from(AdapterConfig::Ia3(config(&node)?)),
            "prompt_tuning" => Strategy::from(AdapterConfig::PromptTuning(config(&node)?)),
            "prefix_tuning" => Strategy::from(AdapterConfig::PrefixTuning(config(&node)?)),
            "bottleneck" => Strategy::from(AdapterConfig::Bottleneck(config(&node)?)),
            FULL => Strategy::Full(config::<Full>(&node)?),
            other => {
                let error = NodeError::new(match foreign::strategy(other) {
                    Some(instead) => format!("there is no type `{other}` here; it is {instead}"),
                    None => unknown("type", other, &TYPES),
                });
                return Err(error.below("type", type_node.line));
            }
        };
        if name == FULL && !adapter_name.is_empty() {
            let problem = "full fine-tuning has no adapter, leave its name out".to_owned();
            return Err(NodeError::new(problem).below("adapter_name", line));
        }
        Ok(Self { adapter_name, config })
    }
}

/// A refusal in the words of a recipe.
fn setting(error: tunebook_tune::Error) -> Error {
    let key = |field: &str| format!("strategy.{}", field.rsplit('.').next().unwrap_or(field));
    match error {
        tunebook_tune::Error::Config { field, value, expected } => Error::RecipeKey {
            key: key(field),
            problem: format!("is {}, expected {expected}", value.replace("LoraOnly", "lora_only")),
        },
        tunebook_tune::Error::UnknownTarget { target, available, example, is_pattern } => {
            let names: Vec<&str> = available.iter().map(String::as_str).collect();
            let advice = match (is_pattern, nearest(&target, &names)) {
                (true, near) => format!(
                    "a single text is a regular expression over full paths such as `{example}`: \
                     names stand in a list, as [{}]",
                    near.or(names.first().copied()).unwrap_or("q_proj")
                ),
                (false, Some(near)) => format!("did you mean `{near}`?"),
                (false, None) => "`all-linear` is all of them".to_owned(),
            };
            Error::RecipeKey {
                key: key("target_modules"),
                problem: format!(
                    "`{target}` matches no projection of this model, which has {}; {advice}",
                    names.join(", ")
                ),
            }
        }
        other => other.into(),
    }
}

/// An entry that is a text, in small letters, and its line.
fn text_of(node: &Node, key: &str) -> Option<(String, u64)> {
    let entry = node.entry(key)?;
    match &entry.kind {
        Kind::Text(text) => Some((text.to_lowercase(), entry.line)),
        _ => None,
    }
}

impl Serialize for StrategyRecipe {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = Map::new();
        map.insert("type".to_owned(), Value::String(self.type_name()));
        let fields = match &self.config {
            Strategy::Adapter(config) => {
                map.insert("adapter_name".to_owned(), Value::String(self.adapter_name.clone()));
                serde_json::to_value(config)
            }
            Strategy::Full(config) => serde_json::to_value(config),
        };
        if let Value::Object(fields) = fields.map_err(S::Error::custom)? {
            map.extend(fields.into_iter().filter(|(key, _)| key != "peft_type"));
        }
        map.serialize(serializer)
    }
}
