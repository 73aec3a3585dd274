//! The learning-rate range test ([Smith 2015](https://arxiv.org/abs/1506.01186)): a short run whose
//! learning rate rises from step to step, until the loss does. A good rate for training lies where
//! the loss falls fastest, some way below the one that breaks it.

use std::fmt;

use serde::{Deserialize, Serialize};
use tunebook_models::Model;

use crate::batch::collate::Sets;
use crate::error::{Error, Result};
use crate::train::args::TrainingArgs;
use crate::train::step::Stepper;

/// How a range test is run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LrRangeTest {
    /// The learning rate of the first step. Default 1e-6.
    pub start: f64,
    /// That of the last, if the loss bears it. Default 1.
    pub end: f64,
    /// Steps, each with a rate higher by the same factor. Default 60.
    pub steps: usize,
    /// The test ends when the smoothed loss exceeds its lowest value by so much, as a part of it.
    /// Default 0.5.
    pub diverged: f64,
}

impl Default for LrRangeTest {
    fn default() -> Self {
        Self { start: 1e-6, end: 1.0, steps: 60, diverged: 0.5 }
    }
}

impl LrRangeTest {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// The field, its value and the accepted range.
    pub fn validate(&self) -> Result<()> {
        let refuse = |field, value: String, expected| Err(Error::Config { field, value, expected });
        if !(self.start.is_finite() && self.start > 0.0) {
            return refuse("LrRangeTest.start", self.start.to_string(), "a finite number above 0");
        }
        if !(self.end.is_finite() && self.end > self.start) {
            return refuse(
                "LrRangeTest.end",
                self.end.to_string(),
                "a finite number above `start`",
            );
        }
        if self.steps < 4 {
            return refuse(
                "LrRangeTest.steps",
                self.steps.to_string(),
                "at least 4 steps (60 are usual)",
            );
        }
        if !(self.diverged.is_finite() && self.diverged > 0.0) {
            return refuse(
                "LrRangeTest.diverged",
                self.diverged.to_string(),
                "a finite number above 0",
            );
        }
        Ok(())
    }

    /// The rate of a step, counted from 0.
    pub(crate) fn rate(&self, step: usize) -> f64 {
        self.start * (self.end / self.start).powf(step as f64 / (self.steps - 1) as f64)
    }
}

/// One step of a range test.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LrPoint {
    /// Its learning rate.
    pub learning_rate: f64,
    /// Mean loss per loss-bearing token of its batch, before the update.
    pub loss: f64,
    /// The loss smoothed over the last steps.
    pub smoothed: f64,
}

/// What a range test found.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LrRange {
    /// Its steps.
    pub points: Vec<LrPoint>,
    /// Where the smoothed loss fell fastest, by the logarithm of the rate; `None` if it never fell.
    pub suggestion: Option<f64>,
    /// Where the test was ended because the loss had risen too far; `None` if it ran to its end.
    pub diverged_at: Option<f64>,
}

impl LrRange {
    /// Adds a step; false when the loss has risen too far.
    pub(crate) fn push(&mut self, learning_rate: f64, loss: f64, test: &LrRangeTest) -> bool {
        // The mean of the last steps: batches differ by more than one step of training changes.
        const LAST: usize = 5;
        let from = self.points.len().saturating_sub(LAST - 1);
        let recent = &self.points[from..];
        let sum: f64 = recent.iter().map(|point| point.loss).sum();
        let smoothed = (sum + loss) / (recent.len() + 1) as f64;
        let lowest = self.points.iter().map(|point| point.smoothed).fold(smoothed, f64::min);
        if loss.is_finite() {
            self.points.push(LrPoint { learning_rate, loss, smoothed });
        }
        let bears = loss.is_finite() && smoothed <= lowest * (1.0 + test.diverged);
        if !bears {
            self.diverged_at = Some(learning_rate);
        }
        bears
    }

