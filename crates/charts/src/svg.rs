//! A small SVG canvas. Text is escaped here and nowhere else.

use std::fmt::Write as _;

use tunebook_progress::escape_html;

use crate::axis::Axis;
use crate::palette::{GRID, GROUND, INK, QUIET};

/// The width of every picture, in pixels: a notebook's column.
pub(crate) const WIDTH: f64 = 720.0;

/// The height of a line under the title.
const SUBTITLE_LINE: f64 = 17.0;
/// The height of a row of the legend.
const LEGEND_ROW: f64 = 18.0;
/// About how many characters a line under the title has, in a narrow page, too.
pub(crate) const SUBTITLE_CHARS: usize = 96;

/// Where the picture is made smaller, its text is less so. (In an image the width is that of the
/// image.)
const NARROW: &str = "<style>@media(max-width:560px){text{font-size:15px}}</style>";

/// Where text is anchored.
#[derive(Clone, Copy)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// The plotting area of a chart.
#[derive(Clone, Copy)]
pub(crate) struct Area {
    pub left: f64,
    pub right: f64,
    pub top: f64,
    pub bottom: f64,
}

/// Grows an SVG document.
pub(crate) struct Canvas {
    body: String,
    height: f64,
    title: String,
}

impl Canvas {
    pub(crate) fn new(title: &str, height: f64) -> Self {
        let mut canvas = Self { body: String::new(), height, title: title.to_owned() };
        canvas.rect(0.0, 0.0, WIDTH, height, GROUND, 1.0);
        let shown = shortened(title, WIDTH - 32.0, 15.5);
        canvas.text(16.0, 24.0, &shown, 15.0, INK, Anchor::Start, true);
        canvas
    }

    // `write!` into a String cannot fail, so its result is not looked at below.

    pub(crate) fn rect(
        &mut self,
        x: f64,
        y: f64,
        width: f64,
        height: f64,
        fill: &str,
        opacity: f64,
    ) {
        let opacity =
            if opacity < 1.0 { format!(" fill-opacity=\"{opacity}\"") } else { String::new() };
        let _ = writeln!(
            self.body,
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{fill}\"{opacity}/>",
            px(x),
            px(y),
            px(width.max(0.0)),
            px(height.max(0.0))
        );
    }

    pub(crate) fn line(
        &mut self,
        (x1, y1): (f64, f64),
        (x2, y2): (f64, f64),
        color: &str,
        width: f64,
        dashed: bool,
    ) {
        let dash = if dashed { " stroke-dasharray=\"4 3\"" } else { "" };
        let _ = writeln!(
            self.body,
            "<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" stroke=\"{color}\" stroke-width=\"{width}\"{dash}/>",
            px(x1),
            px(y1),
            px(x2),
            px(y2)
        );
    }

    pub(crate) fn polyline(
        &mut self,
        points: &[(f64, f64)],
        color: &str,
        width: f64,
        opacity: f64,
    ) {
        self.course("", points, color, width, opacity);
    }

    /// A polyline of dashes.
    pub(crate) fn dashes(&mut self, points: &[(f64, f64)], color: &str, width: f64) {
        self.course(" stroke-dasharray=\"5 3\"", points, color, width, 0.9);
    }

    fn course(
        &mut self,
        attributes: &str,
        points: &[(f64, f64)],
        color: &str,
        width: f64,
        opacity: f64,
    ) {
        if points.len() < 2 {
            return;
        }
        let path: Vec<String> =
            points.iter().map(|(x, y)| format!("{},{}", px(*x), px(*y))).collect();
        let _ = writeln!(
            self.body,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"{width}\" stroke-opacity=\"{opacity}\" \
             stroke-linejoin=\"round\"{attributes}/>",
            path.join(" ")
        );
    }

    pub(crate) fn circle(&mut self, x: f64, y: f64, radius: f64, fill: &str, stroke: &str) {
        let _ = writeln!(
            self.body,
            "<circle cx=\"{}\" cy=\"{}\" r=\"{radius}\" fill=\"{fill}\" stroke=\"{stroke}\" stroke-width=\"2\"/>",
            px(x),
            px(y)
        );
    }

    #[expect(clippy::too_many_arguments, reason = "the attributes of one text element")]
    pub(crate) fn text(
        &mut self,
        x: f64,
        y: f64,
        text: &str,
        size: f64,
        color: &str,
        anchor: Anchor,
        bold: bool,
    ) {
        self.text_with("", (x, y), text, size, color, anchor, bold);
    }

