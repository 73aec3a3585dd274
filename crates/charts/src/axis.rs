//! Axes: a range, round ticks in it, and where a value lies on the picture.

/// A linear axis from `min` to `max`, drawn between the pixels `from` and `to`.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    pub min: f64,
    pub max: f64,
    from: f64,
    to: f64,
    /// Between two ticks.
    pub step: f64,
    /// The values are powers of ten, and are labelled so.
    powers: bool,
}

impl Axis {
    /// An axis that covers `values` (which are finite) with about `ticks` ticks. `whole` keeps
    /// ticks to whole numbers.
    pub(crate) fn over(
        values: impl Iterator<Item = f64>,
        ticks: f64,
        whole: bool,
        from: f64,
        to: f64,
    ) -> Self {
        let (mut min, mut max) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values {
            min = min.min(value);
            max = max.max(value);
        }
        if min > max {
            (min, max) = (0.0, 1.0);
        }
        // One value only, or values that differ less than a float can show: open the range around
        // it.
        let least = (min.abs().max(max.abs()) * 1e-9).max(1e-12);
        if max - min < least {
            let room = if whole { 1.0 } else { (min.abs() * 0.1).max(1e-6) };
            (min, max) = (min - room, max + room);
        }
        let mut step = round_step((max - min) / ticks);
        if whole {
            step = step.max(1.0).round();
        }
        Self { min, max, from, to, step, powers: false }
    }

    /// The axis of the logarithms of what it shows: 3 is labelled 1,000.
    pub(crate) fn of_powers(mut self) -> Self {
        self.powers = true;
        self
    }

    /// The axis with its ends moved out to the next ticks.
    pub(crate) fn widened_to_ticks(mut self) -> Self {
        self.min = (self.min / self.step + 1e-9).floor() * self.step;
        self.max = (self.max / self.step - 1e-9).ceil() * self.step;
        self
    }

    /// The axis with a margin of this share of its length at both ends.
    pub(crate) fn padded(mut self, share: f64) -> Self {
        let room = (self.max - self.min) * share;
        self.min -= room;
        self.max += room;
        self
    }

    /// The pixel of a value.
    pub(crate) fn at(&self, value: f64) -> f64 {
        self.from + (value - self.min) / (self.max - self.min) * (self.to - self.from)
    }

    /// The ticks, with their labels.
    pub(crate) fn ticks(&self) -> Vec<(f64, String)> {
        let first = (self.min / self.step - 1e-9).ceil() as i64;
        let last = (self.max / self.step + 1e-9).floor() as i64;
        (first..=last)
            .map(|i| {
                let value = i as f64 * self.step;
                (value, if self.powers { power(value) } else { label(value, self.step) })
            })
            .collect()
    }
}

/// 1, 2 or 5 times a power of ten, no smaller than `rough`.
pub(crate) fn round_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.log10().floor());
    let factor = rough / power;
    let round = match factor {
        f if f <= 1.0 + 1e-9 => 1.0,
        f if f <= 2.0 + 1e-9 => 2.0,
        f if f <= 5.0 + 1e-9 => 5.0,
        _ => 10.0,
    };
    round * power
}

/// The label of a power of ten: `1e-5`, `0.01`, `10`.
fn power(exponent: f64) -> String {
    match exponent {
        e if (-3.0..0.0).contains(&e) => format!("{:.*}", -e as usize, 10f64.powf(e)),
        e if (0.0..=4.0).contains(&e) => number(10f64.powf(e)),
        e => format!("1e{e:.0}"),
    }
}

/// A tick's label, with as many decimals as the step needs.
fn label(value: f64, step: f64) -> String {
    if value != 0.0 && (value.abs() >= 1e9 || step < 1e-6) {
        return format!("{value:.2e}");
    }
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    grouped(&format!("{value:.decimals$}"))
}

/// A value as one would write it: four significant digits, thousands grouped.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e12).contains(&magnitude) {
        return format!("{value:.3e}");
    }
    if value.fract() == 0.0 {
        return grouped(&format!("{value:.0}"));
    }
    let digits = if magnitude >= 1.0 { magnitude.log10().floor() as i32 + 1 } else { 1 };
    let decimals = (4 - digits).max(0) as usize;
    let text = if magnitude < 0.1 {
        format!("{value:.*}", (3 - magnitude.log10().floor() as i32).max(0) as usize)
    } else {
        format!("{value:.decimals$}")
    };
    grouped(&text)
}

/// Commas between the thousands of the whole part.
fn grouped(text: &str) -> String {
    let (sign, digits) = text.strip_prefix('-').map_or(("", text), |digits| ("-", digits));
    let (whole, fraction) =
        digits.split_once('.').map_or((digits, None), |(whole, fraction)| (whole, Some(fraction)));
    let mut out = String::from(sign);
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if let Some(fraction) = fraction {
        out.push('.');
        out.push_str(fraction);
    }
    // "-0" and "-0.00" are a zero.
    if out.starts_with('-') && !out.contains(|c: char| ('1'..='9').contains(&c)) {
        out.split_off(1)
    } else {
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(min: f64, max: f64, whole: bool) -> Vec<String> {
        Axis::over([min, max].into_iter(), 5.0, whole, 0.0, 100.0)
            .ticks()
            .into_iter()
            .map(|tick| tick.1)
            .collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels(0.0, 1.0, false), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(1.0, 12_000.0, true), ["5,000", "10,000"]);
        assert_eq!(labels(0.0, 3.0, true), ["0", "1", "2", "3"]);
        assert_eq!(labels(-0.02, 0.03, false), ["-0.02", "-0.01", "0.00", "0.01", "0.02", "0.03"]);
    }

    #[test]
    fn numbers_have_four_digits() {
        for (value, text) in [
            (1.23456, "1.235"),
            (12.3456, "12.35"),
            (1234.56, "1,235"),
            (0.0123456, "0.01235"),
            (5.0, "5"),
            (1e6, "1,000,000"),
            (-0.00001, "-1.000e-5"),
            (f64::NAN, "–"),
            (0.5, "0.500"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    proptest! {
        #[test]
        fn every_axis_has_ticks_inside_it(a in -1e9f64..1e9, b in -1e9f64..1e9, whole in any::<bool>()) {
            let axis = Axis::over([a, b].into_iter(), 5.0, whole, 0.0, 500.0).widened_to_ticks();
            let ticks = axis.ticks();
            prop_assert!((2..=14).contains(&ticks.len()), "{} ticks", ticks.len());
            for (value, _) in ticks {
                prop_assert!((-0.01..=500.01).contains(&axis.at(value)));
            }
            prop_assert!((-0.01..=500.01).contains(&axis.at(a)));
        }
    }
}
