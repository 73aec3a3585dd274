//! What both endpoints say of how to generate.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};

use serde_json::{Value, json};
use tunebook_models::GenerationConfig;

use crate::api_error::{ApiError, ApiResult};
use crate::app::{App, refused};
use crate::fields::{Fields, shown};
use crate::openai::format;

/// OpenAI's limit.
const MOST_BIASES: usize = 1024;
/// Each is looked for at every token.
const MOST_STOPS: usize = 16;
const LONGEST_STOP_BYTES: usize = 256;

/// How to generate, and how to answer.
#[derive(Debug)]
pub(crate) struct Sampling {
    pub(crate) config: GenerationConfig,
    /// The field that asks for the config's format.
    pub(crate) format_field: &'static str,
    pub(crate) stream: bool,
    /// A last chunk with the usage.
    pub(crate) include_usage: bool,
}

/// Reads the fields that both endpoints have. `max_new_tokens` and `top_logprobs` are the caller's.
pub(crate) fn read(app: &App, fields: &mut Fields) -> ApiResult<Sampling> {
    let most = app.config.engine.max_batch_size as i64;
    let default = GenerationConfig::default();
    let seed = match fields.seed("seed")? {
        Some(seed) => seed,
        None => RandomState::new().hash_one(0), // another one for each request
    };
    let (format, format_field) = format::read(fields)?;
    let config = GenerationConfig {
        temperature: fields.number("temperature", 0.0..=100.0)?.unwrap_or(1.0),
        top_p: fields.number("top_p", 1e-6..=1.0)?.unwrap_or(1.0),
        // vLLM's -1 is no limit, too.
        top_k: fields.integer("top_k", -1..=i64::MAX)?.unwrap_or(0).max(0) as usize,
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0),
        repetition_penalty: fields.number("repetition_penalty", 0.01..=100.0)?.unwrap_or(1.0),
        num_return_sequences: fields.integer("n", 1..=most)?.unwrap_or(1) as usize,
        ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
        stop: stops(fields)?,
        logit_bias: logit_bias(app, fields)?,
        seed,
        format,
        ..default
    };
    if config.ignore_eos && config.format.is_some() {
        let expected = format!("false with `{format_field}`, as nothing follows a whole answer");
        return Err(ApiError::value("ignore_eos", "true", &expected));
    }
    let stream = fields.flag("stream")?.unwrap_or(false);
    let include_usage = match fields.take("stream_options") {
        None => false,
        Some(_) if !stream => {
            let message = "`stream_options` is given, expected it with `stream` only";
            return Err(ApiError::field("invalid_value", "stream_options", message));
        }
        Some(options) => {
            let mut options = Fields::of(options, "stream_options")?;
            options.neutral("continuous_usage_stats", &[json!(false)])?;
            options.neutral("include_obfuscation", &[json!(false)])?;
            let include = options.flag("include_usage")?.unwrap_or(false);
            options.end()?;
            include
        }
    };
    for penalty in ["presence_penalty", "frequency_penalty"] {
        fields.neutral(penalty, &[json!(0), json!(0.0)])?;
    }
    fields.ignore(&["user", "metadata", "safety_identifier", "prompt_cache_key"]);
    Ok(Sampling { config, format_field, stream, include_usage })
}

fn stops(fields: &mut Fields) -> ApiResult<Vec<String>> {
    let expected = "a text or a list of at most 16 texts of 1 to 256 bytes";
    let stops = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(stop)) => vec![stop],
        Some(Value::Array(stops)) => {
            let text = |stop: &Value| stop.as_str().map(str::to_owned);
            let texts: Option<Vec<String>> = stops.iter().map(text).collect();
            texts.ok_or_else(|| ApiError::value("stop", "a list with other things", expected))?
        }
        Some(other) => return Err(ApiError::value("stop", &shown(&other), expected)),
    };
    if stops.len() > MOST_STOPS {
        return Err(ApiError::value("stop", &format!("a list of {}", stops.len()), expected));
    }
    if let Some(odd) = stops.iter().find(|stop| !(1..=LONGEST_STOP_BYTES).contains(&stop.len())) {
        return Err(ApiError::value("stop", &format!("a text of {} bytes", odd.len()), expected));
    }
    Ok(stops)
}

fn logit_bias(app: &App, fields: &mut Fields) -> ApiResult<BTreeMap<u32, f64>> {
    let expected = "token ids with numbers from -100 to 100, at most 1024 of them";
    let wrong = |found: &str| ApiError::value("logit_bias", found, expected);
    let map = match fields.take("logit_bias") {
        None => return Ok(BTreeMap::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong(&shown(&other))),
    };
    if map.len() > MOST_BIASES {
        return Err(wrong(&format!("of {} tokens", map.len())));
    }
    let mut biases = BTreeMap::new();
    for (id, bias) in &map {
        let number = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        match (id.parse::<u32>(), number) {
            (Ok(id), Some(bias)) => biases.insert(id, bias),
            _ => {
                let shown_id: String = id.chars().take(40).collect();
                return Err(wrong(&format!("{} for `{shown_id}`", shown(bias))));
            }
        };
    }
    let ids: Vec<u32> = biases.keys().copied().collect();
    app.model.check_ids("logit_bias", &ids).map_err(|error| refused("logit_bias", &error))?;
    Ok(biases)
}
