//! The base model and the data of a recipe, in TRL's and Axolotl's names.

use std::path::Path;

use tunebook_models::{Config, Model, Quantization};
use tunebook_runs::{DataRecipe, ModelDtype, ModelRecipe, Recipe};
use tunebook_tune::{AdapterConfig, Strategy, peft};

use super::mapped::Mapped;
use super::strategy::strategy;
use super::training::training;
use super::{Accelerate, Engine, ExportOptions, RunShape};

/// By which a folder is known to hold a model.
const CONFIG: &str = "config.json";

/// All of a recipe. Without a `shape` only what can be refused without reading the data is.
pub(super) fn recipe(recipe: &Recipe, shape: Option<&RunShape>, options: &ExportOptions) -> Mapped {
    let Recipe { version: _, name: _, data, model, strategy: trained, training: args } = recipe;
    let mut out = Mapped::default();
    self::model(model, options, &mut out);
    precision(recipe, options, &mut out);
    self::data(data, options, &mut out);
    strategy(trained, options, &mut out);
    training(args, shape, options, &mut out);
    out
}

/// What is wrong with the place of a base, where it can only be a place.
fn no_model(path: &Path) -> Option<&'static str> {
    let is_place = path.is_absolute() || path.starts_with(".") || path.starts_with("..");
    if !path.is_dir() {
        return (is_place && !path.is_file()).then_some("there is no such folder");
    }
    if path.join(CONFIG).exists() {
        return None;
    }
    Some(match path.join(peft::CONFIG_FILE).exists() {
        true => "holds an adapter, and a base is a whole model",
        false => "no folder of a model: `config.json` is missing",
    })
}

/// Refuses a folder for `--base` with a model of another shape than the recipe's, and says what nobody
/// has compared.
pub(super) fn same_base(ours: &Model, options: &ExportOptions, out: &mut Mapped) {
    let Some(base) = &options.base else { return };
    if let Ok(text) = std::fs::read_to_string(Path::new(base).join(CONFIG)) {
        match Config::from_json(&text, base) {
            Err(error) => out.refuse("--base", base, &error.to_string()),
            Ok(theirs) => {
                if let Some(differs) = differs(&theirs, ours.config()) {
                    out.refuse(
                        "--base",
                        base,
                        &format!("another model than the recipe's: {differs}"),
                    );
                }
            }
        }
    }
    let file = ours.path().extension().is_some_and(|extension| extension == "gguf");
    let rounded = match file {
        true => {
            ", a GGUF file, whose weights are rounded as it says: losses and answers will differ from its"
        }
        false => "",
    };
    out.note(format!(
        "`{base}` is taken for the same model as the recipe's `{}`{rounded}; verify.py compares tokens, \
         nothing compares weights",
        ours.name()
    ));
}

/// The first size in which two models differ.
fn differs(theirs: &Config, ours: &Config) -> Option<String> {
    let sizes = |config: &Config| {
        [
            ("vocab_size", config.vocab_size),
            ("hidden_size", config.hidden_size),
            ("num_hidden_layers", config.num_hidden_layers),
            ("num_attention_heads", config.num_attention_heads),
            ("num_key_value_heads", config.num_key_value_heads),
            ("intermediate_size", config.intermediate_size),
        ]
    };
    let pairs = sizes(theirs).into_iter().zip(sizes(ours));
    let differs = pairs.into_iter().find(|(theirs, ours)| theirs != ours);
    differs.map(|((size, theirs), (_, ours))| format!("{size} is {theirs}, and {ours} there"))
}

