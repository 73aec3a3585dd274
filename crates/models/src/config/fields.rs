//! Checked access to the fields of a config, and the refusals that name field, value and what was
//! expected.

use serde_json::{Map, Value as Json};

use crate::error::{Error, Result};
use crate::layers::Activation;
use crate::weights::gguf::Gguf;

/// Larger than any size in a real config, and small enough that no product of two of them
/// overflows.
const LARGEST: usize = 1 << 31;
/// More blocks than any real model has: each costs memory before a file's tensors are compared with
/// the config.
const MOST_LAYERS: usize = 10_000;
/// Larger than any real head: the angles of the rotary embedding are computed for each pair of
/// values before that, too.
const LARGEST_HEAD: usize = 8192;

/// The kind of attention of a layer without a window.
pub(crate) const FULL: &str = "full_attention";
/// The kind of attention of a layer with a window.
pub(crate) const SLIDING: &str = "sliding_attention";

/// The sizes that all families share.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) model_type: String,
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) num_key_value_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) max_position_embeddings: usize,
    pub(crate) tie_word_embeddings: bool,
}

/// The sizes that a `config.json` may leave out.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Defaults {
    /// `intermediate_size`, in hidden sizes.
    pub(crate) intermediate_per_hidden: Option<usize>,
    /// Else the hidden size divided by the number of query heads.
    pub(crate) head_dim: Option<usize>,
    pub(crate) max_position_embeddings: Option<usize>,
    pub(crate) tie_word_embeddings: bool,
}

impl Shape {
    /// From `config.json`. GPT-2's and Falcon's first files have names of their own.
    ///
    /// # Errors
    /// A field is missing or is no count.
    pub(crate) fn from_json(
        json: &JsonFields<'_>,
        model_type: &str,
        defaults: Defaults,
    ) -> Result<Self> {
        let hidden_size = json.count_of(&["hidden_size", "n_embd", "n_embed"])?;
        let num_attention_heads = json.count_of(&["num_attention_heads", "n_head"])?;
        let num_hidden_layers = json.count_of(&["num_hidden_layers", "n_layer"])?;
        let intermediate = defaults.intermediate_per_hidden.map(|factor| factor * hidden_size);
        let head_dim = defaults.head_dim.unwrap_or(hidden_size / num_attention_heads);
        Ok(Self {
            model_type: model_type.to_owned(),
            hidden_size,
            intermediate_size: json
                .count_or(&["intermediate_size", "ffn_hidden_size", "n_inner"], intermediate)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: json
                .count_or(&["num_key_value_heads"], Some(num_attention_heads))?,
            head_dim: json.count_or(&["head_dim"], Some(head_dim))?,
            max_position_embeddings: json.count_or(
                &["max_position_embeddings", "n_positions"],
                defaults.max_position_embeddings,
            )?,
            vocab_size: json.count("vocab_size")?,
            tie_word_embeddings: json
                .flag("tie_word_embeddings")?
                .unwrap_or(defaults.tie_word_embeddings),
        })
    }

    /// From the metadata of a GGUF file.
    ///
    /// # Errors
    /// A key is missing or is no count.
    pub(crate) fn from_gguf(file: &Gguf, architecture: &str, model_type: &str) -> Result<Self> {
        let key = |name: &str| format!("{architecture}.{name}");
        let hidden_size = file.count(&key("embedding_length"))?;
        let num_attention_heads = file.count(&key("attention.head_count"))?;
        Ok(Self {
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
            vocab_size: match file.get(&key("vocab_size")) {
                Some(_) => file.count(&key("vocab_size"))?,
                None => file.array("tokenizer.ggml.tokens")?.len(),
            },
            tie_word_embeddings: !file.has_tensor("output.weight"),
        })
    }

    /// Refuses sizes that contradict each other or are absurd, before anything is made for each
    /// layer or head.
    pub(crate) fn check(&self, origin: &str) -> Result<()> {
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return refuse(
                origin,
                "num_key_value_heads",
                self.num_key_value_heads.to_string(),
                &format!("a divisor of num_attention_heads, which is {}", self.num_attention_heads),
            );
        }
        if self.head_dim == 0 {
            return refuse(origin, "head_dim", "0".to_owned(), "an even number above 0");
        }
        if self.head_dim > LARGEST_HEAD {
            let most = format!("at most {LARGEST_HEAD}");
            return refuse(origin, "head_dim", self.head_dim.to_string(), &most);
        }
        if self.num_hidden_layers > MOST_LAYERS {
            let most = format!("at most {MOST_LAYERS}");
            return refuse(origin, "num_hidden_layers", self.num_hidden_layers.to_string(), &most);
        }
        Ok(())
    }
}

pub(crate) fn refuse<T>(origin: &str, field: &str, found: String, expected: &str) -> Result<T> {
    Err(Error::Config {
        origin: origin.to_owned(),
        field: field.to_owned(),
        found,
        expected: expected.to_owned(),
    })
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

/// Checked access to the fields of a JSON object.
pub(crate) struct JsonFields<'a> {
    fields: &'a Map<String, Json>,
    origin: &'a str,
}

impl<'a> JsonFields<'a> {
    /// `origin` is named in errors.
    pub(crate) fn new(fields: &'a Map<String, Json>, origin: &'a str) -> Self {
        Self { fields, origin }
    }

    pub(crate) fn get(&self, field: &str) -> Option<&'a Json> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    pub(crate) fn refuse<T>(&self, field: &str, found: &str, expected: &str) -> Result<T> {
        refuse(self.origin, field, found.to_owned(), expected)
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

    /// One id or a list of them. Conversions of the first Llama write -1 for none.
    pub(crate) fn ids(&self, field: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(field) else { return Ok(Vec::new()) };
        let one = std::slice::from_ref(value);
        let values = value.as_array().map_or(one, Vec::as_slice);
        let ids: Option<Vec<u32>> = values
            .iter()
            .filter(|value| value.as_i64() != Some(-1))
            .map(|v| v.as_u64().and_then(|id| u32::try_from(id).ok()))
            .collect();
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
