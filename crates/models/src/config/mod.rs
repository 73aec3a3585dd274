//! A decoder's shape, read from `config.json` or from the metadata of a GGUF file. Fields are named
//! as in `config.json`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use crate::error::{Error, Result};
use crate::families::falcon::{self, FalconConfig};
use crate::families::gemma::GemmaConfig;
use crate::families::gpt2::Gpt2Config;
use crate::families::llama::{FULL, LlamaConfig, SLIDING};
use crate::families::phi3::Phi3Config;
use crate::layers::Activation;
use crate::layers::rope::{RopeParameters, RopeScaling};
use crate::weights::gguf::{self, Value};

/// The architectures that this crate can run, by the name that `config.json` gives them
/// (`model_type`). Most have the same name in GGUF; `mistral` is `llama` there, `gemma3_text` is
/// `gemma3`.
pub const KNOWN_ARCHITECTURES: &[&str] = &[
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi3",
    "falcon",
    "gpt2",
];

/// Larger than any size in a real config, and small enough that no product of two of them
/// overflows.
const LARGEST: usize = 1 << 31;
/// More blocks than any real model has: each costs memory before a file's tensors are compared with
/// the config.
const MOST_LAYERS: usize = 10_000;
/// Larger than any real head: the angles of the rotary embedding are computed for each pair of
/// values before that, too.
const LARGEST_HEAD: usize = 8192;

/// The shape of a decoder. Fields that only one family has are in [`Config::family`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// The family, Hugging Face's name for it.
    pub model_type: String,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Size of the residual stream.
    pub hidden_size: usize,
    /// Size inside the feed-forward block.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; fewer than query heads: grouped-query attention.
    pub num_key_value_heads: usize,
    /// Size of one head.
    pub head_dim: usize,
    /// The context: the most tokens in one sequence.
    pub max_position_embeddings: usize,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Begins a text.
    pub bos_token_id: Option<u32>,
    /// Any of these ends a text.
    pub eos_token_id: Vec<u32>,
    /// Fills short rows of a batch.
    pub pad_token_id: Option<u32>,
    /// What the family has beside the sizes.
    #[serde(flatten)]
    pub family: Family,
}

/// What each family has beside the sizes that all share.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Family {
    /// Llama, Mistral, Qwen 2 and 3, SmolLM.
    Llama(LlamaConfig),
    /// Falcon.
    Falcon(FalconConfig),
    /// Gemma 1, 2 and 3.
    Gemma(GemmaConfig),
    /// Phi-3 and Phi-4.
    Phi3(Phi3Config),
    /// GPT-2.
    Gpt2(Gpt2Config),
}

/// The sizes that all families share, while a config is being read.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) model_type: String,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) num_key_value_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) max_position_embeddings: usize,
}

