//! Two scores against each other, and which points no other beats in both.

use plotly::Scatter;
use plotly::common::{
    ErrorData, ErrorType, HoverInfo, Line as Stroke, LineShape, Marker, Mode, Position,
};
use plotly::layout::HoverMode;
use serde_json::Value;

use crate::axis::{Axis, number};
use crate::figure::{Figure, plotly_axis, plotly_json, plotly_layout, plotly_text, with_subtitle};
use crate::lines::rounded;
use crate::palette;
use crate::svg::{Anchor, Area, Canvas, SUBTITLE_CHARS, WIDTH, shortened, text_width, wrapped};

/// The lower and the upper end of an interval.
type Ends = Option<(f64, f64)>;

/// A checkpoint or a strategy by two scores.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ParetoPoint {
    /// Its name.
    pub name: String,
    /// The score across, such as forgetting.
    pub x: f64,
    /// The score upright, such as accuracy.
    pub y: f64,
    /// The lower and the upper end of an interval of x.
    pub x_interval: Option<(f64, f64)>,
    /// The lower and the upper end of an interval of y.
    pub y_interval: Option<(f64, f64)>,
}

impl ParetoPoint {
    /// A point without intervals.
    pub fn new(name: impl Into<String>, x: f64, y: f64) -> Self {
        Self { name: name.into(), x, y, ..Self::default() }
    }
}

/// Points by two scores, of which the frontier is drawn: the points that no other one beats in one
/// score without being worse in the other. Points with a score that is not finite are left out.
///
/// ```
/// use tunebook_charts::{ParetoChart, ParetoPoint};
/// let figure = ParetoChart {
///     title: "Accuracy against forgetting".into(),
///     x_label: "forgetting (nats a token)".into(),
///     y_label: "accuracy".into(),
///     points: vec![
///         ParetoPoint::new("step 100", 0.02, 0.61),
///         ParetoPoint::new("step 200", 0.05, 0.74),
///         ParetoPoint::new("step 300", 0.11, 0.72),
///     ],
///     ..ParetoChart::default()
/// }
/// .figure();
/// assert!(figure.text().contains("on the frontier: step 100, step 200"));
/// ```
#[derive(Clone, Debug)]
pub struct ParetoChart {
    /// The title.
    pub title: String,
    /// What x is, with its unit.
    pub x_label: String,
    /// What y is, with its unit.
    pub y_label: String,
    /// The points.
    pub points: Vec<ParetoPoint>,
    /// Whether a larger x is better. Default: no.
    pub x_higher_is_better: bool,
    /// Whether a larger y is better. Default: yes.
    pub y_higher_is_better: bool,
}

impl Default for ParetoChart {
    fn default() -> Self {
        Self {
            title: String::new(),
            x_label: String::new(),
            y_label: String::new(),
            points: Vec::new(),
            x_higher_is_better: false,
            y_higher_is_better: true,
        }
    }
}

/// A place of the picture that is taken.
#[derive(Clone, Copy)]
struct Taken {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Taken {
    /// A line, with a pixel to each side.
    fn between((x1, y1): (f64, f64), (x2, y2): (f64, f64)) -> Self {
        Self {
            left: x1.min(x2) - 1.0,
            right: x1.max(x2) + 1.0,
            top: y1.min(y2) - 1.0,
            bottom: y1.max(y2) + 1.0,
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }
}

impl ParetoChart {
    /// The figure.
    pub fn figure(&self) -> Figure {
        Figure::new(&self.title, self.plotly(), self.svg(), self.text())
    }

    /// The numbers of the points that no other one beats, from the best x to the best y. Of equal
    /// ones the first.
    pub fn frontier(&self) -> Vec<usize> {
        // Both so that more is better.
        let score = |at: &usize| {
            let point = &self.points[*at];
            let signed = |value: f64, higher: bool| if higher { value } else { -value };
            (signed(point.x, self.x_higher_is_better), signed(point.y, self.y_higher_is_better))
        };
        let mut order: Vec<usize> = self.shown().collect();
        order.sort_by(|a, b| {
            let (a, b) = (score(a), score(b));
            b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1))
        });
        let mut best = f64::NEG_INFINITY;
        order.retain(|at| {
            let y = score(at).1;
            let is_better = y > best;
            best = best.max(y);
            is_better
        });
        order
    }

