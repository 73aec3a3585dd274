//! A run's arguments in TRL's and Axolotl's names. Both stand on `transformers`' trainer, which most
//! names are shared with.
//!
//! Every field is decided on here: the struct is taken apart by name, so that a new field does not
//! compile until somebody has decided what becomes of it.

use serde_json::{Value, json};
use tunebook_tune::{EvalStrategy, LrScheduler, Optim, SaveStrategy, TrainingArgs};

use super::mapped::Mapped;
use super::{Accelerate, Engine, ExportOptions, RunShape};

const NO_METRICS: &str = "its trainer measures the loss alone: bring the adapter back \
     (`tunebook import-run`) and evaluate it here";

/// `shape` is `None` as long as the data has not been read: then only what can be refused without it
/// is.
pub(super) fn training(
    args: &TrainingArgs,
    shape: Option<&RunShape>,
    options: &ExportOptions,
    out: &mut Mapped,
) {
    let TrainingArgs {
        epochs: _,    // the rows of all epochs are written one after the other,
        max_steps: _, // up to the last step
        batch_size,
        eval_batch_size,
        gradient_accumulation_steps: _, // in the rows of a step
        learning_rate,
        lr_scheduler,
        warmup_ratio: _, // as a number of steps
        warmup_steps: _,
        weight_decay,
        adam_beta1,
        adam_beta2,
        adam_epsilon,
        optim,
        fp16: _, // with the types of number
        fp16_init_scale: _,
        max_grad_norm,
        label_smoothing_factor,
        neftune_noise_alpha,
        l2_sp,
        kl_coef,
        loraplus_lr_ratio,
        group_by_length: _, // part of the order in which the rows are written
        packing,
        max_length: _,    // the rows are cut as they are written
        eval_strategy: _, // with the checkpoints, in `evaluations`
        eval_on_start: _,
        early_stopping_patience,
        early_stopping_threshold,
        eval_metrics,
        eval_metrics_rows,
        metric_for_best_model,
        load_best_model_at_end: _,
        save_strategy: _,
        output_dir: _, // of our own checkpoints; an engine writes to `out` beside its file
        save_total_limit,
        gradient_checkpointing,
        checkpointed_blocks,
        memory_budget,
        seed,
        data_seed: _, // part of the order in which the rows are written
    } = args;
    let to = options.engine;
    let axolotl = to == Engine::Axolotl;

    // Batches: the rows of a step stay the same, whatever they are divided into.
    let rows = args.rows_per_step();
    if let Some(shape) = shape {
        // TRL's steps are filled up to their size.
        out.refuse_if(
            rows > shape.rows && !axolotl,
            "training.batch_size",
            batch_size,
            &format!(
                "a step would have {rows} rows (times training.gradient_accumulation_steps), and there are \
                 {} in all: set both so that a step has {0} at most, which is the same run",
                shape.rows
            ),
        );
    }
    let each = match rows.checked_div(options.gpus) {
        Some(each) if rows.is_multiple_of(options.gpus) => each,
        _ => {
            out.refuse(
                "--gpus",
                options.gpus,
                &format!(
                    "the {rows} rows of a step (training.batch_size · \
                     training.gradient_accumulation_steps) cannot be divided among them: choose a \
                     number that {rows} is divisible by, or another batch_size"
                ),
            );
            rows
        }
    };
    let micro = (1..=each.min(*batch_size)).rev().find(|size| each.is_multiple_of(*size));
    let micro = micro.unwrap_or(1);
    let (micro_key, eval_key) = match to {
        Engine::Trl => ("per_device_train_batch_size", "per_device_eval_batch_size"),
        Engine::Axolotl => ("micro_batch_size", "eval_batch_size"),
    };
    out.set(micro_key, micro);
    out.set("gradient_accumulation_steps", each / micro);
    out.set(eval_key, *eval_batch_size);
    if axolotl && options.gpus > 1 {
        out.note(
            "Axolotl takes the mean of the cards' mean losses: rows of a card with few labels count \
             more there than here",
        );
    }

    out.set("learning_rate", *learning_rate);
    schedule(*lr_scheduler, args, shape, to, out);
    out.set("weight_decay", *weight_decay);
    out.set("adam_beta1", *adam_beta1);
    out.set("adam_beta2", *adam_beta2);
    out.set("adam_epsilon", *adam_epsilon);
    let (optim_key, optim) = match (to, optim) {
        (Engine::Trl, Optim::AdamW) => ("optim", "adamw_torch"),
        (Engine::Trl, Optim::AdamW8bit) => ("optim", "adamw_bnb_8bit"),
        (Engine::Axolotl, Optim::AdamW) => ("optimizer", "adamw_torch"),
        (Engine::Axolotl, Optim::AdamW8bit) => ("optimizer", "adamw_bnb_8bit"),
    };
    out.set(optim_key, optim);
    out.refuse_if(
        optim == "adamw_bnb_8bit" && options.accelerate.is_some(),
        "training.optim",
        optim,
        "bitsandbytes' 8-bit states are not sharded: use adamw_torch with --accelerate",
    );
    out.set("max_grad_norm", *max_grad_norm);

    // The loss.
    if axolotl {
        out.refuse_if(
            *label_smoothing_factor != 0.0,
            "training.label_smoothing_factor",
            label_smoothing_factor,
            "Axolotl has no such option: set it to 0, or export to TRL",
        );
    } else {
        out.set("label_smoothing_factor", *label_smoothing_factor);
    }
    if let Some(alpha) = neftune_noise_alpha {
        out.set("neftune_noise_alpha", *alpha);
        out.note(
            "NEFTune's noise is drawn anew there: losses differ by chance from the first step on",
        );
    }
    out.refuse_if(
        *l2_sp != 0.0,
        "training.l2_sp",
        l2_sp,
        "no engine draws the weights to their start: set it to 0, or put rows of the old task among \
         the new (`replay` among the data's steps)",
    );
    out.refuse_if(
        *kl_coef != 0.0,
        "training.kl_coef",
        kl_coef,
        "no engine adds a KL to the base in supervised training: set it to 0, or put rows of the old \
         task among the new (`replay` among the data's steps)",
    );
    if let Some(ratio) = loraplus_lr_ratio {
        match to {
            Engine::Axolotl => out.set("loraplus_lr_ratio", *ratio),
            Engine::Trl => out.refuse(
                "training.loraplus_lr_ratio",
                ratio,
                "`trl sft` has no LoRA+: leave it out, or export to Axolotl",
            ),
        }
    }
    out.refuse_if(
        *packing,
        "training.packing",
        packing,
        "it packs by another rule, so that its steps would have other rows: set it to false (TRL's \
         `padding_free: true` with flash attention saves the padding and keeps the rows)",
    );

    // Evaluations and checkpoints.
    evaluations(args, shape, to, out);
    if let Some(patience) = early_stopping_patience {
        match to {
            Engine::Axolotl => out.set("early_stopping_patience", *patience),
            Engine::Trl => out.refuse(
                "training.early_stopping_patience",
                patience,
                "`trl sft` takes no callback: leave it out, or export to Axolotl",
            ),
        }
    }
    out.refuse_if(
        *early_stopping_threshold != 0.0,
        "training.early_stopping_threshold",
        early_stopping_threshold,
        "no option sets it there: leave it out",
    );
    let metrics = eval_metrics.join(", ");
    out.refuse_if(!eval_metrics.is_empty(), "training.eval_metrics", metrics, NO_METRICS);
    if let Some(rows) = eval_metrics_rows {
        out.refuse("training.eval_metrics_rows", rows, NO_METRICS);
    }
    out.refuse_if(
        metric_for_best_model != "loss",
        "training.metric_for_best_model",
        metric_for_best_model,
        NO_METRICS,
    );
    if let Some(limit) = save_total_limit {
        out.set("save_total_limit", *limit);
    }

    // Memory.
    let blocks = shape.map_or(usize::MAX, |shape| shape.blocks);
    let again = match checkpointed_blocks {
        Some(0) => false,
        Some(some) if *some >= blocks => true,
        Some(some) => {
            let known = shape.is_some(); // all blocks, perhaps
            out.refuse_if(
                known,
                "training.checkpointed_blocks",
                some,
                "all blocks or none there: set gradient_checkpointing in its place",
            );
            true
        }
        None => *gradient_checkpointing,
    };
    out.again = again;
    let sharded = options.accelerate == Some(Accelerate::Fsdp2);
    out.set("gradient_checkpointing", again && !sharded);
    if again && sharded {
        out.note("with fsdp2 the blocks are run again by FSDP's own checkpointing");
    }
    if let Some(budget) = memory_budget {
        out.refuse(
            "training.memory_budget",
            budget,
            "it is measured on this machine: leave it out, and see `tunebook plan` for a card's memory",
        );
    }
    out.set("seed", *seed);
}

