//! A heat map: one number for each pair of a row and a column, as a colour.

use plotly::common::{ColorBar, ColorScale, ColorScaleElement};
use plotly::layout::AxisType;

use crate::axis::number;
use crate::figure::{
    Figure, first_row_on_top, plotly_axis, plotly_json, plotly_layout, plotly_text,
};
use crate::palette;
use crate::svg::{Anchor, Canvas, WIDTH, text_width};

/// A table of numbers to be drawn in colours.
///
/// ```
/// use tunebook_charts::HeatMap;
/// let map = HeatMap {
///     title: "Ranks".to_owned(),
///     x_label: "block".to_owned(),
///     value_label: "rank".to_owned(),
///     columns: vec!["0".to_owned(), "1".to_owned()],
///     rows: vec!["q_proj".to_owned()],
///     values: vec![vec![Some(4.0), None]],
///     range: (0.0, 12.0),
/// };
/// assert!(map.figure().svg().starts_with("<svg"));
/// ```
#[derive(Clone, Debug, PartialEq, Default)]
pub struct HeatMap {
    /// Above the picture.
    pub title: String,
    /// Below the columns.
    pub x_label: String,
    /// What the numbers are.
    pub value_label: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Names of the rows, from the top.
    pub rows: Vec<String>,
    /// A list for each row with a number for each column; `None` where there is none.
    pub values: Vec<Vec<Option<f64>>>,
    /// The numbers of the lightest and of the darkest colour. The same for all pictures of a
    /// sequence, so that they can be compared.
    pub range: (f64, f64),
}

impl HeatMap {
    /// The picture.
    pub fn figure(&self) -> Figure {
        let names =
            self.rows.iter().map(|name| text_width(name, 12.0)).fold(40.0, f64::max).min(200.0);
        let (left, right, top) = (names + 28.0, WIDTH - 84.0, 44.0);
        let width = (right - left) / self.columns.len().max(1) as f64;
        let height = width.clamp(18.0, 30.0);
        let bottom = top + height * self.rows.len().max(1) as f64;
        let mut canvas = Canvas::new(&self.title, bottom.max(top + 90.0) + 52.0);
        for (row, name) in self.rows.iter().enumerate() {
            let y = top + height * row as f64;
            canvas.text(
                left - 8.0,
                y + height / 2.0 + 4.0,
                name,
                12.0,
                palette::INK,
                Anchor::End,
                false,
            );
            for column in 0..self.columns.len() {
                let x = left + width * column as f64;
                let (fill, ink) = match self.value(row, column) {
                    Some(value) => (self.color(value), self.ink(value)),
                    None => (palette::GRID.to_owned(), palette::QUIET),
                };
                canvas.rect(x + 0.5, y + 0.5, width - 1.0, height - 1.0, &fill, 1.0);
                let shown = self.value(row, column).map(number).unwrap_or_default();
                if text_width(&shown, 10.0) < width - 3.0 {
                    let middle = (x + width / 2.0, y + height / 2.0 + 3.5);
                    canvas.text(middle.0, middle.1, &shown, 10.0, ink, Anchor::Middle, false);
                }
            }
        }
        // No more names than there is room for.
        let widest =
            self.columns.iter().map(|name| text_width(name, 11.0) + 4.0).fold(1.0, f64::max);
        let every = (widest / width).ceil().max(1.0) as usize;
        for (column, name) in self.columns.iter().enumerate().step_by(every) {
            let x = left + width * (column as f64 + 0.5);
            canvas.text(x, bottom + 16.0, name, 11.0, palette::QUIET, Anchor::Middle, false);
        }
        canvas.text(
            (left + right) / 2.0,
            bottom + 38.0,
            &self.x_label,
            12.0,
            palette::QUIET,
            Anchor::Middle,
            false,
        );
        // The scale, dark above.
        const STEPS: usize = 20;
        let (low, high) = self.range;
        for step in 0..STEPS {
            let value = high - (high - low) * step as f64 / (STEPS - 1) as f64;
            canvas.rect(right + 16.0, top + 4.0 * step as f64, 12.0, 4.2, &self.color(value), 1.0);
        }
        let end = top + 4.0 * STEPS as f64;
        canvas.text(
            right + 32.0,
            top + 9.0,
            &number(high),
            11.0,
            palette::QUIET,
            Anchor::Start,
            false,
        );
        canvas.text(right + 32.0, end, &number(low), 11.0, palette::QUIET, Anchor::Start, false);
        canvas.text(
            right + 16.0,
            end + 15.0,
            &self.value_label,
            11.0,
            palette::QUIET,
            Anchor::Start,
            false,
        );
        Figure::new(&self.title, self.plotly(), canvas.finish(), self.text())
    }

