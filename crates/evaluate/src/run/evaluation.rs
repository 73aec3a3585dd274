//! What an evaluation found: scores with intervals and signatures, and every row.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tunebook_tune::Metric;

use crate::classes::{ClassReport, Confusion, Reliability};
use crate::metric::{self, TextMetric, mean, sums};
use crate::run::answers::AnswerEnd;
use crate::statistics::{Bootstrap, Interval, cluster_sums, clustered_rate, number_or_nan, wilson};
use crate::{Error, Result};

/// The name of the accuracy among given answers, by the sum of their tokens' log-likelihoods.
pub(crate) const ACCURACY: &str = "accuracy";
/// The same by log-likelihood a character, as lm-evaluation-harness's `acc_norm`.
pub(crate) const ACCURACY_NORM: &str = "accuracy_norm";

/// A gate holds for the rows that were to be judged: one in so many may be missing.
const MOST_MISSING: usize = 100;

/// One number over all rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Its name, unit and direction.
    pub metric: Metric,
    /// Its value.
    #[serde(deserialize_with = "number_or_nan")]
    pub value: f64,
    /// Where it would lie with other rows of the same kind; `None` with fewer than two.
    pub interval: Option<Interval>,
    /// The number of rows.
    pub rows: usize,
    /// The number of clusters, where rows form some.
    pub clusters: Option<usize>,
    /// All that it depends on. Scores with different signatures are not comparable.
    pub signature: String,
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:.4}", self.metric.name, self.value)?;
        if let Some(Interval { low, high, .. }) = self.interval {
            write!(f, " [{low:.4}, {high:.4}]")?;
        }
        write!(f, " n={}", self.rows)
    }
}

/// One row, what was asked and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowResult {
    /// The row's number, from 0.
    pub row: usize,
    /// The last thing said before the answer.
    pub question: String,
    /// The right answers.
    pub references: Vec<String>,
    /// The model's answer, if one was asked for.
    pub answer: Option<String>,
    /// Why it ended.
    pub end: Option<AnswerEnd>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub answer_tokens: usize,
    /// For each of the answers to choose from its probability among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probabilities: Vec<f64>,
    /// For each metric its sufficient statistics.
    pub statistics: BTreeMap<String, Vec<f64>>,
    /// For each metric the score of this row alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scores: BTreeMap<String, f64>,
    /// The first row that asks and expects the same: the two count as one for intervals and tests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<usize>,
    /// Values to group by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, String>,
    /// Why the row could not be judged. Such rows count in no score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
}

/// Scores of some of the rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SliceScores {
    /// The column.
    pub column: String,
    /// Its value in these rows.
    pub value: String,
    /// Their scores.
    pub scores: Vec<Score>,
}

/// How well labels are told from each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Classification {
    /// Precision, recall and F1 by label.
    pub report: ClassReport,
    /// How often each label is taken for each other.
    pub confusion: Confusion,
    /// Whether the probabilities can be believed; of labels that were scored.
    pub reliability: Option<Reliability>,
}

/// What an evaluation found.
#[derive(Clone, Serialize, Deserialize)]
pub struct Evaluation {
    /// The model's name.
    pub model: String,
    /// What answered: the base or an adapter, by its name.
    pub active: String,
    /// The fingerprint of what answered, by content.
    pub fingerprint: String,
    /// All settings that the scores depend on, by name.
    pub settings: BTreeMap<String, String>,
    /// Scores over all rows.
    pub scores: Vec<Score>,
    /// Scores by the values of columns.
    pub slices: Vec<SliceScores>,
    /// How many answers ended in which way.
    pub ends: BTreeMap<AnswerEnd, usize>,
    /// Of answers that are labels.
    pub classification: Option<Classification>,
    /// Every row.
    pub rows: Vec<RowResult>,
    /// The column whose rows count as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// It was stopped, and has some of the rows only.
    pub stopped: bool,
    /// How many rows there were to judge.
    pub planned_rows: usize,
    /// Wall-clock time.
    #[serde(skip)]
    pub secs: f64,
    #[serde(skip)]
    pub(crate) measures: Vec<Measure>,
    #[serde(skip)]
    pub(crate) level: f64,
}

