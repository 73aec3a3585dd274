//! The tokenizer that a GGUF file describes (`tokenizer.ggml.*`): a vocabulary and what is needed
//! to cut texts into it, but no `tokenizer.json`.
//!
//! - `gpt2`: byte-level BPE with merges; how the text is cut first has a name ([`Split`]).
//! - `llama`: SentencePiece with a score for each token. llama.cpp joins the neighbours whose whole
//!   has the best score; the same is written here as merges, which is what Python `transformers`
//!   does with such a file. Bytes without a token of their own have tokens `<0x00>` to `<0xFF>`.

use std::collections::HashMap;

use serde_json::{Value as Json, json};
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::split::Split;
use super::{Gguf, Value};
use crate::error::{Error, Result};
use crate::text::tokenizer::{Digits, refused};

/// Kinds of tokens (`tokenizer.ggml.token_type`).
pub(crate) const NORMAL: i64 = 1;
pub(crate) const UNKNOWN: i64 = 2;
pub(crate) const CONTROL: i64 = 3;
pub(crate) const USER_DEFINED: i64 = 4;
pub(crate) const UNUSED: i64 = 5;
pub(crate) const BYTE: i64 = 6;

/// What stands for a blank in SentencePiece's tokens.
pub(crate) const BLANK: &str = "\u{2581}";

/// A tokenizer and the tokens that have a role.
pub(crate) struct GgufTokenizer {
    pub(crate) inner: tokenizers::Tokenizer,
    /// Written before a text of its own.
    pub(crate) prefix: Option<u32>,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) pad: Option<u32>,
    pub(crate) unk: Option<u32>,
}

impl GgufTokenizer {
    pub(crate) fn read(file: &Gguf, digits: Digits) -> Result<Self> {
        let model = file.text("tokenizer.ggml.model")?;
        let pre = file.get("tokenizer.ggml.pre").and_then(Value::as_str).unwrap_or("default");
        let tokens = file.texts("tokenizer.ggml.tokens")?;
        let (mut inner, always_bos) = match model {
            "gpt2" => (byte_level(file, &tokens, pre, digits)?, Split::begins_with_bos(pre)),
            "llama" => (sentencepiece(file, &tokens)?, true),
            other => {
                return Err(Error::Unsupported {
                    origin: file.origin(),
                    what: "the tokenizer (tokenizer.ggml.model)",
                    found: other.to_owned(),
                    known: "gpt2, llama".to_owned(),
                });
            }
        };
        let id = |key: &str| {
            let id = file.get(&format!("tokenizer.ggml.{key}"))?.as_u64()?;
            u32::try_from(id).ok().filter(|id| (*id as usize) < tokens.len())
        };
        let (bos, eos) = (id("bos_token_id"), id("eos_token_id"));
        let (pad, unk) = (id("padding_token_id"), id("unknown_token_id"));
        let roles = [bos, eos, pad, unk].into_iter().flatten().map(|id| id as usize);
        add_whole_tokens(file, &mut inner, &tokens, model == "gpt2", roles)?;
        let add_bos =
            file.get("tokenizer.ggml.add_bos_token").and_then(Value::as_bool).unwrap_or(always_bos);
        Ok(Self { inner, prefix: bos.filter(|_| add_bos), bos, eos, pad, unk })
    }
}

fn byte_level(
    file: &Gguf,
    tokens: &[&str],
    pre: &str,
    digits: Digits,
) -> Result<tokenizers::Tokenizer> {
    let split = match (Split::named(pre, file.origin())?, digits) {
        (Split::Digits, Digits::AsTransformers) if pre == "smollm" => Split::Gpt2,
        (split, _) => split,
    };
    let vocab: Vocab =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id as u32)).collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges(file)?)
        .ignore_merges(Split::ignores_merges(pre))
        .build()
        .map_err(refused)?;
    let mut inner = tokenizers::Tokenizer::new(bpe);
    inner.with_pre_tokenizer(Some(step::<tokenizers::PreTokenizerWrapper>(split.to_json())?));
    inner.with_decoder(Some(ByteLevel::new(true, true, true)));
    Ok(inner)
}

