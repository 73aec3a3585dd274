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
}

impl Scored {
    /// An event's token, if it has one.
    pub(crate) fn of(event: &GenerationEvent) -> Option<Self> {
        let (log_probability, top) = (Some(event.log_probability), event.top_logprobs.clone());
        event.token.map(|id| Self { id, log_probability, top })
    }
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
pub(crate) fn of_completion(
    tokenizer: &Tokenizer,
    tokens: &[Scored],
    top: usize,
    offset: &mut usize,
) -> CompletionLogprobs {
    let mut lists = CompletionLogprobs::default();
    for scored in tokens {
        let text = text_of(tokenizer, scored.id);
        lists.text_offset.push(*offset);
        *offset += text.chars().count();
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
