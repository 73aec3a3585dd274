//! Text to token ids and back.
//!
//! From a `tokenizer.json` as it is, or built from the metadata of a GGUF file
//! (`tokenizer.ggml.*`), which holds the vocabulary and the merges but no `tokenizer.json`. Ids are
//! those of Python `transformers` for the same file.
//!
//! `transformers` splits the text of a GGUF file whose `tokenizer.ggml.pre` is `smollm` with
//! GPT-2's rule alone, where the model's own `tokenizer.json` (and llama.cpp) first sets every
//! digit apart. The ids differ where two or more blanks or line breaks stand before a digit.
//! [`Digits`] chooses; the default follows `transformers`, so that losses and adapters can be
//! compared with Python's.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};
use tokenizers::processors::template::TemplateProcessing;

use crate::error::{Error, Result};
use crate::weights::gguf::Gguf;
use crate::weights::gguf::tokenizer::GgufTokenizer;

/// What a tokenizer built from a GGUF file with the pre-tokenizer `smollm` does before GPT-2's
/// split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Digits {
    /// Nothing, as `transformers` does for a GGUF file.
    #[default]
    AsTransformers,
    /// Sets every digit apart, as the model was trained and as llama.cpp does.
    Individual,
}

/// Turns text into token ids and back.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Written before a text by [`Tokenizer::encode_with_special_tokens`] when the tokenizer itself
    /// does not do it.
    prefix: Option<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unk: Option<u32>,
    fingerprint: OnceLock<String>,
}

/// A token of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) id: u32,
    /// The bytes of the text that it stands for.
    pub(crate) bytes: Range<usize>,
}

impl Tokenizer {
    /// Builds the tokenizer that a GGUF file describes.
    ///
    /// # Errors
    /// When keys are missing or do not fit together, or it is of a kind other than byte-level BPE
    /// (`gpt2`) and SentencePiece (`llama`).
    pub fn from_gguf(file: &Gguf, digits: Digits) -> Result<Self> {
        let GgufTokenizer { inner, prefix, bos, eos, pad, unk } =
            GgufTokenizer::read(file, digits)?;
        Ok(Self { inner, prefix, bos, eos, pad, unk, fingerprint: OnceLock::new() })
    }

