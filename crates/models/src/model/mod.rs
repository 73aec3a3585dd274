//! The handle of a loaded model: what notebooks, training and evaluation hold.

use std::any::{Any, TypeId};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use serde_json::Value as Json;

use crate::config::{self, Config, Family};
use crate::error::{Error, Result};
use crate::families::{self, Decoder, Parts};
use crate::generate::{self, GenerationConfig};
use crate::hooks::past_key_values::Past;
use crate::hooks::residual::Joint;
use crate::hooks::virtual_tokens::{self, Front};
use crate::layers::softcap;
use crate::layers::{Slot, Weight};
use crate::memory;
use crate::pass::kv_cache::{BlockCache, KvCache};
use crate::pass::positions::Positions;
use crate::text::chat_template::ChatTemplate;
use crate::text::conversation::{ChatTokenizer, Message};
use crate::text::tokenizer::{Digits, Tokenizer};
use crate::weights;
use crate::weights::gguf::{Gguf, GgufWeights, Value};
use crate::weights::safetensors::Shards;
use crate::weights::source::{self, Source};
use crate::weights::{Checkpoint, Keep, Quantization};
use tunebook_ops as ops;
use tunebook_ops::Matrix;

/// A language model with its tokenizer and chat template. Clones share everything.
///
/// ```no_run
/// use tunebook_models::{BestDevice, Device, Model};
/// let model = Model::load("SmolLM2-135M-Instruct", &Device::best()?)?;
/// model.chat("Where is my parcel?")?;
/// # Ok::<(), tunebook_models::Error>(())
/// ```
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    path: PathBuf,
    config: Config,
    decoder: Box<dyn Decoder>,
    slots: Vec<Arc<Slot>>,
    joints: Vec<Arc<Joint>>,
    pasts: Vec<Arc<Past>>,
    front: Front,
    weights: Vec<Arc<Weight>>,
    /// Names of the weights that Hugging Face's files hold transposed.
    transposed: HashSet<String>,
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
    device: Device,
    /// Any of these ends an answer.
    end_ids: Vec<u32>,
    parameter_count: usize,
    memory_bytes: u64,
    activations: DType,
    extensions: Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
}

impl Model {
    /// Loads a model as f32. `name_or_path` is a GGUF file, a folder with `config.json`,
    /// `tokenizer.json` and safetensors files, the name of a model in the cache
    /// (`SmolLM2-135M-Instruct` after `cargo xtask lab`), or a repository of the Hugging Face hub
    /// (`owner/name` or `owner/name@revision`), which is fetched.
    ///
    /// # Errors
    /// When there is no such model, a file is damaged or of another kind, its architecture is not
    /// known, tensors are missing, the memory does not suffice, or the hub refuses. The error names
    /// the file and the part of it.
    pub fn load(name_or_path: &str, device: &Device) -> Result<Self> {
        Self::load_as(name_or_path, Some(DType::F32), device)
    }

    /// The same with weights of another type; `None` keeps that of the file (f32 for a quantised
    /// one).
    ///
    /// # Errors
    /// As [`Model::load`]; when `dtype` is none of f32, f16 and bf16.
    pub fn load_as(name_or_path: &str, dtype: Option<DType>, device: &Device) -> Result<Self> {
        if let Some(other) = dtype
            && !matches!(other, DType::F32 | DType::F16 | DType::BF16)
        {
            return Err(Error::Argument {
                field: "dtype",
                value: format!("{other:?}"),
                expected: "F32, F16 or BF16",
            });
        }
        Self::load_kept(name_or_path, dtype.map(Keep::As), device)
    }

    /// The same with the matrices in quantised blocks, which are dequantised as they are used, a
    /// tile at a time: the base of QLoRA (<https://arxiv.org/abs/2305.14314>). It takes in memory
    /// what its blocks take. Adapters train on it as on a plain one; the model itself cannot be
    /// trained.
    ///
    /// ```no_run
    /// use tunebook_models::{Device, Model, Quantization};
    /// let model = Model::load_quantized("SmolLM2-135M-Instruct", Quantization::Stored, &Device::Cpu)?;
    /// println!("{model:?}"); // … 98 MB as Q4_1, Q8_0, F32 …
    /// # Ok::<(), tunebook_models::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Model::load`]; when the matrices are to stay as they are stored, and that is f32.
    pub fn load_quantized(
        name_or_path: &str,
        quantization: Quantization,
        device: &Device,
    ) -> Result<Self> {
        Self::load_kept(name_or_path, Some(Keep::Quantized(quantization)), device)
    }

