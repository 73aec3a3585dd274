//! Two evaluations of the same rows: is one model better, by how much, and is that more than
//! chance?

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use tunebook_tune::Metric;

use crate::metric::sums;
use crate::run::evaluation::{Evaluation, Measure, RowResult, check_cluster, clusters};
use crate::statistics::{
    Bootstrap, Interval, cluster_sums, holm, mcnemar_rows, number_or_nan, smallest_difference,
    smallest_rate_difference,
};
use crate::{Error, Result};

/// The p-value below which a difference counts.
const ALPHA: f64 = 0.05;
/// The share of differences of that size that so many rows should find.
const POWER: f64 = 0.8;
/// Fewer rows than this show nothing by a bootstrap.
const FEWEST: usize = 10;
/// The name of the test of scores that are no shares of hits.
const BOOTSTRAP: &str = "paired bootstrap";

/// What the comparison of two scores comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The first model's score is better, and not by chance.
    Better,
    /// It is worse, and not by chance.
    Worse,
    /// The rows show no difference; there may be one, smaller than
    /// [`ComparedScore::smallest_difference`].
    NoDifferenceShown,
    /// So few rows could not show any difference.
    TooFewRows,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::NoDifferenceShown => "no difference shown",
            Self::TooFewRows => "too few rows",
        })
    }
}

/// One score of both models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComparedScore {
    /// Its name, unit and direction.
    pub metric: Metric,
    /// This model's.
    #[serde(deserialize_with = "number_or_nan")]
    pub value: f64,
    /// The other model's.
    #[serde(deserialize_with = "number_or_nan")]
    pub other: f64,
    /// The first less the second.
    #[serde(deserialize_with = "number_or_nan")]
    pub difference: f64,
    /// The interval of the difference; `None` with fewer than two rows.
    pub interval: Option<Interval>,
    /// The test: `McNemar, mid-p` (the exact two-sided binomial with half the weight of the result
    /// itself), `paired bootstrap`, `none`.
    pub test: String,
    /// The chance of a difference at least as large between equal models.
    #[serde(deserialize_with = "number_or_nan")]
    pub p_value: f64,
    /// The same, corrected for several tests (Holm), of which the perplexity is none of its own:
    /// it is a function of the loss and has its p-value.
    #[serde(deserialize_with = "number_or_nan")]
    pub adjusted_p_value: f64,
    /// The smallest true difference that such rows find four times in five; `None`: none.
    pub smallest_difference: Option<f64>,
    /// What it comes to.
    pub verdict: Verdict,
    /// The number of rows, or of clusters where rows form some.
    pub units: usize,
    /// Whether rows form clusters: a column's, or rows that ask and expect the same.
    #[serde(default)]
    pub clustered: bool,
}

/// A row of which the answers of both models differ in a metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChangedRow {
    /// The row's number, from 0.
    pub row: usize,
    /// The last thing said before the answer.
    pub question: String,
    /// The right answers.
    pub references: Vec<String>,
    /// The other model's answer.
    pub before: String,
    /// This model's answer.
    pub after: String,
    /// The other model's score of the row.
    pub score_before: f64,
    /// This model's score of the row.
    pub score_after: f64,
}

/// Two evaluations of the same rows.
#[derive(Clone, Serialize, Deserialize)]
pub struct Comparison {
    /// This model.
    pub name: String,
    /// The model that it is compared with.
    pub other: String,
    /// The fingerprint of this model's answers, by content ([`Evaluation::fingerprint`]).
    #[serde(default)]
    pub fingerprint: String,
    /// The other model's.
    #[serde(default)]
    pub other_fingerprint: String,
    /// One entry a score.
    pub scores: Vec<ComparedScore>,
    /// Rows that this model has right and the other has not, by metric; for metrics of hits.
    pub newly_right: BTreeMap<String, Vec<ChangedRow>>,
    /// Rows that the other model has right and this one has not.
    pub newly_wrong: BTreeMap<String, Vec<ChangedRow>>,
    /// Rows whose loss changed most, for better or worse; at most fifty.
    pub most_changed: Vec<ChangedRow>,
}

