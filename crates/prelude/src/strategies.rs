//! Strategies trained and judged on the same rows.

use tunebook_charts::{Bar, Cell, Figure, Table, bar_chart};
use tunebook_data::Splits;
use tunebook_evaluate::{Error, Evaluation, EvaluationArgs, Score, evaluate_with};
use tunebook_models::Model;
use tunebook_tune::{
    Adapters as _, FullTuning as _, RunRecord, StopReason, Strategy, Trainer, TrainingArgs,
    TrainingSummary,
};

/// One of the strategies that [`compare_strategies`] compares.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    name: String,
    model: &'a Model,
    source: Source,
}

/// Where a candidate's weights come from.
#[derive(Clone, Debug)]
enum Source {
    Untouched,
    Train(Box<(Strategy, TrainingArgs)>),
    Trained(Box<RunRecord>),
}

impl<'a> Candidate<'a> {
    /// The base as it is.
    pub fn untouched(model: &'a Model) -> Self {
        Self { name: "untouched".to_owned(), model, source: Source::Untouched }
    }

    /// To be trained: an adapter, which stays in the model under this name, or the model's own
    /// weights (`Full`), which takes a model that no other candidate has.
    pub fn train(
        name: impl Into<String>,
        model: &'a Model,
        strategy: impl Into<Strategy>,
        args: &TrainingArgs,
    ) -> Self {
        let source = Source::Train(Box::new((strategy.into(), args.clone())));
        Self { name: name.into(), model, source }
    }

    /// Trained already: what this run left in the model.
    pub fn trained(name: impl Into<String>, model: &'a Model, run: &RunRecord) -> Self {
        Self { name: name.into(), model, source: Source::Trained(Box::new(run.clone())) }
    }
}

/// What came of one strategy.
#[derive(Clone, Debug)]
pub struct StrategyResult {
    /// Its name.
    pub name: String,
    /// What it trains and takes; `None` for the untouched base.
    pub costs: Option<TrainingSummary>,
    /// Its run; `None` for the untouched base.
    pub run: Option<RunRecord>,
    /// How it answers.
    pub evaluation: Evaluation,
    /// The size of what is saved, in bytes; 0 for the untouched base.
    pub file_bytes: u64,
}

/// Strategies that were trained and judged on the same rows.
#[derive(Clone, Debug)]
pub struct StrategyComparison {
    /// What came of each, in the order in which they were given.
    pub results: Vec<StrategyResult>,
    /// Stop ended it, and the strategies after the last of `results` are missing.
    pub stopped: bool,
}

/// Trains each candidate on the training rows, or takes it as it was trained, and judges all of them
/// on the validation rows. Stop ends it with the candidates that are whole.
///
/// ```no_run
/// use tunebook::prelude::*;
/// # fn f(model: Model, split: Splits) -> Result<(), EvaluateError> {
/// let args = TrainingArgs { max_steps: Some(60), ..Default::default() };
/// let lora = Lora { r: 8, lora_alpha: 32.0, ..Default::default() };
/// let found = compare_strategies(
///     &split,
///     [
///         Candidate::untouched(&model),
///         Candidate::train("lora", &model, &lora, &args),
///         Candidate::train("ia3", &model, &Ia3::default(), &args),
///     ],
///     &EvaluationArgs::default(),
/// )?;
/// println!("{}", found.table().text());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// A candidate that cannot be trained or judged; two of one name; a model whose own weights are
/// trained and that another candidate has, too.
pub fn compare_strategies<'a>(
    split: &Splits,
    candidates: impl IntoIterator<Item = Candidate<'a>>,
    evaluation: &EvaluationArgs,
) -> Result<StrategyComparison, Error> {
    run(split, &candidates.into_iter().collect::<Vec<_>>(), evaluation)
}

