//! A model's tokens as formats see them: by the bytes that they stand for.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use crate::error::{Error, Result};
use crate::text::tokenizer::Tokenizer;

/// Longer tokens have no place in llguidance's tree.
const LONGEST_TOKEN_BYTES: usize = 1000;

/// What compiles formats for the tokens of one model.
pub(crate) struct FormatVocabulary(ParserFactory);

impl FormatVocabulary {
    /// # Errors
    /// No token ends an answer.
    pub(crate) fn new(tokenizer: &Tokenizer, vocab_size: usize, ends: &[u32]) -> Result<Self> {
        let refuse = |problem: &str| Error::Format { problem: problem.to_owned() };
        let ends: Vec<u32> =
            ends.iter().copied().filter(|id| (*id as usize) < vocab_size).collect();
        let Some(end) = ends.first() else {
            return Err(refuse("the model has no token that ends an answer"));
        };
        if !texts_are_their_tokens(tokenizer) {
            return Err(refuse("the tokenizer's texts are not the texts of their tokens in a row"));
        }
        let special: Vec<u32> = tokenizer
            .special_tokens()
            .iter()
            .filter_map(|text| tokenizer.token_to_id(text))
            .collect();
        let bytes = |id: u32| {
            let bytes = tokenizer.token_bytes(id);
            let mut bytes = if bytes.len() > LONGEST_TOKEN_BYTES { Vec::new() } else { bytes };
            // These tokens are no part of a text, whatever they look like.
            if special.contains(&id) || ends.contains(&id) {
                bytes.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
            }
            bytes
        };
        let words: Vec<Vec<u8>> = (0..vocab_size as u32).map(bytes).collect();
        // llguidance asserts what it cannot hold.
        let made = catch_unwind(AssertUnwindSafe(|| {
            let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, *end), &words);
            let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie.with_eos_tokens(&ends)));
            let mut factory = ParserFactory::new_simple(&tokens)?;
            factory.quiet().limits_mut().verbose_errors = false;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(factory)
        }));
        match made {
            Ok(Ok(factory)) => Ok(Self(factory)),
            _ => Err(refuse("the model's vocabulary does not fit llguidance")),
        }
    }

    pub(super) fn factory(&self) -> &ParserFactory {
        &self.0
    }
}

/// Whether the bytes of tokens in a row are the text that they are decoded to, which formats
/// assume.
fn texts_are_their_tokens(tokenizer: &Tokenizer) -> bool {
    const PROBE: &str = "{\"a\": [1, -2.5e3], \"b c\":\t\"né 日本\"}";
    let Ok(ids) = tokenizer.encode(PROBE) else { return false };
    let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id)).collect();
    let text = String::from_utf8_lossy(&bytes);
    // Some write a blank before the first word.
    tokenizer.decode(&ids).is_ok_and(|decoded| decoded.trim_start() == text.trim_start())
}

impl fmt::Debug for FormatVocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FormatVocabulary")
    }
}