impl Comparison {
    /// The number of tests that p-values are corrected for: one a score, loss and perplexity
    /// together.
    pub fn tests(&self) -> usize {
        (0..self.scores.len()).filter(|at| same_test(&self.scores, *at).is_none()).count()
    }
}

impl fmt::Debug for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} against {}", self.name, self.other)?;
        for score in &self.scores {
            let ComparedScore { metric, value, other, difference, verdict, .. } = score;
            write!(f, "; {}: {value:.4} against {other:.4}, {difference:+.4}", metric.name)?;
            if let Some(Interval { low, high, .. }) = score.interval {
                write!(f, " [{low:+.4}, {high:+.4}]")?;
            }
            write!(f, ", {verdict}")?;
        }
        Ok(())
    }
}

impl Evaluation {
    /// Compares this model's answers with another's to the same rows: McNemar's test for shares of
    /// hits, a paired bootstrap for the other scores and where rows form clusters
    /// ([`EvaluationArgs::cluster`](crate::EvaluationArgs::cluster), or rows that ask and expect the
    /// same), Holm's correction over all.
    ///
    /// # Errors
    /// Evaluations of other rows or with other settings, by the setting's name; one that was stopped
    /// or read from a file; no score in common.
    pub fn compare(&self, other: &Evaluation) -> Result<Comparison> {
        if self.cluster != other.cluster {
            let name = |of: &Evaluation| of.cluster.clone().unwrap_or_else(|| "none".to_owned());
            return Err(Error::NotComparable {
                field: "cluster".into(),
                problem: format!("are {} and {}", name(self), name(other)),
            });
        }
        self.compare_by(other, self.cluster.as_deref())
    }

    /// As [`Evaluation::compare`]; rows with the same value in the column `cluster` count as one.
    ///
    /// # Errors
    /// As [`Evaluation::compare`]; no row has the column.
    pub fn compare_clustered(&self, other: &Evaluation, cluster: &str) -> Result<Comparison> {
        check_cluster(&self.rows, Some(cluster))?;
        self.compare_by(other, Some(cluster))
    }

    fn compare_by(&self, other: &Evaluation, cluster: Option<&str>) -> Result<Comparison> {
        self.check_comparable(other)?;
        let mut scores = Vec::new();
        let (mut newly_right, mut newly_wrong) = (BTreeMap::new(), BTreeMap::new());
        for measure in &self.measures {
            let name = &measure.metric.name;
            if !other.measures.iter().any(|other| other.metric.name == *name) {
                continue;
            }
            let pairs = self.pairs(other, name);
            if pairs.is_empty() {
                continue;
            }
            scores.push(compared(measure, &pairs, cluster, self.level)?);
            if measure.is_rate() {
                let changed = |right: bool| -> Vec<ChangedRow> {
                    let moved = pairs.iter().filter(|(after, before)| {
                        let of = |row: &RowResult| row.statistics[name][0] > 0.5;
                        of(after) == right && of(before) != right
                    });
                    moved.map(|(after, before)| changed(name, after, before)).collect()
                };
                newly_right.insert(name.clone(), changed(true));
                newly_wrong.insert(name.clone(), changed(false));
            }
        }
        if scores.is_empty() {
            return Err(Error::NotComparable {
                field: "scores".into(),
                problem: "have no score in common".into(),
            });
        }
        adjust(&mut scores);
        let mut most_changed: Vec<ChangedRow> = self
            .pairs(other, "loss")
            .iter()
            .map(|(after, before)| changed("loss", after, before))
            .collect();
        let change = |row: &ChangedRow| (row.score_after - row.score_before).abs();
        most_changed.sort_by(|a, b| change(b).total_cmp(&change(a)).then(a.row.cmp(&b.row)));
        most_changed.truncate(50);
        let name = |evaluation: &Evaluation| {
            let Evaluation { active, model, fingerprint, .. } = evaluation;
            if self.active != other.active {
                active.clone()
            } else if self.model != other.model {
                format!("{active} of {model}")
            } else if self.fingerprint != other.fingerprint {
                // An adapter that was trained in between has its name still.
                format!("{active} ({})", fingerprint.chars().take(8).collect::<String>())
            } else {
                active.clone()
            }
        };
        Ok(Comparison {
            name: name(self),
            other: name(other),
            fingerprint: self.fingerprint.clone(),
            other_fingerprint: other.fingerprint.clone(),
            scores,
            newly_right,
            newly_wrong,
            most_changed,
        })
    }

