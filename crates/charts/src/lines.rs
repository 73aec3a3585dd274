//! Lines over a common x axis, each with its last value written beside it.

use std::collections::BTreeMap;

use plotly::common::{DashType, Font, HoverInfo, Line as Stroke, Marker, Mode};
use plotly::layout::{Annotation, AxisType, HoverMode, Shape, ShapeLine, ShapeType};
use plotly::{Scatter, Trace};
use serde_json::Value;

use crate::axis::{Axis, number};
use crate::figure::{Figure, plotly_axis, plotly_json, plotly_layout, plotly_text, with_subtitle};
use crate::palette;
use crate::svg::{Anchor, Area, Canvas, SUBTITLE_CHARS, WIDTH, legend_height, wrapped};

/// A drawn line has at most this many points: two per pixel column are all one can see.
const MAX_POINTS: usize = 1200;

/// Points as (x, y).
pub(crate) type Points = Vec<(f64, f64)>;

/// One line of a chart.
///
/// ```
/// use tunebook_charts::Line;
/// let rate = Line::over_steps("learning rate", [1e-4, 2e-4]);
/// assert_eq!(rate.points, [(1.0, 1e-4), (2.0, 2e-4)]);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Line {
    /// Its name in the legend.
    pub name: String,
    /// The points, by rising x. Values that are not finite are left out of the drawing.
    pub points: Vec<(f64, f64)>,
    /// Draws a mark at each point, for lines of few points.
    pub marks: bool,
    /// Values that scatter around the line, drawn faintly behind it in its colour.
    pub behind: Vec<(f64, f64)>,
    /// A second line that belongs to it, drawn thin and dashed in its colour.
    pub dashed: Vec<(f64, f64)>,
    /// A point worth a note, with the note. An empty one leaves the point's ring alone.
    pub note: Option<((f64, f64), String)>,
}

impl Line {
    /// A line through these points, by rising x.
    pub fn new(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self { name: name.into(), points: points.into_iter().collect(), ..Self::default() }
    }

    /// A line through one value for each step; the first step is 1.
    pub fn over_steps(name: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Self {
        let steps = values.into_iter().enumerate();
        Self::new(name, steps.map(|(i, value)| (i as f64 + 1.0, value)))
    }

    /// The line with a mark at each point.
    #[must_use]
    pub fn marked(mut self) -> Self {
        self.marks = true;
        self
    }
}

/// A chart of lines over a common x axis, each with its last value at its end. Where all x are
/// whole numbers (steps, rows), so are the ticks. [`LineChart`] has more to set.
///
/// ```
/// use tunebook_charts::{Line, line_chart};
/// let lines = [
///     Line::over_steps("rank 4", [2.9, 2.1, 1.8]),
///     Line::over_steps("rank 64", [2.9, 1.9, 1.5]),
/// ];
/// let figure = line_chart("Two ranks", "step", "loss per token (nats)", &lines);
/// assert!(figure.text().starts_with("Two ranks\nrank 4: 2.900 → 1.800"));
/// ```
pub fn line_chart(title: &str, x_label: &str, y_label: &str, lines: &[Line]) -> Figure {
    let whole = |line: &Line| line.points.iter().all(|point| point.0.fract() == 0.0);
    LineChart {
        title: title.to_owned(),
        x_label: x_label.to_owned(),
        y_label: y_label.to_owned(),
        lines: lines.to_vec(),
        whole_x: lines.iter().all(whole),
        ..LineChart::default()
    }
    .figure()
}

/// A distance between two lines, drawn upright between them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gap {
    /// Where it stands.
    pub x: f64,
    /// One end of it.
    pub from: f64,
    /// The other end.
    pub to: f64,
    /// What is written beside it.
    pub label: String,
}

/// A chart of lines.
#[derive(Clone, Debug, Default)]
pub struct LineChart {
    /// The title.
    pub title: String,
    /// What the chart shows, in a sentence under its title.
    pub subtitle: String,
    /// What x is, with its unit.
    pub x_label: String,
    /// What y is, with its unit.
    pub y_label: String,
    /// The lines.
    pub lines: Vec<Line>,
    /// Keeps the ticks of x to whole numbers (steps, epochs).
    pub whole_x: bool,
    /// Draws x by its logarithm (learning rates). Values that are not above 0 are left out.
    pub log_x: bool,
    /// A distance that is marked.
    pub gap: Option<Gap>,
}

