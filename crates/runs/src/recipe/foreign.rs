//! What other trainers call the keys and values of a recipe, for the errors that name the recipe's own.

use serde_json::Value;
use tunebook_tune::{Lora, TrainingArgs};

use super::ModelRecipe;

/// A name of `transformers`, TRL, PEFT, Axolotl or LLaMA-Factory, and the recipe's, of a key at the same
/// place.
const RENAMED: [(&str, &str); 33] = [
    ("num_train_epochs", "epochs"),
    ("num_epochs", "epochs"),
    ("per_device_train_batch_size", "batch_size"),
    ("micro_batch_size", "batch_size"),
    ("train_batch_size", "batch_size"),
    ("per_device_eval_batch_size", "eval_batch_size"),
    ("lr", "learning_rate"),
    ("lr_scheduler_type", "lr_scheduler"),
    ("optimizer", "optim"),
    ("adam_eps", "adam_epsilon"),
    ("gradient_clipping", "max_grad_norm"),
    ("gradient_clip_val", "max_grad_norm"),
    ("evaluation_strategy", "eval_strategy"),
    ("max_seq_length", "max_length"),
    ("max_seq_len", "max_length"),
    ("sequence_len", "max_length"),
    ("cutoff_len", "max_length"),
    ("model_max_length", "max_length"),
    ("sample_packing", "packing"),
    ("random_seed", "seed"),
    ("rank", "r"),
    ("lora_r", "r"),
    ("lora_rank", "r"),
    ("alpha", "lora_alpha"),
    ("dropout", "lora_dropout"),
    ("lora_target_modules", "target_modules"),
    ("lora_target", "target_modules"),
    ("base_model", "name_or_path"),
    ("model_name_or_path", "name_or_path"),
    ("model_revision", "revision"),
    ("torch_dtype", "dtype"),
    ("val_set_size", "fraction"),
    ("test_size", "fraction"),
];

/// Another trainer's name of a value, and the recipe's.
const VALUES: [(&str, &str); 5] = [
    ("bf16", "bfloat16"),
    ("fp16", "float16"),
    ("fp32", "float32"),
    ("int4", "nf4"),
    ("none", "no"),
];

/// Keys that a recipe says at another place, or by another setting.
const ELSEWHERE: [(&str, &str); 13] = [
    ("eval_steps", "`eval_strategy: {steps: 100}`"),
    ("save_steps", "`save_strategy: {steps: 100}`"),
    ("bf16", "`model.dtype: bfloat16`"),
    ("load_in_4bit", "`model.quantization: nf4`"),
    ("quantization_bit", "`model.quantization: nf4`"),
    ("bnb_4bit_quant_type", "`model.quantization: nf4`"),
    ("val_set_size", "`data.split: {fraction: 0.1}`"),
    ("test_size", "`data.split: {fraction: 0.1}`"),
    ("datasets", "`data.path`"),
    ("dataset_name", "`data.path`"),
    ("use_peft", "`strategy.type: lora`"),
    ("adapter", "`strategy.type`"),
    ("finetuning_type", "`strategy.type`"),
];

/// Strategies that are LoRA with a setting.
const STRATEGIES: [(&str, &str); 6] = [
    ("qlora", "`type: lora` with `model.quantization: nf4`"),
    ("dora", "`type: lora` with `use_dora: true`"),
    ("rslora", "`type: lora` with `use_rslora: true`"),
    ("pissa", "`type: lora` with `lora_init: pissa`"),
    ("olora", "`type: lora` with `lora_init: olora`"),
    ("loraplus", "`type: lora` with `training.loraplus_lr_ratio: 16`"),
];

/// The keys of `data` that a recipe has at most once.
const DATA: [&str; 6] = ["path", "shape", "files", "steps", "split", "validation"];

/// Programs by keys that only their files have at the top.
const PROGRAMS: [(&str, &[&str]); 3] = [
    ("Axolotl", &["base_model", "datasets", "micro_batch_size", "sequence_len", "adapter"]),
    ("LLaMA-Factory", &["finetuning_type", "cutoff_len", "lora_target", "template", "stage"]),
    (
        "TRL or transformers",
        &[
            "model_name_or_path",
            "dataset_name",
            "use_peft",
            "per_device_train_batch_size",
            "num_train_epochs",
            "lora_target_modules",
        ],
    ),
];

/// The known name of what another trainer calls `found`.
pub(super) fn ours<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    let pairs = RENAMED.iter().chain(&VALUES);
    let meant = pairs.filter(|(theirs, _)| *theirs == found).map(|(_, ours)| *ours);
    meant.into_iter().find_map(|ours| known.iter().copied().find(|name| *name == ours))
}

/// What a recipe has at another place, or by another setting, for such a key.
pub(super) fn elsewhere(found: &str) -> Option<String> {
    ELSEWHERE.iter().find(|(theirs, _)| *theirs == found).map(|(_, instead)| (*instead).to_owned())
}

/// The key with its section, of a name that belongs into one.
pub(super) fn section(found: &str) -> Option<String> {
    let fields = |value: serde_json::Result<Value>| match value {
        Ok(Value::Object(fields)) => fields.into_iter().map(|(key, _)| key).collect(),
        _ => Vec::new(),
    };
    let sections: [(&str, Vec<String>); 4] = [
        ("training", fields(serde_json::to_value(TrainingArgs::default()))),
        ("strategy", fields(serde_json::to_value(Lora::default()))),
        ("model", fields(serde_json::to_value(ModelRecipe::new("")))),
        ("data", DATA.map(String::from).into()),
    ];
    sections.iter().find_map(|(section, keys)| {
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let same = keys.iter().copied().find(|key| *key == found);
        same.or_else(|| ours(found, &keys)).map(|key| format!("`{section}.{key}`"))
    })
}

/// The strategy that is called so elsewhere.
pub(super) fn strategy(found: &str) -> Option<&'static str> {
    STRATEGIES.iter().find(|(theirs, _)| *theirs == found).map(|(_, instead)| *instead)
}

/// The program whose file this is, by the keys at its top, and those that say so: two at least.
pub(super) fn program<'a>(keys: &[&'a str]) -> Option<(&'static str, Vec<&'a str>)> {
    let signs = PROGRAMS.iter().map(|(program, signs)| {
        (*program, keys.iter().copied().filter(|key| signs.contains(key)).collect::<Vec<_>>())
    });
    signs.max_by_key(|(_, found)| found.len()).filter(|(_, found)| found.len() > 1)
}
