//! The arguments of a training run: names as in `transformers`' `TrainingArguments`, shortened
//! where a notebook benefits.
//!
//! | here | there |
//! |---|---|
//! | `epochs` | `num_train_epochs` |
//! | `batch_size`, `eval_batch_size` | `per_device_train_batch_size`, `per_device_eval_batch_size` |
//! | `lr_scheduler` | `lr_scheduler_type` |
//! | all others | the same name |
//!
//! ```
//! use tunebook_tune::TrainingArgs;
//! let args = TrainingArgs { epochs: 3, learning_rate: 2e-4, ..Default::default() };
//! args.validate()?;
//! # Ok::<(), tunebook_tune::Error>(())
//! ```

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tunebook_models::Model;

use crate::cost::memory::{self, GpuRoom};
use crate::error::{Error, Result};
use crate::train::difference::Difference;
use crate::train::optim::{self, AdamWConfig, Optim};
use crate::train::schedule::LrScheduler;
use crate::train::trained::Trained;

/// Of epochs, of steps and of the rows of one: products of two of them are numbers, too.
const MOST: usize = u32::MAX as usize;

/// When the validation set is worked through, besides the end of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvalStrategy {
    /// Never, not even at the end.
    No,
    /// After each epoch.
    #[default]
    Epoch,
    /// Every so many steps, and at the end.
    Steps(usize),
}

/// When a checkpoint is written to `output_dir`, from which the run can go on
/// ([`Run::last_checkpoint`](crate::Run::last_checkpoint)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SaveStrategy {
    /// Never.
    #[default]
    No,
    /// After each epoch.
    Epoch,
    /// Every so many steps, and at the end.
    Steps(usize),
}

