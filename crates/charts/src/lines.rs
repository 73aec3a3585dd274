//! Lines over a common x axis, each with its last value written beside it.

use plotly::common::{Font, HoverInfo, Line as Stroke, Marker, Mode};
use plotly::layout::{Annotation, AxisType, HoverMode};
use plotly::{Scatter, Trace};
use serde_json::Value;

use crate::axis::{Axis, number};
use crate::figure::{Figure, plotly_axis, plotly_json, plotly_layout, plotly_text};
use crate::palette;
use crate::svg::{Anchor, Area, Canvas, WIDTH};

/// A drawn line has at most this many points: two per pixel column are all one can see.
const MAX_POINTS: usize = 1200;

/// Points as (x, y).
type Points = Vec<(f64, f64)>;

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
    /// A point worth a note, with the note.
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
        log_x: false,
    }
    .figure()
}

/// A chart of lines.
#[derive(Clone, Debug, Default)]
pub struct LineChart {
    /// The title.
    pub title: String,
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
}

impl LineChart {
    /// The figure.
    pub fn figure(&self) -> Figure {
        Figure::new(&self.title, self.plotly(), self.svg(), self.text())
    }

    fn svg(&self) -> String {
        let height = 400.0;
        let (top, bottom) = (64.0, height - 56.0);
        let shown: Vec<(Points, Points)> = self
            .lines
            .iter()
            .map(|line| (self.scaled(&line.points), self.scaled(&line.behind)))
            .collect();
        let all = || shown.iter().flat_map(|(points, behind)| points.iter().chain(behind)).copied();
        let y = Axis::over(all().map(|point| point.1), 5.0, false, bottom, top).padded(0.06);
        // Long labels of y need more room beside its name.
        let longest = y.ticks().iter().map(|(_, label)| label.len()).max().unwrap_or(0);
        let left = 68.0 + 7.0 * longest.saturating_sub(4) as f64;
        let area = Area { left, right: WIDTH - 72.0, top, bottom };
        let whole = self.whole_x || self.log_x;
        let x = Axis::over(all().map(|point| point.0), 7.0, whole, area.left, area.right);
        let x = if self.log_x { x.of_powers() } else { x };

        let mut canvas = Canvas::new(&self.title, height);
        canvas.axes(area, &x, &y, &self.x_label, &self.y_label);
        let place = |points: &[(f64, f64)]| {
            points.iter().map(|&(px, py)| (x.at(px), y.at(py))).collect::<Vec<_>>()
        };
        for (i, (_, behind)) in shown.iter().enumerate() {
            canvas.polyline(&place(behind), palette::series(i), 1.0, 0.3);
        }
        let mut ends = Vec::new();
        for (i, ((points, _), line)) in shown.iter().zip(&self.lines).enumerate() {
            let color = palette::series(i);
            let placed = place(points);
            canvas.polyline(&placed, color, 2.2, 1.0);
            if line.marks && placed.len() <= 60 || placed.len() == 1 {
                placed
                    .iter()
                    .for_each(|&(cx, cy)| canvas.circle(cx, cy, 3.5, palette::GROUND, color));
            }
            if let (Some(&(_, value)), Some(&(_, py))) = (points.last(), placed.last()) {
                ends.push((py, number(value), color));
            }
            if let Some(((nx, ny), note)) = &line.note
                && nx.is_finite()
                && ny.is_finite()
            {
                let (cx, cy) = (x.at(if self.log_x { nx.log10() } else { *nx }), y.at(*ny));
                canvas.circle(cx, cy, 6.0, "none", color);
                let anchor =
                    if cx > (area.left + area.right) / 2.0 { Anchor::End } else { Anchor::Start };
                canvas.text(cx, (cy - 14.0).max(area.top + 10.0), note, 12.0, color, anchor, true);
            }
        }
        for (py, value, color) in apart(ends, 15.0, area.bottom) {
            canvas.text(area.right + 8.0, py + 4.0, &value, 12.0, color, Anchor::Start, true);
        }
        if all().next().is_none() {
            let middle = ((area.left + area.right) / 2.0, (area.top + area.bottom) / 2.0);
            canvas.text(
                middle.0,
                middle.1,
                "no values yet",
                13.0,
                palette::QUIET,
                Anchor::Middle,
                false,
            );
        }
        let entries: Vec<(&str, &str)> = self
            .lines
            .iter()
            .enumerate()
            .map(|(i, line)| (line.name.as_str(), palette::series(i)))
            .collect();
        canvas.legend(area.left, 48.0, &entries);
        canvas.finish()
    }