    /// Rows that both have, with statistics of one metric.
    fn pairs<'a>(
        &'a self,
        other: &'a Evaluation,
        name: &str,
    ) -> Vec<(&'a RowResult, &'a RowResult)> {
        let others: BTreeMap<usize, &RowResult> =
            other.rows.iter().map(|row| (row.row, row)).collect();
        let pair = |row: &'a RowResult| Some((row, *others.get(&row.row)?));
        let has = |row: &RowResult| row.left_out.is_none() && row.statistics.contains_key(name);
        self.rows.iter().filter_map(pair).filter(|(a, b)| has(a) && has(b)).collect()
    }

    fn check_comparable(&self, other: &Evaluation) -> Result<()> {
        let refuse = |field: &str, problem: String| {
            Err(Error::NotComparable { field: field.to_owned(), problem })
        };
        for evaluation in [self, other] {
            if evaluation.stopped {
                let (done, all) = (evaluation.rows.len(), evaluation.planned_rows);
                let problem = format!("{} was stopped after {done} of {all}", evaluation.active);
                return refuse("rows", problem);
            }
            if evaluation.measures.is_empty() {
                return refuse("scores", "one was read from a file; evaluate again, which is quick where answers are kept".into());
            }
        }
        let names = self.settings.keys().chain(other.settings.keys());
        for name in names {
            let value = |of: &Evaluation| {
                of.settings.get(name).cloned().unwrap_or_else(|| "not set".to_owned())
            };
            let (one, two) = (value(self), value(other));
            if one != two {
                return refuse(name, format!("{one} and {two}"));
            }
        }
        for own in &self.measures {
            let same = other.measures.iter().find(|other| other.metric.name == own.metric.name);
            if let Some(same) = same.filter(|same| same.settings != own.settings) {
                let problem = format!("is `{}` and `{}`", own.settings, same.settings);
                return refuse(&own.metric.name, problem);
            }
        }
        Ok(())
    }
}

fn changed(metric: &str, after: &RowResult, before: &RowResult) -> ChangedRow {
    let score = |row: &RowResult| row.scores.get(metric).copied().unwrap_or(f64::NAN);
    ChangedRow {
        row: after.row,
        question: after.question.clone(),
        references: after.references.clone(),
        before: before.answer.clone().unwrap_or_default(),
        after: after.answer.clone().unwrap_or_default(),
        score_before: score(before),
        score_after: score(after),
    }
}