impl Config {
    /// From the text of a `config.json`. `origin` is named in errors.
    ///
    /// # Errors
    /// Not JSON; a field missing or absurd; an architecture or a rope scaling that this crate does
    /// not have.
    pub fn from_json(text: &str, origin: &str) -> Result<Self> {
        let json: Json = serde_json::from_str(text).map_err(|error| Error::Config {
            origin: origin.to_owned(),
            field: "(the whole file)".to_owned(),
            found: format!("no JSON: {error}"),
            expected: "a JSON object".to_owned(),
        })?;
        let Json::Object(fields) = json else {
            return Err(Error::Config {
                origin: origin.to_owned(),
                field: "(the whole file)".to_owned(),
                found: "no object".to_owned(),
                expected: "a JSON object".to_owned(),
            });
        };
        let json = JsonFields { fields: &fields, origin };
        let model_type = json.model_type()?;
        check_architecture(&model_type, origin)?;
        // GPT-2's and Falcon's first files have names of their own.
        let hidden_size = json.count_of(&["hidden_size", "n_embd", "n_embed"])?;
        let num_attention_heads = json.count_of(&["num_attention_heads", "n_head"])?;
        let num_hidden_layers = json.count_of(&["num_hidden_layers", "n_layer"])?;
        let four_times =
            matches!(model_type.as_str(), "falcon" | "gpt2").then_some(4 * hidden_size);
        let shape = Shape {
            hidden_size,
            intermediate_size: json
                .count_or(&["intermediate_size", "ffn_hidden_size", "n_inner"], four_times)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: match model_type.as_str() {
                "falcon" => falcon::key_value_heads(&json, num_attention_heads)?,
                _ => json.count_or(&["num_key_value_heads"], Some(num_attention_heads))?,
            },
            head_dim: match model_type.as_str() {
                "qwen3" => json.count_or(&["head_dim"], Some(128))?,
                "gemma" | "gemma2" | "gemma3_text" => json.count_or(&["head_dim"], Some(256))?,
                "falcon" | "gpt2" => hidden_size / num_attention_heads,
                _ => json.count_or(&["head_dim"], Some(hidden_size / num_attention_heads))?,
            },
            max_position_embeddings: json.count_or(
                &["max_position_embeddings", "n_positions"],
                (model_type == "falcon").then_some(2048),
            )?,
            model_type,
        };
        check_shape(&shape, origin)?;
        let family = match shape.model_type.as_str() {
            "falcon" => Family::Falcon(FalconConfig::from_json(&json, &shape)?),
            "gemma" | "gemma2" | "gemma3_text" => {
                Family::Gemma(GemmaConfig::from_json(&json, &shape)?)
            }
            "phi3" => Family::Phi3(Phi3Config::from_json(&json, &shape)?),
            "gpt2" => Family::Gpt2(Gpt2Config::from_json(&json, &shape)?),
            _ => Family::Llama(LlamaConfig::from_json(&json, &shape)?),
        };
        let tied = matches!(
            shape.model_type.as_str(),
            "smollm3" | "gemma" | "gemma2" | "gemma3_text" | "falcon" | "gpt2"
        );
        Self {
            vocab_size: json.count("vocab_size")?,
            tie_word_embeddings: json.flag("tie_word_embeddings")?.unwrap_or(tied),
            bos_token_id: json.ids("bos_token_id")?.first().copied(),
            eos_token_id: json.ids("eos_token_id")?,
            pad_token_id: json.ids("pad_token_id")?.first().copied(),
            ..Self::of(shape, family)
        }
        .validate(origin)
    }

