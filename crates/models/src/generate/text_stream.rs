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
    /// Where the piece before `decoded` begins. A piece is decoded together with the one before it,
    /// since some tokenizers drop a blank at the beginning of what they decode.
    before: usize,
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
        // No character has more bytes, and no token less than one of them.
        const LONGEST_CHARACTER: usize = 4;
        let known = tokenizer.decode_text(&self.ids[self.before..self.decoded])?;
        let text = tokenizer.decode_text(&self.ids[self.before..])?;
        // An incomplete character decodes to the replacement character: wait for the rest of its
        // bytes.
        let waits = text.ends_with('\u{fffd}') && self.ids.len() - self.decoded < LONGEST_CHARACTER;
        if all || !waits {
            self.text.push_str(text.get(known.len()..).unwrap_or_default());
            self.before = self.decoded;
            self.decoded = self.ids.len();
        }
        Ok(())
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