impl LineChart {
    /// The figure.
    pub fn figure(&self) -> Figure {
        Figure::new(&self.title, self.plotly(), self.svg(), self.text())
    }

    fn svg(&self) -> String {
        let shown: Vec<Drawn> = self.lines.iter().map(|line| Drawn::of(line, self.log_x)).collect();
        let all = || shown.iter().flat_map(Drawn::all);
        let entries: Vec<(&str, &str)> = self
            .lines
            .iter()
            .enumerate()
            .map(|(i, line)| (line.name.as_str(), palette::series(i)))
            .collect();
        let y = |bottom, top| Axis::over(all().map(|p| p.1), 5.0, false, bottom, top).padded(0.06);
        // Long labels of y need more room beside its name.
        let longest = y(1.0, 0.0).ticks().iter().map(|(_, label)| label.len()).max().unwrap_or(0);
        let left = 68.0 + 7.0 * longest.saturating_sub(4) as f64;
        let subtitle = wrapped(&self.subtitle, SUBTITLE_CHARS);
        let head = 17.0 * subtitle.len() as f64;
        let top = 64.0 + head + legend_height(left, &entries);
        let bottom = top + 280.0;
        let area = Area { left, right: WIDTH - 72.0, top, bottom };
        let y = y(bottom, top);
        let whole = self.whole_x || self.log_x;
        let x = Axis::over(all().map(|point| point.0), 7.0, whole, area.left, area.right);
        let x = if self.log_x { x.of_powers() } else { x };

        let mut canvas = Canvas::new(&self.title, bottom + 56.0);
        canvas.subtitle(&subtitle);
        canvas.axes(area, &x, &y, &self.x_label, &self.y_label);
        if let Some(gap) = &self.gap {
            draw_gap(&mut canvas, gap, (&x, &y), self.log_x);
        }
        draw(&mut canvas, area, (&x, &y), &self.lines, &shown, self.log_x);
        canvas.legend(area.left, 48.0 + head, &entries);
        canvas.finish()
    }

    fn plotly(&self) -> Value {
        let mut form = PlotlyLines { log_x: self.log_x, ..PlotlyLines::default() };
        form.lines(&self.lines, "y", 280.0, &BTreeMap::new());
        if let Some(gap) = &self.gap {
            form.gap(gap);
        }
        let x_axis = plotly_axis(&self.x_label);
        let x_axis = match (self.log_x, self.whole_x) {
            (true, _) => x_axis.type_(AxisType::Log),
            (false, true) => whole_ticks(x_axis, &self.lines),
            (false, false) => x_axis,
        };
        let layout = plotly_layout(&self.title, x_axis, plotly_axis(&self.y_label));
        let layout = with_subtitle(layout, &self.title, &self.subtitle, 400)
            .hover_mode(HoverMode::XUnified)
            .annotations(form.annotations)
            .shapes(form.shapes);
        plotly_json(form.traces, layout)
    }

    fn text(&self) -> String {
        let mut text = self.title.clone();
        if !self.subtitle.is_empty() {
            text = format!("{text}\n{}", self.subtitle);
        }
        for line in &self.lines {
            text = format!("{text}\n{}", line.text());
        }
        match &self.gap {
            Some(gap) => format!("{text}\n{}", gap.label),
            None => text,
        }
    }
}

impl Line {
    /// Its name, its first and its last value, its note and its course.
    pub(crate) fn text(&self) -> String {
        let points = finite(&self.points);
        let (Some(first), Some(last)) = (points.first(), points.last()) else {
            return format!("{}: no values yet", self.name);
        };
        let note = self.note.as_ref().filter(|(_, note)| !note.is_empty());
        let note = note.map(|(_, note)| format!(", {note}")).unwrap_or_default();
        let (first, last) = (number(first.1), number(last.1));
        format!("{}: {first} → {last}{note}  {}", self.name, sparkline(&points, 40))
    }
}

/// Behind notes over lines.
const VEIL: &str = "rgba(255,255,255,0.8)";

/// What lines are in plotly's form.
#[derive(Default)]
pub(crate) struct PlotlyLines {
    pub(crate) log_x: bool,
    pub(crate) traces: Vec<Box<dyn Trace>>,
    pub(crate) annotations: Vec<Annotation>,
    pub(crate) shapes: Vec<Shape>,
}

