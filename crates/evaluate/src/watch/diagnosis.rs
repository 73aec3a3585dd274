//! The diagnosis of a run from its losses: learning, overfitting, divergence, a plateau, and signs of
//! a fault in the data.
//!
//! A step's training loss is that of a few rows, so it is judged by means over stretches of steps and
//! by the errors of these means. The validation loss is that of the same rows each time; its noise is
//! taken from its third differences, which a smooth curve hardly has.

use std::fmt;

use serde::{Deserialize, Serialize};
use tunebook_tune::{EvalRecord, StepRecord};

/// Evaluations after training has begun, below which no curve is told from another.
const FEWEST_EVALS: usize = 3;
/// Evaluations after which the finding is looked at anew, at most.
const MOST_LOOKS: usize = 40;
/// The share of a loss below which a change of the validation loss is none.
const SMALL: f64 = 0.02;
/// Errors of a mean that a difference is larger than.
const ERRORS: f64 = 4.0;

/// What the losses of a run say.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// Not enough was measured.
    TooFewEvaluations {
        /// Evaluations after the first step.
        evaluations: usize,
    },
    /// Both losses fall, or the validation loss stays near its lowest value.
    Learning,
    /// The validation loss rises while the training loss falls.
    Overfitting {
        /// The step of the lowest validation loss, at which early stopping would have ended.
        since: usize,
        /// How far the validation loss has risen since.
        rise: f64,
    },
    /// The training loss rises, or a loss is not finite.
    Divergence {
        /// The step at which the training loss was lowest.
        since: usize,
    },
    /// Both losses have fallen, and neither falls any more.
    Plateau {
        /// The step from which on nothing has changed.
        since: usize,
    },
    /// Neither loss has fallen: the differences are those between batches.
    OnlyNoise,
    /// The validation loss lies below the training loss: the validation rows may be among the
    /// training rows, or are easier.
    ValidationBelowTraining {
        /// Training loss less validation loss.
        gap: f64,
    },
    /// The training loss falls and the validation loss has not since the first evaluation: rows are
    /// learned by heart. Completions may not belong to their prompts.
    NothingCarriesOver,
}

/// The diagnosis of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// What the losses say.
    pub finding: Finding,
    /// The step of the lowest validation loss, and that loss in nats per token.
    pub best: Option<(usize, f64)>,
    /// Validation loss less training loss at the latest evaluation, in nats per token.
    pub gap: Option<f64>,
}

impl Diagnosis {
    /// The diagnosis of these records, in the order of their steps. A finding holds when two
    /// evaluations in a row show it, and a plateau or overfitting until the validation loss is
    /// clearly lower than it was then.
    pub fn of(steps: &[StepRecord], evals: &[EvalRecord]) -> Self {
        let train = steps.iter().filter(|step| !step.skipped).map(|step| (step.step, step.loss));
        let validation = evals.iter().map(|eval| (eval.step, eval.loss));
        Self::of_losses(&train.collect::<Vec<_>>(), &validation.collect::<Vec<_>>())
    }

    /// As [`Diagnosis::of`], of the losses in nats per token, by rising step.
    pub fn of_losses(train: &[(usize, f64)], validation: &[(usize, f64)]) -> Self {
        // An evaluation before training belongs to no training loss.
        let first = validation.partition_point(|(step, _)| *step == 0);
        let curve = Curve { train, eval: &validation[first..] };
        Self { finding: curve.settled(), best: curve.best(), gap: curve.gap() }
    }
}

