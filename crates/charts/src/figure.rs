//! A figure in the forms that front ends know.

use std::fmt;
use std::path::Path;

use serde_json::Value;
use tunebook_progress::{MimeBundle, escape_html};

/// A chart. Its value in a cell is shown as a picture; [`Figure::save_svg`] writes it to a file.
#[derive(Clone)]
pub struct Figure {
    title: String,
    plotly: Value,
    svg: String,
    text: String,
}

impl Figure {
    pub(crate) fn new(title: &str, plotly: Value, svg: String, text: String) -> Self {
        Self { title: title.to_owned(), plotly, svg, text }
    }

    /// The figure as plotly's JSON (`data`, `layout`, `config`).
    pub fn plotly(&self) -> &Value {
        &self.plotly
    }

    /// The figure as an SVG document.
    pub fn svg(&self) -> &str {
        &self.svg
    }

    /// What the figure says, in a line or two.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// All forms, for a front end to choose from. The HTML form holds the SVG in the page itself
    /// (as an image, which front ends show in notebooks they do not trust, too), so it needs no
    /// network and no script.
    pub fn bundle(&self) -> MimeBundle {
        let image = format!(
            "<img alt=\"{}\" style=\"max-width:100%;background:#fff\" src=\"data:image/svg+xml,{}\"/>",
            escape_html(&format!("{}. {}", self.title, self.text)),
            percent_encoded(&self.svg)
        );
        MimeBundle::text(self.text.clone())
            .html(image)
            .with("application/vnd.plotly.v1+json", self.plotly.clone())
            .with("image/svg+xml", self.svg.clone())
    }

    /// Writes the SVG form.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_svg(&self, path: impl AsRef<Path>) -> std::io::Result<()> {
        std::fs::write(path, &self.svg)
    }
}

impl fmt::Debug for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// For a data URL in a quoted attribute: what URLs and HTML give a meaning to is encoded, the rest
/// stays readable.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() * 5 / 4);
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => encoded.push(byte as char),
            b' ' | b'-' | b'_' | b'.' | b'~' | b'/' | b'=' | b',' | b':' | b';' | b'(' | b')'
            | b'!' => encoded.push(byte as char),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// The plotly layout that all charts share.
pub(crate) fn plotly_layout(title: &str, x_label: &str, y_label: &str) -> Value {
    use crate::palette::{GRID, GROUND, INK, QUIET};
    let axis = |label: &str| {
        serde_json::json!({
            "title": {"text": plotly_text(label)}, "gridcolor": GRID, "linecolor": QUIET, "zeroline": false, "color": QUIET, "automargin": true,
        })
    };
    serde_json::json!({
        "title": {"text": plotly_text(title), "x": 0.02, "xanchor": "left", "font": {"size": 16, "color": INK}},
        "xaxis": axis(x_label),
        "yaxis": axis(y_label),
        "paper_bgcolor": GROUND,
        "plot_bgcolor": GROUND,
        "font": {"family": "Helvetica, Arial, sans-serif", "size": 12, "color": INK},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "margin": {"l": 64, "r": 72, "t": 72, "b": 56},
        "height": 400,
        "autosize": true,
    })
}

/// The `config` part of a plotly figure.
pub(crate) fn plotly_config() -> Value {
    serde_json::json!({"displaylogo": false})
}

/// Plotly reads a few HTML tags in its labels, so text from data is escaped there, too.
pub(crate) fn plotly_text(text: &str) -> String {
    escape_html(text)
}
