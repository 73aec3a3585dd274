//! A plan before the bill: tokens, steps, hours and memory of a recipe on named cards.
//!
//! Tokens, steps and multiply-adds are counted, on the rows themselves. Time and memory are estimates
//! of an engine on PyTorch, not measured on any of these cards; what they assume stands in
//! [`ClusterPlan::assumptions`].

use std::collections::BTreeMap;
use std::fmt;

use tunebook_data::DataSummary;
use tunebook_models::Model;
use tunebook_runs::{ModelDtype, Recipe, answer_measures};
use tunebook_tune::{Strategy, TrainingSummary};

use super::cards::{CARDS, Card};
use super::prices::Prices;
use super::{Accelerate, Prepared, Result, examples};

/// The part of a card's peak that matrix products of training reach.
const COMPUTE: f64 = 0.35;
/// The part of its bandwidth that reading the weights reaches.
const BANDWIDTH: f64 = 0.7;
/// What a block takes at least in a forward and a backward pass: kernels are launched one after the
/// other, in seconds.
const BLOCK_SECS: f64 = 2e-3;
/// The context of CUDA, the libraries' workspaces and what sharding holds, in bytes.
const WORKSPACE: f64 = 2e9;
/// What an allocator leaves unused, as a part of the rest.
const GAPS: f64 = 0.1;

/// What a recipe takes.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterPlan {
    /// Which rows and columns of the files are used.
    pub data: DataSummary,
    /// Training rows.
    pub rows: usize,
    /// Optimizer steps.
    pub steps: usize,
    /// Tokens that go through the model in training, without padding.
    pub tokens: usize,
    /// Tokens of these that bear a loss.
    pub label_tokens: usize,
    /// Floating-point operations of training and evaluations.
    pub flops: f64,
    /// Numbers that are trained.
    pub trainable_parameters: usize,
    /// The numbers of the base.
    pub parameters: usize,
    /// How many cards, and how the model is shared out among them.
    pub gpus: usize,
    /// `None`: each has all of it.
    pub accelerate: Option<Accelerate>,
    /// Hours and memory on each kind of card.
    pub cards: Vec<CardPlan>,
    /// The currency of the prices.
    pub currency: Option<String>,
}

/// What a recipe takes on cards of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct CardPlan {
    /// The card.
    pub card: Card,
    /// Wall-clock time, in hours.
    pub hours: f64,
    /// Memory of each card, in bytes.
    pub bytes: u64,
    /// Whether that is in the card's memory.
    pub fits: bool,
    /// The price, where the table has the card.
    pub price: Option<f64>,
}

/// What a recipe takes on these cards; on all that are known if none is named.
///
/// The base is loaded to count: this machine needs the memory of its weights.
///
/// # Errors
/// A recipe that cannot be trained; a number of cards that the rows of a step cannot be divided among; a
/// price of a card that is not known.
pub fn plan(
    recipe: &Recipe,
    cards: &[Card],
    gpus: usize,
    accelerate: Option<Accelerate>,
    prices: Option<&Prices>,
) -> Result<ClusterPlan> {
    check(recipe, gpus)?;
    let prices_by_card = prices.map(by_card).transpose()?.unwrap_or_default();
    let prepared = Prepared::new(recipe)?;
    check_metrics(recipe, &prepared)?;
    let summary = prepared.trainer(recipe).summary(examples(&prepared.data))?;
    let rows = &prepared.rows;
    let blocks = prepared.model.num_blocks();
    let run_again = blocks_run_again(recipe, blocks);
    // Of a forward and a backward pass the forward pass is a third, which those blocks take once more.
    let again = 1.0 + run_again as f64 / blocks.max(1) as f64 / 3.0;
    let training = rows.multiply_adds * again + rows.base_multiply_adds;
    let flops = 2.0 * (training + rows.evaluation_multiply_adds);
    // The base's own forward pass.
    let base = if recipe.training.kl_coef > 0.0 { 1.0 } else { 0.0 };
    let micro = recipe.training.batch_size;
    let passes: usize = rows.steps.iter().map(|step| step.len().div_ceil(micro)).sum();
    let half = recipe.model.dtype != ModelDtype::Float32;
    let memory = Memory::new(recipe, &prepared.model, &summary);
    let weights = prepared.model.parameter_count() as f64 * memory.weight_bytes;
    let cards = if cards.is_empty() { &CARDS } else { cards };
    let of_card = |card: &Card| {
        let peak = if half { card.half_flops } else { card.single_flops };
        let compute = flops / (peak * COMPUTE) / gpus as f64;
        // The weights go by forward and backward, and once more where blocks are run again.
        let each_pass = (weights * (1.0 + again + base) / (card.bandwidth * BANDWIDTH))
            .max(BLOCK_SECS * (again + base / 3.0) * blocks as f64);
        let hours = compute.max(passes as f64 / gpus as f64 * each_pass) / 3600.0;
        let bytes = memory.bytes(gpus, accelerate) as u64;
        let price = prices_by_card.get(card.name);
        CardPlan {
            card: *card,
            hours,
            bytes,
            fits: bytes <= card.memory_bytes,
            price: price.map(|hour| hour * hours * gpus as f64),
        }
    };
    Ok(ClusterPlan {
        data: prepared.data.summary(),
        rows: rows.train.examples.len(),
        steps: rows.steps.len(),
        tokens: rows.tokens(),
        label_tokens: rows.label_tokens(),
        flops,
        trainable_parameters: summary.trainable_parameters,
        parameters: prepared.model.parameter_count(),
        gpus,
        accelerate,
        cards: cards.iter().map(of_card).collect(),
        currency: prices.map(|prices| prices.currency.clone()),
    })
}

