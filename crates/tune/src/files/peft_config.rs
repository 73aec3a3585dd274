//! `adapter_config.json`: PEFT's configurations as ours, and the other way round.
//!
//! Our fields have PEFT's names and types, so a configuration is its own JSON; the few fields that
//! differ are put right here.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::adapters::adalora::AdaLora;
use crate::adapters::config::AdapterConfig;
use crate::adapters::ia3::Ia3;
use crate::adapters::lora::Lora;
use crate::adapters::prefix_tuning::PrefixTuning;
use crate::adapters::prompt_tuning::{PromptTuning, PromptTuningInit};
use crate::error::{Error, Result};

/// Fields that say how an adapter began, which PEFT's files do not.
pub(crate) const OWN: [&str; 2] = ["lora_init", "init_seed"];

/// Features that change what the tensors mean, and that we do not have.
const UNSUPPORTED: [&str; 11] = [
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "velora_config",
    "kasa_config",
    "monteclora_config",
];

/// Fields that say nothing about what the tensors mean.
const WITHOUT_MEANING: [&str; 17] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    // How the base's weight lies in PEFT: GPT-2's the other way round. The adapter's tensors do not.
    "fan_in_fan_out",
    "inference_mode",
    "init_ia3_weights",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// What a file says.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) config: AdapterConfig,
    pub(crate) base_model_name_or_path: Option<String>,
    /// What was odd about it.
    pub(crate) warnings: Vec<String>,
}

/// The JSON that PEFT reads. Only keys that it knows are written.
///
/// # Errors
/// There is none that a configuration could cause.
pub(crate) fn to_json(config: &AdapterConfig, base: Option<&str>) -> Result<Value> {
    let mut json = match serde_json::to_value(config)? {
        Value::Object(json) => json,
        _ => Map::new(),
    };
    json.retain(|name, _| !OWN.contains(&name.as_str()));
    // PEFT declares alphas as integers: write 16.0 as 16.
    if let Some(alpha) = json.get_mut("lora_alpha") {
        whole(alpha);
    }
    if let Some(Value::Object(pattern)) = json.get_mut("alpha_pattern") {
        pattern.values_mut().for_each(whole);
    }
    // PEFT tells "none" from "no list".
    for name in ["modules_to_save", "layers_pattern"] {
        if let Some(value) =
            json.get_mut(name).filter(|value| value.as_array().is_some_and(Vec::is_empty))
        {
            *value = Value::Null;
        }
    }
    let always = json!({
        "auto_mapping": null,
        "base_model_name_or_path": base,
        "inference_mode": true,
        "revision": null,
        "task_type": "CAUSAL_LM",
    });
    if let Value::Object(always) = always {
        json.extend(always);
    }
    match config {
        AdapterConfig::Lora(_) | AdapterConfig::AdaLora(_) | AdapterConfig::Ia3(_) => {
            json.insert("fan_in_fan_out".to_owned(), json!(false));
        }
        AdapterConfig::PromptTuning(prompt) => {
            json.insert("num_transformer_submodules".to_owned(), json!(1));
            // PEFT wants to know whose tokens a text is of, though it never asks for them again.
            if prompt.prompt_tuning_init == PromptTuningInit::Text {
                json.insert("tokenizer_name_or_path".to_owned(), json!(base.unwrap_or("unknown")));
            }
        }
        AdapterConfig::PrefixTuning(prefix) => {
            json.insert("num_transformer_submodules".to_owned(), json!(1));
            json.insert("init_weights".to_owned(), Value::Null);
            // The file holds what comes out of it.
            json.insert("prefix_projection".to_owned(), json!(false));
            json.insert(
                "encoder_hidden_size".to_owned(),
                json!(prefix.encoder_hidden_size.or(prefix.token_dim)),
            );
        }
        AdapterConfig::Bottleneck(_) => {} // AdapterHub's files
    }
    Ok(Value::Object(json.into_iter().collect()))
}

fn whole(value: &mut Value) {
    if let Some(number) =
        value.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < 1e15)
    {
        *value = json!(number as i64);
    }
}

/// # Errors
/// No JSON object, another type than those known, a field out of its range or of another kind than
/// expected, or a feature that is not supported.
pub(crate) fn read(path: &Path, bytes: &[u8]) -> Result<Read> {
    let problem = |problem: String| Error::AdapterFile { path: path.to_path_buf(), problem };
    let json: Map<String, Value> = serde_json::from_slice(bytes)
        .map_err(|error| problem(format!("expected a JSON object, found {error}")))?;
    let mut warnings = Vec::new();
    let config = parse(json.clone(), &mut warnings).map_err(problem)?;
    config.validate().map_err(|error| problem(error.to_string()))?;
    let base_model_name_or_path =
        json.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned);
    Ok(Read { config, base_model_name_or_path, warnings })
}

