//! The evaluation itself: answers and losses, then their scores.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use tunebook_models::{
    Choices, EngineConfig, FinishReason, GenerationConfig, GenerationEngine, GenerationRequest,
    Model, TokenizedText,
};
use tunebook_progress::{ProgressBar, Stop};
use tunebook_tune::{Adapters as _, answering_fingerprint};

use crate::classes::{class_report, confusion, reliability};
use crate::metric::hit;
use crate::run::answers::{AnswerEnd, Answers, Line};
use crate::run::args::EvaluationArgs;
use crate::run::evaluation::{
    ACCURACY, ACCURACY_NORM, Classification, Evaluation, Measure, RowResult, SliceScores,
    check_cluster,
};
use crate::run::example::{EvalExample, IntoExamples};
use crate::run::order::{alike_together, at_once};
use crate::run::prepare::{Prepared, bytes, key, prepare};
use crate::{Error, Result};

/// Rows whose losses or choices are computed, and kept, at a time.
const BATCH: usize = 64;
/// Answers that are kept at a time.
const ANSWERS: usize = 32;
/// The most tokens of an answer, whatever the references.
const MOST_NEW_TOKENS: usize = 512;
/// The name of the loss among the statistics.
const LOSS: &str = "loss";

/// Judges what answers when this handle is asked: loss, perplexity, token accuracy, and whether
/// generated answers are the right ones.
///
/// ```no_run
/// # fn f(model: tunebook_models::Model) -> tunebook_evaluate::Result<()> {
/// use tunebook_evaluate::{EvalExample, evaluate};
/// let rows = [EvalExample::new("What is the capital of France?", "Paris")];
/// let evaluation = evaluate(&model, &rows)?;
/// println!("{:?}", evaluation.score("exact_match"));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`evaluate_with`].
pub fn evaluate<K>(model: &Model, rows: impl IntoExamples<K>) -> Result<Evaluation> {
    evaluate_with(model, rows, &EvaluationArgs::default())
}

/// Judges what answers when this handle is asked, as the arguments say. Stop ends it with the rows
/// so far; where answers are kept ([`EvaluationArgs::output_dir`]), the next call goes on.
///
/// # Errors
/// No rows; arguments that cannot work; rows of which no reference is among the answers to choose
/// from; a row that cannot be made tokens of, or measured, by its number; a file that cannot be
/// written.
pub fn evaluate_with<K>(
    model: &Model,
    rows: impl IntoExamples<K>,
    args: &EvaluationArgs,
) -> Result<Evaluation> {
    run(model, rows.into_examples()?, args) // what a cell compiles
}

