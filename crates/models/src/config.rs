//! A decoder's shape, read from `config.json` or from the metadata of a GGUF file. Fields are named as in `config.json`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value as Json};

use crate::error::{Error, Result};
use crate::weights::Checkpoint;
use crate::weights::gguf::{self, Value};

/// The architectures that this crate can run, by the name that `config.json` (`model_type`) and GGUF give them.
pub const KNOWN_ARCHITECTURES: &[&str] = &["llama"];

/// Larger than any size in a real config, and small enough that no product of two of them overflows.
const LARGEST: usize = 1 << 31;

/// The shape of a Llama decoder.
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
    /// Activation of the feed-forward block.
    pub hidden_act: String,
    /// The context: the most tokens in one sequence.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMS normalisation.
    pub rms_norm_eps: f64,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// Whether the attention's projections have a bias.
    pub attention_bias: bool,
    /// Whether the feed-forward block's projections have a bias.
    pub mlp_bias: bool,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Begins a text.
    pub bos_token_id: Option<u32>,
    /// Any of these ends a text.
    pub eos_token_id: Vec<u32>,
    /// Fills short rows of a batch.
    pub pad_token_id: Option<u32>,
}

impl Config {
    /// From the text of a `config.json`. `origin` is named in errors.
    ///
    /// # Errors
    /// Not JSON; a field missing or absurd; an architecture or a rope scaling that this crate does not have.
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
        let model_type = json.text("model_type")?.unwrap_or_default();
        check_architecture(&model_type, origin)?;
        // transformers 5 writes rope_theta inside rope_parameters, earlier versions beside rope_scaling.
        let rope = json.object("rope_parameters").or_else(|| json.object("rope_scaling"));
        if let Some(rope) = &rope {
            let kind = rope.text("rope_type")?.or(rope.text("type")?).unwrap_or_else(|| "default".to_owned());
            if kind != "default" {
                return Err(Error::Unsupported {
                    origin: origin.to_owned(),
                    what: "the rope scaling",
                    found: kind,
                    known: "default".to_owned(),
                });
            }
        }
        let rope_theta = match rope.map(|rope| rope.number("rope_theta")).transpose()?.flatten() {
            Some(theta) => theta,
            None => json.number("rope_theta")?.unwrap_or(10_000.0),
        };
        let hidden_size = json.count("hidden_size")?;
        let num_attention_heads = json.count("num_attention_heads")?;
        Self {
            vocab_size: json.count("vocab_size")?,
            hidden_size,
            intermediate_size: json.count("intermediate_size")?,
            num_hidden_layers: json.count("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: json.optional_count("num_key_value_heads")?.unwrap_or(num_attention_heads),
            head_dim: json.optional_count("head_dim")?.unwrap_or(hidden_size / num_attention_heads),
            hidden_act: json.text("hidden_act")?.unwrap_or_else(|| "silu".to_owned()),
            max_position_embeddings: json.count("max_position_embeddings")?,
            rms_norm_eps: json.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta,
            attention_bias: json.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: json.flag("mlp_bias")?.unwrap_or(false),
            tie_word_embeddings: json.flag("tie_word_embeddings")?.unwrap_or(false),
            bos_token_id: json.ids("bos_token_id")?.first().copied(),
            eos_token_id: json.ids("eos_token_id")?,
            pad_token_id: json.ids("pad_token_id")?.first().copied(),
            model_type,
        }
        .validate(origin)
    }

    /// From the metadata of a GGUF file. `tied` says that the file has no output head of its own.
    ///
    /// # Errors
    /// A key missing or absurd; an architecture or a rope scaling that this crate does not have.
    pub(crate) fn from_gguf(file: &gguf::Gguf) -> Result<Self> {
        let origin = file.origin();
        let architecture = file.text("general.architecture")?;
        check_architecture(architecture, &origin)?;
        let key = |name: &str| format!("{architecture}.{name}");
        let hidden_size = file.count(&key("embedding_length"))?;
        let num_attention_heads = file.count(&key("attention.head_count"))?;
        if let Some(kind) = file.get(&key("rope.scaling.type")).and_then(Value::as_str)
            && kind != "none"
        {
            return Err(Error::Unsupported {
                origin,
                what: "the rope scaling",
                found: kind.to_owned(),
                known: "none".to_owned(),
            });
        }
        let vocab_size = match file.get(&key("vocab_size")) {
            Some(_) => file.count(&key("vocab_size"))?,
            None => file.array("tokenizer.ggml.tokens")?.len(),
        };
        let id = |name: &str| file.get(name).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        Self {
            model_type: architecture.to_owned(),
            vocab_size,
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
            hidden_act: "silu".to_owned(),
            max_position_embeddings: file.count(&key("context_length"))?,
            // The file holds it as f32; its decimal form is the number that was meant.
            rms_norm_eps: as_written(file.number(&key("attention.layer_norm_rms_epsilon"))?),
            rope_theta: match file.get(&key("rope.freq_base")) {
                Some(_) => as_written(file.number(&key("rope.freq_base"))?),
                None => 10_000.0,
            },
            attention_bias: file.has_tensor("blk.0.attn_q.bias"),
            mlp_bias: file.has_tensor("blk.0.ffn_down.bias"),
            tie_word_embeddings: !file.has_tensor("output.weight"),
            bos_token_id: id("tokenizer.ggml.bos_token_id"),
            eos_token_id: id("tokenizer.ggml.eos_token_id").into_iter().collect(),
            pad_token_id: id("tokenizer.ggml.padding_token_id"),
        }
        .validate(&origin)
    }

