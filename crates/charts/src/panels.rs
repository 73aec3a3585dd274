//! Small multiples: charts of lines one under another, over one x axis.

use std::collections::BTreeMap;

use plotly::common::DashType;
use plotly::layout::{Annotation, HoverMode, Shape, ShapeLine, ShapeType};
use serde_json::Value;

use crate::axis::{Axis, number};
use crate::figure::{
    Figure, Tip, plotly_axis, plotly_json, plotly_layout, plotly_text, with_subtitle,
};
use crate::lines::{Drawn, Gap, Line, PlotlyLines, draw, draw_gap, whole_ticks};
use crate::palette;
use crate::svg::{Anchor, Area, Canvas, SUBTITLE_CHARS, WIDTH, legend_height, wrapped};

/// The height of the first panel and of the others, and the room between two, in pixels.
const FIRST: f64 = 220.0;
const OTHER: f64 = 52.0;
const BETWEEN: f64 = 28.0;
/// The least width of a place that tells of a step, in pixels.
const STRIP: f64 = 4.0;
/// Values of a chart that differ by a smaller share than this are drawn as one.
const SAME: f64 = 1e-3;
/// Above the first panel and below the last in plotly's form, with the legend.
const MARGINS: f64 = 134.0;

/// One of the charts in [`Panels`].
#[derive(Clone, Debug, Default)]
pub struct Panel {
    /// What y is, with its unit.
    pub y_label: String,
    /// The lines.
    pub lines: Vec<Line>,
}

/// Charts of lines over one x axis, the first one larger. Hovering shows the values of all panels at
/// one x where a front end draws plotly's form, and the first panel's in the HTML form.
///
/// ```
/// use tunebook_charts::{Line, Panel, Panels};
/// let panel = |y_label: &str, values: [f64; 3]| Panel {
///     y_label: y_label.into(),
///     lines: vec![Line::over_steps("", values)],
/// };
/// let figure = Panels {
///     title: "Training".into(),
///     x_label: "step".into(),
///     panels: vec![panel("loss", [3.0, 2.0, 1.5]), panel("learning rate", [2e-4, 1e-4, 0.0])],
///     ..Panels::default()
/// }
/// .figure();
/// assert!(figure.text().contains("learning rate: 0.0002000 → 0"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Panels {
    /// The title.
    pub title: String,
    /// What the charts show, in a sentence under the title.
    pub subtitle: String,
    /// What x is, with its unit; its ticks are whole numbers.
    pub x_label: String,
    /// The charts, eight at most. The first one has the legend and the gap.
    pub panels: Vec<Panel>,
    /// A distance that is marked in the first chart.
    pub gap: Option<Gap>,
    /// An x that is marked in all of them.
    pub mark: Option<f64>,
    /// What hovering shows besides the values behind the first chart's first line, by x.
    pub hover: Vec<(f64, String)>,
}

impl Panel {
    fn values(&self) -> impl Iterator<Item = f64> {
        let points = self.lines.iter().flat_map(|line| &line.points);
        points.map(|(_, value)| *value).filter(|value| value.is_finite())
    }
}

/// The ends of an axis over values so near one another that only noise would fill the picture; none:
/// the values' own.
fn opened(values: impl Iterator<Item = f64>) -> Option<[f64; 2]> {
    let (min, max) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), value| {
        (min.min(value), max.max(value))
    });
    let near = min < max && max - min < SAME * min.abs().max(max.abs());
    let room = 0.1 * min.abs();
    near.then_some([min - room, max + room])
}

impl Panels {
    /// The figure.
    pub fn figure(&self) -> Figure {
        let (svg, x) = self.svg();
        Figure::new(&self.title, self.plotly(), svg, self.text()).with_tips(self.tips(&x))
    }

    /// What a pointer over the HTML form is told: a strip for each few pixels, which tells of its
    /// step with the highest value.
    fn tips(&self, x: &Axis) -> Vec<Tip> {
        let Some(line) = self.panels.first().and_then(|panel| panel.lines.first()) else {
            return Vec::new();
        };
        let points = if line.behind.is_empty() { &line.points } else { &line.behind };
        let values: BTreeMap<u64, f64> =
            points.iter().filter(|p| p.1.is_finite()).map(|p| (p.0.to_bits(), p.1)).collect();
        // The first x of a strip, and the x, value and text of its highest value.
        let mut strips: Vec<(f64, f64, f64, &str)> = Vec::new();
        for (at, text) in &self.hover {
            let Some(&value) = values.get(&at.to_bits()) else { continue };
            let text = text.as_str();
            match strips.last_mut() {
                Some((first, best, highest, told)) if x.at(*at) - x.at(*first) < STRIP => {
                    if value > *highest {
                        (*best, *highest, *told) = (*at, value, text);
                    }
                }
                _ => strips.push((*at, *at, value, text)),
            }
        }
        // From the middle to the strip before, to the middle to the one behind.
        let first = |at: usize| x.at(strips[at].0);
        let edge = |at: usize| match at {
            0 => first(0) - STRIP / 2.0,
            at if at == strips.len() => first(at - 1) + STRIP / 2.0,
            at => (first(at - 1) + first(at)) / 2.0,
        };
        let tip = |(at, (_, best, value, text)): (usize, &(f64, f64, f64, &str))| Tip {
            left: edge(at),
            right: edge(at + 1),
            text: format!("{} {}: {}, {text}", self.x_label, number(*best), number(*value)),
        };
        strips.iter().enumerate().map(tip).collect()
    }