impl Finding {
    fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl fmt::Display for Diagnosis {
    /// One line, such as `overfitting since step 120: validation 0.412 there, 0.498 now; early
    /// stopping would have kept step 120`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let best = |f: &mut fmt::Formatter<'_>| match self.best {
            Some((step, loss)) => write!(f, "; lowest validation loss {loss:.3} at step {step}"),
            None => Ok(()),
        };
        match self.finding {
            Finding::TooFewEvaluations { evaluations: 0 } => {
                write!(f, "no evaluations: give validation rows to see overfitting")
            }
            Finding::TooFewEvaluations { evaluations } => write!(
                f,
                "too few evaluations to judge ({evaluations} of {FEWEST_EVALS}): evaluate more often (`eval_strategy`)"
            ),
            Finding::Learning => {
                write!(f, "learning")?;
                best(f)
            }
            Finding::Overfitting { since, rise } => {
                let lowest = self.best.map_or(f64::NAN, |(_, loss)| loss);
                write!(
                    f,
                    "overfitting since step {since}: validation loss {lowest:.3} there, {:.3} now; early stopping \
                     would have kept step {since}",
                    lowest + rise
                )
            }
            Finding::Divergence { since } => write!(
                f,
                "divergence since step {since}: the training loss rises; lower the learning rate or warm up longer"
            ),
            Finding::Plateau { since } => {
                write!(f, "plateau since step {since}: neither loss falls any more")?;
                best(f)
            }
            Finding::OnlyNoise => write!(
                f,
                "only noise: neither loss has fallen; raise the learning rate or look at the data"
            ),
            Finding::ValidationBelowTraining { gap } => write!(
                f,
                "validation loss {gap:.3} below training loss: look for validation rows among the training rows \
                 (`split.audit()`), or dropout that is too high"
            ),
            Finding::NothingCarriesOver => write!(
                f,
                "rows learned by heart: the training loss falls, the validation loss has not since the first \
                 evaluation; look whether completions belong to their prompts, or stop at the first evaluation"
            ),
        }
    }
}

/// A mean, and the error of it.
#[derive(Clone, Copy)]
struct Mean {
    mean: f64,
    error: f64,
}

impl Mean {
    fn of(values: &[f64]) -> Option<Self> {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        // Two values at least, for an error.
        (values.len() > 1).then(|| Self { mean, error: (variance / (n - 1.0) / n).sqrt() })
    }

    /// Whether it lies above another one by more than chance and by more than a share of it.
    fn is_above(&self, other: &Self, share: f64) -> bool {
        let difference = self.mean - other.mean;
        difference > ERRORS * self.error.hypot(other.error) && difference > share * other.mean.abs()
    }
}

/// The losses, by step.
#[derive(Clone, Copy)]
struct Curve<'a> {
    train: &'a [(usize, f64)],
    eval: &'a [(usize, f64)],
}