fn compared(
    measure: &Measure,
    pairs: &[(&RowResult, &RowResult)],
    cluster: Option<&str>,
    level: f64,
) -> Result<ComparedScore> {
    let name = &measure.metric.name;
    let of = |rows: Vec<&RowResult>| -> Vec<Vec<f64>> {
        rows.iter().map(|row| row.statistics[name].clone()).collect()
    };
    let own = of(pairs.iter().map(|(own, _)| *own).collect());
    let other = of(pairs.iter().map(|(_, other)| *other).collect());
    let rows: Vec<&RowResult> = pairs.iter().map(|(own, _)| *own).collect();
    let clusters = clusters(&rows, cluster);
    let (own_units, other_units) = match &clusters {
        Some(names) => (cluster_sums(&own, names)?, cluster_sums(&other, names)?),
        None => (own.clone(), other.clone()),
    };
    let units = own_units.len();
    let mut score = ComparedScore {
        metric: measure.metric.clone(),
        value: measure.score(&sums(&own)),
        other: measure.score(&sums(&other)),
        difference: 0.0,
        interval: None,
        test: "none".to_owned(),
        p_value: 1.0,
        adjusted_p_value: 1.0,
        smallest_difference: None,
        verdict: Verdict::TooFewRows,
        units,
        clustered: clusters.is_some(),
    };
    score.difference = score.value - score.other;
    if units < 2 {
        return Ok(score);
    }
    let bootstrap = Bootstrap { level, ..Bootstrap::default() };
    let paired = bootstrap.paired(&other_units, &own_units, |sums| measure.score(sums))?;
    score.interval = Some(paired.interval);
    if measure.is_rate() && clusters.is_none() {
        let hits = |rows: &[Vec<f64>]| rows.iter().map(|row| row[0] > 0.5).collect::<Vec<bool>>();
        let test = mcnemar_rows(&hits(&own), &hits(&other))?;
        let discordant = (test.only_first + test.only_second) as f64 / units as f64;
        // The mid-p value keeps to the level, where the exact test stays far below it.
        score.test = "McNemar, mid-p".to_owned();
        score.p_value = test.mid_p_value;
        score.smallest_difference = smallest_rate_difference(discordant, units as u64, POWER)?;
    } else {
        score.test = BOOTSTRAP.to_owned();
        score.p_value = paired.p_value;
        // Rows that all differ alike, or not at all, say nothing of how far others would.
        let size = score.value.abs().max(score.other.abs());
        let differs = paired.standard_error > 1e-9 * size;
        score.smallest_difference = match units >= FEWEST && differs {
            true => Some(smallest_difference(paired.standard_error, POWER)?),
            false => None,
        };
    }
    Ok(score)
}

/// The place of the loss among the scores, if the one at `at` is the perplexity, which rises and
/// falls with it: the two are one test.
fn same_test(scores: &[ComparedScore], at: usize) -> Option<usize> {
    let named = |name: &str| scores.iter().position(|score| score.metric.name == name);
    (scores[at].metric.name == "perplexity").then(|| named("loss")).flatten()
}

/// Corrects p-values for the number of tests, and gives the verdicts.
fn adjust(scores: &mut [ComparedScore]) {
    let tests: Vec<usize> =
        (0..scores.len()).filter(|at| same_test(scores, *at).is_none()).collect();
    let p_values: Vec<f64> = tests.iter().map(|at| scores[*at].p_value).collect();
    for (at, adjusted) in tests.into_iter().zip(holm(&p_values)) {
        scores[at].adjusted_p_value = adjusted;
    }
    for at in 0..scores.len() {
        if let Some(loss) = same_test(scores, at) {
            scores[at].p_value = scores[loss].p_value;
            scores[at].adjusted_p_value = scores[loss].adjusted_p_value;
        }
        scores[at].verdict = verdict(&scores[at]);
    }
}

fn verdict(score: &ComparedScore) -> Verdict {
    // Its p-value can be far too small then: four rows of one sign are no proof.
    if score.test == BOOTSTRAP && score.units < FEWEST {
        return Verdict::TooFewRows;
    }
    if score.adjusted_p_value < ALPHA && score.difference != 0.0 {
        return match (score.difference > 0.0) == score.metric.higher_is_better {
            true => Verdict::Better,
            false => Verdict::Worse,
        };
    }
    match score.smallest_difference {
        None if score.difference != 0.0 || score.units < FEWEST => Verdict::TooFewRows,
        _ => Verdict::NoDifferenceShown,
    }
}