    fn svg(&self) -> (String, Axis) {
        let shown: Vec<Vec<Drawn>> = self
            .panels
            .iter()
            .map(|panel| panel.lines.iter().map(|line| Drawn::of(line, false)).collect())
            .collect();
        let values: Vec<Vec<(f64, f64)>> =
            shown.iter().map(|lines| lines.iter().flat_map(Drawn::all).collect()).collect();
        let y = |at: usize, bottom: f64, top: f64| {
            let ticks = if at == 0 { 5.0 } else { 2.0 };
            let opened = opened(values[at].iter().map(|p| p.1)).into_iter().flatten();
            let drawn = values[at].iter().map(|p| p.1).chain(opened);
            Axis::over(drawn, ticks, false, bottom, top).padded(0.06)
        };
        let labels = (0..values.len()).flat_map(|at| y(at, 1.0, 0.0).ticks());
        let longest = labels.map(|(_, label)| label.len()).max().unwrap_or(0);
        let left = 44.0 + 7.0 * longest.saturating_sub(4) as f64;
        let subtitle = wrapped(&self.subtitle, SUBTITLE_CHARS);
        let entries = self.legend();
        let head = 17.0 * subtitle.len() as f64;
        // Below the legend stands the first panel's name.
        let first = 82.0 + head + legend_height(left, &entries);
        let tops: Vec<f64> = (0..self.panels.len())
            .map(|at| match at {
                0 => first,
                _ => first + FIRST + BETWEEN + (at - 1) as f64 * (OTHER + BETWEEN),
            })
            .collect();
        let area = |at: usize| {
            let bottom = tops[at] + if at == 0 { FIRST } else { OTHER };
            Area { left, right: WIDTH - 72.0, top: tops[at], bottom }
        };
        let last = self.panels.len().checked_sub(1).map(area);
        let height = last.map_or(first, |area| area.bottom) + 56.0;

        let mut canvas = Canvas::new(&self.title, height);
        canvas.subtitle(&subtitle);
        let x = Axis::over(values.iter().flatten().map(|p| p.0), 7.0, true, left, WIDTH - 72.0);
        if let (Some(mark), Some(last)) = (self.mark, last) {
            let at = x.at(mark);
            canvas.line((at, first), (at, last.bottom), palette::QUIET, 1.0, true);
        }
        for (at, panel) in self.panels.iter().enumerate() {
            let (area, y) = (area(at), y(at, area(at).bottom, area(at).top));
            canvas.y_ticks(area, &y);
            let name = &panel.y_label;
            canvas.text(left, area.top - 7.0, name, 12.0, palette::QUIET, Anchor::Start, false);
            if let (Some(gap), 0) = (&self.gap, at) {
                draw_gap(&mut canvas, gap, (&x, &y), false);
            }
            draw(&mut canvas, area, (&x, &y), &panel.lines, &shown[at], false);
        }
        if let Some(last) = last {
            canvas.x_ticks(last, &x, &self.x_label);
        }
        canvas.legend(left, 48.0 + head, &entries);
        (canvas.finish(), x)
    }

    /// The names of the first panel's lines.
    fn legend(&self) -> Vec<(&str, &str)> {
        let lines = self.panels.first().map_or(&[][..], |panel| &panel.lines);
        let colors = (0..).map(palette::series);
        lines.iter().zip(colors).map(|(line, color)| (line.name.as_str(), color)).collect()
    }