    /// From the metadata of a GGUF file.
    ///
    /// # Errors
    /// A key missing or absurd; an architecture or a rope scaling that this crate does not have.
    pub(crate) fn from_gguf(file: &gguf::Gguf) -> Result<Self> {
        let origin = file.origin();
        let architecture = file.text("general.architecture")?;
        let model_type = if architecture == "gemma3" { "gemma3_text" } else { architecture };
        check_architecture(model_type, &origin)?;
        let key = |name: &str| format!("{architecture}.{name}");
        let hidden_size = file.count(&key("embedding_length"))?;
        let num_attention_heads = file.count(&key("attention.head_count"))?;
        let shape = Shape {
            model_type: model_type.to_owned(),
            hidden_size,
            intermediate_size: file.count(&key("feed_forward_length"))?,
            num_hidden_layers: file.count(&key("block_count"))?,
            num_attention_heads,
            num_key_value_heads: file
                .optional_count(&key("attention.head_count_kv"))?
                .unwrap_or(num_attention_heads),
            head_dim: match file.optional_count(&key("attention.key_length"))? {
                Some(length) => length,
                None => hidden_size / num_attention_heads,
            },
            max_position_embeddings: file.count(&key("context_length"))?,
        };
        check_shape(&shape, &origin)?;
        let family = match model_type {
            "falcon" => Family::Falcon(FalconConfig::from_gguf(file, &shape)?),
            "gemma" | "gemma2" | "gemma3_text" => {
                Family::Gemma(GemmaConfig::from_gguf(file, architecture, &shape)?)
            }
            "phi3" => Family::Phi3(Phi3Config::from_gguf(file, &shape)?),
            "gpt2" => Family::Gpt2(Gpt2Config::from_gguf(file)?),
            _ => Family::Llama(LlamaConfig::from_gguf(file, &shape)?),
        };
        let id = |name: &str| {
            file.get(name).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok())
        };
        let mut eos_token_id: Vec<u32> = id("tokenizer.ggml.eos_token_id").into_iter().collect();
        // Ends a turn of a chat where that is another token.
        eos_token_id
            .extend(id("tokenizer.ggml.eot_token_id").filter(|id| !eos_token_id.contains(id)));
        Self {
            vocab_size: match file.get(&key("vocab_size")) {
                Some(_) => file.count(&key("vocab_size"))?,
                None => file.array("tokenizer.ggml.tokens")?.len(),
            },
            tie_word_embeddings: !file.has_tensor("output.weight"),
            bos_token_id: id("tokenizer.ggml.bos_token_id"),
            eos_token_id,
            pad_token_id: id("tokenizer.ggml.padding_token_id"),
            ..Self::of(shape, family)
        }
        .validate(&origin)
    }

    fn of(shape: Shape, family: Family) -> Self {
        Self {
            model_type: shape.model_type,
            vocab_size: 0,
            hidden_size: shape.hidden_size,
            intermediate_size: shape.intermediate_size,
            num_hidden_layers: shape.num_hidden_layers,
            num_attention_heads: shape.num_attention_heads,
            num_key_value_heads: shape.num_key_value_heads,
            head_dim: shape.head_dim,
            max_position_embeddings: shape.max_position_embeddings,
            tie_word_embeddings: false,
            bos_token_id: None,
            eos_token_id: Vec::new(),
            pad_token_id: None,
            family,
        }
    }

    pub(crate) fn shape(&self) -> Shape {
        Shape {
            model_type: self.model_type.clone(),
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            max_position_embeddings: self.max_position_embeddings,
        }
    }

    /// As the `config.json` that `transformers` reads.
    pub fn to_json(&self) -> Json {
        let mut fields = Map::new();
        for (field, value) in [
            ("architectures", json!([self.class()])),
            ("model_type", json!(self.model_type)),
            ("vocab_size", json!(self.vocab_size)),
            ("hidden_size", json!(self.hidden_size)),
            ("intermediate_size", json!(self.intermediate_size)),
            ("num_hidden_layers", json!(self.num_hidden_layers)),
            ("num_attention_heads", json!(self.num_attention_heads)),
            ("num_key_value_heads", json!(self.num_key_value_heads)),
            ("head_dim", json!(self.head_dim)),
            ("max_position_embeddings", json!(self.max_position_embeddings)),
            ("tie_word_embeddings", json!(self.tie_word_embeddings)),
            ("bos_token_id", json!(self.bos_token_id)),
            (
                "eos_token_id",
                match self.eos_token_id[..] {
                    [] => Json::Null,
                    // One id as a number, as most readers expect it.
                    [only] => json!(only),
                    _ => json!(self.eos_token_id),
                },
            ),
            ("pad_token_id", json!(self.pad_token_id)),
        ] {
            fields.insert(field.to_owned(), value);
        }
        match &self.family {
            Family::Llama(family) => family.to_json(&self.model_type, &mut fields),
            Family::Falcon(family) => family.to_json(&self.shape(), &mut fields),
            Family::Gemma(family) => family.to_json(&self.model_type, &mut fields),
            Family::Phi3(family) => family.to_json(&mut fields),
            Family::Gpt2(family) => family.to_json(&self.shape(), &mut fields),
        }
        Json::Object(fields)
    }

    /// What the names of all tensors but the output head begin with.
    pub(crate) fn prefix(&self) -> &'static str {
        match self.family {
            Family::Falcon(_) | Family::Gpt2(_) => "transformer.",
            _ => "model.",
        }
    }

    /// The class of `transformers`.
    fn class(&self) -> &'static str {
        match self.model_type.as_str() {
            "mistral" => "MistralForCausalLM",
            "qwen2" => "Qwen2ForCausalLM",
            "qwen3" => "Qwen3ForCausalLM",
            "smollm3" => "SmolLM3ForCausalLM",
            "gemma" => "GemmaForCausalLM",
            "gemma2" => "Gemma2ForCausalLM",
            "gemma3_text" => "Gemma3ForCausalLM",
            "phi3" => "Phi3ForCausalLM",
            "falcon" => "FalconForCausalLM",
            "gpt2" => "GPT2LMHeadModel",
            _ => "LlamaForCausalLM",
        }
    }

    /// Refuses sizes that contradict each other.
    fn validate(self, origin: &str) -> Result<Self> {
        let shape = self.shape();
        match &self.family {
            Family::Llama(family) => family.validate(&shape, origin)?,
            Family::Falcon(family) => family.validate(&shape, origin)?,
            Family::Gemma(family) => family.validate(&shape, origin)?,
            Family::Phi3(family) => family.validate(&shape, origin)?,
            Family::Gpt2(family) => family.validate(&shape, origin)?,
        }
        let ids = self.bos_token_id.iter().chain(&self.eos_token_id);
        if let Some(id) = ids.chain(&self.pad_token_id).find(|id| **id as usize >= self.vocab_size)
        {
            return refuse(
                origin,
                "bos_token_id, eos_token_id, pad_token_id",
                id.to_string(),
                &format!("ids below vocab_size, which is {}", self.vocab_size),
            );
        }
        Ok(self)
    }
}