impl fmt::Debug for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.model, self.active)?;
        self.scores.iter().try_for_each(|score| write!(f, "; {score}"))
    }
}

/// A function of sums over rows.
type ScoreOf = Arc<dyn Fn(&[f64]) -> f64 + Send + Sync>;

/// A number that is a function of sums over rows.
#[derive(Clone)]
pub(crate) struct Measure {
    pub(crate) metric: Metric,
    pub(crate) settings: String,
    score: ScoreOf,
    is_rate: bool,
}

impl Measure {
    pub(crate) fn of_texts(metric: &Arc<dyn TextMetric>) -> Self {
        let of = Arc::clone(metric);
        Self {
            metric: metric.metric(),
            settings: metric.settings(),
            is_rate: metric.is_rate(),
            score: Arc::new(move |sums| of.score(sums)),
        }
    }

    /// A share of hits.
    pub(crate) fn rate(name: &str) -> Self {
        let metric = Metric::higher_is_better(name);
        Self { metric, settings: "version:1".into(), score: Arc::new(mean), is_rate: true }
    }

    /// Cross-entropy, perplexity and token accuracy, whose statistics are a sum and tokens. They are
    /// given per token, so those of two tokenizers are not comparable.
    pub(crate) fn of_losses(tokenizer: &str) -> [Self; 3] {
        let of = |metric, score: ScoreOf| Self {
            metric,
            settings: format!("tokenizer:{tokenizer}|version:1"),
            score,
            is_rate: false,
        };
        [
            of(Metric::loss(), Arc::new(mean)),
            of(Metric::lower_is_better("perplexity"), Arc::new(|sums| mean(sums).exp())),
            of(Metric::higher_is_better("token_accuracy"), Arc::new(mean)),
        ]
    }

    pub(crate) fn score(&self, sums: &[f64]) -> f64 {
        (self.score)(sums)
    }

    pub(crate) fn is_rate(&self) -> bool {
        self.is_rate
    }

    /// The score of some rows.
    ///
    /// # Errors
    /// A score that is not finite.
    pub(crate) fn over(
        &self,
        rows: &[&RowResult],
        cluster: Option<&str>,
        level: f64,
        settings: &BTreeMap<String, String>,
    ) -> Result<Option<Score>> {
        let name = &self.metric.name;
        let rows: Vec<&RowResult> =
            rows.iter().copied().filter(|row| row.statistics.contains_key(name)).collect();
        if rows.is_empty() {
            return Ok(None);
        }
        let statistics: Vec<Vec<f64>> =
            rows.iter().map(|row| row.statistics[name].clone()).collect();
        let value = self.score(&sums(&statistics));
        let clusters = clusters(&rows, cluster);
        let units = match &clusters {
            Some(clusters) => cluster_sums(&statistics, clusters)?,
            None => statistics.clone(),
        };
        let interval = if self.is_rate && clusters.is_none() {
            let hits = statistics.iter().map(|row| row[0]).sum::<f64>();
            Some(wilson(hits.round() as u64, rows.len() as u64, level)?)
        } else if units.len() < 2 {
            None
        } else if self.is_rate {
            Some(clustered_rate(&units, level)?)
        } else {
            let bootstrap = Bootstrap { level, resamples: 2000, ..Bootstrap::default() };
            let interval = bootstrap.interval(&units, |sums| self.score(sums))?;
            // Where all rows agree a resample says nothing of others.
            (interval.high > interval.low).then_some(interval)
        };
        let references = rows.first().map(|row| row.references.len());
        let references =
            references.filter(|count| rows.iter().all(|row| row.references.len() == *count));
        let mut signature = format!("{name}|{}", metric::signature(references, &self.settings));
        for (name, value) in settings {
            signature.push_str(&format!("|{name}:{value}"));
        }
        signature.push_str(&format!("|n:{}", rows.len()));
        Ok(Some(Score {
            metric: self.metric.clone(),
            value,
            interval,
            rows: rows.len(),
            clusters: clusters.is_some().then_some(units.len()),
            signature,
        }))
    }
}

/// Refuses a column that no row has.
pub(crate) fn check_cluster(rows: &[RowResult], column: Option<&str>) -> Result<()> {
    match column {
        Some(column) if !rows.iter().any(|row| row.columns.contains_key(column)) => {
            Err(Error::NoColumn { column: column.to_owned() })
        }
        _ => Ok(()),
    }
}

