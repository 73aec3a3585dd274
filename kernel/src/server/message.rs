//! Messages with JSON content.

use jupyter_protocol::messaging::UnknownMessage;
use jupyter_protocol::{JupyterMessage, JupyterMessageContent};
use serde_json::Value;

/// A message of this type that answers or belongs to `parent`.
pub(crate) fn child_of(parent: &JupyterMessage, msg_type: &str, content: Value) -> JupyterMessage {
    let content =
        JupyterMessageContent::UnknownMessage(UnknownMessage { msg_type: msg_type.to_owned(), content });
    let mut message = JupyterMessage::new(content, Some(parent));
    message.header.username = parent.header.username.clone();
    message
}

/// A message that belongs to none.
pub(crate) fn orphan(msg_type: &str, content: Value) -> JupyterMessage {
    let content =
        JupyterMessageContent::UnknownMessage(UnknownMessage { msg_type: msg_type.to_owned(), content });
    JupyterMessage::new(content, None)
}

/// The content as JSON.
pub(crate) fn content(message: &JupyterMessage) -> Value {
    serde_json::to_value(&message.content).unwrap_or_default()
}
