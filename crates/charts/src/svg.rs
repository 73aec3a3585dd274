//! A small SVG canvas. Text is escaped here and nowhere else.

use std::fmt::Write as _;

use tunebook_progress::escape_html;

use crate::axis::Axis;
use crate::palette::{GRID, GROUND, INK, QUIET};

/// The width of every picture, in pixels: a notebook's column.
pub(crate) const WIDTH: f64 = 720.0;

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
        canvas.text(16.0, 24.0, title, 15.0, INK, Anchor::Start, true);
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
        if points.len() < 2 {
            return;
        }
        let path: Vec<String> =
            points.iter().map(|(x, y)| format!("{},{}", px(*x), px(*y))).collect();
        let _ = writeln!(
            self.body,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"{width}\" stroke-opacity=\"{opacity}\" \
             stroke-linejoin=\"round\"/>",
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
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let weight = if bold { " font-weight=\"600\"" } else { "" };
        let _ = writeln!(
            self.body,
            "<text x=\"{}\" y=\"{}\" font-size=\"{size}\" fill=\"{color}\"{anchor}{weight}>{}</text>",
            px(x),
            px(y),
            clean(text)
        );
    }

    /// The grid, the ticks and the labels of both axes.
    pub(crate) fn axes(&mut self, area: Area, x: &Axis, y: &Axis, x_label: &str, y_label: &str) {
        for (value, label) in y.ticks() {
            let at = y.at(value);
            self.line((area.left, at), (area.right, at), GRID, 1.0, false);
            self.text(area.left - 8.0, at + 4.0, &label, 12.0, QUIET, Anchor::End, false);
        }
        for (value, label) in x.ticks() {
            let at = x.at(value);
            self.line((at, area.bottom), (at, area.bottom + 4.0), QUIET, 1.0, false);
            self.text(at, area.bottom + 18.0, &label, 12.0, QUIET, Anchor::Middle, false);
        }
        self.line((area.left, area.bottom), (area.right, area.bottom), QUIET, 1.0, false);
        let middle = (area.left + area.right) / 2.0;
        self.text(middle, area.bottom + 38.0, x_label, 12.0, QUIET, Anchor::Middle, false);
        let middle = (area.top + area.bottom) / 2.0;
        let _ = writeln!(
            self.body,
            "<text x=\"18\" y=\"{0}\" font-size=\"12\" fill=\"{QUIET}\" text-anchor=\"middle\" transform=\"rotate(-90 18 {0})\">{1}</text>",
            px(middle),
            clean(y_label)
        );
    }

    /// A row of swatches with names, from `x` to the right.
    pub(crate) fn legend(&mut self, x: f64, y: f64, entries: &[(&str, &str)]) {
        let mut at = x;
        for (name, color) in entries {
            self.rect(at, y - 9.0, 14.0, 9.0, color, 1.0);
            self.text(at + 19.0, y, name, 12.0, INK, Anchor::Start, false);
            at += 19.0 + text_width(name, 12.0) + 20.0;
        }
    }

    pub(crate) fn finish(self) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{0}\" viewBox=\"0 0 {WIDTH} {0}\" \
             role=\"img\" font-family=\"Helvetica, Arial, sans-serif\">\n<title>{1}</title>\n{2}</svg>\n",
            self.height,
            clean(&self.title),
            self.body
        )
    }
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