fn run(model: &Model, mut examples: Vec<EvalExample>, args: &EvaluationArgs) -> Result<Evaluation> {
    let start = Instant::now();
    args.validate()?;
    if examples.is_empty() {
        return Err(Error::NoRows);
    }
    let numbers = spread(examples.len(), args.max_rows.unwrap_or(usize::MAX));
    if numbers.len() < examples.len() {
        examples = numbers.iter().map(|row| examples[*row].clone()).collect();
    }
    let model = model.pinned();
    let fingerprint = answering_fingerprint(&model)?;
    let mut answers = Answers::open(args.output_dir.as_deref(), &fingerprint)?;
    let prepared = prepare(&model, &examples, &numbers, args)?;
    let work =
        Work { model: &model, examples: &examples, numbers: &numbers, prepared: &prepared, args };
    let generation = work.generation();
    let mut rows = work.rows();
    let mut stopped = work.choices(&mut rows, &mut answers)?;
    if !stopped {
        stopped = work.generate(&mut rows, &generation, &mut answers)?;
    }
    // Those that no prompt's way through the model has brought along.
    stopped = work.losses(&mut rows, &mut answers, stopped)?;
    if stopped {
        rows.retain(|row| row.left_out.is_some() || work.is_done(row));
    }
    for row in &mut rows {
        let example = &examples[row.row];
        if let Some(answer) = row.answer.as_ref().filter(|_| row.left_out.is_none()) {
            for metric in &args.metrics {
                if example.references.is_empty() && metric.needs_references() {
                    continue;
                }
                let statistics =
                    metric.statistics(answer, &example.references).map_err(|error| Error::Row {
                        row: numbers[row.row],
                        problem: error.to_string(),
                    })?;
                row.statistics.insert(metric.metric().name, statistics);
            }
        }
    }
    let measures = work.measures()?;
    for row in &mut rows {
        let score = |measure: &Measure| {
            let name = &measure.metric.name;
            let score = measure.score(row.statistics.get(name)?);
            Some((name.clone(), score)).filter(|_| score.is_finite())
        };
        row.scores = measures.iter().filter_map(score).collect();
    }
    for metric in &args.metrics {
        let name = metric.metric().name;
        let judged = rows.iter().any(|row| row.statistics.contains_key(&name));
        let answered = rows.iter().any(|row| row.left_out.is_none() && row.answer.is_some());
        if answered && !judged {
            return Err(Error::NoReferences { metric: name });
        }
    }
    rows.iter_mut().for_each(|row| row.row = numbers[row.row]);
    let mut evaluation = Evaluation {
        model: model.name().to_owned(),
        active: model.active().to_string(),
        fingerprint,
        settings: work.settings(&generation),
        scores: Vec::new(),
        slices: Vec::new(),
        ends: BTreeMap::new(),
        classification: None,
        planned_rows: examples.len(),
        rows,
        stopped,
        secs: 0.0,
        cluster: args.cluster.clone(),
        measures,
        level: args.level,
    };
    evaluation.sum_up(args)?;
    evaluation.secs = start.elapsed().as_secs_f64();
    Ok(evaluation)
}

/// The rows that are judged of so many, in their order: one from each of `most` stretches of equal
/// length. Which one is a hash's choice, so that rows that take turns (every second one of a class)
/// are not all of one kind.
fn spread(rows: usize, most: usize) -> Vec<usize> {
    if rows <= most {
        return (0..rows).collect();
    }
    let border = |stretch: usize| (stretch as u128 * rows as u128 / most as u128) as usize;
    let one = |stretch: usize| {
        let (from, to) = (border(stretch), border(stretch + 1));
        let hash = xxhash_rust::xxh3::xxh3_64(&(stretch as u64).to_le_bytes());
        from + (hash % (to - from) as u64) as usize
    };
    (0..most).map(one).collect()
}

/// What there is to do. Rows are counted among those that are judged.
struct Work<'a> {
    model: &'a Model,
    examples: &'a [EvalExample],
    /// The rows' numbers for whoever gave them.
    numbers: &'a [usize],
    prepared: &'a [Prepared],
    args: &'a EvaluationArgs,
}

