//! The text of an answer as its tokens come.

use crate::error::Result;
use crate::text::tokenizer::Tokenizer;

/// The text of one row as its tokens come: only whole characters, and nothing that may turn out to
/// be a stop text.
#[derive(Clone, Debug)]
pub(super) struct TextStream {
    stop: Vec<String>,
    pub(super) ids: Vec<u32>,
    /// Ids before it are already in `text`.
    decoded: usize,
    /// Where the last piece before `decoded` that has a text begins. A piece is decoded together with
    /// that one, since some tokenizers drop a blank at the beginning of what they decode.
    before: usize,
    /// Bytes of the text of `ids[decoded..]` that are already in `text`.
    released: usize,
    pub(super) text: String,
    /// Bytes of `text` that have been handed out.
    shown: usize,
    pub(super) stopped: bool,
}

impl TextStream {
    pub(super) fn new(stop: &[String]) -> Self {
        Self {
            stop: stop.to_vec(),
            ids: Vec::new(),
            decoded: 0,
            before: 0,
            released: 0,
            text: String::new(),
            shown: 0,
            stopped: false,
        }
    }

    /// Takes a token and returns the text that has become certain.
    pub(super) fn push(&mut self, id: u32, tokenizer: &Tokenizer) -> Result<&str> {
        self.ids.push(id);
        self.decode(false, tokenizer)?;
        Ok(self.release(false))
    }

    /// The rest of the text.
    pub(super) fn finish(&mut self, tokenizer: &Tokenizer) -> Result<&str> {
        if !self.stopped {
            self.decode(true, tokenizer)?;
        }
        Ok(self.release(true))
    }

    fn decode(&mut self, all: bool, tokenizer: &Tokenizer) -> Result<()> {
        /// No character has more bytes, and no token less than one of them.
        const LONGEST_CHARACTER: usize = 4;
        const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;
        let new = self.text_up_to(self.ids.len(), tokenizer)?;
        // An incomplete character decodes to a replacement character, or to one for each of its
        // bytes: wait for the rest of them.
        let waiting = new.chars().rev().take_while(|c| *c == REPLACEMENT);
        let waiting = if all { 0 } else { waiting.take(LONGEST_CHARACTER - 1).count() };
        let certain = new.len() - waiting * REPLACEMENT.len_utf8();
        if let Some(more) = new.get(self.released..certain) {
            self.text.push_str(more);
            self.released = certain;
        }
        if waiting == 0 {
            self.advance(self.ids.len(), &new);
        }
        // Bytes that are no character are not decoded again and again: by one token at a time, whose
        // text is certain.
        if self.ids.len() - self.decoded > LONGEST_CHARACTER {
            let first = self.text_up_to(self.decoded + 1, tokenizer)?;
            if new.get(..self.released).is_some_and(|released| released.starts_with(&first)) {
                self.advance(self.decoded + 1, &first);
            }
        }
        Ok(())
    }

    /// The text of `ids[decoded..to]`.
    fn text_up_to(&self, to: usize, tokenizer: &Tokenizer) -> Result<String> {
        let known = tokenizer.decode_text(&self.ids[self.before..self.decoded])?;
        let text = tokenizer.decode_text(&self.ids[self.before..to])?;
        match text.strip_prefix(known.as_str()) {
            Some(new) => Ok(new.to_owned()),
            // Bytes in a row are decoded as a whole by some tokenizers, good ones before bad or
            // incomplete ones as bad, too.
            None => tokenizer.decode_text(&self.ids[self.decoded..to]),
        }
    }

    /// The tokens up to here, which have this text, are in `text`.
    fn advance(&mut self, to: usize, text: &str) {
        if !text.is_empty() {
            self.before = self.decoded;
        }
        self.decoded = to;
        self.released = self.released.saturating_sub(text.len());
    }

