//! A decoder's shape, read from `config.json` or from the metadata of a GGUF file. Fields are named
//! as in `config.json`.

pub(crate) mod fields;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use crate::error::{Error, Result};
use crate::families::{Family, gemma};
use crate::weights::gguf::{Gguf, Value};
use fields::{JsonFields, Shape};

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
        let text = gemma::text_part(&fields);
        let json = JsonFields::new(text.as_ref().unwrap_or(&fields), origin);
        let (shape, family) = Family::from_json(&json)?;
        Self {
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
    pub(crate) fn from_gguf(file: &Gguf) -> Result<Self> {
        let (shape, family) = Family::from_gguf(file)?;
        let id = |name: &str| {
            file.get(name).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok())
        };
        let mut eos_token_id: Vec<u32> = id("tokenizer.ggml.eos_token_id").into_iter().collect();
        // Ends a turn of a chat where that is another token.
        eos_token_id
            .extend(id("tokenizer.ggml.eot_token_id").filter(|id| !eos_token_id.contains(id)));
        Self {
            bos_token_id: id("tokenizer.ggml.bos_token_id"),
            eos_token_id,
            pad_token_id: id("tokenizer.ggml.padding_token_id"),
            ..Self::of(shape, family)
        }
        .validate(&file.origin())
    }

    fn of(shape: Shape, family: Family) -> Self {
        Self {
            model_type: shape.model_type,
            vocab_size: shape.vocab_size,
            hidden_size: shape.hidden_size,
            intermediate_size: shape.intermediate_size,
            num_hidden_layers: shape.num_hidden_layers,
            num_attention_heads: shape.num_attention_heads,
            num_key_value_heads: shape.num_key_value_heads,
            head_dim: shape.head_dim,
            max_position_embeddings: shape.max_position_embeddings,
            tie_word_embeddings: shape.tie_word_embeddings,
            bos_token_id: None,
            eos_token_id: Vec::new(),
            pad_token_id: None,
            family,
        }
    }

    pub(crate) fn shape(&self) -> Shape {
        Shape {
            model_type: self.model_type.clone(),
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            max_position_embeddings: self.max_position_embeddings,
            tie_word_embeddings: self.tie_word_embeddings,
        }
    }

    /// As the `config.json` that `transformers` reads.
    pub fn to_json(&self) -> Json {
        let mut fields = Map::new();
        for (field, value) in [
            (
                "architectures",
                json!([Family::model_type(&self.model_type).map(|known| known.class)]),
            ),
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
        self.family.definition().to_json(&self.shape(), &mut fields);
        Json::Object(fields)
    }

    /// Refuses sizes that contradict each other.
    fn validate(mut self, origin: &str) -> Result<Self> {
        let shape = self.shape();
        self.family.definition().validate(&shape, origin)?;
        // Nothing is padded with it here, and tools that add a padding token leave the table as it
        // was.
        self.pad_token_id = self.pad_token_id.filter(|id| (*id as usize) < self.vocab_size);
        let mut ids = self.bos_token_id.iter().chain(&self.eos_token_id);
        if let Some(id) = ids.find(|id| **id as usize >= self.vocab_size) {
            return fields::refuse(
                origin,
                "bos_token_id, eos_token_id",
                id.to_string(),
                &format!("ids below vocab_size, which is {}", self.vocab_size),
            );
        }
        Ok(self)
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
    JsonFields::new(&fields, origin).ids("eos_token_id")
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
}
