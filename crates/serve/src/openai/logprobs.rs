//! Log-probabilities as OpenAI's two endpoints write them.

use serde::Serialize;
use serde_json::{Map, Value, json};
use tunebook_models::{GenerationEvent, Tokenizer};
use utoipa::ToSchema;

/// A token with its log-probability; `None` for the first of a prompt, which nothing foretells.
#[derive(Clone, Debug)]
pub(crate) struct Scored {
    pub(crate) id: u32,
    pub(crate) log_probability: Option<f32>,
    /// The likeliest there.
    pub(crate) top: Vec<(u32, f32)>,
    /// The characters that it has added to the text: none while one is not complete, or where the
    /// text leaves the token out.
    pub(crate) chars: usize,
}

impl Scored {
    /// An event's token, if it has one.
    pub(crate) fn of(event: &GenerationEvent) -> Option<Self> {
        let (log_probability, top) = (Some(event.log_probability), event.top_logprobs.clone());
        let chars = event.text.chars().count();
        event.token.map(|id| Self { id, log_probability, top, chars })
    }
}

/// How many characters of a prompt's text each of its tokens adds. A text lacks special tokens that
/// are not written in it, and a character belongs to the token that begins it.
pub(crate) fn chars_of(tokenizer: &Tokenizer, ids: &[u32], text: &str) -> Vec<usize> {
    let special = tokenizer.special_tokens();
    let mut rest = text.as_bytes();
    let chars = |id: &u32| {
        let token = tokenizer.token_bytes(*id);
        // A SentencePiece tokenizer sets a blank before a text.
        let found = [token.as_slice(), token.strip_prefix(b" ").unwrap_or(&token)];
        let found = found.into_iter().find(|token| rest.starts_with(token));
        let added = match found {
            Some(found) => found,
            None if tokenizer.id_to_token(*id).is_some_and(|name| special.contains(&name)) => b"",
            // The tokenizer has written it in another way.
            None => rest.get(..token.len()).unwrap_or(rest),
        };
        rest = &rest[added.len()..];
        added.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
    };
    ids.iter().map(chars).collect()
}

/// JSON has no infinity.
fn number(log_probability: f32) -> f64 {
    f64::from(log_probability.max(-9999.0))
}

/// A token as a text. One that is a part of a character is written as its bytes, as OpenAI does:
/// `bytes:\xe2\x82`.
fn text_of(tokenizer: &Tokenizer, id: u32) -> String {
    String::from_utf8(tokenizer.token_bytes(id)).unwrap_or_else(|error| {
        let bytes = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
        format!("bytes:{}", bytes.collect::<String>())
    })
}

/// A token of a chat answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenLogprob {
    #[serde(flatten)]
    token: LikelyToken,
    /// The likeliest tokens there, the likeliest first.
    top_logprobs: Vec<LikelyToken>,
}

#[derive(Debug, Serialize, ToSchema)]
struct LikelyToken {
    /// Its text; of a part of a character `bytes:\\xe2\\x82`.
    token: String,
    logprob: f64,
    bytes: Vec<u8>,
}

/// The entry of a chat answer's token.
pub(crate) fn of_chat(tokenizer: &Tokenizer, scored: &Scored) -> TokenLogprob {
    let entry = |id: u32, log_probability: f32| LikelyToken {
        token: text_of(tokenizer, id),
        logprob: number(log_probability),
        bytes: tokenizer.token_bytes(id),
    };
    TokenLogprob {
        token: entry(scored.id, scored.log_probability.unwrap_or(0.0)),
        top_logprobs: scored.top.iter().map(|(id, log)| entry(*id, *log)).collect(),
    }
}

/// The log-probabilities of a completion's tokens: four lists of one length.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct CompletionLogprobs {
    tokens: Vec<String>,
    /// `null` for the first token of a prompt.
    token_logprobs: Vec<Option<f64>>,
    /// The likeliest tokens by their texts; of two that are written alike the likelier, and always
    /// the token itself.
    #[schema(value_type = Vec<Option<std::collections::BTreeMap<String, f64>>>)]
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where the token begins in `text`, in characters.
    text_offset: Vec<usize>,
}

/// `logprobs` of a completion. `offset` is where the first token's text begins, and is moved behind
/// the last.
pub(crate) fn of_completion<'a>(
    tokenizer: &Tokenizer,
    tokens: impl IntoIterator<Item = &'a Scored>,
    top: usize,
    offset: &mut usize,
) -> CompletionLogprobs {
    let mut lists = CompletionLogprobs::default();
    for scored in tokens {
        let text = text_of(tokenizer, scored.id);
        lists.text_offset.push(*offset);
        *offset += scored.chars;
        lists.token_logprobs.push(scored.log_probability.map(number));
        lists.top_logprobs.push(match scored.log_probability {
            Some(own) if top > 0 => {
                let mut map = Map::new();
                for (id, log) in scored.top.iter().take(top) {
                    map.entry(text_of(tokenizer, *id)).or_insert_with(|| json!(number(*log)));
                }
                map.entry(text.as_str()).or_insert_with(|| json!(number(own)));
                Some(map)
            }
            _ => None,
        });
        lists.tokens.push(text);
    }
    lists
}

impl CompletionLogprobs {
    /// With those of the tokens that come after.
    pub(crate) fn and(mut self, after: Self) -> Self {
        self.tokens.extend(after.tokens);
        self.token_logprobs.extend(after.token_logprobs);
        self.top_logprobs.extend(after.top_logprobs);
        self.text_offset.extend(after.text_offset);
        self
    }
}