    fn load_kept(name_or_path: &str, keep: Option<Keep>, device: &Device) -> Result<Self> {
        match source::resolve(name_or_path)? {
            Source::Gguf(path) => Self::load_gguf(name_or_path, path, keep, device),
            Source::Folder(path) => Self::load_folder(name_or_path, path, keep, device),
        }
    }

    fn load_gguf(name: &str, path: PathBuf, keep: Option<Keep>, device: &Device) -> Result<Self> {
        let file = Gguf::open(&path)?;
        let config = Config::from_gguf(&file)?;
        let keep = keep.unwrap_or_else(|| Keep::As(file.dtype()));
        let (tokenizer, parts) = rayon::join(
            || Tokenizer::from_gguf(&file, Digits::default()),
            || fill(name, &config, &GgufWeights::new(&file, &config), keep, device),
        );
        let tokenizer = tokenizer?;
        let source = file.get("tokenizer.chat_template").and_then(Value::as_str);
        let chat_template =
            source.map(|source| ChatTemplate::for_tokenizer(source, &tokenizer)).transpose()?;
        Self::new(name, path, config, parts?, tokenizer, chat_template, (keep, device))
    }

    fn load_folder(name: &str, path: PathBuf, keep: Option<Keep>, device: &Device) -> Result<Self> {
        let read = |file: &str| {
            let path = path.join(file);
            match std::fs::read_to_string(&path) {
                Ok(text) => Ok(Some((text, path))),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(Error::io(&path)(error)),
            }
        };
        let lacks = |file: &str| Error::NotFound {
            name: name.to_owned(),
            looked_for: format!("`{}`", path.join(file).display()),
            advice: "Give the folder that `save_pretrained` of model and tokenizer wrote"
                .to_owned(),
        };
        let (text, config_path) = read("config.json")?.ok_or_else(|| lacks("config.json"))?;
        let mut config = Config::from_json(&text, &config_path.display().to_string())?;
        if let Some((text, path)) = read("generation_config.json")? {
            for id in config::generation_eos(&text, &path.display().to_string())? {
                if !config.eos_token_id.contains(&id) {
                    config.eos_token_id.push(id);
                }
            }
        }
        let tokenizer_config = match read("tokenizer_config.json")? {
            Some((text, path)) => serde_json::from_str(&text).map_err(|error| Error::Corrupt {
                path,
                at: "the file".to_owned(),
                reason: format!("expected JSON: {error}"),
            })?,
            None => Json::Null,
        };
        let tokenizer_path = path.join("tokenizer.json");
        if !tokenizer_path.is_file() {
            return Err(lacks("tokenizer.json"));
        }
        let tokenizer = Tokenizer::from_file(&tokenizer_path, &tokenizer_config)?;
        let template = match read("chat_template.jinja")? {
            Some((text, _)) => Some(text),
            None => named_template(&tokenizer_config),
        };
        let chat_template =
            template.map(|source| ChatTemplate::for_tokenizer(&source, &tokenizer)).transpose()?;
        let shards = Shards::open_folder(&path)?.with_prefix(config.prefix());
        let keep = keep.unwrap_or_else(|| Keep::As(shards.dtype()));
        let parts = fill(name, &config, &shards, keep, device)?;
        Self::new(name, path, config, parts, tokenizer, chat_template, (keep, device))
    }