    /// What is drawn of some points.
    fn scaled(&self, points: &[(f64, f64)]) -> Points {
        if !self.log_x {
            return decimated(&finite(points));
        }
        let logs: Points = points.iter().map(|(x, y)| (x.log10(), *y)).collect();
        decimated(&finite(&logs))
    }

    fn plotly(&self) -> Value {
        let mut traces: Vec<Box<dyn Trace>> = Vec::new();
        let coordinates = |points: &[(f64, f64)]| {
            let points = decimated(&finite(points));
            let (x, y): (Vec<f64>, Vec<f64>) = points.into_iter().unzip();
            (x, y.into_iter().map(rounded).collect::<Vec<f64>>())
        };
        // On a logarithmic axis plotly places annotations by the logarithm.
        let placed = |x: f64| if self.log_x { x.log10() } else { x };
        let mut annotations = Vec::new();
        for (i, line) in self.lines.iter().enumerate() {
            let color = palette::series(i);
            if !line.behind.is_empty() {
                let (x, y) = coordinates(&line.behind);
                let trace = Scatter::new(x, y)
                    .mode(Mode::Lines)
                    .show_legend(false)
                    .hover_info(HoverInfo::Skip)
                    .line(Stroke::new().color(color).width(1.0))
                    .opacity(0.3);
                traces.push(trace);
            }
            let (x, y) = coordinates(&line.points);
            let note = |text: String, x: f64, y: f64| {
                Annotation::new().x(placed(x)).y(y).text(text).font(Font::new().color(color))
            };
            if let (Some(&x), Some(&y)) = (x.last(), y.last()) {
                annotations.push(
                    note(number(y), x, y)
                        .show_arrow(false)
                        .x_anchor(plotly::common::Anchor::Left)
                        .x_shift(8.0),
                );
            }
            if let Some(((x, y), text)) = &line.note {
                annotations.push(
                    note(plotly_text(text), *x, rounded(*y))
                        .show_arrow(true)
                        .arrow_color(color)
                        .ax(0)
                        .ay(-32),
                );
            }
            let marks = line.marks || x.len() == 1;
            let trace = Scatter::new(x, y)
                .mode(if marks { Mode::LinesMarkers } else { Mode::Lines })
                .name(plotly_text(&line.name))
                .line(Stroke::new().color(color).width(2.2))
                .marker(Marker::new().size(7));
            traces.push(trace);
        }
        let x_axis = plotly_axis(&self.x_label);
        let x_axis = if self.log_x { x_axis.type_(AxisType::Log) } else { x_axis };
        let layout = plotly_layout(&self.title, x_axis, plotly_axis(&self.y_label))
            .hover_mode(HoverMode::XUnified)
            .annotations(annotations);
        plotly_json(traces, layout)
    }

    fn text(&self) -> String {
        let mut text = self.title.clone();
        for line in &self.lines {
            let points = finite(&line.points);
            let (Some(first), Some(last)) = (points.first(), points.last()) else {
                text.push_str(&format!("\n{}: no values yet", line.name));
                continue;
            };
            let note = line.note.as_ref().map(|(_, note)| format!(", {note}")).unwrap_or_default();
            text.push_str(&format!(
                "\n{}: {} → {}{note}  {}",
                line.name,
                number(first.1),
                number(last.1),
                sparkline(&points, 40)
            ));
        }
        text
    }
}

fn finite(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
}

/// Six digits: what a tooltip shows, without the noise that makes saved notebooks large.
fn rounded(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

/// At most [`MAX_POINTS`] points: of each run of neighbours the lowest and the highest, so that
/// spikes stay, and the two ends.
fn decimated(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    let run = points.len().div_ceil(MAX_POINTS / 2 - 1);
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
        assert_eq!(chart.scaled(&chart.lines[0].points).len(), 3, "0 has no logarithm");
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
