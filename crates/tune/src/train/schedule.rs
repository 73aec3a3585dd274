//! Learning-rate schedules, as `transformers` defines them: the factor of a step, counted from 0,
//! on the base learning rate.
//!
//! ```
//! use tunebook_tune::{LrScheduler, Schedule};
//! let schedule = Schedule::new(LrScheduler::Cosine, 1e-3, 10, 100);
//! assert_eq!(schedule.learning_rate(0), 0.0);
//! assert_eq!(schedule.learning_rate(10), 1e-3);
//! assert!(schedule.learning_rate(99) < 1e-5);
//! ```

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// How the learning rate moves after the warm-up (`lr_scheduler_type` of `transformers`).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum LrScheduler {
    /// Half a cosine from the base learning rate to 0.
    #[default]
    Cosine,
    /// A straight line to 0.
    Linear,
    /// The base learning rate throughout (after a warm-up, if one is asked for).
    Constant,
    /// Cosines that each fall to 0 and start again at the base learning rate.
    CosineWithRestarts {
        /// How many cosines.
        num_cycles: usize,
    },
    /// Warm-up, a stable stretch, then a straight line to 0 over the last steps.
    WarmupStableDecay {
        /// Steps of the last stretch.
        num_decay_steps: usize,
    },
}

/// A schedule for one run. Warm-up is a straight line from 0, so that step 0 of a run with warm-up
/// changes nothing, as in `transformers`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    scheduler: LrScheduler,
    base: f64,
    warmup_steps: usize,
    total_steps: usize,
}

impl Schedule {
    /// `base` learning rate, `warmup_steps` of `total_steps`.
    pub fn new(scheduler: LrScheduler, base: f64, warmup_steps: usize, total_steps: usize) -> Self {
        Self { scheduler, base, warmup_steps, total_steps }
    }

    /// The learning rate that optimizer step `step` uses, counted from 0.
    pub fn learning_rate(&self, step: usize) -> f64 {
        self.base * self.factor(step)
    }

    fn factor(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return step as f64 / self.warmup_steps as f64;
        }
        let progress = (step - self.warmup_steps) as f64
            / self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        match self.scheduler {
            LrScheduler::Constant => 1.0,
            LrScheduler::Linear => (1.0 - progress).max(0.0),
            LrScheduler::Cosine => (0.5 * (1.0 + (PI * progress).cos())).max(0.0),
            LrScheduler::CosineWithRestarts { .. } if progress >= 1.0 => 0.0,
            LrScheduler::CosineWithRestarts { num_cycles } => {
                (0.5 * (1.0 + (PI * ((num_cycles as f64 * progress) % 1.0)).cos())).max(0.0)
            }
            LrScheduler::WarmupStableDecay { num_decay_steps } => {
                let decay_from =
                    self.total_steps.saturating_sub(num_decay_steps).max(self.warmup_steps);
                match step.checked_sub(decay_from) {
                    None => 1.0,
                    Some(into) => (1.0 - into as f64 / num_decay_steps.max(1) as f64).max(0.0),
                }
            }
        }
    }
}