/// The arguments of a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingArgs {
    /// How often the training set is gone through. Default 3.
    pub epochs: usize,
    /// Optimizer steps of the whole run, in place of `epochs`. Default none.
    pub max_steps: Option<usize>,
    /// Rows that go through the model together. Default 4.
    pub batch_size: usize,
    /// Rows that go through the model together in an evaluation. Default 8.
    pub eval_batch_size: usize,
    /// Batches whose gradients make one optimizer step, weighted by their loss-bearing tokens.
    /// Default 1.
    pub gradient_accumulation_steps: usize,
    /// The highest learning rate of the schedule. Default 2e-4.
    pub learning_rate: f64,
    /// How the learning rate moves. Default cosine.
    pub lr_scheduler: LrScheduler,
    /// Part of the steps in which the learning rate rises from 0, in 0..1. The number of steps is
    /// rounded down, so that a run too short for one whole step of warm-up has none (`transformers`
    /// rounds up, and a run of one step would train nothing). Default 0.03.
    pub warmup_ratio: f64,
    /// The same as a number of steps, in place of `warmup_ratio`. The first step of a warm-up has
    /// the rate 0, as in `transformers`. Default none.
    pub warmup_steps: Option<usize>,
    /// AdamW's decay of the weights. Default 0.01.
    pub weight_decay: f64,
    /// AdamW's decay of the first moment. Default 0.9.
    pub adam_beta1: f64,
    /// AdamW's decay of the second moment. Default 0.999.
    pub adam_beta2: f64,
    /// Added to AdamW's denominator. Default 1e-8.
    pub adam_epsilon: f64,
    /// The optimizer and how it keeps its state. Default AdamW in f32.
    pub optim: Optim,
    /// Dynamic loss scaling, for a model in f16 (`Model::load_as(.., Some(DType::F16), ..)`), by
    /// the rule of torch's `GradScaler`: a step whose gradient overflows is skipped and the scale
    /// halved; 2000 good steps in a row double it. What is trained is f32 either way. bf16, which
    /// [`Model::load`] takes on a GPU that computes in it, needs no scale. Default false.
    pub fp16: bool,
    /// The first scale. Default 65536.
    pub fp16_init_scale: f64,
    /// Gradients of a larger norm are scaled down to it; 0 switches this off. Default 1.
    pub max_grad_norm: f64,
    /// A part of each label's probability that is spread over the vocabulary, in 0..1. It counts in
    /// training, not in evaluations. Default 0.
    pub label_smoothing_factor: f64,
    /// Noise on the embeddings in training (NEFTune): 5 is usual. Default none.
    pub neftune_noise_alpha: Option<f64>,
    /// L2-SP ([Li et al. 2018](https://arxiv.org/abs/1802.01483)) against forgetting: each step draws
    /// the trained tensors towards their values before the run's first step by this times the learning
    /// rate, decoupled from AdamW's moments as `weight_decay` is, norms and biases included. A number
    /// that Adam drives one way ends about 1/`l2_sp` from its start at most, so 10 to 1000 have an
    /// effect. For a new LoRA the start is its random A and a B of zeros, so it draws towards the base;
    /// an adapter that is trained further is drawn towards what it was. Takes a copy of what is
    /// trained, 4 bytes a number, which checkpoints hold, too. Default 0.
    pub l2_sp: f64,
    /// KL to the base against forgetting: this times the mean KL(base ‖ trained) over the loss-bearing
    /// tokens of the training rows is added to the loss (distillation, [Li and Hoiem
    /// 2016](https://arxiv.org/abs/1606.09282)). The loss that is reported stays the cross-entropy. For
    /// an adapter the base is the model without it, whose forward pass each step takes besides; for
    /// full fine-tuning it is a copy of the trained weights from before the first step, 4 bytes a
    /// number, which checkpoints hold, too. 0.1 to 10 are usual. Default 0.
    pub kl_coef: f64,
    /// LoRA's B, and DoRA's lengths, learn so many times as fast as A ([LoRA+, Hayou et al.
    /// 2024](https://arxiv.org/abs/2402.12354)); 8 to 16 are usual. Default `None`: as fast.
    pub loraplus_lr_ratio: Option<f64>,
    /// Batches of examples of similar length: less padding, and batches that are less random.
    /// Default false.
    pub group_by_length: bool,
    /// Several examples in one row, up to `max_length` tokens, none seeing another: no padding for
    /// short examples. Default false.
    pub packing: bool,
    /// Examples are cut off after so many tokens. `None` (the default) cuts nothing, and an example
    /// that does not fit into the model's context is an error.
    pub max_length: Option<usize>,
    /// When to evaluate. Default after each epoch.
    pub eval_strategy: EvalStrategy,
    /// Evaluate before the first step, too. Default false.
    pub eval_on_start: bool,
    /// Stop after so many evaluations in a row that were no better than the best before them.
    /// Default never.
    pub early_stopping_patience: Option<usize>,
    /// How much better an evaluation has to be to count as better. Default 0.
    pub early_stopping_threshold: f64,
    /// Metrics of generated answers that each evaluation measures, by their names (`exact_match`,
    /// `rougeL`, `accuracy` among the answers of both sets …). Of sets that can be judged so:
    /// the prelude's `&split`. Default none.
    pub eval_metrics: Vec<String>,
    /// The most validation rows that [`eval_metrics`](Self::eval_metrics) are measured on, spread
    /// over all of them and the same each time. Default all.
    pub eval_metrics_rows: Option<usize>,
    /// The metric that the best evaluation is judged by: `loss`, or the name of one of
    /// [`eval_metrics`](Self::eval_metrics) or of
    /// [`Trainer::with_metric`](crate::Trainer::with_metric), which says in what direction it
    /// improves. Default `loss`.
    pub metric_for_best_model: String,
    /// Put back the weights of the best evaluation when the run ends (not when the user stops it).
    /// Default false.
    pub load_best_model_at_end: bool,
    /// When to write a checkpoint. Default never.
    pub save_strategy: SaveStrategy,
    /// Where to. Needed when `save_strategy` is not `No`. A folder is one run's: with the checkpoints
    /// of another run in it, or while another run writes into it, it is refused.
    pub output_dir: Option<PathBuf>,
    /// How many checkpoints to keep, the newest ones of this run. One into which another file was
    /// put stays. Default all.
    pub save_total_limit: Option<usize>,
    /// Keep only each block's input from the forward pass and run the block again before its
    /// backward pass: less memory, about a third more time. Default false: as many blocks as the
    /// activations of a batch need to stay within twice the size of the weights in f32, so none for
    /// batches of usual length and some for long rows; on a GPU also as many as the run needs to fit
    /// into what the card has free. The losses are the same, bit for bit, either way.
    pub gradient_checkpointing: bool,
    /// How many blocks are run again, the first ones; `Some(0)`: none, whatever it takes. Default
    /// (`None`): what `gradient_checkpointing` says.
    pub checkpointed_blocks: Option<usize>,
    /// The most memory that the process may have, in bytes; on a GPU, the most of its memory, by an
    /// estimate. Micro-batch, accumulation and checkpointing are then chosen so that the run fits,
    /// with as many rows in an optimizer step as `batch_size` · `gradient_accumulation_steps`; the
    /// run's [`Plan`](crate::Plan) says what was chosen. Default none.
    pub memory_budget: Option<u64>,
    /// Seed of dropout and noise, and of the row order unless `data_seed` is given. Default 42.
    pub seed: u64,
    /// Seed of the row order. Default that of `seed`.
    pub data_seed: Option<u64>,
}