    fn new(
        name: &str,
        path: PathBuf,
        config: Config,
        parts: Parts,
        tokenizer: Tokenizer,
        chat_template: Option<ChatTemplate>,
        (keep, device): (Keep, &Device),
    ) -> Result<Self> {
        if tokenizer.vocab_size() > config.vocab_size {
            return Err(Error::Config {
                origin: path.display().to_string(),
                field: "vocab_size".to_owned(),
                found: config.vocab_size.to_string(),
                expected: format!(
                    "at least {}, the number of tokens of the tokenizer",
                    tokenizer.vocab_size()
                ),
            });
        }
        let Parts { decoder, slots, joints, pasts, needs } = parts;
        let transposed = needs
            .iter()
            .filter(|need| need.transposed)
            .map(|need| need.weight.name().to_owned())
            .collect();
        let weights: Vec<Arc<Weight>> = needs.into_iter().map(|need| need.weight).collect();
        let parameter_count = weights.iter().map(|weight| weight.matrix().elem_count()).sum();
        let memory_bytes = weights.iter().map(|weight| weight.matrix().bytes()).sum();
        let mut end_ids = config.eos_token_id.clone();
        end_ids.extend(tokenizer.eos_id().filter(|id| !config.eos_token_id.contains(id)));
        Ok(Self {
            inner: Arc::new(Inner {
                name: name.to_owned(),
                path,
                config,
                decoder,
                slots,
                joints,
                pasts,
                front: Front::default(),
                weights,
                transposed,
                tokenizer,
                chat_template,
                device: device.clone(),
                end_ids,
                parameter_count,
                memory_bytes,
                activations: keep.activations(device),
                extensions: Mutex::default(),
            }),
        })
    }

    /// The name that it was loaded by.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The file or folder that it was loaded from.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Its shape.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.tokenizer
    }

    /// Its chat template, if it is a chat model.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.inner.chat_template.as_ref()
    }

    /// Where its weights are.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// Number of parameters, a tied output head counted once.
    pub fn parameter_count(&self) -> usize {
        self.inner.parameter_count
    }

    /// What its weights take in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.inner.memory_bytes
    }

    /// The replaceable projections of all blocks, in the order of the blocks.
    pub fn slots(&self) -> Vec<Arc<Slot>> {
        self.inner.slots.clone()
    }

    /// The ends of the sublayers of all blocks, in the order of the blocks, attention first.
    pub fn joints(&self) -> Vec<Arc<Joint>> {
        self.inner.joints.clone()
    }

    /// The places before the keys and values of each block, in their order; none for a family that
    /// cannot have any (Falcon 40B's layout).
    pub fn pasts(&self) -> Vec<Arc<Past>> {
        self.inner.pasts.clone()
    }

    /// The place before the tokens of every text.
    pub fn front(&self) -> &Front {
        &self.inner.front
    }

    /// How many positions of the context are taken before a text begins, by what stands in
    /// [`Model::front`] and [`Model::pasts`].
    pub fn positions_before(&self) -> usize {
        self.front().count() + self.past_count()
    }

    /// How many positions stand before the keys and values.
    pub(crate) fn past_count(&self) -> usize {
        self.inner.pasts.first().map_or(0, |past| past.count())
    }

    /// Every tensor of the decoder by its name, a tied output head counted once (as the embedding
    /// table).
    pub fn weights(&self) -> Vec<Arc<Weight>> {
        self.inner.weights.clone()
    }

    /// State that another crate keeps with this model. It is made at first asking and dropped with
    /// the last handle.
    pub fn extension<T: Any + Default + Send + Sync>(&self) -> Arc<T> {
        let mut extensions = self.inner.extensions.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = extensions.entry(TypeId::of::<T>()).or_insert_with(|| Arc::<T>::default());
        // The map's key is the type, so the cast cannot fail; if it did, the state would start
        // anew.
        entry.clone().downcast().unwrap_or_default()
    }

    pub(crate) fn decoder(&self) -> &dyn Decoder {
        &*self.inner.decoder
    }

    /// Whether Hugging Face's files hold this weight transposed.
    pub(crate) fn is_transposed(&self, weight: &str) -> bool {
        self.inner.transposed.contains(weight)
    }

    /// The token that fills short rows; any will do, as no other token sees it.
    pub(crate) fn pad_id(&self) -> u32 {
        self.inner.tokenizer.pad_id().or(self.inner.config.pad_token_id).unwrap_or(0)
    }

    pub(crate) fn is_end(&self, id: u32) -> bool {
        self.inner.end_ids.contains(&id)
    }
}