fn schedule(
    scheduler: LrScheduler,
    args: &TrainingArgs,
    shape: Option<&RunShape>,
    to: Engine,
    out: &mut Mapped,
) {
    let key = match to {
        Engine::Trl => "lr_scheduler_type",
        Engine::Axolotl => "lr_scheduler",
    };
    let (name, kwargs): (&str, Value) = match scheduler {
        LrScheduler::Cosine => ("cosine", Value::Null),
        LrScheduler::Linear => ("linear", Value::Null),
        // `constant` would leave the warm-up out.
        LrScheduler::Constant => ("constant_with_warmup", Value::Null),
        LrScheduler::CosineWithRestarts { num_cycles } => {
            ("cosine_with_restarts", json!({ "num_cycles": num_cycles }))
        }
        LrScheduler::WarmupStableDecay { num_decay_steps } => (
            "warmup_stable_decay",
            json!({ "num_decay_steps": num_decay_steps, "decay_type": "linear" }),
        ),
        other => {
            let reason = "what it is called there is not known: choose another";
            out.refuse("training.lr_scheduler", format!("{other:?}"), reason);
            return;
        }
    };
    out.set(key, name);
    if !kwargs.is_null() {
        out.set("lr_scheduler_kwargs", kwargs);
    }
    let Some(shape) = shape else { return };
    let warmup = args.warmup(shape.total_steps);
    out.set("warmup_steps", warmup);
    out.refuse_if(
        to == Engine::Axolotl && warmup == 1,
        "training.warmup_steps",
        warmup,
        "Axolotl makes two steps of one: set 0 or 2 of warmup_steps",
    );
    if let LrScheduler::WarmupStableDecay { num_decay_steps } = scheduler {
        out.refuse_if(
            warmup + num_decay_steps > shape.total_steps,
            "training.lr_scheduler",
            format!("{num_decay_steps} decay steps"),
            &format!(
                "with {warmup} steps of warm-up there are only {} steps in the run: fewer of them",
                shape.total_steps
            ),
        );
    }
}

