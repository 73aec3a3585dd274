//! How values are spread: lengths in characters or tokens, losses, weights.

use plotly::Trace;
use plotly::common::Marker;
use plotly::layout::BarMode;
use serde_json::Value;

use crate::axis::{Axis, number, round_step};
use crate::figure::{Figure, plotly_axis, plotly_json, plotly_layout, plotly_text};
use crate::palette;
use crate::svg::{Anchor, Area, Canvas, WIDTH};

/// A named set of values.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Its name in the legend.
    pub name: String,
    /// The values; those that are not finite are left out.
    pub values: Vec<f64>,
}

impl Sample {
    /// A sample of these values.
    pub fn new(name: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Self {
        Self {
            name: name.into(),
            values: values.into_iter().filter(|value| value.is_finite()).collect(),
        }
    }

    /// The value that this share of the sample does not exceed (nearest rank).
    fn quantile(&self, share: f64) -> Option<f64> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied()
    }
}

/// A histogram of one or more samples over common bins, one panel each, with the median and the
/// 95th percentile marked.
pub fn histogram(title: &str, x_label: &str, samples: &[Sample]) -> Figure {
    let bins = Bins::over(samples);
    Figure::new(
        title,
        plotly(title, x_label, samples, &bins),
        svg(title, x_label, samples, &bins),
        text(title, samples),
    )
}

/// Bins of equal, round width.
struct Bins {
    start: f64,
    width: f64,
    count: usize,
}

impl Bins {
    fn over(samples: &[Sample]) -> Self {
        let all: Vec<f64> =
            samples.iter().flat_map(|sample| sample.values.iter().copied()).collect();
        let min = all.iter().copied().fold(f64::INFINITY, f64::min);
        let max = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if all.is_empty() || max - min <= 1e-9 * max.abs() {
            let at = if all.is_empty() { 0.0 } else { min };
            let width = round_step((at.abs() / 10.0).max(1e-6)).max(if at.fract() == 0.0 {
                1.0
            } else {
                0.0
            });
            return Self { start: at - width / 2.0, width, count: 1 };
        }
        // Between 12 and 40 bins, more for more values; whole numbers get bins of a whole width.
        let wanted = (1.5 * (all.len() as f64).sqrt()).clamp(12.0, 40.0);
        let mut width = round_step((max - min) / wanted);
        if all.iter().all(|value| value.fract() == 0.0) {
            width = width.max(1.0);
        }
        let start = (min / width).floor() * width;
        let count = ((max - start) / width).floor() as usize + 1;
        Self { start, width, count }
    }

    fn counts(&self, sample: &Sample) -> Vec<usize> {
        let mut counts = vec![0; self.count];
        for value in &sample.values {
            let bin = ((value - self.start) / self.width).floor() as usize;
            counts[bin.min(self.count - 1)] += 1;
        }
        counts
    }

    fn end(&self) -> f64 {
        self.start + self.width * self.count as f64
    }
}

fn svg(title: &str, x_label: &str, samples: &[Sample], bins: &Bins) -> String {
    let panel = 172.0;
    let height = 56.0 + panel * samples.len().max(1) as f64 + 52.0;
    let mut canvas = Canvas::new(title, height);
    for (i, sample) in samples.iter().enumerate() {
        let top = 56.0 + panel * i as f64 + 22.0;
        let area = Area { left: 68.0, right: WIDTH - 24.0, top, bottom: top + panel - 54.0 };
        let counts = bins.counts(sample);
        let x = Axis::over([bins.start, bins.end()].into_iter(), 8.0, false, area.left, area.right);
        let most = counts.iter().copied().max().unwrap_or(0).max(1) as f64;
        let y = Axis::over([0.0, most].into_iter(), 3.0, true, area.bottom, area.top)
            .widened_to_ticks();
        let last = i + 1 == samples.len();
        canvas.axes(area, &x, &y, if last { x_label } else { "" }, "count");
        for (bin, &count) in counts.iter().enumerate() {
            let left = x.at(bins.start + bins.width * bin as f64);
            let right = x.at(bins.start + bins.width * (bin + 1) as f64);
            let at = y.at(count as f64);
            canvas.rect(
                left + 0.5,
                at,
                right - left - 1.0,
                area.bottom - at,
                palette::series(i),
                0.85,
            );
        }
        canvas.legend(area.left, top - 8.0, &[(sample.name.as_str(), palette::series(i))]);
        let mut note = format!("n = {}", number(sample.values.len() as f64));
        for (name, share) in [("median", 0.5), ("95 %", 0.95)] {
            if let Some(value) = sample.quantile(share) {
                canvas.line(
                    (x.at(value), area.top),
                    (x.at(value), area.bottom),
                    palette::INK,
                    1.0,
                    true,
                );
                note.push_str(&format!(", {name} {}", number(value)));
            }
        }
        canvas.text(area.right, top - 8.0, &note, 12.0, palette::INK, Anchor::End, false);
    }
    canvas.finish()
}

fn plotly(title: &str, x_label: &str, samples: &[Sample], bins: &Bins) -> Value {
    // The counts, not the values: a figure of a million rows stays small.
    let centers: Vec<f64> =
        (0..bins.count).map(|bin| bins.start + bins.width * (bin as f64 + 0.5)).collect();
    let opacity = if samples.len() > 1 { 0.6 } else { 0.85 };
    let traces = samples.iter().enumerate().map(|(i, sample)| {
        let trace = plotly::Bar::new(centers.clone(), bins.counts(sample))
            .name(plotly_text(&sample.name))
            .width(bins.width)
            .marker(Marker::new().color(palette::series(i)))
            .opacity(opacity);
        trace as Box<dyn Trace>
    });
    let layout = plotly_layout(title, plotly_axis(x_label), plotly_axis("count"))
        .bar_mode(BarMode::Overlay)
        .bar_gap(0.0);
    plotly_json(traces.collect(), layout)
}

fn text(title: &str, samples: &[Sample]) -> String {
    let mut text = title.to_owned();
    for sample in samples {
        let at = |share: f64| sample.quantile(share).map_or("–".into(), number);
        text.push_str(&format!(
            "\n{}: n = {}, min {}, median {}, 95 % {}, max {}",
            sample.name,
            number(sample.values.len() as f64),
            at(0.0),
            at(0.5),
            at(0.95),
            at(1.0)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_value_falls_into_a_bin(values in proptest::collection::vec(-1e6f64..1e6, 0..200)) {
            let sample = Sample::new("x", values.clone());
            let bins = Bins::over(std::slice::from_ref(&sample));
            prop_assert_eq!(bins.counts(&sample).iter().sum::<usize>(), values.len());
            prop_assert!(bins.count <= 101, "{} bins", bins.count);
            for value in values {
                prop_assert!(value >= bins.start - 1e-6 && value <= bins.end() + 1e-6);
            }
        }
    }

    #[test]
    fn equal_and_missing_values_have_a_bin_too() {
        for values in [vec![], vec![5.0; 10], vec![0.0], vec![0.25; 3], vec![f64::NAN]] {
            let sample = Sample::new("x", values);
            let bins = Bins::over(std::slice::from_ref(&sample));
            assert_eq!(bins.counts(&sample).iter().sum::<usize>(), sample.values.len());
            histogram("t", "x", &[sample]);
        }
    }
}
