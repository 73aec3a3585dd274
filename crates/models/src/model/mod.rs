//! The handle of a loaded model: what notebooks, training and evaluation hold.

mod chat;
pub(crate) mod forward;
mod load;

use std::any::{Any, TypeId};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use candle_core::{DType, Device};
use tunebook_progress::Stop;

use crate::config::Config;
use crate::error::Result;
use crate::families::decoder::Decoder;
use crate::generate::format::FormatVocabulary;
use crate::hooks::past_key_values::PastKeyValues;
use crate::hooks::residual::Residual;
use crate::layers::{Slot, Weight};
use crate::pass::overlay::Overlay;
use crate::pass::snapshot::Snapshot;
use crate::text::chat_template::ChatTemplate;
use crate::text::conversation::ChatTokenizer;
use crate::text::tokenizer::Tokenizer;
use crate::weights::{Keep, Quantization};
use tunebook_ops::Matrix;

/// A language model with its tokenizer and chat template.
///
/// A `Model` is a handle. Clones share the weights and the active [`Overlay`] (which adapter
/// answers); [`Model::with_overlay`] and [`Model::base`] are handles on the same weights that keep
/// theirs, so that several can answer at the same time. Whatever a handle is asked, the answer is
/// given by one overlay from its first block to its last token.
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
    view: View,
    stop: Stop,
}

/// Which overlay a handle answers with.
#[derive(Clone)]
enum View {
    /// The one that is active when it is asked.
    Active,
    /// This one.
    One(Arc<Overlay>),
    /// One for each text of a batch.
    PerText(Arc<[Arc<Overlay>]>),
}

struct Inner {
    name: String,
    path: PathBuf,
    config: Config,
    decoder: Box<dyn Decoder>,
    slots: Vec<Arc<Slot>>,
    residuals: Vec<Arc<Residual>>,
    past_key_values: Vec<Arc<PastKeyValues>>,
    active: RwLock<Arc<Overlay>>,
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
    keep: Keep,
    activations: DType,
    /// How often weights have changed in place.
    version: AtomicU64,
    extensions: Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
    /// Made for the first answer that must have a format.
    format_vocabulary: OnceLock<FormatVocabulary>,
}

impl Model {
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

    /// Conversations and texts as this model's token ids: what chat asks with and what training
    /// trains on.
    pub fn chat_tokenizer(&self) -> ChatTokenizer<'_> {
        let Inner { name, tokenizer, chat_template, end_ids, .. } = &*self.inner;
        ChatTokenizer::new(name, tokenizer, chat_template.as_ref(), end_ids)
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
    pub fn residuals(&self) -> Vec<Arc<Residual>> {
        self.inner.residuals.clone()
    }

    /// The places before the keys and values of each block, in their order; none for a family that
    /// cannot have any (Falcon 40B's layout).
    pub fn past_key_values(&self) -> Vec<Arc<PastKeyValues>> {
        self.inner.past_key_values.clone()
    }

    /// The overlay that this handle answers with now (for a handle with one for each text, the
    /// first).
    pub fn overlay(&self) -> Arc<Overlay> {
        Arc::clone(self.snapshot().row(0))
    }