    fn shown(&self) -> impl Iterator<Item = usize> {
        let finite = |point: &ParetoPoint| point.x.is_finite() && point.y.is_finite();
        (0..self.points.len()).filter(move |at| finite(&self.points[*at]))
    }

    /// `lower is better across, higher is better upright`
    fn directions(&self) -> String {
        let word = |higher| if higher { "higher" } else { "lower" };
        let (x, y) = (word(self.x_higher_is_better), word(self.y_higher_is_better));
        format!("better: {x} across, {y} upright")
    }

    /// The corners of the frontier's stairs: what is reached at each x.
    fn stairs(&self, frontier: &[usize]) -> Vec<(f64, f64)> {
        let mut corners: Vec<(f64, f64)> = Vec::new();
        for at in frontier {
            let point = &self.points[*at];
            if let Some((_, y)) = corners.last() {
                corners.push((point.x, *y));
            }
            corners.push((point.x, point.y));
        }
        corners
    }

    fn svg(&self) -> String {
        let frontier = self.frontier();
        let points = || self.shown().map(|at| &self.points[at]);
        let ends = |value: f64, interval: Option<(f64, f64)>| {
            let (low, high) = interval.unwrap_or((value, value));
            [value, low, high].into_iter().filter(|value| value.is_finite())
        };
        let subtitle = wrapped(&self.subtitle(&frontier), SUBTITLE_CHARS);
        let top = 52.0 + 17.0 * subtitle.len() as f64;
        let bottom = top + 300.0;
        let y = points().flat_map(|point| ends(point.y, point.y_interval));
        let y = Axis::over(y, 5.0, false, bottom, top).padded(0.08);
        let longest = y.ticks().iter().map(|(_, label)| label.len()).max().unwrap_or(0);
        let left = 68.0 + 7.0 * longest.saturating_sub(4) as f64;
        let area = Area { left, right: WIDTH - 28.0, top, bottom };
        let x = points().flat_map(|point| ends(point.x, point.x_interval));
        let x = Axis::over(x, 7.0, false, area.left, area.right).padded(0.06);

        let mut canvas = Canvas::new(&self.title, bottom + 56.0);
        canvas.subtitle(&subtitle);
        canvas.axes(area, &x, &y, &self.x_label, &self.y_label);
        let stairs: Vec<(f64, f64)> =
            self.stairs(&frontier).iter().map(|(px, py)| (x.at(*px), y.at(*py))).collect();
        canvas.polyline(&stairs, palette::series(1), 1.6, 0.7);
        for at in self.shown() {
            let point = &self.points[at];
            let color = self.color(&frontier, at);
            let (cx, cy) = (x.at(point.x), y.at(point.y));
            if let Some((low, high)) = point.x_interval.filter(is_finite) {
                canvas.line((x.at(low), cy), (x.at(high), cy), color, 1.0, false);
            }
            if let Some((low, high)) = point.y_interval.filter(is_finite) {
                canvas.line((cx, y.at(low)), (cx, y.at(high)), color, 1.0, false);
            }
        }
        let mut taken: Vec<Taken> = Vec::new();
        for ends in stairs.windows(2) {
            taken.push(Taken::between(ends[0], ends[1]));
        }
        for at in self.shown() {
            let point = &self.points[at];
            let (cx, cy) = (x.at(point.x), y.at(point.y));
            if let Some((low, high)) = point.x_interval.filter(is_finite) {
                taken.push(Taken::between((x.at(low), cy), (x.at(high), cy)));
            }
            if let Some((low, high)) = point.y_interval.filter(is_finite) {
                taken.push(Taken::between((cx, y.at(low)), (cx, y.at(high))));
            }
        }
        for at in self.shown() {
            let point = &self.points[at];
            let (cx, cy) = (x.at(point.x), y.at(point.y));
            let fill = if frontier.contains(&at) { palette::series(1) } else { palette::GROUND };
            canvas.circle(cx, cy, 4.5, fill, self.color(&frontier, at));
            taken.push(Taken { left: cx - 6.0, right: cx + 6.0, top: cy - 6.0, bottom: cy + 6.0 });
        }
        for at in &frontier {
            let point = &self.points[*at];
            self.name(&mut canvas, area, (x.at(point.x), y.at(point.y)), &point.name, &mut taken);
        }
        canvas.finish()
    }

