//! Horizontal bars: a few things compared by one number.

use plotly::common::{Marker, Orientation, TextPosition};

use crate::axis::{Axis, number};
use crate::figure::{
    Figure, first_row_on_top, plotly_axis, plotly_json, plotly_layout, plotly_text,
};
use crate::palette;
use crate::svg::{Anchor, Canvas, WIDTH, text_width};

/// One bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// What is measured.
    pub name: String,
    /// The number; not negative.
    pub value: f64,
}

impl Bar {
    /// A bar.
    pub fn new(name: impl Into<String>, value: f64) -> Self {
        Self { name: name.into(), value }
    }
}

/// Bars from zero, in the order given, each with its value written at its end.
pub fn bar_chart(title: &str, x_label: &str, bars: &[Bar]) -> Figure {
    let names = bars.iter().map(|bar| text_width(&bar.name, 12.0)).fold(40.0, f64::max).min(260.0);
    let (left, right, top) = (names + 28.0, WIDTH - 80.0, 44.0);
    let bottom = top + 30.0 * bars.len().max(1) as f64;
    let finite = |bar: &Bar| if bar.value.is_finite() { bar.value.max(0.0) } else { 0.0 };
    let x =
        Axis::over(std::iter::once(0.0).chain(bars.iter().map(finite)), 6.0, false, left, right);
    let mut canvas = Canvas::new(title, bottom + 52.0);
    for (value, label) in x.ticks() {
        canvas.line((x.at(value), top), (x.at(value), bottom), palette::GRID, 1.0, false);
        canvas.text(
            x.at(value),
            bottom + 18.0,
            &label,
            12.0,
            palette::QUIET,
            Anchor::Middle,
            false,
        );
    }
    for (i, bar) in bars.iter().enumerate() {
        let y = top + 30.0 * i as f64 + 5.0;
        let end = x.at(finite(bar));
        let shown: String = match bar.name.char_indices().nth(38) {
            Some((at, _)) => format!("{}…", &bar.name[..at]),
            None => bar.name.clone(),
        };
        canvas.rect(left, y, end - left, 20.0, palette::series(0), 0.9);
        canvas.text(left - 8.0, y + 14.0, &shown, 12.0, palette::INK, Anchor::End, false);
        canvas.text(
            end + 6.0,
            y + 14.0,
            &number(bar.value),
            12.0,
            palette::INK,
            Anchor::Start,
            true,
        );
    }
    canvas.line((left, top), (left, bottom), palette::QUIET, 1.0, false);
    canvas.text(
        (left + right) / 2.0,
        bottom + 40.0,
        x_label,
        12.0,
        palette::QUIET,
        Anchor::Middle,
        false,
    );

    let trace = plotly::Bar::new(
        bars.iter().map(finite).collect(),
        bars.iter().map(|bar| plotly_text(&bar.name)).collect(),
    )
    .orientation(Orientation::Horizontal)
    .text_array(bars.iter().map(|bar| number(bar.value)).collect())
    .text_position(TextPosition::Outside)
    // A value beside the longest bar may stand in the margin.
    .clip_on_axis(false)
    .marker(Marker::new().color(palette::series(0)));
    let layout = plotly_layout(title, plotly_axis(x_label), plotly_axis(""));
    let mut plotly = plotly_json(vec![trace], layout);
    first_row_on_top(&mut plotly);
    let mut text = format!("{title} ({x_label})");
    let width = bars.iter().map(|bar| bar.name.chars().count()).max().unwrap_or(0);
    for bar in bars {
        text.push_str(&format!("\n{:<width$}  {}", bar.name, number(bar.value)));
    }
    Figure::new(title, plotly, canvas.finish(), text)
}