impl Default for TrainingArgs {
    fn default() -> Self {
        Self {
            epochs: 3,
            max_steps: None,
            batch_size: 4,
            eval_batch_size: 8,
            gradient_accumulation_steps: 1,
            learning_rate: 2e-4,
            lr_scheduler: LrScheduler::default(),
            warmup_ratio: 0.03,
            warmup_steps: None,
            weight_decay: 0.01,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            optim: Optim::AdamW,
            fp16: false,
            fp16_init_scale: 65536.0,
            max_grad_norm: 1.0,
            label_smoothing_factor: 0.0,
            neftune_noise_alpha: None,
            l2_sp: 0.0,
            kl_coef: 0.0,
            loraplus_lr_ratio: None,
            group_by_length: false,
            packing: false,
            max_length: None,
            eval_strategy: EvalStrategy::default(),
            eval_on_start: false,
            early_stopping_patience: None,
            early_stopping_threshold: 0.0,
            eval_metrics: Vec::new(),
            eval_metrics_rows: None,
            metric_for_best_model: "loss".to_owned(),
            load_best_model_at_end: false,
            save_strategy: SaveStrategy::default(),
            output_dir: None,
            save_total_limit: None,
            gradient_checkpointing: false,
            checkpointed_blocks: None,
            memory_budget: None,
            seed: 42,
            data_seed: None,
        }
    }
}