fn refuse<T>(origin: &str, field: &str, found: String, expected: &str) -> Result<T> {
    Err(Error::Config {
        origin: origin.to_owned(),
        field: field.to_owned(),
        found,
        expected: expected.to_owned(),
    })
}

fn check_architecture(architecture: &str, origin: &str) -> Result<()> {
    if KNOWN_ARCHITECTURES.contains(&architecture) {
        return Ok(());
    }
    Err(Error::UnknownArchitecture {
        architecture: architecture.to_owned(),
        origin: origin.to_owned(),
        known: KNOWN_ARCHITECTURES.join(", "),
    })
}

/// Before anything is made for each layer or head.
fn check_shape(shape: &Shape, origin: &str) -> Result<()> {
    if !shape.num_attention_heads.is_multiple_of(shape.num_key_value_heads) {
        return refuse(
            origin,
            "num_key_value_heads",
            shape.num_key_value_heads.to_string(),
            &format!("a divisor of num_attention_heads, which is {}", shape.num_attention_heads),
        );
    }
    if shape.head_dim == 0 {
        return refuse(origin, "head_dim", "0".to_owned(), "an even number above 0");
    }
    if shape.head_dim > LARGEST_HEAD {
        let most = format!("at most {LARGEST_HEAD}");
        return refuse(origin, "head_dim", shape.head_dim.to_string(), &most);
    }
    if shape.num_hidden_layers > MOST_LAYERS {
        let most = format!("at most {MOST_LAYERS}");
        return refuse(origin, "num_hidden_layers", shape.num_hidden_layers.to_string(), &most);
    }
    Ok(())
}

/// The activation of that name.
pub(crate) fn activation(field: &str, name: &str, origin: &str) -> Result<Activation> {
    match Activation::from_name(name) {
        Some(activation) => Ok(activation),
        None => {
            refuse(origin, field, format!("`{name}`"), &format!("one of {}", Activation::KNOWN))
        }
    }
}

pub(crate) fn check_activation(field: &str, name: &str, origin: &str) -> Result<()> {
    activation(field, name, origin).map(drop)
}

pub(crate) fn check_eps(field: &str, value: f64, origin: &str) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    refuse(origin, field, value.to_string(), "a finite number above 0")
}

/// The rotary embedding of a GGUF file.
pub(crate) fn gguf_rope(
    file: &gguf::Gguf,
    architecture: &str,
    max_positions: usize,
) -> Result<RopeParameters> {
    let key = |name: &str| format!("{architecture}.rope.{name}");
    let number = |name: &str, default: f64| match file.get(&key(name)) {
        Some(_) => file.written_number(&key(name)),
        None => Ok(default),
    };
    let mut rope = RopeParameters::new(number("freq_base", 10_000.0)?);
    if let Some(factors) = file.numbers("rope_freqs.weight")? {
        rope.scaling = RopeScaling::Factors { factors };
        return Ok(rope);
    }
    match file.get(&key("scaling.type")).and_then(Value::as_str) {
        None | Some("none" | "longrope") => {}
        Some("linear") => {
            rope.scaling = RopeScaling::Linear { factor: number("scaling.factor", 1.0)? }
        }
        Some("yarn") => {
            let factor = number("scaling.factor", 1.0)?;
            rope.scaling = RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: file
                    .optional_count(&key("scaling.original_context_length"))?
                    .unwrap_or(max_positions),
                attention_factor: number("scaling.attn_factor", 1.0)?
                    * if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 },
                beta_fast: number("scaling.yarn_beta_fast", 32.0)?,
                beta_slow: number("scaling.yarn_beta_slow", 1.0)?,
            };
        }
        Some(other) => {
            return Err(Error::Unsupported {
                origin: file.origin(),
                what: "the rope scaling",
                found: other.to_owned(),
                known: "none, linear, yarn".to_owned(),
            });
        }
    }
    Ok(rope)
}

/// The keys that [`gguf_rope`] reads.
pub(crate) fn put_gguf_rope(rope: &RopeParameters, put: &mut dyn FnMut(&str, Value)) {
    put("rope.freq_base", Value::Float(rope.rope_theta));
    match &rope.scaling {
        RopeScaling::Linear { factor } => {
            put("rope.scaling.type", Value::String("linear".to_owned()));
            put("rope.scaling.factor", Value::Float(*factor));
        }
        RopeScaling::Yarn {
            factor, original_max_position_embeddings, attention_factor, ..
        } => {
            put("rope.scaling.type", Value::String("yarn".to_owned()));
            put("rope.scaling.factor", Value::Float(*factor));
            let original = *original_max_position_embeddings as u64;
            put("rope.scaling.original_context_length", Value::Unsigned(original));
            // llama.cpp multiplies its own factor in.
            let own = if *factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
            put("rope.scaling.attn_factor", Value::Float(attention_factor / own));
        }
        _ => {}
    }
}