fn sentencepiece(file: &Gguf, tokens: &[&str]) -> Result<tokenizers::Tokenizer> {
    let architecture = file.text("general.architecture")?;
    let gemma = is_gemma(architecture);
    let tokens: Vec<String> = tokens.iter().map(|token| spelled(token, gemma)).collect();
    let merges = if file.get("tokenizer.ggml.merges").is_some() {
        merges(file)?
    } else {
        let scores = file.array("tokenizer.ggml.scores")?.to_f64().unwrap_or_default();
        if scores.len() != tokens.len() {
            return file.wrong(
                "tokenizer.ggml.scores",
                &format!("{} numbers, one for each token", tokens.len()),
            );
        }
        implied_merges(&tokens, &order(gemma, &scores))
    };
    let vocab: Vocab =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id as u32)).collect();
    let mut builder = BPE::builder().fuse_unk(true).byte_fallback(true);
    if gemma && vocab.contains_key("<unk>") {
        builder = builder.unk_token("<unk>".to_owned());
    }
    let bpe = builder.vocab_and_merges(vocab, merges).build().map_err(refused)?;
    let mut inner = tokenizers::Tokenizer::new(bpe);
    let prefix =
        file.get("tokenizer.ggml.add_space_prefix").and_then(Value::as_bool).unwrap_or(!gemma);
    let layout = Layout::of(architecture, prefix);
    if let Some(normalizer) = layout.normalizer() {
        inner
            .with_normalizer(Some(step::<tokenizers::NormalizerWrapper>(normalizer)?))
            .map_err(refused)?;
    }
    if let Some(pre_tokenizer) = layout.pre_tokenizer() {
        inner.with_pre_tokenizer(Some(step::<tokenizers::PreTokenizerWrapper>(pre_tokenizer)?));
    }
    inner.with_decoder(Some(step::<tokenizers::DecoderWrapper>(layout.decoder())?));
    Ok(inner)
}

/// Where the blank before a text comes from. A GGUF file does not say it; the family does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// Before the text's first word, unless it begins with a blank.
    Llama { prefix: bool },
    /// Before whatever stands between special tokens.
    Phi3,
    /// None.
    Gemma,
}

impl Layout {
    fn of(architecture: &str, prefix: bool) -> Self {
        match architecture {
            "phi3" if prefix => Self::Phi3,
            gemma if is_gemma(gemma) && !prefix => Self::Gemma,
            _ => Self::Llama { prefix },
        }
    }

    fn normalizer(self) -> Option<Json> {
        let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": BLANK });
        match self {
            Self::Llama { .. } => None,
            Self::Phi3 => Some(
                json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": BLANK }, replace] }),
            ),
            Self::Gemma => Some(replace),
        }
    }