    /// Writes a point's name where it covers the least.
    fn name(
        &self,
        canvas: &mut Canvas,
        area: Area,
        (cx, cy): (f64, f64),
        name: &str,
        taken: &mut Vec<Taken>,
    ) {
        let name = shortened(name, 220.0, 12.0);
        let width = text_width(&name, 14.0); // as in a narrow page
        // The start of the text. Where less of x and more of y is better, nothing stands above to
        // the left of the frontier.
        let places = [
            (cx - 7.0 - width, cy - 7.0),
            (cx + 8.0, cy + 17.0),
            (cx + 8.0, cy - 7.0),
            (cx - 7.0 - width, cy + 17.0),
            (cx + 9.0, cy + 4.0),
            (cx - 9.0 - width, cy + 4.0),
            (cx - 7.0 - width, cy - 22.0),
            (cx + 8.0, cy + 32.0),
            (cx + 8.0, cy - 22.0),
        ];
        let boxed = |(left, base): (f64, f64)| Taken {
            left,
            right: left + width,
            top: base - 11.0,
            bottom: base + 3.0,
        };
        let cost = |place: &(f64, f64)| {
            let place = boxed(*place);
            let outside = place.left < area.left
                || place.right > WIDTH - 4.0
                || place.top < area.top - 12.0
                || place.bottom > area.bottom;
            let covered = taken.iter().filter(|other| other.overlaps(&place)).count();
            covered + 10 * usize::from(outside)
        };
        let Some(place) = places.iter().min_by_key(|place| cost(place)).copied() else { return };
        taken.push(boxed(place));
        canvas.note(place.0, place.1, &name, palette::INK, Anchor::Start);
    }