/// The number whose nearest f32 this is: `1e-5` and not `9.999999747378752e-6`.
pub(crate) fn as_written(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}

/// Checked access to the fields of a JSON object.
pub(crate) struct JsonFields<'a> {
    fields: &'a Map<String, Json>,
    origin: &'a str,
}

impl<'a> JsonFields<'a> {
    pub(crate) fn get(&self, field: &str) -> Option<&'a Json> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    pub(crate) fn refuse<T>(&self, field: &str, found: &str, expected: &str) -> Result<T> {
        Err(Error::Config {
            origin: self.origin.to_owned(),
            field: field.to_owned(),
            found: found.to_owned(),
            expected: expected.to_owned(),
        })
    }

    pub(crate) fn count(&self, field: &str) -> Result<usize> {
        match self.optional_count(field)? {
            Some(count) => Ok(count),
            None => self.refuse(field, "missing", "a whole number above 0"),
        }
    }

    pub(crate) fn optional_count(&self, field: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| (1..=LARGEST).contains(n))
        {
            Some(count) => Ok(Some(count)),
            None => self.refuse(field, &value.to_string(), "a whole number above 0"),
        }
    }

    pub(crate) fn number(&self, field: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => self.refuse(field, &value.to_string(), "a number"),
        }
    }

    pub(crate) fn flag(&self, field: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_bool() {
            Some(flag) => Ok(Some(flag)),
            None => self.refuse(field, &value.to_string(), "true or false"),
        }
    }

    pub(crate) fn text(&self, field: &str) -> Result<Option<String>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_str() {
            Some(text) => Ok(Some(text.to_owned())),
            None => self.refuse(field, &value.to_string(), "a text"),
        }
    }

    /// One id or a list of them.
    pub(crate) fn ids(&self, field: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(field) else { return Ok(Vec::new()) };
        let one = std::slice::from_ref(value);
        let values = value.as_array().map_or(one, Vec::as_slice);
        let ids: Option<Vec<u32>> =
            values.iter().map(|v| v.as_u64().and_then(|id| u32::try_from(id).ok())).collect();
        match ids {
            Some(ids) => Ok(ids),
            None => self.refuse(field, &value.to_string(), "a token id or a list of them"),
        }
    }

    pub(crate) fn object(&self, field: &str) -> Result<Option<JsonFields<'a>>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_object() {
            Some(fields) => Ok(Some(JsonFields { fields, origin: self.origin })),
            None => self.refuse(field, &value.to_string(), "an object"),
        }
    }

    pub(crate) fn array(&self, field: &str) -> Result<Option<&'a [Json]>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_array() {
            Some(values) => Ok(Some(values)),
            None => self.refuse(field, &value.to_string(), "a list"),
        }
    }

    /// A list of numbers that must be there.
    pub(crate) fn numbers(&self, field: &str) -> Result<Vec<f64>> {
        let numbers: Option<Vec<f64>> =
            self.array(field)?.and_then(|values| values.iter().map(Json::as_f64).collect());
        match numbers {
            Some(numbers) => Ok(numbers),
            None => self.refuse(field, "missing or no numbers", "a list of numbers"),
        }
    }

    /// The kind of attention of each layer, by default what `of_layer` says.
    pub(crate) fn layer_types(
        &self,
        layers: usize,
        of_layer: impl Fn(usize) -> &'static str,
    ) -> Result<Vec<String>> {
        let Some(values) = self.array("layer_types")? else {
            return Ok((0..layers).map(|layer| of_layer(layer).to_owned()).collect());
        };
        let known = |kind: &&str| matches!(*kind, FULL | SLIDING);
        let types: Option<Vec<String>> =
            values.iter().map(|kind| kind.as_str().filter(known).map(str::to_owned)).collect();
        match types {
            Some(types) if types.len() == layers => Ok(types),
            _ => self.refuse(
                "layer_types",
                &format!("a list of {}", values.len()),
                &format!("`{FULL}` or `{SLIDING}` for each of {layers} layers"),
            ),
        }
    }

    /// Whether the field is there, be it as null.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.fields.contains_key(field)
    }

    pub(crate) fn origin(&self) -> &'a str {
        self.origin
    }

    pub(crate) fn model_type(&self) -> Result<String> {
        Ok(self.text("model_type")?.unwrap_or_default())
    }

    /// The first of several names that is there.
    pub(crate) fn count_of(&self, fields: &[&str]) -> Result<usize> {
        self.count_or(fields, None)
    }

    /// The same with a default.
    pub(crate) fn count_or(&self, fields: &[&str], default: Option<usize>) -> Result<usize> {
        for field in fields {
            if let Some(count) = self.optional_count(field)? {
                return Ok(count);
            }
        }
        match default {
            Some(count) => Ok(count),
            None => self.count(fields[0]),
        }
    }
}