/// The decoder, step by step.
impl Model {
    /// Logits at every position of the text.
    ///
    /// # Shapes
    /// `ids` `[b, t]` u32 -> `[b, t, vocab]`.
    ///
    /// # Errors
    /// When `t` exceeds the context or an id the vocabulary.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.logits(&self.hidden_states(ids)?)
    }

    /// The residual stream after the last block and the final norm, at every position of the text.
    ///
    /// # Shapes
    /// `ids` `[b, t]` u32 -> `[b, t, hid]`.
    ///
    /// # Errors
    /// When `t` exceeds the context or an id the vocabulary.
    pub fn hidden_states(&self, ids: &Tensor) -> Result<Tensor> {
        let (b, t) = ids.dims2()?;
        let positions = self.positions(b, t)?;
        let mut x = self.put_front(&self.embed(ids)?)?;
        for block in 0..self.num_blocks() {
            x = self.block_forward(block, &x, &positions)?;
        }
        self.final_norm(&self.drop_front(&x)?)
    }

    /// The embedding of each token.
    ///
    /// # Shapes
    /// `ids` `[b, t]` u32 -> `[b, t, hid]`.
    ///
    /// # Errors
    /// When an id exceeds the vocabulary.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(self.inner.decoder.embed(ids)?.to_dtype(self.activation_dtype())?)
    }

    /// Puts what stands in [`Model::front`] before the embedded tokens of every row.
    ///
    /// # Shapes
    /// `x` `[b, t, hid]` -> `[b, n + t, hid]`.
    ///
    /// # Errors
    /// When the vectors are not of the hidden size.
    pub fn put_front(&self, x: &Tensor) -> Result<Tensor> {
        match self.front().current() {
            Some(vectors) => virtual_tokens::insert(&vectors.vectors()?, x, None),
            None => Ok(x.clone()),
        }
    }

    /// Takes the positions off again that [`Model::put_front`] put before the tokens.
    ///
    /// # Shapes
    /// `x` `[b, n + t, hid]` -> `[b, t, hid]`.
    ///
    /// # Errors
    /// When there are no more than those.
    pub fn drop_front(&self, x: &Tensor) -> Result<Tensor> {
        match self.front().count() {
            0 => Ok(x.clone()),
            n => Ok(x.narrow(1, n, x.dim(1)?.saturating_sub(n))?.contiguous()?),
        }
    }

    /// What [`Model::embed`] multiplies the embedding table's rows with.
    pub fn embed_scale(&self) -> f64 {
        self.inner.decoder.embed_scale()
    }

    /// The weight of that name is the embedding table of the tokens.
    pub fn is_embedding(&self, weight: &str) -> bool {
        matches!(
            weight,
            "model.embed_tokens.weight"
                | "transformer.wte.weight"
                | "transformer.word_embeddings.weight"
        )
    }

    /// The block in which the weight of that name is used; `None`: before or after them.
    pub fn block_of(&self, weight: &str) -> Option<usize> {
        if weight == "transformer.wpe.weight" {
            return Some(0);
        }
        let rest = weight
            .strip_prefix("model.layers.")
            .or_else(|| weight.strip_prefix("transformer.h."))?;
        rest.split('.').next()?.parse().ok()
    }

    /// Number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.inner.decoder.num_blocks()
    }

    /// The positions of `t` tokens in each of `b` rows, and of what stands in [`Model::front`]
    /// before them; padding, if any, is on the right.
    ///
    /// # Errors
    /// When they exceed the context.
    pub fn positions(&self, b: usize, t: usize) -> Result<Positions> {
        let context = self.inner.config.max_position_embeddings;
        let tokens = self.positions_before() + t;
        if tokens > context {
            return Err(Error::ContextLength { tokens, context, advice: " or split it" });
        }
        let positions = match (self.past_count(), self.front().count() + t) {
            (0, t) => Positions::new(b, t, &self.inner.device),
            (past, t) => Positions::after(past, b, t, &self.inner.device),
        };
        Ok(positions?.in_bf16(self.in_bf16()))
    }

    /// The positions of rows of `t` tokens into which several texts are packed, `segments[row]`
    /// being their lengths: each text counts from 0 and sees itself alone. What is left of a row is
    /// padding.
    ///
    /// # Errors
    /// When a text exceeds the context, the texts of a row exceed `t`, or something stands before
    /// the texts, which would have to be there for each.
    pub fn packed_positions(&self, t: usize, segments: &[Vec<usize>]) -> Result<Positions> {
        if self.positions_before() > 0 {
            return Err(Error::Argument {
                field: "segments",
                value: format!("{} packed rows", segments.len()),
                expected: "one text in each row while virtual tokens stand before it",
            });
        }
        let context = self.inner.config.max_position_embeddings;
        // The padding counts on from 0, too.
        let padding = |row: &Vec<usize>| t.saturating_sub(row.iter().sum());
        let longest = segments
            .iter()
            .flat_map(|row| row.iter().copied().chain([padding(row)]))
            .max()
            .unwrap_or(0);
        if longest > context {
            return Err(Error::ContextLength { tokens: longest, context, advice: " or split it" });
        }
        Ok(Positions::packed(t, segments, &self.inner.device)?.in_bf16(self.in_bf16()))
    }

    /// Whether attention goes through its scores tile by tile, so that texts of a packed row cost
    /// no more than alone. Bounded or biased scores (Gemma 2, falcon-rw) are held in memory, the
    /// whole row's.
    pub fn attends_in_tiles(&self) -> bool {
        match &self.inner.config.family {
            Family::Gemma(family) => family.attn_logit_softcapping.is_none(),
            Family::Falcon(family) => !family.alibi,
            _ => true,
        }
    }

    /// Whether its matrices are bf16.
    fn in_bf16(&self) -> bool {
        !self.is_quantized() && self.dtype() == DType::BF16
    }

    /// One block of the decoder.
    ///
    /// # Shapes
    /// `x` `[b, t, hid]` -> `[b, t, hid]`.
    ///
    /// # Errors
    /// When there is no such block or the shapes do not fit.
    pub fn block_forward(&self, index: usize, x: &Tensor, positions: &Positions) -> Result<Tensor> {
        self.inner.decoder.block(index, x, positions, None)
    }

    /// The norm after the last block.
    ///
    /// # Shapes
    /// `x` `[.., hid]` -> `[.., hid]`.
    ///
    /// # Errors
    /// When the last dimension is not `hid`.
    pub fn final_norm(&self, x: &Tensor) -> Result<Tensor> {
        self.inner.decoder.final_norm(x)
    }

    /// The output head, `[vocab, hid]`; the embedding table itself where they are tied. Of a
    /// quantised head a new copy in f32.
    pub fn head_weight(&self) -> Tensor {
        self.head().tensor().expect("as many values as the shape says make a tensor")
    }

    /// The output head as operations take it, `[vocab, hid]`.
    pub fn head(&self) -> Matrix {
        self.inner.decoder.head()
    }

    /// Logits `l` become `c · tanh(l / c)` with this `c` (Gemma 2).
    pub fn final_logit_softcapping(&self) -> Option<f64> {
        self.inner.decoder.final_logit_softcapping()
    }

    /// Logits of what [`Model::final_norm`] gave.
    ///
    /// # Shapes
    /// `hidden` `[.., hid]` -> `[.., vocab]`.
    ///
    /// # Errors
    /// When the last dimension is not `hid`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = ops::linear(hidden, self.head(), None)?;
        softcap::softcapped(logits, self.inner.decoder.final_logit_softcapping())
    }

    /// The summed cross-entropy of the output head at the labelled rows and their number, as
    /// [`ops::cross_entropy`], with what the family does to its logits.
    ///
    /// # Shapes
    /// `hidden` `[n, hid]`, `labels` of length `n`, [`ops::IGNORE`] where there is none.
    ///
    /// # Errors
    /// When the shapes do not fit together or a label is outside the vocabulary.
    pub fn cross_entropy(&self, hidden: &Tensor, labels: &[i64]) -> Result<(Tensor, usize)> {
        match self.inner.decoder.final_logit_softcapping() {
            None => Ok(ops::cross_entropy(hidden, self.head(), labels)?),
            Some(cap) => softcap::softcapped_cross_entropy(hidden, &self.head(), labels, cap),
        }
    }

    /// Logits of the position after the last one. With the first call to a cache goes what stands
    /// before the tokens.
    ///
    /// `ids` `[b, t]` -> `[b, vocab]`
    pub(crate) fn next_logits(
        &self,
        ids: &Tensor,
        positions: &Positions,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let mut x = self.embed(ids)?;
        if cache.blocks.first().is_some_and(BlockCache::is_empty)
            && let Some(vectors) = self.front().current()
        {
            x = virtual_tokens::insert(&vectors.vectors()?, &x, positions.starts())?;
        }
        for (block, cache) in cache.blocks.iter_mut().enumerate() {
            x = self.inner.decoder.block(block, &x, positions, Some(cache))?;
        }
        let (_, t, _) = x.dims3()?;
        // [b, t, hid] -> [b, hid]
        let last = x.narrow(1, t - 1, 1)?.squeeze(1)?.contiguous()?;
        self.logits(&self.final_norm(&last)?)
    }

    /// Room for the keys and values of `capacity` positions in each of `b` rows.
    pub(crate) fn cache(&self, b: usize, capacity: usize) -> Result<KvCache> {
        let config = self.config();
        let shape = (b, capacity, config.num_key_value_heads, config.head_dim);
        KvCache::new(self.num_blocks(), shape, self.activation_dtype(), self.device())
    }

    /// The type of the weights; of quantised ones, the type that they are dequantised to.
    pub fn dtype(&self) -> DType {
        self.head().dtype()
    }

    /// Whether any of its matrices are kept in quantised blocks.
    pub fn is_quantized(&self) -> bool {
        self.inner.weights.iter().any(|weight| weight.matrix().is_quantized())
    }

    /// The type of activations: f32 on the CPU beside weights in bf16, whose products round to bf16
    /// and sum in f32.
    pub fn activation_dtype(&self) -> DType {
        self.inner.activations
    }

    /// The forms that its weights have in memory, the largest part first: `Q4_1, Q8_0, F32`.
    fn forms(&self) -> String {
        let mut forms: Vec<(String, u64)> = Vec::new();
        for weight in &self.inner.weights {
            let matrix = weight.matrix();
            let form = match &matrix {
                Matrix::Plain(tensor) => format!("{:?}", tensor.dtype()),
                Matrix::Quantized(blocks) => blocks.format().to_string(),
            };
            match forms.iter_mut().find(|(known, _)| *known == form) {
                Some((_, bytes)) => *bytes += matrix.bytes(),
                None => forms.push((form, matrix.bytes())),
            }
        }
        forms.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        forms.into_iter().map(|(form, _)| form).collect::<Vec<_>>().join(", ")
    }
}

