//! One output in every form that a front end may want: the MIME bundle of Jupyter's messaging
//! protocol.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One output, keyed by MIME type. A front end shows the richest form that it knows; the plain text
/// is what remains in a terminal, a log or a diff.
///
/// ```
/// use tunebook_progress::MimeBundle;
///
/// let bundle = MimeBundle::text("2 rows").html("<table>...</table>");
/// assert_eq!(bundle.get("text/plain").and_then(|v| v.as_str()), Some("2 rows"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MimeBundle {
    /// The forms, keyed by MIME type. JSON types hold the JSON value itself, all others a string.
    pub data: Map<String, Value>,
    /// Jupyter's `metadata` of the bundle, keyed by MIME type (a picture's size, for one).
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
}

impl MimeBundle {
    /// A bundle that holds plain text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::default().with("text/plain", text.into())
    }

    /// Adds an HTML form. Every string that comes from data must have passed through
    /// [`escape_html`].
    #[must_use]
    pub fn html(self, html: impl Into<String>) -> Self {
        self.with("text/html", html.into())
    }

    /// Adds the form `mime`: a string, or a JSON value for a JSON type.
    #[must_use]
    pub fn with(mut self, mime: &str, value: impl Into<Value>) -> Self {
        self.data.insert(mime.to_owned(), value.into());
        self
    }

    /// The form `mime`, if the bundle has it.
    pub fn get(&self, mime: &str) -> Option<&Value> {
        self.data.get(mime)
    }

    /// The plain-text form, empty when there is none.
    pub fn plain(&self) -> &str {
        self.get("text/plain").and_then(Value::as_str).unwrap_or_default()
    }
}

/// Escapes text for use inside HTML elements and quoted attributes.
///
/// ```
/// assert_eq!(tunebook_progress::escape_html("<b a='1'>"), "&lt;b a=&#39;1&#39;&gt;");
/// ```
pub fn escape_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}