    fn value(&self, row: usize, column: usize) -> Option<f64> {
        self.values.get(row)?.get(column).copied().flatten().filter(|value| value.is_finite())
    }

    /// Where a number lies in the range, 0 to 1.
    fn share(&self, value: f64) -> f64 {
        let (low, high) = self.range;
        if high > low { ((value - low) / (high - low)).clamp(0.0, 1.0) } else { 0.0 }
    }

    fn color(&self, value: f64) -> String {
        let at = self.share(value) * (palette::HEAT.len() - 1) as f64;
        let index = (at as usize).min(palette::HEAT.len() - 2);
        let (from, to, part) = (palette::HEAT[index], palette::HEAT[index + 1], at - index as f64);
        let mix = |i: usize| {
            (f64::from(from[i]) + (f64::from(to[i]) - f64::from(from[i])) * part).round() as u8
        };
        format!("#{:02X}{:02X}{:02X}", mix(0), mix(1), mix(2))
    }

    /// Readable on the number's colour.
    fn ink(&self, value: f64) -> &'static str {
        if self.share(value) > 0.5 { palette::GROUND } else { palette::INK }
    }

    fn plotly(&self) -> serde_json::Value {
        let last = (palette::HEAT.len() - 1) as f64;
        let scale = palette::HEAT.iter().enumerate().map(|(i, [r, g, b])| {
            ColorScaleElement(i as f64 / last, format!("#{r:02X}{g:02X}{b:02X}"))
        });
        let names =
            |names: &[String]| names.iter().map(|name| plotly_text(name)).collect::<Vec<_>>();
        let values: Vec<Vec<Option<f64>>> = (0..self.rows.len())
            .map(|row| (0..self.columns.len()).map(|column| self.value(row, column)).collect())
            .collect();
        let trace = plotly::HeatMap::new(names(&self.columns), names(&self.rows), values)
            .zmin(self.range.0)
            .zmax(self.range.1)
            .color_scale(ColorScale::Vector(scale.collect()))
            .x_gap(1)
            .y_gap(1)
            .color_bar(ColorBar::new().title(plotly_text(&self.value_label)));
        let layout = plotly_layout(
            &self.title,
            plotly_axis(&self.x_label).type_(AxisType::Category),
            plotly_axis("").type_(AxisType::Category),
        );
        let mut plotly = plotly_json(vec![trace], layout);
        first_row_on_top(&mut plotly);
        plotly
    }

    fn text(&self) -> String {
        let mut text = format!("{} ({} by {})", self.title, self.value_label, self.x_label);
        let width = self.rows.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        for (row, name) in self.rows.iter().enumerate() {
            text.push_str(&format!("\n{name:<width$} "));
            for column in 0..self.columns.len() {
                let shown = self.value(row, column).map_or("–".to_owned(), number);
                text.push_str(&format!(" {shown:>3}"));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map() -> HeatMap {
        HeatMap {
            title: "Ranks <b>".to_owned(),
            x_label: "block".to_owned(),
            value_label: "rank".to_owned(),
            columns: vec!["0".to_owned(), "1".to_owned()],
            rows: vec!["q_proj".to_owned(), "v_proj".to_owned()],
            values: vec![vec![Some(0.0), Some(12.0)], vec![Some(6.0), None]],
            range: (0.0, 12.0),
        }
    }

    #[test]
    fn each_number_has_its_colour_in_every_form() {
        let map = map();
        let figure = map.figure();
        for value in [0.0, 6.0, 12.0] {
            assert!(figure.svg().contains(&format!("fill=\"{}\"", map.color(value))), "{value}");
        }
        assert_eq!(
            [0.0, 4.0, 8.0, 12.0].map(|value| map.color(value)),
            ["#F4F8FB", "#9CC9E3", "#0072B2", "#002C4D"]
        );
        assert_eq!(map.color(-1.0), map.color(0.0));
        assert_eq!(map.color(99.0), map.color(12.0));
        assert!(map.color(0.0) != map.color(6.0) && map.color(6.0) != map.color(12.0));
        assert!(figure.svg().contains("Ranks &lt;b&gt;") && !figure.svg().contains("<b>"));
        assert_eq!(figure.plotly()["data"][0]["z"], json!([[0.0, 12.0], [6.0, null]]));
        assert_eq!(figure.text(), "Ranks <b> (rank by block)\nq_proj    0  12\nv_proj    6   –");
    }

    #[test]
    fn what_is_missing_or_odd_is_drawn_all_the_same() {
        let short = HeatMap { values: vec![vec![Some(f64::NAN)]], range: (1.0, 1.0), ..map() };
        assert!(!short.figure().svg().contains("NaN"));
        assert!(HeatMap::default().figure().svg().starts_with("<svg"));
    }
}