impl Work<'_> {
    fn rows(&self) -> Vec<RowResult> {
        let mut first: HashMap<String, usize> = HashMap::new();
        let mut same_as = |row: usize| {
            let first = *first.entry(key(&[&self.examples[row].asked()])).or_insert(row);
            (first < row).then(|| self.numbers[first])
        };
        let row = |(row, (example, prepared)): (usize, (&EvalExample, &Prepared))| RowResult {
            row,
            same_as: same_as(row),
            scores: BTreeMap::new(),
            question: example.question().to_owned(),
            references: example.references.clone(),
            answer: None,
            end: None,
            prompt_tokens: prepared.prompt.as_ref().map_or(0, Vec::len),
            answer_tokens: 0,
            probabilities: Vec::new(),
            statistics: BTreeMap::new(),
            columns: example.columns.clone(),
            left_out: prepared.left_out.clone(),
        };
        self.examples.iter().zip(self.prepared).enumerate().map(row).collect()
    }

    /// Whether a row gets an answer.
    fn asks(&self, row: usize) -> bool {
        let prepared = &self.prepared[row];
        prepared.choices.is_some()
            || (prepared.prompt.is_some()
                && self.examples[row].asks()
                && !self.args.metrics.is_empty())
    }

    /// Whether a row has all that it gets.
    fn is_done(&self, row: &RowResult) -> bool {
        let has_loss =
            self.prepared[row.row].reference.is_none() || row.statistics.contains_key(LOSS);
        match self.asks(row.row) {
            true => row.answer.is_some() && has_loss,
            false => row.answer.is_none(),
        }
    }

    /// How answers are generated.
    fn generation(&self) -> GenerationConfig {
        let longest = || {
            let tokens = |prepared: &Prepared| {
                let reference = prepared.reference.as_ref();
                reference.map_or(0, |text| text.loss_mask.iter().filter(|bears| **bears).count())
            };
            let longest = self.prepared.iter().map(tokens).max().unwrap_or(0);
            (2 * longest + 8).min(MOST_NEW_TOKENS)
        };
        let max_new_tokens = self.args.max_new_tokens.unwrap_or_else(longest);
        GenerationConfig { max_new_tokens, ..self.args.generation.clone() }
    }

    fn measures(&self) -> Result<Vec<Measure>> {
        let tokenizer = self.model.tokenizer().fingerprint()?;
        let tokenizer = key(&[tokenizer.as_bytes()])[..8].to_owned();
        let mut measures: Vec<Measure> = Measure::of_losses(&tokenizer).into();
        if self.prepared.iter().any(|row| row.choices.is_some()) {
            measures.push(Measure::rate(ACCURACY));
            measures.push(Measure::rate(ACCURACY_NORM));
        }
        measures.extend(self.args.metrics.iter().map(Measure::of_texts));
        Ok(measures)
    }

    /// Whatever scores depend on besides the model.
    fn settings(&self, generation: &GenerationConfig) -> BTreeMap<String, String> {
        let template = self.model.chat_template().map(|template| template.fingerprint());
        let hash = |text: &str| key(&[text.as_bytes()])[..8].to_owned();
        let mut settings = BTreeMap::from([
            ("template".to_owned(), template.map_or("none".to_owned(), |full| hash(&full))),
            ("few_shot".to_owned(), self.args.few_shot.len().to_string()),
        ]);
        if !self.args.few_shot.is_empty() {
            let shots = serde_json::to_string(&self.args.few_shot).unwrap_or_default();
            settings.insert("shots".to_owned(), hash(&shots));
        }
        if !self.args.labels.is_empty() {
            let count = self.args.labels.len();
            let labels = hash(&self.args.labels.join("\0"));
            settings.insert("labels".to_owned(), format!("{count}-{labels}"));
            settings.insert("label_margin".to_owned(), self.args.label_margin.to_string());
        } else if !self.args.metrics.is_empty() {
            let how = match generation.temperature {
                0.0 => "greedy".to_owned(),
                heat => format!("temperature-{heat}-seed-{}", generation.seed),
            };
            settings.insert("generation".to_owned(), how);
            settings.insert("max_new_tokens".to_owned(), generation.max_new_tokens.to_string());
            settings.extend(unusual(generation));
        }
        let mut all = xxhash_rust::xxh3::Xxh3::new();
        self.examples.iter().for_each(|example| all.update(&example.asked()));
        settings.insert("rows".to_owned(), format!("{:08x}", all.digest128() as u32));
        settings
    }

    /// An error of a text of a batch as one of its row.
    fn of_row(&self, error: Error, row: impl Fn(usize) -> usize) -> Error {
        match error {
            Error::Model(error) => match *error {
                tunebook_models::Error::Item { index, source, .. } => {
                    Error::Row { row: self.numbers[row(index)], problem: source.to_string() }
                }
                error => error.into(),
            },
            error => error,
        }
    }

    /// The tokens of a reference behind its prompt, if all that bear a loss follow the prompt as it is
    /// asked, and the context has room for both.
    fn after<'t>(&self, prompt: &[u32], text: &'t TokenizedText) -> Option<&'t [u32]> {
        let first = text.loss_mask.iter().position(|bears| *bears)?;
        let last = text.loss_mask.iter().rposition(|bears| *bears)?;
        let (reference, mask) = (text.ids.get(first..=last)?, &text.loss_mask[first..=last]);
        let follows = first == prompt.len() && text.ids.starts_with(prompt);
        let positions = self.model.positions_before() + prompt.len() + reference.len();
        let fits = positions < self.model.config().max_position_embeddings;
        (follows && fits && mask.iter().all(|bears| *bears)).then_some(reference)
    }

    /// The losses of references that are not known, unless it was `stopped`; whether it is now.
    fn losses(
        &self,
        rows: &mut [RowResult],
        answers: &mut Answers,
        mut stopped: bool,
    ) -> Result<bool> {
        let asked: Vec<(usize, &TokenizedText, String)> = self
            .prepared
            .iter()
            .enumerate()
            .filter_map(|(row, prepared)| {
                let text = prepared.reference.as_ref()?;
                Some((row, text, loss_key(text)))
            })
            .collect();
        let unknown = |(.., key): &&(usize, &TokenizedText, String)| answers.loss(key).is_none();
        let new: Vec<_> = if stopped { Vec::new() } else { asked.iter().filter(unknown).collect() };
        let bar = bar("Measuring losses", new.len(), "row");
        for batch in new.chunks(BATCH) {
            let texts: Vec<TokenizedText> =
                batch.iter().map(|(_, text, _)| (*text).clone()).collect();
            let losses = unless_stopped(self.model.text_losses(&texts));
            let Some(losses) = losses.map_err(|error| self.of_row(error, |at| batch[at].0))? else {
                stopped = true;
                break;
            };
            let lines = batch.iter().zip(&losses);
            let lines = lines.map(|((.., key), loss)| Line::loss(key.clone(), loss)).collect();
            answers.append(lines)?;
            bar.advance(batch.len() as u64);
        }
        for (row, _, key) in &asked {
            if let Some(Line::Loss { sum, tokens, correct, .. }) = answers.loss(key)
                && *tokens > 0
            {
                let tokens = *tokens as f64;
                let statistics = &mut rows[*row].statistics;
                statistics.insert(LOSS.to_owned(), vec![*sum, tokens]);
                statistics.insert("perplexity".to_owned(), vec![*sum, tokens]);
                statistics.insert("token_accuracy".to_owned(), vec![*correct as f64, tokens]);
            }
        }
        Ok(stopped)
    }

    /// The likeliest of given answers; whether it was stopped.
    fn choices(&self, rows: &mut [RowResult], answers: &mut Answers) -> Result<bool> {
        // A question's own choices are compared by their length, too, so all are scored whole.
        let margin = |row: usize| match self.examples[row].choices.is_empty() {
            true => self.args.label_margin,
            false => f64::INFINITY,
        };
        let asked: Vec<(usize, &Choices, String)> = self
            .prepared
            .iter()
            .enumerate()
            .filter_map(|(row, prepared)| {
                let choices = prepared.choices.as_ref()?;
                let texts: Vec<Vec<u8>> = choices.answers.iter().map(|ids| bytes(ids)).collect();
                let (prompt, margin) = (bytes(&choices.prompt), margin(row).to_le_bytes());
                let mut parts: Vec<&[u8]> = vec![&prompt, &margin];
                parts.extend(texts.iter().map(Vec::as_slice));
                Some((row, choices, key(&parts)))
            })
            .collect();
        let new: Vec<_> = asked.iter().filter(|(.., key)| answers.choices(key).is_none()).collect();
        let bar = bar("Choosing answers", new.len(), "row");
        let mut stopped = false;
        for own in [false, true] {
            let of_kind = |(row, ..): &&&(usize, &Choices, String)| {
                self.examples[*row].choices.is_empty() != own
            };
            let batchable: Vec<_> = new.iter().filter(of_kind).collect();
            for batch in batchable.chunks(BATCH) {
                let questions: Vec<Choices> =
                    batch.iter().map(|(_, choices, _)| (*choices).clone()).collect();
                let margin = if own { f64::INFINITY } else { self.args.label_margin };
                let scored = self.model.score_choices(&questions, margin);
                let scored = unless_stopped(scored);
                let scored = scored.map_err(|error| self.of_row(error, |at| batch[at].0));
                let Some(scored) = scored? else {
                    stopped = true;
                    break;
                };
                let lines = batch.iter().zip(&scored);
                let lines = lines.map(|((.., key), scores)| Line::choices(key.clone(), scores));
                answers.append(lines.collect())?;
                bar.advance(batch.len() as u64);
            }
        }
        for (row, choices, key) in &asked {
            if let Some(Line::Choices { sums, exact, .. }) = answers.choices(key) {
                self.choose(&mut rows[*row], choices, sums, exact);
            }
        }
        Ok(stopped)
    }

    fn choose(&self, row: &mut RowResult, choices: &Choices, sums: &[f64], exact: &[bool]) {
        let example = &self.examples[row.row];
        let own = !example.choices.is_empty();
        let names = if own { &example.choices } else { &self.args.labels };
        let best = |score: &dyn Fn(usize) -> f64| {
            let whole = (0..sums.len()).filter(|at| exact[*at]);
            // Of equals the first.
            whole.reduce(|best, at| if score(at) > score(best) { at } else { best })
        };
        let Some(chosen) = best(&|at| sums[at]) else { return };
        let right = |at: usize| example.references.contains(&names[at]);
        row.answer = Some(names[chosen].clone());
        row.end = Some(AnswerEnd::Chosen);
        row.answer_tokens = choices.answers[chosen].len();
        let most = sums.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = sums.iter().map(|sum| (sum - most).exp()).collect();
        let all: f64 = weights.iter().sum();
        row.probabilities = weights.iter().map(|weight| weight / all).collect();
        if example.references.is_empty() {
            return;
        }
        row.statistics.insert(ACCURACY.to_owned(), hit(right(chosen)));
        if own && let Some(chosen) = best(&|at| sums[at] / names[at].chars().count().max(1) as f64)
        {
            row.statistics.insert(ACCURACY_NORM.to_owned(), hit(right(chosen)));
        }
    }

    /// Generated answers; whether it was stopped.
    fn generate(
        &self,
        rows: &mut [RowResult],
        config: &GenerationConfig,
        answers: &mut Answers,
    ) -> Result<bool> {
        let same = asked_alike(config);
        let same = serde_json::to_vec(&same).map_err(Error::json)?;
        let samples = config.temperature > 0.0;
        let asked: Vec<(usize, &Vec<u32>, String)> = (0..rows.len())
            .filter(|row| self.asks(*row) && self.prepared[*row].choices.is_none())
            .filter_map(|row| {
                let prompt = self.prepared[row].prompt.as_ref()?;
                // A sample depends on its number, too.
                let number = if samples { self.numbers[row] as u64 } else { 0 };
                Some((row, prompt, key(&[&bytes(prompt), &same, &number.to_le_bytes()])))
            })
            .collect();
        let new: Vec<_> = asked.iter().filter(|(.., key)| answers.answer(key).is_none()).collect();
        let bar = bar("Generating answers", new.len(), "answer");
        let prompts: Vec<&[u32]> = new.iter().map(|(_, prompt, _)| prompt.as_slice()).collect();
        let max_batch_size = at_once(self.model.config(), &prompts, config);
        let size = EngineConfig { max_batch_size, ..EngineConfig::default() };
        let mut engine = GenerationEngine::new(self.model, size);
        let stop = Stop::cell();
        let mut running: HashMap<_, (usize, String, usize)> = HashMap::new();
        let mut asked_once: HashSet<&str> = HashSet::new();
        for at in alike_together(&prompts) {
            let (row, prompt, key) = new[at];
            // Equal questions are asked once.
            if !asked_once.insert(key) {
                continue;
            }
            let mut request = GenerationRequest::new(prompt.as_slice(), config)
                .with_number(self.numbers[*row])
                .with_stop(&stop);
            if let Some(text) = &self.prepared[*row].reference
                && answers.loss(&loss_key(text)).is_none()
                && let Some(reference) = self.after(prompt, text)
            {
                request = request.with_reference(reference);
            }
            running.insert(engine.insert(request)?, (at, String::new(), 0));
        }
        let mut stopped = false;
        let mut lines = Vec::new();
        let mut tokens = 0;
        while !engine.is_empty() {
            let events = engine.step();
            for (id, loss) in engine.take_losses() {
                let row = running.get(&id).map(|(at, ..)| new[*at].0);
                if let Some(text) = row.and_then(|row| self.prepared[row].reference.as_ref()) {
                    lines.push(Line::loss(loss_key(text), &loss));
                }
            }
            for event in events {
                let Some((at, text, count)) = running.get_mut(&event.id) else { continue };
                text.push_str(&event.text);
                *count += usize::from(event.token.is_some());
                tokens += usize::from(event.token.is_some());
                let Some(finish) = event.finish else { continue };
                if let FinishReason::Failed(problem) | FinishReason::Misformed(problem) =
                    finish.reason
                {
                    answers.append(std::mem::take(&mut lines))?;
                    return Err(Error::Row { row: self.numbers[new[*at].0], problem });
                }
                match AnswerEnd::of(&finish.reason) {
                    Some(end) => lines.push(Line::Answer {
                        key: new[*at].2.clone(),
                        text: std::mem::take(text),
                        end,
                        prompt_tokens: finish.usage.prompt_tokens,
                        tokens: *count,
                    }),
                    None => stopped = true,
                }
                bar.advance(1);
            }
            bar.message(format!("{tokens} tokens"));
            if lines.len() >= ANSWERS {
                answers.append(std::mem::take(&mut lines))?;
            }
        }
        answers.append(lines)?;
        for (row, _, key) in &asked {
            if let Some(Line::Answer { text, end, tokens, .. }) = answers.answer(key) {
                let row = &mut rows[*row];
                row.answer = Some(text.clone());
                row.end = Some(*end);
                row.answer_tokens = *tokens;
            }
        }
        Ok(stopped)
    }
}