    fn release(&mut self, all: bool) -> &str {
        let from = self.shown;
        if let Some(at) = self.stop.iter().filter_map(|stop| self.text.find(stop.as_str())).min() {
            self.text.truncate(at);
            self.stopped = true;
        }
        let mut held = 0;
        if !all && !self.stopped {
            // The longest end of the text that is the beginning of a stop text.
            held = self
                .stop
                .iter()
                .flat_map(|stop| stop.char_indices().skip(1).map(move |(n, _)| &stop[..n]))
                .filter(|begin| self.text.ends_with(begin))
                .map(str::len)
                .max()
                .unwrap_or(0);
        }
        self.shown = (self.text.len() - held).max(from.min(self.text.len()));
        self.text.get(from..self.shown).unwrap_or("")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tunebook_testing::Random;

    use super::*;

    /// `</s>` is special and has the id 0.
    fn tokenizer(tokens: &[String], decoder: &Value) -> Tokenizer {
        let vocab: serde_json::Map<String, Value> =
            tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
        let end = json!({
            "id": 0, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        });
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "added_tokens": [end],
            "decoder": decoder,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "byte_fallback": true,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                "vocab": vocab, "merges": [],
            },
        });
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, file.to_string()).unwrap();
        Tokenizer::from_file(&path, &json!({})).unwrap()
    }

    /// As SentencePiece's are: bytes for what has no token, and a blank less at the beginning.
    fn sentencepiece() -> Tokenizer {
        let mut tokens: Vec<String> = ["</s>", "▁Hello", "▁world", "▁", "a"].map(Into::into).into();
        tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
        tokens.push("▁▁▁".to_owned());
        let decoder = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]});
        tokenizer(&tokens, &decoder)
    }

    /// As GPT-2's: a token for each byte, and some of several.
    fn byte_level(several: &[&[u8]]) -> Tokenizer {
        let is_written = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let mut others = 256..;
        let mut written = [' '; 256];
        for (byte, written) in (0..256).zip(&mut written) {
            let code = if is_written(byte) { byte } else { others.next().unwrap() };
            *written = char::from_u32(code).unwrap();
        }
        let single = (0..=255u8).map(|byte| vec![byte]);
        let all = single.chain(several.iter().map(|bytes| bytes.to_vec()));
        let token = |bytes: Vec<u8>| bytes.iter().map(|byte| written[usize::from(*byte)]).collect();
        let tokens: Vec<String> = ["</s>".to_owned()].into_iter().chain(all.map(token)).collect();
        let decoder = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
        });
        tokenizer(&tokens, &decoder)
    }

    /// All pieces of a stream together.
    fn streamed(ids: &[u32], tokenizer: &Tokenizer) -> String {
        let mut stream = TextStream::new(&[]);
        let mut text = String::new();
        for id in ids {
            text.push_str(stream.push(*id, tokenizer).unwrap());
        }
        text.push_str(stream.finish(tokenizer).unwrap());
        text
    }

    #[test]
    fn the_bytes_of_tokens_in_a_row_are_their_text() {
        for tokenizer in [sentencepiece(), byte_level(&["😀 é".as_bytes(), b"  ", b"\n\t"])] {
            let mut random = Random::new(7);
            for _ in 0..200 {
                let ids: Vec<u32> =
                    (0..12).map(|_| 1 + random.below(tokenizer.vocab_size() - 1) as u32).collect();
                let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id)).collect();
                // Bytes that are no characters are replaced one by one, or as a whole.
                let Ok(text) = String::from_utf8(bytes) else { continue };
                let decoded = tokenizer.decode(&ids).unwrap();
                let before = text.len() - decoded.len();
                assert!(before <= 1 && text.ends_with(&decoded), "{text:?} and {decoded:?}");
            }
        }
        let tokenizer = sentencepiece();
        let bytes = |id| String::from_utf8(tokenizer.token_bytes(id)).unwrap();
        assert_eq!([bytes(1), bytes(3), bytes(4), bytes(261)], [" Hello", " ", "a", "   "]);
    }

    #[test]
    fn a_stream_is_the_text_of_its_ids() {
        let tokenizer = sentencepiece();
        let byte = |byte: u8| 5 + u32::from(byte);
        let smile: Vec<u32> = "😀".bytes().map(byte).collect();
        let (end, hello, world, blank, a) = (0, 1, 2, 3, 4);
        for (ids, says) in [
            (vec![hello, world, world], "Hello world world"),
            (vec![hello, end, world], "Hello world"),
            (vec![hello, end, end, world, end], "Hello world"),
            (vec![end, hello, world], "Hello world"),
            (vec![blank, blank, hello, blank, blank, world], "  Hello   world"),
            ([&smile[..], &smile, &[a], &smile].concat(), "😀😀a😀"),
            ([&smile[..], &[blank], &smile].concat(), "😀 😀"),
            (vec![byte(0x80), a, a], "\u{fffd}aa"),
            (
                [&[byte(0x80)], &smile[..], &[a]].concat(),
                "\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}a",
            ),
            ([&[byte(0x80); 9], &smile[..], &[a], &smile].concat(), ""),
            (smile[..2].to_vec(), "\u{fffd}\u{fffd}"),
        ] {
            let whole = tokenizer.decode_text(&ids).unwrap();
            assert_eq!(streamed(&ids, &tokenizer), whole, "{ids:?}");
            assert!(says.is_empty() || whole == says, "{whole:?} is not {says:?}");
        }
        // A bad byte makes the good ones before it bad, too, which have been said by then.
        let ids = [&smile[..], &[byte(0x80), a]].concat();
        assert_eq!(streamed(&ids, &tokenizer), "😀\u{fffd}a");
    }

    #[test]
    fn a_stream_of_bytes_is_the_text_of_its_ids() {
        // The end of a character and the beginning of the next one as one token.
        let several: [&[u8]; 7] = [
            "😀".as_bytes(),
            &[0xf0, 0x9f],
            &[0x98, 0x80, 0xf0],
            &[0xa9, 0xf0],
            &[0xc3, 0xa9, 0xc3],
            &[0x80, 0x80],
            b"abc",
        ];
        let tokenizer = byte_level(&several);
        let id = |byte: u8| 1 + u32::from(byte);
        let smile: Vec<u32> = "😀".bytes().map(id).collect();
        let stray = [&[id(0x80)], &smile[..], &[id(b'a')]].concat();
        assert_eq!(streamed(&stray, &tokenizer), "\u{fffd}😀a");
        let bytes: [u8; 10] = [0x80, 0x98, 0x9f, 0xf0, 0xc3, 0xa9, 0xe4, 0xbd, b'a', b' '];
        let mut random = Random::new(7);
        for round in 0..4000 {
            let ids: Vec<u32> = (0..1 + round % 40)
                .map(|_| match random.below(8) {
                    0 => 0,
                    1..=3 => 257 + random.below(several.len()) as u32,
                    _ => id(*random.one(&bytes)),
                })
                .collect();
            let whole = tokenizer.decode_text(&ids).unwrap();
            assert_eq!(streamed(&ids, &tokenizer), whole, "{ids:?}");
        }
    }

    /// Whole characters are not kept back, and stray bytes are decoded once.
    #[test]
    fn text_comes_with_the_token_that_makes_it_certain() {
        let tokenizer = byte_level(&[]);
        let mut stream = TextStream::new(&[]);
        let mut push = |byte: u8| stream.push(1 + u32::from(byte), &tokenizer).unwrap().to_owned();
        let said: Vec<String> = "é😀".bytes().map(&mut push).collect();
        assert_eq!(said, ["", "é", "", "", "", "😀"]);
        for _ in 0..50 {
            push(0x80);
        }
        assert_eq!(push(b'a'), "\u{fffd}\u{fffd}\u{fffd}a");
        for _ in 0..50 {
            push(0x80);
        }
        assert!(stream.ids.len() - stream.decoded <= 8, "{}", stream.decoded);
    }
}