/// The cluster of each row: the value of a column, or without one the first row that asks and
/// expects the same. A row that has no value is a cluster of its own. `None` where all are.
pub(crate) fn clusters(rows: &[&RowResult], column: Option<&str>) -> Option<Vec<String>> {
    let own = |row: usize| format!("\u{0}{row}");
    match column {
        Some(column) => {
            let value = |row: &&RowResult| row.columns.get(column).cloned();
            Some(rows.iter().map(|row| value(row).unwrap_or_else(|| own(row.row))).collect())
        }
        None => rows
            .iter()
            .any(|row| row.same_as.is_some())
            .then(|| rows.iter().map(|row| own(row.same_as.unwrap_or(row.row))).collect()),
    }
}

impl Evaluation {
    /// The score of this name.
    pub fn score(&self, name: &str) -> Option<&Score> {
        self.scores.iter().find(|score| score.metric.name == name)
    }

    /// The value of the score of this name.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.score(name).map(|score| score.value)
    }

    /// How many answers were cut at the most tokens or at the end of the context.
    pub fn cut_answers(&self) -> usize {
        let count = |end| self.ends.get(&end).copied().unwrap_or(0);
        count(AnswerEnd::Length) + count(AnswerEnd::Context)
    }

    /// Fails where a condition is not met, and with it the cell, the headless run or the job:
    /// `exact_match >= 0.88`, or of the lower bound of the interval, `exact_match.low >= 0.85`.
    ///
    /// # Errors
    /// A condition that is not met, or cannot be read; an evaluation that was stopped, or in which more
    /// than a hundredth of the rows could not be judged.
    pub fn require(&self, condition: &str) -> Result<&Self> {
        let refuse =
            |problem: String| Error::Condition { condition: condition.to_owned(), problem };
        let form = || refuse("expected a score, one of >=, >, <=, < and a number".to_owned());
        let operator = [">=", "<=", ">", "<"].into_iter().find(|op| condition.contains(op));
        let operator = operator.ok_or_else(form)?;
        let (name, bound) = condition.split_once(operator).ok_or_else(form)?;
        let bound: f64 = bound.trim().parse().map_err(|_| form())?;
        if !bound.is_finite() {
            return Err(form());
        }
        let name = name.trim();
        let known = || {
            let names: Vec<&str> = self.scores.iter().map(|s| s.metric.name.as_str()).collect();
            names.join(", ")
        };
        let (name, end) = match name.rsplit_once('.') {
            Some((name, end @ ("low" | "high"))) => (name, Some(end)),
            _ => (name, None),
        };
        let score = self
            .score(name)
            .ok_or_else(|| refuse(format!("there is no score `{name}`, but {}", known())))?;
        let interval = || {
            score.interval.ok_or_else(|| {
                refuse(format!("`{name}` has no interval: too few rows, or all agree"))
            })
        };
        let value = match end {
            Some("low") => interval()?.low,
            Some(_) => interval()?.high,
            None => score.value,
        };
        if self.stopped {
            let (done, planned) = (self.rows.len(), self.planned_rows);
            return Err(refuse(format!(
                "the evaluation was stopped after {done} of {planned} rows"
            )));
        }
        let missing = self.planned_rows.saturating_sub(score.rows);
        if missing * MOST_MISSING > self.planned_rows {
            let reason = self
                .rows
                .iter()
                .find_map(|row| Some(format!("row {}: {}", row.row, row.left_out.as_ref()?)));
            let reason = reason.unwrap_or_else(|| "they have no reference".to_owned());
            return Err(refuse(format!(
                "`{name}` is that of {} of {} rows ({reason}); leave such rows out of what is judged",
                score.rows, self.planned_rows
            )));
        }
        let met = match operator {
            ">=" => value >= bound,
            "<=" => value <= bound,
            ">" => value > bound,
            _ => value < bound,
        };
        match met {
            true => Ok(self),
            false => Err(refuse(format!("found {value:.4} ({score})"))),
        }
    }

    /// All scores and rows as JSON, the same bytes whether or not the evaluation was interrupted on
    /// its way.
    ///
    /// # Errors
    /// None in practice.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(Error::json)
    }
}