/// Text in, text out.
impl Model {
    /// Continues `prompt` as it stands; no chat template is applied.
    ///
    /// # Errors
    /// When the prompt is empty or leaves no room in the context, or a setting is out of range.
    pub fn generate(&self, prompt: &str, config: &GenerationConfig) -> Result<String> {
        Ok(self.generate_batch(&[prompt.to_owned()], config)?.pop().unwrap_or_default())
    }

    /// Continues all prompts at once, each as it stands. Stop returns what there is.
    ///
    /// # Errors
    /// As [`Model::generate`].
    pub fn generate_batch(
        &self,
        prompts: &[String],
        config: &GenerationConfig,
    ) -> Result<Vec<String>> {
        let ids = prompts
            .iter()
            .map(|p| self.tokenizer().encode_with_special_tokens(p))
            .collect::<Result<Vec<_>>>()?;
        Ok(texts(generate::generate(self, &ids, config, &mut |_, _| ())?))
    }

    /// Continues all prompts at once, token ids to token ids. The id that ends an answer is not
    /// part of it.
    ///
    /// # Errors
    /// As [`Model::generate`].
    pub fn generate_ids(
        &self,
        prompts: &[Vec<u32>],
        config: &GenerationConfig,
    ) -> Result<Vec<Vec<u32>>> {
        let answers = generate::generate(self, prompts, config, &mut |_, _| ())?;
        Ok(answers.into_iter().map(|answer| answer.ids).collect())
    }