impl TrainingArgs {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// The field, its value and the accepted range.
    pub fn validate(&self) -> Result<()> {
        let at_least_one = [
            ("TrainingArgs.epochs", self.epochs),
            ("TrainingArgs.max_steps", self.max_steps.unwrap_or(1)),
            ("TrainingArgs.batch_size", self.batch_size),
            ("TrainingArgs.eval_batch_size", self.eval_batch_size),
            ("TrainingArgs.gradient_accumulation_steps", self.gradient_accumulation_steps),
        ];
        for (field, value) in at_least_one {
            require(field, value, value >= 1, "at least 1")?;
            require(field, value, value <= MOST, "at most 4294967295")?;
        }
        let accumulation = self.gradient_accumulation_steps;
        require(
            "TrainingArgs.gradient_accumulation_steps",
            accumulation,
            self.batch_size.checked_mul(accumulation).is_some_and(|rows| rows <= MOST),
            "a number that `batch_size` times it, the rows of a step, is at most 4294967295",
        )?;
        let rate = self.learning_rate;
        require(
            "TrainingArgs.learning_rate",
            rate,
            rate.is_finite() && rate > 0.0,
            "a finite number above 0 (1e-5 to 1e-3 are usual)",
        )?;
        let unit = [
            ("TrainingArgs.warmup_ratio", self.warmup_ratio),
            ("TrainingArgs.label_smoothing_factor", self.label_smoothing_factor),
            ("TrainingArgs.adam_beta1", self.adam_beta1),
            ("TrainingArgs.adam_beta2", self.adam_beta2),
        ];
        for (field, value) in unit {
            require(field, value, (0.0..1.0).contains(&value), "at least 0 and below 1")?;
        }
        let not_negative = [
            ("TrainingArgs.weight_decay", self.weight_decay),
            ("TrainingArgs.max_grad_norm", self.max_grad_norm),
            ("TrainingArgs.early_stopping_threshold", self.early_stopping_threshold),
            ("TrainingArgs.neftune_noise_alpha", self.neftune_noise_alpha.unwrap_or(0.0)),
            ("TrainingArgs.l2_sp", self.l2_sp),
            ("TrainingArgs.kl_coef", self.kl_coef),
        ];
        for (field, value) in not_negative {
            require(
                field,
                value,
                value.is_finite() && value >= 0.0,
                "a finite number of at least 0",
            )?;
        }
        let ratio = self.loraplus_lr_ratio.unwrap_or(1.0);
        require(
            "TrainingArgs.loraplus_lr_ratio",
            ratio,
            ratio.is_finite() && ratio > 0.0,
            "a finite number above 0 (8 to 16 are usual)",
        )?;
        let pull = self.l2_sp * rate * ratio.max(1.0);
        require(
            "TrainingArgs.l2_sp",
            self.l2_sp,
            pull <= 1.0,
            "at most 1 / learning_rate (and 1 / loraplus_lr_ratio of that), which goes all the way back \
             in one step",
        )?;
        let eps = self.adam_epsilon;
        require(
            "TrainingArgs.adam_epsilon",
            eps,
            eps.is_finite() && eps > 0.0,
            "a finite number above 0",
        )?;
        let scale = self.fp16_init_scale;
        require(
            "TrainingArgs.fp16_init_scale",
            scale,
            scale.is_finite() && scale >= 1.0,
            "a finite number of at least 1 (65536 is usual)",
        )?;
        if let Some(rows) = self.eval_metrics_rows {
            let expected = "at least 1 row, or None for all";
            require("TrainingArgs.eval_metrics_rows", rows, rows >= 1, expected)?;
        }
        if let Some(length) = self.max_length {
            require("TrainingArgs.max_length", length, length >= 2, "at least 2 tokens")?;
        }
        let packs = !self.packing || self.max_length.is_some();
        require(
            "TrainingArgs.max_length",
            "None",
            packs,
            "the length of a row, because `packing` fills rows",
        )?;
        let groups = !(self.packing && self.group_by_length);
        require(
            "TrainingArgs.group_by_length",
            true,
            groups,
            "false with `packing`: its rows are of one length",
        )?;
        if let Some(budget) = self.memory_budget {
            let expected = "a number of bytes of at least 100 MB: 2_000_000_000 is 2 GB";
            require("TrainingArgs.memory_budget", budget, budget >= 100_000_000, expected)?;
        }
        if let EvalStrategy::Steps(steps) = self.eval_strategy {
            require(
                "TrainingArgs.eval_strategy",
                "Steps(0)",
                steps >= 1,
                "a number of steps of at least 1",
            )?;
        }
        if let Some(patience) = self.early_stopping_patience {
            require(
                "TrainingArgs.early_stopping_patience",
                patience,
                patience >= 1,
                "at least 1 evaluation",
            )?;
        }
        let watches = self.early_stopping_patience.is_some() || self.load_best_model_at_end;
        let evaluates = !watches || self.eval_strategy != EvalStrategy::No;
        let expected = "Epoch or Steps, because early stopping and `load_best_model_at_end` watch the validation loss";
        require("TrainingArgs.eval_strategy", "No", evaluates, expected)?;
        if let SaveStrategy::Steps(steps) = self.save_strategy {
            require(
                "TrainingArgs.save_strategy",
                "Steps(0)",
                steps >= 1,
                "a number of steps of at least 1",
            )?;
        }
        let has_folder = self.save_strategy == SaveStrategy::No || self.output_dir.is_some();
        require(
            "TrainingArgs.output_dir",
            "None",
            has_folder,
            "a folder, because `save_strategy` asks for checkpoints",
        )?;
        if let Some(limit) = self.save_total_limit {
            require(
                "TrainingArgs.save_total_limit",
                limit,
                limit >= 1,
                "at least 1 checkpoint, or None for all",
            )?;
        }
        match self.lr_scheduler {
            LrScheduler::CosineWithRestarts { num_cycles } => require(
                "TrainingArgs.lr_scheduler",
                "CosineWithRestarts with 0 cycles",
                num_cycles >= 1,
                "at least 1 cycle",
            ),
            LrScheduler::WarmupStableDecay { num_decay_steps } => {
                let stated = "WarmupStableDecay with 0 decay steps";
                require(
                    "TrainingArgs.lr_scheduler",
                    stated,
                    num_decay_steps >= 1,
                    "at least 1 step",
                )
            }
            _ => Ok(()),
        }
    }