    fn color(&self, frontier: &[usize], at: usize) -> &'static str {
        if frontier.contains(&at) { palette::series(1) } else { palette::series(0) }
    }

    fn subtitle(&self, frontier: &[usize]) -> String {
        let count = self.shown().count();
        let left_out = match self.points.len() - count {
            0 => String::new(),
            n => format!(" ({n} without a finite score left out)"),
        };
        let directions = self.directions();
        format!("{} of {count} points on the frontier{left_out}; {directions}", frontier.len())
    }

    fn plotly(&self) -> Value {
        let frontier = self.frontier();
        let stairs = self.stairs(&frontier);
        let (x, y): (Vec<f64>, Vec<f64>) =
            stairs.iter().map(|(x, y)| (rounded(*x), rounded(*y))).unzip();
        let line = Scatter::new(x, y)
            .mode(Mode::Lines)
            .name("frontier")
            .hover_info(HoverInfo::Skip)
            .show_legend(false)
            .line(Stroke::new().color(palette::series(1)).width(1.6).shape(LineShape::Linear));
        let others: Vec<usize> = self.shown().filter(|at| !frontier.contains(at)).collect();
        // Where less of x is better, nothing stands above to the left of the frontier; names that
        // have no room there stand below to the right.
        let xs = || self.shown().map(|at| self.points[at].x);
        let (low, high) =
            (xs().fold(f64::INFINITY, f64::min), xs().fold(f64::NEG_INFINITY, f64::max));
        let place = |at: &usize| match self.points[*at].x < (low + high) / 2.0 {
            true => Position::BottomRight,
            false => Position::TopLeft,
        };
        let group = |members: &[usize], is_frontier: bool| {
            let of = |get: fn(&ParetoPoint) -> f64| -> Vec<f64> {
                members.iter().map(|at| rounded(get(&self.points[*at]))).collect()
            };
            let color = palette::series(usize::from(is_frontier));
            let errors = |get: fn(&ParetoPoint) -> (f64, Ends)| {
                let ends = |side: fn(f64, (f64, f64)) -> f64| -> Vec<f64> {
                    let end = |at: &usize| {
                        let (value, interval) = get(&self.points[*at]);
                        interval.filter(is_finite).map_or(0.0, |ends| rounded(side(value, ends)))
                    };
                    members.iter().map(end).collect()
                };
                let above = ends(|value, (_, high)| (high - value).max(0.0));
                let below = ends(|value, (low, _)| (value - low).max(0.0));
                ErrorData::new(ErrorType::Data)
                    .symmetric(false)
                    .array(above)
                    .array_minus(below)
                    .color(color)
                    .thickness(1.0)
            };
            let marker = Marker::new().size(9);
            let marker = match is_frontier {
                true => marker.color(color),
                false => marker
                    .color(palette::GROUND)
                    .line(Stroke::new().color(palette::series(0)).width(2.0)),
            };
            let names: Vec<String> =
                members.iter().map(|at| plotly_text(&self.points[*at].name)).collect();
            Scatter::new(of(|point| point.x), of(|point| point.y))
                .mode(if is_frontier { Mode::MarkersText } else { Mode::Markers })
                .name(if is_frontier { "on the frontier" } else { "not on the frontier" })
                .text_array(names)
                .text_position_array(members.iter().map(place).collect())
                .clip_on_axis(false)
                .hover_template("%{text}<br>%{xaxis.title.text}: %{x}<br>%{yaxis.title.text}: %{y}<extra></extra>")
                .error_x(errors(|point| (point.x, point.x_interval)))
                .error_y(errors(|point| (point.y, point.y_interval)))
                .marker(marker)
        };
        let layout =
            plotly_layout(&self.title, plotly_axis(&self.x_label), plotly_axis(&self.y_label));
        let layout = with_subtitle(layout, &self.title, &self.subtitle(&frontier), 400)
            .hover_mode(HoverMode::Closest);
        plotly_json(vec![line, group(&others, false), group(&frontier, true)], layout)
    }

    fn text(&self) -> String {
        let frontier = self.frontier();
        let names: Vec<&str> = frontier.iter().map(|at| self.points[*at].name.as_str()).collect();
        let mut text = format!(
            "{}\n{}\non the frontier: {}",
            self.title,
            self.subtitle(&frontier),
            names.join(", ")
        );
        for at in self.shown() {
            let point = &self.points[at];
            let mark = if frontier.contains(&at) { "*" } else { " " };
            let (x, y) = (number(point.x), number(point.y));
            text = format!(
                "{text}\n{mark} {}: {} {x}, {} {y}",
                point.name, self.x_label, self.y_label
            );
        }
        text
    }
}

fn is_finite((low, high): &(f64, f64)) -> bool {
    low.is_finite() && high.is_finite()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[(f64, f64)]) -> ParetoChart {
        let point = |(at, (x, y)): (usize, &(f64, f64))| ParetoPoint::new(at.to_string(), *x, *y);
        ParetoChart { points: points.iter().enumerate().map(point).collect(), ..Default::default() }
    }

    #[test]
    fn no_point_of_the_frontier_is_beaten_and_every_other_is() {
        let points = [(0.3, 0.7), (0.1, 0.5), (0.3, 0.6), (0.2, 0.5), (0.9, 0.71), (f64::NAN, 1.0)];
        assert_eq!(chart(&points).frontier(), [1, 0, 4]);
        let mut less = chart(&points);
        less.y_higher_is_better = false;
        assert_eq!(less.frontier(), [1]);
        less.x_higher_is_better = true;
        assert_eq!(less.frontier(), [4, 2, 3]);
        assert!(chart(&[]).frontier().is_empty());
        assert_eq!(chart(&[(0.1, 0.5), (0.1, 0.5)]).frontier(), [0], "the first of equals");
    }

    #[test]
    fn names_stand_apart_and_inside() {
        let close: Vec<(f64, f64)> =
            (0..4).map(|i| (0.1 + f64::from(i) * 0.002, 0.5 + f64::from(i) * 0.002)).collect();
        let mut chart = chart(&close);
        chart.points.push(ParetoPoint::new("far", 1.0, 0.9));
        for point in &mut chart.points {
            point.name = format!("checkpoint {}", point.name);
        }
        let svg = chart.svg();
        for name in ["checkpoint 0", "checkpoint 3", "checkpoint far"] {
            assert!(svg.contains(name), "{svg}");
        }
    }
}