fn run(
    split: &Splits,
    candidates: &[Candidate<'_>],
    evaluation: &EvaluationArgs,
) -> Result<StrategyComparison, Error> {
    check(candidates)?;
    let mut found = StrategyComparison { results: Vec::new(), stopped: false };
    for candidate in candidates {
        let Some(result) = candidate.result(split, evaluation)? else {
            found.stopped = true;
            break;
        };
        found.results.push(result);
    }
    Ok(found)
}

/// Refuses what would spoil another candidate, before anything is trained.
fn check(candidates: &[Candidate<'_>]) -> Result<(), Error> {
    let refuse =
        |value: String, expected| Err(Error::Setting { field: "candidates", value, expected });
    for (at, candidate) in candidates.iter().enumerate() {
        let others = || candidates.iter().enumerate().filter(move |(other, _)| *other != at);
        if others().any(|(_, other)| other.name == candidate.name) {
            return refuse(format!("`{}` twice", candidate.name), "each name once");
        }
        let is_full = match &candidate.source {
            Source::Untouched => false,
            Source::Train(plan) => matches!(plan.0, Strategy::Full(_)),
            Source::Trained(run) => matches!(run.strategy, Strategy::Full(_)),
        };
        if matches!(&candidate.source, Source::Trained(_)) && is_full {
            let shares = |other: &Candidate<'_>| other.model.shares_weights_with(candidate.model);
            if let Some((_, other)) = others().find(|(_, other)| shares(other)) {
                return refuse(
                    format!(
                        "`{}`, whose weights the run of `{}` has trained",
                        other.name, candidate.name
                    ),
                    "a model of its own beside full fine-tuning (`Model::load` once more)",
                );
            }
        }
        let Source::Train(plan) = &candidate.source else { continue };
        if matches!(plan.0, Strategy::Full(_))
            && others().any(|(_, other)| other.model.shares_weights_with(candidate.model))
        {
            return refuse(
                format!("`{}`, which trains the weights of a model of others", candidate.name),
                "a model of its own for full fine-tuning (`Model::load` once more)",
            );
        }
    }
    Ok(())
}

impl Candidate<'_> {
    /// What comes of it; `None` when it was stopped.
    fn result(
        &self,
        split: &Splits,
        args: &EvaluationArgs,
    ) -> Result<Option<StrategyResult>, Error> {
        let (handle, run) = match &self.source {
            Source::Untouched => (self.model.base(), None),
            Source::Train(plan) => {
                let (strategy, training) = &**plan;
                match strategy {
                    Strategy::Adapter(config) => {
                        self.model.add_adapter_of(&self.name, (**config).clone())?;
                    }
                    Strategy::Full(config) => {
                        self.model.unfreeze(config)?;
                    }
                }
                let run = Trainer::new(self.model, training).train(split)?;
                if run.stopped == Some(StopReason::Interrupted) {
                    return Ok(None);
                }
                (self.model.pinned(), Some(run.record().clone()))
            }
            Source::Trained(run) => {
                let handle = match run.strategy {
                    Strategy::Adapter(_) => self.model.with_adapter(&run.adapter)?,
                    Strategy::Full(_) => self.model.pinned(),
                };
                (handle, Some((**run).clone()))
            }
        };
        let costs = match &run {
            Some(run) => Some(Trainer::new(&handle, &run.args).summary(split)?),
            None => None,
        };
        // What full fine-tuning leaves behind is a whole model.
        let whole = || self.model.memory_bytes();
        let file_bytes = costs.as_ref().map_or(0, |costs| costs.file_bytes.unwrap_or_else(whole));
        let evaluation = evaluate_with(&handle, &split.validation, args)?;
        if evaluation.stopped {
            return Ok(None);
        }
        Ok(Some(StrategyResult { name: self.name.clone(), costs, run, evaluation, file_bytes }))
    }
}

impl StrategyResult {
    /// Tokens a second of the training steps; `None` for the untouched base.
    pub fn tokens_per_sec(&self) -> Option<f64> {
        self.run.as_ref().map(RunRecord::tokens_per_sec)
    }
}

impl StrategyComparison {
    /// One row a strategy: what it trains, takes and leaves, and its scores with intervals.
    pub fn table(&self) -> Table {
        let scores = self.scores();
        let mut columns = ["strategy", "trained", "share", "memory", "tokens/s", "time", "file"]
            .map(str::to_owned)
            .to_vec();
        columns.extend(scores.iter().map(|score| score.metric.name.clone()));
        let mut table = Table::new(columns);
        for result in &self.results {
            let none = || Cell::Right("–".to_owned());
            let right = |text: Option<String>| text.map_or_else(none, Cell::Right);
            let costs = result.costs.as_ref();
            let run = result.run.as_ref();
            let mut cells = vec![
                Cell::from(result.name.as_str()),
                Cell::from(costs.map_or(0, |costs| costs.trainable_parameters)),
                right(costs.map(|costs| format!("{:.2} %", 100.0 * costs.share()))),
                right(costs.map(|costs| megabytes(costs.memory_bytes()))),
                right(run.map(|run| format!("{:.0}", run.tokens_per_sec()))),
                right(run.map(|run| format!("{:.0} s", run.secs))),
                right(costs.map(|_| megabytes(result.file_bytes))),
            ];
            cells.extend(scores.iter().map(|score| {
                let own = result.evaluation.score(&score.metric.name);
                right(own.map(|own| match own.interval {
                    Some(i) => format!("{:.4} ({:.4} to {:.4})", own.value, i.low, i.high),
                    None => format!("{:.4}", own.value),
                }))
            }));
            table.row(cells);
        }
        match self.stopped {
            true => table.note("Stopped: the strategies after these are missing."),
            false => table,
        }
    }

    /// A score, by its name, as bars.
    ///
    /// # Errors
    /// No strategy has a score of this name; the error names those there are.
    pub fn score_chart(&self, metric: &str) -> Result<Figure, Error> {
        let value = |result: &StrategyResult| Some(result.evaluation.score(metric)?.value);
        let bars = self.bars(value);
        let Some(score) = self.scores().iter().find(|score| score.metric.name == metric) else {
            let names: Vec<&str> =
                self.scores().iter().map(|score| score.metric.name.as_str()).collect();
            return Err(Error::Condition {
                condition: metric.to_owned(),
                problem: format!("there is no such score; there are {}", names.join(", ")),
            });
        };
        let better = if score.metric.higher_is_better { "higher" } else { "lower" };
        Ok(bar_chart(&format!("{metric} on held-out rows ({better} is better)"), metric, &bars))
    }

    /// The first generated or chosen score, else the loss; memory, speed and file size: four charts.
    pub fn charts(&self) -> Vec<Figure> {
        let mut charts = Vec::new();
        let losses = ["loss", "perplexity", "token_accuracy"];
        let scores = self.scores();
        let answers = scores.iter().find(|score| !losses.contains(&score.metric.name.as_str()));
        if let Some(score) = answers.or(scores.first()) {
            charts.extend(self.score_chart(&score.metric.name));
        }
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let memory = |result: &StrategyResult| {
            result.costs.as_ref().map(|costs| megabytes(costs.memory_bytes()))
        };
        let file =
            |result: &StrategyResult| result.costs.as_ref().map(|_| megabytes(result.file_bytes));
        charts.push(bar_chart("Memory of training", "MB", &self.bars(memory)));
        charts.push(bar_chart(
            "Speed of training",
            "tokens/s",
            &self.bars(StrategyResult::tokens_per_sec),
        ));
        charts.push(bar_chart("What is saved", "MB", &self.bars(file)));
        charts
    }

    fn bars(&self, value: impl Fn(&StrategyResult) -> Option<f64>) -> Vec<Bar> {
        let bar = |result: &StrategyResult| Some(Bar::new(&result.name, value(result)?));
        self.results.iter().filter_map(bar).collect()
    }

    fn scores(&self) -> &[Score] {
        self.results.first().map_or(&[], |result| &result.evaluation.scores)
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