/// # Errors
/// Rows of a step that cannot be divided among the cards, which no engine takes.
fn check(recipe: &Recipe, gpus: usize) -> Result<()> {
    recipe.training.validate()?;
    let rows = recipe.training.rows_per_step();
    if gpus > 0 && rows.is_multiple_of(gpus) {
        return Ok(());
    }
    Err(tunebook_tune::Error::Config {
        field: "--gpus",
        value: format!("{gpus}, and a step has {rows} rows"),
        expected: "a number that these rows (training.batch_size · \
                   training.gradient_accumulation_steps) can be divided by",
    }
    .into())
}

/// # Errors
/// Metrics that cannot be measured on these rows, for which a training would be refused.
fn check_metrics(recipe: &Recipe, prepared: &Prepared) -> Result<()> {
    let (args, data) = (&recipe.training, &prepared.data);
    let measured: Vec<String> = match data.validation().filter(|rows| !rows.is_empty()) {
        _ if args.eval_metrics.is_empty() => Vec::new(),
        Some(validation) => {
            let measures = answer_measures(args, data.train(), validation, Default::default());
            let refused = |expected: String| tunebook_tune::Error::EvalMetrics {
                wanted: args.eval_metrics.join(", "),
                expected,
            };
            measures.map_err(refused)?.into_iter().map(|(metric, _)| metric.name).collect()
        }
        None => return Err(tunebook_tune::Error::NoExamples { set: "validation" }.into()),
    };
    let known: Vec<String> = std::iter::once("loss".to_owned()).chain(measured).collect();
    if !known.contains(&args.metric_for_best_model) {
        let name = args.metric_for_best_model.clone();
        return Err(tunebook_tune::Error::UnknownMetric { name, known }.into());
    }
    let watches = args.load_best_model_at_end || args.early_stopping_patience.is_some();
    if watches && prepared.rows.validation.is_none() {
        return Err(tunebook_tune::Error::NoExamples { set: "validation" }.into());
    }
    Ok(())
}

/// The price of an hour by our names of the cards.
///
/// # Errors
/// A card that is not known, whose price would be left out without a word.
fn by_card(prices: &Prices) -> Result<BTreeMap<&'static str, f64>> {
    let mut known = BTreeMap::new();
    for (name, price) in &prices.gpus {
        known.insert(Card::named(name)?.name, *price);
    }
    Ok(known)
}

/// How many of a model's blocks are run again in the backward pass. What this machine would choose for
/// want of memory is no engine's choice.
fn blocks_run_again(recipe: &Recipe, blocks: usize) -> usize {
    match recipe.training.checkpointed_blocks {
        Some(again) => again.min(blocks),
        None if recipe.training.gradient_checkpointing => blocks,
        None => 0,
    }
}

/// What a card holds.
struct Memory {
    /// Of a frozen number.
    weight_bytes: f64,
    /// Numbers of the base that stay as they are.
    frozen: f64,
    trained: f64,
    optimizer: f64,
    /// Of one micro-batch.
    activations: f64,
    logits: f64,
}