    /// From `tokenizer.json`, with the names of the special tokens from the text of a
    /// `tokenizer_config.json`.
    ///
    /// # Errors
    /// When the file cannot be read or is no tokenizer.
    pub fn from_file(path: impl AsRef<Path>, config: &Json) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let corrupt = |error: tokenizers::Error| Error::Corrupt {
            path: path.to_owned(),
            at: "the tokenizer".to_owned(),
            reason: error.to_string(),
        };
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(corrupt)?;
        // A file keeps what the last call in Python asked for; `transformers` sets both anew at
        // every call, and here batches are cut and filled after tokenisation.
        inner.with_truncation(None).map_err(corrupt)?;
        inner.with_padding(None);
        let id = |name: &str| {
            let token = config.get(name)?;
            // Either the text itself, or an object that holds it.
            let token = token.as_str().or_else(|| token.get("content")?.as_str())?;
            inner.token_to_id(token)
        };
        let (bos, eos, pad, unk) =
            (id("bos_token"), id("eos_token"), id("pad_token"), id("unk_token"));
        Ok(Self { inner, prefix: None, bos, eos, pad, unk, fingerprint: OnceLock::new() })
    }

    /// Token ids of `text`. Special tokens written in it are recognised; none is added.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.inner.encode_fast(text, false).map_err(refused)?.get_ids().to_vec())
    }

    /// Tokens of `text` with their places in it. `add_special_tokens` adds what
    /// [`Tokenizer::encode_with_special_tokens`] adds; these tokens hold no bytes of the text.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub(crate) fn tokenize(&self, text: &str, add_special_tokens: bool) -> Result<Vec<Token>> {
        let encoding = self.inner.encode(text, add_special_tokens).map_err(refused)?;
        let first = self.prefix.filter(|_| add_special_tokens).map(|id| Token { id, bytes: 0..0 });
        let tokens = encoding.get_ids().iter().zip(encoding.get_offsets());
        let tokens = tokens.map(|(id, (start, end))| Token { id: *id, bytes: *start..*end });
        Ok(first.into_iter().chain(tokens).collect())
    }

    /// Token ids of `text`, with those that the tokenizer adds to a text of its own, such as a
    /// first one.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn encode_with_special_tokens(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, true).map_err(refused)?;
        Ok(self.prefix.into_iter().chain(encoding.get_ids().iter().copied()).collect())
    }

    /// The text of `ids`, special tokens included: `decode(encode(text)) == text`.
    ///
    /// # Errors
    /// When the tokenizer refuses the ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false).map_err(refused)
    }

    /// The text of `ids` without the special tokens.
    ///
    /// # Errors
    /// When the tokenizer refuses the ids.
    pub fn decode_text(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(refused)
    }

    /// The text of a `tokenizer.json` that makes the same ids.
    ///
    /// # Errors
    /// When the tokenizer cannot be written down.
    pub(crate) fn to_json(&self) -> Result<String> {
        let mut inner = self.inner.clone();
        if let Some((id, token)) = self.prefix.and_then(|id| Some((id, self.id_to_token(id)?))) {
            let first = TemplateProcessing::builder()
                .try_single(format!("{token} $A"))
                .and_then(|builder| {
                    builder.special_tokens(vec![(token, id)]).build().map_err(|e| e.to_string())
                })
                .map_err(Error::Tokenizer)?;
            inner.with_post_processor(Some(first));
        }
        inner.to_string(false).map_err(refused)
    }

    /// The id of one token as it is written in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// How one token is written in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The texts of the special tokens, such as `<|im_end|>`: written in a text they are recognised.
    pub fn special_tokens(&self) -> Vec<String> {
        let added = self.inner.get_added_tokens_decoder();
        let special = added.into_values().filter(|token| token.special);
        let mut texts: Vec<String> = special.map(|token| token.content).collect();
        texts.sort_unstable();
        texts
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The same without the added ones.
    pub(crate) fn vocab_size_without_added(&self) -> usize {
        self.inner.get_vocab_size(false)
    }

    /// A text that changes with the vocabulary, and with how texts are cut into its tokens: two
    /// tokenizers of one fingerprint give a model the same ids, whether they come from
    /// `tokenizer.json` or a GGUF file.
    ///
    /// # Errors
    /// When the tokenizer refuses the text that it is tried on.
    pub fn fingerprint(&self) -> Result<String> {
        if let Some(known) = self.fingerprint.get() {
            return Ok(known.clone());
        }
        // No blanks before digits: see [`Digits`].
        const PROBE: &str = "Hello, world! It's 42 °C – naïve café\n\tdef f(x): return x_1 ** 2  # 日本語 😀 <|im_end|></s>";
        let mut vocabulary: Vec<(u32, String)> =
            self.inner.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
        vocabulary.sort_unstable();
        let mut hash = Sha256::new();
        for (id, token) in vocabulary {
            hash.update(id.to_le_bytes());
            hash.update((token.len() as u64).to_le_bytes());
            hash.update(token.as_bytes());
        }
        for id in self.encode(PROBE)? {
            hash.update(id.to_le_bytes());
        }
        Ok(self.fingerprint.get_or_init(|| short_hash(hash)).clone())
    }

    /// The token that begins a text.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// The token that fills short rows of a batch.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// The token for what the vocabulary lacks.
    pub fn unk_id(&self) -> Option<u32> {
        self.unk
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.vocab_size())
    }
}

/// The first 16 bytes, written out.
pub(crate) fn short_hash(hash: Sha256) -> String {
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn refused(error: tokenizers::Error) -> Error {
    Error::Tokenizer(error.to_string())
}