impl Curve<'_> {
    /// The curve up to an evaluation, and the steps behind the last one.
    fn up_to(self, evaluations: usize) -> Self {
        if evaluations >= self.eval.len() {
            return self;
        }
        let eval = &self.eval[..evaluations];
        let last = eval.last().map_or(0, |(step, _)| *step);
        let steps = self.train.partition_point(|(step, _)| *step <= last);
        Self { train: &self.train[..steps], eval }
    }

    /// The finding after all evaluations, one after the other.
    fn settled(&self) -> Finding {
        let now = self.finding();
        let evaluations = self.eval.len();
        if evaluations <= FEWEST_EVALS {
            return now;
        }
        let apart = evaluations.div_ceil(MOST_LOOKS);
        let looks = (FEWEST_EVALS..evaluations).filter(|n| (evaluations - n).is_multiple_of(apart));
        let lowest = |curve: &Self| curve.best().map_or(f64::NAN, |(_, best)| best);
        let mut findings: Vec<(Finding, f64)> =
            looks.map(|n| self.up_to(n)).map(|curve| (curve.finding(), lowest(&curve))).collect();
        findings.push((now, lowest(self)));
        let (mut settled, mut lowest) = findings[0];
        for pair in findings.windows(2) {
            let [(before, _), (finding, best)] = [pair[0], pair[1]];
            let goes_on = match (settled, finding) {
                // A plateau that a loss has hardly left goes on.
                (Finding::Plateau { .. }, Finding::Learning) => best > (1.0 - 4.0 * SMALL) * lowest,
                // Whatever carried over once has done so.
                (Finding::Overfitting { .. }, Finding::NothingCarriesOver) => true,
                // Overfitting goes on without a loss that is lower than before.
                (Finding::Overfitting { .. }, Finding::Learning | Finding::Plateau { .. }) => {
                    best > (1.0 - SMALL) * lowest
                }
                _ => false,
            };
            let is_plain = match finding {
                Finding::Overfitting { rise, .. } => rise > 4.0 * SMALL * best,
                Finding::Divergence { .. } => true,
                _ => false,
            };
            if finding.is_like(&settled) {
                settled = finding;
            } else if (is_plain || finding.is_like(&before)) && !goes_on {
                (settled, lowest) = (finding, best);
            }
        }
        settled
    }

    fn best(&self) -> Option<(usize, f64)> {
        let finite = self.eval.iter().filter(|(_, loss)| loss.is_finite());
        finite.min_by(|a, b| a.1.total_cmp(&b.1)).copied()
    }

    fn gap(&self) -> Option<f64> {
        let (_, last) = self.eval.last()?;
        Some(last - self.around(self.eval.len() - 1)?.mean)
    }

    /// The training losses between two steps, the first left out.
    fn train_in(&self, after: usize, to: usize) -> Vec<f64> {
        let place = |last: usize| self.train.partition_point(|(step, _)| *step <= last);
        let inside = &self.train[place(after)..place(to).max(place(after))];
        inside.iter().map(|(_, loss)| *loss).collect()
    }

    /// The training loss where an evaluation stands: the mean of the second half of the steps since
    /// the evaluation before.
    fn around(&self, eval: usize) -> Option<Mean> {
        let to = self.eval[eval].0;
        let from = if eval == 0 { 0 } else { self.eval[eval - 1].0 };
        let values = self.train_in(from, to);
        Mean::of(&values[values.len() / 2..])
            .or_else(|| Mean::of(&self.train_in(to.saturating_sub(2), to)))
    }

    /// The means of the training loss over a tenth of the steps each, with their last steps.
    fn stretches(&self) -> Vec<(usize, Mean)> {
        let size = (self.train.len() / 10).max(5);
        let whole = self.train.rchunks_exact(size).rev();
        whole
            .filter_map(|part| {
                let values: Vec<f64> = part.iter().map(|(_, loss)| *loss).collect();
                Some((part[part.len() - 1].0, Mean::of(&values)?))
            })
            .collect()
    }

    /// The noise of the validation loss, by its later third differences, which a parabola has not.
    fn noise(&self) -> f64 {
        let third =
            |four: &[(usize, f64)]| four[0].1 - 3.0 * four[1].1 + 3.0 * four[2].1 - four[3].1;
        let bends: Vec<f64> = self.eval.windows(4).map(|four| third(four).abs()).collect();
        // Of a few, all may be the curve's own.
        if bends.len() < 4 {
            return 0.0;
        }
        // The later ones: while the loss falls fast, it is not smooth on the scale of evaluations.
        let mut bends = bends[(bends.len() / 2).min(bends.len() - 4)..].to_vec();
        bends.sort_by(f64::total_cmp);
        // A quarter of a normal variable's values is smaller than 0.32 of its deviation, and a third
        // difference has twenty times the variance. The larger ones are the curve's own.
        bends[bends.len() / 4] / 0.3186 / 20.0f64.sqrt()
    }

    fn finding(&self) -> Finding {
        let evaluations = self.eval.len();
        if let Some(since) = self.diverges() {
            return Finding::Divergence { since };
        }
        let (Some((best_at, best)), true) = (self.best(), evaluations >= FEWEST_EVALS) else {
            return Finding::TooFewEvaluations { evaluations };
        };
        if self.is_noise() {
            return Finding::OnlyNoise;
        }
        if let Some(gap) = self.below_training() {
            return Finding::ValidationBelowTraining { gap };
        }
        let (first, last) = (self.eval[0].1, self.eval[evaluations - 1].1);
        let noise = self.noise();
        let small = (3.0 * noise).max(SMALL * best);
        let carries_over = first - best > small;
        if !carries_over && self.trains_on() {
            return Finding::NothingCarriesOver;
        }
        if carries_over && last - best > small {
            return Finding::Overfitting { since: best_at, rise: last - best };
        }
        match self.flat_since(noise) {
            Some(since) => Finding::Plateau { since },
            None => Finding::Learning,
        }
    }

    /// The step since which the training loss rises.
    fn diverges(&self) -> Option<usize> {
        if let Some((step, _)) =
            self.train.iter().chain(self.eval).find(|(_, loss)| !loss.is_finite())
        {
            return Some(step.saturating_sub(1));
        }
        let stretches = self.stretches();
        let (since, lowest) = stretches.iter().min_by(|a, b| a.1.mean.total_cmp(&b.1.mean))?;
        let (last, now) = stretches.last()?;
        let [.., (_, before), _] = &stretches[..] else { return None };
        (last > since && now.is_above(lowest, 0.25) && before.is_above(lowest, 0.1))
            .then_some(*since)
    }

    fn is_noise(&self) -> bool {
        let third = self.train.len() / 3;
        let values: Vec<f64> = self.train.iter().map(|(_, loss)| *loss).collect();
        let (Some(first), Some(last)) =
            (Mean::of(&values[..third]), Mean::of(&values[values.len() - third..]))
        else {
            return false;
        };
        let losses = self.eval.iter().map(|(_, loss)| *loss);
        let (low, high) = losses
            .fold((f64::INFINITY, 0.0f64), |(low, high), loss| (low.min(loss), high.max(loss)));
        let (of_train, of_eval) = ((first.mean - last.mean).abs(), high - low);
        let errors = first.error.hypot(last.error);
        of_train < (3.0 * errors).max(SMALL * first.mean) && of_eval < SMALL * high
    }

    /// Whether the training loss has fallen since the first evaluation.
    fn trains_on(&self) -> bool {
        let since = self.train_in(self.eval[0].0, usize::MAX);
        let third = since.len() / 3;
        let (first, last) = (&since[..third], &since[since.len() - third..]);
        match (Mean::of(first), Mean::of(last)) {
            (Some(first), Some(last)) => first.is_above(&last, 0.05),
            _ => false,
        }
    }

    /// How far the validation loss lies below the training loss around it, in the later half of the
    /// evaluations but the last, behind which there are no steps.
    fn below_training(&self) -> Option<f64> {
        let (mut train, mut eval, mut error) = (0.0, 0.0, 0.0f64);
        let inner = self.eval.len() / 2..self.eval.len() - 1;
        let count = inner.len() as f64;
        for at in inner {
            let [(before, _), (step, loss), (after, _)] = self.eval[at - 1..=at + 1] else {
                return None;
            };
            let reach = (step - before).min(after - step).div_ceil(2);
            let around = Mean::of(&self.train_in(step - reach, step + reach))?;
            (train, eval) = (train + around.mean / count, eval + loss / count);
            error = error.hypot(around.error / count);
        }
        let gap = train - eval;
        (gap > ERRORS * error && gap > 0.1 * train).then_some(gap)
    }

    /// The evaluation's step from which on neither loss has fallen: a third of the evaluations, and
    /// three at least.
    fn flat_since(&self, noise: f64) -> Option<usize> {
        let count = (self.eval.len() / 3).max(3);
        let from = self.eval.len().checked_sub(count + 1)?;
        let (before, losses) = (self.eval[from].1, &self.eval[from..]);
        let half = losses.len() / 2;
        let mean = |of: &[(usize, f64)]| of.iter().map(|(_, loss)| loss).sum::<f64>() / half as f64;
        let fall = mean(&losses[..half]) - mean(&losses[losses.len() - half..]);
        let error = noise * (2.0 / half as f64).sqrt();
        let train = self.train_in(self.eval[from].0, usize::MAX);
        let half = train.len() / 2;
        let (first, second) = (Mean::of(&train[..half])?, Mean::of(&train[half..])?);
        let flat = fall < error.max(0.01 * before);
        (flat && !first.is_above(&second, 0.03)).then_some(self.eval[from].0)
    }
}