    /// Steps of warm-up in a run of `total_steps`.
    pub fn warmup(&self, total_steps: usize) -> usize {
        // 100 · 0.29 is 28.999…
        let rounded = || (total_steps as f64 * self.warmup_ratio + 1e-9) as usize;
        self.warmup_steps.unwrap_or_else(rounded)
    }

    /// Rows of an optimizer step: `batch_size` times `gradient_accumulation_steps`.
    pub fn rows_per_step(&self) -> usize {
        self.batch_size.saturating_mul(self.gradient_accumulation_steps)
    }

    /// The seed of the row order.
    pub(crate) fn data_seed(&self) -> u64 {
        self.data_seed.unwrap_or(self.seed)
    }

    /// Rows of a batch whose lengths should be alike.
    pub(crate) fn group(&self) -> Option<usize> {
        self.group_by_length.then(|| self.rows_per_step())
    }

    /// How many of a model's blocks are run again in the backward pass of a batch of so many
    /// tokens. `room` is [`Self::gpu_room`].
    pub(crate) fn checkpointed_blocks(
        &self,
        model: &Model,
        tokens: usize,
        room: Option<GpuRoom>,
    ) -> usize {
        let blocks = model.num_blocks();
        match (self.checkpointed_blocks, room) {
            (Some(again), _) => again.min(blocks),
            (None, _) if self.gradient_checkpointing => blocks,
            (None, Some(room)) => memory::blocks_to_run_again_within(model, tokens, room),
            (None, None) => memory::blocks_to_run_again(model, tokens),
        }
    }

    /// What a run may take of a GPU's memory, the budget or else nearly all there is, and what of
    /// it is for what it trains. `None` on the CPU.
    pub(crate) fn gpu_room(&self, model: &Model, trained: &Trained) -> Option<GpuRoom> {
        if model.device().is_cpu() {
            return None;
        }
        // What was freed is the driver's again once the device has come to an end of its work.
        let _ = model.device().synchronize();
        let numbers = trained.parameters().elem_count() as f64;
        // Full fine-tuning has f32 ones in the stead of the model's weights.
        let here = model.memory_bytes().max((4.0 * numbers) as u64);
        let card = tunebook_models::gpu_memory(model.device());
        let most = memory::gpu_most(self.memory_budget, card, here)?;
        let start = if self.keeps_start(trained) { 4.0 } else { 0.0 };
        let each = 4.0 + 4.0 + optim::bytes_per_number(self.optim) + start;
        Some(GpuRoom { most, trained: (numbers * each) as u64 })
    }

    /// Whether a run keeps a copy of what is trained from before its first step.
    pub(crate) fn keeps_start(&self, trained: &Trained) -> bool {
        let moves_the_base = matches!(trained, Trained::Full(_));
        self.l2_sp > 0.0 || (self.kl_coef > 0.0 && moves_the_base)
    }

