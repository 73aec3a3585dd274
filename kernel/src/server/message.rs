//! Messages with JSON content.

use jupyter_protocol::messaging::{Header, UnknownMessage};
use jupyter_protocol::{JupyterMessage, JupyterMessageContent};
use jupyter_zmq_client::{self as zmq, RawMessage};
use serde_json::Value;
use zeromq::ZmqMessage;

/// Reads a message and checks its signature. The content stays JSON: front ends leave out what the
/// protocol has defaults for.
///
/// # Errors
/// When the parts, the signature or the JSON are not right.
pub(crate) fn parse(
    parts: ZmqMessage,
    key: &Option<ring::hmac::Key>,
) -> zmq::Result<JupyterMessage> {
    let raw = RawMessage::from_multipart(parts, key)?;
    let header: Header = serde_json::from_slice(&raw.jparts[0])?;
    let content = UnknownMessage {
        msg_type: header.msg_type.clone(),
        content: serde_json::from_slice(&raw.jparts[3])?,
    };
    Ok(JupyterMessage {
        zmq_identities: raw.zmq_identities,
        parent_header: serde_json::from_slice(&raw.jparts[1]).ok(),
        metadata: serde_json::from_slice(&raw.jparts[2])?,
        content: JupyterMessageContent::UnknownMessage(content),
        buffers: raw.jparts[4..].to_vec(),
        channel: None,
        header,
    })
}

/// A message of this type that answers or belongs to `parent`.
pub(crate) fn child_of(parent: &JupyterMessage, msg_type: &str, content: Value) -> JupyterMessage {
    let content = JupyterMessageContent::UnknownMessage(UnknownMessage {
        msg_type: msg_type.to_owned(),
        content,
    });
    let mut message = JupyterMessage::new(content, Some(parent));
    message.header.username = parent.header.username.clone();
    message
}

/// A message that belongs to none.
pub(crate) fn orphan(msg_type: &str, content: Value) -> JupyterMessage {
    let content = JupyterMessageContent::UnknownMessage(UnknownMessage {
        msg_type: msg_type.to_owned(),
        content,
    });
    JupyterMessage::new(content, None)
}

/// The content as JSON.
pub(crate) fn content(message: &JupyterMessage) -> Value {
    serde_json::to_value(&message.content).unwrap_or_default()
}