    fn pre_tokenizer(self) -> Option<Json> {
        match self {
            Self::Llama { prefix } => {
                let scheme = if prefix { "first" } else { "never" };
                Some(
                    json!({ "type": "Metaspace", "replacement": BLANK, "prepend_scheme": scheme, "split": false }),
                )
            }
            Self::Phi3 => None,
            Self::Gemma => Some(
                json!({ "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false }),
            ),
        }
    }

    fn decoder(self) -> Json {
        let mut steps = vec![
            json!({ "type": "Replace", "pattern": { "String": BLANK }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if !matches!(self, Self::Gemma | Self::Llama { prefix: false }) {
            steps.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        json!({ "type": "Sequence", "decoders": steps })
    }
}

pub(crate) fn is_gemma(architecture: &str) -> bool {
    matches!(architecture, "gemma" | "gemma2" | "gemma3" | "gemma3_text")
}

/// Gemma's files hold several blanks in a row as they are.
fn spelled(token: &str, gemma: bool) -> String {
    match gemma && !token.is_empty() && token.chars().all(|c| c == ' ') {
        true => BLANK.repeat(token.len()),
        false => token.to_owned(),
    }
}

/// The larger, the sooner two parts become this token. Gemma's merges follow the vocabulary, not
/// the scores.
pub(crate) fn order(gemma: bool, scores: &[f64]) -> Vec<f64> {
    match gemma {
        true => (0..scores.len()).map(|id| -(id as f64)).collect(),
        false => scores.to_vec(),
    }
}

/// The merges by which tokens come about when the best one is always made first: every way of
/// cutting a token into two tokens, in the order in which `transformers`' `generate_merges` has
/// them.
pub(crate) fn implied_merges(tokens: &[String], order: &[f64]) -> Vec<(String, String)> {
    /// No real token is longer, and the work grows with the square.
    const LONGEST_BYTES: usize = 1024;
    let ids: HashMap<&str, usize> =
        tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (id, (token, rank)) in tokens.iter().zip(order).enumerate() {
        if ids[token.as_str()] != id || token.len() > LONGEST_BYTES {
            continue; // the last of equal tokens is the one that counts
        }
        let mut ways: Vec<(usize, usize, &str, &str)> = token
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (left, right) = token.split_at(at);
                Some((*ids.get(left)?, *ids.get(right)?, left, right))
            })
            .collect();
        ways.sort_by_key(|(left, right, ..)| (*left, *right));
        merges.extend(ways.into_iter().map(|(_, _, left, right)| (*rank, left, right)));
    }
    let length = |part: &str| part.chars().count();
    merges.sort_by(|a, b| {
        b.0.total_cmp(&a.0)
            .then_with(|| length(b.1).cmp(&length(a.1)))
            .then_with(|| length(b.2).cmp(&length(a.2)))
    });
    merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
}

fn merges(file: &Gguf) -> Result<Vec<(String, String)>> {
    file.texts("tokenizer.ggml.merges")?
        .into_iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(Error::Tokenizer(format!(
                "expected two tokens with a blank between in tokenizer.ggml.merges of `{}`, found `{merge}`",
                file.origin()
            ))),
        })
        .collect()
}

/// Tokens that are found in a text as a whole: control tokens, those that a user added, and those
/// with a role.
fn add_whole_tokens(
    file: &Gguf,
    inner: &mut tokenizers::Tokenizer,
    tokens: &[&str],
    byte_level: bool,
    roles: impl Iterator<Item = usize>,
) -> Result<()> {
    let alphabet = ByteLevel::alphabet();
    // Every real token of a byte-level vocabulary is written in its alphabet; another one marked so
    // is mislabelled.
    let real = |token: &str| !byte_level || token.chars().all(|c| alphabet.contains(&c));
    let special = |token: &str| AddedToken::from(token, true).normalized(false);
    let (mut specials, mut plain) = (Vec::new(), Vec::new());
    if file.get("tokenizer.ggml.token_type").is_some() {
        let Some(kinds) = file.array("tokenizer.ggml.token_type")?.to_i64() else {
            return file.wrong("tokenizer.ggml.token_type", "an array of whole numbers");
        };
        for (token, kind) in tokens.iter().zip(kinds) {
            match kind {
                CONTROL if real(token) => specials.push(special(token)),
                USER_DEFINED if inner.token_to_id(token).is_some() => {
                    plain.push(AddedToken::from(*token, false).normalized(false));
                }
                _ => {}
            }
        }
    }
    specials.extend(roles.map(|id| tokens[id]).filter(|token| real(token)).map(special));
    inner.add_special_tokens(specials).map_err(refused)?;
    inner.add_tokens(plain).map_err(refused)?;
    Ok(())
}

/// A step of a tokenizer from its form in `tokenizer.json`.
fn step<T: serde::de::DeserializeOwned>(json: Json) -> Result<T> {
    serde_json::from_value(json).map_err(|error| Error::Tokenizer(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_score_is_merged_first() {
        let tokens: Vec<String> = ["a", "b", "c", "ab", "bc", "abc"].map(str::to_owned).to_vec();
        let merges = implied_merges(&tokens, &[-10.0, -11.0, -12.0, -2.0, -1.0, -3.0]);
        let pairs: Vec<(&str, &str)> =
            merges.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(pairs, [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")]);
    }
}