    /// Conversations and texts as this model's token ids: what chat asks with and what training
    /// trains on.
    pub fn chat_tokenizer(&self) -> ChatTokenizer<'_> {
        let Inner { name, tokenizer, chat_template, end_ids, .. } = &*self.inner;
        ChatTokenizer::new(name, tokenizer, chat_template.as_ref(), end_ids)
    }

    /// The text of a conversation. With `add_generation_prompt` it ends where the assistant's
    /// answer begins. A system message whose role the template refuses stands before the first
    /// user's, as it does in training.
    ///
    /// # Errors
    /// When the model has no chat template or the template refuses the conversation.
    pub fn apply_chat_template(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String> {
        self.chat_tokenizer().render(messages, add_generation_prompt)
    }

    /// Answers one message of a user, showing the text as it comes. The answer is also returned.
    ///
    /// # Errors
    /// As [`Model::generate`]; when the model has no chat template.
    pub fn chat(&self, user: &str) -> Result<String> {
        self.chat_with(&[Message::user(user)], &GenerationConfig::default())
    }

    /// Answers a conversation, showing the text as it comes. The answer is also returned.
    ///
    /// # Errors
    /// As [`Model::chat`].
    pub fn chat_with(&self, messages: &[Message], config: &GenerationConfig) -> Result<String> {
        let answer = self.chat_to(messages, config, &mut |text| tunebook_progress::stream(text))?;
        tunebook_progress::stream("\n");
        Ok(answer)
    }

    /// Answers a conversation, handing each piece of the text to `on_text` as it comes.
    ///
    /// # Errors
    /// As [`Model::chat`].
    pub fn chat_to(
        &self,
        messages: &[Message],
        config: &GenerationConfig,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<String> {
        let ids = self.chat_tokenizer().tokenize_prompt(messages)?;
        let mut answers = generate::generate(self, &[ids], config, &mut |_, text| {
            if !text.is_empty() {
                on_text(text);
            }
        })?;
        Ok(answers.pop().unwrap_or_default().text)
    }

    /// Answers many messages at once, each in a conversation of its own. Stop returns what there
    /// is.
    ///
    /// # Errors
    /// As [`Model::chat`].
    pub fn chat_batch(&self, users: &[String], config: &GenerationConfig) -> Result<Vec<String>> {
        let ids = users
            .iter()
            .map(|user| self.chat_tokenizer().tokenize_prompt(&[Message::user(user)]))
            .collect::<Result<Vec<_>>>()?;
        Ok(texts(generate::generate(self, &ids, config, &mut |_, _| ())?))
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { name, config, parameter_count, memory_bytes, device, .. } = &*self.inner;
        write!(
            f,
            "Model({name}: {}, {:.1} M parameters, {} blocks, hidden size {}, context {}, {:.0} MB as {} on {:?})",
            config.model_type,
            *parameter_count as f64 / 1e6,
            config.num_hidden_layers,
            config.hidden_size,
            config.max_position_embeddings,
            *memory_bytes as f64 / 1e6,
            if self.is_quantized() { self.forms() } else { format!("{:?}", self.dtype()) },
            device.location(),
        )
    }
}

/// Builds the decoder and fills its weights, after saying how much memory they take.
fn fill(
    name: &str,
    config: &Config,
    checkpoint: &dyn Checkpoint,
    keep: Keep,
    device: &Device,
) -> Result<Parts> {
    // Every block has tensors of its own, and what stands for one while it is loaded is larger than
    // a small one in a file.
    let tensors = checkpoint.shapes().len();
    if config.num_hidden_layers > tensors {
        return Err(Error::Config {
            origin: checkpoint.origin(),
            field: "num_hidden_layers".to_owned(),
            found: config.num_hidden_layers.to_string(),
            expected: format!("fewer than the tensors that the files hold, which are {tensors}"),
        });
    }
    // Shapes first, on nothing: what a config asks for may be more than there is.
    let parts = families::build(config, device)?;
    weights::check(checkpoint, &config.model_type, &parts.needs)?;
    let count: usize = parts.needs.iter().map(|need| need.shape.iter().product::<usize>()).sum();
    if matches!(keep, Keep::Quantized(_))
        && !weights::has_blocks(checkpoint, &parts.needs, keep, device)
    {
        return Err(Error::NotQuantized { origin: checkpoint.origin() });
    }
    let (bytes, forms) = weights::size(checkpoint, &parts.needs, keep, device);
    memory::announce(name, count, bytes, &forms.join(", "), device)?;
    weights::load(checkpoint, &parts.needs, keep, device)?;
    Ok(parts)
}

fn texts(answers: Vec<generate::Generated>) -> Vec<String> {
    answers.into_iter().map(|answer| answer.text).collect()
}

/// The template in `tokenizer_config.json`: a text, or a list of named ones of which `default`
/// counts.
fn named_template(config: &Json) -> Option<String> {
    match config.get("chat_template")? {
        Json::String(text) => Some(text.clone()),
        Json::Array(templates) => {
            let default = templates
                .iter()
                .find(|template| template.get("name").and_then(Json::as_str) == Some("default"))?;
            Some(default.get("template")?.as_str()?.to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_can_be_kept_and_shared() {
        fn shared<T: Clone + Send + Sync + 'static>() {}
        shared::<Model>();
    }
}