fn model(model: &ModelRecipe, options: &ExportOptions, out: &mut Mapped) {
    let ModelRecipe { name_or_path, revision, dtype: _, quantization } = model;
    let trl = options.engine == Engine::Trl;
    let (base, revision) = match &options.base {
        Some(base) => (base.clone(), None),
        None => (name_or_path.clone(), revision.clone()),
    };
    let key = if options.base.is_some() { "--base" } else { "model.name_or_path" };
    let path = Path::new(&base);
    if let Some(problem) = no_model(path) {
        out.refuse(key, &base, problem);
    } else if path.is_file() || base.ends_with(".gguf") {
        out.refuse(
            key,
            &base,
            "transformers' trainer takes no GGUF file: name the same model as a repository or as a \
             folder (`model.save_pretrained` writes one) with --base",
        );
    } else if !path.is_dir() && base.split('/').count() != 2 {
        out.refuse(
            key,
            &base,
            "a name in this machine's cache: name the same model as a repository (`owner/name`) or as \
             a folder with --base",
        );
    } else if path.is_dir() {
        let whole = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        out.set(if trl { "model_name_or_path" } else { "base_model" }, whole.display().to_string());
        out.refuse_if(
            options.sky,
            "--sky",
            whole.display(),
            "the base model is a folder of this machine, which a cluster does not have: name a \
             repository of the hub with --base",
        );
    } else {
        out.set(if trl { "model_name_or_path" } else { "base_model" }, base);
    }
    if let Some(revision) = revision {
        out.set(if trl { "model_revision" } else { "revision_of_model" }, revision);
    }
    match quantization {
        None => {}
        Some(Quantization::Nf4) => {
            out.set("load_in_4bit", true);
            match options.engine {
                Engine::Trl => out.set("bnb_4bit_quant_type", "nf4"),
                Engine::Axolotl => out.set("adapter", "qlora"),
            }
            out.refuse_if(
                options.accelerate.is_some(),
                "model.quantization",
                "nf4",
                "blocks of 4 bits are not sharded the same way everywhere: leave --accelerate out, or \
                 train a LoRA over bfloat16",
            );
        }
        Some(other @ Quantization::Stored) => out.refuse(
            "model.quantization",
            format!("{other:?}").to_lowercase(),
            "the engine does not train over GGUF's blocks: choose nf4, or none",
        ),
    }
}

/// The types of number of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Precision {
    /// Of the weights, in torch's words.
    weights: &'static str,
    /// Of the products, in accelerate's words.
    pub(super) mixed: &'static str,
}

impl Precision {
    /// What is trained is float32 here, whatever the base is. An engine keeps an adapter so, but of full
    /// fine-tuning it trains the weights as they are loaded: torch does not scale losses for float16
    /// weights, and bfloat16 ones lose small steps.
    pub(super) fn of(recipe: &Recipe) -> Self {
        let (weights, mixed) = match recipe.model.dtype {
            ModelDtype::Float32 => ("float32", "no"),
            ModelDtype::Bfloat16 => ("bfloat16", "bf16"),
            ModelDtype::Float16 => ("float16", "fp16"),
        };
        match recipe.strategy.config {
            Strategy::Full(_) => Self { weights: "float32", mixed },
            Strategy::Adapter(_) => Self { weights, mixed },
        }
    }
}

/// The types of number, and the scaled loss that goes with one of them.
fn precision(recipe: &Recipe, options: &ExportOptions, out: &mut Mapped) {
    let Precision { weights, mixed } = Precision::of(recipe);
    let (dtype, args) = (recipe.model.dtype, &recipe.training);
    let name = match dtype {
        ModelDtype::Float32 => "float32",
        ModelDtype::Bfloat16 => "bfloat16",
        ModelDtype::Float16 => "float16",
    };
    let half = dtype != ModelDtype::Float32;
    match options.engine {
        Engine::Trl => out.set("dtype", weights),
        Engine::Axolotl if half => {}
        Engine::Axolotl => {
            out.set("float32", true);
            out.set("tf32", false);
        }
    }
    out.set("bf16", mixed == "bf16");
    out.set("fp16", mixed == "fp16");
    if dtype == ModelDtype::Float16 {
        out.refuse_if(
            !args.fp16,
            "training.fp16",
            args.fp16,
            "float16 is trained with a scaled loss there: set it to true, or choose bfloat16",
        );
        out.refuse_if(
            args.fp16 && args.fp16_init_scale != 65536.0,
            "training.fp16_init_scale",
            args.fp16_init_scale,
            "the scale begins at 65536 there and no option changes it: leave it out",
        );
    } else if args.fp16 {
        out.note(format!("training.fp16 is left out: scaling the loss changes nothing in {name}"));
    }
    let Strategy::Adapter(config) = &recipe.strategy.config else {
        out.refuse_if(
            half && options.engine == Engine::Axolotl,
            "model.dtype",
            name,
            "Axolotl would train the weights in this type, here they are float32: choose float32, or \
             export to TRL",
        );
        return;
    };
    if let AdapterConfig::Lora(lora) = &**config
        && half
        && !lora.modules_to_save.is_empty()
    {
        out.refuse_if(
            dtype == ModelDtype::Float16,
            "strategy.modules_to_save",
            lora.modules_to_save.join(", "),
            "their copies would be float16 there, for which torch scales no loss: choose bfloat16 or \
             float32, or leave them out",
        );
        if dtype == ModelDtype::Bfloat16 {
            out.note(
                "modules_to_save are trained in bfloat16 there, in float32 here: small steps are rounded \
                 away",
            );
        }
    }
    if options.engine == Engine::Trl {
        if recipe.model.quantization == Some(Quantization::Nf4) {
            out.note(
                "TRL trains a LoRA over 4 bits in bfloat16, here it is float32: small steps are rounded \
                 away (not of DoRA's magnitudes)",
            );
        }
        if options.accelerate == Some(Accelerate::Zero3) && half {
            out.note(format!(
                "with zero3 TRL trains the adapter in {name}, here it is float32: small steps are rounded \
                 away"
            ));
        }
    }
}

