//! Log-probabilities as OpenAI's two endpoints write them.

use serde_json::{Map, Value, json};
use tunebook_models::Tokenizer;

/// A token with its log-probability; `None` for the first of a prompt, which nothing foretells.
#[derive(Clone, Debug)]
pub(crate) struct Scored {
    pub(crate) id: u32,
    pub(crate) log_probability: Option<f32>,
    /// The likeliest there.
    pub(crate) top: Vec<(u32, f32)>,
}

/// JSON has no infinity.
fn number(log_probability: f32) -> f32 {
    log_probability.max(-9999.0)
}

/// The bytes of a token: of a byte-level vocabulary those of GPT-2's alphabet, of another its text.
fn bytes_of(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let text = tokenizer.decode(&[id]).unwrap_or_default();
    let Some(token) = tokenizer.id_to_token(id) else { return text.into_bytes() };
    if text.contains(char::REPLACEMENT_CHARACTER) {
        // A part of a character.
        let hex = token.strip_prefix("<0x").and_then(|hex| hex.strip_suffix('>'));
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            return vec![byte];
        }
        if let Some(bytes) = token.chars().map(byte_of).collect::<Option<Vec<u8>>>() {
            return bytes;
        }
    }
    // Decoded alone, some tokens lose the blank that they begin with.
    if token.starts_with('▁') && !text.starts_with(' ') {
        return format!(" {text}").into_bytes();
    }
    text.into_bytes()
}

/// The byte that a character of GPT-2's alphabet stands for: printable ones for themselves, the
/// others in their order from U+0100 on.
fn byte_of(c: char) -> Option<u8> {
    let is_own = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let code = u32::from(c);
    match u8::try_from(code) {
        Ok(byte) => is_own(byte).then_some(byte),
        Err(_) => {
            (0..=u8::MAX).filter(|byte| !is_own(*byte)).nth(code.checked_sub(0x100)? as usize)
        }
    }
}

/// A token as a text. One that is a part of a character is written as its bytes, as OpenAI does:
/// `bytes:\xe2\x82`.
fn text_of(tokenizer: &Tokenizer, id: u32) -> String {
    String::from_utf8(bytes_of(tokenizer, id)).unwrap_or_else(|error| {
        let bytes = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
        format!("bytes:{}", bytes.collect::<String>())
    })
}

/// The entry of a chat answer's token.
pub(crate) fn of_chat(tokenizer: &Tokenizer, scored: &Scored) -> Value {
    let entry = |id: u32, log_probability: f32| {
        json!({
            "token": text_of(tokenizer, id),
            "logprob": number(log_probability),
            "bytes": bytes_of(tokenizer, id),
        })
    };
    let mut value = entry(scored.id, scored.log_probability.unwrap_or(0.0));
    let top: Vec<Value> = scored.top.iter().map(|(id, log)| entry(*id, *log)).collect();
    value["top_logprobs"] = top.into();
    value
}

/// `logprobs` of a completion: four lists of one length. `offset` is where the first token's text
/// begins, in characters, and is moved behind the last. The dictionary of likely tokens is by their
/// texts; of two that are written alike it has the likelier, and always the token itself.
pub(crate) fn of_completion(
    tokenizer: &Tokenizer,
    tokens: &[Scored],
    top: usize,
    offset: &mut usize,
) -> Value {
    let (mut texts, mut logs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
    for scored in tokens {
        let text = text_of(tokenizer, scored.id);
        offsets.push(*offset);
        *offset += text.chars().count();
        logs.push(scored.log_probability.map(number));
        tops.push(match scored.log_probability {
            Some(own) if top > 0 => {
                let mut map = Map::new();
                for (id, log) in scored.top.iter().take(top) {
                    map.entry(text_of(tokenizer, *id)).or_insert_with(|| json!(number(*log)));
                }
                map.entry(text.as_str()).or_insert_with(|| json!(number(own)));
                Value::Object(map)
            }
            _ => Value::Null,
        });
        texts.push(text);
    }
    json!({ "tokens": texts, "token_logprobs": logs, "top_logprobs": tops, "text_offset": offsets })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpt2s_alphabet_is_of_all_bytes() {
        let bytes: std::collections::BTreeSet<u8> =
            (0..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        assert_eq!(bytes.len(), 256);
        assert_eq!(
            [byte_of('a'), byte_of('Ġ'), byte_of('Ċ')],
            [Some(b'a'), Some(b' '), Some(b'\n')]
        );
        assert_eq!(byte_of('▁'), None);
    }
}