    pub(crate) fn eval_is_due(
        &self,
        step: usize,
        steps_per_epoch: usize,
        total_steps: usize,
    ) -> bool {
        match self.eval_strategy {
            EvalStrategy::No => false,
            _ if step == 0 => self.eval_on_start,
            EvalStrategy::Epoch => step.is_multiple_of(steps_per_epoch) || step == total_steps,
            EvalStrategy::Steps(every) => step.is_multiple_of(every) || step == total_steps,
        }
    }

    pub(crate) fn save_is_due(
        &self,
        step: usize,
        steps_per_epoch: usize,
        total_steps: usize,
    ) -> bool {
        match self.save_strategy {
            SaveStrategy::No => false,
            SaveStrategy::Epoch => {
                step > 0 && (step.is_multiple_of(steps_per_epoch) || step == total_steps)
            }
            SaveStrategy::Steps(every) => {
                step > 0 && (step.is_multiple_of(every) || step == total_steps)
            }
        }
    }

    /// These arguments with all that the course of a run does not depend on as by default: when it is
    /// evaluated (unless the evaluations decide how it ends), where it is saved, and how memory is
    /// saved. A run goes on under arguments of the same course.
    #[must_use]
    pub fn course(&self) -> Self {
        let default = Self::default();
        let mut course = Self {
            eval_batch_size: default.eval_batch_size,
            save_strategy: default.save_strategy,
            output_dir: default.output_dir,
            save_total_limit: default.save_total_limit,
            gradient_checkpointing: default.gradient_checkpointing,
            checkpointed_blocks: default.checkpointed_blocks,
            memory_budget: default.memory_budget,
            ..self.clone()
        };
        if self.early_stopping_patience.is_none() && !self.load_best_model_at_end {
            course.eval_strategy = default.eval_strategy;
            course.eval_on_start = default.eval_on_start;
        }
        course
    }

    /// The fields that differ from those that a run had, of those that its course depends on.
    pub(crate) fn differences(&self, was: &Self) -> Result<Vec<Difference>> {
        let (was, is) = (serde_json::to_value(was.course())?, serde_json::to_value(self.course())?);
        Ok(Difference::all("TrainingArgs", &was, &is, &[]))
    }

    pub(crate) fn adamw(&self) -> AdamWConfig {
        AdamWConfig {
            beta1: self.adam_beta1,
            beta2: self.adam_beta2,
            eps: self.adam_epsilon,
            weight_decay: self.weight_decay,
            optim: self.optim,
            loraplus_lr_ratio: self.loraplus_lr_ratio.unwrap_or(1.0),
        }
    }
}