    pub(crate) fn suggest(&mut self) {
        const SPAN: usize = 4;
        let lowest = (0..self.points.len())
            .min_by(|a, b| self.points[*a].smoothed.total_cmp(&self.points[*b].smoothed))
            .unwrap_or(0);
        // Slopes over a few steps, up to the lowest loss.
        let slope = |at: usize| {
            let (a, b) = (&self.points[at], &self.points[at + SPAN]);
            (b.smoothed - a.smoothed) / (b.learning_rate / a.learning_rate).ln()
        };
        let steepest =
            (0..(lowest + 1).saturating_sub(SPAN)).min_by(|a, b| slope(*a).total_cmp(&slope(*b)));
        self.suggestion = steepest.filter(|at| slope(*at) < 0.0).map(|at| {
            (self.points[at].learning_rate * self.points[at + SPAN].learning_rate).sqrt()
        });
    }
}

/// See [`Trainer::lr_range_test`](crate::Trainer::lr_range_test).
///
/// # Errors
/// As there.
pub(crate) fn run(
    model: &Model,
    args: &TrainingArgs,
    sets: &Sets,
    test: &LrRangeTest,
) -> Result<LrRange> {
    let mut stepper = Stepper::new(model, args, test.steps)?;
    stepper.hold_ranks();
    let before = stepper.weights()?;
    let mut range = LrRange::default();
    let tested = (|| {
        let steps_per_epoch = sets.steps_per_epoch(args);
        for step in 0..test.steps {
            let order = sets.order(args, step / steps_per_epoch);
            let chosen = order.chunks(args.rows_per_step()).nth(step % steps_per_epoch);
            let batches = sets.micro_batches(model, args, chosen.unwrap_or_default())?;
            match stepper.step_at(&batches, test.rate(step)) {
                Ok(outcome) if range.push(test.rate(step), outcome.loss, test) => {}
                Ok(_) => break,
                Err(Error::NotFinite { .. } | Error::GradientNotFinite { .. }) => {
                    range.diverged_at = Some(test.rate(step));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    })();
    stepper.set_weights(&before)?;
    match tested {
        Err(error) if !error.is_interruption() => return Err(error),
        _ => {}
    }
    range.suggest();
    Ok(range)
}

impl fmt::Display for LrRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "learning-rate range test: {} steps", self.points.len())?;
        match self.suggestion {
            Some(rate) => write!(f, ", the loss falls fastest near {rate:.1e}")?,
            None => write!(f, ", the loss never fell")?,
        }
        match self.diverged_at {
            Some(rate) => write!(f, ", and breaks away at {rate:.1e}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steepest_fall_is_found_and_the_rise_ends_the_test() {
        let test = LrRangeTest::default();
        let mut range = LrRange::default();
        for step in 0..test.steps {
            let rate = test.rate(step);
            // Falls from 4 to 2 around 1e-3 and breaks away from 3e-2 on.
            let loss = 2.0 + 2.0 / (1.0 + (rate / 1e-3).powi(2)) + (rate / 3e-2).powi(2);
            if !range.push(rate, loss, &test) {
                break;
            }
        }
        range.suggest();
        let suggestion = range.suggestion.unwrap();
        assert!((3e-4..5e-3).contains(&suggestion), "{suggestion}");
        let broke = range.diverged_at.unwrap();
        assert!((2e-2..0.5).contains(&broke), "{broke}");
        assert!(range.points.len() < test.steps);
        let mut flat = LrRange::default();
        (0..test.steps).for_each(|step| assert!(flat.push(test.rate(step), 3.0, &test)));
        flat.suggest();
        assert_eq!((flat.suggestion, flat.diverged_at), (None, None));
    }

    #[test]
    fn wrong_values_are_refused() {
        for (test, says) in [
            (LrRangeTest { start: 0.0, ..Default::default() }, "`LrRangeTest.start` is 0"),
            (LrRangeTest { end: 1e-7, ..Default::default() }, "`LrRangeTest.end` is 0.0000001"),
            (LrRangeTest { steps: 1, ..Default::default() }, "`LrRangeTest.steps` is 1"),
        ] {
            let error = test.validate().unwrap_err().to_string();
            assert!(error.starts_with(says), "{error}");
        }
    }
}
