//! A model's tokens as formats see them: by the bytes that they stand for.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Logger, Matcher, ParserFactory};

use crate::error::Error;
use crate::text::tokenizer::Tokenizer;

/// Longer tokens have no place in llguidance's tree.
const LONGEST_TOKEN_BYTES: usize = 1000;
/// What the expressions of a format may take before the first token. The largest known schemas take
/// half of it.
const INITIAL_FUEL: u64 = 1_000_000;
/// The same of a Lark grammar, whose expressions may be of others, so that a short text says a long
/// one. What they take for a token grows as the square of this.
const LARK_FUEL: u64 = 20_000;
/// What they may take for one token.
const STEP_FUEL: u64 = 50_000;
/// States of the expressions of a format, each about a kilobyte: as many as an answer of a full
/// context has characters.
const MOST_STATES: usize = 50_000;

/// What compiles formats for the tokens of one model.
pub(crate) struct FormatVocabulary(ParserFactory);

impl FormatVocabulary {
    /// # Errors
    /// No token ends an answer.
    pub(crate) fn new(
        tokenizer: &Tokenizer,
        vocab_size: usize,
        ends: &[u32],
    ) -> Result<Self, Error> {
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
            let limits = factory.quiet().limits_mut();
            limits.verbose_errors = false;
            limits.initial_lexer_fuel = INITIAL_FUEL;
            limits.step_lexer_fuel = STEP_FUEL;
            limits.max_lexer_states = MOST_STATES;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(factory)
        }));
        match made {
            Ok(Ok(factory)) => Ok(Self(factory)),
            _ => Err(refuse("the model's vocabulary does not fit llguidance")),
        }
    }

    /// Compiles a grammar, and what may come first.
    ///
    /// # Errors
    /// What llguidance says.
    pub(super) fn compile(&self, grammar: TopLevelGrammar, lark: bool) -> Result<Matcher, String> {
        let factory = &self.0;
        let limits = match lark {
            true => ParserLimits { initial_lexer_fuel: LARK_FUEL, ..factory.limits().clone() },
            false => factory.limits().clone(),
        };
        let parser = factory.create_parser_from_init_ext(
            GrammarInit::Serialized(grammar),
            Logger::new(0, 0),
            InferenceCapabilities::default(),
            limits,
        );
        let mut matcher = Matcher::new(parser);
        // Expressions that are too large for the first token fail here, where no answer waits.
        matcher.compute_mask().map_err(|error| error.to_string())?;
        Ok(matcher)
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