impl Memory {
    fn new(recipe: &Recipe, model: &Model, summary: &TrainingSummary) -> Self {
        let number = match recipe.model.dtype {
            ModelDtype::Float32 => 4.0,
            ModelDtype::Bfloat16 | ModelDtype::Float16 => 2.0,
        };
        let weight_bytes = if recipe.model.quantization.is_some() { 0.55 } else { number };
        let config = model.config();
        let tokens = summary.largest_batch_tokens as f64;
        let attention =
            2 * (config.num_attention_heads + config.num_key_value_heads) * config.head_dim;
        // PyTorch keeps what the norms and the gate give, too.
        let block = 4 * config.hidden_size + attention + 4 * config.intermediate_size;
        let blocks = model.num_blocks();
        let again = blocks_run_again(recipe, blocks);
        // Of those that are run again one at a time is whole.
        let whole = (blocks - again + again.min(1)) * block;
        let kept = again * config.hidden_size + whole;
        let parameters = model.parameter_count() as f64;
        let trained = summary.trainable_parameters as f64;
        // The comparison with the base has logits of its own.
        let passes = if recipe.training.kl_coef > 0.0 { 2.0 } else { 1.0 };
        Self {
            weight_bytes,
            // An adapter is not among the base's numbers.
            frozen: match recipe.strategy.config {
                Strategy::Adapter(_) => parameters,
                Strategy::Full(_) => parameters - trained,
            },
            trained,
            optimizer: summary.optimizer_bytes as f64,
            activations: tokens * kept as f64 * number,
            // TRL works the logits out a part at a time; Axolotl holds them and their gradient.
            logits: passes * tokens * config.vocab_size as f64 * 2.0 * number.max(2.0),
        }
    }

    fn bytes(&self, gpus: usize, accelerate: Option<Accelerate>) -> f64 {
        let shards = if accelerate.is_some() { gpus as f64 } else { 1.0 };
        let frozen = self.frozen * self.weight_bytes;
        // In f32, with its gradient.
        let trained = self.trained * 8.0 + self.optimizer;
        ((frozen + trained) / shards + self.activations + self.logits) * (1.0 + GAPS) + WORKSPACE
    }
}

impl ClusterPlan {
    /// What the estimates assume, a sentence each.
    pub fn assumptions(&self) -> Vec<String> {
        vec![
            format!(
                "time: {:.0} % of the card's peak (dense; f32 without TF32), the weights read at \
                 {:.0} % of its bandwidth, and no less than {:.0} ms a block and micro-batch",
                100.0 * COMPUTE,
                100.0 * BANDWIDTH,
                1e3 * BLOCK_SECS
            ),
            format!(
                "memory: weights, what is trained with gradient and optimizer, the activations and \
                 logits of the longest micro-batch, {:.0} % for gaps, {:.0} GB for CUDA",
                100.0 * GAPS,
                WORKSPACE / 1e9
            ),
            "several cards: no time for what they send one another; start-up and download left out"
                .to_owned(),
            "none of it has been measured on these cards".to_owned(),
        ]
    }
}

/// Hours in the unit that people would say.
fn time(hours: f64) -> String {
    match hours * 3600.0 {
        secs if secs < 1.0 => "below 1 s".to_owned(),
        secs if secs < 90.0 => format!("{secs:.0} s"),
        secs if secs < 5400.0 => format!("{:.0} min", secs / 60.0),
        secs if secs < 172_800.0 => format!("{hours:.1} h"),
        _ => format!("{:.1} days", hours / 24.0),
    }
}

impl fmt::Display for ClusterPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, steps, tokens, label_tokens, flops, .. } = self;
        writeln!(f, "{}\n", self.data)?;
        writeln!(
            f,
            "{rows} rows, {steps} steps, {tokens} tokens, {label_tokens} of them with a loss"
        )?;
        writeln!(
            f,
            "{} of {} parameters trained, {flops:.2e} floating-point operations",
            self.trainable_parameters, self.parameters
        )?;
        let shared = match self.accelerate {
            None => "each with the whole model".to_owned(),
            Some(profile) => format!("the model shared out ({profile:?})").to_lowercase(),
        };
        let cards =
            if self.gpus == 1 { "1 card".to_owned() } else { format!("{} cards", self.gpus) };
        writeln!(f, "\n{cards}, {shared}:")?;
        let price = self.currency.as_deref().unwrap_or("");
        writeln!(f, "{:<12} {:>10} {:>22} {:>14}", "card", "time", "memory", price)?;
        for plan in &self.cards {
            let room = plan.card.memory_bytes as f64 / 1e9;
            let fits = if plan.fits { "" } else { ", too much" };
            let memory = format!("{:.1} of {room:.0} GB{fits}", plan.bytes as f64 / 1e9);
            let price = plan.price.map(|price| format!("{price:.2}")).unwrap_or_default();
            let time = time(plan.hours);
            let line = format!("{:<12} {time:>10} {memory:>22} {price:>14}", plan.card.name);
            writeln!(f, "{}", line.trim_end())?;
        }
        for assumption in self.assumptions() {
            write!(f, "\n{assumption}")?;
        }
        Ok(())
    }
}
