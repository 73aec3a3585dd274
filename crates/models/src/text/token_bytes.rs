//! The bytes that a token stands for in a text.

use crate::text::tokenizer::Tokenizer;

impl Tokenizer {
    /// The bytes that a token stands for within a text, which may be a part of a character: of a
    /// byte-level vocabulary the bytes that GPT-2's alphabet writes, of another those of its text.
    /// Empty for an id that no token has.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let text = self.decode(&[id]).unwrap_or_default();
        let Some(token) = self.id_to_token(id) else { return text.into_bytes() };
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
        // Decoded alone, SentencePiece's tokens lose a blank that they begin with.
        let leading = |text: &str, blank: char| text.chars().take_while(|c| *c == blank).count();
        let lost = leading(&token, '▁').saturating_sub(leading(&text, ' '));
        [" ".repeat(lost).into_bytes(), text.into_bytes()].concat()
    }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn gpt2s_alphabet_is_of_all_bytes() {
        let bytes: BTreeSet<u8> =
            (0..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        assert_eq!(bytes.len(), 256);
        assert_eq!(
            [byte_of('a'), byte_of('Ġ'), byte_of('Ċ')],
            [Some(b'a'), Some(b' '), Some(b'\n')]
        );
        assert_eq!(byte_of('▁'), None);
    }
}