    fn plotly(&self) -> Value {
        let hover: BTreeMap<u64, String> =
            self.hover.iter().map(|(x, text)| (x.to_bits(), text.clone())).collect();
        let count = self.panels.len();
        let others = count.saturating_sub(1) as f64;
        let height = FIRST + others * (OTHER + BETWEEN);
        let mut form = PlotlyLines::default();
        let mut domains = Vec::new();
        for (at, panel) in self.panels.iter().enumerate() {
            // From the top.
            let top =
                if at == 0 { 0.0 } else { FIRST + BETWEEN + (at - 1) as f64 * (OTHER + BETWEEN) };
            let size = if at == 0 { FIRST } else { OTHER };
            let domain = [1.0 - (top + size) / height, 1.0 - top / height].map(in_range);
            domains.push(domain);
            let axis = axis_name(at);
            form.lines(&panel.lines, &axis, size, if at == 0 { &hover } else { &EMPTY });
            if at == 0 {
                continue; // the legend stands over it
            }
            form.annotations.push(
                Annotation::new()
                    .x_ref("paper")
                    .y_ref("paper")
                    .x(0.0)
                    .y(domain[1])
                    .x_anchor(plotly::common::Anchor::Left)
                    .y_anchor(plotly::common::Anchor::Bottom)
                    .show_arrow(false)
                    .text(plotly_text(&panel.y_label)),
            );
        }
        if let Some(gap) = &self.gap {
            form.gap(gap);
        }
        if let Some(mark) = self.mark {
            let line = ShapeLine::new().color(palette::QUIET).width(1.0).dash(DashType::Dash);
            form.shapes.push(
                Shape::new()
                    .shape_type(ShapeType::Line)
                    .y_ref("paper")
                    .x0(mark)
                    .x1(mark)
                    .y0(0.0)
                    .y1(1.0)
                    .line(line),
            );
        }
        let whole = (height + MARGINS) as usize;
        let bottom = axis_name(count.saturating_sub(1));
        let lines = self.panels.iter().flat_map(|panel| &panel.lines);
        let x_axis = whole_ticks(plotly_axis(&self.x_label).anchor(&bottom), lines);
        let first = self.panels.first().map_or("", |panel| &panel.y_label);
        let layout = plotly_layout(&self.title, x_axis, plotly_axis(first)).height(whole);
        let layout = with_subtitle(layout, &self.title, &self.subtitle, whole)
            .hover_mode(HoverMode::XUnified)
            .annotations(form.annotations)
            .shapes(form.shapes);
        let mut figure = plotly_json(form.traces, layout);
        let layout = &mut figure["layout"];
        // The crate has a setter for each axis, and none for this mode.
        layout["hoversubplots"] = "axis".into();
        let is_small = |panel: &Panel| {
            let mut values = panel.lines.iter().flat_map(|line| &line.points);
            values.all(|(_, value)| value.abs() < 0.01)
        };
        let plain = layout["yaxis"].clone();
        for (at, domain) in domains.iter().enumerate() {
            let name = if at == 0 { "yaxis".to_owned() } else { format!("yaxis{}", at + 1) };
            let mut axis = plain.clone();
            axis["domain"] = domain.to_vec().into();
            axis["anchor"] = "x".into();
            if let Some(range) = opened(self.panels[at].values()) {
                axis["range"] = range.to_vec().into();
            }
            if at > 0 {
                axis["nticks"] = 4.into();
                if is_small(&self.panels[at]) {
                    axis["exponentformat"] = "e".into(); // not 200µ
                }
                axis["title"] = serde_json::json!({"text": ""});
            }
            layout[name] = axis;
        }
        // Only what the first panel's lines are called stands in the legend.
        let mut named = self.panels.first().map_or(0, |panel| panel.lines.len());
        if let Some(traces) = figure["data"].as_array_mut() {
            for trace in traces.iter_mut().filter(|trace| trace["showlegend"].is_null()) {
                if named == 0 {
                    trace["showlegend"] = false.into();
                }
                named = named.saturating_sub(1);
            }
        }
        figure
    }

    fn text(&self) -> String {
        let mut text = self.title.clone();
        if !self.subtitle.is_empty() {
            text = format!("{text}\n{}", self.subtitle);
        }
        for line in self.panels.iter().take(1).flat_map(|panel| &panel.lines) {
            text = format!("{text}\n{}", line.text());
        }
        if let Some(gap) = &self.gap {
            text = format!("{text}\n{}", gap.label);
        }
        for panel in self.panels.iter().skip(1) {
            for line in &panel.lines {
                let line = Line { name: panel.y_label.clone(), ..line.clone() };
                text = format!("{text}\n{}", line.text());
            }
        }
        text
    }
}

static EMPTY: BTreeMap<u64, String> = BTreeMap::new();

/// `y`, `y2`, …
fn axis_name(at: usize) -> String {
    if at == 0 { "y".to_owned() } else { format!("y{}", at + 1) }
}

/// Four digits, within what a domain may be.
fn in_range(share: f64) -> f64 {
    (share.clamp(0.0, 1.0) * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_does_not_fill_a_chart() {
        assert_eq!(opened([2.0, 1.0].into_iter()), None);
        assert_eq!(opened([2.0, 2.0].into_iter()), None);
        let [low, high] = opened([1.25532, 1.25533].into_iter()).unwrap();
        assert!(low < 1.13 && high > 1.38, "{low} {high}");
        let panel = |y_label: &str, values: [f64; 2]| Panel {
            y_label: y_label.into(),
            lines: vec![Line::over_steps("", values)],
        };
        let panels = vec![panel("loss", [3.0, 2.0]), panel("memory, GB", [1.25532, 1.25533])];
        let figure = Panels { panels, ..Panels::default() };
        let (svg, _) = figure.svg();
        assert!(svg.contains(">1.2<") && !svg.contains(">1.2553"), "{svg}");
        let plotly = figure.plotly();
        assert_eq!(plotly["layout"]["yaxis"]["range"], serde_json::Value::Null);
        assert!(plotly["layout"]["yaxis2"]["range"][0].as_f64().unwrap() < 1.13);
    }
}
