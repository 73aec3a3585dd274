//! The rows of a set while it is cleaned.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::key;

/// The texts as they stand, borrowed from the data set where nothing has changed them.
pub(crate) struct CleaningRows<'a> {
    /// The rows have no prompts.
    pub plain_text: bool,
    pub prompts: Vec<Cow<'a, str>>,
    pub completions: Vec<Cow<'a, str>>,
    /// Rows not dropped.
    pub alive: Vec<bool>,
    /// The hashes of each row's pair and of its prompt, as words; see [`Self::fill_keys`].
    pub keys: Vec<Option<(u128, u128)>>,
}

/// Rows that must go, by their index, and the reason.
pub(crate) type Drops = Vec<(usize, String)>;

impl<'a> CleaningRows<'a> {
    pub(crate) fn new(pairs: impl Iterator<Item = (&'a str, &'a str)>, plain_text: bool) -> Self {
        let (prompts, completions): (Vec<_>, Vec<_>) =
            pairs.map(|(p, c)| (Cow::Borrowed(p), Cow::Borrowed(c))).unzip();
        let alive = vec![true; prompts.len()];
        Self { plain_text, prompts, completions, alive, keys: Vec::new() }
    }

    /// The rows that were not dropped, in order.
    pub(crate) fn staying(&self) -> impl Iterator<Item = usize> {
        (0..self.alive.len()).filter(|&row| self.alive[row])
    }

    /// Forgets the hashes of a row whose text has changed.
    pub(crate) fn changed(&mut self, row: usize) {
        if let Some(key) = self.keys.get_mut(row) {
            *key = None;
        }
    }

    /// Fills in the missing hashes of the rows that stay.
    pub(crate) fn fill_keys(&mut self) {
        self.keys.resize(self.alive.len(), None);
        let (alive, prompts, completions) = (&self.alive, &self.prompts, &self.completions);
        self.keys.par_iter_mut().enumerate().with_min_len(1024).for_each(|(row, key)| {
            if alive[row] && key.is_none() {
                let prompt = key::normalized(&prompts[row]);
                *key = Some((
                    key::pair_hash(&prompt, &key::normalized(&completions[row])),
                    key::text_hash(&prompt),
                ));
            }
        });
    }
}