    /// The overlay that is active, whether this handle answers with it or not.
    pub fn active_overlay(&self) -> Arc<Overlay> {
        Arc::clone(&self.inner.active.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many positions of the context are taken before a text begins, by virtual tokens and
    /// prefixes.
    pub fn positions_before(&self) -> usize {
        self.overlay().positions_before()
    }

    /// Makes an overlay the active one: every handle that is not bound to another answers with it
    /// from its next answer on. Answers that have begun end with the overlay that they began with.
    pub fn set_overlay(&self, overlay: Arc<Overlay>) {
        *self.inner.active.write().unwrap_or_else(PoisonError::into_inner) = overlay;
    }

    /// A handle on the same weights that answers with this overlay, whichever is active.
    #[must_use]
    pub fn with_overlay(&self, overlay: Arc<Overlay>) -> Self {
        Self { view: View::One(overlay), ..self.clone() }
    }

    /// A handle on the same weights that answers text `i` of a batch with overlay `i`.
    #[must_use]
    pub fn with_overlays(&self, overlays: impl Into<Arc<[Arc<Overlay>]>>) -> Self {
        Self { view: View::PerText(overlays.into()), ..self.clone() }
    }

    /// A handle on the same weights that keeps the overlay that answers now, whatever the model is
    /// switched to.
    #[must_use]
    pub fn pinned(&self) -> Self {
        match &self.view {
            View::Active => self.with_overlay(self.overlay()),
            View::One(_) | View::PerText(_) => self.clone(),
        }
    }

    /// A handle on the same weights that answers without any overlay: the base itself.
    #[must_use]
    pub fn base(&self) -> Self {
        self.with_overlay(Arc::default())
    }

    /// Whether another handle is on the same weights in memory.
    pub fn shares_weights_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Refuses ids that the model has no vector for, such as those of tokens that were added to the
    /// tokenizer alone.
    ///
    /// # Errors
    /// One of them is not below `vocab_size`. The error names the token.
    pub fn check_ids(&self, field: &'static str, ids: &[u32]) -> crate::error::Result<()> {
        let vocab_size = self.config().vocab_size;
        let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) else { return Ok(()) };
        let token = self.tokenizer().id_to_token(*id);
        let token = token.map(|token| format!(" (`{token}`)")).unwrap_or_default();
        Err(crate::error::Error::Argument {
            field,
            value: format!("with token {id}{token}"),
            expected: "ids of the model's vocabulary",
        })
    }

    /// A handle whose work ends when `stop` asks for it, in place of the notebook's Stop.
    #[must_use]
    pub fn with_stop(&self, stop: &Stop) -> Self {
        Self { stop: stop.clone(), ..self.clone() }
    }

    /// Who answers, fixed: what the model is switched to afterwards does not change it.
    pub fn snapshot(&self) -> Snapshot {
        let one = |overlay: &Arc<Overlay>| Snapshot::one(Arc::clone(overlay), self.stop.clone());
        match &self.view {
            View::Active => one(&self.inner.active.read().unwrap_or_else(PoisonError::into_inner)),
            View::One(overlay) => one(overlay),
            View::PerText(overlays) => Snapshot::per_row(Arc::clone(overlays), self.stop.clone()),
        }
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

    /// Tells the model that weights of it or of an overlay have changed in place, as training changes
    /// them: keys and values that were computed with them are not used for other texts any more.
    pub fn weights_changed(&self) {
        self.inner.version.fetch_add(1, Ordering::Relaxed);
    }

    /// How often weights have changed in place.
    pub(crate) fn weights_version(&self) -> u64 {
        self.inner.version.load(Ordering::Relaxed)
    }

    pub(crate) fn decoder(&self) -> &dyn Decoder {
        &*self.inner.decoder
    }

    /// Whether Hugging Face's files hold this weight transposed.
    pub(crate) fn is_transposed(&self, weight: &str) -> bool {
        self.inner.transposed.contains(weight)
    }

    /// Whether this token ends an answer.
    pub fn is_end(&self, id: u32) -> bool {
        self.inner.end_ids.contains(&id)
    }

    /// Its tokens as the formats of answers see them.
    ///
    /// # Errors
    /// No token ends an answer.
    pub(crate) fn format_vocabulary(&self) -> Result<&FormatVocabulary> {
        let Inner { config, tokenizer, end_ids, format_vocabulary, .. } = &*self.inner;
        if let Some(known) = format_vocabulary.get() {
            return Ok(known);
        }
        let new = FormatVocabulary::new(tokenizer, config.vocab_size, end_ids)?;
        Ok(format_vocabulary.get_or_init(|| new))
    }

    /// The type of the weights; of quantised ones, the type that they are dequantised to.
    pub fn dtype(&self) -> DType {
        self.inner.decoder.head().matrix().dtype()
    }

    /// Whether any of its matrices are kept in quantised blocks.
    pub fn is_quantized(&self) -> bool {
        self.inner.weights.iter().any(|weight| weight.matrix().is_quantized())
    }

    /// How its matrices were quantised on loading ([`Model::load_quantized`]); `None`: they were not.
    pub fn quantization(&self) -> Option<Quantization> {
        match self.inner.keep {
            Keep::As(_) => None,
            Keep::Quantized(quantization) => Some(quantization),
        }
    }

    /// The type of plain numbers that it was loaded as, whatever full fine-tuning has made of its
    /// weights since; `None`: quantised ([`Model::quantization`]).
    pub fn loaded_dtype(&self) -> Option<DType> {
        match self.inner.keep {
            Keep::As(dtype) => Some(dtype),
            Keep::Quantized(_) => None,
        }
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