fn parse(
    mut json: Map<String, Value>,
    warnings: &mut Vec<String>,
) -> Result<AdapterConfig, String> {
    let kind = json.get("peft_type").and_then(Value::as_str).unwrap_or("none").to_owned();
    for key in UNSUPPORTED {
        if let Some(value) = json.remove(key).filter(|value| !is_off(value)) {
            return Err(format!(
                "`{key}` is {value}, which is not supported; expected it to be off"
            ));
        }
    }
    json.retain(|_, value| !value.is_null());
    // One number, one name: PEFT takes either for a list.
    for name in ["layers_to_transform", "layers_pattern"] {
        match json.get_mut(name) {
            Some(Value::Array(values)) if values.is_empty() => drop(json.remove(name)),
            Some(one @ (Value::Number(_) | Value::String(_))) => *one = json!([one.take()]),
            _ => {}
        }
    }
    if json
        .get("exclude_modules")
        .is_some_and(|excluded| excluded.as_array().is_some_and(Vec::is_empty))
    {
        json.remove("exclude_modules");
    }
    match kind.as_str() {
        "LORA" => {
            plain_initial_weights(&mut json)?;
            json.remove("loftq_config");
            Ok(AdapterConfig::Lora(fields::<Lora>(json, &["target_modules"], warnings)?))
        }
        "ADALORA" => {
            plain_initial_weights(&mut json)?;
            // What `AdaLoraConfig` inherits and does not use, or refuses.
            for name in ["r", "alpha_pattern", "use_rslora", "loftq_config"] {
                json.remove(name);
            }
            if let Some(value) = json.remove("use_dora").filter(|value| !is_off(value)) {
                return Err(format!("`use_dora` is {value}, expected false: AdaLoRA has none"));
            }
            Ok(AdapterConfig::AdaLora(fields::<AdaLora>(json, &["target_modules"], warnings)?))
        }
        "IA3" => {
            // None, as PEFT has it, where there is no such list.
            json.entry("feedforward_modules").or_insert(json!([]));
            Ok(AdapterConfig::Ia3(fields::<Ia3>(json, &["target_modules"], warnings)?))
        }
        "PROMPT_TUNING" => {
            one_submodule(&mut json)?;
            // Where the tokens of the initial text came from.
            json.retain(|name, _| name != "tokenizer_name_or_path" && name != "tokenizer_kwargs");
            Ok(AdapterConfig::PromptTuning(fields::<PromptTuning>(
                json,
                &["num_virtual_tokens"],
                warnings,
            )?))
        }
        "PREFIX_TUNING" => {
            one_submodule(&mut json)?;
            if json.insert("prefix_projection".to_owned(), json!(false)) == Some(json!(true)) {
                warnings.push(
                    "`prefix_projection` is true, and the file holds what came out of the projection alone: trained further, the prefix is trained as \
                     it is"
                        .to_owned(),
                );
            }
            Ok(AdapterConfig::PrefixTuning(fields::<PrefixTuning>(
                json,
                &["num_virtual_tokens"],
                warnings,
            )?))
        }
        other => Err(format!("expected `peft_type` {}, found \"{other}\"", KNOWN.join(" or "))),
    }
}

/// The types that are read.
const KNOWN: [&str; 5] =
    ["\"LORA\"", "\"ADALORA\"", "\"IA3\"", "\"PROMPT_TUNING\"", "\"PREFIX_TUNING\""];

/// Refuses a prompt for encoder and decoder.
fn one_submodule(json: &mut Map<String, Value>) -> Result<(), String> {
    match json.remove("num_transformer_submodules") {
        Some(other) if other != json!(1) => {
            Err(format!("`num_transformer_submodules` is {other}, expected 1: a decoder by itself"))
        }
        _ => Ok(()),
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

/// Puts true or false in place of the name of a way to make the initial weights.
fn plain_initial_weights(json: &mut Map<String, Value>) -> Result<(), String> {
    match json.get_mut("init_lora_weights") {
        None | Some(Value::Bool(_)) => Ok(()),
        Some(Value::String(name)) if ["gaussian", "eva", "orthogonal"].contains(&name.as_str()) => {
            json.remove("init_lora_weights");
            Ok(())
        }
        // PiSSA, OLoRA, CorDA, LoftQ … change the base weights too, and the file does not hold
        // those.
        Some(other) => Err(format!(
            "`init_lora_weights` is {other}, which also changes the base weights; save the adapter in PEFT with \
             `path_initial_model_for_weight_conversion` to make a plain LoRA of it"
        )),
    }
}

/// The fields of our configuration among those of the file.
fn fields<T: DeserializeOwned + Serialize + Default>(
    json: Map<String, Value>,
    required: &[&str],
    warnings: &mut Vec<String>,
) -> Result<T, String> {
    if let Some(missing) = required.iter().find(|name| !json.contains_key(**name)) {
        return Err(format!("`{missing}` is missing, expected a list of names or one string"));
    }
    let known = match serde_json::to_value(T::default()) {
        Ok(Value::Object(known)) => known,
        _ => Map::new(),
    };
    let mut ours = Map::new();
    for (name, value) in json {
        if known.contains_key(&name) && !OWN.contains(&name.as_str()) {
            ours.insert(name, value);
        } else if !WITHOUT_MEANING.contains(&name.as_str()) && !is_off(&value) {
            warnings.push(format!(
                "`{name}` of the adapter's configuration is not known and was left out"
            ));
        }
    }
    // Field by field, so that an error can name the field.
    for (name, value) in &ours {
        let alone: Map<String, Value> = [(name.clone(), value.clone())].into_iter().collect();
        if let Err(error) = serde_json::from_value::<T>(Value::Object(alone)) {
            return Err(format!("`{name}` is {}: {error}", shortened(value)));
        }
    }
    serde_json::from_value(Value::Object(ours)).map_err(|error| error.to_string())
}

/// The beginning of a value that may be long.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
