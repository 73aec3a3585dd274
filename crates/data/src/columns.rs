//! The names of the columns that the crate gives a meaning to.

/// The name of the column with the prompts.
pub const PROMPT: &str = "prompt";
/// The name of the column with the completions.
pub const COMPLETION: &str = "completion";
/// The column with the system message of a conversation, where a file has one.
pub(crate) const SYSTEM: &str = "system";
/// The column with the number of turns of a conversation that is kept in [`MESSAGES`].
pub(crate) const TURNS: &str = "turns";
/// The column with the turns of a conversation as JSON.
pub(crate) const MESSAGES: &str = "messages";
