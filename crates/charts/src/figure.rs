//! A figure in the forms that front ends know.

use std::fmt;
use std::path::Path;

use plotly::common::{Anchor, Font, Orientation, Title};
use plotly::layout::{Axis, Legend, Margin};
use plotly::{Configuration, Layout, Trace};
use serde::Serialize;
use serde_json::Value;
use tunebook_progress::{MimeBundle, escape_html};

use crate::palette::{GRID, GROUND, INK, QUIET};
use crate::svg::{WIDTH, wrapped};

/// The room above plotly's plots, in pixels: for the title, and for buttons in a narrow page.
const TOP: usize = 52;

/// A chart. Its value in a cell is shown as a picture; [`Figure::save_svg`] writes it to a file.
#[derive(Clone)]
pub struct Figure {
    title: String,
    plotly: Value,
    svg: String,
    text: String,
    tips: Vec<Tip>,
}

/// What a pointer over a strip of the picture is told, its ends in the picture's pixels.
#[derive(Clone)]
pub(crate) struct Tip {
    pub(crate) left: f64,
    pub(crate) right: f64,
    pub(crate) text: String,
}

impl Figure {
    pub(crate) fn new(title: &str, plotly: Value, svg: String, text: String) -> Self {
        Self { title: title.to_owned(), plotly, svg, text, tips: Vec::new() }
    }

    /// With strips that tell something, from left to right.
    pub(crate) fn with_tips(self, tips: Vec<Tip>) -> Self {
        Self { tips, ..self }
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
    /// network and no script. Over it lie strips with titles where a pointer is told something.
    pub fn bundle(&self) -> MimeBundle {
        let mut html = format!(
            "<img alt=\"{}\" style=\"max-width:100%;background:#fff\" src=\"data:image/svg+xml,{}\"/>",
            escape_html(&format!("{}. {}", self.title, self.text)),
            percent_encoded(&self.svg)
        );
        if !self.tips.is_empty() {
            let share = |pixels: f64| format!("{:.2}%", 100.0 * pixels / WIDTH);
            let strip = |tip: &Tip| {
                format!(
                    "<span title=\"{}\" style=\"position:absolute;top:0;bottom:0;left:{};width:{}\"></span>",
                    escape_html(&tip.text),
                    share(tip.left),
                    share(tip.right - tip.left)
                )
            };
            let strips: String = self.tips.iter().map(strip).collect();
            html = format!(
                "<div style=\"position:relative;display:inline-block;max-width:100%\">{html}{strips}</div>"
            );
        }
        MimeBundle::text(self.text.clone())
            .html(html)
            .with("application/vnd.plotly.v1+json", self.plotly.clone())
            .with("image/svg+xml", self.svg.clone())
    }

    /// Writes the SVG form. A file of that name is replaced, at once when the new one is whole.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_svg(&self, path: impl AsRef<Path>) -> std::io::Result<()> {
        write_whole(path.as_ref(), &self.svg)
    }
}

/// Writes a text file that takes the place of one of its name at once, when it is whole.
///
/// # Errors
/// The file cannot be written; what stood there stands there still.
pub fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    tunebook_disk::write(path, text.as_bytes())
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

/// The figure in plotly's JSON: `data`, `layout` and `config`.
pub(crate) fn plotly_json(data: Vec<Box<dyn Trace>>, layout: Layout) -> Value {
    /// As [`plotly::Plot`] has it, without its animation frames and scripts.
    #[derive(Serialize)]
    struct Form {
        data: Vec<Box<dyn Trace>>,
        layout: Layout,
        config: Configuration,
    }
    let config = Configuration::new().display_logo(false);
    let mut figure = serde_json::to_value(Form { data, layout, config }).expect(
        "plotly's structs have the names of fields as keys, and JSON knows all their values",
    );
    // At the bottom, where it takes the room that it needs, in a narrow page several rows. The crate
    // has no setter for that.
    figure["layout"]["legend"]["yref"] = "container".into();
    figure
}

/// The layout that all charts share.
pub(crate) fn plotly_layout(title: &str, x_axis: Axis, y_axis: Axis) -> Layout {
    Layout::new()
        .title(plotly_title(plotly_text(title)))
        .x_axis(x_axis)
        .y_axis(y_axis)
        .paper_background_color(GROUND)
        .plot_background_color(GROUND)
        .font(Font::new().family("Helvetica, Arial, sans-serif").size(12).color(INK))
        .legend(
            Legend::new()
                .orientation(Orientation::Horizontal)
                .x(0.0)
                .y(0.0)
                .y_anchor(Anchor::Bottom),
        )
        .margin(Margin::new().left(64).right(72).top(TOP).bottom(56))
        .height(400)
        .auto_size(true)
}

/// A layout of this height with lines under its title. Plotly breaks no lines itself; these fit into
/// a narrow page.
pub(crate) fn with_subtitle(layout: Layout, title: &str, subtitle: &str, height: usize) -> Layout {
    let lines = wrapped(subtitle, 60);
    if lines.is_empty() {
        return layout;
    }
    let shown: Vec<String> = lines.iter().map(|line| plotly_text(line)).collect();
    let text = format!(
        "{}<br><span style=\"font-size:12px;color:{QUIET}\">{}</span>",
        plotly_text(title),
        shown.join("<br>")
    );
    let more = 16 * lines.len();
    layout
        .title(plotly_title(text).y_anchor(Anchor::Top).y(1.0 - 16.0 / (height + more) as f64))
        .margin(Margin::new().left(64).right(72).top(TOP + more).bottom(56))
        .height(height + more)
}

/// A title that begins at the left.
fn plotly_title(text: String) -> Title {
    Title::with_text(text).x(0.02).x_anchor(Anchor::Left).font(Font::new().size(16).color(INK))
}

/// An axis with its label.
pub(crate) fn plotly_axis(label: &str) -> Axis {
    Axis::new()
        .title(plotly_text(label))
        .grid_color(GRID)
        .line_color(QUIET)
        .zero_line(false)
        .color(QUIET)
        .auto_margin(true)
}

/// Puts the first row of the y axis on top. plotly.js has `"reversed"` for that, but the `plotly`
/// crate's [`Axis::auto_range`] takes a `bool`, so this field is set in the JSON.
pub(crate) fn first_row_on_top(figure: &mut Value) {
    figure["layout"]["yaxis"]["autorange"] = "reversed".into();
}

/// Plotly reads a few HTML tags in its labels, so text from data is escaped there, too. It knows a few
/// entities only, and would show `&quot;` as it is.
pub(crate) fn plotly_text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