/// Everything that `generation_config.json` says about where a text ends, to be merged into a
/// [`Config`].
pub(crate) fn generation_eos(text: &str, origin: &str) -> Result<Vec<u32>> {
    let fields: BTreeMap<String, Json> =
        serde_json::from_str(text).map_err(|error| Error::Config {
            origin: origin.to_owned(),
            field: "(the whole file)".to_owned(),
            found: format!("no JSON object: {error}"),
            expected: "a JSON object".to_owned(),
        })?;
    let fields: Map<String, Json> = fields.into_iter().collect();
    JsonFields { fields: &fields, origin }.ids("eos_token_id")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(change: &str, to: Json) -> String {
        let mut json = serde_json::json!({
            "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "eos_token_id": [1, 2],
        });
        json[change] = to;
        json.to_string()
    }

    #[test]
    fn fields_have_transformers_defaults() {
        let config = Config::from_json(&json("bos_token_id", 0.into()), "c").unwrap();
        let Family::Llama(llama) = &config.family else { panic!("{config:?}") };
        assert_eq!(
            (config.head_dim, llama.rope_parameters.rope_theta, llama.rms_norm_eps),
            (4, 10_000.0, 1e-6)
        );
        assert_eq!(
            (config.bos_token_id, config.eos_token_id, config.pad_token_id),
            (Some(0), vec![1, 2], None)
        );
        assert!(!config.tie_word_embeddings && !llama.attention_bias);
    }

    #[test]
    fn rope_theta_is_read_from_both_places() {
        let theta = |field, value| match Config::from_json(&json(field, value), "c").unwrap().family
        {
            Family::Llama(llama) => llama.rope_parameters.rope_theta,
            other => panic!("{other:?}"),
        };
        assert_eq!(theta("rope_theta", 5e5.into()), 5e5);
        assert_eq!(
            theta(
                "rope_parameters",
                serde_json::json!({"rope_type": "default", "rope_theta": 7e5})
            ),
            7e5
        );
    }

    #[test]
    fn wrong_fields_are_named_with_value_and_range() {
        for (field, value, says) in [
            ("hidden_size", Json::Null, "`hidden_size` is missing"),
            ("hidden_size", 0.into(), "`hidden_size` is 0, expected a whole number above 0"),
            ("hidden_size", "big".into(), "`hidden_size` is \"big\""),
            ("num_key_value_heads", 3.into(), "a divisor of num_attention_heads, which is 4"),
            ("head_dim", 5.into(), "`head_dim` is 5, expected an even number"),
            ("head_dim", 1_000_000.into(), "`head_dim` is 1000000, expected at most 8192"),
            ("hidden_act", "mish".into(), "`hidden_act` is `mish`, expected one of silu, gelu"),
            ("eos_token_id", 32.into(), "ids below vocab_size, which is 32"),
            ("rope_scaling", serde_json::json!({"rope_type": "ntk"}), "the rope scaling `ntk`"),
            ("rope_scaling", serde_json::json!({"rope_type": "linear"}), "`factor` is missing"),
            ("model_type", "mamba".into(), "unknown architecture `mamba` in `c`: known are llama"),
        ] {
            let error = Config::from_json(&json(field, value), "c").unwrap_err().to_string();
            assert!(error.contains(says), "{field}: {error}");
        }
        assert!(Config::from_json("[1", "c").unwrap_err().to_string().contains("no JSON"));
    }

    #[test]
    fn floats_are_read_as_they_were_written() {
        assert_eq!(as_written(f64::from(1e-5f32)), 1e-5);
        assert_eq!(as_written(100_000.0), 100_000.0);
    }
}