/// What a text's loss is kept under.
fn loss_key(text: &TokenizedText) -> String {
    let mask: Vec<u8> = text.loss_mask.iter().map(|bears| u8::from(*bears)).collect();
    key(&[&bytes(&text.ids), &mask])
}

/// The configuration without what changes no answer.
fn asked_alike(config: &GenerationConfig) -> GenerationConfig {
    let mut same = GenerationConfig { batch_size: 1, ..config.clone() };
    if config.temperature == 0.0 {
        same.seed = 0;
    }
    same
}

/// The settings of generated answers that are not the default, by name.
fn unusual(config: &GenerationConfig) -> Vec<(String, String)> {
    let fields = |config: &GenerationConfig| {
        let config =
            GenerationConfig { max_new_tokens: 1, temperature: 0.0, ..asked_alike(config) };
        match serde_json::to_value(GenerationConfig { seed: 0, ..config }) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        }
    };
    let default = fields(&GenerationConfig::default());
    let own = fields(config).into_iter().filter(|(name, value)| default.get(name) != Some(value));
    own.map(|(name, value)| (name, value.to_string().replace('|', r"\x7c"))).collect()
}

/// A bar, if there is something to wait for.
fn bar(label: &str, total: usize, unit: &str) -> Bar {
    Bar((total > 1).then(|| ProgressBar::new(label, Some(total as u64)).unit(unit)))
}