/// Steps take the place of epochs, since the rows of all epochs are one file there.
fn evaluations(args: &TrainingArgs, shape: Option<&RunShape>, to: Engine, out: &mut Mapped) {
    let Some(shape) = shape else { return };
    let eval_steps = match args.eval_strategy {
        EvalStrategy::No => None,
        _ if !shape.validates => None,
        EvalStrategy::Epoch => Some(shape.steps_per_epoch.min(shape.total_steps)),
        EvalStrategy::Steps(steps) => Some(steps.min(shape.total_steps)),
    };
    let (load_best, patience) = (args.load_best_model_at_end, args.early_stopping_patience);
    let Some(eval_steps) = eval_steps else {
        out.set("eval_strategy", "no");
        let none = "it watches evaluations, and there are none: give validation rows (`data.validation` \
                    or `data.split`) and an eval_strategy, or leave it out";
        out.refuse_if(load_best, "training.load_best_model_at_end", load_best, none);
        if let (Some(patience), Engine::Axolotl) = (patience, to) {
            out.refuse("training.early_stopping_patience", patience, none);
        }
        if to == Engine::Trl {
            out.set("eval_on_start", false); // nothing to evaluate on, as here
        }
        checkpoints(args, shape, None, out);
        out.set("load_best_model_at_end", false);
        return;
    };
    out.set("eval_strategy", "steps");
    out.set("eval_steps", eval_steps);
    out.note(
        "the loss of an evaluation is the mean of its batches' means there, of all labels here",
    );
    if !shape.total_steps.is_multiple_of(eval_steps) {
        out.note(format!(
            "the last evaluation is after step {}, not at the end of the run",
            shape.total_steps / eval_steps * eval_steps
        ));
    }
    match to {
        Engine::Trl => out.set("eval_on_start", args.eval_on_start),
        Engine::Axolotl => out.refuse_if(
            args.eval_on_start,
            "training.eval_on_start",
            args.eval_on_start,
            "Axolotl has no such option: set it to false, or export to TRL",
        ),
    }
    // Axolotl takes early stopping for it, whatever its file says.
    let stops = to == Engine::Axolotl && patience.is_some();
    if stops && !load_best {
        out.note(
            "with early stopping Axolotl ends with the weights of the best evaluation, here they are those \
             of the last step",
        );
    }
    if load_best && args.eval_on_start {
        out.note(
            "the evaluation before the first step is not among those of which the best is loaded",
        );
    }
    let best = load_best || stops;
    checkpoints(args, shape, best.then_some(eval_steps), out);
    out.set("load_best_model_at_end", best);
    if best {
        out.set("metric_for_best_model", "loss");
    }
}

/// When checkpoints are written; where the `best` is loaded, at each evaluation: it is loaded from one.
fn checkpoints(args: &TrainingArgs, shape: &RunShape, best: Option<usize>, out: &mut Mapped) {
    let wanted = match args.save_strategy {
        // `trainer_state.json`, which `import-run` reads, is in checkpoints alone.
        SaveStrategy::No => shape.total_steps,
        SaveStrategy::Epoch => shape.steps_per_epoch.min(shape.total_steps),
        SaveStrategy::Steps(steps) => steps.min(shape.total_steps),
    };
    let steps = best.unwrap_or(wanted);
    if best.is_some() && steps != wanted && args.save_strategy != SaveStrategy::No {
        out.note("a checkpoint is written at each evaluation, of which the best is loaded");
    }
    out.set("save_strategy", "steps");
    out.set("save_steps", steps);
}