    /// Refuses sizes that contradict each other.
    fn validate(self, origin: &str) -> Result<Self> {
        let refuse = |field: &str, found: String, expected: &str| {
            Err(Error::Config {
                origin: origin.to_owned(),
                field: field.to_owned(),
                found,
                expected: expected.to_owned(),
            })
        };
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return refuse(
                "num_key_value_heads",
                self.num_key_value_heads.to_string(),
                &format!("a divisor of num_attention_heads, which is {}", self.num_attention_heads),
            );
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return refuse(
                "head_dim",
                self.head_dim.to_string(),
                "an even number above 0, as rotary embedding turns pairs",
            );
        }
        if self.hidden_act != "silu" {
            return refuse("hidden_act", format!("`{}`", self.hidden_act), "`silu`");
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return refuse("rms_norm_eps", self.rms_norm_eps.to_string(), "a finite number above 0");
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return refuse("rope_theta", self.rope_theta.to_string(), "a finite number above 0");
        }
        let ids = self.bos_token_id.iter().chain(&self.eos_token_id);
        if let Some(id) = ids.chain(&self.pad_token_id).find(|id| **id as usize >= self.vocab_size) {
            return refuse(
                "bos_token_id, eos_token_id, pad_token_id",
                id.to_string(),
                &format!("ids below vocab_size, which is {}", self.vocab_size),
            );
        }
        Ok(self)
    }
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

/// The number whose nearest f32 this is: `1e-5` and not `9.999999747378752e-6`.
fn as_written(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}

/// Checked access to the fields of a JSON object.
struct JsonFields<'a> {
    fields: &'a Map<String, Json>,
    origin: &'a str,
}

impl<'a> JsonFields<'a> {
    fn get(&self, field: &str) -> Option<&'a Json> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    fn refuse<T>(&self, field: &str, found: &str, expected: &str) -> Result<T> {
        Err(Error::Config {
            origin: self.origin.to_owned(),
            field: field.to_owned(),
            found: found.to_owned(),
            expected: expected.to_owned(),
        })
    }

    fn count(&self, field: &str) -> Result<usize> {
        match self.optional_count(field)? {
            Some(count) => Ok(count),
            None => self.refuse(field, "missing", "a whole number above 0"),
        }
    }

    fn optional_count(&self, field: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=LARGEST).contains(n)) {
            Some(count) => Ok(Some(count)),
            None => self.refuse(field, &value.to_string(), "a whole number above 0"),
        }
    }

    fn number(&self, field: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => self.refuse(field, &value.to_string(), "a number"),
        }
    }

    fn flag(&self, field: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_bool() {
            Some(flag) => Ok(Some(flag)),
            None => self.refuse(field, &value.to_string(), "true or false"),
        }
    }

    fn text(&self, field: &str) -> Result<Option<String>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_str() {
            Some(text) => Ok(Some(text.to_owned())),
            None => self.refuse(field, &value.to_string(), "a text"),
        }
    }

    /// One id or a list of them.
    fn ids(&self, field: &str) -> Result<Vec<u32>> {
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

    fn object(&self, field: &str) -> Option<JsonFields<'a>> {
        self.get(field)?.as_object().map(|fields| JsonFields { fields, origin: self.origin })
    }
}

/// Everything that `generation_config.json` says about where a text ends, to be merged into a [`Config`].
pub(crate) fn generation_eos(text: &str, origin: &str) -> Result<Vec<u32>> {
    let fields: BTreeMap<String, Json> = serde_json::from_str(text).map_err(|error| Error::Config {
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
        assert_eq!((config.head_dim, config.rope_theta, config.rms_norm_eps), (4, 10_000.0, 1e-6));
        assert_eq!(
            (config.bos_token_id, config.eos_token_id, config.pad_token_id),
            (Some(0), vec![1, 2], None)
        );
        assert!(!config.tie_word_embeddings && !config.attention_bias);
    }

    #[test]
    fn rope_theta_is_read_from_both_places() {
        let theta = |field, value| Config::from_json(&json(field, value), "c").unwrap().rope_theta;
        assert_eq!(theta("rope_theta", 5e5.into()), 5e5);
        assert_eq!(
            theta("rope_parameters", serde_json::json!({"rope_type": "default", "rope_theta": 7e5})),
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
            ("hidden_act", "gelu".into(), "`hidden_act` is `gelu`, expected `silu`"),
            ("eos_token_id", 32.into(), "ids below vocab_size, which is 32"),
            ("rope_scaling", serde_json::json!({"rope_type": "yarn"}), "the rope scaling `yarn`"),
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
