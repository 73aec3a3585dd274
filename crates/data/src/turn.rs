//! The turns of a conversation.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The speaker of a turn, as in chat templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The system message: instructions that hold for the whole conversation. In files `system` or
    /// `developer`.
    System,
    /// The user. In files `user` or `human`.
    User,
    /// The model. In files `assistant`, `gpt`, `model`, `chatgpt`, `bing`, `bard` or, for a call as
    /// text, `function_call`.
    Assistant,
    /// The result of a tool call. In files `tool`, `function`, `observation` or `function_response`.
    Tool,
}

impl Role {
    /// The role's name in a chat template: `system`, `user`, `assistant` or `tool`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }

    /// The names that data sets have for the roles. Any other name makes a row unreadable.
    const NAMES: [(Self, &[&str]); 4] = [
        (Self::System, &["system", "developer"]),
        (Self::User, &["user", "human"]),
        (
            Self::Assistant,
            &["assistant", "gpt", "model", "chatgpt", "bing", "bard", "function_call"],
        ),
        (Self::Tool, &["tool", "function", "observation", "function_response"]),
    ];

    /// The role by one of the names that data sets have for it.
    pub(crate) fn of(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, names)| names.contains(&name)).map(|(role, _)| *role)
    }

    /// All names of roles, for a message.
    pub(crate) fn names() -> String {
        let names: Vec<&str> = Self::NAMES.iter().flat_map(|(_, names)| *names).copied().collect();
        names.join(", ")
    }

    /// The role's name in a prompt that holds several turns.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::System => "System",
            Self::User => "User",
            Self::Assistant => "Assistant",
            Self::Tool => "Tool",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// The speaker.
    pub role: Role,
    /// The text.
    pub content: String,
    /// Whether the turn bears a loss, where the file says so: `weight` 0 or 1 of a message in
    /// OpenAI's format, or `train`. See [`Turn::bears_loss`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<bool>,
}

impl Turn {
    /// A turn that the file says nothing more of.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), train: None }
    }

    /// Whether the turn bears a loss: as the file says, else if it is one of the assistant.
    pub fn bears_loss(&self) -> bool {
        self.train.unwrap_or(self.role == Role::Assistant)
    }
}

/// The flag of a message, or the reason why it cannot be used.
pub(crate) fn train_flag(message: &serde_json::Map<String, Value>) -> Result<Option<bool>, String> {
    let weight = match message.get("weight") {
        None | Some(Value::Null) => None,
        Some(weight) => match weight.as_f64() {
            Some(0.0) => Some(false),
            Some(1.0) => Some(true),
            _ => return Err(format!("expected a \"weight\" of 0 or 1, found {weight}")),
        },
    };
    match message.get("train") {
        None | Some(Value::Null) => Ok(weight),
        Some(Value::Bool(train)) if weight.is_none_or(|weight| weight == *train) => {
            Ok(Some(*train))
        }
        Some(Value::Bool(train)) => Err(format!("found the \"weight\" and \"train\": {train}")),
        Some(other) => Err(format!("expected true or false in \"train\", found {other}")),
    }
}

/// The turns as text of the column `messages`.
pub(crate) fn turns_json(turns: &[Turn]) -> String {
    let turns = turns.iter().map(|turn| {
        let mut message = serde_json::json!({"role": turn.role, "content": turn.content});
        if let Some(train) = turn.train {
            message["train"] = train.into();
        }
        message
    });
    Value::Array(turns.collect()).to_string()
}

/// The turns of [`turns_json`]; `None` for any other text.
pub(crate) fn turns_of(text: &str) -> Option<Vec<Turn>> {
    let turns: Vec<Turn> = serde_json::from_str(text).ok()?;
    (!turns.is_empty()).then_some(turns)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn turns_survive_the_column() {
        let turns = vec![
            Turn::new(Role::System, "s"),
            Turn { train: Some(true), ..Turn::new(Role::User, "\"u\"\n") },
            Turn { train: Some(false), ..Turn::new(Role::Assistant, "a") },
            Turn::new(Role::Tool, ""),
        ];
        assert_eq!(turns_of(&turns_json(&turns)).unwrap(), turns);
        for other in ["", "[]", "null", "[{\"role\":\"wizard\",\"content\":\"\"}]", "{}"] {
            assert_eq!(turns_of(other), None, "{other}");
        }
    }

    #[test]
    fn roles_have_one_name() {
        for role in [Role::System, Role::User, Role::Assistant, Role::Tool] {
            assert_eq!(Role::of(role.as_str()), Some(role));
            assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
        }
    }
}
