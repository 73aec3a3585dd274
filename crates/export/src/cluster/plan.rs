//! A plan before the bill: tokens, steps, hours and memory of a recipe on named cards.
//!
//! Tokens, steps and multiply-adds are counted, on the rows themselves. Time and memory are estimates
//! of an engine on PyTorch, not measured on any of these cards; what they assume stands in
//! [`ClusterPlan::assumptions`].

use std::fmt;

use tunebook_models::Model;
use tunebook_runs::{ModelDtype, Recipe};
use tunebook_tune::TrainingSummary;

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
/// A recipe that cannot be used.
pub fn plan(
    recipe: &Recipe,
    cards: &[Card],
    gpus: usize,
    accelerate: Option<Accelerate>,
    prices: Option<&Prices>,
) -> Result<ClusterPlan> {
    let prepared = Prepared::new(recipe)?;
    let summary = prepared.trainer(recipe).summary(examples(&prepared.data))?;
    let rows = &prepared.rows;
    let again = if recipe.training.gradient_checkpointing { 4.0 / 3.0 } else { 1.0 };
    let flops = 2.0 * (rows.multiply_adds * again + rows.evaluation_multiply_adds);
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
        let each_pass = (weights * (1.0 + again) / (card.bandwidth * BANDWIDTH))
            .max(BLOCK_SECS * again * prepared.model.num_blocks() as f64);
        let hours = compute.max(passes as f64 / gpus as f64 * each_pass) / 3600.0;
        let bytes = memory.bytes(gpus, accelerate) as u64;
        let price = prices.and_then(|prices| prices.gpus.get(card.name));
        CardPlan {
            card: *card,
            hours,
            bytes,
            fits: bytes <= card.memory_bytes,
            price: price.map(|hour| hour * hours * gpus as f64),
        }
    };
    Ok(ClusterPlan {
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

/// What a card holds.
struct Memory {
    weight_bytes: f64,
    parameters: f64,
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
        let kept = if recipe.training.gradient_checkpointing {
            blocks * config.hidden_size + block
        } else {
            blocks * block
        };
        Self {
            weight_bytes,
            parameters: model.parameter_count() as f64,
            trained: summary.trainable_parameters as f64,
            optimizer: summary.optimizer_bytes as f64,
            activations: tokens * kept as f64 * number,
            // TRL works the logits out a part at a time; Axolotl holds them and their gradient.
            logits: tokens * config.vocab_size as f64 * 2.0 * number.max(2.0),
        }
    }

    fn bytes(&self, gpus: usize, accelerate: Option<Accelerate>) -> f64 {
        let shards = if accelerate.is_some() { gpus as f64 } else { 1.0 };
        let all = self.parameters * self.weight_bytes;
        // An adapter is not among the base's numbers, and is kept in f32 with its gradient.
        let trained = self.trained * 8.0 + self.optimizer;
        ((all + trained) / shards + self.activations + self.logits) * (1.0 + GAPS) + WORKSPACE
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

impl fmt::Display for ClusterPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, steps, tokens, label_tokens, flops, .. } = self;
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
        writeln!(f, "\n{} card(s), {shared}:", self.gpus)?;
        let price = self.currency.as_deref().unwrap_or("");
        writeln!(f, "{:<12} {:>10} {:>22} {:>14}", "card", "hours", "memory", price)?;
        for plan in &self.cards {
            let room = plan.card.memory_bytes as f64 / 1e9;
            let fits = if plan.fits { "" } else { ", too much" };
            let memory = format!("{:.1} of {room:.0} GB{fits}", plan.bytes as f64 / 1e9);
            let price = plan.price.map(|price| format!("{price:.2}")).unwrap_or_default();
            let line =
                format!("{:<12} {:>10.3} {memory:>22} {price:>14}", plan.card.name, plan.hours);
            writeln!(f, "{}", line.trim_end())?;
        }
        for assumption in self.assumptions() {
            write!(f, "\n{assumption}")?;
        }
        Ok(())
    }
}