impl PlotlyLines {
    /// Where plotly places annotations and shapes: on a logarithmic axis by the logarithm.
    fn placed(&self, x: f64) -> f64 {
        if self.log_x { x.log10() } else { x }
    }

    /// Adds lines on a y axis (`y`, `y2`) that is about so many pixels high. `hover` has what is
    /// shown of a value behind a line, by the bits of its x.
    pub(crate) fn lines(
        &mut self,
        lines: &[Line],
        axis: &str,
        height: f64,
        hover: &BTreeMap<u64, String>,
    ) {
        let on_axis = |trace: Box<Scatter<f64, f64>>| match axis {
            "y" => trace, // its default
            _ => trace.y_axis(axis),
        };
        let coordinates = |points: &[(f64, f64)]| {
            let (x, y): (Vec<f64>, Vec<f64>) = drawn(points).into_iter().unzip();
            (x, y.into_iter().map(rounded).collect::<Vec<f64>>())
        };
        let mut ends = Vec::new();
        for (i, line) in lines.iter().enumerate() {
            let color = palette::series(i);
            if !line.behind.is_empty() {
                let (x, y) = coordinates(&line.behind);
                let texts: Vec<String> =
                    x.iter().filter_map(|x| Some(plotly_text(hover.get(&x.to_bits())?))).collect();
                let says = texts.len() == x.len() && !texts.is_empty();
                let trace = Scatter::new(x, y)
                    .mode(Mode::Lines)
                    .show_legend(false)
                    .line(Stroke::new().color(color).width(1.0))
                    .opacity(0.3);
                let trace = match says {
                    true => trace
                        .name("this step")
                        .hover_text_array(texts)
                        .hover_template("%{y}<br>%{hovertext}"),
                    false => trace.hover_info(HoverInfo::Skip),
                };
                self.traces.push(on_axis(trace));
            }
            if !line.dashed.is_empty() {
                let (x, y) = coordinates(&line.dashed);
                let trace = Scatter::new(x, y)
                    .mode(Mode::Lines)
                    .show_legend(false)
                    .hover_info(HoverInfo::Skip)
                    .line(Stroke::new().color(color).width(1.3).dash(DashType::Dash));
                self.traces.push(on_axis(trace));
            }
            let (x, y) = coordinates(&line.points);
            if let (Some(&x), Some(&y)) = (x.last(), y.last()) {
                ends.push((y, end_label(y), (x, color)));
            }
            let marks = line.marks || x.len() == 1;
            let trace = Scatter::new(x, y)
                .mode(if marks { Mode::LinesMarkers } else { Mode::Lines })
                .name(plotly_text(&line.name))
                .line(Stroke::new().color(color).width(2.2))
                .marker(Marker::new().size(7));
            self.traces.push(on_axis(trace));
        }
        let all_x = lines.iter().flat_map(|line| &line.points).map(|point| self.placed(point.0));
        let range = Axis::over(all_x.filter(|x| x.is_finite()), 5.0, false, 0.0, 1.0);
        for (line, color) in lines.iter().zip((0..).map(palette::series)) {
            if let Some(((x, y), text)) = &line.note {
                // To the right of a line's end stands its last value.
                let side = match range.at(self.placed(*x)) > 0.5 {
                    true => plotly::common::Anchor::Right,
                    false => plotly::common::Anchor::Left,
                };
                self.note((*x, rounded(*y)), (text, side), axis, color, on_axis);
            }
        }
        self.ends(lines, ends, axis, height);
    }

    /// A ring around a point, and its note.
    fn note(
        &mut self,
        (x, y): (f64, f64),
        (text, side): (&str, plotly::common::Anchor),
        axis: &str,
        color: &'static str,
        on_axis: impl Fn(Box<Scatter<f64, f64>>) -> Box<Scatter<f64, f64>>,
    ) {
        let ring = Marker::new()
            .size(13)
            .color("rgba(0,0,0,0)")
            .line(Stroke::new().color(color).width(2.0));
        let ring = Scatter::new(vec![x], vec![y])
            .mode(Mode::Markers)
            .show_legend(false)
            .hover_info(HoverInfo::Skip)
            .marker(ring);
        self.traces.push(on_axis(ring));
        if !text.is_empty() {
            let note = Annotation::new().x(self.placed(x)).y(y).y_ref(axis);
            self.annotations.push(
                note.text(plotly_text(text))
                    .font(Font::new().color(color))
                    .background_color(VEIL)
                    .show_arrow(true)
                    .arrow_color(color)
                    .x_anchor(side)
                    .ax(0)
                    .ay(-32),
            );
        }
    }