    #[expect(clippy::too_many_arguments, reason = "the attributes of one text element")]
    fn text_with(
        &mut self,
        attributes: &str,
        (x, y): (f64, f64),
        text: &str,
        size: f64,
        color: &str,
        anchor: Anchor,
        bold: bool,
    ) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let weight = if bold { " font-weight=\"600\"" } else { "" };
        let _ = writeln!(
            self.body,
            "<text x=\"{}\" y=\"{}\" font-size=\"{size}\" fill=\"{color}\"{anchor}{weight}{attributes}>{}</text>",
            px(x),
            px(y),
            clean(text)
        );
    }

    /// A bold text over lines: a rim in the ground's colour keeps it readable.
    pub(crate) fn note(&mut self, x: f64, y: f64, text: &str, color: &str, anchor: Anchor) {
        let rim = format!(" paint-order=\"stroke\" stroke=\"{GROUND}\" stroke-width=\"4\"");
        self.text_with(&rim, (x, y), text, 12.0, color, anchor, true);
    }

    /// Lines of text under the title. Gives the pixels that they take.
    pub(crate) fn subtitle(&mut self, lines: &[String]) -> f64 {
        for (i, line) in lines.iter().enumerate() {
            let y = 43.0 + SUBTITLE_LINE * i as f64;
            self.text(16.0, y, line, 12.0, QUIET, Anchor::Start, false);
        }
        SUBTITLE_LINE * lines.len() as f64
    }

    /// The grid, the ticks and the labels of both axes.
    pub(crate) fn axes(&mut self, area: Area, x: &Axis, y: &Axis, x_label: &str, y_label: &str) {
        self.y_ticks(area, y);
        self.x_ticks(area, x, x_label);
        let middle = (area.top + area.bottom) / 2.0;
        let _ = writeln!(
            self.body,
            "<text x=\"18\" y=\"{0}\" font-size=\"12\" fill=\"{QUIET}\" text-anchor=\"middle\" transform=\"rotate(-90 18 {0})\">{1}</text>",
            px(middle),
            clean(y_label)
        );
    }

    /// The grid of y with its labels.
    pub(crate) fn y_ticks(&mut self, area: Area, y: &Axis) {
        for (value, label) in y.ticks() {
            let at = y.at(value);
            self.line((area.left, at), (area.right, at), GRID, 1.0, false);
            self.text(area.left - 8.0, at + 4.0, &label, 12.0, QUIET, Anchor::End, false);
        }
    }

    /// The x axis with its ticks and labels.
    pub(crate) fn x_ticks(&mut self, area: Area, x: &Axis, x_label: &str) {
        for (value, label) in x.ticks() {
            let at = x.at(value);
            self.line((at, area.bottom), (at, area.bottom + 4.0), QUIET, 1.0, false);
            self.text(at, area.bottom + 18.0, &label, 12.0, QUIET, Anchor::Middle, false);
        }
        self.line((area.left, area.bottom), (area.right, area.bottom), QUIET, 1.0, false);
        let middle = (area.left + area.right) / 2.0;
        self.text(middle, area.bottom + 38.0, x_label, 12.0, QUIET, Anchor::Middle, false);
    }

    /// Rows of swatches with names, from `x` to the right as far as there is room. Gives the pixels
    /// that rows after the first take.
    pub(crate) fn legend(&mut self, x: f64, y: f64, entries: &[(&str, &str)]) -> f64 {
        let (mut at, mut row) = (x, 0.0);
        for (name, color) in entries {
            let name = shortened(name, WIDTH - x - 35.0, 12.0);
            let width = 19.0 + text_width(&name, 12.0);
            if at > x && at + width > WIDTH - 16.0 {
                (at, row) = (x, row + LEGEND_ROW);
            }
            self.rect(at, y + row - 9.0, 14.0, 9.0, color, 1.0);
            self.text(at + 19.0, y + row, &name, 12.0, INK, Anchor::Start, false);
            at += width + 20.0;
        }
        row
    }

    pub(crate) fn finish(self) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{0}\" viewBox=\"0 0 {WIDTH} {0}\" \
             role=\"img\" font-family=\"Helvetica, Arial, sans-serif\">\n<title>{1}</title>\n{NARROW}\n{2}</svg>\n",
            self.height,
            clean(&self.title),
            self.body
        )
    }
}

/// What [`Canvas::legend`] gives.
pub(crate) fn legend_height(x: f64, entries: &[(&str, &str)]) -> f64 {
    Canvas::new("", 0.0).legend(x, 0.0, entries)
}

/// A text cut to about so many pixels.
pub(crate) fn shortened(text: &str, width: f64, size: f64) -> String {
    if text_width(text, size) <= width {
        return text.to_owned();
    }
    let (mut kept, mut taken) = (String::new(), text_width("…", size));
    for c in text.chars() {
        taken += text_width(c.encode_utf8(&mut [0; 4]), size);
        if taken > width {
            break;
        }
        kept.push(c);
    }
    kept.push('…');
    kept
}

/// A text in lines of at most so many characters, broken between words.
pub(crate) fn wrapped(text: &str, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= most => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// About how wide a text is drawn. Sans-serif letters are a little over half as wide as high.
pub(crate) fn text_width(text: &str, size: f64) -> f64 {
    text.chars().map(|c| if c.is_ascii() { 0.56 } else { 0.9 }).sum::<f64>() * size
}

/// Escaped, and without the control characters that XML forbids even as entities.
fn clean(text: &str) -> String {
    let allowed: String = text
        .chars()
        .map(|c| if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') { ' ' } else { c })
        .collect();
    escape_html(&allowed)
}

/// A pixel, to a tenth.
fn px(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_wrapped_and_shortened() {
        assert_eq!(wrapped("one two  three", 7), ["one two", "three"]);
        assert!(wrapped("", 7).is_empty());
        assert_eq!(shortened("short", 100.0, 12.0), "short");
        let long = shortened(&"long ".repeat(20), 100.0, 12.0);
        assert!(long.ends_with('…') && text_width(&long, 12.0) <= 100.0, "{long}");
    }

    #[test]
    fn a_legend_takes_the_rows_that_it_needs() {
        let names: Vec<String> = (0..8).map(|i| format!("run {i} with a long name")).collect();
        let entries: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "#000")).collect();
        assert_eq!(legend_height(68.0, &entries[..2]), 0.0);
        assert_eq!(legend_height(68.0, &entries), 2.0 * LEGEND_ROW);
        let endless = "x".repeat(500);
        assert_eq!(legend_height(68.0, &[("a", "#000"), (&endless, "#000")]), LEGEND_ROW);
    }
}