/// The rows are read, cleaned and split here, and written as they are trained on.
fn data(data: &DataRecipe, options: &ExportOptions, out: &mut Mapped) {
    let DataRecipe {
        path: _,
        shape: _,
        files: _,
        steps: _,
        split: _,
        train_steps: _,
        validation_steps: _,
        validation: _,
    } = data;
    match options.engine {
        Engine::Trl => {
            out.set("dataset_name", super::tokens::FOLDER);
            out.set("dataset_train_split", "train");
            out.set("dataset_test_split", "validation");
            out.set("dataset_kwargs", serde_json::json!({ "skip_prepare_dataset": true }));
            out.set("max_length", serde_json::Value::Null);
            out.set("shuffle_dataset", false);
            out.set("train_sampling_strategy", "sequential");
        }
        Engine::Axolotl => {
            let set = |file: &str| {
                let path = format!("{}/{file}.jsonl", super::tokens::FOLDER);
                serde_json::json!([{
                    "path": path, "ds_type": "json", "split": "train", "type": null,
                }])
            };
            out.set("datasets", set("train"));
            out.set("test_datasets", set("validation"));
            out.set("val_set_size", 0.0);
            out.set("curriculum_sampling", true);
            out.set("shuffle_merged_datasets", false);
            out.set("sample_packing", false);
            out.set("pad_to_sequence_len", false);
        }
    }
}

/// What only the whole export knows.
pub(super) fn of_run(shape: &RunShape, options: &ExportOptions, out: &mut Mapped) {
    out.set("max_steps", shape.total_steps);
    out.set("logging_steps", 1);
    match options.engine {
        Engine::Trl => {
            out.set("num_train_epochs", 1);
            out.set("packing", false);
            out.set("report_to", "none");
            // A loss that is not finite would be logged as 0.
            out.set("logging_nan_inf_filter", false);
            if shape.initial {
                out.set("resume_from_checkpoint", super::INITIAL);
            }
        }
        Engine::Axolotl => {
            out.set("num_epochs", shape.passes);
            out.set("sequence_len", shape.longest);
            if !shape.validates {
                out.settings.shift_remove("test_datasets");
            }
            if shape.initial {
                out.set("lora_model_dir", super::INITIAL);
            }
            match options.accelerate {
                None => {}
                Some(Accelerate::Fsdp2) => {
                    out.set("fsdp_version", 2);
                    let again = out.again;
                    out.set("fsdp_config", super::launch::fsdp2_of_axolotl(again));
                }
                Some(Accelerate::Zero3) => out.set("deepspeed", super::launch::DEEPSPEED),
            }
        }
    }
}

/// Where the engine writes to: a folder for each export, so that no run is taken for another's. Axolotl
/// finds rows that it has prepared by their path alone.
pub(super) fn of_export(id: &str, options: &ExportOptions, out: &mut Mapped) {
    out.set("output_dir", format!("{}/{id}", super::OUT));
    if options.engine == Engine::Axolotl {
        out.set("dataset_prepared_path", format!("prepared/{id}"));
    }
}