    /// The last values, moved apart where they would overlap.
    fn ends(
        &mut self,
        lines: &[Line],
        ends: Vec<(f64, String, (f64, &'static str))>,
        axis: &str,
        height: f64,
    ) {
        let all = lines.iter().flat_map(|line| line.points.iter().chain(&line.behind));
        let all = all.chain(lines.iter().flat_map(|line| &line.dashed));
        let values = all.map(|point| point.1).filter(|value| value.is_finite());
        let scale = Axis::over(values, 5.0, false, height, 0.0).padded(0.06);
        let labels =
            ends.into_iter().map(|(y, text, (x, color))| (scale.at(y), text, (x, y, color)));
        for (place, text, (x, y, color)) in apart(labels.collect(), 15.0, height) {
            self.annotations.push(
                Annotation::new()
                    .x(self.placed(x))
                    .y(y)
                    .y_ref(axis)
                    .text(text)
                    .font(Font::new().color(color))
                    .show_arrow(false)
                    .x_anchor(plotly::common::Anchor::Left)
                    .x_shift(11.0)
                    .y_shift((scale.at(y) - place).round()),
            );
        }
    }

    /// A gap, and what is written beside it.
    pub(crate) fn gap(&mut self, gap: &Gap) {
        let x = self.placed(gap.x);
        let (from, to) = (rounded(gap.from), rounded(gap.to));
        if !(x.is_finite() && from.is_finite() && to.is_finite()) {
            return;
        }
        let line = ShapeLine::new().color(palette::QUIET).width(1.5);
        self.shapes
            .push(Shape::new().shape_type(ShapeType::Line).x0(x).x1(x).y0(from).y1(to).line(line));
        self.annotations.push(
            Annotation::new()
                .x(x)
                .y((from + to) / 2.0)
                .text(plotly_text(&gap.label))
                .font(Font::new().color(palette::QUIET))
                .background_color(VEIL)
                .show_arrow(false)
                .x_anchor(plotly::common::Anchor::Right)
                .x_shift(-6.0),
        );
    }
}

/// Keeps the ticks of an axis to whole numbers where plotly would put others between them.
pub(crate) fn whole_ticks<'a>(
    axis: plotly::layout::Axis,
    lines: impl IntoIterator<Item = &'a Line>,
) -> plotly::layout::Axis {
    let values = lines.into_iter().flat_map(|line| line.points.iter().chain(&line.behind));
    let values = values.map(|point| point.0).filter(|x| x.is_finite());
    match Axis::over(values, 7.0, true, 0.0, 1.0).step {
        1.0 => axis.dtick(1.0),
        _ => axis,
    }
}

/// What is drawn of a line.
pub(crate) struct Drawn {
    points: Points,
    behind: Points,
    dashed: Points,
}

impl Drawn {
    /// On a logarithmic axis by the logarithm of x.
    pub(crate) fn of(line: &Line, log_x: bool) -> Self {
        let scaled = |points: &Points| -> Points {
            if !log_x {
                return drawn(points);
            }
            drawn(&points.iter().map(|(x, y)| (x.log10(), *y)).collect::<Points>())
        };
        Self {
            points: scaled(&line.points),
            behind: scaled(&line.behind),
            dashed: scaled(&line.dashed),
        }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (f64, f64)> {
        self.points.iter().chain(&self.behind).chain(&self.dashed).copied()
    }
}

/// The lines within an area, the last value of each beside its end.
pub(crate) fn draw(
    canvas: &mut Canvas,
    area: Area,
    (x, y): (&Axis, &Axis),
    lines: &[Line],
    shown: &[Drawn],
    log_x: bool,
) {
    let place = |points: &[(f64, f64)]| {
        points.iter().map(|&(px, py)| (x.at(px), y.at(py))).collect::<Vec<_>>()
    };
    for (i, line) in shown.iter().enumerate() {
        canvas.polyline(&place(&line.behind), palette::series(i), 1.0, 0.3);
        canvas.dashes(&place(&line.dashed), palette::series(i), 1.3);
    }
    let (mut ends, mut notes) = (Vec::new(), Vec::new());
    for (i, (Drawn { points, .. }, line)) in shown.iter().zip(lines).enumerate() {
        let color = palette::series(i);
        let placed = place(points);
        canvas.polyline(&placed, color, 2.2, 1.0);
        if line.marks && placed.len() <= 60 || placed.len() == 1 {
            placed.iter().for_each(|&(cx, cy)| canvas.circle(cx, cy, 3.5, palette::GROUND, color));
        }
        if let (Some(&(_, value)), Some(&(_, py))) = (points.last(), placed.last()) {
            ends.push((py, end_label(value), color));
        }
        if let Some(((nx, ny), note)) = &line.note
            && nx.is_finite()
            && ny.is_finite()
        {
            notes.push((x.at(if log_x { nx.log10() } else { *nx }), y.at(*ny), note, color));
        }
    }
    // Over all lines.
    for (cx, cy, note, color) in notes {
        canvas.circle(cx, cy, 6.0, "none", color);
        let anchor = if cx > (area.left + area.right) / 2.0 { Anchor::End } else { Anchor::Start };
        if !note.is_empty() {
            canvas.note(cx, (cy - 14.0).max(area.top + 10.0), note, color, anchor);
        }
    }
    for (py, value, color) in apart(ends, 15.0, area.bottom) {
        canvas.text(area.right + 10.0, py + 4.0, &value, 12.0, color, Anchor::Start, true);
    }
    if shown.iter().all(|line| line.all().next().is_none()) {
        let middle = ((area.left + area.right) / 2.0, (area.top + area.bottom) / 2.0);
        let (at, y) = middle;
        canvas.text(at, y, "no values yet", 13.0, palette::QUIET, Anchor::Middle, false);
    }
}

/// The value at a line's end, short: `2.0e-4`, not `0.0002000`.
fn end_label(value: f64) -> String {
    match value.abs() {
        magnitude if magnitude > 0.0 && magnitude < 0.01 => format!("{value:.1e}"),
        _ => number(value),
    }
}

/// A gap with its label, which stands to its left where it is long enough, else under it.
pub(crate) fn draw_gap(canvas: &mut Canvas, gap: &Gap, (x, y): (&Axis, &Axis), log_x: bool) {
    let at = x.at(if log_x { gap.x.log10() } else { gap.x });
    let (from, to) = (y.at(gap.from), y.at(gap.to));
    if !(at.is_finite() && from.is_finite() && to.is_finite()) {
        return;
    }
    canvas.line((at, from), (at, to), palette::QUIET, 1.5, false);
    for end in [from, to] {
        canvas.line((at - 5.0, end), (at + 5.0, end), palette::QUIET, 1.5, false);
    }
    let middle = (from + to) / 2.0;
    let place = if (from - to).abs() >= 24.0 { middle + 4.0 } else { from.max(to) + 16.0 };
    canvas.note(at - 9.0, place, &gap.label, palette::QUIET, Anchor::End);
}

/// What of these points is drawn.
fn drawn(points: &[(f64, f64)]) -> Points {
    decimated(&finite(points))
}

fn finite(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
}

/// Six digits: what a tooltip shows, without the noise that makes saved notebooks large.
pub(crate) fn rounded(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

fn decimated(points: &[(f64, f64)]) -> Points {
    thinned(points, MAX_POINTS)
}

/// At most `most` points: of each run of neighbours the lowest and the highest, so that spikes
/// stay, and the two ends.
pub(crate) fn thinned(points: &[(f64, f64)], most: usize) -> Points {
    if points.len() <= most {
        return points.to_vec();
    }
    let run = points.len().div_ceil(most / 2 - 1);
    let inner = &points[1..points.len() - 1];
    let mut kept = vec![points[0]];
    for run in inner.chunks(run) {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        if let (Some(&low), Some(&high)) =
            (run.iter().min_by(by_value), run.iter().max_by(by_value))
        {
            let (first, second) = if low.0 <= high.0 { (low, high) } else { (high, low) };
            kept.push(first);
            if second != first {
                kept.push(second);
            }
        }
    }
    kept.push(points[points.len() - 1]);
    kept
}

/// The labels moved apart until no two are closer than `gap`: those that would overlap stand evenly
/// around the middle of their places, and none lower than `bottom`, where the axis has its own.
fn apart<T>(mut labels: Vec<(f64, String, T)>, gap: f64, bottom: f64) -> Vec<(f64, String, T)> {
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Groups of labels that stand together: the middle and how many.
    let mut groups: Vec<(f64, usize)> = Vec::new();
    for (place, ..) in &labels {
        let mut group = (*place, 1);
        while let Some(&(middle, count)) = groups.last()
            && group.0 - middle < gap * (group.1 + count) as f64 / 2.0
        {
            let both = (group.1 + count) as f64;
            group = ((group.0 * group.1 as f64 + middle * count as f64) / both, group.1 + count);
            groups.pop();
        }
        groups.push(group);
    }
    let places = groups.into_iter().flat_map(|(middle, count)| {
        (0..count).map(move |i| middle + gap * (i as f64 - (count - 1) as f64 / 2.0))
    });
    for (label, place) in labels.iter_mut().zip(places) {
        label.0 = place;
    }
    for (above, label) in labels.iter_mut().rev().enumerate() {
        label.0 = label.0.min(bottom - gap * above as f64);
    }
    labels
}

/// The course of the values in block characters.
fn sparkline(points: &[(f64, f64)], width: usize) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let run = points.len().div_ceil(width).max(1);
    let means: Vec<f64> = points
        .chunks(run)
        .map(|run| run.iter().map(|point| point.1).sum::<f64>() / run.len() as f64)
        .collect();
    let low = means.iter().copied().fold(f64::INFINITY, f64::min);
    let high = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let level = |mean: f64| {
        if high > low { ((mean - low) / (high - low) * 7.0).round() as usize } else { 3 }
    };
    means.into_iter().map(|mean| BLOCKS[level(mean).min(7)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_points_become_few_and_spikes_stay() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|i| (i as f64, 1.0)).collect();
        points[54_321].1 = 9.0;
        points[54_400].1 = -9.0;
        let kept = decimated(&points);
        assert!(kept.len() <= MAX_POINTS, "{}", kept.len());
        assert!(kept.contains(&(54_321.0, 9.0)) && kept.contains(&(54_400.0, -9.0)));
        assert_eq!((kept[0].0, kept[kept.len() - 1].0), (0.0, 99_999.0));
        assert!(kept.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn a_logarithmic_axis_has_powers_of_ten_at_even_distances() {
        let points = vec![(0.0, 9.0), (1e-5, 3.0), (1e-3, 2.0), (1e-1, 5.0)];
        let chart =
            LineChart { lines: vec![Line::new("loss", points)], log_x: true, ..Default::default() };
        assert_eq!(Drawn::of(&chart.lines[0], true).points.len(), 3, "0 has no logarithm");
        let svg = chart.svg();
        for label in [">1e-5<", ">1e-4<", ">0.001<", ">0.01<", ">0.1<"] {
            assert!(svg.contains(label), "{label}: {svg}");
        }
        assert_eq!(chart.plotly()["layout"]["xaxis"]["type"], "log");
    }

    #[test]
    fn labels_do_not_overlap() {
        let spread = |places: &[f64]| -> Vec<f64> {
            let labels = places.iter().map(|place| (*place, String::new(), ())).collect();
            apart(labels, 15.0, 200.0).into_iter().map(|label| label.0).collect()
        };
        assert_eq!(spread(&[12.0, 10.0]), [3.5, 18.5]);
        assert_eq!(spread(&[10.0, 100.0, 10.0, 10.0]), [-5.0, 10.0, 25.0, 100.0]);
        assert_eq!(spread(&[150.0, 199.0, 200.0, 198.0]), [150.0, 170.0, 185.0, 200.0]);
        for places in [vec![1.0, 2.0, 3.0, 4.0, 20.0, 50.0, 51.0], vec![]] {
            assert!(
                spread(&places).windows(2).all(|pair| pair[1] - pair[0] >= 15.0 - 1e-9),
                "{places:?}"
            );
        }
    }

    #[test]
    fn a_sparkline_falls_with_the_values() {
        let points: Vec<(f64, f64)> = (0..80).map(|i| (i as f64, -(i as f64))).collect();
        let line = sparkline(&points, 8);
        assert_eq!(line, "█▇▆▅▄▃▂▁");
        assert_eq!(sparkline(&[(0.0, 5.0)], 8), "▄");
    }
}