fn require(
    field: &'static str,
    value: impl ToString,
    holds: bool,
    expected: &'static str,
) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Config { field, value: value.to_string(), expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        TrainingArgs::default().validate().unwrap();
        assert_eq!(TrainingArgs::default().warmup(100), 3);
        assert_eq!(TrainingArgs { warmup_steps: Some(7), ..Default::default() }.warmup(100), 7);
    }

    #[test]
    fn wrong_values_are_refused_with_field_value_and_range() {
        let base = TrainingArgs::default();
        for (args, starts) in [
            (
                TrainingArgs { epochs: 0, ..base.clone() },
                "`TrainingArgs.epochs` is 0, expected at least 1",
            ),
            (TrainingArgs { max_steps: Some(0), ..base.clone() }, "`TrainingArgs.max_steps` is 0"),
            (TrainingArgs { batch_size: 0, ..base.clone() }, "`TrainingArgs.batch_size` is 0"),
            (
                TrainingArgs { epochs: 99_999_999_999, ..base.clone() },
                "`TrainingArgs.epochs` is 99999999999, expected at most 4294967295",
            ),
            (
                TrainingArgs { max_steps: Some(usize::MAX), ..base.clone() },
                "`TrainingArgs.max_steps` is 18446744073709551615, expected at most",
            ),
            (
                TrainingArgs {
                    batch_size: 4,
                    gradient_accumulation_steps: 1 << 31,
                    ..base.clone()
                },
                "`TrainingArgs.gradient_accumulation_steps` is 2147483648, expected a number that",
            ),
            (
                TrainingArgs { learning_rate: f64::NAN, ..base.clone() },
                "`TrainingArgs.learning_rate` is NaN",
            ),
            (
                TrainingArgs { learning_rate: 0.0, ..base.clone() },
                "`TrainingArgs.learning_rate` is 0",
            ),
            (
                TrainingArgs { warmup_ratio: 1.5, ..base.clone() },
                "`TrainingArgs.warmup_ratio` is 1.5",
            ),
            (
                TrainingArgs { weight_decay: -0.1, ..base.clone() },
                "`TrainingArgs.weight_decay` is -0.1",
            ),
            (
                TrainingArgs { max_grad_norm: -1.0, ..base.clone() },
                "`TrainingArgs.max_grad_norm` is -1",
            ),
            (
                TrainingArgs { max_length: Some(1), ..base.clone() },
                "`TrainingArgs.max_length` is 1",
            ),
            (TrainingArgs { packing: true, ..base.clone() }, "`TrainingArgs.max_length` is None"),
            (
                TrainingArgs { label_smoothing_factor: 1.0, ..base.clone() },
                "`TrainingArgs.label_smoothing_factor` is 1",
            ),
            (
                TrainingArgs { neftune_noise_alpha: Some(-5.0), ..base.clone() },
                "`TrainingArgs.neftune_noise_alpha` is -5",
            ),
            (TrainingArgs { l2_sp: -1.0, ..base.clone() }, "`TrainingArgs.l2_sp` is -1"),
            (TrainingArgs { l2_sp: 6000.0, ..base.clone() }, "`TrainingArgs.l2_sp` is 6000"),
            (TrainingArgs { kl_coef: f64::NAN, ..base.clone() }, "`TrainingArgs.kl_coef` is NaN"),
            (
                TrainingArgs { early_stopping_threshold: -0.1, ..base.clone() },
                "`TrainingArgs.early_stopping_threshold` is -0.1",
            ),
            (
                TrainingArgs {
                    packing: true,
                    max_length: Some(64),
                    group_by_length: true,
                    ..base.clone()
                },
                "`TrainingArgs.group_by_length` is true",
            ),
            (
                TrainingArgs { memory_budget: Some(8), ..base.clone() },
                "`TrainingArgs.memory_budget` is 8",
            ),
            (
                TrainingArgs { eval_strategy: EvalStrategy::Steps(0), ..base.clone() },
                "`TrainingArgs.eval_strategy`",
            ),
        ] {
            let error = args.validate().unwrap_err().to_string();
            assert!(error.starts_with(starts), "{error}");
        }
    }

    #[test]
    fn a_run_too_short_for_a_warm_up_has_none() {
        let args = TrainingArgs::default();
        let warmups = [1, 33, 34, 66, 67, 1000].map(|steps| args.warmup(steps));
        assert_eq!(warmups, [0, 0, 1, 1, 2, 30]);
        let other = TrainingArgs { warmup_ratio: 0.29, ..args.clone() };
        assert_eq!(other.warmup(100), 29);
        assert_eq!(TrainingArgs { warmup_steps: Some(3), ..args }.warmup(1), 3);
    }

    #[test]
    fn survives_json() {
        let args = TrainingArgs {
            lr_scheduler: LrScheduler::CosineWithRestarts { num_cycles: 2 },
            ..Default::default()
        };
        let json = serde_json::to_string(&args).unwrap();
        assert_eq!(serde_json::from_str::<TrainingArgs>(&json).unwrap(), args);
        assert_eq!(serde_json::from_str::<TrainingArgs>(r#"{"epochs": 1}"#).unwrap().batch_size, 4);
    }
}