struct Bar(Option<ProgressBar>);

impl Bar {
    fn advance(&self, count: u64) {
        if let Some(bar) = &self.0 {
            bar.advance(count);
        }
    }

    fn message(&self, text: String) {
        if let Some(bar) = &self.0 {
            bar.message(text);
        }
    }
}

/// `None` where the work was asked to stop.
fn unless_stopped<T>(result: tunebook_models::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(tunebook_models::Error::Interrupted(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Evaluation {
    /// Scores, slices and classes of the rows.
    fn sum_up(&mut self, args: &EvaluationArgs) -> Result<()> {
        let judged: Vec<&RowResult> =
            self.rows.iter().filter(|row| row.left_out.is_none()).collect();
        let scores = |rows: &[&RowResult]| -> Result<Vec<_>> {
            let over = |measure: &Measure| {
                measure.over(rows, args.cluster.as_deref(), args.level, &self.settings)
            };
            Ok(self
                .measures
                .iter()
                .map(over)
                .collect::<Result<Vec<_>>>()?
                .into_iter()
                .flatten()
                .collect())
        };
        check_cluster(&self.rows, args.cluster.as_deref())?;
        let mut slices = Vec::new();
        for column in &args.slices {
            for (value, rows) in groups(&judged, column)? {
                let scores = scores(&rows)?;
                slices.push(SliceScores { column: column.clone(), value, scores });
            }
        }
        let overall = scores(&judged)?;
        let mut ends = BTreeMap::new();
        for end in judged.iter().filter_map(|row| row.end) {
            *ends.entry(end).or_insert(0) += 1;
        }
        let classification = classification(&judged, args)?;
        (self.scores, self.slices, self.ends) = (overall, slices, ends);
        self.classification = classification;
        Ok(())
    }
}

/// The rows by the value of a column; without a column of that name by `class`, the first right
/// answer, or by `length`, thirds by the tokens of the prompt.
fn groups<'a>(rows: &[&'a RowResult], column: &str) -> Result<Vec<(String, Vec<&'a RowResult>)>> {
    let has_column = rows.iter().any(|row| row.columns.contains_key(column));
    if !has_column && column == "length" {
        let mut rows = rows.to_vec();
        rows.sort_by_key(|row| (row.prompt_tokens, row.row));
        let size = rows.len().div_ceil(3).max(1);
        let name = |rows: &[&RowResult]| {
            let tokens = |row: Option<&&RowResult>| row.map_or(0, |row| row.prompt_tokens);
            format!("{} to {} tokens", tokens(rows.first()), tokens(rows.last()))
        };
        return Ok(rows.chunks(size).map(|rows| (name(rows), rows.to_vec())).collect());
    }
    let value = |row: &RowResult| match has_column {
        true => row.columns.get(column).cloned().unwrap_or_default(),
        false => row.references.first().cloned().unwrap_or_default(),
    };
    if !has_column && column != "class" {
        return Err(Error::NoColumn { column: column.to_owned() });
    }
    let mut groups: BTreeMap<String, Vec<&RowResult>> = BTreeMap::new();
    for row in rows {
        groups.entry(value(row)).or_default().push(row);
    }
    Ok(groups.into_iter().collect())
}

fn classification(rows: &[&RowResult], args: &EvaluationArgs) -> Result<Option<Classification>> {
    if args.labels.is_empty() {
        return Ok(None);
    }
    let rows: Vec<(&str, &str, &RowResult)> = rows
        .iter()
        .filter_map(|row| {
            let answer = row.answer.as_deref()?;
            // Of several right answers the one that was given, else the first that is a label.
            let right = row.references.iter().find(|reference| *reference == answer);
            let label = || row.references.iter().find(|text| args.labels.contains(text));
            let truth = right.or_else(label).or(row.references.first())?;
            Some((truth.as_str(), answer, *row))
        })
        .collect();
    if rows.is_empty() {
        return Ok(None);
    }
    let truth: Vec<&str> = rows.iter().map(|(truth, ..)| *truth).collect();
    let predicted: Vec<&str> = rows.iter().map(|(_, predicted, _)| *predicted).collect();
    let labels: Vec<&str> = args.labels.iter().map(String::as_str).collect();
    let sure: Vec<f64> = rows
        .iter()
        .map(|(.., row)| row.probabilities.iter().copied().fold(0.0, f64::max))
        .collect();
    let right: Vec<bool> = rows.iter().map(|(truth, answer, _)| truth == answer).collect();
    Ok(Some(Classification {
        report: class_report(&truth, &predicted, Some(&labels))?,
        confusion: confusion(&truth, &predicted, Some(&labels))?,
        reliability: Some(reliability(&sure, &right, 10)?),
    }))
}
